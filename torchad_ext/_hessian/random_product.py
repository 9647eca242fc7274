"""The check of rows of a Jacobian J that a fast path computed: v^T J for one random v, against plain reverse mode.

Batches of rows rely on a rule for each operation, forward mode on formulas of its own; a fault in one of them makes
some rows wrong, which a random product of all rows shows (R. Freivalds, Probabilistic machines can use less running
time, IFIP Congress 1977). Rows of very different size weigh alike in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from .._self_check import FastPath

Tensors = Sequence[Tensor]

_ROUNDINGS = 64  # by how much two ways may differ, in measured roundings
_SMALLEST = 1e-3  # of the largest row, up to which rows weigh alike


class RandomProduct:
    """v^T J from rows of J as they come, to be compared with a pullback of v.

    Args:
        outputs: tensors like those that the rows belong to.
        leaves: tensors like those that the columns belong to.
        batch: the number of Jacobians, in a dimension of the rows behind the first.
    """

    def __init__(self, outputs: Tensors, leaves: Tensors, batch: int = 1) -> None:
        lowest = max((y.dtype for y in (*outputs, *leaves)), key=lambda dtype: torch.finfo(dtype).eps)
        self._lowest, self._eps = lowest, torch.finfo(lowest).eps
        self._dtype = torch.float64 if lowest is torch.float64 else torch.float32
        self._outputs, self._leaves, self._batch = outputs, leaves, batch
        self._device = leaves[0].device
        self._generator = torch.Generator(self._device).manual_seed(0)
        size = sum(y.numel() for y in outputs) // batch
        self._v = self._signed(batch, size)
        self._weights = [self._signed(x.numel() // batch, 1) for x in leaves]
        self._result = [torch.zeros(batch, x.numel() // batch, dtype=self._dtype, device=self._device) for x in leaves]
        self._largest = torch.zeros((), dtype=self._dtype, device=self._device)
        self._largest_errors: list[Tensor] = []  # of each leaf

    def _signed(self, *shape: int) -> Tensor:
        """Numbers of size 1/2 to 3/2."""
        u = torch.rand(shape, dtype=self._dtype, device=self._device, generator=self._generator) - 0.5
        return u + u.sign()

    def recorded(self, chunks: Iterable[tuple[int, Tensors]], path: FastPath) -> Iterator[tuple[int, Tensors]]:
        """Chunks of rows, each of which is added."""
        for start, rows in chunks:
            with path.checking():
                self.add(start, rows)
            yield start, rows

    def add(self, start: int, rows: Tensors) -> None:
        """Rows from number ``start`` on, for each leaf ``[rows, *leaf]``; those with inf or nan are left out."""
        with torch.no_grad():
            count = len(rows[0])
            # [batch, rows, columns]
            parts = [row.detach().reshape(count, self._batch, -1).transpose(0, 1).to(self._dtype) for row in rows]
            sizes = sum((part @ w).squeeze(-1).abs() for part, w in zip(parts, self._weights, strict=True))
            assert isinstance(sizes, Tensor)
            finite = sizes.isfinite()
            v = self._v[:, start : start + count]
            if not finite.all():
                parts = [part.masked_fill(~finite.unsqueeze(-1), 0) for part in parts]
                sizes = sizes.masked_fill(~finite, 0)
                v.masked_fill_(~finite, 0)
            self._largest = torch.maximum(self._largest, sizes.max())
            # Rows that are zero but for their rounding stay small, and the others are not lost in their sum.
            scales = self._largest / torch.maximum(sizes, max(_SMALLEST, self._eps**0.5) * self._largest)
            v.mul_(torch.where(self._largest > 0, scales, 1.0))
            v.copy_(v.to(self._lowest))
            for total, part in zip(self._result, parts, strict=True):
                total += (v.unsqueeze(1) @ part).squeeze(1)

    def agrees(self, pull: Callable[[list[Tensor]], Tensors]) -> bool:
        """Is it what ``pull`` makes of v, but for rounding? How much that is, is measured where in doubt."""

        def product(v: Tensor) -> list[Tensor]:
            parts = v.split([y.numel() // self._batch for y in self._outputs], 1)
            # Each in memory of its own: a complex view takes no odd offset.
            given = [part.to(y.dtype, copy=True).view(y.shape) for part, y in zip(parts, self._outputs, strict=True)]
            with torch.no_grad():
                pulled = pull(given)
            return [p.detach().reshape(self._batch, -1).to(self._dtype) for p in pulled]

        expected = product(self._v)
        least = 2 * self._v.numel() * torch.finfo(self._lowest).tiny * float(self._v.abs().max())
        least += 16 * self._eps * max(float(q.nan_to_num(0.0, 0.0, 0.0).abs().max()) for q in self._result if q.numel())
        errors = [
            torch.where(p.isfinite() & q.isfinite(), (p - q).abs(), 0.0)
            for p, q in zip(expected, self._result, strict=True)
        ]
        self._largest_errors = [error.amax() for error in errors if error.numel()]
        allowed = [self._eps**0.5 * q.abs() + least for q in self._result]
        noise = [torch.zeros_like(q) for q in self._result]
        for samples in (0, 1, 4, 16):
            for _ in range(samples):
                # A pullback is linear but for its rounding.
                part = self._v * 2 * self._signed(*self._v.shape)
                of_parts = zip(product(part), product(self._v - part), strict=True)
                for level, (a, b), whole in zip(noise, of_parts, expected, strict=True):
                    torch.maximum(level, (a + b - whole).abs().nan_to_num(0.0, 0.0), out=level)
            if all(
                bool((error <= bound + _ROUNDINGS * level).all())
                for error, bound, level in zip(errors, allowed, noise, strict=True)
            ):
                return True
        return False

    def is_worse_than(self, other: RandomProduct) -> bool:
        """Did it differ by far more than another, in one of the leaves?"""
        pairs = zip(self._largest_errors, other._largest_errors, strict=True)
        return any(bool(error > _ROUNDINGS * least) for error, least in pairs)
