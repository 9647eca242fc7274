"""No points, as an empty boundary has: every tool gives an empty result, through which one can train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from own_functions import Sine
from selection import every_other
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import torchad_ext as ad
from torchad_ext._forward.laplacian import _without_rules

pytestmark = pytest.mark.usefixtures("kernels_when_long")

D = torch.float64


@torch.library.custom_op("test_no_points::sine", mutates_args=())
def sine(x: Tensor) -> Tensor:
    return x.sin()


sine.register_autograd(
    lambda ctx, g: g * ctx.saved_tensors[0].cos(),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)
NET = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 2)).to(D)
WEIGHT = NET[0].weight
# Functions of points [..., 3], each with the weight.
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "a network": lambda x: NET(x).sum(-1),
    "two outputs": NET,
    "no outputs": lambda x: NET(x)[..., :0],
    "prod": lambda x: (x @ WEIGHT.mT).prod(-1),
    "norm": lambda x: (x @ WEIGHT.mT).norm(dim=-1),
    "softmax": lambda x: (x @ WEIGHT.mT).softmax(-1)[..., 0],
    "group_norm": lambda x: F.group_norm((x @ WEIGHT.mT).view(-1, 4), 2).view(*x.shape[:-1], 4).sum(-1),
    "sort": lambda x: (x @ WEIGHT.mT).exp().sort(-1)[0][..., 0],
    "determinant": lambda x: torch.linalg.det(x.unsqueeze(-1) * x.unsqueeze(-2) + WEIGHT[:3]),
    "no rule": lambda x: torch.linalg.qr(x.unsqueeze(-1) * x.unsqueeze(-2) + WEIGHT[:3])[1].sum((-2, -1)),
    "slopes": lambda x: torch.special.i0(x @ WEIGHT.mT).sum(-1),
    "a Function": lambda x: Sine.apply(x @ WEIGHT.mT).sum(-1),
    "an operator": lambda x: sine(x @ WEIGHT.mT).sum(-1),
    "an operator with a rule": lambda x: sine(x @ WEIGHT.mT).cumsum(-1)[..., -1],
    "complex": lambda x: torch.complex(x @ WEIGHT.mT, x.sum(-1, keepdim=True).expand(*x.shape[:-1], 4)).exp().sum(-1),
    "a constant": lambda x: torch.zeros(x.shape[:-1], dtype=D) + WEIGHT.sum(),
    "branches": lambda x: torch.cond(x.sum() > 0, lambda: x @ WEIGHT.mT, lambda: (x @ WEIGHT.mT).sin(), ()).sum(-1),
}  # fmt: skip
# Of f and points [..., 3].
TOOLS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "laplacian": ad.laplacian,
    "laplacian with coefficients": lambda f, x: ad.laplacian(f, x, torch.diag(torch.tensor([1.0, -1.0, 0.0], dtype=D))),
    "laplacian with a matrix each": lambda f, x: ad.laplacian(f, x, torch.eye(3, dtype=D).expand(*x.shape, 3)),
    "laplacian in chunks": lambda f, x: ad.laplacian(f, x, chunk_size=2),
    "forward_laplacian": ad.forward_laplacian,
    "bilaplacian": ad.bilaplacian,
    "partials": lambda f, x: ad.partials(f, x, ["", "a", "aab", ad.Sum("aa", "bb")], names="abc"),
    "partials in chunks": lambda f, x: ad.partials(f, x, ["aa"], names="abc", chunk_size=2),
    "taylor": lambda f, x: ad.taylor(f, x, torch.ones(3, dtype=D), 3),
    "jacobian": lambda f, x: ad.jacobian(lambda x: torch.view_as_real(y) if (y := f(x)).is_complex() else y, x),
    "hvp": lambda f, x: ad.hvp(lambda x: f(x).abs().sum(), x, x),
    "hessian": lambda f, x: ad.hessian(lambda x: f(x).abs().sum(), x),
    "hessian by its pattern": lambda f, x: ad.hessian(lambda x: f(x).abs().sum(), x, sparsity="auto"),
    "hessian_diagonal": lambda f, x: ad.hessian_diagonal(lambda x: f(x).abs().sum(), x),
    "hessian_diagonal of a batch": lambda f, x: ad.hessian_diagonal(
        lambda x: f(x).abs().unsqueeze(-1).flatten(1).sum(-1), x.reshape(-1, 3), batched=True
    ),
    "hessian_sparsity": lambda f, x: ad.hessian_sparsity(lambda x: f(x).abs().sum(), x).to_dense().double(),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("tool", "name", "batch"), every_other(TOOLS, FUNCTIONS, [(0,), (2, 0)]), ids=str)
def test_shapes_and_training(tool: str, name: str, batch: tuple[int, ...]) -> None:
    """Shapes are those for some points, but for the batch, and there is something to train where there is for these."""
    f, call = FUNCTIONS[name], TOOLS[tool]
    some = torch.rand(*(2 if n == 0 else n for n in batch), 3, dtype=D)
    none = torch.rand(*batch, 3, dtype=D)
    if tool == "hessian_diagonal of a batch" and name == "a constant":
        pytest.skip("of no batch")
    for _ in range(2):  # the second call of laplacian knows which way to take
        expected, results = (tree_leaves(call(f, x)) for x in (some, none))
        for y, z in zip(results, expected, strict=True):
            assert y.dtype == z.dtype
            assert y.numel() == 0 or tool in ("hessian_sparsity",)
            assert y.dim() == z.dim()
            if tool in PER_POINT:
                assert y.shape[len(batch) :] == z.shape[len(batch) :]
                assert y.shape[: len(batch)] == batch
        loss = sum((y.abs().sum() for y in results if y.requires_grad), torch.zeros((), dtype=D))
        if loss.requires_grad:
            (gradient,) = torch.autograd.grad(loss, WEIGHT, materialize_grads=True)
            assert not gradient.any()
        if any(y.requires_grad for y in expected) and tool in PER_POINT and name != "a constant":
            assert loss.requires_grad
    _without_rules.clear()


PER_POINT = {tool for tool in TOOLS if tool.split()[0] in ("laplacian", "bilaplacian", "partials", "taylor")}
