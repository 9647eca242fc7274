"""The sweep of any partial derivatives: every tensor carries the numbers of a jet through the operations.

The numbers p_1, p_2, ... of an intermediate result, besides its value p_0, are those of a
:class:`~torchad_ext._symbolic.jet_algebra.JetAlgebra`. They take the places that the tangents have in the sweep of the
Laplacian, whose rules for linear operations are used as they are:

    linear        y = A x        p_a(y) = A p_a(x)
    product       y = u v        p_a(y) = Σ C_abc p_b(u) p_c(v)
    elementwise   y = f(x)       one fused kernel for all numbers (``Program.partials``)

Other operations are composed of these. A number that is zero for all points is a view of one zero, which no rule
computes with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from .._elementwise import Elementwise
from .._rowwise import Rowwise
from .._symbolic.jet_algebra import JetAlgebra
from .._symbolic.torch_names import name_of
from .._torch_state import share_memory, transforms_active
from . import linalg_rules, recurrent, rules
from .calls import each
from .correction_mode import run_corrected
from .deferred import Deferred
from .elementwise_rules import by_slopes, by_slopes_of_any
from .fallback import Unseen, has_derivative
from .propagation import Propagation
from .sweep import Arguments, Jet, Keywords, Rule, applied, jets_in

_LONGEST = 1000  # operations of a kernel of rows, which compiles in some seconds; longer ones are composed
_DIMENSIONS = 16  # numbers below may be dimensions
_OF_LAPLACIANS = {*linalg_rules.RULES, *recurrent.RULES, "prod", "cumprod"}


def rules_of(func: Any, name: str | None) -> Iterator[Rule]:
    """The rules of the Laplacian's sweep that hold for derivatives of every order."""
    for rule in rules.rules_of(func, name):
        if rule not in (by_slopes, by_slopes_of_any) and not (name in _OF_LAPLACIANS and rule is rules.RULES.get(name)):
            yield rule


def _form(x: Any) -> Any:
    """The part of an argument by which calls of one operation differ for any size of the batch: flags, names, numbers
    that may be dimensions, and which operands vary."""
    if isinstance(x, int):
        return x if abs(x) < _DIMENSIONS else int
    if isinstance(x, (tuple, list)):
        return tuple(map(_form, x))
    if isinstance(x, dict):
        return tuple((key, _form(value)) for key, value in x.items())
    if isinstance(x, slice):
        return _form((x.start, x.stop, x.step))
    return x if x is None or isinstance(x, str) else type(x)


