"""The Laplacian of a function in one forward sweep: every tensor carries its derivatives and its Laplacian along.

For directions u_k, each intermediate result y has its value, its tangents y_k and Δy = Σ_k ±y_kk. An operation maps
those of its operands to those of its result:

    linear        y = A x        y_k = A x_k                  Δy = A Δx
    product       y = a b        y_k = a_k b + a b_k          Δy = Δa b + a Δb + 2 Σ_k ±a_k b_k
    elementwise   y = f(x)       y_k = f'(x) x_k              Δy = f'(x) Δx + f''(x) Σ_k ±x_k²

A linear operation runs once for each of them, an elementwise one is one fused kernel (``Program.laplacian``). Every
other operation is composed of these, or is differentiated twice by itself. The operations are intercepted while the
function runs, so it may branch on values.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeGuard

import torch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from .._elementwise import Elementwise
from .._pointwise import _SCALAR, _TENSOR, Pointwise, _kind
from .._quadratic_form import _sum, quadratic_form
from .._quadratic_form import definition as _quadratic_form
from .._rowwise import Rowwise
from .._symbolic.evaluate import evaluate
from .._symbolic.expr import scalar, tensor
from .._symbolic.torch_functions import FUNCTIONS
from .._symbolic.torch_names import is_of_torch, name_of
from .._symbolic.tracing import ValueNeeded, trace
from .._torch_state import OpOverload, is_autocast_enabled, transforms_active, wrapper_subclass
from . import linalg_rules, rules, writes
from .composed import (
    COMPOSED,
    affine,
    composing,
    known_name,
    logsumexp,
    positional,
    root,
    squared,
    with_powers,
    without_guard,
)
from .fallback import (
    Unseen,
    by_reverse_mode,
    by_transforms,
    checked,
    fall_back,
    has_derivative,
    of_elements,
    of_operation,
    random_states,
)
from .recurrent import RECURRENT

Function = Callable[[torch.Tensor], torch.Tensor]
Tangents = tuple[torch.Tensor, ...]

_AT_ONCE = 10  # the most directions of one kernel
_STACKED = 2**21  # the most elements of results that are written one behind the other
_numbers = itertools.count()


class ForwardLaplacian(NamedTuple):
    """What :func:`forward_laplacian` returns."""

    value: torch.Tensor
    jacobian: torch.Tensor
    laplacian: torch.Tensor


class _Swept(torch.Tensor):
    """A tensor with its tangents along the directions of a sweep and with its Laplacian, None for zero.

    Attributes:
        given: the tangents, or what computes them: of the last linear functions nobody may ask for them.
        base: the tensor of which it is a view, with its ``place`` in it: shape, strides and offset.
        written: how often its contents were changed; ``seen``, those of the base that it has.
        shown: does a plain tensor share its memory?
    """

    sweep: _Sweep
    value: torch.Tensor
    given: Tangents | Callable[[], Tangents]
    laplacian: torch.Tensor | None
    base: _Swept | None = None
    place: Any = None
    written: int = 0
    seen: int = 0
    shown: bool = False

    @property
    def root(self) -> _Swept:
        """The tensor whose memory it shares."""
        return self if self.base is None else self.base

    @property
    def tangents(self) -> Tangents:
        return self.given() if callable(self.given) else self.given

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        sweep = None
        for x in _swept((args, kwargs)):
            if x.base is not None and x.seen != x.base.written:
                writes.read_again(x)
            if sweep is None or x.sweep.number > sweep.number:
                sweep = x.sweep
        assert sweep
        if not (sweep.applying or torch.is_grad_enabled()):
            raise Unseen("what runs under torch.no_grad() or in a torch.autograd.Function")
        applying, sweep.applying = sweep.applying, True
        try:
            with torch.set_grad_enabled(sweep.recording):
                return sweep.apply(func, args, kwargs)
        finally:
            sweep.applying = applying

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        unseen = Unseen(f"{func}, which a transform, a script or an extension calls")
        for x in _swept((args, kwargs or {})):
            x.sweep.unseen = unseen
        raise unseen


def _swept(tree: Any) -> Iterator[_Swept]:
    """The swept tensors among arguments."""
    if type(tree) is _Swept:
        yield tree
    elif isinstance(tree, (tuple, list)):
        for x in tree:
            yield from _swept(x)
    elif isinstance(tree, dict):
        yield from _swept(tuple(tree.values()))


@dataclass(eq=False)
class _Sweep:
    """One sweep, with the rules that do not depend on the operation.

    Attributes:
        number: of two sweeps, the inner one has the larger.
        signs: of the squares of the directions, 1 or -1.
        recording: are derivatives wanted of what it computes? The function itself runs with gradients enabled, so that
            what disables them shows.
        applying: does it apply a rule?
        unseen: what it could not follow, if that was met below Python, where another exception is made of it.
        elements: of all results.
        unruled: elements of operands and results of the operations without a rule, whose names are ``without_rule``.
        received: the plain tensors that became tensors of this sweep, and what they were.
    """

    number: int
    signs: tuple[int, ...]
    recording: bool
    applying: bool = False
    unseen: Unseen | None = None
    elements: int = 0
    unruled: int = 0
    without_rule: set[str] = field(default_factory=set)
    received: list[tuple[Any, Any]] = field(default_factory=list)

    def owns(self, x: Any) -> TypeGuard[_Swept]:
        return type(x) is _Swept and x.sweep is self

    def value(self, x: Any) -> Any:
        """x without its derivatives, if it has some of this sweep."""
        return x.value if self.owns(x) else x

    def tensor(self, value: Any, rows: Sequence[Any]) -> Any:
        """A tensor, or a sequence of some, with its tangents and, last, its Laplacian."""
        if not isinstance(value, torch.Tensor):
            parts = ([None if row is None else row[i] for row in rows] for i in range(len(value)))
            return type(value)(map(self.tensor, value, parts))
        if not has_derivative(value) or not rows[:-1] or any(row is None for row in rows[:-1]):
            return value
        return self.wrapped(value, tuple(rows[:-1]), rows[-1])

    def wrapped(self, value: torch.Tensor, given: Any, laplacian: torch.Tensor | None) -> Any:
        x: Any = wrapper_subclass(_Swept, value.shape, value)
        x.sweep, x.value, x.given, x.laplacian = self, value, given, laplacian
        self.elements += value.numel()
        return x

    def mapped(self, value: Any, x: _Swept, of: Callable[[Any], Any], at_once: bool = False) -> Any:
        """y = A x + b, for A of a row of x; with ``at_once`` also of several in a further first dimension."""

        given = x.given  # x may be written to

        @functools.cache
        def of_tangents() -> Tangents:
            tangents = given() if callable(given) else given
            stack = _stack(tangents) if at_once and not self.recording else None
            return tuple(map(of, tangents)) if stack is None else of(stack).unbind()

        curvature = None if x.laplacian is None else of(x.laplacian)
        needed = self.recording or is_autocast_enabled() or not isinstance(value, torch.Tensor)
        if needed or not has_derivative(value):
            return self.tensor(value, [*of_tangents(), curvature])
        return self.wrapped(value, of_tangents, curvature)

    def apply(self, func: Any, args: Any, kwargs: Any) -> Any:
        """An operation on tensors of this sweep."""
        if isinstance(func, Rowwise):  # its reductions and its elementwise operations have rules
            return func.define(args)
        spoken = known_name(func)
        name = spoken.strip("_") if spoken.startswith("__") else spoken
        known = _is_ours(func) or is_of_torch(func)
        if known and name == "requires_grad":
            return True
        if writes.is_write(spoken, func, kwargs):
            return writes.written(self, func, args, kwargs)
        if known and spoken in _CONSTANT:
            if spoken in _SHOWS:
                args[0].root.shown = True
            if len(args) == 1 and not kwargs:
                return func(args[0].value)
            return func(*tree_map(self.value, args), **tree_map(self.value, kwargs))
        if known and name in _HIDDEN:
            raise Unseen(name)
        if not known:
            return self.differentiated(func, args, kwargs)
        args, kwargs = positional(func, args, kwargs)
        return with_powers(func, args, kwargs, lambda: self.by_rule(func, name, args, kwargs))

    def by_rule(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """An operation by the first of the rules that fits."""
        elementwise = name in FUNCTIONS or isinstance(func, Pointwise)
        for rule in (_RULES.get(name), _unguarded, _elementwise if elementwise else None, _composed, _by_slopes):
            result = NotImplemented if rule is None else rule(self, func, args, kwargs)
            if result is not NotImplemented:
                return result
        return self.differentiated(func, args, kwargs)

    def linear(self, func: Any, args: Any, kwargs: Any, of_rows: Any = None, jointly: bool = False) -> Any:
        """y = A x + b: A to each row.

        Args:
            func: the operation.
            args: its arguments.
            kwargs: those with names.
            of_rows: the operation without b, if there is one.
            jointly: is it linear in all its tensors together? Then the rows of a constant are zero.
        """
        count = len(self.signs)
        curved = any(x.laplacian is not None for x in _swept((args, kwargs)) if x.sweep is self)

        def row(i: int, x: Any) -> Any:
            if not self.owns(x):
                return torch.zeros_like(x) if jointly and has_derivative(x) else x
            part = x.laplacian if i == count else x.tangents[i]
            return _or_zeros(part, x.value)

        value = func(*tree_map(self.value, args), **tree_map(self.value, kwargs))
        rows: list[Any] = []
        for i in range(count + curved):
            of = functools.partial(row, i)
            rows.append((of_rows or func)(*tree_map(of, args), **tree_map(of, kwargs)))
        return self.tensor(value, rows if curved else [*rows, None])

    def product(self, func: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
        """y = a b: the rule of Leibniz."""
        if not (self.owns(a) and self.owns(b)):
            return self.linear(func, (a, b), {})
        tangents = [func(s, b.value) + func(a.value, t) for s, t in zip(a.tangents, b.tangents, strict=True)]
        mixed = [2 * sign * func(s, t) for sign, s, t in zip(self.signs, a.tangents, b.tangents, strict=True)]
        of_a = None if a.laplacian is None else func(a.laplacian, b.value)
        of_b = None if b.laplacian is None else func(a.value, b.laplacian)
        return self.tensor(func(a.value, b.value), [*tangents, _sum(of_a, of_b, *mixed)])

    def elementwise(self, member: Elementwise, xs: Sequence[torch.Tensor], numbers: tuple[float, ...]) -> Any:
        """y = f(x), by a fused kernel for some directions at a time."""
        values = [self.value(x) for x in xs]
        shape = values[0].shape if len(xs) == 1 else torch.broadcast_shapes(*(value.shape for value in values))
        count, outputs = len(self.signs), len(member.program.outputs)
        rows: list[list[Any]] = [[] for _ in range(outputs)]
        for start in range(0, count, _AT_ONCE):
            chunk = slice(start, start + _AT_ONCE)
            signs = self.signs[chunk]
            arguments, carried = list(values), []
            for x in xs:
                curved = start == 0 and self.owns(x) and x.laplacian is not None
                carried.append(self.owns(x) + curved)
                arguments += [*x.tangents[chunk], x.laplacian][: len(signs) + curved] if self.owns(x) else []
            derivative = member.laplacian(tuple(carried), signs)
            if not derivative.arguments:  # x**0
                constants = tuple(_applied(member, [value.expand(shape) for value in values], numbers))
                return constants[0] if outputs == 1 else constants
            given = [
                x if x.shape == shape else x.expand(shape) for x in map(arguments.__getitem__, derivative.arguments)
            ]
            scalars = tuple([numbers[i] for i in derivative.scalars])
            results = dict(zip(derivative.results, _applied(derivative.function, given, scalars), strict=True))
            for i, row in enumerate(rows):
                of = [results.get(j) for j in range(i * (len(signs) + 2), (i + 1) * (len(signs) + 2))]
                row[:] = [*row[:-1], *of[1:-1], _sum(row[-1], of[-1])] if row else of
        made = tuple([self.tensor(row[0], row[1:]) for row in rows])
        return made[0] if outputs == 1 else made

    def differentiated(self, func: Any, args: Any, kwargs: Any) -> Any:
        """y = f(x) for any f."""
        leaves, tree = tree_flatten((args, kwargs))
        places = [i for i, x in enumerate(leaves) if self.owns(x)]
        swept = [leaves[i] for i in places]
        values = tuple(x.value for x in swept)

        def f(*xs: torch.Tensor) -> Any:
            for i, x in zip(places, xs, strict=True):
                leaves[i] = x
            args, kwargs = tree_unflatten(leaves, tree)
            return composing(func)(*args, **kwargs)

        def differentiable(*xs: torch.Tensor) -> Tangents:
            return tuple(y for y in tree_leaves(f(*xs)) if has_derivative(y))

        value = _drawing_nothing(func, *tree_map(self.value, (args, kwargs)))
        results, structure = tree_flatten(value)
        if not any(map(has_derivative, results)):
            return value
        fall_back(f"has no rule for {name_of(func)}", "it is")
        self.unruled += sum(x.numel() for x in (*values, *filter(has_derivative, results)))
        self.without_rule.add(name_of(func))
        along = [tuple(x.tangents[k] for x in swept) for k in range(len(self.signs))]
        laplacians = tuple(_or_zeros(x.laplacian, x.value) for x in swept)
        try:
            tangents, totals = of_operation(differentiable, values, along, laplacians, self.signs, self.recording)
        except (RuntimeError, NotImplementedError) as error:
            raise Unseen(f"{name_of(func)} ({error})") from error
        rows = iter(zip(*tangents, totals, strict=True))
        return tree_unflatten([self.tensor(y, next(rows)) if has_derivative(y) else y for y in results], structure)


def _drawing_nothing(func: Any, args: Any, kwargs: Any) -> Any:
    """The value of an operation that will be run again."""
    device = next((x.device for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)), torch.device("cpu"))
    random = random_states(device)
    value = composing(func)(*args, **kwargs)
    if not all(map(torch.equal, random, random_states(device))):
        raise Unseen(f"{name_of(func)}, which draws random numbers")
    return value


def _is_ours(func: Any) -> bool:
    return isinstance(func, Pointwise) or func is quadratic_form


def _or_zeros(x: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(like) if x is None else x


def _rows(x: _Swept) -> tuple[Any, ...]:
    return (*x.tangents, x.laplacian)


@functools.lru_cache(1024)
def _member(func: Any, kinds: tuple[Any, ...], names: tuple[str, ...]) -> Elementwise | None:
    """An elementwise function of PyTorch for arguments of these kinds, the last of which have names."""
    symbols = [
        tensor(("input", "other", "end", "weight")[i] if i < 4 else f"x{i}")
        if kind is _TENSOR
        else scalar(f"s{i}")
        if kind is _SCALAR
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


def _elementwise(sweep: _Sweep, func: Any, args: Any, kwargs: Any) -> Any:
    arguments = (*args, *kwargs.values())
    kinds = tuple(map(_kind, arguments))
    member: Elementwise | None
    if isinstance(func, Pointwise):
        kinds, member, _ = func.resolve(arguments)
    elif any(isinstance(x, (list, tuple, dict)) for x in arguments):
        return NotImplemented
    else:
        if "pow" in name_of(func) or "polygamma" in name_of(func):  # a constant power is a few products
            kinds = tuple(x if kind is _SCALAR else kind for x, kind in zip(arguments, kinds, strict=True))
        member = _member(getattr(func, "overloadpacket", func), kinds, tuple(kwargs))
    xs = [x for x, kind in zip(arguments, kinds, strict=True) if kind is _TENSOR]
    values = list(map(sweep.value, xs))
    if any(x.is_complex() for x in values):
        if member is None or not member.is_analytic or any(isinstance(x, complex) for x in arguments):
            return NotImplemented
        dtype = functools.reduce(torch.promote_types, (x.dtype for x in values))
        xs = [x.to(dtype) for x in xs]
        values = list(map(sweep.value, xs))
    if member is None or any(x.dtype != values[0].dtype or x.device != values[0].device for x in values[1:]):
        return NotImplemented
    if not member.keeps(values[0].dtype):
        return NotImplemented
    numbers = tuple([float(x) for x, kind in zip(arguments, kinds, strict=True) if kind is _SCALAR])
    return sweep.elementwise(member, xs, numbers)


@functools.lru_cache(1024)
def _is_elementwise(func: Any) -> bool:
    """Does PyTorch say so of all that has the name?"""
    if not is_of_torch(func):
        return False
    if isinstance(func, OpOverload):
        overloads = [func]
    else:
        packets = (getattr(torch.ops.aten, name, None) for name in (name_of(func), f"special_{name_of(func)}"))
        packet = next((packet for packet in packets if packet), None)
        overloads = [getattr(packet, name) for name in packet.overloads() if "out" not in name] if packet else []
        overloads = [of for of in overloads if any("Tensor" in str(a.type) for a in of._schema.arguments)]
    return bool(overloads) and all(torch.Tag.pointwise in overload.tags for overload in overloads)


def _by_slopes(sweep: _Sweep, func: Any, args: Any, kwargs: Any) -> Any:
    """An elementwise operation without an expression, by the gradients that PyTorch has of it."""
    if not _is_elementwise(func) or transforms_active():
        return NotImplemented
    value = _drawing_nothing(func, tree_map(sweep.value, args), tree_map(sweep.value, kwargs))
    leaves, tree = tree_flatten((args, kwargs))
    places = [i for i, x in enumerate(leaves) if sweep.owns(x)]
    if not has_derivative(value) or any(leaves[i].is_complex() > value.is_complex() for i in places):
        return NotImplemented
    xs = [leaves[i].to(torch.promote_types(leaves[i].dtype, value.dtype)) for i in places]
    if torch.broadcast_shapes(*(x.shape for x in xs)) != value.shape:
        xs = [x.expand(value.shape) for x in xs]

    def f(*xs: torch.Tensor) -> Any:
        for i, x in zip(places, xs, strict=True):
            leaves[i] = x
        args, kwargs = tree_unflatten(leaves, tree)
        return func(*args, **kwargs)

    tangents = [tuple(x.tangents[k] for x in xs) for k in range(len(sweep.signs))]
    try:
        rows, total = of_elements(
            f, tuple(x.value for x in xs), tangents, [x.laplacian for x in xs], sweep.signs, sweep.recording
        )
    except (RuntimeError, NotImplementedError) as error:
        raise Unseen(f"{name_of(func)} ({error})") from error
    return sweep.tensor(value, [*rows, total])


def _sgn(sweep: _Sweep, func: Any, args: Any, kwargs: Any) -> Any:
    """z / |z|, 0 at 0; of a real number a constant."""
    (z,) = args
    if not z.is_complex():
        return func(sweep.value(z))
    size = z.abs()
    return z / size.masked_fill(size == 0, 1)


def _angle(z: Any) -> Any:
    return torch.atan2(z.imag, z.real) if z.is_complex() else torch.angle(z.detach())


def _polar(r: Any, angle: Any) -> Any:
    return torch.complex(r * angle.cos(), r * angle.sin())


def _size(z: Any) -> Any:
    return root(squared(z)) if z.is_complex() else NotImplemented


def _applied(member: Elementwise, xs: Sequence[torch.Tensor], numbers: tuple[float, ...]) -> Sequence[Any]:
    """Its outputs, by the rule of an outer sweep if there is one."""
    if not torch.is_grad_enabled() and xs[0].numel() * len(member.program.outputs) <= _STACKED:
        stack = member.stacked(xs, numbers)
        if stack is not None:
            return stack.unbind()
    outer = max((x.sweep for x in _swept(xs)), key=lambda sweep: sweep.number, default=None)
    outputs = outer.elementwise(member, xs, numbers) if outer else member.apply(xs, numbers)
    return (outputs,) if len(member.program.outputs) == 1 else outputs


def _scaled(sweep: _Sweep, func: Any, args: Any, kwargs: Any) -> Any:
    """a b or a / b, linear where the other factor or the denominator is constant."""
    if kwargs or (sweep.owns(args[0]) and sweep.owns(args[1])) or ("div" in name_of(func) and sweep.owns(args[1])):
        return NotImplemented
    return sweep.linear(func, args, kwargs)


def _of_first(sweep: _Sweep, func: Any, args: Any, kwargs: Any) -> Any:
    """Linear in the first argument; the others say what to do with it, as in x.view_as(other)."""
    if not args or isinstance(args[0], (list, tuple)):
        return NotImplemented
    if known_name(func) not in _LIKE and any(x.sweep is sweep for x in _swept((args[1:], kwargs))):
        return NotImplemented
    first, others = args[0], [sweep.value(x) for x in args[1:]]
    options = {key: sweep.value(x) for key, x in kwargs.items()}
    value = func(sweep.value(first), *others, **options)
    if not sweep.owns(first):
        return value
    result = sweep.mapped(value, first, lambda row: func(row, *others, **options))
    if not transforms_active():
        for part in result if isinstance(result, (tuple, list)) else (result,):
            if sweep.owns(part):
                writes.follow(part, first)
    return result


def _combined(sweep: _Sweep, func: Any, args: Any, kwargs: Any) -> Any:
    return sweep.linear(func, args, kwargs, jointly=True)


def _added(sweep: _Sweep, func: Any, args: Any, kwargs: Any) -> Any:
    """a + b, a - b: the same of the rows; those of a constant are zero."""
    if len(args) != 2:
        return NotImplemented
    value = func(*map(sweep.value, args), **kwargs)
    zero = torch.zeros((), dtype=value.dtype, device=value.device)
    none = (None,) * (len(sweep.signs) + 1)

    def row(a: Any, b: Any) -> Any:
        if a is None and b is None:
            return None
        if b is None and "rsub" not in name_of(func):
            y = a.to(value.dtype)
        else:
            y = func(zero if a is None else a, zero if b is None else b, **kwargs)
        return y if y.shape == value.shape else y.expand(value.shape)

    return sweep.tensor(value, list(map(row, *(_rows(x) if sweep.owns(x) else none for x in args))))


def _chosen(sweep: _Sweep, func: Any, args: Any, kwargs: Any) -> Any:
    """where(c, a, b), linear in a and b."""
    if kwargs or len(args) != 3:
        return NotImplemented
    c, a, b = args if func is not torch.Tensor.where else (args[1], args[0], args[2])
    value = torch.where(c, sweep.value(a), sweep.value(b))
    zero = torch.zeros((), dtype=value.dtype, device=value.device)
    none = (None,) * (len(sweep.signs) + 1)

    def row(a: Any, b: Any) -> Any:
        if a is None and b is None:
            return None
        return torch.where(c, zero if a is None else a, zero if b is None else b).expand(value.shape)

    return sweep.tensor(value, list(map(row, *(_rows(x) if sweep.owns(x) else none for x in (a, b)))))


def _linear_layer(sweep: _Sweep, func: Any, args: Any, kwargs: Any) -> Any:
    given = dict(zip(("input", "weight", "bias"), args, strict=False), **kwargs)
    x, weight, bias = given["input"], given["weight"], given.get("bias")
    if sweep.owns(weight) or sweep.owns(bias):
        return affine(x @ weight.mT, None, bias)

    def product(row: Any) -> Any:
        """The first tangents are the same for all points."""
        if type(row) is _Swept or 0 not in row.stride()[:-1]:
            return func(row, weight)
        one = row[tuple([slice(0, 1) if step == 0 else slice(None) for step in row.stride()[:-1]])]
        return func(one, weight).expand(*row.shape[:-1], weight.shape[0])

    return sweep.mapped(func(x.value, weight, bias), x, product, at_once=True)


def _stack(rows: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Rows at equal distances in memory as one tensor, without a copy."""
    first, *others = rows
    if not others or any(type(row) is not torch.Tensor for row in rows):
        return None
    memory, start, strides = first.untyped_storage().data_ptr(), first.storage_offset(), first.stride()
    step = others[0].storage_offset() - start
    for i, row in enumerate(others, 1):
        if row.storage_offset() != start + i * step or row.untyped_storage().data_ptr() != memory:
            return None
        if row.stride() != strides or row.shape != first.shape:
            return None
    return first.as_strided((len(rows), *first.shape), (step, *strides))


