"""PyTorch's elementwise functions as expressions, by name; methods and operators come under the same names."""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable
from typing import Any

import torch

from .._torch_state import clamp_shares_ties
from . import operations as op
from . import refusals
from .expr import Expr, Operand, constant, make
from .refusals import Problem
from .torch_names import is_of_torch, name_of

ALIASES = frozenset("detach data contiguous positive".split())
ARITHMETIC = frozenset(
    "add sub mul div true_divide pow neg abs positive gt ge lt le eq ne rsub __rsub__ __rpow__ __rdiv__ __eq__".split()
)
# Functions of truth values that give integers where no number has a point, and those that give the default dtype.
INTEGRAL = frozenset("add sub mul rsub __rsub__ neg abs positive where Tensor.where maximum minimum sum".split())
PROMOTED = INTEGRAL | frozenset("div true_divide __rdiv__".split())
CHOICES = {"where": 0, "Tensor.where": 1}  # the place of the condition
CONSTANTS = frozenset("zeros_like ones_like full_like new_tensor new_full new_zeros new_ones".split())
OF_NOTHING = frozenset("tensor as_tensor scalar_tensor".split())
OF_TENSORS = frozenset("atan2 arctan2 hypot maximum minimum max min".split())
OF_NUMBERS = frozenset("floordiv rfloordiv floor_divide remainder rmod fmod floor ceil round trunc".split())
# PyTorch rounds the numbers that it gives these to the dtype; those of a product or a quotient it does not.
ROUNDS_NUMBERS = frozenset(
    "lt le gt ge eq ne less less_equal greater greater_equal not_equal clamp clip clamp_min clamp_max hardshrink fmod "
    "remainder rmod add sub subtract rsub pow rpow xlogy".split()
)
# Functions that jump or bend where they compare: half types compute with more bits than PyTorch compares.
STEPS = frozenset(
    "lt le gt ge eq ne less less_equal greater greater_equal not_equal clamp clip clamp_min clamp_max hardshrink fmod "
    "remainder rmod isinf isfinite isclose maximum minimum max min sign sgn floor ceil round trunc fix frac floordiv "
    "rfloordiv floor_divide relu6 hardtanh hardsigmoid hardswish softshrink threshold _threshold heaviside "
    "nan_to_num".split()
)


def number(x: Operand) -> Operand:
    """A truth value as 1 or 0."""
    return op.where(x, 1, 0) if isinstance(x, Expr) and x.is_mask else x


def _binary(name: str) -> Callable[..., Expr]:
    return lambda input, other: make(name, number(input), number(other))


def _unary(name: str) -> Callable[..., Expr]:
    return lambda input: make(name, number(input))


def _masks(*operands: Any) -> bool:
    return all(isinstance(x, Expr) and x.is_mask for x in operands)


def _varies(*operands: Any) -> bool:
    return any(isinstance(x, Expr) and x.varies for x in operands)


def _add(input: Operand, other: Operand, *, alpha: Operand = 1) -> Expr:
    if _masks(input, other) and _varies(input, other):
        return op.or_(input, other)
    return op.add(number(input), op.mul(alpha, number(other)))


def _sub(input: Operand, other: Operand, *, alpha: Operand = 1) -> Expr:
    if _masks(input, other):
        raise Problem("subtracts no truth values in PyTorch; write a & ~b")
    return op.sub(number(input), op.mul(alpha, number(other)))


def _mul(input: Operand, other: Operand) -> Expr:
    if _masks(input, other):
        return op.and_(input, other)
    return op.mul(number(input), number(other))


def _pow(input: Operand, exponent: Operand) -> Expr:
    return op.pow_(number(input), number(exponent))


def _div(input: Operand, other: Operand, *, rounding_mode: str | None = None) -> Expr:
    a, b = number(input), number(other)
    if rounding_mode == "floor":
        return op.floor_divide(a, b)
    if rounding_mode not in (None, "trunc"):
        raise Problem(f"has no rounding_mode {rounding_mode!r}; it is None, 'trunc' or 'floor'")
    return op.trunc(op.div(a, b)) if rounding_mode else op.div(a, b)


