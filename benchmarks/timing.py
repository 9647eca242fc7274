"""Times callables against each other."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

A_SAMPLE = 5e-3  # seconds, beside which the microseconds of waiting for a GPU are few


class Quartiles(NamedTuple):
    """The median of some samples, and the bounds of their middle half."""

    q1: float
    median: float
    q3: float


def quartiles(samples: Sequence[float]) -> Quartiles:
    return Quartiles(*statistics.quantiles(samples, n=4, method="inclusive"))


def alternate(
    ways: Mapping[str, Callable[[], object]],
    seconds: float,
    synchronize: Callable[[], None],
    least: int = 15,
    warm: int = 5,
    lead: int = 0,
) -> dict[str, list[float]]:
    """Seconds per call of each way, sampled in turn (A B C A B C ...) for about ``seconds`` in all.

    A sample is as many calls as last ``A_SAMPLE``, the same number for every way; what a call returns is freed within
    it. Up to ``lead`` calls before them, fewer where these take long, are not timed: the memory that a way finds is
    then what itself left, not another. At least ``least`` samples are taken of each way, at most 1,000, and no garbage
    is collected meanwhile. Before that each way runs ``warm`` times.
    """

    def sample(call: Callable[[], object], calls: int, lead: int = 0) -> float:
        for _ in range(lead):
            call()
        synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        synchronize()
        return (time.perf_counter() - start) / calls

    quickest = [min(sample(call, 1) for _ in range(warm)) for call in ways.values()]
    calls = max(1, round(A_SAMPLE / min(quickest)))
    lead = min(lead, max(1, round(lead * A_SAMPLE / min(quickest))))
    rounds = min(1000, max(least, round(seconds / ((lead + calls) * sum(quickest)))))
    samples: dict[str, list[float]] = {name: [] for name in ways}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, call in ways.items():
                samples[name].append(sample(call, calls, lead))
    finally:
        gc.enable()
    return samples