def _convolution(sweep: _Sweep, func: Any, args: Any, kwargs: Any) -> Any:
    """The rows without the bias."""
    x, weight, bias, *rest = (*args, None)[: max(3, len(args))]

    def of_rows(x: Any, weight: Any, _: Any = None, *rest: Any, **options: Any) -> Any:
        return func(x, weight, None, *rest, **options)

    if not (sweep.owns(weight) or sweep.owns(bias)):
        return sweep.linear(func, args, kwargs, of_rows)
    y = rules.of_factors(sweep, lambda x, weight: func(x, weight, None, *rest, **kwargs), (x, weight))
    return y if bias is None else y + bias.reshape(-1, *(1,) * (weight.dim() - 2))


def _padded(sweep: _Sweep, func: Any, args: Any, kwargs: Any) -> Any:
    """The rows with zeros."""

    def of_rows(x: Any, pad: Any, mode: str = "constant", value: Any = None) -> Any:
        return func(x, pad) if known_name(func) == "constant_pad_nd" else func(x, pad, mode)

    return sweep.linear(func, args, kwargs, of_rows)


def _multiplied(sweep: _Sweep, func: Any, args: Any, kwargs: Any) -> Any:
    a, b, *rest = args
    return sweep.product(lambda a, b: func(a, b, *rest, **kwargs), a, b)


