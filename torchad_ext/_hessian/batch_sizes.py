"""The number of rows of a Jacobian that are pulled back at once, where no ``chunk_size`` is given.

A batch of rows shares calls of operations, and readings of what the rows are multiplied by. Its tensors are as many
times larger as it has rows, and elementwise operations on what leaves the cache take longer than a row after the other.
So the largest tensor of a batch takes two megabytes, or a small share of the Jacobian where that is more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .._torch_state import cotangents_of

_IN_CACHE, _AT_MOST = 2**21, 2**24  # bytes of the largest tensor of a batch
_SHARE = 32  # of the Jacobian's bytes; the tensors of a batch are some ten, so that they take less than half of these
_FEWEST = 8  # large rows that are worth a batch


def rows_at_once(largest: int, jacobian: int) -> int:
    """Rows of a batch, from the bytes of the largest tensor that a row takes, and those of the Jacobian."""
    rows = min(max(jacobian // _SHARE, _IN_CACHE), _AT_MOST) // max(1, largest)
    return rows if rows >= _FEWEST else 1


def largest_in_graph(nodes: Iterable[Any]) -> int:
    """The bytes of the largest cotangent that passes through nodes of autograd."""
    given = (metadata for node in nodes for metadata in cotangents_of(node))
    return max((math.prod(m.shape) * m.dtype.itemsize for m in given if _is_strided(m)), default=0)


def _is_strided(metadata: Any) -> bool:
    return not metadata.is_cpp_nested_tensor  # whose shape is symbolic


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest result of the operations that run under it."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = (y.numel() * y.element_size() for y in tree_leaves(result) if isinstance(y, torch.Tensor))
        self.bytes = max(self.bytes, *sizes, 0)
        return result
