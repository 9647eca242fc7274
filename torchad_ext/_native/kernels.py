"""The native kernels as functions, each found on its first use.

A kernel knows no derivatives. torchad_ext calls it below the autograd keys of the dispatcher; whoever calls it through
``torch.ops`` with a tensor that needs a derivative gets an error instead of a silent zero.
"""

from __future__ import annotations

import ctypes
import functools
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

from .._symbolic import cpp
from .._symbolic.cpp import Kernel
from .._torch_state import (
    DispatchKey,
    DispatchKeySet,
    after_autograd,
    dispatch_keys,
    dispatch_modes,
    elementwise_strides,
    in_forward_mode,
    is_autocast_enabled,
    is_being_traced,
    is_functionalized,
    is_in_hidden_batch,
    is_profiling,
    traced_before_autograd,
    transforms_active,
    without_hidden_batch,
)
from . import loader

MOST_DIMS = 64  # most_dims of csrc/strided.h
DTYPES = {getattr(torch, name): number for name, number in cpp.DTYPES.items()}
_BACKEND = {"cpu": DispatchKey.CPU, "cuda": DispatchKey.CUDA}


def _keys(*keys: DispatchKey) -> DispatchKeySet:
    result = DispatchKeySet(keys[0])
    for key in keys[1:]:
        result = result | DispatchKeySet(key)
    return result


def _plain_keys() -> dict[int, str]:
    plain = {}
    for device, backend in _BACKEND.items():
        autocast = getattr(DispatchKey, f"Autocast{device.upper()}")
        autograd = getattr(DispatchKey, f"Autograd{device.upper()}")
        inference = (backend, autocast)
        for keys in (inference, (*inference, DispatchKey.ADInplaceOrView, autograd)):
            plain[_keys(*keys).raw_repr()] = device
    return plain


# The dispatch keys of a tensor that is nothing but numbers in memory: not a subclass, a view with a pending negation,
# sparse, nested, quantised, fake or wrapped by a transform.
_PLAIN = _plain_keys()
_registering = threading.Lock()


def device_of(xs: Sequence[torch.Tensor]) -> str | None:
    """``"cpu"`` or ``"cuda"`` if a kernel can read all of ``xs`` together, else None."""
    dtype = xs[0].dtype
    if dtype not in DTYPES or xs[0].dim() > MOST_DIMS:
        return None
    device = _PLAIN.get(dispatch_keys(xs[0]).raw_repr())
    for x in xs[1:]:
        if x.dtype is not dtype or _PLAIN.get(dispatch_keys(x).raw_repr()) is not device:
            return None
    return device


def _observed() -> bool:
    """Is there a mode that has to see the plain definition?"""
    if dispatch_modes() or is_autocast_enabled():
        return True
    return torch.compiler.is_compiling() or is_being_traced() or traced_before_autograd()


def device_for(xs: Sequence[torch.Tensor]) -> str | None:
    """The device whose kernel is to run: it can read these tensors, now or once the transforms of ``torch.func`` have
    unwrapped them, and no mode has to see the plain definition. None if there is none."""
    if _observed():
        return None
    if not transforms_active():
        return device_of(xs)
    first = xs[0]
    if is_functionalized() or first.device.type not in _BACKEND:
        return None
    if first.dtype not in DTYPES:
        return None
    alike = all(x.dtype == first.dtype and x.device == first.device and x.layout is torch.strided for x in xs)
    alike = alike and not any(x.is_neg() for x in xs)  # PyTorch cannot give a Function tangents of such views
    return first.device.type if alike else None


def without_batch(xs: Sequence[torch.Tensor]) -> list[torch.Tensor] | None:
    """The tensors with the batch that ``torch.autograd.grad(is_grads_batched=True)`` hides as their first dimension;
    those that have none as they are.

    None where no tensor has one, where such batches are nested, and where a mode or a derivative needs the definition.
    """
    hidden = [is_in_hidden_batch(x) for x in xs]
    if not any(hidden) or _observed() or transforms_active() or in_forward_mode():
        return None
    if torch.is_grad_enabled() and any(x.requires_grad for x in xs):
        return None
    whole = [without_hidden_batch(x) if h else x for x, h in zip(xs, hidden, strict=True)]
    return None if any(map(is_in_hidden_batch, whole)) else whole


