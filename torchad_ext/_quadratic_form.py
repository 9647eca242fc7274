"""The quadratic form q(x, A) = x^T A x and its derivatives.

With s = (A + A^T) x, the derivatives of q are s with respect to x and x x^T with respect to A. One kernel computes q
and s in a single reading of A; s is a second output of the Function, so that it has derivatives of its own. The
pullback of (q, s) needs s for another vector, and an outer product; the pullback of the outer product needs q and s for
another matrix. Two Functions, each the derivative of the other, thus give every order.

One A for a batch is read once for a few x; a larger batch takes matrix products with A and its transpose, a still
larger one a product with A + A^T. ``by_products`` of ``csrc/matrix_products.h`` chooses by the shape alone and says
how the bounds were measured. On plain tensors of the CPU both Functions are nodes in C++, which come back here for
what is not plain (``csrc/fast_path/quadratic_form.h``).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function

from ._autograd.undefined import sum_defined
from ._elementwise import is_wanted
from ._native import fast_path, kernels, loader
from ._torch_state import (
    forward_mode_enabled,
    in_forward_mode,
    is_autocast_enabled,
    is_being_traced,
    traced_before_autograd,
    transforms_active,
    with_hidden_batch,
)

# Vectors that a GPU reads one A for; more are worth a matrix product with A + A^T, or with A where only q is wanted.
# The product costs three times as many bytes as A has, and one more reading; a reading for each vector comes from the
# cache of the device for all but the first.
MOST_READ_BY_A_GPU = 4


def quadratic_form(x: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
    r"""The quadratic form :math:`q = x^T A x` over the last dimension, batched.

    The gradient with respect to ``x`` is :math:`(A + A^T) x` and costs no second reading of ``A``; with respect to
    ``A`` it is :math:`x x^T`, not symmetrised; the Hessian is :math:`A + A^T`. ``A`` need not be symmetric. Exact
    derivatives of every order, in reverse and forward mode and under ``torch.func``.

    Args:
        x: shape ``[..., n]``.
        A: shape ``[..., n, n]``, dtype and device of ``x``; batch dimensions broadcast with those of ``x``.

    Returns:
        ``q``, of the broadcast batch shape ``[...]`` and the dtype of ``x``.

    Raises:
        TypeError: an argument is not a tensor.
        ValueError: the shapes do not fit, or the dtypes or devices differ.

    Example:
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> A = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
        >>> q = quadratic_form(x, A)
        >>> q.item(), torch.autograd.grad(q, x)[0]
        (16.0, tensor([ 6., 13.]))
    """
    if torch.compiler.is_compiling() or is_being_traced():
        return definition(x, A)
    if fast := _fast_function():
        try:
            q: Any = fast(x, A)
        except RuntimeError as error:
            kernels.raise_for_memory(error, x)
            raise
        if q is not NotImplemented:
            result: torch.Tensor = q
            return result
    if has_torch_function((x, A)):
        if traced_before_autograd():
            return definition(x, A)
        return handle_torch_function(quadratic_form, (x, A), x, A)
    _check(x, A)
    if not _native(x, A):
        return definition(x, A)
    if _derivative_wanted(x, A):
        return _native_value_and_product(x, A)[0]
    x, A, batch = _aligned(x, A)
    return _evaluate(x, A, product=False)[0].view(batch)


def definition(x: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
    """xᵀAx in plain PyTorch: what ``quadratic_form`` means, and what runs where there is no kernel."""
    return (torch.matmul(x.unsqueeze(-2), A).squeeze(-2) * x).sum(-1)


quadratic_form.definition = definition  # type: ignore[attr-defined]


@functools.cache
def _of_module(module: ModuleType) -> Callable[..., Any]:
    module.set_form_gradients(_gradients)
    fast: Callable[..., Any] = module.quadratic_form
    return fast


def _fast_function() -> Callable[..., Any] | None:
    """The calls on plain tensors of the CPU in C++, once they and the operators are there."""
    module = fast_path.module() if loader.is_loaded("quadratic_form") else None
    return None if module is None else _of_module(module)


def _check(x: Any, A: Any) -> None:
    for name, value in (("x", x), ("A", A)):
        if not isinstance(value, torch.Tensor):
            raise TypeError(
                f"torchad_ext.quadratic_form takes tensors, got {type(value).__name__} for {name}; "
                f"write torch.as_tensor({name})"
            )
    if x.is_nested or A.is_nested:
        return  # the definition checks what has no shape
    if x.dtype == A.dtype and x.device == A.device and x.dim() and A.dim() == 2 and A.shape == 2 * x.shape[-1:]:
        return
    shapes = f"got x {list(x.shape)} and A {list(A.shape)}"
    if x.dim() < 1 or A.dim() < 2:
        raise ValueError(f"torchad_ext.quadratic_form takes x [..., n] and A [..., n, n]; {shapes}")
    if A.shape[-1] != A.shape[-2]:
        raise ValueError(f"torchad_ext.quadratic_form takes a square A; {shapes}")
    if x.shape[-1] != A.shape[-1]:
        raise ValueError(
            f"torchad_ext.quadratic_form: the last dimension of x and those of A must be equal; {shapes}. "
            "A batch goes before them: x [batch, n], A [n, n] or [batch, n, n]"
        )
    if A.dim() > 2:
        try:
            torch.broadcast_shapes(x.shape[:-1], A.shape[:-2])
        except RuntimeError:
            raise ValueError(
                f"torchad_ext.quadratic_form: the batch dimensions {list(x.shape[:-1])} of x and {list(A.shape[:-2])} "
                f"of A do not broadcast; {shapes}"
            ) from None
    if x.dtype != A.dtype and not is_autocast_enabled():  # which gives them one
        raise ValueError(f"torchad_ext.quadratic_form: x is {x.dtype}, A is {A.dtype}; convert one, A.to(x.dtype)")
    if x.device != A.device:
        raise ValueError(
            f"torchad_ext.quadratic_form: x is on {x.device}, A is on {A.device}; move one, A.to(x.device)"
        )


def _native(x: torch.Tensor, A: torch.Tensor) -> bool:
    device = kernels.device_for((x, A))
    return device is not None and x.dim() <= 25 and kernels.find("quadratic_form", device, x.dtype) is not None


def _derivative_wanted(x: torch.Tensor, A: torch.Tensor) -> bool:
    if transforms_active() or in_forward_mode():
        return True
    return torch.is_grad_enabled() and (x.requires_grad or A.requires_grad)


def _aligned(x: torch.Tensor, A: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Size]:
    """x and A in one of two layouts, and the batch shape.

    One A for all: x ``[n]`` or ``[count, n]`` and A ``[n, n]``. One A each: x ``[*batch, n]`` and A ``[*batch, n, n]``.
    """
    n = x.shape[-1]
    if (A.dim() == 2 and x.dim() <= 2) or x.shape[:-1] == A.shape[:-2]:
        return x, A, x.shape[:-1]
    batch = torch.broadcast_shapes(x.shape[:-1], A.shape[:-2])
    if A.shape[:-2].numel() == 1:
        A = A.reshape(n, n)
        x = x.expand(*batch, n)
        return (x.reshape(n) if batch.numel() == 1 else x.reshape(batch.numel(), n)), A, batch
    return x.expand(*batch, n), A.expand(*batch, n, n), batch


def _evaluate(x: torch.Tensor, A: torch.Tensor, product: bool) -> tuple[torch.Tensor, Any]:
    """q and, if wanted, s for aligned tensors."""
    if kernels.device_of((x, A)) is None:  # a transform of torch.func hid what no kernel can read
        return _by_products(x, A)
    if x.dim() == 2 and A.dim() == 2 and not x.is_cpu and x.shape[0] > MOST_READ_BY_A_GPU:
        if product:
            s = x @ (A + A.T)
            return 0.5 * (x * s).sum(-1), s
        return (x * (x @ A)).sum(-1), None
    if 1 not in A.stride()[-2:]:
        A = A.contiguous()
    name = "quadratic_form_and_product" if product else "quadratic_form"
    kernel = kernels.find(name, x.device.type, x.dtype)
    assert kernel is not None
    return kernel(x, A) if product else (kernel(x, A), None)


def _value_and_product(x: torch.Tensor, A: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """q and s = (A + A^T) x, differentiable, for any x ``[..., n]`` and A ``[..., n, n]`` that broadcast."""
    if not _native(x, A):
        batches = kernels.without_batch((x, A))
        if batches is not None and batches[1] is A and x.dim() >= A.dim() - 1:
            q, s = _value_and_product(batches[0], A)
            return with_hidden_batch(q), with_hidden_batch(s)
        return _by_products(x, A)
    return _native_value_and_product(x, A)


def _by_products(x: torch.Tensor, A: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """q and s in plain PyTorch."""
    if A.dim() == 2:
        S = A + A.mT
        s = torch.mv(S, x) if x.dim() == 1 else x @ S
        return 0.5 * (x * s).sum(-1), s
    Ax = (A @ x.unsqueeze(-1)).squeeze(-1)
    return (x * Ax).sum(-1), Ax + (A.mT @ x.unsqueeze(-1)).squeeze(-1)


def _native_value_and_product(x: torch.Tensor, A: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x, A, batch = _aligned(x, A)
    q, s = _apply(_QuadraticForm)(x, A) if _derivative_wanted(x, A) else _evaluate(x, A, product=True)
    return (q, s) if q.shape == batch else (q.reshape(batch), s.reshape(*batch, x.shape[-1]))


def _apply(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``function.apply``, outside transforms without its binding of the arguments to a signature."""
    return function.apply if transforms_active() else super(torch.autograd.Function, function).apply  # type: ignore[misc]


