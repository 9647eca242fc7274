"""A plain PyTorch function of elements as expressions.

The function is called once with symbols in place of tensors. Every PyTorch function, method and operator it uses on
them is looked up by its name in ``FUNCTIONS``, and what is not there raises with the line that used it.
"""

from __future__ import annotations

import linecache
import math
import operator
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy
import torch
from torch.overrides import TorchFunctionMode

from . import expr
from .expr import Expr, Operand, Program, where

_LIBRARIES = (str(Path(torch.__file__).parent), str(Path(numpy.__file__).parent), "<frozen", "<__array_function__")
_OWN = tuple(str(Path(__file__).with_name(name)) for name in ("trace.py", "expr.py", "pointwise.py", "elementwise.py"))


class TraceError(TypeError):
    """A function is not elementwise, or uses something that is not known to be. The message names the line."""


class _Problem(TypeError):
    """What is wrong with a call, in words that follow the name of the function."""


class _Symbol(torch.Tensor):
    """Stands for a tensor, or for a Python number, while a function is traced."""

    expr: Expr
    is_number: bool


def _symbol(value: Expr, is_number: bool) -> _Symbol:
    symbol = torch.zeros((), device="cpu").as_subclass(_Symbol)
    symbol.expr, symbol.is_number = value, is_number
    return symbol


def trace(function: Callable[[list[Any]], Any], arguments: Sequence[Any], name: str) -> Program:
    """The program of a function.

    Args:
        function: calls plain PyTorch with a list of arguments.
        arguments: that list: symbols of :mod:`torchad_ext.expr` for tensors and run-time numbers, anything else as it
            is.
        name: of the function, for messages.

    Raises:
        TraceError: the function is not elementwise in its tensors.
    """
    symbols = [_symbol(x, x.op == "scalar") if isinstance(x, Expr) else x for x in arguments]
    with _Tracing() as tracing:
        try:
            result = function(symbols)
        except TypeError:
            if not tracing.error:
                raise
    if tracing.error:  # PyTorch's operators make NotImplemented of it, Python "unsupported operand type(s)"
        raise tracing.error
    results = tuple(result) if isinstance(result, (tuple, list)) else (result,)
    if not results:
        raise TraceError(f"{name} returns no tensor")
    outputs = []
    for output in results:
        if not isinstance(output, _Symbol) or output.is_number:
            raise TraceError(
                f"{name} returns {_described(output)}, not an elementwise function of its tensors; return a tensor, "
                "torch.full_like(x, c) for a constant"
            )
        if output.expr.is_mask:
            raise TraceError(
                f"{name} returns a truth value, which has no derivative; return torch.where(condition, a, b)"
            )
        outputs.append(output.expr)
    inputs = tuple(x for x in arguments if isinstance(x, Expr) and x.op == "tensor")
    scalars = tuple(x for x in arguments if isinstance(x, Expr) and x.op == "scalar")
    names = ("output",) if len(outputs) == 1 else tuple(f"output{i}" for i in range(len(outputs)))
    return Program(inputs, scalars, tuple(outputs), names)


