"""Second derivatives by PyTorch's own autograd, where the forward Laplacian has no rule: of an operation or of all."""

from __future__ import annotations

import functools
import math
import operator
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._autograd.foreign_functions import check_functions
from .._autograd.graph import depends_on_others, foreign_nodes, graph_nodes, is_cut_off
from .._autograd.undefined import sum_defined
from .._settings import is_strict
from .._symbolic.jet_algebra import Functional, Index
from .._torch_state import function_of, gradients_along, is_exporting, transforms_active
from .._warnings import warn_user
from .batches import curvature
from .correction_mode import run_corrected, with_corrections
from .undone import once_more

Function = Callable[[Tensor], Tensor]
Tensors = tuple[Tensor, ...]

_AT_ONCE = 10  # the most directions whose graphs are kept at a time
_warned: set[str] = set()
_differentiable: weakref.WeakSet[type] = weakref.WeakSet()  # Functions whose backward was found to be complete


class Unseen(Exception):
    """The sweep cannot follow what the message names."""


def fall_back(what: str, how: str, by: str = "torchad_ext.laplacian", times: str = "twice") -> None:
    """Says once that something is differentiated the slow way."""
    if is_exporting():
        raise RuntimeError(f"{by} {what}, of which torch.export would silently record a constant")
    message = f"{by} {what}; {how} differentiated {times} instead, which is exact but slower"
    if is_strict():
        raise RuntimeError(f"{message}. TORCHAD_EXT_STRICT=1 makes that an error")
    if message not in _warned:
        _warned.add(message)
        warn_user(message)


def has_derivative(x: Any) -> bool:
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


