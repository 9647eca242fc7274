"""Sparse tensors made in f of values that depend on x: as with index_put, which PyTorch differentiates twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import torchad_ext as ad

D = torch.float64
PLACES = torch.tensor([[0, 2, 0, 1, 2], [1, 0, 1, 2, 2]])  # the first stands twice
X, V = torch.linspace(-0.8, 1.1, 5, dtype=D), torch.linspace(1, -1, 5, dtype=D)

# Of a matrix [3, 3] and x.
USES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a product with a constant": lambda S, x: S @ torch.ones(3, 2, dtype=D),
    "a product with a vector": lambda S, x: S @ x[:3],
    "torch.sparse.mm": lambda S, x: (
        torch.sparse.mm(S, x[:3].view(3, 1)) if S.layout is not torch.strided else S @ x[:3]
    ),
    "a transposed one": lambda S, x: S.t() @ x[:3].view(3, 1),
    "to_dense": lambda S, x: S.to_dense() if S.layout is not torch.strided else S,
    "values": lambda S, x: S.coalesce().values() if S.layout is not torch.strided else S,
    "a sum": lambda S, x: torch.sparse.sum(S) if S.layout is not torch.strided else S.sum(),
    "a multiple": lambda S, x: (2 * S).to_dense() if S.layout is not torch.strided else 2 * S,
}


def energy(use: Callable[[Tensor, Tensor], Tensor], is_sparse: bool) -> Callable[[Tensor], Tensor]:
    def f(x: Tensor) -> Tensor:
        if is_sparse:
            S = torch.sparse_coo_tensor(PLACES, x.exp(), (3, 3))
        else:
            S = torch.zeros(3, 3, dtype=D).index_put(tuple(PLACES), x.exp(), accumulate=True)
        return use(S, x).pow(3).sum()

    return f


@pytest.mark.parametrize("name", USES)
def test_second_derivatives_have_all_terms(name: str) -> None:
    sparse, dense = (energy(USES[name], is_sparse) for is_sparse in (True, False))
    H = torch.func.hessian(dense)(X)
    assert_close(ad.hvp(sparse, X, V), H @ V)
    assert_close(ad.hessian(sparse, X), H)
    assert_close(ad.hessian(sparse, X, sparsity="auto", layout=torch.sparse_coo).to_dense(), H)
    assert_close(ad.hessian_diagonal(sparse, X), H.diagonal())


def test_without_a_size_and_with_options() -> None:
    def f(x: Tensor) -> Tensor:
        S = torch.sparse_coo_tensor(PLACES.tolist(), x.float(), dtype=D, check_invariants=True)
        return (S @ torch.ones(3, dtype=D)).pow(3).sum()

    g = energy(lambda S, x: S @ torch.ones(3, dtype=D), is_sparse=False)
    assert_close(ad.hvp(f, X.exp(), V).double(), ad.hvp(lambda x: g(x.log()), X.exp(), V), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:torchad_ext.laplacian cannot follow")
def test_in_a_laplacian() -> None:
    """A matrix with a row for each point."""
    x = X[:4].view(2, 2)
    rows = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]])

    def f(x: Tensor) -> Tensor:
        return (torch.sparse_coo_tensor(rows, x.exp().flatten(), (2, 2)) @ torch.ones(2, dtype=D)).square()

    assert_close(ad.laplacian(f, x), ad.laplacian(lambda x: x.exp().sum(-1).square(), x))
