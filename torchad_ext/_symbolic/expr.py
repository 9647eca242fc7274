"""Scalar expressions: what a function computes for one element, or for one row of elements.

An expression is a node of a directed acyclic graph. Equal nodes are one object, so that a common subexpression stands
once, whoever wrote it. ``operations.py`` says what the operations are and how each is differentiated.

Simplifications never change a value, with two exceptions: a sum of the two halves of a ``where`` becomes that
``where``, which can turn a zero of one sign into that of the other, and a sum over a row of n equal numbers becomes n
times one of them. There is no ``x - x = 0``, no ``x / x = 1``, no ``0 x = 0`` (x may be infinite or nan), no
``x + 0 = x`` (x may be -0), and sums and products are not regrouped.
"""

from __future__ import annotations

import enum
import hashlib
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Union

import numpy

Operand = Union["Expr", float]
Gradients = tuple["Expr | None", ...]

SYMBOLS = ("tensor", "row", "column")  # what stands for a tensor: a value an element, a row, a place in every row
# What PyTorch takes for a real number. A fraction, or any other number of Python, is none to it.
NUMBERS = (float, int, numpy.floating, numpy.integer, numpy.bool_)
FLOATS = ("float16", "bfloat16", "float32", "float64")  # operations that round to a dtype


# Operators of Python, and how strongly they bind.
_OPERATORS = {
    "add": (" + ", 1),
    "sub": (" - ", 1),
    "mul": (" * ", 2),
    "div": (" / ", 2),
    "neg": ("-", 2),
    "pow": ("**", 3),
}


class Expr:
    """A node: an operation on other nodes, a constant, or a symbol.

    Two nodes are the same object if and only if they are equal, so ``is`` and ``==`` agree and a node is a good key.

    Attributes:
        op: the operation, ``"constant"``, or of a symbol ``"tensor"`` (one value an element), ``"row"`` (one a row),
            ``"column"`` (one a place in the row, the same for all rows), ``"scalar"`` (one for all elements) or
            ``"length"`` (that of the row).
        args: its operands.
        value: the number of a constant, the name of a symbol.
        varies: can it differ from element to element?
        is_row: is it the same for all elements of a row, but not of all rows?
    """

    __slots__ = ("__weakref__", "_order", "args", "is_row", "op", "value", "varies")

    op: str
    args: tuple[Expr, ...]
    value: float | str | None
    varies: bool
    is_row: bool
    _order: tuple[Any, ...]

    @property
    def is_mask(self) -> bool:
        """Is it a truth value?"""
        return self.op in OPERATIONS and OPERATIONS[self.op].is_mask

    @property
    def is_constant(self) -> bool:
        return self.op == "constant"

    @property
    def number(self) -> float:
        """The value of a constant."""
        assert isinstance(self.value, float)
        return self.value

    def __repr__(self) -> str:
        return self._text(depth=8)

    def _text(self, depth: int, above: int = 0) -> str:
        """As Python writes it, as far as depth: a small graph can be a huge tree. An operator that binds less than
        ``above`` has brackets."""
        if not self.args:
            text = repr(self.value).removesuffix(".0") if self.is_constant else str(self.value)
            return f"({text})" if text[0] == "-" and above else text
        if not depth:
            return "..."
        if self.op not in _OPERATORS:
            return f"{self.op}({', '.join(x._text(depth - 1) for x in self.args)})"
        sign, binding = _OPERATORS[self.op]
        *first, last = self.args
        below = [x._text(depth - 1, binding + (self.op == "pow")) for x in first]
        text = sign.join([*below, last._text(depth - 1, binding + (self.op != "add"))])
        text = sign + text if not first else text
        return f"({text})" if binding < above else text

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