def _where(condition: Expr, input: Operand, other: Operand) -> Expr:
    if not (_masks(condition) and _varies(condition)):
        raise Problem("has a condition that is no truth value of a tensor; compare one, as in x != 0")
    if _masks(input, other):
        return op.or_(op.and_(condition, input), op.and_(op.not_(condition), other))
    return op.where(condition, number(input), number(other))


def _clamp(input: Expr, min: Operand | None = None, max: Operand | None = None) -> Expr:
    if min is None and max is None:
        raise Problem("is given neither min nor max")
    if clamp_shares_ties:
        return _clamp_with_shared_ties(input, min, max)
    low = input if min is None else op.clamp_min(input, min)
    clamped = low if max is None else op.clamp_max(low, max)
    if not (isinstance(min, Expr) and isinstance(max, Expr) and min.varies and max.varies):
        return clamped
    # PyTorch gives the slope to the upper of two bounds in the wrong order, and to none of two equal ones.
    is_low = op.and_(min < max, input < min)
    is_high = op.or_(input > max, max < min)
    high = op.where(op.eq(clamped, clamped), max, max + op.detach(clamped))  # nan where input or min is
    flat = op.where(is_low, min, op.where(is_high, high, op.detach(clamped)))
    return op.where(op.and_(input >= min, input <= max), input, flat)


def _clamp_with_shared_ties(input: Expr, min: Operand | None, max: Operand | None) -> Expr:
    """Clamp of PyTorch 2.14: half of the slope for each of two equal tensors, none at a bound that is a number. Equal
    bounds share nothing; where something is nan the slope is that of ``input``, if it is not outside."""
    low = input if min is None else op.maximum(input, min)
    clamped = low if max is None else op.minimum(low, max)
    bounds = [bound for bound in (min, max) if bound is not None]
    if not any(isinstance(bound, Expr) and bound.varies for bound in bounds):
        above = True if min is None else op.gt(input, min)
        below = True if max is None else op.lt(input, max)
        inside = below if above is True else above if below is True else op.and_(above, below)
        return op.where(inside, input, op.detach(clamped))
    if min is None or max is None:
        return clamped
    outside = op.or_(op.lt(input, min), op.gt(input, max))
    is_nan = op.or_(op.ne(input, input), op.or_(op.ne(min, min), op.ne(max, max)))
    of_nan = op.where(outside, op.detach(input), input) + op.detach(op.add(min, max))
    of_equal = op.where(op.lt(input, min), min, op.where(op.gt(input, max), max, input))
    return op.where(is_nan, of_nan, op.where(op.eq(min, max), of_equal, clamped))


def _extremum(name: str) -> Callable[..., Expr]:
    def extremum(input: Expr, other: Operand | None = None, **options: Any) -> Expr:
        if not isinstance(other, Expr) or options:
            raise Problem(f"of one tensor {refusals.REDUCTION}")
        return make(name, number(input), number(other))

    return extremum


def _logical(name: str) -> Callable[..., Expr]:
    def logical(*operands: Any) -> Expr:
        if not _masks(*operands):
            raise Problem(refusals.NO_MASK)
        return make(name, *operands)

    return logical


def _tensor(data: Any, dtype: Any = None) -> Expr:
    """A constant, rounded to the default dtype where no other is given."""
    if isinstance(data, Expr):
        raise Problem("is given a symbol; write the number itself")
    if isinstance(data, (list, tuple)):
        raise Problem("makes a tensor of several numbers; pass it as an argument")
    default = str(torch.get_default_dtype()).removeprefix("torch.")
    return constant(data) if dtype else op.rounded(make(default, data))


def _new_full(input: Expr, size: Any, fill_value: Operand) -> Expr:
    if not isinstance(size, (tuple, list)) or size:
        raise Problem(refusals.CREATES)
    return fill_value if isinstance(fill_value, Expr) else constant(fill_value)


