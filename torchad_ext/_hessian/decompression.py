"""Sparse Hessians from a few of their products with vectors: the products that are taken, the entries, and a check.

A star coloring of the pattern says which columns are summed in a product, so that each entry, or its mirror image,
stands alone somewhere (:mod:`torchad_ext._hessian.coloring`): direct recovery.
"""

from __future__ import annotations

import collections
import contextlib
import math
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import thresholds
from .coloring import star_coloring
from .pattern import find_pattern, sparse_matrix, unique

Array = np.ndarray[Any, Any]

_PAGES = 2**24  # bytes up to which memory is kept by its allocator
_KEPT = 8  # colorings
_ROUNDINGS = 64  # by how much a random product may exceed those that are measured


class SparsityError(RuntimeError):
    """The Hessian has entries outside of the sparsity pattern that was given or found."""


@dataclass(frozen=True)
class Coloring:
    """A star coloring of a symmetric pattern, and where each entry of the matrix stands among the products.

    Attributes:
        colors: the color of each column.
        count: of colors.
        keys: i n + j for each entry (i, j), sorted.
        places: of each entry in the products, flattened.
    """

    colors: Tensor
    count: int
    keys: Tensor
    places: Tensor

    @property
    def full(self) -> bool:
        return len(self.keys) == len(self.colors) ** 2

    def seeds(self, dtype: torch.dtype) -> Tensor:
        """The sum of the unit vectors of each color, ``[count, n]``."""
        seeds = torch.zeros(self.count, len(self.colors), dtype=dtype, device=self.colors.device)
        return seeds.scatter_(0, self.colors.unsqueeze(0), 1) if self.count else seeds

    def recover(self, products: Tensor) -> Tensor:
        """The entries of H from its products with the seeds, ``[count, n]``."""
        return products.reshape(-1)[self.places]

    def check(self, products: Tensor, v: Tensor, again: Callable[[Tensor], Tensor], is_found: bool) -> None:
        """Raises unless the last of the products, H v, is that of the entries, but for rounding. What rounding does is
        seen where products are not linear: ``again`` takes random parts of v, by plain reverse mode. A row whose
        entries are inf or nan is not checked."""
        n, eps = len(v), torch.finfo(v.dtype).eps
        i, j = self.keys // n, self.keys % n
        products, product = products.detach()[:-1], products.detach()[-1]
        values = self.recover(products)
        result = torch.zeros_like(v).index_add_(0, i, values * v[j])

        def fits(noise: Tensor) -> bool:
            bound = torch.zeros_like(v).index_add_(0, i, (_ROUNDINGS * eps * values.abs() + noise) * v[j].abs())
            return not (result.isfinite() & ~((result - product).abs() <= bound + noise)).any()

        noise = values.new_zeros(())
        if fits(noise):
            return
        generator = torch.Generator(v.device).manual_seed(0)
        for samples in (1, 7):
            parts = v * torch.randn(samples, n, generator=generator, dtype=v.dtype, device=v.device)
            lost = (again(parts) + again(v - parts) - product).detach().abs()
            noise = torch.maximum(noise, torch.where(lost.isfinite(), lost, 0.0).max())
            if fits(_ROUNDINGS * noise):
                return
        source, remedy = "given", "Give a larger pattern, or sparsity=None"
        if is_found:
            source = "found, which lacks them because f has another derivative than its operations"
            remedy = "Leave sparsity out, or give a pattern"
        raise SparsityError(
            f"torchad_ext.hessian: the Hessian has entries outside of the sparsity pattern of {len(i)} entries that "
            f"was {source}: a random Hessian-vector product differs from that of f. {remedy}"
        )

    def matrix(self, values: Tensor, shape: torch.Size, layout: torch.layout) -> Tensor:
        n = len(self.colors)
        if layout is torch.sparse_coo:
            return sparse_matrix(self.keys, values, n)
        return _zeros(n * n, values).index_put_((self.keys,), values).view((*shape, *shape))


