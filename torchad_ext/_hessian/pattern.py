"""Sparsity patterns of Hessians, found from one evaluation of f by the dependence of each number on the elements of x.

The pattern follows A. Walther, Computing sparse Hessians with automatic differentiation, ACM Transactions on
Mathematical Software 34 (2008): each element of each intermediate has the set of the elements of x that it depends on,
and an operation that is not linear couples what meets in it. The operations are recorded first (:class:`_Tape`, its
rules in :mod:`torchad_ext._hessian.pattern_rules`); of these, only what the value of f depends on couples.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .._autograd.foreign_functions import detached, functions_of, is_derivative, replaced
from .._autograd.graph import foreign_nodes
from .._forward.correction_mode import run_corrected
from .._forward.missing import tool
from .._torch_state import takes_context, where_transforms_are_right, with_forgotten
from .pattern_rules import Rules, is_numeric
from .point import check_floating

Array = np.ndarray[Any, Any]

_CHUNK = 2**22  # pairs that are written out at a time
_MANY = 64  # storages after which those that were freed are dropped
_MARKED = 2**28  # entries of a Hessian up to which pairs are marked in a table of all


@tool
@where_transforms_are_right
def hessian_sparsity(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    r"""The sparsity pattern of the Hessian of f at x, from one evaluation of f.

    f is run once, operation by operation (at the level of ATen), and each element of each result has the set of the
    elements of ``x`` that it depends on. Linear operations unite these sets, views and indexing move them, elementwise
    functions couple what each element depends on, products what their factors depend on; what the value of f does not
    depend on couples nothing. An operation that is not known couples everything it reads, and so does an
    ``autograd.Function`` whose backward is not the derivative of its operations, as finite differences tell. So the
    pattern may be too large, and is never too small for an f that is made of these; it holds where f takes the branches
    that it takes at ``x``, among which are the order of a ``sort`` and the places of a maximum. Where gradients are
    enabled, it also holds for other values of captured tensors that require one, as of a weight that is 0. Complex
    numbers on the way depend on what both their parts depend on. ``docs/patterns.md`` lists operations.

    The method is that of A. Walther, Computing sparse Hessians with automatic differentiation, ACM Transactions on
    Mathematical Software 34 (2008).

    Args:
        f: a function of one tensor to a tensor without dimensions.
        x: a floating-point tensor of n elements.

    Returns:
        A symmetric bool tensor ``[n, n]`` of layout ``torch.sparse_coo``, coalesced: where the Hessian may be other
        than zero.

    Raises:
        TypeError: ``x`` or the value of f is not a floating-point tensor.
        ValueError: f has a value with dimensions.

    Example:
        >>> hessian_sparsity(lambda x: (x[1:] * x[:-1]).sum(), torch.zeros(3)).to_dense().int()
        tensor([[0, 1, 0],
                [1, 0, 1],
                [0, 1, 0]], dtype=torch.int32)
    """
    check_floating("hessian_sparsity", "x", x)
    pattern, n = find_pattern(functools.partial(_checked_value, f), x, foreign=True), x.numel()
    keys = np.arange(n**2) if pattern is None else pattern[0]
    ones = torch.ones(len(keys), dtype=torch.bool, device=x.device)
    return sparse_matrix(torch.from_numpy(keys).to(x.device), ones, n)


def _checked_value(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    y = run_corrected(f, x)
    if not isinstance(y, Tensor) or not y.is_floating_point():
        got = f"{y.dtype}" if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"torchad_ext.hessian_sparsity takes floating-point tensors for the value of f; got {got}")
    if y.dim():
        raise ValueError(
            f"torchad_ext.hessian_sparsity takes f with a value without dimensions; got shape {list(y.shape)}. Sum it"
        )
    return y


def sparse_matrix(keys: Tensor, values: Tensor, n: int) -> Tensor:
    """The matrix ``[n, n]`` with entries at the keys i n + j, which are sorted."""
    indices = torch.stack([keys // max(1, n), keys % max(1, n)])
    return torch.sparse_coo_tensor(indices, values, (n, n), is_coalesced=True, check_invariants=False)


def find_pattern(
    f: Callable[[Tensor], Tensor],
    x: Tensor,
    most: float | None = None,
    share: float = math.inf,
    foreign: bool = False,
) -> tuple[Array, float] | None:
    """The keys i n + j of the pattern at x, sorted, and how many elements all rows of the Hessian are computed from.

    None if the pattern is full, where more than ``most`` elements of x are coupled with each other, or with one element
    on average, and where more than a ``share`` of the elements that all rows are computed from are looked at. With
    ``foreign`` each ``autograd.Function`` of others is checked to have the derivative of its operations."""
    kind = _Captured if torch.is_grad_enabled() else lambda: None
    with torch.enable_grad():  # f may take gradients itself
        point = x.detach().clone().requires_grad_().clone()  # x may be one of inference mode
        tape = _Tape(point, share, kind())
        with tape:
            y = f(point)
        functions = functions_of(foreign_nodes([y]), of_operators=False) if foreign else ()
        if functions:
            tape = _Tape(point, share, kind())
            with tape, tape.checking(functions):
                y = f(point)
    keys = tape.pairs(y, x.numel() if most is None else most)
    return None if keys is None else (keys, tape.of_rows)


def unique(keys: Array) -> Array:
    """Like ``np.unique``, whose hash table takes twice to eight times as long; quick where nothing is to be done."""
    if (keys[1:] > keys[:-1]).all():
        return keys
    end = int(keys.max()) + 1
    if end < 8 * len(keys):  # marking is quicker than sorting
        present = np.zeros(end, bool)
        present[keys] = True
        return np.flatnonzero(present)
    keys = np.sort(keys)
    first: Array = keys[np.concatenate([[True], keys[1:] != keys[:-1]])]
    return first


@dataclass
class _Step:
    """An operation: each of its ``results`` depends on the numbers in ``members`` whose place in ``rows`` is its own,
    and couples them if ``couples``; ``factors`` (rows, a, b) couple a with b."""

    results: slice
    rows: Array
    members: Array
    couples: bool
    factors: tuple[Array, Array, Array] | None


@dataclass
class _Memory:
    """A storage, the bytes of a real number in it, and the numbers of its places."""

    storage: StorageWeakRef
    unit: int
    numbers: Tensor


class _Leaving(TorchFunctionMode):
    """Sees whether the numbers of a tensor are read by something else than PyTorch."""

    seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = self.seen or getattr(func, "__name__", "") in _READ_BY_OTHERS
        return func(*args, **with_forgotten(func, kwargs or {}))


class _Tape(TorchDispatchMode):
    """Runs operations, and numbers what they compute: 0 is a constant, 1 to n are the elements of x, and each result
    that is more than a multiple of one number has a number of its own. Each place in memory has the number of what was
    last written there, so that views and writes in place need no rules."""

    def __init__(self, x: Tensor, share: float = math.inf, captured: _Captured | None = None) -> None:
        super().__init__()
        self._captured = captured
        self.n, self._share, self._size = x.numel(), share, x.numel()
        self.full = self._hidden = False
        self.steps: list[_Step] = []
        self._end = self.n + 1
        self._memory: dict[int, _Memory] = {}  # by storage
        self._many = _MANY
        self._rules = Rules(self)
        self.write(x, torch.arange(1, self.n + 1).view(x.shape))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.full or self._hidden:
            return result
        if self._captured:
            self._captured.meet(x for x in tree_leaves((args, kwargs)) if not self.is_known(x))
        depends = self._record(func, args, kwargs, result)
        if self._captured and not depends:
            self._captured._record(func, args, kwargs, result)
        return result

    def _record(self, func: Any, args: Any, kwargs: Any, result: Any) -> bool:
        """Numbers what an operation wrote; does all of it depend on x?"""
        given = [x for x in tree_leaves((args, kwargs)) if self.is_known(x)]
        self.full = self.full or any(_unit(x) != self._memory[_storage(x)].unit for x in given)
        if self.full or func.overloadpacket in _VIEWED_IN_PLACE or not given:
            return False
        outputs = [y for y in tree_leaves(result) if is_numeric(y)]
        if func._schema.is_mutable:
            written = [x for x in _written(func, args, kwargs) if is_numeric(x)]
            places = {_storage(x) for x in written}
            outputs = written + [y for y in outputs if _storage(y) not in places]
        elif all(self.is_known(y) for y in outputs):  # views
            return False
        found = self._rules.numbers(func, args, kwargs, outputs)
        for y, numbers in zip(outputs, found, strict=True):
            self.write(y, numbers)
        return all(numbers.all() for numbers in found)

    @contextlib.contextmanager
    def checking(self, functions: Iterable[type]) -> Iterator[None]:
        """Takes the forward of each ``autograd.Function`` for one operation that is not known, unless its backward is
        the derivative of what its operations compute."""

        def checked(cls: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
            exact: list[bool] = []  # of the first call

            def run(*args: Any, **kwargs: Any) -> Any:
                given = [] if self._hidden else [x for x in tree_leaves((args, kwargs)) if self.is_known(x)]
                if not given:
                    return forward(*args, **kwargs)
                with _Leaving() as leaving:
                    result = forward(*args, **kwargs)
                outputs = [y for y in tree_leaves(result) if is_numeric(y)]
                if leaving.seen or not all(map(self.is_known, outputs)):
                    exact[:] = [False]
                if not exact:
                    self._hidden = True
                    exact.append(not kwargs and is_derivative(cls, detached(args[takes_context(cls) :])))
                    self._hidden = False
                if not exact[0]:
                    for y, numbers in zip(outputs, self._rules.anything(given, {}, outputs), strict=True):
                        self.write(y, numbers)
                return result

            return run

        with replaced(functions, "forward", checked):
            yield

    def is_known(self, x: Any) -> bool:
        """Has a tensor been written to, but for constants?"""
        return is_numeric(x) and x.layout is torch.strided and _storage(x) in self._memory

    def numbers(self, x: Tensor) -> Tensor:
        """The numbers of the elements of x, or of their real and imaginary parts ``[*x, 2]``."""
        if not self.is_known(x):
            return torch.zeros((*x.shape, 2) if x.is_complex() else x.shape, dtype=torch.int64)
        return _as_strided(self._memory[_storage(x)].numbers, x)

    def is_constant(self, x: Tensor) -> Tensor:
        """Which elements of a tensor depend neither on x nor on what f captures and a gradient is wanted in?"""
        constant = (self.numbers(x) == 0).reshape(*x.shape, 1 + x.is_complex()).all(-1)
        if self._captured:
            constant &= self._captured.is_constant(x)
        return constant & (not self.full)

    def write(self, y: Tensor, numbers: Tensor) -> None:
        """Gives a tensor its numbers, one for each element or ``[*y, 2]``."""
        if y.layout is not torch.strided:
            self.full = self.full or bool(numbers.any())
            return
        key, size = _storage(y), y.untyped_storage().nbytes() // _unit(y)
        if key not in self._memory:
            if len(self._memory) >= self._many:
                self._memory = {k: m for k, m in self._memory.items() if not m.storage.expired()}
                self._many = max(_MANY, 2 * len(self._memory))
            reference = StorageWeakRef(y.untyped_storage())  # while it is there, no other storage has the key
            self._memory[key] = _Memory(reference, _unit(y), torch.zeros(size, dtype=torch.int64))
        if len(self._memory[key].numbers) != size:  # it was resized
            self.full = True
            return
        if y.is_complex() and numbers.dim() == y.dim():
            numbers = numbers.unsqueeze(-1)
        _as_strided(self._memory[key].numbers, y).copy_(numbers)

    def results(
        self,
        count: int,
        rows: Array,
        members: Array,
        couples: bool = False,
        factors: tuple[Array, Array, Array] | None = None,
    ) -> Array:
        """The numbers of results, which depend on ``members`` by ``rows``."""
        self._size += max(count, len(members))
        kept = members != 0
        if not kept.all():
            rows, members = rows[kept], members[kept]
        result = np.zeros(count, np.int64)
        if not couples and factors is None and (rows[1:] > rows[:-1]).all():  # multiples of one number each
            result[rows] = members
            return result
        result[rows] = self._end + rows
        self.steps.append(_Step(slice(self._end, self._end + count), rows, members, couples, factors))
        self._end += count
        return result

    def pairs(self, y: Any, most: float) -> Array | None:
        """The keys i n + j of the pattern, sorted; None if there are too many."""
        if self.full:
            return None
        alive, used = self._needed(y)
        sets, most_handled = _Sets(self.n), self._share * self.of_rows
        of = np.zeros(self._end, np.int64)  # the set of each number
        of[: self.n + 1] = np.arange(self.n + 1)
        whole, met = [np.zeros(0, np.int64)], [np.zeros((2, 0), np.int64)]
        for step in self.steps:
            if sets.handled > most_handled:
                return None
            wanted = used[step.results] | alive[step.results] if step.couples else used[step.results]
            kept = wanted[step.rows]
            of[step.results] = sets.unions(step.rows[kept], of[step.members[kept]], len(wanted))
            if step.couples:
                whole.append(unique(of[step.results][alive[step.results]]))
            if step.factors:
                rows, a, b = step.factors
                kept = alive[step.results][rows]
                met.append(_ordered(of[a[kept]], of[b[kept]]))
        a, b = _ordered(*np.concatenate(met, 1))
        coupled = unique(np.concatenate([*whole, a[a == b]]))
        if sets.sizes(coupled).max(initial=0) > min(most, self.n - 1):
            return None
        if sets.handled + sets.sizes(coupled) @ sets.sizes(coupled) > most_handled:
            return None
        return self._keys(sets, np.append(coupled, a[a != b]), np.append(coupled, b[a != b]), most)

    @property
    def of_rows(self) -> float:
        """The elements that all rows of the Hessian are computed from, about."""
        return self.n * self._size

    def _needed(self, y: Any) -> tuple[Array, Array]:
        """Which numbers does y depend on, and of which are the sets wanted?"""
        alive, used = np.zeros(self._end, bool), np.zeros(self._end, bool)
        if self.is_known(y):
            alive[self.numbers(y).numpy().ravel()] = True
        for step in reversed(self.steps):
            here, wanted = alive[step.results], used[step.results]
            alive[step.members[here[step.rows]]] = True
            used[step.members[(wanted | here if step.couples else wanted)[step.rows]]] = True
            if step.factors:
                rows, *factors = step.factors
                for factor in factors:
                    used[factor[here[rows]]] = True
        return alive, used

    def _keys(self, sets: _Sets, a: Array, b: Array, most: float) -> Array | None:
        """The keys of all pairs of an element of a set in a and one of the set in b; None if there are too many."""
        n, limit = self.n, most * self.n
        if n * n > min(_MARKED, 8 * int(sets.sizes(a) @ sets.sizes(b))):
            keys = np.zeros(0, np.int64)
            for chunk in sets.products(a, b):
                keys = unique(np.concatenate([keys, unique(chunk)]))
                if len(keys) > limit:
                    return None
            i, j = np.divmod(keys, max(1, n))
            keys = unique(np.concatenate([keys, j * n + i]))
            return keys if len(keys) <= limit else None
        table = np.zeros((n, n), bool)  # marking is quicker than sorting
        for chunk in sets.products(a, b):
            table.ravel()[chunk] = True
        table |= table.T
        return np.flatnonzero(table) if most == n or np.count_nonzero(table) <= limit else None


class _Captured(_Tape):
    """A tape of what depends on captured tensors that require a gradient: where one is 0, derivatives of the Hessian in
    it may not be."""

    def __init__(self) -> None:
        super().__init__(torch.empty(0))

    def meet(self, given: Iterable[Any]) -> None:
        """Takes those that require a gradient for captured, with all that shares their memory."""
        for x in given:
            if is_numeric(x) and x.requires_grad and x.layout is torch.strided and not self.is_known(x):
                numbers = torch.ones(x.untyped_storage().nbytes() // _unit(x), dtype=torch.int64)
                self._memory[_storage(x)] = _Memory(StorageWeakRef(x.untyped_storage()), _unit(x), numbers)


class _Sets:
    """Sets of elements of x: number 0 is empty, 1 to n have one element each, and others are unions of them."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._sizes, self._columns = np.ones(n + 1, np.int64), np.arange(n)
        self._sizes[0] = 0
        self.handled = 0  # elements
        self._count, self._end = n + 1, n  # how much of the arrays is in use
        self._starts = np.cumsum(self._sizes) - self._sizes

    def sizes(self, sets: Array) -> Array:
        sizes: Array = self._sizes[sets]
        return sizes

    def elements(self, sets: Array) -> tuple[Array, Array]:
        """All elements of each given set: where in ``sets`` it stands, and the elements."""
        sizes = self._sizes[sets]
        which = np.repeat(np.arange(len(sets)), sizes)
        return which, self._columns[np.arange(len(which)) + (self._starts[sets] - np.cumsum(sizes) + sizes)[which]]

    def unions(self, rows: Array, members: Array, count: int) -> Array:
        """For each of ``count`` rows the number of the union of its members."""
        result = np.zeros(count, np.int64)
        kept = members != 0
        rows, members = rows[kept], members[kept]
        if not (rows[1:] > rows[:-1]).all():
            rows, members = np.divmod(unique(rows * self._count + members), self._count)
        size = np.bincount(rows, minlength=count)
        of_two = size[rows] == 2
        a, b = members[of_two].reshape(-1, 2).T
        pairs, place = np.unique(a * self._count + b, return_inverse=True)  # rows of one pair have one union
        of_more = size[rows] > 2
        more, group = np.flatnonzero(size > 2), np.zeros(count, np.int64)
        group[more] = len(pairs) + np.arange(len(more))
        groups = np.concatenate([np.repeat(np.arange(len(pairs)), 2), group[rows[of_more]]])
        parts = np.concatenate([np.stack(np.divmod(pairs, self._count), 1).ravel(), members[of_more]])
        unions = self._merged(len(pairs) + len(more), groups, parts)
        alone = size[rows] == 1
        result[rows[alone]] = members[alone]
        result[rows[of_two][::2]] = unions[place]
        result[more] = unions[len(pairs) :]
        return result

    def _merged(self, count: int, groups: Array, parts: Array) -> Array:
        """The numbers of new sets, or of the largest part where that is the union."""
        which, columns = self.elements(parts)
        self.handled += len(which)
        width = int(columns.max(initial=0)) + 1
        row, column = np.divmod(unique(groups[which] * width + columns), width)
        sizes = np.bincount(row, minlength=count)
        part_sizes = self._sizes[parts]
        by_size = np.argsort(part_sizes, kind="stable")
        largest = np.zeros(count, np.int64)
        largest[groups[by_size]] = parts[by_size]
        fresh = sizes > self._sizes[largest]
        largest[fresh] = self._count + np.arange(np.count_nonzero(fresh))
        self._add(sizes[fresh], column[fresh[row]])
        return largest

    def _add(self, sizes: Array, columns: Array) -> None:
        starts = self._end + np.cumsum(sizes) - sizes
        self._sizes = _appended(self._sizes, self._count, sizes)
        self._starts = _appended(self._starts, self._count, starts)
        self._columns = _appended(self._columns, self._end, columns)
        self._count += len(sizes)
        self._end += len(columns)

    def products(self, a: Array, b: Array) -> Iterator[Array]:
        """The keys i n + j of the elements i of each set in a and j of the set in b, in chunks."""
        pairs = np.cumsum(self._sizes[a] * self._sizes[b])
        ends = np.searchsorted(pairs, np.arange(_CHUNK, pairs.max(initial=0) + _CHUNK, _CHUNK))
        for start, end in itertools.pairwise(sorted({0, *np.minimum(ends + 1, len(a)).tolist()})):
            which, i = self.elements(a[start:end])
            which, j = self.elements(b[start:end][which])
            yield i[which] * self._n + j


