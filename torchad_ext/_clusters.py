"""Clusters of elementwise calls and of calls along rows in a graph: which calls one op may compute, and in which order.

A graph is cut into regions by barriers, calls that may write or switch a mode; nothing moves across one. Within a
region a cluster grows along the data. It has to be convex, no path may leave it and come back, or there would be no
order in which to run the graph once the cluster is one call. A cluster with a call along rows ``[..., n]`` has one
shape of its rows: its results have a value an element, a row ``[..., 1]``, or a row without that dimension.
"""

from __future__ import annotations

import functools
import heapq
import inspect
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node

from ._native.kernels import DTYPES
from ._row_calls import RowCall, row_call, view_of_rows
from ._symbolic.expr import scalar, tensor
from ._symbolic.refusals import TraceError
from ._symbolic.torch_functions import FUNCTIONS
from ._symbolic.torch_names import is_of_torch, name_of, written_by
from ._symbolic.tracing import ValueNeeded, trace
from ._torch_state import usual_size

LONGEST = 100  # calls of a cluster: a kernel's double backward has several times as many operations
WIDEST = 16  # tensors that a cluster reads
SMALLEST = 65_536  # elements of long rows: of fewer the call of a row op takes longer than what it saves
SHORT = 16  # elements of rows that a kernel computes side by side: an eighth of them will do

# Calls that only compute: they write nothing, draw nothing and switch no mode, so that others may move across them.
_PURE = frozenset(
    "linear matmul mm bmm mv dot addmm addmv baddbmm einsum tensordot outer inner cross bilinear kron embedding "
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d unfold fold sum mean prod amax amin "
    "argmax argmin std var std_mean var_mean norm linalg_norm linalg_vector_norm linalg_vecdot "
    "vector_norm matrix_norm normalize softmax log_softmax logsumexp "
    "layer_norm group_norm rms_norm cosine_similarity pairwise_distance cdist cumsum cumprod median sort topk any all "
    "mse_loss l1_loss getitem getattr index_select gather take take_along_dim narrow select split chunk unbind view "
    "reshape flatten unflatten ravel transpose permute swapaxes movedim t T mT H mH adjoint unsqueeze squeeze expand "
    "expand_as broadcast_to broadcast_tensors cat concat stack hstack vstack roll flip repeat repeat_interleave tile "
    "pad triu tril diag diagonal diag_embed trace meshgrid scatter scatter_add index_add index_copy index_put "
    "masked_select segment_reduce one_hot bincount zeros ones full empty arange linspace eye empty_like size shape "
    "dim ndim numel stride is_contiguous item to type type_as float double half bfloat16 int long bool clone "
    "contiguous detach view_as reshape_as inverse det slogdet solve cholesky eigh qr svd bucketize".split()
)
# Constants, and names of one value: in a cluster they are worth nothing by themselves.
_CONSTANTS = frozenset("zeros_like ones_like full_like".split())
_LEFT = frozenset(
    "to type_as clone contiguous tensor as_tensor scalar_tensor positive detach data new_tensor new_full new_zeros "
    "new_ones".split()
)
_OPERATORS = {"truediv": "div", "mod": "remainder"}


def value_of(node: Node) -> Any:
    """The fake tensor, or the number, that Dynamo has for a node."""
    return node.meta.get("example_value")


def spoken(node: Node) -> str:
    """The function of a call as FUNCTIONS names it."""
    if isinstance(node.target, str):
        name = node.target.rpartition(".")[2]
    else:
        name = getattr(node.target, "__name__", "") and name_of(node.target)
    name = name.strip("_")
    return _OPERATORS.get(name, name)


