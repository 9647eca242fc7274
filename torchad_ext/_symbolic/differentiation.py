"""Derivatives of expressions by forward mode and by reverse mode, operation by operation."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping, Sequence

from .expr import OPERATIONS, Expr, make, topological

_GATES = ("sigmoid", "tanh_half", "ndtr")


def _dependent(nodes: Iterable[Expr], on: Iterable[Expr]) -> set[Expr]:
    """The nodes, of some in topological order, through which a derivative in ``on`` can pass."""
    dependent = set(on)
    for node in nodes:
        if node.args and OPERATIONS[node.op].derivative and any(arg in dependent for arg in node.args):
            dependent.add(node)
    return dependent


def pushforward(outputs: Sequence[Expr], tangents: Mapping[Expr, Expr]) -> list[Expr | None]:
    """The tangents of ``outputs`` for those of some symbols, by forward mode; None for zero."""
    known = dict(tangents)
    order = topological(outputs)
    dependent = _dependent(order, known)
    for node in order:
        if node in known or node not in dependent:
            continue
        terms = [
            term
            for i, arg in enumerate(node.args)
            if arg in known and (term := OPERATIONS[node.op].gradients(known[arg], node)[i]) is not None
        ]
        if OPERATIONS[node.op].reduction:
            terms = [total(term) for term in terms]
        if terms:
            known[node] = functools.reduce(operator.add, terms)
    return [known.get(y) for y in outputs]


def pullback(cotangents: Iterable[tuple[Expr, Expr]], targets: Sequence[Expr]) -> dict[Expr, Expr]:
    """The gradients of ``targets``, and of what is between, for cotangents of some expressions, by reverse mode."""
    cotangents = list(cotangents)
    order = topological(y for y, _ in cotangents)
    dependent = _dependent(order, targets)
    gradients: dict[Expr, Expr] = {}

    def contribute(node: Expr, gradient: Expr) -> None:
        gradients[node] = gradients[node] + gradient if node in gradients else gradient

    for output, cotangent in cotangents:
        if output in dependent:
            contribute(output, cotangent)
    for node in reversed(order):
        if node not in gradients or node in targets or not node.args:
            continue
        if gated := _gated(node):
            x, gate = gated
            through_gate = pullback([(gate, x)], [x]).get(x)
            contribute(x, gradients[node] * (gate if through_gate is None else gate + through_gate))
            continue
        contributions = OPERATIONS[node.op].gradients(gradients[node], node)
        for arg, gradient in zip(node.args, contributions, strict=True):
            if gradient is not None and arg in dependent:
                contribute(arg, total(gradient) if arg.is_row and not node.is_row else gradient)
    return gradients


def _gated(node: Expr) -> tuple[Expr, Expr] | None:
    """x and s(x) of a product x s(x) with a sigmoid, as in SiLU. The gradient is g (s + x s'), as it is in PyTorch: in
    g s + (g x) s' the product g x may overflow where s' is 0."""
    if node.op == "mul":
        for x, gate in (node.args, node.args[::-1]):
            if gate.op in _GATES and _is_of(gate, x):
                return x, gate
    return None


def _is_of(y: Expr, x: Expr) -> bool:
    """Is y a function of x alone, element by element?"""
    stack, seen = [y], {x}
    while stack:
        node = stack.pop()
        if node not in seen:
            if OPERATIONS[node.op].reduction if node.args else not node.is_constant:
                return False
            seen.add(node)
            stack.extend(node.args)
    return y.varies


def total(x: Expr, known: dict[Expr, Expr] | None = None) -> Expr:
    """The sum over the row of a derivative, of sums and multiples by values of the row taken apart: parts are sums that
    other derivatives need too, or need no result of an earlier sum."""
    known = {} if known is None else known
    if x not in known:
        known[x] = _total(x, known)
    return known[x]


def _total(x: Expr, known: dict[Expr, Expr]) -> Expr:
    if not x.varies or x.is_row:
        return make("row_sum", x)
    if x.op in ("add", "sub", "neg"):
        return make(x.op, *(total(arg, known) for arg in x.args))
    if x.op in ("mul", "div"):
        for i, j in ((1, 0), (0, 1)) if x.op == "mul" else ((1, 0),):
            if x.args[i].is_row or not x.args[i].varies:
                return make(x.op, total(x.args[j], known), x.args[i])
    if x.op == "mul":  # a (b / r) and a (b r), with a value r of the row
        for a, multiple in (x.args, x.args[::-1]):
            for i, j in ((1, 0), (0, 1)) if multiple.op == "mul" else ((1, 0),) if multiple.op == "div" else ():
                if multiple.args[i].is_row:
                    return make(multiple.op, total(a * multiple.args[j], known), multiple.args[i])
    return make("row_sum", x)
