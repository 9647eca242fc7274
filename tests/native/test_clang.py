"""Clang in the place of g++: everything compiles without a warning, and computes what its definition does."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from builds import start

from torchad_ext import ops
from torchad_ext._native import compile, keys, toolchain
from torchad_ext._native.kernels import DTYPES

CLANG = shutil.which("clang++")
KERNELS = """
import torch, torchad_ext as ad
x = torch.linspace(-3, 3, 101, dtype=torch.float64)
F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
for op, dtype, digits in ((ad.softplus, F64, 13), (ad.gelu, F32, 5), (ad.sin, F16, 2), (ad.exp, BF16, 1)):
    found, expected = x.to(dtype).requires_grad_(), x.to(dtype).double().requires_grad_()
    for y, f in ((found, op), (expected, op.definition)):
        y.slope, = torch.autograd.grad(f(y).sum(), y, create_graph=True)
        y.curvature, = torch.autograd.grad(y.slope.sum(), y)
    close = dict(rtol=10.0**-digits, atol=10.0**-digits)
    torch.testing.assert_close(found.slope.double(), expected.slope, **close)
    torch.testing.assert_close(found.curvature.double(), expected.curvature, **close)
"""
FORM = """
import torch, torchad_ext as ad
for n, count in ((3, 5), (9, 5), (64, 1), (40, 200)):
    x, A = torch.randn(count, n, dtype=torch.float64), torch.randn(n, n, dtype=torch.float64)
    torch.testing.assert_close(ad.quadratic_form(x, A), torch.einsum("bi,ij,bj->b", x, A, x))
    x.requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(ad.quadratic_form(x, A).sum(), x)[0], x @ (A + A.T))
"""
FAST_PATH = """
import torch, torchad_ext as ad
from torchad_ext._native import fast_path
x, A = torch.ones(3, requires_grad=True), torch.eye(3)
assert ad.sin(x).grad_fn.name() == "SinBackward" and ad.quadratic_form(x, A) == 3
assert fast_path.module() is not None
"""

pytestmark = [pytest.mark.long, pytest.mark.skipif(CLANG is None, reason="no clang++")]


@pytest.fixture(autouse=True)
def clang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler of this process and of those it starts, to which a warning is an error."""
    monkeypatch.setenv("CXX", str(CLANG))
    monkeypatch.setenv("TORCHAD_EXT_CXXFLAGS", "-Wall -Wextra -Werror")
    monkeypatch.setenv("TORCHAD_EXT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHAD_EXT_STRICT", "1")
    monkeypatch.setenv("TORCHAD_EXT_EAGER", "0")


def run(script: str) -> None:
    process = start(script)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors


@pytest.mark.parametrize("level", toolchain._CHOICES)
def test_kernels(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (toolchain.cpu_level().startswith("x86-64") and toolchain.can_run(level)):
        pytest.skip(f"this CPU has no {level}")
    monkeypatch.setenv("TORCHAD_EXT_CPU_LEVEL", level)
    run(KERNELS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("level", toolchain._CHOICES)
def test_catalogue_is_accepted_at_every_level(level: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Orders 0 to 3, all templates instantiated, without the code that only a CPU of the level could run."""
    if not toolchain.cpu_level().startswith("x86-64"):
        pytest.skip("this CPU is none of x86-64")
    kernels = [op._order(order).source("cpu", dtype) for op in ops.CATALOGUE.values() for order in range(4)]
    file = tmp_path / "kernels.cpp"
    file.write_text("\n".join({kernel.symbol: kernel.text for kernel in kernels}.values()), encoding="utf-8")
    flags = toolchain.cpu_toolchain(level).flags
    command = [str(CLANG), *flags, f"-I{keys.CSRC}", "-fsyntax-only", str(file)]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert process.returncode == 0, process.stderr


def test_quadratic_form() -> None:
    run(FORM)


def test_what_launches_cuda_kernels(tmp_path: Path) -> None:
    compile.compile_library("cuda", toolchain.cuda_toolchain(), tmp_path / "library.so")


@pytest.mark.fast_path
def test_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHAD_EXT_EAGER", "wait")
    run(FAST_PATH)
