"""Rules of the sweep of Laplacians for linear algebra, in closed form.

For a matrix A with the inverse Y, tangents A_k and the Laplacian ΔA, all sums over the directions k of the sweep:

    inverse       Y_k = -Y A_k Y              ΔY = -Y (ΔA Y + 2 Σ ±A_k Y_k)
    solution      X_k = Y (B_k - A_k X)       ΔX = Y (ΔB - ΔA X - 2 Σ ±A_k X_k)
    log |det A|   y_k = tr Y A_k              Δy = tr Y ΔA - Σ ±tr Y A_k Y A_k
    Cholesky      L_k = L Φ(W A_k Wᵀ)         ΔL = L Φ(W (ΔA - 2 Σ ±L_k L_kᵀ) Wᵀ),  W = L⁻¹
    eigenvalues   λ_k = diag M_k              Δλ = diag M_Δ + 2 Σ ±diag M_k (F∘M_k),  M = Vᵀ A V

Φ takes the lower triangle and half of the diagonal, F_ij = 1 / (λ_j - λ_i). The sources are Giles (2008), Collected
matrix derivative results; Murray (2016), Differentiation of the Cholesky decomposition, arXiv:1602.07527; Magnus
(1985), On differentiating eigenvalues and eigenvectors.

The tangents of a matrix [..., n, m] are stacked as [..., n, K, m]: a product from either side is one product of
matrices [n, K m] or [n K, m], and so is the sum over k of the products of two of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._autograd.undefined import sum_defined
from .sweep import Arguments, Keywords, Rule, Sweep


def _tangents(x: Any) -> Tensor:
    """[..., n, K, m] for x [..., n, m]."""
    return torch.stack(x.tangents, -2)


def _left(Y: Tensor, T: Tensor) -> Tensor:
    """Y T_k for each k."""
    product: Tensor = (Y @ T.flatten(-2)).unflatten(-1, T.shape[-2:])
    return product


def _right(T: Tensor, X: Tensor) -> Tensor:
    """T_k X for each k."""
    product: Tensor = (T.flatten(-3, -2) @ X).unflatten(-2, T.shape[-3:-1])
    return product


def _flipped(T: Tensor) -> Tensor:
    """T_kᵀ for each k."""
    return T.transpose(-3, -1)


def _signed(sweep: Sweep, T: Tensor) -> Tensor:
    """±T_k for each k."""
    if -1 not in sweep.signs:
        return T
    return T * torch.tensor(sweep.signs, dtype=T.dtype, device=T.device).unsqueeze(-1)


def _contracted(sweep: Sweep, S: Tensor, T: Tensor) -> Tensor:
    """Σ ±S_k T_k."""
    return _signed(sweep, S).flatten(-2) @ T.transpose(-3, -2).flatten(-3, -2)


def _symmetric_tangents(A: Any) -> Tensor:
    """PyTorch reads a triangle of A, and its derivatives take A for symmetric."""
    A1 = _tangents(A)
    return (A1 + _flipped(A1)) / 2


def _result(sweep: Sweep, value: Tensor, tangents: Tensor, laplacian: Tensor | None) -> Any:
    return sweep.tensor(value, tangents.unbind(-2), laplacian)


def _is_real(*xs: Any) -> bool:
    return not any(isinstance(x, Tensor) and x.is_complex() for x in xs)


def _solution(sweep: Sweep, X: Tensor, A: Any, B: Any, solve: Callable[[Tensor], Tensor], part: Any = None) -> Any:
    """A X = B.

    Args:
        sweep: the sweep.
        X: the value of the solution.
        A: the matrix, which may vary.
        B: the right-hand side, which may vary.
        solve: A⁻¹ times a matrix.
        part: the part of A that counts, of a matrix; None for all of it.
    """
    part = part or (lambda M: M)
    first, second = [], []
    A1 = None
    if sweep.owns(A):
        A1 = part(_tangents(A).transpose(-3, -2)).transpose(-3, -2)
        first.append(-_right(A1, X))
        second += [] if A.laplacian is None else [-part(A.laplacian) @ X]
    if sweep.owns(B):
        first.append(_tangents(B))
        second += [] if B.laplacian is None else [B.laplacian]
    right = sum_defined(*first)
    assert right is not None
    X1 = solve(right.flatten(-2)).unflatten(-1, right.shape[-2:])
    total = sum_defined(*second, None if A1 is None else -2 * _contracted(sweep, A1, X1))
    return _result(sweep, X, X1, None if total is None else solve(total))


def _solved(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """X of A X = B or X A = B; a vector has a right-hand side less."""
    A, B = args
    left = kwargs.get("left", True)
    if not _is_real(A, B):
        return NotImplemented
    named = func(sweep.value(A), sweep.value(B), **kwargs)
    X = named if isinstance(named, Tensor) else named[0]
    if not sweep.owns(A):
        y = sweep.linear(lambda B: _first(func(A, B, **kwargs)), (B,), {}, constants=A)
    elif B.dim() == 1 or B.shape == A.shape[:-1]:
        y = _by_inverse(sweep, X.unsqueeze(-1), A, B.unsqueeze(-1)).squeeze(-1)
    else:
        y = _by_inverse(sweep, X, A, B) if left else _by_inverse(sweep, X.mT, A.mT, B.mT).mT
    return y if isinstance(named, Tensor) else type(named)((y, *named[1:]))


def _first(y: Any) -> Any:
    return y if isinstance(y, Tensor) else y[0]


def _by_inverse(sweep: Sweep, X: Tensor, A: Any, B: Any) -> Any:
    """By products with the inverse: PyTorch's derivatives of it are right in every mode, those of ``solve`` are not."""
    Y = torch.linalg.inv_ex(A.value)[0]
    return _solution(sweep, X, A, B, lambda R: Y @ R)


