"""Rules for operations that choose elements by their values or by indices, and are linear once these are chosen.

Derivatives at ties are those that PyTorch has.
"""

from __future__ import annotations

import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .calls import known_name
from .sweep import Arguments, Keywords, Rule, Sweep


def _selected(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Values that an operation of one dimension picks, with their indices."""
    x = args[0]
    if any(isinstance(y, Tensor) for y in (*args[1:], *kwargs.values())):
        return NotImplemented
    named = func(x.value, *args[1:], **kwargs)
    if isinstance(named, Tensor):
        return _of_equals(sweep, x, named, None, False)
    values, indices = named
    place, default = _DIMENSION[known_name(func)]
    dim = args[place] if len(args) > place else kwargs.get("dim", default)
    kept = values.dim() == x.dim()
    at = indices if kept else indices.unsqueeze(dim)

    def of(row: Any) -> Any:
        y = row.gather(dim, at)
        return y if kept else y.squeeze(dim)

    return type(named)((sweep.mapped(values, x, of, at), indices))


# The place of the dimension among the arguments, and its default.
_DIMENSION: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("max", "min", "median", "nanmedian", "mode", "topk", "sort", "cummax", "cummin"), (1, -1)),
    "kthvalue": (2, -1),
    "topk": (2, -1),
}


def _of_equals(sweep: Sweep, x: Any, y: Any, dim: Any, keepdim: bool) -> Any:
    """The mean of the elements of x that are equal to y, which is reduced from them."""
    dims = tuple(range(x.dim())) if dim is None or dim == () else dim
    kept = y if keepdim or not x.dim() else _unsqueezed(y, dims, x.dim())
    picked = (x.value == kept) | (x.value.isnan() & kept.isnan())
    weight = picked / picked.sum(dims, keepdim=True)

    def of(row: Any) -> Any:
        return (row * weight.to(row.dtype)).sum(dims, keepdim)

    return sweep.mapped(y, x, of, weight)


def _unsqueezed(y: Any, dims: Any, count: int) -> Any:
    """y with the dimensions over which it was reduced."""
    for i in sorted(d % count for d in ((dims,) if isinstance(dims, int) else dims)):
        y = y.unsqueeze(i)
    return y


def _extremum(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """amax, amin."""
    x, dim, keepdim = _given(args, kwargs, dim=None, keepdim=False)
    return _of_equals(sweep, x, func(x.value, *args[1:], **kwargs), dim, keepdim)


def _extrema(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    x, dim, keepdim = _given(args, kwargs, dim=None, keepdim=False)
    named = func(x.value, **kwargs)
    return type(named)([_of_equals(sweep, x, y, dim, keepdim) for y in named])


def _given(args: Any, kwargs: Any, **defaults: Any) -> tuple[Any, ...]:
    """The first argument, and those that have defaults."""
    options = {**defaults, **dict(zip(defaults, args[1:], strict=False)), **kwargs}
    return (args[0], *(options[name] for name in defaults))


def _pooled(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """The largest element of each window."""
    name = known_name(func)
    pool = name.removesuffix("_with_indices")
    n = int(pool[-2])
    options = {key: option for key, option in kwargs.items() if key != "return_indices"}
    y, indices = getattr(F, f"{pool}_with_indices")(args[0].value, *args[1:], **options)

    def of(row: Any) -> Any:
        return row.flatten(-n).gather(-1, indices.flatten(-n)).reshape(y.shape)

    made = sweep.mapped(y, args[0], of, indices)
    gives_both = pool != name or (pool.startswith("adaptive") and not isinstance(func, types.FunctionType))
    return (made, indices) if gives_both else made


def _scattered(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """scatter and index_fill: of a tensor or of a number."""
    *_, source = args
    if kwargs:
        return NotImplemented
    if isinstance(source, Tensor) and (source.is_floating_point() or source.is_complex()):
        return sweep.linear(func, args, kwargs, jointly=True)
    x: Any = args[0]
    return sweep.mapped(func(x.value, *args[1:]), x, lambda row: func(row, *args[1:-1], 0), args[1:])


def _embedding(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Rows of a table; PyTorch gives the row of the padding no derivative."""
    table, indices, padding = (*args, -1)[:3]
    if not sweep.owns(table):
        return NotImplemented
    padded = (indices == padding).unsqueeze(-1)

    def of(row: Any) -> Any:
        return func(row, indices).masked_fill(padded, 0)

    return sweep.mapped(func(table.value, indices), table, of, indices)


def _reduced_by_index(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """scatter_reduce and index_reduce: an extremum is the mean of the elements of both tensors that are equal to it."""
    *_, reduce = args
    if reduce in ("sum", "mean"):
        return sweep.linear(func, args, kwargs, jointly=True)
    if reduce not in ("amax", "amin"):
        return NotImplemented
    x, dim, index, source, _ = args
    if known_name(func) == "index_reduce" and x.dim():
        index = index.view(-1, *(1,) * (x.dim() - 1)).movedim(0, dim).expand(source.shape)
    if index.shape != source.shape:
        return NotImplemented
    y = func(*sweep.values(args, {})[0], **kwargs)
    of_source = sweep.value(source) == y.gather(dim, index)
    of_x = sweep.value(x) == y
    if not kwargs.get("include_self", True):
        of_x = of_x.scatter(dim, index, False)
    count = of_x.to(y.dtype).scatter_add(dim, index, of_source.to(y.dtype))

    def mean(x: Any, source: Any) -> Any:
        return torch.where(of_x, x, 0).scatter_add(dim, index, torch.where(of_source, source, 0)) / count

    return sweep.linear(mean, (x, source), {}, jointly=True, constants=(of_x, of_source))


_POOLS = [f"{kind}max_pool{n}d" for kind in ("", "adaptive_") for n in "123"]
RULES: dict[str, Rule] = {
    **dict.fromkeys("max min median nanmedian mode kthvalue topk sort cummax cummin".split(), _selected),
    "amax": _extremum,
    "amin": _extremum,
    "aminmax": _extrema,
    **dict.fromkeys((*_POOLS, *(f"{name}_with_indices" for name in _POOLS)), _pooled),
    "scatter": _scattered,
    "index_fill": _scattered,
    "embedding": _embedding,
    **dict.fromkeys(("scatter_reduce", "index_reduce"), _reduced_by_index),
}
