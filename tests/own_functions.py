"""Functions of users: each ``autograd.Function`` that several tests differentiate through, and helpers of ops."""

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


class Sine(torch.autograd.Function):
    """sin x, with a backward that is differentiable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad_output * x.cos()


class StraightThrough(torch.autograd.Function):
    """A rounding, whose derivative is 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output


def scaled(x: Tensor, beta: Tensor | float) -> Tensor:
    """Asks what beta is: a number counts as abs(beta) + 1."""
    if not torch.is_tensor(beta):
        beta = abs(beta) + 1.0
    return torch.sigmoid(beta * x)


def of_whole_numbers(x: Tensor, n: float) -> Tensor:
    """Asks what n is: a factor if it is an int, else a summand."""
    return x * n if isinstance(n, int) else x + n
