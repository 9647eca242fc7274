"""Derivatives of functions of matrices in every order of forward and reverse mode, against differences."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.func import jacfwd, jacrev
from torch.testing import assert_close

import torchad_ext as ad
from torchad_ext._forward.correction_mode import with_corrections

D = torch.float64
A0, A1, A2 = torch.randn(3, 4, 4, dtype=D, generator=torch.Generator().manual_seed(0))
I = torch.eye(4, dtype=D)  # noqa: E741


def positive(A: Tensor) -> Tensor:
    return A @ A.mT + I


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "solve": lambda A: torch.linalg.solve(A, A1).sum(),
    "solve from the right": lambda A: torch.linalg.solve(A, A1, left=False).square().sum(),
    "solve of a vector": lambda A: torch.linalg.solve(A, A[0]).sin().sum(),
    "solve of a batch": lambda A: torch.linalg.solve(torch.stack([A, A.mT]), A1).sum(),
    "solve_ex": lambda A: torch.linalg.solve_ex(A, A1, left=False).result.sum(),
    "slogdet": lambda A: torch.linalg.slogdet(A)[1],
    "logdet": lambda A: torch.logdet(positive(A)),
    "det": torch.linalg.det,
    "det of a small matrix": lambda A: torch.linalg.det(1e-6 * A) * 1e24,
    "complex det": lambda A: torch.linalg.det(torch.complex(A, A1)).abs(),
    "complex slogdet": lambda A: torch.linalg.slogdet(torch.complex(A, A1))[0].real,
    "tensorsolve": lambda A: torch.linalg.tensorsolve(A.reshape(2, 2, 2, 2), A1[:2, :2]).sum(),
    "tensorsolve of moved dimensions": lambda A: torch.linalg.tensorsolve(
        A.reshape(2, 2, 2, 2), A1[:2, :2], dims=(0, 2)
    ).sum(),
    "cholesky_inverse": lambda A: torch.cholesky_inverse(torch.linalg.cholesky(positive(A))).sum(),
    "upper cholesky_inverse": lambda A: torch.cholesky_inverse(torch.linalg.cholesky(positive(A)).mT, upper=True).sum(),
    "cholesky_inverse of a full matrix": lambda A: torch.cholesky_inverse(A + 3 * I).sum(),
    "cholesky_solve": lambda A: torch.cholesky_solve(A2, A + 3 * I).sum(),
    "upper cholesky_solve": lambda A: torch.cholesky_solve(A2, A + 3 * I, upper=True).sum(),
    "householder_product": lambda A: torch.linalg.householder_product(A[:, :3], A[0, :2]).sin().sum(),
    "inv": lambda A: torch.linalg.inv(A).sum(),
    "lu_solve": lambda A: torch.linalg.lu_solve(*torch.linalg.lu_factor(A), A1).sum(),
    "cholesky": lambda A: torch.linalg.cholesky(positive(A)).sin().sum(),
    "svdvals": lambda A: torch.linalg.svdvals(A).sin().sum(),
    "matrix_exp": lambda A: torch.matrix_exp(A / 4).sum(),
    "pinv": lambda A: torch.linalg.pinv(A).sum(),
}


def at(t: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    return f(A0 + t * A1 + t.sin() * A2)


def third_difference(f: Callable[[Tensor], Tensor]) -> Tensor:
    """Of second derivatives by reverse mode, extrapolated."""

    def second(t: float) -> Tensor:
        return jacrev(jacrev(with_corrections(f)))(torch.tensor(t, dtype=D))

    coarse, fine = ((second(0.3 + h) - second(0.3 - h)) / (2 * h) for h in (1e-3, 5e-4))
    return (4 * fine - coarse) / 3


@pytest.mark.parametrize("name", FUNCTIONS)
class TestDerivatives:
    T = torch.tensor(0.3, dtype=D)

    def test_second_derivatives_in_every_order_of_the_modes(self, name: str) -> None:
        """PyTorch's are wrong in forward over forward and in reverse over forward mode."""
        f = with_corrections(lambda t: at(t, FUNCTIONS[name]))
        expected = jacrev(jacrev(f))(self.T)
        assert_close(jacfwd(f)(self.T), jacrev(f)(self.T))
        for a, b in product((jacfwd, jacrev), repeat=2):
            assert_close(a(b(f))(self.T), expected)
        leaf = self.T.clone().requires_grad_()
        first = ad.jacobian(f, leaf, strategy="forward")
        assert_close(torch.autograd.grad(first, leaf)[0], expected)

    def test_in_every_order_of_the_modes(self, name: str) -> None:
        f = lambda t: at(t, FUNCTIONS[name])  # noqa: E731
        expected = third_difference(f)
        for a, b, c in product((jacfwd, jacrev), repeat=3):
            assert_close(a(b(c(with_corrections(f))))(self.T), expected, rtol=1e-6, atol=1e-6)

    def test_by_the_tools(self, name: str) -> None:
        f = lambda t: at(t, FUNCTIONS[name])  # noqa: E731
        expected, leaf = third_difference(f), self.T.clone().requires_grad_()
        for strategy in ("reverse-over-reverse", "forward-over-reverse"):
            H = ad.hessian(f, leaf, strategy=strategy)
            assert_close(torch.autograd.grad(H, leaf)[0], expected, rtol=1e-6, atol=1e-6)
        one = torch.ones((), dtype=D)
        for by in (jacfwd, jacrev):
            assert_close(by(lambda t: ad.hvp(f, t, one))(self.T), expected, rtol=1e-6, atol=1e-6)
            laplacian = by(lambda t: ad.laplacian(lambda x: f(x[..., 0]), t[None]))(self.T)
            assert_close(laplacian, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("imaginary", [0.0, 0.5])
@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("inverse", [False, True])
def test_half_of_a_factor_has_no_slope(inverse: bool, upper: bool, imaginary: float) -> None:
    """PyTorch's have slopes in the half that they do not read, and read it for those."""
    half = torch.triu if upper else torch.tril

    def factor(L: Tensor) -> Tensor:
        return torch.complex(L + 3 * I, imaginary * L.mT.sin() * (1 - I)) if imaginary else L + 3 * I

    def f(L: Tensor) -> Tensor:
        F = factor(L)
        if inverse:
            return torch.cholesky_inverse(F, upper=upper).abs()
        return torch.cholesky_solve(A1.to(F.dtype), F, upper=upper).abs()

    def expected(L: Tensor) -> Tensor:
        F = half(factor(L))
        A = F.mH @ F if upper else F @ F.mH
        return (torch.linalg.inv(A) if inverse else torch.linalg.solve(A, A1.to(F.dtype))).abs()

    def total(of: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda L: of(L).sin().sum()

    assert_close(ad.jacobian(f, A0), ad.jacobian(expected, A0))
    for strategy in ("reverse-over-reverse", "forward-over-reverse"):
        assert_close(ad.hessian(total(f), A0, strategy=strategy), ad.hessian(total(expected), A0))
    rows = lambda of: lambda x: torch.stack([total(of)(L.view(4, 4)) for L in x])  # noqa: E731
    points = torch.stack([A0, A2]).flatten(1)
    assert_close(ad.laplacian(rows(f), points), ad.laplacian(rows(expected), points))
