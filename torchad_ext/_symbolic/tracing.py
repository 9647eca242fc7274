"""A plain PyTorch function of elements, or of rows of elements, as expressions.

The function is called once with symbols in place of tensors. Every PyTorch function, method and operator it uses on
them is looked up by its name in ``FUNCTIONS``, and what is not there raises with the line that used it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode

from .._torch_state import function_of, without_compilation, without_jit_trace, without_modes
from . import operations as op
from . import refusals
from .expr import FLOATS, SYMBOLS, Expr, NoNumber, constant, length, make, topological
from .kinks import decided
from .program import Program
from .refusals import NumberExpected, Problem, TraceError, refusal
from .symbols import (
    RowShape,
    TracedSymbol,
    ValueNeeded,
    argument,
    current_level,
    described,
    dtype_of,
    kind_of,
    new_symbol,
    numbers_in,
    spans_of,
    value_needed,
)
from .torch_functions import (
    ALIASES,
    ARITHMETIC,
    CONSTANTS,
    FUNCTIONS,
    OF_NOTHING,
    OF_NUMBERS,
    OF_TENSORS,
    ROUNDS_NUMBERS,
    STEPS,
    number,
)
from .torch_names import is_of_torch, module_of, name_of, written_by
from .torch_row_functions import INDICES, ROW_FUNCTIONS, along_row

# No tensor of a function has it, so that a dtype which the function asks its tensors for differs from all it names.
_DTYPE = torch.float8_e5m2


def trace(function: Callable[[list[Any]], Any], arguments: Sequence[Any], name: str, rows: bool = False) -> Program:
    """The program of a function.

    Args:
        function: calls plain PyTorch with a list of arguments.
        arguments: that list: symbols of :mod:`torchad_ext._symbolic.expr` for tensors and run-time numbers, anything
            else as it is.
        name: of the function, for messages.
        rows: is it a function of rows? Its outputs are of kind ``"tensor"``, ``"row"``, or ``"dropped"`` where the
            last dimension is gone. It is computed in float32 for half types, what it compares too.

    Raises:
        TraceError: the function is not elementwise in its tensors.
        ValueNeeded: it asks for the value of a run-time number.
    """
    program, asked = _traced(function, arguments, name, _DTYPE, rows)
    for dtype in (getattr(torch, name) for name in (FLOATS if asked else ())):
        other, _ = _traced(function, arguments, name, dtype, rows)
        if _without_dtypes(other) != _without_dtypes(program):
            raise TraceError(
                f"{name} computes something else in {dtype} than in other dtypes, because it asks for the dtype of a "
                "tensor; pass what depends on it as an argument, as in f(x, eps=1e-6)"
            )
    return _without_dtypes(program, frozenset(("rounded",))) if rows else program


def inlined(program: Program, values: Mapping[Expr, Any]) -> Any:
    """The outputs of a program within a function that is being traced, for symbols and numbers in place of its own."""
    known = {x: value.expr if isinstance(value, TracedSymbol) else constant(value) for x, value in values.items()}
    for node in topological(program.outputs):
        if node not in known:
            known[node] = make(node.op, *(known[arg] for arg in node.args)) if node.args else node
    outputs = tuple(new_symbol(known[y], "tensor", op.rounded(known[y])) for y in program.outputs)
    return outputs[0] if len(outputs) == 1 else outputs


def _without_dtypes(program: Program, roundings: frozenset[str] = frozenset((*FLOATS, "rounded"))) -> Program:
    """The program without roundings to a dtype."""
    plain: dict[Expr, Expr] = {}
    for node in topological(program.outputs):
        args = tuple(plain[arg] for arg in node.args)
        plain[node] = args[0] if node.op in roundings else make(node.op, *args) if args else node
    return replace(program, outputs=tuple(plain[y] for y in program.outputs))


def _traced(
    function: Callable[[list[Any]], Any], arguments: Sequence[Any], name: str, dtype: torch.dtype, rows: bool
) -> tuple[Program, bool]:
    """The program for tensors of a dtype, and whether the function asks for it."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(without_modes())
        stack.enter_context(without_jit_trace())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(without_compilation())
        symbols = [argument(x) for x in arguments]
        tracing = stack.enter_context(_Tracing(name, dtype, rows))
        try:
            result = function(symbols)
        except TypeError as error:
            if not tracing.error:
                numbers = [x for x in arguments if isinstance(x, Expr) and x.op == "scalar"]
                if "TracedSymbol" not in str(error):
                    raise
                if numbers:  # PyTorch takes a Python number there, nothing else
                    raise ValueNeeded(frozenset(str(x.value) for x in numbers)) from None
                raise NumberExpected(f"{name}: {str(error).replace('TracedSymbol', 'Tensor')}") from None
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
            raise TraceError(f"{name} returns a result of {function_name}, {refusals.HAS_BACKWARD}")
        if not isinstance(output, TracedSymbol) or output.kind == "number":
            raise TraceError(
                f"{name} returns {described(output)}, not {'a' if rows else 'an elementwise'} function of its tensors"
                "; return a tensor, torch.full_like(x, c) for a constant"
            )
        if output.kind == "mask":
            raise TraceError(
                f"{name} returns a truth value, which has no derivative; return torch.where(condition, a, b)"
            )
        if output.kind != "tensor":
            raise TraceError(
                f"{name} returns a tensor of dtype {dtype_of(output)}, not of the dtype of its arguments, because it "
                "is made of truth values and numbers alone; convert them, as in (x > 0).to(x.dtype)"
            )
        outputs.append(make("float64", output.expr) if tracing.widened else output.expr)
    inputs = tuple(x for x in arguments if isinstance(x, Expr) and x.op in SYMBOLS)
    scalars = tuple(x for x in arguments if isinstance(x, Expr) and x.op == "scalar")
    names = ("output",) if len(outputs) == 1 else tuple(f"output{i}" for i in range(len(outputs)))
    kinds = tuple("tensor" if x.spans in ("element", "") else x.spans for x in results) if rows else ()
    return Program(inputs, scalars, tuple(outputs), names, kinds), tracing.asked


