"""The CUDA kernels and what launches them, on a driver that runs them on the host: what they compute, shown
where there is no GPU."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from emulated_cuda import GPUS, address, compile_image
from hypothesis import given, settings
from layouts import NAMED, sample, steps, strided
from selection import few

import torchad_ext as ad
from torchad_ext._elementwise import Elementwise
from torchad_ext._native import cache, loader, nvrtc, prebuilt, toolchain
from torchad_ext._symbolic import cpp, expr
from torchad_ext._symbolic.evaluate import evaluate
from torchad_ext._symbolic.operations import (
    copysign,
    entr,
    erfcx,
    erfinv,
    finite,
    lgamma,
    log_ndtr,
    logaddexp,
    logaddexp2,
    logit,
    polygamma,
)
from torchad_ext._symbolic.program import Program
from torchad_ext.ops import CATALOGUE

pytestmark = [
    pytest.mark.skipif(toolchain.find_cxx() is None, reason="no C++ compiler"),
    pytest.mark.usefixtures("emulated_cuda"),
]

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DOUBLE_BACKWARD = ad.sin._order(2)  # three inputs, two outputs
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(scope="module")
def kernel(emulated_cuda: None) -> Callable[[torch.dtype], Callable[..., list[torch.Tensor]]]:
    """The CUDA kernel of sin's double backward, to be called with tensors."""
    addresses = {dtype: address(DOUBLE_BACKWARD, dtype) for dtype in DTYPES}
    pointwise = torch.ops.torchad_ext_on_host.pointwise
    return lambda dtype: lambda *xs: pointwise(addresses[dtype], list(xs), [])


def assert_like(results: list[torch.Tensor], exact: list[torch.Tensor]) -> None:
    """Equal to float64 results but for some roundings."""
    for result, expected in zip(results, exact, strict=True):
        limits = torch.finfo(result.dtype)
        torch.testing.assert_close(result, expected.to(result.dtype), rtol=8 * limits.eps, atol=8 * limits.eps)


def exact(*xs: torch.Tensor) -> list[torch.Tensor]:
    return list(DOUBLE_BACKWARD.definition(*(x.double() for x in xs)))


