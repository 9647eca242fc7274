"""Every use of PyTorch's private API, each with the reason for it: nothing public tells or does it.

A release of PyTorch that moves one of these names concerns this file and no other. Names that have a public, slower way
beside them are looked up by :func:`_private`; the package warns of those that are ``missing`` when it is imported.
"""

from __future__ import annotations

import contextlib
import functools
import math
import pkgutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._C import DispatchKey as DispatchKey
from torch._C import DispatchKeySet as DispatchKeySet
from torch._ops import HigherOrderOperator as HigherOrderOperator
from torch._ops import OpOverload as OpOverload
from torch._ops import OpOverloadPacket as OpOverloadPacket
from torch.autograd import forward_ad
from torch.overrides import has_torch_function
from torch.utils._pytree import tree_map

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

version = torch.__version__
# From 2.14 on clamp has no slope at a bound that is a number, and shares it with one that is a tensor; fmax and fmin
# share it between equal numbers.
clamp_shares_ties = tuple(int(part) for part in version.split(".")[:2]) >= (2, 14)
missing: list[str] = []  # private names that this PyTorch lacks


def _private(name: str, otherwise: Any = None) -> Any:
    """A private object of PyTorch. Where a release lacks it: ``otherwise``, which is public and slower, or a function
    that says so when it is called."""
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        missing.append(name)

    def unavailable(*_: Any, **__: Any) -> Any:
        raise RuntimeError(
            f"torch {version} has no {name}, without which torchad_ext cannot do this; install a version of "
            "PyTorch that docs/versions.md names, or call native PyTorch here"
        )

    return unavailable if otherwise is None else otherwise


def _plain_alias(x: Tensor, y: Tensor) -> bool:
    return x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()


def _strides_of_sum(*tensors: Tensor) -> tuple[int, ...]:
    """The strides of the sum of tensors without data, which has those of every elementwise operation."""
    like = [torch.empty_strided(x.shape, x.stride(), device="meta") for x in tensors]
    return functools.reduce(torch.add, [*like, like[-1]]).stride()


def _plain_backward(
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    retain_graph: bool,
    create_graph: bool,
    inputs: Sequence[Tensor],
    **_: Any,
) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(
        outputs, inputs, cotangents, retain_graph=retain_graph, create_graph=create_graph, allow_unused=True
    )


class _UnknownKeys:
    """Dispatch keys of no plain tensor: the definition runs."""

    def raw_repr(self) -> int:
        return -1