@dataclass(frozen=True)
class Operation:
    """An operation on numbers; calling it makes the expression.

    Attributes:
        name: its name, PyTorch's where PyTorch has it.
        derivative: of y = f(a, b, ...): the gradients that the cotangent g of y gives to the arguments, as a function
            of (g, y, a, b, ...). One expression for a function of one argument; None for no slope. An operation
            without it has no derivative at all.
        simplify: the simpler expression for given operands, or None.
        fold: its value for Python numbers; without it, constants are left to the kernel.
        reference: its value for tensors, in plain PyTorch; without it, the function of ``torch`` with its name.
        cpp: its function or operator in C++; without it, the function with its name.
        cpp_double: its function in C++ for one number in double.
        latex: its command, or a template with ``%s`` for its argument.
        commutative: do its two operands commute?
        is_mask: does it give a truth value?
        is_analytic: is it holomorphic in complex numbers, with the derivatives that it has in real ones?
        is_family: is its first operand, a constant, the order of a function of the second?
        reduction: what it does with the elements of a row, in C++: ``"+"``, ``">"`` (the largest) or ``"<"``; or
            ``"norm"``, which is lowered to a root of a sum. Its derivative is g times the slope in one element, so that
            its tangent is the sum of that over the row.
    """

    name: str
    derivative: Callable[..., Gradients | Expr | None] | None = None
    simplify: Callable[..., Expr | None] | None = None
    fold: Callable[..., float] | None = None
    reference: Callable[..., Any] | None = None
    cpp: str = ""
    cpp_double: str = ""
    latex: str = ""
    commutative: bool = False
    is_mask: bool = False
    is_analytic: bool = False
    is_family: bool = False
    reduction: str = ""

    def __call__(self, *operands: Operand) -> Expr:
        return make(self.name, *operands)

    def gradients(self, g: Expr, y: Expr) -> Gradients:
        """The gradients of the arguments of y, a result of this operation, for its cotangent g; None for zero.

        These are its tangents, too: the tangent of y is the sum of the entries, each with its argument's tangent for g.
        """
        assert self.derivative is not None
        given = self.derivative(g, y, *y.args)
        return given if isinstance(given, tuple) else (given,)


OPERATIONS: dict[str, Operation] = {}  # by name; operations.py fills it


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
            found.varies = op in SYMBOLS or any(arg.varies for arg in args)
            rows = [arg.is_row for arg in args if arg.varies]
            reduces = op in OPERATIONS and bool(OPERATIONS[op].reduction)
            found.is_row = op == "row" or reduces or (bool(rows) and all(rows))
            text = "\0".join([op, repr(value), *(arg._order[-1] for arg in args)])
            digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
            depth = 1 + max((arg._order[1] for arg in args), default=0)
            # Constants first, then numbers, then tensors by name, then what is made of them: as one writes a product.
            kind = {"constant": 0, "scalar": 1, "length": 1, **dict.fromkeys(SYMBOLS, 2)}.get(op, 3)
            found._order = (kind, depth, value if isinstance(value, str) else "", digest)
            _nodes[key] = found
    return found


def is_number(x: Any) -> bool:
    """Is x a real number to PyTorch, and no truth value or member of an enumeration?"""
    return isinstance(x, NUMBERS) and not isinstance(x, (bool, numpy.bool_, enum.Enum))


class NoNumber(TypeError):
    """An operand is neither an expression nor what PyTorch takes for a real number, and PyTorch raises TypeError."""


def constant(value: float) -> Expr:
    if isinstance(value, (complex, numpy.complexfloating)):
        raise TypeError("a complex number")
    if not isinstance(value, NUMBERS):
        raise NoNumber(f"PyTorch takes a number, got {type(value).__name__}; write float(...)")
    return _node("constant", (), float(value))


def tensor(name: str) -> Expr:
    """A symbol for the element of a tensor."""
    return _node("tensor", (), name)


def row(name: str) -> Expr:
    """A symbol for the value of a row."""
    return _node("row", (), name)


def column(name: str) -> Expr:
    """A symbol for an element of a tensor that is the same for all rows."""
    return _node("column", (), name)


def length() -> Expr:
    """The number of elements in a row."""
    return _node("length", (), "n")


def scalar(name: str) -> Expr:
    """A symbol for a number that is known when the kernel runs, the same for all elements."""
    return _node("scalar", (), name)


def make(name: str, *operands: Operand) -> Expr:
    """The simplified expression for an operation; numbers become constants."""
    operation = OPERATIONS[name]
    args = tuple(x if isinstance(x, Expr) else constant(x) for x in operands)
    if all(arg.is_constant for arg in args) and (folded := _folded(operation, [arg.value for arg in args])) is not None:
        return constant(folded)
    if operation.commutative and args[1]._order < args[0]._order:
        args = (args[1], args[0])
    simplified = operation.simplify(*args) if operation.simplify else None
    return _node(name, args) if simplified is None else simplified


def with_operands(node: Expr, operands: tuple[Expr, ...]) -> Expr:
    """The operation of a node on other operands, as it stands."""
    return _node(node.op, operands)


def _folded(operation: Operation, values: Sequence[Any]) -> float | None:
    """The value of an operation on constants, None where Python has none to give."""
    try:
        folded = operation.fold(*values) if operation.fold else None
    except (ArithmeticError, ValueError):
        return None
    return None if isinstance(folded, complex) else folded


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
