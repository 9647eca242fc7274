"""The arguments of declared ops: what each is, and how those of a call come into the order of the parameters."""

from __future__ import annotations

import enum
import functools
import inspect
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy
import torch

from ._symbolic.captured import captures
from ._symbolic.expr import Expr, column, is_number, row, scalar, tensor
from ._symbolic.torch_functions import signature_of

# The kinds of an argument: a value an element, one a row, a weight [n], a run-time number. Any other is a fixed value.
TENSOR, ROW, COLUMN, SCALAR = (object() for _ in range(4))
_SYMBOLS: dict[Any, Callable[[str], Expr]] = {TENSOR: tensor, ROW: row, COLUMN: column, SCALAR: scalar}
COMPARED = (bool, int, float, str)  # types of fixed values that csrc/fast_path tells apart
# Types of what does not change and equals nothing of another type, but for numbers; those kinds are of type object.
_CONSTANT = frozenset((object, type(None), str, bytes, bool, int, float, torch.dtype, torch.device))


def kind_of(x: Any) -> Any:
    if isinstance(x, torch.Tensor):
        return TENSOR
    return SCALAR if is_number(x) else x


def is_tensor(kind: Any) -> bool:
    return kind is TENSOR or kind is ROW or kind is COLUMN


def varies(kind: Any) -> bool:
    """Is it no value?"""
    return is_tensor(kind) or kind is SCALAR


def symbol(name: str, kind: Any) -> Any:
    """A symbol to trace a function with, or the fixed value."""
    return _SYMBOLS[kind](name) if varies(kind) else kind


def is_constant(kind: Any) -> bool:
    """Is it a symbol, or a value that is a key as it stands?"""
    return type(kind) in _CONSTANT


def may_change(kind: Any) -> bool:
    """Is it an object, or does it hold one, that may be another at its next use?"""
    if is_constant(kind) or isinstance(kind, (numbers.Number, numpy.generic, enum.Enum, type)):
        return False
    if isinstance(kind, (list, tuple, dict)):
        return any(map(may_change, kind.values() if isinstance(kind, dict) else kind))
    return captures(kind)


def key_of(kind: Any) -> Any:
    """A key for kinds that are equal in type and value. Raises TypeError for what has none."""
    if isinstance(kind, (list, tuple)):
        return type(kind), tuple(map(key_of, kind))
    if isinstance(kind, dict):
        return dict, tuple((key, key_of(x)) for key, x in kind.items())
    if isinstance(kind, (numbers.Number, numpy.generic, enum.Enum)):
        return type(kind), repr(kind)
    hash(kind)
    return kind


class Parameters:
    """The parameters of a function that is declared.

    Attributes:
        signature: of the function.
        by_name: the parameters by their names.
        defaults: of those that have one.
        keywords: the names of those that are given by name: of a function in C++ all that have a default.
    """

    def __init__(self, function: Callable[..., Any], decorator: str) -> None:
        self.signature = _signature(function, decorator)
        self.by_name = self.signature.parameters
        self.defaults = {name: p.default for name, p in self.by_name.items() if p.default is not p.empty}
        self._is_cpp = inspect.isbuiltin(function)
        self.keywords = [
            name
            for name, p in self.by_name.items()
            if p.kind is p.KEYWORD_ONLY or (self._is_cpp and p.default is not p.empty)
        ]
        self._without_name = len(self.by_name) - len(self.keywords)

    def check(self, name: str, qualified: str, decorator: str) -> None:
        """Raises TypeError where an op cannot have such parameters."""
        if not self.by_name:
            raise TypeError(f"{name} has no arguments; a {decorator} function takes at least a tensor")
        for parameter in self.by_name.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise TypeError(f"{name} takes {parameter}; name every argument")
            if parameter.name in ("self", "cls"):
                raise TypeError(
                    f"{qualified} takes {parameter.name}, which would be a tensor; declare it outside of the "
                    f"class, or of a bound method, as in self.act = torchad_ext.{decorator}(self.function)"
                )

    def bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """The arguments in the order of the parameters. Raises TypeError where they do not fit."""
        missing = self._trailing_defaults.get(len(args)) if not kwargs else None
        if missing is not None:  # a third of the time of what follows
            return (*args, *missing)
        names = self._names
        if len(args) <= self._positional and kwargs.keys() <= self.by_name.keys():  # a tenth of the time of bind
            rest = names[len(args) :]
            if all(name in kwargs or name in self.defaults for name in rest) and kwargs.keys().isdisjoint(
                names[: len(args)]
            ):
                return (*args, *[kwargs[name] if name in kwargs else self.defaults[name] for name in rest])
        given = self.signature.bind(*args, **kwargs).arguments
        return tuple(given.get(name, self.defaults.get(name)) for name in self.by_name)

    def as_called(self, arguments: Sequence[Any]) -> tuple[Sequence[Any], dict[str, Any]]:
        """An argument for each parameter, as those by position and those by name."""
        count = self._without_name
        return arguments[:count], dict(zip(self.keywords, arguments[count:], strict=True))

    def named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call as the function takes them, one in C++ those with a default by name."""
        count = self._without_name
        if not self._is_cpp or len(args) <= count:
            return args, kwargs
        return args[:count], {**dict(zip(self.keywords, args[count:], strict=False)), **kwargs}

    @functools.cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(self.by_name)

    @functools.cached_property
    def _positional(self) -> int:
        """How many arguments may be given without a name; -1 where some may not be given with one."""
        kinds = [p.kind for p in self.by_name.values()]
        if inspect.Parameter.POSITIONAL_ONLY in kinds:
            return -1
        return sum(kind is not inspect.Parameter.KEYWORD_ONLY for kind in kinds)

    @functools.cached_property
    def _trailing_defaults(self) -> dict[int, tuple[Any, ...]]:
        """For a number of positional arguments that will do, the defaults that follow."""
        keyword_only = [p.kind is p.KEYWORD_ONLY for p in self.by_name.values()]
        positional = keyword_only.index(True) if True in keyword_only else len(keyword_only)
        names = self._names
        enough = (n for n in range(positional + 1) if all(name in self.defaults for name in names[n:]))
        return {n: tuple(self.defaults[name] for name in names[n:]) for n in enough}


def _signature(function: Any, decorator: str) -> inspect.Signature:
    if isinstance(function, torch.nn.Module):
        function = function.forward
    if isinstance(function, numpy.ufunc):
        raise TypeError(f"torchad_ext.{decorator} takes a function of tensors, got NumPy's {function!r}; use PyTorch's")
    if not callable(function) or inspect.isclass(function) or isinstance(function, torch.jit.ScriptFunction):
        kind = " that torch.jit.script made; give the function in Python" if hasattr(function, "graph") else ""
        raise TypeError(f"torchad_ext.{decorator} takes a function of tensors, got {function!r}{kind}")
    if (found := signature_of(function)) is not None:
        return found
    try:
        return inspect.signature(function)
    except ValueError:
        raise TypeError(
            f"torchad_ext.{decorator} does not know the arguments of {function!r}; write lambda x: ..."
        ) from None
