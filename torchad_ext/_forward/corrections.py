"""Functions of PyTorch whose derivatives are wrong, missing or not finite, composed of operations that have right ones.

``docs/where_pytorch_is_wrong.md`` lists them, with what is wrong at which order. The tools run a function under
:class:`torchad_ext._forward.correction_mode.Correcting`, which puts these in place of PyTorch's.

The derivatives of a norm, a distance and ``hypot`` at 0, where they have none, are 0 at every order. The even powers of
a norm are smooth there: a power is taken of the sum of squares under the root, |x|² being x·x, also of a norm that was
scaled or reshaped.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map

from .._pointwise import pointwise
from .._torch_state import in_forward_mode, nn_functions, transforms_active
from . import factorizations, singular
from .calls import unguarded
from .roots import is_root, root, squared
from .singular import quotients_are_right
from .softmax import attention, logcumsumexp

_HALF = (torch.float16, torch.bfloat16)


def _wide(function: Callable[..., Any]) -> Callable[..., Any]:
    """In float32 for half types, as PyTorch computes it."""

    @functools.wraps(function)
    def of_any(x: Any, *args: Any, **kwargs: Any) -> Any:
        if x.dtype not in _HALF or kwargs.get("dtype") is not None:
            return function(x, *args, **kwargs)
        args, kwargs = tree_map(lambda y: y.float() if getattr(y, "dtype", None) in _HALF else y, (args, kwargs))
        y = function(x.float(), *args, **kwargs)
        return y if y is NotImplemented else tree_map(lambda part: part.to(x.dtype), y)

    return of_any


def _varies(x: Any) -> bool:
    """May x have a derivative?"""
    return x.requires_grad or transforms_active() or in_forward_mode()


def affine(x: Any, weight: Any, bias: Any) -> Any:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def added(x: Any, product: Any, beta: float, alpha: float) -> Any:
    """The sum of a bias and a product, as ``addmm`` has it."""
    product = product if alpha == 1 else alpha * product
    return product if beta == 0 else x + product if beta == 1 else beta * x + product


def _normalized(x: Any, dims: Any, eps: float) -> tuple[Any, Any, Any]:
    """x with mean 0 and variance 1, its mean and the reciprocal of its standard deviation."""
    mean = x.mean(dims, keepdim=True)
    centred = x - mean
    scale = (centred.square().mean(dims, keepdim=True) + eps).rsqrt()
    return centred * scale, mean, scale


def _native_layer_norm(x: Any, shape: Any, weight: Any, bias: Any, eps: float) -> Any:
    y, mean, scale = _normalized(x, tuple(range(-len(shape), 0)), eps)
    return affine(y, weight, bias), mean.detach(), scale.detach()


@_wide
def layer_norm(x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> Any:
    return _native_layer_norm(x, shape, weight, bias, eps)[0]


def of_channels(x: Any, *parameters: Any) -> list[Any]:
    """Parameters [channels] in the shape that goes with x [batch, channels, ...]."""
    return [None if p is None else p.reshape(-1, *(1,) * (x.dim() - 2)) for p in parameters]


@_wide
def _group_norm(x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> Any:
    y = _normalized(x.reshape(x.shape[0], groups, math.prod(x.shape[1:]) // groups), -1, eps)[0].reshape(x.shape)
    return affine(y, *of_channels(x, weight, bias))


def _native_group_norm(x: Any, weight: Any, bias: Any, N: int, C: int, HxW: int, groups: int, eps: float) -> Any:
    y, mean, scale = _normalized(x.reshape(N, groups, C * HxW // groups), -1, eps)
    return affine(y.reshape(x.shape), *of_channels(x, weight, bias)), mean.squeeze(-1), scale.squeeze(-1)


@_wide
def batch_norm(
    x: Any, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, momentum: float, eps: float, *_: Any
) -> Any:
    weight, bias = of_channels(x, weight, bias)
    if not training:
        mean, variance = of_channels(x, mean, variance)
        return affine((x - mean) * (variance + eps).rsqrt(), weight, bias)
    if x.numel() == x.shape[1]:
        return NotImplemented  # PyTorch refuses one value a channel, or has its reasons
    if mean is not None:  # it updates the running statistics
        torch.batch_norm(x.detach(), None, None, mean, variance, True, momentum, eps, False)
    return affine(_normalized(x, (0, *range(2, x.dim())), eps)[0], weight, bias)


def _native_batch_norm(
    x: Any, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, momentum: float, eps: float
) -> Any:
    _, *statistics = torch.native_batch_norm(x.detach(), None, None, mean, variance, training, momentum, eps)
    y = batch_norm(x, weight, bias, None if training else mean, variance, training, momentum, eps)
    return y if y is NotImplemented else (y, *statistics)


def _legit(native: Callable[..., Any]) -> Callable[..., Any]:
    """``native_batch_norm`` as ``aten._native_batch_norm_legit``, which may be given no statistics to update."""

    def composed(x: Any, weight: Any, bias: Any, *others: Any) -> Any:
        mean, variance = others[:-3] or (None, None)
        return native(x, weight, bias, mean, variance, *others[-3:])

    return composed


@_wide
def instance_norm(
    x: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    variance: Any,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> Any:
    if not use_input_stats:
        return batch_norm(x, weight, bias, mean, variance, False, momentum, eps)
    if mean is not None:  # it updates the running statistics
        torch.instance_norm(x.detach(), None, None, mean, variance, True, momentum, eps, False)
    return affine(_normalized(x, tuple(range(2, x.dim())), eps)[0], *of_channels(x, weight, bias))


@_wide
def vector_norm(x: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    x = x if dtype is None else x.to(dtype)
    dim = tuple(range(x.dim())) if dim is None else dim
    if ord == 2:
        return root(squared(x).sum(dim, keepdim))
    if ord == 1 and not x.is_complex():
        return x.abs().sum(dim, keepdim)
    if 2 < ord < math.inf:
        magnitudes = squared(x) ** (ord / 2) if x.is_complex() or ord % 2 == 0 else x.abs() ** ord
        return root(magnitudes.sum(dim, keepdim), ord)
    return NotImplemented


def _norm_of_all(x: Any, p: Any = None, dim: Any = None, keepdim: bool = False, **options: Any) -> Any:
    return vector_norm(x, 2 if p is None else p, dim, keepdim, **options)


def _norm(x: Any, ord: Any = None, dim: Any = None, keepdim: bool = False, **options: Any) -> Any:
    if ord is None or (not isinstance(ord, str) and (isinstance(dim, int) or (dim is None and x.dim() == 1))):
        return vector_norm(x, 2 if ord is None else ord, dim, keepdim, **options)
    return _matrix_norm(x, ord, (-2, -1) if dim is None else dim, keepdim, **options)


def _matrix_norm(x: Any, ord: Any = "fro", dim: Any = (-2, -1), keepdim: bool = False, **options: Any) -> Any:
    return vector_norm(x, 2, tuple(dim), keepdim, **options) if ord == "fro" else NotImplemented


def _norm_of(x: Any, p: float, dim: Any, keepdim: bool = False) -> Any:
    y = vector_norm(x, p, dim, keepdim)
    return torch.linalg.vector_norm(x, p, dim, keepdim) if y is NotImplemented else y


def _cdist(a: Any, b: Any, p: float = 2.0, _mode: Any = None) -> Any:
    return _norm_of(a.unsqueeze(-2) - b.unsqueeze(-3), p, -1)


def _pdist(x: Any, p: float = 2.0) -> Any:
    i, j = torch.triu_indices(len(x), len(x), 1, device=x.device)
    return _norm_of(x[i] - x[j], p, -1)


def _pairwise_distance(a: Any, b: Any, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Any:
    return _norm_of(a - b + eps, p, -1, keepdim)


def _dist(a: Any, b: Any, p: float = 2.0) -> Any:
    return _norm_of(a - b, p, None)


def _cosine_similarity(a: Any, b: Any, dim: int = 1, eps: float = 1e-8) -> Any:
    a, b = torch.broadcast_tensors(a, b)
    norms = [vector_norm(x, 2, dim, True).clamp_min(eps) for x in (a, b)]
    return (a / norms[0] * (b / norms[1])).sum(dim)


def _renorm(x: Any, p: float, dim: int, maxnorm: float) -> Any:
    dims = tuple(i for i in range(x.dim()) if i != dim % x.dim())
    norm = _norm_of(x, p, dims, True)
    return x * torch.where(norm > maxnorm, maxnorm / (norm + 1e-7), 1.0)


def _weight_norm(v: Any, g: Any, dim: int = 0) -> Any:
    dims = tuple(range(v.dim())) if dim == -1 else tuple(i for i in range(v.dim()) if i != dim)
    return v * (g / vector_norm(v, 2, dims, True))


def _hypot(a: Any, b: Any) -> Any:
    size = torch.maximum(a.detach().abs(), b.detach().abs())
    size = size.masked_fill((size == 0) | size.isinf(), 1)
    y = size * root((a / size).square() + (b / size).square())
    return is_root(y, 2, lambda: squared(a) + squared(b), a, b)


def _by_table(function: Callable[..., Any]) -> Callable[..., Any]:
    """By the derivatives of ``_symbolic/operations.py``, as in the sweeps: those of PyTorch lose their digits, or are
    nan, next to 0 or far from it."""
    op = functools.cache(lambda: pointwise(function))

    def composed(*xs: Any) -> Any:
        if not all(x.is_floating_point() for x in xs) or not any(map(_varies, xs)):
            return NotImplemented
        return op()(*xs)

    return composed


@_by_table
def _gelu_by_tanh(x: Any) -> Any:
    return F.gelu(x, approximate="tanh")


def _gelu(x: Any, *, approximate: str = "none") -> Any:
    return _gelu_by_tanh(x) if approximate == "tanh" else NotImplemented


def _mvlgamma(x: Any, p: int) -> Any:
    if not x.is_floating_point() or not _varies(x):
        return NotImplemented
    halves = torch.arange(p, dtype=x.dtype, device=x.device) / 2
    return _lgamma(x.unsqueeze(-1) - halves).sum(-1) + p * (p - 1) / 4 * math.log(math.pi)


_lgamma, _digamma = _by_table(torch.lgamma), _by_table(torch.digamma)


def _logaddexp(function: Callable[..., Any]) -> Callable[..., Any]:
    """The other one where one is -inf, and without a slope where both are."""
    of_finite = _by_table(function)

    def composed(a: Any, b: Any) -> Any:
        a_ends, b_ends = a.detach() == -math.inf, b.detach() == -math.inf
        y = of_finite(a.masked_fill(a_ends, 0), b.masked_fill(b_ends, 0))
        if y is NotImplemented:
            return y
        return torch.where(a_ends, torch.where(b_ends, -math.inf, b), torch.where(b_ends, a, y))

    return composed


def _pow(base: Any, exponent: Any) -> Any:
    """0^b without a slope in b where b is above 0: PyTorch masks 0^b log 0, and the next slope is nan."""
    if not (isinstance(base, torch.Tensor) and isinstance(exponent, torch.Tensor) and _varies(exponent)):
        return NotImplemented
    if base.is_complex() or exponent.is_complex():
        return _power(base, exponent)
    zeros = (base.detach() == 0) & (exponent.detach() > 0)
    if singular.is_nowhere(zeros):
        return _power(base, exponent)
    others = base.masked_fill(zeros, 1)
    y = _power(others, exponent)
    at_0 = base.masked_fill(~zeros, 1) ** exponent.detach()
    return torch.where(zeros, at_0, others**exponent if y is NotImplemented else y)


def _power(base: Any, exponent: Any) -> Any:
    """a^b = a^n exp((b - n) log a) where b is n = 0, 1, 2, ..., a number that no derivative sees.

    PyTorch's slope b a^(b-1) is masked where b is 0, as if it were 0 for every b there: so the next slope in b is lost,
    and after n slopes in a that of b = n.
    """
    dtype = torch.result_type(base, exponent)
    a, b, n = base.to(dtype), exponent.to(dtype), exponent.detach().to(dtype)
    order, size = (n.real, a.detach().abs()) if dtype.is_complex else (n, a.detach())
    is_whole = (order >= 0) & (order.frac() == 0) & (order == n)
    if singular.is_nowhere(is_whole):
        return NotImplemented
    # The slope is infinite where a^n overflows, and of log a at infinity and at the smallest of all numbers.
    chosen = is_whole & (size >= torch.finfo(dtype).tiny) & size.isfinite() & (a.detach() ** n).isfinite()
    others, rest = ~chosen, b - n
    if singular.is_nowhere(others):
        return a**n * (rest * a.log()).exp()
    far = a.masked_fill(chosen, 1) ** b
    a, n, rest = (x.masked_fill(others, 1) for x in torch.broadcast_tensors(a, n, rest))
    return torch.where(others, far, a**n * (rest * a.log()).exp())


def _float_power(base: Any, exponent: Any) -> Any:
    if not (isinstance(base, torch.Tensor) and isinstance(exponent, torch.Tensor)):
        return NotImplemented
    dtype = torch.complex128 if base.is_complex() or exponent.is_complex() else torch.float64
    return _pow(base.to(dtype), exponent.to(dtype))


def _ldexp(x: Any, exponent: Any) -> Any:
    """PyTorch's slope for integers is an integer power of 2: 0 where they are negative."""
    if exponent.is_floating_point() or exponent.is_complex():
        return x * torch.exp2(exponent)
    if not (x.is_floating_point() or x.is_complex()):
        return NotImplemented
    half = exponent // 2  # 2^n may overflow where x 2^n does not
    of_half, of_rest = (torch.exp2(n.to(x.dtype.to_real())) for n in (half, exponent - half))
    return x * of_half * of_rest


