"""The CUDA kernels, run on the host by threads: what they compute, shown where there is no GPU."""

from __future__ import annotations

import ctypes
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from layouts import NAMED, sample, steps, strided

import torchad_ext as ad
from torchad_ext import _build
from torchad_ext.ops import CATALOGUE

pytestmark = pytest.mark.skipif(_build.find_cxx() is None, reason="no C++ compiler")

ON_HOST = Path(__file__).parent / "cuda_on_host"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DOUBLE_BACKWARD = ad.sin._order(2)  # three inputs, two outputs
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def for_host(source: str) -> str:
    """CUDA C++ with its launches as calls of ``launch``, registered for tensors on the CPU under another name."""
    launched = re.compile(r"(\w+(?:<[^<>;]*>)?)<<<(.*?)>>>\((.*?)\);", re.DOTALL)

    def call(match: re.Match[str]) -> str:
        kernel, configuration, arguments = match.groups()
        blocks, threads, *_ = re.split(r",\s*(?![^()]*\))", configuration)
        return f"launch({blocks}, {threads}, [=] {{ {kernel}({arguments}); }});"

    source = launched.sub(call, source).replace("(torchad_ext, CUDA, m)", "(torchad_ext_on_host, CPU, m)")
    return source.replace("defined(__CUDACC__)", "true")


@pytest.fixture(scope="module")
def toolchain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_build.Toolchain]:
    """A C++ compiler for CUDA sources, in whose place ``csrc`` holds them as C++, and PyTorch has their operators as
    ``torch.ops.torchad_ext_on_host`` for CPU tensors."""
    folder = tmp_path_factory.mktemp("on_host")
    csrc = folder / "csrc"
    shutil.copytree(_build.CSRC, csrc, ignore=shutil.ignore_patterns("*.cpp"))
    shutil.copy(ON_HOST / "half.cuh", csrc)
    for source in csrc.glob("*.*"):
        source.write_text(for_host(source.read_text()))
    for source in csrc.glob("*.cu"):
        source.rename(source.with_suffix(".cpp"))
    schemas = re.findall(r'm\.def\(".*?"\);', "".join(path.read_text() for path in sorted(_build.CSRC.glob("*.cpp"))))
    (csrc / "definitions.cpp").write_text(
        "#include <torch/csrc/stable/library.h>\n"
        f"STABLE_TORCH_LIBRARY_FRAGMENT(torchad_ext_on_host, m) {{ {' '.join(schemas)} }}\n"
    )
    headers = (f"-I{ON_HOST}", "-isystem", str(Path(torch.__file__).resolve().parent / "include"))
    flags = ("-std=c++20", "-O1", "-fPIC", "-ffp-contract=off", "-pthread", "-include", "cuda_runtime.h")
    toolchain = _build.Toolchain(_build._cxx(), (*flags, "-Wno-unknown-pragmas", *_build._ABI, *headers), "host")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_build, "CSRC", csrc)
        _build.compile_library("cpu", toolchain, folder / "operators.so")
        torch.ops.load_library(folder / "operators.so")
        yield toolchain


@pytest.fixture(scope="module")
def kernel(
    toolchain: _build.Toolchain, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[torch.dtype], Callable[..., list[torch.Tensor]]]:
    """The CUDA kernel of sin's double backward, to be called with tensors."""
    folder = tmp_path_factory.mktemp("kernels")
    sources = {dtype: DOUBLE_BACKWARD.source("cuda", dtype) for dtype in DTYPES}
    _build.compile_library("cpu", toolchain, folder / "kernels.so", list(sources.values()))
    library = ctypes.CDLL(str(folder / "kernels.so"))

    def of(dtype: torch.dtype) -> Callable[..., list[torch.Tensor]]:
        address = ctypes.addressof(ctypes.c_char.in_dll(library, sources[dtype].symbol))
        return lambda *xs: torch.ops.torchad_ext_on_host.pointwise(address, list(xs), [])

    return of


