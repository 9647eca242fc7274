"""The check of derivatives that a sweep computed: those of a random sum of the results, by nested reverse mode.

For random w the derivatives of g = Σ_o w_o f_o at each point are Σ_o w_o ∂^α f_o, so that one nested gradient for each
order checks all results of all points. A function that mixes points shows in it too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from .._autograd.independence import slope_in_other_points
from .._symbolic.jet_algebra import Functional
from .correction_mode import run_corrected
from .fallback import along_by_reverse_mode, restore_random_states

Function = Callable[[Tensor], Tensor]
Derivatives = Callable[[Tensor], Sequence[Tensor]]

_ROUNDINGS = 64  # by how much two ways may differ, in measured roundings of a point
_ROUNDINGS_OF_OTHERS = 16  # and in the largest that was measured among all points
_FEW = 1024  # points, in which a wrong rule shows as it does in all


def some_points(f: Function, x: Tensor, value: Tensor, random: Sequence[Tensor], eps: float) -> Tensor | None:
    """Rows of many points to which a check may be confined, which bounds its memory: for them alone f gives what it
    gave among all. None where all points are needed: they are few, or f takes no others, or mixes them."""
    rows = len(x) if x.dim() > 1 else 0
    few = _FEW * rows // max(1, x[..., 0].numel())
    if few < 1 or rows <= 2 * few:
        return None
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(rows, generator=generator)[:few].to(x.device)
    restore_random_states(x.device, random)
    try:
        with torch.no_grad():
            alone = run_corrected(f, x.detach()[chosen])
    except Exception:  # whatever f raises for so few, it did not for all
        return None
    expected = value.detach()[chosen]
    if not isinstance(alone, Tensor) or alone.shape != expected.shape or alone.dtype != expected.dtype:
        return None
    rounding = _ROUNDINGS * eps * float(expected.abs().nan_to_num(0.0, 0.0, 0.0).max())
    return chosen if torch.allclose(alone, expected, rtol=0.0, atol=rounding, equal_nan=True) else None


class RandomSum:
    """The derivatives of a random sum of the results of f, to be compared with those that a sweep computed.

    Args:
        f: the function, which is run again with the random numbers that it drew.
        x: its points.
        value: f(x).
        directions: as for the sweep.
        functionals: the derivatives.
        random: the states of the random numbers before f ran.
        eps: of the lowest dtype that it computed in.
        name: of the caller, for errors.
    """

    def __init__(
        self,
        f: Function,
        x: Tensor,
        value: Tensor,
        directions: Sequence[Tensor],
        functionals: Sequence[Functional],
        random: Sequence[Tensor],
        eps: float,
        name: str,
    ) -> None:
        self._f, self._x, self._directions, self._random, self._name = f, x.detach(), directions, random, name
        self._functionals: list[Functional] = [{(0,) * len(directions): Fraction(1)}, *functionals]
        self._eps = eps
        self._batch = x.shape[:-1]
        self._generator = torch.Generator(x.device).manual_seed(0)
        self._weights = self._signed(*_by_point(value, self._batch).shape)

    def _signed(self, *shape: int) -> Tensor:
        """Numbers of size 1/2 to 3/2."""
        u = torch.rand(shape, dtype=self._x.dtype, device=self._x.device, generator=self._generator) - 0.5
        return u + u.sign()

    def _again(self, x: Tensor) -> Tensor:
        """f(x), for each point ``[outputs]``."""
        restore_random_states(x.device, self._random)
        return _by_point(self._f(x), self._batch)

    def _nested(self, x: Tensor, weights: Tensor) -> Tensor:
        """The derivatives of the sum, ``[derivatives, *batch]``."""

        def g(x: Tensor) -> Tensor:
            return (self._again(x) * weights).sum(-1)

        with torch.no_grad():
            rows = along_by_reverse_mode(g, x, self._directions, self._functionals, self._name)
        return torch.stack([row.detach() for row in rows])

    def _of(self, derivatives: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The sum over given derivatives, and that of sizes."""
        rows = [_by_point(y.detach(), self._batch) * self._weights for y in derivatives]
        return torch.stack([row.sum(-1) for row in rows]), torch.stack([row.abs().sum(-1) for row in rows])

    def _differs(self, x: Tensor, derivatives: Sequence[Tensor]) -> Tensor:
        """Where do the value and derivatives differ by more than their rounding, which is measured where in doubt?"""
        given, size = self._of(derivatives)
        expected = self._nested(x, self._weights)
        error = torch.where(given.isfinite() & expected.isfinite(), (given - expected).abs(), 0.0)
        size = size.nan_to_num(0.0, 0.0, 0.0)
        half = math.sqrt(self._eps)  # of the digits
        largest, noise = self._largest(size), torch.zeros_like(error)
        # Terms that cancel give 0 in one order, and a rounding of the value in another.
        least = 16 * self._eps * (largest + torch.where(expected == 0, largest[:1], 0.0))
        for samples in (0, 1, 4):
            for _ in range(samples):
                part = self._weights * 2 * self._signed(*self._weights.shape)
                beside = x * (1 + self._eps * self._signed(*x.shape))
                again = self._nested(x, part) + self._nested(beside, self._weights - part)
                torch.maximum(noise, (again - expected).abs().nan_to_num(0.0, 0.0), out=noise)
            # Saturated numbers, as 1 - tanh², are rounded alike beside a point, so that its own noise does not show it.
            of_others = torch.minimum(_ROUNDINGS_OF_OTHERS * self._largest(noise), half * largest)
            allowed = half * size + least + torch.maximum(_ROUNDINGS * noise, of_others)
            if not (error > allowed).any():
                break
        return error > allowed

    def _largest(self, rows: Tensor) -> Tensor:
        """The largest number of each derivative among all points."""
        return rows.reshape(len(rows), -1).amax(1).reshape(-1, *(1,) * len(self._batch))

    def is_repeatable(self) -> bool:
        """Does f give one result for one x?"""
        with torch.no_grad():
            first, second = run_corrected(self._again, self._x), run_corrected(self._again, self._x)
        return torch.allclose(first, second, math.sqrt(self._eps), equal_nan=True)

    def mixes(self) -> bool:
        """Do the results of some points depend on other points?"""
        with torch.enable_grad():
            x = self._x.detach().requires_grad_()
            return slope_in_other_points((run_corrected(self._again, x) * self._weights).sum(-1), x) > 0

    def agrees(self, derivatives: Sequence[Tensor], at: Derivatives) -> bool:
        """Are these the value and the derivatives, but at single points? ``at`` computes them at other points."""
        wrong = self._differs(self._x, derivatives)
        if not wrong.any():
            return True
        if wrong[0].any() and not self.is_repeatable():
            return True
        # At a kink, at 0 to the power 0, and the like, the two may differ; beside it they agree.
        scale = self._x.abs().mean().clamp_min(self._eps)
        beside = self._x + self._eps ** (1 / 3) * scale * self._signed(*self._x.shape)
        return not (wrong & self._differs(beside, at(beside))).any()


def _by_point(y: Tensor, batch: torch.Size) -> Tensor:
    """Real numbers ``[*batch, outputs]``."""
    y = torch.view_as_real(y.resolve_conj()) if y.is_complex() else y
    return y.reshape(*batch, -1)
