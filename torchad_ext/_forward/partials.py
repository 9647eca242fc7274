"""Partial derivatives of a function of points, in one forward sweep (:mod:`torchad_ext._forward.jets`)."""

from __future__ import annotations

import math
import numbers
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from .._autograd.undefined import sum_defined
from .._self_check import fast_path, report
from .._symbolic.jet_algebra import Functional, Index, JetAlgebra, derivative, jet_algebra, total
from .._torch_state import (
    dispatch_modes,
    is_autocast_enabled,
    is_being_traced,
    is_captured,
    outside_inference_mode,
    share_memory,
    top_saved_tensors_hooks,
    transforms_active,
)
from .fallback import (
    Unseen,
    along_by_reverse_mode,
    along_by_transforms,
    as_tensor,
    check_dense,
    checked,
    fall_back,
    random_states,
    restore_random_states,
)
from .jets import JetSweep, rules_of
from .missing import tool
from .random_sum import RandomSum, some_points
from .undone import Undone

Function = Callable[[Tensor], Tensor]
Order = str | tuple[int, ...]

_HIGHEST = 10  # the order of a derivative
_HIGHEST_CHECKED = 6  # if there are some: by nested gradients each order takes three times the memory of the one before
_CHECKED = {torch.float32, torch.float64, torch.complex64, torch.complex128}  # others show little but rounding


@dataclass(frozen=True, init=False)
class Sum:
    r"""A weighted sum of derivatives, which :func:`partials` computes as one, :math:`\sum_k w_k \partial^{α_k}`.

    A function is linear in its highest derivatives, so they travel as one number. ``Sum("xx", "yy", "zz")`` needs the
    gradient and one number more, where three second derivatives need three.

    Args:
        orders: derivatives, as for :func:`partials`.
        weights: a number for each; 1 if they are not given. They become part of the kernels: give a weight that
            changes, or that is learned, as a factor of a sum of its own.

    Raises:
        TypeError: a weight is no number.
        ValueError: there are no derivatives, not as many weights, or one that is not finite.

    Example:
        >>> Sum("tt", "xx", "yy", weights=(1, -4, -4))  # the wave equation with speed 2
        Sum('tt', 'xx', 'yy', weights=(1.0, -4.0, -4.0))
    """

    orders: tuple[Order, ...]
    weights: tuple[float, ...]

    def __init__(self, *orders: Order, weights: Sequence[float] | None = None) -> None:
        if not orders:
            raise ValueError('torchad_ext.Sum takes one derivative or more, as in Sum("xx", "yy"), got none')
        if weights is not None and not isinstance(weights, Iterable):
            raise TypeError(f"torchad_ext.Sum takes a weight for each derivative, got {weights!r}; write [{weights!r}]")
        given = (1.0,) * len(orders) if weights is None else tuple(weights)
        for weight in given:
            if not isinstance(weight, numbers.Real):
                raise TypeError(
                    f"torchad_ext.Sum takes numbers for weights, got {type(weight).__name__}; multiply the derivative "
                    "that partials gives by a tensor"
                )
            if not math.isfinite(weight):
                raise ValueError(f"torchad_ext.Sum takes finite weights, got {weight}")
        if len(given) != len(orders):
            raise ValueError(f"torchad_ext.Sum takes a weight for each of {len(orders)} derivatives, got {len(given)}")
        object.__setattr__(self, "orders", orders)
        object.__setattr__(self, "weights", tuple(map(float, given)))

    def __repr__(self) -> str:
        return f"Sum({', '.join(map(repr, self.orders))}, weights={self.weights})"