@dataclass(eq=False)
class JetSweep(Propagation):
    """A sweep that carries the numbers of a jet algebra.

    Attributes:
        algebra: says which these are.
        zeros: the zero of each dtype and device, of which numbers that are zero are views.
        operations: the forms of all calls of operations, and ``dtypes``, those of all results.
    """

    algebra: JetAlgebra = field(kw_only=True)
    zeros: dict[tuple[torch.dtype, torch.device], Tensor] = field(default_factory=dict)
    operations: set[Any] = field(default_factory=set)
    dtypes: set[torch.dtype] = field(default_factory=set)

    @property
    def count(self) -> int:
        return len(self.algebra) - 1

    def zero(self, like: Any) -> Any:
        """The zeros of a result."""
        if not isinstance(like, Tensor):
            return tree_map(self.zero, like)
        key = like.dtype, like.device
        if key not in self.zeros:
            self.zeros[key] = torch.zeros((), dtype=like.dtype, device=like.device)
        return self.zeros[key].expand(like.shape)

    def is_zero(self, row: Any) -> bool:
        """Is it a view of a zero?"""
        if type(row) is not Tensor or any(row.stride()) or transforms_active():
            return False
        zero = self.zeros.get((row.dtype, row.device))
        return zero is not None and share_memory(zero, row)

    def numbers(self, x: Any) -> dict[int, Any]:
        """The value and the numbers of a tensor that are not zero."""
        if not self.owns(x):
            return {0: x}
        return {0: x.value} | {a: row for a, row in enumerate(x.tangents, 1) if not self.is_zero(row)}

    def joined(self, numbers: dict[int, Any]) -> Any:
        """A tensor with these numbers."""
        return self.tensor(
            numbers[0], [numbers.get(a, self.zero(numbers[0])) for a in range(1, len(self.algebra))], None
        )

    def tensor(self, value: Any, tangents: Sequence[Any] | Deferred, laplacian: Any) -> Any:
        if isinstance(value, Tensor) and not isinstance(tangents, Deferred):
            if all(row is None or self.is_zero(row) for row in tangents):
                return value
            tangents = [self.zero(value) if row is None else row for row in tangents]
        return super().tensor(value, tangents, laplacian)

    def wrapped(self, value: Tensor, given: Any, laplacian: Tensor | None) -> Jet:
        self.dtypes.add(value.dtype)
        return super().wrapped(value, given, laplacian)

    def apply(self, func: Any, args: Arguments, kwargs: Keywords) -> Any:
        if isinstance(func, Rowwise):
            self.operations.add((func.__name__, _form(args), _form(kwargs)))
        return super().apply(func, args, kwargs)

    def by_rule(self, func: Any, name: str | None, args: Arguments, kwargs: Keywords) -> Any:
        self.operations.add((name or name_of(func), _form(args), _form(kwargs)))
        return super().by_rule(func, name, args, kwargs)

    def mapped(self, value: Any, x: Jet, of: Callable[[Any], Any], *constants: Any, at_once: bool = False) -> Any:
        def row_of(row: Any) -> Any:
            return self.zero(value) if self.is_zero(row) else of(row)

        return super().mapped(value, x, row_of, *constants, at_once=at_once)

    def linear(
        self,
        func: Callable[..., Any],
        args: Arguments,
        kwargs: Keywords,
        of_rows: Callable[..., Any] | None = None,
        jointly: bool = False,
        constants: Any = (),
    ) -> Any:
        args_of_value, kwargs_of_value = self.values(args, kwargs)
        value = func(*args_of_value, **kwargs_of_value)
        mine = [x for x in jets_in((args, kwargs)) if x.sweep is self]

        def number(k: int) -> Any:
            def row(x: Any) -> Any:
                if self.owns(x):
                    return x.tangents[k]
                return torch.zeros_like(x) if jointly and has_derivative(x) else x

            if all(self.is_zero(x.tangents[k]) for x in mine):
                return self.zero(value)
            return (of_rows or func)(*each(row, args), **each(row, kwargs))

        return self.tensor(value, [number(k) for k in range(self.count)], None)

    def product(self, func: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
        if not (self.owns(a) and self.owns(b)):
            return self.linear(func, (a, b), {})
        return self.multilinear(func, (a, b))

    def multilinear(self, func: Callable[..., Any], xs: Sequence[Any]) -> Any:
        numbers = [self.numbers(x) for x in xs]
        total: dict[int, Any] = {}
        for a in range(len(self.algebra)):
            for weight, places in self._terms(a, len(xs)):
                if all(b in of for b, of in zip(places, numbers, strict=True)):
                    term = func(*(of[b] for b, of in zip(places, numbers, strict=True)))
                    term = term if weight == 1 else weight * term
                    total[a] = total[a] + term if a in total else term
        return self.joined(total)

    def _terms(self, a: int, factors: int) -> Iterator[tuple[float, tuple[int, ...]]]:
        """The terms of p_a of a product of so many factors: a weight, and a number of each factor."""
        if factors == 1:
            yield 1.0, (a,)
            return
        for weight, b, c in self.algebra.products[a]:
            for further, places in self._terms(c, factors - 1):
                yield weight * further, (b, *places)

    def by_kernel(
        self,
        member: Elementwise,
        xs: Sequence[Tensor],
        shape: Sequence[int] | None,
        call: Callable[[tuple[float, ...]], Any],
        numbers: tuple[float, ...],
        at_once: int,
    ) -> Any:
        given = [self.numbers(x) for x in xs]
        rows = range(1, len(self.algebra))
        derivative = member.partials(tuple(tuple(b in of for b in rows) for of in given), self.algebra)
        if shape is None and len(derivative.function.program) > _LONGEST:
            return NotImplemented
        arguments = [of[0] for of in given] + [of[b] for of in given for b in rows if b in of]
        expanded = [
            x if shape is None or x.shape == shape else x.expand(shape)
            for x in map(arguments.__getitem__, derivative.arguments)
        ]
        count, outputs = len(self.algebra), len(member.program.outputs)
        if not expanded:  # x**0
            constants: Any = member.apply(
                [of[0] if shape is None else of[0].expand(shape) for of in given], call(numbers)
            )
            return constants
        made = derivative.function
        results = applied(made, expanded, call(tuple([numbers[i] for i in derivative.scalars])))
        known = dict(zip(derivative.results, results, strict=True))
        jets = tuple(
            self.joined({a: known[start + a] for a in range(count) if start + a in known})
            for start in range(0, count * outputs, count)
        )
        return jets[0] if outputs == 1 else jets

    def differentiated(self, func: Any, args: Arguments, kwargs: Keywords) -> Any:
        values, options = self.values(args, kwargs)
        value = run_corrected(func, *values, **options)
        if not any(has_derivative(y) for y in torch.utils._pytree.tree_leaves(value)):
            return value
        raise Unseen(name_of(func))
