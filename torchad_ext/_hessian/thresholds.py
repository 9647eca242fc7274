"""The ways to compute rows, and the bounds between them: which is quickest, and how many rows are computed at once.

All bounds are measured. A batch of rows shares calls of operations, and readings of what the rows are multiplied by.
Its tensors are as many times larger as it has rows, and elementwise operations on what leaves the cache take longer
than a row after the other. So the largest tensor of a batch takes two megabytes, or a small share of the Jacobian where
that is more, or as much as a matrix that each row is multiplied by, which a batch reads once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .._torch_state import cotangents_of

Way = Literal["products", "batches", "sweeps"]  # to the diagonal of a batch of points

# Rows of a batch.
_IN_CACHE, _AT_MOST = 2**21, 2**24  # bytes of the largest tensor of a batch
_SHARE = 32  # of the Jacobian's bytes; the tensors of a batch are some ten, so that they take less than half of these
_FEWEST = 8  # large rows that are worth a batch
FEW_ROWS = 3  # rows or columns of one batch, whatever their size; rows one by one where that cannot be
ROWS_APART = 2  # that are computed as quickly one by one, whatever their size
_UNIT_ROWS = 400  # in a batch as wide, from which on they are worth a dispatch in Python
_UNIT_NODES = 12  # of a graph, in more of which they are dense rows most of the way
_PRODUCTS_A_NODE = 2**20  # of numbers, which take as long as the dispatch in a node
MUCH_TALLER = 4  # values of f for each element of x, from which on the Jacobian is computed by its columns
_FIRST_FACTOR = {"MvBackward0": 0, "AddmvBackward0": 1, "MmBackward0": 0, "AddmmBackward0": 1}  # among the operands
# The diagonal of a batch of points.
FEW_PRODUCTS = 3  # that are computed as quickly one by one
_LARGE = 2**16  # bytes of the largest tensor of a product, from which on it is computed as quickly by itself
_SWEPT_FROM, _SWEPT_BYTES = 24, 2**19  # coordinates, and bytes of all of them, that are worth what a sweep prepares
_TANGENTS = 2**17  # elements of a batch of tangents, which stays in a cache
# Sparse Hessians.
SAVING = 4  # elements of x for each color, below which the products take as long as all rows
FEW_ELEMENTS = 512  # elements of x, all rows of which take less time than their pattern
FINDING, COLORING = 10, 70  # elements of rows that are computed while an entry is found, and is colored
SHARE = 0.2  # of the time of all rows, which finding and coloring may take


def rows_at_once(largest: int, jacobian: int, matrix: int = 0) -> int:
    """Rows of a batch, from the bytes of the largest tensor that a row takes, those of the Jacobian, and those of the
    largest matrix that a row is multiplied by."""
    rows = max(min(max(jacobian // _SHARE, _IN_CACHE), _AT_MOST), matrix) // max(1, largest)
    return rows if rows >= _FEWEST else 1


def are_units_worth(rows: int, size: int, nodes: int, matrix: int) -> bool:
    """Is a batch of so many unit rows of this size worth the dispatch in each node that keeps them sparse?

    It saves most of a product with a matrix of so many elements."""
    is_short = nodes <= _UNIT_NODES and size >= _UNIT_ROWS and rows * size >= _UNIT_ROWS**2
    return rows > 1 and (is_short or rows * matrix >= nodes * _PRODUCTS_A_NODE)


def directions_at_once(size: int) -> int:
    """Directions along which tangents of points with so many elements in all are carried at once."""
    return max(1, _TANGENTS // max(1, size))


def quickest_ways(coordinates: int, largest: int, in_graph: bool) -> list[Way]:
    """The ways to the diagonal of a batch of points: ``coordinates`` products one after the other, the same in batches,
    or sweeps, which come first where they are likely to be quicker, as they are not always possible.

    Batches save calls, where their tensors are small; sweeps save the way back, where what they prepare has many
    coordinates to serve. ``largest`` are the bytes of the largest tensor of a product, in a graph of autograd or not.
    """
    back: Way = "products" if coordinates <= FEW_PRODUCTS or (in_graph and largest >= _LARGE) else "batches"
    return ["sweeps", back] if coordinates >= _SWEPT_FROM and coordinates * largest >= _SWEPT_BYTES else [back]


def largest_matrix_in_graph(nodes: Iterable[Any]) -> int:
    """The bytes of the largest matrix by which nodes of autograd multiply, as the shapes of what it is multiplied with
    and of the product tell it: A of A x is ``[m, n]`` for Ax ``[m]`` and x ``[n]``."""
    largest = 0
    for node in nodes:
        first = _FIRST_FACTOR.get(type(node).__name__)
        if first is None:
            continue
        (product,) = cotangents_of(node)
        for place, (child, of_child) in enumerate(node.next_functions[first:]):
            of_vector = len(product.shape) == 1
            if child is None or (of_vector and place == 0):  # A varies
                continue
            shared = 1 if of_vector else product.shape[place]  # rows of A, columns of B
            factor = cotangents_of(child)[of_child]
            elements = math.prod(product.shape) * math.prod(factor.shape) // max(1, shared) ** 2
            largest = max(largest, elements * product.dtype.itemsize)
    return largest


class Largest(TorchFunctionMode):
    """Notes the bytes of the largest result of the functions that run under it.

    No ``TorchDispatchMode``, under which forward mode ends the process where a number multiplies what has no tangent.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = (y.numel() * y.element_size() for y in tree_leaves(result) if isinstance(y, torch.Tensor))
        self.bytes = max(self.bytes, *sizes, 0)
        return result
