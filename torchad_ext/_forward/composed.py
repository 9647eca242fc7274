"""Functions of PyTorch whose derivatives are wrong, missing or not finite, composed of operations that have right ones.

``docs/where_pytorch_is_wrong.md`` lists them, with what is wrong at which order. The tools run a function under
:class:`Composing`, which puts these in place of PyTorch's.

The derivatives of a norm, a distance and ``hypot`` at 0, where they have none, are 0 at every order. The even powers of
a norm are smooth there: a power is taken of the sum of squares under the root, |x|² being x·x, also of a norm that was
scaled or reshaped.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakIdKeyDictionary

from .._symbolic.torch_names import is_of_torch, name_of
from .._torch_state import (
    OpOverload,
    schemas,
    top_saved_tensors_hooks,
    without_compilation,
    without_torch_function,
)

_IN_PYTHON = ("torch.nn.functional", "torch.functional", "torch._tensor")
_HALF = (torch.float16, torch.bfloat16)


class Composing(TorchFunctionMode):
    """Calls the functions of this module in place of those of PyTorch that have their names."""

    _running: Any = None  # a function in Python: what it calls by super() has its name

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            return func(*args, **kwargs)
        kind, of = _found(func) if func.__hash__ else ("native", func)
        if kind == "native" or (types and any(map(_overrides, types))):
            return func(*args, **kwargs)
        if kind == "python" and func is not self._running:
            before, self._running = self._running, func
            try:
                with self:
                    return of(*args, **kwargs)
            finally:
                self._running = before
        if kind == "composed":
            _recompute_alike()
            args, kwargs = positional(func, args, kwargs)
            result = of(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return with_powers(func, args, kwargs, lambda: func(*args, **kwargs))


def _recompute_alike() -> None:
    """Within ``torch.utils.checkpoint``: what is run again in a backward, later, is composed too."""
    hooks = top_saved_tensors_hooks()
    unpack: Any = hooks[1] if hooks else None
    if getattr(unpack, "__module__", None) != "torch.utils.checkpoint":
        return
    frame = inspect.getclosurevars(unpack).nonlocals.get("frame")
    if frame and not hasattr(frame.recompute_fn, "__wrapped__"):
        frame.recompute_fn = composing(frame.recompute_fn)


def composing(f: Callable[..., Any]) -> Callable[..., Any]:
    """f, run under :class:`Composing`."""

    @functools.wraps(f)
    def composed(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return f(*args, **kwargs)
        # Where Dynamo skips f, it compiles the mode, and takes one function of PyTorch for another there.
        with without_compilation(), Composing():
            return f(*args, **kwargs)

    return composed


def _overrides(kind: type) -> bool:
    """Has a class of tensors a ``__torch_function__`` of its own?"""
    method = getattr(kind, "__torch_function__", None)
    return getattr(method, "__func__", method) is not Tensor.__torch_function__.__func__  # type: ignore[attr-defined]


@functools.lru_cache(2048)
def _found(func: Any) -> tuple[str, Any]:
    """How to call a function: by its composition, by its parts in Python, watched for powers of norms, or as it is."""
    if is_of_torch(func):
        composed = None if without_guard(func) else COMPOSED.get(known_name(func))
        if without_guard(func) and _reaches(func, set()):
            return "python", without_guard(func)
        if composed:
            return "composed", composed
        if _watched(func):
            return "watched", func
    return "native", func


def _reaches(func: Any, seen: set[Any]) -> bool:
    """May a function in Python call what is composed, or take a power?"""
    seen.add(func)
    names = set(func.__code__.co_names)
    called = (func.__globals__.get(name) for name in names)
    return bool(names & (COMPOSED.keys() | _ROOTS | _POWERS)) or any(
        _reaches(f, seen) for f in called if _is_python(f) and f not in seen
    )


def known_name(func: Any) -> str:
    """The name of a function of PyTorch, ``layer_norm`` for the overload ``torch.ops.aten.layer_norm.default``."""
    if isinstance(func, OpOverload):
        func = func.overloadpacket
    return name_of(func).removeprefix("linalg_")


def _is_python(func: Any) -> bool:
    # The module that the code is in: F.max_pool1d calls by closures, whose guards stay.
    return isinstance(func, types.FunctionType) and func.__globals__["__name__"] in _IN_PYTHON


@functools.lru_cache(2048)
def without_guard(func: Any) -> Any:
    """A function of PyTorch in Python that does not ask ``__torch_function__`` for itself; None for another one, and
    for one that is composed as a whole."""
    return _copied(func) if _is_python(func) and func.__name__ not in _OF_PYTHON else None


def _copied(func: Any) -> Any:
    guards = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    names = {**func.__globals__, **dict.fromkeys(guards, lambda *_: False)}
    copy = types.FunctionType(func.__code__, names, func.__name__, func.__defaults__, func.__closure__)
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


# What PyTorch's parser takes besides the names in its schemas.
_ALIASES = {"axis": "dim", "keepdims": "keepdim", "x": "input", "a": "input", "x1": "input", "x2": "other"}


def positional(func: Any, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a function of PyTorch with those that have names in their places, as far as there is no gap."""
    if not kwargs:
        return args, kwargs
    for places, others in _signatures(func):
        known = {*places, *others}
        given = {k if k in known else _ALIASES.get(k, k): x for k, x in kwargs.items()}
        if len(args) <= len(places) and given.keys() <= known - set(places[: len(args)]):
            filled = list(args)
            for name in places[len(args) :]:
                if name not in given:
                    break
                filled.append(given.pop(name))
            return tuple(filled), given
    return args, kwargs


