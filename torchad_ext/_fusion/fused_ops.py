"""The ops that clusters become: declared from the calls of a cluster, once for all clusters that compute the same."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from .._arguments import TENSOR
from .._declared import Declared
from .._pointwise import Pointwise
from .._rowwise import Rowwise, kind_in_rows
from .._symbolic.refusals import TraceError
from .._torch_state import elementwise_strides, share_memory, surely
from .clusters import Clusters
from .graph_calls import gain_of_rows, is_number, spoken, value_of, written_tensors
from .row_calls import written_view

_CHEAP = frozenset("add sub mul neg rsub pos sum mean amax amin".split())  # alone, each is as fast natively
_ALONE = 4  # times the rows that a cluster has, in a call along rows by itself: there PyTorch's own is one kernel too
_ops: dict[Any, Declared | str] = {}  # of the structure of a cluster, so that equal layers share kernels


def fused_clusters(nodes: Sequence[Node]) -> tuple[Clusters, dict[Node, Declared]]:
    """The clusters of a graph, and the op of each by its first call."""
    apart: dict[Node, str] = {}
    while True:
        clusters = Clusters(nodes, apart)
        written = [(clusters.region[node], x) for node, x in written_tensors(nodes)]
        ops: dict[Node, Declared] = {}
        known = len(apart)
        for members in clusters.clusters():
            op = _op(clusters, members, written)
            if not isinstance(op, str):
                ops[members[0]] = op
            elif outside := _outside(clusters, members):
                apart.update(dict.fromkeys(outside, op))  # and the rest once more
            else:
                clusters.dissolve(members, op)
        if len(apart) == known:
            return clusters, ops


def _outside(clusters: Clusters, members: Sequence[Node]) -> list[Node]:
    """The calls of a cluster of rows without which it may be an op, or several; none if there are no such."""
    rows = [n for n in members if n in clusters.rows]
    turned = [y for y in clusters.outputs(members) if rows and not _is_new(value_of(y))]
    found = turned or rows
    return found if len(found) < len(members) else []


def inputs_of(clusters: Clusters, members: Sequence[Node]) -> list[Node]:
    """The inputs of a cluster: its tensors, then its numbers."""
    return sorted(clusters.reads(members), key=lambda x: is_number(value_of(x)))


def _op(clusters: Clusters, members: Sequence[Node], written: Sequence[tuple[int, torch.Tensor]]) -> Declared | str:
    """The op of a cluster, or why there is none."""
    first = members[0]
    if len(members) == 1 and not clusters.inner[first]:
        row = clusters.rows.get(first)
        is_fast = row is not None and not (value_of(first).requires_grad and gain_of_rows(row) >= _ALONE)
        if spoken(first) in _CHEAP or is_fast:
            return "an op of this call alone gains nothing"
    inputs, outputs = inputs_of(clusters, members), clusters.outputs(members)
    if not outputs:
        return "its result is not used"
    tensors = [value_of(x) for x in inputs if not is_number(value_of(x))]
    for region, x in written:
        if region > clusters.region[members[0]] and any(share_memory(x, y) for y in tensors):
            return "what it reads is written in place later, and an op keeps its inputs for the derivatives"
    whole = clusters.whole(members)
    results = [value_of(y) for y in outputs]
    as_native = all(map(_is_new, results)) if whole is not None else _are_of_elements(results, tensors)
    if not as_native:
        return "it mixes memory layouts, so that the result would have other strides"
    calls = [n for n in clusters.nodes if n in {*members, *(x for m in members for x in clusters.inner[m])}]
    kinds = tuple(
        1.0 if is_number(x) else TENSOR if whole is None else kind_in_rows(x, len(whole)) for x in map(value_of, inputs)
    )
    graph = _graph(clusters, inputs, calls, outputs)
    key = _structure(graph, kinds)
    if key not in _ops:
        try:
            _ops[key] = _declared(graph, kinds, whole is not None, "_".join(dict.fromkeys(map(spoken, calls)))[:40])
        except TraceError as error:
            _ops[key] = str(error).splitlines()[-1].strip()
    op = _ops[key]
    if whole is not None and not isinstance(op, str) and not op._usual.depends_on_all:
        shapes = {str(tuple(shape)) for shape in (whole, (*whole[:-1], 1), whole[-1:])}
        if any(str(tuple(x.shape)) not in shapes for x in tensors):
            return "its results do not depend on all that it reads, which broadcasts"
    return op


def _is_new(x: torch.Tensor) -> bool:
    """Has a tensor the strides of one that was just made?"""
    return surely(lambda: x.stride() == x.new_empty(x.shape).stride())


def _are_of_elements(results: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor]) -> bool:
    """Have results of one shape the strides that PyTorch gives an elementwise operation on tensors?"""

    def are() -> bool:
        strides = tuple(elementwise_strides(*[x.expand(results[0].shape) for x in tensors]))
        return all(tuple(y.stride()) == strides for y in results)

    return surely(are)


def _graph(clusters: Clusters, inputs: Sequence[Node], calls: Sequence[Node], outputs: Sequence[Node]) -> Graph:
    """The calls of a cluster as a graph of their own, those along rows in one spelling."""
    graph, values = Graph(), dict[Node, Node]()
    for i, x in enumerate(inputs):
        values[x] = graph.placeholder(f"x{i}")
    for node in calls:
        if row := clusters.rows.get(node):
            arguments = torch.fx.map_arg((row.args, row.kwargs), values.__getitem__)
            values[node] = graph.call_function(row.function, *arguments)
        elif view := clusters.views.get(node):
            values[node] = graph.call_function(written_view(node), (values[view],))
        else:
            values[node] = graph.node_copy(node, values.__getitem__)
    results = tuple(values[y] for y in outputs)
    graph.output(results[0] if len(results) == 1 else results)
    return graph


def _structure(graph: Graph, kinds: tuple[Any, ...]) -> Any:
    """Equal for graphs that compute the same."""
    places = {node: f"%{i}" for i, node in enumerate(graph.nodes)}
    calls = [
        (n.op, n.target, *(repr(torch.fx.map_arg(x, places.__getitem__)) for x in (n.args, n.kwargs)))
        for n in graph.nodes
        if n.op != "placeholder"
    ]
    return kinds, tuple(calls)


def _declared(graph: Graph, kinds: tuple[Any, ...], of_rows: bool, name: str) -> Declared:
    """The op of a graph whose inputs are of these kinds."""
    forward = type(GraphModule(torch.nn.Module(), graph)).forward

    def definition(*xs: Any) -> Any:
        return forward(None, *xs)

    parameters = [
        inspect.Parameter(
            f"x{i}",
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=kind if is_number(kind) else inspect.Parameter.empty,
        )
        for i, kind in enumerate(kinds)
    ]
    definition.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    op = (Rowwise if of_rows else Pointwise)(definition, name=name, module="torchad_ext.compiled")
    op._usually = {p.name: kind for p, kind in zip(parameters, kinds, strict=True) if not is_number(kind)}
    op._usual  # noqa: B018, traces the function
    if op._fixed:
        raise TraceError("asks for the value of a number")
    return op
