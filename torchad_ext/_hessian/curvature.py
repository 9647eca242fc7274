r"""Second derivatives of functions of many points along directions, from first tangents alone.

With f composed of operations z_{k+1} = phi_k(z_k), y'' along v is the sum over k of g_k phi_k''[z_k', z_k'], g_k being
the gradient of f in z_{k+1} and z_k' = dz_k/dx v. Linear operations have no part in it, and no second tangent or
cotangent is carried through a product of matrices (R. Gower, M. Mello, A new framework for the computation of Hessians,
Optimization Methods and Software 27, 2012).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from .._linearity import CONSTANT, LINEAR, LINEAR_BY_ELEMENT, MOVES, PRODUCTS, name_in_table, rule_registered_for
from .._torch_state import is_undefined_zero

aten = torch.ops.aten


class UnknownOperation(Exception):
    """There is no rule for an operation."""


class Curvature:
    """The operations of f at x ``[batch, *d]``, to ``[batch]``, with what each adds to second derivatives.

    Raises:
        UnknownOperation: there is no rule for one of them.
    """

    def __init__(self, f: Callable[[Tensor], Tensor], x: Tensor) -> None:
        x = x.detach().clone()
        self._batch = len(x)
        with torch.enable_grad(), _Tape() as tape:
            y = f(x)
        with torch.enable_grad():
            # Run the operations again, above autograd.
            values: dict[int, Tensor] = {id(x): x.clone().requires_grad_()}
            self._steps = [step for step in (_replayed(values, *entry) for entry in tape.operations) if step]
            bent = [step.result for step in self._steps if step.bends]
            self._start = values[id(x)]
            self._add_bends(bent, values.get(id(y)))
        needed: set[int] = set()
        for step in reversed(self._steps):
            step.is_needed = id(step.result) in needed
            if step.is_needed or step.bends:
                needed.update(id(z) for z in step.moving)

    def _add_bends(self, bent: list[Tensor], y: Tensor | None) -> None:
        gradients: Iterator[Tensor | None] = itertools.repeat(None)
        if bent and y is not None:
            gradients = iter(torch.autograd.grad(y.sum(), bent, retain_graph=True, allow_unused=True))
        for step in self._steps:
            if step.bends:
                g = next(gradients)
                if g is None:
                    step.bends = False
                elif len(step.moving) == 2:
                    step.bend = 2 * g
                else:
                    step.slope, step.bend = _elementwise(step, g)
                    step.bends = not is_undefined_zero(step.bend)

    def along(self, directions: Tensor) -> Tensor:
        """v^T H v for each point and each v of ``directions``, ``[rows, *x]`` or, the same for all points,
        ``[rows, 1, *d]``: ``[rows, batch]``, without a graph."""
        tangents: dict[int, Tensor] = {id(self._start): directions}
        total = directions.new_zeros(len(directions), self._batch)
        with torch.no_grad():
            for step in self._steps:
                if not (step.is_needed or step.bends):
                    continue
                given = [tangents[id(z)] for z in step.moving]
                if step.bends:
                    if step.result.shape[:1] != (self._batch,):
                        raise UnknownOperation(str(step.func))
                    product = (given[0] * step.bend).mul_(given[-1])
                    total += product.flatten(2).sum(2) if product.dim() > 2 else product
                if step.is_needed:
                    tangents[id(step.result)] = step.tangent(given)
        return total


class _Tape(TorchDispatchMode):
    """Records operations, but for those whose results are constants for autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.is_grad_enabled() and func.overloadpacket is not aten.detach:
            self.operations.append((func, args, kwargs or {}, result))
        return result


