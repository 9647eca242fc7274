"""The mode that runs a function with compositions in place of what PyTorch differentiates wrongly."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .._symbolic.torch_names import is_of_torch
from .._torch_state import run_without_compilation, top_saved_tensors_hooks, with_forgotten
from . import missing, roots
from .calls import is_python, known_name, positional, without_guard
from .control_flow import CONTROL_FLOW
from .corrections import CORRECTIONS
from .sparse_products import PRODUCTS
from .sparse_values import sparse_coo_tensor

_COMPOSITIONS: dict[str, Callable[..., Any]] = {**CORRECTIONS, **PRODUCTS, "sparse_coo_tensor": sparse_coo_tensor}
# Methods that show the gradient of a tensor on its way, or change it.
_HOOKS = (Tensor.register_hook, Tensor.retain_grad, Tensor.grad_fn.__get__)  # type: ignore[union-attr]


class Correcting(TorchFunctionMode):
    """Calls :mod:`torchad_ext._forward.corrections` in place of PyTorch's functions of the same names.

    It takes the branches of :mod:`torchad_ext._forward.control_flow`, and refuses the functions of
    :mod:`torchad_ext._forward.missing` where they read what depends on ``inputs``."""

    def __init__(self, inputs: Any = ()) -> None:
        super().__init__()
        self._inputs = inputs

    _running: Any = None  # a function in Python: what it calls by super() has its name

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.compiler.is_compiling():
            return func(*args, **(kwargs or {}))
        kind, of = _found(func) if func.__hash__ else ("native", func)
        kwargs = with_forgotten(func, kwargs) if kwargs else {}
        if kind == "native" or (kind == "watched" and not roots.are_known()) or (types and any(map(_overrides, types))):
            return func(*args, **kwargs)
        if kind == "python" and func is not self._running:
            before, self._running = self._running, func
            try:
                with self:
                    return of(*args, **kwargs)
            finally:
                self._running = before
        if kind == "gradient":
            roots.check_derivative((args[1:], kwargs.get("inputs")))
        elif kind == "hook":
            roots.check_derivative(args[:1])
        elif kind == "missing":
            given = (*args, *kwargs.values())
            missing.check(of, given[0] if given else None, self._inputs)
        elif kind == "control flow":
            with self:
                result = of(*args, **kwargs)
            if result is not NotImplemented:
                return result
        elif kind == "corrected" and kwargs.get("out") is None:
            args, kwargs = positional(func, args, kwargs)
            result = of(*args, **kwargs)
            if result is not NotImplemented:
                _recompute_alike()
                return result
        return with_powers(func, args, kwargs, lambda: func(*args, **kwargs))


def _recompute_alike() -> None:
    """Within ``torch.utils.checkpoint``: what is run again in a backward, later, is composed too."""
    hooks = top_saved_tensors_hooks()
    unpack: Any = hooks[1] if hooks else None
    if getattr(unpack, "__module__", None) != "torch.utils.checkpoint":
        return
    frame = inspect.getclosurevars(unpack).nonlocals.get("frame")
    if frame and not hasattr(frame.recompute_fn, "__wrapped__"):
        frame.recompute_fn = with_corrections(frame.recompute_fn)


def with_corrections(f: Callable[..., Any]) -> Callable[..., Any]:
    """f, run under :class:`Correcting`."""

    @functools.wraps(f)
    def corrected(*args: Any, **kwargs: Any) -> Any:
        return run_corrected(f, *args, **kwargs)

    return corrected


def run_corrected(f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The value of f, run under :class:`Correcting`."""
    if torch.compiler.is_compiling():
        return f(*args, **kwargs)
    # Where Dynamo skips f, it compiles the mode, and takes one function of PyTorch for another there.
    try:
        with Correcting((args, kwargs)):
            return run_without_compilation(f, *args, **kwargs)
    except roots.DerivativeInRoot:
        with roots.without_powers(), Correcting((args, kwargs)):
            return run_without_compilation(f, *args, **kwargs)


def _overrides(kind: type) -> bool:
    """Has a class of tensors a ``__torch_function__`` of its own?"""
    method = getattr(kind, "__torch_function__", None)
    return getattr(method, "__func__", method) is not Tensor.__torch_function__.__func__  # type: ignore[attr-defined]


@functools.lru_cache(2048)
def _found(func: Any) -> tuple[str, Any]:
    """How to call a function: by its composition, by its parts in Python, watched for powers of norms, or as it is."""
    if func in (torch.autograd.grad, torch.autograd.backward):
        return "gradient", func
    if func in _HOOKS:
        return "hook", func
    if is_of_torch(func):
        name = known_name(func)
        if name in missing.UNDIFFERENTIATED:
            return "missing", name
        if name in CONTROL_FLOW:
            return "control flow", CONTROL_FLOW[name]
        composed = _COMPOSITIONS.get(name)
        if not composed and name.endswith("_") and (of := _COMPOSITIONS.get(name.removesuffix("_"))):
            composed = _in_place(of)
        guards_a_method = inspect.ismethoddescriptor(getattr(func, "__wrapped__", None))  # x**y is Tensor.pow
        parts = None if guards_a_method else without_guard(func)
        if parts and _reaches(func, set()):
            return "python", parts
        if composed and not parts:
            return "corrected", composed
    if roots.watched(func) in roots.ROOTS:
        return "root", func
    return ("watched" if roots.watched(func) else "native"), func


def _in_place(composed: Callable[..., Any]) -> Callable[..., Any]:
    """Writes what is composed of a copy into the first argument: what a derivative reads stays as it was."""

    def written(x: Any, *args: Any, **kwargs: Any) -> Any:
        before = x.clone()
        y = composed(before, *(before if other is x else other for other in args), **kwargs)
        return y if y is NotImplemented else x.copy_(y)

    return written


def _reaches(func: Any, seen: set[Any]) -> bool:
    """May a function in Python call what is composed, or take a power?"""
    seen.add(func)
    names = set(getattr(func, "__wrapped__", func).__code__.co_names)
    called = (func.__globals__.get(name) for name in names)
    return bool(names & (CORRECTIONS.keys() | roots.ROOTS | roots.POWERS)) or any(
        _reaches(f, seen) for f in called if is_python(f) and f not in seen
    )


def with_powers(func: Any, args: Any, kwargs: Any, call: Callable[[], Any]) -> Any:
    """The result of a call; where it is a power of a norm, without the root."""
    kind = roots.watched(func)
    if not kind or not (roots.are_known() or kind in roots.ROOTS):
        return call()
    if kind != roots.UNDER_ROOT:
        args, kwargs = positional(func, args, kwargs)
    power = roots.power_of(kind, args, kwargs)
    if power is not None:
        _recompute_alike()
        return power
    result = call()
    if isinstance(result, Tensor):
        roots.follow(func, kind, args, kwargs, result)
    return result
