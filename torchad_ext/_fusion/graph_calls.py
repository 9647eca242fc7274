"""Calls of a graph by what they do: which compute elements or rows, which may write, and why one is left as it is.

A graph is cut into regions by barriers, calls that may write or switch a mode; nothing moves across one.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.fx import Node

from .._native.kernels import DTYPES
from .._row_function import SHORT
from .._symbolic.expr import scalar, tensor
from .._symbolic.refusals import TraceError
from .._symbolic.symbols import ValueNeeded
from .._symbolic.torch_functions import FUNCTIONS
from .._symbolic.torch_names import is_of_torch, name_of, written_by
from .._symbolic.tracing import trace
from .._torch_state import is_wrapped, share_memory, surely, usual_size
from .row_calls import RowCall, row_call, view_of_rows

SMALLEST = 65_536  # elements of long rows: of fewer the call of a row op takes longer than what it saves

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
# Their results have other strides than their meta functions say, where not all tensors are contiguous.
_OF_OTHER_STRIDES = frozenset(
    "copysign floor_divide heaviside logaddexp logaddexp2 logical_and logical_or logical_xor logsigmoid log_sigmoid "
    "rpow xlog1py xlogy".split()
)
_POWERS = frozenset("pow float_power".split())  # the same of powers of a number
_OPERATORS = {"truediv": "div", "mod": "remainder"}


def value_of(node: Node) -> Any:
    """The fake tensor, or the number, that Dynamo has for a node."""
    return node.meta.get("example_value")


def note_reshaped(nodes: Sequence[Node]) -> None:
    """Notes which nodes stand for tensors whose shape changes in place, of which Dynamo knows the last one alone."""
    changed = [value_of(x) for node in nodes for x in _reshaped(node)]
    for node in nodes:
        node.meta["is_reshaped"] = any(value_of(node) is x for x in changed)


def _reshaped(node: Node) -> list[Node]:
    """The tensors that a call may give another shape: an ``out`` is given that of the result."""
    return node.all_input_nodes[:1] if _target(node) in _RESHAPES else _nodes_in(_options(node).get("out"))


def is_unknown(node: Node) -> bool:
    """Is the shape of a node, or of what it reads, not known, or that of a tensor within a transform?"""
    values = [value_of(x) for x in (node, *node.all_input_nodes)]
    return any(x.meta.get("is_reshaped") for x in (node, *node.all_input_nodes)) or any(
        is_wrapped(x) for x in values if isinstance(x, torch.Tensor)
    )


def spoken(node: Node) -> str:
    """The function of a call as FUNCTIONS names it."""
    name = _target(node)
    name = (name.rpartition(".")[2] if isinstance(node.target, str) else name).strip("_")
    return _OPERATORS.get(name, name)


def _target(node: Node) -> str:
    """The name of what a node calls, as it is written."""
    if isinstance(node.target, str):
        return node.target
    return name_of(node.target) if getattr(node.target, "__name__", "") else ""


@functools.lru_cache
def _names_of_arguments(function: Any) -> tuple[str, ...]:
    """The names of the arguments of a function that is written in Python; none of another."""
    return tuple(inspect.signature(function).parameters) if inspect.isfunction(function) else ()


def _options(node: Node) -> dict[str, Any]:
    """The arguments of a call whose names are known."""
    return {**dict(zip(_names_of_arguments(node.target), node.args, strict=False)), **node.kwargs}


def _nodes_in(arguments: Any) -> list[Node]:
    found: list[Node] = []
    torch.fx.map_arg(arguments, found.append)
    return found


def _written(node: Node) -> Any:
    """The arguments that a call writes, None if there are none."""
    options = _options(node)
    if options.get("out") is not None:
        return options["out"]
    if getattr(node.target, "__module__", "") == "_operator":
        name = f"__{_target(node)}__"
        writes = name in _AUGMENTED or node.target in (operator.setitem, operator.delitem)
    else:
        writes = written_by(_target(node), options) is not None
    return (node.args[:1] or node.all_input_nodes) if writes else None


_RESHAPES = frozenset(
    "t_ transpose_ swapaxes_ swapdims_ squeeze_ unsqueeze_ resize_ resize_as_ as_strided_ set_".split()
)
_DRAWS = frozenset("dropout feature_dropout alpha_dropout feature_alpha_dropout scaled_dot_product_attention".split())
_AUGMENTED = frozenset(f"__i{name}__" for name in "add sub mul truediv floordiv pow mod and or xor matmul".split())


def written_tensors(nodes: Sequence[Node]) -> Iterable[tuple[Node, torch.Tensor]]:
    """Each call that writes a tensor, and what it writes; of a barrier that is not known, all tensors it is given."""
    dropouts = [(node, *node.all_input_nodes[:1]) for node in nodes if spoken(node).endswith("dropout")]
    same = [tuple(map(value_of, pair)) for pair in dropouts if len(pair) == 2]  # where none of it is dropped
    for node in nodes:
        if is_barrier(node):
            given = _written(node)
            if given is None and spoken(node) not in _DRAWS:
                given = node.all_input_nodes
            found = [value_of(x) for x in _nodes_in(given) if isinstance(value_of(x), torch.Tensor)]
            for x in found:
                yield node, x
                for a, b in (*same, *(pair[::-1] for pair in same)):
                    if share_memory(a, x) and not any(b is y for y in found):
                        found.append(b)


def is_barrier(node: Node) -> bool:
    """May a call do anything but compute its result? Then nothing moves across it."""
    if not node.op.startswith("call"):
        return False
    if node.op == "call_module" or _written(node) is not None:
        return True
    of_torch = node.op == "call_method" or getattr(node.target, "__module__", "") in ("_operator", "builtins")
    if not of_torch and not is_of_torch(node.target):
        return True
    if spoken(node) == "embedding" and (node.kwargs.get("max_norm") or any(node.args[3:4])):
        return True  # which scales the rows of its table in place
    return not (spoken(node) in FUNCTIONS or spoken(node) in _PURE)


def hands_over(node: Node) -> bool:
    """Does a call give its arguments to Python, or to a function that is not known?"""
    return node.op == "output" or (is_barrier(node) and _written(node) is None and spoken(node) not in _DRAWS)


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
    """Is it a number of Python, or one that Dynamo does not know yet?"""
    return isinstance(x, (int, float, torch.SymInt, torch.SymFloat)) and not isinstance(x, bool)


def requires_grad(node: Node) -> bool:
    """Is the result of a node a tensor that requires a gradient?"""
    return isinstance(value_of(node), torch.Tensor) and bool(value_of(node).requires_grad)


def is_neutral(node: Node) -> bool:
    """Is a result a truth value or a constant, which has no derivative and is computed again where it is used?"""
    return value_of(node).dtype == torch.bool or spoken(node) in _CONSTANTS


def reason_to_leave(node: Node) -> str | None:
    """Why no op computes a call, None if one may; ``""`` of a call that is not elementwise at all."""
    name = spoken(node)
    if is_unknown(node):
        return "its shape changes in place, or a transform wraps it" if name in FUNCTIONS else ""
    row = row_call_of(node)
    if row is None and (node.op not in _CALLS or name not in FUNCTIONS or name in _LEFT):
        return ""
    result, inputs = value_of(node), [value_of(x) for x in node.all_input_nodes]
    if not isinstance(result, torch.Tensor):
        return ""
    if is_barrier(node):
        return "writes in place"
    if any(spoken(user) == "higher_order.register_hook" for user in node.users):
        return "has a hook, which would be called for other results of an op"
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
    is_turned = not surely(lambda: all(x.is_contiguous() for x in tensors))
    if is_turned and (name in _OF_OTHER_STRIDES or (name in _POWERS and not isinstance(node.args[0], Node))):
        return "has other strides than PyTorch says"
    return _reason_not_traced(node.target, *_pattern(node))


_CALLS = ("call_function", "call_method")


def row_call_of(node: Node) -> RowCall | None:
    """The call along rows that a node is, None if it is another."""
    return row_call(spoken(node), node) if node.op in _CALLS and not is_barrier(node) and not is_unknown(node) else None


def viewed_rows(node: Node) -> Node | None:
    """The tensor to which a node adds a last dimension of size 1, or from which it takes it; None if it is another."""
    return view_of_rows(spoken(node), node) if node.op in _CALLS and not is_unknown(node) else None


def _reason_no_rows(call: RowCall, tensors: Sequence[torch.Tensor]) -> str | None:
    rows = value_of(call.args[0])
    if rows.device.type != "cpu":
        return "from which size on row kernels pay was measured on the CPU alone"
    if gain_of_rows(call) < 1:
        return f"an op gains nothing on {usual_size(rows.numel()):,} elements"
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
