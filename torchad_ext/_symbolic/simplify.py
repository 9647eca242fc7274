"""Simpler expressions for an operation on given operands; None where there is none.

None of them changes a value, as the docstring of ``expr.py`` says.
"""

from __future__ import annotations

import math

from .expr import SYMBOLS, Expr, constant, length, make


def _halves(a: Expr, b: Expr) -> Expr | None:
    """where(c, a, 0) + where(c, 0, b) = where(c, a, b)"""
    if a.op != "where" or b.op != "where" or a.args[0] is not b.args[0]:
        return None
    (condition, *first), (_, *second) = a.args, b.args
    zero = constant(0.0)
    if first[1] is zero and second[0] is zero:
        return make("where", condition, first[0], second[1])
    if first[0] is zero and second[1] is zero:
        return make("where", condition, second[0], first[1])
    return None


def add(a: Expr, b: Expr) -> Expr | None:
    if b.op == "neg":
        return a - b.args[0]
    if a.op == "neg":
        return b - a.args[0]
    return _halves(a, b)


def sub(a: Expr, b: Expr) -> Expr | None:
    if b is constant(0.0):
        return a
    if b.op == "neg":
        return a + b.args[0]
    if a.op == "neg" and a.args[0] is b:
        return -(2 * b)
    return None


def mul(a: Expr, b: Expr) -> Expr | None:
    if a.is_constant and abs(float(a.value or 0)) == 1:  # a constant comes first
        return b if a.value == 1 else -b
    if a.op == "neg":
        return -(a.args[0] * b)
    if b.op == "neg":
        return -(a * b.args[0])
    return None


def div(a: Expr, b: Expr) -> Expr | None:
    if b.is_constant and isinstance(b.value, float) and math.isfinite(b.value) and b.value:
        mantissa, exponent = math.frexp(b.value)
        if abs(mantissa) == 0.5 and abs(exponent) < 100:  # dividing by a power of two is multiplying by another
            return a * (1 / b.value)
    if a.op == "neg":
        return -(a.args[0] / b)
    if b.op == "neg":
        return -(a / b.args[0])
    return None


def pow_(a: Expr, b: Expr) -> Expr | None:
    if b is constant(1.0):
        return a
    return constant(1.0) if b.is_constant and b.value == 0 else None


def where(condition: Expr, a: Expr, b: Expr) -> Expr | None:
    if a is b:
        return a
    if condition.op == "not":
        return make("where", condition.args[0], b, a)
    return _norm(condition, a, b)


def _norm(condition: Expr, a: Expr, b: Expr) -> Expr | None:
    """The root of a sum of squares where that is not 0, else 0 and no slope."""
    if a is not constant(0.0) or b.op != "sqrt" or condition.op != "eq" or a not in condition.args:
        return None
    square = next((x for x in condition.args if x.op == "row_sum"), None)
    if square is None or b.args[0] is not make("where", condition, 1, square):
        return None
    x, *_ = (*square.args[0].args, square)
    return make("row_norm", x) if square.args[0] in (make("mul", x, x), make("pow", x, 2)) else None


def neg(x: Expr) -> Expr | None:
    return x.args[0] if x.op == "neg" else None


def abs_(x: Expr) -> Expr | None:
    return make("abs", x.args[0]) if x.op == "neg" else None


def extremum(a: Expr, b: Expr) -> Expr | None:
    return a if a is b else None


def not_(x: Expr) -> Expr | None:
    return x.args[0] if x.op == "not" else None


def row_sum(x: Expr) -> Expr | None:
    """The sum of n equal numbers."""
    return length() * x if x.is_row or not x.varies else None


def row_extremum(x: Expr) -> Expr | None:
    return x if x.is_row or not x.varies else None


def _has_few_bits(value: float) -> bool:
    """Is it a number of every floating dtype?"""
    mantissa, exponent = math.frexp(value)
    return (mantissa * 2**8).is_integer() and -13 <= exponent <= 15


def rounded(x: Expr) -> Expr | None:
    """A number in memory, or one of few bits, is rounded already."""
    return x if x.op in (*SYMBOLS, "rounded") or (x.is_constant and _has_few_bits(x.number)) else None