def _einsum(sweep: _Sweep, func: Any, args: Any, kwargs: Any) -> Any:
    equation, *operands = args
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = list(operands[0])
    if not isinstance(equation, str):
        return NotImplemented
    return rules.of_factors(sweep, functools.partial(torch.einsum, equation), operands)


_LINEAR = (
    "neg reshape reshape_as view view_as flatten unflatten squeeze unsqueeze transpose permute movedim moveaxis "
    "swapaxes swapdims T mT t H mH adjoint expand expand_as broadcast_to contiguous clone to type_as float double "
    "half bfloat16 cpu cuda sum mean cumsum narrow select index_select gather take take_along_dim getitem split "
    "split_with_sizes chunk unbind tensor_split hsplit vsplit unsafe_split unsafe_chunk unfold roll flip fliplr "
    "flipud rot90 tile repeat repeat_interleave diagonal diag diag_embed tril triu trace masked_select real imag conj "
    "resolve_conj view_as_complex conj_physical pixel_shuffle pixel_unshuffle avg_pool1d avg_pool2d avg_pool3d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d upsample_linear1d upsample_bilinear2d "
    "upsample_bicubic2d upsample_trilinear3d upsample_nearest1d upsample_nearest2d upsample_nearest3d "
    "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d im2col col2im ravel resolve_neg "
    "cfloat cdouble chalf sum_to_size diagflat alias_copy diagonal_copy expand_copy "
    "permute_copy squeeze_copy t_copy transpose_copy unbind_copy unfold_copy unsqueeze_copy view_copy fft_fft fft_ifft "
    "fft_rfft fft_irfft fft_hfft fft_ihfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_hfft2 fft_ihfft2 fft_fftn "
    "fft_ifftn fft_rfftn fft_irfftn fft_hfftn fft_ihfftn fft_fftshift fft_ifftshift"
).split()
_LIKE = frozenset("view_as reshape_as expand_as type_as to".split())  # as the second argument is
_LINEAR_IN_ALL = (
    "cat concat concatenate stack hstack vstack dstack column_stack block_diag broadcast_tensors meshgrid index_add "
    "scatter_add index_copy index_put put masked_scatter select_scatter slice_scatter diagonal_scatter "
    "complex"
).split()
# By the name of an operation, with the sweep, the operation and its arguments; NotImplemented where it does not fit.
_RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys([*_LINEAR, *rules.LINEAR], _of_first),
    **dict.fromkeys([*_LINEAR_IN_ALL, *rules.LINEAR_IN_ALL], _combined),
    **dict.fromkeys("mul multiply rmul div divide true_divide truediv".split(), _scaled),
    **dict.fromkeys("add radd sub subtract rsub".split(), _added),
    **dict.fromkeys(
        "matmul rmatmul mm bmm mv dot inner outer ger vdot kron vecdot cross tensordot".split(), _multiplied
    ),
    **dict.fromkeys("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d".split(), _convolution),
    "linear": _linear_layer,
    **dict.fromkeys(("pad", "constant_pad_nd"), _padded),
    "where": _chosen,
    "Tensor.where": _chosen,
    "view_as_real": lambda sweep, func, args, kwargs: _of_first(sweep, lambda x: func(x.resolve_conj()), args, kwargs),
    "sgn": _sgn,
    **RECURRENT,
    "einsum": _einsum,
    "hypot": lambda *call: _composed(*call),
    **rules.RULES,
    **linalg_rules.RULES,
}


