"""The operations on numbers, a record each: derivative, value for constants, value in plain PyTorch, C++, LaTeX.

This page is the table of derivatives. Each derivative is a function of the cotangent g of y = f(x), of y and of the
arguments; at kinks and singular points it is PyTorch's own.
"""

# Derivatives name operations that stand further down.
# mypy: disable-error-code="has-type"

from __future__ import annotations

import math
import operator
import struct
from typing import Any

import torch
import torch.nn.functional as F

from . import simplify, special_functions
from .expr import OPERATIONS, Expr, Gradients, Operand, Operation


def _define(name: str, derivative: Any = None, **fields: Any) -> Operation:
    OPERATIONS[name] = Operation(name, derivative, **fields)
    return OPERATIONS[name]


def _slope_of_power(g: Expr, y: Expr, a: Expr, b: Expr) -> Gradients:
    """b a^(b-1) and a^b log a; the slope of a^0 is 0 also where a is 0 or nan, that of 0^b in b for b >= 0."""
    if b.is_constant:
        return g * (b * pow_(a, b - 1)), None
    # 0 times a power that overflows is nan; an exponent that varies has a slope of its own where it is 0.
    is_flat = and_(eq(b, 0), not_(reciprocal(abs_(a)) < math.inf)) if b.varies else eq(b, 0)
    slope = g * (b * pow_(where(is_flat, 1, a), b - 1))
    if a.is_constant and a.value:
        return slope, g * (y * log(a))
    # log(1) = 0 in place of log(0), which would make the next derivatives nan.
    return slope, g * (y * log(where(and_(eq(a, 0), b >= 0), 1, a)))


def _slope_of_rsqrt(g: Expr, y: Expr, x: Expr) -> Expr:
    """-g y³ / 2; of a row, whose deviation may be large, in an order that does not underflow before the result does."""
    return -0.5 * (g * y * y * y) if x.is_row else -0.5 * (g * y**3)


def _slope_of_atan2(g: Expr, y: Expr, a: Expr, b: Expr) -> Gradients:
    """No slope at the origin."""
    square = a * a + b * b
    square = where(eq(square, 0), math.inf, square)
    return g * (b / square), -(g * (a / square))


def _slope_of_maximum(g: Expr, y: Expr, a: Expr, b: Expr) -> Gradients:
    return where(a < b, 0, where(eq(a, b), g / 2, g)), where(b < a, 0, where(eq(a, b), g / 2, g))


def _slope_of_minimum(g: Expr, y: Expr, a: Expr, b: Expr) -> Gradients:
    return where(a > b, 0, where(eq(a, b), g / 2, g)), where(b > a, 0, where(eq(a, b), g / 2, g))


def _mills(x: Expr) -> Expr:
    """The density of the normal distribution over the distribution, of which neither underflows."""
    left, right = where(x < 0, x, 0), where(x < 0, 0, x)
    tail = math.sqrt(2 / math.pi) / erfcx(0, -math.sqrt(0.5) * left)
    body = math.sqrt(2 / math.pi) * exp_minus_square(math.sqrt(0.5) * right) / erfc(-math.sqrt(0.5) * right)
    return where(x < 0, tail, body)


def _slope_of_row_extremum(g: Expr, y: Expr, x: Expr) -> Expr:
    """Equal parts for all elements that are the largest."""
    return where(eq(x, y), g, 0) / row_sum(where(eq(x, y), 1, 0))


def _flat(g: Expr, y: Expr, x: Expr) -> None:
    """No slope."""


def _to_float32(x: float) -> float:
    return float(struct.unpack("f", struct.pack("f", x))[0])


def _to_float16(x: float) -> float:
    return float(struct.unpack("e", struct.pack("e", _to_float32(x)))[0])  # by way of float32, as PyTorch does


