"""Tensors that are known to be roots, y = s^(1/p), and the powers of them that are smooth, without a root.

The derivatives of a root at 0, where it has none, are 0 at every order. The even powers of a norm are smooth there: a
power is taken of the sum of squares under the root, |x|² being x·x, also of a norm that was scaled or reshaped.
"""

from __future__ import annotations

import contextlib
import functools
import numbers
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from .._linearity import MOVES
from .._symbolic.torch_names import is_of_torch
from .._torch_state import without_torch_function
from .calls import known_name

_powers: Any = WeakIdKeyDictionary()  # for a tensor that is a root its _Root
_local = threading.local()
_CONVERSIONS = frozenset("to type_as float double".split())
_KEEPS = MOVES | _CONVERSIONS | {"clone"}
_PRODUCTS = frozenset("mul multiply rmul".split())
_QUOTIENTS = frozenset("div divide true_divide truediv".split())
UNDER_ROOT = "under_root"  # the attribute of an op that is a norm, and what such an op is called here
ROOTS = frozenset(("abs", "absolute", "std", UNDER_ROOT))
POWERS = frozenset("pow float_power square".split()) | _PRODUCTS
_WATCHED = _KEEPS | _PRODUCTS | _QUOTIENTS | ROOTS | POWERS | {"neg", "negative"}


@functools.lru_cache(2048)
def watched(func: Any) -> str | None:
    """The name of a function of PyTorch, or of ours, that makes roots, keeps them, or takes powers; None of another."""
    if not is_of_torch(func):
        return UNDER_ROOT if getattr(func, UNDER_ROOT, None) else None
    name = known_name(func)
    name = name.strip("_") if name.startswith("__") else name
    return name if name in _WATCHED else None


class DerivativeInRoot(BaseException):
    """A function differentiates in a root, or hooks it, and powers of it do not depend on it; run it
    :func:`without_powers`.

    A function that catches every Exception does not catch it.
    """


class _Root(NamedTuple):
    """y = s**(1 / p), while y and the tensors that s reads are what they were."""

    p: float
    s: Callable[[], Any]
    reads: list[tuple[Tensor, int]]
    state: tuple[Any, ...]


@contextlib.contextmanager
def without_powers() -> Iterator[None]:
    """Takes powers of roots as PyTorch does."""
    before, _local.ignored = _is_ignored(), True
    try:
        yield
    finally:
        _local.ignored = before


def _is_ignored() -> bool:
    return getattr(_local, "ignored", False)


def changes(x: Any) -> int:
    """How often a tensor was changed in place; one of a sweep counts that itself, below 0: it may have been plain."""
    if hasattr(x, "root"):
        return ~x.root.written  # type: ignore[no-any-return]
    with without_torch_function():
        return 0 if x.is_inference() else x._version


def _state(y: Tensor) -> tuple[Any, ...]:
    """Tells whether y has its contents, and its derivative or none."""
    with without_torch_function():
        return changes(y), torch.is_grad_enabled(), y.requires_grad


def _root_of(y: Any) -> _Root | None:
    """Finds how y is a root, if that is known and nothing was changed since."""
    root = _powers.get(y) if isinstance(y, Tensor) and _powers and not _is_ignored() else None
    if root is None or root.state != _state(y) or any(changes(x) != count for x, count in root.reads):
        return None
    return root  # type: ignore[no-any-return]


def is_root(y: Any, p: float, s: Callable[[], Any], *reads: Any) -> Any:
    """Notes that y = s**(1 / p), where s reads these tensors, and returns y."""
    _powers[y] = _Root(p, s, [(x, changes(x)) for x in reads if isinstance(x, Tensor)], _state(y))
    return y


def check_derivative(inputs: Any) -> None:
    """Raises DerivativeInRoot where one of the tensors to differentiate in is known to be a root."""
    if _powers and not _is_ignored() and any(x in _powers for x in tree_leaves(inputs) if isinstance(x, Tensor)):
        raise DerivativeInRoot


def power_of(kind: str, args: Any, kwargs: Any) -> Any:
    """The power that a function takes of a root, without the root; None if it is no such power."""
    if kind not in POWERS or kwargs:
        return None
    if kind in _PRODUCTS:
        exponent: Any = 2 if len(args) == 2 and args[0] is args[1] else None
    else:
        exponent = 2 if kind == "square" else args[1] if len(args) == 2 else None
    if not isinstance(exponent, numbers.Real):
        return None
    root = _root_of(args[0])
    if root is None or exponent % root.p:
        return None
    s, exponent = root.s(), int(float(exponent) / root.p)
    if kind == "float_power":
        s = s.to(torch.complex128 if s.is_complex() else torch.float64)
    return s.clone() if exponent == 1 else s**exponent  # which may be written to


def follow(func: Any, kind: str, args: Any, kwargs: Any, result: Tensor) -> None:
    """Notes of a result that it is a root, if it is."""
    if kind == UNDER_ROOT:
        if s := func.under_root(*args, **kwargs):
            is_root(result, 2, s, *tree_leaves((args, kwargs)))
        return
    first, *others = args
    if kind in ("abs", "absolute"):
        is_root(result, 2, lambda: squared(first), first)
    elif kind == "std":
        is_root(result, 2, lambda: torch.var(*args, **kwargs), first)
    elif kind in ("neg", "negative") or kind in _KEEPS:
        root = _root_of(first) if _has_numbers_of(first, result, kind) else None
        if root and (root.p % 2 == 0 or kind in _KEEPS):
            s, reads = root.s, [x for x, _ in root.reads]
            of_result = (lambda: func(s(), *others, **kwargs)) if kind in _KEEPS else s
            is_root(result, root.p, of_result, *reads, *tree_leaves((others, kwargs)))
    elif kind in _PRODUCTS | _QUOTIENTS and not kwargs and len(args) == 2:
        y, c = (args[1], first) if kind in _PRODUCTS and _root_of(args[1]) else args
        root = _root_of(y)
        if root and not _root_of(c) and float(root.p).is_integer():
            p, s, reads = root.p, root.s, [x for x, _ in root.reads]
            is_root(result, p, lambda: functools.reduce(func, [c] * int(p), s()), *reads, c)


def _has_numbers_of(x: Tensor, y: Tensor, kind: str) -> bool:
    """Has y numbers of x? Integers, and the bits of a number as others, are no such."""
    return y.dtype == x.dtype or (kind in _CONVERSIONS and (y.is_floating_point() or y.is_complex()))


def squared(x: Any) -> Any:
    """|x|², of a norm without its root."""
    known = _root_of(x)
    if known and known.p == 2:
        return known.s()
    return torch.view_as_real(x.resolve_conj()).square().sum(-1) if x.is_complex() else x.square()


def root(x: Any, order: float = 2) -> Any:
    """The root of x; its derivatives at 0 are 0."""
    zero = x == 0
    positive = x.masked_fill(zero, 1)
    y = (positive.sqrt() if order == 2 else positive ** (1 / order)).masked_fill(zero, 0)
    return is_root(y, order, lambda: x, x)


def are_known() -> bool:
    """Is any tensor known to be a root?"""
    return bool(_powers)
