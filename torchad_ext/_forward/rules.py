"""Rules of the sweep of Laplacians for the rest of PyTorch, most of them compositions of operations with rules.

``RULES`` holds functions of the sweep, of the operation and of its arguments: what chooses elements, which is linear
once they are chosen, and products of more than two factors. ``COMPOSITIONS`` holds plain functions with the arguments
of PyTorch's. Derivatives at kinks and ties are those that PyTorch has.
"""

from __future__ import annotations

import functools
import itertools
import math
import types
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from .._pointwise import pointwise
from .._quadratic_form import _sum
from .._torch_state import transforms_active
from .composed import dropout, known_name, logsumexp, root, softmax, squared, vector_norm

if TYPE_CHECKING:
    from .laplacian import _Sweep

LINEAR = (
    "channel_shuffle dsplit combinations narrow_copy split_with_sizes_copy grid_sampler grid_sampler_2d "
    "grid_sampler_3d stft istft"
).split()
LINEAR_IN_ALL = ("atleast_1d atleast_2d atleast_3d cartesian_prod").split()


def _selected(sweep: _Sweep, func: Any, args: Any, kwargs: Any) -> Any:
    """Values that an operation of one dimension picks, with their indices."""
    x = args[0]
    if not sweep.owns(x) or any(isinstance(y, torch.Tensor) for y in (*args[1:], *kwargs.values())):
        return NotImplemented
    named = func(x.value, *args[1:], **kwargs)
    if isinstance(named, torch.Tensor):
        return _of_equals(sweep, x, named, None, False) if len(args) == 1 and not kwargs else NotImplemented
    values, indices = named
    place, default = _DIMENSION[known_name(func)]
    dim = args[place] if len(args) > place else kwargs.get("dim", default)
    kept = values.dim() == x.dim()
    at = indices if kept else indices.unsqueeze(dim)

    def of(row: Any) -> Any:
        y = row.gather(dim, at)
        return y if kept else y.squeeze(dim)

    return type(named)((sweep.mapped(values, x, of), indices))


# The place of the dimension among the arguments, and its default.
_DIMENSION: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("max", "min", "median", "nanmedian", "mode", "topk", "sort", "cummax", "cummin"), (1, -1)),
    "kthvalue": (2, -1),
    "topk": (2, -1),
}


def _of_equals(sweep: _Sweep, x: Any, y: Any, dim: Any, keepdim: bool) -> Any:
    """The mean of the elements of x that are equal to y, which is reduced from them."""
    dims = tuple(range(x.dim())) if dim is None or dim == () else dim
    kept = y if keepdim or not x.dim() else _unsqueezed(y, dims, x.dim())
    picked = (x.value == kept) | (x.value.isnan() & kept.isnan())
    weight = picked / picked.sum(dims, keepdim=True)

    def of(row: Any) -> Any:
        return (row * weight.to(row.dtype)).sum(dims, keepdim)

    return sweep.mapped(y, x, of)


def _unsqueezed(y: Any, dims: Any, count: int) -> Any:
    """y with the dimensions over which it was reduced."""
    for i in sorted(d % count for d in ((dims,) if isinstance(dims, int) else dims)):
        y = y.unsqueeze(i)
    return y


def _extremum(sweep: _Sweep, func: Any, args: Any, kwargs: Any) -> Any:
    """amax, amin."""
    x, dim, keepdim = _given(args, kwargs, dim=None, keepdim=False)
    return _of_equals(sweep, x, func(x.value, *args[1:], **kwargs), dim, keepdim)


def _extrema(sweep: _Sweep, func: Any, args: Any, kwargs: Any) -> Any:
    x, dim, keepdim = _given(args, kwargs, dim=None, keepdim=False)
    named = func(x.value, *args[1:], **kwargs)
    return type(named)([_of_equals(sweep, x, y, dim, keepdim) for y in named])


def _given(args: Any, kwargs: Any, **defaults: Any) -> tuple[Any, ...]:
    """The first argument, and those that have defaults."""
    options = {**defaults, **dict(zip(defaults, args[1:], strict=False)), **kwargs}
    return (args[0], *(options[name] for name in defaults))


