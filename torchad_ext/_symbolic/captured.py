"""The code of a function, without a call: does it read values from outside, or ask what kind an argument is of?"""

from __future__ import annotations

import contextlib
import dis
import functools
import inspect
import sys
import types
from collections.abc import Iterator
from typing import Any

_IMMUTABLE = frozenset("torch torchad_ext math cmath numpy builtins typing functools itertools operator".split())

_KNOWN = _IMMUTABLE | sys.stdlib_module_names  # modules of no user
_ASKING = frozenset("isinstance issubclass type is_tensor hasattr __class__".split())


def plain(function: Any) -> Any:
    """A function without what ``torch.compile`` or ``staticmethod`` put around it."""
    if isinstance(function, staticmethod):
        return function.__func__
    return getattr(function, "_torchdynamo_orig_callable", getattr(function, "_orig_mod", function))


def captures(function: Any) -> bool:
    """Can a function read something from outside that may change after it was declared?"""
    return _may_change(function, set())


def _may_change(x: Any, seen: set[Any]) -> bool:
    if isinstance(x, functools.partial):
        return any(_may_change(y, seen) for y in (x.func, *x.args, *x.keywords.values()) if callable(y))
    if isinstance(x, types.ModuleType):
        return x.__name__.partition(".")[0] not in _IMMUTABLE
    if isinstance(x, type) or not isinstance(x, types.FunctionType):
        module = getattr(x, "__module__", None) or "builtins"
        known = hasattr(x, "define") or (callable(x) and not hasattr(x, "__self__")) or inspect.isbuiltin(x)
        return not (known and module.partition(".")[0] in _IMMUTABLE)
    if x in seen or (x.__module__ or "").partition(".")[0] == "torch":
        return False
    seen.add(x)
    return any(_may_change(y, seen) for y in _read_by(x))


def is_of_users(function: Any) -> bool:
    """Does a function run code of users?"""
    return any(True for _ in _called(function, set()))


def asks_for_kinds(function: Any) -> bool:
    """May a function ask whether an argument is a tensor or a number, which a symbol cannot answer?"""
    return any(
        not _ASKING.isdisjoint(code.co_names)
        or any(step.opname == "MATCH_CLASS" for step in dis.get_instructions(code))
        for called in _called(function, set())
        for code in _codes(called.__code__)
    )


def _called(x: Any, seen: set[Any], owner: Any = None) -> Iterator[types.FunctionType]:
    """The functions of users that a function, of an owner whose method it may be, may call; itself among them."""
    owner = getattr(x, "__self__", owner)
    while (inner := _wrapped(x)) is not x:
        x = inner
    if not isinstance(x, types.FunctionType):
        ways = (inspect.getattr_static(type(x), name, None) for name in ("forward", "__call__"))
        owner, x = x, next((way for way in ways if isinstance(way, types.FunctionType)), None)
    if not isinstance(x, types.FunctionType) or x in seen:
        return
    if (x.__module__ or "").partition(".")[0] in _KNOWN:
        return
    seen.add(x)
    yield x
    names = _names(x)
    imported = [sys.modules[name] for name in names & sys.modules.keys()]
    for y in (*_read_by(x), *imported, owner):
        yield from _called(y, seen)
        for z in _parts(y, names):
            yield from _called(z, seen, y)


def _wrapped(x: Any) -> Any:
    """A function without what binds or decorates it."""
    if isinstance(x, functools.partial):
        return x.func
    return getattr(x, "__func__", None) or (vars(x).get("__wrapped__", x) if hasattr(x, "__dict__") else x)


def _parts(x: Any, names: set[str]) -> list[Any]:
    """The members of a container, or the attributes of these names of a module, a class or an object."""
    if isinstance(x, (dict, list, tuple, set, frozenset)):
        return list(x.values() if isinstance(x, dict) else x)
    if isinstance(x, types.ModuleType) and x.__name__.partition(".")[0] in _IMMUTABLE:
        return []
    found = (inspect.getattr_static(x, name, None) for name in names)
    return [y.fget if isinstance(y, property) else y for y in found]


def _names(function: types.FunctionType) -> set[str]:
    """The names of globals, attributes and modules in the code of a function."""
    return {name for code in _codes(function.__code__) for name in code.co_names}


def _read_by(function: types.FunctionType) -> list[Any]:
    """The values of other names in the code of a function: those around it, and globals."""
    around = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # what is not bound yet, as a function within itself
            around.append(cell.cell_contents)
    return [*around, *(function.__globals__[name] for name in _names(function) & function.__globals__.keys())]


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code of a function and of those that it defines."""
    yield code
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _codes(inner)
