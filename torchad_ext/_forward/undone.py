"""Functions that run once more, for a comparison, and leave no trace in tensors that they write to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

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
    """Takes back what functions write to tensors from outside, as the buffers of a module.

    A function that runs once more, for a comparison, changes neither them nor what autograd has saved of them."""

    def __init__(self) -> None:
        super().__init__()
        self._before: dict[int, tuple[Tensor, Tensor, Any]] = {}

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
        with torch.no_grad():
            for x, contents, version in reversed(self._before.values()):
                if x.is_leaf:  # not made by the function itself
                    with version:
                        if x.layout is not torch.strided or x.is_meta or not torch.equal(x, contents):
                            x.copy_(contents)


def once_more(f: Callable[..., Any], *args: Any) -> Any:
    """A further result of a function, of which nothing else remains."""
    with Undone():
        return f(*args)
