"""Pullbacks v -> v^T J of a function, or of its gradient, through one graph that is built once.

The graph is autograd's, or within a transform of ``torch.func``, at a level of forward mode and while compiling that of
``torch.func.vjp``. f runs with compositions in place of what PyTorch differentiates wrongly
(:mod:`torchad_ext._forward.corrections`); those of a norm at 0 are 0 (:mod:`torchad_ext._forward.roots`).

A ``torch.autograd.Function`` of others may have a backward whose own derivative PyTorch silently takes for zero; its
first call is compared with finite differences, for which f is run once more
(:mod:`torchad_ext._autograd.foreign_functions`).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten

from .._autograd.foreign_functions import COMPILED, check_functions
from .._autograd.graph import (
    depends_on_others,
    foreign_nodes,
    graph_nodes,
    is_cut_off,
    is_own,
    largest_in_graph,
    lead_to_others,
)
from .._forward.correction_mode import run_corrected, with_corrections
from .._forward.undone import once_more
from .._self_check import FastPath, fast_path
from .._torch_state import gradients_along, of_batch
from .point import Function, Point, Tensors, check_floating, explained
from .thresholds import FEW_ROWS, largest_matrix_in_graph


class Pullback:
    """v -> v^T J of a function at a point.

    Attributes:
        at: the point.
        spec: the structure of the function's value.
        outputs: the leaves of that.
        size: the number of their elements, which is that of the rows of J.
        final: are the gradients without derivatives of their own?
    """

    final = False

    def __init__(self, at: Point, spec: TreeSpec, outputs: Tensors) -> None:
        self.at, self.spec, self.outputs = at, spec, outputs
        self.size = sum(output.numel() for output in outputs)

    def pull(self, cotangents: Tensors) -> Tensors:
        """The gradients for the leaves of x, from a cotangent for each output."""
        with explained(self.at.name):
            return self.gradients(cotangents)

    def pull_rows(self, cotangents: Tensors) -> Tensors:
        """The gradients for a batch, which is the first dimension of cotangents and gradients."""
        with explained(self.at.name, of_rows=len(cotangents[0]) > 1):
            if len(cotangents[0]) == 1:
                return [row.unsqueeze(0) for row in self.gradients([c[0] for c in cotangents])]
            return self.gradients_of_batch(cotangents)

    def gradients(self, cotangents: Tensors) -> Tensors:
        raise NotImplementedError

    def gradients_of_batch(self, cotangents: Tensors) -> Tensors:
        return _without_expansion(torch.func.vmap(self.gradients)(tuple(cotangents)))

    def largest(self) -> int:
        """The bytes of the largest tensor that a row is known to take."""
        return max(y.numel() * y.element_size() for y in (*self.outputs, *self.at.leaves))

    def largest_matrix(self) -> int:
        """The bytes of the largest matrix that a row is known to be multiplied by."""
        return 0


class TransformPullback(Pullback):
    """A pullback within a transform, by ``torch.func.vjp``."""

    def __init__(self, at: Point, spec: TreeSpec, outputs: Tensors, vjp: Callable[[tuple[Tensor, ...]], Any]) -> None:
        super().__init__(at, spec, outputs)
        self._vjp = vjp

    def gradients(self, cotangents: Tensors) -> Tensors:
        gradients: Tensors = self._vjp(tuple(cotangents))
        return gradients


class GraphPullback(Pullback):
    """A pullback through a graph of autograd.

    Attributes:
        inputs: the leaves of x in the graph.
    """

    def __init__(
        self,
        at: Point,
        spec: TreeSpec,
        outputs: Tensors,
        inputs: Tensors,
        create_graph: bool,
        nodes: list[Any] | None = None,
    ) -> None:
        super().__init__(at, spec, outputs)
        self.inputs, self.final, self._known = inputs, not create_graph, nodes

    def gradients(self, cotangents: Tensors) -> Tensors:
        return grad(self.outputs, self.inputs, cotangents, create_graph=not self.final)

    def gradients_of_batch(self, cotangents: Tensors) -> Tensors:
        if self.final and self._has_own_nodes:
            with contextlib.suppress(RuntimeError):  # it batches less
                return grad(self.outputs, self.inputs, cotangents, create_graph=False, batched=True)
        try:
            # Not is_grads_batched, whose own rules for some operations are slow, or wrong (group_norm).
            return _without_expansion(of_batch(self.gradients, cotangents))
        except (RuntimeError, IndexError):
            if len(cotangents[0]) > FEW_ROWS:
                raise
            rows = [self.gradients(row) for row in zip(*cotangents, strict=True)]
            return [torch.stack(parts) for parts in zip(*rows, strict=True)]

    def pull_without_graph(self, cotangents: Tensors) -> Tensors:
        with explained(self.at.name):
            return grad(self.outputs, self.inputs, cotangents, create_graph=False)

    def largest(self) -> int:
        return max(super().largest(), largest_in_graph(self._nodes))

    def largest_matrix(self) -> int:
        return self._largest_matrix

    @functools.cached_property
    def _largest_matrix(self) -> int:
        return largest_matrix_in_graph(self._nodes)

    @functools.cached_property
    def _nodes(self) -> list[Any]:
        """The nodes of the graph of the outputs."""
        return graph_nodes(self.outputs) if self._known is None else self._known

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the nodes of the graph."""
        return tuple([node.name() for node in self._nodes])

    @functools.cached_property
    def _has_own_nodes(self) -> bool:
        """Do kernels of this package run in the graph? They take the batches of is_grads_batched as tensors."""
        return any(kind.__name__ == "CppFunction" or is_own(kind) for kind in set(map(type, self._nodes)))

    def path(self, *way: Any) -> FastPath:
        """The record of a way to compute J for graphs of this kind."""
        shapes = tuple((x.shape, x.stride(), x.dtype, x.device) for x in (*self.outputs, *self.at.leaves))
        return fast_path((self.at.name, way, shapes, hash(self.names)), any(x.is_meta for x in self.at.leaves))


