"""The catalogue of pointwise ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .pointwise import Pointwise


def _hand_written(definition: Callable[..., Any], name: str, doc: str) -> Pointwise:
    """An op whose value, gradient and double backward stand in ``csrc/ops/<name>.h``."""
    return Pointwise(
        definition,
        kernel=name,
        derivative_kernels=(f"{name}_backward", f"{name}_double_backward"),
        name=name,
        doc=doc,
    )


sin = _hand_written(
    torch.sin,
    "sin",
    """The sine of each element, in radians.""",
)

exp = _hand_written(
    torch.exp,
    "exp",
    """The exponential of each element.""",
)
