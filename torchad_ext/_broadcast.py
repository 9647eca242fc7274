"""Broadcast: an elementwise function of operands that broadcast, with all its derivatives.

The gradient of an operand is the sum over the elements that read it, in the operand's shape. So a function is known by
the shape of its elements, those of its operands, which broadcast to it, and those of its results, which are summed to
theirs: the class is closed under ``vjp`` and ``jvp``, and the Function of ``_elementwise.py`` applies its members. A
kernel adds what it computes, so that no gradient is written for each element that an operand is repeated for.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from . import _elementwise
from ._elementwise import Elementwise, Scalars, Tensors, _Apply, _ApplyUnderTransforms
from ._native import kernels
from ._symbolic.program import Program
from ._torch_state import elementwise_strides, in_forward_mode, transforms_active, with_hidden_batch

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Broadcast:
    """An Elementwise whose operands broadcast to a shape, and whose results are summed to shapes of their own.

    Attributes:
        function: computes an element.
        shape: of the elements.
        operands: the shape of each operand, which broadcasts to ``shape``.
        results: the shape of each result, which broadcasts to ``shape`` too.
    """

    function: Elementwise
    shape: Shape
    operands: tuple[Shape, ...]
    results: tuple[Shape, ...]

    @classmethod
    def of(cls, function: Elementwise, xs: Tensors, shape: Shape) -> Broadcast:
        """A function of some tensors, with a result for each element of the shape that they broadcast to."""
        operands = tuple([tuple(x.shape) for x in xs])
        return cls(function, shape, operands, (shape,) * len(function.program.outputs))

    @property
    def program(self) -> Program:
        """The program of an element."""
        return self.function.program

    @property
    def read_by_derivatives(self) -> frozenset[int]:
        """The operands that some derivative depends on."""
        return self.function.read_by_derivatives

    def apply(self, xs: Tensors, scalars: Scalars) -> Any:
        """The results, by the route that their derivatives need."""
        if all(shape == self.shape for shape in (*self.operands, *self.results)):
            return self.function.apply(xs, scalars)
        device = kernels.device_for(xs)
        if device is None:
            return self._apply_without_device(xs, scalars)
        kernel = self.function.kernel(device, xs[0].dtype)
        if kernel is None:
            return self._define(xs, scalars)
        if transforms_active():
            return _ApplyUnderTransforms.apply(self, scalars, *xs)
        if not in_forward_mode():
            outputs = self.function.apply_in_cpp(device, xs, scalars, self.shape, self.results)
            if outputs is not NotImplemented:
                return outputs
            if not (torch.is_grad_enabled() and any(x.requires_grad for x in xs)):
                return self.run(xs, scalars)
        return _Apply.apply(self, scalars, *xs)

    def run(self, xs: Tensors, scalars: Scalars) -> Any:
        """The results without derivatives: by the kernel, or by the definition."""
        device = kernels.device_of(xs) if 0 not in self.shape else None
        kernel = device and self.function.kernel(device, xs[0].dtype)
        if not kernel:
            return self._define(xs, scalars)
        whole = [x.expand(self.shape) for x in xs]
        if all(shape == self.shape for shape in self.results):
            return self._results(kernel(whole, scalars))
        if device != "cpu":
            return self._summed(kernel(whole, scalars))
        strides = elementwise_strides(*whole)
        outputs = [
            # One that is not summed lies in memory as the loop runs.
            xs[0].new_empty_strided(shape, strides[len(strides) - len(shape) :])
            if math.prod(shape) == math.prod(self.shape)
            else xs[0].new_empty(shape)
            for shape in self.results
        ]
        kernel(whole, scalars, out=[y.expand(self.shape) for y in outputs])
        return self._results(outputs)

    def _define(self, xs: Tensors, scalars: Scalars) -> Any:
        """Computes the definition in place of a kernel."""
        outputs = self.function.definition(*(x.expand(self.shape) for x in xs), *scalars)
        return self._summed((outputs,) if len(self.results) == 1 else outputs)

    def _summed(self, outputs: Sequence[torch.Tensor]) -> Any:
        return self._results([y.sum_to_size(shape) for y, shape in zip(outputs, self.results, strict=True)])

    def _results(self, outputs: Sequence[torch.Tensor]) -> Any:
        return outputs[0] if len(self.results) == 1 else tuple(outputs)

    def _apply_without_device(self, xs: Tensors, scalars: Scalars) -> Any:
        batches = kernels.without_batch(xs)
        if batches is None:
            return self._define(xs, scalars)
        dims = [0 if whole.dim() > x.dim() else None for whole, x in zip(batches, xs, strict=True)]
        size = next(whole.shape[0] for whole, dim in zip(batches, dims, strict=True) if dim == 0)
        outputs = self.apply_batched(size, dims, batches, scalars)
        return with_hidden_batch(outputs) if len(self.results) == 1 else tuple(map(with_hidden_batch, outputs))

    def apply_batched(self, size: int, dims: Sequence[int | None], xs: Tensors, scalars: Scalars) -> Any:
        """The results of a batch, along their first dimension; ``dims`` says where the tensors have it, if at all."""

        def batched(shape: Shape) -> Shape:
            return (size, *(1,) * (len(self.shape) - len(shape)), *shape)

        operands = [
            x if dim is None else x.movedim(dim, 0).reshape(batched(shape))
            for x, dim, shape in zip(xs, dims, self.operands, strict=True)
        ]
        of_batch = Broadcast(
            self.function,
            (size, *self.shape),
            tuple([tuple(x.shape) for x in operands]),
            tuple(map(batched, self.results)),
        )
        outputs = of_batch.apply(operands, scalars)
        outputs = (outputs,) if len(self.results) == 1 else outputs
        return self._results([y.reshape(size, *shape) for y, shape in zip(outputs, self.results, strict=True)])

    def vjp(self, wanted: tuple[bool, ...], given: tuple[bool, ...]) -> BroadcastDerivative:
        """The vjp: of operands and a cotangent for each given result, the gradients of the wanted."""
        cotangents = [shape for shape, g in zip(self.results, given, strict=True) if g]
        results = [shape for shape, w in zip(self.operands, wanted, strict=True) if w]
        return BroadcastDerivative(
            self.function.vjp(wanted, given), self.shape, (*self.operands, *cotangents), tuple(results)
        )

    def jvp(self, given: tuple[bool, ...]) -> BroadcastDerivative:
        """The jvp: of operands and a tangent for each given one, the tangents of the results."""
        tangents = [shape for shape, g in zip(self.operands, given, strict=True) if g]
        return BroadcastDerivative(self.function.jvp(given), self.shape, (*self.operands, *tangents), self.results)


@dataclass(frozen=True)
class BroadcastDerivative:
    """A derivative of a Broadcast.

    Attributes:
        derivative: that of an element.
        shape: of the elements.
        arguments: the shape of each argument.
        results: the shape of each wanted result, those that are zero included.
    """

    derivative: _elementwise.Derivative
    shape: Shape
    arguments: tuple[Shape, ...]
    results: tuple[Shape, ...]

    @functools.cached_property
    def function(self) -> Broadcast:
        """Computes the results that are not zero from the arguments that they depend on."""
        of = self.derivative
        return Broadcast(
            of.function,
            self.shape,
            tuple([self.arguments[i] for i in of.arguments]),
            tuple([self.results[i] for i in of.results]),
        )

    def apply(self, arguments: Tensors, scalars: Scalars, count: int) -> Sequence[torch.Tensor]:
        """All ``count`` results, for all arguments; those that it does not take may be None."""
        of = self.derivative
        outputs: Any = ()
        if of.results:
            outputs = self.function.apply([arguments[i] for i in of.arguments], tuple([scalars[i] for i in of.scalars]))
            outputs = (outputs,) if len(of.results) == 1 else outputs
        known = dict(zip(of.results, outputs, strict=True))
        zero = arguments[-1].new_zeros(())
        return [known[i] if i in known else zero.expand(self.results[i]) for i in range(count)]


Elementwise.broadcast = Broadcast
