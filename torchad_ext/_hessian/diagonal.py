"""Diagonals of Hessians: of one function, or of the functions of many points at once."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._autograd.independence import slope_in_other_points
from .._forward.correction_mode import run_corrected, with_corrections
from .._forward.missing import tool
from .._torch_state import where_transforms_are_right
from .curvature import Curvature, UnknownOperation
from .jacobian_columns import path_of_function
from .jacobian_rows import Chunks, gathered, tracked
from .point import Function, Point, check_floating
from .pullback import GraphPullback, Pullback, pullback_of_gradient
from .thresholds import FEW_PRODUCTS, Way, directions_at_once, quickest_ways


@tool
@where_transforms_are_right
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
            depends on other rows than its own, as a random pullback shows: at first, and from then on as often as 2 %
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
    at = Point("hessian_diagonal", f, x)
    chunk_size = at.checked_chunk_size(chunk_size)
    if batched:
        return _diagonal_of_batch(at, f, chunk_size, progress)
    gradient = pullback_of_gradient(at)

    def diagonal(chunks: Chunks) -> Any:
        parts = [[leaf.new_zeros(0)] for leaf in at.leaves]
        for start, rows in chunks:
            for part, row, leaf, offset in zip(parts, rows, at.leaves, at.offsets, strict=True):
                part.append(row.reshape(len(row), leaf.numel()).diagonal(start - offset).clone())
        return at.unflatten([torch.cat(part).view_as(leaf) for part, leaf in zip(parts, at.leaves, strict=True)])

    return gathered(gradient, diagonal, chunk_size, progress)


def _diagonal_of_batch(at: Point, f: Function, chunk_size: int | None, progress: bool) -> Tensor:
    x = at.single("batched=True")
    if not x.dim():
        raise ValueError("torchad_ext.hessian_diagonal with batched=True takes x [batch, *d]; got x []")

    seen: list[tuple[Tensor, Tensor]] = []

    def total(points: Tensor) -> Tensor:
        y = run_corrected(f, points)
        seen.append((points, y))
        if not isinstance(y, Tensor) or y.shape != x.shape[:1]:
            got = f"shape {list(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(
                f"torchad_ext.hessian_diagonal with batched=True takes f with a value for each of the {len(x)} points "
                f"in x {list(x.shape)}, of shape [{len(x)}]; got {got}"
            )
        check_floating(at.name, "the value of f", y)
        return y.sum()

    gradient = pullback_of_gradient(at, total)
    if not isinstance(gradient, GraphPullback):
        return _diagonal_of_rows(at, f, x, gradient, chunk_size, progress)
    path = path_of_function(at, "independent rows", gradient.names)  # a module may change its mode
    if path.is_due:
        points, y = seen[0]  # of what the gradient is; an unknown Function has f run again
        with path.checking():
            _check_rows(points, y, gradient.outputs[0])
    with path.running():
        return _diagonal_of_rows(at, f, x, gradient, chunk_size, progress)


def _diagonal_of_rows(
    at: Point, f: Function, x: Tensor, gradient: Pullback, chunk_size: int | None, progress: bool
) -> Tensor:
    """The diagonal of the Hessian of each row of x, by the way that is likely to be the quickest."""
    count = math.prod(x.shape[1:])
    ways: list[Way] = ["sweeps", "batches"]
    if not chunk_size:
        largest = 0 if count <= FEW_PRODUCTS else gradient.largest()
        ways = quickest_ways(count, largest, isinstance(gradient, GraphPullback))
    if gradient.final and "sweeps" in ways:
        by_sweeps = _by_sweeps(at, f, x, gradient, chunk_size, progress)
        if by_sweeps is not None:
            return by_sweeps
    if "products" in ways and count:
        units = torch.eye(count, dtype=x.dtype, device=x.device).view(count, 1, *x.shape[1:])
        cotangents = units.expand(count, *x.shape).unbind()
        rows = [gradient.pull([cotangents[i]])[0].flatten(1).select(1, i) for i in tracked(range(count), at, progress)]
        return torch.stack(rows, -1).view_as(x)

    def products(rows: int) -> Chunks:
        for start in tracked(range(0, count, rows), at, progress):
            seeds = _coordinates(x, start, rows)
            yield start, gradient.pull_rows([seeds.expand(len(seeds), *x.shape).contiguous()])

    def diagonal(chunks: Chunks) -> Tensor:
        parts = [rows[0].reshape(-1, len(x), count).diagonal(start, 0, 2) for start, rows in chunks]
        return torch.cat(parts, -1).view_as(x) if parts else torch.zeros_like(x)

    result: Tensor = gathered(gradient, diagonal, chunk_size, progress, products, batch=len(x))
    return result


def _coordinates(x: Tensor, start: int, rows: int) -> Tensor:
    """The unit vectors of some coordinates of the points x ``[batch, *d]``: ``[rows, 1, *d]``."""
    count = math.prod(x.shape[1:])
    basis = x.new_zeros(min(rows, count - start), count)
    basis.diagonal(start).fill_(1)
    return basis.view(len(basis), 1, *x.shape[1:])


def _by_sweeps(
    at: Point, f: Function, x: Tensor, gradient: Pullback, chunk_size: int | None, progress: bool
) -> Tensor | None:
    """The diagonal without the way back, or None where f has operations without a rule, or another gradient than that
    of its operations."""
    if not x.numel():
        return None
    generator = torch.Generator(x.device).manual_seed(0)
    v = torch.randn(1, *x.shape[1:], generator=generator, dtype=x.dtype, device=x.device)
    rows = chunk_size or directions_at_once(x.numel())
    parts = []
    try:
        curvature = Curvature(with_corrections(f), x)
        (along_v,) = curvature.along(v.unsqueeze(0))
        terms = (v * gradient.pull([v.expand_as(x)])[0]).reshape(len(x), -1)
        if _differ(along_v, terms.sum(1), torch.finfo(x.dtype).eps ** 0.5 * terms.abs().sum(1)):
            return None
        for start in tracked(range(0, x[:1].numel(), rows), at, progress):
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
    mixed = torch.autograd.grad(y, x, r, retain_graph=True, materialize_grads=True)[0].detach()
    expected = r.view(-1, *[1] * (x.dim() - 1)) * gradient.detach()
    least = 100 * torch.finfo(x.dtype).eps * expected.nan_to_num(0.0, 0.0, 0.0).abs().max()
    # Gradients that are rounding errors alone differ, too.
    if _differ(mixed, expected, least) and slope_in_other_points(y * r, x) > least:
        raise ValueError(
            "torchad_ext.hessian_diagonal with batched=True: a value of f depends on other rows of x than its own "
            "(the gradient of some is not zero in other rows); give batched=False and a sum of them"
        )


def _differ(result: Tensor, expected: Tensor, tolerance: Tensor) -> bool:
    """nan is no difference."""
    return bool(((result - expected).abs() > tolerance).any())
