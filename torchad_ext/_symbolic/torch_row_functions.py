"""PyTorch's functions along the last dimension as expressions, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from . import operations as op
from .expr import Expr, Operand, length
from .refusals import ROW_INDEX, Problem
from .torch_functions import number

INDICES = ("unsqueeze", "squeeze", "getitem")


def _shift(x: Expr) -> Expr:
    """The largest element of the row, as a number that no derivative sees."""
    return op.detach(op.row_amax(x))


def _logsumexp(input: Expr) -> Expr:
    largest = _shift(input)
    infinite = op.eq(op.abs_(largest), math.inf)
    finite = op.where(infinite, op.copysign(op.finite(math.inf), largest), largest)
    return op.log(op.row_sum(op.exp(input - finite))) + finite


def _softmax(input: Expr) -> Expr:
    exponential = op.exp(input - _shift(input))
    return exponential * op.reciprocal(op.row_sum(exponential))


def _log_softmax(input: Expr) -> Expr:
    shifted = input - _shift(input)
    return shifted - op.log(op.row_sum(op.exp(shifted)))


def _mean(input: Operand) -> Expr:
    return op.row_sum(number(input)) / length()


def _var(input: Expr, unbiased: bool = True, correction: float | None = None) -> Expr:
    centred = input - _mean(input)
    if correction is None:
        correction = 1 if unbiased else 0
    count = length() - correction if correction else length()
    return op.row_sum(centred * centred) / (op.clamp_min(count, 0) if correction > 1 else count)


def _root(square: Expr) -> Expr:
    """The square root, with no slope at 0."""
    is_zero = op.eq(square, 0)
    return op.where(is_zero, 0, op.sqrt(op.where(is_zero, 1, square)))


def _std(input: Expr, unbiased: bool = True, correction: float | None = None) -> Expr:
    # Shifted, so that equal elements, whose mean may round to a neighbour of theirs, have no slope.
    return _root(_var(input - _shift(input), unbiased, correction))


def _vector_norm(x: Expr, ord: Any = 2) -> Expr:
    """The norm of order 2, with no slope at 0, or of order 1 or infinity."""
    if ord == 1:
        return op.row_sum(op.abs_(x))
    if ord == math.inf:
        return op.row_amax(op.abs_(x))
    if ord != 2:
        raise Problem(f"has the order {ord!r} in a row op; those of order 1, 2 and inf are there")
    return op.row_norm(x)


# By the name in PyTorch: the function of the row, and what it gives: a value a row, or an element.
ROW_FUNCTIONS: dict[str, tuple[Callable[..., Expr], str]] = {
    "sum": (lambda input: op.row_sum(number(input)), "row"),
    "mean": (_mean, "row"),
    "amax": (lambda input: op.row_amax(number(input)), "row"),
    "amin": (lambda input: op.row_amin(number(input)), "row"),
    "logsumexp": (_logsumexp, "row"),
    "var": (_var, "row"),
    "std": (_std, "row"),
    "linalg_vector_norm": (_vector_norm, "row"),
    "linalg_vecdot": (lambda x, y: op.row_sum(x * y), "row"),
    "softmax": (_softmax, "element"),
    "log_softmax": (_log_softmax, "element"),
}
# Where each has its dim among positional arguments, and keepdim.
_PLACES = {
    **{"linalg_vector_norm": (2, 3), "linalg_vecdot": (2, 4), "var": (1, 3), "std": (1, 3)},
    **dict.fromkeys(("softmax", "log_softmax"), (1, 4)),
}
_SAME = frozenset(("sum", "mean", "amax", "amin"))  # of one element it is that element
_IDLE = ("dtype", "_stacklevel", "out")  # while they have their defaults


def along_row(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Callable[..., Expr], tuple[Any, ...], dict[str, Any], str]:
    """A function along the last dimension, the arguments that are left, and what its result spans.

    Raises:
        Problem: it is along another dimension, or of a tensor that has no rows.
    """
    x = args[0] if args else kwargs.get("input", kwargs.get("x", kwargs.get("self")))
    spans = getattr(x, "spans", "")
    if name in INDICES:
        return _index(name, spans, args, kwargs)
    function, gives = ROW_FUNCTIONS[name]
    dim_at, keepdim_at = _PLACES.get(name, (1, 2))
    options = dict(kwargs)
    usual = -1 if name == "linalg_vecdot" else None
    dim = options.pop("dim", options.pop("axis", args[dim_at] if len(args) > dim_at else usual))
    keepdim = options.pop("keepdim", options.pop("keepdims", args[keepdim_at] if len(args) > keepdim_at else False))
    if isinstance(dim, (tuple, list)) and len(dim) == 1:
        dim = dim[0]
    if isinstance(dim, bool) or dim != -1:
        raise Problem(f"is along {'all dimensions' if dim is None else f'dimension {dim}'}; a row is the last: dim=-1")
    if options.get("dtype") is not None:
        raise Problem(f"is given dtype={options['dtype']}, but a row op keeps the dtype of its tensors")
    options = {key: value for key, value in options.items() if key not in _IDLE}
    if spans == "dropped" or (spans == "row" and name not in _SAME) or not spans:
        raise Problem("reduces what has one value a row, or one in all")
    if spans == "row":
        function = _itself
    positional = args[:dim_at] + args[dim_at + 1 : keepdim_at]
    if name in ("softmax", "log_softmax"):
        positional = args[:dim_at]
    return function, positional, options, gives if gives == "element" or keepdim else "dropped"


def _itself(input: Expr) -> Expr:
    return op.add(number(input), 0) if input.is_mask else input


def _index(
    name: str, spans: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Callable[..., Expr], tuple[Any, ...], dict[str, Any], str]:
    """x.unsqueeze(-1), x.squeeze(-1), x[..., None], x[..., 0] of one value a row."""
    wanted = args[1] if len(args) > 1 else kwargs.get("dim")
    adds = (name == "unsqueeze" and wanted == -1) or (name == "getitem" and _is_index(wanted, None))
    drops = (name == "squeeze" and wanted == -1) or (name == "getitem" and _is_index(wanted, 0))
    if adds and spans == "dropped":
        return _itself, args[:1], {}, "row"
    if drops and spans == "row":
        return _itself, args[:1], {}, "dropped"
    raise Problem(ROW_INDEX)


def _is_index(given: Any, last: Any) -> bool:
    return isinstance(given, tuple) and len(given) == 2 and given[0] is Ellipsis and given[1] is last
