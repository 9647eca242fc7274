"""Determinants of singular matrices and products of factors that are 0: polynomials, whose derivatives are known."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import permutations

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, vmap
from torch.testing import assert_close

import torchad_ext as ad
from torchad_ext._forward.singular import _polynomial, _Regularized, cumprod, prod, quotients_are_right, scan

D = torch.float64
Function = Callable[[Tensor], Tensor]


def by_leibniz(A: Tensor) -> Tensor:
    """Σ ± products of one element of each row and column: no division."""
    n = A.shape[-1]
    total = torch.zeros_like(A[..., 0, 0])
    for columns in permutations(range(n)):
        inversions = sum(columns[i] > columns[j] for i in range(n) for j in range(i + 1, n))
        term = torch.full_like(total, (-1) ** inversions)
        for i, j in enumerate(columns):
            term = term * A[..., i, j]
        total = total + term
    return total


def of_rank(n: int, rank: int, dtype: torch.dtype = D) -> Tensor:
    """Singular values of 1, 2, 3, ... and zeros."""
    generator = torch.Generator().manual_seed(10 * n + rank)
    U, V = (torch.linalg.qr(torch.randn(n, n, dtype=dtype, generator=generator))[0] for _ in range(2))
    return (U[:, :rank] * torch.arange(1, rank + 1)) @ V[:, :rank].mH


DIAGONAL = torch.diag(torch.tensor([0.0, 2, 3, 4], dtype=D))
MATRICES = {
    **{f"{n} columns, rank {rank}": of_rank(n, rank) for n in (1, 2, 3, 4, 5) for rank in range(n + 1)},
    "a zero on the diagonal": DIAGONAL,
    "a column of zeros": of_rank(4, 4).index_fill(1, torch.tensor(2), 0),
    "integers": torch.arange(16, dtype=D).reshape(4, 4),
    "nearly singular": DIAGONAL + 1e-9 * of_rank(4, 4),
    "a condition of 1e5": torch.diag(torch.tensor([1e-5, 1, 2, 3], dtype=D)) @ of_rank(4, 4),
    "tiny": 1e-40 * of_rank(4, 3),
}


def along(f: Function, at: Tensor) -> tuple[Function, Tensor]:
    """f of points [2] near one matrix, with all second derivatives."""
    generator = torch.Generator().manual_seed(1)
    towards = torch.randn(2, *at.shape, dtype=at.dtype, generator=generator) * (at.abs().max() if at.any() else 1)
    return lambda x: f(at + x[0] * towards[0] + x[1] * x[0] * towards[1] + x[1] ** 2 * towards[0].mT), torch.zeros(
        2, dtype=D
    )


@pytest.mark.parametrize("name", MATRICES)
class TestDeterminants:
    @staticmethod
    def given(name: str) -> tuple[Function, Function, Tensor, float]:
        """The function, the same by Leibniz, the point, and the size of a product of elements."""
        A = MATRICES[name]
        f, x = along(torch.linalg.det, A)
        return f, along(by_leibniz, A)[0], x, float(A.abs().max() or 1) ** len(A)

    def test_jacobian(self, name: str) -> None:
        A = MATRICES[name]
        expected = jacrev(by_leibniz)(A)
        for strategy in ("reverse", "forward"):
            assert_close(ad.jacobian(torch.linalg.det, A, strategy=strategy), expected)
        assert_close(ad.jacobian(vmap(torch.det), A.expand(3, -1, -1))[1, 1], expected)

    def test_second_order(self, name: str) -> None:
        f, expected, x, size = self.given(name)
        H = hessian(expected)(x)
        scale = {"rtol": 1e-7, "atol": 1e-9 * size}
        for strategy in ("reverse-over-reverse", "forward-over-reverse"):
            assert_close(ad.hessian(f, x, strategy=strategy), H, **scale)
        assert_close(ad.hvp(f, x, torch.ones_like(x)), H.sum(-1), **scale)
        assert_close(ad.hessian_diagonal(f, x), H.diagonal(), **scale)
        assert_close(ad.laplacian(f, x), H.trace(), **scale)
        assert_close(vmap(lambda x: ad.laplacian(f, x))(x[None])[0], H.trace(), **scale)
        assert_close(ad.hessian(lambda X: vmap(f)(X).sum(), x[None])[0, :, 0], H, **scale)

    def test_third_order(self, name: str) -> None:
        f, expected, x, size = self.given(name)
        third = jacrev(hessian(expected))(x)
        scale = {"rtol": 1e-6, "atol": 1e-8 * size}
        leaf = x.clone().requires_grad_()
        (of_laplacian,) = torch.autograd.grad(ad.laplacian(f, leaf), leaf)
        assert_close(of_laplacian, third.diagonal().sum(-1), **scale)
        (mixed,) = ad.partials(f, x, [(0, 0, 1)])
        assert_close(mixed, third[0, 0, 1], **scale)
        H = ad.hessian(f, leaf)
        assert_close(torch.autograd.grad(H[0, 1], leaf)[0], third[:, 0, 1], **scale)


@pytest.mark.parametrize("n", [1, 2, 4, 5])
def test_the_last_coefficient_of_a_characteristic_polynomial(n: int) -> None:
    A = torch.stack([of_rank(n, n), of_rank(n, n).mT + 0.1])
    assert_close(_polynomial(A), by_leibniz(A))


@pytest.mark.parametrize("dtype", [torch.float32, D, torch.complex128])
class TestMatricesMadeRegular:
    @staticmethod
    def given(dtype: torch.dtype) -> Tensor:
        A = torch.stack([of_rank(5, rank, dtype) for rank in (5, 3, 5, 0, 5, 4)])
        A[1:3] *= 1e-3
        return A.unflatten(0, (3, 2))

    def test_small_singular_values_grow_and_no_others(self, dtype: torch.dtype) -> None:
        A = self.given(dtype)
        L, R, value, log, places = _Regularized.apply(A)
        M, S, least = A + L @ R.mH, torch.linalg.svdvals(A), torch.finfo(dtype).eps ** 0.25
        small = least * S[..., :1] >= S
        assert places.tolist() == [1, 3, 5] and small.sum(-1).flatten().tolist() == [0, 2, 0, 5, 0, 1]
        assert L.shape == R.shape == (3, 2, 5, 5)
        assert torch.equal(L.any(-2).sum(-1), small.sum(-1)) and torch.equal(R.any(-2).sum(-1), small.sum(-1))
        assert (torch.linalg.cond(M) < 1 / least).all()
        assert_close(value, by_leibniz(M))
        assert_close(log, value.abs().log())
        assert _Regularized.apply(A[:1])[0].shape == (1, 2, 5, 2)
        assert _Regularized.apply(A[:, 0])[0].shape == (3, 5, 0)

    def test_a_batch_of_them(self, dtype: torch.dtype) -> None:
        """Within vmap each may be singular, unless none is."""
        A = self.given(dtype)
        *expected, _ = _Regularized.apply(A)
        *constants, places = vmap(_Regularized.apply, in_dims=1, out_dims=(1, 1, 1, 1, 0))(A)
        assert_close(constants, expected)
        assert places[0].tolist() == [0, 1, 2]
        assert vmap(_Regularized.apply)(A.unsqueeze(1))[4][0].tolist() == [0, 1]
        assert vmap(_Regularized.apply)(A[:, 0])[4].numel() == 0

    def test_regular_ones_take_no_singular_values(self, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.linalg, "svd", pytest.fail)
        for scale in (1e-3, 1, 1e3):
            _Regularized.apply(scale * of_rank(5, 5, dtype))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_up_to_three_columns_of_integers_are_exact(n: int) -> None:
    A = torch.randint(-50, 50, (2, 3, n, n), generator=torch.Generator().manual_seed(n)).to(D)
    assert_close(ad.jacobian(torch.linalg.det, A), jacrev(by_leibniz)(A), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (3, 2), (4, 5), (5, 4)])
def test_what_is_not_square_is_refused_as_by_pytorch(shape: tuple[int, ...]) -> None:
    A = torch.ones(shape, dtype=D)
    with pytest.raises(RuntimeError) as expected:
        torch.linalg.det(A)
    with pytest.raises(RuntimeError, match=re.escape(str(expected.value))):
        ad.jacobian(torch.linalg.det, A)


@pytest.mark.parametrize("shape", [(0, 0), (2, 0, 0), (0, 5, 5)])
def test_of_no_numbers(shape: tuple[int, ...]) -> None:
    A = torch.ones(shape, dtype=D)
    assert_close(ad.jacobian(torch.linalg.det, A), jacrev(torch.linalg.det)(A))


@pytest.mark.parametrize("ranks", [(5, 3, 0, 4), (4, 3, 2, 4), (5, 5, 5, 5)])
@pytest.mark.parametrize("batch", [(4,), (2, 2)])
def test_a_batch(batch: tuple[int, ...], ranks: tuple[int, ...]) -> None:
    A = torch.stack([of_rank(5, rank) for rank in ranks]).unflatten(0, batch)
    f = lambda A: torch.linalg.det(A).sin().sum()  # noqa: E731
    expected = lambda A: by_leibniz(A).sin().sum()  # noqa: E731
    assert_close(ad.hessian(f, A), hessian(expected)(A))
    J = jacrev(by_leibniz)(A)
    assert_close(ad.jacobian(torch.linalg.det, A), J)
    assert_close(ad.jacobian(vmap(torch.linalg.det), A.expand(3, *A.shape))[1].select(len(batch), 1), J)


def test_numbers_that_are_not_finite() -> None:
    """The value is PyTorch's, beside a singular matrix too."""
    A = torch.stack([of_rank(4, 3), of_rank(4, 4).index_fill(0, torch.tensor(1), torch.inf), of_rank(4, 4) * torch.nan])
    seen = []
    f = lambda A: seen.append(torch.linalg.det(A).detach()) or torch.linalg.det(A)  # noqa: E731
    J = ad.jacobian(f, A)
    assert_close(seen[0].isfinite(), torch.linalg.det(A).isfinite())
    assert_close(J[0, 0], jacrev(by_leibniz)(A[0]))


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_a_complex_matrix(rank: int) -> None:
    A = of_rank(4, rank, torch.complex128)
    f = lambda of: lambda x: of(A + x[0] * A.mT + x[0] * x[1] + x[1] * A.mH).real  # noqa: E731
    x = torch.zeros(2, dtype=D)
    assert_close(ad.hessian(f(torch.linalg.det), x), hessian(f(by_leibniz))(x))
    assert_close(ad.jacobian(f(torch.linalg.det), x), grad(f(by_leibniz))(x))


