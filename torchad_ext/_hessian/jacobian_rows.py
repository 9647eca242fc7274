"""Rows of a Jacobian J, pulled back in batches.

One random product by plain reverse mode checks them (:mod:`torchad_ext._hessian.random_product`): the first time that
a graph is met, and from then on as often as 2 % of the time allow. Where it differs, rows are pulled back one by one,
with a warning; with ``TORCHAD_EXT_STRICT=1`` it is an error. Within a transform of ``torch.func``, at a level of
forward mode and while compiling nothing is checked.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_unflatten

from .._autograd.foreign_functions import COMPILED
from .._forward.sparse_values import NODES
from .._self_check import FastPath, report
from . import thresholds
from .point import Point, Tensors, is_transformed, offsets_of
from .pullback import GraphPullback, Pullback
from .random_product import RandomProduct
from .unit_rows import UnitRows, dense_rows

_ONE_BY_ONE = NODES | {COMPILED}  # nodes whose backward runs for one row at a time

Chunks = Iterable[tuple[int, Tensors]]  # the number of the first row of each, and for each leaf of x [rows, *leaf]


def rows_at_once(value: Pullback, width: int, batch: int = 1) -> int:
    """The default number of rows of a batch, for a Jacobian of ``size // batch`` rows and so many columns."""
    if value.size <= thresholds.ROWS_APART:
        return 1
    bytes_of_one = max(y.element_size() for y in (*value.outputs, *value.at.leaves))
    of_jacobian = value.size * width // max(1, batch) * bytes_of_one
    return thresholds.rows_at_once(value.largest(), of_jacobian, value.largest_matrix())


def all_rows(value: Pullback, chunk_size: int | None, progress: bool) -> list[Tensor]:
    """J: for each leaf of x a tensor ``[size, *leaf]``."""
    rows: list[Tensor] = gathered(
        value, lambda chunks: joined(chunks, value.size, value.at.leaves), chunk_size, progress
    )
    return rows


def chunks_of_rows(value: Pullback, rows: int, progress: bool) -> Iterator[tuple[int, Tensors]]:
    """The rows of J in batches: the number of the first, and for each leaf of x ``[rows, *leaf]``."""
    if isinstance(value, GraphPullback) and _are_units(value, rows):
        (y,) = value.outputs
        for start, count in _batches(value.size, value.at, rows, progress):
            units = UnitRows(y.shape, y.new_ones(count), start)
            try:
                yield start, dense_rows(value.gradients([units]), count)
            except (RuntimeError, IndexError):  # of an operation that does not take them
                yield start, value.pull_rows([units.dense_rows()])
        return
    for start, seeds in bases(value.outputs, value.at, rows, progress):
        yield start, value.pull_rows(seeds)


def _are_units(value: GraphPullback, rows: int) -> bool:
    """Are the rows unit vectors, which are worth to be kept sparse?"""
    if not value.final or len(value.outputs) != 1:
        return False
    matrix = value.largest_matrix() // value.outputs[0].element_size()
    return thresholds.are_units_worth(min(rows, value.size), value.size, len(value.names), matrix)


def gathered(
    value: Pullback,
    gather: Callable[[Chunks], Any],
    chunk_size: int | None,
    progress: bool,
    chunks: Callable[[int], Chunks] | None = None,
    batch: int = 1,
) -> Any:
    """The result of ``gather`` on the rows. One random product checks those of batches; where it differs, they are
    computed one by one."""
    chunks = chunks or functools.partial(chunks_of_rows, value, progress=progress)
    rows = chunk_size or rows_at_once(value, value.at.size, batch)
    if not isinstance(value, GraphPullback) or not value.size or not value.at.size:
        return gather(chunks(rows))
    if rows == 1 or value.size <= batch or not _ONE_BY_ONE.isdisjoint(value.names):
        return gather(chunks(1))
    path = value.path("in batches", rows)
    if path.is_wrong:
        return gather(chunks(1))
    with path.running():
        if not path.is_due:
            return gather(chunks(rows))
        product = RandomProduct(value.outputs, value.at.leaves, batch)
        result = gather(product.recorded(chunks(rows), path))
        with path.checking():
            agrees = product.agrees(value.pull_without_graph)
    return result if agrees else _one_by_one(value, gather, chunks(1), product, path, "in batches", batch)


