"""Products with a sparse matrix that is a constant, in every tool: as with the same matrix dense."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import torchad_ext as ad
from torchad_ext._symbolic.torch_names import name_of

D = torch.float64
DENSE = torch.tensor([[0.0, 1.5, 0, 0], [0, 0, -0.5, 0], [2, 0, 0, 0.25], [0, 0, 0, 0], [0, 1, 0, -1]], dtype=D)
X = torch.linspace(-1.2, 1.7, 4 * 3, dtype=D).view(4, 3)
Y = torch.linspace(0.3, -0.8, 5 * 3, dtype=D).view(5, 3)

# S is [5, 4], x [4, 3].
SPELLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "S @ x": lambda S, x: S @ x,
    "torch.matmul(S, x)": torch.matmul,
    "torch.dsmm(S, x)": torch.dsmm,
    "torch.spmm(S, x)": torch.spmm,
    "torch.mm(S, x)": torch.mm,
    "S.mm(x)": lambda S, x: S.mm(x),
    "torch.sparse.mm(S, x)": lambda S, x: torch.sparse.mm(S, x) if S.layout is not torch.strided else S @ x,
    "dense @ S": lambda S, x: (Y @ x.T).T @ S,
    "vector @ S": lambda S, x: (Y @ x[0]) @ S,
    "S @ vector": lambda S, x: S @ x[:, 0],
    "torch.mv": lambda S, x: torch.mv(S, x[:, 1]),
    "torch.addmm": lambda S, x: torch.addmm(Y, S, x, beta=0.5, alpha=-2),
    "torch.addmm of both": lambda S, x: torch.addmm(x[:1], S, x),
    "torch.addmv": lambda S, x: torch.addmv(Y[:, 0], S, x[:, 0]),
    "x.addmm_": lambda S, x: (x[:1] * Y).addmm_(S, x),
}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "coo": lambda S: S.to_sparse(),
    "coo, not coalesced": lambda S: torch.sparse_coo_tensor(
        torch.cat([S.to_sparse().indices()] * 2, 1), torch.cat([S.to_sparse().values() / 2] * 2), S.shape
    ),
    "csr": lambda S: S.to_sparse_csr(),
    "csc": lambda S: S.to_sparse_csc(),
}


def tools(f: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """What each tool makes of a function of a matrix ``[4, 3]`` to a tensor, at X."""

    def value(x: Tensor) -> Tensor:
        return f(x.view(4, 3).sin()).pow(3).sum()

    x = X.flatten()
    v = torch.linspace(1, -1, x.numel(), dtype=D)
    return {
        "jacobian": ad.jacobian(f, X),
        "jacobian, forward": ad.jacobian(f, X, strategy="forward"),
        "hvp": ad.hvp(value, x, v),
        "hessian": ad.hessian(value, x),
        "hessian, row by row": ad.hessian(value, x, chunk_size=1),
        "hessian, forward over reverse": ad.hessian(value, x, strategy="forward-over-reverse"),
        "hessian, sparse": ad.hessian(value, x, sparsity="auto", layout=torch.sparse_coo).to_dense(),
        "hessian_diagonal": ad.hessian_diagonal(value, x),
        "third": ad.jacobian(lambda x: ad.hessian(value, x), x),
    }


@pytest.mark.filterwarnings("ignore:Sparse C")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_each_tool_takes_them(spelling: str, layout: str) -> None:
    product, S = SPELLINGS[spelling], LAYOUTS[layout](DENSE)
    try:
        product(S, X)
    except RuntimeError:
        pytest.skip("PyTorch has no such product")
    found, expected = (tools(lambda x, S=S: product(S, x)) for S in (S, DENSE))
    for tool in expected:
        assert_close(found[tool], expected[tool], msg=lambda text, tool=tool: f"{tool}: {text}")


def test_functions_that_are_equal_have_one_name() -> None:
    """A cache cannot tell them apart."""
    functions = (getattr(space, name) for space in (torch, torch.Tensor, torch.sparse) for name in dir(space))
    known: dict[Any, str] = {}
    for function in functions:
        if isinstance(function, (types.BuiltinFunctionType, types.MethodDescriptorType)):
            assert known.setdefault(function, name_of(function)) == name_of(function)


def test_of_many_matrices() -> None:
    S = torch.stack([DENSE, DENSE.flip(0)])
    sparse = S.to_sparse()
    found, expected = (tools(lambda x, S=S: torch.bmm(S, torch.stack([x, x.cos()]))) for S in (sparse, S))
    for tool in expected:
        assert_close(found[tool], expected[tool], msg=lambda text, tool=tool: f"{tool}: {text}")


@pytest.mark.filterwarnings("ignore:Sparse C")
@pytest.mark.parametrize("layout", ["coo", "csr"])
@pytest.mark.parametrize("spelling", ["S @ x", "torch.sparse.mm(S, x)", "torch.addmm of both"])
@pytest.mark.filterwarnings("error:torchad_ext.laplacian")
def test_the_sweep_has_rules_for_them(spelling: str, layout: str) -> None:
    """Three points, which are columns for the matrix."""
    product, S = SPELLINGS[spelling], LAYOUTS[layout](DENSE)
    found, expected = (
        ad.laplacian(lambda x, S=S: product(S, x.mT.sin()).mT.pow(3).sum(-1), X.mT.contiguous()) for S in (S, DENSE)
    )
    assert_close(found, expected)


def test_a_matrix_may_be_transposed_in_the_function() -> None:
    found, expected = (tools(lambda x, S=S: x.T @ S.t()) for S in (DENSE.to_sparse(), DENSE))
    for tool in expected:
        assert_close(found[tool], expected[tool], msg=lambda text, tool=tool: f"{tool}: {text}")


def test_a_matrix_that_has_a_gradient_is_left_to_pytorch() -> None:
    """Its values are differentiated as well."""
    values = DENSE.to_sparse().values().requires_grad_()
    S = torch.sparse_coo_tensor(DENSE.to_sparse().indices(), values, DENSE.shape)
    product = ad.hvp(lambda x: (S @ x).pow(3).sum(), X, torch.ones_like(X))
    (found,) = torch.autograd.grad(product.sum(), values)
    dense = DENSE.clone().requires_grad_()
    (expected,) = torch.autograd.grad(ad.hvp(lambda x: (dense @ x).pow(3).sum(), X, torch.ones_like(X)).sum(), dense)
    assert_close(found, expected[DENSE != 0])


def test_in_transforms() -> None:
    """A tool within ``torch.func.vmap``, and one of a function that maps."""
    S, points = DENSE.to_sparse(), torch.stack([X, X.cos(), X.exp()])

    def energy(S: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda x: (S @ x.sin()).pow(3).sum()

    found, expected = (torch.func.vmap(lambda x, S=S: ad.hessian(energy(S), x))(points) for S in (S, DENSE))
    assert_close(found, expected)
    found, expected = (ad.hessian(lambda x, S=S: torch.func.vmap(energy(S))(x).sum(), points) for S in (S, DENSE))
    assert_close(found, expected)
