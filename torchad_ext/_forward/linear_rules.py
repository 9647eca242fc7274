"""Rules for operations that are linear in each of their tensors: sums, products, layers, and what moves elements."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from .._linearity import JOINS, LINEAR, LINEAR_BY_ELEMENT, LINEAR_IN_ALL, MOVES, PRODUCTS
from .._torch_state import transforms_active
from . import writes
from .calls import known_name
from .corrections import affine
from .deferred import given_by
from .singular import quotients_are_right
from .sweep import Arguments, Jet, Keywords, Rule, Sweep, jets_in


def _scaled(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """a b, linear where a factor is constant."""
    if sweep.owns(args[0]) and sweep.owns(args[1]):
        return NotImplemented
    return sweep.linear(func, args, kwargs)


def _divided(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """a / b, linear where the denominator is constant."""
    return NotImplemented if kwargs or sweep.owns(args[1]) else sweep.linear(func, args, kwargs)


def of_first(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Linear in the first argument; the others say what to do with it, as in x.view_as(other)."""
    if not args:
        return NotImplemented
    if len(args) > 1 or kwargs:
        varies = any(x.sweep is sweep for x in jets_in((args[1:], kwargs)))
        if varies and known_name(func) not in _SHAPED_LIKE:
            return NotImplemented
    first, others = args[0], [sweep.value(x) for x in args[1:]]
    options = {key: sweep.value(x) for key, x in kwargs.items()}
    value = func(sweep.value(first), *others, **options)
    if not sweep.owns(first):
        return value
    result = sweep.mapped(value, first, lambda row: func(row, *others, **options), others, options)
    if not transforms_active():
        for part in result if isinstance(result, (tuple, list)) else (result,):
            if sweep.owns(part):
                writes.follow(part, first)
    return result