@functools.lru_cache(2048)
def _signatures(func: Any) -> list[tuple[list[str], list[str]]]:
    """For each overload of a function the names of its arguments, and of those that have no place."""
    if isinstance(func, types.FunctionType):
        count = func.__code__.co_argcount
        names = func.__code__.co_varnames[: count + func.__code__.co_kwonlyargcount]
        return [(list(names[:count]), list(names[count:]))]
    name = getattr(func, "__name__", "").partition(".")[0].strip("_")
    found = []
    for schema in schemas(name):
        # Python takes a memory_format by its name alone.
        given = [
            ("input" if a.name == "self" else a.name, a.kwarg_only or a.name == "memory_format")
            for a in schema.arguments
        ]
        found.append(([n for n, by_name in given if not by_name], [n for n, by_name in given if by_name]))
    return found


# Powers of roots: for a tensor y = s**(1 / p) its version, p, and s.
_powers: Any = WeakIdKeyDictionary()
_KEEPS = frozenset(
    "reshape reshape_as view view_as flatten unflatten squeeze unsqueeze transpose permute movedim moveaxis swapaxes "
    "swapdims T mT t expand expand_as broadcast_to contiguous clone to type_as float double narrow select index_select "
    "gather take take_along_dim getitem unfold roll flip tile repeat repeat_interleave diagonal diag diag_embed".split()
)
_PRODUCTS = frozenset("mul multiply rmul".split())
_QUOTIENTS = frozenset("div divide true_divide truediv".split())
_ROOTS = frozenset("abs absolute std".split())
_POWERS = frozenset("pow float_power square".split()) | _PRODUCTS
_WATCHED = _KEEPS | _PRODUCTS | _QUOTIENTS | _ROOTS | _POWERS | {"neg", "negative"}


def with_powers(func: Any, args: Any, kwargs: Any, call: Callable[[], Any]) -> Any:
    """The result of a call; where it is a power of a norm, without the root."""
    kind = _watched(func)
    if not kind or not (_powers or kind in _ROOTS) or not args:
        return call()
    power = _power(kind, args, kwargs)
    if power is not None:
        _recompute_alike()
        return power
    result = call()
    if isinstance(result, Tensor):
        _follow(func, kind, args, kwargs, result)
    return result


@functools.lru_cache(2048)
def _watched(func: Any) -> str | None:
    name = known_name(func)
    name = name.strip("_") if name.startswith("__") else name
    return name if name in _WATCHED and is_of_torch(func) else None


def _root_of(y: Any) -> tuple[float, Callable[[], Any]] | None:
    """p and s of y = s**(1 / p), if y is known to be one and was not written to since."""
    entry = _powers.get(y) if isinstance(y, Tensor) and _powers else None
    return None if entry is None or entry[0] != _version(y) else entry[1:]


def _version(y: Tensor) -> int:
    with without_torch_function():
        return -1 if y.is_inference() else y._version


def is_root(y: Any, p: float, s: Callable[[], Any]) -> Any:
    """Notes that y = s**(1 / p), and returns y."""
    _powers[y] = (_version(y), p, s)
    return y


def _power(kind: str, args: Any, kwargs: Any) -> Any:
    if kind not in _POWERS or kwargs:
        return None
    if kind in _PRODUCTS:
        exponent: Any = 2 if len(args) == 2 and args[0] is args[1] else None
    else:
        exponent = 2 if kind == "square" else args[1] if len(args) == 2 else None
    if not isinstance(exponent, numbers.Real) or exponent <= 0:
        return None
    root = _root_of(args[0])
    if root is None or exponent % root[0]:
        return None
    s, exponent = root[1](), int(float(exponent) / root[0])
    return s if exponent == 1 else s**exponent


def _follow(func: Any, kind: str, args: Any, kwargs: Any, result: Tensor) -> None:
    """Notes of a result that it is a root, if it is."""
    first = args[0]
    if kind in ("abs", "absolute"):
        is_root(result, 2, lambda: squared(first))
    elif kind == "std":
        is_root(result, 2, lambda: torch.var(*args, **kwargs))
    elif kind in ("neg", "negative") or kind in _KEEPS:
        root = _root_of(first)
        if root and (root[0] % 2 == 0 or kind in _KEEPS):
            p, s = root
            is_root(result, p, s if kind not in _KEEPS else lambda: func(s(), *args[1:], **kwargs))
    elif not kwargs and len(args) == 2:
        y, c = (args[1], first) if kind in _PRODUCTS and _root_of(args[1]) else args
        root = _root_of(y)
        if root and not _root_of(c) and float(root[0]).is_integer():
            p, s = root
            is_root(result, p, lambda: functools.reduce(func, [c] * int(p), s()))


