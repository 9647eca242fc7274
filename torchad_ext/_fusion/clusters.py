"""Clusters of elementwise calls and of calls along rows in a graph: which calls one op may compute, and in which order.

Within a region a cluster grows along the data. It has to be convex, no path may leave it and come back, or there would
be no order in which to run the graph once the cluster is one call. A cluster with a call along rows ``[..., n]`` has
one shape of its rows: its results have a value an element, a row ``[..., 1]``, or a row without that dimension.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node

from .graph_calls import (
    hands_over,
    is_neutral,
    reason_to_leave,
    regions,
    requires_grad,
    row_call_of,
    value_of,
    viewed_rows,
)

LONGEST = 100  # calls of a cluster: a kernel's double backward has several times as many operations
WIDEST = 16  # tensors that a cluster reads


class Clusters:
    """Partition of a graph's nodes: clusters of calls of elements and of rows, and every other node by itself.

    Args:
        nodes: of the graph, in its order.
        apart: calls that belong to no cluster, and why.

    Attributes:
        region: of each node.
        left: why an elementwise call was left as it is.
        inner: for each call of a cluster the truth values, constants and views of rows that it computes by itself.
        rows: the calls along rows that may belong to a cluster.
        views: of tensors that add or drop a last dimension of size 1, and of which tensors they are.
    """

    def __init__(self, nodes: Sequence[Node], apart: Mapping[Node, str] | None = None) -> None:
        self.nodes = nodes
        self.region = regions(nodes)
        self._index = {node: i for i, node in enumerate(nodes)}
        self.left = {n: reason for n in nodes if (reason := reason_to_leave(n)) is not None} | dict(apart or {})
        self.rows = {n: call for n in nodes if n not in self.left and (call := row_call_of(n))}
        self.inner: dict[Node, list[Node]] = {}
        self._neutral = {n for n in nodes if n not in self.left and is_neutral(n)}
        for node in nodes:
            if node not in self.left and node not in self._neutral:
                self._take_neutral_inputs(node)
        self._handed = {n for n in nodes if requires_grad(n) and any(map(hands_over, n.users))}
        self._read: dict[Node, list[Node]] = {}
        self._alive: set[Node] | None = None
        self._group: dict[Node, int] = {}
        self._members: dict[int, list[Node]] = {}
        self._above: dict[int, int] = {}  # bits of the groups that a group depends on, and of those that depend on it
        self._below: dict[int, int] = {}
        self.views: dict[Node, Node] = {}
        for node in nodes:
            x = viewed_rows(node) if self.rows else None
            if x is not None and self.region[x] == self.region[node]:
                self.views[node] = x
        for node in nodes:
            self._add(node)

    def _take_neutral_inputs(self, node: Node) -> None:
        inner: set[Node] = set()
        waiting = list(node.all_input_nodes)
        while waiting:
            x = waiting.pop()
            if x in self._neutral and self.region[x] == self.region[node] and x not in inner:
                inner.add(x)
                waiting += x.all_input_nodes
        own = value_of(node)
        outside = {y for x in (node, *inner) for y in x.all_input_nodes if y not in inner}
        tensors = [value_of(x) for x in outside if isinstance(value_of(x), torch.Tensor)]
        if any(x.dtype == torch.bool for x in tensors):
            self.left[node] = "takes a truth value from elsewhere"
        elif not tensors or any(x.dtype != own.dtype or x.device != own.device for x in tensors):
            self.left[node] = "takes truth values of tensors of another dtype"
        else:
            self.inner[node] = sorted(inner, key=self._index.__getitem__)

    def _key(self, node: Node) -> Any:
        own = value_of(node)
        return own.dtype, own.device, own.requires_grad, self.region[node]

    def whole(self, members: Sequence[Node]) -> tuple[Any, ...] | None:
        """The shape ``[..., n]`` of the rows that the calls of a group work on; None if there is no call along rows."""
        rows = (self.rows[n] for n in members if n in self.rows)
        return next((tuple(value_of(row.args[0]).shape) for row in rows), None)

    def spans(self, members: Sequence[Node]) -> dict[Node, str] | None:
        """Span of each call of a group: a value for an ``"element"``, a ``"row"``, or a row without its dimension,
        ``"dropped"``. None where their shapes do not fit together."""
        whole = self.whole(members)
        if whole is None:
            of_one_shape = len({str(tuple(value_of(n).shape)) for n in members}) == 1
            views = any(x in self.views for n in members for x in self.inner.get(n, ()))
            return dict.fromkeys(members, "element") if of_one_shape and not views else None
        shapes = {"element": str(whole), "row": str((*whole[:-1], 1)), "dropped": str(whole[:-1])}
        spans: dict[Node, str] = {}
        inner = {x for n in members for x in self.inner.get(n, ())}
        for node in sorted({*members, *inner}, key=self._index.__getitem__):
            tensors = [x for x in node.all_input_nodes if isinstance(value_of(x), torch.Tensor)]
            given = {x: spans.get(x) or _span(value_of(x)) for x in tensors}
            shape = str(tuple(value_of(node).shape))
            if call := self.rows.get(node):
                reduced = call.args[: call.rows]
                fit = all(given[x] == "element" and str(tuple(value_of(x).shape)) == str(whole) for x in reduced)
                if not fit or "dropped" in given.values():
                    return None
                span = next((name for name, of in shapes.items() if shape == of), "")
            elif node in self.views:
                span = {"dropped": "row", "row": "dropped"}.get(given[tensors[0]], "")
            elif "dropped" in given.values():
                span = "dropped" if set(given.values()) == {"dropped"} else ""
            else:
                span = "element" if "element" in given.values() else "row"
            if shape != shapes.get(span):
                return None
            spans[node] = span
        return spans

    def _reads_of(self, node: Node) -> list[Node]:
        if node not in self._read:
            self._read[node] = self.reads([node])
        return self._read[node]

    def reads(self, nodes: Sequence[Node]) -> list[Node]:
        """The nodes that the calls of a group read from outside."""
        inside = {*nodes, *(x for n in nodes for x in self.inner.get(n, ()))}
        calls = [x for n in nodes for x in (*self.inner.get(n, ()), n)]
        return list(dict.fromkeys(x for n in calls for x in n.all_input_nodes if x not in inside))

    def deciding(self, members: Sequence[Node]) -> set[Node]:
        """The nodes that require a gradient, and that a group reads for truth values and constants alone, which have
        none."""
        within = {*members, *(y for n in members for y in self.inner[n] if y in self.views)}
        waiting = self.outputs(members)
        passing = set(waiting)  # that hand a gradient to all that they read
        while waiting:
            found = {*waiting.pop().all_input_nodes} - passing
            passing |= found
            waiting += found & within
        return {x for x in self.reads(members) if requires_grad(x) and x not in passing}

    def _add(self, node: Node) -> None:
        number = self._index[node]
        self._group[node], self._members[number] = number, [node]
        self._above[number] = self._below[number] = 0
        taken = self._take_views(node) if node in self.inner else []
        for x in self._reads_of(node):
            self._put_above(self._group[x], number)
        if node in self.inner:
            key = self._key(node)
            for x in self._reads_of(node):
                if x in self.inner and self._key(x) == key:
                    self._merge(self._group[x], self._group[node])
        for view in taken:
            if self._group[self.views[view]] != self._group[node]:
                self.inner[node].remove(view)
                self._read.pop(node, None)
                self._put_above(self._group[view], self._group[node])
            else:
                self._neutral.add(view)

    def _take_views(self, node: Node) -> list[Node]:
        """Lets a call compute views of rows of a cluster by itself, in the hope that it becomes part of it."""
        taken = [x for x in self._reads_of(node) if x in self.views and self.views[x] in self.inner]
        if taken:
            self.inner[node] = sorted([*self.inner[node], *taken], key=self._index.__getitem__)
            del self._read[node]
        return taken

    def _put_above(self, upper: int, lower: int) -> None:
        above, below = self._above[upper] | 1 << upper, self._below[lower] | 1 << lower
        for g in _bits(above):
            self._below[g] |= below
        for g in _bits(below):
            self._above[g] |= above

    def _merge(self, a: int, b: int) -> None:
        """Makes one cluster of two, if no path leads from one to the other through a third group."""
        if a == b or self._below[a] & self._above[b] or self._below[b] & self._above[a]:
            return
        members = sorted(self._members[a] + self._members[b], key=self._index.__getitem__)
        handed = self._handed.intersection(members)
        if handed and any(x in handed for n in members for y in (n, *self.inner[n]) for x in y.all_input_nodes):
            return  # its caller may ask for a derivative in it, or hook it, so that it has to lie between two ops
        if len(members) > LONGEST or len(self.reads(members)) > WIDEST or self.spans(members) is None:
            return
        del self._members[b]
        self._members[a] = members
        for node in members:
            self._group[node] = a
        gone = ~(1 << a | 1 << b)
        above, below = (self._above[a] | self._above.pop(b)) & gone, (self._below[a] | self._below.pop(b)) & gone
        for masks in (self._above, self._below):
            for g, mask in masks.items():
                if mask >> b & 1:
                    masks[g] = mask & gone | 1 << a
        self._above[a], self._below[a] = above, below
        for g in _bits(above):
            self._below[g] |= below | 1 << a
        for g in _bits(below):
            self._above[g] |= above | 1 << a

    def clusters(self) -> list[list[Node]]:
        """The calls of each cluster, in the order of the graph."""
        return [members for members in self._members.values() if members[0] in self.inner]

    def dissolve(self, members: Sequence[Node], reason: str) -> None:
        """Leaves the calls of a cluster as they are."""
        self._alive = None
        del self._members[self._group[members[0]]]
        for node in members:
            del self.inner[node]
            self._read.pop(node, None)
            self.left[node] = reason
            number = self._group[node] = self._index[node]
            self._members[number] = [node]

    def outputs(self, members: Sequence[Node]) -> list[Node]:
        """The calls of a cluster whose results are read by others."""
        inside, live = set(members), self._live()
        return [
            n for n in members if any(u in live and n in self._reads_of(u) for u in self._readers(n) if u not in inside)
        ]

    def _readers(self, node: Node) -> Iterable[Node]:
        """Readers of a node, direct ones and those behind truth values and constants that are computed again."""
        for user in node.users:
            yield user
            if user in self._neutral or user in self.views:
                yield from self._readers(user)

    def _live(self) -> set[Node]:
        """All nodes but truth values and constants that only clusters use, which compute them again."""
        if self._alive is None:
            self._alive = set()
            for node in reversed(self.nodes):
                used = any(u in self._alive and node in self._reads_of(u) for u in node.users)
                if used or node not in self._neutral:
                    self._alive.add(node)
        return self._alive

    def in_order(self) -> list[list[Node]]:
        """The groups in an order in which each comes after those that it reads, and no region before an earlier one."""
        live = self._live()
        groups = {g: members for g, members in self._members.items() if members[0] in live}
        needs = {g: {self._group[x] for x in self.reads(members)} for g, members in groups.items()}
        users: dict[int, list[int]] = {g: [] for g in groups}
        for g, needed in needs.items():
            for x in needed:
                users[x].append(g)
        ready = [self._rank(g) for g in groups if not needs[g]]
        heapq.heapify(ready)
        result = []
        while ready:
            *_, g = heapq.heappop(ready)
            result.append(groups[g])
            for user in users[g]:
                needs[user].discard(g)
                if not needs[user]:
                    heapq.heappush(ready, self._rank(user))
        assert len(result) == len(groups), "a cluster is not convex"
        return result

    def _rank(self, group: int) -> tuple[int, int, int]:
        first = self._members[group][0]
        return self.region[first], self._index[first], group


def _span(x: torch.Tensor) -> str:
    """Span of a tensor from outside, in a cluster of rows."""
    return "row" if not x.dim() or str(x.shape[-1]) == "1" else "element"


def _bits(mask: int) -> Iterable[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