def vander(x: Any, N: int | None = None, increasing: bool = False) -> Any:
    powers = range(x.shape[-1] if N is None else N)
    if not powers or not (x.is_floating_point() or x.is_complex()):
        return NotImplemented
    return torch.stack([x**i for i in (powers if increasing else reversed(powers))], -1)


def polar(r: Any, phase: Any) -> Any:
    """Also of a radius that is negative, of which PyTorch's slope has another sign, and of 0, where that is 0."""
    return torch.complex(r * phase.cos(), r * phase.sin())


def _celu(x: Any, alpha: float = 1.0) -> Any:
    """PyTorch's slope rounds alpha to float32, that of ``elu`` does not."""
    return nn_functions().elu(x, alpha, 1, 1 / alpha) if alpha else NotImplemented


def _gaussian_nll_loss(x: Any, target: Any, var: Any, full: bool = False, eps: float = 1e-6, *reduction: Any) -> Any:
    """PyTorch bounds the variance under ``no_grad``, so that the loss has a slope where it is constant."""
    if isinstance(var, torch.Tensor):
        var = torch.where(var < 0, var, var.clamp_min(eps))  # PyTorch refuses a negative one
    return unguarded(F.gaussian_nll_loss)(x, target, var, full, eps, *reduction)


def _reduced(y: Any, reduction: int) -> Any:
    return y if reduction == 0 else y.mean() if reduction == 1 else y.sum()