class _Tracing(TorchFunctionMode):
    error: TraceError | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        try:
            if define := getattr(func, "define", None):  # a declared op within a declared op
                with self:
                    return define(args)
            return self._call(func, args, kwargs or {})
        except TraceError as error:
            self.error = error
            raise

    @staticmethod
    def _call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = _name(func)
        kwargs = {key: x for key, x in kwargs.items() if not (key in _IDLE and (x is None or x is False))}
        if name == "_is_view":  # PyTorch asks before an assignment
            return False
        if name in _IN_PLACE or (name.endswith("_") and not name.endswith("__")) or kwargs.keys() & {"inplace", "out"}:
            raise _error(name, "changes a tensor in place; give the result a new name, as in y = x + 1")
        if name in _REFUSED:
            raise _error(name, _REFUSED[name])
        handler = FUNCTIONS.get(name.strip("_") if name.startswith("__") else name)
        if handler is None:
            raise _error(name, _UNKNOWN)
        operands = [_operand(x, name) for x in args]
        options = {key: _operand(x, name) for key, x in kwargs.items()}
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, _Symbol)]
        symbols = [x.expr for x in given]
        if name in _OF_TENSORS and any(x.is_number for x in given):
            raise _error(name, "takes no number; write torch.full_like(x, c) for c")
        if symbols and not any(x.varies for x in symbols) and name not in _ARITHMETIC:
            raise _error(name, _CONSTANT if all(x.is_constant for x in symbols) else _OF_A_NUMBER)
        try:
            result = handler(*operands, **options)
        except _Problem as problem:
            raise _error(name, str(problem)) from None
        except TypeError as error:
            text = re.sub(r"^\S+\(\) ", "", str(error))  # without the name of the handler
            raise _error(name, f"has no kernel for these arguments ({text}); {_OUTSIDE}") from error
        return _symbol(result, bool(given) and all(x.is_number for x in given))


def _name(func: Any) -> str:
    if func is torch.Tensor.where:  # its arguments stand in another order
        return "Tensor.where"
    name: str = getattr(func, "__name__", repr(func))
    return func.__self__.__name__ if name in ("__get__", "__set__") else name.removeprefix("special_")


