"""Products x s(x) with a sigmoid: their slope is one factor of a gradient, so that nothing overflows before it does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import torchad_ext as ad

GATED: dict[str, Callable[..., torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "mish": F.mish,
    "by hand": lambda x: torch.sigmoid(x) * x,
    "scaled": lambda x: (3 * x) * torch.sigmoid(3 * x),
}
# What looks like it: a gate of another value too, of a row, of what no derivative sees, more than one gate.
OTHERS: dict[str, Callable[..., torch.Tensor]] = {
    "of two": lambda x, y: x * torch.sigmoid(x * y),
    "of the other": lambda x, y: x * torch.sigmoid(y) * y,
    "of a row": lambda x, y: x * torch.sigmoid(x.sum(-1, keepdim=True)) * y,
    "of rows alone": lambda x, y: (s := (x * y).sum(-1, keepdim=True)) * torch.sigmoid(s) + x,
    "of what is detached": lambda x, y: x * torch.sigmoid(x.detach()) * y.exp() * x,
    "of one that has others": lambda x, y: torch.sigmoid(x) * torch.sigmoid(torch.sigmoid(x)) * x * y,
    "of a pole": lambda x, y: x * torch.sigmoid(y / x) + x * torch.sigmoid(1 / x),
    "of a power": lambda x, y: x.exp() * torch.sigmoid(x.exp() ** 2) * y,
    "used again": lambda x, y: (gate := torch.sigmoid(x)) * x + gate * y,
    "squared": lambda x, y: (x * torch.sigmoid(x)) * torch.sigmoid(x * torch.sigmoid(x)) * y,
}


@pytest.mark.usefixtures("kernels_when_long")
@pytest.mark.parametrize("declare", [ad.pointwise, ad.rowwise])
@pytest.mark.parametrize("name", GATED)
def test_a_gradient_is_finite_where_the_slope_is(
    name: str, declare: Callable[..., Callable[..., torch.Tensor]]
) -> None:
    op = declare(GATED[name])
    for dtype, large in ((torch.float32, 1e12), (torch.float64, 1e100)):
        x = torch.tensor([-large, -1.5, -1e-30, 0.7, 40.0, large], dtype=dtype, requires_grad=True)
        g = torch.full_like(x, torch.finfo(dtype).max / 8)
        (ours,), (slope,) = (torch.autograd.grad(f(x), x, v) for f, v in ((op, g), (GATED[name], torch.ones_like(x))))
        assert ours.isfinite().all()
        assert_close(ours, slope * g, rtol=1e-5, atol=0.0)


@pytest.mark.usefixtures("kernels_when_long")
@pytest.mark.parametrize("name", OTHERS)
def test_first_and_second_derivatives(name: str) -> None:
    op, definition = ad.rowwise(OTHERS[name]), OTHERS[name]
    generator = torch.Generator().manual_seed(0)
    xs = [torch.rand(2, 3, dtype=torch.float64, generator=generator).add(0.5).requires_grad_() for _ in range(2)]
    found = []
    for f in (op, definition):
        results = [f(*xs)]
        for _ in range(2):
            total = sum((y * torch.linspace(1, 2, y.numel(), dtype=y.dtype).view_as(y)).sum() for y in results[-2:])
            results += torch.autograd.grad(total, xs, create_graph=True, materialize_grads=True)
        found.append(results)
    assert_close(*found)
