"""Pointwise: an elementwise function with all its derivatives, under every transform of PyTorch.

The derivatives of an elementwise function are elementwise functions again, of its arguments and of the cotangents or
tangents. So one class is closed under ``vjp`` and ``jvp``, and one ``torch.autograd.Function`` applies any member of
it: its backward applies the vjp, its jvp applies the jvp, and every order and mix of modes follows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function

from . import _kernels

_transforms_active = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_autocast_enabled = torch._C._is_any_autocast_enabled
_grad_enabled = torch.is_grad_enabled


class Pointwise:
    """k elementwise functions of m tensors of one shape.

    Calling it computes the functions by a native kernel where there is one for the tensors' device and dtype, by the
    definition where there is not, and by the definition while ``torch.compile`` or ``torch.export`` trace.

    Args:
        definition: the functions in plain PyTorch: m tensors to a tensor (k = 1) or to a tuple of k tensors.
        inputs: the names of the m arguments.
        outputs: the names of the k results.
        kernel: the native kernel that computes the same, or None.
        derivative_kernels: the kernels of the vjp, of the vjp of the vjp, and so on, as far as there are any.
        name, doc: how the op presents itself.

    Example:
        >>> double = Pointwise(lambda x: x + x, name="double")
        >>> double(torch.ones(2))
        tensor([2., 2.])
    """

    def __init__(
        self,
        definition: Callable[..., Any],
        *,
        inputs: Sequence[str] = ("x",),
        outputs: Sequence[str] = ("output",),
        kernel: str | None = None,
        derivative_kernels: Sequence[str] = (),
        name: str,
        doc: str | None = None,
    ) -> None:
        self.definition = definition
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.kernel = kernel
        self.derivative_kernels = tuple(derivative_kernels)
        self.__name__ = self.__qualname__ = name
        self.__module__ = "torchad_ext"
        self.__doc__ = doc
        self._vjp: dict[tuple[bool, ...], Pointwise] = {}

    def __repr__(self) -> str:
        return f"<torchad_ext.{self.__name__}({', '.join(self.inputs)}) -> {', '.join(self.outputs)}>"

    def __reduce__(self) -> str:
        return self.__name__

    def __call__(self, *xs: torch.Tensor) -> Any:
        if torch.compiler.is_compiling():
            return self.definition(*xs)
        if has_torch_function(xs):
            return handle_torch_function(self, xs, *xs)
        self._check(xs)
        return self.apply(*xs)

    def apply(self, *xs: torch.Tensor) -> Any:
        """The results for tensors, by the route that their derivatives need."""
        if _transforms_active():
            return _Apply.apply(self, *xs) if _kernels.fits_under_transforms(xs) else self.definition(*xs)
        device = _kernels.device_of(xs)
        if device is None or _dispatch_modes() or _autocast_enabled():
            return self.definition(*xs)
        if forward_ad._current_level >= 0:
            return _Apply.apply(self, *xs)
        run = _kernels.find(self.kernel, device) or self.definition
        if run is not self.definition and _grad_enabled():
            for x in xs:
                if x.requires_grad:
                    return _apply_eagerly(self, run, *xs)
        return run(*xs)

    def run(self, *xs: torch.Tensor) -> Any:
        """The results without derivatives: by the kernel, or by the definition."""
        device = _kernels.device_of(xs)
        return ((device and _kernels.find(self.kernel, device)) or self.definition)(*xs)

    def _check(self, xs: tuple[Any, ...]) -> None:
        if len(xs) != len(self.inputs):
            raise TypeError(f"torchad_ext.{self.__name__} takes {', '.join(self.inputs)}; got {len(xs)} arguments")
        for x in xs:
            if not isinstance(x, torch.Tensor):
                raise TypeError(
                    f"torchad_ext.{self.__name__} takes a torch.Tensor, got {type(x).__name__}; "
                    f"write torchad_ext.{self.__name__}(torch.as_tensor(...))"
                )

    def vjp(self, wanted: tuple[bool, ...]) -> Pointwise:
        """The vector-Jacobian product: (inputs, a cotangent per output) to the gradients of the wanted inputs."""
        if wanted not in self._vjp:
            chosen = [i for i, w in enumerate(wanted) if w]
            names = [self.inputs[i] for i in chosen]
            suffix = "" if all(wanted) else "_" + "_".join(names)
            self._vjp[wanted] = Pointwise(
                functools.partial(_vjp_definition, self, chosen),
                inputs=(*self.inputs, *(f"grad_{name}" for name in self.outputs)),
                outputs=tuple(f"grad_{name}" for name in names),
                kernel=self.derivative_kernels[0] + suffix if self.derivative_kernels else None,
                derivative_kernels=self.derivative_kernels[1:] if all(wanted) else (),
                name=f"{self.__name__}.vjp",
            )
        return self._vjp[wanted]

    @functools.cached_property
    def jvp(self) -> Pointwise:
        """The Jacobian-vector product: (inputs, a tangent per input) to the tangents of the outputs."""
        if len(self.inputs) == len(self.outputs) == 1:
            return self.vjp((True,))  # f'(x) t and f'(x) g are one function
        return Pointwise(
            functools.partial(_jvp_definition, self),
            inputs=(*self.inputs, *(f"tangent_{name}" for name in self.inputs)),
            outputs=tuple(f"tangent_{name}" for name in self.outputs),
            name=f"{self.__name__}.jvp",
        )


def _vjp_definition(op: Pointwise, chosen: list[int], *args: torch.Tensor) -> Any:
    xs, grads = list(args[: len(op.inputs)]), args[len(op.inputs) :]

    def of_chosen(*values: torch.Tensor) -> Any:
        replaced = dict(zip(chosen, values, strict=True))
        return op.definition(*(replaced.get(i, x) for i, x in enumerate(xs)))

    pullback = torch.func.vjp(of_chosen, *(xs[i] for i in chosen))[1]
    results = pullback(grads if len(grads) > 1 else grads[0])
    return results if len(chosen) > 1 else results[0]


def _jvp_definition(op: Pointwise, *args: torch.Tensor) -> Any:
    xs, tangents = args[: len(op.inputs)], args[len(op.inputs) :]
    # The pullback g -> J^T g is linear, so its own pullback is t -> J t; forward mode does not nest, this does.
    outputs, pullback, *_ = torch.func.vjp(op.definition, *xs)
    pushforward = torch.func.vjp(pullback, outputs)[1]
    return pushforward(tangents)[0]


class _Apply(torch.autograd.Function):
    """Applies a Pointwise under any transform.

    Saves its inputs alone: an intermediate made inside forward has no gradient to give to the double backward.
    """

    @staticmethod
    def forward(op: Pointwise, *xs: torch.Tensor) -> Any:
        return op.run(*xs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.op, *xs = inputs
        ctx.save_for_backward(*xs)
        ctx.save_for_forward(*xs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (None, *_gradients(ctx.op, ctx.needs_input_grad[1:], ctx.saved_tensors, grads))

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: torch.Tensor | None) -> Any:
        xs = ctx.saved_tensors
        given = (torch.zeros_like(x) if t is None else t for x, t in zip(xs, tangents, strict=True))
        # One application of a Pointwise: a product around one would be silently zero in nested forward mode.
        return ctx.op.jvp.apply(*xs, *given)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], op: Pointwise, *xs: torch.Tensor) -> Any:
        batched = (
            x.unsqueeze(0).expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip(xs, in_dims[1:], strict=True)
        )
        return op.apply(*batched), 0 if len(op.outputs) == 1 else (0,) * len(op.outputs)


class _ApplyEagerly(torch.autograd.Function):
    """The same for reverse mode alone, without what a transform needs: a third of the cost on small tensors."""

    @staticmethod
    def forward(ctx: Any, op: Pointwise, kernel: Callable[..., Any], *xs: torch.Tensor) -> Any:
        ctx.op = op
        ctx.save_for_backward(*xs)
        return kernel(*xs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (None, None, *_gradients(ctx.op, ctx.needs_input_grad[2:], ctx.saved_tensors, grads))


# Function.apply binds its arguments to the signature of forward first, which takes longer than all the rest.
_apply_eagerly = super(torch.autograd.Function, _ApplyEagerly).apply


def _gradients(
    op: Pointwise, wanted: tuple[bool, ...], xs: tuple[torch.Tensor, ...], grads: tuple[torch.Tensor, ...]
) -> Sequence[torch.Tensor | None]:
    vjp = op.vjp(wanted)
    outputs = vjp.apply(*xs, *grads)
    results: tuple[torch.Tensor, ...] = (outputs,) if len(vjp.outputs) == 1 else outputs
    if len(results) == len(wanted):
        return results
    remaining = iter(results)
    return [next(remaining) if w else None for w in wanted]
