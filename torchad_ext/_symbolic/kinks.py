"""Comparisons, jumps and kinks, decided by what PyTorch has of their operands in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from . import operations as op
from .expr import Expr, Operation, make, topological


def decided(value: Expr, stored: Mapping[Expr, Expr]) -> Expr:
    """A function of operands that compares, or rounds to integers, what PyTorch has of them in memory."""
    if not stored:
        return value
    known: dict[Expr, tuple[Expr, Expr]] = {}  # as it is computed, and as it is compared
    for node in topological([value]):
        if node in stored or not node.args:
            known[node] = node, stored.get(node, node)
            continue
        computed, compared = zip(*(known[arg] for arg in node.args), strict=True)
        kept = make(node.op, *compared)
        if node.is_mask or node.op in _INTEGERS:
            known[node] = kept, kept
        elif node.op in _KINKS and computed != compared:
            known[node] = _KINKS[node.op](computed, compared), kept
        else:
            known[node] = make(node.op, *computed), kept
    return known[value][0]


_INTEGERS = frozenset("floor ceil round trunc sign fmod remainder".split())


def _unordered(p: Expr, q: Expr) -> Expr:
    return op.ne(p, p) if q.is_constant else op.or_(op.ne(p, p), op.ne(q, q))


def _clamped(before: Operation) -> Callable[[Any, Any], Expr]:
    """A bound where it is larger (lt) or smaller (gt) than x, by what is compared of them; no slope at nan."""

    def clamped(operands: Any, compared: Any) -> Expr:
        (x, bound), (p, q) = operands, compared
        return op.where(before(p, q), bound, op.where(_unordered(p, q), op.detach(x + bound), x))

    return clamped


def _extreme(before: Operation) -> Callable[[Any, Any], Expr]:
    """The larger (lt) or smaller (gt) of two numbers, by what is compared of them; half of each if equal."""

    def extreme(operands: Any, compared: Any) -> Expr:
        (a, b), (p, q) = operands, compared
        chosen = op.where(before(p, q), b, op.where(_unordered(p, q), a + b, a))
        return op.where(op.eq(p, q), (a + b) / 2, chosen)

    return extreme


_KINKS: dict[str, Callable[[Any, Any], Expr]] = {
    "clamp_min": _clamped(op.lt), "clamp_max": _clamped(op.gt), "maximum": _extreme(op.lt), "minimum": _extreme(op.gt),
}  # fmt: skip
