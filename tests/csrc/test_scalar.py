"""The scalar functions under the kernels are as accurate as ``csrc/math`` says, on the CPU and on a GPU.

One kernel computes them all. float32 is held against float64 on a sample of all bit patterns, float64 against mpmath.
"""

from __future__ import annotations

import ctypes
import math
import random
import re
from collections.abc import Callable
from pathlib import Path

import mpmath
import pytest
import torch

import torchad_ext as ad
from torchad_ext import Pointwise
from torchad_ext._native import compile, kernels, keys, toolchain

# Function: the largest error in ulp on the CPU, in float32 and float64 alike, as the headers state it.
UNARY = {
    "exp": 0.9, "exp2": 0.9, "expm1": 1.4, "sinh": 1.2, "cosh": 1.2, "tanh": 1.7, "sigmoid": 2.1,
    "log": 1.0, "log1p": 1.1, "log2": 1.3, "log10": 1.1, "asinh": 1.4, "acosh": 1.7, "atanh": 1.4,
    "sin": 1.0, "cos": 1.0, "tan": 1.3, "asin": 1.3, "acos": 1.2, "atan": 1.4,
    "erfcx": 2.8, "erfinv": 1.8, "log_ndtr": 3.6, "logit": 2.6, "entr": 1.6, "lgamma": 4.0,
    "erf": 0.9, "erfc": 1.6, "sqrt": 0.5, "rsqrt": 1.5, "reciprocal": 0.5,
}  # fmt: skip
BINARY = {"pow": 1.0, "atan2": 1.8, "hypot": 1.0}
CUDA_BOUND = 4.0  # of CUDA's own functions, the largest in its Programming Guide
CUDA_NORMCDF_BOUND = 5.0  # by the same guide
MPMATH: dict[str, Callable[..., mpmath.mpf]] = {
    "exp2": lambda x: mpmath.mpf(2) ** x,
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "erfcx": lambda x: mpmath.exp(x * x) * mpmath.erfc(x) if x < 100 else asymptotic_erfcx(x),
    "log_ndtr": lambda x: log_ndtr(x),
    "logit": lambda x: mpmath.log(x / (1 - x)),
    "entr": lambda x: -x * mpmath.log(x),
    "lgamma": lambda x: mpmath.re(mpmath.loggamma(x)),
    "log2": lambda x: mpmath.log(x, 2),
    "reciprocal": lambda x: 1 / x,
    "rsqrt": lambda x: 1 / mpmath.sqrt(x),
    "pow": lambda x, y: x**y,
}


def asymptotic_erfcx(x: mpmath.mpf) -> mpmath.mpf:
    terms = (mpmath.fac2(2 * k - 1) / (-2 * x * x) ** k for k in range(12))
    return sum(terms) / (x * mpmath.sqrt(mpmath.pi))


def log_ndtr(x: mpmath.mpf) -> mpmath.mpf:
    if x < -100:
        return mpmath.log(asymptotic_erfcx(-x / mpmath.sqrt(2)) / 2) - x * x / 2
    tail = mpmath.erfc(abs(x) / mpmath.sqrt(2)) / 2
    return mpmath.log(tail) if x < 0 else mpmath.log1p(-tail)


def native(name: str) -> Callable[..., torch.Tensor]:
    """PyTorch's function of this name."""
    return getattr(torch, name, None) or getattr(torch.special, name)  # type: ignore[no-any-return]


SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 3.0, -3.0, 1e-45, -1e-45, 1e-40]
SPECIAL += [1e38, -1e38, 88.7, 88.8, -87.4, -103.0, -104.5, 709.7, 709.9, -708.5, -745.0, -746.0, 9.2, 10.1, 26.6, 27.3]


