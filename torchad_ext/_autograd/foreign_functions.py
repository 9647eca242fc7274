"""The check of an ``autograd.Function`` that somebody else wrote: does autograd see all that its backward depends on?

A backward that uses a number made in forward, or outside of autograd, has a derivative that lacks this number's part,
and PyTorch does not notice. So the derivative of the backward is compared with finite differences, once a Function,
near the inputs of one of its calls.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_unflatten

from .._torch_state import function_of, structure_of_lists, takes_context

COMPILED = "CompiledFunctionBackward"  # the node of what torch.compile made
_MOVED = 0.2  # of the size of an input, to be off the places where derivatives vanish
_DIRECTIONS = (None, 10**9, 32, 32, 4, 4)  # elements that change at once, away from 0 or at random; few meet a kink
_SMOOTH = 0.02  # by how much two finite differences may differ
_MISSING = 0.2  # of a derivative

_OF_TORCH = ("torch.utils.", "torch._functorch.", "torch._dynamo.", "torch.distributed.", "torch.nn.")

_checked: weakref.WeakSet[type] = weakref.WeakSet()
_lock = threading.RLock()


def check_functions(nodes: Iterable[Any], again: Callable[[], Any]) -> None:
    """Raises where the derivative of a backward lacks terms.

    Args:
        nodes: those of the Functions in the graph of f.
        again: runs f again, to see the inputs of Functions that are not known yet.

    Raises:
        RuntimeError: it names the Function and says how to write it, or torch.compile made it.
    """
    nodes = list(nodes)
    if any(node.name() == COMPILED for node in nodes):  # some raise this themselves, others give zeros
        raise RuntimeError("torch.compile with aot_autograd does not currently support double backward")
    unknown = functions_of(nodes) - set(_checked)
    if not unknown:
        return
    with _lock, torch.random.fork_rng():
        with _recorded(unknown) as calls:
            again()
        for cls, args in calls.items():
            if not _is_complete(cls, args):
                raise RuntimeError(
                    f"f is not differentiable often enough: the backward of the autograd.Function {cls.__qualname__} "
                    "depends on its inputs through a number that autograd takes for a constant, such as an "
                    "intermediate result of forward that was saved, so that the second derivative would lack terms "
                    "(finite differences of its gradient show them); save the inputs by ctx.save_for_backward, and "
                    "compute from them in backward, in differentiable operations"
                )
            _checked.add(cls)


def functions_of(nodes: Iterable[Any], of_operators: bool = True) -> set[type]:
    """The Functions of some nodes but those of PyTorch; with or without those of ``torch.library.custom_op``."""
    classes = {function_of(node) for node in nodes}
    others = _OF_TORCH if of_operators else (*_OF_TORCH, "torch._library.")
    return {cls for cls in classes if not f"{cls.__module__}.".startswith(others)}


@contextlib.contextmanager
def replaced(classes: Iterable[type], name: str, by: Callable[[Any, Callable[..., Any]], Any]) -> Iterator[None]:
    """Puts ``by(cls, method)`` in the place of the static method of a name of each class."""
    originals = {cls: vars(cls).get(name) for cls in classes}
    try:
        for cls in originals:
            setattr(cls, name, staticmethod(by(cls, getattr(cls, name))))
        yield
    finally:
        for cls, original in originals.items():
            if original is None:
                delattr(cls, name)
            else:
                setattr(cls, name, original)


def detached(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copies of the tensors among some arguments, which require gradients as they did."""
    return tuple(x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in args)


