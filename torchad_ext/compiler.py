"""A backend of ``torch.compile`` that fuses elementwise calls and leaves autograd as it is.

``torch.compile(model, backend="torchad_ext")`` gives a model that can be differentiated any number of times. Dynamo
hands over a graph of PyTorch's calls before autograd; clusters of elementwise calls become ops, as :func:`pointwise`
declares them, and everything else runs as it was written, under eager autograd. A graph break costs speed only.
"""

from __future__ import annotations

import inspect
import operator
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ._clusters import Clusters, is_number, spoken, value_of, written_tensors
from ._pointwise import Pointwise
from ._symbolic.refusals import TraceError
from ._torch_state import elementwise_strides, register_backend, share_memory

_CHEAP = frozenset("add sub mul neg rsub pos".split())  # alone, each is as fast natively
_ops: dict[Any, Pointwise | str] = {}  # of the structure of a cluster, so that equal layers share kernels


@dataclass
class Cluster:
    """Elementwise calls that became one op.

    Attributes:
        source: file and line of the first call.
        operations: how many calls there are.
        op: computes them; ``op.latex()`` is the formula, ``op.source(order)`` the kernel.
    """

    source: str
    operations: int
    op: Pointwise


@dataclass
class Explanation:
    """The report of the backend on a model; printed, it is a table. :func:`explain` gives one.

    Attributes:
        clusters: that became ops, in the order of the graphs.
        left: each elementwise call that stayed as it was, as (source, function, why).
        others: how often each function occurs that is not elementwise.
        graphs: how many graphs the model consists of; between two of them Python runs.
    """

    clusters: list[Cluster] = field(default_factory=list)
    left: list[tuple[str, str, str]] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    graphs: int = 0

    def __str__(self) -> str:
        rows = [(c.source, f"{c.operations} calls, one op", _formula(c.op)) for c in self.clusters]
        rows += [(source, f"{name} left", why) for source, name, why in self.left]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
        lines = [f"{source:{widths[0]}}  {what:{widths[1]}}  {how}".rstrip() for source, what, how in rows]
        others = ", ".join(f"{count} {name}" for name, count in sorted(self.others.items()))
        graphs = f"{self.graphs} graph{'s' * (self.graphs != 1)}"
        return "\n".join([*lines, f"{graphs}; not elementwise: {others or 'nothing'}"])


def explain(model: Callable[..., Any], *inputs: Any, **options: Any) -> Explanation:
    """Shows what ``torch.compile(model, backend="torchad_ext")`` makes of a model.

    Args:
        model: a module or a function; it is called once, ``model(*inputs, **options)``.
        inputs: what it takes.
        options: what it takes by name.

    Returns:
        The clusters that became ops, with their places in the source and their formulas, and what was left and why.

    Raises:
        TypeError: model cannot be called.

    Example:
        >>> def gate(x, w):
        ...     return (torch.sigmoid(x @ w) * x + x).sum(-1)
        >>> explanation = explain(gate, torch.ones(2, 2), torch.ones(2, 2))
        >>> [cluster.operations for cluster in explanation.clusters], explanation.others
        ([3], Counter({'matmul': 1, 'sum': 1}))
    """
    if not callable(model):
        raise TypeError(f"torchad_ext.explain takes a model and its inputs, got {type(model).__name__}")
    explanation = Explanation()
    torch.compile(model, backend=lambda graph, _: _fused(graph, explanation))(*inputs, **options)
    return explanation


