"""laplacian: against traces of torch.func.hessian, for every rule, every fallback and every transform."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from own_functions import Cube
from torch import Tensor, nn
from torch.autograd import grad, gradcheck
from torch.func import jacrev, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import profile
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import torchad_ext as ad
from torchad_ext._arguments import TENSOR
from torchad_ext._forward import elementwise_rules, rules
from torchad_ext._forward.fallback import _warned
from torchad_ext._forward.laplacian import _without_rules, bilaplacian, forward_laplacian, laplacian

Function = Callable[[Tensor], Tensor]
DIRECTIONS = 3


# A rule that is missing is an error, but where a test expects the warning.
pytestmark = [pytest.mark.filterwarnings("error:torchad_ext.laplacian"), pytest.mark.usefixtures("kernels_when_long")]


@pytest.fixture(autouse=True)
def _nothing_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHAD_EXT_STRICT", raising=False)
    _warned.clear()
    _without_rules.clear()


def points(device: str, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*(shape or (4, DIRECTIONS)), dtype=torch.float64, generator=generator).to(device, dtype)


def of_each_point(derivative: Callable[[Function], Function], f: Function, x: Tensor) -> Tensor:
    """A derivative at each point by itself, of f for a batch of one."""
    return torch.stack([derivative(lambda y: f(y.unsqueeze(0)).squeeze(0))(point) for point in x])


def traces(f: Function, x: Tensor, C: Tensor | None = None) -> Tensor:
    """The same by torch.func."""
    with sdpa_kernel(SDPBackend.MATH):  # the others have one derivative, and the backward of silu no forward mode
        H = of_each_point(lambda g: jacrev(jacrev(g)), f, x)
    C = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device) if C is None else C
    C = C.expand(*x.shape, x.shape[-1])
    return (H * C.reshape(len(x), *(1,) * (H.dim() - 3), *C.shape[-2:])).sum((-2, -1)).detach()


def by_autograd(f: Function, x: Tensor) -> Tensor:
    """Nested reverse mode with a graph, for training; f gives a number for each point."""
    x = x if x.requires_grad else x.detach().requires_grad_()
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


# In float32 under autocast, but for the last, which takes float32 and gives a half type.
def two_by_two(y: Tensor) -> Tensor:
    """Regular matrices."""
    return y[:, :4].tanh().view(-1, 2, 2) + 3 * torch.eye(2).to(y)


def at_least_float(y: Tensor) -> Tensor:
    return y.to(torch.promote_types(y.dtype, torch.float32))


IN_A_DTYPE_OF_ITS_OWN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse_loss": lambda y, t: F.mse_loss(y, t.to(y.dtype), reduction="none").sum(-1),
    "binary_cross_entropy": lambda y, t: F.binary_cross_entropy(y.sigmoid(), t, reduction="none").sum(-1),
    "cross_entropy": lambda y, t: F.cross_entropy(y, t.argmax(-1), reduction="none"),
    "prod": lambda y, t: (y.tanh() + 2).prod(-1),
    "cdist": lambda y, t: torch.cdist(y.unsqueeze(1), t.unsqueeze(1).to(y)).sum((-1, -2)),
    "inverse": lambda y, t: torch.linalg.inv(two_by_two(y)).sum((-1, -2)),
    "inverse of floats": lambda y, t: torch.linalg.inv(two_by_two(at_least_float(y))).sum((-1, -2)),
    "determinant of floats": lambda y, t: torch.linalg.slogdet(two_by_two(at_least_float(y)))[1],
    "addmm": lambda y, t: torch.addmm(t[:, :2], y.tanh(), t[:2].T).sum(-1),
    "a product with doubles": lambda y, t: (y.tanh() * t.double()).sum(-1),
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

    def test_evaluation_multiplies_all_tangents_at_once(self, device: str) -> None:
        f, x = network(device), points(device)
        with torch.no_grad(), profile() as profiler:
            laplacian(f, x)
        count = sum(event.name in ("aten::mm", "aten::addmm") for event in profiler.events())
        # Values, Laplacian and all tangents of the inner layer; of the first no Laplacian, of the last no tangents.
        assert count == 2 + 3 + 2

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

    @pytest.mark.parametrize("chunk_size", [1, 3, 4, 7])
    def test_a_few_points_at_a_time(self, chunk_size: int, device: str) -> None:
        f, x, seen = network(device), points(device), []

        def counted(x: Tensor) -> Tensor:
            seen.append(len(x))
            return f(x)

        assert_close(laplacian(counted, x, chunk_size=chunk_size), laplacian(f, x))
        assert sum(seen) == 4 and max(seen) == min(chunk_size, 4)
        C = coefficients("indefinite of each point", x)
        assert_close(laplacian(f, x, C, chunk_size=chunk_size), laplacian(f, x, C))
        assert_close(laplacian(f, x, C[0], chunk_size=chunk_size), laplacian(f, x, C[0]))

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
            with torch.no_grad():
                evaluated = forward_laplacian(f, x)
        assert_close(y, laplacian(f, x), rtol=0.1, atol=0.05)
        assert {part.dtype for part in evaluated} == {torch.bfloat16}
        assert_close(evaluated.laplacian.float(), y)

    @pytest.mark.parametrize("name", IN_A_DTYPE_OF_ITS_OWN)
    def test_what_autocast_runs_in_another_dtype(self, name: str, device: str) -> None:
        x, target = points(device, dtype=torch.float32), points(device, 4, 6, dtype=torch.float32).sigmoid()
        weight = points(device, 3, 6, dtype=torch.float32).requires_grad_()

        def f(x: Tensor) -> Tensor:
            return IN_A_DTYPE_OF_ITS_OWN[name](x @ weight.to(x.dtype), target.to(x.dtype))

        def of_all(x: Tensor) -> tuple[Tensor, ...]:
            return (*forward_laplacian(f, x), *ad.partials(f, x, ["", "xx"], names="xyz"))

        exact = of_all(x.double())
        with torch.autocast(device, torch.bfloat16):
            value, results = f(x), of_all(x)
        assert {y.dtype for y in results} == {value.dtype}
        assert_close(results[0], value)
        for ours, true in zip(results, exact, strict=True):
            assert_close(ours.double(), true, rtol=0.0, atol=0.05 * float(true.detach().abs().max()))
        mine, true = (grad(y[2].double().square().sum(), weight)[0] for y in (results, exact))
        assert_close(mine, true, rtol=0.0, atol=0.1 * float(true.abs().max()))

    @pytest.mark.parametrize("of", [torch.linalg.pinv, lambda A: torch.linalg.matrix_power(A, -2)])
    def test_what_autocast_ends_with_a_product_in_half_precision(self, of: Function, device: str) -> None:
        f, x = lambda x: of(two_by_two(torch.cat([x, x], -1))), points(device, dtype=torch.float32)
        exact = forward_laplacian(f, x.double())
        with torch.autocast(device, torch.bfloat16):
            value, results = f(x), forward_laplacian(f, x)
        assert {y.dtype for y in results} == {value.dtype} == {torch.bfloat16}
        for ours, true in zip(results, exact, strict=True):
            assert_close(ours.double(), true, rtol=0.0, atol=0.01 * float(true.abs().max()))


def f_of_neighbours(x: Tensor) -> Tensor:
    return (x[:, :22] * x[:, 1:]).square().sum(-1)


def pairs(x: Tensor) -> Tensor:
    return x.sin()[:, :, None] * x.cos()[:, None]


def phase(x: Tensor) -> Tensor:
    return torch.complex(2 * x.sin() + 0.1, x.flip(-1))


W = torch.linspace(-1, 1, 9, dtype=torch.float64).reshape(3, 3)
V = torch.linspace(0.5, 1.5, 3, dtype=torch.float64)
# Each rule by itself, from points [n, 3]; every operand that may vary does.
RULES: dict[str, Function] = {
    "constants": lambda x: 2.0 - (1 + x.sin() * V.to(x)) / 3 + (-x.cos()),
    "number over x": lambda x: 1 / (2 + x.sin()) + 2**x,
    "add with alpha": lambda x: torch.add(x.sin(), x.cos(), alpha=2) - torch.sub(V.to(x), x.sin(), alpha=3),
    "add broadcasts": lambda x: x.sin() + x[:, :1].cos(),
    "constant minus": lambda x: V.to(x) - x.sin(),
    "larger constants": lambda x: (x[:, :1].sin() + V.to(x)).cumsum(-1) * (V.to(x) - x[:, :1].cos()).cumsum(-1),
    "rsub": lambda x: torch.rsub(x[:, :1].sin(), V.to(x), alpha=2).cumsum(-1) * torch.rsub(V.to(x), x.cos(), alpha=3),
    "rounded quotient": lambda x: x.sin() * torch.div(x.exp(), 0.3, rounding_mode="floor"),
    "each alone": lambda x: (lambda a, b, c, d: a.mT * b * c + d)(
        *torch.atleast_2d(x[:, 0].sin(), x[:, :1]), *torch.broadcast_tensors(x.cos(), V.to(x))
    ),
    "each of a list": lambda x: (lambda a, b: a.mT * b)(
        *torch.atleast_2d([x[:, 0].sin(), *torch.atleast_2d([x.cos()])])
    ),
    "places of numbers": lambda x: (
        x.sin() * torch.where(x + 0)[1].view_as(x) + torch.where(x > 0, x.sin(), 2.0).cumsum(-1)
    ),
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
    "where of a tensor": lambda x: x.sin().where(x > 0, x.exp()) * x.cos().where(x > 0, V.to(x)),
    "constant over x": lambda x: V.to(x) / (2 + x.sin()),
    "masked_fill": lambda x: x.sin().masked_fill(x > 0, 3.0),
    "branch": lambda x: x.sin() if (x < 100).all() and float(x.detach().sum()) < 1e3 else x.cos(),
    "loop": lambda x: sum(x[:, i].sin() * x[:, i - 1] for i in range(3)),
    "matmul": lambda x: torch.stack([x.sin() @ W.to(x), (W.to(x) @ x.cos().unsqueeze(-1)).squeeze(-1)], -1),
    "bmm": lambda x: torch.bmm(x.sin()[:, :, None], x.cos()[:, None, :]),
    "outer": lambda x: (x.sin().unsqueeze(-1) @ x.exp().unsqueeze(-2)).flatten(1),
    "vecdot": lambda x: torch.linalg.vecdot(x.sin(), x.cos()),
    "cross": lambda x: torch.linalg.cross(x.sin(), x.cos()),
    "linear with varying weight": lambda x: F.linear(torch.ones(1, 3).to(x), x.sin().prod(-1)[:, None] * V.to(x)).mT,
    "einsum of a list": lambda x: torch.einsum("ni,nj->n", [x.sin(), x.cos()]) * torch.einsum("ij->i", [x.exp()]),
    "biases alone": lambda x: (
        F.bilinear(W.to(x)[:1], W.to(x)[:1], torch.ones(len(x), 3, 3).to(x), x[:, 0].sin()).mT
        + F.conv1d(torch.ones(1, 2, 4).to(x), torch.ones(len(x), 2, 2).to(x), x[:, 1].sin())[0]
    ),
    "einsum of four": lambda x: torch.einsum("ni, ij, nj, nj -> nj", x.sin(), W.to(x), x.cos(), x.exp()),
    "einsum of many": lambda x: torch.einsum(
        "nab,nbc,ncd,nd,ni->na", *[x.sin()[:, None] * x.cos()[..., None]] * 2, W.to(x) * x[:, None], x.exp(), x
    ),
    "einsum of diagonals": lambda x: torch.einsum(
        "nii,nij,njk->nk", *[x.sin()[:, None] * x.cos()[..., None]] * 2, W.to(x) * x[:, None]
    ),
    "einsum without a result": lambda x: torch.stack([torch.einsum("i,bi,i,j", y, W.to(x), y.sin(), y) for y in x]).sum(
        (1, 2)
    ),
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
    "pad by reflection": lambda x: (
        F.pad(x.sin()[:, None], (1, 2), "reflect") * F.pad(x[:, None].exp(), (2, 1), mode="circular")
    ).flatten(1),
    "prod of all": lambda x: torch.stack([y.sin().prod() for y in x]),
    "cumsum": lambda x: x.sin().cumsum(-1).square(),
    "mean": lambda x: x.sin().mean(-1, keepdim=True) * x,
    "prod": lambda x: x.sin().prod(-1) * x.prod(1, keepdim=True).squeeze(-1),
    "cumprod": lambda x: x.sin().cumprod(-1) * x.mT.cumprod(0).mT,
    "var": lambda x: x.sin().var(-1) + x.std(-1, correction=0) + x.var(1, False),
    "norm": lambda x: x.norm(dim=-1) * torch.linalg.norm(x.sin(), dim=-1) + torch.linalg.vector_norm(x, 1, dim=-1),
    "norm of order 4": lambda x: torch.linalg.vector_norm(x.sin(), 4, dim=-1),
    "normalize": lambda x: F.normalize(x.sin(), dim=-1),
    "softmax": lambda x: F.softmax(x.sin(), -1) * x.log_softmax(-1),
    "logsumexp": lambda x: torch.logsumexp(x.sin(), -1) * x.logsumexp(-1, keepdim=True).squeeze(-1),
    "layer_norm": lambda x: F.layer_norm(x.sin(), (3,), V.to(x), V.to(x)),
    "rms_norm": lambda x: F.rms_norm(x.sin(), (3,), V.to(x)),
    "group_norm": lambda x: F.group_norm(torch.cat([x.sin(), x[:, :1]], -1), 2),
    "batch_norm": lambda x: F.batch_norm(x.sin(), V.to(x), V.to(x), V.to(x), V.to(x)),
    "instance_norm": lambda x: F.instance_norm(pairs(x), weight=V.to(x), bias=V.to(x)).flatten(1),
    "instance_norm in evaluation": lambda x: F.instance_norm(
        pairs(x), V.to(x), V.to(x), V.to(x), V.to(x), use_input_stats=False
    ).flatten(1),
    "an operator of PyTorch": lambda x: torch.ops.aten.instance_norm(
        torch.ops.aten.sin.default(pairs(x)), None, None, None, None, True, 0.1, 1e-5, False
    ).flatten(1),
    "attention": lambda x: F.scaled_dot_product_attention(
        x.sin()[:, :, None], x.cos()[:, :, None], x[:, :, None], is_causal=True
    ).flatten(1),
    "conv": lambda x: F.conv1d(x.sin()[:, None], W.to(x)[:, None], V.to(x), padding=1).square().flatten(1),
    "pointwise": lambda x: SEVERAL(x.sin(), x.cos())[0] * SEVERAL(x, x)[1],
    "as another": lambda x: V.to(x, non_blocking=True) * x.sin().view_as(x) + x.cos().type_as(x),
    "of a type": lambda x: x.sin().type(x.dtype) * x.cos().type(x.type()),
    "detach": lambda x: x.sin() * x.detach(),
    "constant": lambda x: torch.ones_like(x) + x.sign(),
    "power of nothing": lambda x: sum(c * x.sin() ** k for k, c in enumerate((1.0, 2.0, 3.0))),  # type: ignore[return-value, misc]
    "linear": lambda x: F.linear(x, W.to(x), V.to(x)),
    "linear to a number": lambda x: F.linear(x, V.to(x)) * F.linear(x.cos(), W[0].to(x)),
    "linear with a varying row": lambda x: torch.stack([F.linear(V.to(x), y.sin()) for y in x]),
    "convolution of both": lambda x: F.conv1d(
        x.sin()[None], x.cos()[:, None, :2], x[:, 0], groups=len(x), padding=1
    ).squeeze(0),
    "tensordot": lambda x: torch.tensordot(x.sin(), W.to(x), 1) + torch.tensordot(W.to(x)[:1], x.cos(), ([1], [1])).mT,
    "fft2": lambda x: torch.fft.fft2(pairs(x)).real.flatten(1),
    "comparison": lambda x: x.sin() * (x > 0) + (x == x).to(x) + torch.isposinf(x).to(x),
}
SEVERAL = ad.pointwise(lambda a, b: (torch.sin(a * b), torch.exp(a) + b, b * b))


@pytest.mark.parametrize("name", RULES)
def test_rule(name: str, device: str) -> None:
    f, x = RULES[name], points(device)
    # Of points, whose Laplacian is zero, and of what has one; of derivatives that are used, and that are not.
    for g in (f, lambda x: f(x + 0.1 * x.sin()).sin()):
        recorded = forward_laplacian(g, x)
        assert_close(recorded.laplacian, traces(g, x))
        with torch.no_grad():
            assert_close(forward_laplacian(g, x), recorded)


ZERO_AT_ZERO: dict[str, Function] = {
    "norm": lambda x: x.norm(dim=-1),
    "cube of the norm": lambda x: x.norm(dim=-1) ** 3,
    "norm of order 4": lambda x: torch.linalg.vector_norm(x, 4, dim=-1),
    "std": lambda x: (x + 1).std(-1),
}


@pytest.mark.parametrize("name", ZERO_AT_ZERO)
def test_derivatives_of_norms_at_zero_are_zero_as_in_torch_func(name: str, device: str) -> None:
    f, x = ZERO_AT_ZERO[name], points(device)
    x[1] = 0
    assert_close(laplacian(f, x), torch.stack([by_trace(f, point) for point in x]))


def test_logcumsumexp(device: str) -> None:
    """Against its definition: of a product of two, torch.func.jacrev twice is wrong."""
    x = points(device)
    expected = torch.stack([x.sin()[:, : i + 1].logsumexp(-1) for i in range(3)], -1)
    actual = forward_laplacian(lambda x: x.sin().logcumsumexp(-1), x)
    assert_close(actual.value, expected)
    each = [laplacian(lambda x, i=i: x.sin()[:, : i + 1].logsumexp(-1), x) for i in range(3)]
    assert_close(actual.laplacian, torch.stack(each, -1))


def test_logcumsumexp_keeps_the_digits_of_small_numbers_beside_large_ones(device: str) -> None:
    x = torch.tensor([[1e-3, 2e-3, 20.0]], device=device)
    actual = forward_laplacian(lambda x: x.logcumsumexp(-1), x)
    assert_close(actual.value.double(), x.double().logcumsumexp(-1), rtol=1e-6, atol=0)


def test_instance_norm_updates_its_statistics_once(device: str) -> None:
    modules = [nn.InstanceNorm1d(3, track_running_stats=True).to(device, torch.float64) for _ in range(2)]
    x = points(device)
    laplacian(lambda x: modules[0](pairs(x)).sum((1, 2)), x)
    modules[1](pairs(x))
    assert_close(modules[0].state_dict(), modules[1].state_dict())


@pytest.mark.parametrize("name", ["mul", "matmul", "softmax", "cat", "pointwise", "layer_norm", "linear", "attention"])
def test_under_vmap(name: str, device: str) -> None:
    f, x = RULES[name], points(device)
    assert_close(vmap(lambda point: laplacian(lambda y: f(y[None])[0], point))(x), traces(f, x))
    assert_close(vmap(lambda batch: laplacian(f, batch))(x[None]), traces(f, x)[None])


class Attention(nn.Module):
    """A block of a transformer over 3 tokens, each a coordinate of a point."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(1, 4), nn.LayerNorm(4)
        self.attention, self.out = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.embed(x.unsqueeze(-1)).sin())
        y: Tensor = self.out(tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]).sum((-2, -1))
        return y


