"""Rules for elementwise operations: by a fused kernel of an expression, or else by the gradients that PyTorch has."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from .._arguments import SCALAR, TENSOR, kind_of
from .._autograd.graph import depends_on_others
from .._elementwise import Elementwise
from .._pointwise import Pointwise
from .._symbolic.evaluate import evaluate
from .._symbolic.expr import scalar, tensor
from .._symbolic.symbols import ValueNeeded
from .._symbolic.torch_names import is_of_torch, name_of
from .._symbolic.tracing import trace
from .._torch_state import OpOverload, transforms_active
from .calls import known_name
from .correction_mode import run_corrected
from .fallback import Unseen, has_derivative, of_elements, variable
from .roots import root, squared
from .sweep import Arguments, Keywords, Sweep, value_to_repeat

_POWERS = frozenset("pow rpow float_power polygamma".split())
_SIMPLE = 16  # the largest exponent of which a kernel is made


@functools.lru_cache(1024)
def _member(func: Any, kinds: tuple[Any, ...], names: tuple[str, ...]) -> Elementwise | None:
    """An elementwise function of PyTorch for arguments of these kinds, the last of which have names."""
    symbols = [
        tensor(("input", "other", "end", "weight")[i] if i < 4 else f"x{i}")
        if kind is TENSOR
        else scalar(f"s{i}")
        if kind is SCALAR
        else kind
        for i, kind in enumerate(kinds)
    ]
    count = len(kinds) - len(names)
    name = name_of(func).strip("_")
    try:
        program = trace(lambda xs: func(*xs[:count], **dict(zip(names, xs[count:], strict=True))), symbols, name)
    except (TypeError, ValueNeeded):  # a TraceError, or one of PyTorch's parser: it is not elementwise
        return None
    return Elementwise(program, functools.partial(evaluate, program), name)


def by_kernel(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """An elementwise operation with an expression: one kernel for value, tangents and Laplacian."""
    arguments = (*args, *kwargs.values())
    kinds = tuple(map(kind_of, arguments))
    member: Elementwise | None
    if isinstance(func, Pointwise):
        kinds, member, _ = func.resolve(arguments)
    elif any(isinstance(x, (list, tuple, dict)) for x in arguments):
        return NotImplemented
    else:
        if known_name(func).strip("_") in _POWERS:
            kinds = tuple(
                x if kind is SCALAR and _is_simple(x) else kind for x, kind in zip(arguments, kinds, strict=True)
            )
        member = _member(getattr(func, "overloadpacket", func), kinds, tuple(kwargs))
    xs = [x for x, kind in zip(arguments, kinds, strict=True) if kind is TENSOR]
    values = list(map(sweep.value, xs))
    if member is None or any(x.device != values[0].device for x in values):
        return NotImplemented
    if any(x.is_complex() for x in values) and (
        not member.is_analytic or any(isinstance(x, complex) for x in arguments)
    ):
        return NotImplemented
    if any(x.dtype != values[0].dtype for x in values):
        whole = max(values, key=Tensor.dim)  # numbers do not widen it
        dtype = functools.reduce(torch.promote_types, (torch.result_type(whole, x) for x in values))
        xs = [x.to(dtype) for x in xs]
        values = list(map(sweep.value, xs))
    if not member.keeps(values[0].dtype):
        return NotImplemented
    numbers = tuple([float(x) for x, kind in zip(arguments, kinds, strict=True) if kind is SCALAR])
    return sweep.elementwise(member, xs, numbers)


def _is_simple(number: float) -> bool:
    """Is a power with this exponent a few products and a root, for which a kernel of its own pays?"""
    return abs(number) <= _SIMPLE and float(2 * number).is_integer()


@functools.lru_cache(1024)
def is_elementwise(func: Any) -> bool:
    """Does PyTorch say so of all that has the name?"""
    if not is_of_torch(func):
        return False
    if isinstance(func, OpOverload):
        overloads = [func]
    else:
        packets = (getattr(torch.ops.aten, name, None) for name in (name_of(func), f"special_{name_of(func)}"))
        packet = next((packet for packet in packets if packet), None)
        overloads = [getattr(packet, name) for name in packet.overloads()] if packet else []
        arguments = {overload: overload._schema.arguments for overload in overloads}
        overloads = [
            overload
            for overload, given in arguments.items()
            if any("Tensor" in str(a.type) for a in given) and not any(a.is_out for a in given)
        ]
    return bool(overloads) and all(torch.Tag.pointwise in overload.tags for overload in overloads)


def by_slopes(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """An operation that PyTorch says is elementwise, by the gradients that it has of it."""
    return by_slopes_of_any(sweep, func, args, kwargs) if is_elementwise(func) else NotImplemented


def by_slopes_of_any(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """An elementwise operation of whatever origin, by the gradients of its sum."""
    if transforms_active():
        return NotImplemented
    leaves, tree = tree_flatten((args, kwargs))
    places = [i for i, x in enumerate(leaves) if sweep.owns(x)]
    jets = [leaves[i] for i in places]

    def given(xs: Sequence[Tensor]) -> Any:
        filled = dict(zip(places, xs, strict=True))
        return tree_unflatten([filled.get(i, x) for i, x in enumerate(leaves)], tree)

    with torch.enable_grad():
        xs = [variable(x.value) for x in jets]
        y = value_to_repeat(func, *given(xs))
    if not isinstance(y, Tensor):  # frexp
        return NotImplemented
    recording = sweep.recording and depends_on_others([y], xs)
    value = y if recording else y.detach()
    if not has_derivative(value):
        return value
    if any(x.is_complex() > value.is_complex() for x in jets):
        return NotImplemented
    dtypes = [torch.promote_types(x.dtype, value.dtype) for x in jets]
    if any(x.shape != y.shape or x.dtype != dtype for x, dtype in zip(xs, dtypes, strict=True)):
        shape = torch.broadcast_shapes(y.shape, *(x.shape for x in xs))
        jets = [x.to(dtype).expand(shape) for x, dtype in zip(jets, dtypes, strict=True)]
        with torch.enable_grad():
            xs = [variable(x.value) for x in jets]
            args, kwargs = given(xs)
            y = run_corrected(func, *args, **kwargs)
    tangents = [tuple(x.tangents[k] for x in jets) for k in range(len(sweep.signs))]
    laplacians = [x.laplacian for x in jets]
    try:
        rows, total = of_elements(y, xs, tangents, laplacians, sweep.signs, recording)
    except (RuntimeError, NotImplementedError) as error:
        raise Unseen(f"{name_of(func)} ({error})") from error
    return sweep.tensor(value, rows, total)


def sgn(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """z / |z|, a constant 0 at 0 as in PyTorch; of a real number a constant."""
    (z,) = args
    if not z.is_complex():
        return func(sweep.value(z))
    magnitude = z.abs()
    zero = magnitude == 0
    return z.masked_fill(zero, 0) / magnitude.masked_fill(zero, 1)


def angle(z: Any) -> Any:
    return torch.atan2(z.imag, z.real) if z.is_complex() else torch.angle(z.detach())


def size(z: Any) -> Any:
    return root(squared(z)) if z.is_complex() else NotImplemented
