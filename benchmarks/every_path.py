"""Runs every path of the kernels on little and compares with float64: for compute-sanitizer, which is slow."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import grad

import torchad_ext as ad


@ad.rowwise
def share(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Operands with a value an element, a column and a row."""
    return torch.softmax(x * weight, -1) * x * scale


def derivatives(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """First derivatives, and those of the sum of their squares."""
    xs = [x.detach().requires_grad_() for x in inputs]
    first = grad(function(*xs).sum(), xs, create_graph=True)
    return [*first, *grad([(g * g).sum() for g in first], xs)]


def check(op: Any, *inputs: Tensor) -> None:
    """Raises where an op is far from its definition in float64."""
    exact = derivatives(op.definition, *(x.double() for x in inputs))
    for y, expected in zip(derivatives(op, *inputs), exact, strict=True):
        bound = 30 * torch.finfo(y.dtype).eps * (expected.abs().max() + 1)
        if not bool(((y - expected).abs() <= bound).all()):
            raise RuntimeError(f"{op} is wrong for {inputs[0].dtype}, {[list(x.shape) for x in inputs]}")


def main(device: str) -> None:
    """Pointwise kernels in every dtype and sort of layout; every size of kernel of the quadratic form; rows for a lane,
    some lanes, a warp and a block, in every dtype and layout."""
    x = torch.randn(4099)
    layouts = (x[:1], x, x[1:], x[:1980].view(60, 33).T, x[:9].view(9, 1).expand(9, 7))
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for layout in layouts:
            check(ad.sin, layout.to(device, dtype))
    for dtype in (torch.float32, torch.float64):
        for n in (1, 3, 8, 20, 50, 100, 136, 301):
            for batch in ((), (5,)):
                x, A = torch.randn(*batch, n) / n, torch.randn(*batch, n, n)
                check(ad.quadratic_form, x.to(device, dtype), A.to(device, dtype))
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for n in (1, 3, 8, 33, 256, 1000, 1500):
            x, weight, scale = torch.randn(41, n), torch.linspace(-1, 2, n), torch.randn(40, 1)
            for layout in (
                x[1:],
                x.T.contiguous().T[1:],
                x[1:, :1].expand(40, n),
                x.flatten()[1 : 1 + n * 40].view(40, n),
            ):
                check(share, *(operand.to(device, dtype) for operand in (layout, weight, scale)))
    print("every path is right")


if __name__ == "__main__":
    main(sys.argv[1])
