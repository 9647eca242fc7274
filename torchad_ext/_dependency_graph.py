"""The dependency graph of a traced function: a node for each operation, with each local derivative on its edge."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ._pointwise import Pointwise, pointwise
from ._symbolic.evaluate import evaluate, evaluate_nodes
from ._symbolic.expr import OPERATIONS, Expr, constant, tensor, topological, with_operands
from ._symbolic.latex import formula, symbol
from ._symbolic.program import Program


@dataclass(frozen=True)
class Edge:
    """The use of one node by another.

    Attributes:
        source: the place of the operand in the list of nodes.
        formula: the local derivative ∂(node) / ∂(operand) in LaTeX.
        value: that derivative as a number; None without inputs.
    """

    source: int
    formula: str
    value: float | None


@dataclass(frozen=True)
class Node:
    """An argument or the result of an operation.

    Attributes:
        name: ``"x"`` for an argument, ``"v_1"``, ``"v_2"``, ... for results, ``"f"`` for the last.
        formula: the operation on its operands in LaTeX; the name for an argument.
        value: its value; None without inputs.
        adjoint: the derivative of f in this node; None without inputs.
        edges: the operands.
    """

    name: str
    formula: str
    value: float | None
    adjoint: float | None
    edges: tuple[Edge, ...]


def dependency_graph(f: Callable[..., Any], *inputs: Any) -> list[Node]:
    r"""The operations of a function in the order of their evaluation, the arguments first.

    Args:
        f: a declared op, or a plain function that :func:`torchad_ext.pointwise` takes, with one result.
        inputs: numbers at which to evaluate it, one for each argument that has no default; without any, the graph has
            formulas alone.

    Returns:
        The nodes, each after its operands.

    Raises:
        TypeError: f is not elementwise, or an input is no number.
        ValueError: f has several results, or the number of inputs is wrong.

    Example:
        >>> import torch
        >>> for node in dependency_graph(lambda x: torch.sin(x) * x, 2.0):
        ...     print(node.name, "=", node.formula, "=", round(node.value, 4), " adjoint", round(node.adjoint, 4))
        x = x = 2.0  adjoint 0.077
        v_1 = \sin x = 0.9093  adjoint 2.0
        f = v_{1} \, x = 1.8186  adjoint 1.0
    """
    op = f if isinstance(f, Pointwise) else pointwise(f)
    program = op.program
    if len(program.outputs) != 1:
        raise ValueError(f"{op.__name__} has {len(program.outputs)} results; a graph is drawn of one")
    symbols = [*program.inputs, *program.scalars]
    values = [torch.tensor(_number(x), dtype=torch.float64) for x in inputs]
    if values and len(values) != len(program.inputs):
        names = ", ".join(str(x.value) for x in program.inputs)
        raise ValueError(f"{op.__name__} takes {len(program.inputs)} numbers, for {names}; got {len(values)}")
    known = evaluate_nodes(program, *values, *op.default_numbers) if values else {}
    nodes = _Nodes(symbols, known)
    for node in topological(program.outputs):
        nodes.add(node, is_last=node is program.outputs[0])
    return nodes.with_adjoints()


def _number(x: Any) -> float:
    try:
        return float(x)
    except (TypeError, ValueError, RuntimeError):
        given = f"a tensor of shape {list(x.shape)}" if isinstance(x, torch.Tensor) else repr(x)
        raise TypeError(f"a graph is drawn at numbers; got {given}") from None


class _Nodes:
    def __init__(self, symbols: Sequence[Expr], known: dict[Expr, Any]) -> None:
        self.known = known
        self.places: dict[Expr, int] = {}
        self.names: dict[Expr, Expr] = {}  # a symbol for each node
        self.nodes: list[Node] = []
        for x in symbols:
            self._append(x, str(x.value), symbol(str(x.value)), ())

    def add(self, node: Expr, is_last: bool) -> None:
        if not is_last and (node.op == "constant" or node in self.places):
            return
        if node.op == "rounded" and not is_last:
            self.places[node], self.names[node] = self.places[node.args[0]], self.names[node.args[0]]
            return
        taken = {known.name for known in self.nodes}
        name = "f" if is_last else next(free for i in itertools.count(1) if (free := f"v_{i}") not in taken)
        operands = tuple(self.names.get(arg, arg) for arg in node.args)
        result = with_operands(node, operands) if operands else self.names.get(node, node)
        self._append(node, name, formula(result, mathtext=True), self._edges(node, result))

    def _edges(self, node: Expr, result: Expr) -> tuple[Edge, ...]:
        """One edge for each operand, however often the operation uses it."""
        slopes: dict[Expr, Expr] = {}
        if not node.args:  # the result is an argument, or constant
            return (Edge(self.places[node], "1", 1.0 if self.known else None),) if node in self.places else ()
        if OPERATIONS[node.op].derivative:
            gradients = OPERATIONS[node.op].gradients(constant(1.0), result)
            for arg, slope in zip(node.args, gradients, strict=True):
                if slope is not None and arg in self.places:
                    slopes[arg] = slopes[arg] + slope if arg in slopes else slope
        edges = []
        for arg in dict.fromkeys(arg for arg in node.args if arg in self.places):
            slope = slopes.get(arg, constant(0.0))
            edges.append(Edge(self.places[arg], formula(slope, mathtext=True), self._value(slope, node)))
        return tuple(edges)

    def _value(self, slope: Expr, node: Expr) -> float | None:
        if not self.known:
            return None
        args = sorted((arg for arg in set(node.args) if arg in self.places), key=lambda arg: arg.is_mask)
        operands = {self.names[arg]: torch.as_tensor(self.known[arg]) for arg in args}  # numbers first, for their dtype
        return float(evaluate(Program(tuple(operands), (), (slope,), ("slope",)), *operands.values()))

    def _append(self, node: Expr, name: str, text: str, edges: tuple[Edge, ...]) -> None:
        self.places[node], self.names[node] = len(self.nodes), tensor(name)
        value = float(self.known[node]) if node in self.known else None
        self.nodes.append(Node(name, text, value, None, edges))

    def with_adjoints(self) -> list[Node]:
        """The nodes with the derivatives of the last one in each: backward over the edges, products summed."""
        if not self.known:
            return self.nodes
        adjoints = [0.0] * (len(self.nodes) - 1) + [1.0]
        for i in reversed(range(len(self.nodes))):
            for edge in self.nodes[i].edges:
                assert edge.value is not None
                adjoints[edge.source] += adjoints[i] * edge.value
        return [
            Node(node.name, node.formula, node.value, adjoint, node.edges)
            for node, adjoint in zip(self.nodes, adjoints, strict=True)
        ]


Point = tuple[float, float]


def layout(nodes: Sequence[Node]) -> tuple[list[Point], list[list[list[Point]]], int, int]:
    """Places in layers, each node one after its last operand; an edge over several layers has a place in each.

    Returns:
        The place of each node, the path of each of its edges from the operand on, the number of the last layer, and how
        many places the fullest layer has.
    """
    depths: list[int] = []
    for node in nodes:
        depths.append(1 + max((depths[edge.source] for edge in node.edges), default=-1))
    layers: list[list[tuple[int, ...]]] = [[] for _ in range(max(depths) + 1)]
    behind: dict[tuple[int, ...], list[tuple[int, ...]]] = {}  # what a place is to be near to
    for i, node in enumerate(nodes):
        layers[depths[i]].append((i,))
        behind[(i,)] = []
        for edge in node.edges:
            last: tuple[int, ...] = (edge.source,)
            for layer in range(depths[edge.source] + 1, depths[i]):
                layers[layer].append((edge.source, i, layer))
                behind[(edge.source, i, layer)] = [last]
                last = (edge.source, i, layer)
            behind[(i,)].append(last)
    heights: dict[tuple[int, ...], float] = {}
    for layer_of in layers:
        wanted = {p: sum(heights[b] for b in behind[p]) / max(1, len(behind[p])) for p in layer_of}
        for rank, place in enumerate(sorted(layer_of, key=lambda p: -wanted[p])):
            heights[place] = (len(layer_of) - 1) / 2 - rank
    places = [(float(depth), heights[(i,)]) for i, depth in enumerate(depths)]
    paths = [
        [
            [
                places[edge.source],
                *((float(at), heights[(edge.source, i, at)]) for at in range(depths[edge.source] + 1, depths[i])),
                places[i],
            ]
            for edge in node.edges
        ]
        for i, node in enumerate(nodes)
    ]
    return places, paths, len(layers) - 1, max(map(len, layers))
