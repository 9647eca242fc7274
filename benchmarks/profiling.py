"""Where the time of a program goes."""

from __future__ import annotations

from collections.abc import Callable

import torch

MATRIX_PRODUCTS, ELEMENTWISE, REST = KINDS = ("matrix products", "elementwise", "rest")


def seconds_by_kind(call: Callable[[], object], device: str, calls: int = 5) -> dict[str, float]:
    """Seconds in matrix products, in elementwise operations and in everything else, by PyTorch's profiler.

    Args:
        call: what is profiled.
        device: ``"cpu"``, or ``"cuda"`` for the time that its kernels take there.
        calls: how many are profiled; the quickest one counts, which other programs disturbed least.
    """
    activity = torch.profiler.ProfilerActivity
    profiles = []
    for _ in range(calls):
        seconds = dict.fromkeys(KINDS, 0.0)
        with torch.profiler.profile(activities=[activity.CUDA if device == "cuda" else activity.CPU]) as profile:
            call()
        for event in profile.events():
            microseconds = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
            seconds[kind_of(event.name)] += 1e-6 * microseconds
        profiles.append(seconds)
    return min(profiles, key=lambda seconds: sum(seconds.values()))


def kind_of(event: str) -> str:
    """What sort of operation an event of the profiler is."""
    library, _, name = event.partition("::")
    if library == "torchad_ext":
        return ELEMENTWISE
    if library != "aten":
        return REST
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
    if name in ("mm", "addmm", "bmm", "baddbmm", "addbmm"):
        return MATRIX_PRODUCTS
    overloads = (getattr(packet, overload) for overload in packet.overloads()) if packet else ()
    return ELEMENTWISE if any(torch.Tag.pointwise in overload.tags for overload in overloads) else REST