def assert_like(results: list[torch.Tensor], exact: list[torch.Tensor]) -> None:
    """Equal to float64 results but for some roundings."""
    for result, expected in zip(results, exact, strict=True):
        limits = torch.finfo(result.dtype)
        torch.testing.assert_close(result, expected.to(result.dtype), rtol=8 * limits.eps, atol=8 * limits.eps)


def exact(*xs: torch.Tensor) -> list[torch.Tensor]:
    return list(DOUBLE_BACKWARD.definition(*(x.double() for x in xs)))


class TestPointwise:
    @dtypes
    @pytest.mark.parametrize("layout", NAMED)
    def test_every_layout(self, layout: str, dtype: torch.dtype, kernel: Callable[..., Any]) -> None:
        xs = [NAMED[layout](sample(dtype, "cpu")) * scale for scale in (1, 2)]
        xs.insert(1, NAMED[layout](sample(dtype, "cpu")))
        results, expected = kernel(dtype)(*xs), exact(*xs)
        assert_like(results, expected)
        assert [steps(y) for y in results] == [steps(y) for y in DOUBLE_BACKWARD.definition(*xs)]

    @dtypes
    @pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 255, 256, 257, 4096, 4099])
    @pytest.mark.parametrize("offset", [0, 1])
    def test_every_count_and_alignment(
        self, count: int, offset: int, dtype: torch.dtype, kernel: Callable[..., Any]
    ) -> None:
        xs = [torch.linspace(-3, 3, count + 1 + i).to(dtype)[offset : count + offset] for i in range(3)]
        xs[1] = xs[1][:1].expand(count)  # as the gradient of a sum
        assert_like(kernel(dtype)(*xs), exact(*xs))

    def test_sin_and_cos_of_floats_of_every_size(self, kernel: Callable[..., Any]) -> None:
        bits = torch.arange(0, 0x7F800000, 30011).int()
        bound = torch.tensor([65536.0, -65536.0]).nextafter(torch.tensor(float("inf")))
        x = torch.cat(
            [bits.view(torch.float32), -bits.view(torch.float32), bound, torch.tensor([65536.0, float("nan")])]
        )
        one = torch.ones(()).expand_as(x)
        minus_sin, cos = kernel(torch.float32)(x, one, one)
        for result, exact in ((-minus_sin, x.double().sin()), (cos, x.double().cos())):
            spacing = torch.exp2(exact.frexp().exponent.clamp_min(-125).double() - 24)
            number = ~exact.isnan()
            assert torch.equal(~result.isnan(), number)
            assert ((result - exact).abs() <= 1.6 * spacing)[number].all()
            assert torch.equal(result.signbit()[number], exact.signbit()[number])

    @settings(max_examples=60, deadline=None)
    @given(x=strided())
    def test_operands_of_different_strides(self, x: torch.Tensor, kernel: Callable[..., Any]) -> None:
        xs = (x, x.contiguous() / 2, torch.ones((), dtype=x.dtype).expand_as(x))
        assert_like(kernel(torch.float64)(*xs), exact(*xs))


@pytest.mark.parametrize("order", [1, 2])
def test_every_functor_of_the_catalogue(order: int, toolchain: _build.Toolchain, tmp_path: Path) -> None:
    kernels = {op: op._order(order).source("cuda", torch.float64) for op in CATALOGUE.values()}
    first = next(iter(kernels.values()))
    in_one = replace(first, text="\n".join(kernel.text for kernel in kernels.values()))
    _build.compile_library("cpu", toolchain, tmp_path / "kernels.so", [in_one])
    library = ctypes.CDLL(str(tmp_path / "kernels.so"))
    for op, kernel in kernels.items():
        function = op._order(order)
        intervals = [op.intervals.get(str(x.value), (-2.0, 2.0)) for x in function.program.inputs]
        xs = [torch.linspace(low, high, 12, dtype=torch.float64).roll(i) for i, (low, high) in enumerate(intervals)]
        numbers = [float(op._defaults[str(x.value)]) for x in function.program.scalars]
        address = ctypes.addressof(ctypes.c_char.in_dll(library, kernel.symbol))
        results = torch.ops.torchad_ext_on_host.pointwise(address, xs, numbers)
        expected = function.definition(*xs, *numbers)
        expected = expected if isinstance(expected, tuple) else (expected,)
        torch.testing.assert_close(
            results, list(expected), rtol=1e-12, atol=1e-12, msg=lambda text, op=op: f"{op}: {text}"
        )


