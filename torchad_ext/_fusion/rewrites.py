"""Rewrites of a graph of PyTorch's calls before it is cut into clusters: views between elementwise calls go first.

A cluster has one shape, so that ``(f * c).unsqueeze(1) * x`` would be two: it becomes ``f.unsqueeze(1) *
c.unsqueeze(1) * x``.
"""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

from .graph_calls import is_neutral, reason_to_leave, regions, spoken, value_of
from .row_calls import row_call


def rewritten(graph: Graph) -> Graph:
    """A copy of a graph that computes the same, where views of the results of elementwise calls stand before them."""
    new = Graph()
    new.output(new.graph_copy(graph, {}))
    region = regions(list(new.nodes))
    for node in reversed(list(new.nodes)):
        _move_up(node, region)
    return new


def _move_up(view: Node, region: dict[Node, int]) -> None:
    """Moves a view before the call whose result it is of, if nothing else reads that, and before the calls above."""
    place = _added_dimension(view)
    if place is None or not any(_is_elementwise(user) and _has_shape_of(user, view) for user in view.users):
        return
    call = view.args[0]
    assert isinstance(call, Node)
    if not _is_elementwise(call) or len(call.users) > 1 or region[call] != region[view]:
        return
    tensors = [x for x in call.all_input_nodes if isinstance(value_of(x), torch.Tensor)]
    if any(is_neutral(x) for x in tensors):
        return  # a cluster computes it again, but no view of it
    if any(_is_elementwise(x) and _has_shape_of(x, call) and len(x.users) > 1 for x in tensors):
        return  # a cluster would lose a call
    after = value_of(call).dim() - place  # dimensions that stand after the added one
    views: dict[Node, Node] = {}
    with view.graph.inserting_before(call), torch.set_grad_enabled(value_of(call).requires_grad):
        for x in tensors:
            at = value_of(x).dim() - after
            if at > 0 or at == place == 0:  # a tensor of fewer dimensions broadcasts as before
                views[x] = view.graph.call_method("unsqueeze", (x, at))
                views[x].meta = {**view.meta, "example_value": value_of(x).unsqueeze(at)}
        moved = view.graph.node_copy(call, lambda x: views.get(x, x))
    moved.meta["example_value"] = value_of(view)
    region.update(dict.fromkeys((*views.values(), moved), region[call]))
    view.replace_all_uses_with(moved)
    view.graph.erase_node(view)
    view.graph.erase_node(call)
    for node in views.values():
        _move_up(node, region)


def _is_elementwise(node: Node) -> bool:
    if not node.op.startswith("call") or not isinstance(value_of(node), torch.Tensor):
        return False
    return row_call(spoken(node), node) is None and reason_to_leave(node) is None and not is_neutral(node)


def _has_shape_of(x: Node, y: Node) -> bool:
    return str(tuple(value_of(x).shape)) == str(tuple(value_of(y).shape))


def _added_dimension(node: Node) -> int | None:
    """Where a view has the dimension of size 1 that it adds to a tensor; None of another call."""
    x = node.args[0] if node.args else None
    if not isinstance(x, Node) or not all(isinstance(value_of(y), torch.Tensor) for y in (x, node)):
        return None
    dims: int = value_of(x).dim()
    name, given = spoken(node), node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if name == "unsqueeze" and isinstance(given, int):
        return given % (dims + 1)
    if name != "getitem":
        return None
    index = given if isinstance(given, tuple) else (given,)
    before, after = (index[: index.index(None)], index[index.index(None) + 1 :]) if None in index else (index, None)
    if after is None or not all(i is ... or i == slice(None) for i in (*before, *after)):
        return None
    return dims - len(after) if ... in before else len(before)
