"""Runs both catalogues and quadratic_form to second derivatives on native kernels, none of which is compiled here.

The definitions run once, in float64, for reference. Where one is run in place of a kernel after that, the script fails.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import torchad_ext as ad
from torchad_ext import _elementwise, _row_function, ops, rows
from torchad_ext._native.state import state


def refuse(*arguments: Any) -> None:
    raise AssertionError("a definition runs in place of a kernel")


def uniform(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(shape, dtype=torch.float64)


def derivatives(f: Callable[..., Any], arguments: list[Any]) -> list[torch.Tensor]:
    """The value, two derivatives in the first argument, and the gradient of a loss of the first in all arguments."""
    first, *others = arguments
    x = first.detach().requires_grad_()
    ys = [f(x, *others)]
    for _ in range(2):
        if ys[-1].requires_grad:
            ys += torch.autograd.grad(ys[-1].sum(), x, create_graph=True, materialize_grads=True)
    inputs = [a.detach().requires_grad_() if isinstance(a, torch.Tensor) else a for a in arguments]
    tensors = [a for a in inputs if isinstance(a, torch.Tensor)]
    (slope,) = torch.autograd.grad(f(*inputs).square().sum(), tensors[:1], create_graph=True)
    return ys + list(torch.autograd.grad(slope.square().sum(), tensors, materialize_grads=True))


def check(op: Any, arguments: list[Any]) -> None:
    expected = derivatives(op.definition, arguments)
    op(*arguments)  # traces the definition, which is refused from now on
    op.define = refuse
    for member, _ in op._members.values():
        member.definition = refuse
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-3)):
        given = [a.to(dtype) if isinstance(a, torch.Tensor) else a for a in arguments]
        for y, z in zip(derivatives(op, given), expected, strict=True):
            assert y.dtype is dtype
            torch.testing.assert_close(y.double(), z, rtol=tolerance, atol=tolerance)


def main() -> None:
    torch.manual_seed(0)
    _elementwise.evaluate = _row_function.evaluate_rows = refuse
    for op in ops.CATALOGUE.values():
        check(op, [low + (high - low) * uniform((1001,)) for low, high in op.domain.values()])
    for op in rows.ROW_CATALOGUE.values():
        check(op, list(op.sample(uniform, (5, 7), lambda x: x)))
    x, A = uniform((20, 7)), uniform((20, 7, 7))
    expected = derivatives(lambda x, A: torch.einsum("bi,bij,bj->b", x, A, x), [x, A])
    torch.testing.assert_close(derivatives(ad.quadratic_form, [x, A]), expected)
    assert "quadratic_form" in state.libraries
    assert not state.kernels, "a kernel was compiled"
    print(len(ops.CATALOGUE) + len(rows.ROW_CATALOGUE) + 1, "ops")


if __name__ == "__main__":
    main()
