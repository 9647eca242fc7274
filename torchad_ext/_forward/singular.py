"""Determinants and products without a division by what may be 0; arguments as in PyTorch.

PyTorch differentiates them by an inverse and by quotients, which are wrong, nan or inaccurate at some order where a
matrix is singular or a factor is 0. A composition gives NotImplemented where PyTorch's are right.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .factorizations import either, pivots, slogdet, solve

# Measured: factors that are multiplied one after the other.
_FACTORS, _FEW_FACTORS = 8, 3
_MANY_NUMBERS = 2**14


class _Regularized(torch.autograd.Function):
    """Constants of matrices A [..., n, n]: L and R [..., n, k] such that M = A + L Rᴴ is regular, det M, log |det M|,
    and the places of the matrices that are not, among all of the batch.

    L and R are the singular vectors of small singular values, L times the largest one; zeros where a matrix has fewer.
    """

    @staticmethod
    def forward(A: Tensor) -> tuple[Tensor, ...]:
        n, k = A.shape[-1], 0
        left, right = (torch.zeros_like(A, memory_format=torch.contiguous_format) for _ in range(2))
        factors, sign = pivots(A)
        # The second derivative of a determinant by its inverse has an error of the square of the condition number.
        least = torch.finfo(A.dtype).eps ** 0.25
        suspect = (factors.abs().amin(-1) <= least * factors.abs().amax(-1)) & A.isfinite().all((-2, -1))
        if bool(suspect.any()):
            U, S, Vh = torch.linalg.svd(A[suspect])
            largest = S[:, :1]
            small = least * largest >= S
            k = int(small.sum(1).max())
            left[suspect] = U * (small * torch.where(largest == 0, 1, largest)).unsqueeze(1)
            right[suspect] = Vh.mH * small.unsqueeze(1)
            suspect[suspect.clone()] = small[:, -1]
        left, right = left[..., n - k :], right[..., n - k :]
        if k:
            factors, sign = pivots(A + left @ right.mH)
        places = suspect.flatten().nonzero().flatten()
        return left, right, factors.prod(-1) * sign, factors.abs().log().sum(-1), places

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], A: Tensor) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        """With all places: within vmap nobody knows which, but none if all matrices are regular."""
        A = A.movedim(in_dims[0], 0)
        *constants, places = _Regularized.apply(A)
        count = math.prod(A.shape[1:-2]) if len(places) else 0
        return (*constants, torch.arange(count, device=A.device)), (0, 0, 0, 0, None)


def _polynomial(A: Any) -> Any:
    """The determinant from the coefficients c of the characteristic polynomials of the lower right blocks: c of
    [[a, r], [b, M]] is that of M times (1, -a, -r b, -r M b, -r M² b, ...).

    Berkowitz (1984), On computing the determinant in small parallel time using a small number of processors.
    """
    n = A.shape[-1]
    last = A[..., n - 1, n - 1]
    c = torch.stack([torch.ones_like(last), -last], -1)
    for k in range(n - 2, -1, -1):
        r, b, M = A[..., k : k + 1, k + 1 :], A[..., k + 1 :, k : k + 1], A[..., k + 1 :, k + 1 :]
        factors = [-A[..., k : k + 1, k]]
        for _ in range(n - k - 1):
            factors.append(-(r @ b)[..., 0])
            b = M @ b
        c = F.pad(c, (0, 1)) + sum(F.pad(c[..., : n - k - i] * q, (i + 1, 0)) for i, q in enumerate(factors))
    return c[..., n] * (-1) ** n


def _of_few(A: Any) -> Any:
    """The determinant of a matrix of up to three columns."""
    a, *others = A.unbind(-2)
    if not others:
        return a.squeeze(-1).clone()
    if len(others) == 1:
        return a[..., 0] * others[0][..., 1] - a[..., 1] * others[0][..., 0]
    return (a * torch.linalg.cross(*others)).sum(-1)


def det(A: Any) -> Any:
    """det A = det M det(I - Rᴴ M⁻¹ L) for a regular M = A + L Rᴴ (Sylvester's identity), det M by its logarithm.

    Where the determinant is small PyTorch differentiates it by singular values, which is nan where two are equal.
    """
    if A.dim() < 2 or A.shape[-2] != A.shape[-1] or not A.numel():
        return NotImplemented
    if A.shape[-1] <= 3:
        return _of_few(A)
    L, R, value, log, places = _Regularized.apply(A.detach())
    M = A + L @ R.mH if len(places) else A
    sign, y = either(slogdet, torch.linalg.slogdet, M)
    y = (y - log).exp() * value
    if A.is_complex():
        y = y * sign * value.sgn().conj()
    return y * _of_rest(M, L, R, places) if len(places) else y


def _of_rest(M: Any, L: Tensor, R: Tensor, places: Tensor) -> Any:
    """det(I - Rᴴ M⁻¹ L), which is 1 but at some places."""
    batch = M.shape[:-2]
    M, L, R = (x.reshape(-1, *x.shape[-2:])[places] for x in (M, L, R))
    rest = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device) - R.mH @ either(solve, torch.linalg.solve, M, L)
    ones = torch.ones(batch.numel(), dtype=L.dtype, device=L.device)
    return ones.index_put((places,), _polynomial(rest)).reshape(batch)


def is_nowhere(condition: Any) -> bool:
    """Is a truth value known to hold nowhere? Within vmap nobody knows."""
    try:
        return not bool(condition.any())
    except RuntimeError:
        return False


def quotients_are_right(x: Any, y: Any) -> bool:
    """Are the derivatives of a product y of the numbers x accurate as quotients y / x?"""
    tiny, eps = torch.finfo(y.dtype).tiny, torch.finfo(y.dtype).eps
    return is_nowhere(x.detach().abs() < tiny**0.25) and is_nowhere(y.detach().abs() < tiny / eps)


def scan(operation: Callable[[Any, Any], Any], x: Any) -> Any:
    """Cumulative sums, products, ... along the last dimension, in about 2 log₂ n operations (Ladner, Fischer, 1980)."""
    n = x.shape[-1]
    if n < 2:
        return x
    odd = scan(operation, operation(x[..., 0 : n - 1 : 2], x[..., 1::2]))
    even = torch.cat([x[..., :1], operation(odd[..., : (n - 1) // 2], x[..., 2::2])], -1)
    y = torch.stack([even[..., : n // 2], odd], -1).flatten(-2)
    return torch.cat([y, even[..., -1:]], -1) if n % 2 else y


def cumprod(x: Any, dim: int, *, dtype: Any = None) -> Any:
    x = x if dtype is None else x.to(dtype)
    return scan(torch.mul, x.movedim(dim, -1)).movedim(-1, dim) if x.dim() and x.shape[dim] > 1 else x.clone()


def is_quicker_by_factors(x: Tensor, dim: Any = None, *_: Any) -> bool:
    """Do products factor by factor, with their derivatives, take less time than PyTorch's, and round no more?"""
    if not x.dim() or x.dtype.itemsize < 4 or not (dim is None or -x.dim() <= dim < x.dim()):
        return False
    count = x.numel() if dim is None else x.shape[dim]
    return 0 < count <= (_FACTORS if x.numel() >= _MANY_NUMBERS else _FEW_FACTORS)


def prod(x: Any, dim: int | None = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """Products one after the other, or a tree of them."""
    x = x if dtype is None else x.to(dtype)
    if not x.dim():
        return x.clone()
    if not x.numel():
        return NotImplemented
    y = x.flatten() if dim is None else x.movedim(dim, -1)
    while (n := y.shape[-1]) > _FACTORS:
        product = y[..., : n // 2] * y[..., n // 2 : n - n % 2]
        y = torch.cat([product, y[..., -1:]], -1) if n % 2 else product
    first, *others = y.unbind(-1)
    y = functools.reduce(torch.mul, others, first) if others else first.clone()
    return y.unsqueeze(dim) if keepdim else y
