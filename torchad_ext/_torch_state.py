"""Every use of PyTorch's private API, each with the reason for it: nothing public tells or does it.

A release of PyTorch that moves one of these names breaks this file and no other.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch._prims_common
from torch import Tensor
from torch._C import DispatchKey as DispatchKey
from torch._C import DispatchKeySet as DispatchKeySet
from torch._decomp import decomposition_table as decomposition_table
from torch._ops import OpOverload as OpOverload
from torch._ops import OpOverloadPacket as OpOverloadPacket
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _disable_current_modes

# Transforms of torch.func wrap tensors, and give a Function other rules than plain autograd does.
transforms_active = torch._C._are_functorch_transforms_active
# A function under torch.jit.trace is to be recorded as its definition.
is_being_traced = torch._C._is_tracing
# Autocast changes the dtypes of a definition's operations. torch.is_autocast_enabled asks for one device at a time.
is_autocast_enabled = torch._C._is_any_autocast_enabled
# A kernel called below the autograd keys leaves no record of itself, so it has to ask whether one is kept.
is_profiling = torch._C._autograd._profiler_enabled
# Modes of the dispatcher, as FakeTensorMode is, are to see the operations of the definition.
dispatch_modes = torch._C._len_torch_dispatch_stack
# A tracer has to see the operations of a function, not those of the modes around it.
without_modes = _disable_current_modes
# Rows of a batch, whose operations autograd runs, are no subject of a tape that records below autograd.
without_dispatch = torch._C._DisableTorchDispatch
# Methods of a subclass read its own tensor.
without_torch_function = torch._C.DisableTorchFunctionSubclass
# A subclass that acts below autograd takes no part above it.
no_torch_function = torch._C._disabled_torch_function_impl
# ctx.needs_input_grad tells what may be asked for, this what the pass under way uses: the others need no kernel.
will_execute = torch._C._will_engine_execute_node
# Within a jvp PyTorch switches forward mode off, so that an outer level would lose its tangents.
forward_mode_enabled = forward_ad._set_fwd_grad_enabled
# Tensors that were made part of a sweep become plain again under the name that the caller holds.
swap_implementations = torch._C._swap_tensor_impl
# The dispatch keys of a tensor say at once that it is nothing but numbers in memory.
dispatch_keys = torch._C._dispatch_keys
after_autograd = torch._C._after_autograd_keyset

# The strides that PyTorch gives the result of an elementwise operation.
elementwise_strides = torch._prims_common.compute_elementwise_output_strides

can_run_avx2, can_run_avx512 = torch.cpu._is_avx2_supported, torch.cpu._is_avx512_supported


def without_compilation() -> contextlib.AbstractContextManager[Any]:
    """Runs functions that ``torch.compile`` made as they were written."""
    loaded = "torch._dynamo" in sys.modules  # else nothing is compiled, and importing it takes a second
    return torch.compiler.set_stance("force_eager") if loaded else contextlib.nullcontext()


def register_backend(name: str, backend: Any) -> None:
    """Gives ``torch.compile`` a backend by name, where no entry point of an installed package has."""
    if name not in torch.compiler.list_backends(exclude_tags=()):
        torch._dynamo.register_backend(backend, name)


def usual_size(size: Any) -> int:
    """A size; of a symbolic one the number that it had when it was traced, which adds no guard."""
    if isinstance(size, int):
        return size
    from torch.fx.experimental import symbolic_shapes  # PyTorch 2.13 has another name for it than those before

    name = "optimization_hint" if hasattr(symbolic_shapes, "optimization_hint") else "hint_int"
    return int(getattr(symbolic_shapes, name)(size, 0))


def in_forward_mode() -> bool:
    """Is there a level of forward mode, at which a tensor may have a tangent?"""
    return forward_ad._current_level >= 0


def traced_before_autograd() -> bool:
    """Does ``make_fx(pre_dispatch=True)`` trace? That is a mode of torch functions, and none of the dispatcher's."""
    return torch._C._dispatch_tls_is_dispatch_key_included(DispatchKey.PreDispatch)


def is_functionalized(interpreter: Any) -> bool:
    """Is a transform ``torch.func.functionalize``, whose tensors no kernel can read?"""
    return bool(interpreter.key() == torch._C._functorch.TransformType.Functionalize)


def innermost_transform() -> Any:
    """The interpreter of the innermost transform of ``torch.func``; None if there is none."""
    return torch._C._functorch.peek_interpreter_stack()


def is_in_hidden_batch(x: Tensor) -> bool:
    """Is x a row of the batch that ``torch.autograd.grad(is_grads_batched=True)`` hides?"""
    return torch._C._functorch.is_legacy_batchedtensor(x)


def without_hidden_batch(x: Tensor) -> Tensor:
    """The tensor ``[batch, *shape]`` behind a row of a hidden batch."""
    return torch._remove_batch_dim(x, 1, 0, 0)


def with_hidden_batch(x: Tensor) -> Tensor:
    """A tensor ``[batch, *shape]`` as one ``[*shape]`` in a hidden batch."""
    return torch._add_batch_dim(x, 0, 1)


def subclass(cls: type, x: Tensor, requires_grad: bool) -> Any:
    """x as a tensor of a subclass."""
    return torch.Tensor._make_subclass(cls, x, requires_grad)


def wrapper_subclass(cls: type, shape: Sequence[int], like: Tensor) -> Any:
    """A tensor of a subclass without memory of its own."""
    return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=like.dtype, device=like.device)


def top_saved_tensors_hooks() -> Any:
    """The hooks of ``torch.autograd.graph.saved_tensors_hooks`` at work: checkpoints are known by theirs."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def schemas(name: str) -> list[Any]:
    """The schemas of an operator's overloads, which name the arguments of functions written in C++."""
    return torch._C._jit_get_schemas_for_operator(f"aten::{name}")


def nn_functions() -> Any:
    """The module of functions of ``torch.nn.functional`` that are written in C++."""
    return torch._C._nn


def owners_of_storage(x: Tensor) -> int:
    """How many tensors share the memory of x."""
    return torch._C._storage_Use_Count(x.untyped_storage()._cdata)


def share_memory(x: Tensor, y: Tensor) -> bool:
    """Are x and y views of one tensor?"""
    return bool(torch._C._is_alias_of(x, y))  # type: ignore[attr-defined]


def takes_context(function: type[torch.autograd.Function]) -> bool:
    """Has the forward of a Function a ctx, because it has no ``setup_context``?"""
    return function.setup_context is torch.autograd.Function.setup_context


def function_of(node: Any) -> type[torch.autograd.Function]:
    """The Function that a node of a graph belongs to."""
    of: type[torch.autograd.Function] = node._forward_cls
    return of


def cotangents_of(node: Any) -> Sequence[Any]:
    """Shape and dtype of each cotangent that a node of a graph takes, without computing one."""
    given: Sequence[Any] = node._input_metadata
    return given
