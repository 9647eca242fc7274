"""Tensors that are known to be roots, y = s^(1/p), and the powers of them that are smooth, without a root.

The derivatives of a root at 0, where it has none, are 0 at every order. The even powers of a norm are smooth there: a
power is taken of the sum of squares under the root, |x|² being x·x, also of a norm that was scaled or reshaped.
"""

from __future__ import annotations

import functools
import numbers
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from .._linearity import MOVES
from .._symbolic.torch_names import is_of_torch
from .._torch_state import without_torch_function
from .calls import known_name

# Powers of roots: for a tensor y = s**(1 / p) its version, p, and s.
_powers: Any = WeakIdKeyDictionary()
_KEEPS = MOVES | frozenset("clone to type_as float double".split())
_PRODUCTS = frozenset("mul multiply rmul".split())
_QUOTIENTS = frozenset("div divide true_divide truediv".split())
ROOTS = frozenset("abs absolute std".split())
POWERS = frozenset("pow float_power square".split()) | _PRODUCTS
_WATCHED = _KEEPS | _PRODUCTS | _QUOTIENTS | ROOTS | POWERS | {"neg", "negative"}


@functools.lru_cache(2048)
def watched(func: Any) -> str | None:
    """The name of a function that makes roots, keeps them, or takes powers; None for another one."""
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


def power_of(kind: str, args: Any, kwargs: Any) -> Any:
    """The power that a function takes of a root, without the root; None if it is no such power."""
    if kind not in POWERS or kwargs:
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


def follow(func: Any, kind: str, args: Any, kwargs: Any, result: Tensor) -> None:
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


def are_known() -> bool:
    """Is any tensor known to be a root?"""
    return bool(_powers)
