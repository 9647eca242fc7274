"""What people write in a declaration: each form is a kernel that gives the value, the dtype and the derivatives of the
plain PyTorch function, in every dtype, or is refused in words that help."""

from __future__ import annotations

import contextlib
import copy
import enum
import functools
import itertools
import math
import pickle
import random
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import own_functions
import pytest
import torch
import torch.nn.functional as F
from selection import few
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import torchad_ext as ad
from torchad_ext._symbolic.captured import captures

pytestmark = pytest.mark.usefixtures("kernels_when_long")

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def writes_to_intermediates(x: torch.Tensor) -> torch.Tensor:
    y = 2 * x
    y += x
    y *= x > 0
    y -= 0.5
    y /= 4
    y.mul_(3).add_(x, alpha=2)
    y.sin_()
    y **= 2
    z = torch.zeros_like(x)
    z += y
    return F.silu(z, inplace=True)


def narrows_a_mask(x: torch.Tensor) -> torch.Tensor:
    mask = x > -1
    mask &= x < 1
    mask |= x > 2
    return mask * x


def without_grad(x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        scale = torch.exp(-x * x)
    return scale * x


@torch.no_grad()
def frozen_gate(x: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(x)


def choose_without_grad(x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        positive = x > 0
        chosen = torch.where(positive & (x < 1), x, 2 * x)
    return chosen * x * positive


def sums_a_series(x: torch.Tensor) -> torch.Tensor:
    total, term = torch.zeros_like(x), torch.ones_like(x)
    for k in range(1, 5):
        term = term * x / k
        total += term
    return total


WRITTEN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mask.float()": lambda x: (x > 0.3).float() * x,
    "mask.double()": lambda x: (x > 0.3).double() * x,
    "mask.half()": lambda x: (x > 0.3).half() * x,
    "mask.to(torch.bfloat16)": lambda x: (x > 0.3).to(torch.bfloat16) * x,
    "mask.long()": lambda x: (x > 0.3).long() * x * 3,
    "mask.to(x.dtype)": lambda x: (x > 0.3).to(x.dtype) * x,
    "mask.to(device, dtype)": lambda x: (x > 0.3).to(x.device, x.dtype) * x,
    "mask.to(dtype=)": lambda x: (x > 0.3).to(dtype=x.dtype) * x,
    "mask.type(x.dtype)": lambda x: (x > 0.3).type(x.dtype) * x,
    "mask.type_as(x)": lambda x: (x > 0.3).type_as(x) * x,
    "mask.to(x)": lambda x: (x > 0.3).to(x) * x,
    "x.to(x.dtype)": lambda x: torch.sin(x).to(x.dtype) * x,
    "number * mask": lambda x: 0.5 * (x < 1.0) * (1 - x),
    "mask / number": lambda x: (x > 0) / 3 * x,
    "mask * integer": lambda x: (x > 0) * 3 * x,
    "mask + mask": lambda x: ((x > 0) + (x > 1)) * x,
    "mask + 1": lambda x: ((x > 0) + 1) * x,
    "mask + 0.1": lambda x: ((x > 0) + 0.1) * x,
    "where of masks": lambda x: torch.where(x > 0, x > 1, x > -1) * x,
    "where of ones and zeros": lambda x: torch.where(x > 0.3, torch.ones_like(x), torch.zeros_like(x)) * x,
    "where of numbers": lambda x: torch.where(x > 0.3, 1.0, 0.1) * x,
    "where of integers": lambda x: torch.where(x > 0.3, 1, -1) * x,
    "zeros_like(dtype=)": lambda x: torch.zeros_like(x, dtype=x.dtype) + x,
    "full_like(dtype=)": lambda x: torch.full_like(x, 0.1, dtype=x.dtype, device=x.device) * x,
    "torch.tensor(0.1)": lambda x: torch.tensor(0.1) * x,
    "torch.tensor(0.1, dtype=)": lambda x: torch.tensor(0.1, dtype=x.dtype) * x,
    "x.new_tensor(0.1)": lambda x: x.new_tensor(0.1) * x,
    "writes to intermediates": writes_to_intermediates,
    "writes to a mask": narrows_a_mask,
    "a sum by +=": sums_a_series,
    "float_power": lambda x: torch.float_power(x, 2) * x,
    "zeros of the dtype of float_power": lambda x: x + torch.zeros_like(torch.float_power(x, 2)),
    "no_grad": without_grad,
    "no_grad as decorator": lambda x: frozen_gate(x) * x,
    "torch.is_floating_point": lambda x: x * 2 if torch.is_floating_point(x) else x,
    "masks under no_grad": choose_without_grad,
}


@torch.compile
def compiled(x: torch.Tensor) -> torch.Tensor:
    return 2 * torch.sin(x)


def together(functions: Sequence[Callable[[torch.Tensor], torch.Tensor]]) -> ad.Pointwise:
    """One op for all functions, so that there is one kernel an order."""
    return ad.pointwise(lambda x: tuple(f(x) for f in functions))


def orders(f: Callable[[torch.Tensor], Any], x: torch.Tensor) -> list[list[torch.Tensor]]:
    """Value, gradient and second derivative of each result."""
    x = x.clone().requires_grad_()
    found = []
    for y in f(x):
        found.append([y.detach()])
        for _ in range(2):
            if y.requires_grad:
                (y,) = torch.autograd.grad(y.sum(), x, create_graph=True, materialize_grads=True)
            else:
                y = torch.zeros_like(x)
            found[-1].append(y.detach())
    return found


def orders_side_by_side(f: Callable[[torch.Tensor], Any], x: torch.Tensor) -> list[list[torch.Tensor]]:
    """The same, each result on a row of its own, so that one kernel computes a derivative of all."""
    count = len(f(x))
    rows = x.repeat(count, 1).requires_grad_()
    level = torch.stack([y[i] for i, y in enumerate(f(rows))])
    found = [level.detach()]
    for _ in range(2):
        (level,) = torch.autograd.grad(level.sum(), rows, create_graph=True, materialize_grads=True)
        found.append(level.detach())
    return [list(of_one) for of_one in zip(*found, strict=True)]


def has_kernel(function: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype) -> bool:
    return ad.pointwise(function)._usual.keeps(dtype)


@pytest.mark.parametrize("dtype", few(DTYPES, lambda dtype: dtype == torch.float32), ids=str)
def test_value_dtype_and_derivatives_are_those_of_the_function(dtype: torch.dtype) -> None:
    x = torch.linspace(-2.9, 2.9, 41, dtype=torch.float64).to(dtype)
    half = torch.finfo(dtype).bits == 16
    tolerance = {"rtol": 16 * torch.finfo(dtype).eps, "atol": (16 if half else 4) * torch.finfo(dtype).eps}
    forms = [form for form in WRITTEN if has_kernel(WRITTEN[form], dtype)]
    op = together([WRITTEN[form] for form in forms])
    assert op._usual.kernel("cpu", dtype) is not None
    native = orders_side_by_side(lambda x: [f(x) for f in map(WRITTEN.__getitem__, forms)], x)
    for form, ours, expected in zip(forms, orders_side_by_side(op, x), native, strict=True):
        torch.testing.assert_close(ours, expected, **tolerance, msg=lambda text, form=form: f"{form}: {text}")


@dtypes
def test_what_pytorch_gives_another_dtype_has_it(dtype: torch.dtype) -> None:
    x = torch.linspace(-2.9, 2.9, 41).to(dtype)
    for form, function in WRITTEN.items():
        op, expected = ad.pointwise(function), function(x)
        assert has_kernel(function, dtype) == (expected.dtype == dtype), form
        if expected.dtype != dtype:
            assert op._usual.kernel("cpu", dtype) is None
            torch.testing.assert_close(op(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("form", ["float_power", "mask.double()", "number * mask"])
def test_laplacians_have_the_dtype_of_the_function(form: str) -> None:
    x = torch.rand(4, 3)
    for function in (ad.pointwise(WRITTEN[form]), WRITTEN[form]):
        laplacian = ad.laplacian(lambda x, f=function: f(x).sum(-1), x)
        exact = torch.stack([torch.func.hessian(lambda p: WRITTEN[form](p).sum())(p).trace() for p in x.double()])
        assert laplacian.dtype == WRITTEN[form](x).dtype
        torch.testing.assert_close(laplacian.double(), exact, rtol=1e-6, atol=1e-6)


# Functions whose results jump, or bend, where numbers are compared, and are exact but for that.
COMPARED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "x >= 0.7": lambda x: torch.where(x >= 0.7, 2 * x, x),
    "0.7 < x": lambda x: torch.where(0.7 < x, 2 * x, x),  # noqa: SIM300
    "x == 0.7": lambda x: torch.where(x == 0.7, 2 * x, x),
    "x != 0.7": lambda x: torch.where(x != 0.7, 2 * x, x),
    "x <= tensor": lambda x: torch.where(x <= torch.tensor(0.7), 2 * x, x),
    "x < new_tensor": lambda x: torch.where(x < x.new_tensor(0.7), 2 * x, x),
    "3 x > 2.1": lambda x: torch.where(3 * x > 2.1, 2 * x, x),
    "x + 0.1 > 0.8": lambda x: torch.where(x + 0.1 > 0.8, 2 * x, x),
    "x / 3 + 0.1 >= 0.3": lambda x: torch.where(x / 3 + 0.1 >= 0.3, 2 * x, x),
    "x * x < 0.5 x": lambda x: torch.where(x * x < 0.5 * x, 2 * x, x),
    "floor(10 x)": lambda x: torch.floor(10 * x),
    "round(x / 0.3)": lambda x: torch.round(x / 0.3),
    "x % 0.3": lambda x: torch.remainder(x, 0.3),
    "fmod(x, 0.3)": lambda x: torch.fmod(x, 0.3),
    "sign(x - 0.7)": lambda x: torch.sign(x - 0.7),
    "clamp": lambda x: torch.clamp(x, -0.7, 0.3),
    "clamp of 3 x": lambda x: torch.clamp(3 * x, max=2.1),
    "hardtanh": lambda x: F.hardtanh(x, -0.7, 0.7),
    "hardshrink": lambda x: F.hardshrink(x, 0.7),
    "threshold": lambda x: F.threshold(x, 0.7, 2.0),
    "maximum": lambda x: torch.maximum(x, torch.full_like(x, 0.7)),
    "maximum of 3 x": lambda x: torch.maximum(3 * x, torch.full_like(x, 2.1)),
    "minimum with nan": lambda x: torch.minimum(3 * x, torch.where(x > 0, x, math.nan)),
    "clamp with nan": lambda x: torch.clamp(3 * x, min=torch.where(x > 0, x, math.nan)),
    "nan clamped": lambda x: torch.clamp(torch.where(x > 0, 3 * x, math.nan), max=2.1),
}


@pytest.mark.parametrize("dtype", few(DTYPES, lambda dtype: dtype == torch.bfloat16), ids=str)
def test_numbers_are_compared_as_pytorch_rounds_them(dtype: torch.dtype) -> None:
    around = torch.tensor([0.7, 0.3, 0.1, 2.1 / 3], dtype=torch.float64).to(dtype)
    neighbours = [torch.nextafter(around, torch.full_like(around, to)) for to in (-math.inf, math.inf)]
    x = torch.cat([around, *neighbours, -around, torch.linspace(-2, 2, 2001).to(dtype)])
    ours, native = (
        orders(f, x) for f in (together(list(COMPARED.values())), lambda x: [f(x) for f in COMPARED.values()])
    )
    for name, result, expected in zip(COMPARED, ours, native, strict=True):
        for got, right in zip(result[:2], expected[:2], strict=True):
            torch.testing.assert_close(got, right, rtol=0, atol=0, equal_nan="nan" in name, msg=name)


def test_half_types_keep_the_digits_of_what_is_clamped() -> None:
    function = lambda x: torch.clamp(torch.log(3 * torch.sigmoid(x) + 0.2), max=1.0)  # noqa: E731
    x = torch.linspace(-3, 0.5, 500, dtype=torch.float64).to(torch.float16)
    (ours,), (exact,) = (
        orders(lambda x, f=f: (f(x),), y) for f, y in ((ad.pointwise(function), x), (function, x.double()))
    )
    for result, expected in zip(ours, exact, strict=True):
        torch.testing.assert_close(result.double(), expected, rtol=0.51 * 2**-10, atol=1e-7)


class Swish(nn.Module):
    """Declares an op of its own method."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta
        self.options = {"scale": 1.0}
        self.activation = ad.pointwise(self.function)

    def function(self, x: torch.Tensor) -> torch.Tensor:
        return self.options["scale"] * x * torch.sigmoid(self.beta * x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.activation(x)
        return result


FACTOR = 2.0


def scale_by_a_global(x: torch.Tensor) -> torch.Tensor:
    return FACTOR * x


KEEPS = False
summed = ad.rowwise(lambda x: x * x.sum(-1, keepdim=True))


def energy_of_a_row(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (summed(x) * weight).sum(-1, keepdim=KEEPS)


def scale_in_a_helper(x: torch.Tensor) -> torch.Tensor:
    return sum(scale_by_a_global(x) for _ in range(2))  # type: ignore[return-value]


ROUTES: dict[str, Callable[[Callable[..., torch.Tensor], torch.Tensor], torch.Tensor]] = {
    "complex numbers": lambda op, x: op(x.to(torch.complex64)),
    "integers": lambda op, x: op(x.to(torch.int64)),
    "torch.compile": lambda op, x: torch.compile(lambda x: op(x), fullgraph=True)(x),
    "torch.jit.trace": lambda op, x: torch.jit.trace(lambda x: op(x), (x,))(x),
    "autocast": lambda op, x: run_in_autocast(op, x),
}


def run_in_autocast(op: Callable[..., torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return op(x)


def with_an_x_of_its_own(x: torch.Tensor) -> Any:
    z = x
    return ad.pointwise(lambda x: x * z)(x)


class TestWhatIsCaptured:
    """An op reads what its function captures once; where the function itself would read it again, a change raises."""

    @pytest.mark.parametrize("route", ROUTES)
    @pytest.mark.parametrize("what", ["attribute", "item", "global", "helper's global", "cell"])
    def test_no_route_has_another_answer(self, what: str, route: str, monkeypatch: pytest.MonkeyPatch) -> None:
        torch._dynamo.reset()
        x = torch.tensor([1.0, 2.0])
        factor = 2.0

        def change() -> None:
            nonlocal factor
            if what == "attribute":
                module.beta = 3.0
            elif what == "item":
                module.options["scale"] = 3.0
            elif what == "cell":
                factor = 3.0
            else:
                monkeypatch.setitem(globals(), "FACTOR", 3.0)

        module = Swish(1.0)
        functions = {"global": scale_by_a_global, "helper's global": scale_in_a_helper, "cell": lambda x: factor * x}
        op = ad.pointwise(functions[what]) if what in functions else module.activation
        before = op(x)
        ROUTES[route](op, x)
        change()
        assert torch.equal(op(x), before)
        with pytest.raises(Exception, match="captures has changed since it was declared"):
            ROUTES[route](op, x)

    @pytest.mark.parametrize("route", ROUTES)
    def test_ops_of_rows_that_capture_ops_and_drop_the_dimension(self, route: str) -> None:
        torch._dynamo.reset()
        op, x = ad.rowwise(energy_of_a_row), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        of_weight = lambda f: lambda x: f(x, x[0])  # noqa: E731
        torch.testing.assert_close(ROUTES[route](of_weight(op), x), ROUTES[route](of_weight(energy_of_a_row), x))

    @pytest.mark.parametrize("route", ROUTES)
    def test_ops_that_capture_within_another(self, route: str, monkeypatch: pytest.MonkeyPatch) -> None:
        torch._dynamo.reset()
        inner, x = ad.pointwise(scale_by_a_global), torch.tensor([1.0, 2.0])
        outer = ad.pointwise(lambda x: inner(x) * inner(2 * x))
        torch.testing.assert_close(ROUTES[route](outer, x), ROUTES[route](outer.definition, x))
        monkeypatch.setitem(globals(), "FACTOR", 3.0)
        with pytest.raises(Exception, match="captures has changed since it was declared"):
            ROUTES[route](outer, x)

    @pytest.mark.parametrize("route", ["complex numbers", "torch.compile", "autocast"])
    def test_ops_that_call_the_derivative_of_one_that_captures(self, route: str) -> None:
        torch._dynamo.reset()
        slope = ad.pointwise(lambda x: torch.sin(x * FACTOR)).derivative("x")
        op, x = ad.pointwise(lambda x: slope(x) * x), torch.tensor([1.0, 2.0])
        torch.testing.assert_close(ROUTES[route](op, x), ROUTES[route](op.definition, x))

    @pytest.mark.parametrize("route", [name for name in ROUTES if name != "torch.compile"])  # it declares no ops
    def test_ops_that_are_made_within_the_declaration_of_another(self, route: str) -> None:
        def with_a_slope(x: Any, a: Any = 2.0) -> Any:
            return ad.siren.derivative("input")(x, a) * x

        def with_an_op(x: Any) -> Any:
            return ad.pointwise(lambda y: y.sin() * 2)(x) * x

        x = torch.tensor([1.0, 2.0])
        for function in (with_a_slope, with_an_op):
            torch.testing.assert_close(ROUTES[route](ad.pointwise(function), x), ROUTES[route](function, x))
        slope = torch.func.vmap(torch.func.grad(lambda x: torch.sin(2.0 * x)))
        torch.testing.assert_close(ad.pointwise(with_a_slope)(x), slope(x) * x)

    @pytest.mark.parametrize("function", [lambda x: ad.pointwise(lambda y: x * y)(x), with_an_x_of_its_own])
    def test_an_op_that_captures_an_argument_of_another(self, function: Any) -> None:
        with pytest.raises(ad.TraceError, match=r"test_declaring.*\n  mul reads a tensor of the function in which"):
            ad.pointwise(function)

    def test_a_dimension_that_is_kept_now(self, monkeypatch: pytest.MonkeyPatch) -> None:
        op, x = ad.rowwise(energy_of_a_row), torch.ones(2, 2)
        monkeypatch.setitem(globals(), "KEEPS", True)
        with pytest.raises(RuntimeError, match="captures has changed since it was declared"):
            op(x.to(torch.int64), x.to(torch.int64))

    @pytest.mark.parametrize("kind", ["a tensor", "an integer"])
    def test_a_number_that_is_asked_for_now(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        op, x = ad.pointwise(lambda x, a=4.0: x * (math.sqrt(a) if KEEPS else a)), torch.ones(2)
        monkeypatch.setitem(globals(), "KEEPS", True)
        with pytest.raises(RuntimeError, match="captures has changed since it was declared"):
            op(x, x) if kind == "a tensor" else op(x.to(torch.int64), 2.0)

    def test_a_refused_call_of_an_op_that_captures(self) -> None:
        """Whether values of numbers make it right is tried, and what is captured is compared meanwhile."""
        op = ad.rowwise(lambda x, weight=None, a=1.0: x * (a * FACTOR) if weight is None else x * a * weight)
        for _ in range(2):
            with pytest.raises(TypeError, match="'Tensor' and 'dict'"):
                op(torch.ones(2, 2), {})

    def test_functions_that_capture_nothing_are_not_checked(self) -> None:
        assert not any(op._captures for op in ad.ops.CATALOGUE.values())
        scaled = functools.partial(torch.mul, other=2.0)
        for function in (lambda x: math.pi * torch.sin(x), lambda x: ad.sin(x) + F.silu(x), torch.sin, F.gelu, scaled):
            assert not captures(function)
        for function in (
            functools.partial(scale_by_a_global),
            scale_by_a_global,
            scale_in_a_helper,
            Swish(1.0).function,
            lambda x: x * sum([FACTOR for _ in "a"]),
        ):
            assert captures(function)

    def test_a_deep_copy_of_a_module_has_its_own_op(self) -> None:
        x = torch.linspace(-2, 2, 9)
        module = Swish(1.0)
        twin = copy.deepcopy(module)
        twin.beta = 3.0
        assert twin.activation is not module.activation
        torch.testing.assert_close(twin(x), x * torch.sigmoid(3.0 * x))
        torch.testing.assert_close(module(x), x * torch.sigmoid(x))
        assert copy.deepcopy(ad.silu) is ad.silu

    def test_a_module_with_an_op_of_its_method_pickles(self) -> None:
        x = torch.linspace(-2, 2, 9)
        module = Swish(2.0)
        torch.testing.assert_close(pickle.loads(pickle.dumps(module))(x), module(x))


class Helpers:
    """Functions that ask what a number is, where code alone does not tell that they are called."""

    table: ClassVar = {"whole": own_functions.of_whole_numbers}

    @staticmethod
    def static(x: torch.Tensor, n: float) -> torch.Tensor:
        return x * n if isinstance(n, int) else x + n

    def method(self, x: torch.Tensor, n: float) -> torch.Tensor:
        return self.static(x, n)

    def declared(self, x: torch.Tensor, n: float = 2.0) -> torch.Tensor:
        return self.method(x, n)

    def __call__(self, x: torch.Tensor, n: float = 2.0) -> torch.Tensor:
        return self.method(x, n)


@functools.lru_cache
def sign_of_floats(n: float) -> float:
    return n if isinstance(n, int) else -n


def imports_a_helper(x: torch.Tensor, n: float = 2.0) -> torch.Tensor:
    from own_functions import of_whole_numbers as helper

    return helper(x, n)


def imports_a_module(x: torch.Tensor, n: float = 2.0) -> torch.Tensor:
    import own_functions as module

    return module.scaled(x, n)


def catches_everything(x: torch.Tensor, n: float = 2.0) -> torch.Tensor:
    try:
        k = int(n)
    except Exception:
        k = 0
    return x**k


def suppresses_everything(x: torch.Tensor, n: float = 2.0) -> torch.Tensor:
    with contextlib.suppress(Exception):
        if n > 2:
            return x**n
    return x


def catches_what_is_missing(x: torch.Tensor, n: float = 2.0) -> torch.Tensor:
    try:
        return x * 2 if n.is_integer() else x
    except AttributeError:
        return -x


class Kind(enum.IntEnum):
    TANH = 0
    SIN = 1


class Mode(str, enum.Enum):
    TANH = "tanh"
    SIN = "sin"


def _kind_of(n: Any) -> float:
    match n:
        case int():
            return 1.0
        case float():
            return 2.0
    return 3.0


class TestRunTimeNumbers:
    """The value of a number may be asked for; it is fixed then, as an option is."""

    @pytest.mark.parametrize(
        ("function", "values"),
        [
            (lambda x, a=4.0: x * math.sqrt(a), (4.0, 2.0)),
            (lambda x, a=4.0: x * min(a, 1) + max(0.5, a), (4.0, 0.25)),
            (lambda x, a=4.0: x * (a // 2) + a % 3 + 7 // a, (4.0, 5.5, 3)),
            (lambda x, a=1.0: x if a > 0 else -x, (1.0, -1.0)),
            (lambda x, n=3: sum(x**k for k in range(n)) + 0 * x, (3, 1)),
            (lambda x, n=3: x * [1.0, 2.0, 4.0, 8.0][n], (3, 0)),
            (lambda x, a=2.5: x * round(a) + int(a) + float(a), (2.5, 3.5)),
            (lambda x, a=0.0: x * math.copysign(1, a), (0.0, -0.0)),
            (lambda x, a=2.0, b=3.0: x * math.hypot(a, 1) * b, (2.0, 1.0)),
        ],
    )
    def test_values(self, function: Callable[..., torch.Tensor], values: tuple[float, ...]) -> None:
        op = ad.pointwise(function)
        x = torch.linspace(-1, 1, 5, dtype=torch.float64)
        for value in (*values, *values):
            leaf = x.clone().requires_grad_()
            y, expected = op(leaf, value), function(x, value)
            torch.testing.assert_close(y.detach(), expected)
            torch.autograd.grad(y.sum(), leaf)

    @pytest.mark.parametrize(
        "function",
        [
            lambda x, n=2: x * 2 if isinstance(n, torch.Tensor) else x * 3,
            lambda x, n=2: x * n if isinstance(n, int) else torch.exp(n * torch.log(x)),
            lambda x, n=2: x * n if type(n) is float else -x,
            lambda x, n=2: x * {2: 3.0, 4: 5.0}.get(n, -1.0),
            lambda x, n=2: x if n in {2, 3} else -x,
            lambda x, n=2: x if torch.is_tensor(n) else -x,
            lambda x, n=2: x if hasattr(n, "bit_length") else -x,
            lambda x, n=2: x * _kind_of(n),
            lambda x, n=2: own_functions.scaled(x, n),
            lambda x, n=2: own_functions.of_whole_numbers(x, n),
            lambda x, n=2: Helpers.static(x, n),
            lambda x, n=2: Helpers.table["whole"](x, n),
            lambda x, n=2: x * sign_of_floats(n),
            lambda x, n=2: functools.partial(own_functions.of_whole_numbers, x)(n),
            Helpers().declared,
            Helpers(),
            imports_a_helper,
            imports_a_module,
            catches_everything,
            suppresses_everything,
            catches_what_is_missing,
            lambda x, n=2: x * {"2.0": 3.0, "4": 5.0}.get(str(n), -1.0),
            lambda x, n=2: x * {"2.0": 3.0, "4": 5.0}.get(f"{n}", -1.0),
            lambda x, n=2: x * {"2.0": 3.0, "4": 5.0}.get("%s" % n, -1.0),  # noqa: UP031
            lambda x, n=2: x * {"2.0": 3.0, "4": 5.0}.get(repr(n), -1.0),
        ],
    )
    @pytest.mark.parametrize("declare", [ad.pointwise, ad.rowwise])
    def test_the_kind_of_a_number(self, declare: Callable[..., Any], function: Callable[..., torch.Tensor]) -> None:
        """A symbol would be taken for a tensor."""
        op, x = declare(function), torch.tensor([3.0, 4.0])
        torch.testing.assert_close(op(x), function(x))
        for n in (2, 2.0, 4, 4.5):
            torch.testing.assert_close(op(x, n), function(x, n))

    @pytest.mark.parametrize(
        "function",
        [
            lambda x, kind=Kind.TANH: torch.tanh(x) if kind is Kind.TANH else torch.sin(x),
            lambda x, kind=Kind.SIN: x + kind if kind is Kind.SIN else x * kind,
            lambda x, kind=Mode.SIN: torch.tanh(x) if kind is Mode.TANH else torch.sin(x),
        ],
    )
    def test_a_member_of_an_enumeration(self, function: Callable[..., torch.Tensor]) -> None:
        """It may equal a number or a text, and is none."""
        op, x = ad.pointwise(function), torch.tensor([3.0, 4.0])
        values = (0, 1, 0.0, *Kind) if isinstance(op._parameters.defaults["kind"], int) else ("tanh", "sin", *Mode)
        for kind in (*values, *values[::-1]):
            torch.testing.assert_close(op(x, kind), function(x, kind))

    def test_a_tensor_or_a_number(self) -> None:
        op = ad.pointwise(lambda x, a: x * a if isinstance(a, torch.Tensor) else x * a * 100)
        x = torch.ones(2)
        assert op(x, 2.0).tolist() == [200.0, 200.0]
        assert op(x, 3 * x).tolist() == [3.0, 3.0]

    def test_other_numbers_stay_free(self) -> None:
        op = ad.pointwise(lambda x, a=2.0, b=3.0: x * math.sqrt(a) * b)
        x = torch.ones(3)
        for b in (1.0, 2.0, 5.0):
            torch.testing.assert_close(op(x, 4.0, b), 2 * b * x)
        assert op._fixed == {"a"} and len(op._members) == 2

    def test_a_tensor_has_no_value_to_ask_for(self) -> None:
        op = ad.pointwise(lambda x, a=4.0: x * math.sqrt(a))
        with pytest.raises(TypeError, match=r"float\(x\) or a function of math asks for the value of a symbol"):
            op(torch.ones(3), torch.ones(3))

    def test_a_number_that_no_argument_gives_is_not_asked_for_again(self) -> None:
        with pytest.raises(TypeError, match="floordiv asks for the value of a symbol"):
            ad.pointwise(lambda x, a=4.0: x * (a**0 // 2))

    def test_many_values_are_warned_of_once(self) -> None:
        op = ad.pointwise(lambda x, n=0: x if n else -x)
        with warnings.catch_warnings(record=True) as caught:
            for n in range(40):
                op.resolve([torch.ones(2), n])
        (warning,) = caught
        assert "asks for the values of n, so a kernel is compiled for each" in str(warning.message)


@pytest.mark.parametrize("declare", [ad.pointwise, ad.rowwise])
class TestWhatADeclarationIsGiven:
    @pytest.mark.parametrize("domain", ["ab", (1.0,), (0.0, math.inf), ("0", "1"), 3.0, {"x": 3.0}])
    def test_a_domain_is_an_interval(self, declare: Any, domain: Any) -> None:
        with pytest.raises(ValueError, match=r"domain takes the interval .* as in \{'x': \(0\.1, 5\.0\)\}; got"):
            declare(domain=domain)(lambda x, a=1.0: x * a)

    def test_a_domain_names_arguments(self, declare: Any) -> None:
        with pytest.raises(ValueError, match="domain has an interval for 'y', and the arguments are x, a"):
            declare(domain={"x": (0.1, 1.0), "y": (0.1, 1.0)})(lambda x, a=1.0: x * a)

    def test_another_option_is_named(self, declare: Any) -> None:
        with pytest.raises(TypeError, match=rf"{declare.__name__}\(\) got an unexpected keyword argument 'name'"):
            declare(lambda x: x, name="identity")

    def test_a_function_of_numpy_is_refused(self, declare: Any) -> None:
        with pytest.raises(TypeError, match="takes a function of tensors, got NumPy's <ufunc 'sin'>; use PyTorch's"):
            declare(np.sin)

    @pytest.mark.parametrize("value", [np.ones(2), {1.0, 2.0}], ids=["array", "set"])
    def test_a_value_without_a_hash_is_refused(self, declare: Any, value: Any) -> None:
        op = declare(lambda x, coefficients=(1.0, 2.0): x * max(coefficients))
        with pytest.raises(TypeError, match=r"for each value of coefficients, .* which has no hash; write a tensor"):
            op(torch.ones(3), value)


class TestWhatSymbolsAnswerWrongly:
    """A function is run on numbers once, beside its program."""

    @pytest.mark.parametrize(
        "function",
        [
            lambda x: 2 * x if type(x) is torch.Tensor else 3 * x,
            lambda x: 2 * x if x.device.type == "cpu" else 3 * x,
            lambda x: 2 * x if "Symbol" not in repr(type(x)) else 3 * x,
            lambda x: x * random.random(),
            lambda x: x * np.random.rand(),
            lambda x: x + next(_counter),
        ],
    )
    @pytest.mark.parametrize("declare", [ad.pointwise, ad.rowwise])
    def test_is_refused(self, declare: Callable[..., Any], function: Callable[..., torch.Tensor]) -> None:
        line = function.__code__.co_firstlineno
        place = rf"^<lambda> \(.*test_declaring\.py:{line}\) computes something else of numbers than of symbols"
        with pytest.raises(TypeError, match=place):
            declare(function)

    @pytest.mark.parametrize("declare", [ad.pointwise, ad.rowwise])
    def test_a_result_that_is_no_tensor_is_refused_with_the_place_of_the_function(self, declare: Any) -> None:
        with pytest.raises(TypeError, match=r"^<lambda> \(.*test_declaring\.py:\d+\) returns a NoneType"):
            declare(lambda x: None)

    @pytest.mark.parametrize("domain", [(-3.0, 3.0), (0.1, 1.0)])
    def test_numbers_are_those_of_the_domain(self, domain: tuple[float, float]) -> None:
        seen: list[torch.Tensor] = []
        ad.pointwise(domain=domain)(lambda x: seen.append(x) or x.log())
        numbers = seen[-1].detach()
        assert numbers.dtype == torch.float64 and domain[0] <= numbers.min() and numbers.max() <= domain[1]

    def test_no_random_state_moves(self) -> None:
        before = torch.get_rng_state()
        ad.pointwise(lambda x: x * 3)
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("transform", [torch.vmap, torch.func.grad, torch.func.hessian, torch.func.jacfwd])
    def test_it_may_be_declared_within_a_transform(self, transform: Callable[..., Any]) -> None:
        def function(x: torch.Tensor) -> torch.Tensor:
            return ad.pointwise(lambda x, n=3.0: n * x**2)(x)

        x = torch.tensor([1.0, 2.0], dtype=torch.float64)
        expected = {torch.vmap: [3.0, 12.0], torch.func.grad: 12.0, torch.func.hessian: 6.0, torch.func.jacfwd: 12.0}
        torch.testing.assert_close(
            transform(function)(x if transform is torch.vmap else x[1]),
            torch.tensor(expected[transform], dtype=torch.float64),
        )

    @pytest.mark.parametrize(
        "function",
        [
            lambda x: torch.where(x > 0, x.log(), 0.0),
            lambda x: torch.floor(1e3 * x) * x,
            lambda x: (x * 1e-200) * 1e200,
            lambda x: torch.exp(1e3 * x),
            lambda x: x / x,
            lambda x: (x > 0).to(x.dtype) * x,
            lambda x: torch.lgamma(x) + torch.digamma(x),
            lambda x: x.detach() * x,
            lambda x: torch.sqrt(x - 5),
            lambda x: F.silu(x) - x * torch.sigmoid(x),
        ],
    )
    def test_delicate_functions_are_taken(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        op, x = ad.pointwise(function), torch.linspace(-2, 2, 9)
        torch.testing.assert_close(op(x), function(x), equal_nan=True)

    def test_rows_of_which_rounding_is_left_are_taken(self) -> None:
        op, x = ad.rowwise(lambda x: ad.log_softmax(x).logsumexp(-1)), torch.linspace(-2, 2, 9)
        torch.testing.assert_close(op(x), torch.zeros(()))


_counter = itertools.count(1)


class TestArguments:
    x = torch.linspace(-1, 1, 5)

    @pytest.mark.parametrize(
        ("function", "option", "expected"),
        [
            (lambda x, c=[1.0, 2.0]: c[0] + c[1] * x, [3.0, 4.0], lambda x: 3 + 4 * x),
            (lambda x, c={"scale": 2.0}: c["scale"] * x, {"scale": 5.0}, lambda x: 5 * x),
            (lambda x, c=(1.0, [2.0]): c[1][0] * x, (1.0, [7.0]), lambda x: 7 * x),
            (lambda x, mode="a": x if mode == "a" else -x, "b", lambda x: -x),
            (lambda x, mode=None: x if mode is None else -x, True, lambda x: -x),
        ],
    )
    def test_options_of_any_kind(self, function: Any, option: Any, expected: Any) -> None:
        op = ad.pointwise(function)
        assert torch.equal(op(self.x), function(self.x))
        assert torch.equal(op(self.x, option), expected(self.x))
        assert torch.equal(op(self.x), function(self.x))

    def test_a_truth_value_is_no_number(self) -> None:
        with pytest.raises(TypeError, match="takes a number for a, got True"):
            ad.pointwise(lambda x, a=1.0: a * x)(self.x, True)

    @pytest.mark.parametrize("declare", [ad.pointwise, ad.rowwise])
    def test_an_object_is_what_it_is_at_the_call(self, declare: Callable[..., Any]) -> None:
        class Settings:
            scale = 2.0

        def scaled_by(x: torch.Tensor, what: Any = None) -> torch.Tensor:
            if isinstance(what, (list, dict)):
                (what,) = what.values() if isinstance(what, dict) else what
            if what is None:
                return x
            result: torch.Tensor = what(x) if callable(what) else what.scale * x
            return result

        settings = Settings()

        def closure(x: torch.Tensor) -> torch.Tensor:
            return settings.scale * x + 1

        class Module(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x**2 * settings.scale

        op = declare(scaled_by)
        for what in (settings, closure, [settings], {"by": settings}, torch.sin, Module()):
            for scale in (2.0, 5.0, 2.0):
                settings.scale = scale
                torch.testing.assert_close(op(self.x, what), scaled_by(self.x, what))

    def test_a_refused_call_leaves_nothing_behind(self) -> None:
        op = ad.pointwise(lambda x, beta=1.0: F.softplus(x, beta))
        with pytest.raises(TypeError, match="must be Number, not Tensor"):
            op(self.x, self.x)
        with pytest.raises(TypeError, match="takes a number for beta, got True"):
            op(self.x, True)
        torch.testing.assert_close(op(self.x, 2.5), F.softplus(self.x, 2.5))
        assert not op._fixed  # no kernel for each number


class TestWhatIsDeclared:
    x = torch.linspace(-1, 1, 5)

    @pytest.mark.parametrize(
        ("given", "native"),
        [
            (nn.SiLU(), F.silu),
            (nn.ELU(alpha=2.0), lambda x: F.elu(x, 2.0)),
            (nn.Sequential(nn.Tanh(), nn.Softplus()), lambda x: F.softplus(x.tanh())),
            (torch.sin, torch.sin),
            (torch.Tensor.sin, torch.sin),
            (F.gelu, F.gelu),
            (torch.special.erf, torch.erf),
            (F.softplus, F.softplus),
            (ad.silu, F.silu),
            (compiled, lambda x: 2 * torch.sin(x)),
            (staticmethod(lambda x: 2 * x), lambda x: 2 * x),
        ],
    )
    def test_anything_that_is_called_with_a_tensor(self, given: Any, native: Callable[..., torch.Tensor]) -> None:
        torch.testing.assert_close(ad.pointwise(given)(self.x), native(self.x))

    def test_a_compiled_function_inside(self) -> None:
        torch.testing.assert_close(ad.pointwise(lambda x: compiled(x) * x)(self.x), 2 * torch.sin(self.x) * self.x)

    def test_functions_in_c_take_their_options_by_name(self) -> None:
        op = ad.pointwise(F.gelu)
        torch.testing.assert_close(op(self.x, approximate="tanh"), F.gelu(self.x, approximate="tanh"))
        torch.testing.assert_close(ad.pointwise(torch.atan2)(self.x, self.x**2), torch.atan2(self.x, self.x**2))

    @pytest.mark.parametrize(
        ("given", "problem"),
        [
            (3.0, "takes a function of tensors, got 3.0"),
            (nn.SiLU, "takes a function of tensors, got <class 'torch.nn.modules.activation.SiLU'>"),
            (torch.jit.trace(torch.sin, torch.ones(1)), "torch.jit"),
            (torch.sum, "does not know the arguments of <built-in method sum"),
            (lambda self, x: x, "takes self, which would be a tensor; declare it outside of the class"),
        ],
    )
    def test_anything_else(self, given: Any, problem: str) -> None:
        with pytest.raises(TypeError, match=problem):
            ad.pointwise(given)

    def test_in_the_body_of_a_class(self) -> None:
        class Physics:
            @ad.pointwise
            def energy(x: torch.Tensor) -> torch.Tensor:
                return x**2

        assert torch.equal(Physics().energy(self.x), self.x**2)

    def test_without_data(self) -> None:
        function = lambda x, a=2.0: torch.tanh(a * x) * torch.tensor(0.5)  # noqa: E731
        for mode in (FakeTensorMode(), torch.device("meta"), torch.inference_mode(), torch.no_grad()):
            with mode:
                op = ad.pointwise(function)
            leaf = self.x.clone().requires_grad_()
            torch.testing.assert_close(op(leaf), function(leaf))
            torch.testing.assert_close(*(torch.autograd.grad(f(leaf).sum(), leaf) for f in (op, function)))

    def test_kinds_of_arguments_that_are_first_seen_without_grad(self) -> None:
        op = ad.pointwise(lambda x, a=2.0: torch.tanh(a * x))
        a = torch.full_like(self.x, 3.0).requires_grad_()
        with torch.no_grad():
            op(self.x, a)
        torch.testing.assert_close(
            *(torch.autograd.grad(f(self.x, a).sum(), a) for f in (op, lambda x, a: torch.tanh(a * x)))
        )

    def test_pickle(self) -> None:
        assert torch.equal(pickle.loads(pickle.dumps(ad.pointwise(scale_by_a_global)))(self.x), 2 * self.x)
        torch.testing.assert_close(pickle.loads(pickle.dumps(ad.pointwise(torch.sin)))(self.x), self.x.sin())
        with pytest.raises(pickle.PicklingError, match="declared in a function, where pickle"):
            pickle.dumps(ad.pointwise(lambda x: 2 * x))

    @pytest.mark.parametrize("function", [lambda x: x / x.sum(), lambda x: x if x > 0 else -x, lambda x: x[0]])
    def test_the_message_stands_alone(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        late = ad.pointwise(lambda x, a=1.0, f=None: x if f is None else f(x))
        for declare in (lambda: ad.pointwise(function), lambda: late(self.x, 1.0, function)):
            with pytest.raises(TypeError) as caught:
                declare()
            text = "".join(traceback.format_exception(caught.value))
            assert "During handling" not in text and "KeyError" not in text
            assert text.count("torchad_ext/") <= 2 and "tracing.py" not in text


class Pair(NamedTuple):
    a: Any
    b: Any


@pytest.mark.parametrize("declare", [ad.pointwise, ad.rowwise])
@pytest.mark.parametrize(
    "f", [lambda x: (x.sin(),), lambda x: [x.sin()], lambda x: [x.sin(), x.cos()], lambda x: Pair(x.sin(), x.cos())]
)
def test_results_are_a_tensor_or_a_tuple_of_several(f: Callable[..., Any], declare: Callable[..., Any]) -> None:
    """Wherever they come from: a kernel, the definition, one that is compiled or traced, or an op in another."""
    op, x = declare(f), torch.randn(2, 3)
    around = declare(lambda x: op(x)[0] if isinstance(op(x), tuple) else op(x))
    expected = tuple if len(f(x)) == 2 else torch.Tensor
    calls: list[Callable[..., Any]] = [op, torch.compile(op, backend="eager"), torch.func.vmap(op)]
    results = [call(x) for call in calls] + [op(x.to(dtype)) for dtype in (torch.complex64, torch.float16)]
    results.append(torch.func.vmap(op)(x.to(torch.complex64)))
    with torch.autocast("cpu", torch.bfloat16):
        results.append(op(x))
    assert [type(y) for y in results] == [expected] * len(results)
    torch.testing.assert_close(around(x), x.sin())
