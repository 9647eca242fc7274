"""The Laplacian of a function in one forward sweep (:mod:`torchad_ext._forward.propagation`)."""

from __future__ import annotations

import functools
import itertools
import numbers
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._symbolic.jet_algebra import derivative, jet_algebra, total
from .._torch_state import is_recorded, outside_inference_mode, transforms_active
from .deferred import Overwritten
from .fallback import Unseen, as_tensor, by_reverse_mode, by_transforms, check_dense, checked, fall_back
from .missing import tool
from .partials import along_coordinates, in_one_sweep, is_whole, points_of
from .propagation import Propagation
from .rules import rules_of
from .sweep import Jet, Sweep

Function = Callable[[Tensor], Tensor]

_FEW = 4  # the most coordinates for which the numbers of a bilaplacian travel together


class ForwardLaplacian(NamedTuple):
    """The result of :func:`forward_laplacian`: value, Jacobian and Laplacian."""

    value: Tensor
    jacobian: Tensor
    laplacian: Tensor


@tool
@outside_inference_mode
def laplacian(f: Function, x: Tensor, coefficients: Tensor | None = None, *, chunk_size: int | None = None) -> Tensor:
    r"""The Laplacian :math:`\sum_i \partial^2 f / \partial x_i^2` at each of many points, in one forward sweep.

    With coefficients, :math:`\sum_{ij} C_{ij}\, \partial_i \partial_j f`: one matrix for all points or one for each. A
    diagonal of ones and zeros gives the Laplacian in some of the coordinates, at the cost of these.

    Values, Jacobians and Laplacians go through the program together, so that no graph is differentiated twice: the
    forward Laplacian (Li et al., 2024, Nature Machine Intelligence 6, 209, arXiv:2307.08214), also known as collapsed
    Taylor mode (Dangel et al., 2025, arXiv:2505.13644). An elementwise function, of PyTorch or declared by
    :func:`pointwise`, is one fused kernel; linear operations, products, what is composed of them (normalisation,
    attention), recurrent networks, complex numbers and writes in place have rules (``docs/laplacian_rules.md``), as
    have operators that :func:`register_rule` was told of. Any other operation is differentiated twice by itself; where
    these touch more than an eighth of the elements that f computes, calls after the first differentiate all of f by
    nested autograd. So is a program that cannot be followed (``torch.autograd.grad`` or a ``torch.autograd.Function``
    in f). Each time one warning says so; with ``TORCHAD_EXT_STRICT=1`` it is an error. Within ``torch.compile`` all of
    f is differentiated twice; ``torch.export`` with ``strict=False`` and ``torch.jit.trace`` record the sweep in plain
    PyTorch. The result may be differentiated again. Derivatives of a norm at 0 are 0, even powers of one are
    differentiated as the smooth functions that they are: ``docs/where_pytorch_is_wrong.md``.

    Args:
        f: maps points ``[..., d]`` to ``[...]`` or ``[..., *outputs]``, any PyTorch code. Each result has to depend on
            its own point only: ``batch_norm`` in training is an error, anything else is not checked, and the
            derivatives are those for all points moved together.
        x: the points ``[..., d]``, or one ``[d]``, of a floating-point dtype on any device.
        coefficients: ``[d, d]``, or ``[..., d, d]`` with the batch dimensions of x; symmetric, not necessarily
            definite, dtype and device of x. No derivative is taken in them.
        chunk_size: takes so many points at a time, split along the first dimension, to bound memory; f has to take any
            number of points then.

    Returns:
        Of the shape and dtype of ``f(x)``; zeros if that does not depend on x.

    Raises:
        TypeError: x or the result of f is not a floating-point tensor.
        ValueError: the shapes do not fit, or coefficients are not symmetric or not finite.
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
        size = points_of(chunk_size)
        matrices = coefficients.split(size) if each else itertools.repeat(coefficients)  # type: ignore[union-attr]
        return torch.cat([laplacian(f, part, C) for part, C in zip(x.split(size), matrices, strict=False)])
    value, _, curvature = _run(f, x, *_directions(x, coefficients), "laplacian")
    return torch.zeros_like(value) if curvature is None else curvature


@tool
@outside_inference_mode
def forward_laplacian(f: Function, x: Tensor) -> ForwardLaplacian:
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


@tool
@outside_inference_mode
def bilaplacian(f: Function, x: Tensor) -> Tensor:
    r"""The bilaplacian :math:`\Delta^2 f`, the Laplacian of the Laplacian, in one forward sweep.

    Up to 4 coordinates it is a sum of derivatives as for :func:`partials`, for which 9 numbers travel in the plane and
    14 in space; with more coordinates it is a sweep within a sweep.

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
    _check(x, None, None, "bilaplacian")
    d = x.shape[-1]
    if d > _FEW or torch.compiler.is_compiling():
        return laplacian(lambda x: laplacian(f, x), x)
    weights: dict[tuple[int, ...], int] = {}
    for i, j in itertools.product(range(d), repeat=2):
        index = tuple(2 * (k == i) + 2 * (k == j) for k in range(d))
        weights[index] = weights.get(index, 0) + 1
    functional = total((Fraction(weight), derivative(index)) for index, weight in weights.items())
    try:
        return in_one_sweep(f, x, along_coordinates(x), [functional], jet_algebra([functional], d), "bilaplacian")[0]
    except Unseen:  # the sweep of the Laplacian has more rules
        return laplacian(lambda x: laplacian(f, x), x)