def _elu(input: Expr, alpha: Operand = 1.0, scale: Operand = 1.0, input_scale: Operand = 1.0) -> Expr:
    # The slope at 0 is that from below, the curvature that from above.
    negative = op.mul(alpha, op.expm1(op.mul(input_scale, _below(input, 0))))
    at_zero = op.mul(op.mul(alpha, input_scale), input)
    return op.mul(scale, op.where(op.eq(input, 0), at_zero, op.where(input >= 0, input, negative)))


def _below(x: Expr, bound: Operand) -> Expr:
    """x for a branch below the bound: elsewhere 0, where an overflow would reach the derivative as 0 times infinity."""
    return op.where(op.ge(x, bound), 0, x)


_ALPHA, _SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946  # Klambauer et al. 2017


def _celu(input: Expr, alpha: Operand = 1.0) -> Expr:
    return op.where(input >= 0, input, op.mul(alpha, op.expm1(op.div(_below(input, 0), alpha))))


def _gelu(input: Expr, approximate: str = "none") -> Expr:
    if approximate == "tanh":  # (1 + tanh u) / 2 = sigmoid(2 u)
        slope = 2 * math.sqrt(2 / math.pi)
        return input * op.sigmoid(input * (slope + 0.044715 * slope * input**2))
    if approximate != "none":
        raise Problem(f"has no approximate {approximate!r}; it is 'none' or 'tanh'")
    return input * op.ndtr(input)


def _softplus(input: Expr, beta: Operand = 1, threshold: Operand = 20) -> Expr:
    scaled = op.mul(beta, input)
    return op.where(op.gt(scaled, threshold), input, op.div(op.log1pexp(scaled), beta))


def _leaky_relu(input: Expr, negative_slope: Operand = 0.01) -> Expr:
    return op.where(input > 0, input, op.mul(negative_slope, input))


def _hardtanh(input: Expr, min_val: Operand = -1.0, max_val: Operand = 1.0) -> Expr:
    """Its slope is 0 at the bounds, where that of clamp is 1."""
    inside = op.and_(op.gt(input, min_val), op.lt(input, max_val))
    return op.where(inside, input, op.detach(_clamp(input, min_val, max_val)))


def _hardsigmoid(input: Expr) -> Expr:
    return _hardtanh((input + 3) / 6, 0.0, 1.0)


def _hardswish(input: Expr) -> Expr:
    inside = op.where(input <= -3, 0, _below(input, 3))
    return op.where(input <= -3, 0 * input, op.where(input < 3, inside * (inside + 3) / 6, input))


def _softshrink(input: Expr, lambd: Operand = 0.5) -> Expr:
    above, below = op.gt(input, lambd), op.lt(input, op.mul(-1, lambd))
    return op.where(above, input - lambd, op.where(below, input + lambd, 0 * input))


def _hardshrink(input: Expr, lambd: Operand = 0.5) -> Expr:
    outside = op.or_(op.lt(input, op.mul(-1, lambd)), op.gt(input, lambd))
    return op.where(outside, input, op.detach(op.where(op.eq(input, input), 0, input)))  # a nan has no slope


def _logaddexp(input: Expr, other: Expr) -> Expr:
    for a, b in ((input, other), (other, input)):
        if isinstance(b, Expr) and b.is_constant and b.number == 0:
            return op.log1pexp(a)
    return op.logaddexp(input, other)


def _sinc(input: Expr) -> Expr:
    return op.spherical_bessel(0, input)


def _xlogy(input: Expr, other: Expr) -> Expr:
    # 0 log y is 0 for every y but nan; the slope in x is log y where that is a number.
    singular = op.or_(op.le(other, 0), op.eq(other, math.inf))
    return op.mul(input, op.log(op.where(op.and_(op.eq(input, 0), singular), 1, other)))


def _xlog1py(input: Operand, other: Expr) -> Expr:
    singular = op.or_(op.le(other, -1), op.eq(other, math.inf))
    return op.mul(input, op.log1p(op.where(op.and_(op.eq(input, 0), singular), 0, other)))