def _rms_norm(x: Any, shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    square = x.square().mean(tuple(range(-len(shape), 0)), keepdim=True)
    return affine(x * (square + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt(), weight, None)


def _of_own_point(function: Callable[..., Any]) -> Callable[..., Any]:
    """A ``batch_norm`` that does not train."""

    def composed(x: Any, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, *others: Any) -> Any:
        if training:
            raise ValueError(
                "torchad_ext.laplacian: batch_norm in training makes each result depend on all points; call eval() on "
                "it"
            )
        return function(x, weight, bias, mean, variance, False, *others)

    return composed


def _composed(sweep: _Sweep, func: Any, args: Any, kwargs: Any) -> Any:
    composed = _COMPOSED.get(known_name(func))
    return NotImplemented if composed is None else composed(*args, **kwargs)


# Written with operations that have rules; the arguments are those of PyTorch's function.
_COMPOSED: dict[str, Callable[..., Any]] = {
    **COMPOSED,
    "batch_norm": _of_own_point(COMPOSED["batch_norm"]),
    "native_batch_norm": _of_own_point(COMPOSED["native_batch_norm"]),
    **rules.COMPOSITIONS,
    "rms_norm": _rms_norm,
    "logsumexp": logsumexp,
    "masked_fill": lambda x, mask, value: torch.where(mask, value, x),
    "quadratic_form": _quadratic_form,
    "abs": _size,
    "absolute": _size,
    "angle": _angle,
    "polar": _polar,
}


# Without a derivative: the result is that for the values.
_CONSTANT = frozenset(
    "shape size dim ndim numel nelement stride storage_offset is_contiguous dtype device layout requires_grad "
    "is_floating_point is_complex is_cuda is_sparse is_nested is_leaf is_conj is_neg is_quantized is_mkldnn names "
    "item tolist numpy bool int long __float__ __complex__ __len__ __array__ __bool__ __int__ __index__ __format__ "
    "__repr__ __hash__ get_device element_size itemsize data detach lt le gt ge eq ne less less_equal greater "
    "greater_equal not_equal __lt__ __le__ __gt__ __ge__ __eq__ __ne__ isnan isinf isfinite isclose allclose equal "
    "any all logical_and logical_or logical_not logical_xor argmax argmin argsort nonzero count_nonzero "
    "searchsorted bucketize zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_zeros "
    "new_ones new_empty new_full new_tensor sign signbit floor ceil round trunc fix heaviside bernoulli "
    "result_type".split()
)
# Give plain tensors in the same memory.
_SHOWS = frozenset("data detach numpy __array__".split())
# Differentiates, or hides what it computes.
_HIDDEN = frozenset(
    "grad grad_fn backward register_hook register_post_accumulate_grad_hook retain_grad _make_dual _unpack_dual".split()
)


def _unguarded(sweep: _Sweep, func: Any, args: Any, kwargs: Any) -> Any:
    """A function of PyTorch in Python by its parts."""
    parts = without_guard(func)
    return NotImplemented if parts is None else parts(*args, **kwargs)


def laplacian(
    f: Function, x: torch.Tensor, coefficients: torch.Tensor | None = None, *, chunk_size: int | None = None
) -> torch.Tensor:
    r"""The Laplacian :math:`\sum_i \partial^2 f / \partial x_i^2` at each of many points, in one forward sweep.

    With coefficients, :math:`\sum_{ij} C_{ij}\, \partial_i \partial_j f`: one matrix for all points or one for each. A
    diagonal of ones and zeros gives the Laplacian in some of the coordinates, at the cost of these.

    Values, Jacobians and Laplacians go through the program together, so that no graph is differentiated twice: the
    forward Laplacian (Li et al., 2024, Nature Machine Intelligence 6, 209, arXiv:2307.08214), also known as collapsed
    Taylor mode (Dangel et al., 2025, arXiv:2505.13644). An elementwise function, of PyTorch or declared by
    :func:`pointwise`, is one fused kernel; linear operations, products, what is composed of them (normalisation,
    attention), recurrent networks, complex numbers and writes in place have rules (``docs/rules.md``). Any
    other operation is differentiated twice by itself; where these touch more than an eighth of the elements that f
    computes, calls after the first differentiate all of f by nested autograd. So is a program that cannot be followed
    (``torch.autograd.grad`` or a ``torch.autograd.Function`` in f). Each time one warning says so; with
    ``TORCHAD_EXT_STRICT=1`` it is an error. Within ``torch.compile`` all of f is differentiated twice.
    The result may be differentiated again. Derivatives of a norm at 0 are 0, even powers of one are differentiated as
    the smooth functions that they are: ``docs/where_pytorch_is_wrong.md``.

    Args:
        f: maps points ``[..., d]`` to ``[...]`` or ``[..., *outputs]``, any PyTorch code. Each result has to depend on
            its own point only: this is not checked, and the derivatives are those for all points moved together.
        x: the points ``[..., d]``, or one ``[d]``, of a floating-point dtype on any device.
        coefficients: ``[d, d]``, or ``[..., d, d]`` with the batch dimensions of x; symmetric, not necessarily
            definite, dtype and device of x. No derivative is taken in them.
        chunk_size: takes so many points at a time, split along the first dimension, to bound memory; f has to take any
            number of points then.

    Returns:
        Of the shape and dtype of ``f(x)``; zeros if that does not depend on x.

    Raises:
        TypeError: x or the result of f is not a floating-point tensor.
        ValueError: the shapes do not fit, or coefficients are not symmetric.
        RuntimeError: f cannot be differentiated twice.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> f = lambda x: (x**3).sum(-1) + x.prod(-1)
        >>> laplacian(f, x)
        tensor([18., 42.])
        >>> laplacian(f, x, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))  # in the first coordinate
        tensor([ 6., 18.])
    """
    _check(x, coefficients, chunk_size, "laplacian")
    if chunk_size and x.dim() > 1:
        each = coefficients is not None and coefficients.dim() > 2
        matrices = coefficients.split(chunk_size) if each else itertools.repeat(coefficients)  # type: ignore[union-attr]
        return torch.cat([laplacian(f, part, C) for part, C in zip(x.split(chunk_size), matrices, strict=False)])
    value, _, curvature = _run(f, x, *_directions(x, coefficients), "laplacian")
    return torch.zeros_like(value) if curvature is None else curvature


def forward_laplacian(f: Function, x: torch.Tensor) -> ForwardLaplacian:
    r"""Value, Jacobian and Laplacian of a function at each of many points: all that the sweep of :func:`laplacian` has.

    Args:
        f: as for :func:`laplacian`.
        x: the points ``[..., d]``.

    Returns:
        ``value``, the result of f; ``jacobian`` of its shape and then ``[d]``, the gradients where f gives a number for
        each point; ``laplacian`` of the shape of ``value``.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`laplacian` does.

    Example:
        >>> result = forward_laplacian(lambda x: (x**3).sum(-1), torch.tensor([[1.0, 2.0]]))
        >>> result.value, result.jacobian, result.laplacian
        (tensor([9.]), tensor([[ 3., 12.]]), tensor([18.]))
    """
    _check(x, None, None, "forward_laplacian")
    value, tangents, curvature = _run(f, x, *_directions(x, None), "forward_laplacian", with_tangents=True)
    jacobian = torch.stack(list(tangents), -1) if tangents else value.new_zeros(*value.shape, x.shape[-1])
    return ForwardLaplacian(value, jacobian, torch.zeros_like(value) if curvature is None else curvature)


def bilaplacian(f: Function, x: torch.Tensor) -> torch.Tensor:
    r"""The bilaplacian :math:`\Delta^2 f`, the Laplacian of the Laplacian, by a sweep within a sweep.

    Args:
        f: as for :func:`laplacian`.
        x: the points ``[..., d]``.

    Returns:
        Of the shape and dtype of ``f(x)``.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`laplacian` does.

    Example:
        >>> bilaplacian(lambda x: (x**4).sum(-1), torch.tensor([1.0, 2.0]))
        tensor(48.)
    """
    return laplacian(lambda x: laplacian(f, x), x)


def _check(x: Any, C: Any, chunk_size: Any, name: str) -> None:
    name = f"torchad_ext.{name}"
    for what, value in (("x", x), ("coefficients", C)):
        if not isinstance(value, torch.Tensor) and not (what == "coefficients" and value is None):
            raise TypeError(f"{name} takes a tensor for {what}, got {type(value).__name__}; write torch.as_tensor(...)")
    if not x.is_floating_point():
        raise TypeError(f"{name} takes floating-point x, got {x.dtype}; convert it, x.to(torch.get_default_dtype())")
    if x.dim() == 0:
        raise ValueError(f"{name} takes x [..., d], got a number; write x.unsqueeze(-1) for points on a line")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"{name} takes a chunk_size of 1 or more, got {chunk_size}; None takes all points at once")
    if C is None:
        return
    d = x.shape[-1]
    if C.shape not in ((d, d), (*x.shape, d)):
        expected = f"[{d}, {d}]" + (f" or {[*x.shape, d]}" if x.dim() > 1 else "")
        raise ValueError(f"{name} takes coefficients {expected} for x {list(x.shape)}, got {list(C.shape)}")
    if C.dtype != x.dtype or C.device != x.device:
        raise ValueError(
            f"{name}: coefficients are {C.dtype} on {C.device}, x is {x.dtype} on {x.device}; write coefficients.to(x)"
        )
    if C.requires_grad:
        raise ValueError(f"{name} takes no derivative in coefficients, which require one; write coefficients.detach()")


def _directions(x: torch.Tensor, C: torch.Tensor | None) -> tuple[list[torch.Tensor], tuple[int, ...]]:
    """Directions u_k and signs with C = Σ_k ±u_k u_k^T.

    The columns of a Cholesky factor for a positive definite C, scaled eigenvectors for another.
    """
    d = x.shape[-1]
    if C is None:
        return [e.expand(x.shape) for e in torch.eye(d, dtype=x.dtype, device=x.device)], (1,) * d
    known = not (transforms_active() or torch.compiler.is_compiling())  # are its values?
    C = C.detach()
    asymmetry = (C - C.mT).abs()
    if known and bool((asymmetry > torch.finfo(C.dtype).eps ** 0.5 * C.abs().amax((-2, -1), keepdim=True)).any()):
        raise ValueError(
            f"torchad_ext.laplacian takes symmetric coefficients, got some that differ by {asymmetry.max().item():.3g} "
            "from their transpose; (C + C.mT) / 2 gives the same sum"
        )
    wide = C if C.dtype == torch.float64 else C.float()
    if known:
        factor, failed = torch.linalg.cholesky_ex(wide)
        if not failed.any():
            return [u.to(C.dtype).expand(x.shape) for u in factor.unbind(-1)], (1,) * d
    eigenvalues, vectors = torch.linalg.eigh(wide)
    least = d * torch.finfo(wide.dtype).eps * eigenvalues.abs().amax(-1)
    directions, signs = [], []
    for k, sign in itertools.product(range(d), (1, -1)):
        part = (sign * eigenvalues[..., k]).clamp_min(0)
        if not known or bool((part > least).any()):
            directions.append((part.sqrt().unsqueeze(-1) * vectors[..., k]).to(C.dtype).expand(x.shape))
            signs.append(sign)
    return directions, tuple(signs)


_SHARE = 1 / 8  # of all elements, from which on operations without a rule cost more than the sweep saves
_without_rules: dict[Any, list[str]] = {}  # of functions that are differentiated as a whole


def _identity(f: Any, x: torch.Tensor) -> Any:
    """What tells one function from another for which the same choice may be wrong."""
    while isinstance(f, functools.partial):
        f = f.func
    code = getattr(f, "__code__", None)
    cells = tuple([id(cell.cell_contents) for cell in f.__closure__ or ()]) if code else id(f)
    return code, cells, id(getattr(f, "__self__", None)), x.shape[-1]


def _run(
    f: Function,
    x: torch.Tensor,
    directions: Sequence[torch.Tensor],
    signs: tuple[int, ...],
    name: str,
    with_tangents: bool = False,
) -> tuple[torch.Tensor, Sequence[torch.Tensor] | None, torch.Tensor | None]:
    """The value of f, its tangents if they are wanted, and its Laplacian; None for zero."""
    if torch.compiler.is_compiling():
        return by_transforms(f, x, directions, signs, name)
    identity = _identity(f, x)
    if identity in _without_rules and not transforms_active() and type(x) is not _Swept:
        for operation in _without_rules[identity]:
            fall_back(f"has no rule for {operation}", "it is")
        return by_reverse_mode(f, x, directions, signs, name)
    sweep = _Sweep(next(_numbers), signs, torch.is_grad_enabled())
    points = sweep.tensor(x, [*directions, None])
    if sweep.owns(points):
        points.shown = True
    y = None
    try:
        with torch.enable_grad():
            y = f(points)
        if sweep.owns(y):
            writes.read_again(y)
            y = sweep.wrapped(y.value, y.given, y.laplacian)
    except Exception as error:
        unseen = error if isinstance(error, Unseen) else sweep.unseen
        if unseen is None:
            raise
        fall_back(f"cannot follow {unseen}", "the function is")
        by = by_transforms if transforms_active() else by_reverse_mode
        writes.returned(sweep, finished=False)
        return by(f, x, directions, signs, name)
    finally:
        with torch.set_grad_enabled(sweep.recording):
            writes.returned(sweep, finished=y is not None)
    value = checked(sweep.value(y), x, name)
    few = value.numel() * x.shape[-1] <= 2 * x.numel()  # results, for each of which autograd is run
    if few and sweep.unruled > _SHARE * (sweep.elements + sweep.unruled):
        if len(_without_rules) > 1000:
            _without_rules.clear()
        _without_rules[identity] = sorted(sweep.without_rule)
    if not sweep.owns(y):
        return value, None, None
    return value, y.tangents if with_tangents else None, y.laplacian
