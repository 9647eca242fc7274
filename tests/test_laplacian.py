"""laplacian: against traces of torch.func.hessian, for every rule, every fallback and every transform."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import grad, gradcheck
from torch.func import jacrev, vmap
from torch.testing import assert_close

import torchad_ext as ad
from torchad_ext.laplacian import _warned, bilaplacian, forward_laplacian, laplacian

Function = Callable[[Tensor], Tensor]
DIRECTIONS = 3


@pytest.fixture(autouse=True)
def _no_fallback() -> Any:
    """A rule that is missing is an error, but where a test expects the warning."""
    _warned.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torchad_ext.laplacian")
        yield


def points(device: str, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*(shape or (4, DIRECTIONS)), dtype=torch.float64, generator=generator).to(device, dtype)


def of_each_point(derivative: Callable[[Function], Function], f: Function, x: Tensor) -> Tensor:
    """A derivative at each point by itself, of f for a batch of one."""
    return torch.stack([derivative(lambda y: f(y.unsqueeze(0)).squeeze(0))(point) for point in x])


def traces(f: Function, x: Tensor, C: Tensor | None = None) -> Tensor:
    """The same by torch.func."""
    H = of_each_point(lambda g: jacrev(jacrev(g)), f, x)  # forward mode lacks the backward of silu
    C = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device) if C is None else C
    C = C.expand(*x.shape, x.shape[-1])
    return (H * C.reshape(len(x), *(1,) * (H.dim() - 3), *C.shape[-2:])).sum((-2, -1)).detach()


def by_autograd(f: Function, x: Tensor) -> Tensor:
    """Nested reverse mode with a graph, for training; f gives a number for each point."""
    x = x.detach().requires_grad_()
    (slope,) = grad(f(x).sum(), x, create_graph=True)
    return torch.stack([grad(slope[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(x.shape[-1])]).sum(0)


class Activation(nn.Module):
    def __init__(self, op: Callable[..., Tensor]) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


def network(device: str, activation: Callable[..., Tensor] = torch.sin, *, dtype: torch.dtype = torch.float64) -> Any:
    layers = [nn.Linear(DIRECTIONS, 8), Activation(activation), nn.Linear(8, 8), Activation(activation)]
    return nn.Sequential(*layers, nn.Linear(8, 1), nn.Flatten(0)).to(device, dtype)


ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "torch.sin": torch.sin,
    "nn.Tanh": nn.Tanh(),
    "F.silu": F.silu,
    "nn.GELU": nn.GELU(),
    "F.softplus": F.softplus,
    "ad.sin": ad.sin,
    "ad.siren": ad.siren,
    "ad.snake": lambda x: ad.snake(x, 2.0),
}


class TestNetworks:
    @pytest.mark.parametrize("name", ACTIVATIONS)
    def test_is_the_trace_of_the_hessian(self, name: str, device: str) -> None:
        f, x = network(device, ACTIVATIONS[name]), points(device)
        with torch.no_grad():
            assert_close(laplacian(f, x), traces(f, x))

    def test_value_and_jacobian_come_with_it(self, device: str) -> None:
        f, x = network(device), points(device)
        value, jacobian, curvature = forward_laplacian(f, x)
        assert_close(value, f(x))
        assert_close(jacobian, of_each_point(jacrev, f, x))
        assert_close(curvature, traces(f, x))

    def test_several_outputs(self, device: str) -> None:
        f, x = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).to(device, torch.float64), points(device)
        value, jacobian, curvature = forward_laplacian(f, x)
        assert value.shape == (4, 2) and jacobian.shape == (4, 2, 3)
        assert_close(jacobian, of_each_point(jacrev, f, x))
        assert_close(curvature, traces(f, x))

    @pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 4, 3), (0, 3), (4, 1)], ids=str)
    def test_shapes_of_points(self, shape: tuple[int, ...], device: str) -> None:
        x = points(device, *shape)

        def f(x: Tensor) -> Tensor:
            return (x.sin() * x.sum(-1, keepdim=True)).sum(-1)

        expected = (2 * x.cos().sum(-1) - x.sin().sum(-1) * x.sum(-1)).detach()
        assert_close(laplacian(f, x), expected)

    @pytest.mark.parametrize("chunk_size", [1, 2, 3, 7])
    def test_a_few_directions_at_a_time(self, chunk_size: int, device: str) -> None:
        f, x = network(device), points(device)
        assert_close(laplacian(f, x, chunk_size=chunk_size), laplacian(f, x))

    def test_more_directions_than_a_kernel_takes(self, device: str) -> None:
        x = points(device, 3, 23)
        assert_close(laplacian(lambda x: x.sin().prod(-1), x), -23 * x.sin().prod(-1))
        assert_close(laplacian(lambda x: (x[:, :22] * x[:, 1:]).square().sum(-1), x), traces(f_of_neighbours, x))

    def test_float32(self, device: str) -> None:
        f, x = network(device, dtype=torch.float32), points(device, dtype=torch.float32)
        y = laplacian(f, x)
        assert y.dtype == torch.float32
        assert_close(y, traces(f.double(), x.double()).float(), rtol=1e-4, atol=1e-5)

    def test_half_precision_and_autocast(self, device: str) -> None:
        f, x = network(device, dtype=torch.bfloat16), points(device, dtype=torch.bfloat16)
        assert laplacian(f, x).dtype == torch.bfloat16
        f, x = network(device, dtype=torch.float32), points(device, dtype=torch.float32)
        with torch.autocast(device, torch.bfloat16):
            y = laplacian(f, x).float()
        assert_close(y, laplacian(f, x), rtol=0.1, atol=0.05)


def f_of_neighbours(x: Tensor) -> Tensor:
    return (x[:, :22] * x[:, 1:]).square().sum(-1)


W = torch.linspace(-1, 1, 9, dtype=torch.float64).reshape(3, 3)
V = torch.linspace(0.5, 1.5, 3, dtype=torch.float64)
# Each rule by itself, from points [n, 3]; every operand that may vary does.
RULES: dict[str, Function] = {
    "constants": lambda x: 2.0 - (1 + x.sin() * V.to(x)) / 3 + (-x.cos()),
    "number over x": lambda x: 1 / (2 + x.sin()) + 2**x,
    "add with alpha": lambda x: torch.add(x.sin(), x.cos(), alpha=2) - torch.sub(V.to(x), x.sin(), alpha=3),
    "add broadcasts": lambda x: x.sin() + x[:, :1].cos(),
    "constant minus": lambda x: V.to(x) - x.sin(),
    "mul": lambda x: x.sin() * x.cos() * x,
    "mul broadcasts": lambda x: x.sin() * x[:, :1].cos(),
    "div": lambda x: x.sin() / (2 + x.cos()),
    "pow": lambda x: x**3 + (2 + x.sin()) ** 1.5 + (2 + x.sin()) ** x,
    "atan2": lambda x: torch.atan2(x.sin(), 2 + x.cos()),
    "addcmul": lambda x: torch.addcmul(x, x.sin(), x.cos(), value=2),
    "lerp": lambda x: torch.lerp(x.sin(), x.cos(), x),
    "clamp": lambda x: x.sin().clamp(-0.5, 0.5),
    "max": lambda x: torch.maximum(x.sin(), x.cos()),
    "where": lambda x: torch.where(x > 0, x.sin(), x.exp()) + torch.where(x > 0, 1.0, x.cos()),
    "masked_fill": lambda x: x.sin().masked_fill(x > 0, 3.0),
    "branch": lambda x: x.sin() if x.sum() > 0 else x.cos(),
    "loop": lambda x: sum(x[:, i].sin() * x[:, i - 1] for i in range(3)),
    "matmul": lambda x: torch.stack([x.sin() @ W.to(x), (W.to(x) @ x.cos().unsqueeze(-1)).squeeze(-1)], -1),
    "bmm": lambda x: torch.bmm(x.sin()[:, :, None], x.cos()[:, None, :]),
    "outer": lambda x: (x.sin().unsqueeze(-1) @ x.exp().unsqueeze(-2)).flatten(1),
    "vecdot": lambda x: torch.linalg.vecdot(x.sin(), x.cos()),
    "cross": lambda x: torch.linalg.cross(x.sin(), x.cos()),
    "linear with varying weight": lambda x: F.linear(torch.ones(1, 3).to(x), x.sin().prod(-1)[:, None] * V.to(x)).mT,
    "einsum": lambda x: torch.einsum("ni,ij,nj->n", x.sin(), W.to(x), x.cos()) + torch.einsum("ni->n", x.sin()),
    "addmm": lambda x: torch.addmm(V.to(x), x.sin(), W.to(x), alpha=2),
    "baddbmm": lambda x: torch.baddbmm(x.sin()[:, :, None], x.exp()[:, :, None], x.cos()[:, None, :1], beta=2),
    "quadratic_form": lambda x: ad.quadratic_form(x.sin(), W.to(x)),
    "quadratic_form of both": lambda x: ad.quadratic_form(x.sin(), x.cos()[:, :, None] * W.to(x)),
    "cat": lambda x: torch.cat([x.sin(), torch.ones_like(x), x.prod(-1, keepdim=True)], -1),
    "stack": lambda x: torch.stack([x.sin(), V.to(x).expand_as(x)], 1).square(),
    "index": lambda x: x.sin()[:, [2, 0]] * x[..., 1:2] + x.flip(-1)[:, 1:],
    "gather": lambda x: x.sin().gather(-1, x.argsort(-1)) * V.to(x),
    "split": lambda x: torch.cat([a * b for a, b in zip(x.sin().split(1, -1), x.cos().chunk(3, -1), strict=True)], -1),
    "unbind": lambda x: (lambda a, b, c: a * b.sin() + c.cos())(*x.unbind(-1)),
    "shape": lambda x: x.sin().reshape(-1, 1, 3).transpose(1, 2).expand(-1, 3, 2).flatten(1).roll(1, -1).square(),
    "pad": lambda x: F.pad(x.sin(), (1, 2), value=3.0).square(),
    "cumsum": lambda x: x.sin().cumsum(-1).square(),
    "mean": lambda x: x.sin().mean(-1, keepdim=True) * x,
    "prod": lambda x: x.sin().prod(-1),
    "var": lambda x: x.sin().var(-1) + x.std(-1, correction=0) + x.var(1, False),
    "norm": lambda x: x.norm(dim=-1) * torch.linalg.norm(x.sin(), dim=-1) + torch.linalg.vector_norm(x, 1, dim=-1),
    "normalize": lambda x: F.normalize(x.sin(), dim=-1),
    "softmax": lambda x: F.softmax(x.sin(), -1) * x.log_softmax(-1),
    "logsumexp": lambda x: torch.logsumexp(x.sin(), -1) * x.logsumexp(-1, keepdim=True).squeeze(-1),
    "layer_norm": lambda x: F.layer_norm(x.sin(), (3,), V.to(x), V.to(x)),
    "rms_norm": lambda x: F.rms_norm(x.sin(), (3,), V.to(x)),
    "group_norm": lambda x: F.group_norm(torch.cat([x.sin(), x[:, :1]], -1), 2),
    "batch_norm": lambda x: F.batch_norm(x.sin(), V.to(x), V.to(x), V.to(x), V.to(x)),
    "attention": lambda x: F.scaled_dot_product_attention(
        x.sin()[:, :, None], x.cos()[:, :, None], x[:, :, None], is_causal=True
    ).flatten(1),
    "conv": lambda x: F.conv1d(x.sin()[:, None], W.to(x)[:, None], V.to(x), padding=1).square().flatten(1),
    "pointwise": lambda x: SEVERAL(x.sin(), x.cos())[0] * SEVERAL(x, 2.0)[1],
    "detach": lambda x: x.sin() * x.detach() + x.sin().data,
    "constant": lambda x: torch.ones_like(x) + x.sign(),
    "linear": lambda x: F.linear(x, W.to(x), V.to(x)),
    "comparison": lambda x: x.sin() * (x > 0) + (x == x).to(x),
}
SEVERAL = ad.pointwise(lambda a, b: (torch.sin(a * b), torch.exp(a) + b, b * b))


@pytest.mark.parametrize("name", RULES)
def test_rule(name: str, device: str) -> None:
    f, x = RULES[name], points(device)
    expected = traces(f, x)
    assert_close(laplacian(f, x), expected)
    assert_close(laplacian(lambda x: f(x + 0.1 * x.sin()), x), traces(lambda x: f(x + 0.1 * x.sin()), x))
    assert_close(vmap(lambda point: laplacian(lambda y: f(y[None])[0], point))(x) if name in VMAPPED else expected, expected)


VMAPPED = {"mul", "matmul", "softmax", "cat", "pointwise", "layer_norm", "linear", "attention"}