def _inverse(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    (A,) = args
    if not _is_real(A):
        return NotImplemented
    named = func(A.value, **kwargs)
    Y = _first(named)
    y = _solution(sweep, Y, A, None, lambda R: Y @ R)
    return y if isinstance(named, Tensor) else type(named)((y, *named[1:]))


def _solve_triangular(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """X of A X = B or X A = B for a triangular A."""
    A, B = args
    upper, left, unit = kwargs["upper"], kwargs.get("left", True), kwargs.get("unitriangular", False)
    if not _is_real(A, B):
        return NotImplemented
    if not sweep.owns(A):
        return sweep.linear(lambda B: func(A, B, **kwargs), (B,), {}, constants=A)
    if not left:
        return torch.linalg.solve_triangular(A.mT, B.mT, upper=not upper, unitriangular=unit).mT
    X, offset = func(A.value, sweep.value(B), **kwargs), int(unit)
    return _solution(
        sweep,
        X,
        A,
        B,
        lambda R: torch.linalg.solve_triangular(A.value, R, upper=upper, unitriangular=unit),
        lambda M: M.triu(offset) if upper else M.tril(-offset),
    )


def _log_determinant(sweep: Sweep, A: Any, value: Tensor) -> Any:
    """log |det A|, whose value is given."""
    Y = torch.linalg.inv_ex(A.value)[0]
    P = _left(Y, _tangents(A))
    total = -_signed(sweep, P * _flipped(P)).sum((-3, -2, -1))
    if A.laplacian is not None:
        total = total + (Y * A.laplacian.mT).sum((-2, -1))
    return sweep.tensor(value, P.diagonal(dim1=-3, dim2=-1).sum(-1).unbind(-1), total)


def _slogdet(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    (A,) = args
    if not _is_real(A):
        return NotImplemented
    named = func(A.value)
    return type(named)((named[0], _log_determinant(sweep, A, named[1])))


def _logdet(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """nan where the determinant is negative, a constant."""
    (A,) = args
    if not _is_real(A):
        return NotImplemented
    sign, y = torch.linalg.slogdet(A)
    return y.masked_fill(sign < 0, torch.nan)


def _cholesky(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    A, *rest = args
    if not _is_real(A):
        return NotImplemented
    upper = rest[0] if rest else kwargs.get("upper", False)
    named = func(A.value, *rest, **kwargs)
    L = _first(named).mT if upper else _first(named)
    n = A.shape[-1]
    unit = torch.eye(n, dtype=L.dtype, device=L.device)
    half = torch.ones_like(unit).tril() - unit / 2
    W = torch.linalg.solve_triangular(L, unit, upper=False)
    L1 = _left(L, half.unsqueeze(-2) * _right(_left(W, _symmetric_tangents(A)), W.mT))
    total = -2 * _contracted(sweep, L1, _flipped(L1))
    if A.laplacian is not None:
        total = total + (A.laplacian + A.laplacian.mT) / 2
    y = _result(sweep, L, L1, L @ (half * (W @ total @ W.mT)))
    y = y.mT if upper else y
    return y if isinstance(named, Tensor) else type(named)((y, *named[1:]))


def _gaps(eigenvalues: Tensor) -> Tensor:
    """F_ij = 1 / (λ_j - λ_i), 0 on the diagonal."""
    gaps = eigenvalues.unsqueeze(-2) - eigenvalues.unsqueeze(-1)
    return gaps.masked_fill(torch.eye(gaps.shape[-1], dtype=torch.bool, device=gaps.device), torch.inf).reciprocal()


def _eigenvalues(sweep: Sweep, A: Any, λ: Tensor, V: Tensor, F: Tensor, M1: Tensor) -> Any:
    # diag M_k (F∘M_k) = Σ_j M_ij F_ji M_ji
    total = 2 * (_signed(sweep, M1 * _flipped(M1)).sum(-2) * F.mT).sum(-1)
    if A.laplacian is not None:
        total = total + ((A.laplacian @ V) * V).sum(-2)
    return sweep.tensor(λ, M1.diagonal(dim1=-3, dim2=-1).unbind(-2), total)


def _eigvalsh(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    A, *rest = args
    if not _is_real(A):
        return NotImplemented
    λ, V = torch.linalg.eigh(A.value, *rest, **kwargs)
    return _eigenvalues(sweep, A, λ, V, _gaps(λ), _right(_left(V.mT, _symmetric_tangents(A)), V))


def _eigh(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """V_k = V S_k for S_k = F∘M_k, so V_kk = V (S_k² + S_kk) with S_kk = F_k∘M_k + F∘(S_kᵀ M_k + M_k S_k + M_kk)."""
    A, *rest = args
    if not _is_real(A):
        return NotImplemented
    named = func(A.value, *rest, **kwargs)
    λ, V = named
    F = _gaps(λ)
    M1 = _right(_left(V.mT, _symmetric_tangents(A)), V)
    S1 = F.unsqueeze(-2) * M1
    λ1 = M1.diagonal(dim1=-3, dim2=-1)  # [..., K, n]
    F1 = -F.square().unsqueeze(-2) * (λ1.unsqueeze(-3) - λ1.mT.unsqueeze(-1))
    total = _contracted(sweep, S1, S1) + _signed(sweep, F1 * M1).sum(-2)
    M2 = _contracted(sweep, _flipped(S1), M1) + _contracted(sweep, M1, S1)
    if A.laplacian is not None:
        M2 = M2 + V.mT @ ((A.laplacian + A.laplacian.mT) / 2) @ V
    vectors = _result(sweep, V, _left(V, S1), V @ (total + F * M2))
    return type(named)((_eigenvalues(sweep, A, λ, V, F, M1), vectors))


def _matrix_exp(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """The upper right block of exp [[A, A_k, 0], [0, A, A_k], [0, 0, A]] is half of the second derivative.

    Mathias (1996), A chain rule for matrix functions. That of exp [[A, ΔA], [0, A]] is the derivative along ΔA.
    """
    (A,) = args
    if not _is_real(A):
        return NotImplemented
    value, n, A1 = A.value, A.shape[-1], torch.stack(A.tangents)
    corner = _exp_of_blocks([[value, A1, None], [None, value, A1], [None, None, value]], A1.shape)
    curved = [2 * sign * y for sign, y in zip(sweep.signs, corner[..., :n, 2 * n :], strict=True)]
    if A.laplacian is not None:
        curved.append(_exp_of_blocks([[value, A.laplacian], [None, value]], A.shape)[..., :n, n:])
    return sweep.tensor(func(value), corner[..., :n, n : 2 * n].unbind(), sum_defined(*curved))


def _exp_of_blocks(rows: list[list[Any]], shape: torch.Size) -> Tensor:
    """exp of a matrix of blocks of a shape, None for zero."""
    zero = torch.zeros_like(rows[0][0])
    blocks = [torch.cat([(zero if x is None else x).expand(shape) for x in row], -1) for row in rows]
    y: Tensor = torch.linalg.matrix_exp(torch.cat(blocks, -2))
    return y


def _pinv(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """P_k = -P A_k P + P Pᵀ A_kᵀ (1 - A P) + (1 - P A) A_kᵀ Pᵀ P, of constant rank; ΔP is the derivative of that.

    Golub, Pereyra (1973), The differentiation of pseudo-inverses. SIAM J. Numer. Anal. 10, 413.
    """
    A, *rest = args
    if not _is_real(A) or any(map(sweep.owns, (*rest, *kwargs.values()))):
        return NotImplemented
    if not A.numel():
        return A.mT.clone()
    P, A1, value = func(A.value, *rest, **kwargs), _tangents(A), A.value
    outside = torch.eye(value.shape[-2], dtype=P.dtype, device=P.device) - value @ P
    inside = torch.eye(value.shape[-1], dtype=P.dtype, device=P.device) - P @ value
    outer, inner = P @ P.mT, P.mT @ P
    P1 = (
        -_right(_left(P, A1), P)
        + _right(_left(outer, _flipped(A1)), outside)
        + _right(_left(inside, _flipped(A1)), inner)
    )
    PA, AP = _left(P, A1), _right(A1, P)
    total = -_contracted(sweep, P1, AP) - _contracted(sweep, PA, P1)
    total = total + _contracted(sweep, P1, _flipped(AP)) @ outside
    total = total + P @ _contracted(sweep, _flipped(P1), _flipped(A1)) @ outside
    total = total - outer @ _contracted(sweep, _flipped(A1), AP + _left(value, P1))
    total = total - _contracted(sweep, _right(P1, value) + PA, _flipped(PA)) @ P
    total = total + inside @ _contracted(sweep, _flipped(A1), _right(_flipped(P1), P) + _left(P.mT, P1))
    if A.laplacian is not None:
        L = A.laplacian
        total = total - P @ L @ P + outer @ L.mT @ outside + inside @ L.mT @ inner
    return _result(sweep, P, P1, total)


RULES: dict[str, Rule] = {
    "inv": _inverse,
    "inv_ex": _inverse,
    "inverse": _inverse,
    "solve": _solved,
    "solve_ex": _solved,
    "solve_triangular": _solve_triangular,
    "slogdet": _slogdet,
    "logdet": _logdet,
    "cholesky": _cholesky,
    "cholesky_ex": _cholesky,
    "eigvalsh": _eigvalsh,
    "eigh": _eigh,
    "matrix_exp": _matrix_exp,
    "pinv": _pinv,
    "pinverse": _pinv,
}
