"""Peak memory of Hessians of large sums: how much each way adds, a fresh process each. Reads /proc, so Linux only."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from derivative_cases import HESSIANS, large_sums
from rich.console import Console
from rich.table import Table

WAYS = (*HESSIANS, "torchad_ext")


def used(what: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def peak(call: Callable[[], object]) -> int:
    """Bytes that a call adds to this process at its peak."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now
    before = used("VmRSS")
    call()
    return used("VmHWM") - before


def added(number: int, way: str) -> int:
    """Bytes that a way adds at its peak, to a process that has run it for a small function."""
    torch.manual_seed(0)
    cases = list(large_sums())
    call = cases[number].calls(torch.randn)[way]
    small = cases[1].calls(lambda *_: torch.randn(4, 4))[way]
    small()
    return peak(call)


def main() -> None:
    """Prints a table."""
    if len(sys.argv) == 3:
        print(added(int(sys.argv[1]), sys.argv[2]))
        return
    table = Table("", "size", *(f"{way}, MB" for way in WAYS), "least / torchad_ext")
    for number, case in enumerate(large_sums()):
        peaks = []
        for way in WAYS:
            command = [sys.executable, __file__, str(number), way]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            peaks.append(int(out) / 1e6)
        table.add_row(case.name, case.size, *(f"{peak:.1f}" for peak in peaks), f"{min(peaks[:-1]) / peaks[-1]:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
