"""Row ops in the sweeps of ``laplacian`` and ``partials``: one kernel a call, against nested autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from selection import few
from torch.func import grad, hessian
from torch.testing import assert_close

import torchad_ext as ad


@ad.rowwise
def pair(x, weight, scale, eps=1e-3):  # type: ignore[no-untyped-def]
    """Operands and results of every kind."""
    norm = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * scale
    return x * norm * weight, (x * weight).amax(-1, keepdim=True) * norm, (weight * norm).sin().sum(-1)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


WEIGHT, MIXING = normal(5), normal(3, 5)
OPS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": lambda y: ad.softmax(y).square().sum(-1),
    "softmax along another dimension": lambda y: (ad.softmax(y.unsqueeze(-1) * WEIGHT, -2) * WEIGHT).sum((-1, -2)),
    "log_softmax": lambda y: (ad.log_softmax(y) * WEIGHT).sum(-1),
    "logsumexp": lambda y: ad.logsumexp(y, -1),
    "layer_norm": lambda y: ad.layer_norm(y, (5,), WEIGHT, WEIGHT).sin().sum(-1),
    "layer_norm with weights that vary": lambda y: ad.layer_norm(y, (5,)).mul(y).sum(-1),
    "rms_norm": lambda y: ad.rms_norm(y, (5,), WEIGHT).sin().sum(-1),
    "vector_norm": lambda y: ad.vector_norm(y, dim=-1),
    "normalize": lambda y: ad.normalize(y, dim=-1).sin().sum(-1),
    "cosine_similarity": lambda y: ad.cosine_similarity(y, y.cos(), dim=-1),
    "distance": lambda y: ad.distance(y, WEIGHT),
    "all kinds": lambda y: sum(
        part.sum(-1) if part.dim() == y.dim() else part for part in pair(y, y.sin(), y.mean(-1, keepdim=True))
    ),
}

FEW = ("softmax", "vector_norm")


def function(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Points ``[..., 3]`` to numbers ``[...]``."""
    return lambda x: OPS[name]((x @ MIXING).sin() + x.sum(-1, keepdim=True))


def of_each(f: Callable[[torch.Tensor], Any], points: torch.Tensor) -> torch.Tensor:
    return torch.stack([f(point) for point in points])


@pytest.mark.parametrize("name", few(OPS, FEW.__contains__))
def test_laplacian(name: str) -> None:
    f, points = function(name), normal(4, 3)
    expected = of_each(lambda p: hessian(lambda q: f(q[None])[0])(p).trace(), points)
    assert_close(ad.laplacian(f, points), expected)


@pytest.mark.usefixtures("kernels_when_long")
def test_more_directions_than_a_kernel_takes() -> None:
    points = normal(2, 11)

    def f(x: torch.Tensor) -> torch.Tensor:
        return ad.softmax(x.sin()).square().sum(-1)

    assert_close(ad.laplacian(f, points), of_each(lambda p: hessian(lambda q: f(q[None])[0])(p).trace(), points))


@pytest.mark.usefixtures("kernels_when_long")
@pytest.mark.parametrize("name", few(OPS, FEW.__contains__))
def test_partials(name: str) -> None:
    f, points = function(name), normal(4, 3)

    def mixed(p: torch.Tensor) -> torch.Tensor:
        def along(g: Any, i: int) -> Any:
            return lambda q: grad(g)(q)[i]

        def value(q: torch.Tensor) -> torch.Tensor:
            return f(q[None])[0]

        return torch.stack([along(along(value, 0), 1)(p), along(along(along(value, 2), 2), 0)(p)])

    mine = torch.stack(ad.partials(f, points, ["xy", "xzz"], names="xyz"), -1)
    assert_close(mine, of_each(mixed, points))


@pytest.mark.usefixtures("kernels_when_long")
def test_laplacians_are_differentiable() -> None:
    weight = WEIGHT.clone().requires_grad_()
    points = normal(4, 3)

    def loss(weight: torch.Tensor, op: Any) -> torch.Tensor:
        return ad.laplacian(lambda x: op((x @ MIXING).sin(), weight), points).square().sum()

    def mine(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return ad.layer_norm(x, (5,), weight).sin().sum(-1)

    def reference(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return ad.layer_norm.definition(x, (5,), weight).sin().sum(-1)

    results = [torch.autograd.grad(loss(weight, f), weight)[0] for f in (mine, reference)]
    assert_close(*results)


@pytest.mark.usefixtures("kernels_when_long")
def test_a_wave_operator() -> None:
    f, points = function("layer_norm"), normal(4, 3)
    signs = torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64))
    expected = of_each(lambda p: (hessian(lambda q: f(q[None])[0])(p) * signs).sum(), points)
    assert_close(ad.laplacian(f, points, signs), expected)


@ad.rowwise
def attention_weights(scores, mask, scale=1.0):  # type: ignore[no-untyped-def]
    return torch.softmax(scores * scale + mask, -1)


@pytest.mark.usefixtures("kernels_when_long")
def test_laplacian_of_attention() -> None:
    mixing = normal(3, 20)
    causal = torch.full((4, 4), float("-inf"), dtype=torch.float64).triu(1)

    def f(x: torch.Tensor) -> torch.Tensor:
        q = (x @ mixing).sin().reshape(-1, 4, 5)
        return (attention_weights(q @ q.cos().mT, causal, 5**-0.5) @ q).square().sum((-1, -2))

    points = normal(4, 3)
    expected = of_each(lambda p: hessian(lambda x: f(x[None])[0])(p).trace(), points)
    assert_close(ad.laplacian(f, points), expected)


def test_a_kernel_that_would_be_too_long_is_composed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchad_ext._forward.jets._LONGEST", 10)
    f, points = function("vector_norm"), normal(4, 3)
    (mine,) = ad.partials(f, points, ["xx"], names="xyz")
    assert_close(mine, of_each(lambda p: hessian(lambda q: f(q[None])[0])(p)[0, 0], points))


def test_one_kernel_a_call(row_kernels: list[str]) -> None:
    ad.laplacian(function("log_softmax"), normal(4, 3))
    assert row_kernels == ["log_softmax_laplacian"]
