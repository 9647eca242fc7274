"""hvp, vhp, jacobian, hessian and hessian_diagonal of any function, against torch.func and closed forms."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.autograd.function import once_differentiable
from torch.func import functional_call, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import torchad_ext as ad
from torchad_ext import _self_check, _torch_state
from torchad_ext._hessian.pullback import Pullback

STRATEGIES = ["reverse-over-reverse", "forward-over-reverse"]
Function = Callable[[Any], Any]


def sample(*shape: int, device: str = "cpu", dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(device, dtype)


def only_outside_inference_mode(transform: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        assert not torch.is_inference_mode_enabled()
        return transform(*args)

    return call


def energy(x: Tensor) -> Tensor:
    return (x.sin() * x.exp()).sum() + x.flatten()[0] * x.square().sum()


# From a tensor to one of the same shape.
STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "sin": torch.sin,
    "ad.sin": ad.sin,
    "ad.silu": ad.silu,
    "scaled": lambda x: 0.5 * x,
    "matrix": lambda x: torch.cos(torch.outer(torch.arange(6.0), torch.arange(6.0))).to(x) @ x / 3,
    "bilinear": lambda x: x * x.flip(0),
    "shifted": lambda x: torch.cat([x[1:], x[:1]]),
    "softmax": lambda x: x.softmax(0),
    "cumulated": lambda x: x.cumsum(0) / 6,
    "in place": lambda x: x.clone().mul_(x),
    "outer": lambda x: torch.outer(x, x.tanh()).mean(1),
    "sorted": lambda x: x.sort()[0],
    "normalised": lambda x: nn.functional.layer_norm(x, (6,)),
    "masked": lambda x: torch.where(torch.arange(6, device=x.device) < 3, x, x.square()),
    "form": lambda x: x + ad.quadratic_form(x, torch.ones(6, 6).tril().to(x)) / 10,
}
chains = st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=4)


def composed(chain: list[str]) -> Callable[[Tensor], Tensor]:
    return lambda x: functools.reduce(lambda y, name: STEPS[name](y), chain, x).square().sum()


@settings(max_examples=25, deadline=None)
@example(chain=["normalised", "normalised"], strategy=STRATEGIES[1], chunk_size=None)  # zero, but for rounding
@given(chain=chains, strategy=st.sampled_from([None, *STRATEGIES]), chunk_size=st.sampled_from([None, 1, 4]))
def test_composed_functions(chain: list[str], strategy: Any, chunk_size: int | None) -> None:
    f, x, v = composed(chain), sample(6), sample(6).flip(0)
    expected = torch.func.hessian(f)(x)
    options = {"rtol": 1e-9, "atol": 1e-10}
    assert_close(ad.hessian(f, x, chunk_size, strategy=strategy), expected, **options)
    assert_close(ad.hessian(f, x, chunk_size, sparsity="auto", strategy=strategy), expected, **options)
    assert_close(ad.hessian_diagonal(f, x, chunk_size=chunk_size), expected.diagonal(), **options)
    assert_close(ad.hvp(f, x, v), expected @ v, **options)
    assert_close(ad.vhp(f, x, v), v @ expected, **options)
    assert_close(ad.jacobian(lambda u: STEPS[chain[0]](u), x), torch.func.jacrev(STEPS[chain[0]])(x), **options)


class TestStructure:
    """Results are those of torch.func in shape, dtype and structure."""

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
    @pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (0,)], ids=str)
    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_one_tensor(self, shape: tuple[int, ...], dtype: torch.dtype, strategy: Any, device: str) -> None:
        x = sample(*shape, device=device, dtype=dtype)
        f = lambda x: (x.sin() * x.exp()).sum() ** 2  # noqa: E731
        expected = torch.func.jacrev(torch.func.jacrev(f))(x) if x.numel() else x.new_zeros(0, 0)
        for chunk_size in (None, 1, 2):
            assert_close(ad.hessian(f, x, chunk_size, strategy=strategy), expected)
        assert ad.hvp(f, x, x).shape == shape
        assert ad.hessian_diagonal(f, x).shape == shape

    @pytest.mark.parametrize("strategy", STRATEGIES)
    @pytest.mark.parametrize("chunk_size", [None, 1, 4])
    def test_dict_of_parameters(self, strategy: Any, chunk_size: int | None, device: str) -> None:
        module = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).to(device, torch.float64)
        parameters = dict(module.named_parameters())
        data = sample(4, 2, device=device)

        def loss(parameters: dict[str, Tensor]) -> Tensor:
            return functional_call(module, parameters, (data,)).square().mean()

        expected = torch.func.hessian(loss)(parameters)
        assert_close(ad.hessian(loss, parameters, chunk_size, strategy=strategy), expected)
        v = {name: torch.ones_like(p) for name, p in parameters.items()}
        rows = {
            name: sum(expected[name][other].flatten(p.dim()).sum(-1) for other in parameters)
            for name, p in parameters.items()
        }
        assert_close(ad.hvp(loss, parameters, v), rows)
        diagonal = ad.hessian_diagonal(loss, parameters, chunk_size=chunk_size)
        for name, p in parameters.items():
            block = expected[name][name].reshape(p.numel(), p.numel())
            assert_close(diagonal[name].flatten(), block.diagonal())

    def test_tuple_of_tensors(self, device: str) -> None:
        xs = sample(3, device=device), sample(2, 2, device=device)
        f = lambda xs: (xs[0].sum() * xs[1].exp()).sum()  # noqa: E731
        assert_close(ad.hessian(f, xs), torch.func.hessian(f)(xs))

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_leaves_of_several_dtypes(self, strategy: Any, device: str) -> None:
        xs = {"single": sample(3, device=device, dtype=torch.float32), "double": sample(2, device=device)}
        f = lambda xs: (xs["single"].double().sum() * xs["double"]).sin().sum()  # noqa: E731
        assert_close(ad.hessian(f, xs, strategy=strategy), torch.func.hessian(f)(xs))
        g = lambda xs: torch.cat([xs["single"].double() ** 2, xs["double"]])  # noqa: E731
        for mode in ("reverse", "forward"):
            assert_close(ad.jacobian(g, xs, strategy=mode), torch.func.jacrev(g)(xs))

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_elements_that_share_memory(self, strategy: Any, device: str) -> None:
        for x in (sample(8, device=device).unfold(0, 4, 2), sample(1, device=device).expand(3, 4)):
            f = lambda x: (x * x.sin().flip(0)).sum()  # noqa: E731
            H = torch.func.hessian(f)(x.clone())
            assert_close(ad.hessian(f, x, strategy=strategy), H)
            sparse = ad.hessian(f, x, sparsity="auto", layout=torch.sparse_coo, strategy=strategy)
            assert_close(sparse.to_dense(), H.view(x.numel(), x.numel()))
            tall = lambda x: torch.outer(x.flatten(), sample(9, device=device)).sin()  # noqa: E731
            assert_close(ad.jacobian(tall, x), torch.func.jacrev(tall)(x.clone()))

    @pytest.mark.parametrize("name", ["single precision", "a gradient", "a Function without jvp"])
    def test_a_jacobian_is_that_of_jacrev_at_every_height(self, name: str, device: str) -> None:
        f = {
            "single precision": lambda x: x.float() ** 2,
            "a gradient": lambda x: torch.autograd.grad((x**4).sum(), x, create_graph=True)[0],
            "a Function without jvp": Cubed.apply,
        }[name]
        x = sample(3, device=device)
        for height in (2, 40):
            W = sample(3, height, device=device)
            result = ad.jacobian(lambda x, W=W: f(x) @ W.to(f(x).dtype), x)
            loop = [
                torch.autograd.functional.vjp(lambda x, i=i, W=W: f(x).to(W) @ W[:, i], x)[1] for i in range(height)
            ]
            assert_close(result, torch.stack(loop), rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("transforms_are_right", [True, False])
    def test_inference_mode(self, transforms_are_right: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
        if not transforms_are_right:  # as before PyTorch 2.13, whose torch.func.grad is 0 there
            monkeypatch.setattr(_torch_state, "are_transforms_right_in_inference_mode", lambda: False)
            monkeypatch.setattr(torch.func, "grad", only_outside_inference_mode(torch.func.grad))
            monkeypatch.setattr(torch.func, "vjp", only_outside_inference_mode(torch.func.vjp))
        x = sample(3, device=device)
        f = lambda x: (x**3).prod()  # noqa: E731
        points = sample(4, 3, device=device)
        calls: list[Callable[[Tensor], Any]] = [
            lambda x: ad.hessian(f, x),
            lambda x: ad.hessian(lambda x: x.pow(3).sum(), x, sparsity="auto"),
            lambda x: ad.hessian(lambda x: x.pow(3).sum(), x, sparsity=torch.eye(3, dtype=torch.bool, device=x.device)),
            lambda x: ad.hvp(f, x, x),
            lambda x: ad.jacobian(torch.sin, x),
            lambda x: ad.hessian_diagonal(f, x),
            lambda x: ad.hessian_diagonal(lambda points: f(x) * (points**3).sum(-1), points, batched=True),
        ]
        for call in calls:
            with torch.inference_mode():
                inside, made_inside = call(x), x.clone()
                assert_close(inside, call(made_inside))
            assert not inside.requires_grad
            assert_close(inside.clone(), call(x))
            assert_close(call(made_inside), call(x))

    @pytest.mark.parametrize("chunk_size", [None, 1, 2])
    def test_random_numbers_are_drawn_once(self, chunk_size: int | None, device: str) -> None:
        x, W = sample(3, device=device), sample(3, 40, device=device)
        J = ad.jacobian(lambda x: nn.functional.dropout(x @ W), x, chunk_size, "forward")
        assert_close(J == 0, (J == 0)[:, :1].expand_as(J))
        f = lambda x: (nn.functional.dropout(x).pow(3) * x.sum()).sum()  # noqa: E731
        for strategy in STRATEGIES:
            H = ad.hessian(f, x, chunk_size, strategy=strategy)
            assert_close(H, H.T)

    @pytest.mark.parametrize("loss", [nn.functional.mse_loss, nn.functional.huber_loss], ids=lambda loss: loss.__name__)
    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_losses(self, loss: Any, strategy: Any, device: str) -> None:
        x = sample(3, device=device)
        f = lambda x: loss(x * x, torch.ones_like(x))  # noqa: E731
        assert_close(ad.hessian(f, x, strategy=strategy), torch.func.hessian(f)(x))

    @pytest.mark.parametrize("n", [6, 300])
    def test_a_derivative_that_is_grads_batched_does_not_batch(self, n: int, device: str) -> None:
        scale = torch.arange(1.0, 5, dtype=torch.float64, device=device)
        f = lambda x: nn.functional.group_norm(x.view(1, n, 1) * scale, 2).pow(3).sum()  # noqa: E731
        x = sample(n, device=device)
        assert_close(ad.hessian(f, x), torch.func.hessian(f)(x))

    def test_a_backward_that_gives_nothing_for_some_arguments(self, device: str) -> None:
        f = lambda x: nn.functional.layer_norm(x.view(2, 150), (150,)).pow(3).sum()  # noqa: E731
        x = sample(300, device=device)
        expected = torch.func.hessian(f)(x)
        assert_close(ad.hessian(f, x), expected)
        assert_close(ad.hessian(f, x, sparsity="auto"), expected)

    @pytest.mark.parametrize("strategy", [None, "reverse", "forward"])
    @pytest.mark.parametrize("chunk_size", [None, 1, 2])
    def test_jacobian(self, strategy: str | None, chunk_size: int | None, device: str) -> None:
        xs = {"a": sample(2, device=device), "b": sample(1, 3, device=device)}
        f = lambda xs: {"y": torch.outer(xs["a"], xs["b"][0]), "z": xs["a"].sin().sum()}  # noqa: E731
        assert_close(ad.jacobian(f, xs, chunk_size, strategy), torch.func.jacrev(f)(xs))
        x = sample(2, device=device)
        y = sample(30, device=device)
        wide = lambda x: torch.outer(x, y).sin()  # noqa: E731
        assert_close(ad.jacobian(wide, x, chunk_size, strategy), torch.func.jacfwd(wide)(x))

    def test_a_disconnected_input_has_zeros(self, device: str) -> None:
        x, y = sample(3, device=device), sample(2, device=device)
        assert not ad.hessian(lambda x: y.sum(), x).any()
        assert not ad.hvp(lambda x: x.sum(), x, x).any()
        assert not ad.jacobian(lambda x: y, x).any()
        assert not ad.hessian_diagonal(lambda x: x.sum(), x).any()
        result = ad.hessian(lambda xs: xs["x"].square().sum(), {"x": x, "y": y})
        assert_close(result["x"]["x"], 2 * torch.eye(3, device=device, dtype=x.dtype))
        assert not result["x"]["y"].any()
        assert not result["y"]["y"].any()


class LastState(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.recurrent = kind(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.recurrent(x)[0][-1]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project, self.norm = nn.Linear(4, 12), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).chunk(3, -1)
        return self.norm(x + (q @ k.mT / 2).softmax(-1) @ v)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Softplus(), nn.Conv2d(2, 1, 2)),
        (1, 1, 5, 5),
    ),
    "attention": (Attention, (3, 4)),
    "LSTM": (lambda: LastState(nn.LSTM), (4, 2)),
    "GRU": (lambda: LastState(nn.GRU), (4, 2)),
    "sine network": (lambda: nn.Sequential(nn.Linear(6, 300), nn.SiLU(), nn.Linear(300, 2)), (6,)),
}


class TestNetworks:
    @pytest.mark.parametrize("name", NETWORKS)
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
    def test_hessian_in_the_input(self, name: str, dtype: torch.dtype, device: str) -> None:
        make, shape = NETWORKS[name]
        network, x = make().to(device, dtype), sample(*shape, device=device, dtype=dtype)
        f = lambda x: network(x).sin().sum()  # noqa: E731
        expected = torch.autograd.functional.hessian(f, x)
        with torch.no_grad():
            assert_close(ad.hessian(f, x), expected)
            assert_close(ad.hessian(f, x, sparsity="auto"), expected)
        assert_close(ad.hessian(f, x).detach(), expected)
        assert_close(ad.hessian(f, x, chunk_size=1).detach(), expected)

    @pytest.mark.parametrize("name", ["convolution", "attention", "GRU"])
    def test_hessian_in_the_parameters(self, name: str, device: str) -> None:
        make, shape = NETWORKS[name]
        network, x = make().to(device, torch.float64), sample(*shape, device=device)
        loss = lambda parameters: functional_call(network, parameters, (x,)).sin().sum()  # noqa: E731
        parameters = {name: p.detach() for name, p in network.named_parameters()}

        def of_values(*values: Tensor) -> Tensor:
            return loss(dict(zip(parameters, values, strict=True)))

        # torch.func.hessian is wrong here on torch 2.13, in the weight of the LayerNorm.
        expected = torch.autograd.functional.hessian(of_values, tuple(parameters.values()))
        result = ad.hessian(loss, parameters)
        assert_close([list(row.values()) for row in result.values()], [list(row) for row in expected])


class TestManyRows:
    """From 256 rows on, unit vectors stay sparse on their way back."""

    A = sample(300, 300)
    B = sample(300, 300).flip(0)
    CASES: tuple[tuple[str, Callable[[Tensor, Tensor, Tensor], Tensor]], ...] = (
        ("x @ A @ x", lambda x, A, B: x @ A @ x + (x.sin() * x.exp()).sum()),
        ("dot", lambda x, A, B: x.dot(A @ x)),
        ("torchad_ext", lambda x, A, B: ad.quadratic_form(x, A) + (ad.sin(x) * ad.exp(x)).sum()),
        ("network", lambda x, A, B: (B @ (A @ x / 20).sin()).sin().sum()),
        ("rows of a batch", lambda x, A, B: (x.view(3, 100) @ A[:100] / 9).tanh().square().sum()),
        ("as columns", lambda x, A, B: (A @ x.view(-1, 1) / 9).tanh().square().sum()),
        ("transposed", lambda x, A, B: (x.view(1, -1).T.mT @ A).squeeze().sin().sum()),
        ("divided", lambda x, A, B: ((A[0] - x) / (2 + x.square())).sum()),
        ("broadcast", lambda x, A, B: (x * x.view(-1, 1) * A).sum() + (x[0] * x).sum()),
        ("softmax", lambda x, A, B: x.softmax(0).square().sum() + x.logsumexp(0)),
        ("shifted", lambda x, A, B: (torch.cat([x[1:], x[:1]]) * x).sum().div(300).exp()),
        ("scalar factor", lambda x, A, B: x.sum() * x.sin().sum()),
        ("diagonal", lambda x, A, B: x.pow(3).sum()),
        ("linear", lambda x, A, B: (A @ x).sum()),
        ("rounded midway", lambda x, A, B: (x.sin().float() * 2).double().square().sum()),
    )

    @pytest.mark.parametrize(("name", "f"), CASES, ids=[name for name, _ in CASES])
    def test_hessian(self, name: str, f: Callable[..., Tensor], device: str) -> None:
        x, A, B = (v.to(device) for v in (sample(300), self.A, self.B))
        expected = torch.func.jacrev(torch.func.jacrev(lambda x: f(x, A, B)))(x)
        for chunk_size in (None, 100, 299):
            result = ad.hessian(lambda x: f(x, A, B), x, chunk_size)
            assert type(result) is Tensor
            assert_close(result, expected, rtol=1e-9, atol=1e-9)
        assert_close(ad.hessian_diagonal(lambda x: f(x, A, B), x), expected.diagonal(), rtol=1e-9, atol=1e-9)

    def test_jacobian(self, device: str) -> None:
        x, A = sample(300, device=device), self.A.to(device)
        f = lambda x: (A @ x.sin(), x.exp())  # noqa: E731
        assert_close(ad.jacobian(f, x), torch.func.jacrev(f)(x))
        assert_close(
            ad.jacobian(lambda x: f(x)[0].view(20, 15), x), torch.func.jacrev(lambda x: f(x)[0].view(20, 15))(x)
        )

    def test_a_backward_that_broadcasts(self, device: str) -> None:
        W = self.A[:2].to(device)

        class Broadcast(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                return x * W.sum(0)

            @staticmethod
            def backward(ctx: Any, grad_output: Tensor) -> Tensor:
                return (grad_output * W).sum(0)

        x = sample(300, device=device)
        assert_close(ad.jacobian(Broadcast.apply, x), torch.diag(W.sum(0)))


class TestDifferentiableAgain:
    @pytest.mark.parametrize("strategy", STRATEGIES)
    @pytest.mark.parametrize("sparsity", [None, "auto"])
    def test_gradcheck(self, strategy: Any, sparsity: Any, device: str) -> None:
        x = sample(4, device=device).requires_grad_()
        w = sample(4, device=device).flip(0).requires_grad_()

        def f(x: Tensor) -> Tensor:
            return (x[:-1] * x[1:].sin()).sum() + (w * x).exp().sum()

        for chunk_size in (None, 1, 3):
            hessian = functools.partial(ad.hessian, f, chunk_size=chunk_size, strategy=strategy, sparsity=sparsity)
            assert gradcheck(lambda x, _, hessian=hessian: hessian(x), (x, w))
        assert gradcheck(lambda x, _: ad.hessian_diagonal(f, x), (x, w))
        assert gradcheck(lambda x, w: ad.hvp(f, x, w), (x, w))
        assert gradcheck(lambda x, _: ad.jacobian(lambda x: (w * x).sin(), x), (x, w))

    def test_in_what_f_captures(self, device: str) -> None:
        module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).to(device, torch.float64)
        f = lambda x: module(x).sum()  # noqa: E731
        points = sample(4, 3, device=device)
        parameters = list(module.parameters())[:-1]
        expected = torch.autograd.grad(vmap(torch.func.hessian(f))(points).square().sum(), parameters)
        for trace in (
            torch.stack([ad.hessian(f, x) for x in points]).square().sum(),
            vmap(lambda x: ad.hessian(f, x))(points).square().sum(),
        ):
            assert_close(torch.autograd.grad(trace, parameters), expected)

    def test_in_x_alone_where_f_captures_it_too(self, device: str) -> None:
        x = sample(3, device=device).requires_grad_()
        result = ad.hessian(lambda u: (u.square() * x).sum(), x)
        assert_close(result, 2 * torch.diag(x))
        assert_close(torch.autograd.grad(result.sum(), x)[0], torch.full_like(x, 2))

    def test_a_result_that_has_no_derivatives_keeps_no_graph(self, device: str) -> None:
        x = sample(3, device=device)
        assert not ad.hessian(energy, x).requires_grad
        assert not ad.hvp(energy, x, x).requires_grad
        with torch.no_grad():
            assert not ad.hessian(energy, x.requires_grad_()).requires_grad
            captured = sample(3, device=device).requires_grad_()
            assert not ad.hessian(lambda x: (captured * x.exp()).sum(), x).requires_grad


class TestTransforms:
    def test_vmap(self, device: str) -> None:
        points = sample(5, 3, device=device)
        expected = vmap(torch.func.hessian(energy))(points)
        for strategy in STRATEGIES:
            assert_close(vmap(lambda x, s=strategy: ad.hessian(energy, x, strategy=s))(points), expected)
        assert_close(vmap(lambda x: ad.hessian(energy, x, chunk_size=2))(points), expected)
        assert_close(vmap(lambda x: ad.hessian(energy, x, chunk_size=1))(points), expected)
        assert_close(vmap(lambda x: ad.hvp(energy, x, x))(points), vmap(torch.mv)(expected, points))
        assert_close(vmap(lambda x: ad.vhp(energy, x, x))(points), vmap(torch.mv)(expected, points))
        assert_close(vmap(lambda x: ad.hessian_diagonal(energy, x))(points), expected.diagonal(dim1=1, dim2=2))
        gradient = lambda x: ad.jacobian(torch.func.grad(energy), x)  # noqa: E731
        assert_close(vmap(gradient)(points), expected)

    @pytest.mark.parametrize("mode", [torch.func.jacrev, torch.func.jacfwd], ids=lambda mode: mode.__name__)
    def test_derivatives_of_the_result(self, mode: Callable[..., Any], device: str) -> None:
        x = sample(3, device=device)
        third = mode(torch.func.hessian(energy))(x)
        assert_close(mode(lambda x: ad.hessian(energy, x))(x), third)
        assert_close(mode(lambda x: ad.hessian_diagonal(energy, x))(x), third.diagonal(dim1=0, dim2=1).T)

    @pytest.mark.parametrize(
        "tool",
        [lambda x: ad.hvp(energy, x, x), lambda x: ad.hessian(energy, x), lambda x: ad.jacobian(torch.sin, x)],
        ids=["hvp", "hessian", "jacobian"],
    )
    def test_make_fx_before_autograd_would_take_derivatives_for_constants(self, tool: Function) -> None:
        with pytest.raises(RuntimeError, match=r"make_fx\(pre_dispatch=True\) would silently record a constant"):
            make_fx(tool, pre_dispatch=True)(sample(6))

    @pytest.mark.parametrize(
        "tool",
        [
            lambda x: ad.hessian(energy, x),
            lambda x: ad.hessian_diagonal(energy, x),
            lambda x: ad.hessian_diagonal(lambda x: x.pow(3).sin().prod(-1), x.view(2, 3), batched=True),
            lambda x: ad.hvp(energy, x, torch.ones_like(x)),
            lambda x: ad.jacobian(lambda x: x.exp() * x.sum(), x),
        ],
        ids=["hessian", "hessian_diagonal", "hessian_diagonal of a batch", "hvp", "jacobian"],
    )
    def test_make_fx_records_what_takes_other_points_and_is_differentiated(self, tool: Function) -> None:
        other = sample(7)[1:].requires_grad_()
        recorded, result = make_fx(tool)(sample(6))(other), tool(other)
        assert_close(recorded, result)
        gradients = (torch.autograd.grad(y.sin().sum(), other)[0] for y in (recorded, result))
        assert_close(*gradients)

    def test_forward_mode_around(self, device: str) -> None:
        x, t = sample(3, device=device), sample(3, device=device).flip(0)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, t)
            tangent = torch.autograd.forward_ad.unpack_dual(ad.hessian(energy, dual)).tangent
        assert_close(tangent, torch.func.jvp(torch.func.hessian(energy), (x,), (t,))[1])

    def test_compile_of_a_sparse_result(self) -> None:
        f = lambda x: x.pow(3).sum()  # noqa: E731
        sparse = torch.compile(lambda x: ad.hessian(f, x, sparsity="auto", layout=torch.sparse_coo), backend="eager")
        result = sparse(sample(4))
        assert result.layout is torch.sparse_coo
        assert_close(result.to_dense(), torch.diag(6 * sample(4)))

    def test_compile_of_a_whole_step(self) -> None:
        W = sample(3, 3)

        def step(x: Tensor) -> tuple[Tensor, ...]:
            f = lambda x: ad.sin(W @ x).sum() * x.sum()  # noqa: E731
            newton = x - torch.linalg.solve(ad.hessian(f, x), torch.func.grad(f)(x))
            return newton, ad.hvp(f, x, x), ad.hessian_diagonal(f, x), ad.hessian(f, x, sparsity="auto")

        x = sample(3)
        compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
        assert_close(compiled(x), step(x))


W, V = sample(4, 7), sample(7, 7).flip(0)
# Of points [batch, 4].
BATCHES: dict[str, Function] = {
    "layers": lambda x: (x @ W.to(x)).sin().mm(V.to(x)).tanh().sum(1),
    "ours": lambda x: ad.silu(ad.sin(x @ W.to(x)) @ V.to(x)) @ V[0].to(x),
    "bias": lambda x: nn.functional.linear(x, W.T.to(x), V[0].to(x)).exp().sum(-1) - 2 * x[:, 0],
    "products": lambda x: (x * x.sin() * (V[0, :4].to(x) - x) / 3).sum(1),
    "viewed": lambda x: x.view(len(x), 2, 2).exp().sum((1, 2)),
    "linear last": lambda x: x.square() @ W.to(x) @ V[0].to(x),
    "linear": lambda x: x.sum(1),
    "constant": lambda x: x.new_ones(len(x)),
    "coordinates": lambda x: x[:, 0] * x[:, 1] + (x[:, 2] - x[:, 3]).sin(),
    "residual": lambda x: ((x + x.sin()) + (x - x.cos())).square().sum(1),
    "divided": lambda x: (1 / (2 + x.square())).sum(1),
    "softmax": lambda x: x.softmax(1)[:, 0],
    "in place": lambda x: x.sin().mul_(x).sum(1),
    "stopped": lambda x: (x.detach() * x.pow(3)).sum(1),
    "without gradients": lambda x: (constant(x) * x.pow(3)).sum(1),
    "Function": lambda x: Halved.apply(x.pow(3)).sum(1),
    "transposed": lambda x: x.T.exp().sum(0),
    "points last": lambda x: x.T.contiguous().view(-1).exp().view(4, -1).sum(0),
    "rounded": lambda x: x.float().double().sin().sum(1),
}


def constant(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x.exp()


class Halved(torch.autograd.Function):
    """Has another derivative than its operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output / 2


