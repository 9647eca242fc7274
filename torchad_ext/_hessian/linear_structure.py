"""Where the matrix of a linear operation has entries, found from its products with vectors.

A product tells for each row in which sums of columns it has an entry: with the columns in buckets by chance, a row with
one entry in a bucket gives away its column by the ratio of two products. Rows and columns take turns, those that are
known are left out, and there are more buckets each time, so that the number of products follows the entries of a
typical row or column (the peeling of an invertible Bloom lookup table: M. Goodrich, M. Mitzenmacher, Allerton
Conference 2011).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

Array = np.ndarray[Any, Any]
Product = Callable[[Array], Array]

_BUCKETS = (1, 8, 64, 512)
_LIMIT = 2**29  # of elements in products
_EXACT = 1e-12  # by how much ratios of products differ by rounding


def structure(op: Any, args: Any, kwargs: Any, variables: Sequence[Tensor]) -> tuple[Array, Array] | None:
    """Rows and columns of the entries of the Jacobian of the results of ``op`` in some of its arguments, at these; None
    if PyTorch does not differentiate it, or there are too many."""
    with torch.enable_grad():
        leaves: dict[int, Tensor] = {}

        def widened(x: Any) -> Any:
            if not isinstance(x, Tensor) or not (x.is_floating_point() or x.is_complex()):
                return x
            wide = x.detach().to("cpu", torch.complex128 if x.is_complex() else torch.float64, copy=True)
            if any(x is v for v in variables):
                wide = leaves.setdefault(id(x), wide.requires_grad_())
            return wide

        inputs = tree_map(lambda x: widened(x) if isinstance(x, Tensor) else x, (args, kwargs))
        inputs = tree_map(lambda x: x.cpu() if isinstance(x, Tensor) and x.device.type != "cpu" else x, inputs)
        try:
            values = [y for y in tree_leaves(op(*inputs[0], **inputs[1])) if isinstance(y, Tensor)]
            values = [y for y in values if y.is_floating_point() or y.is_complex()]
            matrix = _Matrix(values, [leaves[id(x)] for x in variables])
            return _entries(matrix)
        except RuntimeError:  # of an operation without derivatives
            return None


class _Matrix:
    """The Jacobian of some tensors, by its products."""

    def __init__(self, values: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        self.values, self.inputs = values, inputs
        self.shape = sum(y.numel() for y in values), sum(x.numel() for x in inputs)
        self._given = [y for y in values if y.requires_grad]
        self._weights = [torch.ones_like(y, requires_grad=True) for y in self._given]
        self._pulled = self._grad(self._given, inputs, self._weights, create_graph=True)

    @staticmethod
    def _grad(ys: Sequence[Tensor], xs: Sequence[Tensor], cs: Sequence[Tensor], create_graph: bool) -> list[Tensor]:
        if not ys:
            return [torch.zeros_like(x) for x in xs]
        options = {"create_graph": create_graph, "allow_unused": True, "materialize_grads": True}
        return list(torch.autograd.grad(ys, xs, cs, retain_graph=True, **options))

    def pull(self, rows: Array) -> Array:
        """v^T J for v ``[rows]``."""
        parts = torch.from_numpy(rows).split([y.numel() for y in self.values])
        cs = [p.view(y.shape).to(y.dtype) for p, y in zip(parts, self.values, strict=True) if y.requires_grad]
        return _flat(self._grad(self._given, self.inputs, cs, create_graph=False))

    def push(self, columns: Array) -> Array:
        """J v for v ``[columns]``, by the pullback of the pullback."""
        parts = torch.from_numpy(columns).split([x.numel() for x in self.inputs])
        vs = [p.view(x.shape).to(x.dtype) for p, x in zip(parts, self.inputs, strict=True)]
        given = [(g, v) for g, v in zip(self._pulled, vs, strict=True) if g.requires_grad]
        pushed = iter(self._grad([g for g, _ in given], self._weights, [v for _, v in given], create_graph=False))
        return _flat([next(pushed) if y.requires_grad else torch.zeros_like(y) for y in self.values])


def _flat(parts: Sequence[Tensor]) -> Array:
    return torch.cat(
        [p.detach().resolve_conj().reshape(-1).to(torch.promote_types(p.dtype, torch.float64)) for p in parts]
    ).numpy()


def _entries(matrix: _Matrix) -> tuple[Array, Array] | None:
    """Rows and columns of the entries."""
    draw = np.random.default_rng(0)
    remaining = [np.ones(size, bool) for size in matrix.shape]  # rows and columns that are not known
    found: list[tuple[Array, Array]] = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    for buckets in _BUCKETS:
        # Pullbacks tell for each column in which rows it has entries, pushforwards the reverse.
        for axis, product in ((1, matrix.pull), (0, matrix.push)):
            targets, sources = remaining[axis], remaining[1 - axis]
            if np.count_nonzero(sources) <= 6 * buckets:
                which, at, decoded = _one_by_one(product, sources, targets)
            else:
                which, at, decoded = _decoded(product, sources, targets, buckets, draw)
            found.append((which, at) if axis == 0 else (at, which))
            remaining[axis] = targets & ~decoded
            if not remaining[axis].any():
                return tuple(map(np.concatenate, zip(*found, strict=True)))  # type: ignore[return-value]
        if 100 * buckets * sum(matrix.shape) > _LIMIT:
            break
    return None


def _one_by_one(product: Product, sources: Array, targets: Array) -> tuple[Array, Array, Array]:
    """The entries of all targets, by a product for each source."""
    which, at = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for source in np.flatnonzero(sources):
        places = np.flatnonzero(targets & (product(1.0 * (np.arange(len(sources)) == source)) != 0))
        which.append(places)
        at.append(np.full(len(places), source))
    return np.concatenate(which), np.concatenate(at), targets


def _decoded(
    product: Product, sources: Array, targets: Array, buckets: int, draw: np.random.Generator
) -> tuple[Array, Array, Array]:
    """The entries, as targets and sources, of the targets that have at most one in each bucket of sources, and which
    targets these are."""
    size = len(sources)
    bucket = draw.integers(0, buckets, size)
    weight, sign, number = draw.uniform(0.5, 1.5, size), draw.uniform(1, 2, size), np.arange(1, size + 1)
    decoded = targets.copy()
    which, at = [], []
    for b in range(buckets):
        chosen = np.where(sources & (bucket == b), weight, 0.0)
        sums, signed, numbered = (product(chosen * factor) for factor in (1.0, sign, number))
        some = targets & ((sums != 0) | (signed != 0) | (numbered != 0))
        if not np.isfinite(sums[some]).all():
            raise RuntimeError("the operation has derivatives that are not finite")
        places = np.flatnonzero(some & (sums != 0))
        ratio = (numbered[places] / sums[places]).real
        guess = np.clip(np.nan_to_num(np.rint(ratio)), 1, size).astype(np.int64)
        right = np.abs(ratio - guess) <= _EXACT * guess
        right &= np.abs(signed[places] / sums[places] - sign[guess - 1]) <= _EXACT * sign[guess - 1]
        right &= bucket[guess - 1] == b
        which.append(places[right])
        at.append(guess[right] - 1)
        some[places[right]] = False
        decoded &= ~some
    targets_of, sources_of = np.concatenate(which), np.concatenate(at)
    kept = decoded[targets_of]
    return targets_of[kept], sources_of[kept], decoded
