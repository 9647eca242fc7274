"""One table of what an op costs against the plain PyTorch of its definition: value, gradient, double backward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ._pointwise import Pointwise
from .demo import Times, three_passes, time_alternately

Function = Callable[..., torch.Tensor]
SIZES = (1_000, 100_000, 1_000_000)
_LENGTH = 16  # of each x of the quadratic form


@dataclass(frozen=True)
class Row:
    """Times of one computation, ours and native, measured in turn.

    Attributes:
        computes: ``"value"``, ``"+ gradient"`` or ``"+ double backward"``, each with what stands before it.
        elements: of the largest input.
    """

    op: str
    computes: str
    elements: int
    ours: Times
    native: Times

    @property
    def ratio(self) -> float:
        """How many times faster ours is."""
        return self.native.median / self.ours.median


def rows(op: Any, device: str, dtype: torch.dtype, seconds: float, sizes: tuple[int, ...] = SIZES) -> Iterator[Row]:
    """Times an op and its definition.

    Args:
        op: a ``Pointwise``, or ``quadratic_form``.
        device: ``"cpu"`` or ``"cuda"``.
        dtype: of the inputs.
        seconds: how long to measure a row.
        sizes: elements of the largest input.

    Example:
        >>> import torchad_ext as ad
        >>> [row.computes for row in rows(ad.sin, "cpu", torch.float32, seconds=0, sizes=(10,))]
        ['value', '+ gradient', '+ double backward']
    """
    for size in sizes:
        inputs = [x.to(device, dtype) for x in _inputs(op, size)]
        for computes, passes in (("value", _value), ("+ gradient", _gradient), ("+ double backward", three_passes)):
            ours, native = time_alternately(
                [passes(function, inputs) for function in (op, op.definition)], device, seconds
            )
            yield Row(op.__name__, computes, max(x.numel() for x in inputs), ours, native)


def _inputs(op: Any, size: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    if isinstance(op, Pointwise):
        return [low + (high - low) * torch.rand(size, generator=generator) for low, high in op.domain.values()]
    count = -(-size // _LENGTH**2)
    shapes = ((count, _LENGTH), (count, _LENGTH, _LENGTH))
    return [torch.randn(shape, generator=generator) for shape in shapes]


def _value(function: Function, inputs: list[torch.Tensor]) -> Callable[[], Any]:
    return functools.partial(function, *inputs)


def _gradient(function: Function, inputs: list[torch.Tensor]) -> Callable[[], Any]:
    inputs = [x.detach().requires_grad_() for x in inputs]
    cotangent = torch.randn_like(function(*inputs))
    return lambda: torch.autograd.grad(function(*inputs), inputs, cotangent)
