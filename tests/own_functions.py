"""Each ``autograd.Function`` that several tests differentiate through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Cube(torch.autograd.Function):
    """x³, with a backward that is differentiable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad_output


class StraightThrough(torch.autograd.Function):
    """A rounding, whose derivative is 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output


def scaled(x: torch.Tensor, beta: torch.Tensor | float) -> torch.Tensor:
    """Asks what beta is: a number counts as abs(beta) + 1."""
    if not torch.is_tensor(beta):
        beta = abs(beta) + 1.0
    return torch.sigmoid(beta * x)


def of_whole_numbers(x: torch.Tensor, n: float) -> torch.Tensor:
    return x * n if isinstance(n, int) else x + n
