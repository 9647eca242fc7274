"""Softmaxes y = e r of exponentials e, with r = 1 / Σe: derivatives are made of y where it is known.

A derivative has e and r beside each other: that of a softmax is e (r g - r² Σ e g). With e = y / r the powers of r
cancel: it is y (g - Σ y g).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .expr import Expr, constant, make, topological

_ONE = constant(1.0)


def softmaxes(values: Iterable[Expr]) -> dict[Expr, tuple[Expr, Expr]]:
    """The exponentials e of each softmax y = e r among some values, r = 1 / Σe, with y and r."""
    found = {}
    for y in values:
        if y.op == "mul":
            e, r = y.args  # r, which is made of e, comes after it
            if e.op == "exp" and r is make("reciprocal", make("row_sum", e)):
                found[e] = y, r
    return found


def with_known(outputs: Iterable[Expr], known: Mapping[Expr, Expr]) -> tuple[Expr, ...]:
    """Expressions in which values that are known stand for nodes.

    The exponentials of a softmax are y / r. Powers of r are taken out of products, differences and sums over the row,
    so that they cancel. Each is between 1 / n and 1 in a row of n elements: no product becomes too large by it.
    """
    values = dict(known)
    powers: dict[Expr, int] = {}  # of the first softmax's r
    factor, inverse = _ONE, _ONE
    for e, (y, r) in softmaxes(known).items():
        if r not in known or e in known:
            continue
        values[e] = values[y] * make("reciprocal", values[r])
        if not powers:
            factor, inverse = values[r], make("reciprocal", values[r])
            powers, values[r], values[e] = {r: 1, e: -1}, _ONE, values[y]
    parts: dict[Expr, tuple[int, Expr]] = {}  # of each node r ** power * rest

    def whole(node: Expr, power: int = 0) -> Expr:
        """A node, divided by a power of r."""
        own, rest = parts[node]
        for _ in range(abs(own - power)):
            rest = (factor if own > power else inverse) * rest
        return rest

    for node in topological(outputs):
        args = node.args
        if node in values:
            parts[node] = powers.get(node, 0), values[node]
        elif node.op == "mul":
            (p, a), (q, b) = parts[args[0]], parts[args[1]]
            parts[node] = p + q, a * b
        elif node.op in ("add", "sub", "neg", "row_sum"):
            power = min(parts[arg][0] for arg in args)
            parts[node] = power, make(node.op, *(whole(arg, power) for arg in args))
        else:
            parts[node] = 0, make(node.op, *map(whole, args)) if args else node
    return tuple(map(whole, outputs))
