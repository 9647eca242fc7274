"""Rounding errors: how large those of a definition and of a pointwise op may be, and in which units one counts them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from .._pointwise import Pointwise
from .._symbolic.cpp import lower
from .._symbolic.evaluate import evaluate_nodes
from .._symbolic.expr import topological
from .._symbolic.program import Program
from .._torch_state import is_undefined_zero

Tensors = tuple[torch.Tensor, ...]


def is_differentiated(x: Any) -> bool:
    """Is x a tensor of floating point?"""
    return isinstance(x, torch.Tensor) and x.is_floating_point()


class MoreRounding(TorchDispatchMode):
    """Moves each result of PyTorch's by up to some units in its last place, at random: Monte Carlo arithmetic
    (D. Parker, UCLA CSD-970002, 1997)."""

    def __init__(self, seed: int, moves_summands: bool, units: int = 1) -> None:
        super().__init__()
        self._seed, self._calls, self._moves_summands = seed, itertools.count(), moves_summands
        self._units = units

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._moves_summands and func.overloadpacket is torch.ops.aten.sum:  # its roundings are those of n numbers
            args = (self._moved(args[0]), *args[1:])
        result = func(*args, **(kwargs or {}))
        if func._schema.is_mutable or any(y.alias_info is not None for y in func._schema.returns):
            return result
        return tree_map(self._moved, result)

    def _moved(self, y: Any) -> Any:
        # A product with an undefined zero, as the second derivative of abs is, ends the process.
        if not is_differentiated(y) or y.is_meta or is_undefined_zero(y):
            return y
        generator = torch.Generator(y.device).manual_seed(1000 * next(self._calls) + self._seed)
        unit = 2 * torch.rand(y.shape, generator=generator, dtype=y.dtype, device=y.device) - 1
        return y * (1 + self._units * torch.finfo(y.dtype).eps * unit)


class RunningErrors:
    """How large the numbers are that a pointwise op rounds on its way to each element of its derivatives."""

    def __init__(self, op: Pointwise, inputs: Tensors) -> None:
        arguments = op.bound(inputs, {})
        _, member, scalars = op.resolve(arguments)
        self._program, self._inputs = member.program, inputs
        self._scalars = [float(arguments[i]) for i in scalars]

    def of(self, order: int, *cotangents: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        """For each result: the sum of abs(d result / d node) abs(node) over all nodes computed; None where it is zero.

        In units of the inputs' dtype, however precise it is computed.

        Args:
            order: 0 for the values, 1 for the gradients, 2 for the gradients of these in inputs and cotangents.
            cotangents: of the values, and of the gradients.
        """
        program, scalars = self._program, self._scalars
        shapes = [x.shape for x in (*self._inputs, *cotangents[0])]
        everything = [x.expand(shapes[-1]) for x in self._inputs]
        taken, present = list(range(len(everything))), list(range(len(program.outputs)))
        count = len(present)
        for seeds in cotangents[:order]:
            derivative = program.vjp([True] * len(program.inputs), [True] * len(program.outputs))
            places = taken + [len(everything) + i for i in present]
            count, present = len(everything), [taken[i] for i in derivative.results]
            everything += [x.expand(shapes[-1]) for x in seeds]
            taken = [places[i] for i in derivative.arguments]
            scalars = [scalars[i] for i in derivative.scalars]
            program = derivative.program
        limits = torch.finfo(self._inputs[0].dtype)
        # float16 and bfloat16 are computed in float32.
        precision = min(limits.eps, torch.finfo(torch.float32).eps) / limits.eps
        sizes = iter(self._sizes(program, [everything[i] for i in taken], scalars))
        results: list[torch.Tensor | None] = [None] * count
        for i in present:
            value, rounded = (x.expand(shapes[-1]) for x in next(sizes))
            target = shapes[i if order else i + len(self._inputs)]
            # The gradient of an input that was expanded is a sum of elements that were rounded each.
            size = precision * rounded + value if target != shapes[-1] else precision * rounded
            results[i] = size.sum_to_size(target)
        return results

    @staticmethod
    def _sizes(program: Program, arguments: list[torch.Tensor], scalars: list[float]) -> Iterator[Tensors]:
        if not arguments:  # the outputs are numbers, or none
            yield from ((torch.zeros(()), torch.zeros(())) for _ in program.outputs)
            return
        program = dataclasses.replace(program, outputs=lower(program))
        leaves = [x.detach().double().requires_grad_() for x in arguments]
        with torch.enable_grad():
            known = evaluate_nodes(program, *leaves, *scalars)
        nodes = [known[n] for n in topological(program.outputs) if n.args and not n.is_mask]
        rounded = [x for x in nodes if x.requires_grad]
        for output in (torch.as_tensor(known[y], dtype=torch.float64) for y in program.outputs):
            total = output.detach().abs()
            if output.requires_grad and rounded:
                slopes = torch.autograd.grad(output.sum(), rounded, allow_unused=True, retain_graph=True)
                for slope, node in zip(slopes, rounded, strict=True):
                    if slope is not None:
                        total = total + (slope * node).detach().abs()
            yield output.detach().abs().nan_to_num(0.0), total.nan_to_num(0.0)


def are_same(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Element by element: are two numbers equal, or both nan?"""
    return (x == y) | (x.isnan() & y.isnan())


def in_ulps(
    result: torch.Tensor, reference: torch.Tensor, dtype: torch.dtype, sizes: torch.Tensor | None = None
) -> torch.Tensor:
    """The differences in units in the last place of ``dtype``; infinite where one of the two is not finite.

    The units are those of ``sizes`` or of the element itself, whichever is larger; by default of the largest element.
    """
    limits = torch.finfo(dtype)
    exact = not reference.is_floating_point()
    result, reference = result.detach().double().cpu(), reference.detach().double().cpu()
    size, finite = reference.abs(), reference.isfinite()
    if sizes is None or dtype == torch.float64:  # a float64 reference has rounding errors of its own
        size = size[finite].max().expand_as(size) if finite.any() else size
    if sizes is not None:
        size = torch.maximum(size, sizes.cpu())
    infinity = float("inf")
    distance = (result - reference).abs() / (0.0 if exact else limits.eps * size.clamp_min(limits.tiny))
    return torch.where(are_same(result, reference), 0.0, distance.nan_to_num(infinity, posinf=infinity))
