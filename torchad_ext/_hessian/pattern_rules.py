"""Dependence and coupling of PyTorch's operations: the rules by which sparsity patterns are found.

Most operations move elements, are pointwise, or are linear at x. What moves elements is run on their numbers. The
matrix of another linear operation is found from its products with vectors, which autograd gives
(:mod:`torchad_ext._hessian.linear_structure`). What PyTorch decomposes into simpler operations is run as these.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import enable_reentrant_dispatch
from torch.utils._pytree import tree_leaves, tree_map

from .._linearity import (
    CHOOSES,
    CONSTANT,
    COUPLES_ALONG_DIMENSION,
    ELEMENTWISE,
    FILLS,
    JOINS,
    LINEAR,
    LINEAR_BY_ELEMENT,
    LINEAR_IN_ALL,
    LINEAR_IN_SOME,
    MATRIX_FUNCTIONS,
    MOVES,
    PIECEWISE_LINEAR,
    RANDOM,
    Kind,
    name_in_table,
    rule_registered_for,
)
from .._torch_state import decomposition_table, without_dispatch
from .compositions import COMPOSITIONS
from .linear_structure import structure

Array = np.ndarray[Any, Any]
Factors = tuple[Array, Array, Array]
Rule = Callable[..., "list[Tensor] | None"]

aten = torch.ops.aten

_LIMIT = 2**25  # products of elements that are looked at one by one


class Tape(Protocol):
    """Where operations are recorded; the numbers of elements are 0 for constants."""

    full: bool

    def __enter__(self) -> Any: ...
    def __exit__(self, *_: Any) -> Any: ...
    def is_known(self, x: Any) -> bool: ...
    def numbers(self, x: Tensor) -> Tensor: ...
    def is_constant(self, x: Tensor) -> Tensor: ...
    def results(
        self, count: int, rows: Array, members: Array, couples: bool = False, factors: Factors | None = None
    ) -> Array: ...


def is_numeric(x: Any) -> bool:
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


class Rules:
    """The rules of operations, which give the numbers of their results."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape

    def numbers(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Tensor]:
        """The numbers of the outputs of an operation, or of what it writes to."""
        kwargs = {name: value for name, value in kwargs.items() if name not in _names_of_outputs(func)}
        rule = self._rule(func, {**dict(_arguments(func, args)), **kwargs})
        found = rule(func, args, kwargs, outputs) if rule else None
        if found is None:
            found = self._decomposed(func, args, kwargs, outputs)
        return self.anything(args, kwargs, outputs) if found is None else found

    def _rule(self, func: Any, given: dict[str, Any]) -> Rule | None:
        op = _functional(func)
        registered = rule_registered_for(op)
        if registered is not None:
            return None if callable(registered) else self._rules_of_kinds[registered]
        name, tags = name_in_table(op), func.tags
        is_complex = name in _NOT_OF_REAL_PARTS and given["self"].is_complex()
        if name in CONSTANT or name in RANDOM or (name == "sgn" and not is_complex):
            return self._constant
        if name == "grid_sampler_3d" and not self._known(given["input"]):
            return self._sample
        if name in _BY_ITS_MATRIX or given.get("accumulate") or "reduce" in given:
            return self._linear_at_x
        if name in _MOVED:
            return self._move
        if name in _MATRIX_PRODUCTS:
            return self._matrix_product
        if name == "convolution":
            return self._convolution
        if name in _AVERAGES:
            return self._average
        if name in MATRIX_FUNCTIONS:
            return self._batched
        if (name in _DECOMPOSED and not func._schema.is_mutable) or given.get("ord") in _ORDERS_OF_PARTS:
            return None
        if name in _ALONG_DIM or torch.Tag.reduction in tags:
            return self._reduction
        if name in _BY_ELEMENT or torch.Tag.pointwise in tags:
            return self._pointwise
        return None

    @functools.cached_property
    def _rules_of_kinds(self) -> dict[Kind, Rule]:
        """The rules of operators of users."""
        return {
            "constant": self._constant,
            "moves": self._move_by_operator,
            "linear": self._linear_at_x,
            "multilinear": self._linear_in_one,
            "elementwise": self._pointwise,
        }

    def _constant(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Tensor]:
        return [torch.zeros(y.shape, dtype=torch.int64) for y in outputs]

    def _linear_in_one(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Tensor] | None:
        """A multilinear operation is linear where one tensor depends on x, and couples everything else."""
        varying = [x for x in self._known(args, kwargs) if self._tape.numbers(x).any()]
        return self._linear_at_x(func, args, kwargs, outputs) if len(varying) == 1 else None

    def _of(self, x: Tensor) -> Tensor:
        """The numbers of the elements of x, a complex one that of its parts together."""
        numbers = self._tape.numbers(x)
        if not x.is_complex():
            return numbers
        pairs = numbers.reshape(-1, 2).numpy()
        once = np.where(pairs[:, 0] == pairs[:, 1], 0, pairs[:, 1])
        rows = np.arange(len(pairs))
        united = self._tape.results(len(pairs), np.append(rows, rows), np.append(pairs[:, 0], once))
        return torch.from_numpy(united).view(x.shape)

    def _known(self, *given: Any) -> list[Tensor]:
        return [x for x in tree_leaves(given) if self._tape.is_known(x)]

    def _is_zero(self, x: Any, shape: Sequence[int]) -> Tensor:
        """Where are elements constants of 0?"""
        if not isinstance(x, Tensor):
            return torch.full(tuple(shape), x == 0)
        return ((x.detach() == 0).cpu() & self._tape.is_constant(x)).expand(tuple(shape))

    def _rows(self, rows: Sequence[Tensor], members: Sequence[Tensor], shape: Sequence[int], couples: bool) -> Tensor:
        """The numbers of results of a shape, in ``rows`` of which are the members."""
        row, member = (torch.cat([x.reshape(-1) for x in each]).numpy() for each in (rows, members))
        return torch.from_numpy(self._tape.results(math.prod(shape), row, member, couples)).view(tuple(shape))

    def _pointwise(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Tensor] | None:
        op, shape = _functional(func), outputs[0].shape
        read = args[1:2] if op in (aten.copy, aten.fill) else (args, kwargs)
        given = [self._of(x).expand(shape) for x in self._known(read)]
        factors, couples = None, self._couples(op, args)
        if op is aten.div and not self._known(args[1]):
            couples = False
        elif op in (*_LARGER, *_SMALLER) and len(given) == 2:
            less, greater = (args[0] < args[1]).cpu(), (args[0] > args[1]).cpu()
            unused = (less, greater) if op in _LARGER else (greater, less)
            given = [numbers.masked_fill(where, 0) for numbers, where in zip(given, unused, strict=True)]
        elif op is aten.mul:
            zero = self._is_zero(args[1], shape)
            if not func._schema.is_mutable:  # else it has been written over
                zero = zero | self._is_zero(args[0], shape)
            given, couples = [numbers.masked_fill(zero, 0) for numbers in given], False
            if len(given) == 2:
                a, b = (numbers.numpy().ravel() for numbers in given)
                both = np.flatnonzero((a != 0) & (b != 0))
                factors = both, a[both], b[both]
        count = math.prod(shape)
        members = np.concatenate([numbers.numpy().ravel() for numbers in given] or [np.zeros(0, np.int64)])
        rows = np.tile(np.arange(count), len(given))
        return [torch.from_numpy(self._tape.results(count, rows, members, couples, factors)).view(shape)] * len(outputs)

    def _couples(self, op: Any, args: Any) -> bool:
        """Does an elementwise operation couple what a result depends on?"""
        name = name_in_table(op)
        return name not in _COUPLES_NOTHING or (name in _NOT_OF_REAL_PARTS and args[0].is_complex())

    def _move(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Tensor] | None:
        """An operation that only moves elements is run on their numbers, in float64; what it fills with is 0."""

        def numbers(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            of = self._tape.numbers(x).to(x.device, torch.float64)
            return torch.view_as_complex(of.contiguous()) if x.is_complex() else of

        def moved(name: str, value: Any) -> Any:
            if name in _INDICES:
                return value
            return 0 if isinstance(value, int | float | complex) and name in _FILLS else tree_map(numbers, value)

        given = [moved(name, value) for name, value in _arguments(func, args)]
        results = tree_leaves(_functional(func)(*given, **{name: moved(name, value) for name, value in kwargs.items()}))
        parts = [torch.view_as_real(y) if y.is_complex() else y for y in results if is_numeric(y)]
        return [y.to("cpu", torch.int64) for y in parts]

    def _move_by_operator(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Tensor] | None:
        """An operator of others that only moves elements: the numbers that it moves are what changes with them.

        Run on the numbers and on zeros, it places its fills and the elements of its integer tensors, which may as well
        be indices, alike."""

        def moved(of: Callable[[Tensor], Tensor]) -> list[Tensor]:
            def numbers(x: Any) -> Any:
                if not is_numeric(x):
                    return x
                given = of(self._tape.numbers(x)).to(x.device, torch.float64)
                return torch.view_as_complex(given.contiguous()) if x.is_complex() else given

            given, named = tree_map(numbers, (args, kwargs))
            results = tree_leaves(func(*given, **named))
            return [torch.view_as_real(y) if y.is_complex() else y for y in results if is_numeric(y)]

        pairs = zip(moved(lambda numbers: numbers), moved(torch.zeros_like), strict=True)
        return [(y - fill).to("cpu", torch.int64) for y, fill in pairs]

    def _reduction(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Tensor] | None:
        """Elements along some dimensions meet."""
        op, x = _functional(func), args[0]
        bound = {**dict(_arguments(func, args)), **kwargs}
        dims = bound.get("dim")
        dims = range(x.dim()) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
        kept = [1 if i in {d % x.dim() for d in dims} else size for i, size in enumerate(x.shape)]
        if self._known(args[1:], kwargs) or x.numel() == 0:
            return None
        groups = torch.arange(math.prod(kept)).view(kept)
        united = self._rows([groups.expand(x.shape)], [self._of(x)], kept, name_in_table(op) not in _COUPLES_NOTHING)
        if name_in_table(op) in _ALONG_DIM:
            return [united.expand(y.shape) for y in outputs] if len(united.shape) == outputs[0].dim() else None
        return (
            [united.view(y.shape) for y in outputs] if all(y.numel() == len(groups.ravel()) for y in outputs) else None
        )

    def _matrix_product(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Tensor] | None:
        (y,), (*bias, a, b) = outputs, args[: 3 if name_in_table(_functional(func)) in _WITH_BIAS else 2]
        shape_a = (*[1] * (3 - a.dim()), *a.shape)
        shape_b = (1, b.shape[0], 1) if b.dim() == 1 else (*[1] * (3 - b.dim()), *b.shape)
        product = self._product(self._factor(a, shape_a), self._factor(b, shape_b))
        if product is None:
            return None
        return [self._plus(product.view(y.shape), bias)]

    def _plus(self, numbers: Tensor, terms: Sequence[Any]) -> Tensor:
        """The numbers of a sum."""
        given = [numbers, *(self._of(x).expand(numbers.shape) for x in self._known(terms))]
        if len(given) == 1:
            return numbers
        each = torch.arange(numbers.numel())
        return self._rows([each] * len(given), given, numbers.shape, False)

    def _factor(self, x: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Numbers, and where a factor is other than a constant of 0."""
        dense = x.detach().to_dense() if x.layout is not torch.strided else x
        some = ~self._is_zero(dense, dense.shape)
        return self._of(dense).reshape(tuple(shape)), some.reshape(tuple(shape))

    def _product(self, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor | None:
        """The numbers of the matrix products of a ``[batch, m, k]`` and b ``[batch, k, p]``."""
        (of_a, some_a), (of_b, some_b) = a, b
        if not of_b.any():
            return self._linear_product(of_a, some_a, some_b)
        if not of_a.any():
            product = self._linear_product(of_b.mT, some_b.mT, some_a.mT)
            return None if product is None else product.mT
        (batch, m, k), p = of_a.shape, of_b.shape[-1]
        if batch * m * k * p > _LIMIT:
            return None
        each = (some_a.unsqueeze(3) & some_b.unsqueeze(1)).nonzero(as_tuple=True)
        number, i, j, q = each
        members = of_a[number, i, j], of_b[number, j, q]
        rows = (number * m + i) * p + q
        both = (members[0] != 0) & (members[1] != 0)
        factors = tuple(x[both].numpy() for x in (rows, *members))
        row, member = torch.cat([rows, rows]).numpy(), torch.cat(members).numpy()
        return torch.from_numpy(self._tape.results(batch * m * p, row, member, False, factors)).view(batch, m, p)  # type: ignore[arg-type]

    def _linear_product(self, of_a: Tensor, some_a: Tensor, some: Tensor) -> Tensor:
        """The numbers of products with a constant factor, which is other than zero where ``some``."""
        (batch, m, k), p = of_a.shape, some.shape[-1]
        if some.all() or m * int(some.sum()) > _LIMIT:  # each column meets all
            rows = torch.arange(batch * m).view(batch, m, 1).expand(batch, m, k)
            return self._rows([rows], [of_a], (batch, m, 1), False).expand(batch, m, p)
        number, j, q = some.expand(batch, k, p).nonzero(as_tuple=True)
        rows = (number * m + torch.arange(m).unsqueeze(1)) * p + q
        return self._rows([rows], [of_a[number, :, j].T], (batch, m, p), False)

    def _convolution(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Tensor] | None:
        """Windows of the input times the weight; transposed, of the input with zeros between its elements."""
        x, weight, bias, stride, padding, dilation, transposed, more, groups = args
        (y,), size, n = outputs, weight.shape[2:], x.dim() - 2
        stride, padding, dilation, more = (list(each) * (n // len(each)) for each in (stride, padding, dilation, more))
        pads = [(p, p) for p in padding]
        if transposed:
            reach = [d * (k - 1) - p for d, k, p in zip(dilation, size, padding, strict=True)]
            pads = [(r, r + m) for r, m in zip(reach, more, strict=True)]

        def rows(values: Tensor) -> Tensor:
            """``[batch * groups, places, channels of a group * size]``"""
            values = _spread(values, stride) if transposed else values
            parts = _windows(values, size, [1] * n if transposed else stride, pads, dilation)
            parts = parts.unflatten(1, (groups, -1)).movedim(2, 2 + n).flatten(2, 1 + n)
            joined: Tensor = parts.flatten(3).flatten(0, 1)
            return joined

        def columns(values: Tensor) -> Tensor:
            """``[batch * groups, channels of a group * size, outputs of a group]``"""
            values = values.unflatten(0, (groups, -1))
            if transposed:
                values = values.flip(list(range(3, 3 + n))).transpose(1, 2)
            values = values.flatten(2).mT
            return values.expand(len(x), *values.shape).flatten(0, 1)

        of_x, of_weight = self._factor(x, x.shape), self._factor(weight, weight.shape)
        product = self._product(
            (rows(of_x[0]), rows(of_x[1])),
            (columns(of_weight[0]), columns(of_weight[1])),
        )
        if product is None:
            return None
        numbers = product.unflatten(0, (len(x), groups)).mT.reshape(y.shape)
        return [self._plus(numbers.movedim(1, -1), [bias]).movedim(-1, 1)]

    def _average(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Tensor] | None:
        """Means of windows."""
        given = {**dict(_arguments(func, args)), **kwargs}
        x, (y,) = given["self"], outputs
        n = int(_functional(func).__name__[-2])
        size, padding = (list(given.get(name) or [0]) for name in ("kernel_size", "padding"))
        stride = list(given.get("stride") or size)
        size, padding, stride = (each * (n // len(each)) for each in (size, padding, stride))
        places, elements = y.shape[-n:], x.shape[-n:]
        after = [(m - 1) * s + k - e - p for m, s, k, e, p in zip(places, stride, size, elements, padding, strict=True)]
        of_x = self._of(x).reshape(1, -1, *elements)
        members = _windows(of_x, size, stride, list(zip(padding, after, strict=True)), [1] * n).reshape(y.numel(), -1)
        rows = torch.arange(y.numel()).unsqueeze(1).expand(members.shape)
        return [self._rows([rows], [members], y.shape, False)]

    def _sample(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Tensor] | None:
        """Samples of a constant, each of which couples the coordinates of its place."""
        of_grid = self._of(args[1])
        *places, _ = of_grid.shape
        rows = torch.arange(math.prod(places)).view(*places, 1).expand(of_grid.shape)
        return [self._rows([rows], [of_grid], places, True).unsqueeze(1).expand(y.shape) for y in outputs]

    def _linear_at_x(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Tensor] | None:
        """A linear operation depends on what its matrix has entries for."""
        variables = self._known(args, kwargs)
        op = _functional(func)
        linear = [value for name, value in _arguments(func, args) if name == _LINEAR_IN.get(name_in_table(op), name)]
        if len(variables) > len(self._known(linear, kwargs)):
            return None
        # A product depends on what a mean depends on, and couples it.
        couples = "prod" in [x for x in (*args, *kwargs.values()) if isinstance(x, str)]
        args, kwargs = tree_map(lambda x: "mean" if isinstance(x, str) and x == "prod" else x, (args, kwargs))
        with enable_reentrant_dispatch(), without_dispatch():  # autograd runs here, the tape does not
            found = structure(op, args, kwargs, variables)
        if found is None:
            return None
        rows, columns = found
        members = torch.cat([self._of(x).reshape(-1) for x in variables])[torch.from_numpy(columns)]
        sizes = [y.numel() for y in outputs]
        results = torch.from_numpy(self._tape.results(sum(sizes), rows, members.numpy(), couples))
        return [part.view(y.shape) for part, y in zip(results.split(sizes), outputs, strict=True)]

    def _batched(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Tensor] | None:
        """Functions of matrices ``[*batch, m, n]``, each of which couples its own elements."""
        variables = self._known(args, kwargs)
        given = {**dict(_arguments(func, args)), **kwargs}
        right = given.get(_RIGHT_SIDES.get(name_in_table(_functional(func)), ""))
        if len(variables) == 1 and variables[0] is right:
            return self._solution(_functional(func), right, given, outputs)
        batch = next(x for x in tree_leaves(args) if isinstance(x, Tensor)).shape[:-2]
        if any(x.shape[: len(batch)] != batch for x in (*variables, *outputs)):
            return None
        count = math.prod(batch)
        members = [self._of(x).reshape(count, math.prod(x.shape[len(batch) :])) for x in variables]
        rows = [torch.arange(count).unsqueeze(1).expand(x.shape) for x in members]
        united = self._rows(rows, members, (count,), True)
        return [united.view((*batch, *[1] * (y.dim() - len(batch)))).expand(y.shape) for y in outputs]

    def _solution(self, op: Any, right: Tensor, given: dict[str, Any], outputs: list[Tensor]) -> list[Tensor]:
        """Each column of A⁻¹B is linear in that of B; with the matrix on the right side each row of BA⁻¹."""
        y, *others = outputs
        is_vector = op is aten._linalg_solve_ex and right.shape in (right.shape[:1], given["A"].shape[:-1])
        of, dim = self._of(right).expand(y.shape), -1 if is_vector or not given.get("left", True) else -2
        kept = [1 if i == y.dim() + dim else size for i, size in enumerate(y.shape)]
        groups = torch.arange(math.prod(kept)).view(kept).expand(y.shape)
        united = self._rows([groups], [of], kept, False)
        return [united.expand(y.shape), *(torch.zeros(z.shape, dtype=torch.int64) for z in others)]

    def _decomposed(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Tensor] | None:
        """The numbers of what PyTorch decomposes an operation into."""
        decomposition = self._decomposition(func)
        if decomposition is None or torch.Tag.nondeterministic_seeded in func.tags:
            return None
        args = [x.clone() if name in _STATISTICS and x is not None else x for name, x in _arguments(func, args)]
        with self._tape:
            results = tree_leaves(decomposition(*args, **kwargs))
        made = [y for y in results if is_numeric(y)]
        if [y.shape for y in made] != [y.shape for y in outputs]:
            return None
        return [self._tape.numbers(y) for y in made]

    def _decomposition(self, func: Any) -> Any:
        composition = COMPOSITIONS.get(_functional(func))  # a sum with what it writes over
        if composition is not None or func._schema.is_mutable:
            return composition
        registered = rule_registered_for(func)
        return registered if callable(registered) else decomposition_table.get(func)

    def anything(self, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Tensor]:
        """Everything that is read couples with everything."""
        members = torch.cat([self._of(x).reshape(-1) for x in self._known(args, kwargs)])
        (united,) = self._rows([torch.zeros_like(members)], [members], (1,), True)
        return [united.expand(y.shape) for y in outputs]


@functools.cache
def _functional(func: Any) -> Any:
    """The operation, that of which ``func`` is the variant in place."""
    op = func.overloadpacket
    namespace, name = func._schema.name.split("::")
    in_place = namespace == "aten" and name.endswith("_") and func._schema.is_mutable
    return getattr(aten, name[:-1], op) if in_place else op


def _names_of_outputs(func: Any) -> set[str]:
    return {argument.name for argument in func._schema.arguments if argument.is_out}


def _spread(x: Tensor, stride: Sequence[int]) -> Tensor:
    """x ``[batch, channels, *size]`` with zeros between its elements."""
    for i, s in enumerate(stride):
        shape = list(x.shape)
        shape[i + 2] = (shape[i + 2] - 1) * s + 1
        spread = x.new_zeros(shape)
        spread.transpose(0, i + 2)[::s] = x.transpose(0, i + 2)
        x = spread
    return x


def _windows(
    x: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    pads: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> Tensor:
    """The windows of x ``[batch, channels, *places, *size]``, padded before and after with zeros."""
    x = F.pad(x, [p for pair in reversed(pads) for p in pair])
    for i, (k, s, d) in enumerate(zip(size, stride, dilation, strict=True)):
        x = x.unfold(i + 2, d * (k - 1) + 1, s)[..., ::d]
    return x


def _arguments(func: Any, args: Sequence[Any]) -> list[tuple[str, Any]]:
    """The positional arguments with their names."""
    return [(argument.name, value) for argument, value in zip(func._schema.arguments, args, strict=False)]


# Names in the table of operations, by the way in which their numbers are found.
_ALONG_DIM = COUPLES_ALONG_DIMENSION | {"cumsum", "_fft_r2c", "_fft_c2r", "_fft_c2c"}
_AVERAGES = {"avg_pool2d", "avg_pool3d"}  # the others are made of these
_WITH_BIAS = {"addmm", "addmv", "baddbmm", "_sparse_addmm"}
_MATRIX_PRODUCTS = {"mm", "bmm", "mv", "dot", "vdot", "_sparse_mm", *_WITH_BIAS}
_BY_ITS_MATRIX = (CHOOSES | LINEAR_IN_ALL | LINEAR_IN_SOME | LINEAR) - {"sum", "mean"} - _ALONG_DIM - _AVERAGES
_MOVED = MOVES | JOINS | FILLS
_COUPLES_NOTHING = LINEAR | LINEAR_BY_ELEMENT | PIECEWISE_LINEAR | {"copy", "fill"}
_BY_ELEMENT = LINEAR_BY_ELEMENT | PIECEWISE_LINEAR | ELEMENTWISE | {"copy", "fill"}
_DECOMPOSED = {"addcmul", "addcdiv", "lerp", "mse_loss", "smooth_l1_loss", "huber_loss", "glu"}
_RIGHT_SIDES = {
    **dict.fromkeys(("_linalg_solve_ex", "linalg_lu_solve", "linalg_solve_triangular"), "B"),
    "cholesky_solve": "self",
}
_ORDERS_OF_PARTS = {0, 1, math.inf, -math.inf}  # of norms that are sums or extrema
_LARGER, _SMALLER = (aten.maximum, aten.fmax), (aten.minimum, aten.fmin)
_NOT_OF_REAL_PARTS = {"abs", "sgn"}  # of complex numbers, whose parts they couple
_FILLS = {"value", "other", "self", "fill"}
_STATISTICS = {"running_mean", "running_var"}  # to which operations write that say they write to nothing
_INDICES = {"index", "indices", "condition", "mask"}
_LINEAR_IN = {
    **dict.fromkeys(("nll_loss_forward", "nll_loss2d_forward"), "self"),
    **dict.fromkeys(("nll_loss_backward", "nll_loss2d_backward"), "grad_output"),
    **dict.fromkeys(("max_pool2d_with_indices_backward", "max_pool3d_with_indices_backward"), "grad_output"),
    **dict.fromkeys(("_embedding_bag", "_embedding_bag_forward_only"), "weight"),
    **dict.fromkeys(("grid_sampler_2d", "grid_sampler_3d"), "input"),
}
