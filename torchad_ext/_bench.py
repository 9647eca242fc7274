"""One table of what an op costs against the plain PyTorch of its definition: value, gradient, double backward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ._pointwise import Pointwise
from ._rowwise import Rowwise
from .demo import Times, three_passes, time_alternately

Function = Callable[..., torch.Tensor]
SIZES = (1_000, 100_000, 1_000_000)
COMPUTATIONS = ("value", "+ gradient", "+ double backward")
_LENGTH = 16  # of each x of the quadratic form
_ROW = 64  # elements of a row


@dataclass(frozen=True)
class Row:
    """Times of one computation, ours and native, measured in turn.

    Attributes:
        computes: one of ``COMPUTATIONS``, each with what stands before it.
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


def rows(op: Any, device: str, dtype: torch.dtype, seconds: float, sizes: tuple[int, ...]) -> Iterator[Row]:
    """Times an op and its definition.

    Args:
        op: a ``Pointwise``, a ``Rowwise`` (on rows of 64 elements) or ``quadratic_form``; of several results the first
            is timed.
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
        arguments = [x.to(device, dtype) if isinstance(x, torch.Tensor) else x for x in _arguments(op, size)]
        inputs = [x for x in arguments if isinstance(x, torch.Tensor)]
        functions = [_of_tensors(function, arguments) for function in (op, op.definition)]
        for computes, passes in zip(COMPUTATIONS, (_value, _gradient, three_passes), strict=True):
            ours, native = time_alternately([passes(function, inputs) for function in functions], device, seconds, 5)
            yield Row(op.__name__, computes, max(x.numel() for x in inputs), ours, native)


def _arguments(op: Any, size: int) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    if isinstance(op, Pointwise):
        return [low + (high - low) * torch.rand(size, generator=generator) for low, high in op.domain.values()]
    if isinstance(op, Rowwise):
        shape = (-(-size // _ROW), _ROW)
        return list(op.sample(lambda shape: torch.rand(shape, generator=generator), shape, lambda x: x))
    count = -(-size // _LENGTH**2)
    shapes = ((count, _LENGTH), (count, _LENGTH, _LENGTH))
    return [torch.randn(shape, generator=generator) for shape in shapes]


def _of_tensors(function: Callable[..., Any], arguments: list[Any]) -> Function:
    """A function of the tensors among some arguments alone, that gives its first result."""
    if all(isinstance(x, torch.Tensor) for x in arguments) and isinstance(function(*arguments), torch.Tensor):
        return function  # as it is, for a call more would be seen in the times of a thousand elements

    def of_tensors(*tensors: torch.Tensor) -> torch.Tensor:
        given = iter(tensors)
        result = function(*(next(given) if isinstance(x, torch.Tensor) else x for x in arguments))
        first: torch.Tensor = result[0] if isinstance(result, tuple) else result
        return first

    return of_tensors


def _value(function: Function, inputs: list[torch.Tensor]) -> Callable[[], Any]:
    return functools.partial(function, *inputs)


def _gradient(function: Function, inputs: list[torch.Tensor]) -> Callable[[], Any]:
    inputs = [x.detach().requires_grad_() for x in inputs]
    cotangent = torch.randn_like(function(*inputs))
    return lambda: torch.autograd.grad(function(*inputs), inputs, cotangent, allow_unused=True)
