"""Control flow of PyTorch (``torch.cond`` and its kin) as the Python that it stands for.

A tool runs f with numbers in hand, so that it takes the branch, or the loops, at once: what PyTorch makes of them for
its compilers has no second derivative. The arguments are those of the operators, lists of tensors side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_map

from .._torch_state import is_batched


def _cond(condition: Any, of_true: Any, of_false: Any, operands: Sequence[Any] = ()) -> Any:
    if is_batched(condition):
        return NotImplemented
    return (of_true if condition else of_false)(*operands)


def _while_loop(
    condition: Any, body: Any, carried: Sequence[Any], others: Sequence[Any] = (), mutated_arg_indices: str = ""
) -> Any:
    carried = tuple(carried)
    while True:
        goes_on = condition(*carried, *others)
        if is_batched(goes_on):
            return NotImplemented
        if not goes_on:
            return carried
        carried = tuple(body(*carried, *others))


def _scan(
    combine: Any, carried: Sequence[Any], xs: Sequence[Any], others: Sequence[Any] = (), mutated_arg_indices: str = ""
) -> Any:
    rows = []
    for i in range(len(xs[0])):
        results = combine(*carried, *(x[i] for x in xs), *others)
        rows.append(results[len(carried) :])
        carried = results[: len(carried)]
    return [*carried, *map(torch.stack, zip(*rows, strict=True))] if rows else NotImplemented


def _map(f: Any, xs: Sequence[Any], others: Sequence[Any] = (), mutated_arg_indices: str = "") -> Any:
    rows = [f(*(x[i] for x in xs), *others) for i in range(len(xs[0]))]
    return tree_map(lambda *ys: torch.stack(ys), *rows) if rows else NotImplemented


# NotImplemented where the rows of a batch go different ways, or there is nothing to go through.
CONTROL_FLOW: dict[str, Callable[..., Any]] = {
    "higher_order.cond": _cond,
    "higher_order.while_loop": _while_loop,
    "higher_order.scan": _scan,
    "higher_order.map_impl": _map,
}
