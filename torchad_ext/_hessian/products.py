"""Hessian-vector products of any function: pullbacks v -> v^T J through the graph of its gradient."""

from __future__ import annotations

from typing import Any

from .._forward.missing import tool
from .._torch_state import where_transforms_are_right
from .point import Function, Point
from .pullback import pullback_of_gradient


@tool
@where_transforms_are_right
def hvp(f: Function, x: Any, v: Any) -> Any:
    r"""The Hessian-vector product :math:`H v`, :math:`H = \nabla^2 f(x)`, for the cost of a few gradients.

    The gradient's graph is pulled back along v (Pearlmutter, Fast exact multiplication by the Hessian, Neural
    Computation 1994): that is :math:`v^T H`, and H is symmetric wherever f is twice continuously differentiable.
    The product is differentiable again.

    Args:
        f: a function of one argument, ``x``, to a tensor without dimensions.
        x: a floating-point tensor, or a pytree of them (a tuple, a dict of parameters), which f takes as a whole.
        v: of the structure, shapes and dtypes of ``x``.

    Returns:
        The product, of the structure, shapes and dtypes of ``x``. Where f does not depend on ``x``, zeros.

    Raises:
        TypeError: ``x`` or the value of f holds something else than floating-point tensors.
        ValueError: f has a value with dimensions, or ``v`` does not fit ``x``.
        RuntimeError: f is not twice differentiable, or the backward of a ``torch.autograd.Function`` in it is not.

    Example:
        >>> x, v = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0])
        >>> hvp(lambda x: x[0] ** 2 * x[1], x, v)
        tensor([4., 2.])
    """
    return _hessian_product("hvp", f, x, v)


@tool
@where_transforms_are_right
def vhp(f: Function, x: Any, v: Any) -> Any:
    r"""The vector-Hessian product :math:`v^T H`, :math:`H = \nabla^2 f(x)`: :func:`hvp`, since H is symmetric.

    Args:
        f: a function of one argument, ``x``, to a tensor without dimensions.
        x: a floating-point tensor, or a pytree of them, which f takes as a whole.
        v: of the structure, shapes and dtypes of ``x``.

    Returns:
        The product, of the structure, shapes and dtypes of ``x``; differentiable again.

    Raises:
        TypeError: ``x`` or the value of f holds something else than floating-point tensors.
        ValueError: f has a value with dimensions, or ``v`` does not fit ``x``.
        RuntimeError: f is not twice differentiable, or the backward of a ``torch.autograd.Function`` in it is not.

    Example:
        >>> x, v = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])
        >>> vhp(lambda x: x[0] ** 2 * x[1], x, v)
        tensor([2., 0.])
    """
    return _hessian_product("vhp", f, x, v)


def _hessian_product(name: str, f: Function, x: Any, v: Any) -> Any:
    at = Point(name, f, x)
    return at.unflatten(pullback_of_gradient(at).pull(at.like(v, "v")))
