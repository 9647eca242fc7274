"""A backend of ``torch.compile`` that fuses calls of elements and of rows, and leaves autograd as it is.

``torch.compile(model, backend="torchad_ext")`` gives a model that can be differentiated any number of times. Dynamo
hands over a graph of PyTorch's calls before autograd; clusters of elementwise calls become ops, as :func:`pointwise`
declares them, those with calls along rows as :func:`rowwise` does, and everything else runs as it was written, under
eager autograd. A graph break costs speed only.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.utils.checkpoint import checkpoint

from ._declared import Declared, compile_kernels
from ._elementwise import Elementwise, _ApplyUnderTransforms
from ._forward.control_flow import CONTROL_FLOW
from ._fusion.clusters import Clusters
from ._fusion.fused_ops import fused_clusters, inputs_of
from ._fusion.gathering import index_of_rows, rows
from ._fusion.graph_calls import is_number, note_reshaped, spoken, value_of
from ._fusion.rewrites import rewritten
from ._pointwise import Pointwise
from ._quadratic_form import _Outer, _QuadraticForm
from ._row_function import SHORT, RowFunction
from ._torch_state import (
    as_written,
    is_autocast_enabled,
    is_buffer,
    left_to_eager,
    register_backend,
)
from ._warnings import warn_or_raise

_NO_DERIVATIVE = "Dynamo records its backward without a derivative, and second derivatives would be wrong"
_NOT_OF_USERS = os.path.dirname(torch.__file__) + os.sep, "<eval_with_key>"  # files of PyTorch, and code of its graphs
_CHECKPOINT, _REGION = "higher_order.tag_activation_checkpoint", "higher_order.invoke_subgraph"


@dataclass
class Cluster:
    """Calls of elements and of rows that became one op.

    Attributes:
        source: file and line of the first call; the place of its module in the model where no line of it is the user's.
        operations: how many calls there are.
        op: computes them; ``op.latex()`` is the formula, ``op.source(order)`` the kernel.
    """

    source: str
    operations: int
    op: Declared


@dataclass
class Explanation:
    """The report of the backend on a model; printed, it is a table. :func:`explain` gives one.

    Attributes:
        clusters: that became ops, in the order of the graphs.
        left: each call of elements or of rows that stayed as it was, as (source, function, why).
        others: how often each other function occurs.
        graphs: how many graphs the model consists of; between two of them Python runs.
    """

    clusters: list[Cluster] = field(default_factory=list)
    left: list[tuple[str, str, str]] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    graphs: int = 0

    def __str__(self) -> str:
        rows = [
            (c.source, f"{c.operations} call{'s' * (c.operations != 1)}, one op", _formula(c.op)) for c in self.clusters
        ]
        rows += [(source, f"{name} left", why) for source, name, why in self.left]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
        lines = [f"{source:{widths[0]}}  {what:{widths[1]}}  {how}".rstrip() for source, what, how in rows]
        others = ", ".join(f"{count} {name}" for name, count in sorted(self.others.items()))
        graphs = f"{self.graphs} graph{'s' * (self.graphs != 1)}"
        return "\n".join([*lines, f"{graphs}; other calls: {others or 'nothing'}"])


def explain(model: Callable[..., Any], *inputs: Any, **options: Any) -> Explanation:
    """Shows what ``torch.compile(model, backend="torchad_ext")`` makes of a model.

    Random numbers drawn afterwards and the buffers of a module are those without this call. What ``torch.compile`` made
    before is forgotten, and compiled once more on its next call, as ``torch._dynamo.explain`` has it.

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
        ([3], Counter({'matmul': 1}))
    """
    if not callable(model):
        raise TypeError(f"torchad_ext.explain takes a model and its inputs, got {type(model).__name__}")
    explanation = Explanation()

    def recording(graph: GraphModule, _: Any) -> Callable[..., Any]:
        if functions := _functions_of_others(graph):
            explanation.left += [(_source(node), "autograd.Function", _NO_DERIVATIVE) for node in functions]
            explanation.graphs += 1
            raise left_to_eager(_NO_DERIVATIVE)
        return _fused(graph, explanation)

    torch.compiler.reset()  # or Dynamo leaves a function alone that was compiled often
    devices = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    try:
        with torch.random.fork_rng(devices), _buffers_of_its_own(model):
            torch.compile(as_written(model), backend=recording)(*inputs, **options)
    finally:
        torch.compiler.reset()
    return explanation


@contextlib.contextmanager
def _buffers_of_its_own(model: Callable[..., Any]) -> Iterator[None]:
    """Gives a module copies of its buffers, and itself again at the end."""
    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    every = ((m, *item) for m in modules for item in m.named_buffers(recurse=False, remove_duplicate=False))
    before = [(m, name, x) for m, name, x in every if not torch.nn.parameter.is_lazy(x)]
    copies = {x: x.detach().clone() for _, _, x in before}
    try:
        for module, name, x in before:
            setattr(module, name, copies[x])
        yield
    finally:
        for module, name, x in before:
            setattr(module, name, x)


def backend(graph: GraphModule, example_inputs: Sequence[Any], **settings: Any) -> Callable[..., Any]:
    """The backend: a graph with its clusters as ops.

    Args:
        graph: of PyTorch's calls, before autograd, with ``example_value`` of each node, as Dynamo makes it.
        example_inputs: not used.
        settings: ``mode`` and ``options`` of ``torch.compile``, of which the backend has none.

    Returns:
        A function with the same inputs and results.

    Raises:
        TypeError: there are settings.
    """
    if settings:
        given = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        raise TypeError(f'backend="torchad_ext" has no mode and no options, got {given}; leave it out')
    if functions := _functions_of_others(graph):
        warn_or_raise(
            RuntimeError(
                'torch.compile(backend="torchad_ext") cannot compile the autograd.Function at '
                f"{_source(functions[0])}: {_NO_DERIVATIVE}"
            ),
            "; the function around it runs in eager mode, and those that it calls are compiled. Call it by "
            "torch.compiler.disable(Function.apply) to compile what is around it",
        )
        raise left_to_eager(_NO_DERIVATIVE)
    return _fused(graph, Explanation())


def _functions_of_others(graph: GraphModule) -> list[Node]:
    """The calls of each ``autograd.Function``, of which Dynamo records the backward without a derivative."""
    return [node for node in _nodes(graph) if spoken(node) == "higher_order.autograd_function_apply"]


def _nodes(graph: GraphModule) -> list[Node]:
    """The nodes of a graph and of all graphs that calls in it run."""
    return [node for part in graph.modules() if isinstance(part, GraphModule) for node in part.graph.nodes]


def _fused(graph: GraphModule, explanation: Explanation) -> Callable[..., Any]:
    """The forward of a new graph: a module around it would run the global hooks of modules, and take time."""
    compiled: list[tuple[Declared, Sequence[Any], bool]] = []
    note_reshaped(_nodes(graph))
    fused = _with_ops(graph, explanation, compiled, is_autocast_enabled())
    explanation.graphs += 1
    _compile_kernels(compiled)
    return fused.forward


def _with_ops(graph: GraphModule, explanation: Explanation, compiled: list[Any], in_autocast: bool) -> GraphModule:
    """A graph with its clusters as ops, which are added to ``compiled`` with what they are called with."""
    nodes = list(rewritten(graph.graph).nodes)
    clusters, ops = fused_clusters(nodes)
    in_autocast = in_autocast or any(spoken(node) == "enter_autocast" for node in nodes)
    new, values = Graph(), dict[Node, Node]()
    for members in clusters.in_order():
        first = members[0]
        if fused := ops.get(first):
            explanation.clusters.append(Cluster(_source(first), len(members), fused))
            read, deciding = inputs_of(clusters, members), clusters.deciding(members)
            given = [value_of(x).detach() if x in deciding else value_of(x) for x in read]
            compiled.append((fused, given, value_of(first).requires_grad))
            results = _call(new, fused, clusters, members, values, in_autocast)
            values.update(zip(clusters.outputs(members), results, strict=True))
        elif bodies := _bodies(graph, first):
            fused_bodies = {i: _with_ops(x, explanation, compiled, in_autocast).forward for i, x in bodies.items()}
            run, inputs = _run(first, bodies, fused_bodies)
            values[first] = new.call_function(run, torch.fx.map_arg(inputs, values.__getitem__))
        elif index := index_of_rows(first):
            values[first] = new.call_function(rows, (values[first.all_input_nodes[0]], values[index]))
        else:
            values[first] = new.node_copy(first, values.__getitem__)
    for node, why in clusters.left.items():
        if why:
            explanation.left.append((_source(node), spoken(node), why))
        elif node.op.startswith("call"):
            explanation.others[spoken(node)] += 1
    return GraphModule(graph, new)


def _bodies(graph: GraphModule, node: Node) -> dict[int, GraphModule]:
    """The graphs that a checkpoint, a ``nested_compile_region`` or control flow runs, by their places among its
    arguments; none of another call."""
    if spoken(node) not in (_CHECKPOINT, _REGION, *CONTROL_FLOW):
        return {}
    modules = dict(graph.named_modules())
    attributes = {i: x for i, x in enumerate(node.args) if isinstance(x, Node) and x.op == "get_attr"}
    found = {i: modules.get(str(x.target)) for i, x in attributes.items()}
    return {i: x for i, x in found.items() if isinstance(x, GraphModule)}


def _run(
    node: Node, bodies: dict[int, GraphModule], fused: dict[int, Callable[..., Any]]
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Runs bodies as eager mode does, and the arguments that it takes: the operator of a checkpoint draws other random
    numbers in the backward, and that of control flow has a wrong second derivative."""
    name = spoken(node)
    if name == _REGION:

        def region(*inputs: Any) -> Any:
            return fused[0](*inputs)

        return region, node.args[2:]
    if name in CONTROL_FLOW:

        def control(*inputs: Any) -> Any:
            result = CONTROL_FLOW[name](*[fused.get(i, x) for i, x in enumerate(inputs)], **node.kwargs)
            if result is NotImplemented:
                return node.target(*[bodies.get(i, x) for i, x in enumerate(inputs)], **node.kwargs)  # type: ignore[operator]
            return result

        return control, tuple(None if i in bodies else x for i, x in enumerate(node.args))
    return _checkpointed(node, bodies[0], fused[0]), node.args[1:]


