"""Plain PyTorch as expressions: every function, composed ones, awkward points, and what is refused.

Expressions are computed by plain PyTorch in float64 here, without kernels, and held against PyTorch's autograd of the
function that they were traced from.
"""

from __future__ import annotations

import dataclasses
import itertools
import linecache
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from torchad_ext import pointwise
from torchad_ext._symbolic import expr, operations
from torchad_ext._symbolic.evaluate import evaluate, evaluate_nodes
from torchad_ext._symbolic.expr import OPERATIONS, Expr, Gradients
from torchad_ext._symbolic.program import Program
from torchad_ext._symbolic.refusals import TraceError
from torchad_ext._symbolic.torch_functions import FUNCTIONS
from torchad_ext._symbolic.tracing import trace
from torchad_ext._torch_state import clamp_shares_ties

Function = Callable[..., Any]
INF, NAN = math.inf, math.nan


def traced(function: Function, tensors: int = 1, **numbers: object) -> Program:
    """The program of a function of x, y, z and of run-time numbers."""
    symbols = [expr.tensor(name) for name in "xyz"[:tensors]]
    return trace(lambda arguments: function(*arguments), [*symbols, *map(expr.scalar, numbers)], "f")


def function_of(text: str) -> tuple[Function, int]:
    """The function of x, y, z that a text computes, and how many of them it has."""
    count = max("xyz".index(name) for name in re.findall(r"\b[xyz]\b", text)) + 1
    return eval(f"lambda {', '.join('xyz'[:count])}: {text}"), count


def tensors(x: Any) -> tuple[torch.Tensor, ...]:
    return x if isinstance(x, tuple) else (x,)