def _appended(array: Array, used: int, values: Array) -> Array:
    """``array[:used]`` and the values, in memory that doubles when it is full."""
    if used + len(values) > len(array):
        array = np.concatenate([array[:used], np.zeros(used + len(values), array.dtype)])
    array[used : used + len(values)] = values
    return array


def _ordered(a: Array, b: Array) -> Array:
    """The unordered pairs of a and b that differ, ``[2, pairs]``, without those of an empty set."""
    low, high = np.minimum(a, b), np.maximum(a, b)
    width = int(high.max(initial=0)) + 1
    kept = low != 0
    return np.stack(np.divmod(unique(low[kept] * width + high[kept]), width))


def _written(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that an operation writes to."""
    given = [*zip(func._schema.arguments, args, strict=False)]
    given += [(a, kwargs[a.name]) for a in func._schema.arguments if a.name in kwargs]
    return tree_leaves([value for a, value in given if a.alias_info is not None and a.alias_info.is_write])


def _storage(x: Tensor) -> int:
    key: int = x.untyped_storage()._cdata
    return key


def _unit(x: Tensor) -> int:
    """The bytes of a real number: a complex one is two of them, so that views of either kind share their places."""
    return x.element_size() // (2 if x.is_complex() else 1)


def _as_strided(numbers: Tensor, x: Tensor) -> Tensor:
    """The view of the numbers of a storage that x is of the storage, ``[*x, 2]`` of complex numbers."""
    if x.is_complex():
        return numbers.as_strided((*x.shape, 2), (*(2 * s for s in x.stride()), 1), 2 * x.storage_offset())
    return numbers.as_strided(x.shape, x.stride(), x.storage_offset())


aten = torch.ops.aten
_READ_BY_OTHERS = frozenset("numpy __array__ tolist item data_ptr untyped_storage __dlpack__ __float__".split())
_VIEWED_IN_PLACE = {aten.squeeze_, aten.unsqueeze_, aten.t_, aten.transpose_, aten.as_strided_, aten.detach_}