class _Tracing(TorchFunctionMode):
    """Computes with expressions what is called on symbols."""

    error: TraceError | ValueNeeded | None = None
    asked = False  # for the dtype of a tensor
    widened = False  # to float64, from some result on

    def __init__(self, name: str, dtype: torch.dtype, rows: bool) -> None:
        super().__init__()
        self.name, self.dtype, self.rows, self.level = name, dtype, rows, current_level()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.level != current_level():
            return func(*args, **(kwargs or {}))
        try:
            if inlined := getattr(getattr(func, "definition", None), "inlined", None):  # a derivative of a declared op
                return inlined(func.bound(args, kwargs or {}))
            if define := getattr(func, "define", None):  # a declared op within a declared op
                with self:
                    return define(func.bound(args, kwargs or {}))
            return self._call(func, args, kwargs or {})
        except (TraceError, ValueNeeded) as error:
            self.error = self.error or error
            raise

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = name_of(func)
        if name in _SWITCHES:
            return func(*args, **kwargs)
        if name in _QUESTIONS and len(args) == 1 and isinstance(args[0], TracedSymbol) and args[0].kind == "tensor":
            self.asked = self.asked or name == "dtype"
            return self.dtype if name == "dtype" else _QUESTIONS[name]
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
        if function := next(filter(None, map(_function_of, given)), None):
            raise refusal(name, f"is given a result of {function}, {refusals.HAS_BACKWARD}")
        if any(isinstance(x, TracedSymbol) and x.level != self.level for x in given):
            raise refusal(name, refusals.OF_ANOTHER)
        if name in _VALUES and len(given) == 1 and isinstance(given[0], TracedSymbol) and given[0].kind == "number":
            return self._asked_for(name, given[0].expr)
        if not is_of_torch(func):
            raise refusal(name, f"is a function of {module_of(func)}, not of PyTorch; {refusals.OUTSIDE}")
        if given and not any(isinstance(x, TracedSymbol) for x in given):
            raise refusal(name, refusals.OUTSIDE_TENSOR)
        kwargs = {key: x for key, x in kwargs.items() if not (key in _IDLE and (x is None or x is False))}
        if name == "_is_view":  # PyTorch asks before an assignment
            return False
        place = written_by(name, kwargs)
        if place is not None:
            return self._write(name, place, args, kwargs)
        if "out" in kwargs:
            raise refusal(name, refusals.IN_PLACE)
        if self.rows and name in ("shape", "size") and isinstance(args[0], TracedSymbol) and args[0].spans == "element":
            shape = RowShape(new_symbol(length(), "number", spans=""), name)
            dims = [*args[1:], *kwargs.values()]
            return shape[dims[0]] if dims else shape
        if self.rows and name == "broadcast_tensors" and all(isinstance(x, TracedSymbol) for x in args):
            spans = spans_of(name, args)
            return tuple([new_symbol(x.expr, x.kind, x.stored, is_in_use=True, spans=spans) for x in args])
        if name in _CONVERSIONS and isinstance(args[0], TracedSymbol) and args[0].kind != "number":
            return self._converted(name, args, kwargs)
        return self._result(name, args, kwargs)

    def _result(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TracedSymbol:
        """A function of symbols."""
        base = name.strip("_") if name.startswith("__") else name
        handler, spans = None, ""
        if self.rows and (base in ROW_FUNCTIONS or base in INDICES):
            numbers = [x.expr for x in (*args, *kwargs.values()) if isinstance(x, TracedSymbol) and x.kind == "number"]
            if needed := numbers_in(*numbers):
                raise ValueNeeded(needed)
            try:
                handler, args, kwargs, spans = along_row(base, args, kwargs)
            except Problem as problem:
                raise refusal(name, str(problem)) from None
        operands = [x for x in (*args, *kwargs.values()) if isinstance(x, TracedSymbol)]
        if self.rows and name in ("max", "min") and len(operands) < 2:
            raise refusal(name, f"of one tensor is not known; write torch.a{name}(x, -1, keepdim=True)")
        if handler is None:
            if name in refusals.REFUSED:
                raise refusal(name, (refusals.IN_ROWS if self.rows else {}).get(name) or refusals.REFUSED[name])
            handler = FUNCTIONS.get(base)
        if handler is None:
            raise refusal(name, refusals.UNKNOWN)
        kwargs = self._without_dtype(name, kwargs)
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, TracedSymbol)]
        symbols, kinds = [x.expr for x in given], {x.kind for x in given}
        if kinds == {"number"} and base in OF_NUMBERS:
            raise value_needed(name, *symbols)
        if name in OF_TENSORS and "number" in kinds:
            raise refusal(name, "takes no number; write torch.full_like(x, c) for c")
        if symbols and not any(x.varies for x in symbols) and name not in ARITHMETIC and not spans:
            raise refusal(name, refusals.CONSTANT if all(x.is_constant for x in symbols) else refusals.OF_A_NUMBER)

        if any(isinstance(x, torch.Tensor) and not isinstance(x, TracedSymbol) for x in (*args, *kwargs.values())):
            raise refusal(name, refusals.OUTSIDE_TENSOR)

        def apply(of: Callable[[Any], Any]) -> Expr:
            try:
                applied = handler(*map(of, args), **{key: of(x) for key, x in kwargs.items()})
            except Problem as problem:
                raise refusal(name, str(problem)) from None
            except NoNumber:
                if kinds == {"number"}:  # Python computes with it
                    raise value_needed(name, *symbols) from None
                raise  # as PyTorch does: Python may go on with a method of the other operand
            except TypeError as error:
                text = re.sub(r"^\S+\(\) ", "", str(error))  # without the name of the handler
                raise refusal(name, f"has no kernel for these arguments ({text}); {refusals.OUTSIDE}") from None
            assert isinstance(applied, Expr)
            return applied

        self.widened = self.widened or base == "float_power"
        rounds = base in ROUNDS_NUMBERS
        steps = base in STEPS or "rounding_mode" in kwargs
        value = apply(_with_rounded_numbers(_value) if rounds and steps else _value)
        stored = apply(_with_rounded_numbers(_stored) if rounds else _stored)
        if steps:
            value = decided(value, {x.expr: x.stored for x in given if x.stored is not x.expr})
        if not torch.is_grad_enabled() and not value.is_mask:  # PyTorch records nothing under no_grad
            value, stored = op.detach(value), op.detach(stored)
        kind = "tensor" if name in OF_NOTHING and "dtype" in kwargs else kind_of(name, value, args, kwargs)
        spans = spans or spans_of(name, given)
        if kind in FLOATS:
            value = stored = make(kind, value)
        elif kind == "tensor":
            if base in CONSTANTS:
                value = op.rounded(value)
            stored = op.rounded(stored)
        symbol = new_symbol(value, kind, stored, spans=spans)
        if base in ALIASES:
            for x in given:
                x.is_in_use = True
            symbol.is_in_use = True
        return symbol

    @staticmethod
    def _asked_for(name: str, value: Expr) -> Any:
        """The value of a number, where a Python number is wanted."""
        if not value.is_constant:
            raise value_needed(name, value)
        convert = {"__bool__": bool, "__int__": int, "__index__": int, "__complex__": complex}.get(name, float)
        return convert(value.number)

    def _without_dtype(self, name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The keywords without a dtype that is the tensors' own, and without what makes no difference."""
        if name not in CONSTANTS and name not in OF_NOTHING:
            return kwargs
        if (dtype := kwargs.get("dtype", self.dtype)) is not self.dtype:
            raise refusal(name, f"is given dtype={dtype}, but {refusals.KEEPS}; give x.dtype, or no dtype")
        idle = ("device", "memory_format", "requires_grad", "layout", "pin_memory", *(["dtype"] * (name in CONSTANTS)))
        return {key: x for key, x in kwargs.items() if key not in idle}

    def _write(self, name: str, base: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TracedSymbol:
        """y += x and the like, on an intermediate result."""
        y = args[0] if args else next(iter(kwargs.values()))
        if not isinstance(y, TracedSymbol):
            raise refusal(name, refusals.OUTSIDE_TENSOR)
        if y.is_in_use and y.kind != "number":
            raise refusal(name, refusals.IN_PLACE)
        if not torch.is_grad_enabled():
            raise refusal(
                name, "changes a tensor in place under no_grad, which hides that from autograd; " + refusals.NEW_NAME
            )
        result = self._result(base, args, {key: x for key, x in kwargs.items() if key != "inplace"})
        if y.kind == "number":  # a Python number is not changed but replaced
            return result
        if result.kind != y.kind:
            raise refusal(name, f"changes a tensor in place and its dtype; {refusals.NEW_NAME}")
        if result.spans != y.spans:
            raise refusal(name, f"changes a tensor in place and its shape; {refusals.NEW_NAME}")
        y.expr, y.stored = result.expr, result.stored
        return y

    def _converted(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TracedSymbol:
        """x.to(dtype), x.float() and the like."""
        x = args[0]
        wanted = [*args[1:], *(value for key, value in kwargs.items() if key in ("dtype", "other", "tensor"))]
        if name in _DTYPES_BY_NAME:
            wanted.append(_DTYPES_BY_NAME[name])
        elsewhere = (bool, torch.device) if name == "type" else (bool, torch.device, str)
        wanted = [y for y in wanted if not isinstance(y, elsewhere)]
        if len(wanted) > 1 or (name == "type" and not wanted):
            raise refusal(name, refusals.TYPE)
        kind = self._kind(wanted[0]) if wanted else x.kind
        if kind == x.kind:
            x.is_in_use = True
            return new_symbol(x.expr, x.kind, x.stored, is_in_use=True, spans=x.spans)
        if kind in (None, "mask", "number") or x.kind == "tensor":
            raise refusal(name, refusals.TYPE)
        value = number(x.expr)
        assert isinstance(value, Expr) and kind
        return new_symbol(make(kind, value) if kind in FLOATS else value, kind, spans=x.spans)

    def _kind(self, target: Any) -> str | None:
        """The kind that a conversion to a dtype, or to that of another tensor, gives; None if that is unknown."""
        if isinstance(target, TracedSymbol):
            return target.kind
        return "tensor" if target is self.dtype else _KINDS.get(target)


def _value(x: Any) -> Any:
    return x.expr if isinstance(x, TracedSymbol) else x


def _stored(x: Any) -> Any:
    return x.stored if isinstance(x, TracedSymbol) else x


def _with_rounded_numbers(of: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """PyTorch rounds a number that it compares with a tensor."""

    def operand(x: Any) -> Any:
        is_number = isinstance(x, float) or (isinstance(x, TracedSymbol) and x.kind == "number")
        return op.rounded(of(x)) if is_number else of(x)

    return operand


def _function_of(x: Any) -> str | None:
    """The custom autograd.Function that gave x: what it computes is seen here, its backward is not."""
    node = x.grad_fn if isinstance(x, torch.Tensor) else None
    if node is None or not isinstance(node, BackwardCFunction):
        return None
    return str(function_of(node).__name__)


_IDLE = ("inplace", "out", "training")  # arguments that do nothing while they are false
_SWITCHES = frozenset(("_set_grad_enabled", "set_grad_enabled", "_enter_inference_mode", "_exit_inference_mode"))
# Answers of a tensor while it is a symbol; a device is only good for being passed on.
_QUESTIONS: dict[str, Any] = {
    "dtype": None, "device": torch.device("meta"), "is_floating_point": True, "is_complex": False,
}  # fmt: skip
_VALUES = frozenset("__bool__ __float__ __int__ __index__ __complex__ __array__ __format__ item".split())
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
