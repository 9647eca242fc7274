"""The values of a program in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .expr import OPERATIONS, Expr, topological
from .program import Program


def evaluate_nodes(program: Program, *values: Any, length: int = 0) -> dict[Expr, Any]:
    """Every node of a program in plain PyTorch, for tensors of one shape, of rows of a length, and then numbers."""
    known: dict[Expr, Any] = dict(zip((*program.inputs, *program.scalars), values, strict=True))

    def number(value: float) -> torch.Tensor:
        x = torch.full((), value, dtype=torch.float64, device=values[0].device)
        return x.to(values[0].dtype)  # inf where it is too large

    for node in topological(program.outputs):
        if node.op == "constant":
            known[node] = number(node.number)
        elif node.op == "length":
            known[node] = number(length)
        elif node.args:
            args: list[Any] = [
                x if isinstance(x, torch.Tensor) else number(x) for x in (known[arg] for arg in node.args)
            ]
            if node.op == "pow" and node.args[1].is_constant:  # PyTorch takes a root for a number 0.5
                args[1] = node.args[1].number
            known[node] = (OPERATIONS[node.op].reference or getattr(torch, node.op))(*args)
    return known


def evaluate(program: Program, *values: Any) -> Any:
    """The outputs of a program in plain PyTorch, for tensors of one shape and then numbers."""
    known = evaluate_nodes(program, *values)
    results = (known[y] for y in program.outputs)
    outputs = tuple(
        y.expand_as(values[0]) if isinstance(y, torch.Tensor) else torch.full_like(values[0], y) for y in results
    )
    return outputs[0] if len(outputs) == 1 else outputs


def evaluate_rows(program: Program, shape: Sequence[int], *values: Any) -> Any:
    """The outputs of a program of rows in plain PyTorch.

    Args:
        program: the expressions.
        shape: of the tensors with a value an element, the length of a row last.
        values: tensors ``[..., n]`` for an element, ``[..., 1]`` for a row, ``[n]`` for a column, and then numbers;
            half types are computed in float32.
    """
    dtype = values[0].dtype
    if dtype in (torch.float16, torch.bfloat16):
        values = tuple(x.float() if isinstance(x, torch.Tensor) else x for x in values)
    known = evaluate_nodes(program, *values, length=shape[-1])
    outputs = []
    kinds = program.kinds or ("tensor",) * len(program.outputs)
    for node, kind in zip(program.outputs, kinds, strict=True):
        y = known[node]
        result = y if isinstance(y, torch.Tensor) else values[0].new_full((), y)
        whole = (*shape[:-1], 1 if kind == "row" else shape[-1])
        result = result if result.shape == whole else result.expand(whole).contiguous()
        result = result.sum(tuple(range(len(shape) - 1))) if kind == "column" and len(shape) > 1 else result
        outputs.append(result.to(dtype))
    return outputs[0] if len(outputs) == 1 else tuple(outputs)