class _Step:
    """An operation of values that depend on x, ``moving``; ``bends`` if it is not linear in them."""

    is_needed = True
    slope: Tensor | None = None
    bend: Tensor

    def __init__(self, func: Any, leaves: list[Any], spec: Any, places: list[int], result: Tensor, bends: bool) -> None:
        self.func, self.result, self.bends = func, result, bends
        self._leaves, self._spec, self._places = leaves, spec, places
        self.moving: list[Tensor] = [leaves[i] for i in places]

    def applied(self, *given: Tensor) -> Tensor:
        """The operation on other values in place of those that depend on x."""
        filled = dict(zip(self._places, given, strict=True))
        args, kwargs = tree_unflatten([filled.get(i, leaf) for i, leaf in enumerate(self._leaves)], self._spec)
        result: Tensor = self.func(*args, **kwargs)
        return result

    def tangent(self, given: list[Tensor]) -> Tensor:
        """The tangent of the result."""
        op = self.func.overloadpacket
        if self.slope is not None:
            return given[0] * self.slope
        if len(given) == 2:
            (a, b), (a1, b1) = self.moving, given
            if op is aten.mul:
                return a1 * b + a * b1
            return a1 + b1 if op is aten.add else a1 - b1
        if op in _SUMS:
            return -given[0] if op is aten.sub and self._places == [1] else given[0]
        (z,), (z1,) = self.moving, given
        if op is aten.addmm:
            return torch.matmul(z1, self._leaves[2])
        if not (op in _BY_POINT and self._places == [0]):
            z1 = z1.expand(len(z1), *z.shape)
        if op in (aten.view, aten._unsafe_view):
            z1 = z1.contiguous()
        mapped: Tensor = torch.func.vmap(self.applied)(z1)
        if rule_registered_for(op) in ("moves", "linear"):  # in all tensors together, others being constant
            mapped = mapped - self.applied(torch.zeros_like(z))
        return mapped


def _replayed(values: dict[int, Tensor], func: Any, args: Any, kwargs: Any, result: Any) -> _Step | None:
    """The operation on the values above autograd; None if it does not depend on x."""
    leaves, spec = tree_flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if id(leaf) in values]
    if not places or (isinstance(result, Tensor) and not result.is_floating_point()):
        return None
    op = func.overloadpacket
    if name_in_table(op) in CONSTANT or rule_registered_for(op) == "constant":
        return None
    shapes = {leaves[i].shape for i in places}
    same = isinstance(result, Tensor) and shapes == {result.shape}
    if len(places) == 2:
        known, bends = same and len(leaves) == 2 and op in (aten.mul, *_SUMS), op is aten.mul
    elif op in _SUMS:
        known, bends = same and len(leaves) == 2, False
    elif op is aten.addmm:
        known, bends = places == [1] and len(leaves) == 3, False
    elif _is_linear(op, places):
        known, bends = isinstance(result, Tensor), False
    else:
        known, bends = same and (torch.Tag.pointwise in func.tags or rule_registered_for(op) == "elementwise"), True
    if not known or len(places) > 2 or func._schema.is_mutable:
        raise UnknownOperation(str(func))
    leaves = [values.get(id(leaf), leaf) for leaf in leaves]
    args, kwargs = tree_unflatten(leaves, spec)
    values[id(result)] = func(*args, **kwargs)
    return _Step(func, leaves, spec, places, values[id(result)], bends)


def _is_linear(op: Any, places: list[int]) -> bool:
    """Is an operation linear in the one argument that depends on x, the others being what they are?"""
    if len(places) != 1:
        return False
    name, registered = name_in_table(op), rule_registered_for(op)
    if registered is not None:
        return registered in ("moves", "linear", "multilinear")
    return name in PRODUCTS or (places == [0] and (name in _MAPPED or op is aten.div))


def _elementwise(step: _Step, g: Tensor) -> tuple[Tensor, Tensor]:
    """phi'(z) and g phi''(z)."""
    z = step.moving[0].detach().requires_grad_()
    (slope,) = torch.autograd.grad(step.applied(z).sum(), z, create_graph=True)
    if not slope.requires_grad:
        return slope, torch.zeros_like(z)
    return slope.detach(), torch.autograd.grad(slope, z, g)[0]


_MAPPED = MOVES | LINEAR | LINEAR_BY_ELEMENT  # linear in the first tensor
_BY_POINT = {aten.mul, aten.div, aten.mm, aten.neg}  # in the first argument
_SUMS = {aten.add, aten.sub}
