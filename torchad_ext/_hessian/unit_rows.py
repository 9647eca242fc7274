"""Batches of cotangents that begin as unit vectors, and stay sparse as long as they can.

The rows of a Jacobian are pullbacks of the unit vectors. An elementwise derivative scales a unit vector, and a matrix
product picks a row or a column of the matrix: neither needs a pass over all rows, or a product of matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import enable_reentrant_dispatch
from torch.utils._pytree import tree_flatten, tree_unflatten

from .._torch_state import no_torch_function, wrapper_subclass

aten = torch.ops.aten


class UnitRows(Tensor):
    """A batch of tensors of one shape, which a function of one such tensor takes as if it were one.

    The batch is either ``dense``, ``[rows, *shape]``, or it has one element that is not zero in each row: ``scales[r]``
    at the place ``start + r`` of the flattened tensor.
    """

    scales: Tensor | None
    start: int
    _dense: Tensor | None

    @staticmethod
    def __new__(
        cls, shape: Sequence[int], scales: Tensor | None = None, start: int = 0, dense: Tensor | None = None
    ) -> UnitRows:
        like = dense if dense is not None else scales
        assert like is not None
        self: UnitRows = wrapper_subclass(cls, shape, like)
        self.scales = scales
        self.start = start
        self._dense = dense
        return self

    __torch_function__ = no_torch_function

    def dense_rows(self) -> Tensor:
        """``[rows, *shape]``."""
        if self._dense is None:
            assert self.scales is not None
            dense = self.scales.new_zeros(len(self.scales), self.numel())
            dense.diagonal(self.start).copy_(self.scales)
            self._dense = dense.view(-1, *self.shape)
        return self._dense

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        rule = _RULES.get(func.overloadpacket)
        with enable_reentrant_dispatch():  # what resolves conjugate and negative views may have run, and be left out
            result = rule(*args) if rule and not kwargs else None
            return _batched(func, args, kwargs or {}) if result is None else result


def dense_rows(results: Sequence[Tensor], count: int) -> list[Tensor]:
    """Results of a function of a batch as plain tensors ``[count, *shape]``."""
    return [y.dense_rows() if isinstance(y, UnitRows) else y.expand(count, *y.shape).clone() for y in results]


def _batched(func: Any, args: Any, kwargs: Any) -> Any:
    """An operation on dense batches, by ``torch.func.vmap``."""
    leaves, spec = tree_flatten((args, kwargs))
    batches = [x for x in leaves if isinstance(x, UnitRows)]
    if func._schema.is_mutable and any(x.scales is not None for x in batches):
        raise RuntimeError(f"{func} writes where only the scales of unit vectors are kept, which views do not share")
    results: list[Any] = []

    def apply(*rows: Tensor) -> list[Tensor]:
        given = iter(rows)
        args, kwargs = tree_unflatten([next(given) if isinstance(x, UnitRows) else x for x in leaves], spec)
        results[:] = tree_flatten(func(*args, **kwargs))
        return [y for y in results[0] if isinstance(y, Tensor)]  # others may be None

    made = iter(torch.func.vmap(apply)(*(x.dense_rows() for x in batches)))
    values, structure = results
    return tree_unflatten([_of_rows(next(made)) if isinstance(y, Tensor) else y for y in values], structure)


def _of_rows(dense: Tensor) -> UnitRows:
    return UnitRows(dense.shape[1:], dense=dense)


def _reshaped(x: UnitRows, shape: Sequence[int]) -> UnitRows:
    """The elements in the same order."""
    if x.scales is not None:
        return UnitRows(shape, x.scales, x.start)
    return UnitRows(shape, dense=x.dense_rows().view(-1, *shape))


def _view(x: UnitRows, shape: Sequence[int]) -> UnitRows:
    return _reshaped(x, torch.empty(x.shape, device="meta").view(shape).shape)


def _unsqueeze(x: UnitRows, dim: int) -> UnitRows:
    shape = list(x.shape)
    shape.insert(dim % (x.dim() + 1), 1)
    return _reshaped(x, shape)


def _squeeze(x: UnitRows, dim: Any = None) -> UnitRows:
    dims = range(x.dim()) if dim is None else [dim] if isinstance(dim, int) else dim
    dims = {d % max(1, x.dim()) for d in dims}
    return _reshaped(x, [size for d, size in enumerate(x.shape) if d not in dims or size != 1])


def _transpose(x: UnitRows, dim0: int = 0, dim1: int = 1) -> UnitRows | None:
    if x.dim() < 2 or 1 not in (x.shape[dim0], x.shape[dim1]) or x.numel() != max(x.shape):
        return None
    shape = list(x.shape)
    shape[dim0], shape[dim1] = shape[dim1], shape[dim0]
    return _reshaped(x, shape)


def _expand(x: UnitRows, shape: Sequence[int]) -> UnitRows | None:
    return _same(x) if tuple(shape) == tuple(x.shape) else None


def _same(x: UnitRows) -> UnitRows:
    return UnitRows(x.shape, x.scales, x.start, x._dense)


def _neg(x: UnitRows) -> UnitRows:
    if x.scales is not None:
        return UnitRows(x.shape, -x.scales, x.start)
    return UnitRows(x.shape, dense=-x.dense_rows())


def _mul(x: Any, y: Any) -> UnitRows | None:
    if not isinstance(x, UnitRows):
        x, y = y, x
    if x.scales is None:
        return _broadcast(torch.mul, x, y)
    if not isinstance(y, Tensor):
        return UnitRows(x.shape, x.scales * y, x.start)
    if torch.broadcast_shapes(x.shape, y.shape) != x.shape or x.dtype != y.dtype:
        return None
    stop = x.start + len(x.scales)
    if isinstance(y, UnitRows):
        if y.scales is not None or x.shape != y.shape:
            return None
        factors = y.dense_rows().reshape(len(x.scales), -1).diagonal(x.start)
    else:
        factors = y.expand(x.shape).reshape(-1)[x.start : stop]
    return UnitRows(x.shape, x.scales * factors, x.start)


def _div(x: Any, y: Any) -> UnitRows | None:
    if not isinstance(x, UnitRows) or isinstance(y, UnitRows) or (isinstance(y, Tensor) and y.dtype != x.dtype):
        return None
    return _mul(x, 1 / y)


def _broadcast(op: Callable[[Tensor, Any], Tensor], x: UnitRows, y: Any) -> UnitRows | None:
    """An elementwise operation on a dense batch and a number, a tensor for all rows, or another batch."""
    if isinstance(y, UnitRows):
        if y.shape != x.shape:
            return None
        y = y.dense_rows()
    elif isinstance(y, Tensor) and (torch.broadcast_shapes(x.shape, y.shape) != x.shape or y.dtype != x.dtype):
        return None
    return UnitRows(x.shape, dense=op(x.dense_rows(), y))


def _add(x: Any, y: Any) -> UnitRows | None:
    if not (isinstance(x, UnitRows) and isinstance(y, UnitRows) and x.shape == y.shape and x.dtype == y.dtype):
        return None
    if x.scales is not None and y.scales is not None:
        return UnitRows(x.shape, x.scales + y.scales, x.start) if x.start == y.start else None
    if x.scales is not None:
        x, y = y, x
    if y.scales is None:
        return UnitRows(x.shape, dense=x.dense_rows() + y.dense_rows())
    total = x.dense_rows().clone()
    total.view(len(total), -1).diagonal(y.start).add_(y.scales)
    return UnitRows(x.shape, dense=total)


def _mm(a: Any, b: Any) -> UnitRows | None:
    """A product with a row [1, k] or column [k, 1]: rows or columns of the other factor, or one product of matrices."""
    if isinstance(a, UnitRows) == isinstance(b, UnitRows):
        return None
    x, matrix, shape = (a, b, (1, b.shape[1])) if isinstance(a, UnitRows) else (b, a.T, (a.shape[0], 1))
    if x.numel() != matrix.shape[0]:
        return None
    if x.scales is None:
        rows = x.dense_rows().reshape(-1, x.numel()) @ matrix
    else:
        rows = matrix[x.start : x.start + len(x.scales)] * x.scales.unsqueeze(1)
    return UnitRows(shape, dense=rows.view(-1, *shape))


def _mv(a: Any, x: Any) -> UnitRows | None:
    if isinstance(a, UnitRows):
        return None
    product = _mm(a, _unsqueeze(x, 1))
    return None if product is None else _squeeze(product, 1)


def _index_fill(x: Any, dim: int, index: Any, value: Any) -> UnitRows | None:
    """For vmap fills all rows with the last number where only the numbers are batched (torch 2.13)."""
    if isinstance(x, UnitRows) or not isinstance(value, UnitRows):
        return None
    batch = x.expand(len(value.dense_rows()), *x.shape).clone()
    filled: UnitRows = _batched(aten.index_fill.int_Tensor, (UnitRows(x.shape, dense=batch), dim, index, value), {})
    return filled


_RULES: dict[Any, Callable[..., UnitRows | None]] = {
    **dict.fromkeys((aten.view, aten._unsafe_view, aten.reshape), _view),
    **dict.fromkeys((aten.detach, aten.alias), _same),
    **dict.fromkeys((aten.t, aten.transpose), _transpose),
    aten.unsqueeze: _unsqueeze,
    aten.squeeze: _squeeze,
    aten.expand: _expand,
    aten.neg: _neg,
    aten.mul: _mul,
    aten.div: _div,
    aten.add: _add,
    aten.mm: _mm,
    aten.mv: _mv,
    aten.index_fill: _index_fill,
}
