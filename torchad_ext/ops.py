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
    r"""The sine of each element, :math:`y = \sin x`, with :math:`y' = \cos x` and :math:`y'' = -\sin x`.

    A drop-in for ``torch.sin``. float16, bfloat16, float32 and float64 on CPU and CUDA run on native kernels, one for
    each order of derivative; every other dtype and device runs ``torch.sin``.

    Args:
        x: any shape, strides and dtype; radians.

    Returns:
        Shape, strides and dtype of ``torch.sin(x)``.

    Raises:
        TypeError: ``x`` is not a tensor.

    Example:
        >>> x = torch.tensor([0.0, 1.0], requires_grad=True)
        >>> (slope,) = torch.autograd.grad(sin(x).sum(), x, create_graph=True)
        >>> torch.autograd.grad(slope.sum(), x)[0]
        tensor([-0.0000, -0.8415])
    """,
)

exp = _hand_written(
    torch.exp,
    "exp",
    r"""The exponential of each element, :math:`y = e^x`, with :math:`y' = y'' = e^x`.

    A drop-in for ``torch.exp``. float16, bfloat16, float32 and float64 on CPU and CUDA run on native kernels, one for
    each order of derivative; every other dtype and device runs ``torch.exp``.

    Args:
        x: any shape, strides and dtype.

    Returns:
        Shape, strides and dtype of ``torch.exp(x)``.

    Raises:
        TypeError: ``x`` is not a tensor.

    Example:
        >>> exp(torch.tensor([0.0, 1.0]))
        tensor([1.0000, 2.7183])
    """,
)