class Convolutions(nn.Sequential):
    def __init__(self) -> None:
        first, second = nn.Conv1d(1, 4, 3, padding=1), nn.Conv1d(4, 2, 2)
        super().__init__(nn.Unflatten(-1, (1, -1)), first, nn.GroupNorm(2, 4), nn.SiLU(), second, nn.Flatten())


def seeded(module: Callable[[], nn.Module], device: str) -> nn.Module:
    torch.manual_seed(1)
    return module().to(device, torch.float64)


class TestPrograms:
    @pytest.mark.parametrize("module", [Attention, Convolutions], ids=lambda m: m.__name__)
    def test_with_rules(self, module: Callable[[], nn.Module], device: str) -> None:
        f, x = seeded(module, device), points(device)
        assert_close(laplacian(f, x), traces(f, x))

    @settings(max_examples=25, deadline=None)
    @given(st.data())
    def test_composed(self, data: st.DataObject) -> None:
        """Any of these after any other: points [n, 3] to [n, 3]."""
        steps: dict[str, Function] = {
            "sin": torch.sin,
            "tanh": torch.tanh,
            "gaussian": ad.gaussian,
            "linear": lambda x: F.linear(x, W, V),
            "matmul": lambda x: x @ W,
            "product": lambda x: x * x.roll(1, -1),
            "quotient": lambda x: x / (2 + x.square()),
            "norm": lambda x: F.layer_norm(x, (3,), V),
            "softmax": lambda x: F.softmax(x, -1),
            "cat": lambda x: torch.cat([x[:, 1:], x.sum(-1, keepdim=True)], -1),
            "form": lambda x: x - ad.quadratic_form(x, W).unsqueeze(-1),
            "where": lambda x: torch.where(x > 0.3, x.square(), x),
        }
        names = data.draw(st.lists(st.sampled_from(sorted(steps)), min_size=1, max_size=5))

        def f(x: Tensor) -> Tensor:
            for name in names:
                x = steps[name](x)
            return x

        x = points("cpu", 2, 3)
        expected = traces(f, x)
        assert_close(laplacian(f, x), expected, rtol=1e-7, atol=1e-9 * max(1.0, expected.abs().max().item()))


