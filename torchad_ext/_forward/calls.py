"""Calls of PyTorch's functions: their names, the places of their arguments, and functions in Python by their parts."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

from torch.utils._pytree import tree_map

from .._symbolic.torch_names import name_of
from .._torch_state import OpOverload, schemas


def each(of: Callable[[Any], Any], arguments: Any) -> Any:
    """``of`` all arguments, those in tuples, lists and dicts by themselves; ``tree_map`` takes ten times as long."""
    kind = type(arguments)
    if kind is tuple or kind is list:
        results = [each(of, x) if isinstance(x, (tuple, list, dict)) else of(x) for x in arguments]
        return results if kind is list else tuple(results)
    if kind is dict:
        return {key: each(of, x) for key, x in arguments.items()}
    return tree_map(of, arguments) if isinstance(arguments, (tuple, list, dict)) else of(arguments)


_IN_PYTHON = ("torch.nn.functional", "torch.functional", "torch._tensor")


@functools.lru_cache(2048)
def known_name(func: Any) -> str:
    """The name of a function of PyTorch, ``layer_norm`` for the overload ``torch.ops.aten.layer_norm.default``."""
    if isinstance(func, OpOverload):
        func = func.overloadpacket
    name = name_of(func)
    return name if name in _OF_LINALG else name.removeprefix("linalg_")


# aten.norm is one of all elements; torch.vander has the powers the other way round; torch.polar is of complex numbers.
_OF_LINALG = frozenset(["linalg_norm", "linalg_polar", "linalg_vander"])


def is_python(func: Any) -> bool:
    # The module that the code is in: F.max_pool1d calls by closures, whose guards stay.
    return isinstance(func, types.FunctionType) and func.__globals__["__name__"] in _IN_PYTHON


@functools.lru_cache(2048)
def without_guard(func: Any) -> Any:
    """A function of PyTorch in Python that does not ask ``__torch_function__`` for itself; None for another one, and
    for one that is composed as a whole."""
    return unguarded(func) if is_python(func) and func.__name__ not in _OF_PYTHON else None


def unguarded(func: Any) -> Any:
    guards = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    names = {**func.__globals__, **dict.fromkeys(guards, lambda *_: False)}
    copy = types.FunctionType(func.__code__, names, func.__name__, func.__defaults__, func.__closure__)
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


# Names that PyTorch's parser takes besides the names in its schemas.
_ALIASES = {
    "self": "input",
    "axis": "dim",
    "keepdims": "keepdim",
    "x": "input",
    "a": "input",
    "x1": "input",
    "x2": "other",
}


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


# Functions in Python that are composed as a whole.
_OF_PYTHON = frozenset(["linear_cross_entropy", "gaussian_nll_loss"])
