"""Second derivatives as tools: Hessian-vector products, Jacobians, Hessians and their diagonals of any function.

Everything here is a number of pullbacks v -> v^T J through one graph, which is built once: that of f for its Jacobian,
that of its gradient for its Hessian. Rows are pulled back in batches. One random product by plain reverse mode checks
them (:mod:`torchad_ext._hessian.random_product`): the first time that a graph is met, and from then on as often as 4 %
of the time allow. Where it differs, rows are pulled back one by one, with a warning; with ``TORCHAD_EXT_STRICT=1`` it
is an error. Inside a transform of ``torch.func``, at a level of forward mode and while compiling, the graph is that of
``torch.func.vjp``, and nothing is checked.

A ``torch.autograd.Function`` of others may have a backward whose own derivative PyTorch silently takes for zero; its
first call is compared with finite differences, for which f is run once more
(:mod:`torchad_ext._autograd.foreign_functions`).

f runs with compositions in place of what PyTorch differentiates wrongly (:mod:`torchad_ext._forward.composed`), which
also says what the derivatives of a norm at 0 are.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from .._autograd.foreign_functions import COMPILED, check_functions
from .._autograd.graph import depends_on_others, foreign_nodes, graph_nodes, is_cut_off, is_own
from .._forward.composed import composing
from .._torch_state import in_forward_mode, transforms_active
from .batch_sizes import Largest, largest_in_graph, rows_at_once
from .curvature import Curvature, UnknownOperation
from .decompression import SparsityError, coloring, found_coloring
from .pattern import sparse
from .random_product import FastPath, RandomProduct, fast_path, report
from .unit_rows import UnitRows, dense_rows

Tensors = Sequence[Tensor]
Function = Callable[[Any], Any]
Chunks = Iterable[tuple[int, Tensors]]  # the number of the first row of each, and for each leaf of x [rows, *leaf]
Strategy = Literal["reverse-over-reverse", "forward-over-reverse"]

_STRATEGIES = ("reverse-over-reverse", "forward-over-reverse")
_MODES = ("reverse", "forward")
_SWEPT = 2**17  # of a batch of tangents, which stays in a cache
_UNIT_ROWS = 256  # in a batch as wide, from which on they are worth a dispatch in Python
_FEW = 3  # rows that are computed as quickly one by one
_LARGE = 2**16  # bytes of the largest tensor of a product, from which on it is computed as quickly by itself
_SWEPT_FROM, _SWEPT_BYTES = 24, 2**19  # coordinates, and bytes of all of them, that are worth what a sweep prepares


def hvp(f: Function, x: Any, v: Any) -> Any:
    r"""The Hessian-vector product :math:`H v`, :math:`H = \nabla^2 f(x)`, for the cost of a few gradients.

    The gradient's graph is pulled back along v (Pearlmutter, Fast exact multiplication by the Hessian, Neural
    Computation 1994): that is :math:`v^T H`, and H is symmetric wherever f is twice continuously differentiable.
    The product is differentiable again.

    Args:
        f: a function of one argument, ``x``, to a tensor without dimensions.
        x: a floating-point tensor, or a pytree of them (a tuple, a dict of parameters), which f takes as a whole.
        v: of the structure, shapes and dtypes of ``x``.

    Returns:
        The product, of the structure, shapes and dtypes of ``x``. Where f does not depend on ``x``, zeros.

    Raises:
        TypeError: ``x`` or the value of f holds something else than floating-point tensors.
        ValueError: f has a value with dimensions, or ``v`` does not fit ``x``.
        RuntimeError: f is not twice differentiable, or the backward of a ``torch.autograd.Function`` in it is not.

    Example:
        >>> x, v = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0])
        >>> hvp(lambda x: x[0] ** 2 * x[1], x, v)
        tensor([4., 2.])
    """
    return _hessian_product("hvp", f, x, v)


def vhp(f: Function, x: Any, v: Any) -> Any:
    r"""The vector-Hessian product :math:`v^T H`, :math:`H = \nabla^2 f(x)`: :func:`hvp`, since H is symmetric.

    Args:
        f: a function of one argument, ``x``, to a tensor without dimensions.
        x: a floating-point tensor, or a pytree of them, which f takes as a whole.
        v: of the structure, shapes and dtypes of ``x``.

    Returns:
        The product, of the structure, shapes and dtypes of ``x``; differentiable again.

    Raises:
        TypeError: ``x`` or the value of f holds something else than floating-point tensors.
        ValueError: f has a value with dimensions, or ``v`` does not fit ``x``.
        RuntimeError: f is not twice differentiable, or the backward of a ``torch.autograd.Function`` in it is not.

    Example:
        >>> x, v = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])
        >>> vhp(lambda x: x[0] ** 2 * x[1], x, v)
        tensor([2., 0.])
    """
    return _hessian_product("vhp", f, x, v)


def _hessian_product(name: str, f: Function, x: Any, v: Any) -> Any:
    at = _Point(name, f, x)
    return at.unflatten(_gradient(f, at).pull(at.like(v, "v")))


def jacobian(
    f: Function, x: Any, chunk_size: int | None = None, strategy: str | None = None, progress: bool = False
) -> Any:
    r"""The Jacobian :math:`J = \partial f / \partial x`, as ``torch.func.jacrev(f)(x)`` returns it.

    Args:
        f: a function of one argument, ``x``, to a tensor or a pytree of tensors.
        x: a floating-point tensor, or a pytree of them, which f takes as a whole.
        chunk_size: how many rows (columns, in forward mode) are computed at once. That many times the memory of one
            backward pass is needed. By default the largest tensor of a batch takes 2 MB, as for :func:`hessian`; 1
            computes them one by one without ``vmap``.
        strategy: ``"reverse"``, a pullback a row, or ``"forward"``, a pushforward a column, for which PyTorch has other
            formulas. By default reverse mode; where f has more than four times as many values as ``x``, columns by
            reverse mode of the pullback, which is linear in its cotangent.
        progress: show a progress bar.

    Returns:
        For a value of shape ``[*m]`` and x of shape ``[*n]`` a tensor ``[*m, *n]``; for pytrees the structure of the
        value, each leaf being of the structure of ``x``. Differentiable again; zeros where f does not depend on ``x``.

    Raises:
        TypeError: ``x`` or the value of f holds something else than floating-point tensors.
        ValueError: ``chunk_size`` or ``strategy`` is not one of the above.
        RuntimeError: f is not differentiable.

    Example:
        >>> jacobian(lambda x: torch.stack([x[0] * x[1], x[0] + x[1]]), torch.tensor([2.0, 3.0]))
        tensor([[3., 2.],
                [1., 1.]])
    """
    at = _Point("jacobian", f, x)
    chunk_size = _checked_chunk(at, chunk_size)
    _check_choice(at, strategy, _MODES)
    if strategy == "forward":
        return _by_columns(at, f, lambda: _value(f, at), chunk_size, progress)
    value = _value(f, at)
    if strategy is None and chunk_size != 1 and value.size > 4 * at.size:
        by_columns = value.by_columns(chunk_size, progress)
        if by_columns is not None:
            return by_columns
    return value.blocks(value.rows(chunk_size, progress))


def hessian(
    f: Function,
    x: Any,
    chunk_size: int | None = None,
    sparsity: Literal["auto"] | Tensor | None = None,
    strategy: Strategy | None = None,
    progress: bool = False,
    layout: torch.layout = torch.strided,
) -> Any:
    r"""The Hessian :math:`H = \nabla^2 f(x)`, as ``torch.func.hessian(f)(x)`` returns it.

    The graph of the gradient is built once, and rows of H are pulled back through it in batches. With ``sparsity`` the
    structurally orthogonal columns of H are computed together: as many Hessian-vector products as a star colouring of
    the pattern has colours, one for a diagonal H, 2b + 1 for one of half bandwidth b
    (:mod:`torchad_ext._hessian.coloring` has the sources).

    Args:
        f: a function of one argument, ``x``, to a tensor without dimensions. It may capture tensors that require a
            gradient. For a batch of points: ``torch.func.vmap(lambda x: hessian(f, x))(points)``.
        x: a floating-point tensor, or a pytree of them (a tuple, a dict of parameters for
            ``torch.func.functional_call``), which f takes as a whole.
        chunk_size: how many rows are computed at once. That many times the memory of one backward pass is needed,
            besides the result. By default the largest tensor of a batch, as f's graph tells it, takes 2 MB, or a 32nd
            of H up to 16 MB; where these hold fewer than eight rows, they are computed one by one. 1 computes them so
            without ``vmap``, which is the way for functions that ``vmap`` does not batch.
        sparsity: ``"auto"`` finds the pattern of H by :func:`hessian_sparsity`. For a strided result, all rows are
            computed as without ``sparsity`` where ``x`` has few elements, or the pattern too many entries for that to
            save time. A bool tensor ``[n, n]``, dense or sparse, n being the number of elements of ``x``, is taken as
            the pattern; its transpose and the diagonal are added. ``x`` is one tensor then, outside of transforms.
            While compiling all rows are computed.
        strategy: ``"reverse-over-reverse"``, the default: a pullback of the gradient a row.
            ``"forward-over-reverse"``: a pushforward of the gradient a column, which keeps less in memory and needs
            forward-mode formulas.
        progress: show a progress bar.
        layout: ``torch.strided``, or with ``sparsity`` ``torch.sparse_coo``.

    Returns:
        For x of shape ``[*n]`` a tensor ``[*n, *n]``; for a pytree its structure, each leaf being of that structure
        again. With ``layout=torch.sparse_coo`` a coalesced tensor ``[n, n]`` of the entries of the pattern, all of
        them where all rows are computed. Differentiable again, in ``x`` and in what f captures; zeros where f does not
        depend on ``x``. A sparse tensor is differentiable once more only: PyTorch's own ``to_dense()`` and ``values()``
        have wrong second derivatives, for which take ``layout=torch.strided``.

    Raises:
        TypeError: ``x`` or the value of f holds something else than floating-point tensors.
        ValueError: f has a value with dimensions, or an option is not one of the above.
        RuntimeError: f is not twice differentiable, or the backward of a ``torch.autograd.Function`` in it is not.
        SparsityError: the pattern lacks entries, as one random Hessian-vector product shows. It differs from that of
            the entries by more than rounding errors do, which are measured where in doubt; rows with inf or nan are
            not checked.

    Example:
        >>> x = torch.tensor([1.0, 2.0, 3.0])
        >>> hessian(lambda x: (x[1:] * x[:-1] ** 2).sum(), x)
        tensor([[4., 2., 0.],
                [2., 6., 4.],
                [0., 4., 0.]])
        >>> hessian(lambda x: x.pow(3).sum(), x, sparsity="auto", layout=torch.sparse_coo).values()
        tensor([ 6., 12., 18.])
    """
    at = _Point("hessian", f, x)
    chunk_size = _checked_chunk(at, chunk_size)
    _check_choice(at, strategy, _STRATEGIES)
    if layout not in (torch.strided, torch.sparse_coo) or (layout is torch.sparse_coo and sparsity is None):
        raise ValueError(
            f"torchad_ext.hessian: got layout={layout} and sparsity={sparsity}; layout is torch.strided, or "
            "torch.sparse_coo with a sparsity"
        )
    draws = _Draws(at)
    draws.again()
    gradient: _Pullback | None = None
    if sparsity is not None and not torch.compiler.is_compiling():
        _check_sparsity(at)
        gradient = _gradient(f, at)
        recovered = _by_colours(gradient, f, sparsity, chunk_size, strategy, progress, layout, draws)
        if recovered is not None:
            return recovered
    if strategy == "forward-over-reverse":
        H = _by_columns(at, _gradient_function(f, at), lambda: _gradient(f, at), chunk_size, progress, as_outputs=True)
    else:
        gradient = gradient or _gradient(f, at)
        H = gradient.blocks(gradient.rows(chunk_size, progress), as_outputs=True)
    if layout is torch.strided:
        return H
    return sparse(torch.arange(H.numel(), device=H.device), H.reshape(-1), at.size)


def hessian_diagonal(
    f: Function, x: Any, batched: bool = False, chunk_size: int | None = None, progress: bool = False
) -> Any:
    r"""The diagonal :math:`\partial^2 f / \partial x_i^2` of the Hessian, without keeping the Hessian.

    Without ``batched`` it costs a Hessian-vector product for each element of ``x``. With it, f is a function of many
    points at once: the Hessian of :math:`\sum_b f_b` has a block for each point, so that one product for all of them
    gives a coordinate of the diagonal. Where the result has no derivatives of its own and f consists of elementwise
    functions, sums, products by constants and views, tangents alone suffice (:mod:`torchad_ext._hessian.curvature`).

    Args:
        f: a function of one argument, ``x``, to a tensor without dimensions; with ``batched`` to ``[batch]``, each
            value of which depends on its own row of ``x`` only.
        x: a floating-point tensor, or a pytree of them, which f takes as a whole; with ``batched`` a tensor
            ``[batch, *d]``.
        batched: f maps a batch of points to their values. Products are computed one after the other where they are
            three or fewer, or large; else in batches; from 24 coordinates on tangents are tried, where they pay.
        chunk_size: how many products are computed at once; 1 computes them one by one without ``vmap``. By default the
            largest tensor of a batch takes 2 MB, as for :func:`hessian`.
        progress: show a progress bar.

    Returns:
        The diagonal, of the structure, shapes and dtypes of ``x``. Differentiable again; zeros where f does not depend
        on ``x``.

    Raises:
        TypeError: ``x`` or the value of f holds something else than floating-point tensors.
        ValueError: f has a value of another shape, ``chunk_size`` is not positive, or with ``batched`` a value of f
            depends on other rows than its own, as one random pullback shows: at first, and from then on as often as 4 %
            of the time allow.
        RuntimeError: f is not twice differentiable, or the backward of a ``torch.autograd.Function`` in it is not.

    Example:
        >>> hessian_diagonal(lambda x: x[0] ** 2 * x[1] ** 3, torch.tensor([1.0, 2.0]))
        tensor([16., 12.])
        >>> points = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
        >>> hessian_diagonal(lambda x: x[:, 0] ** 2 * x[:, 1] ** 3, points, batched=True)
        tensor([[16., 12.],
                [ 2.,  0.]])
    """
    at = _Point("hessian_diagonal", f, x)
    chunk_size = _checked_chunk(at, chunk_size)
    if batched:
        return _diagonal_of_batch(at, f, chunk_size, progress)
    gradient = _gradient(f, at)

    def diagonal(chunks: Chunks) -> Any:
        parts = [[leaf.new_zeros(0)] for leaf in at.leaves]
        for start, rows in chunks:
            for part, row, leaf, offset in zip(parts, rows, at.leaves, at.offsets, strict=True):
                part.append(row.reshape(len(row), leaf.numel()).diagonal(start - offset).clone())
        return at.unflatten([torch.cat(part).view_as(leaf) for part, leaf in zip(parts, at.leaves, strict=True)])

    return gradient.gathered(diagonal, chunk_size, progress)


def _diagonal_of_batch(at: _Point, f: Function, chunk_size: int | None, progress: bool) -> Tensor:
    x = at.single("batched=True")
    if not x.dim():
        raise ValueError("torchad_ext.hessian_diagonal with batched=True takes x [batch, *d]; got x []")

    seen: list[Tensor] = []

    def total(points: Tensor) -> Tensor:
        y = composing(f)(points)
        seen[:] = [points, y]
        if not isinstance(y, Tensor) or y.shape != x.shape[:1]:
            got = f"shape {list(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(
                f"torchad_ext.hessian_diagonal with batched=True takes f with a value for each of the {len(x)} points "
                f"in x {list(x.shape)}, of shape [{len(x)}]; got {got}"
            )
        return y.sum()

    gradient = _gradient(total, at)
    if not _transformed():
        path = _path_of_function(at, "independent rows", gradient.names)  # a module may change its mode
        if path.is_due:
            points, y = seen
            with path.checking():
                _check_rows(points, y, gradient.outputs[0])
    with contextlib.nullcontext() if _transformed() else path.running():
        return _diagonal_of_rows(at, f, x, gradient, chunk_size, progress)


def _diagonal_of_rows(
    at: _Point, f: Function, x: Tensor, gradient: _Pullback, chunk_size: int | None, progress: bool
) -> Tensor:
    """The diagonal of the Hessian of each row of x, by the way that is likely to be the quickest."""
    way = "batches" if chunk_size else gradient.quickest_way(x[:1].numel())
    if way == "products":
        chunk_size = 1
    elif gradient.final and (way == "sweeps" or chunk_size):
        by_sweeps = _by_sweeps(at, f, x, gradient, chunk_size, progress)
        if by_sweeps is not None:
            return by_sweeps

    def products(rows: int) -> Chunks:
        for start in _track(range(0, x[:1].numel(), rows), at, progress):
            seeds = _coordinates(x, start, rows)
            yield start, gradient.pull_rows([seeds.expand(len(seeds), *x.shape).contiguous()])

    def diagonal(chunks: Chunks) -> Tensor:
        parts = [rows[0].reshape(-1, len(x), x[:1].numel()).diagonal(start, 0, 2).clone() for start, rows in chunks]
        return torch.cat(parts, -1).view_as(x) if parts else torch.zeros_like(x)

    result: Tensor = gradient.gathered(diagonal, chunk_size, progress, products, batch=len(x))
    return result


def _coordinates(x: Tensor, start: int, rows: int) -> Tensor:
    """The unit vectors of some coordinates of the points x ``[batch, *d]``: ``[rows, 1, *d]``."""
    basis = torch.eye(x[:1].numel(), dtype=x.dtype, device=x.device)[start : start + rows]
    return basis.reshape(len(basis), 1, *x.shape[1:])


def _by_sweeps(
    at: _Point, f: Function, x: Tensor, gradient: _Pullback, chunk_size: int | None, progress: bool
) -> Tensor | None:
    """The diagonal without the way back, or None where f has operations without a rule, or another gradient than that
    of its operations."""
    if not x.numel():
        return None
    generator = torch.Generator(x.device).manual_seed(0)
    v = torch.randn(1, *x.shape[1:], generator=generator, dtype=x.dtype, device=x.device)
    rows = chunk_size or max(1, _SWEPT // max(1, x.numel()))
    parts = []
    try:
        curvature = Curvature(composing(f), x)
        (along_v,) = curvature.along(v.unsqueeze(0))
        terms = (v * gradient.pull([v.expand_as(x)])[0]).reshape(len(x), -1)
        if _differ(along_v, terms.sum(1), torch.finfo(x.dtype).eps ** 0.5 * terms.abs().sum(1)):
            return None
        for start in _track(range(0, x[:1].numel(), rows), at, progress):
            parts.append(curvature.along(_coordinates(x, start, rows)))
    except (UnknownOperation, RuntimeError):  # what fails here may do on the usual way
        return None
    return torch.cat(parts).T.reshape(x.shape) if parts else torch.zeros_like(x)


def _check_rows(x: Tensor, y: Tensor, gradient: Tensor) -> None:
    """Raises unless the pullback of random r is r_b times the gradient of f_b, as for values of their own rows."""
    if not y.requires_grad or not x.numel():
        return
    generator = torch.Generator(x.device).manual_seed(0)
    r = torch.rand(len(x), generator=generator, dtype=y.dtype, device=x.device) + 0.5

    def pulled(r: Tensor) -> Tensor:
        return torch.autograd.grad(y, x, r, retain_graph=True, materialize_grads=True)[0].detach()

    mixed = pulled(r)
    expected = r.view(-1, *[1] * (x.dim() - 1)) * gradient.detach()
    least = torch.finfo(x.dtype).eps * (100 * expected.abs().max() + y.detach().abs().max() / x.detach().abs().max())
    if not _differ(mixed, expected, least):
        return
    noise = (pulled(3 * r) / 3 - mixed).abs().max()  # a pullback is linear but for its rounding
    if _differ(mixed, expected, 100 * noise + least):
        raise ValueError(
            "torchad_ext.hessian_diagonal with batched=True: a value of f depends on other rows of x than its own "
            "(a random pullback of f differs from that of independent rows); give batched=False and a sum of them"
        )


def _differ(result: Tensor, expected: Tensor, tolerance: Tensor) -> bool:
    """nan is no difference."""
    return bool(((result - expected).abs() > tolerance).any())


class _Point:
    """Where a function is differentiated: the leaves of x, checked, and their places in one vector."""

    def __init__(self, name: str, f: Function, x: Any) -> None:
        self.name, self.f = name, f
        self.leaves: list[Tensor]
        self.leaves, self.spec = tree_flatten(x)
        if not self.leaves:
            raise TypeError(f"torchad_ext.{name} takes a tensor or a pytree of tensors for x; got {x!r}")
        for leaf in self.leaves:
            _check_floating(name, "x", leaf)
        if not _transformed():
            self.leaves = [leaf.clone() if leaf.is_inference() else leaf for leaf in self.leaves]
        self.offsets = _offsets(self.leaves)
        self.size = sum(leaf.numel() for leaf in self.leaves)

    def unflatten(self, leaves: Iterable[Any]) -> Any:
        return tree_unflatten(list(leaves), self.spec)

    def single(self, option: str) -> Tensor:
        """x, which has to be one tensor."""
        if not isinstance(self.unflatten(self.leaves), Tensor):
            raise ValueError(f"torchad_ext.{self.name} with {option} takes one tensor for x; got a pytree of tensors")
        return self.leaves[0]

    def like(self, v: Any, argument: str) -> list[Tensor]:
        """The leaves of v, which has to fit x."""
        leaves, spec = tree_flatten(v)
        if spec != self.spec:
            raise ValueError(f"torchad_ext.{self.name} takes {argument} of the structure of x, {self.spec}; got {spec}")
        for given, leaf in zip(leaves, self.leaves, strict=True):
            _check_floating(self.name, argument, given)
            if (given.shape, given.dtype, given.device) != (leaf.shape, leaf.dtype, leaf.device):
                raise ValueError(
                    f"torchad_ext.{self.name} takes {argument} of the shape, dtype and device of x, "
                    f"{list(leaf.shape)} {leaf.dtype} {leaf.device}; got {list(given.shape)} {given.dtype} "
                    f"{given.device}"
                )
        return leaves


def _offsets(leaves: Tensors) -> list[int]:
    return list(itertools.accumulate((leaf.numel() for leaf in leaves), initial=0))[:-1]


def _check_floating(name: str, what: str, leaf: Any) -> None:
    if not isinstance(leaf, Tensor):
        raise TypeError(f"torchad_ext.{name} takes tensors for {what}; got {type(leaf).__name__}")
    if not leaf.is_floating_point():
        remedy = "torch.view_as_real" if leaf.is_complex() else "x.double()"
        raise TypeError(f"torchad_ext.{name} takes floating-point tensors for {what}; got {leaf.dtype}, see {remedy}")


def _check_choice(at: _Point, given: str | None, known: Sequence[str]) -> None:
    if given is not None and given not in known:
        raise ValueError(f"torchad_ext.{at.name}: got strategy={given!r}; choose one of {', '.join(map(repr, known))}")


def _checked_chunk(at: _Point, chunk_size: Any) -> int | None:
    if chunk_size is None:
        return None
    with contextlib.suppress(TypeError):
        if not isinstance(chunk_size, bool) and operator.index(chunk_size) > 0:
            return operator.index(chunk_size)
    raise ValueError(f"torchad_ext.{at.name}: got chunk_size={chunk_size!r}; give a positive int, or None")


def _transformed() -> bool:
    """Is a transform, forward mode, a compiler or inference mode at work, which ``torch.autograd.grad`` would not fit
    into?"""
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
        return True
    return transforms_active() or in_forward_mode()


class _Pullback:
    """v -> v^T J of a function at a point.

    Attributes:
        outputs: the leaves of the function's value.
        inputs: those of x in its graph; empty within a transform, which has a graph of its own.
        final: are the gradients without derivatives of their own?
    """

    def __init__(
        self,
        at: _Point,
        spec: TreeSpec,
        outputs: Tensors,
        inputs: Tensors,
        pull: Callable[[Tensors], Tensors],
        final: bool,
    ) -> None:
        self.at, self.spec, self.outputs, self.inputs, self.final = at, spec, outputs, inputs, final
        self.size = sum(output.numel() for output in outputs)
        self._pull = pull

    def pull(self, cotangents: Tensors) -> Tensors:
        """A cotangent for each output to a gradient for each leaf of x."""
        with _explained(self.at.name):
            return self._pull(cotangents)

    def pull_without_graph(self, cotangents: Tensors) -> Tensors:
        with _explained(self.at.name):
            return _grad(self.outputs, self.inputs, cotangents, create_graph=False)

    def pull_rows(self, cotangents: Tensors) -> Tensors:
        """The same for a batch, which is the first dimension of cotangents and gradients."""
        with _explained(self.at.name, of_rows=len(cotangents[0]) > 1):
            if len(cotangents[0]) == 1:
                return [row.unsqueeze(0) for row in self._pull([c[0] for c in cotangents])]
            if self.final and self._has_own_nodes:
                with contextlib.suppress(RuntimeError):  # it batches less
                    return _grad(self.outputs, self.inputs, cotangents, create_graph=False, batched=True)
            # Not is_grads_batched, whose own rules for some operations are slow, or wrong (group_norm).
            rows = torch.func.vmap(self._pull)(tuple(cotangents))
            return [row if row.stride(0) else row.clone() for row in rows]  # of no dependence

    def _largest(self) -> int:
        """The bytes of the largest tensor that a row takes, of what is known of it within a transform."""
        own = max(y.numel() * y.element_size() for y in (*self.outputs, *self.at.leaves))
        return max(own, largest_in_graph(self._nodes) if self.inputs else 0)

    def quickest_way(self, coordinates: int) -> Literal["products", "batches", "sweeps"]:
        """The way to the diagonal of a batch of points: ``coordinates`` products one after the other, the same in
        batches, or sweeps. Batches save calls, where their tensors are small; sweeps save the way back, where what they
        prepare has many coordinates to serve. Both bounds are measured."""
        largest = self._largest()
        if coordinates >= _SWEPT_FROM and coordinates * largest >= _SWEPT_BYTES:
            return "sweeps"
        return "products" if coordinates <= _FEW or (self.inputs and largest >= _LARGE) else "batches"

    def rows_at_once(self, width: int, batch: int = 1) -> int:
        """The default number of rows of a batch, for a Jacobian of ``size // batch`` rows and so many columns."""
        leaves = (*self.outputs, *self.at.leaves)
        return rows_at_once(self._largest(), self.size * width // max(1, batch) * max(y.element_size() for y in leaves))

    def chunks(self, rows: int, progress: bool) -> Iterator[tuple[int, Tensors]]:
        """The rows of J in batches: the number of the first, and for each leaf of x ``[rows, *leaf]``."""
        if self.final and len(self.outputs) == 1 and self._are_units_worth(min(rows, self.size)):
            (y,) = self.outputs
            for start, count in _batches(self.size, self.at, rows, progress):
                units = UnitRows(y.shape, y.new_ones(count), start)
                try:
                    yield start, dense_rows(self._pull([units]), count)
                except (RuntimeError, IndexError):  # of an operation that does not take them
                    yield start, self.pull_rows([units.dense_rows()])
            return
        for start, seeds in _bases(self.outputs, self.at, rows, progress):
            yield start, self.pull_rows(seeds)

    def _are_units_worth(self, rows: int) -> bool:
        return rows > 1 and self.size >= _UNIT_ROWS and rows * self.size >= _UNIT_ROWS**2

    def gathered(
        self,
        gather: Callable[[Chunks], Any],
        chunk_size: int | None,
        progress: bool,
        chunks: Callable[[int], Chunks] | None = None,
        batch: int = 1,
    ) -> Any:
        """What ``gather`` makes of the rows. One random product checks those of batches; where it differs, they are
        computed one by one."""
        chunks = chunks or functools.partial(self.chunks, progress=progress)
        rows = chunk_size or self.rows_at_once(self.at.size, batch)
        if _transformed() or not self.size or not self.at.size:
            return gather(chunks(rows))
        if rows == 1 or self.size <= _FEW * batch or COMPILED in self.names:
            return gather(chunks(1))  # a compiled backward runs for one row at a time
        path = self._path("in batches", rows)
        if path.is_wrong:
            return gather(chunks(1))
        with path.running():
            if not path.is_due:
                return gather(chunks(rows))
            product = RandomProduct(self.outputs, self.at.leaves, batch)
            result = gather(product.recorded(chunks(rows), path))
            with path.checking():
                agrees = product.agrees(self.pull_without_graph)
        return result if agrees else self._one_by_one(gather, chunks(1), path, "in batches", batch)

    def _one_by_one(self, gather: Callable[[Chunks], Any], chunks: Chunks, path: FastPath, way: str, batch: int) -> Any:
        """What ``gather`` makes of rows of plain reverse mode, in place of those that differ from a random product.
        Where plain rows differ from it too, rounding is to blame."""
        product = RandomProduct(self.outputs, self.at.leaves, batch)
        result = gather(product.recorded(chunks, path))
        if product.agrees(self.pull_without_graph):
            report(self.at.name, self.at.f, path, way)
        else:
            path.is_rounded = True
        return result

    def blocks_again(self, path: FastPath, way: str, progress: bool, as_outputs: bool = False) -> Any:
        """J by plain reverse mode, where that by columns differs from a random product."""
        gather = functools.partial(_joined, size=self.size, leaves=self.at.leaves)
        return self.blocks(self._one_by_one(gather, self.chunks(1, progress), path, way, 1), as_outputs)

    def _path(self, *way: Any) -> FastPath:
        shapes = tuple((x.shape, x.stride(), x.dtype, x.device) for x in (*self.outputs, *self.at.leaves))
        return fast_path((self.at.name, way, shapes, hash(self.names)))

    @functools.cached_property
    def _nodes(self) -> tuple[Any, ...]:
        """The nodes of the graph of the outputs."""
        return tuple(graph_nodes(self.outputs))

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Those of the nodes of the graph."""
        return tuple(node.name() for node in self._nodes)

    @functools.cached_property
    def _has_own_nodes(self) -> bool:
        """Do kernels of this package run in the graph? They take the batches of is_grads_batched as tensors."""
        return any(type(node).__name__ == "CppFunction" or is_own(node) for node in self._nodes)

    def rows(self, chunk_size: int | None, progress: bool) -> list[Tensor]:
        """J: for each leaf of x a tensor ``[size, *leaf]``."""
        rows: list[Tensor] = self.gathered(
            lambda chunks: _joined(chunks, self.size, self.at.leaves), chunk_size, progress
        )
        return rows

    def by_columns(self, chunk_size: int | None, progress: bool) -> Any:
        """J by its columns, J u being the pullback of u through the graph of w -> J^T w; None where that has another
        derivative, or none."""
        at, dtypes = self.at, {x.dtype for x in (*self.outputs, *self.at.leaves)}
        # The derivatives of a column would be of higher order than those of a row.
        if not (self.inputs and self.final and at.size and len(dtypes) == 1) or any(foreign_nodes(self.outputs)):
            return None
        path = self._path("by columns", chunk_size)
        if path.is_wrong:
            return self.blocks(self.rows(1, progress))
        with path.running():
            w = [torch.ones_like(y, requires_grad=True) for y in self.outputs]
            try:
                with torch.enable_grad():
                    gradients = _grad(self.outputs, self.inputs, w, create_graph=True)
                pull = functools.partial(_grad, gradients, w, create_graph=False)
                transposed = _Pullback(_Point(at.name, at.f, w), self.spec, gradients, w, pull, True)
                rows = chunk_size or transposed.rows_at_once(self.size)
                columns = _joined(transposed.chunks(1 if at.size <= _FEW else rows, progress), at.size, w)
            except RuntimeError:  # of an operation that has no second derivative
                return None
            agree = True
            if path.is_due:
                with path.checking():
                    agree = _columns_agree(columns, self)
        if agree:
            return _blocks_of_columns(at, columns, self.spec)
        return self.blocks_again(path, "by columns", progress)

    def blocks(self, rows: Tensors, as_outputs: bool = False) -> Any:
        """J in the structure of the value, each leaf of it in that of x, in the dtype of x or that of the value."""
        return tree_unflatten(
            [
                self.at.unflatten(
                    row[o : o + y.numel()].view((*y.shape, *row.shape[1:])).to(y.dtype if as_outputs else row.dtype)
                    for row in rows
                )
                for o, y in zip(_offsets(self.outputs), self.outputs, strict=True)
            ],
            self.spec,
        )


def _columns_agree(columns: Tensors, value: _Pullback) -> bool:
    """Are the columns of J, for each output ``[columns, *output]``, those of a pullback?"""
    at = value.at
    product = RandomProduct(value.outputs, at.leaves)
    for start, column in zip(_offsets(value.outputs), columns, strict=True):
        if column.numel():
            product.add(start, column.reshape(at.size, -1).T.split([x.numel() for x in at.leaves], 1))
    return product.agrees(value.pull_without_graph)


def _blocks_of_columns(at: _Point, columns: Tensors, spec: TreeSpec, as_outputs: bool = False) -> Any:
    """J in the structure of the value, each leaf of it in that of x, in the dtype of x or that of the value."""
    return tree_unflatten(
        [
            at.unflatten(
                column[o : o + x.numel()]
                .movedim(0, -1)
                .reshape((*column.shape[1:], *x.shape))
                .to(column.dtype if as_outputs else x.dtype)
                for o, x in zip(at.offsets, at.leaves, strict=True)
            )
            for column in columns
        ],
        spec,
    )


def _value(f: Function, at: _Point) -> _Pullback:
    """The pullback of f."""
    spec: TreeSpec | None = None

    def function(*leaves: Tensor) -> tuple[Tensor, ...]:
        nonlocal spec
        values, spec = tree_flatten(composing(f)(at.unflatten(leaves)))
        for value in values:
            _check_floating(at.name, "the value of f", value)
        return tuple(values)

    linearized = _linearized(function, at)
    assert spec is not None
    return _Pullback(at, spec, *linearized)


def _gradient(f: Function, at: _Point) -> _Pullback:
    """The pullback of the gradient of f."""
    return _Pullback(at, at.spec, *_linearized(_scalar(f, at), at, gradient=True))


def _scalar(f: Function, at: _Point) -> Callable[..., Tensor]:
    """f of the leaves of x, its value checked."""

    def function(*leaves: Tensor) -> Tensor:
        y: Tensor = composing(f)(at.unflatten(leaves))
        _check_floating(at.name, "the value of f", y)
        if y.dim():
            raise ValueError(
                f"torchad_ext.{at.name} takes f with a value without dimensions; got shape {list(y.shape)}. Sum it, or "
                f"for a batch of points write torch.func.vmap(lambda x: torchad_ext.{at.name}(f, x))(points)"
            )
        return y

    return function


def _linearized(
    function: Callable[..., Any], at: _Point, gradient: bool = False
) -> tuple[Tensors, Tensors, Callable[[Tensors], Tensors], bool]:
    """The value of a function, or its gradient, and what else a _Pullback is made of."""
    if _transformed():
        if gradient:
            function = torch.func.grad(function, tuple(range(len(at.leaves))))
        outputs, vjp, *_ = torch.func.vjp(function, *at.leaves)
        return outputs, (), lambda cotangents: vjp(tuple(cotangents)), False

    wanted = torch.is_grad_enabled()
    with torch.enable_grad():
        # An alias: what f captures of x itself is a constant.
        inputs = [x.view_as(x) if wanted and x.requires_grad else x.detach().requires_grad_() for x in at.leaves]
        outputs = function(*inputs)
        own = list(inputs)
        if gradient:
            functions = list(foreign_nodes([outputs]))
            own.append(_checking_cotangent(at.name, outputs, functions))
            with _explained(at.name):
                outputs = _grad([outputs], inputs, own[-1:], create_graph=True)
                check_functions(functions, lambda: function(*inputs))
    create_graph = wanted and depends_on_others(outputs, own)

    def pull(cotangents: Tensors) -> Tensors:
        return _grad(outputs, inputs, cotangents, create_graph=create_graph)

    return outputs, inputs, pull, not create_graph


def _grad(outputs: Tensors, inputs: Tensors, cotangents: Tensors, create_graph: bool, batched: bool = False) -> Tensors:
    """``torch.autograd.grad`` with zeros where there is no dependence; of a batch of cotangents if ``batched``."""
    given = [(y, c) for y, c in zip(outputs, cotangents, strict=True) if y.requires_grad]
    gradients: Sequence[Tensor | None] = [None] * len(inputs)
    if given:
        ys, cs = zip(*given, strict=True)
        options = {"create_graph": create_graph, "allow_unused": True, "is_grads_batched": batched}
        gradients = torch.autograd.grad(ys, inputs, cs, retain_graph=True, **options)
    if batched:
        count = len(cotangents[0])
        return [x.new_zeros(count, *x.shape) if g is None else g for g, x in zip(gradients, inputs, strict=True)]
    return [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, inputs, strict=True)]


def _checking_cotangent(name: str, y: Tensor, functions: Sequence[Any]) -> Tensor:
    """The cotangent 1 of y. Where f has an ``autograd.Function`` of others it requires a gradient, and so does what a
    backward makes of it that is differentiable: of another one the Hessian would silently lack terms."""

    def check(gradients: Sequence[Tensor | None], cotangents: Sequence[Tensor | None]) -> None:
        if not any(c is not None and c.requires_grad for c in cotangents):
            return
        for g in gradients:
            if g is not None and (is_cut_off(g.grad_fn) if g.grad_fn else g.any()):
                raise RuntimeError(
                    f"torchad_ext.{name}: f is not differentiable often enough: the backward of an autograd.Function "
                    "is marked once_differentiable or gives a gradient without a graph; write it in differentiable "
                    "operations"
                )

    if any(node.name() == COMPILED for node in functions):
        functions = ()  # it copies the cotangent in place, which a leaf forbids
    for node in functions:
        node.register_hook(check)
    return torch.ones_like(y).requires_grad_(bool(functions))


def _bases(leaves: Tensors, at: _Point, rows: int, progress: bool) -> Iterator[tuple[int, list[Tensor]]]:
    """The unit vectors of the space of some leaves in batches: the number of the first, and for each leaf
    ``[rows, *leaf]``."""
    for start, count in _batches(sum(leaf.numel() for leaf in leaves), at, rows, progress):
        units = [leaf.new_zeros(count, leaf.numel()) for leaf in leaves]
        for unit, offset in zip(units, _offsets(leaves), strict=True):
            unit.diagonal(start - offset).fill_(1)
        yield start, [unit.view(count, *leaf.shape) for unit, leaf in zip(units, leaves, strict=True)]


def _batches(size: int, at: _Point, rows: int, progress: bool) -> Iterator[tuple[int, int]]:
    """The number of the first row of each batch, and how many it has."""
    for start in _track(range(0, size, rows), at, progress):
        yield start, min(rows, size - start)


def _track(batches: range, at: _Point, progress: bool) -> Iterable[int]:
    if not progress:
        return batches
    from rich.progress import track

    return track(batches, description=at.name)


def _joined(chunks: Iterable[tuple[int, Tensors]], size: int, leaves: Tensors) -> list[Tensor]:
    """The chunks as one tensor ``[size, *leaf]`` for each leaf, written in place where that loses no derivative."""
    results: list[Tensor] = []
    parts: list[Tensors] = []
    for start, rows in chunks:
        if len(rows[0]) == size:
            return list(rows)
        if _transformed() or any(row.requires_grad for row in rows):
            parts.append(rows)
            continue
        if not results:
            results = [row.new_empty(size, *row.shape[1:]) for row in rows]
        for result, row in zip(results, rows, strict=True):
            result[start : start + len(row)] = row
    if parts:
        return [torch.cat(part) for part in zip(*parts, strict=True)]
    return results or [leaf.new_zeros(size, *leaf.shape) for leaf in leaves]


def _gradient_function(f: Function, at: _Point) -> Function:
    """The gradient of f as a function of x."""
    # Not torch.func.grad, whose forward mode lacks formulas that jacrev does without.
    gradient = torch.func.jacrev(_scalar(f, at), tuple(range(len(at.leaves))))
    return lambda x: at.unflatten(gradient(*tree_flatten(x)[0]))


def _by_columns(
    at: _Point,
    function: Function,
    reverse: Callable[[], _Pullback],
    chunk_size: int | None,
    progress: bool,
    as_outputs: bool = False,
) -> Any:
    """The Jacobian of a function, in forward mode, in the dtype of x or that of the value. A random product by reverse
    mode checks it, if there is one."""
    draws = _Draws(at)
    if _transformed() or not at.size:
        return _blocks_of_columns(at, *_columns(at, function, draws, chunk_size, progress, None), as_outputs)
    path = _path_of_function(at, "in forward mode")
    if path.is_wrong:
        value = reverse()
        return value.blocks(value.rows(1, progress), as_outputs)
    with path.running():
        columns, spec = _columns(at, function, draws, chunk_size, progress, path)
        agree = True
        if path.is_due:
            with (
                path.checking(),
                contextlib.suppress(RuntimeError),
            ):  # of an operation with formulas of forward mode only
                draws.again()
                value = reverse()
                agree = _columns_agree(columns, value)
    if agree:
        return _blocks_of_columns(at, columns, spec, as_outputs)
    return value.blocks_again(path, "in forward mode", progress, as_outputs)


def _path_of_function(at: _Point, *way: Any) -> FastPath:
    shapes = tuple((x.shape, x.dtype, x.device) for x in at.leaves)
    with contextlib.suppress(TypeError):  # of functions without a weak reference, or a hash
        return fast_path((at.name, way, shapes, weakref.ref(at.f)))
    return FastPath()


def _columns(
    at: _Point, function: Function, draws: _Draws, chunk_size: int | None, progress: bool, path: FastPath | None
) -> tuple[list[Tensor], TreeSpec]:
    """Pushforwards of the unit vectors, for each output ``[columns, *output]``, and the structure of the outputs. The
    default number of them at once is measured with one, and kept in ``path``."""
    spec: TreeSpec | None = None

    def of_leaves(*leaves: Tensor) -> tuple[Tensor, ...]:
        nonlocal spec
        values, spec = tree_flatten(composing(function)(at.unflatten(leaves)))
        for value in values:
            _check_floating(at.name, "the value of f", value)
        return tuple(values)

    leaves = tuple(x.contiguous() for x in at.leaves)  # a tangent lies in memory as x does, whose elements may share it

    def push(*tangents: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.func.jvp(of_leaves, leaves, tangents)[1])

    def columns_at_once() -> int:
        if path is None or at.size <= _FEW:
            return max(1, at.size)
        if path.at_once is None:
            _, units = next(_bases(at.leaves, at, 1, False))
            with Largest() as largest, _explained(at.name):
                draws.again()
                column = push(*(u[0] for u in units))
            path.at_once = rows_at_once(largest.bytes, at.size * sum(y.numel() * y.element_size() for y in column))
        return path.at_once

    def chunks() -> Iterator[tuple[int, Tensors]]:
        for start, units in _bases(at.leaves, at, chunk_size or columns_at_once(), progress):
            with _explained(at.name, of_rows=len(units[0]) > 1):
                draws.again()
                if len(units[0]) == 1:
                    yield start, [column.unsqueeze(0) for column in push(*(u[0] for u in units))]
                else:
                    yield start, torch.func.vmap(push, randomness="same")(*units)

    columns = _joined(chunks(), at.size, [] if at.size else of_leaves(*at.leaves))
    assert spec is not None
    return columns, spec


def _check_sparsity(at: _Point) -> None:
    at.single("sparsity")
    if _transformed():
        raise ValueError(
            "torchad_ext.hessian with sparsity finds a pattern and checks it, which a transform of torch.func cannot "
            "trace; leave sparsity out there"
        )


def _by_colours(
    gradient: _Pullback,
    f: Function,
    sparsity: Any,
    chunk_size: int | None,
    strategy: str | None,
    progress: bool,
    layout: torch.layout,
    draws: _Draws,
) -> Tensor | None:
    """The Hessian from one product for each colour of its pattern, and one that checks it; None if all rows are
    computed as quickly."""
    at, found = gradient.at, isinstance(sparsity, str) and sparsity == "auto"
    (x,) = at.leaves
    if found:
        draws.again()
        colored = found_coloring(_scalar(f, at), x, always=layout is torch.sparse_coo)
    else:
        colored = coloring(sparsity, x)
    if colored is None or colored.full:
        return None
    generator = torch.Generator(x.device).manual_seed(0)
    v = torch.empty(x.numel(), dtype=x.dtype, device=x.device).uniform_(-1, 1, generator=generator)
    rows = chunk_size or gradient.rows_at_once(colored.count)
    if strategy == "forward-over-reverse":
        gradient_function = _gradient_function(f, at)

        def push(v: Tensor) -> Tensor:
            product: Tensor = torch.func.jvp(gradient_function, (x,), (v,))[1]
            return product

        def push_rows(v: Tensor) -> Tensor:
            with _explained(at.name):
                draws.again()
                return torch.func.vmap(push, randomness="same")(v)
    else:

        def push_rows(v: Tensor) -> Tensor:
            return gradient.pull_rows([v])[0]

    def products(seeds: Tensor) -> Tensor:
        batches = _track(range(0, len(seeds), rows), at, progress)
        parts = [push_rows(seeds[start : start + rows].view(-1, *x.shape)) for start in batches]
        return torch.cat(parts).view(seeds.shape)

    def one_by_one(seeds: Tensor) -> Tensor:
        return torch.stack([gradient.pull([seed.view_as(x)])[0] for seed in seeds]).view(seeds.shape)

    seeds, way = colored.seeds(x.dtype), "in forward mode" if strategy == "forward-over-reverse" else "in batches"
    of_v = gradient.pull_without_graph([v.view_as(x)])[0].reshape(1, -1)
    of_seeds = products(seeds)
    try:
        colored.check(torch.cat([of_seeds, of_v]), v, one_by_one, found)
    except SparsityError:
        of_seeds = one_by_one(seeds)
        colored.check(torch.cat([of_seeds, of_v]), v, one_by_one, found)  # raises for a wrong pattern
        report(at.name, f, FastPath(), way)
    return colored.matrix(colored.recover(of_seeds), x.shape, layout)


class _Draws:
    """The random numbers of the first evaluation of a function, for each later one."""

    def __init__(self, at: _Point) -> None:
        self._states: list[Tensor] | None = None
        self._devices = {x.device for x in at.leaves if x.device.type == "cuda"}
        self._fixed = _transformed()

    def again(self) -> None:
        if self._fixed:
            return
        if self._states is None:
            self._states = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self._devices)]
            return
        torch.set_rng_state(self._states[0])
        for device, state in zip(self._devices, self._states[1:], strict=True):
            torch.cuda.set_rng_state(state, device)


@contextlib.contextmanager
def _explained(name: str, of_rows: bool = False) -> Iterator[None]:
    """Says what an error of autograd means for the user of ``name``, who may ask for rows one by one in place of a
    batch ``of_rows``."""
    try:
        yield
    except (RuntimeError, IndexError) as error:  # vmap has some operations wrong for tensors without dimensions
        text = str(error)
        if "not currently support double backward" in text:
            raise RuntimeError(
                f"torchad_ext.{name}: f calls a function that torch.compile made, which PyTorch does not differentiate "
                f"twice ({text}); give f without torch.compile, or compile the call of torchad_ext.{name} too"
            ) from error
        if text.startswith("f is not differentiable"):
            raise RuntimeError(f"torchad_ext.{name}: {text}") from error
        if "once_differentiable" in text or ("derivative for" in text and "not implemented" in text):
            remedy = ""
            if "scaled_dot_product" in text:
                remedy = "; run f under torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)"
            raise RuntimeError(f"torchad_ext.{name}: f is not differentiable often enough: {text}{remedy}") from error
        if of_rows:
            raise RuntimeError(
                f"torchad_ext.{name}: f has a derivative that cannot be computed for a batch of rows; give "
                f"chunk_size=1 to compute rows one by one. {text}"
            ) from error
        raise
