"""Functions that run once more, for a comparison, and leave no trace in the tensors and objects that they change."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .._declared import Declared
from .._torch_state import OpOverload, preserved_version
from .calls import known_name, without_guard

OPERATORS = {
    "__iadd__": "add",
    "__isub__": "sub",
    "__imul__": "mul",
    "__itruediv__": "div",
    "__idiv__": "div",
    "__ipow__": "pow",
    "__imod__": "remainder",
    "__ifloordiv__": "floor_divide",
}

_WITH_STATISTICS = frozenset({"batch_norm", "instance_norm", "native_batch_norm"})  # which they update in training
_PLAIN = (Tensor, torch.nn.Parameter)
# They change a tensor, and none of its numbers.
_OF_NO_NUMBERS = frozenset("__set__ requires_grad_ detach_ share_memory_ rename_".split())
_CONTAINERS = (list, dict, set)
_OF_NOBODY = (Tensor, ModuleType, Declared)  # what these keep, no user has put there
_EXCHANGED = frozenset("_parameters _buffers _modules".split())  # by functional_call, which puts them back itself


def is_write(name: str, func: Any, kwargs: Any) -> bool:
    """Does an operation change a tensor?"""
    if name.endswith("_") and (not name.endswith("__") or name in OPERATORS or name == "__setitem__"):
        return True
    if "out" in kwargs or "inplace" in kwargs:
        return kwargs.get("out") is not None or bool(kwargs.get("inplace") and without_guard(func) is None)
    if isinstance(func, OpOverload):
        return bool(func._schema.is_mutable)
    return getattr(func, "__name__", "") == "__set__"


class Undone(TorchFunctionMode):
    """Takes back what functions write to tensors from outside, as the buffers of a module, and what they keep in
    attributes, lists, dicts and sets of the modules that they call and of what those among ``objects`` capture.

    A function that runs once more, for a comparison, changes neither them nor what autograd has saved of them."""

    def __init__(self, *objects: Any) -> None:
        super().__init__()
        self._before: dict[int, tuple[Tensor, Tensor, Any]] = {}
        self._met: dict[int, Any] = {}
        self._held: list[tuple[Any, Any]] = []  # containers, and copies of them
        self._objects, self._thread = objects, threading.get_ident()

    def __enter__(self) -> Undone:
        for x in self._objects:
            self._meet(x)
        self._hook = register_module_forward_pre_hook(lambda module, _: self._meet(module))
        super().__enter__()
        return self

    def _meet(self, x: Any) -> None:
        of_others = threading.get_ident() != self._thread  # for which a hook of all modules is called, too
        if of_others or id(x) in self._met or isinstance(x, _OF_NOBODY):
            return
        self._met[id(x)] = x
        if isinstance(x, _CONTAINERS):
            self._held.append((x, copy.copy(x)))
        for part in _parts(x):
            self._meet(part)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, written = known_name(func), []
        if is_write(name, func, kwargs) and getattr(func, "__name__", "") not in _OF_NO_NUMBERS:
            written = tree_leaves((args[:1], kwargs.get("out")))
        elif name in _WITH_STATISTICS:
            written = [x for x in tree_leaves((args[1:], kwargs)) if isinstance(x, Tensor) and not x.requires_grad]
        for x in written:
            if type(x) in _PLAIN and id(x) not in self._before and x.is_leaf:
                self._before[id(x)] = x, x.detach().clone(), preserved_version(x)
        return func(*args, **kwargs)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._hook.remove()
        for x, contents in self._held:
            _refill(x, contents)
        with torch.no_grad():
            for x, contents, version in reversed(self._before.values()):
                if x.is_leaf:  # not made by the function itself
                    with version:
                        if x.layout is not torch.strided or x.is_meta or not torch.equal(x, contents):
                            x.copy_(contents)


def _parts(x: Any) -> Iterator[Any]:
    """Objects in which another one, or a function, may keep something."""
    if isinstance(x, functools.partial):
        yield x.func
    if isinstance(x, MethodType):
        yield x.__self__
    if isinstance(x, FunctionType):
        yield from (value for cell in x.__closure__ or () for value in _contents(cell))
    if isinstance(attributes := getattr(x, "__dict__", None), dict):
        yield attributes
        yield from (y for name, y in attributes.items() if isinstance(y, _CONTAINERS) and name not in _EXCHANGED)
    if isinstance(x, torch.nn.Module):
        yield from x.children()


def _contents(cell: Any) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # it is empty
        return []


def _refill(x: Any, contents: Any) -> None:
    if isinstance(x, list):
        x[:] = contents
    elif isinstance(x, set):
        x.intersection_update(contents)
        x.update(contents)
    else:
        for key in x.keys() - contents.keys():
            del x[key]
        x.update(contents)


def once_more(f: Callable[..., Any], *args: Any) -> Any:
    """A further result of a function, of which nothing else remains."""
    with Undone(f, *args):
        return f(*args)