def _to_bfloat16(x: float) -> float:
    (bits,) = struct.unpack("I", struct.pack("f", x))
    return float(struct.unpack("f", struct.pack("I", (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000))[0])


def _conversion(name: str, fold: Any, cpp: str, derivative: Any = None) -> Operation:
    """Rounding to a dtype."""
    dtype = getattr(torch, name)
    return _define(
        name,
        derivative,
        fold=fold,
        reference=lambda x: x.to(dtype).to(x.dtype),
        cpp=cpp,
        cpp_double=cpp,
        latex=rf"\left(%s\right)_{{\mathrm{{{name}}}}}",
    )


# Arithmetic
neg = _define("neg", lambda g, y, x: -g, simplify=simplify.neg, fold=operator.neg, cpp="-", is_analytic=True)
add = _define(
    "add",
    lambda g, y, a, b: (g, g),
    simplify=simplify.add,
    fold=operator.add,
    reference=operator.add,
    cpp="+",
    commutative=True,
    is_analytic=True,
)
sub = _define(
    "sub",
    lambda g, y, a, b: (g, -g),
    simplify=simplify.sub,
    fold=operator.sub,
    reference=operator.sub,
    cpp="-",
    is_analytic=True,
)
mul = _define(
    "mul",
    lambda g, y, a, b: (g * b, g * a),
    simplify=simplify.mul,
    fold=operator.mul,
    reference=operator.mul,
    cpp="*",
    commutative=True,
    is_analytic=True,
)
div = _define(
    "div",
    lambda g, y, a, b: (g / b, -(g * (y / b))),
    simplify=simplify.div,
    fold=operator.truediv,
    reference=operator.truediv,
    cpp="/",
    is_analytic=True,
)
reciprocal = _define(
    "reciprocal", lambda g, y, x: -(g * y * y), fold=lambda x: 1 / x, latex=r"\frac{1}{%s}", is_analytic=True
)
lerp = _define("lerp", lambda g, y, a, b, w: (g * (1 - w), g * w, g * (b - a)), is_analytic=True)

# Powers, exponentials, logarithms
pow_ = _define("pow", _slope_of_power, simplify=simplify.pow_, fold=operator.pow, cpp_double="std::pow")
sqrt = _define(
    "sqrt", lambda g, y, x: g / (2 * y), fold=math.sqrt, cpp_double="std::sqrt", latex=r"\sqrt{%s}", is_analytic=True
)
rsqrt = _define("rsqrt", _slope_of_rsqrt, latex=r"\frac{1}{\sqrt{%s}}", is_analytic=True)
exp = _define("exp", lambda g, y, x: g * y, fold=math.exp, latex="e^{%s}", is_analytic=True)
exp2 = _define("exp2", lambda g, y, x: g * (y * math.log(2)), latex="2^{%s}")
expm1 = _define("expm1", lambda g, y, x: g * exp(x), is_analytic=True)
log = _define("log", lambda g, y, x: g / x, fold=math.log, cpp_double="std::log", latex=r"\log", is_analytic=True)
log1p = _define("log1p", lambda g, y, x: g / (x + 1), is_analytic=True)
log2 = _define("log2", lambda g, y, x: g / (x * math.log(2)), latex=r"\log_{2}", is_analytic=True)
log10 = _define("log10", lambda g, y, x: g / (x * math.log(10)), latex=r"\log_{10}", is_analytic=True)
logaddexp = _define("logaddexp", lambda g, y, a, b: (g * sigmoid(a - b), g * sigmoid(b - a)), commutative=True)
logaddexp2 = _define(
    "logaddexp2",
    lambda g, y, a, b: (g * sigmoid(math.log(2) * (a - b)), g * sigmoid(math.log(2) * (b - a))),
    commutative=True,
)
entr = _define("entr", lambda g, y, x: -(g * (log(x) + 1)), reference=torch.special.entr)

# The logistic function and tanh. 1 - y and 1 - y^2 would lose the digits of a y next to 1.
sigmoid = _define("sigmoid", lambda g, y, x: g * logistic_density(x), latex=r"\sigma", is_analytic=True)
logistic_density = _define(
    "logistic_density",
    lambda g, y, x: -(g * (y * tanh_half(x))),
    reference=special_functions.logistic_density,
    latex=r"\sigma'",
    is_analytic=True,
)
tanh_half = _define(
    "tanh_half", lambda g, y, x: 2 * (g * logistic_density(x)), reference=lambda x: torch.tanh(x / 2), is_analytic=True
)
tanh = _define(
    "tanh", lambda g, y, x: 4 * (g * logistic_density(2 * x)), fold=math.tanh, latex=r"\tanh", is_analytic=True
)
tanhshrink = _define("tanhshrink", lambda g, y, x: g * tanh(x) ** 2, reference=F.tanhshrink)
log1pexp = _define(
    "log1pexp",
    lambda g, y, x: g * sigmoid(x),
    reference=lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    latex=r"\log\left(1 + e^{%s}\right)",
)
logit = _define("logit", lambda g, y, x: where(and_(x >= 0, x <= 1), g / (x * (1 - x)), math.nan))
softsign = _define("softsign", lambda g, y, x: g * reciprocal(abs_(x) + 1) ** 2, reference=F.softsign)

# Trigonometric and hyperbolic functions
sin = _define("sin", lambda g, y, x: g * cos(x), fold=math.sin, latex=r"\sin", is_analytic=True)
cos = _define("cos", lambda g, y, x: -(g * sin(x)), fold=math.cos, latex=r"\cos", is_analytic=True)
tan = _define("tan", lambda g, y, x: g * (1 + y * y), latex=r"\tan", is_analytic=True)
one_minus_square = _define(
    "one_minus_square", lambda g, y, x: -2 * (g * x), reference=lambda x: (1 - x) * (1 + x), is_analytic=True
)
asin = _define("asin", lambda g, y, x: g * rsqrt(one_minus_square(x)), latex=r"\arcsin", is_analytic=True)
acos = _define("acos", lambda g, y, x: -(g * rsqrt(one_minus_square(x))), latex=r"\arccos", is_analytic=True)
atan = _define("atan", lambda g, y, x: g / (x * x + 1), latex=r"\arctan", is_analytic=True)
atan2 = _define("atan2", _slope_of_atan2)
sinh = _define("sinh", lambda g, y, x: g * cosh(x), latex=r"\sinh", is_analytic=True)
cosh = _define("cosh", lambda g, y, x: g * sinh(x), latex=r"\cosh", is_analytic=True)
asinh = _define("asinh", lambda g, y, x: g * rsqrt(x * x + 1), is_analytic=True)
acosh = _define("acosh", lambda g, y, x: g * rsqrt(0 - one_minus_square(x)))
atanh = _define("atanh", lambda g, y, x: g / one_minus_square(x), is_analytic=True)
spherical_bessel = _define(
    "spherical_bessel",
    lambda g, y, n, x: (None, -(math.pi**2 * (g * (x * spherical_bessel(n + 1, x))))),
    reference=special_functions.spherical_bessel,
    is_family=True,
)

# The normal distribution and the gamma function
exp_minus_square = _define(
    "exp_minus_square",
    lambda g, y, x: -2 * (g * (x * y)),
    reference=lambda x: torch.exp(-x * x),
    latex=r"e^{-\left(%s\right)^{2}}",
)
erf = _define("erf", lambda g, y, x: g * (2 / math.sqrt(math.pi) * exp_minus_square(x)))
erfc = _define("erfc", lambda g, y, x: -(g * (2 / math.sqrt(math.pi) * exp_minus_square(x))))
erfinv = _define("erfinv", lambda g, y, x: g * (math.sqrt(math.pi) / 2 * exp(y * y)), latex=r"\operatorname{erf}^{-1}")
erfcx = _define(
    "erfcx", lambda g, y, n, x: (None, -(g * erfcx(n + 1, x))), reference=special_functions.erfcx, is_family=True
)
ndtr = _define(
    "ndtr",
    lambda g, y, x: g * normal_density(x),
    reference=lambda x: torch.erfc(x * -math.sqrt(0.5)) / 2,
    latex=r"\Phi",
)
normal_density = _define(
    "normal_density",
    lambda g, y, x: -(g * (x * y)),
    reference=lambda x: torch.exp(-x * x / 2) / math.sqrt(2 * math.pi),
    latex=r"\varphi",
)
log_ndtr = _define("log_ndtr", lambda g, y, x: g * _mills(x), reference=torch.special.log_ndtr, latex=r"\log\Phi")
lgamma = _define("lgamma", lambda g, y, x: g * polygamma(0, x), latex=r"\log\Gamma")
polygamma = _define(
    "polygamma",
    lambda g, y, n, x: (None, g * polygamma(n + 1, x)),
    reference=special_functions.polygamma,
    is_family=True,
)

# Absolute values, bounds, remainders
abs_ = _define(
    "abs",
    lambda g, y, x: g * sign(x),
    simplify=simplify.abs_,
    fold=abs,
    cpp_double="std::abs",
    latex=r"\left|%s\right|",
)
sign = _define("sign", _flat)
copysign = _define("copysign", lambda g, y, a, b: (g * (sign(a) * copysign(1, b)), None))
hypot = _define("hypot", lambda g, y, a, b: (g * (a / y), g * (b / y)), commutative=True)
# The larger and the smaller of zeros of both signs are either, as in PyTorch.
maximum = _define("maximum", _slope_of_maximum, simplify=simplify.extremum, latex=r"\max", commutative=True)
minimum = _define("minimum", _slope_of_minimum, simplify=simplify.extremum, latex=r"\min", commutative=True)
clamp_min = _define(
    "clamp_min",
    lambda g, y, x, low: (where(x >= low, g, 0), where(x < low, g, 0)),
    cpp="maximum",
    latex=r"\max",
)
clamp_max = _define(
    "clamp_max",
    lambda g, y, x, high: (where(x <= high, g, 0), where(x > high, g, 0)),
    cpp="minimum",
    latex=r"\min",
)
floor = _define("floor", _flat, latex=r"\left\lfloor %s\right\rfloor")
ceil = _define("ceil", _flat, latex=r"\left\lceil %s\right\rceil")
round_ = _define("round", _flat)
trunc = _define("trunc", _flat)
fmod = _define("fmod", lambda g, y, a, b: (g, -(g * trunc(a / b))))
remainder = _define("remainder", lambda g, y, a, b: (g, -(g * floor_divide(a, b))))

# Choices and truth values
where = _define(
    "where",
    lambda g, y, condition, a, b: (None, where(condition, g, 0), where(condition, 0, g)),
    simplify=simplify.where,
)
eq = _define("eq", cpp="==", latex="=", commutative=True, is_mask=True)
ne = _define("ne", cpp="!=", latex=r"\ne", commutative=True, is_mask=True)
lt = _define("lt", cpp="<", latex="<", is_mask=True)
le = _define("le", cpp="<=", latex=r"\le", is_mask=True)
gt = _define("gt", cpp=">", latex=">", is_mask=True)
ge = _define("ge", cpp=">=", latex=r"\ge", is_mask=True)
and_ = _define("and", reference=torch.logical_and, cpp="&", latex=r"\wedge", commutative=True, is_mask=True)
or_ = _define("or", reference=torch.logical_or, cpp="|", latex=r"\vee", commutative=True, is_mask=True)
not_ = _define("not", simplify=simplify.not_, reference=torch.logical_not, cpp="!", is_mask=True)

# Reductions of a row
row_sum = _define(
    "row_sum",
    lambda g, y, x: g,
    simplify=simplify.row_sum,
    reference=lambda x: x.sum(-1, keepdim=True),
    latex=r"\sum_{j} %s",
    reduction="+",
)
row_amax = _define(
    "row_amax",
    lambda g, y, x: _slope_of_row_extremum(g, y, x),
    simplify=simplify.row_extremum,
    reference=lambda x: x.amax(-1, keepdim=True),
    latex=r"\max_{j} %s",
    reduction=">",
)
row_amin = _define(
    "row_amin",
    lambda g, y, x: _slope_of_row_extremum(g, y, x),
    simplify=simplify.row_extremum,
    reference=lambda x: x.amin(-1, keepdim=True),
    latex=r"\min_{j} %s",
    reduction="<",
)
# The Euclidean norm. Its slope x / |x| has no part that leaves the range of a dtype, as |x|^3 would; at 0 it is 0.
row_norm = _define(
    "row_norm",
    lambda g, y, x: g * (x * reciprocal(where(eq(y, 0), math.inf, y))),
    reference=special_functions.row_norm,
    latex=r"\left\|%s\right\|",
    reduction="norm",
)

# Dtypes and gradients
detach = _define("detach", _flat, latex=r"\left\lbrack %s\right\rbrack")
# To the dtype of the tensors, as a result of PyTorch's is.
rounded = _define("rounded", lambda g, y, x: g, simplify=simplify.rounded, reference=lambda x: x, is_analytic=True)
# The largest number of that dtype, with the sign of an infinite constant.
finite = _define("finite", reference=special_functions.largest)
float16 = _conversion("float16", _to_float16, "rounded<Half>")
bfloat16 = _conversion("bfloat16", _to_bfloat16, "rounded<BFloat16>")
float32 = _conversion("float32", _to_float32, "rounded<float>")
float64 = _conversion("float64", float, "", lambda g, y, x: g)


def floor_divide(a: Operand, b: Operand) -> Expr:
    """The floor of the exact quotient, as PyTorch has it; a / b may round up to the next integer. It has no slope."""
    rest = fmod(a, b)
    quotient = div(sub(a, rest), b)
    towards_zero = lt(where(lt(b, 0), neg(rest), rest), 0)
    return detach(where(eq(b, 0), div(a, b), round_(where(towards_zero, quotient - 1, quotient))))
