"""Tensors that carry tangents and a Laplacian, and the rules that do not depend on the operation.

For directions u_k, each intermediate result y has its value, its tangents y_k and Δy = Σ_k ±y_kk. An operation maps
those of its operands to those of its result:

    linear        y = A x        y_k = A x_k                  Δy = A Δx
    product       y = a b        y_k = a_k b + a b_k          Δy = Δa b + a Δb + 2 Σ_k ±a_k b_k
    elementwise   y = f(x)       y_k = f'(x) x_k              Δy = f'(x) Δx + f''(x) Σ_k ±x_k²

A linear operation runs once for each of them, an elementwise one is one fused kernel (``Program.laplacian``). Every
other operation is composed of these, or is differentiated twice by itself.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from .._autograd.undefined import or_zeros, sum_defined
from .._elementwise import Elementwise
from .._row_function import Call, RowFunction
from .._symbolic.torch_names import name_of
from .._torch_state import (
    is_autocast_enabled,
    is_being_traced,
    top_saved_tensors_hooks,
    transforms_active,
    with_forgotten,
    wrapper_subclass,
)
from .calls import each
from .correction_mode import run_corrected
from .deferred import Deferred, Tangents, depth, given_by, tensors_in
from .fallback import Unseen, fall_back, has_derivative, of_operation, random_states

Arguments = tuple[Any, ...]
Keywords = dict[str, Any]
Rule = Callable[["Sweep", Any, Arguments, Keywords], Any]  # NotImplemented where it does not fit

_AT_ONCE = 10  # the most directions of one kernel
_ROWS_AT_ONCE = 4  # of one kernel of rows, in which each has sums of its own
_DEEPEST = 32  # the longest chain of deferred tangents, each of which calls the one before
_STACKED = 2**21  # the most elements of results that are written one behind the other
_numbers = itertools.count()


class Jet(Tensor):
    """A tensor with its tangents along the directions of a sweep and with its Laplacian, None for zero.

    Attributes:
        given: the tangents, or what computes them on first access.
        base: the tensor of which it is a view, with its ``place`` in it: shape, strides and offset.
        written: how often its contents were changed; ``seen``, how many changes of the base it has taken over.
        shown: does a plain tensor share its memory?
    """

    sweep: Sweep
    value: Tensor
    given: Tangents | Deferred
    laplacian: Tensor | None
    base: Jet | None = None
    place: tuple[torch.Size, tuple[int, ...], int] | None = None
    written: int = 0
    seen: int = 0
    shown: bool = False

    @property
    def root(self) -> Jet:
        """The tensor whose memory it shares."""
        return self if self.base is None else self.base

    @property
    def tangents(self) -> Tangents:
        return given_by(self.given)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = with_forgotten(func, kwargs or {})
        jets = jets_in((args, kwargs))
        sweep = max((x.sweep for x in jets), key=lambda sweep: sweep.number)
        return sweep.intercept(func, args, kwargs, jets)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        unseen = Unseen(f"{func}, which a transform, a script or an extension calls")
        for x in jets_in((args, kwargs or {})):
            x.sweep.unseen = unseen
        raise unseen


def jets_in(arguments: Any) -> list[Jet]:
    """The jets among arguments, of whatever sweep."""
    return [x for x in tensors_in(arguments) if type(x) is Jet]


class _Parts(NamedTuple):
    """An output with its tangents and its Laplacian, None for zero."""

    value: Any
    tangents: list[Tensor | None]
    laplacian: Tensor | None


@dataclass(eq=False)
class Sweep:
    """One sweep, with the rules that do not depend on the operation.

    Operations are intercepted by a subclass, :class:`~torchad_ext._forward.propagation.Propagation`.

    Attributes:
        signs: of the squares of the directions, 1 or -1.
        recording: are derivatives wanted of what it computes? The function itself runs with gradients enabled, so that
            what disables them shows.
        number: the inner one of two sweeps has the larger number.
        applying: does it apply a rule?
        defers: are tangents computed on first access, where that is the same?
        points: how many there are.
        unseen: what it could not follow, if that was met below Python, where another exception is made of it.
        elements: of all results.
        unruled: elements of operands and results of the operations without a rule, whose names are ``without_rule``.
        received: the plain tensors that became tensors of this sweep, and what they were.
        finished: has the function returned? What it kept of its tensors, as a module's attribute, has values alone.
    """

    signs: tuple[int, ...]
    recording: bool
    number: int = field(default_factory=_numbers.__next__)
    applying: bool = False
    defers: bool = True
    points: int = 1
    unseen: Unseen | None = None
    elements: int = 0
    unruled: int = 0
    without_rule: set[str] = field(default_factory=set)
    received: list[tuple[Any, Any]] = field(default_factory=list)
    finished: bool = False

    @property
    def count(self) -> int:
        """The number of tangents of a tensor."""
        return len(self.signs)

    def owns(self, x: object) -> TypeGuard[Jet]:
        return type(x) is Jet and x.sweep is self

    def value(self, x: Any) -> Any:
        """x without its derivatives, if it has some of this sweep."""
        return x.value if self.owns(x) else x

    def values(self, args: Arguments, kwargs: Keywords) -> tuple[Arguments, Keywords]:
        """Arguments without the derivatives of this sweep."""
        return each(self.value, args), each(self.value, kwargs)

    def tensor(self, value: Any, tangents: Sequence[Any] | Deferred, laplacian: Any) -> Any:
        """A tensor, or a sequence of some, with its tangents and its Laplacian; a constant if it has no tangents."""
        if not isinstance(value, Tensor):
            laplacians = [None] * len(value) if laplacian is None else laplacian
            return type(value)([self.tensor(y, _part(tangents, i), laplacians[i]) for i, y in enumerate(value)])
        if not has_derivative(value):
            return value
        if isinstance(tangents, Deferred):
            return self.wrapped(value, tangents, laplacian)
        if not tangents or any(t is None for t in tangents):
            return value
        return self.wrapped(value, tuple(tangents), laplacian)

    def deferred(
        self, compute: Callable[[], Iterable[Any]], *arguments: Any, sources: Sequence[Any] = ()
    ) -> Sequence[Any] | Deferred:
        """Tangents that are computed from others, the ``sources``, and from those tensors among the arguments that are
        none of this sweep."""
        defers = self.defers and self.count and not (transforms_active() or top_saved_tensors_hooks())
        if not defers or is_autocast_enabled() or is_being_traced() or depth(sources) >= _DEEPEST:
            return tuple(compute())
        return Deferred(compute, [x for x in tensors_in(arguments) if not self.owns(x)], sources)

    def wrapped(self, value: Tensor, given: Tangents | Deferred, laplacian: Tensor | None) -> Jet:
        x: Jet = wrapper_subclass(Jet, value.shape, value)
        x.sweep, x.value, x.given, x.laplacian = self, value, given, laplacian
        self.elements += value.numel()
        return x

    def mapped(self, value: Any, x: Jet, of: Callable[[Any], Any], *constants: Any, at_once: bool = False) -> Any:
        """y = A x + b, for A of a row of x, which reads constants; with ``at_once`` also of several in a further first
        dimension."""
        given = x.given  # x may be written to

        def of_tangents() -> Iterable[Any]:
            tangents = given_by(given)
            stack = _stack(tangents) if at_once and not (transforms_active() or is_being_traced()) else None
            return map(of, tangents) if stack is None else of(stack).unbind()

        laplacian = None if x.laplacian is None else of(x.laplacian)
        return self.tensor(value, self.deferred(of_tangents, constants, sources=[given]), laplacian)

    def linear(
        self,
        func: Callable[..., Any],
        args: Arguments,
        kwargs: Keywords,
        of_rows: Callable[..., Any] | None = None,
        jointly: bool = False,
        constants: Any = (),
    ) -> Any:
        """y = A x + b: A to each row.

        Args:
            func: the operation.
            args: its arguments.
            kwargs: those with names.
            of_rows: the operation without b, if there is one.
            jointly: is it linear in all its tensors together? Then the rows of a constant are zero.
            constants: what it reads besides its arguments.
        """

        jets = [x for x in jets_in((args, kwargs)) if x.sweep is self]
        given = {id(x): x.given for x in jets}  # they may be written to, and be plain tensors again afterwards

        @functools.cache
        def with_zeros() -> tuple[Arguments, Keywords]:
            def zero(x: Any) -> Any:
                return torch.zeros_like(x) if has_derivative(x) and id(x) not in given else x

            return (each(zero, args), each(zero, kwargs)) if jointly else (args, kwargs)

        def mapped(row_of: Callable[[Jet], Tensor]) -> Any:
            def row(x: Any) -> Any:
                return row_of(x) if id(x) in given else x

            others, options = with_zeros()
            return (of_rows or func)(*each(row, others), **each(row, options))

        args_of_value, kwargs_of_value = self.values(args, kwargs)
        value = func(*args_of_value, **kwargs_of_value)

        def of_tangents() -> Iterable[Any]:
            known = {i: given_by(rows) for i, rows in given.items()}
            return (mapped(lambda x, k=k: known[id(x)][k]) for k in range(self.count))  # type: ignore[misc]

        curved = any(x.laplacian is not None for x in jets)
        laplacian = mapped(lambda x: or_zeros(x.laplacian, x.value)) if curved else None
        sources = list(given.values())
        return self.tensor(value, self.deferred(of_tangents, args, kwargs, constants, sources=sources), laplacian)

    def product(self, func: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
        """y = a b: the rule of Leibniz."""
        if not (self.owns(a) and self.owns(b)):
            return self.linear(func, (a, b), {})
        (u, s), (v, t) = ((x.value, x.tangents) for x in (a, b))
        tangents = self.deferred(lambda: (func(x, v) + func(u, y) for x, y in zip(s, t, strict=True)), u, v)
        mixed = self.twice_summed(map(func, s, t))
        of_a = None if a.laplacian is None else func(a.laplacian, v)
        of_b = None if b.laplacian is None else func(u, b.laplacian)
        return self.tensor(func(u, v), tangents, sum_defined(of_a, of_b, mixed))

    def twice_summed(self, terms: Iterable[Any]) -> Any:
        """2 Σ_k ± of a term for each direction."""
        total = sum_defined(*(term if sign > 0 else -term for sign, term in zip(self.signs, terms, strict=True)))
        return None if total is None else 2 * total

    def multilinear(self, func: Callable[..., Any], xs: Sequence[Any]) -> Any:
        """y linear in each of the tensors, which all vary: the rule of Leibniz."""
        values = [x.value for x in xs]

        def with_rows(rows: dict[int, Any]) -> Any:
            return func(*(rows.get(i, value) for i, value in enumerate(values)))

        def total(terms: Any) -> Any:
            return functools.reduce(lambda a, b: a + b, terms)

        places = range(len(xs))
        rows = [x.tangents for x in xs]

        def of_tangents() -> Iterable[Any]:
            return (total(with_rows({i: rows[i][k]}) for i in places) for k in range(self.count))

        mixed = self.twice_summed(
            total(with_rows({i: rows[i][k], j: rows[j][k]}) for i, j in itertools.combinations(places, 2))
            for k in range(self.count)
        )
        curved = [with_rows({i: x.laplacian}) for i, x in enumerate(xs) if x.laplacian is not None]
        return self.tensor(func(*values), self.deferred(of_tangents, values), sum_defined(mixed, *curved))

    def elementwise(self, member: Elementwise, xs: Sequence[Tensor], numbers: tuple[float, ...]) -> Any:
        """y = f(x), by a fused kernel for some directions at a time."""
        shapes = [self.value(x).shape for x in xs]
        shape = shapes[0] if len(xs) == 1 else torch.broadcast_shapes(*shapes)
        return self.by_kernel(member, xs, shape, lambda scalars: scalars, numbers, _AT_ONCE)

    def rowwise(self, member: RowFunction, xs: Sequence[Tensor], call: Call) -> Any:
        """y = f(x) for functions of rows, by a fused kernel for some directions at a time."""
        return self.by_kernel(member, xs, None, lambda scalars: Call(call.shape, scalars), call.numbers, _ROWS_AT_ONCE)

    def by_kernel(
        self,
        member: Elementwise,
        xs: Sequence[Tensor],
        shape: Sequence[int] | None,
        call: Callable[[tuple[float, ...]], Any],
        numbers: tuple[float, ...],
        at_once: int,
    ) -> Any:
        """The outputs of a function; ``shape`` is that of all its operands, if they have one."""
        values = [self.value(x) for x in xs]
        made: list[_Parts] = []
        for start in range(0, len(self.signs), at_once):
            chunk = slice(start, start + at_once)
            signs = self.signs[chunk]
            arguments, carried = list(values), []
            for x in xs:
                curved = start == 0 and self.owns(x) and x.laplacian is not None
                carried.append(self.owns(x) + curved)
                if self.owns(x):
                    arguments += x.tangents[chunk]
                    arguments += [x.laplacian] if curved else []
            derivative = member.laplacian(tuple(carried), signs)
            if not derivative.arguments:  # x**0
                wholes = values if shape is None else [value.expand(shape) for value in values]
                constants = tuple(applied(member, wholes, call(numbers)))
                return constants[0] if len(constants) == 1 else constants
            given = [
                x if shape is None or x.shape == shape else x.expand(shape)
                for x in map(arguments.__getitem__, derivative.arguments)
            ]
            scalars = call(tuple([numbers[i] for i in derivative.scalars]))
            results = dict(zip(derivative.results, applied(derivative.function, given, scalars), strict=True))
            numbered = map(results.get, itertools.count())
            parts = [
                _Parts(next(numbered), [next(numbered) for _ in signs], next(numbered)) for _ in member.program.outputs
            ]
            made = list(map(_with_more_directions, made, parts)) if made else parts
        outputs = tuple([self.tensor(*parts) for parts in made])
        return outputs[0] if len(outputs) == 1 else outputs

    def differentiated(self, func: Any, args: Arguments, kwargs: Keywords) -> Any:
        """y = f(x) for any f."""
        leaves, tree = tree_flatten((args, kwargs))
        places = [i for i, x in enumerate(leaves) if self.owns(x)]
        jets = [leaves[i] for i in places]
        values = tuple(x.value for x in jets)

        def f(*xs: Tensor) -> Any:
            for i, x in zip(places, xs, strict=True):
                leaves[i] = x
            args, kwargs = tree_unflatten(leaves, tree)
            return run_corrected(func, *args, **kwargs)

        def differentiable(*xs: Tensor) -> Tangents:
            return tuple(y for y in tree_leaves(f(*xs)) if has_derivative(y))

        value = value_to_repeat(func, *self.values(args, kwargs))
        results, structure = tree_flatten(value)
        if not any(map(has_derivative, results)):
            return value
        fall_back(f"has no rule for {name_of(func)}", "it is")
        self.unruled += sum(x.numel() for x in (*values, *filter(has_derivative, results)))
        self.without_rule.add(name_of(func))
        along = [tuple(x.tangents[k] for x in jets) for k in range(len(self.signs))]
        laplacians = tuple(or_zeros(x.laplacian, x.value) for x in jets)
        try:
            tangents, totals = of_operation(differentiable, values, along, laplacians, self.signs, self.recording)
        except (RuntimeError, NotImplementedError) as error:
            raise Unseen(f"{name_of(func)} ({error})") from error
        derivatives = iter(zip(zip(*tangents, strict=True), totals, strict=True))
        return tree_unflatten(
            [self.tensor(y, *next(derivatives)) if has_derivative(y) else y for y in results], structure
        )

    def intercept(self, func: Any, args: Arguments, kwargs: Keywords, jets: Sequence[Jet]) -> Any:
        """The result of a function whose arguments hold these tensors of sweeps, of which this one is the innermost."""
        raise NotImplementedError


def _part(tangents: Sequence[Any] | Deferred, i: int) -> Sequence[Any] | Deferred:
    """The tangents of a result of several."""
    if isinstance(tangents, Deferred):
        return Deferred(lambda: (row[i] for row in tangents()), [], [tangents])
    return [None if row is None else row[i] for row in tangents]


def _with_more_directions(first: _Parts, more: _Parts) -> _Parts:
    return _Parts(first.value, first.tangents + more.tangents, sum_defined(first.laplacian, more.laplacian))


def value_to_repeat(func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """The value of an operation that will be run again, which is refused if it draws random numbers."""
    device = next((x.device for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)), torch.device("cpu"))
    random = random_states(device)
    value = run_corrected(func, *args, **kwargs)
    if not all(map(torch.equal, random, random_states(device))):
        raise Unseen(f"{name_of(func)}, which draws random numbers")
    return value


def applied(member: Elementwise, xs: Sequence[Tensor], numbers: Any) -> Sequence[Any]:
    """The outputs of a function, by the rule of an outer sweep if there is one; functions of rows are given none."""
    if isinstance(member, RowFunction):
        outputs = member.apply(xs, numbers)
        return (outputs,) if len(member.program.outputs) == 1 else outputs
    if not torch.is_grad_enabled() and 0 < xs[0].numel() * len(member.program.outputs) <= _STACKED:
        results = member.stacked(xs, numbers)
        if results is not None:
            return results
    outer = max((x.sweep for x in jets_in(xs)), key=lambda sweep: sweep.number, default=None)
    outputs = outer.elementwise(member, xs, numbers) if outer else member.apply(xs, numbers)
    return (outputs,) if len(member.program.outputs) == 1 else outputs


def _stack(rows: Sequence[Tensor]) -> Tensor | None:
    """Rows at equal distances in memory as one tensor, without a copy."""
    first, *others = rows
    if not others or any(type(row) is not Tensor or row.requires_grad for row in rows):
        return None
    shape, strides, size = first.shape, first.stride(), first.element_size()
    memory = first.untyped_storage()
    start, step = first.data_ptr(), others[0].data_ptr() - first.data_ptr()
    inside = step >= 0 and 0 <= start + len(others) * step - memory.data_ptr() < memory.nbytes()
    if not inside or step % size or any(row.data_ptr() != start + i * step for i, row in enumerate(others, 1)):
        return None
    if any(row.stride() != strides or row.shape != shape or row.dtype != first.dtype for row in others):
        return None
    return first.as_strided((len(rows), *shape), (step // size, *strides))