def is_of_torch(func: Any) -> bool:
    """Is it a function of PyTorch, whose name says what it computes? One of another library may have the same name."""
    if isinstance(func, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return str(func).startswith("aten.")
    if isinstance(func, FunctionType):  # the module that the code is in: functools.wraps copies __module__
        module = func.__globals__.get("__name__")
    else:
        attribute = getattr(func, "__self__", None)  # Tensor.mT.__get__ is of Tensor.mT, which is of Tensor
        owner = getattr(attribute, "__objclass__", None) or getattr(func, "__objclass__", None)
        module = getattr(owner or func, "__module__", None)
    return isinstance(module, str) and module.partition(".")[0] == "torch"


def _operand(x: Any, name: str) -> Any:
    """An argument of a function as the expression, number or option that it is."""
    if isinstance(x, _Symbol):
        return x.expr
    if isinstance(x, torch.Tensor):
        raise _error(name, "meets a tensor from outside the function; pass it as an argument")
    return x


def _described(x: Any) -> str:
    return "a Python number" if isinstance(x, (_Symbol, int, float)) else f"a {type(x).__name__}"


def _error(name: str, problem: str) -> TraceError:
    """The error for a function, with the line of the user's source that called it."""
    frame = sys._getframe(1)
    while frame.f_back and (frame.f_code.co_filename.startswith(_LIBRARIES) or frame.f_code.co_filename in _OWN):
        frame = frame.f_back
    file, line = frame.f_code.co_filename, frame.f_lineno
    text = linecache.getline(file, line).strip()
    spoken = _SPOKEN.get(name) or (name.strip("_") if name.startswith("__") else name)
    return TraceError(f"{file}:{line}: {text}\n  {spoken} {problem}")


_SPOKEN = {
    "__getitem__": "x[...]",
    "__setitem__": "x[...] = y",
    "__bool__": "a condition",
    "__float__": "float(x) or a function of math",
    "__array__": "a function of numpy",
    "_threshold": "threshold",
    "Tensor.where": "where",
}


_IDLE = ("inplace", "out", "training")  # arguments that do nothing while they are false
_IN_PLACE = frozenset(
    f"__i{op}__" for op in "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift".split()
)
_ARITHMETIC = frozenset(
    "add sub mul div true_divide pow neg abs positive gt ge lt le eq ne rsub __rsub__ __rpow__ __rdiv__".split()
)
_OF_TENSORS = frozenset("atan2 arctan2 hypot maximum minimum max min".split())
_CONTROL = "needs the value of an element, but the function is traced once for all; write torch.where(condition, a, b)"
_NUMBER = "asks for the value of a symbol; use the functions of torch for a tensor, a ** 0.5 for the root of a number"
_OUTSIDE = "compute it outside and pass the result as an argument"
_OF_A_NUMBER = f"is given a Python number; {_OUTSIDE}"
_CONSTANT = "is given a constant; compute it with the math module"
_UNKNOWN = f"is not elementwise, or not known to be; {_OUTSIDE}"
_REDUCTION = "combines elements; reduce the result outside, as in op(x).sum()"
_INDEX = "picks elements; pass the part as an argument, as in op(x[..., 0])"
_RANDOM = "draws random numbers; draw them outside and pass them as an argument"
_SHAPE = "looks at a whole tensor, but a pointwise function sees one element; pass what it needs as an argument"
_TYPE = (
    "changes or asks for dtype or device, but a pointwise function keeps those of its tensors; convert the arguments"
)
_CREATES = "makes a tensor; write a Python number, or torch.full_like(x, c)"
_REFUSED = {
    name: reason
    for names, reason in {
        "__bool__ __iter__ __contains__ is_nonzero equal allclose any all": _CONTROL,
        "__float__ __int__ __index__ __complex__ item tolist numpy __array__": _NUMBER,
        "sum mean prod amax amin argmax argmin std var norm softmax log_softmax logsumexp cumsum cumprod dot matmul mm "
        "bmm __matmul__ __rmatmul__ einsum linear normalize layer_norm batch_norm median sort topk": _REDUCTION,
        "__getitem__ index_select gather take narrow select split chunk unbind view reshape flatten transpose permute "
        "T mT unsqueeze squeeze expand expand_as cat stack roll flip": _INDEX,
        "rand randn randint rand_like randn_like bernoulli dropout normal rrelu feature_dropout alpha_dropout": _RANDOM,
        "shape size ndim dim numel nelement __len__ is_contiguous stride layout requires_grad grad": _SHAPE,
        "dtype type float double half bfloat16 int long bool is_floating_point is_complex device cpu cuda "
        "is_cuda": _TYPE,
        "zeros ones full empty empty_like arange linspace as_tensor from_numpy eye new_tensor new_zeros new_ones "
        "new_full": _CREATES,
        "__setitem__": "changes a tensor in place; write torch.where(condition, a, b)",
    }.items()
    for name in names.split()
}


def _number(x: Operand) -> Operand:
    """A truth value as 1 or 0."""
    return where(x, 1, 0) if isinstance(x, Expr) and x.is_mask else x


def _binary(op: str) -> Callable[..., Expr]:
    return lambda input, other: expr.make(op, _number(input), _number(other))


def _unary(op: str) -> Callable[..., Expr]:
    return lambda input: expr.make(op, _number(input))


def _masks(*operands: Any) -> bool:
    return all(isinstance(x, Expr) and x.is_mask for x in operands)


def _varies(*operands: Any) -> bool:
    return any(isinstance(x, Expr) and x.varies for x in operands)


def _add(input: Operand, other: Operand, *, alpha: Operand = 1) -> Expr:
    if _masks(input, other) and _varies(input, other):
        return expr.or_(input, other)
    return expr.add(_number(input), expr.mul(alpha, _number(other)))


def _sub(input: Operand, other: Operand, *, alpha: Operand = 1) -> Expr:
    if _masks(input, other):
        raise _Problem("subtracts no truth values in PyTorch; write a & ~b")
    return expr.sub(_number(input), expr.mul(alpha, _number(other)))


def _mul(input: Operand, other: Operand) -> Expr:
    if _masks(input, other):
        return expr.and_(input, other)
    return expr.mul(_number(input), _number(other))


def _pow(input: Operand, exponent: Operand) -> Expr:
    return expr.pow_(_number(input), _number(exponent))


def _div(input: Operand, other: Operand, *, rounding_mode: str | None = None) -> Expr:
    a, b = _number(input), _number(other)
    if rounding_mode == "floor":
        return expr.floor_divide(a, b)
    if rounding_mode not in (None, "trunc"):
        raise _Problem(f"has no rounding_mode {rounding_mode!r}; it is None, 'trunc' or 'floor'")
    return expr.trunc(expr.div(a, b)) if rounding_mode else expr.div(a, b)


def _where(condition: Expr, input: Operand, other: Operand) -> Expr:
    if not (_masks(condition) and _varies(condition)):
        raise _Problem("has a condition that is no truth value of a tensor; compare one, as in x != 0")
    if not _varies(input, other):
        raise _Problem("of two numbers has PyTorch's default dtype, not that of x; write torch.full_like(x, c) for one")
    return where(condition, _number(input), _number(other))


def _clamp(input: Expr, min: Operand | None = None, max: Operand | None = None) -> Expr:
    if min is None and max is None:
        raise _Problem("is given neither min nor max")
    low = input if min is None else expr.clamp_min(input, min)
    clamped = low if max is None else expr.clamp_max(low, max)
    if not (isinstance(min, Expr) and isinstance(max, Expr) and min.varies and max.varies):
        return clamped
    # Of two bounds in the wrong order or equal, PyTorch gives the slope to the upper or to none.
    is_low = expr.and_(min < max, input < min)
    is_high = expr.or_(input > max, expr.and_(max < min, expr.eq(input, input)))
    flat = where(is_low, min, where(is_high, max, expr.detach(clamped)))
    return where(expr.and_(input >= min, input <= max), input, flat)


def _extremum(op: str) -> Callable[..., Expr]:
    def extremum(input: Expr, other: Operand | None = None, **options: Any) -> Expr:
        if not isinstance(other, Expr) or options:
            raise _Problem(f"of one tensor {_REDUCTION}")
        return expr.make(op, _number(input), _number(other))

    return extremum


def _logical(op: str) -> Callable[..., Expr]:
    def logical(*operands: Any) -> Expr:
        if not _masks(*operands):
            raise _Problem("is given what is no truth value; compare it, as in x != 0")
        return expr.make(op, *operands)

    return logical


def _converted(input: Expr, other: Any) -> Operand:
    if not isinstance(other, Expr):
        raise _Problem(_TYPE)
    return _number(input)


def _elu(input: Expr, alpha: Operand = 1.0, scale: Operand = 1.0, input_scale: Operand = 1.0) -> Expr:
    # The slope at 0 is that from below, the curvature that from above.
    positive = input * where(input > 0, 1, expr.mul(alpha, input_scale))
    negative = expr.mul(alpha, expr.expm1(expr.mul(input_scale, _below(input, 0))))
    return expr.mul(scale, where(input >= 0, positive, negative))


def _below(x: Expr, bound: Operand) -> Expr:
    """x for a branch below the bound: elsewhere 0, where an overflow would reach the derivative as 0 times infinity."""
    return where(expr.make("ge", x, bound), 0, x)


_ALPHA, _SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946  # Klambauer et al. 2017


def _celu(input: Expr, alpha: Operand = 1.0) -> Expr:
    return where(input >= 0, input, expr.mul(alpha, expr.expm1(expr.div(_below(input, 0), alpha))))


def _gelu(input: Expr, approximate: str = "none") -> Expr:
    if approximate == "tanh":  # (1 + tanh u) / 2 = sigmoid(2 u)
        return input * expr.sigmoid(2 * math.sqrt(2 / math.pi) * (input + 0.044715 * input**3))
    if approximate != "none":
        raise _Problem(f"has no approximate {approximate!r}; it is 'none' or 'tanh'")
    return input * (0.5 * expr.erfc(-math.sqrt(0.5) * input))  # (1 + erf u) / 2 = erfc(-u) / 2, without cancellation


def _softplus(input: Expr, beta: Operand = 1, threshold: Operand = 20) -> Expr:
    scaled = expr.mul(beta, input)
    return where(expr.make("gt", scaled, threshold), input, expr.div(expr.log1pexp(scaled), beta))


def _leaky_relu(input: Expr, negative_slope: Operand = 0.01) -> Expr:
    return where(input > 0, input, expr.mul(negative_slope, input))


def _hardtanh(input: Expr, min_val: Operand = -1.0, max_val: Operand = 1.0) -> Expr:
    """Its slope is 0 at the bounds, where that of clamp is 1."""
    inside = expr.and_(expr.make("gt", input, min_val), expr.make("lt", input, max_val))
    return where(inside, input, expr.detach(_clamp(input, min_val, max_val)))


def _hardsigmoid(input: Expr) -> Expr:
    return _hardtanh((input + 3) / 6, 0.0, 1.0)


def _hardswish(input: Expr) -> Expr:
    inside = where(input <= -3, 0, _below(input, 3))
    return where(input <= -3, 0, where(input < 3, inside * (inside + 3) / 6, input))


def _softshrink(input: Expr, lambd: Operand = 0.5) -> Expr:
    above, below = expr.make("gt", input, lambd), expr.make("lt", input, expr.mul(-1, lambd))
    return where(above, input - lambd, where(below, input + lambd, 0 * input))


def _hardshrink(input: Expr, lambd: Operand = 0.5) -> Expr:
    inside = expr.and_(expr.make("ge", input, expr.mul(-1, lambd)), expr.make("le", input, lambd))
    return where(inside, 0, input)


def _sinc(input: Expr) -> Expr:
    return expr.spherical_bessel(0, math.pi * input)


def _xlogy(input: Expr, other: Expr) -> Expr:
    # 0 log y is 0 for every y but nan; the slope in x is log y where that is a number.
    singular = expr.or_(expr.make("le", other, 0), expr.eq(other, math.inf))
    return expr.mul(input, expr.log(where(expr.and_(expr.eq(input, 0), singular), 1, other)))


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
        "sinh cosh tanh asinh acosh atanh sigmoid erf erfc floor ceil round trunc detach".split()
    },
    **{name: _binary(name) for name in "atan2 hypot fmod remainder lt le gt ge eq ne".split()},
    **{name: _mirrored(function) for name, function in _MIRRORED.items()},
    **{name: _logical("and") for name in ("and", "logical_and", "bitwise_and")},
    **{name: _logical("or") for name in ("or", "logical_or", "bitwise_or")},
    **{name: _logical("not") for name in ("invert", "logical_not", "bitwise_not")},
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "pow": _pow,
    "div": _div,
    "floordiv": _floor_divide,
    "floor_divide": _floor_divide,
    "square": lambda input: input**2,
    "where": _where,
    "Tensor.where": lambda input, condition, other: _where(condition, input, other),
    "clamp": _clamp,
    "clamp_min": lambda input, min: expr.clamp_min(input, min),
    "clamp_max": lambda input, max: expr.clamp_max(input, max),
    "maximum": _extremum("maximum"),
    "minimum": _extremum("minimum"),
    "max": _extremum("maximum"),
    "min": _extremum("minimum"),
    "isnan": lambda input: expr.ne(input, input),
    "isfinite": lambda input: expr.make("lt", expr.abs_(input), math.inf),
    "isinf": lambda input: expr.eq(expr.abs_(input), math.inf),
    "addcmul": lambda input, tensor1, tensor2, *, value=1: input + expr.mul(value, tensor1) * tensor2,
    "addcdiv": lambda input, tensor1, tensor2, *, value=1: input + expr.mul(value, tensor1) / tensor2,
    "lerp": lambda input, end, weight: expr.lerp(input, end, weight),
    "sinc": _sinc,
    "xlogy": _xlogy,
    "deg2rad": lambda input: input * (math.pi / 180),
    "rad2deg": lambda input: input * (180 / math.pi),
    "frac": lambda input: input - expr.trunc(input),
    "zeros_like": lambda input: expr.constant(0),
    "ones_like": lambda input: expr.constant(1),
    "full_like": lambda input, fill_value: fill_value if isinstance(fill_value, Expr) else expr.constant(fill_value),
    "tensor": lambda data: expr.constant(torch.tensor(float(data)).item()),  # rounded to the default dtype
    "clone": lambda input: input,
    "contiguous": lambda input: input,
    "positive": lambda input: input,
    "type_as": _converted,
    "to": _converted,
    "relu": lambda input: where(input <= 0, 0, input),
    "relu6": lambda input: _hardtanh(input, 0.0, 6.0),
    "elu": _elu,
    "selu": lambda input: _elu(input, _ALPHA, _SCALE),
    "celu": _celu,
    "leaky_relu": _leaky_relu,
    "silu": lambda input: input * expr.sigmoid(input),
    "mish": lambda input: input * expr.tanh(expr.log1pexp(input)),
    "gelu": _gelu,
    "softplus": _softplus,
    "log_sigmoid": lambda input: -expr.log1pexp(-input),
    "hardtanh": _hardtanh,
    "hardsigmoid": _hardsigmoid,
    "hardswish": _hardswish,
    "softsign": lambda input: input / (expr.abs_(input) + 1),
    "tanhshrink": lambda input: input - expr.tanh(input),
    "softshrink": _softshrink,
    "hardshrink": _hardshrink,
    "threshold": lambda input, threshold, value: where(expr.make("le", input, threshold), value, input),
}
for _alias, _of in {
    "subtract": "sub", "multiply": "mul", "divide": "div", "true_divide": "div", "negative": "neg", "absolute": "abs",
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arctan2": "atan2", "arcsinh": "asinh", "arccosh": "acosh",
    "arctanh": "atanh", "expit": "sigmoid", "greater": "gt", "greater_equal": "ge", "less": "lt", "less_equal": "le",
    "not_equal": "ne", "sgn": "sign", "fix": "trunc", "clip": "clamp",
    "_threshold": "threshold",
}.items():  # fmt: skip
    FUNCTIONS[_alias] = FUNCTIONS[_of]