def running_errors(program: Program, arguments: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """For each output: the sum of abs(d output / d node) abs(node) over all nodes, which are rounded once each."""
    leaves = [x.detach().requires_grad_() for x in arguments]
    known = evaluate_nodes(program, *leaves)
    rounded = [known[n] for n in expr.topological(program.outputs) if n.args and not n.is_mask]
    rounded = [value for value in rounded if value.requires_grad]
    for y in (known[output] for output in program.outputs):
        size = y.detach().abs().expand_as(leaves[0])
        if y.requires_grad and rounded:
            slopes = torch.autograd.grad(y.sum(), rounded, allow_unused=True, retain_graph=True)
            terms = [(s * v).detach().abs() for s, v in zip(slopes, rounded, strict=True) if s is not None]
            size = size + sum(terms)
        yield size


class _Sloped(torch.autograd.Function):
    """A function with a formula for its slope."""

    @staticmethod
    def forward(ctx: Any, name: str, x: torch.Tensor) -> torch.Tensor:
        ctx.name = name
        ctx.save_for_backward(x)
        return SLOPED[name][0](x)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[None, torch.Tensor]:  # type: ignore[override]
        return None, g * SLOPED[ctx.name][1](*ctx.saved_tensors)


SLOPED: dict[str, tuple[Function, Function]] = {
    "tanh": (torch.tanh, lambda x: 2 / (1 + (2 * x).cosh())),
    "sigmoid": (torch.sigmoid, lambda x: 0.5 / (1 + x.cosh())),
    "expm1": (torch.expm1, torch.exp),
    "softplus": (F.softplus, lambda x: _Sloped.apply("sigmoid", x)),
    "ndtr": (lambda x: torch.erfc(-math.sqrt(0.5) * x) / 2, lambda x: (-x * x / 2).exp() / math.sqrt(2 * math.pi)),
}
PRODUCTS = {"silu": "sigmoid", "gelu": "ndtr"}  # x f(x)


class _WithoutCancellation(TorchFunctionMode):
    """PyTorch, but for values and slopes such as 1 - y^2, y (1 - y) and 1 + erf, which lose digits that ours keep."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "").replace("expit", "sigmoid")
        if kwargs or len(args) != 1 or name not in SLOPED.keys() | PRODUCTS.keys():
            return func(*args, **(kwargs or {}))
        (x,) = args
        with torch._C.DisableTorchFunction():
            return x * _Sloped.apply(PRODUCTS[name], x) if name in PRODUCTS else _Sloped.apply(name, x)


def gradients(
    outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor], cotangents: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """PyTorch's own, zeros where there are none."""
    pairs = [(y, c) for y, c in zip(outputs, cotangents, strict=True) if y.requires_grad]
    if not pairs:
        return tuple(torch.zeros_like(x) for x in inputs)
    ys, cs = zip(*pairs, strict=True)
    return torch.autograd.grad(ys, inputs, cs, create_graph=True, allow_unused=True, materialize_grads=True)


Level = tuple[Program, list[torch.Tensor], tuple[torch.Tensor, ...]]


def derivatives(
    function: Function, native: Function, xs: Sequence[torch.Tensor], orders: int, every: bool = True
) -> Iterator[Level]:
    """The program, its arguments and PyTorch's results for the value (order 0), its gradient, the gradient of that...

    Args:
        every: differentiate in the cotangents too, as autograd may.
    """
    program = traced(function, len(xs))
    arguments = [x.clone().requires_grad_() for x in xs]
    results = tensors(native(*arguments))
    generator = torch.Generator().manual_seed(0)
    yield program, arguments, results
    for _ in range(orders):
        wanted = [every or str(x.value) in "xyz" for x in program.inputs]
        if not any(wanted):
            return
        derivative = program.vjp(wanted, [True] * len(results))
        cotangents = [torch.rand(xs[0].shape, generator=generator, dtype=xs[0].dtype) + 0.5 for _ in results]
        cotangents = [c.requires_grad_() for c in cotangents]
        targets = [x for x, w in zip(arguments, wanted, strict=True) if w]
        grads = gradients(results, targets, cotangents)
        for i, gradient in enumerate(grads):
            if i not in derivative.results:
                assert not gradient.any(), "a gradient that is not zero was left out"
        program = derivative.program
        if not program.outputs:
            return
        arguments = [[*arguments, *cotangents][i] for i in derivative.arguments]
        results = tuple(grads[i] for i in derivative.results)
        yield program, arguments, results


# PyTorch's own rounding is of the size of ours, because most rules are its formulas; both are far from worst cases.
EPSILONS = 8


def assert_rounded(program: Program, arguments: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> None:
    """The outputs are the expected ones but for the rounding of their nodes."""
    results = tensors(evaluate(program, *(x.detach() for x in arguments)))
    sizes = running_errors(program, arguments)
    for name, result, reference, size in zip(program.names, results, expected, sizes, strict=True):
        assert reference.isfinite().all(), "the comparison needs finite numbers"
        error = (result - reference.detach()).abs()
        assert (error <= EPSILONS * torch.finfo(torch.float64).eps * size).all(), (
            name,
            result,
            reference,
            error / size,
        )


def assert_forward(program: Program, arguments: Sequence[torch.Tensor], results: Sequence[torch.Tensor]) -> None:
    """A tangent is the sum of the gradients with a cotangent of 1, each times the tangent of its input."""
    shape = arguments[0].shape
    directions = [torch.linspace(0.5, 1.5, shape.numel(), dtype=torch.float64) * (1 + i) for i in range(len(arguments))]
    derivative = program.jvp([True] * len(arguments))
    expected = []
    for i, y in enumerate(results):
        slopes = gradients([y], arguments, [torch.ones_like(y)])
        tangent = sum((s.detach() * t for s, t in zip(slopes, directions, strict=True)), torch.zeros(shape))
        if i in derivative.results:
            expected.append(tangent)
        else:
            assert not tangent.any()
    if expected:
        everything = [*arguments, *directions]
        assert_rounded(derivative.program, [everything[i] for i in derivative.arguments], expected)


def assert_native(
    function: Function,
    xs: Sequence[torch.Tensor],
    *,
    orders: int = 4,
    every: bool = True,
    native: Function | None = None,
) -> None:
    """Value and derivatives are those of PyTorch: reverse mode to the given order, forward mode of the first two."""

    def reference(*arguments: torch.Tensor) -> Any:
        with _WithoutCancellation():
            return (native or function)(*arguments)

    for order, level in enumerate(derivatives(function, reference, xs, orders, every)):
        assert_rounded(*level)
        if order < min(2, orders):
            assert_forward(*level)


def sample(count: int, low: float, high: float) -> list[torch.Tensor]:
    """Points in an interval away from round numbers, where kinks are; different ones for each tensor."""
    fractions = torch.tensor([0.0312, 0.1931, 0.3717, 0.5339, 0.7113, 0.8837, 0.9753], dtype=torch.float64)
    return [low + (high - low) * fractions.roll(3 * i) for i in range(count)]


# The names of FUNCTIONS, with spellings that use them.
SPELLINGS: dict[str, tuple[str, ...]] = {
    # arithmetic
    "add": ("x + y", "2 + x", "torch.add(x, y, alpha=3)", "x.add(1.5)"),
    "sub": ("x - y", "x - 2", "torch.sub(x, y, alpha=3)"),
    "rsub": ("2 - x", "torch.rsub(x, y)", "torch.rsub(x, 2, alpha=3)"),
    "mul": ("x * y", "2 * x", "x.mul(y)"),
    "div": ("x / y", "x / 3", "torch.div(x, y)", "x * torch.div(y, x, rounding_mode='trunc')", "y * (y / 0.3).floor()"),
    "rdiv": ("2 / x",),
    "floordiv": ("x * (y // 0.3)",),
    "rfloordiv": ("x * (2 // y)",),
    "floor_divide": ("x * torch.floor_divide(y, 0.3)",),
    "true_divide": ("torch.true_divide(x, y)",),
    "pow": ("x ** y", "x ** 3", "x ** 2.5", "x ** -1", "x.pow(0.5)", "torch.pow(1.5, x)", "torch.pow(x, exponent=y)"),
    "rpow": ("2 ** x",),
    "float_power": ("torch.float_power(x, 2.5)", "torch.float_power(x, y)", "x.float_power(3)"),
    "square": ("torch.square(x)",),
    "neg": ("-x", "torch.neg(x)"),
    "positive": ("+x * x", "torch.positive(x) * x"),
    "abs": ("abs(x)", "x.abs()"),
    "sign": ("x * torch.sign(x)",),
    "reciprocal": ("torch.reciprocal(x)",),
    "fmod": ("torch.fmod(x, y)", "torch.fmod(x, 0.7)"),
    "remainder": ("torch.remainder(x, y)", "x % 0.7"),
    "rmod": ("2 % x",),
    "addcmul": ("torch.addcmul(x, y, z, value=0.5)", "x.addcmul(y, z)"),
    "addcdiv": ("torch.addcdiv(x, y, z, value=0.5)", "x.addcdiv(y, z)"),
    "lerp": ("torch.lerp(x, y, 0.3)", "torch.lerp(x, y, z)"),
    "deg2rad": ("torch.deg2rad(x)",),
    "rad2deg": ("torch.rad2deg(x)",),
    # roots, exponentials and logarithms
    "sqrt": ("torch.sqrt(x)",),
    "rsqrt": ("torch.rsqrt(x)",),
    "hypot": ("torch.hypot(x, y)",),
    "exp": ("torch.exp(x)", "x.exp()"),
    "expm1": ("torch.expm1(x)", "torch.special.expm1(x)"),
    "exp2": ("torch.exp2(x)", "torch.special.exp2(x)"),
    "log": ("torch.log(x)",),
    "log1p": ("torch.log1p(x)", "torch.special.log1p(x)"),
    "log2": ("torch.log2(x)",),
    "log10": ("torch.log10(x)",),
    "xlogy": ("torch.xlogy(x, y)", "torch.special.xlogy(x, 2.0)", "torch.xlogy(2.0, x)"),
    # circular and hyperbolic functions
    "sin": ("torch.sin(x)", "x.sin()"),
    "cos": ("torch.cos(x)",),
    "tan": ("torch.tan(x)",),
    "asin": ("torch.asin(x)",),
    "acos": ("torch.acos(x)",),
    "atan": ("torch.atan(x)",),
    "atan2": ("torch.atan2(x, y)",),
    "sinh": ("torch.sinh(x)",),
    "cosh": ("torch.cosh(x)",),
    "tanh": ("torch.tanh(x)", "F.tanh(x)"),
    "asinh": ("torch.asinh(x)",),
    "acosh": ("torch.acosh(x)",),
    "atanh": ("torch.atanh(x)",),
    "sinc": ("torch.sinc(x)", "torch.special.sinc(x)"),
    "arcsin": ("torch.arcsin(x)",),
    "arccos": ("torch.arccos(x)",),
    "arctan": ("torch.arctan(x)",),
    "arctan2": ("torch.arctan2(x, y)",),
    "arcsinh": ("torch.arcsinh(x)",),
    "arccosh": ("torch.arccosh(x)",),
    "arctanh": ("torch.arctanh(x)",),
    # error function and logistic function
    "erf": ("torch.erf(x)", "torch.special.erf(x)"),
    "erfc": ("torch.erfc(x)", "torch.special.erfc(x)"),
    "sigmoid": ("torch.sigmoid(x)", "F.sigmoid(x)"),
    "ndtr": ("torch.special.ndtr(x)",),
    "expit": ("torch.special.expit(x)",),
    "erfinv": ("torch.erfinv(x)", "x.erfinv()", "torch.special.erfinv(x)"),
    "erfcx": ("torch.special.erfcx(x)",),
    "log_ndtr": ("torch.special.log_ndtr(x)",),
    "logit": ("torch.logit(x)", "x.logit()", "torch.special.logit(x, eps=0.3)", "torch.logit(x, 0.1)"),
    "logaddexp": ("torch.logaddexp(x, y)", "x.logaddexp(y)"),
    "logaddexp2": ("torch.logaddexp2(x, y)",),
    "entr": ("torch.special.entr(x)",),
    "xlog1py": ("torch.special.xlog1py(x, y)", "torch.special.xlog1py(2.0, x)", "torch.special.xlog1py(x, 2.0)"),
    # gamma function
    "lgamma": ("torch.lgamma(x)", "x.lgamma()"),
    "gammaln": ("torch.special.gammaln(x)",),
    "digamma": ("torch.digamma(x)", "x.digamma()", "torch.special.digamma(x)"),
    "psi": ("torch.special.psi(x)",),
    "polygamma": ("torch.polygamma(0, x)", "torch.special.polygamma(1, x)", "x.polygamma(2)"),
    # rounding
    "floor": ("x * torch.floor(y)",),
    "ceil": ("x * torch.ceil(y)",),
    "round": ("x * torch.round(y)", "x * torch.special.round(y)"),
    "trunc": ("x * torch.trunc(y)",),
    "fix": ("x * torch.fix(y)",),
    "frac": ("torch.frac(x)",),
    # choice
    "where": ("torch.where(x > y, x * y, torch.sin(x))", "torch.where(x > 0.3, x**2, 0.0)"),
    "Tensor.where": ("x.where(x > y, y**2)",),
    "lt": ("torch.where(x < y, x, y**2)", "(x < 0.3) * x"),
    "le": ("torch.where(x <= y, x, y**2)",),
    "gt": ("torch.where(x > y, x, y**2)", "x * (y > 0.9)"),
    "ge": ("torch.where(x >= y, x, y**2)",),
    "eq": ("torch.where(x == torch.abs(x), x, y**2)",),
    "ne": ("torch.where(x != torch.abs(x), x, y**2)",),
    "less": ("torch.where(torch.less(x, y), x, y**2)",),
    "less_equal": ("torch.where(torch.less_equal(x, y), x, y**2)",),
    "greater": ("torch.where(torch.greater(x, y), x, y**2)",),
    "greater_equal": ("torch.where(torch.greater_equal(x, y), x, y**2)",),
    "not_equal": ("torch.where(torch.not_equal(x, abs(x)), x, y**2)",),
    "and": ("torch.where((x > 0.2) & (x < y), x, y**2)",),
    "or": ("torch.where((x < 0.2) | (x > y), x, y**2)",),
    "invert": ("torch.where(~(x > y), x, y**2)",),
    "logical_and": ("torch.where(torch.logical_and(x > 0.2, x < y), x, y**2)",),
    "logical_or": ("torch.where(torch.logical_or(x < 0.2, x > y), x, y**2)",),
    "logical_not": ("torch.where(torch.logical_not(x > y), x, y**2)",),
    "bitwise_and": ("torch.where(torch.bitwise_and(x > 0.2, x < y), x, y**2)",),
    "bitwise_or": ("torch.where(torch.bitwise_or(x < 0.2, x > y), x, y**2)",),
    "bitwise_not": ("torch.where(torch.bitwise_not(x > y), x, y**2)",),
    "xor": ("torch.where((x > 0.2) ^ (x > y), x, y**2)",),
    "logical_xor": ("torch.where(torch.logical_xor(x > 0.2, x > y), x, y**2)",),
    "bitwise_xor": ("torch.where(torch.bitwise_xor(x > 0.2, x > y), x, y**2)",),
    "isclose": ("torch.where(torch.isclose(x, y, rtol=0.5, atol=0.2), x, y**2)", "torch.where(x.isclose(y), x, y**2)"),
    "signbit": ("torch.where(torch.signbit(x), y, x**2)",),
    "copysign": ("torch.copysign(x, y)", "x.copysign(-2.0) * y"),
    "heaviside": ("x * torch.heaviside(y, x)",),
    "masked_fill": ("x.masked_fill(x > y, 0.7) * x", "torch.masked_fill(x * y, x > y, -1.5)"),
    "nan_to_num": ("torch.nan_to_num(x)", "x.nan_to_num(1.0, posinf=2.0) * x", "torch.nan_to_num(x, neginf=-3.0)"),
    "isnan": ("torch.where(torch.isnan(x), y, x**2)",),
    "isfinite": ("torch.where(torch.isfinite(x), x**2, y)",),
    "isinf": ("torch.where(torch.isinf(x), y, x**2)",),
    "clamp": ("torch.clamp(x, -0.3, 0.9)", "x.clamp(min=0.1)", "torch.clamp(x, max=y)", "torch.clamp(x, y - 1, y)",
              "torch.clamp(x, y, z)"),
    "clip": ("torch.clip(x, -0.3, 0.9)",),
    "clamp_min": ("torch.clamp_min(x, 0.3)", "x.clamp_min(min=0.3)"),
    "clamp_max": ("torch.clamp_max(x, 0.3)", "x.clamp_max(max=0.3)"),
    "maximum": ("torch.maximum(x, y**2)",),
    "minimum": ("torch.minimum(x, y**2)",),
    "max": ("torch.max(x, y**2)", "x.max(y)"),
    "min": ("torch.min(x, other=y)",),
    # activations
    "relu": ("torch.relu(x)", "F.relu(x)", "torch.nn.ReLU()(x)"),
    "relu6": ("F.relu6(4 * x)",),
    "elu": ("F.elu(x)", "F.elu(x, 0.7)", "torch.nn.ELU(alpha=0.7)(x)"),
    "selu": ("F.selu(x)", "torch.selu(x)"),
    "celu": ("F.celu(x)", "torch.celu(x, 0.7)"),
    "leaky_relu": ("F.leaky_relu(x)", "F.leaky_relu(x, 0.2)"),
    "silu": ("F.silu(x)", "torch.nn.SiLU()(x)"),
    "mish": ("F.mish(x)",),
    "gelu": ("F.gelu(x)", "F.gelu(x, approximate='tanh')", "torch.nn.GELU('tanh')(x)"),
    "softplus": ("F.softplus(x)", "F.softplus(x, 2.0, 1.5)", "F.softplus(x, beta=3)"),
    "log_sigmoid": ("F.logsigmoid(x)",),
    "hardtanh": ("F.hardtanh(x)", "F.hardtanh(x, -0.3, 0.6)"),
    "hardsigmoid": ("F.hardsigmoid(3 * x)",),
    "hardswish": ("F.hardswish(3 * x)",),
    "softsign": ("F.softsign(x)",),
    "tanhshrink": ("F.tanhshrink(x)",),
    "softshrink": ("F.softshrink(x)", "F.softshrink(x, 0.2)"),
    "hardshrink": ("F.hardshrink(x)", "F.hardshrink(x, 0.2)"),
    "threshold": ("torch.threshold(x, 0.2, 0.7)",),
    "_threshold": ("F.threshold(x, 0.2, 0.7)", "torch.nn.Threshold(0.2, 0.7)(x)"),
    # tensors
    "detach": ("x * torch.sin(x).detach()",),
    "data": ("x.data * torch.sin(x)",),
    "clone": ("torch.clone(x) * x",),
    "contiguous": ("x.contiguous() * x",),
    "zeros_like": ("x**2 + torch.zeros_like(x)",),
    "ones_like": ("x**2 + torch.ones_like(x)",),
    "full_like": ("x**2 * torch.full_like(x, 1.5)", "x**2 * torch.full_like(x, fill_value=2)"),
    "new_tensor": ("x * x.new_tensor(2.5)",),
    "new_full": ("x * x.new_full((), 2.5)",),
    "new_zeros": ("x + x.new_zeros(())",),
    "new_ones": ("x * x.new_ones([])",),
    "tensor": ("x * torch.tensor(0.5)", "x * torch.tensor(0.1, dtype=x.dtype, device=x.device)"),
    "as_tensor": ("x * torch.as_tensor(0.5)",),
    "scalar_tensor": ("x * torch.scalar_tensor(0.5)",),
}  # fmt: skip
ALIASES = {
    "absolute": "abs", "negative": "neg", "subtract": "sub", "multiply": "mul", "divide": "div", "sgn": "sign",
}  # fmt: skip
for alias, of in ALIASES.items():
    SPELLINGS[alias] = (f"torch.{alias}(x{', y' if of in ('sub', 'mul', 'div') else ''})",)

POSITIVE = (0.2, 2.9)
DOMAINS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        "div divide true_divide addcdiv rdiv rfloordiv fmod remainder rmod pow float_power reciprocal sqrt rsqrt hypot "
        "log log1p log2 log10 xlogy atan2 arctan2 ".split(),
        POSITIVE,
    ),
    **dict.fromkeys("lgamma gammaln digamma psi polygamma entr xlog1py".split(), POSITIVE),
    "logit": (0.05, 0.95),
    **dict.fromkeys("erfinv asin acos atanh arcsin arccos arctanh one_minus_square".split(), (-0.9, 0.8)),
    **dict.fromkeys("acosh arccosh".split(), (1.2, 3.0)),
}


