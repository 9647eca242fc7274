"""Kernels for aarch64, compiled by a cross compiler and run under an emulator: they give the numbers of this CPU.

Debian has both: ``apt install g++-aarch64-linux-gnu qemu-user``.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from test_sanitizers import PROGRAMS, program_of

import torchad_ext as ad
from torchad_ext import ops
from torchad_ext._native import keys, toolchain

CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
pytestmark = pytest.mark.skipif(
    not (shutil.which(CROSS) and shutil.which(EMULATOR)), reason=f"no {CROSS}, or no {EMULATOR}"
)
COUNT = 1531
MOST = 4  # ulp between two correct kernels, some of whose errors are 3.6
IN_MEMORY = {torch.float16: torch.int16, torch.bfloat16: torch.int16}
IN_CPP = {torch.float32: "float", torch.float64: "double", torch.float16: "uint16_t", torch.bfloat16: "uint16_t"}
CATALOGUE = sorted(name for name in ops.__all__ if isinstance(getattr(ad, name), ad.Pointwise))


def results(source: str, command: Sequence[str], emulator: Sequence[str], folder: Path) -> bytes:
    """What a program prints that a compiler makes of a source and of the loops over elements."""
    file, program = folder / "program.cpp", folder / "program"
    file.write_text(source)
    sources = map(str, (file, keys.CSRC / "runs_cpu.cpp", keys.CSRC / "sums_cpu.cpp"))
    includes = f"-I{keys.CSRC}", f"-I{Path(__file__).parent}"
    subprocess.run([*command, *includes, "-pthread", "-static", *sources, "-o", str(program)], check=True)
    return subprocess.run([*emulator, str(program)], check=True, capture_output=True).stdout


def on_aarch64(source: str, folder: Path, *flags: str) -> bytes:
    """What a program prints there."""
    general = [flag for flag in toolchain.cpu_toolchain().flags if not flag.startswith("-march")]
    return results(source, [CROSS, *general, *flags], [EMULATOR], folder)


def of_both(source: str, folder: Path) -> tuple[bytes, bytes]:
    """What a program prints on aarch64 and on this CPU."""
    tools = toolchain.cpu_toolchain()
    return on_aarch64(source, folder), results(source, [tools.compiler, *tools.flags], [], folder)


@pytest.mark.long
@pytest.mark.parametrize("dtype", IN_CPP, ids=str)
@pytest.mark.parametrize("order", [0, 1])
def test_elements(order: int, dtype: torch.dtype, tmp_path: Path) -> None:
    functions = [getattr(ad, name)._order(order) for name in CATALOGUE]
    kernels = [function.source("cpu", dtype) for function in functions]
    calls = (f"  torchad_ext::print_results<{IN_CPP[dtype]}>({kernel.symbol}, {COUNT});" for kernel in kernels)
    text = ['#include "print_results.h"', *(kernel.text for kernel in kernels), "int main() {", *calls, "}"]
    printed = [bytearray(each) for each in of_both("\n".join(text), tmp_path)]
    there, here = (
        torch.frombuffer(each, dtype=IN_MEMORY.get(dtype, dtype)).view(dtype).double().view(-1, COUNT)
        for each in printed
    )
    assert len(here) == sum(len(function.program.outputs) for function in functions)
    info = torch.finfo(dtype)
    ulp = info.eps * here.abs().clamp(min=info.tiny)
    same = (there == here) | (there.isnan() & here.isnan()) | ((there - here).abs() <= MOST * ulp)
    names = [name for name, f in zip(CATALOGUE, functions, strict=True) for _ in f.program.outputs]
    assert not [(name, here[i][~same[i]]) for i, name in enumerate(names) if not same[i].all()]


@pytest.mark.long
@pytest.mark.parametrize("dtype", IN_CPP, ids=str)
@pytest.mark.parametrize("program", PROGRAMS)
def test_loops_end(program: str, dtype: torch.dtype, tmp_path: Path) -> None:
    on_aarch64(program_of(PROGRAMS[program], dtype), tmp_path, "-w")