def _product(x: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
    return _value_and_product(x, A)[1]


@contextlib.contextmanager
def _tangents_enabled(saved: Sequence[torch.Tensor | None]) -> Iterator[list[Any]]:
    """Saved tensors for the body of a jvp, which may be several operations.

    PyTorch runs a jvp with forward mode switched off, and an outer level of forward mode would lose its tangents. Here
    it is on, and the tensors are freed of the tangents of the level at hand.
    """
    with forward_mode_enabled(True):
        yield [None if x is None else forward_ad.unpack_dual(x).primal for x in saved]


def _gradients(form: bool, tensors: list[Any], wanted: list[bool]) -> tuple[Any, ...]:
    """The gradients that a node in C++ asks for: of ``_QuadraticForm`` or of ``_Outer``, saved tensors and cotangents
    given."""
    if form:
        x, A, s, grad_q, grad_s = tensors
        return _form_gradients(x, A, s, grad_q, grad_s, *wanted)
    x, g, h, grad = tensors
    return _outer_gradients(x, g, h, grad, wanted[0])


def _form_gradients(
    x: torch.Tensor,
    A: torch.Tensor,
    s: torch.Tensor,
    grad_q: torch.Tensor | None,
    grad_s: torch.Tensor | None,
    for_x: bool,
    for_A: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    grad_x = grad_A = None
    if for_x:
        grad_x = sum_defined(
            None if grad_q is None else grad_q.unsqueeze(-1) * s,
            None if grad_s is None else _product(grad_s, A),
        )
    if for_A and not (grad_q is None and grad_s is None):
        grad_A = _outer(x, grad_q, grad_s, A.dim() == 2)
    return grad_x, grad_A


def _outer_gradients(
    x: torch.Tensor, g: torch.Tensor | None, h: torch.Tensor | None, grad: torch.Tensor, for_x: bool
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    grad_g, grad_h = _value_and_product(x, grad)
    grad_x = None
    if for_x:
        grad_x = sum_defined(
            None if g is None else g.unsqueeze(-1) * grad_h,
            None if h is None else _product(h, grad),
        )
    return grad_x, None if g is None else grad_g, None if h is None else grad_h


class _QuadraticForm(torch.autograd.Function):
    """(x, A) -> (q, s), aligned as ``_aligned`` says."""

    @staticmethod
    def forward(x: torch.Tensor, A: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return _evaluate(x, A, product=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, output[1])
        ctx.save_for_forward(*inputs, output[1])

    @staticmethod
    def backward(ctx: Any, grad_q: torch.Tensor | None, grad_s: torch.Tensor | None) -> Any:
        x, A, s = ctx.saved_tensors
        for_A = ctx.needs_input_grad[1] and is_wanted(ctx, 1)
        return _form_gradients(x, A, s, grad_q, grad_s, ctx.needs_input_grad[0], for_A)

    @staticmethod
    def jvp(ctx: Any, x_t: torch.Tensor | None, A_t: torch.Tensor | None) -> Any:
        with _tangents_enabled(ctx.saved_tensors) as (x, A, s):
            q_t, s_t = _value_and_product(x, A_t) if A_t is not None else (None, None)
            if x_t is not None:
                q_t = sum_defined(q_t, (s * x_t).sum(-1))
                s_t = sum_defined(s_t, _product(x_t, A))
            return q_t, s_t

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: torch.Tensor, A: torch.Tensor) -> Any:
        x_dim, A_dim = in_dims
        x = x if x_dim is None else x.movedim(x_dim, 0)
        A = A if A_dim is None else A.movedim(A_dim, 0)
        if A_dim is not None and x.dim() - (x_dim is not None) == 2 and A.dim() == 3:
            A = A.unsqueeze(1)  # one A for a batch of x, but another one in each slice
        if x_dim is None:
            x = x.unsqueeze(0)
        q, s = _value_and_product(x, A)
        size = info.batch_size
        return (q.expand(size, *q.shape[1:]), s.expand(size, *s.shape[1:])), (0, 0)


def _outer(x: torch.Tensor, g: torch.Tensor | None, h: torch.Tensor | None, shared: bool) -> torch.Tensor:
    given = [v for v in (x, g, h) if v is not None]
    if kernels.device_for(given) is None:
        return _sum_of_outer_products(x, g, h, shared)
    result: torch.Tensor = _apply(_Outer)(x, g, h, shared)
    return result


def _sum_of_outer_products(
    x: torch.Tensor, g: torch.Tensor | None, h: torch.Tensor | None, shared: bool
) -> torch.Tensor:
    """The pullback of (q, s) with respect to A in plain PyTorch."""
    u = sum_defined(None if g is None else g.unsqueeze(-1) * x, h)
    assert u is not None
    if shared and x.dim() == 2:
        return u.T @ x if h is None else torch.cat([u, x]).T @ torch.cat([x, h])
    return u.unsqueeze(-1) * x.unsqueeze(-2) + (0 if h is None else x.unsqueeze(-1) * h.unsqueeze(-2))


class _Outer(torch.autograd.Function):
    """(x, g, h) -> g x x^T + h x^T + x h^T, the pullback of (q, s) with respect to A; summed over x ``[count, n]`` if
    A is shared. g or h may be None, for zero."""

    @staticmethod
    def forward(x: torch.Tensor, g: torch.Tensor | None, h: torch.Tensor | None, shared: bool) -> torch.Tensor:
        given = [v for v in (x, g, h) if v is not None]
        device = kernels.device_of(given)
        kernel = device and kernels.find("quadratic_form_outer", device, given[0].dtype)
        summed = shared and x.dim() == 2
        if kernel and not (summed and device == "cuda"):
            fused: torch.Tensor = kernel(*(None if v is None else v.contiguous() for v in (x, g, h)), summed)
            return fused
        return _sum_of_outer_products(x, g, h, shared)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, g, h, ctx.shared = inputs
        ctx.save_for_backward(x, g, h)
        ctx.save_for_forward(x, g, h)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, g, h = ctx.saved_tensors
        return *_outer_gradients(x, g, h, grad, ctx.needs_input_grad[0]), None

    @staticmethod
    def jvp(ctx: Any, x_t: torch.Tensor | None, g_t: torch.Tensor | None, h_t: torch.Tensor | None, _: None) -> Any:
        with _tangents_enabled(ctx.saved_tensors) as (x, g, h):
            result = None
            if g_t is not None or h_t is not None:
                result = _Outer.apply(x, g_t, h_t, ctx.shared)
            if x_t is not None:
                u = sum_defined(None if g is None else g.unsqueeze(-1) * x, h)
                assert u is not None
                half = u.unsqueeze(-1) * x_t.unsqueeze(-2)
                if h is not None:
                    half = half + x_t.unsqueeze(-1) * h.unsqueeze(-2)
                if g is not None:
                    half = half + (g.unsqueeze(-1) * x_t).unsqueeze(-1) * x.unsqueeze(-2)
                result = sum_defined(result, half.sum(0) if ctx.shared and x.dim() == 2 else half)
            return result

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Any, g: Any, h: Any, shared: bool) -> Any:
        x, g, h = (
            None if v is None else v.unsqueeze(0).expand(info.batch_size, *v.shape) if d is None else v.movedim(d, 0)
            for v, d in zip((x, g, h), in_dims[:3], strict=True)
        )
        if shared and x.dim() == 3:
            parts = _Outer.apply(x, g, h, False)
            return parts.sum(1), 0
        return _Outer.apply(x, g, h, False), 0
