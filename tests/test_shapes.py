"""Shapes and dtypes of the public functions, as signatures that a runtime type checker holds."""

# Shapes stand where ruff and mypy expect types.
# ruff: noqa: F722, F821, UP037

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from beartype import beartype
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Bool, Float, Float32, Float64, TypeCheckError, jaxtyped
from torch import Tensor, nn

import torchad_ext as ad

pytestmark = pytest.mark.usefixtures("kernels_when_long")

checked = jaxtyped(typechecker=beartype)
few = settings(deadline=None, max_examples=10)
sizes = st.integers(1, 4)
batches = st.lists(sizes, max_size=2).map(tuple)
dimensions = st.sampled_from([1, 3])  # a kernel of a sweep each


def total(x: Tensor) -> Tensor:
    return ad.sin(x).prod(-1).sum() + x.square().sum()


def network(x: Tensor) -> Tensor:
    """Points [..., d] to [..., 2]."""
    return torch.stack([ad.sin(x).prod(-1), ad.exp(-x.square().sum(-1))], -1)


class TestProducts:
    @few
    @given(n=sizes)
    def test_hessians(self, n: int) -> None:
        @checked
        def hessian(x: Float[Tensor, "n"]) -> Float[Tensor, "n n"]:
            return ad.hessian(total, x)

        @checked
        def diagonal(x: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
            return ad.hessian_diagonal(total, x)

        @checked
        def pattern(x: Float[Tensor, "n"]) -> Bool[Tensor, "n n"]:
            return ad.hessian_sparsity(total, x).to_dense()

        for of in (hessian, diagonal, pattern):
            of(torch.rand(n))

    @few
    @given(shape=batches)
    def test_of_a_tensor_of_any_shape(self, shape: tuple[int, ...]) -> None:
        @checked
        def product(x: Float64[Tensor, "*shape"], v: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
            value, product = ad.hvp(lambda x: total(x.reshape(-1)), x, v), ad.vhp(lambda x: total(x.reshape(-1)), x, v)
            assert value.shape == product.shape
            return product

        @checked
        def hessian(x: Float32[Tensor, "*shape"]) -> Float32[Tensor, "*shape *shape"]:
            return ad.hessian(lambda x: total(x.reshape(-1)), x)

        product(torch.rand(shape).double(), torch.rand(shape).double())
        hessian(torch.rand(shape))

    @few
    @given(m=sizes, n=sizes)
    def test_jacobians(self, m: int, n: int) -> None:
        A = torch.rand(m, n)

        @checked
        def jacobian(x: Float[Tensor, "n"], y: Float[Tensor, "m"]) -> Float[Tensor, "m n"]:
            return ad.jacobian(lambda x: torch.sin(A @ x), x)

        jacobian(torch.rand(n), torch.rand(m))

    @few
    @given(points=sizes, d=sizes)
    def test_the_diagonals_of_a_batch(self, points: int, d: int) -> None:
        @checked
        def diagonals(x: Float[Tensor, "points d"]) -> Float[Tensor, "points d"]:
            return ad.hessian_diagonal(lambda x: ad.sin(x).prod(-1), x, batched=True)

        diagonals(torch.rand(points, d))


class TestSweeps:
    @few
    @given(batch=batches, d=dimensions)
    def test_laplacians(self, batch: tuple[int, ...], d: int) -> None:
        @checked
        def laplacian(x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch 2"]:
            return ad.laplacian(network, x)

        @checked
        def bilaplacian(x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch 2"]:
            return ad.bilaplacian(network, x)

        @checked
        def jacobian(x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch 2 d"]:
            return ad.forward_laplacian(network, x).jacobian

        for of in (laplacian, bilaplacian, jacobian):
            of(torch.rand(*batch, d))

    @few
    @given(batch=batches)
    def test_partial_derivatives(self, batch: tuple[int, ...]) -> None:
        @checked
        def partials(x: Float[Tensor, "*batch 2"]) -> tuple[Float[Tensor, "*batch 2"], Float[Tensor, "*batch 2"]]:
            u_t, terms = ad.partials(network, x, ["t", ad.Sum("tt", "xx")], names="tx")
            return u_t, terms

        partials(torch.rand(*batch, 2))

    @few
    @given(batch=batches, d=dimensions)
    def test_coefficients_along_a_line(self, batch: tuple[int, ...], d: int) -> None:
        @checked
        def taylor(x: Float[Tensor, "*batch d"], v: Float[Tensor, "*batch d"]) -> tuple[Float[Tensor, "*batch 2"], ...]:
            return ad.taylor(network, x, v, 3)

        assert len(taylor(torch.rand(*batch, d), torch.rand(*batch, d))) == 4


class TestOps:
    @few
    @given(batch=batches, n=sizes)
    def test_quadratic_forms(self, batch: tuple[int, ...], n: int) -> None:
        @checked
        def shared(x: Float[Tensor, "*batch n"], A: Float[Tensor, "n n"]) -> Float[Tensor, "*batch"]:
            return ad.quadratic_form(x, A)

        @checked
        def each(x: Float[Tensor, "*batch n"], A: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
            return ad.quadratic_form(x, A)

        shared(torch.rand(*batch, n), torch.rand(n, n))
        each(torch.rand(*batch, n), torch.rand(*batch, n, n))

    @few
    @given(batch=batches, n=sizes)
    def test_of_rows(self, batch: tuple[int, ...], n: int) -> None:
        @checked
        def softmax(x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
            return ad.softmax(x, -1)

        @checked
        def norm(x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
            return ad.vector_norm(x, dim=-1)

        @checked
        def kept(x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch 1"]:
            return ad.logsumexp(x, -1, keepdim=True)

        @checked
        def distance(x: Float[Tensor, "*batch n"], y: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
            return ad.distance(x, y)

        x = torch.rand(*batch, n)
        for of in (softmax, norm, kept):
            of(x)
        distance(x, x + 1)

    @few
    @given(batch=batches, of=st.sampled_from([ad.sin, ad.exp, ad.silu, ad.nn.SiLU(), ad.nn.Sin()]))
    def test_of_elements(self, batch: tuple[int, ...], of: Callable[[Any], Any]) -> None:
        @checked
        def op(x: Float64[Tensor, "*batch"]) -> Float64[Tensor, "*batch"]:
            return of(x)

        op(torch.rand(batch, dtype=torch.float64))

    @few
    @given(batch=batches, n=sizes, m=sizes)
    def test_networks(self, batch: tuple[int, ...], n: int, m: int) -> None:
        net: nn.Module = ad.nn.Siren(n, 8, 1, m)

        @checked
        def siren(x: Float[Tensor, "*batch n"], like: Float[Tensor, "m"]) -> Float[Tensor, "*batch m"]:
            return net(x)

        siren(torch.rand(*batch, n), torch.rand(m))


def test_a_wrong_shape_does_not_pass() -> None:
    @checked
    def hessian(x: Float[Tensor, "n"]) -> Float[Tensor, "n n"]:
        return ad.hessian_diagonal(total, x)

    with pytest.raises(TypeCheckError):
        hessian(torch.rand(3))