@pytest.mark.parametrize(
    "x", [(0, 0, 3, 2), (0, 2, 3, 4), (0, 0, 0, 0), (5, 0, 0, 0), (1e-200, 1e-200, 3, 2), (1e-80, 1e80, 3, 2)]
)
@pytest.mark.parametrize("name", ["prod", "prod of a dimension", "cumprod"])
class TestProducts:
    @staticmethod
    def of(name: str) -> tuple[Function, Function]:
        w = torch.tensor([1.0, 2, 3, 5], dtype=D)

        def expected(x: Tensor) -> Tensor:
            a, b, c, d = x
            if name == "cumprod":
                return w[0] * a + w[1] * a * b + w[2] * a * b * c + w[3] * a * b * c * d
            return a * b * c * d if name == "prod" else w[0] * (a * b) ** 2 + w[1] * (c * d) ** 2

        return {
            "prod": torch.prod,
            "prod of a dimension": lambda x: x.reshape(2, 2).prod(-1).square() @ w[:2],
            "cumprod": lambda x: x.cumprod(0) @ w,
        }[name], expected

    def test_every_order(self, name: str, x: tuple[float, ...]) -> None:
        (f, expected), at = self.of(name), torch.tensor(x, dtype=D)
        assert_close(ad.jacobian(f, at), jacrev(expected)(at), rtol=1e-12, atol=0)
        assert_close(ad.jacobian(f, at, strategy="forward"), jacrev(expected)(at), rtol=1e-12, atol=0)
        assert_close(ad.hessian(f, at), hessian(expected)(at), rtol=1e-12, atol=0)
        of_points = ad.hessian(lambda X: vmap(f)(X).sum(), at[None])
        assert_close(of_points[0, :, 0], hessian(expected)(at), rtol=1e-12, atol=0)
        third = jacfwd(hessian(expected))(at)
        leaf = at.clone().requires_grad_()
        H = ad.hessian(f, leaf)
        assert_close(torch.autograd.grad(H[0, 1], leaf)[0], third[0, 1], rtol=1e-12, atol=0)
        assert_close(ad.partials(f, at, [(0, 1, 2)])[0], third[0, 1, 2], rtol=1e-12, atol=0)
        assert_close(ad.laplacian(f, at), hessian(expected)(at).trace(), rtol=1e-12, atol=0)