class TestDiagonalOfABatch:
    def network(self, device: str) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 1), nn.Flatten(0)).to(device, torch.float64)

    @pytest.mark.parametrize("chunk_size", [None, 1, 3])
    def test_is_that_of_each_point(self, chunk_size: int | None, device: str) -> None:
        network, points = self.network(device), sample(5, 4, device=device)
        expected = vmap(torch.func.hessian(lambda x: network(x[None])[0]))(points).diagonal(dim1=1, dim2=2)
        result = ad.hessian_diagonal(network, points, batched=True, chunk_size=chunk_size)
        assert_close(result, expected)
        parameters = list(network.parameters())[:-1]
        assert_close(
            torch.autograd.grad(result.square().sum(), parameters),
            torch.autograd.grad(expected.square().sum(), parameters),
        )

    @pytest.mark.parametrize("name", BATCHES)
    def test_without_a_graph(self, name: str, device: str) -> None:
        f, points = BATCHES[name], sample(5, 4, device=device)
        expected = torch.stack([ad.hessian(lambda x: f(x[None])[0], x) for x in points]).diagonal(dim1=1, dim2=2)
        for chunk_size in (None, 1, 3):
            assert_close(ad.hessian_diagonal(f, points, batched=True, chunk_size=chunk_size), expected)

    def test_tangents_alone_suffice(self, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
        products = []
        original = Pullback.pull_rows
        monkeypatch.setattr(Pullback, "pull_rows", lambda *args: (products.append(1), original(*args))[1])
        points = sample(5, 4, device=device)
        for name, known in (("layers", True), ("ours", True), ("products", True), ("viewed", True), ("softmax", False)):
            products.clear()
            ad.hessian_diagonal(BATCHES[name], points, batched=True, chunk_size=3)
            assert bool(products) != known

    @pytest.mark.parametrize(
        "f",
        [
            lambda x: x.softmax(-1).sum(-1),
            lambda x: nn.functional.normalize(x).pow(2).sum(-1),
            lambda x: nn.functional.layer_norm(x, (3,)).sum(-1),
            lambda x: (x.float() @ x.float().T.detach()).pow(2).sum(-1).double(),
            lambda x: nn.functional.dropout(x).pow(3).sum(-1),
        ],
        ids=["softmax", "normalised", "layer norm", "single precision midway", "dropout"],
    )
    def test_rounding_is_no_coupling(self, f: Function, device: str) -> None:
        for points in (sample(5, 3, device=device), sample(1, 3, device=device), sample(200, 3, device=device)):
            ad.hessian_diagonal(f, points, batched=True)

    @pytest.mark.parametrize(
        "f",
        [
            lambda x: x.abs().sum(-1) ** 2,
            lambda x: (x.ravel().view(-1, 3) ** 3).sum(-1),
            lambda x: torch.autograd.grad((x**4).sum(), x, create_graph=True)[0].sum(-1),
        ],
        ids=["abs", "flattened", "a gradient"],
    )
    def test_where_tangents_fail(self, f: Function, device: str) -> None:
        points = sample(5, 3, device=device)
        H = ad.hessian(lambda x: f(x).sum(), points, strategy="reverse-over-reverse").reshape(15, 15)
        assert_close(ad.hessian_diagonal(f, points, batched=True), H.diagonal().view(5, 3))

    def test_points_of_several_dimensions(self, device: str) -> None:
        points = sample(3, 2, 2, device=device)
        result = ad.hessian_diagonal(lambda x: x.pow(3).sum((1, 2)), points, batched=True)
        assert_close(result, 6 * points)
        assert ad.hessian_diagonal(lambda x: x.sum(1), points[:0, 0], batched=True).shape == (0, 2)

    @pytest.mark.parametrize(
        "f",
        [
            lambda x: x.sum(1) * x.sum(),
            lambda x: (x - x.mean(0)).pow(3).sum(1),
            lambda x: (x * x.flip(0)).sum(1),
            lambda x: x.pow(3).sum(1) * (1 + 1e-8 * x.mean().sin()),
            lambda x: 1e9 + x.pow(3).sum(1) * (1 + 1e-5 * x.mean().sin()),
        ],
        ids=["product", "mean", "neighbour", "slightly", "beside a large constant"],
    )
    def test_coupled_rows_raise(self, f: Function, device: str) -> None:
        with pytest.raises(ValueError, match="depends on other rows"):
            ad.hessian_diagonal(f, sample(4, 3, device=device), batched=True)

    @pytest.mark.parametrize("number", [0.0, float("nan"), float("inf")])
    def test_coupled_rows_raise_beside_a_row_of_one_number(self, number: float, device: str) -> None:
        points = sample(6, 3, device=device)
        points[0] = number
        with pytest.raises(ValueError, match="depends on other rows"):
            ad.hessian_diagonal(lambda x: (x**2 * x.flip(0)).sum(1), points, batched=True)

    @pytest.mark.parametrize(
        "f",
        [
            lambda x: F.group_norm(x.view(-1, 4), 2).view_as(x).sum(-1),
            lambda x: F.layer_norm(x, (4,)).sum(-1),
            lambda x: x.softmax(-1).sum(-1).abs(),
            lambda x: torch.fft.ifft(torch.fft.fft(x, dim=0), dim=0).real.exp().sum(-1),
        ],
        ids=["group_norm", "layer_norm", "softmax", "Fourier transforms"],
    )
    def test_rounding_errors_couple_no_rows(self, f: Function, device: str) -> None:
        for batch in (1, 2, 3):
            for x in sample(200, batch, 4, device=device) @ sample(4, 4, device=device):
                ad.hessian_diagonal(f, x, batched=True)
                _self_check._paths.clear()

    @pytest.mark.parametrize("couples", [(0, 1), (4, 0), (2, 3), (1, 3)])
    def test_one_row_that_another_depends_on(self, couples: tuple[int, int], device: str) -> None:
        one, other = couples
        selected = torch.zeros(5, dtype=torch.float64, device=device)
        selected[one] = 1e-6
        with pytest.raises(ValueError, match="depends on other rows"):
            ad.hessian_diagonal(
                lambda x: (x**3).sum(1) + selected * x[other].sin().sum(), sample(5, 3, device=device), batched=True
            )


class TestMemory:
    @pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
    def test_a_large_hessian_stays_under_four_times_its_size(self) -> None:
        program = (
            "import torch, torchad_ext as ad\n"
            "torch.set_num_threads(1)\n"
            "f = lambda x: (x.sin() * x.exp()).sum() * x.sum()\n"
            "x = torch.ones(300, dtype=torch.float64); ad.hessian(f, x)\n"
            "x = torch.ones(4000, dtype=torch.float64)\n"
            "def used():  # the peak, in bytes\n"
            "    lines = open('/proc/self/status').read().splitlines()\n"
            "    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith('VmHWM'))\n"
            "before = used(); H = ad.hessian(f, x)\n"
            "print((used() - before) / (H.numel() * H.element_size()))\n"
        )
        out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        assert 0.9 <= float(out) < 4

    def test_chunks_bound_the_rows_at_once(self) -> None:
        sizes: list[int] = []

        class Recorded(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                result = func(*args, **(kwargs or {}))
                if func.overloadpacket is torch.ops.aten.mul:
                    sizes.append(result.numel())
                return result

        for chunk_size, rows in ((2, 2), (3, 3), (6, 6), (None, 6)):
            sizes.clear()
            with Recorded():
                ad.hessian(lambda x: x.sin().prod(), sample(6), chunk_size)
            assert max(sizes) == rows * 6


class Cubed(torch.autograd.Function):
    """x^3 with a backward that is differentiable."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * grad_output


class CubedOnce(Cubed):
    backward = staticmethod(once_differentiable(Cubed.backward))


class CubedWithoutGraph(Cubed):
    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return Cubed.backward(ctx, grad_output).detach()


class TestErrors:
    SCALAR = (
        ad.hessian,
        ad.hessian_diagonal,
        functools.partial(ad.hvp, v=sample(3)),
        functools.partial(ad.vhp, v=sample(3)),
    )

    @pytest.mark.parametrize("call", SCALAR, ids=["hessian", "hessian_diagonal", "hvp", "vhp"])
    def test_a_value_with_dimensions(self, call: Callable[..., Any]) -> None:
        with pytest.raises(ValueError, match=r"without dimensions; got shape \[3\]\. Sum it, or .* torch\.func\.vmap"):
            call(torch.sin, sample(3))

    def test_a_value_that_is_no_floating_point_tensor(self) -> None:
        with pytest.raises(TypeError, match="takes tensors for the value of f; got float"):
            ad.hessian(lambda x: 1.0, sample(3))
        with pytest.raises(TypeError, match=r"for the value of f; got torch\.int64"):
            ad.jacobian(lambda x: x.argmax(), sample(3))

    @pytest.mark.parametrize(
        "call", [*SCALAR, ad.jacobian], ids=["hessian", "hessian_diagonal", "hvp", "vhp", "jacobian"]
    )
    def test_x(self, call: Callable[..., Any]) -> None:
        with pytest.raises(TypeError, match=r"floating-point tensors for x; got torch.int64, see x.double\(\)"):
            call(energy, torch.arange(3))
        with pytest.raises(TypeError, match=r"got torch\.complex64, see torch\.view_as_real"):
            call(energy, torch.zeros(3, dtype=torch.complex64))
        with pytest.raises(TypeError, match="takes tensors for x; got float"):
            call(energy, (sample(3), 1.0))
        module = torch.nn.Linear(2, 1)
        for holder in (module, torch.nn.ParameterDict({"w": sample(3)})):
            with pytest.raises(TypeError, match=r"dict\(module.named_parameters\(\)\), and torch.func.functional_call"):
                call(energy, holder)
        with pytest.raises(TypeError, match=r"got generator; write list\(x\)"):
            call(energy, module.parameters())
        with pytest.raises(TypeError, match=r"a tensor or a pytree of tensors for x; got \(\)"):
            call(energy, ())

    @pytest.mark.parametrize("product", [ad.hvp, ad.vhp], ids=lambda f: f.__name__)
    def test_v(self, product: Callable[..., Any]) -> None:
        with pytest.raises(
            ValueError, match=r"takes v of the shape.* \[3\] torch.float64 cpu; got \[4\] torch.float64"
        ):
            product(energy, sample(3), sample(4))
        with pytest.raises(ValueError, match=r"\[3\] torch.float64 cpu; got \[3\] torch.float32"):
            product(energy, sample(3), sample(3).float())
        with pytest.raises(ValueError, match=r"takes v of the structure of x, a tensor; got TreeSpec\(tuple"):
            product(energy, sample(3), (sample(3),))

    @pytest.mark.parametrize("options", [{}, {"chunk_size": 1}, {"sparsity": "auto"}], ids=str)
    @pytest.mark.parametrize("function", [CubedOnce, CubedWithoutGraph], ids=lambda f: f.__name__)
    def test_a_function_that_is_differentiable_once(self, function: Any, options: dict[str, Any]) -> None:
        x = sample(3)
        assert_close(ad.hessian(lambda x: Cubed.apply(x).sum() + x.square().sum(), x, **options), torch.diag(6 * x + 2))
        with pytest.raises(RuntimeError, match=r"torchad_ext\.hessian: f is not differentiable often enough"):
            ad.hessian(lambda x: function.apply(x).sum() + x.square().sum(), x, **options)

    def test_attention_without_a_second_derivative(self) -> None:
        x = sample(1, 1, 3, 4)
        f = lambda x: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(x, x, x)[0].sum()  # noqa: E731
        with pytest.raises(RuntimeError, match=r"not differentiable often enough.*sdpa_kernel\(.*MATH"):
            ad.hessian(f, x)

    def test_a_derivative_that_vmap_does_not_batch(self) -> None:
        class Branching(Cubed):
            @staticmethod
            def backward(ctx: Any, grad_output: Tensor) -> Tensor:
                (x,) = ctx.saved_tensors
                return 3 * x**2 * grad_output if grad_output.sum() else torch.zeros_like(x)

        f = lambda x: (Branching.apply(x) * x).sum()  # noqa: E731
        for n in (10, 300):
            with pytest.raises(RuntimeError, match="give chunk_size=1"):
                ad.hessian(f, sample(n))
            assert_close(ad.hessian(f, sample(n), chunk_size=1), torch.diag(12 * sample(n) ** 2))
        for n in (1, 2, 3):  # few rows are computed one by one then
            assert_close(ad.hessian(f, sample(n)), torch.diag(12 * sample(n) ** 2))
            assert_close(ad.hessian_diagonal(f, sample(n)), 12 * sample(n) ** 2)

    def test_options(self) -> None:
        x = sample(3)
        with pytest.raises(ValueError, match="got strategy='reverse'; choose one of 'reverse-over-reverse', 'forward-"):
            ad.hessian(energy, x, strategy="reverse")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="got strategy='both'; choose one of 'reverse', 'forward'"):
            ad.jacobian(torch.sin, x, strategy="both")
        assert_close(ad.hessian(energy, x, chunk_size=np.int64(2)), ad.hessian(energy, x))  # type: ignore[arg-type]
        for chunk_size in (0, -1, 2.0, True):
            with pytest.raises(ValueError, match=r"got chunk_size=.*; give a positive int, or None"):
                ad.hessian(energy, x, chunk_size=chunk_size)  # type: ignore[arg-type]
        with pytest.raises(
            ValueError, match=r"takes f with a value for each of the 3 points in x \[3, 2\].*got shape \[\]"
        ):
            ad.hessian_diagonal(energy, sample(3, 2), batched=True)
        with pytest.raises(ValueError, match="batched=True takes one tensor for x; got a pytree"):
            ad.hessian_diagonal(energy, (x,), batched=True)


@pytest.mark.parametrize("chunk_size", [1, 3, None])
def test_progress(chunk_size: int | None, capfd: pytest.CaptureFixture[str]) -> None:
    assert_close(ad.hessian(energy, sample(4), chunk_size, progress=True), ad.hessian(energy, sample(4)))
    out, err = capfd.readouterr()
    assert "hessian" in out + err
    assert "100%" in out + err
