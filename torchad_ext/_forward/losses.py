"""Loss functions, composed of operations that have rules; the arguments are those of PyTorch's function."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from .._pointwise import pointwise
from .._torch_state import transforms_active
from .softmax import shifted


def _reduced(y: Any, reduction: int, weight: Any = None) -> Any:
    """All terms for a reduction of 0, their mean for 1, their sum for 2."""
    y = y if weight is None else y * weight
    return y if reduction == 0 else y.mean() if reduction == 1 else y.sum()


def _mse_loss(x: Any, target: Any, reduction: int = 1) -> Any:
    return _reduced((x - target).square(), reduction)


def _l1_loss(x: Any, target: Any, reduction: int = 1) -> Any:
    return _reduced((x - target).abs(), reduction)


@pointwise
def _huber(error: Any, delta: Any) -> Any:
    size = error.abs()
    return torch.where(size < delta, 0.5 * error * error, delta * (size - 0.5 * delta))


@pointwise
def _smooth_l1(error: Any, beta: Any) -> Any:
    size = error.abs()
    return torch.where(size < beta, 0.5 * error * error / beta, size - 0.5 * beta)


def _huber_loss(x: Any, target: Any, reduction: int = 1, delta: float = 1.0) -> Any:
    return _reduced(_huber(x - target, delta), reduction)


def _smooth_l1_loss(x: Any, target: Any, reduction: int = 1, beta: float = 1.0) -> Any:
    error = x - target
    return _reduced(_smooth_l1(error, beta) if beta else error.abs(), reduction)


def _binary_cross_entropy(x: Any, target: Any, weight: Any = None, reduction: int = 1) -> Any:
    """PyTorch bounds the logarithms, and its derivatives otherwise."""
    p = x.detach()
    if transforms_active() or bool((p * (1 - p) < 1e-12).any()):
        return NotImplemented
    return _reduced((target - 1) * torch.log1p(-x) - target * x.log(), reduction, weight)


def _binary_cross_entropy_with_logits(
    x: Any, target: Any, weight: Any = None, pos_weight: Any = None, reduction: int = 1
) -> Any:
    y = F.logsigmoid(x)
    if pos_weight is not None:
        y = y * (1 + (pos_weight - 1) * target)
    return _reduced((1 - target) * x - y, reduction, weight)


def _kl_div(x: Any, target: Any, reduction: int = 1, *, log_target: bool = False) -> Any:
    y = target.exp() * (target - x) if log_target else torch.xlogy(target, target) - target * x
    return _reduced(y, reduction)


def _poisson_nll_loss(x: Any, target: Any, log_input: bool, full: bool, eps: float, reduction: int) -> Any:
    y = x.exp() - target * x if log_input else x - target * (x + eps).log()
    if full:
        large = torch.where(target > 1, target, 1.0)
        stirling = large * large.log() - large + 0.5 * (2 * math.pi * large).log()
        y = y + torch.where(target > 1, stirling, 0.0)
    return _reduced(y, reduction)


def _class_weights(target: Any, weight: Any, ignored: int, like: Any) -> tuple[Any, Any, Any]:
    """Which classes count, the classes, 0 where one is ignored, and their weights, 0 there."""
    counted = target != ignored
    classes = torch.where(counted, target, 0)
    return counted, classes, counted.to(like.dtype) if weight is None else weight[classes] * counted


def _of_classes(y: Any, weights: Any, reduction: int) -> Any:
    return y if reduction == 0 else y.sum() / weights.sum() if reduction == 1 else y.sum()


def _nll_loss(x: Any, target: Any, weight: Any = None, reduction: int = 1, ignore_index: int = -100) -> Any:
    dim = min(1, x.dim() - 1)
    counted, classes, weights = _class_weights(target, weight, ignore_index, x)
    picked = x.gather(dim, classes.unsqueeze(dim)).squeeze(dim)
    return _of_classes(torch.where(counted, -picked * weights, 0.0), weights, reduction)


def _cross_entropy_loss(
    x: Any, target: Any, weight: Any = None, reduction: int = 1, ignore_index: int = -100, label_smoothing: float = 0.0
) -> Any:
    dim = min(1, x.dim() - 1)
    if not x.numel():
        return NotImplemented
    x, total = shifted(x, dim)
    shape = (-1, *(1,) * (x.dim() - dim - 1))
    by_class = None if weight is None else weight.reshape(shape)
    if target.is_floating_point():
        if label_smoothing:
            target = target * (1 - label_smoothing) + label_smoothing / x.shape[dim]
        target = target if by_class is None else target * by_class
        y = ((total - x) * target).sum(dim)
        return y if reduction == 0 else y.sum() if reduction == 2 else y.sum() / (x.numel() // x.shape[dim])
    counted, classes, weights = _class_weights(target, weight, ignore_index, x)
    y = (total - x.gather(dim, classes.unsqueeze(dim))).squeeze(dim) * weights
    y = torch.where(counted, y, 0.0)
    if label_smoothing:
        smooth = ((total - x) if by_class is None else (total - x) * by_class).sum(dim)
        smooth = torch.where(counted, smooth, 0.0)
        y = (1 - label_smoothing) * y + label_smoothing / x.shape[dim] * smooth
    return _of_classes(y, weights, reduction)


def _margin_ranking_loss(a: Any, b: Any, target: Any, margin: float = 0.0, reduction: int = 1) -> Any:
    return _reduced((margin - target * (a - b)).clamp_min(0), reduction)


def _hinge_embedding_loss(x: Any, target: Any, margin: float = 1.0, reduction: int = 1) -> Any:
    return _reduced(
        torch.where(target != 1, (margin - x).clamp_min(0), 0.0) + torch.where(target != -1, x, 0.0), reduction
    )


def _cosine_embedding_loss(a: Any, b: Any, target: Any, margin: float = 0.0, reduction: int = 1) -> Any:
    dim, eps = target.dim(), 1e-12
    y = (a * b).sum(dim) / ((a.square().sum(dim) + eps) * (b.square().sum(dim) + eps)).sqrt()
    return _reduced(
        torch.where(target == 1, 1 - y, 0.0) + torch.where(target == -1, (y - margin).clamp_min(0), 0.0), reduction
    )


def _triplet_margin_loss(
    anchor: Any, positive: Any, negative: Any, margin: float = 1.0, p: float = 2.0, eps: float = 1e-6,
    swap: bool = False, reduction: int = 1,
) -> Any:  # fmt: skip
    near = F.pairwise_distance(anchor, positive, p, eps)
    far = F.pairwise_distance(anchor, negative, p, eps)
    if swap:
        far = torch.minimum(far, F.pairwise_distance(positive, negative, p, eps))
    return _reduced((margin + near - far).clamp_min(0), reduction)


COMPOSITIONS: dict[str, Callable[..., Any]] = {
    "mse_loss": _mse_loss,
    "l1_loss": _l1_loss,
    "smooth_l1_loss": _smooth_l1_loss,
    "huber_loss": _huber_loss,
    "binary_cross_entropy": _binary_cross_entropy,
    "binary_cross_entropy_with_logits": _binary_cross_entropy_with_logits,
    "kl_div": _kl_div,
    "poisson_nll_loss": _poisson_nll_loss,
    "nll_loss_nd": _nll_loss,
    "cross_entropy_loss": _cross_entropy_loss,
    "margin_ranking_loss": _margin_ranking_loss,
    "hinge_embedding_loss": _hinge_embedding_loss,
    "cosine_embedding_loss": _cosine_embedding_loss,
    "triplet_margin_loss": _triplet_margin_loss,
}