class FlatFunction:
    """f as a function of the leaves of x to the leaves of its value, which are checked.

    Attributes:
        spec: the structure of the value, once f was called.
    """

    spec: TreeSpec

    def __init__(self, f: Function, at: Point) -> None:
        self._f, self._at = with_corrections(f), at

    def __call__(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        values, self.spec = tree_flatten(self._f(self._at.unflatten(leaves)))
        for value in values:
            check_floating(self._at.name, "the value of f", value)
        return tuple(values)


def scalar_function(f: Function, at: Point) -> Callable[..., Tensor]:
    """f as a function of the leaves of x, its value checked."""

    def function(*leaves: Tensor) -> Tensor:
        y: Tensor = run_corrected(f, at.unflatten(leaves))
        check_floating(at.name, "the value of f", y)
        if y.dim():
            raise ValueError(
                f"torchad_ext.{at.name} takes f with a value without dimensions; got shape {list(y.shape)}. Sum it, or "
                f"for a batch of points write torch.func.vmap(lambda x: torchad_ext.{at.name}(f, x))(points)"
            )
        return y

    return function


def gradient_function(f: Function, at: Point) -> Function:
    """The gradient of f as a function of x."""
    # Not torch.func.grad, whose forward mode lacks formulas that jacrev does without.
    gradient = torch.func.jacrev(scalar_function(f, at), tuple(range(len(at.leaves))))
    return lambda x: at.unflatten(gradient(*tree_flatten(x)[0]))


def pullback_of_value(f: Function, at: Point) -> Pullback:
    function = FlatFunction(f, at)
    if at.is_transformed:
        outputs, vjp, *_ = torch.func.vjp(function, *at.leaves)
        return TransformPullback(at, function.spec, outputs, vjp)
    wanted = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = at.variables(wanted)
        outputs = function(*inputs)
    return GraphPullback(at, function.spec, outputs, inputs, wanted and depends_on_others(outputs, inputs))


def pullback_of_gradient(at: Point, function: Callable[..., Tensor] | None = None) -> Pullback:
    """The pullback of the gradient of f, or of another function of the leaves of x."""
    function = function or scalar_function(at.f, at)
    if at.is_transformed:
        gradient = torch.func.grad(function, tuple(range(len(at.leaves))))
        gradients, vjp, *_ = torch.func.vjp(gradient, *at.leaves)
        return TransformPullback(at, at.spec, gradients, vjp)
    wanted = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = at.variables(wanted)
        y = function(*inputs)
        functions = foreign_nodes([y])
        cotangent = _checking_cotangent(at.name, y, functions)
        with explained(at.name):
            outputs = grad([y], inputs, [cotangent], create_graph=True)
            if functions:
                check_functions(functions, lambda: once_more(function, *inputs))
    nodes = graph_nodes(outputs)
    create_graph = wanted and lead_to_others(nodes, [*inputs, cotangent])
    return GraphPullback(at, at.spec, outputs, inputs, create_graph, nodes)


def grad(outputs: Tensors, inputs: Tensors, cotangents: Tensors, create_graph: bool, batched: bool = False) -> Tensors:
    """``torch.autograd.grad`` with zeros where there is no dependence; of a batch of cotangents if ``batched``."""
    given = [(y, c) for y, c in zip(outputs, cotangents, strict=True) if y.requires_grad]
    gradients: Sequence[Tensor | None] = [None] * len(inputs)
    if given:
        ys, cs = zip(*given, strict=True)
        if batched:
            options = {"create_graph": create_graph, "allow_unused": True, "is_grads_batched": True}
            gradients = torch.autograd.grad(ys, inputs, cs, retain_graph=True, **options)
        else:
            gradients = gradients_along(ys, inputs, cs, create_graph)
    if batched:
        count = len(cotangents[0])
        return [x.new_zeros(count, *x.shape) if g is None else g for g, x in zip(gradients, inputs, strict=True)]
    return [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, inputs, strict=True)]


def _without_expansion(rows: Tensors) -> Tensors:
    """Rows in memory of their own, those too that do not depend on the batch."""
    return [row if row.stride(0) else row.clone() for row in rows]


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

    if not functions:
        return torch.ones_like(y)
    if any(node.name() == COMPILED for node in functions):
        functions = ()  # it copies the cotangent in place, which a leaf forbids
    for node in functions:
        node.register_hook(check)
    return torch.ones_like(y).requires_grad_(bool(functions))