def _hardsigmoid(x: Any) -> Any:
    return torch.where((x > -3) & (x < 3), x / 6 + 0.5, (x >= 3).to(x.dtype))


def _huber_loss(x: Any, target: Any, reduction: int = 1, delta: float = 1.0) -> Any:
    error = x - target
    size = error.abs()
    return _reduced(torch.where(size < delta, 0.5 * error.square(), delta * (size - 0.5 * delta)), reduction)


def _soft_margin_loss(x: Any, target: Any, reduction: int = 1) -> Any:
    return _reduced(-F.logsigmoid(target * x), reduction)


def _multi_margin_loss(
    x: Any, target: Any, p: float = 1, margin: float = 1, weight: Any = None, reduction: int = 1
) -> Any:
    rows, target = (x, target) if x.dim() > 1 else (x.unsqueeze(0), target.reshape(1))
    chosen = target.unsqueeze(-1)
    y = (margin - rows.gather(-1, chosen) + rows).clamp_min(0)
    y = y if p == 1 else y.square()
    y = y if weight is None else y * weight[chosen]
    others = torch.ones_like(y).scatter(-1, chosen, 0)
    y = (y * others).sum(-1) / rows.shape[-1]
    return _reduced(y if x.dim() > 1 else y.squeeze(0), reduction)