@tool
@outside_inference_mode
def partials(
    f: Function,
    x: Tensor,
    orders: Sequence[Order | Sum],
    *,
    names: str | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, ...]:
    r"""Partial derivatives of a function at each of many points, all in one forward sweep.

    Values and derivatives go through the program together, so that no graph is differentiated several times. What
    travels is the least that is closed under the rules of Leibniz and of the chain: of ``["xx", "t"]`` the numbers
    :math:`u, u_x, u_{xx}, u_t`; a :class:`Sum` is one number more than those that it needs. An elementwise function,
    of PyTorch or declared by :func:`pointwise`, is one fused kernel for all numbers; linear operations run on each;
    products and what is composed of them (normalisation, attention) follow by the rule of Leibniz at any order.

    A program with another operation in it is differentiated by nested autograd, and one warning says so; with
    ``TORCHAD_EXT_STRICT=1`` it is an error. The numbers of a program of operations that were not met before, and of
    later ones for 2 % of the time, are compared with those of nested autograd, for which f runs again, with some of
    many points. The result may be differentiated again, in parameters and in x.

    Args:
        f: maps points ``[..., d]`` to ``[...]`` or ``[..., *outputs]``, any PyTorch code. Each result has to depend on
            its own point only.
        x: the points ``[..., d]`` of a floating-point dtype on any device.
        orders: derivatives, each a string with a letter of ``names`` for each time that one differentiates (``"xxt"``,
            ``""`` for the value), a tuple of the numbers of coordinates (``(1, 1, 0)``, ``()``), or a :class:`Sum`.
            Repeated and permuted ones cost nothing. Their orders are at most 10.
        names: a letter for each of the d coordinates, in their order in x.
        chunk_size: takes so many points at a time, split along the first dimension, to bound memory; f has to take any
            number of points then.

    Returns:
        For each of ``orders`` a tensor of the shape and dtype of ``f(x)``.

    Raises:
        TypeError: x or the result of f is not a floating-point tensor, or an order is none of the above.
        ValueError: letters or coordinates that x does not have, an order above 10, or shapes that do not fit, as for f
            that mixes points.
        RuntimeError: f cannot be differentiated so often.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> f = lambda x: x[:, 0] ** 3 * x[:, 1]
        >>> partials(f, x, ["", "t", "tt", "tx"], names="tx")
        (tensor([  2., 108.]), tensor([  6., 108.]), tensor([12., 72.]), tensor([ 3., 27.]))
        >>> partials(f, x, [(0, 0), Sum((0, 0), (1, 1))])
        (tensor([12., 72.]), tensor([12., 72.]))
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"torchad_ext.partials takes a tensor for x, got {type(x).__name__}; write {as_tensor(x)}")
    if not x.is_floating_point():
        raise TypeError(
            f"torchad_ext.partials takes floating-point x, got {x.dtype}; convert it, x.to(torch.get_default_dtype())"
        )
    check_dense("partials", "x", x)
    if x.dim() == 0:
        raise ValueError(
            "torchad_ext.partials takes x [..., d], got a number; write x.unsqueeze(-1) for points on a line"
        )
    if chunk_size is not None and not (is_whole(chunk_size) and chunk_size > 0):
        raise ValueError(f"torchad_ext.partials takes a whole chunk_size of 1 or more, got {chunk_size!r}")
    d = x.shape[-1]
    if names is not None and (not isinstance(names, str) or len(set(names)) != len(names) or len(names) != d):
        raise ValueError(
            f"torchad_ext.partials takes a string of {d} different letters for names, one for each coordinate of x "
            f"{list(x.shape)}, got {names!r}"
        )
    if isinstance(orders, (str, Sum)) or not isinstance(orders, Sequence):
        raise TypeError(f'torchad_ext.partials takes a list of derivatives, as in ["", "xx"], got {orders!r}')
    functionals = [_functional(order, d, names) for order in orders]
    algebra = jet_algebra(functionals, d)
    directions = along_coordinates(x)

    def of(x: Tensor, directions: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return _run(f, x, directions, functionals, algebra, "partials")

    if chunk_size and x.dim() > 1:
        parts = [of(part, [e[: len(part)] for e in directions]) for part in x.split(points_of(chunk_size))]
        return tuple(torch.cat(pieces) for pieces in zip(*parts, strict=True))
    return of(x, directions)


@tool
@outside_inference_mode
def taylor(f: Function, x: Tensor, direction: Tensor, order: int) -> tuple[Tensor, ...]:
    r"""Taylor coefficients of a function along a line through each of many points, in one forward sweep.

    :math:`f(x + s v) = c_0 + c_1 s + c_2 s^2 + \dots` with :math:`c_k = \frac{1}{k!} \frac{d^k}{ds^k} f(x + s v)` at 0.
    The sweep is that of :func:`partials`.

    Args:
        f: as for :func:`partials`.
        x: the points ``[..., d]``.
        direction: v, ``[d]`` for all points or a tensor that broadcasts to the shape of x, with its dtype.
        order: the highest coefficient, from 0 to 10.

    Returns:
        The coefficients :math:`c_0, \dots, c_{order}`, each of the shape and dtype of ``f(x)``.

    Raises:
        TypeError, RuntimeError: as :func:`partials` does.
        ValueError: the order is not from 0 to 10, or the shape of direction does not fit.

    Example:
        >>> x, v = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        >>> torch.cat(taylor(lambda x: x.exp().sum(-1), x, v, 4))
        tensor([1.0000, 1.0000, 0.5000, 0.1667, 0.0417], dtype=torch.float64)
    """
    for what, given in (("x", x), ("direction", direction)):
        if not isinstance(given, Tensor) or not given.is_floating_point():
            kind = given.dtype if isinstance(given, Tensor) else type(given).__name__
            raise TypeError(f"torchad_ext.taylor takes a floating-point tensor for {what}, got {kind}")
        check_dense("taylor", what, given)
    if not is_whole(order) or not 0 <= order <= _HIGHEST:
        raise ValueError(f"torchad_ext.taylor takes an order from 0 to {_HIGHEST}, got {order!r}")
    if direction.dtype != x.dtype or direction.device != x.device:
        raise TypeError(
            f"torchad_ext.taylor: direction is {direction.dtype} on {direction.device}, x is {x.dtype} on {x.device}; "
            "write direction.to(x)"
        )
    if x.dim() == 0 or not _fits(direction, x):
        raise ValueError(
            f"torchad_ext.taylor takes points [..., d] and a direction that broadcasts to them, got x {list(x.shape)} "
            f"and direction {list(direction.shape)}"
        )
    functionals: list[Functional] = [{(k,): Fraction(1)} for k in range(order + 1)]
    return _run(f, x, [direction.expand(x.shape)], functionals, jet_algebra(functionals, 1), "taylor")


def _fits(direction: Tensor, x: Tensor) -> bool:
    """Does a direction broadcast to the points?"""
    sizes = zip(reversed(direction.shape), reversed(x.shape), strict=False)
    return direction.dim() <= x.dim() and all(n in (1, of) for n, of in sizes)


def is_whole(n: Any) -> bool:
    return isinstance(n, numbers.Integral) and not isinstance(n, bool)


def points_of(chunk_size: int) -> int:
    """The points of a chunk as ``torch.split`` takes them, which has a largest number."""
    return min(int(chunk_size), sys.maxsize)


def _functional(order: Any, d: int, names: str | None) -> Functional:
    if isinstance(order, Sum):
        terms = zip(order.weights, order.orders, strict=True)
        return total((Fraction(weight), derivative(_index(of, d, names))) for weight, of in terms)
    return derivative(_index(order, d, names))


def _index(order: Any, d: int, names: str | None) -> Index:
    """How often a derivative is taken in each coordinate."""
    if isinstance(order, str):
        if order and names is None:
            raise ValueError(
                f"torchad_ext.partials: {order!r} needs the letters of the coordinates; give names, one for each of "
                f"{d}, or write a tuple of their numbers"
            )
        unknown = sorted(set(order) - set(names or ""))
        if unknown:
            raise ValueError(f"torchad_ext.partials: {order!r} has letters that are not in names={names!r}: {unknown}")
        places = [(names or "").index(letter) for letter in order]
    elif isinstance(order, (tuple, list)) and all(map(is_whole, order)):
        places = list(order)
        if any(not 0 <= i < d for i in places):
            raise ValueError(f"torchad_ext.partials: {order!r} has coordinates outside of 0 to {d - 1}")
    else:
        raise TypeError(
            'torchad_ext.partials takes derivatives as strings ("xx"), tuples of numbers of coordinates ((0, 0)) or '
            f"Sum, got {order!r}"
        )
    if len(places) > _HIGHEST:
        raise ValueError(f"torchad_ext.partials takes derivatives of order {_HIGHEST} at most, got {order!r}")
    return tuple(places.count(i) for i in range(d))


def _run(
    f: Function,
    x: Tensor,
    directions: Sequence[Tensor],
    functionals: Sequence[Functional],
    algebra: JetAlgebra,
    name: str,
) -> tuple[Tensor, ...]:
    """The functionals of f in the coordinates s of x + Σ_i s_i u_i, by a sweep or else by nested autograd."""
    if torch.compiler.is_dynamo_compiling():
        return along_by_transforms(f, x, directions, functionals, name)
    try:
        return in_one_sweep(f, x, directions, functionals, algebra, name)
    except Unseen as unseen:
        fall_back(f"cannot follow {unseen}", "the function is", f"torchad_ext.{name}", "by nested autograd")
    by = along_by_transforms if transforms_active() else along_by_reverse_mode
    return by(f, x, directions, functionals, name)


def in_one_sweep(
    f: Function,
    x: Tensor,
    directions: Sequence[Tensor],
    functionals: Sequence[Functional],
    algebra: JetAlgebra,
    name: str,
) -> tuple[Tensor, ...]:
    """The functionals of f in the coordinates s of x + Σ_i s_i u_i; raises Unseen for what a sweep cannot follow."""
    hidden = transforms_active() or is_autocast_enabled() or top_saved_tensors_hooks() or is_captured(x)
    hidden = hidden or is_being_traced() or dispatch_modes()
    plain = type(x) is Tensor and not hidden  # what is recomputed later has to save as many tensors
    random = random_states(x.device) if plain else []
    start = time.perf_counter()
    sweep, value, results = _swept(f, x, directions, functionals, algebra, name)
    seconds = time.perf_counter() - start
    if not value.numel():  # no numbers are their own derivatives, and of the same graph
        return (value,) * len(functionals)
    if not (plain and x.numel() and sweep.dtypes <= _CHECKED):
        return results
    path = fast_path((name, algebra.pivots, x.dtype, x.device, frozenset(sweep.operations)), x.is_meta)
    path.took(seconds)
    if path.is_due and not path.is_wrong:
        eps = max(torch.finfo(dtype).eps for dtype in (x.dtype, value.dtype, *sweep.dtypes))
        after = random_states(x.device)
        with path.checking(), Undone(f):
            orders = [max(map(sum, functional), default=0) for functional in functionals]
            low = [i for i, order in enumerate(orders) if order <= max(_HIGHEST_CHECKED, min(orders))]
            checked = [functionals[i] for i in low]
            points, along, given = x, directions, (value, *(results[i] for i in low))
            if (chosen := some_points(f, x, value, random, eps)) is not None:
                points, along = x[chosen], [u[chosen] for u in directions]
                given = tuple(y.detach()[chosen] for y in given)
            check = RandomSum(f, points, given[0], along, checked, random, eps, name)

            def at(x: Tensor) -> tuple[Tensor, ...]:
                with torch.no_grad():
                    restore_random_states(x.device, random)
                    _, value, results = _swept(f, x, along, functionals, algebra, name)
                return value, *(results[i] for i in low)

            try:
                agrees = check.agrees(given, at)
                mixes = not agrees and check.mixes()
            except RuntimeError:  # PyTorch does not differentiate f, as where it writes to what a gradient reads
                agrees, mixes = True, False
        restore_random_states(x.device, after)
        path.is_suspect = mixes
        if mixes:
            raise ValueError(
                f"torchad_ext.{name}: f mixes points: its result for one depends on others, as with a mean over the "
                "batch; f maps x [..., d] to [...] or [..., outputs], each result from its own point"
            )
        if not agrees:
            report(name, f, path, "in one sweep", "those of nested autograd")
    return along_by_reverse_mode(f, x, directions, functionals, name) if path.is_wrong else results


def _swept(
    f: Function,
    x: Tensor,
    directions: Sequence[Tensor],
    functionals: Sequence[Functional],
    algebra: JetAlgebra,
    name: str,
) -> tuple[JetSweep, Tensor, tuple[Tensor, ...]]:
    """The sweep, the value of f, and the functionals."""
    recording = torch.is_grad_enabled()
    sweep = JetSweep((), recording, rules_of=rules_of, algebra=algebra, defers=not recording)
    count = len(directions)
    units = [tuple(int(i == j) for j in range(count)) for i in range(count)]
    rows = [
        _weighted([(float(weight), directions[units.index(index)]) for index, weight in functional if sum(index) == 1])
        for functional in algebra.basis[1:]
    ]
    y = sweep.follow(f, sweep.tensor(x, rows, None))
    value = checked(sweep.value(y), x, name)
    carried = sweep.numbers(y)
    results = [
        _weighted([(weight, carried[b]) for b, weight in algebra.coordinates(functional).items() if b in carried])
        for functional in functionals
    ]
    return sweep, value, tuple(torch.zeros_like(value) if y is None else _writable(y, directions) for y in results)


def _writable(y: Tensor, directions: Sequence[Tensor]) -> Tensor:
    """A result in memory of its own: a derivative of x is a direction, one of a constant slope a number for all."""
    if type(y) is not Tensor or transforms_active():
        return y
    repeats = any(n > 1 and step == 0 for n, step in zip(y.shape, y.stride(), strict=True))
    of_others = repeats or any(type(u) is Tensor and share_memory(y, u) for u in directions)
    return y.clone(memory_format=torch.contiguous_format) if of_others else y


def along_coordinates(x: Tensor) -> list[Tensor]:
    """The unit vectors at each point."""
    d = x.shape[-1]
    units = torch.eye(d, dtype=x.dtype, device=x.device).view(d, *(1,) * (x.dim() - 1), d)
    return list(units.expand(d, *x.shape).unbind())


def _weighted(terms: Sequence[tuple[float, Tensor]]) -> Tensor | None:
    """A weighted sum; None where there are no terms."""
    return sum_defined(*(x if weight == 1 else weight * x for weight, x in terms))