def backend(graph: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """The backend: a graph with its clusters of elementwise calls as ops.

    Args:
        graph: of PyTorch's calls, before autograd, with ``example_value`` of each node, as Dynamo makes it.
        example_inputs: not used.

    Returns:
        A module with the same inputs and results.
    """
    return _fused(graph, Explanation())


def _fused(graph: GraphModule, explanation: Explanation) -> GraphModule:
    clusters = Clusters(list(graph.graph.nodes))
    written = [(clusters.region[node], x) for node, x in written_tensors(clusters.nodes)]
    ops: dict[Node, Pointwise] = {}  # of the first call of each cluster
    for members in clusters.clusters():
        op = _op(clusters, members, written)
        if isinstance(op, str):
            clusters.dissolve(members, op)
        else:
            ops[members[0]] = op
    new, values = Graph(), dict[Node, Node]()
    for members in clusters.in_order():
        if fused := ops.get(members[0]):
            explanation.clusters.append(Cluster(_source(members[0]), len(members), fused))
            results = _call(new, fused, clusters, members, values)
            values.update(zip(clusters.outputs(members), results, strict=True))
        else:
            values[members[0]] = new.node_copy(members[0], values.__getitem__)
    for node, why in clusters.left.items():
        if why:
            explanation.left.append((_source(node), spoken(node), why))
        elif node.op.startswith("call"):
            explanation.others[spoken(node)] += 1
    explanation.graphs += 1
    return GraphModule(graph, new)


def _arguments(clusters: Clusters, members: Sequence[Node]) -> list[Node]:
    """The inputs of a cluster: its tensors, then its numbers."""
    return sorted(clusters.reads(members), key=lambda x: is_number(value_of(x)))


def _call(new: Graph, op: Pointwise, clusters: Clusters, members: Sequence[Node], values: dict[Node, Node]) -> Any:
    """The results of a cluster's op as nodes of the new graph."""
    inputs, results = _arguments(clusters, members), clusters.outputs(members)
    arguments = [values[x] for x in inputs]
    tensors = [i for i, x in enumerate(inputs) if not is_number(value_of(x))]
    shape = str(value_of(members[0]).shape)
    whole = [str(value_of(inputs[i]).shape) == shape for i in tensors]
    # An op sums the gradients of what it broadcasts, but gives a result the shape of what that depends on.
    member = op._usual
    if not member.depends_on_all and not all(any(whole[i] for i in read) for read in member.read):
        expanded = new.call_function(torch.broadcast_tensors, tuple(arguments[i] for i in tensors))
        for i in tensors:
            arguments[i] = new.call_function(operator.getitem, (expanded, i))
    y = new.call_function(op, tuple(arguments))
    return [y] if len(results) == 1 else [new.call_function(operator.getitem, (y, k)) for k in range(len(results))]


def _op(clusters: Clusters, members: Sequence[Node], written: Sequence[tuple[int, torch.Tensor]]) -> Pointwise | str:
    """The op of a cluster, or why there is none."""
    if len(members) == 1 and not clusters.inner[members[0]] and spoken(members[0]) in _CHEAP:
        return "by itself it is as fast as it is"
    inputs, outputs = _arguments(clusters, members), clusters.outputs(members)
    tensors = [value_of(x) for x in inputs if not is_number(value_of(x))]
    for region, x in written:
        if region > clusters.region[members[0]] and any(share_memory(x, y) for y in tensors):
            return "what it reads is written in place later, and an op keeps its inputs for the derivatives"
    shape = value_of(members[0]).shape
    strides = elementwise_strides(*[x.expand(shape) for x in tensors])
    if any(tuple(value_of(y).stride()) != tuple(strides) for y in outputs):
        return "it mixes memory layouts, so that the result would have other strides"
    calls = [n for n in clusters.nodes if n in {*members, *(x for m in members for x in clusters.inner[m])}]
    key = _structure(inputs, calls, outputs)
    if key not in _ops:
        try:
            _ops[key] = _declared(inputs, calls, outputs)
        except TraceError as error:
            _ops[key] = str(error).splitlines()[-1].strip()
    return _ops[key]


def _structure(inputs: Sequence[Node], calls: Sequence[Node], outputs: Sequence[Node]) -> Any:
    """Equal for clusters that compute the same."""
    places = {node: f"%{i}" for i, node in enumerate((*inputs, *calls))}
    of = [(n.target, *(repr(torch.fx.map_arg(x, places.__getitem__)) for x in (n.args, n.kwargs))) for n in calls]
    numbers = sum(is_number(value_of(x)) for x in inputs)
    return len(inputs), numbers, tuple(of), tuple(places[y] for y in outputs)


def _declared(inputs: Sequence[Node], calls: Sequence[Node], outputs: Sequence[Node]) -> Pointwise:
    graph, values = Graph(), dict[Node, Node]()
    for i, x in enumerate(inputs):
        values[x] = graph.placeholder(f"x{i}")
    for node in calls:
        values[node] = graph.node_copy(node, values.__getitem__)
    results = tuple(values[y] for y in outputs)
    graph.output(results[0] if len(results) == 1 else results)
    forward = type(GraphModule(torch.nn.Module(), graph)).forward

    def definition(*xs: Any) -> Any:
        return forward(None, *xs)

    definition.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                f"x{i}",
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=1.0 if is_number(value_of(x)) else inspect.Parameter.empty,
            )
            for i, x in enumerate(inputs)
        ]
    )
    op = Pointwise(definition, name="_".join(dict.fromkeys(map(spoken, calls)))[:40], module="torchad_ext.compiled")
    op._usual  # noqa: B018, traces the function
    if op._fixed:
        raise TraceError("asks for the value of a number")
    return op


def _source(node: Node) -> str:
    """File and line of a call in the user's code."""
    places = re.findall(r'File "(.*?)", line (\d+)', node.meta.get("stack_trace") or "")
    return "{}:{}".format(*places[-1]) if places else "?"


def _formula(op: Pointwise) -> str:
    text = op.latex().partition(" = ")[2]
    return text if len(text) <= 200 else f"{text[:200]} …"


register_backend("torchad_ext", backend)