@contextlib.contextmanager
def _recorded(classes: Iterable[type]) -> Iterator[dict[type, tuple[Any, ...]]]:
    """The arguments of the first call of each Function."""
    calls: dict[type, tuple[Any, ...]] = {}

    def recording(cls: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
        with_context = takes_context(cls)

        def record(*args: Any, **kwargs: Any) -> Any:
            given = args[with_context:]
            if cls not in calls and not kwargs:
                calls[cls] = detached(given)
            return forward(*args, **kwargs)

        return record

    with replaced(classes, "forward", recording):
        yield calls


class _Probe:
    """Calls of a Function near the inputs of one, on the same numbers each time.

    Attributes:
        points: inputs that require gradients, off the places where derivatives vanish.
        cotangents: of the outputs.
    """

    def __init__(self, cls: Any, args: tuple[Any, ...]) -> None:
        self._lists = structure_of_lists(args)
        args = args if self._lists is None else args[:-1]
        self._cls, self._args = cls, args
        self._places = [i for i, x in enumerate(args) if isinstance(x, Tensor) and x.requires_grad]
        self.generator = torch.Generator().manual_seed(0)
        given = [args[i] for i in self._places]
        self.sizes = list(map(_sizes, given))
        self.points = [
            (x.detach() + _MOVED * size * self.random_like(x)).requires_grad_()
            for x, size in zip(given, self.sizes, strict=True)
        ]
        self.cotangents = [self.random_like(y) for y in self.apply(self.points)]
        self.step = max((torch.finfo(x.dtype).eps for x in self.points), default=0.0) ** (1 / 3)

    def random_like(self, x: Tensor) -> Tensor:
        return (2 * torch.rand(x.shape, dtype=torch.float64, generator=self.generator) - 1).to(x)

    def apply(self, points: list[Tensor]) -> list[Tensor]:
        given = dict(zip(self._places, points, strict=True))
        torch.manual_seed(0)
        # A copy, into which forward may write.
        args = [given[i].clone() if i in given else x for i, x in enumerate(self._args)]
        outputs = self._cls.apply(*(args if self._lists is None else tree_unflatten(args, self._lists)))
        return [y for y in tree_leaves(outputs) if isinstance(y, Tensor) and y.requires_grad]

    def backward(self, points: list[Tensor], create_graph: bool = False) -> list[Tensor]:
        gradients = torch.autograd.grad(
            self.apply(points), points, self.cotangents, create_graph=create_graph, allow_unused=True,
            materialize_grads=True,
        )  # fmt: skip
        return list(gradients)

    def directions(self) -> Iterator[list[Tensor]]:
        for count in _DIRECTIONS:
            signs = ((1.5 + self.random_like(x)) * x.detach().sgn() / 2 for x in self.points)
            ways = map(self.random_like, self.points) if count else signs
            yield [_sparse(size * u, count, self.generator) for size, u in zip(self.sizes, ways, strict=True)]

    def agrees(self, gradients: list[Tensor], direction: list[Tensor]) -> bool:
        """Is the backward the derivative of forward along a direction?"""
        values = _difference(self.apply, self.points, direction, self.cotangents, self.step / 2)
        first = float(_dot(gradients, direction))
        return values is not None and abs(values - first) <= _SMOOTH * abs(first)


def is_derivative(cls: Any, args: tuple[Any, ...]) -> bool:
    """Is the backward of a Function the derivative of its forward? False where finite differences do not tell."""
    with torch.enable_grad(), torch.random.fork_rng(), contextlib.suppress(Exception):
        probe = _Probe(cls, args)
        if not probe.cotangents:
            return False
        gradients = [g.detach() for g in probe.backward(probe.points)]
        return all(probe.agrees(gradients, direction) for direction in probe.directions())
    return False


def _is_complete(cls: Any, args: tuple[Any, ...]) -> bool:
    """Does the derivative of the backward have all terms? True where finite differences do not tell."""
    # It may be a backward that runs on the usual way only, or a forward that refuses inputs near those of f.
    with torch.enable_grad(), contextlib.suppress(Exception):
        probe = _Probe(cls, args)
        points, step = probe.points, probe.step
        if not probe.cotangents:
            return True
        gradients = probe.backward(points, create_graph=True)
        # Weights have the signs of the gradients, so that the terms of their sum do not cancel.
        weights = [(1.5 + probe.random_like(g)) * g.detach().sgn() for g in gradients]
        total = _dot(weights, gradients)
        slopes = (
            list(torch.autograd.grad(total, points, allow_unused=True, materialize_grads=True))
            if total.requires_grad
            else [torch.zeros_like(x) for x in points]
        )
        gradients = [g.detach() for g in gradients]
        for direction in probe.directions():
            coarse, fine = (_difference(probe.backward, points, direction, weights, h) for h in (step, step / 2))
            if fine is None or coarse is None or not (abs(coarse - fine) <= _SMOOTH * abs(fine)):
                continue
            along = float(_dot(slopes, direction))
            # A backward that is no derivative of forward (a straight-through estimator) may mean what it says.
            honest = probe.agrees(gradients, direction)
            if abs(along - fine) > (_MISSING if honest else 1 - _SMOOTH) * abs(fine):
                return False
    return True


def _sizes(x: Tensor) -> Tensor:
    size = x.detach().abs()
    mean = size[size > 0].mean() if bool((size > 0).any()) else torch.ones_like(size).mean()
    return torch.where(size > 0, size, mean / 10)


def _dot(xs: list[Tensor], ys: list[Tensor]) -> Tensor:
    """The real inner product, in double precision."""
    terms = [(x.conj() * y.to(x.dtype)).real.double().sum() for x, y in zip(xs, ys, strict=True)]
    return torch.stack(terms).sum()


def _sparse(x: Tensor, count: int | None, generator: torch.Generator) -> Tensor:
    if count is None or count >= x.numel():
        return x
    kept = torch.zeros(x.numel(), dtype=torch.bool)
    kept[torch.randperm(x.numel(), generator=generator)[:count]] = True
    return torch.where(kept.view(x.shape).to(x.device), x, torch.zeros_like(x))


def _difference(
    function: Callable[[list[Tensor]], list[Tensor]],
    points: list[Tensor],
    direction: list[Tensor],
    weights: list[Tensor],
    step: float,
) -> float | None:
    """The central difference of a function along a direction, weighted; None if rounding hides it."""
    ends = [
        [(x.detach() + h * u).requires_grad_() for x, u in zip(points, direction, strict=True)] for h in (step, -step)
    ]
    plus, minus = ([y.detach() for y in function(end)] for end in ends)
    if [y.shape for y in plus] != [y.shape for y in minus]:
        return None
    changes = [a - b for a, b in zip(plus, minus, strict=True)]
    rounding = [torch.finfo(a.dtype).eps * a.abs() * (c != 0) for a, c in zip(plus, changes, strict=True)]
    change = float(_dot(weights, changes))
    noise = float(_dot([w.abs() for w in weights], rounding))
    if not abs(change) > 50 * noise:
        return None
    return change / (2 * step)
