"""Every public function on arguments that nobody ought to give: what its definition gives, or an exception that says why."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from bad_arguments import DTYPES, FLOATS, OTHERS, Argument, Outcome, arguments, outcome, shapes
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

import torchad_ext as ad
from torchad_ext.ops import CATALOGUE
from torchad_ext.rows import ROW_CATALOGUE

FEW = settings(
    max_examples=500, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
MANY = settings(FEW, max_examples=20_000, derandomize=False)


@ad.pointwise
def sums(x, y, a=2.0):
    return a * x + y.sin(), x * y


@ad.rowwise
def share(x, weight, a=1.0):
    return x * weight / (a + x.square().sum(-1, keepdim=True)), x.amax(-1)


OPS: dict[str, Any] = {
    **CATALOGUE,
    **ROW_CATALOGUE,
    "sums": sums,
    "share": share,
    "quadratic_form": ad.quadratic_form,
    "siren.derivative('omega')": ad.siren.derivative("omega"),
}
PARAMETERS = {
    name: {"x": None, "A": None} if name == "quadratic_form" else {p.name: p.default for p in op._parameters.values()}
    for name, op in OPS.items()
}
PARAMETERS["quadratic_form"] = dict.fromkeys(("x", "A"), sums._parameters["x"].empty)
EMPTY = sums._parameters["x"].empty


@dataclass(frozen=True)
class Call:
    """An op, its arguments, and how often its result is differentiated."""

    op: str
    positional: tuple[Argument, ...]
    named: tuple[tuple[str, Argument], ...]
    order: int

    def results_of(self, function: Callable[..., Any], wide: bool = False) -> list[tuple[Any, int]]:
        """The results and their gradients, each with how often it was differentiated."""
        args = [argument.make(wide) for argument in self.positional]
        kwargs = {name: argument.make(wide) for name, argument in self.named}
        leaves = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor) and x.requires_grad]
        result = function(*args, **kwargs)
        values = list(result) if isinstance(result, (tuple, list)) else [result]
        known = [(y, 0) for y in values]
        wanted = [y for y in values if isinstance(y, torch.Tensor) and y.requires_grad]
        for _ in range(self.order):
            if not leaves or not wanted:
                break
            weights = [y.detach() * 0.25 + 0.5 for y in wanted]
            grads = torch.autograd.grad(wanted, leaves, weights, create_graph=True, allow_unused=True)
            known += [(g, 1) for g in grads]
            wanted = [g for g in grads if g is not None and g.requires_grad]
        return known


@st.composite
def calls(draw: st.DrawFn, names: Sequence[str] = tuple(OPS)) -> Call:
    name = draw(st.sampled_from(list(names)))
    shape, dtype = draw(shapes), draw(st.sampled_from(FLOATS))
    positional: list[Argument] = []
    named: list[tuple[str, Argument]] = []
    for parameter, default in PARAMETERS[name].items():
        if default is not EMPTY and draw(st.integers(0, 3)):
            continue
        of = (*shape, *shape[-1:]) if parameter == "A" else shape
        argument = draw(arguments(of, dtype))
        if default is not EMPTY and draw(st.booleans()):
            argument = Argument(other=draw(st.sampled_from(list(OTHERS))))
        if default is EMPTY and not named and draw(st.integers(0, 7)):
            positional.append(argument)
        else:
            named.append((parameter, argument))
    if draw(st.integers(0, 30)) == 0:
        named.append(("wrong", draw(arguments(shape, dtype))))
    return Call(name, tuple(positional), tuple(named), draw(st.integers(0, 2)))


def alike(ours: Any, theirs: Any, is_derivative: bool) -> Any:
    """Which elements of two results are equal? False for tensors that differ in more than their elements.

    Half of the digits: wrong elements, not rounding errors, are looked for here.
    """
    if not isinstance(theirs, torch.Tensor):  # no gradient may be one of zeros
        return ours is theirs or ours == theirs or (theirs is None and is_derivative and not ours.any())
    if not isinstance(ours, torch.Tensor) or ours.layout != theirs.layout or ours.is_nested != theirs.is_nested:
        return False
    if theirs.is_nested:
        pairs = zip(ours.unbind(), theirs.unbind(), strict=True)
        return torch.tensor([bool(torch.as_tensor(alike(a, b, is_derivative)).all()) for a, b in pairs])
    if ours.shape != theirs.shape or ours.device != theirs.device:
        return False
    if theirs.is_meta:
        return True
    ours, theirs = (y.detach().to_dense() if y.layout is not torch.strided else y.detach() for y in (ours, theirs))
    ours, theirs = (y.dequantize() if y.is_quantized else y for y in (ours, theirs))
    wide = torch.complex128 if theirs.is_complex() else torch.float64
    eps = torch.finfo(ours.dtype).eps if ours.is_floating_point() or ours.is_complex() else 0.0
    ours, theirs = ours.to(wide), theirs.to(ours.dtype).to(wide)
    scale = theirs.abs().nan_to_num(0, 0, 0).sum().item()  # of which the digits of a small sum may be left
    close = torch.isclose(ours, theirs, rtol=eps**0.5, atol=8 * eps * (1 + scale), equal_nan=True)
    return close | theirs.isnan() if is_derivative else close  # an op may have a derivative where its definition has nan


KINDS_OF_ERRORS = (TypeError, ValueError, RuntimeError, IndexError)  # of arguments that are wrong


def definition(op: Any) -> Callable[..., Any]:
    """The definition, with arguments by place that the op may have been given by name."""
    return op.definition if op is ad.quadratic_form else lambda *args, **kwargs: op.define(op._bound(args, kwargs))


def check(call: Call) -> None:
    ours = outcome(lambda: call.results_of(OPS[call.op]))
    of = definition(OPS[call.op])
    assert_same(ours, outcome(lambda: call.results_of(of)), lambda: outcome(lambda: call.results_of(of, wide=True)))


def assert_same(ours: Outcome, theirs: Outcome, in_float64: Callable[[], Outcome]) -> None:
    """Compares with the definition in the dtype, and where that rounds away the digits, in float64."""
    both = f"{ours} in place of {theirs}"
    if ours.error is not None:
        if type(ours.error) is type(theirs.error):
            return
        assert isinstance(ours.error, KINDS_OF_ERRORS) and not isinstance(ours.error, RecursionError), both
        is_explained = isinstance(ours.error, ad.TraceError) or "torchad_ext." in str(ours.error)
        assert theirs.error is not None or is_explained, both
        return
    assert theirs.error is None and len(ours.values) == len(theirs.values), both
    dtypes = [[y.dtype if isinstance(y, torch.Tensor) else None for y, _ in each.values] for each in (ours, theirs)]
    assert dtypes[0] == dtypes[1] or None in dtypes[1], both
    exact: Outcome | None = None
    for i, ((a, order), (b, _)) in enumerate(zip(ours.values, theirs.values, strict=True)):
        same = torch.as_tensor(alike(a, b, order > 0))
        if not same.all():
            exact = exact or in_float64()
            assert exact.error is None, both
            same = same | torch.as_tensor(alike(a, exact.values[i][0], order > 0))
            assert same.all(), f"{both}; {exact}"


class TestOps:
    @FEW
    @given(calls())
    def test_definition(self, call: Call) -> None:
        check(call)

    @pytest.mark.long
    @MANY
    @given(calls())
    def test_definition_many(self, call: Call) -> None:
        check(call)