def _checkpointed(node: Node, body: GraphModule, forward: Callable[..., Any]) -> Callable[..., Any]:
    inputs = node.args[1:]
    options: dict[str, Any] = {**node.kwargs, "use_reentrant": False}
    if "_checkpoint_context_fn" in body.meta:
        options["context_fn"] = body.meta["_checkpoint_context_fn"]

    count, buffers = len(inputs), [i for i, x in enumerate(inputs) if isinstance(x, Node) and is_buffer(x)]

    def recomputed(*inputs: Any) -> Any:
        outside = {i: inputs[i] for i in buffers}  # which may be written, as an argument of a checkpoint may not

        def run(*rest: Any) -> Any:
            given = iter(rest)
            return forward(*[outside[i] if i in outside else next(given) for i in range(count)])

        return checkpoint(run, *[x for i, x in enumerate(inputs) if i not in outside], **options)

    return recomputed


def _compile_kernels(ops: Sequence[tuple[Declared, Sequence[Any], bool]]) -> None:
    """Compiles the kernels of values and gradients side by side; those of higher orders wait for their first use."""
    work: dict[tuple[Any, ...], None] = {}
    for op, inputs, needs_gradient in ops:
        tensors = [x for x in inputs if not is_number(x)]
        if tensors[0].device.type == "cpu":
            function, wanted = op._usual, tuple(x.requires_grad for x in tensors)
            outputs = (True,) * len(function.program.outputs)
            gradient = [function.vjp(wanted, outputs).function] if needs_gradient else []
            functions, is_wide = [function, *gradient], _are_wide(tensors)
            if isinstance(function, RowFunction) and gradient and is_wide:
                recording = function.recorded(())
                functions = [
                    recording.function,
                    *(f.recorded(recording.kept).function for f in gradient if isinstance(f, RowFunction)),
                ]
            variant = [not is_wide] if isinstance(function, RowFunction) else []
            work.update(dict.fromkeys((f, tensors[0].dtype, *variant) for f in functions if f.program.outputs))
    compile_kernels(work)