def _pooled(sweep: _Sweep, func: Any, args: Any, kwargs: Any) -> Any:
    """The largest element of each window."""
    name = known_name(func)
    n = int(name.partition("pool")[2][0])
    x, options = args[0], {key: option for key, option in kwargs.items() if key != "return_indices"}
    pool = getattr(F, f"{name.removesuffix('_with_indices')}_with_indices")
    y, indices = pool(x.value, *args[1:], **options)

    def of(row: Any) -> Any:
        return row.flatten(-n).gather(-1, indices.flatten(-n)).reshape(y.shape)

    made = sweep.mapped(y, x, of)
    native = not isinstance(func, types.FunctionType)
    indexed = name.endswith("_with_indices") or (native and name.startswith("adaptive"))
    return (made, indices) if indexed else made


def _filled(of_rows: Callable[..., Any]) -> Callable[..., Any]:
    """Constants put into x: zeros into the rows."""

    def rule(sweep: _Sweep, func: Any, args: Any, kwargs: Any) -> Any:
        if kwargs or not sweep.owns(args[0]) or any(isinstance(x, torch.Tensor) and sweep.owns(x) for x in args[1:]):
            return NotImplemented
        x, *rest = args
        return sweep.mapped(func(x.value, *rest), x, lambda row: of_rows(func, row, *rest))

    return rule


def _scattered(sweep: _Sweep, func: Any, args: Any, kwargs: Any) -> Any:
    """scatter and index_fill: of a tensor or of a number."""
    *_, source = args
    if kwargs:
        return NotImplemented
    if isinstance(source, torch.Tensor) and (source.is_floating_point() or source.is_complex()):
        return sweep.linear(func, args, kwargs, jointly=True)
    x: Any = args[0]
    return sweep.mapped(func(x.value, *args[1:]), x, lambda row: func(row, *args[1:-1], 0))


def _embedding(sweep: _Sweep, func: Any, args: Any, kwargs: Any) -> Any:
    """Rows of a table; PyTorch gives the row of the padding no derivative."""
    table, indices, padding = (*args, -1)[:3]
    if not sweep.owns(table) or padding != -1 or kwargs.get("padding_idx", -1) != -1:
        return NotImplemented
    return sweep.mapped(func(table.value, indices), table, lambda row: func(row, indices))


def _reduced_by_index(sweep: _Sweep, func: Any, args: Any, kwargs: Any) -> Any:
    """scatter_reduce."""
    linear = args[-1] in ("sum", "mean")
    return sweep.linear(func, args, kwargs, jointly=True) if linear else NotImplemented


def _of_products(sweep: _Sweep, func: Any, args: Any, kwargs: Any) -> Any:
    """prod and cumprod of numbers other than 0, by r_k = x_k / x and its sums s_k up to each element.

    y_k = y s_k and Δy = y Σ_i (Δx / x + 2 Σ ±r_k s_k')_i, for s_k' up to the element before.
    """
    name = known_name(func)
    x, dim, *rest = (*args, None) if name == "prod" and len(args) == 1 else args
    if kwargs or rest or not x.numel() or not x.dim() or x.is_complex() or transforms_active():
        return NotImplemented
    if bool((x.detach() == 0).any()):
        return NotImplemented
    x = x.flatten() if dim is None else x.movedim(dim, -1)
    ratios = torch.stack(x.tangents) / x.value
    sums = ratios.cumsum(-1)
    before = 2 * ratios[..., 1:] * sums[..., :-1]
    if min(sweep.signs) < 0:
        before = before * before.new_tensor(sweep.signs).reshape(-1, *(1,) * x.dim())
    total = F.pad(before.sum(0), (1, 0))
    if x.laplacian is not None:
        total = total + x.laplacian / x.value
    y = getattr(torch, name)(x.value, -1)
    if name == "prod":
        return sweep.tensor(y, [*(y * sums[..., -1]).unbind(), y * total.sum(-1)])
    return sweep.tensor(y, [*(y * sums).unbind(), y * total.cumsum(-1)]).movedim(-1, dim)


def multilinear(sweep: _Sweep, func: Callable[..., Any], xs: Sequence[Any]) -> Any:
    """y linear in each of the tensors, which all vary: the rule of Leibniz."""
    values = [x.value for x in xs]

    def with_rows(rows: dict[int, Any]) -> Any:
        return func(*(rows.get(i, value) for i, value in enumerate(values)))

    def total(terms: Any) -> Any:
        return functools.reduce(lambda a, b: a + b, terms)

    places, count = range(len(xs)), len(sweep.signs)
    tangents = [total(with_rows({i: xs[i].tangents[k]}) for i in places) for k in range(count)]
    mixed = [
        2 * sign * with_rows({i: xs[i].tangents[k], j: xs[j].tangents[k]})
        for k, sign in enumerate(sweep.signs)
        for i, j in itertools.combinations(places, 2)
    ]
    curved = [with_rows({i: x.laplacian}) for i, x in enumerate(xs) if x.laplacian is not None]
    return sweep.tensor(func(*values), [*tangents, _sum(*mixed, *curved)])


