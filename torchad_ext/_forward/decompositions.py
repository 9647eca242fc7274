"""Functions of PyTorch composed of operations that have rules; the arguments are those of PyTorch's function.

A composition gives NotImplemented for arguments that it does not cover. Derivatives at kinks are those that PyTorch
has. Functions whose derivatives are wrong in PyTorch are composed in :mod:`torchad_ext._forward.corrections`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._quadratic_form import definition as quadratic_form
from .._torch_state import clamp_shares_ties
from . import elementwise_rules, singular
from .corrections import CORRECTIONS, added, affine, vander, vector_norm
from .roots import root, squared
from .softmax import dropout, log_softmax, logcumsumexp_of_near, logsumexp, softmax


def _logcumsumexp(x: Any, dim: int) -> Any:
    y = logcumsumexp_of_near(x, dim)
    if y is not NotImplemented or x.is_complex():
        return y
    if not x.dim() or not x.numel():
        return x.clone()
    least = -torch.finfo(x.dtype).max  # of nothing but -inf PyTorch has the derivative 0, but logaddexp has nan
    y = singular.scan(torch.logaddexp, x.masked_fill(x.detach() == -math.inf, least).movedim(dim, -1)).movedim(-1, dim)
    return y.masked_fill(y.detach() == least, -math.inf)


def _diff(x: Any, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> Any:
    if n and (prepend is not None or append is not None):
        x = torch.cat([part for part in (prepend, x, append) if part is not None], dim)
    if not n:
        return x.clone()
    for _ in range(min(n, x.shape[dim])):
        x = x.narrow(dim, 1, x.shape[dim] - 1) - x.narrow(dim, 0, x.shape[dim] - 1)
    return x


def _trapezoids(y: Any, x: Any = None, *, dx: Any = 1, dim: int = -1) -> Any:
    """The area of each, with sample points in x."""
    before, after = (y.narrow(dim, i, y.shape[dim] - 1) for i in (0, 1))
    if x is None:
        return (before + after) * (dx / 2)
    widths = _diff(x) if x.dim() == 1 else _diff(x, dim=dim)
    if x.dim() == 1:
        widths = widths.reshape(-1, *(1,) * (y.dim() - 1 - dim % y.dim()))
    return (before + after) * widths / 2


def _trapezoid(y: Any, x: Any = None, *, dx: Any = 1, dim: int = -1) -> Any:
    if not y.shape[dim]:
        return NotImplemented
    return _trapezoids(y, x, dx=dx, dim=dim).sum(dim)


def _cumulative_trapezoid(y: Any, x: Any = None, *, dx: Any = 1, dim: int = -1) -> Any:
    return _trapezoids(y, x, dx=dx, dim=dim).cumsum(dim)


def variance(x: Any, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: Any = None) -> Any:
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    dim = tuple(range(x.dim())) if dim is None else dim
    squares = squared(x - x.mean(dim, keepdim=True))
    total = squares.sum(dim, keepdim)
    return total / (squares.numel() // total.numel() - (int(unbiased) if correction is None else correction))


def _with_mean(of: Callable[..., Any]) -> Callable[..., Any]:
    def composed(x: Any, dim: Any = None, unbiased: bool = True, keepdim: bool = False, **kwargs: Any) -> Any:
        first = of(x, dim, unbiased, keepdim, **kwargs)
        dims = tuple(range(x.dim())) if dim is None or isinstance(dim, bool) else dim
        return first, x.mean(dims, keepdim)

    return composed


def _deviation(x: Any, *args: Any, **kwargs: Any) -> Any:
    return root(variance(x, *args, **kwargs))


def _nansum(x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    dims = tuple(range(x.dim())) if dim is None else dim
    return torch.where(x.isnan(), torch.zeros_like(x), x).sum(dims, keepdim, dtype=dtype)


def _nanmean(x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    dims = tuple(range(x.dim())) if dim is None else dim
    return _nansum(x, dims, keepdim, dtype=dtype) / (~x.isnan()).sum(dims, keepdim)


def _cov(x: Any, *, correction: int = 1, fweights: Any = None, aweights: Any = None) -> Any:
    if x.dim() > 2 or fweights is not None or aweights is not None or x.is_complex():
        return NotImplemented
    rows = x.reshape(1, -1) if x.dim() < 2 else x
    count = rows.shape[1]
    rows = rows - rows.mean(1, keepdim=True)
    y = rows @ rows.mT / max(count - correction, 0)
    return y.squeeze()


def _corrcoef(x: Any) -> Any:
    y = _cov(x)
    if y is NotImplemented or not y.dim():
        return y if y is NotImplemented else y / y
    scale = y.diagonal().sqrt()
    return (y / scale.unsqueeze(-1) / scale).clamp(-1, 1)


def _glu(x: Any, dim: int = -1) -> Any:
    a, b = x.chunk(2, dim)
    return a * b.sigmoid()


def _prelu(x: Any, weight: Any) -> Any:
    if weight.numel() > 1 and x.dim() > 1:
        weight = weight.reshape(-1, *(1,) * (x.dim() - 2))
    return torch.where(x > 0, x, weight * x)


def _rrelu(x: Any, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, *_: Any) -> Any:
    return NotImplemented if training else F.leaky_relu(x, (lower + upper) / 2)


def _sparse_mm(a: Any, b: Any, reduce: Any = None) -> Any:
    return NotImplemented if reduce is not None else a @ b


def _sum_and_product(x: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    return added(x, a @ b, beta, alpha)


def _addbmm(x: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    return added(x, torch.einsum("bij,bjk->ik", a, b), beta, alpha)


def _addr(x: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    return added(x, torch.outer(a, b), beta, alpha)


def _cosine_similarity(a: Any, b: Any, dim: int = 1, eps: float = 1e-8) -> Any:
    if a.dtype != b.dtype:
        return NotImplemented
    a, b = (a, b) if a.shape == b.shape else torch.broadcast_tensors(a, b)
    y = (a * b).sum(dim)
    for x in (a, b):
        y = y / root(squared(x).sum(dim)).clamp_min(eps)
    return y


def _matrix_power(A: Any, n: int) -> Any:
    """Products of repeated squares."""
    if n == 0:
        return torch.eye(A.shape[-1], dtype=A.dtype, device=A.device).expand(A.shape).clone()
    if n == 1:
        return A.clone()
    A = torch.linalg.inv(A) if n < 0 else A
    y = None
    for bit in bin(abs(n))[:1:-1]:
        if bit == "1":
            y = A if y is None else y @ A
        A = A @ A
    return y


def _tensorinv(A: Any, ind: int = 2) -> Any:
    shape = A.shape[ind:] + A.shape[:ind]
    return torch.linalg.inv(A.reshape(math.prod(A.shape[:ind]), -1)).reshape(shape)


def _tensorsolve(A: Any, B: Any, dims: Any = None) -> Any:
    if dims is not None:
        A = A.movedim(dims, tuple(range(A.dim() - len(dims), A.dim())))
    shape = A.shape[B.dim() :]
    return torch.linalg.solve(A.reshape(B.numel(), -1), B.reshape(-1)).reshape(shape)


def _any_vector_norm(x: Any, ord: Any = None, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    ord = 2 if ord is None else ord
    y = vector_norm(x, ord, dim, keepdim, dtype=dtype)
    if y is not NotImplemented or x.is_complex() or not x.numel():
        return y
    x = x if dtype is None else x.to(dtype)
    dims = tuple(range(x.dim())) if dim is None else dim
    if abs(ord) == math.inf:
        return x.abs().amax(dims, keepdim) if ord > 0 else x.abs().amin(dims, keepdim)
    if ord == 0:
        return torch.linalg.vector_norm(x.detach(), 0, dims, keepdim)
    zero = x == 0
    if ord < 0:
        return NotImplemented
    magnitudes = x.masked_fill(zero, 1).abs() ** ord
    return root(magnitudes.masked_fill(zero, 0).sum(dims, keepdim), ord)


def _any_matrix_norm(x: Any, ord: Any = "fro", dim: Any = (-2, -1), keepdim: bool = False, *, dtype: Any = None) -> Any:
    dim = tuple(dim)
    if ord == "fro":
        return vector_norm(x, 2, dim, keepdim, dtype=dtype)
    if ord not in (1, -1, math.inf, -math.inf) or x.is_complex() or not x.numel():
        return NotImplemented
    x = x if dtype is None else x.to(dtype)
    rows, columns = (d % x.dim() for d in dim)
    summed, chosen = (rows, columns) if abs(ord) == 1 else (columns, rows)
    sums = x.abs().sum(summed, keepdim=True)
    y = sums.amax(chosen, keepdim=True) if ord > 0 else sums.amin(chosen, keepdim=True)
    return y if keepdim else y.squeeze(dim)


def _any_norm(x: Any, ord: Any = None, dim: Any = None, keepdim: bool = False, **options: Any) -> Any:
    if ord is None or (not isinstance(ord, str) and (isinstance(dim, int) or (dim is None and x.dim() == 1))):
        return _any_vector_norm(x, ord, dim, keepdim, **options)
    if not isinstance(ord, str) and dim is not None and len(dim) == 1:
        return _any_vector_norm(x, ord, dim, keepdim, **options)
    return _any_matrix_norm(x, ord, (-2, -1) if dim is None else dim, keepdim, **options)


def _quantile(x: Any, q: Any, dim: Any = None, keepdim: bool = False, *, interpolation: str = "linear") -> Any:
    """Quantiles, read between sorted numbers."""
    if isinstance(q, Tensor) and q.requires_grad:
        return NotImplemented
    given = x
    x = x.flatten() if dim is None or not x.dim() else x.movedim(dim, -1)
    q = torch.as_tensor(q, dtype=x.dtype, device=x.device)
    values = x.sort(-1)[0]
    at = q.reshape(-1) * (x.shape[-1] - 1)
    if interpolation == "lower":
        at = at.floor()
    elif interpolation == "higher":
        at = at.ceil()
    elif interpolation == "nearest":
        at = at.round()
    low, part = at.floor().long(), at - at.floor()
    below, above = values[..., low], values[..., at.ceil().long()]
    part = torch.full_like(part, 0.5) if interpolation == "midpoint" else part
    y = torch.lerp(below, above, part) if interpolation in ("linear", "midpoint") else below
    missing = x.isnan().any(-1, keepdim=True)
    y = torch.where(missing, math.nan, y).movedim(-1, 0)
    if keepdim and given.dim():
        y = y.reshape(-1, *(1,) * given.dim()) if dim is None else y.unsqueeze(dim % given.dim() + 1)
    return y if q.dim() else y.squeeze(0)


def _linalg_vander(x: Any, *, N: int | None = None) -> Any:
    return NotImplemented if N is not None and N < 2 else vander(x, N, increasing=True)  # PyTorch refuses fewer


def _fmax(a: Any, b: Any) -> Any:
    return torch.where((a >= b) | b.isnan(), _tied(a, b), b)


def _fmin(a: Any, b: Any) -> Any:
    return torch.where((a <= b) | b.isnan(), _tied(a, b), b)


def _tied(a: Any, b: Any) -> Any:
    """a, which from PyTorch 2.14 on shares its derivative with an equal b."""
    return torch.where(a == b, a / 2 + b / 2, a) if clamp_shares_ties else a


def _feature_dropout(x: Any, p: float, train: bool) -> Any:
    return x * torch.feature_dropout(torch.ones_like(x), p, train) if train and p else x


def _alpha_dropout(x: Any, p: float, train: bool) -> Any:
    return NotImplemented if train and p else x


def _of_nothing(function: Callable[..., Any]) -> Callable[..., Any]:
    """An empty tensor has nothing to differentiate."""

    def composed(x: Any, *args: Any, **kwargs: Any) -> Any:
        return function(x, *args, **kwargs) if x.numel() else x.clone()

    return composed


def _of_operator(function: Callable[..., Any]) -> Callable[..., Any]:
    """``aten._softmax`` and its kin, which widen half types on CUDA."""

    def composed(x: Any, dim: int, half_to_float: bool) -> Any:
        return function(x, dim, torch.float32 if half_to_float else None)

    return composed


def _rms_norm(x: Any, shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    square = x.square().mean(tuple(range(-len(shape), 0)), keepdim=True)
    return affine(x * (square + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt(), weight, None)


def _batch_norm_without_training(x: Any, weight: Any, bias: Any, mean: Any, variance: Any, *others: Any) -> Any:
    return CORRECTIONS["native_batch_norm"](x, weight, bias, mean, variance, False, *others)


COMPOSITIONS: dict[str, Callable[..., Any]] = {
    "_native_batch_norm_legit_no_training": _batch_norm_without_training,
    "cosine_similarity": _cosine_similarity,
    "cumprod": singular.cumprod,
    "logcumsumexp": _logcumsumexp,
    "prod": singular.prod,
    "diff": _diff,
    "trapezoid": _trapezoid,
    "trapz": _trapezoid,
    "cumulative_trapezoid": _cumulative_trapezoid,
    "var": variance,
    "std": _deviation,
    "var_mean": _with_mean(variance),
    "std_mean": _with_mean(_deviation),
    "nansum": _nansum,
    "nanmean": _nanmean,
    "cov": _cov,
    "corrcoef": _corrcoef,
    "softmax": _of_nothing(softmax),
    "log_softmax": _of_nothing(log_softmax),
    "_softmax": _of_operator(_of_nothing(softmax)),
    "_log_softmax": _of_operator(_of_nothing(log_softmax)),
    "dropout": dropout,
    "feature_dropout": _feature_dropout,
    "alpha_dropout": _alpha_dropout,
    "feature_alpha_dropout": _alpha_dropout,
    "glu": _glu,
    "prelu": _prelu,
    "rrelu": _rrelu,
    **dict.fromkeys(("addmm", "baddbmm", "addmv", "_sparse_addmm"), _sum_and_product),
    "_sparse_mm": _sparse_mm,
    "addbmm": _addbmm,
    "addr": _addr,
    "matrix_power": _matrix_power,
    "tensorinv": _tensorinv,
    "tensorsolve": _tensorsolve,
    "vector_norm": _any_vector_norm,
    "matrix_norm": _any_matrix_norm,
    "norm": _any_vector_norm,
    "linalg_norm": _any_norm,
    "quantile": _quantile,
    "linalg_vander": _linalg_vander,
    "fmax": _fmax,
    "fmin": _fmin,
    "msort": lambda x: x.sort(0)[0],
    "rms_norm": _rms_norm,
    "logsumexp": logsumexp,
    "masked_fill": lambda x, mask, value: torch.where(mask, value, x),
    "quadratic_form": quadratic_form,
    "gammainc": torch.igamma,
    "gammaincc": torch.igammac,
    "abs": elementwise_rules.size,
    "absolute": elementwise_rules.size,
    "angle": elementwise_rules.angle,
}
