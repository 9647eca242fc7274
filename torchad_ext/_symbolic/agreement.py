"""Does a program compute what its function does? Both are run on a few numbers.

A symbol is no tensor and no number: a function that asks what its arguments are, or draws random numbers, may compute
something else of symbols than of what it will be called with.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .._torch_state import dispatch_modes, is_being_traced, without_compilation, without_modes
from .evaluate import evaluate, evaluate_nodes, evaluate_rows
from .expr import Expr
from .program import Program

_SHAPE = (2, 5)  # rows, and their length
_SHAPES = {"tensor": _SHAPE, "row": (2, 1), "column": (5,)}
_TOLERANCE = 1e-5  # of the largest number of a result
_ROUNDING = 1e-12  # of the largest number on the way to a result: one that is smaller is what rounding left


def agrees(
    function: Callable[[list[Any]], Any],
    arguments: Sequence[Any],
    program: Program,
    intervals: Mapping[str, tuple[float, float]],
    numbers: Mapping[str, float],
) -> bool:
    """Does a function give what its program gives? Yes where it does not run on what it is tried with, and where a mode
    keeps numbers from it, as that of tensors without data does.

    Args:
        function: calls plain PyTorch with a list of arguments.
        arguments: that list, with symbols in place of tensors and run-time numbers.
        program: what was traced of it.
        intervals: of the numbers that tensors have, by name.
        numbers: the run-time numbers, by name.
    """
    if dispatch_modes() or is_being_traced():
        return True
    generator = random.Random(0)  # PyTorch's own draws nothing under vmap
    rows = bool(program.kinds)

    def value(x: Expr) -> Any:
        if x.op == "scalar":
            return numbers[str(x.value)]
        low, high = intervals.get(str(x.value), (-3.0, 3.0))
        shape = _SHAPES[x.op]
        uniform = [generator.uniform(low, high) for _ in range(math.prod(shape))]
        return torch.tensor(uniform, dtype=torch.float64, device="cpu").view(shape)

    with without_modes(), torch.inference_mode(False), torch.enable_grad(), without_compilation():
        values = [value(x) for x in (*program.inputs, *program.scalars)]
        known = dict(zip((*program.inputs, *program.scalars), values, strict=True))
        try:
            results = function([known[x] if isinstance(x, Expr) else x for x in arguments])
        except Exception:  # only a call tells what a function takes
            return True
        if rows:
            kinds = tuple("row" if kind == "dropped" else kind for kind in program.kinds)
            expected = evaluate_rows(replace(program, kinds=kinds), _SHAPE, *values)
        else:
            expected = evaluate(program, *values)
        rounding = _ROUNDING * max(map(_largest, evaluate_nodes(program, *values, length=_SHAPE[-1]).values()))
    results, expected = (y if isinstance(y, (tuple, list)) else (y,) for y in (results, expected))
    return all(_are_close(x, y, rounding) for x, y in zip(results, expected, strict=False))


def _largest(x: Any) -> float:
    """The largest finite absolute value."""
    if not isinstance(x, Tensor):
        return abs(float(x)) if math.isfinite(x) else 0.0
    return float(x.detach().double().nan_to_num(0.0, 0.0, 0.0).abs().max())


def _are_close(x: Any, y: Tensor, rounding: float) -> bool:
    if not isinstance(x, Tensor) or x.numel() not in (1, y.numel()):
        return True
    x, y = x.detach().double().flatten(), y.detach().double().flatten()
    if max(_largest(x), _largest(y)) <= rounding:
        return True
    close = (x - y).abs() <= _TOLERANCE * _largest(y)
    return bool((close | (x == y) | (x.isnan() & y.isnan())).all())
