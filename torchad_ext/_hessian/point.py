"""The point at which a function is differentiated, its arguments checked, and what an error of autograd means there."""

from __future__ import annotations

import contextlib
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_structure, tree_unflatten

from .._forward.fallback import random_states, restore_random_states
from .._forward.missing import MissingDerivative
from .._torch_state import in_forward_mode, is_recorded_by_fx, transforms_active

Tensors = Sequence[Tensor]
Function = Callable[[Any], Any]
_States = dict[torch.device, list[Tensor]]  # of random numbers
_TENSOR = tree_structure(None)  # of one leaf; tree_flatten takes its time, and leaves a cycle of references


def is_transformed() -> bool:
    """Is a transform, forward mode, a tracer, a compiler or inference mode at work, which ``torch.autograd.grad`` would
    not fit into?"""
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
        return True
    return transforms_active() or in_forward_mode() or is_recorded_by_fx()


class Point:
    """Where a function is differentiated: the leaves of x, checked, and their places in one vector."""

    def __init__(self, name: str, f: Function, x: Any) -> None:
        self.name, self.f = name, f
        self.leaves: list[Tensor]
        self.leaves, self.spec = ([x], _TENSOR) if isinstance(x, Tensor) else tree_flatten(x)
        self.is_transformed = is_transformed()
        if not self.leaves:
            raise TypeError(f"torchad_ext.{name} takes a tensor or a pytree of tensors for x; got {x!r}")
        for leaf in self.leaves:
            check_floating(name, "x", leaf)
        if not self.is_transformed:
            self.leaves = [leaf.clone() if leaf.is_inference() else leaf for leaf in self.leaves]
        *self.offsets, self.size = itertools.accumulate((leaf.numel() for leaf in self.leaves), initial=0)

    def unflatten(self, leaves: Iterable[Any]) -> Any:
        return next(iter(leaves)) if self.spec.is_leaf() else tree_unflatten(list(leaves), self.spec)

    def single(self, option: str) -> Tensor:
        """x, which has to be one tensor."""
        if not isinstance(self.unflatten(self.leaves), Tensor):
            raise ValueError(f"torchad_ext.{self.name} with {option} takes one tensor for x; got a pytree of tensors")
        return self.leaves[0]

    def variables(self, wanted: bool) -> list[Tensor]:
        """The leaves as tensors to differentiate in, of the graph of x if that is ``wanted``.

        Each is an alias, so that what f captures of x itself is a constant."""
        return [x.view_as(x) if wanted and x.requires_grad else x.detach().requires_grad_() for x in self.leaves]

    def like(self, v: Any, argument: str) -> list[Tensor]:
        """The leaves of v, which has to fit x."""
        leaves, spec = tree_flatten(v)
        if spec != self.spec:
            of_x, of_v = ("a tensor" if each.is_leaf() else str(each) for each in (self.spec, spec))
            raise ValueError(f"torchad_ext.{self.name} takes {argument} of the structure of x, {of_x}; got {of_v}")
        for given, leaf in zip(leaves, self.leaves, strict=True):
            check_floating(self.name, argument, given)
            if (given.shape, given.dtype, given.device) != (leaf.shape, leaf.dtype, leaf.device):
                raise ValueError(
                    f"torchad_ext.{self.name} takes {argument} of the shape, dtype and device of x, "
                    f"{list(leaf.shape)} {leaf.dtype} {leaf.device}; got {list(given.shape)} {given.dtype} "
                    f"{given.device}"
                )
        return leaves

    def checked_chunk_size(self, chunk_size: Any) -> int | None:
        if chunk_size is None:
            return None
        with contextlib.suppress(TypeError):
            if not isinstance(chunk_size, bool) and operator.index(chunk_size) > 0:
                return operator.index(chunk_size)
        raise ValueError(f"torchad_ext.{self.name}: got chunk_size={chunk_size!r}; give a positive int, or None")

    def check_strategy(self, strategy: str | None, known: Sequence[str]) -> None:
        if strategy is not None and strategy not in known:
            choices = ", ".join(map(repr, known))
            raise ValueError(f"torchad_ext.{self.name}: got strategy={strategy!r}; choose one of {choices}")


def offsets_of(leaves: Tensors) -> list[int]:
    """The place of each leaf in the vector of all."""
    return list(itertools.accumulate((leaf.numel() for leaf in leaves), initial=0))[:-1]


def check_floating(name: str, what: str, leaf: Any) -> None:
    if not isinstance(leaf, Tensor):
        remedy = ""
        if isinstance(leaf, torch.nn.Module):
            remedy = "; write dict(module.named_parameters()), and torch.func.functional_call(module, x, ...) in f"
        elif isinstance(leaf, Iterator):
            remedy = "; write list(x)"
        raise TypeError(f"torchad_ext.{name} takes tensors for {what}; got {type(leaf).__name__}{remedy}")
    if not leaf.is_floating_point():
        remedy = "torch.view_as_real" if leaf.is_complex() else "x.double()"
        raise TypeError(f"torchad_ext.{name} takes floating-point tensors for {what}; got {leaf.dtype}, see {remedy}")
    if leaf.dtype.itemsize < 2:
        raise TypeError(f"torchad_ext.{name}: PyTorch has no arithmetic for {what} of {leaf.dtype}; see x.float()")
    if leaf.layout is not torch.strided or leaf.is_nested:
        layout = "a nested tensor" if leaf.is_nested else f"one of {leaf.layout}"
        raise TypeError(f"torchad_ext.{name} takes dense tensors for {what}; got {layout}, see x.to_dense()")


class Draws:
    """The random numbers of the first evaluation of a function, for each later one."""

    def __init__(self, at: Point) -> None:
        self._first: _States | None = None
        self._devices = {x.device for x in at.leaves}
        self._fixed = at.is_transformed

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        """Runs an evaluation. A later one leaves the generators as the first did, whether it draws or not."""
        if self._fixed or self._first is None:
            self._first = None if self._fixed else self._states()
            yield
            return
        after = self._states()
        self._restore(self._first)
        try:
            yield
        finally:
            self._restore(after)

    def _states(self) -> _States:
        return {device: random_states(device) for device in self._devices}

    def _restore(self, states: _States) -> None:
        for device, state in states.items():
            restore_random_states(device, state)


@contextlib.contextmanager
def explained(name: str, of_rows: bool = False) -> Iterator[None]:
    """Says what an error of autograd means for the user of ``name``, who may ask for rows one by one in place of a
    batch ``of_rows``."""
    try:
        yield
    except (RuntimeError, IndexError) as error:  # vmap has some operations wrong for tensors without dimensions
        if isinstance(error, MissingDerivative):
            raise
        text = str(error)
        if "not currently support double backward" in text:
            raise RuntimeError(
                f"torchad_ext.{name}: f calls a function that torch.compile made, which PyTorch does not differentiate "
                f"twice ({text}); give f without torch.compile, or compile the call of torchad_ext.{name} too"
            ) from error
        if text.startswith("f is not differentiable"):
            raise RuntimeError(f"torchad_ext.{name}: {text}") from error
        if "once_differentiable" in text or ("derivative for" in text and "not implemented" in text):
            remedy = ""
            if "scaled_dot_product" in text:
                remedy = "; run f under torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)"
            raise RuntimeError(f"torchad_ext.{name}: f is not differentiable often enough: {text}{remedy}") from error
        if of_rows:
            raise RuntimeError(
                f"torchad_ext.{name}: f has a derivative that cannot be computed for a batch of rows; give "
                f"chunk_size=1 to compute rows one by one. {text}"
            ) from error
        raise