def _zeros(count: int, like: Tensor) -> Tensor:
    if like.device.type != "cpu" or count * like.element_size() < _PAGES:
        return like.new_zeros(count)
    # The operating system keeps one page of zeros for all that are never written; torch.zeros writes all, and so does
    # np.zeros where it gets huge pages.
    with contextlib.suppress(OSError):  # PyTorch says it when there is no memory
        pages = mmap.mmap(-1, count * like.element_size(), flags=mmap.MAP_PRIVATE)
        return torch.frombuffer(pages, dtype=like.dtype)
    return like.new_zeros(count)


def coloring_of(pattern: Any, x: Tensor) -> Coloring:
    """The coloring of a pattern ``[n, n]`` of the Hessian at x; its transpose and the diagonal are added."""
    n = x.numel()
    if not isinstance(pattern, Tensor):
        raise ValueError(f'torchad_ext.hessian takes "auto" or a bool tensor for sparsity; got {pattern!r}')
    if pattern.dtype != torch.bool or pattern.shape != (n, n):
        raise ValueError(
            f"torchad_ext.hessian takes a bool tensor of shape [{n}, {n}] for sparsity, x having {n} elements; got "
            f"{pattern.dtype} of shape {list(pattern.shape)}"
        )
    pattern = pattern.to_sparse_coo().coalesce()
    i, j = pattern.indices()[:, pattern.values()].cpu().numpy()
    colored = _coloring_of_keys(np.concatenate([i * n + j, j * n + i]), x)
    assert colored is not None
    return colored


def find_coloring(f: Callable[[Tensor], Tensor], x: Tensor, always: bool = False) -> Coloring | None:
    """The coloring of the pattern at x; None if it would save less time than it takes.

    With ``always``, for a result that is sparse anyway, None only if the pattern has more than half of all entries.

    An entry of the pattern takes as long to find, and to color, as some elements of a batch of rows to compute."""
    n = x.numel()
    if always:
        pattern = find_pattern(f, x)
        return None if pattern is None or 2 * len(pattern[0]) > n * n else _coloring_of_keys(pattern[0], x)
    most = n / thresholds.SAVING
    pattern = find_pattern(f, x, most, thresholds.SHARE / thresholds.FINDING)
    if pattern is None:
        return None
    keys, of_rows = pattern
    if thresholds.COLORING * len(keys) > thresholds.SHARE * of_rows:
        return None
    return _coloring_of_keys(keys, x, most)


def _coloring_of_keys(keys: Array, x: Tensor, most: float = math.inf) -> Coloring | None:
    """The coloring of a symmetric pattern, the diagonal added."""
    n = x.numel()
    keys = unique(np.concatenate([keys, np.arange(n) * (n + 1)]))
    key = n, keys.tobytes()
    if key not in _colorings:
        colored = _color(n, keys, most)
        if colored is None:
            return None
        _colorings[key] = colored
    _colorings.move_to_end(key)
    if len(_colorings) > _KEPT:
        _colorings.popitem(last=False)
    colors, count, places = _colorings[key]
    return Coloring(colors.to(x.device), count, torch.from_numpy(keys).to(x.device), places.to(x.device))


_colorings: collections.OrderedDict[tuple[int, bytes], tuple[Tensor, int, Tensor]] = collections.OrderedDict()


def _color(n: int, keys: Array, most: float) -> tuple[Tensor, int, Tensor] | None:
    """The colors of a symmetric pattern with its diagonal, their number, and the place of each entry."""
    i, j = np.divmod(keys, n)
    width = int((j - i).max(initial=0))
    if len(i) == (2 * width + 1) * n - width * (width + 1):  # a full band
        colors: Array | None = np.arange(n) % (2 * width + 1)
    else:
        colors = star_coloring(n, i, j, most)
    if colors is None:
        return None
    count = int(colors.max(initial=-1)) + 1
    if count > most:
        return None
    # H_ij is read in the product of the color of j, unless another neighbour of i has that color.
    group = i * count + colors[j]
    alone = np.bincount(group)[group] == 1
    places = np.where(alone, colors[j] * n + i, colors[i] * n + j)
    return torch.from_numpy(colors), count, torch.from_numpy(places)