# Transforms of torch.func wrap tensors, and give a Function other rules than plain autograd does.
transforms_active: Callable[[], bool] = _private(
    "torch._C._are_functorch_transforms_active", lambda: innermost_transform() is not None
)
# A function under torch.jit.trace is to be recorded as its definition.
is_being_traced = _private("torch._C._is_tracing", torch.jit.is_tracing)  # type: ignore[attr-defined]
# A flag changes: it is read where it stands.
_has_exporting_flag = (
    _private("torch.compiler._is_exporting_flag", torch.compiler.is_exporting) is not torch.compiler.is_exporting
)
# Nothing is recorded without the state of the tracer.
_get_tracing_state = _private("torch._C._get_tracing_state", lambda: None)
_set_tracing_state = _private("torch._C._set_tracing_state", lambda state: None)
# Autocast changes the dtypes of a definition's operations. torch.is_autocast_enabled asks for one device at a time.
is_autocast_enabled = _private(
    "torch._C._is_any_autocast_enabled", lambda: any(map(torch.is_autocast_enabled, ("cpu", "cuda")))
)
# A kernel called below the autograd keys leaves no record of itself, so it has to ask whether one is kept.
is_profiling = _private("torch._C._autograd._profiler_enabled", lambda: True)
# Modes of the dispatcher, as FakeTensorMode is, are to see the operations of the definition.
dispatch_modes = _private("torch._C._len_torch_dispatch_stack", lambda: 1)
# A tracer has to see the operations of a function, not those of the modes around it.
without_modes = _private("torch.utils._python_dispatch._disable_current_modes")
# Rows of a batch, whose operations autograd runs, are no subject of a tape that records below autograd.
without_dispatch = _private("torch._C._DisableTorchDispatch")
# Methods of a subclass read its own tensor.
without_torch_function = _private("torch._C.DisableTorchFunctionSubclass")
# A subclass that acts below autograd takes no part above it.
no_torch_function = _private("torch._C._disabled_torch_function_impl")
# ctx.needs_input_grad tells what may be asked for, this what the pass under way uses: the others need no kernel.
will_execute: Callable[[Any], bool] = _private("torch._C._will_engine_execute_node", lambda node: True)
# Within a jvp PyTorch switches forward mode off, so that an outer level would lose its tangents.
forward_mode_enabled = _private("torch.autograd.forward_ad._set_fwd_grad_enabled")
# Tensors that were made part of a sweep become plain again under the name that the caller holds.
swap_implementations = _private("torch._C._swap_tensor_impl")
# The dispatch keys of a tensor say at once that it is nothing but numbers in memory.
dispatch_keys = _private("torch._C._dispatch_keys", lambda x: _UnknownKeys())
after_autograd = torch._C._after_autograd_keyset
# PyTorch's own compositions of operations, which have the sparsity of their parts.
decomposition_table = _private("torch._decomp.decomposition_table", {})
# Are two tensors views of one?
share_memory: Callable[[Tensor, Tensor], bool] = _private("torch._C._is_alias_of", _plain_alias)
# A storage that others share is not changed under their eyes; who cannot count takes it for shared.
_owners = _private("torch._C._storage_Use_Count", lambda storage: math.inf)
# Autograd knows by versions what was written: a tensor that is as before again has its version again.
preserved_version: Callable[[Tensor], contextlib.AbstractContextManager[None]] = _private(
    "torch.autograd.grad_mode._unsafe_preserve_version_counter", contextlib.nullcontext
)
# Another shape of a tensor that nobody else has, which is no view of it.
without_view: Callable[[Tensor, Sequence[int]], Tensor] = _private("torch.ops.aten._unsafe_view.default", torch.reshape)
# A tensor that a transform of torch.func wraps is no tensor of its own after the transform.
is_wrapped: Callable[[Tensor], bool] = _private("torch._C._functorch.is_functorch_wrapped_tensor", lambda x: False)
# A level of torch.func.vmap, whose trees and checks take longer than a small batch does.
_batch_levels = [
    _private(f"torch._{name}", torch.func.vmap)
    for name in (
        "C._functorch._vmap_increment_nesting",
        "C._functorch._vmap_decrement_nesting",
        "C._functorch._add_batch_dim",
        "C._functorch._remove_batch_dim",
        "functorch.vmap.lazy_load_decompositions",
    )
]
_has_batch_levels = torch.func.vmap not in _batch_levels
# torch.autograd.grad takes as long for its checks as a small graph does.
_run_backward: Callable[..., tuple[Tensor | None, ...]] = _private(
    "torch.autograd.Variable._execution_engine.run_backward", _plain_backward
)
# The strides that PyTorch gives the result of an elementwise operation.
elementwise_strides = _private("torch._prims_common.compute_elementwise_output_strides", _strides_of_sum)

# Rows of a hidden batch are no plain tensors: where nobody tells, the definition runs.
_is_in_hidden_batch = _private("torch._C._functorch.is_legacy_batchedtensor", lambda x: False)

_capability = torch.backends.cpu.get_cpu_capability
can_run_avx2: Callable[[], bool] = _private("torch.cpu._is_avx2_supported", lambda: _capability() in ("AVX2", "AVX512"))
can_run_avx512: Callable[[], bool] = _private("torch.cpu._is_avx512_supported", lambda: _capability() == "AVX512")


@contextlib.contextmanager
def outside_autocast() -> Iterator[None]:
    """Runs operations in the dtypes of their tensors."""
    if not is_autocast_enabled():
        yield
        return
    with contextlib.ExitStack() as stack:
        for device in filter(torch.is_autocast_enabled, ("cpu", "cuda")):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextlib.contextmanager
def without_jit_trace() -> Iterator[None]:
    """Runs operations that ``torch.jit.trace`` is not to record."""
    state = _get_tracing_state()
    _set_tracing_state(None)
    try:
        yield
    finally:
        _set_tracing_state(state)


def without_compilation() -> contextlib.AbstractContextManager[Any]:
    """Runs functions that ``torch.compile`` made as they were written."""
    loaded = "torch._dynamo" in sys.modules  # else nothing is compiled, and importing it takes a second
    return torch.compiler.set_stance("force_eager") if loaded else contextlib.nullcontext()