def _are_wide(tensors: Sequence[torch.Tensor]) -> bool:
    """Have they rows of which a call keeps values? A length that is a symbol may be any."""
    lengths = [x.shape[-1] for x in tensors if x.dim()]
    return any(not isinstance(n, int) or n > SHORT for n in lengths)


def _without_autocast(op: Any) -> Callable[..., Any]:
    """An op whose kernels run under autocast too: a cluster computes in the dtype that autocast gave its tensors."""

    @functools.wraps(op, updated=())
    def call(*arguments: Any) -> Any:
        first = next(x for x in arguments if isinstance(x, torch.Tensor))
        with torch.autocast(first.device.type, enabled=False):
            return op(*arguments)

    return call


def _call(
    new: Graph, op: Declared, clusters: Clusters, members: Sequence[Node], values: dict[Node, Node], in_autocast: bool
) -> Any:
    """The results of a cluster's op as nodes of the new graph."""
    inputs, results = inputs_of(clusters, members), clusters.outputs(members)
    arguments, deciding = [values[x] for x in inputs], clusters.deciding(members)
    for i, x in enumerate(inputs):
        if x in deciding:  # an op would give it a gradient of zeros, where native has none
            arguments[i] = new.call_method("detach", (arguments[i],))
    tensors = [i for i, x in enumerate(inputs) if not is_number(value_of(x))]
    shape = str(value_of(members[0]).shape)
    whole = [str(value_of(inputs[i]).shape) == shape for i in tensors]
    # An op sums the gradients of what it broadcasts, but gives a result the shape of what that depends on.
    member = op._usual
    is_pointwise = isinstance(op, Pointwise)
    if is_pointwise and not member.depends_on_all and not all(any(whole[i] for i in read) for read in member.read):
        expanded = new.call_function(torch.broadcast_tensors, tuple(arguments[i] for i in tensors))
        for i in tensors:
            arguments[i] = new.call_function(operator.getitem, (expanded, i))
    function: Any = _without_autocast(op) if in_autocast else op
    y = new.call_function(function, tuple(arguments))
    return [y] if len(results) == 1 else [new.call_function(operator.getitem, (y, k)) for k in range(len(results))]


