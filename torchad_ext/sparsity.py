"""The sparsity of Hessians: patterns by propagation of index sets, star colouring, and direct recovery.

The pattern follows A. Walther, Computing sparse Hessians with automatic differentiation, ACM Transactions on
Mathematical Software 34 (2008): each element of each intermediate has the set of the elements of x that it depends on,
and an operation that is not linear couples what meets in it. Star colouring and direct recovery: A. Gebremedhin,
F. Manne, A. Pothen, What color is your Jacobian? Graph coloring for computing derivatives, SIAM Review 47 (2005);
A. Gebremedhin, A. Tarafdar, F. Manne, A. Pothen, New acyclic and star coloring algorithms with application to computing
Hessians, SIAM Journal on Scientific Computing 29 (2007).
"""

from __future__ import annotations

import contextlib
import functools
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from .composed import composing

aten = torch.ops.aten

_LIMIT = 2**25  # pairs; a pattern with more on the way is taken to be full
_ROUNDINGS = 64  # by how much a random product may exceed those that are measured


class SparsityError(RuntimeError):
    """The Hessian has entries outside of the sparsity pattern that was given or found."""


def hessian_sparsity(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    r"""The sparsity pattern of the Hessian of f at x, from one evaluation of f.

    f is run once, operation by operation (at the level of ATen), and each element of each result has the set of the
    elements of ``x`` that it depends on. Linear operations unite these sets, views and indexing move them, elementwise
    functions couple what each element depends on, products what their factors depend on. An operation that is not known
    couples everything it reads. So the pattern may be too large, and is never too small for an f that is made of
    PyTorch's operations; it holds where f takes the branches that it takes at ``x``. Complex numbers on the way depend
    on what both their parts depend on.

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
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"torchad_ext.hessian_sparsity takes a floating-point tensor for x; got {got}")
    keys, n = found(functools.partial(_checked, f), x), x.numel()
    if keys is None:
        keys = np.arange(n**2)
    ones = torch.ones(len(keys), dtype=torch.bool, device=x.device)
    return sparse(torch.from_numpy(keys).to(x.device), ones, n)


def _checked(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    y = composing(f)(x)
    if not isinstance(y, Tensor) or not y.is_floating_point():
        got = f"{y.dtype}" if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"torchad_ext.hessian_sparsity takes floating-point tensors for the value of f; got {got}")
    if y.dim():
        raise ValueError(
            f"torchad_ext.hessian_sparsity takes f with a value without dimensions; got shape {list(y.shape)}. Sum it"
        )
    return y


def found(f: Callable[[Tensor], Tensor], x: Tensor, share: float = 1.0) -> np.ndarray | None:
    """The keys i n + j of the pattern at x, sorted; None if it is full, or found to have more than a share of n^2."""
    with torch.enable_grad():  # f may take gradients itself
        point = x.detach().requires_grad_().clone()
        propagation = _Propagation(point, share)
        with propagation:
            f(point)
    return propagation.pairs()


def _unique(keys: np.ndarray) -> np.ndarray:
    """Like ``np.unique``, whose hash table takes twice to eight times as long; quick where nothing is to be done."""
    if (keys[1:] > keys[:-1]).all():
        return keys
    end = int(keys.max()) + 1
    if end < 8 * len(keys):  # marking is quicker than sorting
        present = np.zeros(end, bool)
        present[keys] = True
        return np.flatnonzero(present)
    keys = np.sort(keys)
    first: np.ndarray = keys[np.concatenate([[True], keys[1:] != keys[:-1]])]
    return first


class _Sets:
    """A set of columns for each of ``size`` rows, as two arrays that are sorted by row and column."""

    def __init__(self, size: int, rows: np.ndarray, columns: np.ndarray) -> None:
        self.size, self.rows, self.columns = size, rows, columns

    @functools.cached_property
    def counts(self) -> np.ndarray:
        return np.bincount(self.rows, minlength=self.size)

    def entries(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each given row all its columns: where in ``rows`` it stands, and the columns."""
        counts = self.counts[rows]
        ends = np.cumsum(counts)
        starts = np.cumsum(self.counts) - self.counts
        which = np.repeat(np.arange(len(rows)), counts)
        return which, self.columns[np.arange(len(which)) + (starts[rows] - ends + counts)[which]]

    def taken(self, rows: np.ndarray, size: int, targets: np.ndarray | None = None) -> _Sets:
        """The sets of given rows, those with one target united."""
        which, columns = self.entries(rows)
        return _united(size, [which if targets is None else targets[which]], [columns])


def _united(size: int, rows: Sequence[np.ndarray], columns: Sequence[np.ndarray]) -> _Sets:
    row, column = np.concatenate(rows), np.concatenate(columns)
    width = int(column.max(initial=0)) + 1
    return _Sets(size, *np.divmod(_unique(row * width + column), width))


class _Propagation(TorchDispatchMode):
    """Runs operations, keeps for each element in memory what elements of x it depends on, and collects the pairs that
    meet. Views share memory, so that they and writes in place need no rules."""

    def __init__(self, x: Tensor, share: float) -> None:
        super().__init__()
        self.n = x.numel()
        self.most = share * self.n**2
        self.full = False
        self._known: dict[int, tuple[Tensor, _Sets]] = {}  # by storage; the tensor keeps it
        self._pairs: list[np.ndarray] = []
        each = np.arange(self.n)
        self._write(x, _Sets(self.n, each, each))

    def pairs(self) -> np.ndarray | None:
        """The keys i n + j of the pattern, sorted; None if there are too many."""
        if self.full:
            return None
        keys = np.concatenate([np.empty(0, np.int64), *self._pairs])
        i, j = np.divmod(keys, max(1, self.n))
        keys = _unique(np.concatenate([keys, j * self.n + i]))
        return keys if len(keys) <= self.most else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = [x for x in tree_leaves((args, kwargs)) if _is_numeric(x) and self._is_known(x)]
        self.full = self.full or any(_unit(x) != _unit(self._known[_storage(x)][0]) for x in given)
        if self.full or func.overloadpacket in _VIEWED_IN_PLACE or not given:
            return result
        outputs = [y for y in tree_leaves(result) if _is_numeric(y)]
        if func._schema.is_mutable:
            outputs = [
                x
                for x, argument in zip(args, func._schema.arguments, strict=False)
                if isinstance(x, Tensor) and argument.alias_info is not None and argument.alias_info.is_write
            ]
            if any(argument.is_out for argument in func._schema.arguments):
                self.full = True
        elif all(self._is_known(y) for y in outputs):  # views
            return result
        sets = self._rule(func)(func, args, kwargs, outputs)
        for y, dependence in zip(outputs, sets or self._anything(args, kwargs, outputs), strict=True):
            self._write(y, dependence)
        return result

    def _is_known(self, x: Tensor) -> bool:
        return x.layout is torch.strided and _storage(x) in self._known

    def of(self, x: Any) -> _Sets | None:
        """The sets of the elements of x, None for a constant."""
        if not _is_numeric(x) or not self._is_known(x):
            return None
        sets, places = self._known[_storage(x)][1], _places(x)
        if places is None:
            return sets
        return sets.taken(places, x.numel(), np.arange(len(places)) // 2 if x.is_complex() else None)

    def _write(self, y: Tensor, sets: _Sets) -> None:
        if y.layout is not torch.strided:
            self.full = True
            return
        key, places = _storage(y), _places(y)
        if places is not None:
            size = y.untyped_storage().nbytes() // _unit(y)
            if y.is_complex():
                sets = sets.taken(np.arange(len(places)) // 2, len(places))
            rows, columns = places[sets.rows], sets.columns
            if key in self._known:
                old = self._known[key][1]
                replaced = np.zeros(size, bool)
                replaced[places] = True
                kept = ~replaced[old.rows]
                rows, columns = np.append(rows, old.rows[kept]), np.append(columns, old.columns[kept])
            sets = _united(size, [rows], [columns])
        self._known[key] = y, sets

    def _rule(self, func: Any) -> Callable[..., list[_Sets] | None]:
        op = _functional(func)
        if op in _CONSTANTS:
            return lambda _func, _args, _kwargs, outputs: [_nothing(y) for y in outputs]
        if op in _MOVES:
            return self._move
        if op in _PRODUCTS:
            return self._product
        if op in _ALONG_DIM or torch.Tag.reduction in func.tags:
            return self._reduction
        if op in _LINEAR or op is aten.polar or torch.Tag.pointwise in func.tags:
            return self._pointwise
        return lambda *_: None

    def couple(self, a: _Sets, b: _Sets) -> None:
        """What a and b have in a row meets: the pairs of one from each."""
        if self.full:
            return
        total = int((a.counts * b.counts).sum())
        if total > _LIMIT or ((a.counts == self.n) & (b.counts == self.n)).any():
            self.full = True
            return
        which, columns = b.entries(a.rows)
        keys = _unique(a.columns[which] * self.n + columns)
        self.full = len(keys) > self.most
        self._pairs.append(keys)

    def _spread(self, x: Any, shape: Sequence[int]) -> _Sets | None:
        """The sets of x, broadcast."""
        sets = self.of(x)
        if sets is None or x.shape == torch.Size(shape):
            return sets
        rows = np.broadcast_to(np.arange(x.numel()).reshape(x.shape), tuple(shape)).ravel()
        return sets.taken(rows, len(rows))

    def _pointwise(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[_Sets] | None:
        op, shape = _functional(func), outputs[0].shape
        read = args[1:2] if op in (aten.copy, aten.fill) else (args, kwargs)
        given = [self._spread(x, shape) for x in tree_leaves(read)]
        sets = [s for s in given if s]
        if not sets:
            return [_nothing(y) for y in outputs]
        union = sets[0] if len(sets) == 1 else _union(sets)
        if op is aten.mul and len(sets) == 2:
            self.couple(*sets)
        elif op not in _LINEAR and not (op is aten.mul or (op is aten.div and not given[1])):
            self.couple(union, union)
        return [union] * len(outputs)

    def _move(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[_Sets]:
        """What only moves elements moves their numbers: the operation itself is run on them, 0 being a constant."""
        moved: list[_Sets] = []
        offset = 1

        def numbers(x: Any) -> Any:
            nonlocal offset
            if not _is_numeric(x):
                return x
            sets = self.of(x)
            if sets is None:
                return torch.zeros(x.shape, dtype=torch.int64, device=x.device)
            moved.append(sets)
            offset += x.numel()
            return torch.arange(offset - x.numel(), offset, device=x.device).view(x.shape)

        if func.overloadpacket is aten.constant_pad_nd:
            args = args[:2]  # the number that it pads with is a constant
        results = tree_leaves(func(*tree_map(numbers, args), **tree_map(numbers, kwargs)))
        starts = np.cumsum([0, *(s.size for s in moved)])[:-1]
        everything = _Sets(
            offset,
            np.concatenate([s.rows + start + 1 for s, start in zip(moved, starts, strict=True)]),
            np.concatenate([s.columns for s in moved]),
        )
        return [everything.taken(y.cpu().numpy().ravel(), y.numel()) for y in results]

    def _reduction(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[_Sets] | None:
        """Elements along some dimensions meet."""
        x, (y, *more) = args[0], outputs
        sets = self.of(x)
        names = [argument.name for argument in func._schema.arguments]
        bound = {**dict(zip(names, args, strict=False)), **kwargs}
        dims = bound.get("dim")
        dims = range(x.dim()) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
        kept = [1 if i in {d % x.dim() for d in dims} else size for i, size in enumerate(x.shape)]
        groups = np.arange(int(np.prod(kept))).reshape(kept)
        if sets is None or more or x.numel() == 0:
            return None
        target = np.broadcast_to(groups, tuple(x.shape)).ravel()
        united = _united(groups.size, [target[sets.rows]], [sets.columns])
        op = func.overloadpacket
        if op not in _LINEAR:
            self.couple(united, united)
        if op in _ALONG_DIM:
            along = np.broadcast_to(groups, tuple(y.shape)).ravel()
            return [united.taken(along, y.numel())]
        return [united] if y.numel() == groups.size else None

    def _product(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[_Sets] | None:
        """Sums of products of the rows of a with the columns of b; zeros in a constant factor count."""
        (y,), (*bias, a, b) = outputs, args[:3]
        shape_a = (*[1] * (3 - a.dim()), *a.shape)
        shape_b = (1, b.shape[0], 1) if b.dim() == 1 else (*[1] * (3 - b.dim()), *b.shape)
        batch, m, k = shape_a
        p = shape_b[2]
        if batch * m * k * p > _LIMIT:
            return None
        used = np.ones((batch, m, k, p), dtype=bool)
        for factor, axis, shape in ((a, 3, shape_a), (b, 1, shape_b)):
            if self.of(factor) is None:
                used &= np.expand_dims((factor != 0).cpu().numpy().reshape(shape), axis)
        places = np.nonzero(used.ravel())[0]
        target = np.arange(batch * m * p).reshape(batch, m, 1, p)
        rows_a = np.arange(a.numel()).reshape(*shape_a, 1)
        rows_b = np.arange(b.numel()).reshape(shape_b[0], 1, k, p)
        rows_a, rows_b, target = (np.broadcast_to(v, used.shape).ravel()[places] for v in (rows_a, rows_b, target))
        sets_a, sets_b = self.of(a), self.of(b)
        if sets_a and sets_b:
            self.couple(sets_a.taken(rows_a, len(rows_a)), sets_b.taken(rows_b, len(rows_b)))
        parts = [s.taken(r, y.numel(), target) for s, r in ((sets_a, rows_a), (sets_b, rows_b)) if s]
        parts += [s for s in (self._spread(term, y.shape) for term in bias) if s]
        return [_union(parts)]

    def _anything(self, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[_Sets]:
        """Everything that is read couples with everything."""
        columns = _unique(np.concatenate([s.columns for s in map(self.of, tree_leaves((args, kwargs))) if s]))
        union = _Sets(1, np.zeros_like(columns), columns)
        self.couple(union, union)
        return [union.taken(np.zeros(y.numel(), np.int64), y.numel()) for y in outputs]


def _is_numeric(x: Any) -> bool:
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


def _storage(x: Tensor) -> int:
    key: int = x.untyped_storage()._cdata
    return key


def _unit(x: Tensor) -> int:
    """The bytes of a real number: a complex one is two of them, so that views of either kind share their places."""
    return x.element_size() // (2 if x.is_complex() else 1)


def _places(x: Tensor) -> np.ndarray | None:
    """Where the real numbers of x lie in its storage, None if x is real and all of it in order."""
    size = x.untyped_storage().nbytes() // x.element_size()
    if x.is_contiguous() and x.numel() == size and not x.is_complex():
        return None
    places: np.ndarray = torch.arange(size).as_strided(x.shape, x.stride(), x.storage_offset()).numpy().ravel()
    return (2 * places[:, None] + np.arange(2)).ravel() if x.is_complex() else places


def _functional(func: Any) -> Any:
    """The operation, that of which ``func`` is the variant in place."""
    op = func.overloadpacket
    namespace, name = func._schema.name.split("::")
    in_place = namespace == "aten" and name.endswith("_") and func._schema.is_mutable
    return getattr(aten, name[:-1], op) if in_place else op


def _nothing(y: Tensor) -> _Sets:
    return _Sets(y.numel(), *np.empty((2, 0), np.int64))


def _union(sets: Sequence[_Sets]) -> _Sets:
    return _united(sets[0].size, [s.rows for s in sets], [s.columns for s in sets])


_LINEAR = {
    *(aten.add, aten.sub, aten.rsub, aten.neg, aten.positive, aten.sum, aten.mean, aten.cumsum),
    *(aten.clone, aten.copy, aten.fill, aten._to_copy, aten.complex, aten._conj_physical),
    *(aten._fft_r2c, aten._fft_c2r, aten._fft_c2c),
}
_ALONG_DIM = {
    *(aten.cumsum, aten.cumprod, aten.logcumsumexp, aten._softmax, aten._log_softmax),
    *(aten._fft_r2c, aten._fft_c2r, aten._fft_c2c),
}
_PRODUCTS = {aten.mm, aten.bmm, aten.mv, aten.dot, aten.addmm, aten.addmv, aten.baddbmm}
_MOVES = {
    *(aten.cat, aten.stack, aten.flip, aten.roll, aten.repeat, aten.index, aten.index_select, aten.gather),
    *(aten.diag_embed, aten.constant_pad_nd, aten.tril, aten.triu, aten.slice_scatter, aten.select_scatter),
    *(aten._unsafe_view, aten._reshape_copy, aten.where),
    *(aten.slice_backward, aten.select_backward, aten.diagonal_backward),
}
_CONSTANTS = {
    *(aten.zero, aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like, aten.rand_like, aten.randn_like),
    *(aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty, aten.new_empty_strided),
}
_VIEWED_IN_PLACE = {aten.squeeze_, aten.unsqueeze_, aten.t_, aten.transpose_, aten.as_strided_, aten.detach_}


@dataclass(frozen=True)
class Colouring:
    """A star colouring of a symmetric pattern, and where each entry of the matrix stands among the products.

    Attributes:
        colours: the colour of each column.
        count: of colours.
        keys: i n + j for each entry (i, j), sorted.
        places: of each entry in the products, flattened.
    """

    colours: Tensor
    count: int
    keys: Tensor
    places: Tensor

    @property
    def full(self) -> bool:
        return len(self.keys) == len(self.colours) ** 2

    def seeds(self, dtype: torch.dtype) -> Tensor:
        """The sum of the unit vectors of each colour, ``[count, n]``."""
        seeds = torch.zeros(self.count, len(self.colours), dtype=dtype, device=self.colours.device)
        return seeds.scatter_(0, self.colours.unsqueeze(0), 1) if self.count else seeds

    def recover(self, products: Tensor) -> Tensor:
        """The entries of H from its products with the seeds, ``[count, n]``."""
        return products.reshape(-1)[self.places]

    def check(self, products: Tensor, v: Tensor, again: Callable[[Tensor], Tensor], found: bool) -> None:
        """Raises unless the last of the products, H v, is that of the entries, but for rounding. What rounding does is
        seen where products are not linear: ``again`` takes the seeds and random sums of them, by plain reverse mode. A
        row whose entries are inf or nan is not checked."""
        n, eps = len(v), torch.finfo(v.dtype).eps
        i, j = self.keys // n, self.keys % n
        products, product = products.detach()[:-1], products.detach()[-1]
        values = self.recover(products)
        result = torch.zeros_like(v).index_add_(0, i, values * v[j])

        def fits(noise: Tensor | float) -> bool:
            bound = torch.zeros_like(v).index_add_(0, i, (_ROUNDINGS * eps * values.abs() + noise) * v[j].abs())
            return not (result.isfinite() & ~((result - product).abs() <= bound + noise)).any()

        if fits(0.0):
            return
        generator = torch.Generator(v.device).manual_seed(0)
        sums = torch.randn(8, self.count, generator=generator, dtype=v.dtype, device=v.device)
        seeds = self.seeds(v.dtype)
        lost = (again(sums @ seeds) - sums @ again(seeds)).detach().abs()
        if fits(_ROUNDINGS * torch.where(lost.isfinite(), lost, 0.0).max()):
            return
        source, remedy = "given", "Give a larger pattern, or sparsity=None"
        if found:
            source = "found, which lacks them because f has another derivative than its operations"
            remedy = "Leave sparsity out, or give a pattern"
        raise SparsityError(
            f"torchad_ext.hessian: the Hessian has entries outside of the sparsity pattern of {len(i)} entries that "
            f"was {source}: a random Hessian-vector product differs from that of f. {remedy}"
        )

    def matrix(self, values: Tensor, shape: torch.Size, layout: torch.layout) -> Tensor:
        n = len(self.colours)
        if layout is torch.sparse_coo:
            return sparse(self.keys, values, n)
        return _zeros(n * n, values).index_put_((self.keys,), values).view((*shape, *shape))


def sparse(keys: Tensor, values: Tensor, n: int) -> Tensor:
    indices = torch.stack([keys // max(1, n), keys % max(1, n)])
    return torch.sparse_coo_tensor(indices, values, (n, n), is_coalesced=True, check_invariants=False)


def _zeros(count: int, like: Tensor) -> Tensor:
    if like.device.type != "cpu" or not count:
        return like.new_zeros(count)
    # Of pages that are never written the operating system keeps one, of zeros; torch.zeros writes all, and so does
    # np.zeros where it gets huge pages.
    with contextlib.suppress(OSError):  # PyTorch says it when there is no memory
        pages = mmap.mmap(-1, count * like.element_size(), flags=mmap.MAP_PRIVATE)
        return torch.frombuffer(pages, dtype=like.dtype)
    return like.new_zeros(count)


def colour(pattern: Any, x: Tensor) -> Colouring:
    """The colouring of a pattern ``[n, n]`` of the Hessian at x; its transpose and the diagonal are added."""
    n = x.numel()
    if not isinstance(pattern, Tensor):
        raise ValueError(f'torchad_ext.hessian takes "auto" or a bool tensor for sparsity; got {pattern!r}')
    if pattern.dtype != torch.bool or pattern.shape != (n, n):
        raise ValueError(
            f"torchad_ext.hessian takes a bool tensor of shape [{n}, {n}] for sparsity, x having {n} elements; got "
            f"{pattern.dtype} of shape {list(pattern.shape)}"
        )
    if pattern.layout is torch.strided:
        pattern = pattern.to_sparse()
    pattern = pattern.to_sparse_coo().coalesce()
    i, j = pattern.indices()[:, pattern.values()].cpu().numpy()
    return _colouring(np.concatenate([i * n + j, j * n + i]), x)


def found_colouring(f: Callable[[Tensor], Tensor], x: Tensor) -> Colouring | None:
    """The colouring of the pattern at x, None if it has more than half of the entries, which saves too few products."""
    keys = found(f, x, share=0.5)
    return None if keys is None else _colouring(keys, x)


def _colouring(keys: np.ndarray, x: Tensor) -> Colouring:
    """That of a symmetric pattern; the diagonal is added."""
    n = x.numel()
    keys = _unique(np.concatenate([keys, np.arange(n) * (n + 1)]))
    colours, count, places = _coloured(n, keys.tobytes())
    return Colouring(colours.to(x.device), count, torch.from_numpy(keys).to(x.device), places.to(x.device))


@functools.lru_cache(maxsize=8)
def _coloured(n: int, keys: bytes) -> tuple[Tensor, int, Tensor]:
    """The colours of a symmetric pattern with its diagonal, their number, and the place of each entry."""
    i, j = np.divmod(np.frombuffer(keys, np.int64), max(1, n))
    width = int((j - i).max(initial=0))
    if len(i) == (2 * width + 1) * n - width * (width + 1):  # a full band
        colours = np.arange(n) % (2 * width + 1)
    else:
        colours = _star_colouring(n, i, j)
    count = int(colours.max(initial=-1)) + 1
    # H_ij is read in the product of the colour of j, unless another neighbour of i has that colour.
    sharing = np.bincount(i * count + colours[j], minlength=n * count)
    alone = sharing[i * count + colours[j]] == 1
    places = np.where(alone, colours[j] * n + i, colours[i] * n + j)
    return torch.from_numpy(colours), count, torch.from_numpy(places)


def _star_colouring(n: int, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Greedy star colouring, vertices of many neighbours first (Gebremedhin et al. 2007, algorithm 4.1)."""
    others = i != j
    degrees = np.bincount(i[others], minlength=n)
    ends = np.cumsum(degrees)
    columns = j[others].tolist()
    neighbours = [columns[end - degree : end] for end, degree in zip(ends.tolist(), degrees.tolist(), strict=True)]
    colours = [-1] * n
    for v in np.argsort(-degrees, kind="stable").tolist():
        forbidden: set[int] = set()
        for w in neighbours[v]:
            colour = colours[w]
            if colour < 0:  # v and what is beyond w will both be neighbours of w
                forbidden.update(colours[u] for u in neighbours[w])
                continue
            forbidden.add(colour)
            for u in neighbours[w]:  # a path v, w, u, t may not have two colours
                if colours[u] not in forbidden and any(colours[t] == colour for t in neighbours[u] if t != w):
                    forbidden.add(colours[u])
        colours[v] = next(c for c in range(n) if c not in forbidden)
    return np.array(colours, dtype=np.int64)
