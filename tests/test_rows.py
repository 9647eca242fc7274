"""The catalogue of row ops against PyTorch's functions, textbook formulas and finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.func import hessian
from torch.testing import assert_close

import torchad_ext as ad
from torchad_ext.rows import ROW_CATALOGUE

NATIVE: dict[str, Callable[..., torch.Tensor]] = {
    "softmax": torch.softmax,
    "log_softmax": torch.log_softmax,
    "logsumexp": torch.logsumexp,
    "vector_norm": lambda x, dim, **options: torch.linalg.vector_norm(x, 2, dim, **options),
    "normalize": lambda x, dim: F.normalize(x, dim=dim),
}
CALLS: dict[str, Callable[..., torch.Tensor]] = {
    "vector_norm": lambda x, dim, **options: ad.vector_norm(x, 2, dim, **options),
    "normalize": lambda x, dim: ad.normalize(x, dim=dim),
}


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("dim", [-1, 2, 1, 0, -3])
def test_along_any_dimension(name: str, dim: int) -> None:
    op, x = CALLS.get(name, getattr(ad, name)), normal(2, 3, 4)
    assert_close(op(x, dim), NATIVE[name](x, dim))


@pytest.mark.parametrize("name", ["logsumexp", "vector_norm"])
@pytest.mark.parametrize("dim", [-1, 0])
def test_keepdim(name: str, dim: int) -> None:
    op, x = CALLS.get(name, getattr(ad, name)), normal(2, 3)
    assert_close(op(x, dim, keepdim=True), NATIVE[name](x, dim, keepdim=True))


def test_options_of_pytorch() -> None:
    x, y = normal(2, 3, 4), normal(4)
    assert_close(ad.vector_norm(x), torch.linalg.vector_norm(x))
    for order in (1, 2, 3, float("inf")):
        assert_close(ad.vector_norm(x, order, -1), torch.linalg.vector_norm(x, order, -1))
        assert_close(ad.normalize(x, order), F.normalize(x, order))
    assert_close(ad.cosine_similarity(x, y, dim=-1), F.cosine_similarity(x, y, dim=-1))
    assert_close(ad.cosine_similarity(x, x + 1), F.cosine_similarity(x, x + 1))
    assert_close(ad.softmax(x.float(), -1, dtype=torch.float64), torch.softmax(x.float(), -1, dtype=torch.float64))
    assert_close(ad.distance(x, y), torch.linalg.vector_norm(x - y, dim=-1))


@pytest.mark.parametrize("shape", [(4,), (3, 4)])
def test_normalisations(shape: tuple[int, ...]) -> None:
    x, weight, bias = normal(2, 3, 4), normal(*shape), normal(*shape).sin()
    assert_close(ad.layer_norm(x, shape), F.layer_norm(x, shape))
    assert_close(ad.layer_norm(x, shape, weight, bias, 1e-3), F.layer_norm(x, shape, weight, bias, 1e-3))
    assert_close(ad.layer_norm(x, shape, bias=bias), F.layer_norm(x, shape, bias=bias))
    assert_close(ad.rms_norm(x, shape, weight), F.rms_norm(x, shape, weight))
    assert_close(ad.rms_norm(x.float(), shape), F.rms_norm(x.float(), shape))


def test_a_wrong_normalized_shape() -> None:
    with pytest.raises(RuntimeError, match=r"expected input with shape \[\*, 5\]"):
        ad.layer_norm(normal(2, 4), (5,))


@pytest.mark.parametrize("name", [*NATIVE, "cosine_similarity", "distance", "layer_norm", "rms_norm"])
def test_verified(name: str) -> None:
    assert ad.verify(ROW_CATALOGUE[name], dtypes=torch.float64, quiet=True).passed


def test_verified_in_float32() -> None:
    assert ad.verify(ad.layer_norm, dtypes=torch.float32, quiet=True).passed


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_orders_up_to_3_are_pytorchs(name: str) -> None:
    x = normal(2, 5)

    def third(f: Any) -> torch.Tensor:
        return torch.func.jacrev(hessian(lambda x: f(x, -1).pow(3).sum()))(x)

    assert_close(third(getattr(ad, name)), third(NATIVE[name]))


def test_third_derivative_of_layer_norm() -> None:
    """PyTorch's own is wrong in the fourth digit."""
    x, v, w = normal(3, 5), normal(3, 5).sin(), normal(3, 5).cos()

    def second(x: torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(ad.layer_norm(x, (5,)).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad((g * v).sum(), x, create_graph=True)[0]

    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(ad.layer_norm(leaf, (5,)).pow(3).sum(), leaf, create_graph=True)
    (h,) = torch.autograd.grad((g * v).sum(), leaf, create_graph=True)
    (third,) = torch.autograd.grad((h * w).sum(), leaf)
    step = 1e-4
    differences = (
        8 * (second(x + step * w) - second(x - step * w)) - second(x + 2 * step * w) + second(x - 2 * step * w)
    ) / (12 * step)
    assert_close(third, differences.detach(), rtol=1e-7, atol=1e-8)


AT_ZERO: dict[str, tuple[Callable[..., torch.Tensor], float]] = {
    "vector_norm": (lambda x: ad.vector_norm(x, dim=-1), 0.0),
    "distance": (lambda x: ad.distance(x, torch.zeros_like(x)), 0.0),
    "normalize": (lambda x: ad.normalize(x, dim=-1, eps=0.5), 2.0),
}


@pytest.mark.parametrize("name", AT_ZERO)
@pytest.mark.parametrize("length", [3, 20])
def test_derivatives_at_zero(name: str, length: int) -> None:
    f, slope = AT_ZERO[name]
    x = torch.zeros(2, length, dtype=torch.float64)
    x[1] = torch.linspace(1, 2, length)
    x.requires_grad_()
    y = f(x).sum()
    for order in range(1, 5):
        (g,) = torch.autograd.grad(y, x, create_graph=True)
        assert g.isfinite().all()
        assert_close(g[0], torch.full_like(g[0], slope if order == 1 else 0.0))
        y = (g * torch.linspace(1, 2, length, dtype=torch.float64)).sum()
        if not y.requires_grad:
            break


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
@pytest.mark.parametrize("length", [3, 24])
def test_rows_of_nan_and_infinities_are_natives(name: str, length: int) -> None:
    inf, nan = float("inf"), float("nan")
    x = torch.zeros(6, length)
    x[0], x[1, 0], x[2, 1], x[3, 2], x[4] = -inf, -inf, inf, nan, 1e38
    assert_close(getattr(ad, name)(x, -1), NATIVE[name](x, -1), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype: torch.dtype) -> None:
    x = normal(3, 40).to(dtype)
    assert_close(ad.softmax(x, -1), torch.softmax(x.float(), -1).to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_compiles() -> None:
    x = normal(3, 4)
    f = torch.compile(lambda x: ad.softmax(x, 0) + ad.layer_norm(x, (4,)), backend="eager", fullgraph=True)
    assert_close(f(x), torch.softmax(x, 0) + F.layer_norm(x, (4,)))


@pytest.mark.parametrize("name", ROW_CATALOGUE)
def test_documented(name: str) -> None:
    op = ROW_CATALOGUE[name]
    assert op.__doc__ and "Args:" in op.__doc__
    assert getattr(ad, name) is op
