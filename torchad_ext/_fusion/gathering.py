"""Rows that an index takes, ``x[index]``, as messages read the nodes that they come from.

On the CPU PyTorch sums the gradient of a large index an element at a time, by atomic additions in no fixed order. That
of ``index_select`` is summed row by row in all threads, each row in one order for any number of them. On a GPU only the
former has an order, and stays.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from .._torch_state import without_view
from .graph_calls import spoken, value_of

_FEW = 2**15  # elements of a result, up to which PyTorch sums as quickly
_PLAIN: tuple[Any, ...] = (Tensor, torch.nn.Parameter)


def index_of_rows(node: Node) -> Node | None:
    """The index of ``x[index]`` if it has whole numbers for the first dimension, else None."""
    if spoken(node) != "getitem" or node.kwargs or not isinstance(node.args[0], Node):
        return None
    x, given = value_of(node.args[0]), node.args[1]
    index, *others = given if isinstance(given, tuple) and given else (given,)
    if not (isinstance(index, Node) and all(i is ... or i == slice(None) for i in others)):
        return None
    places = value_of(index)
    if not (isinstance(x, Tensor) and isinstance(places, Tensor)) or len(others) >= max(1, x.dim()):
        return None
    is_whole = places.dtype in (torch.int64, torch.int32) and places.dim() > 0
    return index if is_whole and x.is_floating_point() and x.device.type == places.device.type == "cpu" else None


def rows(x: Tensor, index: Tensor) -> Tensor:
    """``x[index]``; a negative number counts from the end."""
    size, *others = x.shape
    is_plain = type(x) in _PLAIN and type(index) is Tensor and size > 0
    is_in_order = x.is_contiguous() and (index.dim() == 1 or index.is_contiguous())  # else it has other strides
    if not (is_plain and is_in_order) or index.numel() * math.prod(others) <= _FEW:
        return x[index]
    places = torch.where(index < 0, index + size, index)
    result = x.index_select(0, places.flatten())
    return result if index.dim() == 1 else without_view(result, (*index.shape, *others))
