"""The nodes of an autograd graph."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from .._torch_state import cotangents_of

Tensors = Sequence[Tensor]


def foreign_nodes(outputs: Tensors) -> list[Any]:
    """The nodes of each ``autograd.Function`` in a graph that is not one of this package."""
    nodes = graph_nodes(outputs)
    foreign = {kind for kind in set(map(type, nodes)) if issubclass(kind, BackwardCFunction) and not is_own(kind)}
    return [node for node in nodes if type(node) in foreign] if foreign else []


def is_own(kind: type) -> bool:
    """Are nodes of this class those of an ``autograd.Function`` of this package?"""
    function = getattr(kind, "_forward_cls", None)
    return function is not None and function.__module__.partition(".")[0] == __name__.partition(".")[0]


def is_cut_off(node: Any) -> bool:
    """Did ``once_differentiable`` put it in the place of a derivative?"""
    return bool(node.name() == "torch::autograd::Error")


def graph_nodes(outputs: Tensors) -> list[Any]:
    """The nodes of a graph, in an order that depends on the graph alone."""
    nodes = list(dict.fromkeys([y.grad_fn for y in outputs if y.grad_fn is not None]))
    found = set(nodes)
    for node in nodes:  # which grow meanwhile
        for child, _ in node.next_functions:
            if child is not None and child not in found:
                found.add(child)
                nodes.append(child)
    return nodes


def depends_on_others(outputs: Tensors, inputs: Tensors) -> bool:
    """Does the graph of the outputs lead to another leaf than the inputs? Then there are derivatives left to take."""
    return lead_to_others(graph_nodes(outputs), inputs)


def lead_to_others(nodes: Iterable[Any], inputs: Tensors) -> bool:
    """Is there a leaf among the nodes of a graph that is none of the inputs?"""
    own = [id(x) for x in inputs]
    leaves = [id(node.variable) for node in nodes if type(node).__name__ == "AccumulateGrad"]
    return any(x not in own for x in leaves) or not all(x.is_leaf for x in inputs)


def largest_in_graph(nodes: Iterable[Any]) -> int:
    """The bytes of the largest cotangent that passes through nodes of autograd."""
    largest = 0
    for node in nodes:
        for cotangent in cotangents_of(node):
            if not cotangent.is_cpp_nested_tensor:  # whose shape is symbolic
                largest = max(largest, math.prod(cotangent.shape) * cotangent.dtype.itemsize)
    return largest
