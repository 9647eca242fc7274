"""Loops over many operands whose cache lines crowd one set, which AVX2 computes in pieces."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from torchad_ext._native import toolchain

PROGRAM = """
import torch
import torchad_ext as ad

many = ad.pointwise(lambda a, b, c, d, e: tuple((i + 1) * a * b + c.sin() * d - e for i in range(8)))
for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-14), (torch.float16, 1e-3)):
    for n in (63, 64, 1000, 4096, 70001, 1 << 18):
        for apart in (1 << 18, 70016, 70017):  # elements; the last is not aligned
            if n > apart:
                continue
            memory = torch.randn(5 * apart, generator=torch.Generator().manual_seed(0)).to(dtype)
            xs = [memory[k * apart :][:n] for k in range(5)]
            for given in (xs, [*xs[:4], xs[4][:1].expand(n)], [*(x.view(-1, 1).T for x in xs[:4]), xs[4]]):
                results = many(*given)
                for y, expected in zip(results, many.definition(*(x.double() for x in given))):
                    worst = (y.double() - expected).abs() / (1 + 8 * expected.abs())
                    assert worst.max() <= tolerance, (dtype, n, apart, worst.max())
print("right")
"""


@pytest.mark.skipif(not toolchain.can_run("x86-64-v3"), reason="this CPU has no AVX2")
def test_results_do_not_depend_on_where_operands_lie() -> None:
    environment = {**os.environ, "TORCHAD_EXT_CPU_LEVEL": "x86-64-v3", "TORCHAD_EXT_STRICT": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "right", done.stderr