def _is_write(node: Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.target in (operator.setitem, operator.delitem) or node.kwargs.get("out") is not None:
        return True
    if getattr(node.target, "__module__", "") == "_operator":
        return f"__{name}__" in _AUGMENTED
    if node.op == "call_function" and True in node.args and inspect.isfunction(node.target):  # F.silu(x, True)
        names = list(inspect.signature(node.target).parameters)
        if "inplace" in names and names.index("inplace") < len(node.args) and node.args[names.index("inplace")]:
            return True
    return written_by(name, node.kwargs) is not None


_DRAWS = frozenset("dropout feature_dropout alpha_dropout feature_alpha_dropout scaled_dot_product_attention".split())
_AUGMENTED = frozenset(f"__i{name}__" for name in "add sub mul truediv floordiv pow mod and or xor matmul".split())


def written_tensors(nodes: Iterable[Node]) -> Iterable[tuple[Node, torch.Tensor]]:
    """Each call that writes a tensor, and what it writes; of a barrier that is not known, all tensors it is given."""
    for node in nodes:
        if is_barrier(node):
            given = [node.kwargs.get("out"), *node.args[:1]] if _is_write(node) else node.all_input_nodes
            given = [] if spoken(node) in _DRAWS else given
            for x in given:
                if isinstance(x, Node) and isinstance(value_of(x), torch.Tensor):
                    yield node, value_of(x)


def is_barrier(node: Node) -> bool:
    """May a call do anything but compute its result? Then nothing moves across it."""
    if not node.op.startswith("call"):
        return False
    if node.op == "call_module" or _is_write(node):
        return True
    of_torch = node.op == "call_method" or getattr(node.target, "__module__", "") in ("_operator", "builtins")
    if not of_torch and not is_of_torch(node.target):
        return True
    if spoken(node) == "embedding" and (node.kwargs.get("max_norm") or any(node.args[3:4])):
        return True  # which scales the rows of its table in place
    return not (spoken(node) in FUNCTIONS or spoken(node) in _PURE)


def regions(nodes: Sequence[Node]) -> dict[Node, int]:
    """The region of each node, barriers being regions of their own."""
    result, region = {}, 0
    for node in nodes:
        barrier = is_barrier(node)
        region += barrier
        result[node] = region
        region += barrier
    return result


def is_number(x: Any) -> bool:
    return isinstance(x, (int, float, torch.SymInt, torch.SymFloat)) and not isinstance(x, bool)


def _requires_grad(node: Node) -> bool:
    return isinstance(value_of(node), torch.Tensor) and bool(value_of(node).requires_grad)


def is_neutral(node: Node) -> bool:
    """Is a result a truth value or a constant, which has no derivative and is computed again where it is used?"""
    return value_of(node).dtype == torch.bool or spoken(node) in _CONSTANTS


def reason_to_leave(node: Node) -> str | None:
    """Why no op computes a call, None if one may; ``""`` of a call that is not elementwise at all."""
    name = spoken(node)
    row = _row_call(node)
    if row is None and (node.op not in _CALLS or name not in FUNCTIONS or name in _LEFT):
        return ""
    result, inputs = value_of(node), [value_of(x) for x in node.all_input_nodes]
    if not isinstance(result, torch.Tensor):
        return ""
    if is_barrier(node):
        return "writes in place"
    if result.dtype not in DTYPES and (result.dtype != torch.bool or row):
        return f"has the dtype {result.dtype}"
    if type(result) is not torch.Tensor and not _is_fake(result):
        return f"is a {type(result).__name__}"
    tensors = [x for x in inputs if isinstance(x, torch.Tensor)]
    if not tensors or not all(isinstance(x, torch.Tensor) or is_number(x) for x in inputs):
        return "takes no tensor, or something else beside"
    if any(x.device != result.device or x.layout != torch.strided for x in tensors):
        return "takes tensors of several devices or layouts"
    dtypes = {x.dtype for x in tensors} - {torch.bool}
    if result.dtype != torch.bool and not dtypes <= {result.dtype}:
        return f"takes {', '.join(sorted(map(str, dtypes)))} and gives {result.dtype}"
    if row is not None:
        return _reason_no_rows(row, tensors)
    return _reason_not_traced(node.target, *_pattern(node))


_CALLS = ("call_function", "call_method")


def _row_call(node: Node) -> RowCall | None:
    return row_call(spoken(node), node) if node.op in _CALLS and not is_barrier(node) else None


def _reason_no_rows(call: RowCall, tensors: Sequence[torch.Tensor]) -> str | None:
    rows = value_of(call.args[0])
    if rows.device.type != "cpu":
        return "there are row kernels for the CPU alone"
    if gain_of_rows(call) < 1:
        return f"of {usual_size(rows.numel()):,} elements it is as fast as it is"
    return None


def gain_of_rows(call: RowCall) -> float:
    """The elements of the rows of a call, in multiples of those from which on an op pays."""
    rows = value_of(call.args[0])
    smallest = SMALLEST / 8 if usual_size(rows.shape[-1]) <= SHORT else SMALLEST
    return usual_size(rows.numel()) / smallest if smallest else math.inf


def _is_fake(x: torch.Tensor) -> bool:
    return type(x).__module__.startswith("torch.")


class _Place:
    """An argument that is a node, by what it is: ``"tensor"``, ``"mask"`` or ``"number"``."""

    def __init__(self, place: int, kind: str) -> None:
        self.place, self.kind = place, kind

    def __repr__(self) -> str:
        return f"<{self.kind} {self.place}>"


def _pattern(node: Node) -> tuple[str, Any]:
    """The arguments of a call with a place for each node, as a key and as they are."""
    places = {
        x: _Place(i, "number" if is_number(value_of(x)) else "mask" if value_of(x).dtype == torch.bool else "tensor")
        for i, x in enumerate(node.all_input_nodes)
    }
    arguments = torch.fx.map_arg((node.args, node.kwargs), places.__getitem__)  # type: ignore[arg-type]
    return repr(arguments), _ByIdentity((node.op, arguments))


class _ByIdentity:
    """Passes a value through a cache without being part of the key."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity)

    def __hash__(self) -> int:
        return 0


@functools.lru_cache(10_000)
def _reason_not_traced(target: Any, pattern: str, call: _ByIdentity) -> str | None:
    """The reason why one call is no op by itself; None if there is none."""
    op, (args, kwargs) = call.value
    places: dict[int, _Place] = {}
    _map((args, kwargs), lambda x: places.setdefault(x.place, x) and None)

    def function(given: Sequence[Any]) -> Any:
        xs = {i: x > 0 if places[i].kind == "mask" else x for i, x in zip(sorted(places), given[1:], strict=True)}
        positional, named = _map((args, kwargs), lambda x: xs[x.place])
        method = op == "call_method"
        y = getattr(positional[0], target)(*positional[1:], **named) if method else target(*positional, **named)
        return torch.where(y, given[0], 0.0 * given[0]) if _is_mask(y) else y + 0 * given[0]

    symbols = [(scalar if places[i].kind == "number" else tensor)(f"x{i}") for i in sorted(places)]
    try:
        trace(function, [tensor("like"), *symbols], spoken_target(target))
    except ValueNeeded:
        return "asks for the value of a number"
    except TraceError as error:
        return str(error).splitlines()[-1].strip()
    return None


def spoken_target(target: Any) -> str:
    return target if isinstance(target, str) else name_of(target)


def _is_mask(x: Any) -> bool:
    return getattr(x, "kind", "") == "mask"


def _map(x: Any, of: Callable[[_Place], Any]) -> Any:
    if isinstance(x, _Place):
        return of(x)
    if isinstance(x, (tuple, list)):
        return type(x)([_map(y, of) for y in x])
    return {key: _map(y, of) for key, y in x.items()} if isinstance(x, dict) else x


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
        self.rows = {n: call for n in nodes if n not in self.left and (call := _row_call(n))}
        self.inner: dict[Node, list[Node]] = {}
        self._neutral = {n for n in nodes if n not in self.left and is_neutral(n)}
        for node in nodes:
            if node not in self.left and node not in self._neutral:
                self._take_neutral_inputs(node)
        self._handed = {n for n in nodes if _requires_grad(n) and any(map(_hands_over, n.users))}
        self._read: dict[Node, list[Node]] = {}
        self._alive: set[Node] | None = None
        self._group: dict[Node, int] = {}
        self._members: dict[int, list[Node]] = {}
        self._above: dict[int, int] = {}  # bits of the groups that a group depends on, and of those that depend on it
        self._below: dict[int, int] = {}
        self.views: dict[Node, Node] = {}
        for node in nodes:
            x = view_of_rows(spoken(node), node) if node.op in _CALLS and self.rows else None
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
        elif not own.requires_grad and any(_requires_grad(y) for y in outside - set(node.all_input_nodes)):
            self.left[node] = "takes a truth value of what requires a gradient, and requires none itself"
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


def _hands_over(node: Node) -> bool:
    """Does a call give its arguments to Python, or to a function that is not known?"""
    return node.op == "output" or (is_barrier(node) and not _is_write(node) and spoken(node) not in _DRAWS)


def _span(x: torch.Tensor) -> str:
    """Span of a tensor from outside, in a cluster of rows."""
    return "row" if not x.dim() or str(x.shape[-1]) == "1" else "element"


def _bits(mask: int) -> Iterable[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
