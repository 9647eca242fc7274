"""The CUDA kernels, run on the host by threads: what they compute, shown where there is no GPU."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import NAMED, sample, steps, strided

import torchad_ext as ad
from torchad_ext import _build
from torchad_ext.codegen import Kernel
from torchad_ext.elementwise import Elementwise

pytestmark = pytest.mark.skipif(_build.find_cxx() is None, reason="no C++ compiler")

ON_HOST = Path(__file__).parent / "cuda_on_host"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
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


class Compiler:
    """Compiles CUDA sources for the host."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.csrc = folder, folder / "csrc"
        shutil.copytree(_build.CSRC, self.csrc)
        for source in self.csrc.glob("*.*"):
            source.write_text(for_host(source.read_text()))
        shutil.copy(ON_HOST / "cuda.cuh", self.csrc)

    def __call__(self, name: str, *sources: Path, libraries: tuple[str, ...] = ()) -> Path:
        root = Path(torch.__file__).resolve().parent
        command = [
            *(_build.find_cxx() or "", "-std=c++20", "-O1", "-fPIC", "-shared", "-ffp-contract=off", "-pthread"),
            *("-Wno-unknown-pragmas", "-include", "cuda_runtime.h", *_build._ABI, "-x", "c++"),
            *(f"-I{ON_HOST}", f"-I{self.csrc}", "-isystem", f"{root}/include", f"-L{root}/lib"),
            *(str(source) for source in sources),
            *("-x", "none", *(f"-l{library}" for library in libraries), "-o", str(self.folder / name)),
        ]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return self.folder / name


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    return Compiler(tmp_path_factory.mktemp("on_host"))


@pytest.fixture(scope="module")
def operators(compiler: Compiler) -> Compiler:
    """The compiler, once ``torch.ops.torchad_ext_on_host`` has the operators of the CUDA sources for CPU tensors."""
    definitions = compiler.folder / "definitions.cpp"
    schemas = re.findall(r'm\.def\(".*?"\);', "".join(path.read_text() for path in sorted(_build.CSRC.glob("*.cpp"))))
    definitions.write_text(
        "#include <torch/csrc/stable/library.h>\n"
        f"STABLE_TORCH_LIBRARY_FRAGMENT(torchad_ext_on_host, m) {{ {' '.join(schemas)} }}\n"
    )
    sources = sorted(compiler.csrc.glob("*.cu"))
    torch.ops.load_library(compiler("operators.so", definitions, *sources, libraries=("torch", "torch_cpu", "c10")))
    return compiler


@pytest.fixture(scope="module")
def kernel(operators: Compiler) -> Callable[[Elementwise, torch.dtype], Callable[..., list[torch.Tensor]]]:
    """Compiles the CUDA kernel of a function, to be called with tensors."""
    libraries: dict[str, ctypes.CDLL] = {}

    def load(source: Kernel) -> int:
        if source.symbol not in libraries:
            file = operators.folder / f"{source.symbol}.cu"
            file.write_text(source.text)
            libraries[source.symbol] = ctypes.CDLL(str(operators(f"{source.symbol}.so", file)))
        return ctypes.addressof(ctypes.c_char.in_dll(libraries[source.symbol], source.symbol))

    def compiled(function: Elementwise, dtype: torch.dtype) -> Callable[..., list[torch.Tensor]]:
        address = load(function.source("cuda", dtype))
        return lambda *xs: torch.ops.torchad_ext_on_host.pointwise(address, list(xs), [])

    return compiled


def assert_like(results: list[torch.Tensor], exact: list[torch.Tensor]) -> None:
    """Equal to float64 results but for some roundings, and of one layout."""
    for result, expected in zip(results, exact, strict=True):
        limits = torch.finfo(result.dtype)
        torch.testing.assert_close(result, expected.to(result.dtype), rtol=8 * limits.eps, atol=8 * limits.eps)


class TestPointwise:
    """sin's double backward: three inputs, two outputs."""

    function = ad.sin._order(2)

    def expected(self, *xs: torch.Tensor) -> list[torch.Tensor]:
        return list(self.function.definition(*(x.double() for x in xs)))

    @dtypes
    @pytest.mark.parametrize("layout", NAMED)
    def test_every_layout(self, layout: str, dtype: torch.dtype, kernel: Callable[..., Callable[..., list]]) -> None:
        xs = [NAMED[layout](sample(dtype, "cpu")) * scale for scale in (1, 2)]
        xs.insert(1, NAMED[layout](sample(dtype, "cpu")))
        results, expected = kernel(self.function, dtype)(*xs), self.expected(*xs)
        assert_like(results, expected)
        assert [steps(y) for y in results] == [steps(y) for y in self.function.definition(*xs)]

    @dtypes
    @pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 255, 256, 257, 4096, 4099])
    @pytest.mark.parametrize("offset", [0, 1])
    def test_every_count_and_alignment(
        self, count: int, offset: int, dtype: torch.dtype, kernel: Callable[..., Callable[..., list]]
    ) -> None:
        xs = [torch.linspace(-3, 3, count + 1 + i).to(dtype)[offset : count + offset] for i in range(3)]
        xs[1] = xs[1][:1].expand(count)  # as the gradient of a sum
        assert_like(kernel(self.function, dtype)(*xs), self.expected(*xs))

    @settings(max_examples=60, deadline=None)
    @given(x=strided(), order=st.randoms(use_true_random=False))
    def test_operands_of_different_strides(
        self, x: torch.Tensor, order: object, kernel: Callable[..., Callable[..., list]]
    ) -> None:
        xs = (x, x.contiguous() / 2, torch.ones((), dtype=x.dtype).expand_as(x))
        assert_like(kernel(self.function, torch.float64)(*xs), self.expected(*xs))


class TestQuadraticForm:
    @dtypes
    @pytest.mark.parametrize("n", [1, 2, 31, 33, 65, 129])
    @pytest.mark.parametrize("batch", [(), (2,)], ids=str)
    @pytest.mark.usefixtures("operators")
    def test_value_product_and_outer_product(self, batch: tuple[int, ...], n: int, dtype: torch.dtype) -> None:
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