def _multilabel_margin_loss(x: Any, target: Any, reduction: int = 1) -> Any:
    named = (target >= 0).cumprod(-1)  # up to the first -1
    places = target.clamp_min(0)
    is_target = torch.zeros_like(target).scatter_add(-1, places, named) > 0
    violations = (1 - x.gather(-1, places).unsqueeze(-1) + x.unsqueeze(-2)).clamp_min(0)
    counted = named.unsqueeze(-1) * ~is_target.unsqueeze(-2)
    return _reduced((violations * counted).sum((-2, -1)) / x.shape[-1], reduction)


def _triangular_solve(b: Any, A: Any, upper: bool = True, transpose: bool = False, unitriangular: bool = False) -> Any:
    factor = A.mT if transpose else A
    x = torch.linalg.solve_triangular(factor, b, upper=upper != transpose, unitriangular=unitriangular)
    return torch.return_types.triangular_solve((x, A.clone()))


def _linear_cross_entropy(*args: Any, options: Any = None, **kwargs: Any) -> Any:
    """Without chunks, whose backward has no derivative."""
    return unguarded(F.linear_cross_entropy)(*args, **kwargs)


def _conv_transpose(function: Callable[..., Any], n: int) -> Callable[..., Any]:
    """The output is padded, or cut, afterwards: PyTorch's third derivative takes no ``output_padding``."""

    def composed(
        x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
        groups: int = 1, dilation: Any = 1,
    ) -> Any:  # fmt: skip
        sizes = ((p,) if isinstance(p, int) else tuple(p) for p in (padding, output_padding))
        cuts, more = (p * (n // len(p)) for p in sizes)
        if not any(more):
            return NotImplemented
        full = function(x, weight, None, stride, 0, 0, groups, dilation)
        y = F.pad(full, [size for c, m in zip(cuts[::-1], more[::-1], strict=True) for size in (-c, m - c)])
        return y if bias is None else y + bias.reshape(-1, *(1,) * n)

    return composed


def _cumprod(x: Any, *args: Any, **kwargs: Any) -> Any:
    is_right = not _has_derivatives(x) or quotients_are_right(x, torch.cumprod(x.detach(), *args, **kwargs))
    return NotImplemented if is_right else singular.cumprod(x, *args, **kwargs)


def _prod(x: Any, *args: Any, **kwargs: Any) -> Any:
    if not _has_derivatives(x):
        return NotImplemented
    if not singular.is_quicker_by_factors(x, *args) and quotients_are_right(x, torch.prod(x.detach(), *args, **kwargs)):
        return NotImplemented
    return singular.prod(x, *args, **kwargs)


def _has_derivatives(x: Any) -> bool:
    return bool(x.is_floating_point() or x.is_complex())


# The arguments are those of PyTorch's function; NotImplemented where it is right.
CORRECTIONS: dict[str, Callable[..., Any]] = {
    "layer_norm": layer_norm,
    "native_layer_norm": _native_layer_norm,
    "group_norm": _group_norm,
    "native_group_norm": _native_group_norm,
    "batch_norm": batch_norm,
    "native_batch_norm": _native_batch_norm,
    "_native_batch_norm_legit": _legit(_native_batch_norm),
    "instance_norm": instance_norm,
    "logaddexp": _logaddexp(torch.logaddexp),
    "logaddexp2": _logaddexp(torch.logaddexp2),
    "sinc": _by_table(torch.sinc),
    "log_ndtr": _by_table(torch.special.log_ndtr),
    "erfcx": _by_table(torch.special.erfcx),
    "mish": _by_table(nn_functions().mish),
    "gelu": _gelu,
    **dict.fromkeys(("lgamma", "gammaln"), _lgamma),
    **dict.fromkeys(("digamma", "psi"), _digamma),
    **dict.fromkeys(("mvlgamma", "multigammaln"), _mvlgamma),
    "logcumsumexp": logcumsumexp,
    "scaled_dot_product_attention": attention,
    "vector_norm": vector_norm,
    "norm": _norm_of_all,
    "linalg_norm": _norm,
    "matrix_norm": _matrix_norm,
    "cdist": _cdist,
    "pdist": _pdist,
    "pairwise_distance": _pairwise_distance,
    "dist": _dist,
    "cosine_similarity": _cosine_similarity,
    "renorm": _renorm,
    "_weight_norm": _weight_norm,
    "hypot": _hypot,
    "det": singular.det,
    "slogdet": factorizations.slogdet,
    "logdet": factorizations.logdet,
    "solve": factorizations.solve,
    "solve_ex": factorizations.solve_ex,
    "tensorsolve": factorizations.tensorsolve,
    "cholesky_solve": factorizations.cholesky_solve,
    "cholesky_inverse": factorizations.cholesky_inverse,
    "householder_product": factorizations.householder_product,
    "orgqr": factorizations.householder_product,
    "prod": _prod,
    "cumprod": _cumprod,
    "pow": _pow,
    "float_power": _float_power,
    "ldexp": _ldexp,
    "polar": polar,
    "vander": vander,
    "celu": _celu,
    "hardsigmoid": _hardsigmoid,
    "huber_loss": _huber_loss,
    "gaussian_nll_loss": _gaussian_nll_loss,
    "soft_margin_loss": _soft_margin_loss,
    "multi_margin_loss": _multi_margin_loss,
    "multilabel_margin_loss": _multilabel_margin_loss,
    "triangular_solve": _triangular_solve,
    "linear_cross_entropy": _linear_cross_entropy,
    "conv_transpose1d": _conv_transpose(torch.conv_transpose1d, 1),
    "conv_transpose2d": _conv_transpose(torch.conv_transpose2d, 2),
    "conv_transpose3d": _conv_transpose(torch.conv_transpose3d, 3),
}
