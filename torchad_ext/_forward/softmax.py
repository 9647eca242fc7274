"""softmax, logsumexp and attention, composed of operations that have rules; arguments as in PyTorch.

A composition gives NotImplemented for arguments that it does not cover. The largest element, which is subtracted, is a
number that no derivative sees.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from .singular import is_nowhere

_NEAR = 4  # apart, so that the exponential functions of numbers have the digits of their sum


def logsumexp(x: Any, dim: Any, keepdim: bool = False) -> Any:
    if x.is_complex() or not x.numel():
        return NotImplemented
    largest = x.detach().amax(dim, keepdim=True)
    bound = torch.finfo(x.dtype).max
    largest = largest.clamp(-bound, bound)
    total = (x - largest).exp().sum(dim, keepdim=True)
    nothing = total.detach() == 0  # all are -inf, of which PyTorch has the derivative 0
    y = (total.masked_fill(nothing, 1).log() + largest).masked_fill(nothing, -math.inf)
    return y if keepdim else y.squeeze(dim)


def logcumsumexp_of_near(x: Any, dim: int) -> Any:
    """NotImplemented where elements lie far apart: the small ones would lose digits beside the largest."""
    if x.is_complex() or not (x.dim() and x.numel()):
        return NotImplemented
    largest, least = x.detach().amax(dim, keepdim=True), x.detach().amin(dim, keepdim=True)
    if not is_nowhere(~(largest - least <= _NEAR)):
        return NotImplemented
    return (x - largest).exp().cumsum(dim).log() + largest


def logcumsumexp(x: Any, dim: int) -> Any:
    y = logcumsumexp_of_near(x, dim)
    if y is not NotImplemented or x.is_complex() or x.dim() == 0:
        return y
    x = x.movedim(dim, -1)
    later = torch.ones(x.shape[-1], x.shape[-1], dtype=torch.bool, device=x.device).triu(1)
    return logsumexp(x.unsqueeze(-2).masked_fill(later, -math.inf), -1).movedim(-1, dim)


def softmax(x: Any, dim: int, dtype: Any = None) -> Any:
    x = x if dtype is None else x.to(dtype)
    e = (x - x.detach().amax(dim, keepdim=True)).exp()
    return e / e.sum(dim, keepdim=True)


def _safe_softmax(x: Any, dim: int) -> Any:
    """0 where all are -inf, as attention has it where it attends to nothing."""
    bound = torch.finfo(x.dtype).max
    e = (x - x.detach().amax(dim, keepdim=True).clamp(-bound, bound)).exp()
    total = e.sum(dim, keepdim=True)
    return e / total.masked_fill(total.detach() == 0, 1)


def shifted(x: Any, dim: int) -> tuple[Any, Any]:
    """x without its largest element, and the logsumexp of that: both keep their digits far from 0."""
    z = x - x.detach().amax(dim, keepdim=True)
    return z, z.exp().sum(dim, keepdim=True).log()


def log_softmax(x: Any, dim: int, dtype: Any = None) -> Any:
    z, total = shifted(x if dtype is None else x.to(dtype), dim)
    return z - total


def dropout(x: Any, p: float, train: bool) -> Any:
    return x * F.dropout(torch.ones_like(x), p) if train and p else x


def attention(
    q: Any, k: Any, v: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False, *,
    scale: Any = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    if attn_mask is not None and (is_causal or not (attn_mask.dtype is torch.bool or attn_mask.is_floating_point())):
        return NotImplemented  # PyTorch says what is wrong
    if enable_gqa:
        k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return dropout(_safe_softmax(scores, -1), dropout_p, True) @ v
