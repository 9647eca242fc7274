"""Rows that an index takes, in a graph of the backend: those and the gradients of eager mode, summed in one order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from compiled_models import Function, compiled, hold, x_like
from torch import Tensor, nn
from torch.func import grad, hessian, vmap
from torch.testing import assert_close

from torchad_ext._fusion import gathering

INDEX = torch.tensor([2, 0, -1, 2, 1, -3, 2])
GATHERS: dict[str, Function] = {
    "one index": lambda x: x[INDEX].sin() * 2,
    "a tuple": lambda x: x[INDEX,].sin() * 2,
    "a slice behind": lambda x: x[INDEX, :].sin() * 2,
    "an ellipsis behind": lambda x: x[INDEX, ...].sin() * 2,
    "a table of indices": lambda x: x[INDEX[:6].view(2, 3)].sin() * 2,
    "int32": lambda x: x[INDEX.int()].sin() * 2,
    "of an intermediate result": lambda x: x.exp()[INDEX] * x[INDEX],
    "no index": lambda x: x[INDEX[:0]].sin() * 2,
    "of one dimension": lambda x: x.sum(-1)[INDEX].sin() * 2,
    "messages": lambda x: torch.zeros_like(x).index_add(0, INDEX.remainder(3), x[INDEX] * x[INDEX.flip(0)]).sin(),
}
OTHERS: dict[str, Function] = {
    "a mask": lambda x: x[torch.tensor([True, False, True])].sin() * 2,
    "another dimension": lambda x: x[:, INDEX].sin() * 2,
    "two indices": lambda x: x[INDEX, INDEX].sin() * 2,
    "a new dimension": lambda x: x[INDEX, None].sin() * 2,
    "a number": lambda x: x[1].sin() * 2,
    "a range": lambda x: x[INDEX, :2].sin() * 2,
    "nothing": lambda x: x[()].sin() * 2,
    "transposed": lambda x: x.T[INDEX].sin() * 2,
}


@pytest.fixture(autouse=True)
def selected(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The arguments of each ``index_select``, which small results take here too."""
    monkeypatch.setattr(gathering, "_FEW", -1)
    calls: list[Any] = []
    select = Tensor.index_select
    monkeypatch.setattr(Tensor, "index_select", lambda *args: calls.append(args) or select(*args))
    torch._dynamo.reset()
    yield calls
    torch._dynamo.reset()


@pytest.mark.parametrize("f", GATHERS.values(), ids=GATHERS)
def test_derivatives_are_those_of_eager_mode(f: Function, selected: list[Any]) -> None:
    hold(f, x_like(3, 3))
    assert selected


@pytest.mark.parametrize("f", OTHERS.values(), ids=OTHERS)
def test_other_indices_stay_as_they_are(f: Function, selected: list[Any]) -> None:
    hold(f, x_like(3, 3))
    assert not selected


def test_small_results_stay_as_they_are(monkeypatch: pytest.MonkeyPatch, selected: list[Any]) -> None:
    monkeypatch.undo()
    hold(GATHERS["one index"], x_like(3, 3), highest=1)
    assert not selected


TABLE = INDEX[:6].view(2, 3)


@pytest.mark.parametrize(
    "index", [INDEX, INDEX[::2], TABLE, TABLE.T, TABLE[:, ::2], INDEX.expand(2, 7)], ids=lambda i: str(i.shape)
)
def test_results_lie_in_memory_as_in_eager_mode(index: Tensor) -> None:
    for x in (x_like(3, 4), x_like(3), x_like(3, 1, 2)):
        assert gathering.rows(x, index).stride() == x[index].stride()


@pytest.mark.parametrize("index", [INDEX, TABLE], ids=["one index", "a table"])
def test_results_are_no_views(index: Tensor, selected: list[Any]) -> None:
    """So they may be written in place, or detached, where they were made without a gradient."""

    def f(x: Tensor, weight: Tensor) -> Tensor:
        with torch.no_grad():
            y = x[index]
        return y.mul_(weight)

    x, weight = x_like(3, 4), x_like(4).requires_grad_()
    y = compiled(f)(x, weight)
    y.sum().backward()
    assert_close(weight.grad, x[index].sum(tuple(range(index.dim()))))
    compiled(lambda x: x[index])(x.requires_grad_()).detach_()
    assert len(selected) == 2


@pytest.mark.parametrize("place", [3, -4])
def test_a_place_that_is_not_there(place: int) -> None:
    with pytest.raises(IndexError):
        compiled(lambda x, i: x[i] * 2)(x_like(3, 3), torch.tensor([0, place]))
    with pytest.raises(IndexError):
        gathering.rows(x_like(0, 3), torch.tensor([0, place]))


def test_within_transforms(selected: list[Any]) -> None:
    x, tables = x_like(3, 3), INDEX.view(1, -1).expand(2, -1)

    def f(x: Tensor, index: Tensor = INDEX, rows: Function = gathering.rows) -> Tensor:
        return (rows(x, index) * rows(x, index.flip(0)).sin()).sum()

    def plain(x: Tensor, index: Tensor = INDEX) -> Tensor:
        return f(x, index, lambda x, index: x[index])

    assert_close(hessian(f)(x), hessian(plain)(x))
    assert_close(vmap(grad(f))(x.expand(2, 3, 3), tables), vmap(grad(plain))(x.expand(2, 3, 3), tables))
    assert selected


def test_parameters_have_their_gradients() -> None:
    table = nn.Parameter(x_like(3, 3))
    compiled(lambda: (table[INDEX] ** 2).sum())().backward()
    assert_close(table.grad, 2 * table.detach() * torch.tensor([[2.0], [1.0], [4.0]]).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sums_have_one_order(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of ``x[index]`` has the same bits for any number of threads, in each run."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 64, generator=generator).to(dtype).requires_grad_()
    index = torch.randint(-40, 40, (5000,), generator=generator)
    cotangent = torch.randn(5000, 64, generator=generator).to(dtype)

    def gradient(threads: int) -> Tensor:
        torch.set_num_threads(threads)
        return torch.autograd.grad(gathering.rows(x, index), x, cotangent)[0]

    before = torch.get_num_threads()
    try:
        results = [gradient(threads) for threads in (1, 2, 2, 4, 3)]
    finally:
        torch.set_num_threads(before)
    for result in results:
        assert torch.equal(result, results[0])
    exact = torch.zeros(40, 64, dtype=torch.float64).index_add(0, index % 40, cotangent.double())
    eager = torch.autograd.grad(x[index], x, cotangent)[0]
    error, errors_of_eager_mode = ((y - exact).abs().max() for y in (results[0], eager))
    assert error <= 2 * errors_of_eager_mode
