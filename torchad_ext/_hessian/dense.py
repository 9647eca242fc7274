"""Jacobians and Hessians of any function, all rows of them or, with a sparsity pattern, sums of some columns.

Everything here is a number of pullbacks v -> v^T J through one graph, which is built once: that of f for its Jacobian,
that of its gradient for its Hessian (:mod:`torchad_ext._hessian.pullback`).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from .._forward.missing import tool
from .._forward.undone import once_more
from .._self_check import FastPath, report
from .._torch_state import outside_inference_mode, where_transforms_are_right
from . import thresholds
from .decompression import Coloring, SparsityError, coloring_of, find_coloring
from .jacobian_columns import jacobian_by_pullback_of_pullback, jacobian_in_forward_mode
from .jacobian_rows import all_rows, blocks_of_rows, rows_at_once, tracked
from .pattern import sparse_matrix
from .point import Draws, Function, Point, explained
from .pullback import (
    GraphPullback,
    Pullback,
    gradient_function,
    pullback_of_gradient,
    pullback_of_value,
    scalar_function,
)

Strategy = Literal["reverse-over-reverse", "forward-over-reverse"]

_STRATEGIES = ("reverse-over-reverse", "forward-over-reverse")
_MODES = ("reverse", "forward")


@tool
@where_transforms_are_right
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
    at = Point("jacobian", f, x)
    chunk_size = at.checked_chunk_size(chunk_size)
    at.check_strategy(strategy, _MODES)
    if strategy == "forward":
        return jacobian_in_forward_mode(at, f, lambda: pullback_of_value(f, at), Draws(at), chunk_size, progress)
    value = pullback_of_value(f, at)
    if strategy is None and chunk_size != 1 and value.size > thresholds.MUCH_TALLER * at.size:
        by_columns = jacobian_by_pullback_of_pullback(value, chunk_size, progress)
        if by_columns is not None:
            return by_columns
    return blocks_of_rows(value, all_rows(value, chunk_size, progress))


@tool
@where_transforms_are_right
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
    structurally orthogonal columns of H are computed together: as many Hessian-vector products as a star coloring of
    the pattern has colors, one for a diagonal H, 2b + 1 for one of half bandwidth b
    (:mod:`torchad_ext._hessian.coloring` has the sources).

    Args:
        f: a function of one argument, ``x``, to a tensor without dimensions. It may capture tensors that require a
            gradient. For a batch of points: ``torch.func.vmap(lambda x: hessian(f, x))(points)``.
        x: a floating-point tensor, or a pytree of them (a tuple, a dict of parameters for
            ``torch.func.functional_call``), which f takes as a whole.
        chunk_size: how many rows are computed at once. That many times the memory of one backward pass is needed,
            besides the result. By default the largest tensor of a batch, as f's graph tells it, takes 2 MB, or a 32nd
            of H up to 16 MB, or as much as a matrix that each row is multiplied by; where these hold fewer than eight
            rows, they are computed one by one. 1 computes them so without ``vmap``, which is the way for functions that
            ``vmap`` does not batch.
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
    at = Point("hessian", f, x)
    chunk_size = at.checked_chunk_size(chunk_size)
    at.check_strategy(strategy, _STRATEGIES)
    if layout not in (torch.strided, torch.sparse_coo) or (layout is torch.sparse_coo and sparsity is None):
        raise ValueError(
            f"torchad_ext.hessian: got layout={layout} and sparsity={sparsity}; layout is torch.strided, or "
            "torch.sparse_coo with a sparsity"
        )
    # Where a pattern is found, autograd records.
    if sparsity is not None and not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
        return outside_inference_mode(hessian)(f, x, chunk_size, sparsity, strategy, progress, layout)
    draws = Draws(at)
    gradient: Pullback | None = None
    if sparsity is not None and not torch.compiler.is_compiling():
        _check_sparsity(at)
        with draws.evaluation():
            gradient = pullback_of_gradient(at)
        recovered = _by_colors(gradient, f, sparsity, chunk_size, strategy, progress, layout, draws)
        if recovered is not None:
            return recovered
    if strategy == "forward-over-reverse":
        H = jacobian_in_forward_mode(
            at, gradient_function(f, at), lambda: pullback_of_gradient(at), draws, chunk_size, progress, True
        )
    else:
        gradient = gradient or pullback_of_gradient(at)
        H = blocks_of_rows(gradient, all_rows(gradient, chunk_size, progress), as_outputs=True)
    if layout is torch.strided:
        return H
    return sparse_matrix(torch.arange(H.numel(), device=H.device), H.reshape(-1), at.size)


def _check_sparsity(at: Point) -> None:
    at.single("sparsity")
    if at.is_transformed:
        raise ValueError(
            "torchad_ext.hessian with sparsity finds a pattern and checks it, which a transform of torch.func cannot "
            "trace; leave sparsity out there"
        )


def _by_colors(
    gradient: Pullback,
    f: Function,
    sparsity: Any,
    chunk_size: int | None,
    strategy: str | None,
    progress: bool,
    layout: torch.layout,
    draws: Draws,
) -> Tensor | None:
    """The Hessian from one product for each color of its pattern, and one that checks it; None if all rows are
    computed as quickly."""
    assert isinstance(gradient, GraphPullback)
    at, is_found = gradient.at, isinstance(sparsity, str) and sparsity == "auto"
    (x,) = at.leaves
    colored: Coloring | None
    if is_found and layout is torch.strided and at.size < thresholds.FEW_ELEMENTS:
        return None
    if is_found:
        with draws.evaluation():
            colored = once_more(find_coloring, scalar_function(f, at), x, layout is torch.sparse_coo)
    else:
        colored = coloring_of(sparsity, x)
    if colored is None or colored.full:
        return None
    generator = torch.Generator(x.device).manual_seed(0)
    v = torch.empty(x.numel(), dtype=x.dtype, device=x.device).uniform_(-1, 1, generator=generator)
    rows = chunk_size or rows_at_once(gradient, colored.count)
    if strategy == "forward-over-reverse":
        gradient_of = gradient_function(f, at)
        point = x.contiguous()  # a tangent lies in memory as x does, whose elements may share it

        def push(v: Tensor) -> Tensor:
            product: Tensor = torch.func.jvp(gradient_of, (point,), (v,))[1]
            return product

        def push_rows(v: Tensor) -> Tensor:
            with explained(at.name), draws.evaluation():
                return torch.func.vmap(push, randomness="same")(v)
    else:

        def push_rows(v: Tensor) -> Tensor:
            return gradient.pull_rows([v])[0]

    def products(seeds: Tensor) -> Tensor:
        batches = tracked(range(0, len(seeds), rows), at, progress)
        parts = [push_rows(seeds[start : start + rows].view(-1, *x.shape)) for start in batches]
        return torch.cat(parts).view(seeds.shape)

    def one_by_one(seeds: Tensor) -> Tensor:
        return torch.stack([gradient.pull([seed.view_as(x)])[0] for seed in seeds]).view(seeds.shape)

    seeds, way = colored.seeds(x.dtype), "in forward mode" if strategy == "forward-over-reverse" else "in batches"
    of_v = gradient.pull_without_graph([v.view_as(x)])[0].reshape(1, -1)
    of_seeds = products(seeds)
    try:
        colored.check(torch.cat([of_seeds, of_v]), v, one_by_one, is_found)
    except SparsityError:
        of_seeds = one_by_one(seeds)
        colored.check(torch.cat([of_seeds, of_v]), v, one_by_one, is_found)  # raises for a wrong pattern
        report(at.name, f, FastPath(), way)
    return colored.matrix(colored.recover(of_seeds), x.shape, layout)