def of_all(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Linear in all tensors together, as in torch.cat."""
    return sweep.linear(func, args, kwargs, jointly=True)


def _each_alone(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Tensors to tensors, each by itself: a constant stays one."""
    xs = args[0] if isinstance(args[0], (list, tuple)) else args
    if not all(isinstance(x, Tensor) for x in xs):
        return NotImplemented
    if known_name(func) == "broadcast_tensors":
        shape = torch.broadcast_shapes(*(x.shape for x in xs))
        return tuple(x.expand(shape) for x in xs)
    return tuple(map(func, xs)) if len(xs) > 1 or xs is not args else of_all(sweep, func, args, kwargs)


def _each_part(sweep: Sweep, value: Tensor, of: Callable[[Any, Any], Any], a: Any, b: Any, *constants: Any) -> Any:
    """The tangents and the Laplacian ``of`` those of a and b, None for zero."""
    if not (sweep.owns(a) or sweep.owns(b)):
        return value
    none = (None,) * sweep.count
    given: list[Any] = [x.given if sweep.owns(x) else none for x in (a, b)]
    tangents = sweep.deferred(lambda: map(of, *map(given_by, given)), *constants, sources=given)
    return sweep.tensor(value, tangents, of(*(x.laplacian if sweep.owns(x) else None for x in (a, b))))


def _sum(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """a + b, a - b and b - a, of the parts as of the values."""
    if len(args) != 2:
        return NotImplemented
    value = func(*map(sweep.value, args), **kwargs)
    zero = torch.zeros((), dtype=value.dtype, device=value.device)
    keeps_first = known_name(func).strip("_") != "rsub"

    def of(a: Any, b: Any) -> Any:
        if a is None and b is None:
            return None
        if b is None and keeps_first:
            y = a.to(value.dtype)
        else:
            y = func(zero if a is None else a, zero if b is None else b, **kwargs)
        return y if y.shape == value.shape else y.expand(value.shape)

    return _each_part(sweep, value, of, *args)


def _chosen(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """where(c, a, b), linear in a and b."""
    if kwargs or len(args) != 3:
        return NotImplemented
    c, a, b = args if func is not torch.Tensor.where else (args[1], args[0], args[2])
    value = torch.where(c, sweep.value(a), sweep.value(b))
    zero = torch.zeros((), dtype=value.dtype, device=value.device)

    def of(a: Any, b: Any) -> Any:
        if a is None and b is None:
            return None
        return torch.where(c, zero if a is None else a, zero if b is None else b).expand(value.shape)

    return _each_part(sweep, value, of, a, b, c)


def _linear_layer(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    given = dict(zip(("input", "weight", "bias"), args, strict=False), **kwargs)
    x, weight, bias = given["input"], given["weight"], given.get("bias")
    if sweep.owns(weight) or sweep.owns(bias):
        return affine(x @ (weight.mT if weight.dim() > 1 else weight), None, bias)

    def product(row: Any) -> Any:
        """The first tangents are the same for all points."""
        if type(row) is Jet or 0 not in row.stride()[:-1]:
            return func(row, weight)
        one = row[tuple([slice(0, 1) if step == 0 else slice(None) for step in row.stride()[:-1]])]
        return func(one, weight).expand(*row.shape[:-1], *weight.shape[:-1])

    return sweep.mapped(func(x.value, weight, bias), x, product, weight, at_once=True)


def of_each(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Linear in each tensor."""
    leaves, tree = tree_flatten((args, kwargs))
    places = [i for i, x in enumerate(leaves) if sweep.owns(x)]

    def applied(*factors: Any) -> Any:
        given = dict(zip(places, factors, strict=True))
        args, kwargs = tree_unflatten([given.get(i, x) for i, x in enumerate(leaves)], tree)
        return func(*args, **kwargs)

    return product_of(sweep, applied, [leaves[i] for i in places])


def _convolution(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """The rows without the bias."""
    x, weight, bias, *rest = (*args, None)[: max(3, len(args))]

    def of_rows(x: Any, weight: Any, _: Any = None, *rest: Any, **options: Any) -> Any:
        return func(x, weight, None, *rest, **options)

    if not (sweep.owns(weight) or sweep.owns(bias)):
        return sweep.linear(func, args, kwargs, of_rows)
    y = product_of(sweep, lambda x, weight: func(x, weight, None, *rest, **kwargs), (x, weight))
    return y if bias is None else y + bias.reshape(-1, *(1,) * (weight.dim() - 2))


def _padded(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """The rows with zeros."""

    def of_rows(x: Any, pad: Any, mode: str = "constant", value: Any = None) -> Any:
        return func(x, pad) if known_name(func) == "constant_pad_nd" else func(x, pad, mode)

    return sweep.linear(func, args, kwargs, of_rows)


def _multiplied(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """a b for a product of whatever kind."""
    a, b, *rest = args
    return sweep.product(lambda a, b: func(a, b, *rest, **kwargs), a, b)


def _einsum(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    equation, *operands = args
    if not isinstance(equation, str):
        return NotImplemented
    y, *others = tree_leaves(operands)
    if sum(map(sweep.owns, (y, *others))) <= 2 or "." in equation:
        return product_of(sweep, functools.partial(torch.einsum, equation), (y, *others))
    for pair, other in zip(_in_pairs(equation), others, strict=True):
        y = torch.einsum(pair, y, other)
    return y


@functools.lru_cache(512)
def _in_pairs(equation: str) -> Sequence[str]:
    """An einsum as products of two operands, from the left: of n that vary there are n² mixed terms, of pairs n."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    left, *others = inputs.split(",")
    if not arrow:
        output = "".join(sorted(c for c in set("".join([left, *others])) if inputs.count(c) == 1))
    pairs = []
    for i, right in enumerate(others, 1):
        later = set(output).union(*others[i:])
        result = "".join(c for c in dict.fromkeys(left + right) if c in later) if i < len(others) else output
        pairs.append(f"{left},{right}->{result}")
        left = result
    return pairs


def _of_products(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """prod and cumprod, by r_k = x_k / x and its sums s_k up to each element.

    y_k = y s_k and Δy = y Σ_i (Δx / x + 2 Σ ±r_k s_k')_i, for s_k' up to the element before.
    """
    name = known_name(func)
    x, dim, *rest = (*args, None) if name == "prod" and len(args) == 1 else args
    if kwargs or rest or not x.numel() or not x.dim() or transforms_active():
        return NotImplemented
    x = x.flatten() if dim is None else x.movedim(dim, -1)
    y = getattr(torch, name)(x.value, -1)
    if not quotients_are_right(x, y):
        return NotImplemented
    ratios = torch.stack(x.tangents) / x.value
    sums = ratios.cumsum(-1)
    before = 2 * ratios[..., 1:] * sums[..., :-1]
    if -1 in sweep.signs:
        before = before * before.new_tensor(sweep.signs).reshape(-1, *(1,) * x.dim())
    total = F.pad(before.sum(0), (1, 0))
    if x.laplacian is not None:
        total = total + x.laplacian / x.value
    if name == "prod":
        return sweep.tensor(y, (y * sums[..., -1]).unbind(), y * total.sum(-1))
    return sweep.tensor(y, (y * sums).unbind(), y * total.cumsum(-1)).movedim(-1, dim)


def product_of(sweep: Sweep, func: Callable[..., Any], xs: Sequence[Any]) -> Any:
    """y linear in each of the tensors, of which some vary."""
    places = [i for i, x in enumerate(xs) if sweep.owns(x)]

    def of(*varying: Any) -> Any:
        given = dict(zip(places, varying, strict=True))
        return func(*(given.get(i, x) for i, x in enumerate(xs)))

    varying = [xs[i] for i in places]
    if not varying:  # a bias varies, which is added
        return of()
    if len(varying) == 1:
        return sweep.linear(of, tuple(varying), {}, constants=[x for x in xs if not sweep.owns(x)])
    return sweep.multilinear(of, varying)


def _chained(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """A product of matrices: torch.linalg.multi_dot."""
    return product_of(sweep, lambda *xs: func(list(xs)), args[0])


def _bilinear(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    a, b, weight, bias = (*args, None)[:4]
    y = product_of(sweep, lambda a, b, weight: func(a, b, weight, None), (a, b, weight))
    return y if bias is None else y + bias


def _typed(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """x of a type; without one the name of that of x."""
    return of_first(sweep, func, args, kwargs) if len(args) > 1 or kwargs else func(*map(sweep.value, args))


def _real_view(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    return of_first(sweep, lambda x: func(x.resolve_conj()), args, kwargs)


_SHAPED_LIKE = frozenset("view_as reshape_as expand_as type_as to".split())  # as the second argument is
RULES: dict[str, Rule] = {
    **dict.fromkeys(MOVES | LINEAR | LINEAR_BY_ELEMENT, of_first),
    **dict.fromkeys(JOINS | LINEAR_IN_ALL | {"complex"}, of_all),
    **dict.fromkeys("broadcast_tensors atleast_1d atleast_2d atleast_3d".split(), _each_alone),
    **dict.fromkeys(PRODUCTS, _multiplied),
    **dict.fromkeys("mul multiply rmul".split(), _scaled),
    **dict.fromkeys("div divide true_divide truediv".split(), _divided),
    **dict.fromkeys("add radd sub subtract rsub".split(), _sum),
    **dict.fromkeys(
        "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution".split(), _convolution
    ),
    "linear": _linear_layer,
    "pad": _padded,
    "constant_pad_nd": _padded,
    "where": _chosen,
    "Tensor.where": _chosen,
    "type": _typed,
    "view_as_real": _real_view,
    "einsum": _einsum,
    "prod": _of_products,
    "cumprod": _of_products,
    "multi_dot": _chained,
    "bilinear": _bilinear,
    "gradient": of_first,
    "affine_grid_generator": of_first,
}