def squared(x: Any) -> Any:
    """|x|², of a norm without its root."""
    known = _root_of(x)
    if known and known[0] == 2:
        return known[1]()
    return torch.view_as_real(x.resolve_conj()).square().sum(-1) if x.is_complex() else x.square()


def root(x: Any, order: float = 2) -> Any:
    """The root of x; its derivatives at 0 are 0."""
    zero = x == 0
    positive = x.masked_fill(zero, 1)
    y = (positive.sqrt() if order == 2 else positive ** (1 / order)).masked_fill(zero, 0)
    return is_root(y, order, lambda: x)


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


def affine(x: Any, weight: Any, bias: Any) -> Any:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


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
    y = _normalized(x.reshape(x.shape[0], groups, -1), -1, eps)[0].reshape(x.shape)
    return affine(y, *of_channels(x, weight, bias))


def _native_group_norm(x: Any, weight: Any, bias: Any, N: int, C: int, HxW: int, groups: int, eps: float) -> Any:
    y, mean, scale = _normalized(x.reshape(N, groups, -1), -1, eps)
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


def logsumexp(x: Any, dim: Any, keepdim: bool = False) -> Any:
    if x.is_complex() or not x.numel():
        return NotImplemented
    largest = x.detach().amax(dim, keepdim=True)
    largest = largest.masked_fill(largest.isinf(), 0)
    y = (x - largest).exp().sum(dim, keepdim=True).log() + largest
    return y if keepdim else y.squeeze(dim)


def _logcumsumexp(x: Any, dim: int) -> Any:
    if x.is_complex() or x.dim() == 0:
        return NotImplemented
    x = x.movedim(dim, -1)
    later = torch.ones(x.shape[-1], x.shape[-1], dtype=torch.bool, device=x.device).triu(1)
    return logsumexp(x.unsqueeze(-2).masked_fill(later, -math.inf), -1).movedim(-1, dim)


def softmax(x: Any, dim: int, dtype: Any = None) -> Any:
    if not x.numel():
        return NotImplemented
    x = x if dtype is None else x.to(dtype)
    e = (x - x.detach().amax(dim, keepdim=True)).exp()
    return e / e.sum(dim, keepdim=True)


def dropout(x: Any, p: float = 0.5, train: bool = True) -> Any:
    return x * F.dropout(torch.ones_like(x), p) if train and p else x


def _attention(
    q: Any, k: Any, v: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False, *,
    scale: Any = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    if enable_gqa:
        k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return dropout(softmax(scores, -1), dropout_p, True) @ v


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
    return is_root(y, 2, lambda: squared(a) + squared(b))


def _reduced(y: Any, reduction: int) -> Any:
    return y if reduction == 0 else y.mean() if reduction == 1 else y.sum()


def _hardsigmoid(x: Any) -> Any:
    return torch.where((x > -3) & (x < 3), x / 6 + 0.5, (x >= 3).to(x.dtype))


def _huber_loss(x: Any, target: Any, reduction: int = 1, delta: float = 1.0) -> Any:
    error = x - target
    size = error.abs()
    return _reduced(torch.where(size <= delta, 0.5 * error.square(), delta * (size - 0.5 * delta)), reduction)


def _soft_margin_loss(x: Any, target: Any, reduction: int = 1) -> Any:
    return _reduced(F.softplus(-target * x), reduction)


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
    return _copied(F.linear_cross_entropy)(*args, **kwargs)


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


_OF_PYTHON = frozenset(["linear_cross_entropy"])
# The arguments are those of PyTorch's function; NotImplemented where it is right.
COMPOSED: dict[str, Callable[..., Any]] = {
    "layer_norm": layer_norm,
    "native_layer_norm": _native_layer_norm,
    "group_norm": _group_norm,
    "native_group_norm": _native_group_norm,
    "batch_norm": batch_norm,
    "native_batch_norm": _native_batch_norm,
    "instance_norm": instance_norm,
    "logcumsumexp": _logcumsumexp,
    "scaled_dot_product_attention": _attention,
    "vector_norm": vector_norm,
    "norm": _norm,
    "matrix_norm": _matrix_norm,
    "cdist": _cdist,
    "pdist": _pdist,
    "pairwise_distance": _pairwise_distance,
    "dist": _dist,
    "cosine_similarity": _cosine_similarity,
    "renorm": _renorm,
    "_weight_norm": _weight_norm,
    "hypot": _hypot,
    "hardsigmoid": _hardsigmoid,
    "huber_loss": _huber_loss,
    "soft_margin_loss": _soft_margin_loss,
    "multi_margin_loss": _multi_margin_loss,
    "multilabel_margin_loss": _multilabel_margin_loss,
    "triangular_solve": _triangular_solve,
    "linear_cross_entropy": _linear_cross_entropy,
    "conv_transpose1d": _conv_transpose(torch.conv_transpose1d, 1),
    "conv_transpose2d": _conv_transpose(torch.conv_transpose2d, 2),
    "conv_transpose3d": _conv_transpose(torch.conv_transpose3d, 3),
}