class TestFailures:
    """They carry CUDA's name of what happened, and the op."""

    def test_of_a_pointwise_kernel(self, kernel: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FAILING_LAUNCHES", "1")
        with pytest.raises(RuntimeError, match=r"cudaErrorInvalidValue .* at the launch of .*SinDoubleBackward;"):
            kernel(torch.float32)(*torch.ones(3, 4))

    @pytest.mark.usefixtures("toolchain")
    def test_of_a_quadratic_form(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FAILING_LAUNCHES", "1")
        on_host = torch.ops.torchad_ext_on_host
        x, A = torch.ones(200), torch.ones(200, 200)
        with pytest.raises(RuntimeError, match=r"cudaErrorInvalidValue .* at the launch of quadratic_form;"):
            on_host.quadratic_form(x, A)
        with pytest.raises(RuntimeError, match=r"cudaErrorInvalidValue .* at the launch of quadratic_form;"):
            on_host.quadratic_form(x[:3], A[:3, :3])
        with pytest.raises(RuntimeError, match=r"cudaErrorInvalidValue .* at the launch of quadratic_form_outer;"):
            on_host.quadratic_form_outer(x, None, x)


@pytest.mark.usefixtures("toolchain")
class TestQuadraticForm:
    """Value, product and outer product."""

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
    @pytest.mark.parametrize("n", [1, 3, 4, 7, 16, 31, 33, 65])
    def test_of_every_size_of_kernel(self, n: int, dtype: torch.dtype) -> None:
        self.check((3,), n, dtype)

    @pytest.mark.parametrize(
        ("batch", "n", "dtype"),
        [((), 136, torch.bfloat16), ((2,), 136, torch.float64), ((), 261, torch.float32)],
        ids=["with an edge", "of several forms", "beside each other"],
    )
    def test_of_tiles(self, batch: tuple[int, ...], n: int, dtype: torch.dtype) -> None:
        self.check(batch, n, dtype)

    def check(self, batch: tuple[int, ...], n: int, dtype: torch.dtype) -> None:
        torch.manual_seed(n)
        x, h = (torch.randn(*batch, n).to(dtype) for _ in range(2))
        A, g = torch.randn(*batch, n, n).to(dtype), torch.randn(batch).to(dtype)
        on_host = torch.ops.torchad_ext_on_host
        for matrix in (A, A.mT):
            Ax = (matrix.double() @ x.double().unsqueeze(-1)).squeeze(-1)
            ATx = (matrix.double().mT @ x.double().unsqueeze(-1)).squeeze(-1)
            q, s = on_host.quadratic_form_and_product(x, matrix)
            size = (matrix.double().abs() @ x.double().abs().unsqueeze(-1)).squeeze(-1)
            tolerance = 4 * torch.finfo(dtype).eps
            assert ((s - (Ax + ATx)).abs() <= tolerance * (size + size.max())).all()
            exact = (x.double() * Ax).sum(-1)
            assert ((q - exact).abs() <= tolerance * (x.double().abs() * size).sum(-1)).all()
            assert torch.equal(on_host.quadratic_form(x, matrix), q)
        for has_g, has_h in ((True, False), (False, True), (True, True)):
            G = on_host.quadratic_form_outer(x, g if has_g else None, h if has_h else None)
            u = g.double().unsqueeze(-1) * x.double() * has_g + h.double() * has_h
            exact = u.unsqueeze(-1) * x.double().unsqueeze(-2)
            exact += x.double().unsqueeze(-1) * h.double().unsqueeze(-2) * has_h
            torch.testing.assert_close(
                G.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=40 * torch.finfo(dtype).eps
            )
