"""Second derivatives along several directions by pullbacks through one graph, in batches where that is quicker.

One random combination of the pullbacks by plain reverse mode checks a batch: the first time that a graph is met, and
from then on as often as 2 % of the time allow. Where it differs, directions are pulled back one by one, with a warning;
with ``TORCHAD_EXT_STRICT=1`` it is an error.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._autograd.graph import graph_nodes, largest_in_graph
from .._self_check import FastPath, fast_path, report
from .._torch_state import is_recorded, of_batch

_IN_CACHE = 2**21  # bytes of the largest tensor of a batch
_ROUNDINGS = 64  # by how much a batch may differ, in what single pullbacks differ by

Pull = Callable[[Tensor], Tensor]


class _Sums(NamedTuple):
    """Σ ±u·Hu, and what a check compares: Σ w Hu and Σ w |Hu| for random weights."""

    total: Tensor
    mixed: Tensor | None
    size: Tensor | None


def curvature(
    pull: Pull, slope: Tensor, directions: Sequence[Tensor], signs: Sequence[int], f: Callable[..., Any], name: str
) -> Tensor:
    """Σ_k ±u_k·H u_k at each point, for ``name`` of a function f with this slope, of which ``pull`` is the pullback."""
    nodes = graph_nodes([slope])
    count = min(_IN_CACHE // max(1, largest_in_graph(nodes)), len(directions))
    if count < 2 or is_recorded() or any(type(u) is not Tensor for u in directions):
        return _summed(pull, directions, signs, 1, None).total
    names = tuple([node.name() for node in nodes])
    path = fast_path((name, "in batches", slope.shape, slope.dtype, slope.device, names), slope.is_meta)
    with path.running():
        weights = _weights(slope, len(directions)) if path.is_due else None
        error = 0.0
        if not path.is_wrong:
            try:
                sums = _summed(pull, directions, signs, count, weights)
                error = _error(pull, directions, weights, sums, path)
                if error <= torch.finfo(slope.dtype).eps ** 0.5:
                    return sums.total
            except (RuntimeError, IndexError):  # of an operation that has no batches
                path.is_wrong = True
    sums = _summed(pull, directions, signs, 1, weights)
    if not path.is_wrong:
        if error > _ROUNDINGS * _error(pull, directions, weights, sums, path):
            report(name, f, path, "in batches")
        path.is_rounded = not path.is_wrong
    return sums.total


def _summed(
    pull: Pull, directions: Sequence[Tensor], signs: Sequence[int], count: int, weights: Tensor | None
) -> _Sums:
    totals, mixed, sizes = [], [], []
    for start in range(0, len(directions), count):
        some = slice(start, start + count)
        if count == 1:
            along = directions[start].unsqueeze(0)
            rows = pull(directions[start]).unsqueeze(0)
        else:
            along = torch.stack(list(directions[some]))
            rows = of_batch(lambda given: [pull(given[0])], [along])[0]
        terms = (rows * along).sum(-1)
        totals += [term if sign > 0 else -term for sign, term in zip(signs[some], terms.unbind(), strict=True)]
        if weights is not None:
            mixed.append(torch.tensordot(weights[some], rows.detach(), 1))
            sizes.append(torch.tensordot(weights[some], rows.detach().abs(), 1))
    added = functools.partial(functools.reduce, operator.add)
    return _Sums(added(totals), *(added(parts) if parts else None for parts in (mixed, sizes)))


def _weights(like: Tensor, count: int) -> Tensor:
    generator = torch.Generator(like.device).manual_seed(0)
    return torch.rand(count, generator=generator, dtype=like.dtype, device=like.device) + 0.5


def _error(pull: Pull, directions: Sequence[Tensor], weights: Tensor | None, sums: _Sums, path: FastPath) -> float:
    """By how much the random combination of pullbacks differs from the pullback of that of the directions, in units of
    their size. nan is no difference."""
    if weights is None or sums.mixed is None or sums.size is None:
        return 0.0
    with path.checking(), torch.no_grad():
        expected = pull(functools.reduce(operator.add, map(operator.mul, weights, directions))).detach()
        difference = (sums.mixed - expected).abs().nan_to_num(0.0)
        return float(difference.amax() / sums.size.nan_to_num(0.0).amax().clamp_min(torch.finfo(expected.dtype).tiny))