class TestPointwise:
    @pytest.mark.parametrize(
        ("layout", "dtype"), few(itertools.product(NAMED, DTYPES), lambda layout, dtype: dtype == torch.float32)
    )
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


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: torch.where(torch.sin(x) > 0, y, -y),
        lambda x, y: torch.where(~(torch.cos(x) > 0) | (y > 2), y, -y),
        lambda x, y: torch.exp(torch.sin(x)) * torch.maximum(torch.cos(x * y), y),
        lambda x, y: torch.lerp(torch.sign(torch.sin(x)), y, torch.cos(x)),
    ],
    ids=["a comparison", "a logical operation", "products", "a sign"],
)
def test_what_depends_on_the_sine_of_a_huge_argument_is_computed_exactly(function: Callable[..., Any]) -> None:
    op = ad.pointwise(function)._usual
    x = 10 ** torch.linspace(-3, 7, 400)
    y = torch.linspace(-2, 3, 400)
    (result,) = torch.ops.torchad_ext_on_host.pointwise(address(op, torch.float32), [x, y], [])
    torch.testing.assert_close(result, function(x.double(), y.double()).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_special_functions(dtype: torch.dtype) -> None:
    x = expr.tensor("x")
    outputs = [
        *(
            polygamma(0, x),
            polygamma(1, x),
            polygamma(3, x),
            erfcx(0, x),
            erfcx(2, x),
        ),
        *(
            log_ndtr(x),
            entr(x),
            lgamma(x),
            erfinv(x / 50),
            logit(x / 50),
        ),
        *(
            logaddexp(x, 1 - x),
            logaddexp2(x, 1 - x),
            copysign(x, x - 1),
            finite(math.inf) - x,
        ),
    ]
    program = Program((x,), (), tuple(outputs), tuple(f"output{i}" for i in range(len(outputs))))
    at = torch.tensor([0.3, 0.9, 1.0, 1.7, 2.5, 3.1, 11.0, 40.0, -0.3, -1.2, -2.6, 0.0, math.nan], dtype=dtype)
    member = Elementwise(program, functools.partial(evaluate, program), "special")
    results = torch.ops.torchad_ext_on_host.pointwise(address(member, dtype), [at], [])
    for output, result, expected in zip(outputs, results, evaluate(program, at.double()), strict=True):
        if output.op == "sub":
            expected = torch.finfo(dtype).max - at
        rtol = 1e-5 if dtype == torch.float32 else 1e-13
        torch.testing.assert_close(result, expected.to(dtype), rtol=rtol, atol=rtol, equal_nan=True, msg=str(output))


@pytest.mark.long
@pytest.mark.parametrize("order", [1, 2])
def test_every_functor_of_the_catalogue(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = {op: op._order(order).source("cuda", torch.float64) for op in CATALOGUE.values()}
    image = cache.entry(f"catalogue-{order}", "image.cubin")
    compile_image([kernel.text for kernel in kernels.values()], GPUS[1], image)
    monkeypatch.setattr(loader, "_compiled_image", lambda *_: image)
    for op in kernels:
        function = op._order(order)
        intervals = [op.intervals.get(str(x.value), (-2.0, 2.0)) for x in function.program.inputs]
        xs = [torch.linspace(low, high, 12, dtype=torch.float64).roll(i) for i, (low, high) in enumerate(intervals)]
        numbers = [float(op._parameters.defaults[str(x.value)]) for x in function.program.scalars]
        results = torch.ops.torchad_ext_on_host.pointwise(address(function, torch.float64), xs, numbers)
        expected = function.definition(*xs, *numbers)
        expected = expected if isinstance(expected, tuple) else (expected,)
        torch.testing.assert_close(
            results, list(expected), rtol=1e-12, atol=1e-12, msg=lambda text, op=op: f"{op}: {text}"
        )


def test_the_images_of_a_wheel_serve_in_the_place_of_compiled_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prebuilt, "FOLDER", tmp_path)
    monkeypatch.setattr(prebuilt, "GPUS", GPUS)
    exp = ad.exp._order(0)
    for gpu in GPUS:
        compile_image([exp.source("cuda", torch.float32).text], gpu, prebuilt.image(gpu))
    loader._prebuilt_module.cache_clear()
    monkeypatch.setenv("TORCHAD_EXT_CACHE_DIR", str(tmp_path / "cache"))
    x = torch.linspace(-3, 3, 100)
    (y,) = torch.ops.torchad_ext_on_host.pointwise(address(exp, torch.float32), [x], [])
    assert_like([y], [x.double().exp()])
    assert not (tmp_path / "cache").exists()
    loader._prebuilt_module.cache_clear()


class TestFailures:
    """They carry CUDA's name of what happened, and the op."""

    def test_of_a_pointwise_kernel(self, kernel: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FAILING_LAUNCHES", "1")
        error = r"CUDA_ERROR_INVALID_VALUE .* at the launch of SinDoubleBackward_float32_\w+;"
        with pytest.raises(RuntimeError, match=error):
            kernel(torch.float32)(*torch.ones(3, 4))

    def test_of_an_nvrtc_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing() -> str:
            raise nvrtc.NvrtcError("no NVRTC was found")

        monkeypatch.setattr(nvrtc, "version", missing)
        monkeypatch.delenv("TORCHAD_EXT_STRICT")
        loader._for_images.cache_clear()
        with pytest.warns(UserWarning, match=r"no native kernel of tan: no NVRTC was found\. The plain PyTorch"):
            assert not address(ad.tan._order(0), torch.float32)

    def test_of_a_gpu_that_there_is_no_code_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(loader, "present_gpus", lambda: GPUS[:1])
        log = address(ad.log._order(0), torch.float32)
        with pytest.raises(RuntimeError, match=r"CUDA_ERROR_NO_BINARY_FOR_GPU .* at the loading of Log_float32_\w+;"):
            torch.ops.torchad_ext_on_host.pointwise(log, [torch.ones(3)], [])

    @pytest.mark.long
    @pytest.mark.usefixtures("forms")
    def test_of_a_quadratic_form(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FAILING_LAUNCHES", "1")
        on_host = torch.ops.torchad_ext_on_host
        x, A = torch.ones(200), torch.ones(200, 200)
        with pytest.raises(RuntimeError, match=r"CUDA_ERROR_INVALID_VALUE .* at the launch of quadratic_form;"):
            on_host.quadratic_form(x, A)
        with pytest.raises(RuntimeError, match=r"CUDA_ERROR_INVALID_VALUE .* at the launch of quadratic_form;"):
            on_host.quadratic_form(x[:3], A[:3, :3])
        with pytest.raises(RuntimeError, match=r"CUDA_ERROR_INVALID_VALUE .* at the launch of quadratic_form_outer;"):
            on_host.quadratic_form_outer(x, None, x)


@pytest.fixture(scope="module")
def forms(emulated_cuda: None) -> None:
    """The kernels of the quadratic form."""
    for dtype in cpp.DTYPES:
        loader.load_quadratic_form("quadratic_form", cpp.quadratic_form(dtype))


@pytest.mark.usefixtures("forms")
class TestQuadraticForm:
    """Value, product and outer product."""

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
    @pytest.mark.parametrize("n", [1, 3, 4, 7, 16, 31, 33, 65])
    def test_of_every_size_of_kernel(self, n: int, dtype: torch.dtype) -> None:
        self.check((3,), n, dtype)

    @pytest.mark.parametrize(
        ("batch", "n", "dtype"),
        few(
            [((), 136, torch.bfloat16), ((2,), 136, torch.float64), ((), 261, torch.float32)],
            lambda _, n, dtype: n == 261,
        ),
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
            if batch:  # one A for all
                expanded = on_host.quadratic_form_and_product(x, matrix[0].expand(*batch, n, n))
                shared = on_host.quadratic_form_and_product(x, matrix[0])
                assert all(map(torch.equal, shared, expanded))
        for has_g, has_h in ((True, False), (False, True), (True, True)):
            G = on_host.quadratic_form_outer(x, g if has_g else None, h if has_h else None)
            u = g.double().unsqueeze(-1) * x.double() * has_g + h.double() * has_h
            exact = u.unsqueeze(-1) * x.double().unsqueeze(-2)
            exact += x.double().unsqueeze(-1) * h.double().unsqueeze(-2) * has_h
            torch.testing.assert_close(
                G.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=40 * torch.finfo(dtype).eps
            )
