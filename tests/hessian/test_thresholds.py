"""How many rows are computed at once, and by which way the diagonal of a batch of points is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import torchad_ext as ad
from torchad_ext._autograd.graph import graph_nodes
from torchad_ext._hessian import diagonal, jacobian_rows
from torchad_ext._hessian.thresholds import largest_matrix_in_graph, quickest_ways, rows_at_once

MEGABYTES = 2**20


def sample(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def pairs(x: Tensor) -> Tensor:
    d = x.view(-1, 1, 3) - x.view(1, -1, 3)
    return (-d.square().sum(-1)).exp().sum()


def pairs_in_our_ops(x: Tensor) -> Tensor:
    d = x.view(-1, 1, 3) - x.view(1, -1, 3)
    return ad.exp(-ad.sin(d).square().sum(-1)).sum()


def pairs_by_index(x: Tensor) -> Tensor:
    i, j = torch.triu_indices(60, 60, 1)
    return (1 + (x.view(-1, 3)[i] - x.view(-1, 3)[j]).square().sum(-1)).pow(-3).sum()


def attention(x: Tensor) -> Tensor:
    x = x.view(-1, 2)
    return torch.einsum("ts,sd->td", torch.einsum("td,sd->ts", x, x).softmax(-1), x).square().sum()


data, images = sample(20_000, 30), nn.Conv2d(1, 40, 3, padding=1, dtype=torch.float64).requires_grad_(False)
# From n numbers to one, with intermediates much larger than these.
ENERGIES: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "pairs": (pairs, 180),
    "pairs in our ops": (pairs_in_our_ops, 180),
    "pairs by index": (pairs_by_index, 180),
    "pairs by cdist": (lambda x: torch.cdist(x.view(-1, 3), x.view(-1, 3) + 5).pow(-2).sum(), 180),
    "attention": (attention, 160),
    "outer product": (lambda x: (x * x.view(-1, 1)).sin().sum(), 260),
    "a large data set": (lambda x: F.softplus(data @ x).sum(), 30),
    "convolution": (lambda x: images(x.view(1, 1, 14, 14)).tanh().square().sum(), 196),
}


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest result of the operations that run under it."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = (y.numel() * y.element_size() for y in tree_leaves(result) if isinstance(y, Tensor))
        self.bytes = max(self.bytes, *sizes, 0)
        return result


def largest_of(call: Callable[[], Any]) -> tuple[Any, int]:
    """The result of a call, and the bytes of the largest tensor on the way."""
    with Largest() as largest:
        result = call()
    return result, largest.bytes


@pytest.mark.long
class TestTheLargestTensor:
    """A batch takes 2 MB, or a single row what it needs."""

    @pytest.mark.parametrize("name", ENERGIES)
    def test_of_a_hessian(self, name: str) -> None:
        f, n = ENERGIES[name]
        x = sample(n)
        expected, alone = largest_of(lambda: ad.hessian(f, x, chunk_size=1))
        for call, entries in (
            (lambda: ad.hessian(f, x), expected),
            (lambda: ad.hessian_diagonal(f, x), expected.diagonal()),
        ):
            result, largest = largest_of(call)
            assert_close(result, entries)
            assert largest <= max(2 * MEGABYTES, alone)

    def test_of_a_hessian_by_colors(self) -> None:
        x, t = sample(40), torch.linspace(0, 1, 3000, dtype=torch.float64)
        f = lambda x: (torch.outer(x[:-1].sin() * x[1:], t)).tanh().sum()  # noqa: E731
        expected, alone = largest_of(lambda: ad.hessian(f, x, chunk_size=1))
        pattern = torch.ones(40, 40).tril(1).triu(-1).bool()
        result, largest = largest_of(lambda: ad.hessian(f, x, sparsity=pattern))
        assert_close(result, expected)
        assert largest == alone

    def test_of_a_hessian_in_forward_mode(self) -> None:
        x = sample(180)
        largest_of(lambda: ad.hessian(pairs, x, strategy="forward-over-reverse"))
        result, largest = largest_of(lambda: ad.hessian(pairs, x, strategy="forward-over-reverse"))
        assert_close(result, ad.hessian(pairs, x, chunk_size=1))
        assert largest <= 2 * MEGABYTES

    def test_of_a_tall_jacobian(self) -> None:
        x, W = sample(30), sample(1000, 30)
        f = lambda x: (W @ (x * x.view(-1, 1)).sin()).sum(1)  # noqa: E731
        result, largest = largest_of(lambda: ad.jacobian(f, x))
        assert_close(result, torch.func.jacrev(f)(x))
        assert largest <= 2 * MEGABYTES

    def test_a_chunk_size_is_kept(self) -> None:
        x = sample(180)
        row = 60 * 60 * 3 * 8
        for rows in (30, 180):
            assert largest_of(lambda rows=rows: ad.hessian(pairs, x, chunk_size=rows))[1] == rows * row

    @pytest.mark.parametrize(
        ("largest", "jacobian", "rows"),
        [
            (8 * 100, 8 * 100**2, 2621),  # all of a small one
            (2**18, 2**20, 8),
            (2**18 + 1, 2**20, 1),  # too few to be worth a batch
            (2**30, 2**20, 1),
            (8 * 4000, 8 * 4000**2, 125),  # a share of a large one
            (8 * 10**5, 8 * 10**10, 20),  # 16 MB
        ],
    )
    def test_rows_at_once(self, largest: int, jacobian: int, rows: int) -> None:
        assert rows_at_once(largest, jacobian) == rows

    def test_a_matrix_is_read_once_for_as_many_rows_as_it_has_bytes(self) -> None:
        assert rows_at_once(400_000, 8 * 50**2, 20_000_000) == 50
        assert rows_at_once(400_000, 8 * 50**2, 3_000_000) == 1
        w, X, y = sample(20) / 10, sample(20_000, 20), sample(20_000).sign()
        f = lambda w: torch.nn.functional.softplus(-y * (X @ w)).sum()  # noqa: E731
        result, largest = largest_of(lambda: ad.hessian(f, w))
        assert_close(result, torch.func.hessian(f)(w))
        assert largest == X.numel() * X.element_size()  # of 20 rows

    @pytest.mark.parametrize(
        ("f", "size"),
        [
            (lambda x, A: A @ x, 3),
            (lambda x, A: torch.addmv(torch.ones(5).double(), A, x), 3),
            (lambda x, A: torch.nn.functional.linear(x, A, torch.ones(5).double()), 3),
            (lambda x, A: A @ x.view(3, 2), 6),
            (lambda x, A: x.view(2, 3) @ A.T, 6),
        ],
    )
    def test_the_matrix_of_a_graph(self, f: Callable[[Tensor, Tensor], Tensor], size: int) -> None:
        y = f(sample(size).requires_grad_(), sample(5, 3))
        assert largest_matrix_in_graph(graph_nodes([y])) == 5 * 3 * 8

    @pytest.mark.parametrize("f", [lambda x: x.view(3, 2) @ torch.ones(2).double(), lambda x: 2 * x, lambda x: x[:0]])
    def test_a_graph_without_one(self, f: Callable[[Tensor], Tensor]) -> None:
        assert largest_matrix_in_graph(graph_nodes([f(sample(6).requires_grad_())])) == 0


@pytest.mark.parametrize(
    ("steps", "size", "has_matrix", "kept"),
    [
        (1, 400, False, True),
        (1, 399, False, False),
        (8, 400, False, False),
        (8, 400, True, True),
        (99, 400, True, False),
    ],
)
def test_unit_rows_are_kept_in_short_graphs_and_for_large_matrices(
    steps: int, size: int, has_matrix: bool, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each node costs a dispatch in Python: a loop of many small operations takes a quarter of the time without. What
    pays for it are products of unit vectors with a matrix, which take one of its rows."""
    seen: list[int] = []
    rows = jacobian_rows.dense_rows
    monkeypatch.setattr(jacobian_rows, "dense_rows", lambda results, count: seen.append(count) or rows(results, count))

    A = sample(size, size)

    def f(x: Tensor) -> Tensor:
        y = x @ (A @ x) if has_matrix else x.sum()
        for _ in range(steps):
            x = x.sin()
        return x.sum() + y

    x = sample(size)
    assert_close(ad.hessian(f, x), ad.hessian(f, x, chunk_size=1))
    assert bool(seen) == kept