def of_factors(sweep: _Sweep, func: Callable[..., Any], xs: Sequence[Any]) -> Any:
    """y linear in each of the tensors, of which some vary."""
    places = [i for i, x in enumerate(xs) if sweep.owns(x)]

    def of(*varying: Any) -> Any:
        given = dict(zip(places, varying, strict=True))
        return func(*(given.get(i, x) for i, x in enumerate(xs)))

    varying = [xs[i] for i in places]
    if len(varying) == 1:
        return sweep.linear(of, varying, {})
    return sweep.product(of, *varying) if len(varying) == 2 else multilinear(sweep, of, varying)


def _chained(sweep: _Sweep, func: Any, args: Any, kwargs: Any) -> Any:
    """A product of matrices: torch.linalg.multi_dot."""
    return of_factors(sweep, lambda *xs: func(list(xs)), args[0])


def _bilinear(sweep: _Sweep, func: Any, args: Any, kwargs: Any) -> Any:
    a, b, weight, bias = (*args, None)[:4]
    y = of_factors(sweep, lambda a, b, weight: func(a, b, weight, None), (a, b, weight))
    return y if bias is None else y + bias


# Compositions.


def _reduced(y: Any, reduction: int, weight: Any = None) -> Any:
    y = y if weight is None else y * weight
    return y if reduction == 0 else y.mean() if reduction == 1 else y.sum()


def _mse_loss(x: Any, target: Any, reduction: int = 1) -> Any:
    return _reduced((x - target).square(), reduction)


def _l1_loss(x: Any, target: Any, reduction: int = 1) -> Any:
    return _reduced((x - target).abs(), reduction)


@pointwise
def _huber(error: Any, delta: Any) -> Any:
    size = error.abs()
    return torch.where(size <= delta, 0.5 * error * error, delta * (size - 0.5 * delta))


@pointwise
def _smooth_l1(error: Any, beta: Any) -> Any:
    size = error.abs()
    return torch.where(size < beta, 0.5 * error * error / beta, size - 0.5 * beta)


def _huber_loss(x: Any, target: Any, reduction: int = 1, delta: float = 1.0) -> Any:
    return _reduced(_huber(x - target, delta), reduction)


def _smooth_l1_loss(x: Any, target: Any, reduction: int = 1, beta: float = 1.0) -> Any:
    error = x - target
    return _reduced(_smooth_l1(error, beta) if beta else error.abs(), reduction)


def _binary_cross_entropy(x: Any, target: Any, weight: Any = None, reduction: int = 1) -> Any:
    """PyTorch bounds the logarithms, and its derivatives otherwise."""
    p = x.detach()
    if transforms_active() or bool((p * (1 - p) < 1e-12).any()):
        return NotImplemented
    return _reduced((target - 1) * torch.log1p(-x) - target * x.log(), reduction, weight)


def _binary_cross_entropy_with_logits(
    x: Any, target: Any, weight: Any = None, pos_weight: Any = None, reduction: int = 1
) -> Any:
    y = F.logsigmoid(x)
    if pos_weight is not None:
        y = y * (1 + (pos_weight - 1) * target)
    return _reduced((1 - target) * x - y, reduction, weight)


def _kl_div(x: Any, target: Any, reduction: int = 1, *, log_target: bool = False) -> Any:
    y = target.exp() * (target - x) if log_target else torch.xlogy(target, target) - target * x
    return _reduced(y, reduction)


def _poisson_nll_loss(x: Any, target: Any, log_input: bool, full: bool, eps: float, reduction: int) -> Any:
    y = x.exp() - target * x if log_input else x - target * (x + eps).log()
    if full:
        large = torch.where(target > 1, target, 1.0)
        stirling = large * large.log() - large + 0.5 * (2 * math.pi * large).log()
        y = y + torch.where(target > 1, stirling, 0.0)
    return _reduced(y, reduction)


def _class_weights(target: Any, weight: Any, ignored: int, like: Any) -> tuple[Any, Any]:
    """The classes, 0 where one is ignored, and their weights, 0 there."""
    counted = target != ignored
    classes = torch.where(counted, target, 0)
    return classes, counted.to(like.dtype) if weight is None else weight[classes] * counted


