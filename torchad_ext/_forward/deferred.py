"""Tangents, computed on first access: those of the last linear operations of a function are often never needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from .._torch_state import outside_autocast, top_saved_tensors_hooks
from .fallback import Unseen
from .roots import changes

Tangents = tuple[Tensor, ...]


class Overwritten(Unseen):
    """Deferred tangents need a tensor that was changed in place meanwhile."""


class Deferred:
    """Tangents to be computed.

    Within a checkpoint they are computed on each access, so that what is run again saves as many tensors.

    Args:
        compute: gives the tangents.
        constants: tensors that it reads besides those of the sweep.
        sources: tangents from which these are computed.
    """

    def __init__(
        self, compute: Callable[[], Iterable[Tensor]], constants: Sequence[Tensor], sources: Sequence[Any]
    ) -> None:
        self._compute = compute
        self._constants = [(x, changes(x)) for x in constants]
        self._rows: Tangents | None = None
        self._is_kept = True
        self._depth = 1 + depth(sources)

    def __call__(self) -> Tangents:
        if self._rows is not None:
            return self._rows
        if any(changes(x) != count for x, count in self._constants):
            raise Overwritten("what changes a tensor in place that a linear operation was given before")
        with outside_autocast():  # as where these tangents were deferred
            rows = tuple(self._compute())
        self._is_kept = self._is_kept and not top_saved_tensors_hooks()
        if self._is_kept:
            self._rows, self._compute, self._constants = rows, tuple, []
        return rows


def depth(sources: Iterable[Any]) -> int:
    """The longest chain of tangents that are yet to be computed."""
    return max((x._depth for x in sources if isinstance(x, Deferred) and x._rows is None), default=0)


def given_by(given: Tangents | Deferred) -> Tangents:
    """The tangents, computed now if they were deferred."""
    return given() if isinstance(given, Deferred) else given


def tensors_in(arguments: Any) -> list[Tensor]:
    """The tensors among arguments."""
    if isinstance(arguments, Tensor):
        return [arguments]
    found: list[Tensor] = []
    if isinstance(arguments, (tuple, list, dict)):
        for x in arguments.values() if isinstance(arguments, dict) else arguments:
            if isinstance(x, Tensor):
                found.append(x)
            elif isinstance(x, (tuple, list, dict)) and x:
                found += tensors_in(x)
    return found