def _bessel(n: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """j_n(x) / x^n: its power series near 0, beyond it the recurrence from (sin x) / x and cos x."""
    order = int(n)
    term = torch.ones_like(x) / math.prod(range(1, 2 * order + 2, 2))
    series = term
    for k in range(1, 20 + order):
        term = term * (-x * x / 2) / (k * (2 * order + 2 * k + 1))
        series = series + term
    far = torch.where(x.abs() < 1, torch.ones_like(x), x)
    before, value = far.cos(), far.sin() / far
    for k in range(order):
        before, value = value, ((2 * k + 1) * value - before) / (far * far)
    return torch.where(x.abs() < order + 2, series, value)


_EVALUATE: dict[str, Callable[..., torch.Tensor]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "not": torch.logical_not,
    "clamp_min": torch.clamp_min,
    "log1pexp": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    "exp_minus_square": lambda x: torch.exp(-x * x),
    "spherical_bessel": _bessel,
}


def evaluate_nodes(program: Program, *values: Any) -> dict[Expr, Any]:
    """Every node of a program in plain PyTorch, for tensors of one shape and then numbers."""
    known: dict[Expr, Any] = dict(zip((*program.inputs, *program.scalars), values, strict=True))

    def number(value: float) -> torch.Tensor:
        return torch.full((), value, dtype=values[0].dtype, device=values[0].device)

    for node in expr.topological(program.outputs):
        if node.op == "constant":
            known[node] = number(node.number)
        elif node.args:
            args: list[Any] = [
                x if isinstance(x, torch.Tensor) else number(x) for x in (known[arg] for arg in node.args)
            ]
            if node.op == "pow" and node.args[1].is_constant:  # PyTorch takes a root for a number 0.5
                args[1] = node.args[1].number
            known[node] = (_EVALUATE.get(node.op) or getattr(torch, node.op))(*args)
    return known


def evaluate(program: Program, *values: Any) -> Any:
    """The outputs of a program in plain PyTorch, for tensors of one shape and then numbers."""
    known = evaluate_nodes(program, *values)
    results = (known[y] for y in program.outputs)
    outputs = tuple(
        y.expand_as(values[0]) if isinstance(y, torch.Tensor) else torch.full_like(values[0], y) for y in results
    )
    return outputs[0] if len(outputs) == 1 else outputs
