"""Sparse tensors made of values that vary, as a matrix that is assembled.

PyTorch takes the gradient of the values for a constant, so that second derivatives silently lack terms. Here the
gradient of an assembly takes the elements at its places, and the gradient of that assembles them again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._torch_state import is_batched


class _Assembled(torch.autograd.Function):
    """The sparse tensor of a size with ``values`` at ``indices``, as ``torch.sparse_coo_tensor`` makes it."""

    @staticmethod
    def forward(values: Tensor, indices: Tensor, size: Any, options: dict[str, Any]) -> Tensor:
        sizes = () if size is None else (size,)
        return torch.sparse_coo_tensor(indices, values, *sizes, **options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.indices = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _Taken.apply(grad, ctx.indices), None, None, None


class _Taken(torch.autograd.Function):
    """The elements of a tensor, which is sparse or not, at ``indices``."""

    @staticmethod
    def forward(x: Tensor, indices: Tensor) -> Tensor:
        if x.layout is torch.strided:
            return x[tuple(indices)]
        x = x.coalesce()
        known, wanted = (_numbers(places, x.shape) for places in (x.indices(), indices))
        values = torch.cat([x.values(), x.values().new_zeros(1, *x.values().shape[1:])])
        at = torch.searchsorted(known, wanted)
        found = torch.cat([known, known.new_full((1,), -1)])[at] == wanted
        return values[at.where(found, len(known))]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        x, ctx.indices = inputs
        ctx.shape, ctx.is_dense = x.shape, x.layout is torch.strided

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if ctx.is_dense:
            return grad.new_zeros(ctx.shape).index_put(tuple(ctx.indices), grad, accumulate=True), None
        return _Assembled.apply(grad, ctx.indices, ctx.shape, {}), None


NODES = frozenset(f"{function.__name__}Backward" for function in (_Assembled, _Taken))  # which have no batches


def _numbers(indices: Tensor, shape: Any) -> Tensor:
    """The numbers of places in a tensor, row after row."""
    numbers = torch.zeros_like(indices[0])
    for place, size in zip(indices, shape, strict=False):
        numbers = numbers * size + place
    return numbers


def sparse_coo_tensor(
    indices: Any, values: Any, size: Any = None, *, dtype: Any = None, device: Any = None, **options: Any
) -> Any:
    if not isinstance(values, Tensor) or not values.requires_grad or is_batched(values) or options.get("requires_grad"):
        return NotImplemented
    values = values.to(device=device, dtype=dtype)
    indices = torch.as_tensor(indices, device=values.device)
    return _Assembled.apply(values, indices, size, {name: x for name, x in options.items() if x is not None})
