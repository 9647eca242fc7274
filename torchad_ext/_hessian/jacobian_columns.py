"""Columns of a Jacobian J: pushforwards in forward mode, or pullbacks of the pullback v -> v^T J, linear in v.

One random product by plain reverse mode checks them, as it does rows (:mod:`torchad_ext._hessian.jacobian_rows`).
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_unflatten

from .._autograd.graph import foreign_nodes
from .._self_check import FastPath, fast_path
from . import thresholds
from .jacobian_rows import all_rows, bases, blocks_of_rows, chunks_of_rows, joined, rows_again, rows_at_once
from .point import Draws, Function, Point, Tensors, explained, offsets_of
from .pullback import FlatFunction, GraphPullback, Pullback, grad
from .random_product import RandomProduct
from .thresholds import Largest


def jacobian_in_forward_mode(
    at: Point,
    function: Function,
    reverse: Callable[[], Pullback],
    draws: Draws,
    chunk_size: int | None,
    progress: bool,
    as_outputs: bool = False,
) -> Any:
    """The Jacobian of a function in the dtype of x or that of the value. A random product by reverse mode checks it, if
    there is one."""
    if at.is_transformed or not at.size:
        return _blocks_of_columns(at, *_columns(at, function, draws, chunk_size, progress, None), as_outputs)
    path = path_of_function(at, "in forward mode")
    if path.is_wrong:
        with draws.evaluation():
            value = reverse()
        return blocks_of_rows(value, all_rows(value, 1, progress), as_outputs)
    with path.running():
        columns, spec = _columns(at, function, draws, chunk_size, progress, path)
        agree = True
        if path.is_due:
            # suppress: of an operation with formulas of forward mode only
            with path.checking(), contextlib.suppress(RuntimeError):
                with draws.evaluation():
                    value = reverse()
                assert isinstance(value, GraphPullback)
                product = _product_of_columns(columns, value)
                agree = product.agrees(value.pull_without_graph)
    if agree:
        return _blocks_of_columns(at, columns, spec, as_outputs)
    assert isinstance(value, GraphPullback)
    return blocks_of_rows(value, rows_again(value, product, path, "in forward mode", progress), as_outputs)


def jacobian_by_pullback_of_pullback(value: Pullback, chunk_size: int | None, progress: bool) -> Any:
    """J by its columns, J u being the pullback of u through the graph of w -> J^T w; None where that has another
    derivative, or none."""
    at, dtypes = value.at, {x.dtype for x in (*value.outputs, *value.at.leaves)}
    # The derivatives of a column would be of higher order than those of a row.
    if not (isinstance(value, GraphPullback) and value.final and at.size and len(dtypes) == 1):
        return None
    if any(foreign_nodes(value.outputs)):
        return None
    path = value.path("by columns", chunk_size)
    if path.is_wrong:
        return blocks_of_rows(value, all_rows(value, 1, progress))
    with path.running():
        w = [torch.ones_like(y, requires_grad=True) for y in value.outputs]
        try:
            with torch.enable_grad():
                gradients = grad(value.outputs, value.inputs, w, create_graph=True)
            transposed = GraphPullback(Point(at.name, at.f, w), value.spec, gradients, w, create_graph=False)
            rows = chunk_size or rows_at_once(transposed, value.size)
            columns = joined(chunks_of_rows(transposed, rows, progress), at.size, w)
        except RuntimeError:  # of an operation that has no second derivative
            return None
        agree = True
        if path.is_due:
            with path.checking():
                product = _product_of_columns(columns, value)
                agree = product.agrees(value.pull_without_graph)
    if agree:
        return _blocks_of_columns(at, columns, value.spec)
    return blocks_of_rows(value, rows_again(value, product, path, "by columns", progress))


def path_of_function(at: Point, *way: Any) -> FastPath:
    """The record of a way to differentiate f at points of this kind."""
    shapes = tuple((x.shape, x.dtype, x.device) for x in at.leaves)
    with contextlib.suppress(TypeError):  # of functions without a weak reference, or a hash
        return fast_path((at.name, way, shapes, weakref.ref(at.f)), any(x.is_meta for x in at.leaves))
    return FastPath()


def _columns(
    at: Point, function: Function, draws: Draws, chunk_size: int | None, progress: bool, path: FastPath | None
) -> tuple[list[Tensor], TreeSpec]:
    """Pushforwards of the unit vectors, for each output ``[columns, *output]``, and the structure of the outputs. The
    default number of them at once is measured with one, and kept in ``path``."""
    flat = FlatFunction(function, at)
    leaves = tuple(x.contiguous() for x in at.leaves)  # a tangent lies in memory as x does, whose elements may share it

    def push(*tangents: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.func.jvp(flat, leaves, tangents)[1])

    def columns_at_once() -> int:
        if path is None or at.size <= thresholds.FEW_ROWS:
            return max(1, at.size)
        if path.at_once is None:
            _, units = next(bases(at.leaves, at, 1, False))
            with Largest() as largest, explained(at.name), draws.evaluation():
                column = push(*(u[0] for u in units))
            path.at_once = thresholds.rows_at_once(
                largest.bytes, at.size * sum(y.numel() * y.element_size() for y in column)
            )
        return path.at_once

    def chunks() -> Iterator[tuple[int, Tensors]]:
        for start, units in bases(at.leaves, at, chunk_size or columns_at_once(), progress):
            with explained(at.name, of_rows=len(units[0]) > 1), draws.evaluation():
                if len(units[0]) == 1:
                    pushed: Tensors = [column.unsqueeze(0) for column in push(*(u[0] for u in units))]
                else:
                    pushed = torch.func.vmap(push, randomness="same")(*units)
            yield start, pushed

    columns = joined(chunks(), at.size, [] if at.size else flat(*at.leaves))
    return columns, flat.spec


def _product_of_columns(columns: Tensors, value: GraphPullback) -> RandomProduct:
    """A random product of the columns of J, for each output ``[columns, *output]``."""
    at = value.at
    product = RandomProduct(value.outputs, at.leaves)
    for start, column in zip(offsets_of(value.outputs), columns, strict=True):
        if column.numel():
            product.add(start, column.reshape(at.size, -1).T.split([x.numel() for x in at.leaves], 1))
    return product


def _blocks_of_columns(at: Point, columns: Tensors, spec: TreeSpec, as_outputs: bool = False) -> Any:
    """J in the structure of the value, each leaf of it in that of x, in the dtype of x or that of the value."""
    return tree_unflatten(
        [
            at.unflatten(
                column[o : o + x.numel()]
                .movedim(0, -1)
                .reshape((*column.shape[1:], *x.shape))
                .to(column.dtype if as_outputs else x.dtype)
                for o, x in zip(at.offsets, at.leaves, strict=True)
            )
            for column in columns
        ],
        spec,
    )