def _check(x: Any, C: Any, chunk_size: Any, name: str) -> None:
    short, name = name, f"torchad_ext.{name}"
    for what, value in (("x", x), ("coefficients", C)):
        if not isinstance(value, Tensor) and not (what == "coefficients" and value is None):
            is_factor = what == "coefficients" and isinstance(value, numbers.Number)
            remedy = "multiply the result by it" if is_factor else f"write {as_tensor(value)}"
            raise TypeError(f"{name} takes a tensor for {what}, got {type(value).__name__}; {remedy}")
    if not x.is_floating_point():
        raise TypeError(f"{name} takes floating-point x, got {x.dtype}; convert it, x.to(torch.get_default_dtype())")
    check_dense(short, "x", x)
    if x.dim() == 0:
        raise ValueError(f"{name} takes x [..., d], got a number; write x.unsqueeze(-1) for points on a line")
    if chunk_size is not None and not (is_whole(chunk_size) and chunk_size > 0):
        raise ValueError(f"{name} takes a chunk_size of 1 or more, got {chunk_size!r}; None takes all points at once")
    if C is None:
        return
    check_dense(short, "coefficients", C)
    d = x.shape[-1]
    if C.shape not in ((d, d), (*x.shape, d)):
        expected = f"[{d}, {d}]" + (f" or {[*x.shape, d]}" if x.dim() > 1 else "")
        remedy = "; write torch.diag_embed(coefficients)" if C.shape in ((d,), x.shape) else ""
        raise ValueError(f"{name} takes coefficients {expected} for x {list(x.shape)}, got {list(C.shape)}{remedy}")
    if C.dtype != x.dtype or C.device != x.device:
        raise ValueError(
            f"{name}: coefficients are {C.dtype} on {C.device}, x is {x.dtype} on {x.device}; write coefficients.to(x)"
        )
    if C.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{name} takes no derivative in coefficients, which require one; write coefficients.detach(), "
            "or to learn them multiply the derivatives that torchad_ext.partials gives"
        )


