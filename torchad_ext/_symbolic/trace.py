"""A plain PyTorch function of elements as expressions.

The function is called once with symbols in place of tensors. Every PyTorch function, method and operator it uses on
them is looked up by its name in ``FUNCTIONS``, and what is not there raises with the line that used it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import linecache
import math
import operator
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from . import expr
from .expr import FLOATS, Expr, Operand, Program, where

_IMMUTABLE = frozenset("torch torchad_ext math cmath numpy builtins typing functools itertools operator".split())
_LIBRARIES = (
    str(Path(torch.__file__).parent),
    str(Path(numpy.__file__).parent),
    functools.__file__,
    "<frozen",
    "<__array_function__",
)
_OWN = (
    str(Path(__file__).parent),
    *(str(Path(__file__).parents[1] / f"{name}.py") for name in ("pointwise", "elementwise")),
)


class TraceError(TypeError):
    """A function is not elementwise, or uses something that is not known to be. The message names the line."""


class ValueNeeded(Exception):
    """The function asks for the value of run-time numbers, whose names these are; trace it with the values."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__(names)
        self.names = names


class _Problem(TypeError):
    """What is wrong with a call, in words that follow the name of the function."""


class _Symbol(torch.Tensor):
    """Stands for a tensor, or for a Python number, while a function is traced.

    Attributes:
        expr: its value.
        kind: ``"tensor"``, of the dtype of the function's tensors; ``"number"``, a Python number; ``"mask"``, bool;
            ``"integer"``, int64; or the name of a dtype that PyTorch gives it whatever the function's tensors have.
        stored: its value as PyTorch has it in memory, where each result is rounded to the dtype.
        is_in_use: is it an argument, or does another name stand for its memory?
    """

    expr: Expr
    kind: str
    stored: Expr
    is_in_use: bool

    def __repr__(self) -> str:  # type: ignore[override]
        return f"<{self.kind} {self.expr}>"

    def __round__(self, digits: int | None = None) -> Any:  # tensors have none; numbers do
        return round(float(self), digits)

    def __divmod__(self, other: Any) -> Any:
        return divmod(float(self), other)


# No tensor of a function has it, so that a dtype which the function asks its tensors for differs from all it names.
_DTYPE = torch.float8_e5m2


def _symbol(value: Expr, kind: str, stored: Expr | None = None, is_in_use: bool = False) -> _Symbol:
    # A custom autograd.Function leaves its mark on what requires a gradient.
    symbol = torch.Tensor._make_subclass(_Symbol, torch.zeros((), device="cpu"), kind == "tensor")
    symbol.expr, symbol.kind, symbol.is_in_use = value, kind, is_in_use
    symbol.stored = value if stored is None else stored
    return symbol


def trace(function: Callable[[list[Any]], Any], arguments: Sequence[Any], name: str) -> Program:
    """The program of a function.

    Args:
        function: calls plain PyTorch with a list of arguments.
        arguments: that list: symbols of :mod:`torchad_ext._symbolic.expr` for tensors and run-time numbers, anything
            else as it is.
        name: of the function, for messages.

    Raises:
        TraceError: the function is not elementwise in its tensors.
        ValueNeeded: it asks for the value of a run-time number.
    """
    program, asked = _traced(function, arguments, name, _DTYPE)
    for dtype in (getattr(torch, name) for name in (FLOATS if asked else ())):
        other, _ = _traced(function, arguments, name, dtype)
        if _without_dtypes(other) != _without_dtypes(program):
            raise TraceError(
                f"{name} computes something else in {dtype} than in other dtypes, because it asks for the dtype of a "
                "tensor; pass what depends on it as an argument, as in f(x, eps=1e-6)"
            )
    return program


def _without_dtypes(program: Program) -> Program:
    """The program without roundings to a dtype."""
    plain: dict[Expr, Expr] = {}
    for node in expr.topological(program.outputs):
        args = tuple(plain[arg] for arg in node.args)
        rounds = node.op in FLOATS or node.op == "rounded"
        plain[node] = args[0] if rounds else expr.make(node.op, *args) if args else node
    return Program(program.inputs, program.scalars, tuple(plain[y] for y in program.outputs), program.names)