def _polygamma(n: Any, input: Any) -> Expr:
    if isinstance(n, Expr):  # the method
        n, input = input, n
    if not isinstance(n, int) or n < 0:
        raise Problem(f"has the order {n!r}; it is 0 or a positive integer")
    return op.polygamma(n, input)


def _logit(input: Expr, eps: float | None = None) -> Expr:
    if eps is None:
        return op.logit(input)
    low, high = eps, op.sub(1, eps)
    return op.logit(op.where(op.lt(input, low), low, op.where(op.gt(input, high), high, input)))


def _xor(input: Any, other: Any) -> Expr:
    if not _masks(input, other):
        raise Problem(refusals.NO_MASK)
    return op.ne(input, other)


def _masked_fill(input: Operand, mask: Expr, value: Operand) -> Expr:
    if not _masks(mask) or _varies(value):
        raise Problem("takes a truth value and a number; write torch.where(condition, value, x)")
    return op.where(mask, value, number(input))


def _isclose(input: Expr, other: Expr, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Expr:
    distance = op.abs_(input - other)
    near = op.and_(distance < math.inf, op.le(distance, op.add(atol, op.abs_(op.mul(rtol, other)))))
    close = op.or_(op.eq(input, other), near)
    return op.or_(close, op.and_(op.ne(input, input), op.ne(other, other))) if equal_nan else close


def _nan_to_num(
    input: Expr, nan: float | None = None, posinf: float | None = None, neginf: float | None = None
) -> Expr:
    high = op.finite(math.inf) if posinf is None else posinf
    low = op.finite(-math.inf) if neginf is None else neginf
    number = op.where(op.eq(input, math.inf), high, op.where(op.eq(input, -math.inf), low, input))
    return op.where(op.ne(input, input), nan or 0, number)


def _heaviside(input: Expr, values: Operand) -> Expr:
    return op.detach(op.where(op.eq(input, 0), values, op.where(input > 0, 1, 0)))


def _floor_divide(input: Operand, other: Operand) -> Expr:
    return _div(input, other, rounding_mode="floor")


_remainder = _binary("remainder")
_MIRRORED: dict[str, Callable[..., Expr]] = {
    "rsub": _sub, "rdiv": _div, "rpow": _pow, "rmod": _remainder, "rfloordiv": _floor_divide,
}  # fmt: skip


def _mirrored(function: Callable[..., Expr]) -> Callable[..., Expr]:
    return lambda input, other, **options: function(other, input, **options)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    # PyTorch's names, arguments and defaults. Methods and operators come under the same names.
    **{
        name: _unary(name)
        for name in "neg abs sign sqrt rsqrt reciprocal exp expm1 exp2 log log1p log2 log10 sin cos tan asin acos atan "
        "sinh cosh tanh asinh acosh atanh sigmoid erf erfc erfinv ndtr log_ndtr lgamma entr softsign tanhshrink floor "
        "ceil round trunc detach".split()
    },
    **{name: _binary(name) for name in "atan2 hypot fmod remainder logaddexp2 copysign lt le gt ge eq ne".split()},
    **{name: _mirrored(function) for name, function in _MIRRORED.items()},
    **{name: _logical("and") for name in ("and", "logical_and", "bitwise_and")},
    **{name: _logical("or") for name in ("or", "logical_or", "bitwise_or")},
    **{name: _logical("not") for name in ("invert", "logical_not", "bitwise_not")},
    **dict.fromkeys(("xor", "logical_xor", "bitwise_xor"), _xor),
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "pow": _pow,
    "div": _div,
    "floordiv": _floor_divide,
    "floor_divide": _floor_divide,
    "float_power": _pow,
    "square": lambda input: input**2,
    "where": _where,
    "Tensor.where": lambda input, condition, other: _where(condition, input, other),
    "clamp": _clamp,
    "clamp_min": lambda input, min: _clamp(input, min=min),
    "clamp_max": lambda input, max: _clamp(input, max=max),
    "maximum": _extremum("maximum"),
    "minimum": _extremum("minimum"),
    "max": _extremum("maximum"),
    "min": _extremum("minimum"),
    "isnan": lambda input: op.ne(input, input),
    "isfinite": lambda input: op.lt(op.abs_(input), math.inf),
    "isinf": lambda input: op.eq(op.abs_(input), math.inf),
    "addcmul": lambda input, tensor1, tensor2, *, value=1: input + op.mul(value, tensor1) * tensor2,
    "addcdiv": lambda input, tensor1, tensor2, *, value=1: input + op.mul(value, tensor1) / tensor2,
    "lerp": lambda input, end, weight: op.lerp(input, end, weight),
    "logaddexp": _logaddexp,
    "sinc": _sinc,
    "xlogy": _xlogy,
    "xlog1py": _xlog1py,
    "logit": _logit,
    "digamma": lambda input: op.polygamma(0, input),
    "polygamma": _polygamma,
    "erfcx": lambda input: op.erfcx(0, input),
    "heaviside": _heaviside,
    "signbit": lambda input: op.lt(op.copysign(1, input), 0),
    "masked_fill": _masked_fill,
    "nan_to_num": _nan_to_num,
    "isclose": _isclose,
    "deg2rad": lambda input: input * (math.pi / 180),
    "rad2deg": lambda input: input * (180 / math.pi),
    "frac": lambda input: input - op.trunc(input),
    "zeros_like": lambda input: constant(0),
    "ones_like": lambda input: constant(1),
    "full_like": lambda input, fill_value: fill_value if isinstance(fill_value, Expr) else constant(fill_value),
    "new_tensor": lambda input, data: constant(float(data)),
    "new_full": _new_full,
    "new_zeros": lambda input, size: _new_full(input, size, 0),
    "new_ones": lambda input, size: _new_full(input, size, 1),
    "tensor": _tensor,
    "as_tensor": _tensor,
    "scalar_tensor": _tensor,
    "clone": lambda input: input,
    "contiguous": lambda input: input,
    "data": lambda input: op.detach(input),
    "positive": lambda input: input,
    "relu": lambda input: op.where(input <= 0, 0, input),
    "relu6": lambda input: _hardtanh(input, 0.0, 6.0),
    "elu": _elu,
    "selu": lambda input: _elu(input, _ALPHA, _SCALE),
    "celu": _celu,
    "leaky_relu": _leaky_relu,
    "silu": lambda input: input * op.sigmoid(input),
    "mish": lambda input: input * op.tanh_half(2 * op.log1pexp(input)),
    "gelu": _gelu,
    "softplus": _softplus,
    "log_sigmoid": lambda input: -op.log1pexp(-input),
    "hardtanh": _hardtanh,
    "hardsigmoid": _hardsigmoid,
    "hardswish": _hardswish,
    "softshrink": _softshrink,
    "hardshrink": _hardshrink,
    "threshold": lambda input, threshold, value: op.where(op.le(input, threshold), value, input),
}
for _alias, _of in {
    "subtract": "sub", "multiply": "mul", "divide": "div", "true_divide": "div", "negative": "neg", "absolute": "abs",
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arctan2": "atan2", "arcsinh": "asinh", "arccosh": "acosh",
    "arctanh": "atanh", "expit": "sigmoid", "greater": "gt", "greater_equal": "ge", "less": "lt", "less_equal": "le",
    "not_equal": "ne", "sgn": "sign", "fix": "trunc", "clip": "clamp", "gammaln": "lgamma", "psi": "digamma",
    "_threshold": "threshold",
}.items():  # fmt: skip
    FUNCTIONS[_alias] = FUNCTIONS[_of]


def signature_of(func: Any) -> inspect.Signature | None:
    """The signature of a function of PyTorch that is written in C++; None of another."""
    if isinstance(func, types.FunctionType) or not isinstance(getattr(func, "__name__", None), str):
        return None
    handler = FUNCTIONS.get(name_of(func)) if is_of_torch(func) else None
    if handler is None:
        return None
    signature = inspect.signature(handler)
    parameters = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return signature.replace(parameters=parameters, return_annotation=signature.empty)
