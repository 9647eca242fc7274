"""Symbols, which stand for the tensors and the Python numbers of a function while it is traced."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .._torch_state import subclass
from . import refusals
from .expr import FLOATS, Expr, topological
from .refusals import TraceError, refusal
from .torch_functions import CHOICES, INTEGRAL, PROMOTED


class ValueNeeded(BaseException):
    """The function asks for the value of run-time numbers, whose names these are; trace it with the values.

    A function that catches every Exception does not catch it.
    """

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__(names)
        self.names = names


class TracedSymbol(torch.Tensor):
    """Stands for a tensor, or for a Python number, while a function is traced.

    Attributes:
        expr: its value.
        kind: ``"tensor"``, of the dtype of the function's tensors; ``"number"``, a Python number; ``"mask"``, bool;
            ``"integer"``, int64; or the name of a dtype that PyTorch gives it whatever the function's tensors have.
        stored: its value as PyTorch has it in memory, where each result is rounded to the dtype.
        is_in_use: is it an argument, or does another name stand for its memory?
        level: how many functions are being traced around the one that it is an argument or a result of.
        spans: ``"element"``, a value for each; ``"row"``, one for each row, with a last dimension of size 1;
            ``"dropped"``, the same without that dimension; empty for one number.
    """

    expr: Expr
    kind: str
    stored: Expr
    is_in_use: bool
    level: int
    spans: str

    def __repr__(self) -> str:  # type: ignore[override]
        if self.kind == "number" and (names := numbers_in(self.expr)):
            raise ValueNeeded(names)
        return f"<{self.kind} {self.expr}>"

    def __getattr__(self, name: str) -> Any:  # of what tensors lack
        if self.__dict__.get("kind") == "number" and (hasattr(int, name) or hasattr(float, name)):
            raise value_needed(name, self.expr)
        raise AttributeError(f"'Tensor' object has no attribute {name!r}")

    def __hash__(self) -> int:
        if self.kind == "number":  # a dict looks for the value
            raise value_needed("__hash__", self.expr)
        return id(self)

    def __round__(self, digits: int | None = None) -> Any:  # tensors have none; numbers do
        return round(float(self), digits)

    def __divmod__(self, other: Any) -> Any:
        return divmod(float(self), other)


def is_symbol(x: Any) -> bool:
    """Does it stand for a tensor or a number of a function that is being traced?"""
    return isinstance(x, TracedSymbol)


class RowShape:
    """The shape of a tensor, of which the length of the row is known."""

    def __init__(self, last: Any, name: str) -> None:
        self.last, self.name = last, name

    def __getitem__(self, index: Any) -> Any:
        if index != -1:
            raise self._refusal
        return self.last

    def __len__(self) -> int:
        raise self._refusal

    def __iter__(self) -> Any:
        raise self._refusal

    @property
    def _refusal(self) -> TraceError:
        return refusal(f"x.{self.name}", refusals.ROW_SHAPE)


def new_symbol(
    value: Expr, kind: str, stored: Expr | None = None, is_in_use: bool = False, spans: str = "element"
) -> TracedSymbol:
    # A custom autograd.Function leaves its mark on what requires a gradient.
    symbol: TracedSymbol = subclass(TracedSymbol, torch.zeros((), device="cpu"), kind == "tensor")
    symbol.expr, symbol.kind, symbol.is_in_use, symbol.spans = value, kind, is_in_use, spans
    symbol.stored, symbol.level = value if stored is None else stored, current_level()
    return symbol


def argument(x: Any) -> Any:
    """A symbol for an expression, anything else as it is."""
    if not isinstance(x, Expr):
        return x
    if x.op == "scalar":
        return new_symbol(x, "number", is_in_use=True, spans="")
    return new_symbol(x, "tensor", is_in_use=True, spans="row" if x.op == "row" else "element")


_local = threading.local()


def current_level() -> int:
    return getattr(_local, "level", 0)


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Keeps what runs within, such as the declaration of an op, out of the functions that are being traced."""
    _local.level = current_level() + 1
    try:
        yield
    finally:
        _local.level -= 1


def spans_of(name: str, given: Sequence[TracedSymbol]) -> str:
    """The span of the result of an elementwise function."""
    spans = {x.spans for x in given} - {""}
    if "dropped" in spans and len(spans) > 1:
        raise refusal(name, refusals.DROPPED)
    return next((x for x in ("element", "row", "dropped") if x in spans), "")


def numbers_in(*values: Expr) -> frozenset[str]:
    return frozenset(str(x.value) for x in topological(values) if x.op == "scalar")


def value_needed(name: str, *values: Expr) -> ValueNeeded | TraceError:
    """The error where a function asks for the values of Python numbers, to which those of a call may be the answer."""
    if any(x.op == "length" for x in topological(values)):
        return refusal(name, refusals.LENGTH)
    names = numbers_in(*values)
    return ValueNeeded(names) if names else refusal(name, refusals.NUMBER)


def kind_of(name: str, value: Expr, args: Sequence[Any], kwargs: dict[str, Any]) -> str:
    """The kind of a result, by PyTorch's rules of type promotion."""
    operands = [x for i, x in enumerate(args) if i != CHOICES.get(name)]
    operands += [x for key, x in kwargs.items() if key != "condition"]
    kinds = {x.kind for x in operands if isinstance(x, TracedSymbol)}
    if value.is_mask and kinds != {"number"}:
        return "mask"
    if kinds <= {"number"} and name not in CHOICES:
        return "number"
    if "tensor" in kinds:
        return "tensor"
    floats = [kind for kind in kinds if kind in FLOATS]
    has_floats = "number" in kinds or any(isinstance(x, float) for x in operands)
    if not floats and not has_floats and name in INTEGRAL:
        return "integer"
    if name not in PROMOTED:
        raise refusal(name, "is given a truth value; convert it to the dtype of a tensor, as in (x > 0).to(x.dtype)")
    dtypes = [getattr(torch, kind) for kind in floats] or [torch.get_default_dtype()]
    return str(functools.reduce(torch.promote_types, dtypes)).removeprefix("torch.")


def dtype_of(x: TracedSymbol) -> str:
    return {"mask": "bool", "integer": "int64"}.get(x.kind, x.kind)


def described(x: Any) -> str:
    return "a Python number" if isinstance(x, (TracedSymbol, int, float)) else f"a {type(x).__name__}"