class Polygamma(torch.autograd.Function):
    """The polygamma function by PyTorch's zeta; of order -1, the logarithm of the gamma function."""

    @staticmethod
    def forward(ctx: Any, n: int, x: torch.Tensor) -> torch.Tensor:
        ctx.n = n
        ctx.save_for_backward(x)
        if n < 1:
            return torch.digamma(x) if n == 0 else torch.lgamma(x)
        return (-1) ** (n + 1) * math.factorial(n) * torch.special.zeta(n + 1.0, x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, torch.Tensor]:
        (x,) = ctx.saved_tensors
        return None, grad * Polygamma.apply(ctx.n + 1, x)


NATIVE: dict[str, Function] = {
    # PyTorch computes these with a float 1/6, and has no second derivative.
    "F.hardsigmoid(3 * x)": lambda x: F.relu6(3 * x + 3) / 6,
    # It rounds 1 / alpha to a float in the derivative.
    "torch.celu(x, 0.7)": lambda x: torch.where(x > 0, x, 0.7 * torch.expm1(x / 0.7)),
    # It has no derivative of these.
    "x * (y // 0.3)": lambda x, y: x * torch.div(y, 0.3, rounding_mode="floor").detach(),
    "x * (2 // y)": lambda x, y: x * (2 // y.detach()),
    "x * torch.floor_divide(y, 0.3)": lambda x, y: x * (y.detach() // 0.3),
    "2 % x": lambda x: torch.remainder(torch.full_like(x, 2), x),
    "x * torch.heaviside(y, x)": lambda x, y: x * torch.heaviside(y.detach(), x.detach()),
    # The derivative of its quotient result / x is not quite 0.
    "torch.copysign(x, y)": lambda x, y: torch.where(torch.signbit(y), -abs(x), abs(x)),
    "x.copysign(-2.0) * y": lambda x, y: -abs(x) * y,
    "torch.copysign(x, y) * x": lambda x, y: torch.where(torch.signbit(y), -abs(x), abs(x)) * x,
    # Its trigamma is wrong in the tenth digit.
    **{
        text: lambda x, n=n: Polygamma.apply(n, x)
        for n, texts in enumerate(
            (
                ("torch.lgamma(x)", "x.lgamma()", "torch.special.gammaln(x)"),
                (
                    "torch.digamma(x)",
                    "x.digamma()",
                    "torch.special.digamma(x)",
                    "torch.special.psi(x)",
                    "torch.polygamma(0, x)",
                ),
                ("torch.special.polygamma(1, x)",),
            ),
            -1,
        )
        for text in texts
    },
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in SPELLINGS.items() for text in texts])
class TestFunctions:
    def test_value_and_four_derivatives_are_native(self, name: str, text: str) -> None:
        function, count = function_of(text)
        assert_native(function, sample(count, *DOMAINS.get(name, (-1.4, 1.7))), native=NATIVE.get(text))

    def test_the_spelling_comes_under_its_name(self, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []
        handler = FUNCTIONS[name]
        monkeypatch.setitem(FUNCTIONS, name, lambda *a, **k: calls.append(name) or handler(*a, **k))
        traced(*function_of(text))
        assert calls


def test_every_name_has_a_spelling() -> None:
    assert set(SPELLINGS) == set(FUNCTIONS)


A, B = 0.7, 1.3  # parameters of the functions below
COMPOSED: dict[str, tuple[str, tuple[float, float]]] = {
    # activations
    "snake": ("x + torch.sin(0.7 * x) ** 2 / 0.7", (-3, 3)),
    "siren": ("torch.sin(30 * x)", (-1, 1)),
    "swish of beta": ("x * torch.sigmoid(1.3 * x)", (-5, 5)),
    "squareplus": ("(x + torch.sqrt(x * x + 4)) / 2", (-3, 3)),
    "shifted softplus": ("F.softplus(x) - 0.6931471805599453", (-5, 5)),
    "gated": ("torch.tanh(x) * torch.sigmoid(y)", (-3, 3)),
    "logit": ("torch.log(x / (1 - x))", (0.1, 0.9)),
    "tanhexp": ("x * torch.tanh(torch.exp(x))", (-3, 2)),
    "serf": ("x * torch.erf(torch.log(1 + torch.exp(x)))", (-3, 3)),
    "gelu of silu": ("F.gelu(F.silu(x) - y)", (-2, 2)),
    # radial bases and envelopes
    "gaussian basis": ("torch.exp(-0.5 * ((x - 0.7) / 1.3) ** 2)", (0, 4)),
    "bessel basis": ("torch.sin(math.pi * x / 5) / x", (0.3, 4.8)),
    "sinc basis": ("torch.sinc(x / 5) * torch.where(x < 3, (1 - x / 3) ** 3, 0.0)", (0.3, 5)),
    "polynomial cutoff": ("torch.where(x < 2, 1 - 28 * (x/2)**6 + 48 * (x/2)**7 - 21 * (x/2)**8, 0.0)", (0.1, 3)),
    "cosine cutoff": ("torch.where(x < 3, 0.5 * (torch.cos(math.pi * x / 3) + 1), 0 * x)", (0.1, 4)),
    "multiquadric": ("torch.sqrt(1 + (0.7 * x) ** 2)", (-3, 3)),
    "inverse quadric": ("1 / (1 + (0.7 * (x - y)) ** 2)", (-3, 3)),
    "thin plate": ("torch.xlogy(x * x, x)", (0.2, 3)),
    "Wendland": ("torch.relu(1 - x) ** 4 * (4 * x + 1)", (0.1, 1.6)),
    # physics
    "Lennard-Jones": ("4 * ((0.9 / x) ** 12 - (0.9 / x) ** 6)", (0.8, 3)),
    "Morse": ("(1 - torch.exp(-1.3 * (x - 0.7))) ** 2", (0.2, 3)),
    "Yukawa": ("torch.exp(-x / y) / x", (0.3, 3)),
    "Slater": ("torch.exp(-torch.sqrt(x * x + y * y + z * z))", (0.2, 2)),
    "hydrogen 2s": ("(1 - x / 2) * torch.exp(-x / 2)", (0.1, 6)),
    "oscillator": ("(4 * x**2 - 2) * torch.exp(-(x**2) / 2)", (-3, 3)),
    "Jastrow": ("torch.exp(0.5 * x / (1 + 0.7 * x)) * torch.exp(-2 * y)", (0.1, 3)),
    "Fermi": ("1 / (1 + torch.exp((x - y) / 0.3))", (-1, 1)),
    "Planck": ("x**3 / torch.expm1(x)", (0.3, 5)),
    "soliton": ("0.5 * 1.3 / torch.cosh(math.sqrt(1.3) / 2 * (x - 1.3 * y)) ** 2", (-2, 2)),
    "heat kernel": ("torch.exp(-x * x / (4 * y)) / torch.sqrt(4 * math.pi * y)", (0.3, 2)),
    "Poisson source": ("2 * math.pi**2 * torch.sin(math.pi * x) * torch.sin(math.pi * y)", (0, 1)),
    "Burgers source": ("-x * torch.tanh((x - y) / 0.2) / (1 + torch.exp(x))", (-1, 1)),
    "polar": ("torch.atan2(y, x) * torch.hypot(x, y)", (0.3, 2)),
    "periodic": ("x - 1.3 * torch.round(x / 1.3) + torch.remainder(y, 0.9) ** 2", (-3, 3)),
    # structure
    "nested where": ("torch.where(x < -1, -x, torch.where(x < y, x**3, torch.exp(-x)))", (-2, 2)),
    "masked branches": ("torch.where(x > 0.01, torch.log(torch.clamp(x, min=0.01)) * y, x * y)", (-2, 2)),
    "power tower": ("x ** (y ** x)", (0.3, 1.8)),
    "powers": ("x**2 + x**-2 - x**0.5 * x**-1.5 + x**7 + (x * y) ** 1.7", (0.4, 1.5)),
    "shared": ("torch.sin(x * y) * torch.cos(x * y) + (x * y) ** 2 / (1 + torch.sin(x * y) ** 2)", (-2, 2)),
    "clamped": ("torch.clamp(x * y, -0.8, 0.9) ** 3 + torch.maximum(x, y) * torch.minimum(x, z)", (-2, 2)),
    "chain": ("torch.sin(torch.exp(torch.tanh(torch.sqrt(1 + torch.cos(x) ** 2))))", (-3, 3)),
    "loss": ("torch.where(abs(x - y) < 0.7, 0.5 * (x - y) ** 2, 0.7 * (abs(x - y) - 0.35))", (-2, 2)),
    "Huber of logs": ("torch.log1p(torch.lerp(x, y, 0.3) ** 2) + torch.log2(1 + torch.exp2(z))", (-2, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPOSED)
def test_composed_functions_are_native_to_the_fourth_order(name: str) -> None:
    text, domain = COMPOSED[name]
    function, count = function_of(text)
    assert_native(function, sample(count, *domain), every=count == 1)


def test_several_outputs() -> None:
    def polar(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.hypot(x, y), torch.atan2(y, x), torch.full_like(x, 2.0), x

    assert traced(polar, 2).names == ("output0", "output1", "output2", "output3")
    assert_native(polar, sample(2, *POSITIVE), orders=3)


# Each at most doubles the size of its arguments, so that nothing overflows, and is smooth or has its kinks apart.
STEPS: tuple[Function, ...] = (
    lambda u, v: u + v,
    lambda u, v: u - v,
    lambda u, v: torch.sin(u) * v,
    lambda u, v: u / (1 + v * v),
    lambda u, v: -(torch.tanh(u) ** 2),
    lambda u, v: torch.exp(-u * u) - v,
    lambda u, v: torch.sqrt(1 + u * u),
    lambda u, v: torch.log1p(u * u) * torch.sigmoid(v),
    lambda u, v: (1 + u * u) ** 0.3,
    lambda u, v: (1 + u * u) ** torch.cos(v),
    lambda u, v: torch.atan2(u, 1 + v * v),
    lambda u, v: torch.hypot(u, 1 + v),
    lambda u, v: torch.where(u > v, torch.cos(u), v),
    lambda u, v: torch.where((u < 0.3) & ~(v < 0.1), u, 0.5),
    lambda u, v: torch.maximum(u, v),
    lambda u, v: F.silu(u),
    lambda u, v: F.gelu(u) + F.softplus(v),
    lambda u, v: torch.erf(u) * v,
    lambda u, v: torch.lerp(u, v, 0.25),
    lambda u, v: torch.clamp(u, -0.7, 1.1),
    lambda u, v: 2 ** torch.sin(u) - torch.rsqrt(1 + v * v),
    lambda u, v: u.detach() * torch.atan(v),
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    inputs=st.integers(1, 3),
    steps=st.lists(
        st.tuples(st.integers(0, len(STEPS) - 1), st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=8
    ),
)
def test_random_functions_are_native_to_the_fourth_order(inputs: int, steps: list[tuple[int, int, int]]) -> None:
    def function(*xs: torch.Tensor) -> torch.Tensor:
        values = list(xs)
        for step, i, j in steps:  # an earlier value may be used many times
            values.append(STEPS[step](values[-1 - i % len(values)], values[-1 - j % len(values)]))
        return values[-1] + 0 * sum(xs)

    assert_native(function, sample(inputs, -1.37, 1.21), every=False)


POINTS = (0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 3.0, -3.0, 6.0, 1000.0, -1000.0, INF, -INF, NAN)
AWKWARD = """
torch.relu(x); torch.abs(x); torch.sign(x) * x; torch.clamp(x, -1, 2); torch.clamp(x, min=-1); torch.clamp(x, max=1)
F.hardtanh(x); F.relu6(x); F.hardswish(x); F.leaky_relu(x); F.leaky_relu(x, -0.5); F.elu(x); F.elu(x, 0.5); F.selu(x)
F.celu(x); F.celu(x, 0.5); F.softshrink(x); F.hardshrink(x); F.threshold(x, 1.0, 7.0); F.softsign(x); F.tanhshrink(x)
torch.where(x > 0, x, 0 * x); torch.where(x > 0, torch.log(x), 0 * x); torch.where(x > 0, torch.sqrt(x), x)
torch.where(x == 0, 1.0, torch.sin(x) / x); torch.where(x < 0, torch.exp(x), 1 + x); x.where(x > 0, -x)
x**0; x**0.5; x**1; x**1.5; x**2; x**3; x**-1; x**-0.5; x**-2; 0**x; 1**x; 2**x; 0.5**x; (-1)**x; torch.square(x)
torch.sqrt(x); torch.rsqrt(x); torch.reciprocal(x); 1 / x; x / x; x - x; 0 * x; x + 0
torch.log(x); torch.log1p(x); torch.log2(x); torch.log10(x); torch.exp(x); torch.expm1(x); torch.exp2(x)
torch.sigmoid(x); torch.tanh(x); F.softplus(x); F.softplus(x, 2.0, 5.0); F.silu(x); F.mish(x); F.logsigmoid(x)
F.gelu(x); F.gelu(x, approximate='tanh'); torch.erf(x); torch.erfc(x)
torch.sin(x); torch.cos(x); torch.tan(x); torch.asin(x); torch.acos(x); torch.atan(x)
torch.sinh(x); torch.cosh(x); torch.asinh(x); torch.acosh(x); torch.atanh(x); torch.sinc(x)
torch.floor(x) * x; torch.round(x) * x; torch.frac(x); torch.remainder(x, 2); torch.fmod(x, 2)
torch.isnan(x) * x; torch.isinf(x) * x; torch.isfinite(x) * x; (x > 0) * x; torch.maximum(x, -x)
torch.xlogy(x, 2.0); torch.xlogy(2.0, x); torch.xlogy(0.0, x); torch.lerp(x, x * x, 0.25); torch.deg2rad(x)
"""
AWKWARD_PAIRS = """
torch.maximum(x, y); torch.minimum(x, y); torch.clamp(x, min=y); torch.clamp(x, max=y); torch.clamp(x, y, 2 * y)
torch.where(x > y, x, y); torch.where(x > 0, x**y, y)
x**y; torch.atan2(x, y); torch.hypot(x, y); torch.xlogy(x, y); torch.fmod(x, y); torch.remainder(x, y)
x / y; x * y; x - y; torch.lerp(x, y, 0.25); torch.lerp(x, y, x); torch.addcmul(x, x, y); torch.addcdiv(x, x, y)
torch.div(x, y, rounding_mode='floor'); torch.div(x, y, rounding_mode='trunc')
"""
# PyTorch gives nan at some points where we do not.
FINITE = {
    "0**x", "F.mish(x)", "torch.sinc(x)", "torch.xlogy(0.0, x)", "torch.xlogy(x, y)", "x**y",
    "torch.atan2(x, y)", "torch.addcdiv(x, x, y)", "torch.where(x > 0, x**y, y)", "F.softsign(x)",
}  # fmt: skip
# The slopes at nan of its scalar and of its vectorised kernel differ; the last gives that of a bound, its value is nan.
UNSURE_AT_NAN = {
    "F.relu6(x)", "F.hardtanh(x)", "F.hardswish(x)", "F.softshrink(x)", "F.hardshrink(x)", "torch.clamp(x, y, 2 * y)",
}  # fmt: skip


def listed(text: str) -> list[str]:
    return [each.strip() for line in text.strip().splitlines() for each in line.split(";")]


@pytest.mark.parametrize("text", listed(AWKWARD) + listed(AWKWARD_PAIRS))
def test_awkward_points_are_native_to_the_second_order(text: str) -> None:
    function, count = function_of(text)
    points = POINTS if count == 1 else (0.0, -0.0, 1.0, -1.0, 2.0, 0.5, INF, -INF, NAN)
    xs = [torch.tensor(column, dtype=torch.float64) for column in zip(*itertools.product(points, repeat=count))]  # noqa: B905
    exempt = torch.zeros(len(xs[0]), dtype=torch.bool)
    if text == "torch.xlogy(x, y)":  # at the edge of where it is defined, and the slope log(inf) of 0 log(inf) = 0
        exempt = (xs[0] == 0) & ((xs[1] <= 0) | (xs[1] == INF))
    for order, (program, arguments, native) in enumerate(derivatives(function, function, xs, 2)):
        if "x**y" in text and order == 2:  # PyTorch's derivatives of x^0 in x and y are 0, right are 1/x, nan for x < 0
            exempt = xs[1] == 0
        results = tensors(evaluate(program, *(x.detach() for x in arguments)))
        for name, result, reference in zip(program.names, results, native, strict=True):
            # Numbers near 1 are rounded on the way to those far below.
            close = torch.isclose(result, reference.detach(), rtol=1e-12, atol=1e-14, equal_nan=True)
            if text in FINITE:
                close |= ~result.isnan() & reference.isnan()
            if order:
                close |= exempt | (xs[0].isnan() & (text in UNSURE_AT_NAN))
            where = [x[~close].tolist() for x in xs]
            assert close.all(), (order, name, where, result[~close].tolist(), reference[~close].tolist())


AWKWARD_POINTS = {
    1: (*(0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 3.0, -3.0, 1e3, -1e3), *(1e-300, -1e-300, 1e-9, 1e200, -1e200)),
    2: (0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -2.5, 1e-300, 1e200),
    3: (0.0, 1.0, -2.5),
}
# PyTorch gives nan at some points, mostly 0 times an infinity or a difference of infinities, where we give numbers.
NAN_IN_PYTORCH = frozenset(
    "pow float_power addcdiv xlogy xlog1py atan2 arctan2 sinc log_ndtr logit logaddexp logaddexp2 celu mish gelu "
    "hardswish nan_to_num softsign".split()
)
# Where else we differ from it, and why.
POWERS = ("pow", "float_power")
DIFFERENT: dict[str, Callable[..., torch.Tensor]] = {
    "remainder": lambda x, y=0.7, z=0: abs(x / y) == INF,  # a floor of the quotient, not of its rounding
    "hypot": lambda x, y: torch.maximum(abs(x), abs(y)) < 1e-200,  # a curvature beyond the largest number
    **dict.fromkeys(POWERS, lambda x, y=1.0: torch.as_tensor(y) == 0),  # the mixed derivative of x^0 is 1 / x
    "sinc": lambda x: abs(x) < 1e-8,  # its derivatives are differences of large numbers
    "erfcx": lambda x: abs(x) >= 1e3,
    "log_ndtr": lambda x: x <= -1e3,
    "xlogy": lambda x, y=None: x == 0,  # 0 log y is 0, and its slope log y, where that is a number
    "xlog1py": lambda x, y=None: x == 0,
    "logit": lambda x: x.isnan(),  # its slopes with eps at nan are 0 or nan, by the kernel
    "celu": lambda x: x == 0,  # the kink of the formula in NATIVE
    # From PyTorch 2.14 on an upper bound below the lower one has a slope at nan too.
    **({"clamp": lambda x, y=None, z=None: x.isnan() & (z is not None)} if clamp_shares_ties else {}),
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in SPELLINGS.items() for text in texts])
def test_every_function_is_native_at_awkward_points(name: str, text: str) -> None:
    function, count = function_of(text)
    points = itertools.product((*AWKWARD_POINTS[count], INF, -INF, NAN), repeat=count)
    # So many that PyTorch's vectorised kernels run: those for the rest differ at nan.
    xs = [torch.tensor(column, dtype=torch.float64) for column in zip(*list(points) * 8, strict=True)]
    exempt = DIFFERENT[name](*xs) if name in DIFFERENT else torch.tensor(False)
    for order, (program, arguments, native) in enumerate(derivatives(function, NATIVE.get(text, function), xs, 2)):
        results = tensors(evaluate(program, *(x.detach() for x in arguments)))
        for output, result, reference in zip(program.names, results, native, strict=True):
            close = torch.isclose(result, reference.detach(), rtol=1e-12, atol=1e-14, equal_nan=True)
            close |= ~result.isnan() & reference.isnan() & torch.tensor(name in NAN_IN_PYTORCH)
            close |= exempt & torch.tensor(order > (name in POWERS))
            where = [x[~close][:5].tolist() for x in xs]
            assert close.all(), (order, output, where, result[~close][:5], reference[~close][:5])


def slopes(text: str, at: Sequence[float], orders: int) -> list[float]:
    """The derivatives in x, of order 0 to the given one, at a point."""
    function, count = function_of(text)
    program = traced(function, count)
    arguments: list[torch.Tensor] = [torch.tensor([value], dtype=torch.float64) for value in at]
    found = [evaluate(program, *arguments).item()]
    for _ in range(orders):
        derivative = program.vjp([str(x.value) == "x" for x in program.inputs], [True])
        if not derivative.results:
            return [*found, 0.0]
        arguments = [[*arguments, torch.ones(1, dtype=torch.float64)][i] for i in derivative.arguments]
        program = derivative.program
        found.append(evaluate(program, *arguments).item())
    return found


@pytest.mark.parametrize(
    ("text", "at", "exact"),
    [
        ("torch.sinc(x)", [0.0], [1, 0, -(math.pi**2) / 3, 0, math.pi**4 / 5]),
        ("torch.where(x != 0, torch.sinc(x), 1.0)", [0.0], [1, 0, 0]),
        ("F.hardswish(x)", [INF], [INF, 1, 0]),
        ("F.mish(x)", [1000.0], [1000, 1, 0]),
        ("0**x", [1.0], [0, 0, 0]),
        ("y**x", [2.0, 0.0], [0, 0, 0]),
        ("x**y", [0.0, 0.0], [1, 0, 0, 0, 0]),
        ("x**y", [0.0, 1.0], [0, 1, 0, 0, 0]),
        ("x**y", [0.0, 2.0], [0, 0, 2, 0, 0]),
        ("x**y", [0.0, 3.0], [0, 0, 0, 6, 0]),
        ("torch.atan2(x, y)", [0.0, 0.0], [0, 0, 0]),
        ("torch.xlogy(0.0, x)", [0.0], [0, 0, 0]),
        ("torch.xlogy(y, x)", [0.0, 0.0], [0, 0, 0]),
        ("torch.xlogy(x, y)", [0.0, 3.0], [0, math.log(3), 0]),
    ],
)
def test_finite_where_native_autograd_is_nan(text: str, at: list[float], exact: list[float]) -> None:
    assert slopes(text, at, len(exact) - 1) == pytest.approx(exact, rel=1e-15, abs=0)


@pytest.mark.parametrize(
    ("text", "function"),
    [
        # PyTorch's 1 + erf cancels in the tail.
        ("F.gelu(x)", lambda x: x * mpmath.erfc(-x / mpmath.sqrt(2)) / 2),
        # Its sinc' is a difference of large numbers near 0.
        ("torch.sinc(x)", lambda x: mpmath.sincpi(x)),
    ],
)
@pytest.mark.parametrize("at", [-9.5, -6.2, -1e-3, 1e-7, 1e-2])
def test_more_accurate_than_native(text: str, function: Function, at: float) -> None:
    with mpmath.workdps(60):
        exact = [float(mpmath.diff(function, mpmath.mpf(at), n)) for n in range(3)]
    assert slopes(text, [at], 2) == pytest.approx(exact, rel=1e-13, abs=1e-30 if at < -1 else 1e-16)


def test_a_power_whose_exponent_is_a_tensor_of_zeros(interpreted: None) -> None:
    """x^0 is 1 everywhere; the slope of its slope in the exponent, at 0, is 1 / x."""
    x = torch.tensor([0.0, NAN, 2.0, 0.5], dtype=torch.float64, requires_grad=True)
    y = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(pointwise(lambda x, y: x**y)(x, y).sum(), x, create_graph=True)
    assert slope.tolist() == [0, 0, 0, 0]
    (mixed,) = torch.autograd.grad(slope.sum(), y)
    assert mixed[2:].tolist() == [0.5, 2]


def test_floor_division_is_that_of_the_exact_quotient() -> None:
    x = torch.tensor([1.0, -1.0, 6.0, 0.3, 7.5], dtype=torch.float64)
    assert (x / 0.1).floor()[0] == 10  # but 0.1 is above one tenth
    for text in ("x // 0.1", "torch.div(x, 0.1, rounding_mode='floor')"):
        assert torch.equal(evaluate(traced(*function_of(text)), x), x // 0.1)


# A function through whose derivatives each rule passes, where that of its name does not do.
THROUGH = {
    "add": "x + y",
    "sub": "x - y",
    "clamp_min": "torch.clamp(x, min=y)",
    "clamp_max": "torch.clamp(x, max=y)",
    "fmod": "torch.fmod(x, y)",
    "remainder": "torch.remainder(x, y)",
    "lerp": "torch.lerp(x, y, z)",
    "log1pexp": "F.softplus(x)",
    "spherical_bessel": "torch.sinc(x)",
    "sign": "torch.sign(x) * x",
    "exp_minus_square": "torch.erf(x)",
    "erfcx": "torch.special.erfcx(x)",
    "copysign": "torch.copysign(x, y) * x",
    "rounded": "torch.fmod(3 * x, y)",
    "maximum": "torch.maximum(x, y)",
    "minimum": "torch.minimum(x, y)",
    "float64": "torch.float_power(x, 2)",
    "logistic_density": "torch.sigmoid(x)",
    "tanh_half": "F.mish(x)",
    "one_minus_square": "torch.asin(x)",
    "normal_density": "torch.special.ndtr(x)",
}


@pytest.mark.parametrize("op", [op.name for op in OPERATIONS.values() if op.derivative and not op.reduction])
def test_a_wrong_rule_does_not_pass(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if clamp_shares_ties and op in ("clamp_min", "clamp_max"):
        pytest.skip("no function uses it from PyTorch 2.14 on")
    text = THROUGH.get(op) or SPELLINGS[op][0]
    function, count = function_of(text)
    xs = sample(count, *DOMAINS.get(op, (-1.4, 1.7)))
    check = lambda: assert_native(function, xs, orders=2, native=NATIVE.get(text))  # noqa: E731
    check()
    rule = OPERATIONS[op]
    assert rule.derivative is not None
    operands = map(expr.tensor, "abcd"[: rule.derivative.__code__.co_argcount - 2])
    contributions = rule.gradients(expr.tensor("g"), expr._node(op, tuple(operands)))
    flat = all(c is None for c in contributions)
    for i, contribution in enumerate(contributions):
        if contribution is None and not flat:
            continue  # the condition of where, the order of a Bessel function

        def wrong(g: Expr, y: Expr, *operands: Expr, i: int = i) -> Gradients:
            given = list(rule.gradients(g, y))
            given[i] = 0.001 * g if flat else 1.001 * (given[i] or g)
            return tuple(given)

        monkeypatch.setitem(OPERATIONS, op, dataclasses.replace(rule, derivative=wrong))
        with pytest.raises(AssertionError):
            check()


WITH_NUMBERS = """
a * x; x + a; a - x; a / x; x / a; x**a; a**x; (x > a) * x; torch.clamp(x, max=a); torch.where(x < a, x, a)
torch.lerp(x, x * x, a); F.softplus(x, a); F.softplus(x, beta=a, threshold=1.0); F.elu(x - 1, a); F.celu(x - 1, a)
F.leaky_relu(x - 1, a); F.hardtanh(x, -a, a); F.softshrink(x, a); F.hardshrink(x, a); F.threshold(x, a, a * 2)
torch.add(x, x * x, alpha=a); torch.xlogy(x, a); torch.fmod(x, a); torch.remainder(x, a); torch.sin(a * x) ** 2 / a
x * a**0.5; x * (1 / a) * abs(-a); x * +a; torch.full_like(x, a) * x; torch.where(x > 1, a * x, a**2); (x // a) * a
torch.hypot(x, torch.full_like(x, a)); torch.maximum(torch.full_like(x, 2 * a), x)
"""


class TestNumbers:
    x = torch.linspace(0.3, 2.0, 7, dtype=torch.float64)

    @pytest.mark.parametrize("text", listed(WITH_NUMBERS))
    @pytest.mark.parametrize("a", [0.5, 1.0, 2.5])
    def test_run_time_numbers_flow_as_numbers(self, text: str, a: float) -> None:
        function = eval(f"lambda x, a: {text}")
        program = traced(function, a=None)
        assert [(s.value, s.varies) for s in program.scalars] == [("a", False)]
        x = self.x.clone().requires_grad_()
        expected = function(x.detach() if "//" in text else x, a)  # it has no derivative in PyTorch
        assert torch.allclose(evaluate(program, self.x, a), expected, rtol=1e-15, atol=1e-15)
        (slope,) = gradients([expected], [x], [torch.ones_like(x)])
        first = program.vjp([True], [True])
        if not first.results:
            assert not slope.any()
            return
        given = [(self.x, torch.ones_like(x))[i] for i in first.arguments]
        assert torch.allclose(evaluate(first.program, *given, *[a] * len(first.scalars)), slope, rtol=1e-14, atol=1e-15)

    @pytest.mark.parametrize("base", [0.0, 1.5, -2.0, INF])
    @pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, -1.0])
    def test_powers_with_run_time_exponents(self, base: float, exponent: float) -> None:
        x = torch.full((2,), base, dtype=torch.float64, requires_grad=True)
        first = traced(lambda x, a: x**a, a=None).vjp([True], [True]).program
        (slope,) = torch.autograd.grad(torch.pow(x, exponent).sum(), x)
        values = {"x": x.detach(), "grad_output": torch.ones(2, dtype=torch.float64)}
        found = evaluate(first, *(values[str(s.value)] for s in first.inputs), exponent)
        assert torch.allclose(found, slope, rtol=1e-15, equal_nan=True)

    def test_what_numbers_make_is_the_same_for_all_elements(self) -> None:
        (y,) = traced(lambda x, a: x * (2 * a + 1) ** 0.5, a=None).outputs
        assert sorted(arg.varies for arg in y.args) == [False, True]

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("x * (torch.ones_like(x) + 2)", 3.0),
            ("x * torch.full_like(x, 3.0) ** 2", 9.0),
            ("x * (2 * torch.tensor(0.5) - 4)", -3.0),
            ("x * -torch.full_like(x, 4.0).abs()", -4.0),
        ],
    )
    def test_constants_fold(self, text: str, value: float) -> None:
        (y,) = traced(*function_of(text)).outputs
        assert y is expr.constant(value) * expr.tensor("x")

    def test_a_tensor_of_a_number_has_the_default_dtype(self) -> None:
        (y,) = traced(lambda x: x * torch.tensor(0.1)).outputs
        assert operations.rounded(float(np.float32(0.1))) in y.args

    def test_truth_values_are_combined_as_PyTorch_combines_them(self) -> None:
        for text in (
            "((x > 0.5) + (x > 1)) * x",
            "((x > 0.5) * (x < 1)) * x",
            "torch.where((x > 0.5) * (x < 1), x, 2 * x)",
            "torch.where(x.where(x > 1, -x) > 0, x, 2 * x)",
            "(x > 1) * 2 + (x > 0.5) * x",
        ):
            function, _ = function_of(text)
            assert torch.equal(evaluate(traced(function), self.x), function(self.x)), text

    def test_a_number_alone_is_no_result(self) -> None:
        for wrong in (lambda x, a: a, lambda x, a: 2 * a + 1, lambda x, a: 1.0):
            with pytest.raises(TraceError, match="f returns a Python number"):
                traced(wrong, a=None)
        program = traced(lambda x, a: torch.full_like(x, 2 * a), a=None)
        assert evaluate(program, self.x, 1.5).tolist() == [3.0] * 7
        assert program.vjp([True], [True]).results == ()


OUTSIDE = torch.ones(2)
OUTSIDE_TENSOR = "meets a tensor from outside the function; pass it as an argument"
LIBRARY = torch.library.Library("mylib", "DEF")
LIBRARY.define("softplus(Tensor x) -> Tensor")
LIBRARY.impl("softplus", lambda x: 3 * x, "CompositeImplicitAutograd")


def foreign_sin(x: Any) -> Any:
    return torch.overrides.handle_torch_function(foreign_sin, (x,), x)


foreign_sin.__name__, foreign_sin.__module__ = "sin", "elsewhere"


@torch.jit.script
def scripted(x: torch.Tensor) -> torch.Tensor:
    return x + 1


class Reversed(torch.autograd.Function):
    """The gradient reversal of domain adaptation."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> torch.Tensor:
        return -grad_output


class Unchanged(Reversed):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x


class Spike(torch.autograd.Function):
    """A step with a surrogate gradient, in the form with setup_context."""

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return (x > 0).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> torch.Tensor:
        return grad_output / (1 + ctx.saved_tensors[0] ** 2)


class Undifferentiable(Reversed):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        y = x**2
        ctx.mark_non_differentiable(y)
        return y


def write_to_a_second_name(x: Any) -> Any:
    y = 2 * x
    z = y.detach()
    y += 1
    return y * z


def write_without_grad(x: Any) -> Any:
    y = 2 * x
    with torch.no_grad():
        y += 1
    return y


def add_in_place(x: Any) -> Any:
    x += 1
    return x


def multiply_in_place(x: Any) -> Any:
    x *= 2
    return x


def assign(x: Any) -> Any:
    x[0] = 1.0
    return x


def loop(x: Any) -> Any:
    while x < 1:
        x = 2 * x
    return x


def helper(x: Any) -> Any:
    return torch.cumsum(x, 0)


def calls_a_helper(x: Any) -> Any:
    return 2 * helper(x)


REDUCES = "combines elements; reduce the result outside, as in op(x).sum()"
PICKS = "picks elements; pass the part as an argument"
VALUE = "needs the value of an element, but the function is traced once for all; write torch.where(condition, a, b)"
NUMBER = "asks for the value of a symbol; use the functions of torch for a tensor"
IN_PLACE = "changes a tensor in place that is an argument or has a second name; give the result a new name"
HAS_BACKWARD = "an autograd.Function, whose backward an elementwise op does not see; apply it outside, or write"
RANDOM = "draws random numbers; draw them outside and pass them as an argument"
CREATES = "makes a tensor; write a Python number, or torch.full_like(x, c)"
DTYPE = (
    "changes or asks for dtype or device, but a declared function keeps the dtype and the device of its tensors; "
    "convert the arguments"
)
WHOLE = "looks at a whole tensor, but a pointwise function sees one element"
UNKNOWN = "is not elementwise, or not known to be; compute it outside and pass the result as an argument"
REFUSED: list[tuple[Function, str]] = [
    # The function, and what the message says after the line.
    (lambda x: x / x.sum(), f"sum {REDUCES}"),
    (lambda x: x - torch.mean(x), f"mean {REDUCES}"),
    (lambda x: torch.softmax(x, 0), f"softmax {REDUCES}"),
    (lambda x: F.softmax(x, dim=0), f"softmax {REDUCES}"),
    (lambda x: x @ x, "matmul combines elements; take the product outside, as in op(x @ w)"),
    (lambda x: F.linear(x, x), "linear combines elements; take the product outside, as in op(x @ w)"),
    (lambda x: x.sort().values, "sort combines elements; compute it outside and pass the result as an argument"),
    (lambda x: x - x.max(), f"max of one tensor {REDUCES}"),
    (lambda x: torch.min(x, 0).values, f"min of one tensor {REDUCES}"),
    (lambda x: F.layer_norm(x, (2,)), f"layer_norm {REDUCES}"),
    (lambda x: x[0], f"x[...] {PICKS}"),
    (lambda x: x.reshape(-1), f"reshape {PICKS}"),
    (lambda x: x.T, f"T {PICKS}"),
    (lambda x: torch.stack([x, x]), f"stack {PICKS}"),
    (lambda x: x if x > 0 else -x, f"a condition {VALUE}"),
    (lambda x: x and -x, f"a condition {VALUE}"),
    (lambda x: max(x, -x), f"a condition {VALUE}"),
    (lambda x: x * torch.any(x > 0), f"any {VALUE}"),
    (loop, f"a condition {VALUE}"),
    (lambda x: x * float(x), f"float(x) or a function of math {NUMBER}"),
    (lambda x: x * int(x), f"int {NUMBER}"),
    (lambda x: math.sin(x), f"float(x) or a function of math {NUMBER}"),
    (lambda x: np.sin(x), f"a function of numpy {NUMBER}"),
    (lambda x: np.sinc(x), f"a function of numpy {NUMBER}"),
    (lambda x: x.item() * x, f"item {NUMBER}"),
    (lambda x: x.numpy(), f"numpy {NUMBER}"),
    (lambda x: x.add_(1), f"add_ {IN_PLACE}"),
    (add_in_place, f"add_ {IN_PLACE}"),
    (multiply_in_place, f"mul_ {IN_PLACE}"),
    (assign, "x[...] = y changes a tensor in place; write torch.where(condition, a, b)"),
    (lambda x: F.silu(x, inplace=True), f"silu {IN_PLACE}"),
    (lambda x: F.relu_(x), f"relu_ {IN_PLACE}"),
    (lambda x: torch.sin(x, out=x), f"sin {IN_PLACE}"),
    (lambda x: x * torch.rand_like(x), f"rand_like {RANDOM}"),
    (lambda x: x * torch.rand(2), f"rand {RANDOM}"),
    (lambda x: F.dropout(x), f"dropout {RANDOM}"),
    (lambda x: torch.nn.Dropout()(x), f"dropout {RANDOM}"),
    (lambda x: x * OUTSIDE, "mul meets a tensor from outside the function; pass it as an argument"),
    (lambda x: OUTSIDE.sin() * x, "sin meets a tensor from outside the function; pass it as an argument"),
    (lambda x: OUTSIDE.item() * x, "item meets a tensor from outside the function; pass it as an argument"),
    (lambda x: x if OUTSIDE > 0 else -x, "gt meets a tensor from outside the function; pass it as an argument"),
    (lambda x: x / OUTSIDE.sum(), "sum meets a tensor from outside the function; pass it as an argument"),
    (lambda x: x + torch.ones(2), f"ones {CREATES}"),
    (lambda x: x * torch.arange(2), f"arange {CREATES}"),
    (lambda x: torch.nn.Linear(2, 2)(x), f"empty {CREATES}"),
    (lambda x: x * torch.tensor([1.0, 2.0]), "tensor makes a tensor of several numbers; pass it as an"),
    (lambda x: x.double(), f"double {DTYPE}"),
    (lambda x: x.to(torch.float32), f"to {DTYPE}"),
    (lambda x: (x > 0).dtype, f"dtype {DTYPE}"),
    (lambda x: x.type(), f"type {DTYPE}"),
    (lambda x: x.type("torch.DoubleTensor"), f"type {DTYPE}"),
    (lambda x: x.bool() * x, f"bool {DTYPE}"),
    (lambda x: torch.exp(x > 0) * x, "exp is given a truth value; convert it to the dtype of a tensor, as in"),
    (lambda x: (x > 0).float().exp() * x, "exp is given a truth value; convert it to the dtype of a tensor, as in"),
    (lambda x: x.cpu(), f"cpu {DTYPE}"),
    (lambda x: torch.zeros_like(x, dtype=torch.float32), "zeros_like is given dtype=torch.float32, but a declared"),
    (lambda x: x.new_zeros(3) + x, f"new_zeros {CREATES}"),
    (lambda x: Reversed.apply(x) * 2, f"mul is given a result of Reversed, {HAS_BACKWARD}"),
    (lambda x: Unchanged.apply(x) * 2, f"view_as is called by {HAS_BACKWARD}"),
    (lambda x: torch.ops.mylib.softplus(x), "softplus is a function of torch.ops.mylib.softplus, not of PyTorch"),
    (foreign_sin, "sin is a function of elsewhere, not of PyTorch"),
    (lambda x: scripted(x) * x, f"mul {OUTSIDE_TENSOR}"),
    (write_to_a_second_name, f"add_ {IN_PLACE}"),
    (write_without_grad, "add_ changes a tensor in place under no_grad, which hides that from autograd; give the"),
    (lambda x: (x > 0).mul_(2.0) * x, "mul_ changes a tensor in place and its dtype; give the result a new name"),
    (lambda x: x / x.shape[0], f"shape {WHOLE}"),
    (lambda x: x / len(x), f"len {WHOLE}"),
    (lambda x: x / x.numel(), f"numel {WHOLE}"),
    (lambda x: torch.special.i0(x), f"i0 {UNKNOWN}"),
    (lambda x: F.prelu(x, x), "prelu has weights along dimension 1"),
    (lambda x: torch.polygamma(-1, x), "polygamma has the order -1; it is 0 or a positive integer"),
    (lambda x: x.masked_fill(x > 0, x), "masked_fill takes a truth value and a number; write torch.where"),
    (lambda x: torch.logical_xor(x, x) * x, "logical_xor is given what is no truth value; compare it, as in x != 0"),
    (lambda x: F.glu(x), f"glu {UNKNOWN}"),
    (lambda x: torch.round(x, decimals=2), "round has no kernel for these arguments (got an unexpected keyword"),
    (lambda x: torch.exp(torch.zeros_like(x)), "exp is given a constant; compute it with the math module"),
    (lambda x: torch.where(x, x, -x), "where has a condition that is no truth value of a tensor; compare one"),
    (lambda x: torch.logical_and(x, x) * x, "logical_and is given what is no truth value; compare it, as in x != 0"),
    (lambda x: (1 & x) * x, "bitwise_and is given what is no truth value; compare it, as in x != 0"),
    (lambda x: ((x > 0) - (x > 1)) * x, "sub subtracts no truth values in PyTorch; write a & ~b"),
    (lambda x: torch.clamp(x), "clamp is given neither min nor max"),
    (lambda x: F.gelu(x, approximate="erf"), "gelu has no approximate 'erf'; it is 'none' or 'tanh'"),
    (lambda x: torch.div(x, 2, rounding_mode="up"), "div has no rounding_mode 'up'; it is None, 'trunc' or 'floor'"),
]  # fmt: skip


class TestRefusals:
    @pytest.mark.parametrize(("function", "problem"), REFUSED, ids=lambda x: x if isinstance(x, str) else "")
    def test_the_message_has_the_line_the_reason_and_a_remedy(self, function: Function, problem: str) -> None:
        with pytest.raises(TraceError) as caught:
            traced(function)
        position, _, message = str(caught.value).partition("\n  ")
        file, line, text = position.split(":", 2)
        code = function.__code__
        assert file == __file__
        assert code.co_firstlineno <= int(line) <= max(n for *_, n in code.co_lines() if n)
        assert text.strip() == linecache.getline(__file__, int(line)).strip()
        assert message.startswith(problem)

    def test_the_line_is_that_of_a_helper_which_has_the_problem(self) -> None:
        with pytest.raises(TraceError, match=r"return torch\.cumsum"):
            traced(calls_a_helper)

    def test_the_line_in_a_cell_or_a_prompt_is_found(self) -> None:
        for file in ("<stdin>", "<ipython-input-7>", "<string>"):
            space: dict[str, Any] = {}
            exec(compile("\ndef f(x):\n    return x.sum()", file, "exec"), space)
            with pytest.raises(TraceError, match=f"^{file}:3: "):
                traced(space["f"])

    @pytest.mark.parametrize(
        ("function", "problem"),
        [
            (lambda x: None, "f returns a NoneType, not an elementwise function"),
            (lambda x: (x, "y"), "f returns a str"),
            (lambda x: {"y": x}, "f returns a dict"),
            (lambda x: (), "f returns no tensor"),
            (lambda x: x > 0, "f returns a truth value, which has no derivative; return torch.where"),
            (lambda x: (x, torch.isnan(x)), "f returns a truth value"),
        ],
    )
    def test_results(self, function: Function, problem: str) -> None:
        with pytest.raises(TraceError, match=problem):
            traced(function)

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("x * torch.sin(a)", "sin is given a Python number; compute it outside"),
            ("torch.where(a > 0, x, -x)", "has a condition that is no truth value of a tensor"),
            ("torch.maximum(x, a)", "maximum takes no number; write torch.full_like"),
            ("torch.hypot(x, a)", "hypot takes no number"),
        ],
    )
    def test_run_time_numbers(self, text: str, problem: str) -> None:
        with pytest.raises(TraceError, match=problem):
            traced(eval(f"lambda x, a: {text}"), a=None)

    def test_a_result_of_a_custom_function(self) -> None:
        for function in (Reversed, Spike):
            with pytest.raises(TraceError, match=f"^f returns a result of {function.__name__}, an autograd.Function"):
                traced(lambda x, function=function: function.apply(x))

    @pytest.mark.parametrize(
        "function",
        [
            lambda x: x if x.dtype == torch.float64 else -x,
            lambda x: x + torch.finfo(x.dtype).eps,
            lambda x: x * (1e-3 if x.dtype in (torch.float16, torch.bfloat16) else 1e-6),
        ],
    )
    def test_what_depends_on_the_dtype(self, function: Function) -> None:
        with pytest.raises(TraceError, match=r"f computes something else in torch\.float.* pass what depends on it as"):
            traced(function)

    def test_results_of_another_dtype(self) -> None:
        for function in (lambda x: torch.where(x > 0, 1.0, 2.0), lambda x: (x > 0) * 2, lambda x: (x > 0).double()):
            with pytest.raises(TraceError, match=r"f returns a tensor of dtype .* made of truth values and numbers"):
                traced(function)

    def test_arguments_without_names(self) -> None:
        from torchad_ext import pointwise

        for wrong in (lambda *xs: xs[0], lambda x, **options: x):
            with pytest.raises(TypeError, match="name every argument"):
                pointwise(wrong)

    def test_an_error_of_the_function_itself_passes_through(self) -> None:
        with pytest.raises(ZeroDivisionError):
            traced(lambda x: x * (1 / 0))
        with pytest.raises(TypeError, match="must be Tensor, not int"):
            traced(lambda x: torch.maximum(x, 2))
