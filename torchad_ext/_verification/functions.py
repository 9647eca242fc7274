"""Functions of tensors as tuples of tensors, and their derivatives as functions of that kind."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.autograd.functional import jacobian

from .faults import got_and_expected, index_of, named_element

Tensors = tuple[torch.Tensor, ...]
Function = Callable[..., Tensors]


def of_some(f: Callable[..., Any], arguments: Sequence[Any], places: list[int]) -> Function:
    """f as a function of the arguments at some places, the others fixed, that gives a tuple."""

    def function(*inputs: torch.Tensor) -> Tensors:
        values = list(arguments)
        for i, x in zip(places, inputs, strict=True):
            values[i] = x
        result = f(*values)
        results = tuple(result) if isinstance(result, (tuple, list)) else (result,)
        for x in results:
            if not isinstance(x, torch.Tensor):
                given = f"a {type(result).__name__} with {type(x).__name__}" if x is not result else type(x).__name__
                raise TypeError(f"it returned {given}, expected a tensor or a tuple of tensors")
        return results

    return function


def smooth(f: Function) -> Function:
    """f without its results that are not of floating point."""
    return lambda *xs: tuple(y for y in f(*xs) if y.is_floating_point())


def differentiable(f: Function, inputs: Tensors) -> tuple[Function, list[int]]:
    """f without its results that do not require grad at some inputs, and which it keeps."""
    kept = [i for i, y in enumerate(f(*inputs)) if y.requires_grad]

    def function(*xs: torch.Tensor) -> Tensors:
        results = f(*xs)
        return tuple(results[i] for i in kept)

    return function, kept


def parameter_names(op: Callable[..., Any], definition: Callable[..., Any], count: int) -> list[str]:
    """The names of the first arguments, by the signature of the definition, else of the op."""
    for f in (definition, op):
        try:
            parameters = inspect.signature(f).parameters.values()
        except (TypeError, ValueError):
            continue
        names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if len(names) >= count:
            return names[:count]
    return ["x"] if count == 1 else [f"x{i}" for i in range(count)]


def pullback(
    outputs: Iterable[torch.Tensor], inputs: Sequence[torch.Tensor], cotangents: Iterable[torch.Tensor]
) -> list[torch.Tensor]:
    """The vector-Jacobian product, zero where an output does not depend on an input."""
    given = [(y, c.to(y.dtype)) for y, c in zip(outputs, cotangents, strict=True) if y.requires_grad]
    if not given:
        return [torch.zeros_like(x) for x in inputs]
    ys, cs = zip(*given, strict=True)
    return list(torch.autograd.grad(ys, inputs, cs, create_graph=True, allow_unused=True, materialize_grads=True))


def orders_of(
    f: Function,
    inputs: Sequence[torch.Tensor],
    grad_outputs: Sequence[torch.Tensor],
    grad_grads: Sequence[torch.Tensor],
) -> Iterator[tuple[str, Sequence[torch.Tensor]]]:
    """The value, the gradient and the double backward of f, with given cotangents for the two backward passes."""
    leaves = [x.requires_grad_() for x in inputs]
    value = f(*leaves)
    yield "value", value
    seeds = [c.detach().requires_grad_() for c in grad_outputs]
    gradient = pullback([y for y in value if y.is_floating_point()], leaves, seeds)
    yield "gradient", gradient
    yield "double backward", pullback(gradient, [*leaves, *seeds], grad_grads)


def gradient_of(f: Function, count: int, *arguments: torch.Tensor) -> Tensors:
    """The gradient of f in its arguments, which are followed by the cotangents."""
    xs = [x if x.requires_grad else x.requires_grad_() for x in arguments]
    return tuple(pullback(f(*xs[:count]), xs[:count], xs[count:]))


def has_forward_mode(f: Function, inputs: Tensors) -> bool:
    try:
        with forward_ad.dual_level():
            f(*(forward_ad.make_dual(x.detach(), torch.zeros_like(x)) for x in inputs))
    except NotImplementedError:
        return False
    except Exception:
        return True  # gradcheck says what is wrong
    return True


def largest_difference(
    f: Function, inputs: Tensors, names: Sequence[str], outputs: Sequence[str], forward: bool, step: float = 1e-6
) -> str:
    """Where the Jacobian of f is farthest from central differences, beyond the tolerance of ``gradcheck``."""
    blocks = jacobian(f, inputs)
    largest, detail = 1.0, ""
    for k, (name, x) in enumerate(zip(names, inputs, strict=True)):
        others = [y.detach() for y in inputs]
        for i in range(x.numel()):
            direction = torch.zeros_like(x, requires_grad=False)
            direction[index_of(i, x.shape)] = 1.0
            behind, ahead = (f(*others[:k], others[k] + t * direction, *others[k + 1 :]) for t in (-step, step))
            modes = {"": [block[k].reshape(-1, x.numel())[:, i] for block in blocks]}
            if forward:
                with forward_ad.dual_level():
                    ys = f(*others[:k], forward_ad.make_dual(others[k].clone(), direction), *others[k + 1 :])
                    modes["in forward mode "] = [_tangent(y) for y in ys]
            for mode, columns in modes.items():
                for output, column, low, high in zip(outputs, columns, behind, ahead, strict=True):
                    numerical = ((high - low) / (2 * step)).detach().flatten()
                    excess = (column - numerical).abs() / (1e-5 + 1e-3 * numerical.abs())
                    excess = excess.nan_to_num(float("inf"), posinf=float("inf"))
                    if excess.numel() and float(excess.max()) > largest:
                        largest, row = float(excess.max()), int(excess.argmax())
                        (y, _), (at, value) = named_element(output, high, row), named_element(name, x, i)
                        text = got_and_expected(column[row], numerical[row])[1]
                        detail = f"differs from finite differences: d {y} / d {at} {mode}at {at} = {value}: {text}"
    return detail


def _tangent(x: torch.Tensor) -> torch.Tensor:
    primal, tangent = forward_ad.unpack_dual(x)
    return (torch.zeros_like(primal) if tangent is None else tangent).detach().flatten()