def _traced(
    function: Callable[[list[Any]], Any], arguments: Sequence[Any], name: str, dtype: torch.dtype
) -> tuple[Program, bool]:
    """The program for tensors of a dtype, and whether the function asks for it."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_disable_current_modes())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if "torch._dynamo" in sys.modules:  # what torch.compile made is run as it was written
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        symbols = [
            _symbol(x, "number" if x.op == "scalar" else "tensor", is_in_use=True) if isinstance(x, Expr) else x
            for x in arguments
        ]
        tracing = stack.enter_context(_Tracing(name, dtype))
        try:
            result = function(symbols)
        except TypeError as error:
            if not tracing.error:
                numbers = [x for x in arguments if isinstance(x, Expr) and x.op == "scalar"]
                if numbers and "_Symbol" in str(error):  # PyTorch takes a Python number there, nothing else
                    raise ValueNeeded(frozenset(str(x.value) for x in numbers)) from None
                raise
        except ValueNeeded:
            if not tracing.error:
                raise
    if tracing.error:  # PyTorch's operators make NotImplemented of it, Python "unsupported operand type(s)"
        raise tracing.error
    results = tuple(result) if isinstance(result, (tuple, list)) else (result,)
    if not results:
        raise TraceError(f"{name} returns no tensor")
    outputs = []
    for output in results:
        if function_name := _function_of(output):
            raise TraceError(f"{name} returns a result of {function_name}, {_HAS_BACKWARD}")
        if not isinstance(output, _Symbol) or output.kind == "number":
            raise TraceError(
                f"{name} returns {_described(output)}, not an elementwise function of its tensors; return a tensor, "
                "torch.full_like(x, c) for a constant"
            )
        if output.kind == "mask":
            raise TraceError(
                f"{name} returns a truth value, which has no derivative; return torch.where(condition, a, b)"
            )
        if output.kind != "tensor":
            raise TraceError(
                f"{name} returns a tensor of dtype {_dtype_of(output)}, not of the dtype of its arguments, because it "
                "is made of truth values and numbers alone; convert them, as in (x > 0).to(x.dtype)"
            )
        outputs.append(expr.make("float64", output.expr) if tracing.widened else output.expr)
    inputs = tuple(x for x in arguments if isinstance(x, Expr) and x.op == "tensor")
    scalars = tuple(x for x in arguments if isinstance(x, Expr) and x.op == "scalar")
    names = ("output",) if len(outputs) == 1 else tuple(f"output{i}" for i in range(len(outputs)))
    return Program(inputs, scalars, tuple(outputs), names), tracing.asked


class _Tracing(TorchFunctionMode):
    """Computes with expressions what is called on symbols."""

    error: TraceError | None = None
    asked = False  # for the dtype of a tensor
    widened = False  # to float64, from some result on

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.name, self.dtype = name, dtype

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

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = _name(func)
        if name in _SWITCHES:
            return func(*args, **kwargs)
        if name in _QUESTIONS and len(args) == 1 and isinstance(args[0], _Symbol) and args[0].kind == "tensor":
            self.asked = self.asked or name == "dtype"
            return self.dtype if name == "dtype" else _QUESTIONS[name]
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
        if function := next(filter(None, map(_function_of, given)), None):
            raise _error(name, f"is given a result of {function}, {_HAS_BACKWARD}")
        if name in _VALUES and len(given) == 1 and isinstance(given[0], _Symbol) and given[0].kind == "number":
            return self._asked_for(name, given[0].expr)
        if not is_of_torch(func):
            raise _error(name, f"is a function of {_module(func)}, not of PyTorch; {_OUTSIDE}")
        kwargs = {key: x for key, x in kwargs.items() if not (key in _IDLE and (x is None or x is False))}
        if name == "_is_view":  # PyTorch asks before an assignment
            return False
        place = _in_place(name, kwargs)
        if place is not None:
            return self._write(name, place, args, kwargs)
        if "out" in kwargs:
            raise _error(name, _IN_PLACE)
        if name in _CONVERSIONS and isinstance(args[0], _Symbol) and args[0].kind != "number":
            return self._converted(name, args, kwargs)
        return self._result(name, args, kwargs)

    def _result(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Symbol:
        """A function of symbols."""
        if name in _REFUSED:
            raise _error(name, _REFUSED[name])
        base = name.strip("_") if name.startswith("__") else name
        handler = FUNCTIONS.get(base)
        if handler is None:
            raise _error(name, _UNKNOWN)
        kwargs = self._without_dtype(name, kwargs)
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, _Symbol)]
        symbols, kinds = [x.expr for x in given], {x.kind for x in given}
        if kinds == {"number"} and base in _OF_NUMBERS:
            raise ValueNeeded(frozenset().union(*map(_numbers_in, symbols)))
        if name in _OF_TENSORS and "number" in kinds:
            raise _error(name, "takes no number; write torch.full_like(x, c) for c")
        if symbols and not any(x.varies for x in symbols) and name not in _ARITHMETIC:
            raise _error(name, _CONSTANT if all(x.is_constant for x in symbols) else _OF_A_NUMBER)

        if any(isinstance(x, torch.Tensor) and not isinstance(x, _Symbol) for x in (*args, *kwargs.values())):
            raise _error(name, _OUTSIDE_TENSOR)

        def apply(of: Callable[[Any], Any]) -> Expr:
            try:
                applied = handler(*map(of, args), **{key: of(x) for key, x in kwargs.items()})
            except _Problem as problem:
                raise _error(name, str(problem)) from None
            except TypeError as error:
                text = re.sub(r"^\S+\(\) ", "", str(error))  # without the name of the handler
                raise _error(name, f"has no kernel for these arguments ({text}); {_OUTSIDE}") from None
            assert isinstance(applied, Expr)
            return applied

        self.widened = self.widened or base == "float_power"
        rounds = base in _ROUNDS_NUMBERS
        steps = base in _STEPS or "rounding_mode" in kwargs
        value = apply(_with_rounded_numbers(_value) if rounds and steps else _value)
        stored = apply(_with_rounded_numbers(_stored) if rounds else _stored)
        if steps:
            value = _decided(value, {x.expr: x.stored for x in given if x.stored is not x.expr})
        if not torch.is_grad_enabled() and not value.is_mask:  # PyTorch records nothing under no_grad
            value, stored = expr.detach(value), expr.detach(stored)
        kind = "tensor" if name in _OF_NOTHING and "dtype" in kwargs else _kind_of(name, value, args, kwargs)
        if kind in FLOATS:
            value = stored = expr.make(kind, value)
        elif kind == "tensor":
            if base in _CONSTANTS:
                value = expr.rounded(value)
            stored = expr.rounded(stored)
        symbol = _symbol(value, kind, stored)
        if base in _ALIASES:
            for x in given:
                x.is_in_use = True
            symbol.is_in_use = True
        return symbol

    @staticmethod
    def _asked_for(name: str, value: Expr) -> Any:
        """The value of a number, where a Python number is wanted."""
        if names := _numbers_in(value):
            raise ValueNeeded(names)
        if not value.is_constant:
            raise _error(name, _NUMBER)
        convert = {"__bool__": bool, "__int__": int, "__index__": int, "__complex__": complex}.get(name, float)
        return convert(value.number)

    def _without_dtype(self, name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The keywords without a dtype that is the tensors' own, and without what makes no difference."""
        if name not in _CONSTANTS and name not in _OF_NOTHING:
            return kwargs
        if (dtype := kwargs.get("dtype", self.dtype)) is not self.dtype:
            raise _error(name, f"is given dtype={dtype}, but {_KEEPS}; give x.dtype, or no dtype")
        idle = ("device", "memory_format", "requires_grad", "layout", "pin_memory", *(["dtype"] * (name in _CONSTANTS)))
        return {key: x for key, x in kwargs.items() if key not in idle}

    def _write(self, name: str, base: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Symbol:
        """y += x and the like, on an intermediate result."""
        y = args[0] if args else next(iter(kwargs.values()))
        if not isinstance(y, _Symbol):
            raise _error(name, _OUTSIDE_TENSOR)
        if y.is_in_use and y.kind != "number":
            raise _error(name, _IN_PLACE)
        if not torch.is_grad_enabled():
            raise _error(name, "changes a tensor in place under no_grad, which hides that from autograd; " + _NEW_NAME)
        result = self._result(base, args, {key: x for key, x in kwargs.items() if key != "inplace"})
        if y.kind == "number":  # a Python number is not changed but replaced
            return result
        if result.kind != y.kind:
            raise _error(name, f"changes a tensor in place and its dtype; {_NEW_NAME}")
        y.expr, y.stored = result.expr, result.stored
        return y

    def _converted(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Symbol:
        """x.to(dtype), x.float() and the like."""
        x = args[0]
        wanted = [*args[1:], *(value for key, value in kwargs.items() if key in ("dtype", "other", "tensor"))]
        if name in _DTYPES_BY_NAME:
            wanted.append(_DTYPES_BY_NAME[name])
        elsewhere = (bool, torch.device) if name == "type" else (bool, torch.device, str)
        wanted = [y for y in wanted if not isinstance(y, elsewhere)]
        if len(wanted) > 1 or (name == "type" and not wanted):
            raise _error(name, _TYPE)
        kind = self._kind(wanted[0]) if wanted else x.kind
        if kind == x.kind:
            x.is_in_use = True
            return _symbol(x.expr, x.kind, x.stored, is_in_use=True)
        if kind in (None, "mask", "number") or x.kind == "tensor":
            raise _error(name, _TYPE)
        number = _number(x.expr)
        assert isinstance(number, Expr) and kind
        return _symbol(expr.make(kind, number) if kind in FLOATS else number, kind)

    def _kind(self, target: Any) -> str | None:
        """The kind that a conversion to a dtype, or to that of another tensor, gives; None if that is unknown."""
        if isinstance(target, _Symbol):
            return target.kind
        return "tensor" if target is self.dtype else _KINDS.get(target)


def signature_of(func: Any) -> inspect.Signature | None:
    """The signature of a function of PyTorch that is written in C++; None of another."""
    if isinstance(func, types.FunctionType) or not isinstance(getattr(func, "__name__", None), str):
        return None
    handler = FUNCTIONS.get(_name(func)) if is_of_torch(func) else None
    if handler is None:
        return None
    signature = inspect.signature(handler)
    parameters = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return signature.replace(parameters=parameters, return_annotation=signature.empty)


def plain(function: Any) -> Any:
    """A function without what ``torch.compile`` or ``staticmethod`` put around it."""
    if isinstance(function, staticmethod):
        return function.__func__
    return getattr(function, "_torchdynamo_orig_callable", getattr(function, "_orig_mod", function))


def captures(function: Any) -> bool:
    """Can a function read something from outside that may change after it was declared?"""
    return _may_change(function, set())


def _may_change(x: Any, seen: set[Any]) -> bool:
    if isinstance(x, functools.partial):
        return any(_may_change(y, seen) for y in (x.func, *x.args, *x.keywords.values()) if callable(y))
    if isinstance(x, types.ModuleType):
        return x.__name__.partition(".")[0] not in _IMMUTABLE
    if isinstance(x, type) or not isinstance(x, types.FunctionType):
        module = getattr(x, "__module__", None) or "builtins"
        known = hasattr(x, "define") or (callable(x) and not hasattr(x, "__self__")) or inspect.isbuiltin(x)
        return not (known and module.partition(".")[0] in _IMMUTABLE)
    if x in seen or (x.__module__ or "").partition(".")[0] == "torch":
        return False
    seen.add(x)
    cells = [cell.cell_contents for cell in x.__closure__ or ()]
    used = {name for code in _codes(x.__code__) for name in code.co_names}
    return any(_may_change(y, seen) for y in [*cells, *(x.__globals__[name] for name in used & x.__globals__.keys())])


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code of a function and of those that it defines."""
    yield code
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _codes(inner)


def _name(func: Any) -> str:
    if func is torch.Tensor.where:  # its arguments stand in another order
        return "Tensor.where"
    func = getattr(func, "overloadpacket", func)
    name: str = getattr(func, "__name__", repr(func))
    return func.__self__.__name__ if name in ("__get__", "__set__") else name.removeprefix("special_")


def _module(func: Any) -> str:
    if isinstance(func, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return f"torch.ops.{func}"
    return str(getattr(func, "__module__", None) or "torch")


def is_of_torch(func: Any) -> bool:
    """Is it a function of PyTorch, whose name says what it computes? One of another library may have the same name."""
    if isinstance(func, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return str(func).startswith("aten.")
    if isinstance(func, types.FunctionType):  # the module that the code is in: functools.wraps copies __module__
        module = func.__globals__.get("__name__")
    else:
        attribute = getattr(func, "__self__", None)  # Tensor.mT.__get__ is of Tensor.mT, which is of Tensor
        owner = getattr(attribute, "__objclass__", None) or getattr(func, "__objclass__", None)
        module = getattr(owner or func, "__module__", None)
    return isinstance(module, str) and module.partition(".")[0] == "torch"


def _in_place(name: str, kwargs: dict[str, Any]) -> str | None:
    """The function whose result a function writes into its first argument; None if it writes nothing."""
    if name in _AUGMENTED:
        return _AUGMENTED[name]
    if kwargs.get("inplace"):
        return name
    if name.endswith("_") and not name.endswith("__") and name != "requires_grad_":
        return _WRITES.get(name, name.removesuffix("_"))
    return None


def _value(x: Any) -> Any:
    return x.expr if isinstance(x, _Symbol) else x


def _stored(x: Any) -> Any:
    return x.stored if isinstance(x, _Symbol) else x


def _with_rounded_numbers(of: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """PyTorch rounds a number that it compares with a tensor."""

    def operand(x: Any) -> Any:
        is_number = isinstance(x, float) or (isinstance(x, _Symbol) and x.kind == "number")
        return expr.rounded(of(x)) if is_number else of(x)

    return operand


def _decided(value: Expr, stored: Mapping[Expr, Expr]) -> Expr:
    """A function of operands that compares, or rounds to integers, what PyTorch has of them in memory."""
    if not stored:
        return value
    known: dict[Expr, tuple[Expr, Expr]] = {}  # as it is computed, and as it is compared
    for node in expr.topological([value]):
        if node in stored or not node.args:
            known[node] = node, stored.get(node, node)
            continue
        computed, compared = zip(*(known[arg] for arg in node.args), strict=True)
        kept = expr.make(node.op, *compared)
        if node.is_mask or node.op in _INTEGERS:
            known[node] = kept, kept
        elif node.op in _KINKS and computed != compared:
            known[node] = _KINKS[node.op](computed, compared), kept
        else:
            known[node] = expr.make(node.op, *computed), kept
    return known[value][0]


_INTEGERS = frozenset("floor ceil round trunc sign fmod remainder".split())


def _unordered(p: Expr, q: Expr) -> Expr:
    return expr.ne(p, p) if q.is_constant else expr.or_(expr.ne(p, p), expr.ne(q, q))


def _clamped(op: str) -> Callable[[Any, Any], Expr]:
    """A bound where it is larger (lt) or smaller (gt) than x, by what is compared of them; no slope at nan."""

    def clamped(operands: Any, compared: Any) -> Expr:
        (x, bound), (p, q) = operands, compared
        return where(expr.make(op, p, q), bound, where(_unordered(p, q), expr.detach(x + bound), x))

    return clamped


def _extreme(op: str) -> Callable[[Any, Any], Expr]:
    """The larger (lt) or smaller (gt) of two numbers, by what is compared of them; half of each if equal."""

    def extreme(operands: Any, compared: Any) -> Expr:
        (a, b), (p, q) = operands, compared
        chosen = where(expr.make(op, p, q), b, where(_unordered(p, q), a + b, a))
        return where(expr.eq(p, q), (a + b) / 2, chosen)

    return extreme


_KINKS: dict[str, Callable[[Any, Any], Expr]] = {
    "clamp_min": _clamped("lt"), "clamp_max": _clamped("gt"), "maximum": _extreme("lt"), "minimum": _extreme("gt"),
}  # fmt: skip


def _function_of(x: Any) -> str | None:
    """The custom autograd.Function that gave x: what it computes is seen here, its backward is not."""
    node = x.grad_fn if isinstance(x, torch.Tensor) else None
    if node is None or not isinstance(node, BackwardCFunction):
        return None
    return str(node._forward_cls.__name__)


def _numbers_in(value: Expr) -> frozenset[str]:
    return frozenset(str(x.value) for x in expr.topological([value]) if x.op == "scalar")


def _kind_of(name: str, value: Expr, args: Sequence[Any], kwargs: dict[str, Any]) -> str:
    """The kind of a result, by PyTorch's rules of type promotion."""
    operands = [x for i, x in enumerate(args) if i != _CHOICES.get(name)]
    operands += [x for key, x in kwargs.items() if key != "condition"]
    kinds = {x.kind for x in operands if isinstance(x, _Symbol)}
    if value.is_mask and kinds != {"number"}:
        return "mask"
    if kinds <= {"number"} and name not in _CHOICES:
        return "number"
    if "tensor" in kinds:
        return "tensor"
    floats = [kind for kind in kinds if kind in FLOATS]
    has_floats = "number" in kinds or any(isinstance(x, float) for x in operands)
    if not floats and not has_floats and name in _INTEGRAL:
        return "integer"
    if name not in _PROMOTED:
        raise _error(name, "is given a truth value; convert it to the dtype of a tensor, as in (x > 0).to(x.dtype)")
    dtypes = [getattr(torch, kind) for kind in floats] or [torch.get_default_dtype()]
    return str(functools.reduce(torch.promote_types, dtypes)).removeprefix("torch.")


def _dtype_of(x: _Symbol) -> str:
    return {"mask": "bool", "integer": "int64"}.get(x.kind, x.kind)


def _described(x: Any) -> str:
    return "a Python number" if isinstance(x, (_Symbol, int, float)) else f"a {type(x).__name__}"


def _error(name: str, problem: str) -> TraceError:
    """The error for a function, with the line of the user's source that called it."""
    frame = sys._getframe(1)
    while frame.f_back and (frame.f_code.co_filename.startswith(_LIBRARIES + _OWN)):
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
_SWITCHES = frozenset(("_set_grad_enabled", "set_grad_enabled", "_enter_inference_mode", "_exit_inference_mode"))
# What a tensor answers while it is a symbol; a device is only good for being passed on.
_QUESTIONS: dict[str, Any] = {
    "dtype": None, "device": torch.device("meta"), "is_floating_point": True, "is_complex": False,
}  # fmt: skip
_VALUES = frozenset("__bool__ __float__ __int__ __index__ __complex__ __array__ __format__ item".split())
_AUGMENTED = {
    "__iadd__": "add", "__isub__": "sub", "__imul__": "mul", "__itruediv__": "div", "__idiv__": "div",
    "__ifloordiv__": "floor_divide", "__imod__": "remainder", "__ipow__": "pow", "__iand__": "and", "__ior__": "or",
    "__ixor__": "logical_xor",
}  # fmt: skip
_WRITES = {"fill_": "full_like", "zero_": "zeros_like"}
_ALIASES = frozenset("detach data contiguous positive".split())
_CONVERSIONS = frozenset("to type type_as float double half bfloat16 int long bool".split())
_KINDS: dict[Any, str] = {
    **{getattr(torch, name): name for name in FLOATS},
    **dict.fromkeys((float, torch.DoubleTensor), "float64"),
    **dict.fromkeys((int, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64), "integer"),
    **dict.fromkeys((bool, torch.bool), "mask"),
    torch.FloatTensor: "float32",
}
_DTYPES_BY_NAME = {
    "float": torch.float32, "double": torch.float64, "half": torch.float16, "bfloat16": torch.bfloat16,
    "int": torch.int32, "long": torch.int64, "bool": torch.bool,
}  # fmt: skip
_ARITHMETIC = frozenset(
    "add sub mul div true_divide pow neg abs positive gt ge lt le eq ne rsub __rsub__ __rpow__ __rdiv__".split()
)
# Of truth values: what gives integers where no number has a point, and what gives the default dtype.
_INTEGRAL = frozenset("add sub mul rsub __rsub__ neg abs positive where Tensor.where maximum minimum".split())
_PROMOTED = _INTEGRAL | frozenset("div true_divide __rdiv__".split())
_CHOICES = {"where": 0, "Tensor.where": 1}  # the place of the condition
_CONSTANTS = frozenset("zeros_like ones_like full_like new_tensor new_full new_zeros new_ones".split())
_OF_NOTHING = frozenset("tensor as_tensor scalar_tensor".split())
_OF_TENSORS = frozenset("atan2 arctan2 hypot maximum minimum max min".split())
_OF_NUMBERS = frozenset("floordiv rfloordiv floor_divide remainder rmod fmod floor ceil round trunc".split())
# PyTorch rounds the numbers that it gives these to the dtype; those of a product or a quotient it does not.
_ROUNDS_NUMBERS = frozenset(
    "lt le gt ge eq ne less less_equal greater greater_equal not_equal clamp clip clamp_min clamp_max hardshrink fmod "
    "remainder rmod add sub subtract rsub pow rpow xlogy".split()
)
# Functions that jump or bend where they compare: half types compute with more bits than PyTorch compares.
_STEPS = frozenset(
    "lt le gt ge eq ne less less_equal greater greater_equal not_equal clamp clip clamp_min clamp_max hardshrink fmod "
    "remainder rmod isinf isfinite isclose maximum minimum max min sign sgn floor ceil round trunc fix frac floordiv "
    "rfloordiv floor_divide relu6 hardtanh hardsigmoid hardswish softshrink threshold _threshold heaviside "
    "nan_to_num".split()
)
_CONTROL = "needs the value of an element, but the function is traced once for all; write torch.where(condition, a, b)"
_NUMBER = "asks for the value of a symbol; use the functions of torch for a tensor"
_OUTSIDE = "compute it outside and pass the result as an argument"
_OUTSIDE_TENSOR = (
    "meets a tensor from outside the function; pass it as an argument, or, where a function that torch.jit.script made "
    "gives it, call that function in Python"
)
_OF_A_NUMBER = f"is given a Python number; {_OUTSIDE}"
_CONSTANT = "is given a constant; compute it with the math module"
_NO_MASK = "is given what is no truth value; compare it, as in x != 0"
_UNKNOWN = f"is not elementwise, or not known to be; {_OUTSIDE}"
_NEW_NAME = "give the result a new name, as in y = x + 1"
_IN_PLACE = f"changes a tensor in place that is an argument or has a second name; {_NEW_NAME}"
_HAS_BACKWARD = (
    "an autograd.Function, whose backward an elementwise op does not see; apply it outside, or write a value v with "
    "the slope of s as s + (v - s).detach()"
)
_REDUCTION = "combines elements; reduce the result outside, as in op(x).sum()"
_INDEX = "picks elements; pass the part as an argument, as in op(x[..., 0])"
_RANDOM = "draws random numbers; draw them outside and pass them as an argument"
_SHAPE = "looks at a whole tensor, but a pointwise function sees one element; pass what it needs as an argument"
_KEEPS = "a pointwise function keeps the dtype and the device of its tensors"
_TYPE = f"changes or asks for dtype or device, but {_KEEPS}; convert the arguments"
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
        "is_cuda to type_as": _TYPE,
        "zeros ones full empty empty_like arange linspace from_numpy eye": _CREATES,
        "prelu": "has weights along dimension 1, arguments broadcast from the last; write torch.where(x > 0, x, w * x)",
        "__setitem__": "changes a tensor in place; write torch.where(condition, a, b)",
        "view_as custom_function_call": f"is called by {_HAS_BACKWARD}",
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
    if _masks(input, other):
        return expr.or_(expr.and_(condition, input), expr.and_(expr.not_(condition), other))
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
            raise _Problem(_NO_MASK)
        return expr.make(op, *operands)

    return logical


def _tensor(data: Any, dtype: Any = None) -> Expr:
    """A constant, rounded to the default dtype where no other is given."""
    if isinstance(data, Expr):
        raise _Problem("is given a symbol; write the number itself")
    default = str(torch.get_default_dtype()).removeprefix("torch.")
    return expr.constant(float(data)) if dtype else expr.rounded(expr.make(default, float(data)))


def _new_full(input: Expr, size: Any, fill_value: Operand) -> Expr:
    if not isinstance(size, (tuple, list)) or size:
        raise _Problem(_CREATES)
    return fill_value if isinstance(fill_value, Expr) else expr.constant(fill_value)


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
        slope = 2 * math.sqrt(2 / math.pi)
        return input * expr.sigmoid(input * (slope + 0.044715 * slope * input**2))
    if approximate != "none":
        raise _Problem(f"has no approximate {approximate!r}; it is 'none' or 'tanh'")
    return input * expr.ndtr(input)


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
    outside = expr.or_(expr.make("lt", input, expr.mul(-1, lambd)), expr.make("gt", input, lambd))
    return where(outside, input, expr.detach(where(expr.eq(input, input), 0, input)))  # a nan has no slope


def _logaddexp(input: Expr, other: Expr) -> Expr:
    for a, b in ((input, other), (other, input)):
        if isinstance(b, Expr) and b.is_constant and b.number == 0:
            return expr.log1pexp(a)
    return expr.logaddexp(input, other)


def _sinc(input: Expr) -> Expr:
    return expr.spherical_bessel(0, input)


def _xlogy(input: Expr, other: Expr) -> Expr:
    # 0 log y is 0 for every y but nan; the slope in x is log y where that is a number.
    singular = expr.or_(expr.make("le", other, 0), expr.eq(other, math.inf))
    return expr.mul(input, expr.log(where(expr.and_(expr.eq(input, 0), singular), 1, other)))


def _xlog1py(input: Operand, other: Expr) -> Expr:
    singular = expr.or_(expr.make("le", other, -1), expr.eq(other, math.inf))
    return expr.mul(input, expr.log1p(where(expr.and_(expr.eq(input, 0), singular), 0, other)))


def _polygamma(n: Any, input: Any) -> Expr:
    if isinstance(n, Expr):  # the method
        n, input = input, n
    if not isinstance(n, int) or n < 0:
        raise _Problem(f"has the order {n!r}; it is 0 or a positive integer")
    return expr.polygamma(n, input)


def _logit(input: Expr, eps: float | None = None) -> Expr:
    if eps is None:
        return expr.logit(input)
    low, high = eps, expr.sub(1, eps)
    return expr.logit(where(expr.make("lt", input, low), low, where(expr.make("gt", input, high), high, input)))


def _xor(input: Any, other: Any) -> Expr:
    if not _masks(input, other):
        raise _Problem(_NO_MASK)
    return expr.ne(input, other)


def _masked_fill(input: Operand, mask: Expr, value: Operand) -> Expr:
    if not _masks(mask) or _varies(value):
        raise _Problem("takes a truth value and a number; write torch.where(condition, value, x)")
    return where(mask, value, _number(input))


def _isclose(input: Expr, other: Expr, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Expr:
    distance = expr.abs_(input - other)
    near = expr.and_(distance < math.inf, expr.make("le", distance, expr.add(atol, expr.abs_(expr.mul(rtol, other)))))
    close = expr.or_(expr.eq(input, other), near)
    return expr.or_(close, expr.and_(expr.ne(input, input), expr.ne(other, other))) if equal_nan else close


def _nan_to_num(
    input: Expr, nan: float | None = None, posinf: float | None = None, neginf: float | None = None
) -> Expr:
    high = expr.finite(math.inf) if posinf is None else posinf
    low = expr.finite(-math.inf) if neginf is None else neginf
    number = where(expr.eq(input, math.inf), high, where(expr.eq(input, -math.inf), low, input))
    return where(expr.ne(input, input), nan or 0, number)


def _heaviside(input: Expr, values: Operand) -> Expr:
    return expr.detach(where(expr.eq(input, 0), values, where(input > 0, 1, 0)))


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
    "logaddexp": _logaddexp,
    "sinc": _sinc,
    "xlogy": _xlogy,
    "xlog1py": _xlog1py,
    "logit": _logit,
    "digamma": lambda input: expr.polygamma(0, input),
    "polygamma": _polygamma,
    "erfcx": lambda input: expr.erfcx(0, input),
    "heaviside": _heaviside,
    "signbit": lambda input: expr.make("lt", expr.copysign(1, input), 0),
    "masked_fill": _masked_fill,
    "nan_to_num": _nan_to_num,
    "isclose": _isclose,
    "deg2rad": lambda input: input * (math.pi / 180),
    "rad2deg": lambda input: input * (180 / math.pi),
    "frac": lambda input: input - expr.trunc(input),
    "zeros_like": lambda input: expr.constant(0),
    "ones_like": lambda input: expr.constant(1),
    "full_like": lambda input, fill_value: fill_value if isinstance(fill_value, Expr) else expr.constant(fill_value),
    "new_tensor": lambda input, data: expr.constant(float(data)),
    "new_full": _new_full,
    "new_zeros": lambda input, size: _new_full(input, size, 0),
    "new_ones": lambda input, size: _new_full(input, size, 1),
    "tensor": _tensor,
    "as_tensor": _tensor,
    "scalar_tensor": _tensor,
    "clone": lambda input: input,
    "contiguous": lambda input: input,
    "data": lambda input: expr.detach(input),
    "positive": lambda input: input,
    "relu": lambda input: where(input <= 0, 0, input),
    "relu6": lambda input: _hardtanh(input, 0.0, 6.0),
    "elu": _elu,
    "selu": lambda input: _elu(input, _ALPHA, _SCALE),
    "celu": _celu,
    "leaky_relu": _leaky_relu,
    "silu": lambda input: input * expr.sigmoid(input),
    "mish": lambda input: input * expr.tanh_half(2 * expr.log1pexp(input)),
    "gelu": _gelu,
    "softplus": _softplus,
    "log_sigmoid": lambda input: -expr.log1pexp(-input),
    "hardtanh": _hardtanh,
    "hardsigmoid": _hardsigmoid,
    "hardswish": _hardswish,
    "softshrink": _softshrink,
    "hardshrink": _hardshrink,
    "threshold": lambda input, threshold, value: where(expr.make("le", input, threshold), value, input),
}
for _alias, _of in {
    "subtract": "sub", "multiply": "mul", "divide": "div", "true_divide": "div", "negative": "neg", "absolute": "abs",
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arctan2": "atan2", "arcsinh": "asinh", "arccosh": "acosh",
    "arctanh": "atanh", "expit": "sigmoid", "greater": "gt", "greater_equal": "ge", "less": "lt", "less_equal": "le",
    "not_equal": "ne", "sgn": "sign", "fix": "trunc", "clip": "clamp", "gammaln": "lgamma", "psi": "digamma",
    "_threshold": "threshold",
}.items():  # fmt: skip
    FUNCTIONS[_alias] = FUNCTIONS[_of]


def _bessel(n: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """j_n(u) / u^n at u = pi x: its power series near 0, beyond it the recurrence from (sin u) / u and cos u."""
    order, u = int(n), math.pi * x
    term = torch.ones_like(u) / math.prod(range(1, 2 * order + 2, 2))
    series = term
    for k in range(1, 20 + order):
        term = term * (-u * u / 2) / (k * (2 * order + 2 * k + 1))
        series = series + term
    far = torch.where(u.abs() < 1, torch.ones_like(u), u)
    nearest = x.detach().round()
    sign, rest = 1 - 2 * torch.remainder(nearest, 2), math.pi * (x - nearest)
    before, value = sign * rest.cos(), sign * rest.sin() / far
    for k in range(order):
        before, value = value, ((2 * k + 1) * value - before) / (far * far)
    return torch.where(u.abs() < order + 2, series, value)


def _finite(x: torch.Tensor) -> torch.Tensor:
    limits = torch.finfo(x.dtype)
    return torch.clamp(x, limits.min, limits.max)


def _erfcx(n: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(-1)^n times the n-th derivative of erfcx, by the recurrences in ``csrc/scalar/special.h``."""
    order, last, wide = int(n), int(n) + 60, x.double()
    before, upwards = torch.full_like(wide, 2 / math.sqrt(math.pi)), torch.special.erfcx(wide)
    downwards, large = upwards, wide.clamp_min(1.5)
    ratio = (large * large + 2 * last - 1 + large / (large * large + 2 * last).sqrt()).sqrt() - large
    for k in range(last - 1, 0, -1):
        ratio = 2 * k / (2 * large + ratio)
        downwards = downwards * ratio if k <= order else downwards
    for k in range(order):
        before, upwards = upwards, (2 * k or 1) * before - 2 * wide * upwards
    return torch.where(wide > 1.5, downwards, upwards).to(x.dtype)


def _rounded_to(dtype: torch.dtype, x: torch.Tensor) -> torch.Tensor:
    return x.to(dtype).to(x.dtype)


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
    "logistic_density": lambda x: torch.sigmoid(x) * torch.sigmoid(-x),
    "tanh_half": lambda x: torch.tanh(x / 2),
    "one_minus_square": lambda x: (1 - x) * (1 + x),
    "ndtr": lambda x: torch.erfc(x * -math.sqrt(0.5)) / 2,
    "normal_density": lambda x: torch.exp(-x * x / 2) / math.sqrt(2 * math.pi),
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "spherical_bessel": _bessel,
    # PyTorch's own trigamma is wrong in the tenth digit.
    "polygamma": lambda n, x: torch.special.zeta(2.0, x) if n == 1 else torch.polygamma(int(n), x),
    "erfcx": _erfcx,
    "finite": _finite,
    "log_ndtr": torch.special.log_ndtr,
    "entr": torch.special.entr,
    "rounded": lambda x: x,
    **{name: functools.partial(_rounded_to, getattr(torch, name)) for name in expr.FLOATS},
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
