"""Names of PyTorch's functions, methods and operators."""

from __future__ import annotations

import types
from typing import Any

import torch

from .._torch_state import HigherOrderOperator, OpOverload, OpOverloadPacket

_AUGMENTED = {
    "__iadd__": "add", "__isub__": "sub", "__imul__": "mul", "__itruediv__": "div", "__idiv__": "div",
    "__ifloordiv__": "floor_divide", "__imod__": "remainder", "__ipow__": "pow", "__iand__": "and", "__ior__": "or",
    "__ixor__": "logical_xor",
}  # fmt: skip
# Functions that are equal to others of another name, from which no cache can tell them.
_OF_SPARSE = {"dsmm": "mm", "spmm": "mm", "hsmm": "hspmm", "saddmm": "sspaddmm"}
_WRITES = {"fill_": "full_like", "zero_": "zeros_like"}


def name_of(func: Any) -> str:
    if func is torch.Tensor.where:  # its arguments stand in another order
        return "Tensor.where"
    if isinstance(func, HigherOrderOperator):  # torch.cond is none of torch.linalg
        return f"higher_order.{func.__name__}"
    func = getattr(func, "overloadpacket", func)
    name: str = getattr(func, "__name__", repr(func))
    if name in ("__get__", "__set__"):
        return str(func.__self__.__name__)
    return _OF_SPARSE.get(name, name).removeprefix("special_")


def module_of(func: Any) -> str:
    if isinstance(func, (OpOverload, OpOverloadPacket)):
        return f"torch.ops.{func}"
    return str(getattr(func, "__module__", None) or "torch")


def is_of_torch(func: Any) -> bool:
    """Is it a function of PyTorch, whose name says what it computes? One of another library may have the same name."""
    if isinstance(func, (OpOverload, OpOverloadPacket)):
        return str(func).startswith("aten.")
    if isinstance(func, types.FunctionType):  # the module that the code is in: functools.wraps copies __module__
        module = func.__globals__.get("__name__")
    else:
        attribute = getattr(func, "__self__", None)  # Tensor.mT.__get__ is of Tensor.mT, which is of Tensor
        owner = getattr(attribute, "__objclass__", None) or getattr(func, "__objclass__", None)
        module = getattr(owner or func, "__module__", None)
    return isinstance(module, str) and module.partition(".")[0] == "torch"


def written_by(name: str, kwargs: dict[str, Any]) -> str | None:
    """The function whose result a function writes into its first argument; None if it writes nothing."""
    if name in _AUGMENTED:
        return _AUGMENTED[name]
    if kwargs.get("inplace"):
        return name
    if name.endswith("_") and not name.endswith("__") and name != "requires_grad_":
        return _WRITES.get(name, name.removesuffix("_"))
    return None