def functions(names: list[str], arguments: str) -> Pointwise:
    """All of them as the outputs of one op."""

    def together(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(getattr(torch, name)(x, y) for name in names)

    def each(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(native(name)(x) for name in names)

    return ad.pointwise(each if arguments == "x" else together)


unary, binary = functions(list(UNARY), "x"), functions(list(BINARY), "xy")


def ulps(result: torch.Tensor, reference: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The error over the spacing of the dtype at the reference; infinite where a nan or an infinity is misplaced."""
    limits = torch.finfo(dtype)
    _, exponent = torch.frexp(reference)
    spacing = torch.ldexp(torch.ones_like(reference), exponent - 1) * limits.eps
    error = (result.double() - reference).abs() / spacing.clamp_min(limits.smallest_normal * limits.eps)
    rounded = reference.to(dtype).double()
    same = (result.double() == rounded) | (result.isnan() & rounded.isnan())
    error = torch.where(same, torch.where(reference.isfinite(), error, 0.0), error).nan_to_num(math.inf)
    # Next to the overflow threshold either is right.
    edge = (reference.abs() > limits.max * (1 - 2 * limits.eps)) & (result.double().abs() >= limits.max)
    return torch.where(same & ~rounded.isfinite() | edge, 0.0, error)


def sample(dtype: torch.dtype, count: int, seed: int) -> torch.Tensor:
    """Numbers over all exponents, as many over the usual ones, and special values."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(4, count, generator=generator, dtype=torch.float64)
    scale = torch.finfo(dtype)
    low, high = math.log2(scale.smallest_normal * scale.eps), math.log2(scale.max)
    anywhere = torch.exp2(low + (high - low) * uniform[0]) * torch.where(uniform[1] < 0.5, -1.0, 1.0)
    near = (uniform[2] - 0.5) * 20
    unit = 2 * uniform[3] - 1
    return torch.cat([torch.tensor(SPECIAL, dtype=torch.float64), anywhere, near, unit]).to(dtype)


HEADERS = [path.read_text(encoding="utf-8") for path in (*keys.CSRC.glob("*.h"), *keys.CSRC.glob("math/*.h"))]


@pytest.mark.parametrize(("name", "bound"), [*UNARY.items(), *BINARY.items()])
def test_the_header_states_the_error_the_range_and_the_source(name: str, bound: float) -> None:
    block = rf"// Error: {bound:g} ulp.*\n// Range: .*\n// Source: .*\n(//   .*\n)*"
    function = rf"(template <class T>\n)?[\w ]+ {name}\("
    assert any(re.search(rf"{block}((?!\n\n)[\s\S])*?^{function}", header, re.MULTILINE) for header in HEADERS)


class TestFloat32:
    def test_of_one_argument(self, device: str) -> None:
        x = sample(torch.float32, 300_000, seed=0)
        for (name, bound), result in zip(UNARY.items(), unary(x.to(device)), strict=True):
            errors = ulps(result.cpu(), native(name)(x.double()), torch.float32)
            worst = errors.argmax()
            allowed = bound if device == "cpu" else CUDA_BOUND
            assert errors[worst] <= allowed + 1e-6, f"{name}({x[worst]:.9g}) is off by {errors[worst]:.3g} ulp"

    def test_of_two_arguments(self, device: str) -> None:
        x, y = sample(torch.float32, 200_000, seed=1), sample(torch.float32, 200_000, seed=2)
        y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(3))]
        special = torch.cartesian_prod(torch.tensor(SPECIAL), torch.tensor(SPECIAL))
        x, y = torch.cat([special[:, 0], x, x.abs()]), torch.cat([special[:, 1], y, y])
        for (name, bound), result in zip(BINARY.items(), binary(x.to(device), y.to(device)), strict=True):
            errors = ulps(result.cpu(), getattr(torch, name)(x.double(), y.double()), torch.float32)
            worst = errors.argmax()
            allowed = bound if device == "cpu" else 2 * CUDA_BOUND
            assert errors[worst] <= allowed + 1e-6, f"{name}({x[worst]:.9g}, {y[worst]:.9g}): {errors[worst]:.3g} ulp"

    def test_tan_where_its_reduction_loses_most(self) -> None:
        x = torch.full((16,), 252.898209, dtype=torch.float32)
        tangent = unary(x)[list(UNARY).index("tan")]
        assert ulps(tangent, x.double().tan(), torch.float32).max() <= UNARY["tan"]


@pytest.mark.long
@pytest.mark.skipif(toolchain.find_cxx() is None, reason="no C++ compiler")
@pytest.mark.parametrize("level", ["x86-64-v2", "x86-64-v3"])
def test_every_level_of_instructions_keeps_the_bounds_and_the_sign_of_zero(level: str, tmp_path: Path) -> None:
    if not toolchain.cpu_level().startswith("x86-64") or not toolchain.can_run(level):
        pytest.skip(f"this CPU has no {level}")
    run = kernels._load("pointwise", "cpu")
    assert run is not None
    source = unary._usual.source("cpu", torch.float32)
    compile.compile_library("cpu", toolchain.cpu_toolchain(level), tmp_path / "kernel.so", [source])
    library = ctypes.CDLL(str(tmp_path / "kernel.so"))
    zeros = torch.tensor([0.0, -0.0]).repeat(32)  # vectors without numbers that take another way
    x = torch.cat([zeros, sample(torch.float32, 30_000, seed=4)])
    results = run(ctypes.addressof(ctypes.c_char.in_dll(library, source.symbol)), [x], [])
    for (name, bound), result in zip(UNARY.items(), results, strict=True):
        expected = native(name)(x.double())
        errors = ulps(result, expected, torch.float32)
        worst = errors.argmax()
        assert errors[worst] <= bound + 1e-6, f"{name}({x[worst]:.9g}) is off by {errors[worst]:.3g} ulp"
        zero = (x == 0) & (expected == 0)
        assert torch.equal(result[zero].signbit(), expected[zero].signbit()), f"{name} of zeros"


class TestFloat64:
    """Reference values of 60 digits."""

    @staticmethod
    def reference(name: str, *x: float) -> mpmath.mpf | None:
        """None where the function is not a finite number, which float32 covers."""
        function = MPMATH.get(name) or getattr(mpmath, name)
        with mpmath.workdps(60 + 330 * (max(map(abs, x)) > 1e15)):
            try:
                value = function(*map(mpmath.mpf, x))
            except (ValueError, ZeroDivisionError, OverflowError):
                return None
        fits = isinstance(value, mpmath.mpf) and mpmath.isfinite(value)
        return value if fits and (value == 0 or 1e-300 < abs(value) < 1e300) else None

    def check(self, name: str, bound: float, results: list[float], inputs: list[tuple[float, ...]]) -> None:
        compared = 0
        for result, x in zip(results, inputs, strict=True):
            expected = self.reference(name, *x)
            if expected is None:
                continue
            compared += 1
            spacing = math.ulp(float(expected))
            error = float(abs(mpmath.mpf(result) - expected) / spacing)
            assert error <= bound + 1e-6, f"{name}{x} is off by {error:.3g} ulp"
        assert compared > len(inputs) / 10

    def inputs(self, arguments: int) -> list[tuple[float, ...]]:
        draw = random.Random(0)
        anywhere = [draw.choice((-1, 1)) * 2 ** draw.uniform(-60, 60) for _ in range(150)]
        near = [draw.uniform(-10, 10) for _ in range(200)] + [draw.uniform(-1, 1) for _ in range(200)]
        wide = [draw.uniform(-700, 700) for _ in range(100)] + [k * math.pi / 2 for k in range(-25, 25)]
        flat = anywhere + near + wide
        return (
            [(x,) for x in flat]
            if arguments == 1
            else [(abs(x), y) for x, y in zip(flat, draw.sample(flat, len(flat)), strict=True)]
        )

    def test_of_one_argument(self, device: str) -> None:
        inputs = self.inputs(1)
        results = unary(torch.tensor(inputs, dtype=torch.float64, device=device)[:, 0])
        for (name, bound), result in zip(UNARY.items(), results, strict=True):
            self.check(name, bound if device == "cpu" else CUDA_BOUND, result.tolist(), inputs)

    def test_of_two_arguments(self, device: str) -> None:
        inputs = self.inputs(2)
        results = binary(*torch.tensor(inputs, dtype=torch.float64, device=device).T)
        for (name, bound), result in zip(BINARY.items(), results, strict=True):
            self.check(name, bound if device == "cpu" else CUDA_BOUND, result.tolist(), inputs)


@ad.pointwise
def normal_distribution(x: torch.Tensor) -> torch.Tensor:
    return torch.special.ndtr(x)


@ad.pointwise
def log_sigmoid(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.logsigmoid(x)


def relative_error(result: float, expected: mpmath.mpf, dtype: torch.dtype) -> float:
    """In units of the dtype's epsilon, of a denormal in units of the least one."""
    limits = torch.finfo(dtype)
    return float(abs(mpmath.mpf(result) - expected) / max(abs(expected), limits.smallest_normal) / limits.eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
class TestWithoutANameInPyTorch:
    def test_log1pexp(self, dtype: torch.dtype, device: str) -> None:
        x = torch.cat([torch.linspace(-100, 50, 1501), torch.linspace(-2, 2, 501)]).to(device, dtype)
        with mpmath.workdps(60):
            for v, result in zip(x.tolist(), log_sigmoid(-x).tolist(), strict=True):
                assert relative_error(-result, mpmath.log1p(mpmath.exp(mpmath.mpf(v))), dtype) <= 1.9, v

    def test_the_gaussian_that_is_the_slope_of_erf(self, dtype: torch.dtype, device: str) -> None:
        x = torch.linspace(-9, 9, 1501, dtype=dtype, device=device, requires_grad=True)
        (slope,) = torch.autograd.grad(ad.erf(x).sum(), x)
        with mpmath.workdps(60):
            for v, result in zip(x.tolist(), slope.tolist(), strict=True):
                expected = 2 / mpmath.sqrt(mpmath.pi) * mpmath.exp(-(mpmath.mpf(v) ** 2))
                assert relative_error(result, expected, dtype) <= 2, v

    def test_the_normal_distribution_and_its_density(self, dtype: torch.dtype, device: str) -> None:
        x = torch.linspace(-12.9, 12.9, 1501, dtype=dtype, device=device, requires_grad=True)
        y = normal_distribution(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
        allowed = (2.2, 1.5) if device == "cpu" else (CUDA_NORMCDF_BOUND, 2.5)
        with mpmath.workdps(60):
            for v, *results in zip(x.tolist(), y.tolist(), slope.tolist(), strict=True):
                for result, exact, bound in zip(results, (mpmath.ncdf(v), mpmath.npdf(v)), allowed, strict=True):
                    assert relative_error(result, exact, dtype) <= bound, v

    def test_the_slope_of_sigmoid(self, dtype: torch.dtype, device: str) -> None:
        x = torch.linspace(-87, 87, 1501, dtype=dtype, device=device, requires_grad=True)
        (slope,) = torch.autograd.grad(ad.sigmoid(x).sum(), x, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), x)
        with mpmath.workdps(60):
            for v, first, second in zip(x.tolist(), slope.tolist(), curvature.tolist(), strict=True):
                exact = mpmath.sech(mpmath.mpf(v) / 2) ** 2 / 4
                assert relative_error(first, exact, dtype) <= (3 if device == "cpu" else 6), v
                exact *= -mpmath.tanh(mpmath.mpf(v) / 2)
                assert relative_error(second, exact, dtype) <= (6 if device == "cpu" else 10), v

    def test_spherical_bessel_functions_under_the_derivatives_of_sinc(self, dtype: torch.dtype, device: str) -> None:
        x = torch.linspace(-3, 3, 25, dtype=dtype, device=device, requires_grad=True)
        y = ad.sinc(x)
        for order in range(5):
            with mpmath.workdps(80):
                expected = [derivative_of_sinc(mpmath.mpf(v), order) for v in x.tolist()]
            scale = max(map(abs, expected))
            errors = (abs(mpmath.mpf(r) - e) / scale for r, e in zip(y.tolist(), expected, strict=True))
            assert max(errors) <= 6 * torch.finfo(dtype).eps, order
            (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)

    @pytest.mark.parametrize("order", range(6))
    def test_polygamma(self, order: int, dtype: torch.dtype, device: str) -> None:
        op = ad.pointwise(lambda x: torch.polygamma(order, x))
        x = torch.cat([10 ** torch.linspace(-3, 3, 61), torch.linspace(0.9, 3.5, 53), torch.tensor([1.46163214])])
        x = x.to(device, dtype)
        bound = 4 + 2 * order if dtype == torch.float64 or device != "cpu" else 0.6
        for v, result in zip(x.tolist(), op(x).tolist(), strict=True):
            with mpmath.workdps(40):
                assert relative_error(result, mpmath.polygamma(order, mpmath.mpf(v)), dtype) <= bound, v
        x = -torch.linspace(0.03, 9.97, 80).to(device, dtype)
        for v, result in zip(x.tolist(), op(x).tolist(), strict=True):
            with mpmath.workdps(40):
                expected = mpmath.polygamma(order, mpmath.mpf(v))
                nearby = abs(mpmath.polygamma(order | 1, mpmath.mpf(v)))  # has no zero there
                scale = max(abs(expected), nearby if order % 2 == 0 else 0)
            assert abs(mpmath.mpf(result) - expected) <= bound * torch.finfo(dtype).eps * scale, v

    def test_scaled_erfc_and_its_derivatives(self, dtype: torch.dtype, device: str) -> None:
        op = ad.pointwise(lambda x: torch.special.erfcx(x))
        x = torch.cat([torch.linspace(-3, 3, 61), 10 ** torch.linspace(0, 3, 31)]).to(device, dtype).requires_grad_()
        y = op(x)
        for order in range(4):
            bound = 2.3 if order == 0 else 0.6 if dtype == torch.float32 and device == "cpu" else 4 * 5**order
            for v, result in zip(x.tolist(), y.tolist(), strict=True):
                expected = derivative_of_erfcx(mpmath.mpf(v), order)
                assert relative_error(result, expected, dtype) <= bound, (order, v)
            (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)

    @pytest.mark.parametrize("base", [math.e, 2.0])
    def test_logarithms_of_sums_of_exponentials(self, base: float, dtype: torch.dtype, device: str) -> None:
        function = torch.logaddexp if base != 2 else torch.logaddexp2
        op = ad.pointwise(lambda a, b: function(a, b))
        values = torch.cat([torch.linspace(-40, 40, 81), torch.linspace(-1, 1, 41), torch.tensor([-math.log(2), 1e3])])
        a, b = torch.cartesian_prod(values, values).to(device, dtype).T.contiguous()
        with mpmath.workdps(40):
            unit = mpmath.e if base != 2 else mpmath.mpf(2)
            for u, v, result in zip(a.tolist(), b.tolist(), op(a, b).tolist(), strict=True):
                expected = mpmath.log(unit**u + unit**v) / mpmath.log(unit)
                scale = max(abs(expected), min(abs(u), abs(v)) if u * v > 0 else 0, abs(max(u, v)))
                assert abs(result - expected) <= 2 * torch.finfo(dtype).eps * scale, (u, v)


def derivative_of_erfcx(x: mpmath.mpf, order: int) -> mpmath.mpf:
    """By f' = 2 x f - 2 / sqrt(pi) in so many digits that its cancellation does no harm."""
    with mpmath.workdps(60):
        before, value = mpmath.mpf(0), asymptotic_erfcx(x) if x > 200 else mpmath.exp(x * x) * mpmath.erfc(x)
        for k in range(order):
            rest = -2 / mpmath.sqrt(mpmath.pi) if k == 0 else 2 * k * before
            before, value = value, 2 * x * value + rest
        return value


def derivative_of_sinc(x: mpmath.mpf, order: int) -> mpmath.mpf:
    """By sinc(x) = integral of cos(pi x t) over t from 0 to 1."""
    shift = order * mpmath.pi / 2
    return mpmath.quad(lambda t: (mpmath.pi * t) ** order * mpmath.cos(mpmath.pi * x * t + shift), [0, 0.5, 1])
