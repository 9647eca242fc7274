"""Calls along the last dimension in a graph of PyTorch calls, as a row op computes them.

PyTorch spells a norm in five ways, and dimensions from both ends. A RowCall is one of them in one spelling, which does
not depend on shapes: ``dim=-1``, and the definitions of the catalogue of row ops.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from .._torch_state import surely
from ..rows import ROW_CATALOGUE


@dataclass(frozen=True)
class RowCall:
    """A call along the last dimension, ``function(*args, **kwargs)``; the first ``rows`` arguments are ``[..., n]``."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    rows: int = 1


class _Otherwise(Exception):
    """The call is along another dimension, or has an option that row ops do not know."""


def row_call(name: str, node: Node) -> RowCall | None:
    """The call of a function of PyTorch along the last of several dimensions; None if it is another call.

    Args:
        name: the function's.
        node: the call.
    """
    if name not in _READERS:
        return None
    try:
        call = _READERS[name](*node.args, **node.kwargs)
    except (_Otherwise, TypeError):
        return None
    shapes = {str(tuple(_shape(x))) for x in call.args[: call.rows]}
    given = [x for x in node.all_input_nodes if not isinstance(node.meta.get("example_value"), torch.Tensor)]
    return None if len(shapes) > 1 or given else call


def view_of_rows(name: str, node: Node) -> Node | None:
    """The tensor to which a call adds a last dimension of size 1, or from which it takes it; None of another call."""
    x = node.args[0] if node.args else None
    if name not in ("unsqueeze", "squeeze", "getitem") or not _is_tensor(x) or not _is_tensor(node):
        return None
    assert isinstance(x, Node)
    before, after, wanted = tuple(_shape(x)), tuple(_shape(node)), node.args[1] if len(node.args) > 1 else None
    if name == "getitem":
        index = list(wanted) if isinstance(wanted, tuple) else [wanted]
        adds = index[-1] is None
        rest = [i for i in index[:-1] if i is not Ellipsis]
        is_last = all(isinstance(i, slice) and i == slice(None) for i in rest)
        is_last = is_last and (Ellipsis in index[:-1] or len(rest) == len(before) - (not adds))
    else:
        wanted = node.kwargs.get("dim", wanted)
        adds = name == "unsqueeze"
        is_last = wanted in (-1, (len(after) if adds else len(before)) - 1)
    longer, shorter = (after, before) if adds else (before, after)
    return x if is_last and str(longer) == str((*shorter, 1)) else None


def written_view(node: Node) -> Callable[..., Any]:
    """Function that a row op has in the place of such a view: ``unsqueeze`` or ``squeeze`` of the last dimension."""
    assert isinstance(node.args[0], Node)
    return _unsqueezed if len(_shape(node)) > len(_shape(node.args[0])) else _squeezed


def _unsqueezed(x: torch.Tensor) -> torch.Tensor:
    return x.unsqueeze(-1)


def _squeezed(x: torch.Tensor) -> torch.Tensor:
    return x.squeeze(-1)


def _is_tensor(x: Any) -> bool:
    return isinstance(x, Node) and isinstance(x.meta.get("example_value"), torch.Tensor)


def _shape(x: Any) -> torch.Size:
    if not _is_tensor(x):
        raise _Otherwise
    shape: torch.Size = x.meta["example_value"].shape
    return shape


def _check_last(dim: Any, x: Any) -> None:
    """Raises where a dimension is not the last of several, or a row may have one element."""
    dims = len(_shape(x))
    if isinstance(dim, (tuple, list)) and len(dim) == 1:
        dim = dim[0]
    if isinstance(dim, bool) or dim not in (-1, dims - 1) or dims < 2 or not surely(lambda: _shape(x)[-1] > 1):
        raise _Otherwise


def _check(holds: bool) -> None:
    if not holds:
        raise _Otherwise


def _reduction(function: Callable[..., Any]) -> Callable[..., RowCall]:
    def read(input: Any, dim: Any = None, keepdim: Any = False, *, dtype: Any = None, axis: Any = None) -> RowCall:
        _check_last(dim if axis is None else axis, input)
        _check(dtype is None and isinstance(keepdim, bool))
        return RowCall(function, (input,), {"dim": -1, "keepdim": keepdim})

    return read


