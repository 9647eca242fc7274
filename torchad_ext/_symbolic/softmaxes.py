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

    In products, sums and quotients the exponentials of a softmax are y / r, and powers of r are taken out, so that they
    cancel. Each is between 1 / n and 1 in a row of n elements: no product becomes too large by it. Any other operation,
    as a comparison, takes the exponentials themselves: the largest is 1, to which y / r may only be next.
    """
    outputs = tuple(outputs)
    order = topological(outputs)
    values = dict(known)
    for node in order:
        if node not in values:
            values[node] = make(node.op, *(values[arg] for arg in node.args)) if node.args else node
    parts: dict[Expr, tuple[int, Expr]] = {}  # of each node r ** power * rest, with the first softmax's r
    factor, inverse = _ONE, _ONE
    for e, (y, r) in softmaxes(known).items():
        if r not in known or e in known:
            continue
        if parts:
            parts[e] = 0, known[y] * make("reciprocal", known[r])
        else:
            factor, inverse = known[r], make("reciprocal", known[r])
            parts = {r: (1, _ONE), e: (-1, known[y])}
    if not parts:
        return tuple(map(values.__getitem__, outputs))

    def whole(node: Expr, power: int = 0) -> Expr:
        """A node, divided by a power of r."""
        own, rest = parts[node]
        for _ in range(abs(own - power)):
            rest = (factor if own > power else inverse) * rest
        return rest

    for node in order:
        args = node.args
        if node in parts:
            continue
        if node in known:
            parts[node] = 0, known[node]
        elif node.op == "mul":
            (p, a), (q, b) = parts[args[0]], parts[args[1]]
            parts[node] = p + q, a * b
        elif node.op == "div":
            power, rest = parts[args[0]]
            parts[node] = power, rest / values[args[1]]
        elif node.op in ("add", "sub", "neg", "row_sum", "where"):
            masks = args[: node.op == "where"]
            terms = args[len(masks) :]
            power = min(parts[arg][0] for arg in terms)
            parts[node] = power, make(node.op, *map(values.__getitem__, masks), *(whole(arg, power) for arg in terms))
        else:
            parts[node] = 0, values[node]
    return tuple(map(whole, outputs))
