"""A formula in x as text, made a function: read by Python's parser against a list of names, never evaluated as code."""

from __future__ import annotations

import ast
import difflib
import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch

from .ops import CATALOGUE

_LONGEST, _DEEPEST = 1000, 100  # characters; operations inside one another
_SHOWN = 70  # characters around a mistake
CONSTANTS = {"pi": math.pi, "e": math.e, "tau": math.tau}
_OF_ONE = """
    sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square
    reciprocal abs sign erf erfc sigmoid relu sinc lgamma digamma
""".split()
_OF_TWO = "atan2 maximum minimum hypot".split()
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(torch, name) for name in (*_OF_ONE, *_OF_TWO)},
    "ln": torch.log,
    **CATALOGUE,
}
_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_HINTS: dict[type, str] = {
    ast.BitXor: "write ** for a power",
    ast.Attribute: "a formula has no dots; write sin(x), not torch.sin(x)",
    ast.Compare: "a formula has no comparisons",
    ast.IfExp: "a formula has no conditions",
}
_HINT = "a formula has numbers, x, + - * / **, brackets and functions, as in sin(x)"

Value = float | Callable[[Any], Any]  # a number, or a function of x


class FormulaError(ValueError):
    """A text is no formula in x. The message shows the text, a caret below the mistake, and what to write."""

    def __init__(self, text: str, column: int, message: str) -> None:
        start = max(0, column - _SHOWN // 2)
        shown = text[start : start + _SHOWN]
        super().__init__(f"{message}\n  {shown}\n  {' ' * (column - start)}^")


def parse(text: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function of x that a formula writes down.

    Args:
        text: numbers, ``x``, the names in ``CONSTANTS`` and ``FUNCTIONS``, ``+ - * / **`` and brackets.

    Returns:
        The function, of a tensor of any shape; ``torchad_ext.pointwise`` takes it.

    Raises:
        FormulaError: the text is something else, longer than 1000 characters, or 100 operations deep.

    Example:
        >>> f = parse("sin(x) * exp(-x**2)")
        >>> x = torch.linspace(-1, 1, 5)
        >>> torch.testing.assert_close(f(x), x.sin() * (-(x**2)).exp())
    """
    text = text.strip()
    if len(text) > _LONGEST:
        raise FormulaError(text, _LONGEST, f"a formula has at most {_LONGEST} characters, got {len(text)}")
    if not text.isprintable():
        raise FormulaError(repr(text)[1:-1], 0, "a formula is one line of characters that print")
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        column = min((error.offset or 1) - 1, len(text))
        hint = "; write 2*x for a product" if "decimal literal" in error.msg else ""
        raise FormulaError(text, column, f"{error.msg if text else 'got no formula'}{hint}") from None
    except (RecursionError, MemoryError):
        raise FormulaError(text, 0, f"the formula is more than {_DEEPEST} operations deep") from None
    value = _Reader(text).read(tree)

    def f(x: torch.Tensor) -> torch.Tensor:
        return value(x) if callable(value) else torch.full_like(x, value)

    return f


class _Reader:
    """Reads the nodes of one formula, and points at the node that it cannot read."""

    def __init__(self, text: str) -> None:
        self.text = text

    def read(self, node: ast.expr, depth: int = 0) -> Value:
        if depth > _DEEPEST:
            raise self.error(node, f"the formula is more than {_DEEPEST} operations deep")
        match node:
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                return self.number(node, value)
            case ast.Name(id="x"):
                return lambda x: x
            case ast.Name(id=name) if name in CONSTANTS:
                return CONSTANTS[name]
            case ast.Name(id=name):
                hint = f"is a function; write {name}(x)" if name in FUNCTIONS else f"is not known{_nearest(name)}"
                raise self.error(node, f"{name} {hint}")
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
                return self.apply(node, _OPERATORS[type(op)], [operand], depth)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return self.apply(node, _OPERATORS[type(op)], [left, right], depth)
            case ast.BinOp(left=left, op=op):  # the operator stands after its left side and what closes that
                column = self.column(left.end_col_offset or 0)
                column += len(self.text[column:]) - len(self.text[column:].lstrip(" )"))
                raise FormulaError(self.text, column, _HINTS.get(type(op), _HINT))
            case ast.Call(func=function, args=arguments, keywords=keywords):
                name = self.function_name(function)
                for argument in (*arguments, *keywords):
                    if isinstance(argument, (ast.Starred, ast.keyword)):
                        raise self.error(argument, "arguments are given by their place, as in atan2(x, 2)")
                least, most = _arity(name)
                if not least <= len(arguments) <= most:
                    expected = f"{least} to {most} arguments" if least < most else f"{least} argument{'s'[least < 2 :]}"
                    raise self.error(node, f"{name} takes {expected}, got {len(arguments)}")
                return self.apply(node, FUNCTIONS[name], arguments, depth)
        raise self.error(node, _HINTS.get(type(node), _HINT))

    def number(self, node: ast.expr, value: float) -> float:
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.error(node, "this is no finite number")
        return number

    def function_name(self, function: ast.expr) -> str:
        name = function.id if isinstance(function, ast.Name) else ""
        if name in FUNCTIONS:
            return name
        if name in ("x", *CONSTANTS) or isinstance(function, (ast.Constant, ast.BinOp)):
            raise self.error(function, "this is called as a function; write * for a product, as in 2*(1 + x)")
        raise self.error(
            function, f"{name} is not known{_nearest(name)}" if name else _HINTS.get(type(function), _HINT)
        )

    def apply(self, node: ast.expr, function: Callable[..., Any], arguments: list[ast.expr], depth: int) -> Value:
        values = [self.read(argument, depth + 1) for argument in arguments]
        if not any(map(callable, values)):
            return self.number(node, function(*(torch.tensor(v, dtype=torch.float64) for v in values)).item())
        if function in map(FUNCTIONS.get, _OF_TWO):  # they take no numbers
            values = [v if callable(v) else _constant(v) for v in values]
        return lambda x: function(*(v(x) if callable(v) else v for v in values))

    def error(self, node: ast.expr | ast.keyword, message: str) -> FormulaError:
        return FormulaError(self.text, self.column(node.col_offset), message)

    def column(self, offset: int) -> int:
        """The character at a place that ast counts in bytes."""
        return len(self.text.encode()[:offset].decode(errors="replace"))


def _constant(value: float) -> Callable[[Any], Any]:
    return lambda x: torch.full_like(x, value)


def _arity(name: str) -> tuple[int, int]:
    """The least and the largest number of arguments."""
    if name not in CATALOGUE:
        return (2, 2) if name in _OF_TWO else (1, 1)
    parameters = CATALOGUE[name].__signature__.parameters.values()
    needed = sum(p.default is p.empty for p in parameters)
    return needed, needed + sum(isinstance(p.default, float) for p in parameters)


def _nearest(name: str) -> str:
    known: Iterable[str] = ("x", *CONSTANTS, *FUNCTIONS)
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