def _softmax(name: str) -> Callable[..., RowCall]:
    def read(input: Any, dim: Any = None, *level: Any, _stacklevel: int = 3, dtype: Any = None) -> RowCall:
        _check_last(dim, input)
        _check(dtype is None and not any(isinstance(x, torch.dtype) for x in level))
        return RowCall(ROW_CATALOGUE[name].definition, (input,))

    return read


def _variance(function: Callable[..., Any]) -> Callable[..., RowCall]:
    def read(input: Any, dim: Any = None, unbiased: Any = True, keepdim: Any = False, **options: Any) -> RowCall:
        _check_last(dim, input)
        correction = options.pop("correction", int(unbiased))
        _check(isinstance(unbiased, bool) and isinstance(keepdim, bool) and not options)
        correction = 1 if correction is None else correction
        _check(isinstance(correction, (int, float)))
        return RowCall(function, (input,), {"dim": -1, "correction": correction, "keepdim": keepdim})

    return read


def _norm(input: Any, p: Any = 2, dim: Any = None, keepdim: Any = False, dtype: Any = None) -> RowCall:
    _check_last(dim, input)
    _check(p in (None, 2, "fro") and dtype is None and isinstance(keepdim, bool))
    return RowCall(ROW_CATALOGUE["vector_norm"].definition, (input,), {"dim": -1, "keepdim": keepdim})


def _linalg_norm(x: Any, ord: Any = 2, dim: Any = None, keepdim: Any = False, *, dtype: Any = None) -> RowCall:
    return _norm(x, ord, dim, keepdim, dtype)


def _normalize(input: Any, p: Any = 2.0, dim: Any = 1, eps: Any = 1e-12, out: Any = None) -> RowCall:
    _check_last(dim, input)
    _check(p == 2 and out is None and isinstance(eps, (int, float)))
    return RowCall(ROW_CATALOGUE["normalize"].definition, (input,), {"dim": -1, "eps": eps})


def _cosine_similarity(x1: Any, x2: Any, dim: Any = 1, eps: Any = 1e-8) -> RowCall:
    _check_last(dim, x1)
    _check(isinstance(eps, (int, float)))
    return RowCall(ROW_CATALOGUE["cosine_similarity"].definition, (x1, x2), {"dim": -1, "eps": eps}, rows=2)


def _vecdot(x: Any, y: Any, *, dim: Any = -1) -> RowCall:
    _check_last(dim, x)
    return RowCall(torch.linalg.vecdot, (x, y), {"dim": -1}, rows=2)


def _layer_norm(input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-5) -> RowCall:
    _check_last(-1, input)
    _check(len(normalized_shape) == 1 and isinstance(eps, (int, float)))
    return RowCall(ROW_CATALOGUE["layer_norm"].definition, (input, None, weight, bias, eps))


def _rms_norm(input: Any, normalized_shape: Any, weight: Any = None, eps: Any = None) -> RowCall:
    _check_last(-1, input)
    _check(len(normalized_shape) == 1 and (eps is None or isinstance(eps, (int, float))))
    eps = torch.finfo(input.meta["example_value"].dtype).eps if eps is None else eps
    return RowCall(ROW_CATALOGUE["rms_norm"].definition, (input, None, weight, eps))


_READERS: dict[str, Callable[..., RowCall]] = {
    **{name: _reduction(getattr(torch, name)) for name in ("sum", "mean", "amax", "amin")},
    "logsumexp": _reduction(ROW_CATALOGUE["logsumexp"].definition),
    "softmax": _softmax("softmax"),
    "log_softmax": _softmax("log_softmax"),
    "var": _variance(torch.var),
    "std": _variance(torch.std),
    "norm": _norm,
    "linalg_norm": _linalg_norm,
    "linalg_vector_norm": _linalg_norm,
    "linalg_vecdot": _vecdot,
    "normalize": _normalize,
    "cosine_similarity": _cosine_similarity,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
}
