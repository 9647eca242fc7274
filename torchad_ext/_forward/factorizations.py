"""Functions of matrices composed of factorizations, for derivatives that mix the modes, where PyTorch's are wrong.

Their derivatives read factors that forward mode takes for constants one level further out. LU factors themselves, and
solutions by them, have right derivatives in every order of the modes. A composition gives NotImplemented in reverse
mode of any order, in forward mode and in forward over reverse mode, where PyTorch's are right and quicker.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._torch_state import mixes_modes


def _mixes_modes(*xs: Any) -> bool:
    return any(isinstance(x, Tensor) and mixes_modes(x) for x in xs)


def either(composed: Callable[..., Any], function: Callable[..., Any], *args: Any) -> Any:
    """The result of a composition, or of PyTorch's function where there is none."""
    y = composed(*args)
    return function(*args) if y is NotImplemented else y


def pivots(A: Any) -> tuple[Any, Any]:
    """Numbers whose product is the determinant up to a sign, and the sign."""
    LU, rows, _ = torch.linalg.lu_factor_ex(A)
    swaps = rows != torch.arange(1, A.shape[-1] + 1, dtype=rows.dtype, device=rows.device)
    return LU.diagonal(dim1=-2, dim2=-1), 1 - 2 * (swaps.sum(-1) % 2)


def slogdet(A: Any) -> Any:
    if not _mixes_modes(A) or not A.numel():
        return NotImplemented
    factors, sign = pivots(A)
    sizes = factors.abs()
    sign = sign * (factors / sizes).prod(-1) if A.is_complex() else sign * factors.detach().sgn().prod(-1)
    return torch.return_types.linalg_slogdet((sign, sizes.log().sum(-1)))  # type: ignore[attr-defined]


def logdet(A: Any) -> Any:
    if A.is_complex() or (y := slogdet(A)) is NotImplemented:
        return NotImplemented
    return y[1].masked_fill(y[0] < 0, math.nan)


def _by_factors(LU: Any, rows: Any, A: Any, B: Any, left: bool) -> Any:
    """The solution for A, whose factors are given, as torch.linalg.solve tells vectors from matrices."""
    is_vector = B.dim() == 1 or (B.dim() == A.dim() - 1 and B.shape == A.shape[:-1])
    X = torch.linalg.lu_solve(LU, rows, B.unsqueeze(-1) if is_vector else B, left=left)
    return X.squeeze(-1) if is_vector else X


def solve(A: Any, B: Any, *, left: bool = True) -> Any:
    if not _mixes_modes(A, B):
        return NotImplemented
    LU, rows = torch.linalg.lu_factor(A)
    return _by_factors(LU, rows, A, B, left)


def solve_ex(A: Any, B: Any, *, left: bool = True, check_errors: bool = False) -> Any:
    if check_errors or not _mixes_modes(A, B):
        return NotImplemented
    LU, rows, info = torch.linalg.lu_factor_ex(A)
    return torch.return_types.linalg_solve_ex((_by_factors(LU, rows, A, B, left), info))  # type: ignore[attr-defined]


def tensorsolve(A: Any, B: Any, dims: Any = None) -> Any:
    if not _mixes_modes(A, B):
        return NotImplemented
    if dims is not None:
        A = A.movedim(tuple(dims), tuple(range(A.dim() - len(dims), A.dim())))
    return solve(A.reshape(B.numel(), -1), B.reshape(-1)).reshape(A.shape[B.dim() :])


def cholesky_solve(B: Any, L: Any, upper: bool = False) -> Any:
    """PyTorch's has slopes where L is not read, above its diagonal, and reads it there."""
    adjoint = L.conj_physical().mT  # no view, of which some gradients have no batches
    first, second = (adjoint, L) if upper else (L, adjoint)
    Z = torch.linalg.solve_triangular(first, B, upper=False)
    return torch.linalg.solve_triangular(second, Z, upper=True)


def cholesky_inverse(L: Any, upper: bool = False) -> Any:
    """As :func:`cholesky_solve`; PyTorch's is wrong in forward mode, too."""
    return cholesky_solve(torch.eye(L.shape[-1], dtype=L.dtype, device=L.device).expand(L.shape), L, upper)


def householder_product(A: Any, tau: Any) -> Any:
    """The first columns of a product of reflections I - τ v vᴴ; v is a column below the diagonal, with 1 on it."""
    if not _mixes_modes(A, tau):
        return NotImplemented
    m, n = A.shape[-2:]
    Q = torch.eye(m, dtype=A.dtype, device=A.device)[:, :n].expand(*A.shape[:-2], m, n)
    V = A.tril(-1) + torch.eye(m, n, dtype=A.dtype, device=A.device)
    for i in reversed(range(tau.shape[-1])):
        v = V[..., i : i + 1]
        Q = Q - tau[..., i, None, None] * (v @ (v.mH @ Q))
    return Q