class TestDerivatives:
    @pytest.mark.parametrize("name", ["torch.sin", "F.silu", "ad.snake"])
    def test_training_gradients_are_those_of_nested_autograd(self, name: str, device: str) -> None:
        f, x = network(device, ACTIVATIONS[name]), points(device, 16, 3)
        parameters = list(f.parameters())
        losses = [of(f, x).square().mean() for of in (laplacian, by_autograd)]
        ours, theirs = (grad(loss, parameters, allow_unused=True) for loss in losses)
        assert ours[-1] is None  # the bias of the last layer
        for a, b in zip(ours[:-1], theirs[:-1], strict=True):
            assert_close(a, b)

    def test_gradcheck_in_points_and_parameters(self, device: str) -> None:
        f, x = network(device), points(device, 2, 3).requires_grad_()
        names, parameters = zip(*f.named_parameters(), strict=True)

        def of(x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
            state = dict(zip(names, values, strict=True))
            return tuple(forward_laplacian(lambda x: torch.func.functional_call(f, state, (x,)), x))

        assert gradcheck(of, (x, *parameters), check_forward_ad=True)

    @pytest.mark.parametrize("name", ["softmax", "matmul", "quadratic_form of both"])
    def test_gradcheck_of_rules(self, name: str, device: str) -> None:
        assert gradcheck(lambda x: laplacian(RULES[name], x), points(device, 2, 3).requires_grad_())

    def test_torch_func_of_it(self, device: str) -> None:
        f, x = network(device), points(device)
        expected = jacrev(lambda x: by_trace(f, x))(x[0])
        assert_close(torch.func.grad(lambda x: laplacian(f, x[None])[0])(x[0]), expected)
        assert_close(torch.func.jacfwd(lambda x: laplacian(f, x[None])[0])(x[0]), expected)

    def test_no_graph_under_no_grad(self, device: str) -> None:
        f, x = network(device), points(device)
        with torch.no_grad():
            result = forward_laplacian(f, x)
        assert not any(y.requires_grad for y in result)
        assert laplacian(f, x).requires_grad


def by_trace(f: Function, point: Tensor) -> Tensor:
    return torch.func.hessian(lambda y: f(y[None])[0])(point).trace()


def coefficients(kind: str, x: Tensor) -> Tensor:
    A = points("cpu", len(x), 3, 3).to(x)
    return {
        "definite": A[0] @ A[0].mT + torch.eye(3).to(x),
        "semidefinite": torch.diag(torch.tensor([1.0, 0.0, 2.0])).to(x),
        "indefinite": A[0] + A[0].mT,
        "negative": -torch.eye(3).to(x),
        "negative definite": -(A[0] @ A[0].mT + torch.eye(3).to(x)),
        "zero": torch.zeros(3, 3).to(x),
        "definite of each point": A @ A.mT + torch.eye(3).to(x),
        "indefinite of each point": A + A.mT,
        "rank one of each point": A[..., :1] @ A[..., :1].mT,
    }[kind]


KINDS = ("definite", "semidefinite", "indefinite", "negative", "negative definite", "zero")
EACH = ("definite of each point", "indefinite of each point", "rank one of each point")


class TestCoefficients:
    @pytest.mark.parametrize("kind", KINDS + EACH)
    def test_weighted(self, kind: str, device: str) -> None:
        f, x = network(device), points(device)
        C = coefficients(kind, x)
        assert_close(laplacian(f, x, C), traces(f, x, C))

    @pytest.mark.parametrize("name", ["bmm", "einsum", "pow", "attention", "prod", "cumprod"])
    def test_of_products(self, name: str, device: str) -> None:
        x = points(device)
        for kind in ("indefinite of each point", "negative definite"):
            C = coefficients(kind, x)
            assert_close(laplacian(RULES[name], x, C), traces(RULES[name], x, C))

    def test_some_coordinates_cost_as_many_directions(self, device: str) -> None:
        x, seen = points(device), []

        def f(x: Tensor) -> Tensor:
            seen.append(len(getattr(x, "tangents", ())))
            return x.sin().sum(-1)

        C = torch.diag(torch.tensor([0.0, 1.0, 0.0])).to(x)
        assert_close(laplacian(f, x, C), -x[:, 1].sin())
        assert seen == [1]

    def test_one_point(self, device: str) -> None:
        f, x = network(device), points(device)
        C = coefficients("indefinite", x)
        assert_close(laplacian(lambda x: f(x[None])[0], x[0], C), traces(f, x[:1], C)[0])

    @pytest.mark.parametrize("kind", ["definite", "indefinite of each point"])
    def test_nearly_symmetric_ones_count_by_both_triangles(self, kind: str, device: str) -> None:
        f, x = (lambda x: x.prod(-1)), points(device)
        C = coefficients(kind, x)
        rounded = C + 1e-9 * torch.ones(3, 3).to(x).triu(1)
        error = laplacian(f, x, rounded) - laplacian(f, x, C)
        assert_close(error / 1e-9, x @ torch.ones(3).to(x), rtol=1e-4, atol=1e-4)

    def test_under_vmap(self, device: str) -> None:
        f, x = network(device), points(device)
        C = coefficients("indefinite of each point", x)
        assert_close(vmap(lambda x, C: laplacian(lambda x: f(x[None])[0], x, C))(x, C), traces(f, x, C))


class TestBilaplacian:
    def test_closed_forms(self, device: str) -> None:
        x = points(device)
        assert_close(bilaplacian(lambda x: x.sin().prod(-1), x), 9 * x.sin().prod(-1))
        assert_close(bilaplacian(lambda x: x.square().sum(-1).square(), x), torch.full((4,), 120.0).to(x))

    @pytest.mark.parametrize("name", ["softmax", "quadratic_form", "index", "linear"])
    def test_is_that_of_torch_func(self, name: str, device: str) -> None:
        f, x = RULES[name], points(device, 2, 3)

        def expected(x: Tensor) -> Tensor:
            def curvature(x: Tensor) -> Tensor:
                H = jacrev(jacrev(lambda y: f(y[None])[0].sum()))(x)
                return H.trace()

            return jacrev(jacrev(curvature))(x).trace()

        y = bilaplacian(f, x)
        assert_close(y.sum(-1) if y.dim() == 2 else y, torch.stack([expected(point) for point in x]))

    def test_of_a_network_in_training(self, device: str) -> None:
        f, x = network(device), points(device, 2, 3)
        twice = by_autograd(lambda x: laplacian(f, x), x)
        y = bilaplacian(f, x)
        assert_close(y, twice)
        weights = [p for p in f.parameters() if p.dim() == 2]
        for ours, theirs in zip(grad(y.sum(), weights), grad(twice.sum(), weights), strict=True):
            assert_close(ours, theirs)


def rotated(x: Tensor) -> Tensor:
    return torch.complex(pairs(x) + 2 * torch.eye(3).to(x), torch.diag_embed(x))


class Once(Cube):
    backward = staticmethod(torch.autograd.function.once_differentiable(Cube.backward))


@torch.library.custom_op("test_laplacian::sin", mutates_args=())
def cube(x: Tensor) -> Tensor:
    return x**3


cube.register_autograd(
    lambda ctx, g: 3 * ctx.saved_tensors[0] ** 2 * g,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


@torch.library.custom_op("test_laplacian::once", mutates_args=())
def once(x: Tensor) -> Tensor:
    return x**3


once.register_autograd(
    torch.autograd.function.once_differentiable(lambda ctx, g: 3 * ctx.saved_tensors[0] ** 2 * g),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


def inner_gradient(x: Tensor) -> Tensor:
    x = x if x.requires_grad else x.detach().requires_grad_()
    return grad(x.sin().prod(-1).sum(), x, create_graph=True)[0]


def cubed_sine(x: Tensor) -> Tensor:
    return torch.ops.test_laplacian.sin(x.sin())


def constant_without_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = x.cos()
    return x.sin() * scale


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return x.sin() * x


# What has no rule, and what the warning names.
FALLBACKS: dict[str, tuple[Function, str]] = {
    "svd": (lambda x: torch.linalg.svdvals(pairs(x) + 2 * torch.eye(3).to(x)), "svdvals"),
    "matrix norm": (lambda x: torch.linalg.matrix_norm(pairs(x) + 2 * torch.eye(3).to(x), 2), "matrix_norm"),
    "complex matrices": (lambda x: (torch.linalg.inv(rotated(x)) @ torch.linalg.pinv(rotated(x)[:, :2])).imag, "inv"),
    "qr": (lambda x: torch.linalg.qr(pairs(x) + 2 * torch.eye(3).to(x))[1], "qr"),
    "scatter_reduce": (
        lambda x: x.scatter_reduce(1, torch.zeros_like(x, dtype=torch.long), x.sin(), "prod"),
        "scatter",
    ),
    "custom operator": (lambda x: torch.ops.test_laplacian.sin(x.sin()), "sin"),
    "Function": (Cube.apply, "autograd.Function"),
    "no_grad": (constant_without_grad, "no_grad"),
    "autograd.grad": (inner_gradient, "grad"),
    "func.grad": (torch.func.grad(lambda x: x.sin().prod(-1).sum()), "transform"),
    "func.jvp": (lambda x: torch.func.jvp(torch.sin, (x,), (torch.ones_like(x),))[1] * x, "_make_dual"),
    "func.vmap": (torch.func.vmap(lambda x: x.sin().prod()), "transform"),
    "a script": (scripted, "aten.sin.default, which .* a script"),
}


# What torch.func does not differentiate twice.
OTHER_RULES: dict[str, Function] = {
    "slopes": lambda x: (
        torch.special.i0(x.sin()) * torch.special.i1(x) + torch.ldexp(x.cos(), x[:, :1].sin() * V.to(x))
    ),
    "slopes of smaller operands": lambda x: torch.ldexp(x[:, :1].exp(), x.sin()) + torch.fmax(x.sin(), x[:, 1:2]),
    "slopes of operands that constants are larger than": lambda x: (
        torch.igamma(V.to(x), x[:, :1].exp()) + torch.igamma(torch.ones(1, len(x)).to(x), x[:, 0].exp()).mT
    ),
    "data": lambda x: x.sin() * x.cos().data,
    "complex numbers": lambda x: (1j * x).exp().imag + phase(x).conj().mul(1j * x).real + (phase(x) * x).abs(),
    "complex product": lambda x: (phase(x) * phase(x.sin()) / (2 + phase(x.cos()))).imag + (x / phase(x)).real,
    "phase": lambda x: (
        phase(x).angle() + phase(x).sgn().real + torch.view_as_real(torch.polar(x.exp(), x.sin())).cumsum(-1).sum(-1)
    ),
    "complex pairs": lambda x: torch.view_as_real(phase(x).conj().resolve_conj() * phase(x)).prod(-1),
    "complex powers": lambda x: (phase(x) ** 2.5).real + ((3 + phase(x)) ** (x + 1j)).imag + (2 ** phase(x)).real,
    "complex exponents": lambda x: (
        ((2 + x.sin()) ** phase(x)).imag + ((3 + phase(x)) ** (1 + 1j)).real + ((2 + x.sin()) ** 1j).imag
    ),
    "complex factors": lambda x: (
        (torch.addcmul(phase(x), phase(x.cos()), phase(x), value=1j) + torch.lerp(phase(x), x + 0j, phase(x))).imag
    ),
    "complex choice": lambda x: (
        torch.where(x > 0, phase(x), phase(x).exp()).imag + torch.lerp(phase(x), x + 0j, 0.3).abs()
    ),
    "a wave function": lambda x: torch.view_as_real(
        torch.exp(1j * x.sin().sum(-1)) * torch.stack([phase(x), 1j * x + 1], -1).prod(-1).sum(-1)
    ),
}


@pytest.mark.parametrize("name", OTHER_RULES)
def test_other_rule(name: str, device: str) -> None:
    f, x = OTHER_RULES[name], points(device).requires_grad_()
    for g in (f, lambda x: f(x + 0.1 * x.sin())):
        summed = lambda x, g=g: g(x).reshape(len(x), -1).sum(-1)  # noqa: E731
        ours, theirs = laplacian(summed, x), by_autograd(summed, x)
        assert_close(ours, theirs)
        assert_close(grad(ours.square().sum(), x), grad(theirs.square().sum(), x))
        with torch.no_grad():
            assert_close(laplacian(summed, x), theirs.detach())


def test_the_derivatives_of_a_sign_and_of_a_phase_at_zero_are_zero(device: str) -> None:
    """Those of a sign as in PyTorch, whose second ones are not finite."""
    x = points(device)
    x[1] = 0
    for part in (torch.sgn, torch.angle):
        f = lambda x, part=part: torch.view_as_real(part(torch.complex(x.sin(), x * x.flip(-1) - x)) + 0j).flatten(1)  # noqa: E731
        value, jacobian, curvature = forward_laplacian(f, x)
        assert_close(value, f(x))
        assert not jacobian[1].any() and not curvature[1].any()
        others = [0, 2, 3]
        assert_close(curvature[others].sum(-1), by_autograd(lambda x, f=f: f(x).sum(-1), x[others]))


def test_operands_of_two_dtypes(device: str) -> None:
    """Derivatives have the dtype that the value has: a number of a wider dtype is not wide enough to change it."""
    x = points(device, 3)
    narrow = lambda x: torch.atan2(x.float().sin(), 2 + x[0])  # noqa: E731
    wide = lambda x: torch.atan2(x.float().sin(), 2 + x.flip(0))  # noqa: E731
    numbers = lambda x: torch.addcmul(x[0], x.float().sin(), x[1].cos())  # noqa: E731
    for f, dtype in ((narrow, torch.float32), (wide, torch.float64), (numbers, torch.float32)):
        result = forward_laplacian(f, x)
        assert {part.dtype for part in result} == {f(x).dtype} == {dtype}
        assert_close(
            result.laplacian.double(), traces(lambda x, f=f: f(x[0])[None], x[None])[0].double(), rtol=1e-5, atol=1e-6
        )


@pytest.mark.filterwarnings("ignore:This overload of add is deprecated")
def test_a_sum_of_three_arguments(device: str) -> None:
    x = points(device)
    assert_close(laplacian(lambda x: torch.add(x.sin(), 2, x.cos()), x), -x.sin() - 2 * x.cos())


def test_constants_beside_others_stay_constants(device: str) -> None:
    seen = []

    def f(x: Tensor) -> Tensor:
        for of_two in (torch.atleast_2d, torch.broadcast_tensors):
            y, constant = of_two(x.sin(), V.to(x))
            seen.append(type(constant))
        return y

    laplacian(f, points(device))
    assert seen == [Tensor, Tensor]


@pytest.mark.parametrize("of_two", [torch.atleast_2d, torch.broadcast_tensors])
def test_numbers_beside_tensors_are_the_error_that_pytorch_has(of_two: Callable[..., Any], device: str) -> None:
    with pytest.raises(TypeError, match="expected Tensor"):
        laplacian(lambda x: of_two(x, 2.0)[0], points(device))


def test_a_number_of_another_device() -> None:
    """PyTorch takes a number of the CPU with tensors of any device."""
    x, number = points("meta"), torch.tensor(2.0, dtype=torch.float64)
    y = laplacian(lambda x: torch.atan2(x.sin(), number), x)
    assert y.shape == (4, 3) and y.device == x.device


@pytest.mark.parametrize(
    ("function", "is_elementwise"),
    [
        (torch.hardshrink, True),
        (torch.special.i1e, True),
        (torch.ops.aten.i0.default, True),
        (torch.ops.aten.sum.default, False),
        (torch.sort, False),
        (torch.special.log_softmax, False),
        (torch.linalg.inv, False),
        (lambda x: x, False),
    ],
)
def test_what_pytorch_says_is_elementwise(function: Any, is_elementwise: bool) -> None:
    assert elementwise_rules.is_elementwise.__wrapped__(function) is is_elementwise


class TestKernels:
    """Which calls have one kernel."""

    def test_a_function_of_pytorch_has_that_of_the_op_of_the_catalogue(self) -> None:
        of_torch = elementwise_rules._member.__wrapped__(torch.exp, (TENSOR,), ())
        of_catalogue = ad.exp.resolve((torch.ones(2),))[1]
        assert of_torch
        sources = [of.laplacian((2,), (1, -1)).function.source("cpu", torch.float64) for of in (of_torch, of_catalogue)]
        assert sources[0] == sources[1]

    def test_linear_operations_have_none(self) -> None:
        before = elementwise_rules._member.cache_info()
        laplacian(lambda x: V * ((x + x.flip(-1)) - V) * V / V, points("cpu"))
        assert elementwise_rules._member.cache_info() == before

    @pytest.mark.parametrize(
        ("f", "count"),
        [(lambda x, c: x.clamp(min=c), 1), (lambda x, c: x**c, 1), (lambda x, c: x ** (4 * c), 2)],
        ids=["clamp", "pow", "simple pow"],
    )
    @pytest.mark.usefixtures("interpreted")
    def test_of_two_numbers(self, f: Callable[[Tensor, float], Tensor], count: int) -> None:
        """One, to which they are given, but where they are simple exponents."""
        x = points("cpu").abs()
        elementwise_rules._member.cache_clear()  # other tests have made some of them
        for number in (0.625 + count, 1.375 + count):
            assert_close(laplacian(lambda x, c=number: f(x, c), x), traces(lambda x, c=number: f(x, c), x))
        assert elementwise_rules._member.cache_info().misses == count


HOLOMORPHIC = (
    "exp log sin cos tan tanh sinh cosh sqrt rsqrt reciprocal sigmoid expm1 log1p log2 log10 exp2 square asin acos "
    "atan asinh acosh atanh"
).split()


@pytest.mark.parametrize("name", HOLOMORPHIC)
def test_functions_of_complex_numbers_in_all_quadrants(name: str, device: str) -> None:
    """Branches included."""
    x = points(device, 40, 3)
    function = getattr(torch, name)

    def f(x: Tensor) -> Tensor:
        z = function(phase(x)[:, 0])
        return z.real + 2 * z.imag

    assert_close(laplacian(f, x), by_autograd(f, x))


class TestCost:
    """By counts: what is run how often."""

    def test_a_layer_of_points_takes_its_tangents_once_for_all(self, device: str) -> None:
        x, weight = points(device, 100, 3), points(device, 8, 3)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            forward_laplacian(lambda x: F.linear(x, weight), x)
        assert counter.get_total_flops() == 2 * 3 * 8 * (100 + 3)

    @pytest.mark.usefixtures("interpreted")
    @pytest.mark.parametrize("name", ["prod", "cumprod"])
    def test_products_of_numbers_other_than_zero_are_not_composed(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        x, seen = points("cpu"), []
        composed = rules.COMPOSITIONS[name]
        monkeypatch.setitem(
            rules.COMPOSITIONS, name, lambda *args, **kwargs: seen.append(0) or composed(*args, **kwargs)
        )
        f = lambda x: getattr(torch, name)(x, -1)  # noqa: E731
        laplacian(f, x)
        assert not seen
        laplacian(lambda x: f(x * (x > 0)), x)
        assert seen

    def test_an_elementwise_function_without_a_kernel_has_the_same_gradients_for_any_number_of_directions(
        self, device: str
    ) -> None:
        counts = []
        for d in (2, 20):
            x = points(device, 4, d)
            with torch.no_grad(), profile() as profiler:
                laplacian(torch.special.i0, x)
            counts.append(sum(event.name in ("aten::special_i1", "aten::i0") for event in profiler.events()))
        assert counts[0] == counts[1]

    def test_a_function_that_is_mostly_without_rules_is_differentiated_as_a_whole_from_the_second_time_on(
        self, device: str
    ) -> None:
        x, seen = points(device), []

        def f(x: Tensor) -> Tensor:
            seen.append(type(x) is Tensor)
            return cubed_sine(x).sum(-1)

        with pytest.warns(UserWarning, match="no rule"):
            first = laplacian(f, x)
        assert_close(laplacian(f, x), first)
        assert_close(first, by_autograd(f, x).detach())
        assert seen[:2] == [False, True]

    def test_a_function_with_a_few_elements_without_a_rule_stays_in_the_sweep(self, device: str) -> None:
        f, x, seen = network(device), points(device), []

        def mostly_ruled(x: Tensor) -> Tensor:
            seen.append(type(x) is Tensor)
            return f(torch.cat([x[:, :2], torch.ops.test_laplacian.sin(x[:, 2:])], -1))

        with pytest.warns(UserWarning, match="no rule"):
            first = laplacian(mostly_ruled, x)
        assert_close(laplacian(mostly_ruled, x), first)
        assert seen == [False, False]

    def test_another_function_of_the_same_code_is_not_affected(self, device: str) -> None:
        x, seen = points(device), []

        def of(inner: Function) -> Function:
            def f(x: Tensor) -> Tensor:
                seen.append(type(x) is Tensor)
                return inner(x)

            return f

        with pytest.warns(UserWarning, match="no rule"):
            laplacian(of(cubed_sine), x)
        laplacian(of(torch.sin), x)
        assert seen == [False, False]


class TestFallback:
    @pytest.mark.parametrize("name", FALLBACKS)
    def test_is_exact_and_says_so_once(self, name: str, device: str) -> None:
        f, named = FALLBACKS[name]
        x = points(device)
        expected = torch.stack(
            [by_autograd(lambda x, i=i: f(x).reshape(len(x), -1)[:, i], x) for i in range(f(x)[0].numel())], -1
        )
        with pytest.warns(UserWarning, match=f"torchad_ext.laplacian .*{named}"):
            y = laplacian(f, x)
        assert_close(y, expected.reshape(y.shape).detach(), check_dtype=False)
        with torch.no_grad():
            assert_close(laplacian(f, x), y.detach())  # an error, if it warned

    def test_derivatives(self, device: str) -> None:
        x = points(device).requires_grad_()
        with pytest.warns(UserWarning, match="Function"):
            (ours,) = grad(laplacian(lambda x: Cube.apply(x.sin()).sum(-1), x).sum(), x)
        (theirs,) = grad(laplacian(lambda x: (x.sin() ** 3).sum(-1), x).sum(), x)
        assert_close(ours, theirs)

    @pytest.mark.parametrize("f", [inner_gradient, cubed_sine], ids=["of the whole", "of an operation"])
    def test_has_a_graph_if_something_requires_a_gradient(self, f: Function, device: str) -> None:
        x, w = points(device), V.to(device, copy=True).requires_grad_()
        with pytest.warns(UserWarning, match="differentiated twice"):
            assert not any(y.requires_grad for y in forward_laplacian(f, x))
        assert laplacian(f, points(device).requires_grad_()).requires_grad
        assert grad(laplacian(lambda x: f(x * w), x).sum(), w)[0].all()

    def test_is_an_error_if_strict(self, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCHAD_EXT_STRICT", "1")
        for f in (Cube.apply, cubed_sine):
            with pytest.raises(RuntimeError, match="TORCHAD_EXT_STRICT=1"):
                laplacian(f, points(device))

    @pytest.mark.parametrize("autocast", [False, True])
    def test_dropout_has_one_mask(self, autocast: bool, device: str) -> None:
        x = points(device, dtype=torch.float32)
        torch.manual_seed(3)
        mask = F.dropout(torch.ones_like(x))
        torch.manual_seed(3)
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            y = laplacian(lambda x: F.dropout(x.sin()), x)
        assert_close(y, -x.sin() * mask)

    def test_random_numbers_are_drawn_once(self, device: str) -> None:
        x = points(device)
        torch.manual_seed(3)
        with pytest.warns(UserWarning, match="rrelu, which draws random numbers"):
            value, _, curvature = forward_laplacian(lambda x: F.rrelu(x, 1.0, 3.0, training=True) ** 2, x)
        slope = value.sqrt() / x.abs()
        assert_close(curvature, 2 * slope**2)


def exported(module: nn.Module, x: Tensor) -> Any:
    return torch.export.export(module, (x,), dynamic_shapes={"x": {0: torch.export.Dim("n")}}).module()


TRACERS = {"jit": torch.jit.trace, "export": exported}  # jit compares a second trace with the first


class TestCompiled:
    def test_a_whole_step(self, device: str) -> None:
        f, x = network(device), points(device)
        parameters = [p for p in f.parameters() if p.dim() == 2]

        def step(x: Tensor) -> Tensor:
            return laplacian(f, x).square().mean()

        compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
        assert_close(compiled(x), step(x))
        for ours, theirs in zip(grad(compiled(x), parameters), grad(step(x), parameters), strict=True):
            assert_close(ours, theirs)

    @pytest.mark.parametrize("tracer", TRACERS)
    def test_traced_it_takes_other_points_and_is_trained(self, tracer: str, device: str) -> None:
        class OfNetwork(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.u = nn.Sequential(
                    nn.Linear(DIRECTIONS, 8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), ad.nn.Sin()
                )

            def forward(self, x: Tensor) -> tuple[Tensor, ...]:
                return tuple(forward_laplacian(lambda x: ad.softmax(ad.sin(self.u(x)), -1).prod(-1), x))

        model, others = OfNetwork().to(device, torch.float64), points(device, 6, DIRECTIONS)
        traced = TRACERS[tracer](model, points(device))
        for ours, theirs in zip(traced(others), model(others), strict=True):
            assert_close(ours, theirs)
        mine, expected = (grad(f(others)[2].square().sum(), f.get_parameter("u.0.weight")) for f in (traced, model))
        assert_close(mine, expected)

    @pytest.mark.parametrize("tracer", [torch.jit.trace, lambda f, x: make_fx(f)(x)])
    def test_traced_it_takes_coefficients_of_other_signs(self, tracer: Any, device: str) -> None:
        f = lambda x: laplacian(lambda x: x.square().exp(), x, torch.diag_embed(x))  # noqa: E731
        x = points(device)
        assert_close(tracer(f, x.abs() + 0.1)(x), f(x))

    @pytest.mark.parametrize(
        ("f", "strict", "message"),
        [
            (lambda x: laplacian(torch.sin, x), True, "Observed exception"),
            (lambda x: ad.jacobian(torch.sin, x), False, "call jacobian on what was exported"),
            (lambda x: laplacian(lambda x: Cube.apply(x).sum(-1), x), False, "cannot follow .* record a constant"),
        ],
        ids=["strict", "by reverse mode", "without a rule"],
    )
    def test_export_of_what_it_would_take_for_a_constant(self, f: Function, strict: bool, message: str) -> None:
        with pytest.raises(Exception, match=message):
            torch.export.export(Activation(f), (points("cpu"),), strict=strict)


class TestErrors:
    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (lambda x: laplacian(torch.sin, [1.0]), TypeError, r"a tensor for x, got list; write torch.as_tensor\("),
            (lambda x: laplacian(torch.sin, [x, x]), TypeError, r"got list; write torch.cat\(x, -1\), or torch.stack"),
            (lambda x: ad.partials(torch.sin, (x, x), []), TypeError, r"got tuple; write torch.cat\(x, -1\)"),
            (lambda x: laplacian(torch.sin, x.long()), TypeError, "floating-point x, got torch.int64"),
            (lambda x: laplacian(torch.sin, x[0, 0]), ValueError, "takes x .*got a number"),
            (lambda x: laplacian(torch.sin, x, chunk_size=0), ValueError, "chunk_size of 1 or more, got 0"),
            (lambda x: laplacian(lambda x: x.sum(), x), ValueError, r"each result from its own point; got \[\]"),
            (lambda x: laplacian(lambda x: x.mT, x), ValueError, r"got \[3, 4\] for x \[4, 3\]"),
            (lambda x: laplacian(lambda x: (x, x), x), TypeError, r"f returns a tensor, got tuple; .* f\(x\)\[0\]"),
            (lambda x: laplacian(lambda x: {"u": x}, x), TypeError, r"got dict; pick one, lambda x: f\(x\)\['u'\]"),
            (lambda x: laplacian(lambda x: None, x), TypeError, "got NoneType; is its return missing"),
            (lambda x: laplacian(lambda x: x.sum().item(), x), TypeError, r"got float; compute it without item\(\)"),
            (lambda x: laplacian(lambda x: x > 0, x), TypeError, "floating-point numbers, got torch.bool"),
            (lambda x: laplacian(torch.sin, x, [1.0]), TypeError, "a tensor for coefficients, got list"),
            (lambda x: laplacian(torch.sin, x, x), ValueError, r"coefficients \[3, 3\] or \[4, 3, 3\].*got \[4, 3\]"),
            (lambda x: laplacian(torch.sin, x, x[0]), ValueError, r"got \[3\]; write torch.diag_embed\(coefficients\)"),
            (lambda x: laplacian(torch.sin, x, 2.0), TypeError, "for coefficients, got float; multiply the result by"),
            (
                lambda x: laplacian(torch.sin, x, torch.eye(3).to(x).requires_grad_()),
                ValueError,
                r"no derivative in coefficients.* coefficients.detach\(\), or to learn them .* torchad_ext.partials",
            ),
            (lambda x: laplacian(torch.sin, x, torch.eye(3).to(x).float()), ValueError, "torch.float32 on"),
            (lambda x: laplacian(torch.sin, x, x[:3].tril()), ValueError, "takes symmetric coefficients"),
            (lambda x: laplacian(torch.sin, x, x[:3] * torch.inf), ValueError, "takes finite coefficients"),
            (lambda x: laplacian(torch.sin, x, x[:3] * torch.nan), ValueError, "takes finite coefficients"),
            (lambda x: laplacian(torch.sin, x, torch.eye(3).to(x).to_sparse()), TypeError, "dense tensors for coeff"),
            (lambda x: laplacian(torch.sin, x, torch.eye(3).to(x).requires_grad_()), ValueError, "detach"),
            (lambda x: laplacian(lambda x: F.batch_norm(x, None, None, training=True), x), ValueError, "all points"),
            (lambda x: forward_laplacian(torch.sin, x.long()), TypeError, "forward_laplacian takes floating-point"),
        ],
    )
    def test_say_what_was_given(
        self, call: Callable[..., Any], error: type[Exception], message: str, device: str
    ) -> None:
        with pytest.raises(error, match=message):
            call(points(device))

    def test_a_function_that_cannot_be_differentiated_twice(self, device: str) -> None:
        twice = pytest.raises(RuntimeError, match=r"f cannot be differentiated twice: .*once_differentiable")
        with pytest.warns(UserWarning, match="cannot follow"), twice:
            laplacian(Once.apply, points(device))
        with pytest.warns(UserWarning, match="no rule for once|cannot follow once"), twice:
            laplacian(torch.ops.test_laplacian.once, points(device))

    def test_coefficients_that_are_learned_are_taken_where_nothing_is(self, device: str) -> None:
        x = points(device)
        C = torch.eye(3).to(x).requires_grad_()
        with torch.no_grad():
            assert_close(laplacian(torch.sin, x, C), laplacian(torch.sin, x))

    def test_a_function_of_nothing_is_zero(self, device: str) -> None:
        x = points(device)
        value, jacobian, curvature = forward_laplacian(lambda y: torch.ones(4, 2).to(y), x)
        assert value.eq(1).all() and jacobian.shape == (4, 2, 3) and not jacobian.any() and not curvature.any()

    def test_errors_of_f_are_its_own(self, device: str) -> None:
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            laplacian(lambda x: x @ torch.ones(2, 2).to(x), points(device))


def test_a_compiled_function_is_followed_as_it_was_written() -> None:
    network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    compiled = torch.compile(network, backend="aot_eager")
    compiled(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(ad.laplacian(compiled, x), ad.laplacian(network, x))


def _tiny(x: Tensor) -> Tensor:
    return torch.exp(-(x[:, 0] ** 2))


# Functions of exp(-x²) whose Laplacian is the number, of which f'' and x_k² alone are out of range.
OUT_OF_RANGE: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "sqrt": (lambda x: _tiny(x).sqrt().log(), -1),
    "pow": (lambda x: _tiny(x).pow(0.25).log(), -0.5),
    "pow to a whole and a half": (lambda x: _tiny(x).pow(0.5).pow(1.5).log(), -1.5),
    "pow to a tensor": (lambda x: _tiny(x).pow(0.5 + 0 * x[:, 0]).log(), -1),
    "log": (lambda x: _tiny(x).log(), -2),
    "log2": (lambda x: _tiny(x).log2(), -2 / math.log(2)),
    "log10": (lambda x: _tiny(x).log10(), -2 / math.log(10)),
    "quotient": (lambda x: (_tiny(x) / _tiny(x / 2)).log(), -1.5),
    "quotient of tiny numbers": (lambda x: _tiny(x).sqrt() / _tiny(x / math.sqrt(2)), 0),
    "rsqrt": (lambda x: _tiny(x / 2).rsqrt().log(), 0.25),
    "reciprocal": (lambda x: _tiny(x / 2).reciprocal().log(), 0.5),
    "number over it": (lambda x: (1 / _tiny(x / 2)).log(), 0.5),
    "norm": (lambda x: torch.stack([_tiny(x / 2), 2 * _tiny(x / 2)], -1).norm(dim=-1).log(), -0.5),
    "complex abs": (lambda x: torch.complex(_tiny(x / 2), 2 * _tiny(x / 2)).abs().log(), -0.5),
}


@pytest.mark.parametrize(("dtype", "at"), [(torch.float64, 20.0), (torch.float32, 6.0)], ids=str)
@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_intermediate_results_in_range(name: str, dtype: torch.dtype, at: float) -> None:
    f, expected = OUT_OF_RANGE[name]
    result = laplacian(f, torch.tensor([[at]], dtype=dtype))
    # Terms of the size of x² cancel.
    bound = 400 * 64 * torch.finfo(dtype).eps
    assert_close(result, torch.tensor([float(expected)], dtype=dtype), rtol=0, atol=bound)
