"""The values of a program in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch

from .expr import OPERATIONS, Expr, topological
from .program import Program


def evaluate_nodes(program: Program, *values: Any) -> dict[Expr, Any]:
    """Every node of a program in plain PyTorch, for tensors of one shape and then numbers."""
    known: dict[Expr, Any] = dict(zip((*program.inputs, *program.scalars), values, strict=True))

    def number(value: float) -> torch.Tensor:
        return torch.full((), value, dtype=values[0].dtype, device=values[0].device)

    for node in topological(program.outputs):
        if node.op == "constant":
            known[node] = number(node.number)
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
