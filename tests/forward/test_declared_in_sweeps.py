"""Composed functions as kernels: value and orders one to four, transforms and broadcasting, against native autograd.

``tests/symbolic/test_trace.py`` holds the same functions against native autograd as expressions; here they are compiled
and run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache

import pytest
import torch
from selection import few
from test_catalogue import orders
from test_trace import COMPOSED, function_of, sample
from torch.func import hessian, jacfwd, jacrev, jvp, vmap
from torch.testing import assert_close

import torchad_ext as ad
from torchad_ext import Pointwise

pytestmark = pytest.mark.usefixtures("kernels_when_long")

composed = pytest.mark.parametrize("name", few(COMPOSED, lambda name: list(COMPOSED).index(name) % 3 == 0))


@cache
def declared(name: str) -> Pointwise:
    return ad.pointwise(function_of(COMPOSED[name][0])[0])


def inputs(name: str, device: str = "cpu") -> list[torch.Tensor]:
    text, domain = COMPOSED[name]
    return [x.detach().clone().to(device) for x in sample(function_of(text)[1], *domain)]


def assert_near(ours: torch.Tensor, native: torch.Tensor) -> None:
    """Up to rounding errors, which cancelling terms of a high order magnify."""
    assert_close(ours, native, rtol=1e-9, atol=1e-10 * max(1.0, native.abs().max().item()))


@composed
@pytest.mark.parametrize("highest", few([2, 4], lambda order: order == 2))
def test_four_orders(name: str, highest: int, device: str) -> None:
    op, xs = declared(name), tuple(inputs(name, device))
    for ours, native in zip(orders(op, xs, highest), orders(op.definition, xs, highest), strict=True):
        assert_near(ours, native)


@composed
def test_transforms(name: str, device: str) -> None:
    op, xs = declared(name), inputs(name, device)
    for transform in (
        lambda f: jvp(lambda x: f(x, *xs[1:]), (xs[0],), (torch.ones_like(xs[0]),))[1],
        lambda f: vmap(f)(*xs),
        lambda f: hessian(lambda x: f(x, *(y[:2] for y in xs[1:])).sum())(xs[0][:2]),
        lambda f: jacfwd(jacrev(lambda x: f(x, *(y[:2] for y in xs[1:])).sum()))(xs[0][:2]),
    ):
        assert_near(transform(op), transform(op.definition))


@composed
def test_broadcasting_and_stride_0(name: str, device: str) -> None:
    op, (first, *others) = declared(name), inputs(name, device)
    xs = [first[:6].reshape(2, 3), *(y[:3] for y in others)]
    expanded = [x[:1].expand(5, *x.shape[1:]) for x in inputs(name, device)]
    for arguments in (xs, expanded):
        for ours, native in zip(orders_of_each(op, arguments), orders_of_each(op.definition, arguments), strict=True):
            assert_near(ours, native)


def orders_of_each(f: Callable[..., torch.Tensor], xs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The value and the gradient of each argument."""
    xs = [x.detach().requires_grad_() for x in xs]
    y = f(*xs)
    return [y, *torch.autograd.grad(y.sum(), xs, materialize_grads=True)]


@pytest.mark.parametrize("name", COMPOSED)
def test_fewer_gradients_depend_on_no_more(name: str) -> None:
    """What a node saves for the gradients that may be wanted serves those that are."""
    program = declared(name)._usual.program
    inputs = range(len(program.inputs))
    full = program.vjp([True] * len(inputs), [True] * len(program.outputs))
    for wanted in itertools.product((False, True), repeat=len(inputs)):
        some = program.vjp(wanted, [True] * len(program.outputs))
        assert {i for i in some.arguments if i in inputs} <= {i for i in full.arguments if i in inputs}


@pytest.mark.parametrize(
    "name", "hypot sgn floor reshape mul detach size sum where prod softmax pow cross fill_ grad logaddexp".split()
)
def test_an_op_with_the_name_of_a_function_of_pytorch_is_none(name: str) -> None:
    def of(x: torch.Tensor, a: float = 2.0) -> torch.Tensor:
        return a * x**3

    of.__name__ = name
    op, x = ad.pointwise(of), torch.tensor([1.0, -2.0], dtype=torch.float64)
    assert_close(ad.laplacian(lambda x: op(x, a=3.0).sum(), x), (18 * x).sum())
    assert_close(ad.partials(lambda x: op(x).sum(), x, ["xx", "xxx"], names="xy"), (12 * x[0], x.new_tensor(12.0)))
    assert_close(ad.hessian(lambda x: op(x).sum(), x), (12 * x).diag())