def test_products_too_small_for_all_their_digits() -> None:
    x = torch.full((5,), 10**-63.6, dtype=D)
    assert_close(ad.jacobian(torch.prod, x), x**4, rtol=1e-12, atol=0)
    assert_close(ad.jacobian(lambda x: x.cumprod(0)[4], x), x**4, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_ordinary_numbers_may_be_divided_by(dtype: torch.dtype) -> None:
    x = torch.tensor([1e-3, -2, 1e3], dtype=dtype)
    assert quotients_are_right(x, x.prod()) and quotients_are_right(x, x.cumprod(0))


@pytest.mark.parametrize("n", range(9))
@pytest.mark.parametrize("operation", [torch.mul, torch.add, lambda a, b: a, lambda a, b: b])
def test_cumulative_results(operation: Callable[[Tensor, Tensor], Tensor], n: int) -> None:
    def of_alike(a: Tensor, b: Tensor) -> Tensor:
        assert a.shape == b.shape
        return operation(a, b)

    x = torch.arange(1, 6 * n + 1, dtype=D).reshape(3, 2, n)
    expected = x.clone()
    for i in range(1, n):
        expected[..., i] = operation(expected[..., i - 1], x[..., i])
    assert_close(scan(of_alike, x), expected)


@pytest.mark.parametrize("n", range(1, 19))
def test_products_of_any_number(n: int) -> None:
    x = torch.arange(1, 6 * n + 1).to(torch.float32).reshape(3, 2, n) / 10
    for dtype in (None, D):
        assert_close(prod(x, dtype=dtype), torch.prod(x, dtype=dtype))
        for i in range(3):
            y = x.movedim(-1, i)
            assert_close(cumprod(y, dim=i, dtype=dtype), torch.cumprod(y, dim=i, dtype=dtype))
            for keepdim in (False, True):
                expected = torch.prod(y, dim=i, keepdim=keepdim, dtype=dtype)
                assert_close(prod(y, dim=i, keepdim=keepdim, dtype=dtype), expected)


@pytest.mark.parametrize("batch", [3, 2**12])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 8, 9, 17])
def test_products_of_batches(n: int, batch: int) -> None:
    """d²/dx_i² of the square of a product is twice the square of the other factors, some of which are 0."""
    x = torch.rand(batch, n, generator=torch.Generator().manual_seed(n), dtype=D) + 0.5
    x[0, 0] = x[1, -1] = x[2] = 0
    others = torch.where(torch.eye(n, dtype=torch.bool), 1, x.unsqueeze(1)).prod(-1)
    for f in (
        lambda x: x.prod(-1).square(),
        lambda x: x.mT.prod(0, keepdim=True).squeeze(0) ** 2,
        lambda x: torch.vmap(torch.prod)(x).square(),
    ):
        assert_close(ad.hessian_diagonal(f, x, batched=True), 2 * others.square(), rtol=1e-12, atol=0)


def test_products_of_a_number_and_of_none() -> None:
    number, empty = torch.tensor(3.0), torch.ones(2, 0)
    assert_close(prod(number), number)
    assert_close(cumprod(number, 0), number)
    for dim in (0, 1):
        assert_close(cumprod(empty, dim), empty)
        assert_close(ad.jacobian(lambda x: x.prod(dim), empty), jacrev(lambda x: x.prod(dim))(empty))  # noqa: B023
