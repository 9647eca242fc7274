"""Tangents that are computed on first access: what is left out, and what may happen before it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_laplacian import points, traces
from torch import Tensor
from torch.autograd import grad
from torch.profiler import profile
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import torchad_ext as ad
from torchad_ext._forward.laplacian import laplacian
from torchad_ext._forward.sweep import _stack

LAST: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "linear": (lambda y: F.linear(y, torch.ones(2, 3).to(y)), "aten::linear"),
    "sort": (lambda y: y.sort(-1)[0], "aten::gather"),
    "cummax": (lambda y: y.cummax(-1)[0], "aten::gather"),
    "index_add": (lambda y: torch.zeros_like(y).index_add(-1, torch.tensor([0, 0, 1]), y), "aten::index_add"),
    "product": (lambda y: y * torch.arange(3.0).to(y), "aten::mul"),
    "matmul": (lambda y: y @ torch.ones(3, 2).to(y), "aten::matmul"),
    "where": (lambda y: torch.where(y > 0, y, 0.0), "aten::where"),
    "roll": (lambda y: y.roll(1, -1), "aten::roll"),
    "cat": (lambda y: torch.cat([y, y], -1), "aten::cat"),
    "add": (lambda y: y + 1, "aten::add"),
}


@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("name", LAST)
def test_last_linear_operations_have_no_tangents(name: str, record: bool) -> None:
    of, operation = LAST[name]
    counts = []
    for d in (3, 7):
        with torch.set_grad_enabled(record), profile() as profiler:
            laplacian(lambda x: of(x.sin()[..., :3]), points("cpu", 4, d))
        counts.append(sum(event.name == operation for event in profiler.events()))
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("name", LAST)
def test_tangents_are_right_when_they_are_wanted(name: str, record: bool) -> None:
    of, x = LAST[name][0], points("cpu")
    with torch.set_grad_enabled(record):
        jacobian = ad.forward_laplacian(lambda x: of(x.sin()), x).jacobian
        bent = laplacian(lambda x: of(x.sin()).square(), x)
    rows = torch.func.vmap(torch.func.jacrev(lambda x: of(x.sin().unsqueeze(0))[0]))
    assert_close(jacobian, rows(x))
    assert_close(bent, traces(lambda x: of(x.sin()).square(), x))


W, INDEX = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64), torch.tensor([[2, 0]])


def overwritten_weight(x: Tensor) -> Tensor:
    weight = W.clone()
    y = F.linear(x.sin(), weight)
    weight.zero_()
    return y.square()


def overwritten_factor(x: Tensor) -> Tensor:
    factor = W[0].clone()
    y = x.sin() * factor
    factor += 1
    return y.exp()


def overwritten_index(x: Tensor) -> Tensor:
    index = INDEX.clone()
    y = x.sin().gather(-1, index.expand(len(x), -1))
    index.zero_()
    return y.exp()


def overwritten_einsum(x: Tensor) -> Tensor:
    weight = W[0].clone()
    y = torch.einsum("bi,i->b", x.sin(), weight)
    weight.mul_(2)
    return y.exp().unsqueeze(-1)


def overwritten_operand(x: Tensor) -> Tensor:
    y = x.sin()
    z = F.linear(y, W)
    y.zero_()
    return z.exp() + y.sum(-1, keepdim=True)


def factor_that_varies_later(x: Tensor) -> Tensor:
    factor = torch.ones_like(x)
    factor.add_(1)
    y = x.sin() * factor
    factor += x
    return y.exp()


def filled_before_cat(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y += x.sin()
    return torch.cat([y, torch.ones_like(x), x], -1)


def filled_before_product(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:] = x.sin()
    return 2 * (y @ torch.ones(3, 2).to(x))


def index_list(x: Tensor) -> Tensor:
    index = [2, 0]
    y = x.sin()[:, index]
    index[:] = [0, 1]
    return y.exp()


def index_array(x: Tensor) -> Tensor:
    index = np.array([2, 0])
    y = x.sin()[:, index]
    index[:] = [0, 1]
    return y.exp()


def index_array_of_a_subclass(x: Tensor) -> Tensor:
    index = np.array([2, 0]).view(np.recarray)
    y = x.sin()[:, index]
    index[:] = [0, 1]
    return y.exp()


def list_of_dimensions(x: Tensor) -> Tensor:
    dims = [0, 2, 1]
    y = x.sin()[:, None].expand(-1, 3, 3).permute(dims)
    dims[:] = [0, 1, 2]
    return y.exp()[..., 0]


def list_of_shifts(x: Tensor) -> Tensor:
    shifts = [1]
    y = x.sin().roll(shifts, [-1])
    shifts[0] = 2
    return y.exp()


def list_of_tensors(x: Tensor) -> Tensor:
    parts = [x, 2 * x]
    y = torch.cat(parts, -1)
    parts[0] = 3 * x
    parts.append(x)
    return y.exp()


def list_of_sizes(x: Tensor) -> Tensor:
    sizes = [1, 2]
    first, second = x.sin().split(sizes, -1)
    sizes.reverse()
    return torch.cat([first.exp(), second.square()], -1)


OVERWRITTEN: dict[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] = {
    overwritten_weight: lambda x: F.linear(x.sin(), W).square(),
    overwritten_factor: lambda x: (x.sin() * W[0]).exp(),
    overwritten_index: lambda x: x.sin().gather(-1, INDEX.expand(len(x), -1)).exp(),
    overwritten_einsum: lambda x: (x.sin() @ W[0]).exp().unsqueeze(-1),
    overwritten_operand: lambda x: F.linear(x.sin(), W).exp(),
    factor_that_varies_later: lambda x: (2 * x.sin()).exp(),
    filled_before_cat: lambda x: torch.cat([x.sin(), torch.ones_like(x), x], -1),
    filled_before_product: lambda x: 2 * (x.sin() @ torch.ones(3, 2).to(x)),
    index_list: lambda x: x.sin()[:, [2, 0]].exp(),
    index_array: lambda x: x.sin()[:, [2, 0]].exp(),
    index_array_of_a_subclass: lambda x: x.sin()[:, [2, 0]].exp(),
    list_of_dimensions: lambda x: x.sin().exp(),
    list_of_shifts: lambda x: x.sin().roll(1, -1).exp(),
    list_of_tensors: lambda x: torch.cat([x, 2 * x], -1).exp(),
    list_of_sizes: lambda x: torch.cat([x.sin()[:, :1].exp(), x.sin()[:, 1:].square()], -1),
}


@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("f", OVERWRITTEN, ids=lambda f: f.__name__)
def test_what_is_overwritten_later_counts_as_it_was(f: Callable[[Tensor], Tensor], record: bool) -> None:
    x, expected = points("cpu"), OVERWRITTEN[f]
    with torch.set_grad_enabled(record):
        result = ad.forward_laplacian(f, x)
    assert_close(result.value, expected(x))
    assert_close(result.jacobian, torch.func.vmap(torch.func.jacrev(lambda x: expected(x.unsqueeze(0))[0]))(x))
    assert_close(result.laplacian, traces(expected, x))


@pytest.mark.parametrize("reentrant", [False])
def test_within_a_checkpoint(reentrant: bool) -> None:
    first, second = (torch.randn(4, n, dtype=torch.float64).requires_grad_() for n in (3, 4))

    def layer(y: Tensor) -> Tensor:
        return F.linear(F.linear(y.tanh(), second).sin(), second)

    def plain(x: Tensor) -> Tensor:
        y = F.linear(x, first)
        return (layer(y) + y.sin()).sum(-1)

    def checkpointed(x: Tensor) -> Tensor:
        y = F.linear(x, first)
        return (checkpoint(layer, y, use_reentrant=reentrant) + y.sin()).sum(-1)

    x = points("cpu")
    ours, expected = (laplacian(f, x) for f in (checkpointed, plain))
    assert_close(ours, expected)
    slopes = [grad(y.square().sum(), (first, second)) for y in (ours, expected)]
    assert_close(*slopes)


def test_a_long_chain_of_linear_operations() -> None:
    def f(x: Tensor) -> Tensor:
        y, z = x.sin(), torch.zeros_like(x)
        for _ in range(400):
            y = (y + F.linear(y, torch.full((3, 3), 0.01, dtype=y.dtype)) / 3).roll(1, -1)
            z[:, 0] = y[:, 1]
        return (y + z).square()

    def power(x: Tensor) -> Tensor:
        step = (torch.eye(3, dtype=x.dtype) + 0.01 / 3).roll(1, 0)
        y = x.sin() @ torch.linalg.matrix_power(step, 400).T
        return (y + torch.stack([y[:, 1], 0 * y[:, 1], 0 * y[:, 1]], -1)).square()

    x = points("cpu")
    for record in (False, True):
        with torch.set_grad_enabled(record):
            assert_close(laplacian(f, x), traces(power, x))


@pytest.mark.parametrize("name", LAST)
def test_autocast_that_begins_after_an_operation_does_not_reach_its_tangents(name: str) -> None:
    of, x = LAST[name][0], points("cpu").float()
    weight = torch.linspace(0.1, 1.7, 9).reshape(3, 3)

    def plain(x: Tensor) -> Tensor:
        y = of(x.sin() @ weight)
        return y * y

    def cast(x: Tensor) -> Tensor:
        y = of(x.sin() @ weight)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return y * y

    with torch.no_grad():
        assert_close(ad.forward_laplacian(cast, x), ad.forward_laplacian(plain, x))


T = torch.arange(36.0).reshape(6, 2, 3)


@pytest.mark.parametrize("whole", [T, T[1:], T[::2], T.mT, T.permute(2, 0, 1), T[0].expand(4, 2, 3)], ids=str)
def test_rows_of_one_tensor_are_stacked_without_a_copy(whole: Tensor) -> None:
    stack = _stack(whole.unbind())
    assert stack is not None and stack.data_ptr() == whole.data_ptr()
    assert torch.equal(stack, whole)


MEMORY = np.arange(8.0)
APART: dict[str, list[Tensor]] = {
    "one": [T[0]],
    "at other distances": [T[0], T[1], T[3]],
    "at smaller distances": [T[0], T[2], T[3]],
    "backwards": [T[3], T[2], T[1]],
    "transposed": [T[0, :, :2], T[1, :, :2].mT],
    "of other shapes": [T[0], T[1, :1]],
    "of other dtypes": [T[0], T.view(torch.int32)[1]],
    "of neighbouring memory": [torch.from_numpy(MEMORY[:4]), torch.from_numpy(MEMORY[4:])],
    "with a gradient": list(T.clone().requires_grad_().unbind()),
    "parameters": [torch.nn.Parameter(row, requires_grad=False) for row in T],
}


@pytest.mark.parametrize("name", APART)
def test_rows_that_are_not_one_tensor(name: str) -> None:
    assert _stack(APART[name]) is None


@pytest.mark.parametrize("record", [True, False])
def test_results_without_elements(record: bool) -> None:
    """Results of one kernel lie one behind the other, where there are any."""
    x = points("cpu")
    f = lambda x: torch.cat([x.sin(), x[:, x.shape[-1] :].tanh(), x[:, ::2][:, x.shape[-1] :].exp()], -1).sum(-1)  # noqa: E731
    with torch.set_grad_enabled(record):
        assert_close(laplacian(f, x), -x.sin().sum(-1))