def _source(node: Node) -> str:
    """File and line of a call in the user's code; where all code is PyTorch's, the place of the module in the model."""
    places = re.findall(r'File "(.*?)", line (\d+)', node.meta.get("stack_trace") or "")
    lines = [f"{file}:{line}" for file, line in places if not file.startswith(_NOT_OF_USERS)]
    if lines:
        return lines[-1]
    path, cls = next(reversed((node.meta.get("nn_module_stack") or {}).values()), ("", None))
    return f"{path.partition(']')[2].lstrip('.') or '(model)'} ({cls.__name__})" if cls else "?"


def _formula(op: Declared) -> str:
    text = ", ".join(map(repr, op._usual.program.outputs))
    return text if len(text) <= 200 else f"{text[:200]} …"


def _leave_derivatives_to_autograd() -> None:
    """Keeps Dynamo from compiling derivatives of ops: it would where a gradient is asked for after a graph break."""
    for function in (_ApplyUnderTransforms, _QuadraticForm, _Outer):
        for name in ("backward", "jvp"):
            setattr(function, name, staticmethod(torch.compiler.disable(getattr(function, name))))
    for_rows = (RowFunction, "vjp_of_masks recorded_with pullback_of_rows")
    for cls, names in ((Elementwise, "vjp_of_masks pullback"), for_rows):  # which C++ asks for
        for name in names.split():
            setattr(cls, name, torch.compiler.disable(getattr(cls, name)))


register_backend("torchad_ext", backend)
_leave_derivatives_to_autograd()
