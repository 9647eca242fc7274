"""Undefined tensors: None stands for zero, as it does among the gradients that autograd passes on."""

from __future__ import annotations

import torch


def sum_defined(*terms: torch.Tensor | None) -> torch.Tensor | None:
    """The sum of the terms that are not None; None if there are none."""
    total = None
    for term in terms:
        if term is not None:
            total = term if total is None else total + term
    return total


def or_zeros(x: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """x, or zeros of the shape, dtype and device of ``like``."""
    return torch.zeros_like(like) if x is None else x