@functools.cache
def _guard(name: str, library: torch.library.Library) -> None:
    """Makes a call through ``torch.ops`` raise where a derivative would be lost."""
    op = getattr(torch.ops.torchad_ext, name)

    def call(keyset: DispatchKeySet, *args: Any, overload: str, **out: Any) -> Any:
        for x in (x for arg in (*args, *out.values()) for x in (arg if isinstance(arg, (list, tuple)) else [arg])):
            if not isinstance(x, torch.Tensor):
                continue
            wants_gradient = torch.is_grad_enabled() and x.requires_grad
            if wants_gradient or (in_forward_mode() and forward_ad.unpack_dual(x).tangent is not None):
                raise RuntimeError(
                    f"torch.ops.torchad_ext.{name} is a bare kernel and has no derivative, but was given a tensor that "
                    "needs one; call the function of the same name in torchad_ext, or detach() the tensor"
                )
        return getattr(op, overload).redispatch(keyset & after_autograd, *args, **out)

    for overload in op.overloads():
        full_name = name if overload == "default" else f"{name}.{overload}"
        library.impl(full_name, functools.partial(call, overload=overload), "Autograd", with_keyset=True)
        torch.library.register_fake(f"torchad_ext::{full_name}", _FAKES[full_name], lib=library)


def _fake_pointwise(kernel: int, inputs: list[torch.Tensor], scalars: list[float]) -> list[torch.Tensor]:
    outputs = ctypes.c_int32.from_address(kernel + 4).value  # of struct Kernel in csrc/kernel.h
    x = inputs[0]
    strides = elementwise_strides(*inputs)  # the kernel's, but for dimensions of size 1
    return [x.new_empty_strided(x.shape, strides) for _ in range(outputs)]


def _fake_quadratic_form_outer(
    x: torch.Tensor, g: torch.Tensor | None, h: torch.Tensor | None, summed: bool = False
) -> torch.Tensor:
    return x.new_empty(*(x.shape[-1:] if summed else x.shape), x.shape[-1])


def _fake_rowwise(
    kernel: int, inputs: list[torch.Tensor], scalars: list[float], shape: list[int]
) -> list[torch.Tensor]:
    outputs = ctypes.c_int32.from_address(kernel + 4).value  # of struct RowKernel in csrc/rowwise.h
    kinds = (ctypes.c_int * outputs).from_address(ctypes.c_void_p.from_address(kernel + 24).value or 0)
    shapes = {0: shape, 1: [*shape[:-1], 1], 2: shape[-1:]}
    return [inputs[0].new_empty(shapes[kind]) for kind in kinds]


# Results of the kernels without data, for fake tensors.
_FAKES: dict[str, Callable[..., Any]] = {
    "pointwise": _fake_pointwise,
    "rowwise": _fake_rowwise,
    "pointwise.out": lambda kernel, inputs, scalars, out: None,
    "quadratic_form": lambda x, A: x.new_empty(x.shape[:-1]),
    "quadratic_form_and_product": lambda x, A: (x.new_empty(x.shape[:-1]), x.new_empty(x.shape)),
    "quadratic_form_outer": _fake_quadratic_form_outer,
}


@functools.cache
def _library() -> torch.library.Library:
    return torch.library.Library("torchad_ext", "FRAGMENT")


@functools.cache
def _load(name: str, device: str, overload: str = "default") -> Callable[..., Any] | None:
    declaring = {"pointwise": "cpu", "rowwise": "rowwise"}.get(name, "quadratic_form")  # the operator, for every device
    if not all(map(loader.load, [declaring, device])):
        return None
    with _registering:
        _guard(name, _library())
    op = getattr(getattr(torch.ops.torchad_ext, name), overload)
    run = functools.partial(op._handle.redispatch_boxed, _keys(_BACKEND[device]))

    def kernel(*args: Any, **out: Any) -> Any:
        try:
            return run(*args, **out)
        except RuntimeError as error:
            raise_for_memory(error, args[0] if isinstance(args[0], torch.Tensor) else args[1][0])
            raise

    return kernel


