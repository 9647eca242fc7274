"""Functions compiled by the backend, held against eager mode."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from random_modules import orders
from torch import Tensor
from torch.testing import assert_close

import torchad_ext as ad

Function = Callable[..., Any]
compiled: Function = functools.partial(torch.compile, backend="torchad_ext")


def x_like(*shape: int) -> Tensor:
    return torch.linspace(-1.3, 1.2, torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)


def sizes(f: Function, *inputs: Any) -> list[int]:
    return [cluster.operations for cluster in ad.explain(f, *inputs).clusters]


def hold(
    f: Function, x: Tensor, parameters: list[Tensor] | None = None, highest: int = 3, reference: Function | None = None
) -> None:
    """Compares f at orders 0 to 3, when compiled, with a reference or with itself in eager mode."""

    def results(f: Function) -> Function:
        return lambda x: y if isinstance(y := f(x), tuple) else (y,)

    expected = list(orders(results(reference or f), parameters or [], x, highest))
    torch._dynamo.reset()
    for ours, native in zip(orders(results(compiled(f)), parameters or [], x, highest), expected, strict=True):
        assert_close(ours, native, rtol=1e-10, atol=1e-10)