def _directions(x: Tensor, C: Tensor | None) -> tuple[list[Tensor], tuple[int, ...]]:
    """Directions u_k and signs with C = Σ_k ±u_k u_k^T.

    The columns of a Cholesky factor for a positive definite C, scaled eigenvectors for another.
    """
    d = x.shape[-1]
    if C is None:
        return along_coordinates(x), (1,) * d
    known = not (transforms_active() or is_recorded())  # are its values?
    C = C.detach()
    asymmetry = (C - C.mT).abs()
    if known and not C.isfinite().all():
        raise ValueError("torchad_ext.laplacian takes finite coefficients, got some that are inf or nan")
    if known and bool((asymmetry > torch.finfo(C.dtype).eps ** 0.5 * C.abs().amax((-2, -1), keepdim=True)).any()):
        raise ValueError(
            f"torchad_ext.laplacian takes symmetric coefficients, got some that differ by {asymmetry.max().item():.3g} "
            "from their transpose; (C + C.mT) / 2 gives the same sum"
        )
    wide = C if C.dtype == torch.float64 else C.float()
    wide = (wide + wide.mT) / 2  # a factorization reads one triangle
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
_MOST = 1000
# Functions that are differentiated as a whole, and what is said of them.
_without_rules: dict[Any, Sequence[tuple[str, str]]] = {}


def _identity(f: Any, x: Tensor) -> Any:
    """A key for f and the dimension of x: calls with one key share the choice between the sweep and nested autograd."""
    while isinstance(f, functools.partial):
        f = f.func
    code = getattr(f, "__code__", None)
    cells = tuple([id(cell.cell_contents) for cell in f.__closure__ or ()]) if code else id(f)
    return code, cells, id(getattr(f, "__self__", None)), x.shape[-1]


def _remember(identity: Any, reasons: Sequence[tuple[str, str]]) -> None:
    """A function is differentiated as a whole from now on, for these reasons."""
    if len(_without_rules) >= _MOST:
        _without_rules.clear()
    _without_rules[identity] = reasons


def _run(
    f: Function,
    x: Tensor,
    directions: Sequence[Tensor],
    signs: tuple[int, ...],
    name: str,
    with_tangents: bool = False,
) -> tuple[Tensor, Sequence[Tensor] | None, Tensor | None]:
    """The value of f, its tangents if they are wanted, and its Laplacian; None for zero."""
    if torch.compiler.is_dynamo_compiling():
        return by_transforms(f, x, directions, signs, name)
    identity = _identity(f, x)
    if identity in _without_rules and not transforms_active() and type(x) is not Jet:
        for reason in _without_rules[identity]:
            fall_back(*reason)
        try:
            return by_reverse_mode(f, x, directions, signs, name, with_tangents)
        except RuntimeError:  # a sweep may do without the derivative that PyTorch lacks
            _without_rules.pop(identity, None)
    try:
        sweep, y, tangents = _swept(f, x, directions, signs, with_tangents)
    except Unseen as unseen:
        reason = f"cannot follow {unseen}", "the function is"
        fall_back(*reason)
        if transforms_active():
            return by_transforms(f, x, directions, signs, name)
        result = by_reverse_mode(f, x, directions, signs, name, with_tangents)
        _remember(identity, [reason])
        return result
    value = checked(sweep.value(y), x, name)
    if not value.numel():  # no numbers are their own derivatives, and of the same graph
        return value, [value] * len(directions), value
    few = value.numel() * x.shape[-1] <= 2 * x.numel()  # results, for each of which autograd is run
    if few and sweep.unruled > _SHARE * (sweep.elements + sweep.unruled):
        _remember(identity, [(f"has no rule for {operation}", "it is") for operation in sorted(sweep.without_rule)])
    if not sweep.owns(y):
        return value, None, None
    return value, tangents, y.laplacian


def _swept(
    f: Function,
    x: Tensor,
    directions: Sequence[Tensor],
    signs: tuple[int, ...],
    with_tangents: bool,
    defers: bool = True,
) -> tuple[Sweep, Any, Sequence[Tensor] | None]:
    """The sweep, the result of f, and its tangents if they are wanted."""
    sweep = Propagation(signs, torch.is_grad_enabled(), rules_of=rules_of, defers=defers)
    try:
        y = sweep.follow(f, sweep.tensor(x, directions, None))
        return sweep, y, y.tangents if with_tangents and sweep.owns(y) else None
    except Overwritten:
        if not defers:
            raise
    return _swept(f, x, directions, signs, with_tangents, defers=False)