def random_states(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def restore_random_states(device: torch.device, states: Sequence[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state, device)


def variable(x: Tensor) -> Tensor:
    """x as a tensor to differentiate in, which keeps the graph of x."""
    return x.view_as(x) if x.requires_grad else x.detach().requires_grad_()


def of_elements(
    y: Tensor,
    xs: Sequence[Tensor],
    tangents: Sequence[Tensors],
    laplacians: Sequence[Tensor | None],
    signs: Sequence[int],
    recording: bool,
) -> tuple[list[Tensor], Tensor]:
    """Tangents and Laplacian of an elementwise y = f(x_a, x_b, ...), real or holomorphic, at the cost of f_a and f_ab.

    y_k = Σ_a f_a x_a,k and Δy = Σ_a f_a Δx_a + Σ_ab f_ab Σ_k ±x_a,k x_b,k: each derivative is one gradient of a sum,
    whatever the number of directions. y has the graph of the variables xs, which have its shape.
    """
    with torch.enable_grad():
        slopes = _slopes(y, xs)
        _check_twice([slope for slope in slopes if slope is not None])
        curvatures = [() if slope is None else _slopes(slope, xs[a:]) for a, slope in enumerate(slopes)]
    if not recording:
        slopes = [None if slope is None else slope.detach() for slope in slopes]
        curvatures = [[None if c is None else c.detach() for c in row] for row in curvatures]
    rows = [
        sum_defined(*(f_a * t for f_a, t in zip(slopes, along, strict=True) if f_a is not None)) for along in tangents
    ]
    terms = [f_a * x for f_a, x in zip(slopes, laplacians, strict=True) if f_a is not None and x is not None]
    for a, row in enumerate(curvatures):
        for b, f_ab in enumerate(row, a):
            if f_ab is not None:
                squares: Any = sum_defined(*(s * along[a] * along[b] for s, along in zip(signs, tangents, strict=True)))
                terms.append((1 if a == b else 2) * f_ab * squares)
    zero = torch.zeros_like(y.detach())
    total = sum_defined(*terms)
    return [zero if row is None else row for row in rows], zero if total is None else total


def _slopes(y: Tensor, xs: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """The derivatives of an elementwise y; None for zero. Those that PyTorch has are conjugate."""
    if not y.requires_grad:
        return [None] * len(xs)
    slopes = torch.autograd.grad(y, xs, torch.ones_like(y), create_graph=True, allow_unused=True)
    return [None if slope is None else slope.conj() if slope.is_complex() else slope for slope in slopes]


def of_operation(
    f: Callable[..., Tensors],
    xs: Tensors,
    tangents: Sequence[Tensors],
    laplacians: Tensors,
    signs: Sequence[int],
    recording: bool,
) -> tuple[list[Tensors], Tensors]:
    """Tangents f'(x) x_k and Laplacians f'(x) Δx + Σ_k ±f''(x)[x_k, x_k] of the results of any operation.

    The gradient of g·f is linear in g, so the gradients in g of g·f'(x) u and of g·f''(x)[u, u] are these. What PyTorch
    differentiates in x is that of double reverse mode: forward mode is wrong in ``torch.linalg.solve`` and zero in
    custom operators, a third derivative is in ``batch_norm``, a transform in ``torch.linalg.det``.
    """
    if transforms_active():
        pairs = [_twice_by_transforms(f, xs, us) for us in tangents]
        total = list(_twice_by_transforms(f, xs, laplacians)[0])
        for sign, (_, curvatures) in zip(signs, pairs, strict=True):
            total = [y + sign * c for y, c in zip(total, curvatures, strict=True)]
        return [slopes for slopes, _ in pairs], tuple(total)
    rows: list[Tensors] = []
    with torch.enable_grad():
        xs = tuple(map(variable, xs))
        ys = f(*xs)
        gs = tuple(torch.ones_like(y, requires_grad=True) for y in ys)  # not zeros: some operations take its logarithm
        gradients = _gradients(ys, xs, gs, True)
        _check_twice(gradients)
        check_functions(foreign_nodes(ys), lambda: f(*xs))
        keeps = recording and depends_on_others(ys, xs)
        total = list(_gradients(gradients, gs, laplacians, True))
        for start in range(0, len(signs), _AT_ONCE):
            curved: list[Tensor] = []
            weights: list[Tensor] = []
            for sign, us in zip(signs[start : start + _AT_ONCE], tangents[start:], strict=False):
                both = _gradients(gradients, (*xs, *gs), us, True)
                curved += both[: len(xs)]
                weights += [sign * u for u in us]
                rows.append(both[len(xs) :] if keeps else tuple(y.detach() for y in both[len(xs) :]))
            for i, y in enumerate(_gradients(curved, gs, weights, keeps)):
                total[i] = total[i] + y
    return rows, tuple(total if keeps else [y.detach() for y in total])


def _gradients(ys: Sequence[Tensor], xs: Sequence[Tensor], gs: Sequence[Tensor], create_graph: bool) -> Tensors:
    """The gradients of g·y; zeros where y does not depend on x."""
    chosen = [i for i, y in enumerate(ys) if y.requires_grad]
    if not chosen:
        return tuple(map(torch.zeros_like, xs))
    of, at = (tuple(rows[i] for i in chosen) for rows in (ys, gs))
    gradients = gradients_along(of, tuple(xs), at, create_graph)
    return tuple([torch.zeros_like(x) if g is None else g for x, g in zip(xs, gradients, strict=True)])


def _twice_by_transforms(f: Callable[..., Tensors], xs: Tensors, us: Tensors) -> tuple[Tensors, Tensors]:
    """f'(x) u and f''(x)[u, u]."""

    def pullback(gs: Tensors, xs: Tensors) -> Tensors:
        of: Any = torch.func.vjp(f, *xs)
        return of[1](gs)  # type: ignore[no-any-return]

    def slopes(gs: Tensors) -> tuple[Tensors, Tensors]:
        of: Any = torch.func.vjp(pullback, gs, xs)
        tangents, gradients = of[1](us)
        return gradients, tangents

    gs = tuple(map(torch.ones_like, f(*xs)))
    of: Any = torch.func.vjp(slopes, gs, has_aux=True)
    return of[2], of[1](us)[0]


def as_tensor(x: Any) -> str:
    """How to make a tensor of something else that was given for one."""
    parts = isinstance(x, (list, tuple)) and any(isinstance(part, Tensor) for part in x)
    return "torch.cat(x, -1), or torch.stack(x, -1) of tensors [...]" if parts else "torch.as_tensor(...)"


def check_dense(name: str, what: str, x: Tensor) -> None:
    """Refuses what a sweep cannot carry tangents of."""
    if x.layout is not torch.strided or x.is_nested:
        layout = "a nested tensor" if x.is_nested else f"one of {x.layout}"
        raise TypeError(f"torchad_ext.{name} takes dense tensors for {what}, got {layout}; see x.to_dense()")


def checked(y: Any, x: Tensor, name: str) -> Tensor:
    """The result of f, if it is one."""
    if not isinstance(y, Tensor):
        remedy = "is its return missing?" if y is None else "compute it without item(), numpy() and the like"
        if isinstance(y, (tuple, list, dict)):
            first = next(iter(y), None) if isinstance(y, dict) else 0
            remedy = f"pick one, lambda x: f(x)[{first!r}]"
        raise TypeError(f"torchad_ext.{name}: f returns a tensor, got {type(y).__name__}; {remedy}")
    if not has_derivative(y):
        raise TypeError(f"torchad_ext.{name}: f returns floating-point numbers, got {y.dtype}, which has no derivative")
    batch = x.shape[:-1]
    if y.shape[: len(batch)] != batch:
        raise ValueError(
            f"torchad_ext.{name}: f maps x [..., d] to [...] or [..., outputs], each result from its own point; got "
            f"{list(y.shape)} for x {list(x.shape)}"
        )
    return y


def by_transforms(
    f: Function, x: Tensor, directions: Sequence[Tensor], signs: tuple[int, ...], name: str
) -> tuple[Tensor, Sequence[Tensor] | None, Tensor | None]:
    """Value, tangents and Laplacian of f by torch.func, a direction at a time."""
    f = with_corrections(f)
    value = checked(f(x), x, name)
    rows = [_twice_by_transforms(lambda x: (f(x),), (x,), (u,)) for u in directions]
    return value, [y for (y,), _ in rows], sum_defined(*(sign * y for sign, (_, (y,)) in zip(signs, rows, strict=True)))


def _check_twice(slopes: Sequence[Tensor]) -> None:
    """Raises for a gradient that ``once_differentiable`` cut off from x: autograd would take it for a constant."""
    if any(map(is_cut_off, graph_nodes(slopes))):
        raise RuntimeError("a backward in it is marked with @once_differentiable")


def by_reverse_mode(
    f: Function, x: Tensor, directions: Sequence[Tensor], signs: tuple[int, ...], name: str, with_tangents: bool
) -> tuple[Tensor, Sequence[Tensor] | None, Tensor | None]:
    """Value, tangents if they are wanted, and Laplacian of f by reverse mode over reverse mode, a result at a time."""
    recording = torch.is_grad_enabled()
    with torch.enable_grad():
        leaf = x if x.requires_grad else x.detach().requires_grad_()
        wanted = leaf is x
        x = leaf.view_as(leaf)
        value = checked(run_corrected(f, x), x, name)
        recording = recording and (wanted or depends_on_others([value], [leaf]))
        if not value.numel():
            value = value if recording else value.detach()
            return value, [value] * len(directions), value
        numbers = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
        is_one = numbers.shape == x.shape[:-1]
        results = [numbers] if is_one else numbers.reshape(*x.shape[:-1], -1).unbind(-1)

        functions = foreign_nodes([value])
        unknown = not all(function_of(node) in _differentiable for node in functions)

        def pulled(y: Tensor, create_graph: bool, cotangent: Tensor) -> Tensor:
            return _gradients([y], [x], [cotangent], create_graph)[0]

        def joined(rows: Sequence[Tensor]) -> Tensor:
            row = rows[0] if is_one else torch.stack(list(rows), -1).reshape(numbers.shape)
            return row.to(numbers.dtype)

        try:
            # once_differentiable leaves its mark where the cotangent requires a gradient.
            slopes = [pulled(y, True, torch.ones_like(y, requires_grad=unknown)) for y in results]
            if unknown:
                _check_twice(slopes)
                check_functions(functions, lambda: once_more(f, x))
                _differentiable.update(function_of(node) for node in functions)
            rows = [joined([(g * u).sum(-1) for g in slopes]) for u in directions] if with_tangents else []
            pulls = [functools.partial(pulled, g, recording) for g in slopes]
            rows += [joined([curvature(*of, directions, signs, f, name) for of in zip(pulls, slopes, strict=True)])]
        except RuntimeError as error:
            raise RuntimeError(f"torchad_ext.{name}: f cannot be differentiated twice: {error}") from error
    rows = [value, *(map(torch.view_as_complex, rows) if value.is_complex() else rows)]
    value, *tangents, total = rows if recording else [row.detach() for row in rows]
    return value, tangents if with_tangents else None, total


def _sums_of(functionals: Sequence[Functional], along: Callable[[Index], Tensor], count: int) -> tuple[Tensor, ...]:
    """Functionals Σ_α w_α ∂^α / α! of the derivatives along so many directions; zeros of one without terms."""
    results = []
    for functional in functionals:
        terms = [float(w / math.prod(map(math.factorial, index))) * along(index) for index, w in functional.items()]
        results.append(functools.reduce(operator.add, terms) if terms else torch.zeros_like(along((0,) * count)))
    return tuple(results)


def _lowered(index: Index) -> tuple[Index, int]:
    """The index of which this one is a derivative, and the direction."""
    i = next(i for i, n in enumerate(index) if n)
    return (*index[:i], index[i] - 1, *index[i + 1 :]), i


def along_by_transforms(
    f: Function, x: Tensor, directions: Sequence[Tensor], functionals: Sequence[Functional], name: str
) -> tuple[Tensor, ...]:
    """Derivatives of f along directions, of any order, by torch.func."""
    checked(run_corrected(f, x), x, name)

    def differentiated(index: Index) -> Function:
        if not any(index):
            return with_corrections(f)
        lower, i = _lowered(index)
        of = differentiated(lower)

        def along(x: Tensor) -> Tensor:
            made: Any = torch.func.vjp(of, x)
            # The pullback is linear in the cotangent: its own pullback is the pushforward.
            pushed: Any = torch.func.vjp(lambda g: made[1](g)[0], torch.ones_like(made[0]))
            return pushed[1](directions[i])[0]  # type: ignore[no-any-return]

        return along

    return _sums_of(functionals, lambda index: differentiated(index)(x), len(directions))


def along_by_reverse_mode(
    f: Function, x: Tensor, directions: Sequence[Tensor], functionals: Sequence[Functional], name: str
) -> tuple[Tensor, ...]:
    """Derivatives of f along directions, of any order, by nested reverse mode, a result at a time."""
    recording = torch.is_grad_enabled()
    with torch.enable_grad():
        leaf = x if x.requires_grad else x.detach().requires_grad_()
        wanted = leaf is x
        x = leaf.view_as(leaf)
        value = checked(run_corrected(f, x), x, name)
        recording = recording and (wanted or depends_on_others([value], [leaf]))
        if not value.numel():
            return (value if recording else value.detach(),) * len(functionals)
        numbers = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
        results_of_f = numbers.reshape(*x.shape[:-1], -1).unbind(-1)
        functions = foreign_nodes([value])

        @functools.cache
        def gradients(index: Index) -> Sequence[Tensor]:
            return [_gradients([y], [x], [torch.ones_like(y)], True)[0] for y in along(index)]

        def along(index: Index) -> Sequence[Tensor]:
            if not any(index):
                return results_of_f
            lower, i = _lowered(index)
            return [(g * directions[i]).sum(-1) for g in gradients(lower)]

        def stacked(index: Index) -> Tensor:
            y = torch.stack(list(along(index)), -1).reshape(numbers.shape)
            return torch.view_as_complex(y) if value.is_complex() else y

        try:
            if functions:
                # A cotangent that requires a gradient, for once_differentiable to leave its mark.
                marked = [torch.ones_like(y, requires_grad=True) for y in results_of_f]
                _check_twice([_gradients([y], [x], [g], True)[0] for y, g in zip(results_of_f, marked, strict=True)])
                check_functions(functions, lambda: once_more(f, x))
            results = _sums_of(functionals, stacked, len(directions))
        except RuntimeError as error:
            raise RuntimeError(f"torchad_ext.{name}: f cannot be differentiated so often: {error}") from error
    return results if recording else tuple(y.detach() for y in results)