def rows_again(
    value: GraphPullback, differing: RandomProduct, path: FastPath, way: str, progress: bool
) -> list[Tensor]:
    """J by plain reverse mode, where that by another way differs from a random product."""
    gather = functools.partial(joined, size=value.size, leaves=value.at.leaves)
    rows: list[Tensor] = _one_by_one(value, gather, chunks_of_rows(value, 1, progress), differing, path, way)
    return rows


def _one_by_one(
    value: GraphPullback,
    gather: Callable[[Chunks], Any],
    chunks: Chunks,
    differing: RandomProduct,
    path: FastPath,
    way: str,
    batch: int = 1,
) -> Any:
    """The result of ``gather`` on rows of plain reverse mode, in place of those that differ from a random product.
    Where plain rows differ from it too, or nearly as much, rounding is to blame."""
    product = RandomProduct(value.outputs, value.at.leaves, batch)
    result = gather(product.recorded(chunks, path))
    if product.agrees(value.pull_without_graph) and differing.is_worse_than(product):
        report(value.at.name, value.at.f, path, way)
    else:
        path.is_rounded = True
    return result


def bases(leaves: Tensors, at: Point, rows: int, progress: bool) -> Iterator[tuple[int, list[Tensor]]]:
    """The unit vectors of the space of some leaves in batches: the number of the first, and for each leaf
    ``[rows, *leaf]``."""
    for start, count in _batches(sum(leaf.numel() for leaf in leaves), at, rows, progress):
        units = [leaf.new_zeros(count, leaf.numel()) for leaf in leaves]
        for unit, offset in zip(units, offsets_of(leaves), strict=True):
            unit.diagonal(start - offset).fill_(1)
        yield start, [unit.view(count, *leaf.shape) for unit, leaf in zip(units, leaves, strict=True)]


def _batches(size: int, at: Point, rows: int, progress: bool) -> Iterator[tuple[int, int]]:
    """The number of the first row of each batch, and how many it has."""
    for start in tracked(range(0, size, rows), at, progress):
        yield start, min(rows, size - start)


def tracked(batches: range, at: Point, progress: bool) -> Iterable[int]:
    """Batches, with a progress bar if that is wanted."""
    if not progress:
        return batches
    from rich.progress import track

    return track(batches, description=at.name)


def joined(chunks: Chunks, size: int, leaves: Tensors) -> list[Tensor]:
    """The chunks as one tensor ``[size, *leaf]`` for each leaf, written in place where that loses no derivative."""
    results: list[Tensor] = []
    parts: list[Tensors] = []
    for start, rows in chunks:
        if len(rows[0]) == size:
            results = list(rows)
            continue
        if is_transformed() or any(row.requires_grad for row in rows):
            parts.append(rows)
            continue
        if not results:
            results = [row.new_empty(size, *row.shape[1:]) for row in rows]
        for result, row in zip(results, rows, strict=True):
            result[start : start + len(row)] = row
    if parts:
        return [torch.cat(part) for part in zip(*parts, strict=True)]
    return results or [leaf.new_zeros(size, *leaf.shape) for leaf in leaves]


def blocks_of_rows(value: Pullback, rows: Tensors, as_outputs: bool = False) -> Any:
    """J in the structure of the value, each leaf of it in that of x, in the dtype of x or that of the value."""
    return tree_unflatten(
        [
            value.at.unflatten(
                row[o : o + y.numel()].view((*y.shape, *row.shape[1:])).to(y.dtype if as_outputs else row.dtype)
                for row in rows
            )
            for o, y in zip(offsets_of(value.outputs), value.outputs, strict=True)
        ],
        value.spec,
    )
