"""Kernels under the sanitizers of the compiler, run by threads that share their operands.

PyTorch's own threads are no subject for ThreadSanitizer, which does not know OpenMP; a small program of its own divides
the same loops among ``std::thread``.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from selection import few

import torchad_ext as ad
from torchad_ext._native import keys, toolchain

DTYPES = (torch.float32, torch.float64, torch.float16)
CXX = toolchain.find_cxx()
pytestmark = pytest.mark.skipif(CXX is None, reason="no C++ compiler")
RACE = """
#include <thread>
int main() {
  int number = 0;
  std::thread one([&] { ++number; }), two([&] { ++number; });
  one.join(), two.join();
}
"""
OVERRUN = "int main(int n, char**) { int* numbers = new int[n + 2]; return numbers[n + 2]; }"
OVERFLOW = "int main(int n, char**) { return (n + 0x7ffffffe) * n + n == 5; }"
CLEAN = "int main() {}"
LOOPS = '#include "run_kernels.h"'


def run(source: str, sanitizer: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Compiles and runs a program; skips where the toolchain or the system has no such sanitizer."""
    flags = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-g", "-pthread"]
    tools = toolchain.cpu_toolchain()
    includes = [f"-I{keys.CSRC}", f"-I{Path(__file__).parent}"]
    kept = [flag for flag in tools.flags if flag not in ("-O3", "-fPIC")]

    def program(name: str, text: str) -> subprocess.CompletedProcess[str]:
        file = folder / f"{name}.cpp"
        file.write_text(text)
        sources = [file, keys.CSRC / "runs_cpu.cpp", keys.CSRC / "sums_cpu.cpp"] if LOOPS in text else [file]
        command = [tools.compiler, *kept, "-O1", *flags, *includes, *map(str, sources), "-o", str(folder / name)]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode:
            return built
        return subprocess.run([str(folder / name)], capture_output=True, text=True, check=False)

    probe = program("probe", CLEAN)
    if probe.returncode:
        pytest.skip(f"no -fsanitize={sanitizer} here: {probe.stderr.strip().splitlines()[-1]}")
    return program("program", source)


def program_of(functions: Sequence[tuple[Any, ...]], dtype: torch.dtype) -> str:
    """A program that runs kernels of elements and of rows, each with some sizes."""
    texts, calls = [], []
    for run, function, sizes, *variant in functions:
        kernel = function.source("cpu", dtype, *variant)
        texts.append(kernel.text)
        calls += [f"  torchad_ext::{run}({kernel.symbol}, {size});" for size in sizes.split(";")]
    return "\n".join([LOOPS, *texts, "int main() {", *calls, "}"])


ELEMENTS, SHORT_ROWS, ROWS = "1;7;1000;10007", "1, 1;9, 3;65, 5;503, 16", "70, 17;33, 130"
SUMS = "1, 5;3, 5;7000, 3;130, 700;3, 9000"
PROGRAMS = {
    "elements": [("run_kernel", f, ELEMENTS) for f in (ad.gelu._order(2), ad.sin._order(0), ad.pow._order(1))],
    "sums": [("run_sums", f, SUMS) for f in (ad.gelu._order(2), ad.pow._order(1))],
    "rows": [
        ("run_kernel", f, sizes, is_short)
        for f in (ad.layer_norm._order(1), ad.softmax._order(0))
        for sizes, is_short in ((SHORT_ROWS, True), (ROWS, False))
    ],
}


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
class TestKernels:
    @pytest.mark.parametrize(
        ("program", "dtype"),
        few(product(PROGRAMS, DTYPES), lambda program, dtype: program == "sums" and dtype == torch.float32),
    )
    def test_clean(self, program: str, dtype: torch.dtype, sanitizer: str, tmp_path: Path) -> None:
        done = run(program_of(PROGRAMS[program], dtype), sanitizer, tmp_path)
        assert done.returncode == 0, done.stderr

    def test_the_sanitizer_bites(self, sanitizer: str, tmp_path: Path) -> None:
        for fault in [RACE] if sanitizer == "thread" else [OVERRUN, OVERFLOW]:
            assert run(fault, sanitizer, tmp_path).returncode != 0
