"""``torch.cond`` and its kin in f are the Python that they stand for, in every tool and at every order."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from selection import few
from torch import Tensor
from torch._higher_order_ops import map as mapped
from torch._higher_order_ops import scan
from torch._higher_order_ops.while_loop import while_loop
from torch.testing import assert_close

import torchad_ext as ad

pytestmark = pytest.mark.usefixtures("kernels_when_long")

D = torch.float64
POINTS = torch.rand(4, 3, dtype=D, generator=torch.Generator().manual_seed(1)) + 0.2
WEIGHT = torch.tensor(0.7, dtype=D, requires_grad=True)
# A function of points, and the same in Python.
FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "cond": (
        lambda x: (torch.cond(x.sum() > 0, lambda x: WEIGHT * x.sin(), lambda x: x.cos(), (x,)) ** 2).sum(-1),
        lambda x: ((WEIGHT * x.sin()) ** 2).sum(-1),
    ),
    "cond, the other branch": (
        lambda x: (torch.cond(x.sum() < 0, lambda x: x.sin(), lambda x: WEIGHT * x.cos(), (x,)) ** 2).sum(-1),
        lambda x: ((WEIGHT * x.cos()) ** 2).sum(-1),
    ),
    "cond of what its branches capture": (
        lambda x: torch.cond(x.sum() > 0, lambda: WEIGHT * x.sin().prod(-1), lambda: x.sum(-1), ()),
        lambda x: WEIGHT * x.sin().prod(-1),
    ),
    "cond within cond": (
        lambda x: torch.cond(x.sum() > 0, _inner, torch.cos, (x,)).prod(-1),
        lambda x: (WEIGHT * x.exp()).prod(-1),
    ),
    "cond with no_grad in it": (
        lambda x: torch.cond(x.sum() > 0, lambda x: WEIGHT * x.sin() * detached(x), torch.cos, (x,)).prod(-1),
        lambda x: (WEIGHT * x.sin() * x.detach()).prod(-1),
    ),
    "while_loop": (
        lambda x: while_loop(lambda i, y: i < 3, _step, (torch.tensor(0), x))[1].prod(-1),
        lambda x: (WEIGHT * (WEIGHT * (WEIGHT * x.sin()).sin()).sin()).prod(-1),
    ),
    "scan": (
        lambda x: scan(lambda c, y: (c * y + 1, (c * WEIGHT * y).clone()), x[:, 0].exp(), x.movedim(1, 0))[1].sum(0),
        lambda x: sum(WEIGHT * y for y in _scanned(x)),
    ),
    "map": (
        lambda x: mapped(lambda y: WEIGHT * y.sin(), x.movedim(-1, 0)).prod(0),
        lambda x: (WEIGHT * x.sin()).prod(-1),
    ),
}  # fmt: skip


def _inner(x: Tensor) -> Any:
    return torch.cond(x.sum() > 100, torch.sin, lambda x: WEIGHT * x.exp(), (x,))


def _step(i: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return i + 1, WEIGHT * y.sin()


@torch.no_grad()
def detached(x: Tensor) -> Tensor:
    return x.clone()


def _scanned(x: Tensor) -> list[Tensor]:
    carried, found = x[..., 0].exp(), []
    for y in x.unbind(-1):
        found.append(carried * y)
        carried = carried * y + 1
    return found


def total(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: f(x).sum()


TOOLS: dict[str, Callable[[Callable[[Tensor], Tensor]], Any]] = {
    "laplacian": lambda f: ad.laplacian(f, POINTS),
    "forward_laplacian": lambda f: ad.forward_laplacian(f, POINTS),
    "bilaplacian": lambda f: ad.bilaplacian(f, POINTS),
    "partials": lambda f: ad.partials(f, POINTS, ["", "a", "ab", "abc"], names="abc"),
    "taylor": lambda f: ad.taylor(f, POINTS, POINTS, 3),
    "jacobian": lambda f: ad.jacobian(f, POINTS),
    "jacobian row by row": lambda f: ad.jacobian(f, POINTS, chunk_size=1),
    "jacobian in forward mode": lambda f: ad.jacobian(f, POINTS, strategy="forward"),
    "hvp": lambda f: ad.hvp(total(f), POINTS, POINTS.cos()),
    "hessian": lambda f: ad.hessian(total(f), POINTS),
    "hessian in forward mode": lambda f: ad.hessian(total(f), POINTS, strategy="forward-over-reverse"),
    "hessian by its pattern": lambda f: ad.hessian(total(f), POINTS, sparsity="auto"),
    "hessian_diagonal": lambda f: ad.hessian_diagonal(total(f), POINTS),
    "hessian_diagonal of a batch": lambda f: ad.hessian_diagonal(f, POINTS, batched=True),
    "hessian_sparsity": lambda f: ad.hessian_sparsity(total(f), POINTS).to_dense().double(),
}


@pytest.mark.filterwarnings("ignore:torchad_ext")
@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_tool_and_training_through_it(name: str, tool: str) -> None:
    if "no_grad" in name and "forward mode" in tool:
        pytest.skip("forward mode goes through torch.no_grad()")
    ours, expected = (TOOLS[tool](f) for f in FUNCTIONS[name])
    results = [y if isinstance(y, (tuple, list)) else (y,) for y in (ours, expected)]
    for y, z in zip(*results, strict=True):
        assert_close(y, z, rtol=1e-9, atol=1e-9)
        assert y.requires_grad == z.requires_grad
        if z.requires_grad:
            assert_close(
                torch.autograd.grad(y.cos().sum(), WEIGHT, retain_graph=True),
                torch.autograd.grad(z.cos().sum(), WEIGHT, retain_graph=True),
                rtol=1e-9,
                atol=1e-9,
            )


@pytest.mark.parametrize("name", ["cond", "while_loop", "map"])
def test_the_sweep_follows(name: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "torchad_ext")
        ad.laplacian(FUNCTIONS[name][0], POINTS)


@pytest.mark.parametrize(
    "tool", few(["ad.laplacian(f, x)", "ad.jacobian(f, x).sum()", "ad.hvp(f, x, x).sum()"], lambda x: "laplacian" in x)
)
def test_in_a_process_that_has_not_compiled(tool: str) -> None:
    """``torch.cond`` imports what compiles it on its first call, which no mode of functions may be around."""
    code = (
        "import torch, torchad_ext as ad; x = torch.ones(3);"
        "f = lambda x: torch.cond(x.sum() > 0, lambda x: 3 * x**2, lambda x: x, (x,)).sum();"
        f"assert {tool} == 18, {tool}"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
