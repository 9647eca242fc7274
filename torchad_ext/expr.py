"""Scalar expressions: what an elementwise function computes for one element, and how it is differentiated.

An expression is a node of a directed acyclic graph. Equal nodes are one object, so that a common subexpression stands
once, whoever wrote it. ``RULES`` holds the derivatives, a line for each function. ``Program`` is a function of several
expressions, closed under ``vjp`` (reverse mode over the graph) and ``jvp`` (forward mode, by the same rules).

Simplifications never change a value, with one exception: a sum of the two halves of a ``where`` becomes that ``where``,
which can turn a zero of one sign into that of the other. There is no ``x - x = 0``, no ``x / x = 1``, no ``0 x = 0``
(x may be infinite or nan), no ``x + 0 = x`` (x may be -0), and sums and products are not regrouped.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import struct
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

Operand = Union["Expr", float]
Gradients = tuple["Expr | None", ...]

FLOATS = ("float16", "bfloat16", "float32", "float64")  # operations that round to a dtype
COMPARISONS = frozenset(("eq", "ne", "lt", "le", "gt", "ge"))
LOGICAL = frozenset(("and", "or", "not"))
# Of zeros of both signs the larger and the smaller are either, as in PyTorch.
COMMUTATIVE = frozenset(
    ("add", "mul", "maximum", "minimum", "hypot", "logaddexp", "logaddexp2", "eq", "ne", "and", "or")
)
# Holomorphic functions whose derivatives are made of these; that of acosh has another branch.
ANALYTIC = frozenset(
    "neg add sub mul div reciprocal sqrt rsqrt exp expm1 log log1p log2 log10 sigmoid logistic_density tanh_half sin "
    "cos tan one_minus_square asin acos atan sinh cosh tanh asinh atanh lerp rounded".split()
)
FAMILIES = frozenset(("spherical_bessel", "polygamma", "erfcx"))  # their first operand, a constant, is the order


class Expr:
    """A node: an operation on other nodes, a constant, or a symbol.

    Two nodes are the same object if and only if they are equal, so ``is`` and ``==`` agree and a node is a good key.

    Attributes:
        op: the operation, ``"constant"``, ``"tensor"`` (a symbol, one value an element) or ``"scalar"`` (a symbol, one
            value for all elements).
        args: its operands.
        value: the number of a constant, the name of a symbol.
        varies: can it differ from element to element?
    """

    __slots__ = ("__weakref__", "_order", "args", "op", "value", "varies")

    op: str
    args: tuple[Expr, ...]
    value: float | str | None
    varies: bool
    _order: tuple[Any, ...]

    @property
    def is_mask(self) -> bool:
        """Is it a truth value?"""
        return self.op in COMPARISONS or self.op in LOGICAL

    @property
    def is_constant(self) -> bool:
        return self.op == "constant"

    @property
    def number(self) -> float:
        """The value of a constant."""
        assert isinstance(self.value, float)
        return self.value

    def __repr__(self) -> str:
        return self._text(depth=6)

    def _text(self, depth: int) -> str:
        """As far as depth: a small graph can be a huge tree."""
        if not self.args:
            return str(self.value)
        return f"{self.op}({', '.join(x._text(depth - 1) for x in self.args) if depth else '...'})"

    def __reduce__(self) -> Any:
        return _node, (self.op, self.args, self.value)

    def __add__(self, other: Operand) -> Expr:
        return make("add", self, other)

    def __radd__(self, other: float) -> Expr:
        return make("add", other, self)

    def __sub__(self, other: Operand) -> Expr:
        return make("sub", self, other)

    def __rsub__(self, other: float) -> Expr:
        return make("sub", other, self)

    def __mul__(self, other: Operand) -> Expr:
        return make("mul", self, other)

    def __rmul__(self, other: float) -> Expr:
        return make("mul", other, self)

    def __truediv__(self, other: Operand) -> Expr:
        return make("div", self, other)

    def __rtruediv__(self, other: float) -> Expr:
        return make("div", other, self)

    def __pow__(self, other: Operand) -> Expr:
        return make("pow", self, other)

    def __neg__(self) -> Expr:
        return make("neg", self)

    def __lt__(self, other: Operand) -> Expr:
        return make("lt", self, other)

    def __le__(self, other: Operand) -> Expr:
        return make("le", self, other)

    def __gt__(self, other: Operand) -> Expr:
        return make("gt", self, other)

    def __ge__(self, other: Operand) -> Expr:
        return make("ge", self, other)

    def __and__(self, other: Expr) -> Expr:
        return make("and", self, other)


_nodes: weakref.WeakValueDictionary[tuple[Any, ...], Expr] = weakref.WeakValueDictionary()
_interning = threading.Lock()


def _node(op: str, args: tuple[Expr, ...], value: float | str | None = None) -> Expr:
    """The one node with these parts."""
    # Zeros of both signs are equal, and so would be 1.0 and True: the text tells them apart.
    key = (op, repr(value), *args)
    with _interning:
        found = _nodes.get(key)
        if found is None:
            found = Expr()
            found.op, found.args, found.value = op, args, value
            found.varies = op == "tensor" or any(arg.varies for arg in args)
            text = "\0".join([op, repr(value), *(arg._order[-1] for arg in args)])
            digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
            depth = 1 + max((arg._order[1] for arg in args), default=0)
            # Constants first, then numbers, then tensors by name, then what is made of them: as one writes a product.
            kind = {"constant": 0, "scalar": 1, "tensor": 2}.get(op, 3)
            found._order = (kind, depth, value if isinstance(value, str) else "", digest)
            _nodes[key] = found
    return found


def constant(value: float) -> Expr:
    return _node("constant", (), float(value))


def tensor(name: str) -> Expr:
    """A symbol for the element of a tensor."""
    return _node("tensor", (), name)


def scalar(name: str) -> Expr:
    """A symbol for a number that is known when the kernel runs, the same for all elements."""
    return _node("scalar", (), name)


def _function(op: str) -> Callable[..., Expr]:
    return functools.partial(make, op)


def make(op: str, *operands: Operand) -> Expr:
    """The simplified expression for an operation; numbers become constants."""
    args = tuple(x if isinstance(x, Expr) else constant(x) for x in operands)
    if all(arg.is_constant for arg in args) and (folded := _fold(op, [arg.value for arg in args])) is not None:
        return constant(folded)
    if op in COMMUTATIVE and args[1]._order < args[0]._order:
        args = (args[1], args[0])
    simplified = SIMPLIFY[op](*args) if op in SIMPLIFY else None
    return _node(op, args) if simplified is None else simplified


def _fold(op: str, values: Sequence[Any]) -> float | None:
    """The value of an operation on constants, None where Python has none to give."""
    try:
        folded = FOLD[op](*values) if op in FOLD else None
    except (ArithmeticError, ValueError):
        return None
    return None if isinstance(folded, complex) else folded


def _to_float32(x: float) -> float:
    return float(struct.unpack("f", struct.pack("f", x))[0])


def _to_float16(x: float) -> float:
    return float(struct.unpack("e", struct.pack("e", _to_float32(x)))[0])  # by way of float32, as PyTorch does


def _to_bfloat16(x: float) -> float:
    (bits,) = struct.unpack("I", struct.pack("f", x))
    return float(struct.unpack("f", struct.pack("I", (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000))[0])


FOLD: dict[str, Callable[..., float]] = {
    "neg": lambda x: -x,
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "reciprocal": lambda x: 1 / x,
    "pow": lambda a, b: a**b,
    "abs": abs,
    "sqrt": math.sqrt,
    "exp": math.exp,
    "log": math.log,
    "sin": math.sin,
    "cos": math.cos,
    "tanh": math.tanh,
    "float16": _to_float16,
    "bfloat16": _to_bfloat16,
    "float32": _to_float32,
    "float64": float,
}

neg, abs_, sign = map(_function, ("neg", "abs", "sign"))
add, sub, mul, div, pow_ = map(_function, ("add", "sub", "mul", "div", "pow"))
reciprocal, sqrt, rsqrt = map(_function, ("reciprocal", "sqrt", "rsqrt"))
exp, expm1, exp2, log, log1p, log2, log10 = map(_function, ("exp", "expm1", "exp2", "log", "log1p", "log2", "log10"))
sin, cos, tan, asin, acos, atan, atan2 = map(_function, ("sin", "cos", "tan", "asin", "acos", "atan", "atan2"))
sinh, cosh, tanh, asinh, acosh, atanh = map(_function, ("sinh", "cosh", "tanh", "asinh", "acosh", "atanh"))
sigmoid, log1pexp, erf, erfc, hypot = map(_function, ("sigmoid", "log1pexp", "erf", "erfc", "hypot"))
floor, ceil, round_, trunc = map(_function, ("floor", "ceil", "round", "trunc"))
maximum, minimum, clamp_min, clamp_max = map(_function, ("maximum", "minimum", "clamp_min", "clamp_max"))
fmod, remainder, lerp, detach = map(_function, ("fmod", "remainder", "lerp", "detach"))
where, eq, ne, not_, and_, or_ = map(_function, ("where", "eq", "ne", "not", "and", "or"))
exp_minus_square, spherical_bessel = map(_function, ("exp_minus_square", "spherical_bessel"))
lgamma, polygamma, erfcx, erfinv, log_ndtr = map(_function, ("lgamma", "polygamma", "erfcx", "erfinv", "log_ndtr"))
logit, logaddexp, logaddexp2, entr, copysign = map(_function, ("logit", "logaddexp", "logaddexp2", "entr", "copysign"))
rounded = _function("rounded")  # to the dtype of the tensors, as a result of PyTorch's is
finite = _function("finite")  # of an infinite constant: the largest number of that dtype, with its sign
logistic_density, tanh_half, one_minus_square = map(_function, ("logistic_density", "tanh_half", "one_minus_square"))
ndtr, normal_density, softsign, tanhshrink = map(_function, ("ndtr", "normal_density", "softsign", "tanhshrink"))


def _halves(a: Expr, b: Expr) -> Expr | None:
    """where(c, a, 0) + where(c, 0, b) = where(c, a, b)"""
    if a.op != "where" or b.op != "where" or a.args[0] is not b.args[0]:
        return None
    (condition, *first), (_, *second) = a.args, b.args
    zero = constant(0.0)
    if first[1] is zero and second[0] is zero:
        return where(condition, first[0], second[1])
    if first[0] is zero and second[1] is zero:
        return where(condition, second[0], first[1])
    return None


def _simplify_add(a: Expr, b: Expr) -> Expr | None:
    if b.op == "neg":
        return a - b.args[0]
    if a.op == "neg":
        return b - a.args[0]
    return _halves(a, b)


def _simplify_sub(a: Expr, b: Expr) -> Expr | None:
    if b is constant(0.0):
        return a
    if b.op == "neg":
        return a + b.args[0]
    return None


def _simplify_mul(a: Expr, b: Expr) -> Expr | None:
    if a.is_constant and abs(float(a.value or 0)) == 1:  # a constant comes first
        return b if a.value == 1 else -b
    if a.op == "neg":
        return -(a.args[0] * b)
    if b.op == "neg":
        return -(a * b.args[0])
    return None


def _simplify_div(a: Expr, b: Expr) -> Expr | None:
    if b.is_constant and isinstance(b.value, float) and math.isfinite(b.value) and b.value:
        mantissa, exponent = math.frexp(b.value)
        if abs(mantissa) == 0.5 and abs(exponent) < 100:  # dividing by a power of two is multiplying by another
            return a * (1 / b.value)
    if a.op == "neg":
        return -(a.args[0] / b)
    if b.op == "neg":
        return -(a / b.args[0])
    return None


def _simplify_pow(a: Expr, b: Expr) -> Expr | None:
    if b is constant(1.0):
        return a
    return constant(1.0) if b.is_constant and b.value == 0 else None


def _has_few_bits(value: float) -> bool:
    """Is it a number of every floating dtype?"""
    mantissa, exponent = math.frexp(value)
    return (mantissa * 2**8).is_integer() and -13 <= exponent <= 15


def _simplify_where(condition: Expr, a: Expr, b: Expr) -> Expr | None:
    if a is b:
        return a
    return where(condition.args[0], b, a) if condition.op == "not" else None


SIMPLIFY: dict[str, Callable[..., Expr | None]] = {
    "neg": lambda x: x.args[0] if x.op == "neg" else None,
    "add": _simplify_add,
    "sub": _simplify_sub,
    "mul": _simplify_mul,
    "div": _simplify_div,
    "pow": _simplify_pow,
    "abs": lambda x: abs_(x.args[0]) if x.op == "neg" else None,
    "maximum": lambda a, b: a if a is b else None,
    "minimum": lambda a, b: a if a is b else None,
    "not": lambda x: x.args[0] if x.op == "not" else None,
    "where": _simplify_where,
    "rounded": lambda x: x if x.op in ("tensor", "rounded") or (x.is_constant and _has_few_bits(x.number)) else None,
}


def _pow_rule(g: Expr, y: Expr, a: Expr, b: Expr) -> Gradients:
    """b a^(b-1) and a^b log a; the slope of a^0 is 0 also where a is 0 or nan, that of 0^b in b for b >= 0."""
    if b.is_constant:
        return g * (b * pow_(a, b - 1)), None
    slope = g * (b * pow_(where(and_(eq(b, 0), not_(abs_(a) > 0)), 1, a), b - 1))
    if a.is_constant and a.value:
        return slope, g * (y * log(a))
    # log(1) = 0 in place of log(0), which would make the next derivatives nan.
    return slope, g * (y * log(where(and_(eq(a, 0), b >= 0), 1, a)))


def _atan2_rule(g: Expr, y: Expr, a: Expr, b: Expr) -> Gradients:
    """No slope at the origin."""
    square = a * a + b * b
    square = where(eq(square, 0), math.inf, square)
    return g * (b / square), -(g * (a / square))


def _mills(x: Expr) -> Expr:
    """The derivative of log_ndtr, the density of the normal distribution over the distribution; neither underflows."""
    left, right = where(x < 0, x, 0), where(x < 0, 0, x)
    tail = math.sqrt(2 / math.pi) / erfcx(0, -math.sqrt(0.5) * left)
    body = math.sqrt(2 / math.pi) * exp_minus_square(math.sqrt(0.5) * right) / erfc(-math.sqrt(0.5) * right)
    return where(x < 0, tail, body)


def floor_divide(a: Operand, b: Operand) -> Expr:
    """The floor of the exact quotient, as PyTorch has it; a / b may round up to the next integer. It has no slope."""
    rest = fmod(a, b)
    quotient = div(sub(a, rest), b)
    towards_zero = make("lt", where(make("lt", b, 0), neg(rest), rest), 0)
    rounded = round_(where(towards_zero, quotient - 1, quotient))
    return detach(where(eq(b, 0), div(a, b), rounded))


RULES: dict[str, Callable[..., Gradients]] = {
    # y = f(x): what the cotangent g of y gives to each argument, None for nothing. The same line is the jvp, because f
    # is a function of numbers: the tangent of y is the sum of these, each with the tangent of its argument for g.
    # At kinks and singular points they are PyTorch's own.
    "neg": lambda g, y, x: (-g,),
    "add": lambda g, y, a, b: (g, g),
    "sub": lambda g, y, a, b: (g, -g),
    "mul": lambda g, y, a, b: (g * b, g * a),
    "div": lambda g, y, a, b: (g / b, -(g * (y / b))),
    "reciprocal": lambda g, y, x: (-(g * (y * y)),),
    "pow": _pow_rule,
    "sqrt": lambda g, y, x: (g / (2 * y),),
    "rsqrt": lambda g, y, x: (-0.5 * (g * y**3),),
    "abs": lambda g, y, x: (g * sign(x),),
    "exp": lambda g, y, x: (g * y,),
    "expm1": lambda g, y, x: (g * exp(x),),
    "exp2": lambda g, y, x: (g * (y * math.log(2)),),
    "log": lambda g, y, x: (g / x,),
    "log1p": lambda g, y, x: (g / (x + 1),),
    "log2": lambda g, y, x: (g / (x * math.log(2)),),
    "log10": lambda g, y, x: (g / (x * math.log(10)),),
    "log1pexp": lambda g, y, x: (g * sigmoid(x),),
    # 1 - y and 1 - y^2 would lose the digits of a y next to 1.
    "sigmoid": lambda g, y, x: (g * logistic_density(x),),
    "logistic_density": lambda g, y, x: (-(g * (y * tanh_half(x))),),
    "tanh_half": lambda g, y, x: (2 * (g * logistic_density(x)),),
    "sin": lambda g, y, x: (g * cos(x),),
    "cos": lambda g, y, x: (-(g * sin(x)),),
    "tan": lambda g, y, x: (g * (1 + y * y),),
    "one_minus_square": lambda g, y, x: (-2 * (g * x),),
    "asin": lambda g, y, x: (g * rsqrt(one_minus_square(x)),),
    "acos": lambda g, y, x: (-(g * rsqrt(one_minus_square(x))),),
    "atan": lambda g, y, x: (g / (x * x + 1),),
    "atan2": _atan2_rule,
    "sinh": lambda g, y, x: (g * cosh(x),),
    "cosh": lambda g, y, x: (g * sinh(x),),
    "tanh": lambda g, y, x: (4 * (g * logistic_density(2 * x)),),
    "tanhshrink": lambda g, y, x: (g * tanh(x) ** 2,),
    "asinh": lambda g, y, x: (g * rsqrt(x * x + 1),),
    "acosh": lambda g, y, x: (g * rsqrt(0 - one_minus_square(x)),),
    "atanh": lambda g, y, x: (g / one_minus_square(x),),
    "exp_minus_square": lambda g, y, x: (-2 * (g * (x * y)),),
    "erf": lambda g, y, x: (g * (2 / math.sqrt(math.pi) * exp_minus_square(x)),),
    "erfc": lambda g, y, x: (-(g * (2 / math.sqrt(math.pi) * exp_minus_square(x))),),
    "erfinv": lambda g, y, x: (g * (math.sqrt(math.pi) / 2 * exp(y * y)),),
    "erfcx": lambda g, y, n, x: (None, -(g * erfcx(n + 1, x))),
    "log_ndtr": lambda g, y, x: (g * _mills(x),),
    "lgamma": lambda g, y, x: (g * polygamma(0, x),),
    "polygamma": lambda g, y, n, x: (None, g * polygamma(n + 1, x)),
    "logit": lambda g, y, x: (where(and_(x >= 0, x <= 1), g / (x * (1 - x)), math.nan),),
    "logaddexp": lambda g, y, a, b: (g * sigmoid(a - b), g * sigmoid(b - a)),
    "logaddexp2": lambda g, y, a, b: (g * sigmoid(math.log(2) * (a - b)), g * sigmoid(math.log(2) * (b - a))),
    "entr": lambda g, y, x: (-(g * (log(x) + 1)),),
    "copysign": lambda g, y, a, b: (g * (sign(a) * copysign(1, b)), None),
    "ndtr": lambda g, y, x: (g * normal_density(x),),
    "normal_density": lambda g, y, x: (-(g * (x * y)),),
    "softsign": lambda g, y, x: (g * reciprocal(abs_(x) + 1) ** 2,),
    "spherical_bessel": lambda g, y, n, x: (None, -(math.pi**2 * (g * (x * spherical_bessel(n + 1, x))))),
    "hypot": lambda g, y, a, b: (g * (a / y), g * (b / y)),
    "lerp": lambda g, y, a, b, w: (g * (1 - w), g * w, g * (b - a)),
    "fmod": lambda g, y, a, b: (g, -(g * trunc(a / b))),
    "remainder": lambda g, y, a, b: (g, -(g * floor_divide(a, b))),
    "maximum": lambda g, y, a, b: (
        where(a < b, 0, where(eq(a, b), g / 2, g)),
        where(b < a, 0, where(eq(a, b), g / 2, g)),
    ),
    "minimum": lambda g, y, a, b: (
        where(a > b, 0, where(eq(a, b), g / 2, g)),
        where(b > a, 0, where(eq(a, b), g / 2, g)),
    ),
    "clamp_min": lambda g, y, x, low: (where(x >= low, g, 0), where(x < low, g, 0)),
    "clamp_max": lambda g, y, x, high: (where(x <= high, g, 0), where(x > high, g, 0)),
    "where": lambda g, y, condition, a, b: (None, where(condition, g, 0), where(condition, 0, g)),
    **dict.fromkeys(("rounded", "float64"), lambda g, y, x: (g,)),
    **dict.fromkeys(("sign", "floor", "ceil", "round", "trunc", "detach"), lambda g, y, x: (None,)),
}


def topological(outputs: Iterable[Expr]) -> list[Expr]:
    """The nodes that ``outputs`` are made of, each after its operands."""
    order: dict[Expr, None] = {}
    stack = [(output, False) for output in reversed(list(outputs))]
    while stack:
        node, entered = stack.pop()
        if entered:
            order[node] = None
        elif node not in order:
            stack.append((node, True))
            stack.extend((arg, False) for arg in reversed(node.args) if arg not in order)
    return list(order)


def _dependent(nodes: Iterable[Expr], on: Iterable[Expr]) -> set[Expr]:
    """Those of ``nodes`` (in topological order) through which a derivative in ``on`` can pass."""
    dependent = set(on)
    for node in nodes:
        if node.op in RULES and any(arg in dependent for arg in node.args):
            dependent.add(node)
    return dependent


def pushforward(outputs: Sequence[Expr], tangents: Mapping[Expr, Expr]) -> list[Expr | None]:
    """The tangents of ``outputs`` for those of some symbols, by forward mode; None for zero."""
    known = dict(tangents)
    order = topological(outputs)
    dependent = _dependent(order, known)
    for node in order:
        if node in known or node not in dependent:
            continue
        terms = [
            term
            for i, arg in enumerate(node.args)
            if arg in known and (term := RULES[node.op](known[arg], node, *node.args)[i]) is not None
        ]
        if terms:
            known[node] = functools.reduce(add, terms)
    return [known.get(y) for y in outputs]


def _unique(name: str, taken: Iterable[str]) -> str:
    taken = set(taken)
    candidates = (name if i == 1 else f"{name}{i}" for i in range(1, len(taken) + 2))
    return next(candidate for candidate in candidates if candidate not in taken)


@dataclass(frozen=True)
class Program:
    """Several expressions in the same symbols: what a kernel computes.

    Attributes:
        inputs: the symbols of the tensors, in the order of the kernel's arguments.
        scalars: the symbols of the numbers that follow them.
        outputs: the expressions.
        names: a name for each output.
    """

    inputs: tuple[Expr, ...]
    scalars: tuple[Expr, ...]
    outputs: tuple[Expr, ...]
    names: tuple[str, ...]

    def vjp(self, wanted: Sequence[bool], given: Sequence[bool]) -> Derivative:
        """The gradients of the wanted inputs, for cotangents of the given outputs."""
        seeds = self._symbols("grad_", self.names)
        targets = [x for x, w in zip(self.inputs, wanted, strict=True) if w]
        order = topological(self.outputs)
        dependent = _dependent(order, targets)
        gradients: dict[Expr, Expr] = {}

        def contribute(node: Expr, gradient: Expr) -> None:
            gradients[node] = gradients[node] + gradient if node in gradients else gradient

        for output, seed, is_given in zip(self.outputs, seeds, given, strict=True):
            if is_given and output in dependent:
                contribute(output, seed)
        for node in reversed(order):
            if node.args and node in gradients:
                contributions = RULES[node.op](gradients[node], node, *node.args)
                for arg, gradient in zip(node.args, contributions, strict=True):
                    if gradient is not None and arg in dependent:
                        contribute(arg, gradient)
        results = {f"grad_{x.value}": gradients.get(x) for x in self.inputs if x in targets}
        return self._derivative([s for s, is_given in zip(seeds, given, strict=True) if is_given], results)

    def jvp(self, given: Sequence[bool]) -> Derivative:
        """The tangents of the outputs, for tangents of the given inputs."""
        seeds = self._symbols("tangent_", [str(x.value) for x in self.inputs])
        tangents = {x: seed for x, seed, is_given in zip(self.inputs, seeds, given, strict=True) if is_given}
        results = dict(
            zip((f"tangent_{name}" for name in self.names), pushforward(self.outputs, tangents), strict=True)
        )
        return self._derivative([s for s, is_given in zip(seeds, given, strict=True) if is_given], results)

    def laplacian(self, carried: Sequence[int], signs: Sequence[int]) -> Derivative:
        """The outputs y, their tangents y_k along some directions and their Laplacians Δy, from those of the inputs.

        y_k = Σ_a f_a x_a,k and Δy = Σ_a f_a Δx_a + Σ_ab f_ab Σ_k ±x_a,k x_b,k with the derivatives f_a and f_ab.

        Args:
            carried: of each input, 0 for a constant, 1 if its tangents are given, 2 if its Laplacian is as well.
            signs: of the squares of the directions, 1 or -1.
        """
        count = len(signs)
        kinds = (*(f"tangent{k}_" for k in range(count)), "laplacian_")
        symbols = iter(self._symbols("", [kind + str(x.value) for x in self.inputs for kind in kinds]))
        tangents, laplacians, seeds = {}, {}, []
        for x, order in zip(self.inputs, carried, strict=True):
            *along, laplacian = (next(symbols) for _ in kinds)
            if order:
                tangents[x] = along
            if order == 2:
                laplacians[x] = laplacian
            seeds += (along if order else []) + ([laplacian] if order == 2 else [])
        one = constant(1)
        results: dict[str, Expr | None] = {}
        for name, y in zip(self.names, self.outputs, strict=True):
            slopes = {x: f for x in tangents if (f := pushforward([y], {x: one})[0]) is not None}
            terms = [f * laplacians[a] for a, f in slopes.items() if a in laplacians]
            for (a, slope), b in itertools.product(slopes.items(), tangents):
                if (curvature := pushforward([slope], {b: one})[0]) is not None:
                    products = [s * (u * v) for s, u, v in zip(signs, tangents[a], tangents[b], strict=True)]
                    terms.append(curvature * functools.reduce(add, products))
            results[f"value_{name}"] = y
            for k in range(count):
                along = [f * tangents[a][k] for a, f in slopes.items()]
                results[f"tangent{k}_{name}"] = functools.reduce(add, along) if along else None
            results[f"laplacian_{name}"] = functools.reduce(add, terms) if terms else None
        return self._derivative(seeds, results)

    def _symbols(self, prefix: str, names: Iterable[str]) -> list[Expr]:
        taken = [str(x.value) for x in (*self.inputs, *self.scalars)]
        symbols = []
        for name in names:
            taken.append(_unique(prefix + name, taken))
            symbols.append(tensor(taken[-1]))
        return symbols

    def _derivative(self, seeds: Sequence[Expr], results: dict[str, Expr | None]) -> Derivative:
        arguments = (*self.inputs, *seeds)
        outputs = {name: result for name, result in results.items() if result is not None}
        occurring = set(topological(outputs.values()))
        used = tuple(i for i, x in enumerate(arguments) if x in occurring)
        program = Program(
            tuple(arguments[i] for i in used),
            tuple(x for x in self.scalars if x in occurring),
            tuple(outputs.values()),
            tuple(outputs),
        )
        return Derivative(
            program,
            used,
            tuple(i for i, x in enumerate(self.scalars) if x in occurring),
            tuple(i for i, result in enumerate(results.values()) if result is not None),
        )

    def __len__(self) -> int:
        """The number of operations."""
        return sum(bool(node.args) for node in topological(self.outputs))


@dataclass(frozen=True)
class Derivative:
    """A derivative of a program, reduced to what is not zero.

    Attributes:
        program: computes the results that are not zero from the arguments that they depend on.
        arguments: which of (the inputs, the given cotangents or tangents) its inputs are.
        scalars: which of the scalars its scalars are.
        results: which of the wanted results its outputs are; the others are zero.
    """

    program: Program
    arguments: tuple[int, ...]
    scalars: tuple[int, ...]
    results: tuple[int, ...]