def raise_for_memory(error: RuntimeError, x: torch.Tensor) -> None:
    """PyTorch's own error where a kernel for x had no memory for its results."""
    if lacking := re.search(r"torchad_ext: no memory for (\d+) bytes", str(error)):
        torch.empty(int(lacking[1]), dtype=torch.uint8, device=x.device)


@functools.cache
def _load_form(name: str, device: str, dtype: torch.dtype) -> Callable[..., Any] | None:
    kernel, of = _load(name, device), dtype_name(dtype)
    if device == "cpu" or kernel is None:
        return kernel
    there = loader.load_quadratic_form(f"quadratic_form-{of}", cpp.quadratic_form(of))
    return kernel if there else None


def find(name: str, device: str, dtype: torch.dtype) -> Callable[..., Any] | None:
    """A kernel of the quadratic form for a device and a dtype, compiled on the first use; None if there is none."""
    kernel = _load_form(name, device, dtype)
    return kernel if kernel is None or not is_profiling() else recorded(name, kernel)


def dtype_name(dtype: torch.dtype) -> str:
    """``"float32"`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def title(name: str, dtype: torch.dtype) -> str:
    """The name of a kernel in messages and in the cache."""
    return f"{name}-{dtype_name(dtype)}"


class PointwiseKernel:
    """A pointwise kernel as a function of a sequence of tensors and a sequence of numbers, to a list of tensors, or
    into given ones: ``out``."""

    __slots__ = ("_name", "_run", "_run_out", "address")

    def __init__(self, name: str, device: str, address: int) -> None:
        self._name, self.address = name, address
        self._run, self._run_out = _load("pointwise", device), _load("pointwise", device, "out")

    def __call__(self, xs: Sequence[torch.Tensor], scalars: Sequence[float], **out: Any) -> Any:
        run = self._run_out if out else self._run
        assert run
        return (recorded(self._name, run) if is_profiling() else run)(self.address, xs, scalars, **out)


def compile_pointwise(name: str, dtype: torch.dtype, device: str, source: Kernel) -> PointwiseKernel | None:
    """A pointwise kernel.

    Args:
        name: names it in profiles and, with the dtype, in messages and in the cache.
        dtype: that it is for.
        device: ``"cpu"`` or ``"cuda"``.
        source: its C++.

    Returns:
        The kernel, or None if it could not be compiled; one warning has said why.
    """
    address = _load("pointwise", device) and loader.load_kernel(title(name, dtype), device, source)
    return PointwiseKernel(name, device, address) if address else None


class RowKernel:
    """A kernel of rows as a function of tensors, numbers and the shape of those with a value an element, to a list of
    tensors."""

    __slots__ = ("_name", "_run", "address")

    def __init__(self, name: str, device: str, address: int) -> None:
        self._name, self.address = name, address
        self._run = _load("rowwise", device)

    def __call__(self, xs: Sequence[torch.Tensor], scalars: Sequence[float], shape: Sequence[int]) -> Any:
        run = self._run
        assert run
        return (recorded(self._name, run) if is_profiling() else run)(self.address, xs, scalars, shape)


def compile_rowwise(name: str, dtype: torch.dtype, device: str, source: Kernel) -> RowKernel | None:
    """A kernel of rows, as ``compile_pointwise`` gives one of elements."""
    address = _load("rowwise", device) and loader.load_kernel(title(name, dtype), device, source)
    return RowKernel(name, device, address) if address else None


def recorded(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel under the profiler: a call below the autograd keys leaves no record of itself."""

    def record(*args: Any, **out: Any) -> Any:
        with torch.profiler.record_function(f"torchad_ext::{name}"):
            return kernel(*args, **out)

    return record
