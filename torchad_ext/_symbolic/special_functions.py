"""Values of special functions that PyTorch lacks, in plain PyTorch."""

from __future__ import annotations

import math

import torch


def spherical_bessel(n: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """j_n(u) / u^n at u = pi x: its power series near 0, beyond it the recurrence from (sin u) / u and cos u."""
    order, u = int(n), math.pi * x
    term = torch.ones_like(u) / math.prod(range(1, 2 * order + 2, 2))
    series = term
    for k in range(1, 20 + order):
        term = term * (-u * u / 2) / (k * (2 * order + 2 * k + 1))
        series = series + term
    far = torch.where(u.abs() < 1, torch.ones_like(u), u)
    nearest = x.detach().round()
    sign, rest = 1 - 2 * torch.remainder(nearest, 2), math.pi * (x - nearest)
    before, value = sign * rest.cos(), sign * rest.sin() / far
    for k in range(order):
        before, value = value, ((2 * k + 1) * value - before) / (far * far)
    return torch.where(u.abs() < order + 2, series, value)


def logistic_density(x: torch.Tensor) -> torch.Tensor:
    """The derivative of the logistic function; of complex numbers by e^-|x|, as e^|x| would leave the range."""
    if not x.is_complex():
        return torch.sigmoid(x) * torch.sigmoid(-x)
    e = torch.exp(torch.where(x.real < 0, x, -x))
    return e / (1 + e) ** 2


def polygamma(n: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """PyTorch's own trigamma is wrong in the tenth digit."""
    return torch.special.zeta(2.0, x) if n == 1 else torch.polygamma(int(n), x)


def erfcx(n: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(-1)^n times the n-th derivative of erfcx, by the recurrences in ``csrc/math/special.h``."""
    order, last, wide = int(n), int(n) + 60, x.double()
    before, upwards = torch.full_like(wide, 2 / math.sqrt(math.pi)), torch.special.erfcx(wide)
    downwards, large = upwards, wide.clamp_min(1.5)
    ratio = (large * large + 2 * last - 1 + large / (large * large + 2 * last).sqrt()).sqrt() - large
    for k in range(last - 1, 0, -1):
        ratio = 2 * k / (2 * large + ratio)
        downwards = downwards * ratio if k <= order else downwards
    for k in range(order):
        before, upwards = upwards, (2 * k or 1) * before - 2 * wide * upwards
    return torch.where(wide > 1.5, downwards, upwards).to(x.dtype)


def largest(x: torch.Tensor) -> torch.Tensor:
    """The largest number of the dtype, with the sign of an infinite x."""
    limits = torch.finfo(x.dtype)
    return torch.clamp(x, limits.min, limits.max)


def row_norm(x: torch.Tensor) -> torch.Tensor:
    """The Euclidean norm of a row, which is 0 with all its derivatives where x is 0."""
    square = (x * x).sum(-1, keepdim=True)
    is_zero = square == 0
    return torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, square).sqrt())
