"""Operations that PyTorch does not decompose, as compositions of simpler ones, whose sparsity patterns are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _cross(a: Tensor, b: Tensor, *, dim: int = -1) -> Tensor:
    return a.roll(-1, dim) * b.roll(-2, dim) - a.roll(-2, dim) * b.roll(-1, dim)


def _addbmm(x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return beta * x + alpha * torch.bmm(a, b).sum(0)


def _addr(x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return beta * x + alpha * (a.unsqueeze(1) * b)


def _as_strided_copy(x: Tensor, size: Any, stride: Any, storage_offset: int | None = None) -> Tensor:
    return x.as_strided(size, stride, storage_offset).clone()


def _trilinear(
    a: Tensor, b: Tensor, c: Tensor, expand1: Any, expand2: Any, expand3: Any, sumdim: Any, unroll_dim: int = 1
) -> Tensor:
    for dims, i in ((expand1, 0), (expand2, 1), (expand3, 2)):
        for dim in dims:
            a, b, c = (x.unsqueeze(dim) if i == k else x for k, x in enumerate((a, b, c)))
    return (a * b * c).sum(sumdim)


def _convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int, output_mask: Any,
) -> Any:  # fmt: skip
    if output_mask[1]:
        return ()
    more = [0] * len(stride)
    if not transposed:
        geometry = zip(x.shape[2:], grad.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
        more = [n - ((m - 1) * s - 2 * p + d * (k - 1) + 1) for n, m, k, s, p, d in geometry]
    arguments = stride, padding, dilation, not transposed, more, groups
    of_x = torch.convolution(grad, weight, None, *arguments) if output_mask[0] else None
    return of_x, None, grad.sum((0, *range(2, grad.dim()))) if output_mask[2] else None


COMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten.linalg_cross: _cross,
    aten.addbmm: _addbmm,
    aten.addr: _addr,
    aten.as_strided_copy: _as_strided_copy,
    aten._trilinear: _trilinear,
    aten.convolution_backward: _convolution_backward,
}