def network(act: Callable[[Tensor], Tensor], residual: bool = False) -> Callable[[Tensor], Tensor]:
    W, V = sample(16, 2), sample(16, 16) / 4

    def f(x: Tensor) -> Tensor:
        y = act(x @ torch.cat([W] * x.shape[1], 1)[:, : x.shape[1]].T)
        z = act(y @ V)
        return (y + z if residual else z).sum(-1)

    return f


def hard(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: (x * (1 - x)).prod(-1) * f(x)


NETWORKS = {
    "tanh": network(torch.tanh),
    "SIREN": network(torch.sin),
    "SIREN in our ops": network(ad.sin),
    "hard constraint": hard(network(torch.tanh)),
    "hard constraint in our ops": hard(network(ad.tanh)),
    "residual": network(torch.tanh, residual=True),
}


class TestDiagonalOfABatch:
    @pytest.mark.parametrize("way", [None, "products", "batches", "sweeps"])
    @pytest.mark.parametrize("name", NETWORKS)
    def test_each_way_is_exact(self, name: str, way: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
        if way:
            monkeypatch.setattr(diagonal, "quickest_ways", lambda *_: [way, "batches"] if way == "sweeps" else [way])
        for batch, d in ((1, 1), (1, 6), (7, 2), (7, 10), (300, 3), (40, 30)):
            f, x = NETWORKS[name], sample(batch, d).sigmoid()
            leaf = x.clone().requires_grad_()
            (g,) = torch.autograd.grad(f(leaf).sum(), leaf, create_graph=True)
            rows = [torch.autograd.grad(g[:, i].sum(), leaf, retain_graph=True)[0][:, i] for i in range(d)]
            assert_close(ad.hessian_diagonal(f, x, batched=True), torch.stack(rows, 1), rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize(
        ("batch", "d", "way"),
        [
            (1, 1, "products"),
            (64, 2, "products"),
            (64, 3, "products"),
            (64, 4, "batches"),
            (1, 10, "batches"),
            (64, 10, "batches"),
            (1024, 10, "products"),
            (1024, 50, "sweeps, products"),
            (1, 50, "batches"),
        ],
    )
    def test_the_way_follows_the_sizes(self, batch: int, d: int, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
        chosen = []
        monkeypatch.setattr(
            diagonal, "quickest_ways", lambda *sizes: (chosen.append(quickest_ways(*sizes)), chosen[-1])[1]
        )
        ad.hessian_diagonal(NETWORKS["SIREN"], sample(batch, d), batched=True)
        assert chosen == [way.split(", ")]

    @pytest.mark.parametrize("d", [1, 3, 10])
    def test_a_module_that_couples_points_later_on(self, d: int) -> None:
        module = nn.Sequential(nn.Linear(d, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)).double()
        x = sample(50, d)
        module.eval()
        ad.hessian_diagonal(module, x, batched=True)
        module.train()
        with pytest.raises(ValueError, match="depends on other rows"):
            ad.hessian_diagonal(module, x, batched=True)


C = torch.arange(9.0, dtype=torch.float64).view(3, 3)
SCALED = {
    "add": lambda x: torch.add(C, x, alpha=2),
    "add to what varies": lambda x: torch.add(x, C, alpha=2),
    "sub": lambda x: torch.sub(x, C, alpha=2),
    "rsub": lambda x: torch.rsub(x, C, alpha=2),
    "addcmul": lambda x: torch.addcmul(C, x, C, value=2),
    "addcdiv": lambda x: torch.addcdiv(x, C, C + 1, value=2),
    "ldexp": lambda x: torch.ldexp(x, C),
    "index_add": lambda x: torch.index_add(C, 0, torch.tensor([1, 1, 0]), x, alpha=2),
    "addmm": lambda x: torch.addmm(C, x, C, beta=2),
    "addmv": lambda x: torch.addmv(C[0], C, x[0], beta=2),
    "addbmm": lambda x: torch.addbmm(C, x.unsqueeze(0), C.unsqueeze(0), beta=2),
    "baddbmm": lambda x: torch.baddbmm(C, x.unsqueeze(0), C.unsqueeze(0), beta=2),
    "addr": lambda x: torch.addr(C, x[0], C[1], beta=2, alpha=3),
}


@pytest.mark.parametrize("name", SCALED)
def test_forward_mode_takes_numbers_times_constants(name: str) -> None:
    """PyTorch's ends the process under a mode of dispatch: a number times a zero without memory."""
    f = SCALED[name]
    assert_close(ad.jacobian(f, C + 1, strategy="forward"), ad.jacobian(f, C + 1))
    value = lambda x: f(x.sin()).pow(3).sum()  # noqa: E731
    assert_close(ad.hessian(value, C, strategy="forward-over-reverse"), ad.hessian(value, C))