def run_without_compilation(f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The result of a function, in which functions that ``torch.compile`` made run as they were written.

    ``torch.cond`` and its kin import what compiles them; where that fails, it is there when f runs again."""
    if "torch._dynamo" not in sys.modules:
        try:
            return f(*args, **kwargs)
        except Exception:
            if "torch._dynamo" not in sys.modules:
                raise
    with without_compilation():
        return f(*args, **kwargs)


def register_backend(name: str, backend: Any) -> None:
    """Gives ``torch.compile`` a backend by name, where no entry point of an installed package has."""
    if name not in torch.compiler.list_backends(exclude_tags=()):
        torch._dynamo.register_backend(backend, name)


def as_written(f: Callable[..., Any]) -> Callable[..., Any]:
    """A function, or the call of a module without what its ``compile()`` put in the place of that."""
    return f._call_impl if getattr(f, "_compiled_call_impl", None) is not None else f  # type: ignore[attr-defined]


def left_to_eager(reason: str) -> Exception:
    """The exception by which a backend leaves a function that Dynamo traced to eager mode."""
    return torch._dynamo.exc.SkipFrame(reason)


def is_buffer(node: Any) -> bool:
    """Does a node of a graph of Dynamo's stand for a buffer of a module?"""
    name = getattr(getattr(node.meta.get("grapharg"), "source", None), "name", "")  # a method in earlier versions
    return "._buffers[" in str(name() if callable(name) else name)


def is_captured(x: Any) -> bool:
    """Does a CUDA graph record what is done with x?"""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def is_recorded_by_fx() -> bool:
    """Does ``make_fx`` record what is run?"""
    tracer = sys.modules.get("torch.fx.experimental.proxy_tensor")  # which make_fx is of
    return tracer is not None and tracer.get_proxy_mode() is not None


def is_recorded() -> bool:
    """Is a program made of what is run, which other numbers will go through?"""
    return torch.compiler.is_compiling() or is_being_traced() or is_recorded_by_fx()


def usual_size(size: Any) -> int:
    """A size; of a symbolic one the number that it had when it was traced, which adds no guard."""
    if isinstance(size, int):
        return size
    from torch.fx.experimental import symbolic_shapes  # PyTorch 2.13 has another name for it than those before

    name = "optimization_hint" if hasattr(symbolic_shapes, "optimization_hint") else "hint_int"
    return int(getattr(symbolic_shapes, name)(size, 0))


def surely(condition: Callable[[], bool]) -> bool:
    """Does a condition on sizes hold? Not where it depends on sizes that are known when data are."""
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    try:
        return bool(condition())  # a SymBool until then
    except GuardOnDataDependentSymNode:
        return False


def in_forward_mode() -> bool:
    """Is there a level of forward mode, at which a tensor may have a tangent?"""
    return forward_ad._current_level >= 0


def mixes_modes(x: Tensor) -> bool:
    """Is x within forward mode and another level of derivatives, but for forward over reverse mode alone?"""
    if not in_forward_mode():
        return False
    types = torch._C._functorch.TransformType
    kinds = [interpreter.key() for interpreter in torch._C._functorch.get_interpreter_stack() or ()]
    kinds = [kind for kind in kinds if kind in (types.Grad, types.Jvp)]  # the outermost first
    while is_wrapped(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x.requires_grad or kinds not in ([], [types.Jvp], [types.Jvp, types.Grad])


def is_exporting() -> bool:
    """Does ``torch.export`` record? In a graph of Dynamo the answer of ``torch.compiler.is_exporting`` is always yes
    before PyTorch 2.13."""
    return torch.compiler._is_exporting_flag if _has_exporting_flag else torch.compiler.is_exporting()


def traced_before_autograd() -> bool:
    """Does ``make_fx(pre_dispatch=True)`` trace? That is a mode of torch functions, and none of the dispatcher's."""
    if torch.compiler.is_compiling():  # Dynamo cannot record the question
        return False
    return torch._C._dispatch_tls_is_dispatch_key_included(DispatchKey.PreDispatch)


@functools.cache
def are_transforms_right_in_inference_mode() -> bool:
    """Does ``torch.func`` differentiate in inference mode? Before PyTorch 2.13 its derivatives are silently 0 there."""
    with torch.inference_mode():
        return bool(torch.func.grad(torch.sin)(torch.zeros(())))


def outside_inference_mode(tool: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """A tool that leaves inference mode, in which autograd records nothing; what it returns needs no gradient.

    It takes copies of tensors that were made in inference mode.
    """

    @functools.wraps(tool)
    def run(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        if torch.compiler.is_compiling():
            return tool(*args, **kwargs)
        is_inside = torch.is_inference_mode_enabled()
        if not is_inside and not any(isinstance(x, Tensor) and x.is_inference() for x in (*args, *kwargs.values())):
            return tool(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad() if is_inside else contextlib.nullcontext():
            plain = tree_map(lambda x: x.clone() if isinstance(x, Tensor) and x.is_inference() else x, (args, kwargs))
            return tool(*plain[0], **plain[1])

    return run


def where_transforms_are_right(tool: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """A tool of transforms, run in inference mode only where they are right in it: f may use tensors made there."""
    outside = outside_inference_mode(tool)

    @functools.wraps(tool)
    def run(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
            return tool(*args, **kwargs)
        return (tool if are_transforms_right_in_inference_mode() else outside)(*args, **kwargs)

    return run


def is_functionalized() -> bool:
    """Is a transform ``functionalize``? No kernel can read its tensors, and it has no rule for a Function."""
    kind = torch._C._functorch.TransformType.Functionalize
    return any(interpreter.key() == kind for interpreter in torch._C._functorch.get_interpreter_stack() or ())


def innermost_transform() -> Any:
    """The interpreter of the innermost transform of ``torch.func``; None if there is none."""
    return torch._C._functorch.peek_interpreter_stack()


def is_in_hidden_batch(x: Tensor) -> bool:
    """Is x a row of the batch that ``torch.autograd.grad(is_grads_batched=True)`` hides?"""
    return bool(_is_in_hidden_batch(x))


def is_batched(x: Any) -> bool:
    """Is x a tensor of ``torch.func.vmap``, of one number for each row?"""
    return isinstance(x, Tensor) and any(map(torch._C._functorch.is_batchedtensor, unwrapped(x)))


def unwrapped(x: Tensor) -> list[Tensor]:
    """x, and what transforms of ``torch.func`` wrapped to it, the outermost wrapper first."""
    found = [x]
    while is_wrapped(found[-1]):
        found.append(torch._C._functorch.get_unwrapped(found[-1]))
    return found


def is_below_autograd() -> bool:
    """Does what runs here leave no graph?"""
    return torch._C._dispatch_tls_is_dispatch_key_excluded(DispatchKey.AutogradFunctionality)


def of_batch(function: Callable[[list[Tensor]], Sequence[Tensor]], batch: Sequence[Tensor]) -> Sequence[Tensor]:
    """``torch.func.vmap(function)`` of a list of tensors, for a function to a list of tensors."""
    if not _has_batch_levels:
        rows: Sequence[Tensor] = torch.func.vmap(function)(list(batch))
        return rows
    enter, leave, add, remove, load_decompositions = _batch_levels
    load_decompositions()
    count = len(batch[0])
    level = enter(count, "error")
    try:
        return [remove(row, level, count, 0) for row in function([add(x, 0, level) for x in batch])]
    finally:
        leave()


def gradients_along(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor], create_graph: bool
) -> tuple[Tensor | None, ...]:
    """``torch.autograd.grad`` of a graph that is retained, for cotangents that are known to fit; None where there is no
    dependence. Subclasses and modes of torch functions see that call."""
    is_seen = has_torch_function((*outputs, *inputs, *cotangents))
    run = _plain_backward if is_seen else _run_backward
    options = {"allow_unreachable": True, "accumulate_grad": False}
    return run(tuple(outputs), tuple(cotangents), True, create_graph, tuple(inputs), **options)


def without_hidden_batch(x: Tensor) -> Tensor:
    """The tensor ``[batch, *shape]`` behind a row of a hidden batch."""
    return torch._remove_batch_dim(x, 1, 0, 0)


def with_hidden_batch(x: Tensor) -> Tensor:
    """A tensor ``[batch, *shape]`` as one ``[*shape]`` in a hidden batch."""
    return torch._add_batch_dim(x, 0, 1)


def is_undefined_zero(x: Tensor) -> bool:
    """Is x a zero of PyTorch's that has no memory, as the second derivative of ``abs`` is?"""
    return x._is_zerotensor()


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


def overload_of(packet: OpOverloadPacket, args: Any, kwargs: Any) -> OpOverload:
    """The overload of an operator that PyTorch chooses for arguments."""
    name = torch._C._jit_resolve_packet(packet._qualified_op_name, *args, **kwargs)
    overload: OpOverload = getattr(packet, name)
    return overload


def nn_functions() -> Any:
    """The module of functions of ``torch.nn.functional`` that are written in C++."""
    return torch._C._nn


def with_forgotten(func: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keywords of a call that a mode or a subclass sees, and the weight of ``l1_loss``, which PyTorch 2.13 does not
    hand on: it is in the frame of the call."""
    if func is not torch.nn.functional.l1_loss or "weight" in kwargs:
        return kwargs
    frame = sys._getframe()
    while frame.f_back and frame.f_code is not func.__code__:
        frame = frame.f_back
    weight = frame.f_locals.get("weight")
    return kwargs if weight is None else {**kwargs, "weight": weight}


def owners_of_storage(x: Tensor) -> float:
    """How many tensors share the memory of x."""
    owners: float = _owners(x.untyped_storage()._cdata)
    return owners


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


def structure_of_lists(args: Sequence[Any]) -> Any:
    """The structure of the arguments that an operator of others was given, if it has lists of tensors among them.

    The forward of its Function is called with the tensors of all lists side by side, and with a last argument that
    knows the lists; None where there are none.
    """
    return getattr(args[-1], "input_spec", None) if args else None