def _of_classes(y: Any, weights: Any, reduction: int) -> Any:
    return y if reduction == 0 else y.sum() / weights.sum() if reduction == 1 else y.sum()


def _nll_loss(x: Any, target: Any, weight: Any = None, reduction: int = 1, ignore_index: int = -100) -> Any:
    dim = min(1, x.dim() - 1)
    classes, weights = _class_weights(target, weight, ignore_index, x)
    picked = x.gather(dim, classes.unsqueeze(dim)).squeeze(dim)
    return _of_classes(torch.where(weights == 0, 0.0, -picked * weights), weights, reduction)


def _cross_entropy_loss(
    x: Any, target: Any, weight: Any = None, reduction: int = 1, ignore_index: int = -100, label_smoothing: float = 0.0
) -> Any:
    dim = min(1, x.dim() - 1)
    if not x.numel():
        return NotImplemented
    total = logsumexp(x, dim, keepdim=True)
    shape = (-1, *(1,) * (x.dim() - dim - 1))
    by_class = None if weight is None else weight.reshape(shape)
    if target.is_floating_point():
        if label_smoothing:
            target = target * (1 - label_smoothing) + label_smoothing / x.shape[dim]
        target = target if by_class is None else target * by_class
        y = ((total - x) * target).sum(dim)
        return y if reduction == 0 else y.sum() if reduction == 2 else y.sum() / (x.numel() // x.shape[dim])
    classes, weights = _class_weights(target, weight, ignore_index, x)
    y = (total - x.gather(dim, classes.unsqueeze(dim))).squeeze(dim) * weights
    y = torch.where(weights == 0, 0.0, y)
    if label_smoothing:
        smooth = ((total - x) if by_class is None else (total - x) * by_class).sum(dim)
        smooth = torch.where(target == ignore_index, 0.0, smooth)
        y = (1 - label_smoothing) * y + label_smoothing / x.shape[dim] * smooth
    return _of_classes(y, weights, reduction)


def _margin_ranking_loss(a: Any, b: Any, target: Any, margin: float = 0.0, reduction: int = 1) -> Any:
    return _reduced((margin - target * (a - b)).clamp_min(0), reduction)


def _hinge_embedding_loss(x: Any, target: Any, margin: float = 1.0, reduction: int = 1) -> Any:
    return _reduced(
        torch.where(target != 1, (margin - x).clamp_min(0), 0.0) + torch.where(target != -1, x, 0.0), reduction
    )


def _cosine_embedding_loss(a: Any, b: Any, target: Any, margin: float = 0.0, reduction: int = 1) -> Any:
    dim, eps = target.dim(), 1e-12
    y = (a * b).sum(dim) / ((a.square().sum(dim) + eps) * (b.square().sum(dim) + eps)).sqrt()
    return _reduced(
        torch.where(target == 1, 1 - y, 0.0) + torch.where(target == -1, (y - margin).clamp_min(0), 0.0), reduction
    )


def _triplet_margin_loss(
    anchor: Any, positive: Any, negative: Any, margin: float = 1.0, p: float = 2.0, eps: float = 1e-6,
    swap: bool = False, reduction: int = 1,
) -> Any:  # fmt: skip
    near = F.pairwise_distance(anchor, positive, p, eps)
    far = F.pairwise_distance(anchor, negative, p, eps)
    if swap:
        far = torch.minimum(far, F.pairwise_distance(positive, negative, p, eps))
    return _reduced((margin + near - far).clamp_min(0), reduction)


def scan(operation: Callable[[Any, Any], Any], x: Any) -> Any:
    """Cumulative sums, products, ... along the last dimension, in about 2 log₂ n operations (Ladner, Fischer, 1980)."""
    n = x.shape[-1]
    if n < 2:
        return x
    odd = scan(operation, operation(x[..., 0 : n - 1 : 2], x[..., 1::2]))
    first = x[..., :1]
    even = torch.cat([first, operation(odd[..., : (n - 1) // 2], x[..., 2::2])], -1) if n > 2 else first
    y = torch.stack([even[..., : n // 2], odd], -1).flatten(-2)
    return torch.cat([y, even[..., -1:]], -1) if n % 2 else y


def _cumprod(x: Any, dim: int, *, dtype: Any = None) -> Any:
    x = x if dtype is None else x.to(dtype)
    return x.clone() if not x.dim() or not x.numel() else scan(torch.mul, x.movedim(dim, -1)).movedim(-1, dim)


def _logcumsumexp(x: Any, dim: int) -> Any:
    if x.is_complex():
        return NotImplemented
    return x.clone() if not x.dim() or not x.numel() else scan(torch.logaddexp, x.movedim(dim, -1)).movedim(-1, dim)


def _prod(x: Any, dim: int | None = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """A tree of products."""
    x = x if dtype is None else x.to(dtype)
    if not x.dim():
        return x.clone()
    if not x.numel():
        return NotImplemented
    y = x.flatten() if dim is None else x.movedim(dim, -1)
    while y.shape[-1] > 1:
        half = y.shape[-1] // 2
        product = y[..., :half] * y[..., half : 2 * half]
        y = product if 2 * half == y.shape[-1] else torch.cat([product, y[..., -1:]], -1)
    y = y.squeeze(-1)
    return y.unsqueeze(dim) if keepdim and dim is not None else y


def _diff(x: Any, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> Any:
    if n and (prepend is not None or append is not None):
        x = torch.cat([part for part in (prepend, x, append) if part is not None], dim)
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


def _sum_and_product(x: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    return _added(x, a @ b, beta, alpha)


def _added(x: Any, product: Any, beta: float, alpha: float) -> Any:
    product = product if alpha == 1 else alpha * product
    return product if beta == 0 else x + product if beta == 1 else beta * x + product


def _addbmm(x: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    return _added(x, torch.einsum("bij,bjk->ik", a, b), beta, alpha)


def _addr(x: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    return _added(x, torch.outer(a, b), beta, alpha)


def _cosine_similarity(a: Any, b: Any, dim: int = 1, eps: float = 1e-8) -> Any:
    if a.dtype != b.dtype:
        return NotImplemented
    a, b = (a, b) if a.shape == b.shape else torch.broadcast_tensors(a, b)
    y = (a * b).sum(dim)
    for x in (a, b):
        y = y / root(squared(x).sum(dim)).clamp_min(eps)
    return y


def _matrix_power(A: Any, n: int) -> Any:
    """By squaring."""
    if n == 0:
        return torch.eye(A.shape[-1], dtype=A.dtype, device=A.device).expand(A.shape).clone()
    A = torch.linalg.inv(A) if n < 0 else A
    y = None
    for bit in bin(abs(n))[:1:-1]:
        if bit == "1":
            y = A if y is None else y @ A
        A = A @ A
    return y


def _cholesky_solve(B: Any, L: Any, upper: bool = False) -> Any:
    if L.is_complex():
        return NotImplemented
    L = L.mT if upper else L
    Z = torch.linalg.solve_triangular(L, B, upper=False)
    return torch.linalg.solve_triangular(L.mT, Z, upper=True)


def _cholesky_inverse(L: Any, upper: bool = False) -> Any:
    return _cholesky_solve(torch.eye(L.shape[-1], dtype=L.dtype, device=L.device).expand(L.shape), L, upper)


def _tensorinv(A: Any, ind: int = 2) -> Any:
    shape = A.shape[ind:] + A.shape[:ind]
    return torch.linalg.inv(A.reshape(math.prod(A.shape[:ind]), -1)).reshape(shape)


def _tensorsolve(A: Any, B: Any, dims: Any = None) -> Any:
    if dims is not None:
        A = A.movedim(dims, tuple(range(A.dim() - len(dims), A.dim())))
    shape = A.shape[B.dim() :]
    return torch.linalg.solve(A.reshape(B.numel(), -1), B.reshape(-1)).reshape(shape)


def _any_vector_norm(x: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
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
        return _any_vector_norm(x, 2 if ord is None else ord, dim, keepdim, **options)
    if not isinstance(ord, str) and dim is not None and len(dim) == 1:
        return _any_vector_norm(x, ord, dim, keepdim, **options)
    return _any_matrix_norm(x, ord, (-2, -1) if dim is None else dim, keepdim, **options)


def _quantile(x: Any, q: Any, dim: Any = None, keepdim: bool = False, *, interpolation: str = "linear") -> Any:
    """Of sorted numbers."""
    if isinstance(q, torch.Tensor) and q.requires_grad:
        return NotImplemented
    given = x
    x = x.flatten() if dim is None else x.movedim(dim, -1)
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
    if keepdim:
        y = y.reshape(-1, *(1,) * given.dim()) if dim is None else y.unsqueeze(dim % given.dim() + 1)
    return y if q.dim() else y.squeeze(0)


def _vander(x: Any, *, N: int | None = None) -> Any:
    return torch.stack([x**i for i in range(x.shape[-1] if N is None else N)], -1)


def _ldexp(x: Any, other: Any) -> Any:
    return x * torch.exp2(other)


def _fmax(a: Any, b: Any) -> Any:
    return torch.where((a >= b) | b.isnan(), a, b)


def _fmin(a: Any, b: Any) -> Any:
    return torch.where((a <= b) | b.isnan(), a, b)


def _mvlgamma(x: Any, p: int) -> Any:
    halves = torch.arange(p, dtype=x.dtype, device=x.device) / 2
    return (x.unsqueeze(-1) - halves).lgamma().sum(-1) + p * (p - 1) / 4 * math.log(math.pi)


def _feature_dropout(x: Any, p: float = 0.5, train: bool = True) -> Any:
    return x * torch.feature_dropout(torch.ones_like(x), p, train) if train and p else x


def _alpha_dropout(x: Any, p: float = 0.5, train: bool = True) -> Any:
    return NotImplemented if train and p else x


def _of_nothing(function: Callable[..., Any]) -> Callable[..., Any]:
    """An empty tensor has nothing to differentiate."""

    def composed(x: Any, *args: Any, **kwargs: Any) -> Any:
        return function(x, *args, **kwargs) if x.numel() else x.clone()

    return composed


def _log_softmax(x: Any, dim: int, dtype: Any = None) -> Any:
    x = x if dtype is None else x.to(dtype)
    return x - logsumexp(x, dim, keepdim=True)


_POOLS = ("", "adaptive_")
# By the name of an operation, with the sweep, the operation and its arguments; NotImplemented where it does not fit.
RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys("max min median nanmedian mode kthvalue topk sort cummax cummin".split(), _selected),
    "amax": _extremum,
    "amin": _extremum,
    "aminmax": _extrema,
    **{f"{kind}max_pool{n}d{end}": _pooled for kind in _POOLS for n in (1, 2, 3) for end in ("", "_with_indices")},
    "constant_pad_nd": _filled(lambda func, row, pad, *_: func(row, pad)),
    "scatter": _scattered,
    "index_fill": _scattered,
    "embedding": _embedding,
    "scatter_reduce": _reduced_by_index,
    "prod": _of_products,
    "cumprod": _of_products,
    "multi_dot": _chained,
    "bilinear": _bilinear,
}
# Written with operations that have rules; the arguments are those of PyTorch's function.
COMPOSITIONS: dict[str, Callable[..., Any]] = {
    "mse_loss": _mse_loss,
    "l1_loss": _l1_loss,
    "smooth_l1_loss": _smooth_l1_loss,
    "huber_loss": _huber_loss,
    "binary_cross_entropy": _binary_cross_entropy,
    "binary_cross_entropy_with_logits": _binary_cross_entropy_with_logits,
    "kl_div": _kl_div,
    "poisson_nll_loss": _poisson_nll_loss,
    "nll_loss_nd": _nll_loss,
    "cross_entropy_loss": _cross_entropy_loss,
    "margin_ranking_loss": _margin_ranking_loss,
    "hinge_embedding_loss": _hinge_embedding_loss,
    "cosine_embedding_loss": _cosine_embedding_loss,
    "triplet_margin_loss": _triplet_margin_loss,
    "cosine_similarity": _cosine_similarity,
    "cumprod": _cumprod,
    "logcumsumexp": _logcumsumexp,
    "prod": _prod,
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
    "log_softmax": _of_nothing(_log_softmax),
    "dropout": dropout,
    "feature_dropout": _feature_dropout,
    "alpha_dropout": _alpha_dropout,
    "feature_alpha_dropout": _alpha_dropout,
    "glu": _glu,
    "prelu": _prelu,
    "rrelu": _rrelu,
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), _sum_and_product),
    "addbmm": _addbmm,
    "addr": _addr,
    "matrix_power": _matrix_power,
    "cholesky_solve": _cholesky_solve,
    "cholesky_inverse": _cholesky_inverse,
    "tensorinv": _tensorinv,
    "tensorsolve": _tensorsolve,
    "vector_norm": _any_vector_norm,
    "matrix_norm": _any_matrix_norm,
    "norm": _any_norm,
    "quantile": _quantile,
    "vander": _vander,
    "ldexp": _ldexp,
    "fmax": _fmax,
    "fmin": _fmin,
    "mvlgamma": _mvlgamma,
    "msort": lambda x: x.sort(0)[0],
}
