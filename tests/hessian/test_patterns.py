"""Sparsity patterns of operations and of problems: none lacks an entry of the Hessian, structure is kept."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from own_functions import Cube, StraightThrough
from structured import KEPT, LARGE, C, chosen, entries, found, point, table
from test_derivatives import sample
from torch import Tensor
from torch.testing import assert_close

import torchad_ext as ad
from torchad_ext import hessian_sparsity
from torchad_ext._hessian import decompression, dense, linear_structure
from torchad_ext._hessian.coloring import star_coloring

SEEDS = range(3)
COUPLED = {"cumprod, rows", "addcmul, in place", "complex index_add"}  # more than what is multiplied

PRODUCTS: dict[str, tuple[Callable[[Tensor], Tensor], list[list[int]]]] = {
    "of matrices": (lambda x: (x[:4].view(2, 2) @ x[4:].view(2, 2))[0, 1], [[0, 5], [1, 7]]),
    "of vectors in space": (lambda x: torch.linalg.cross(x[:3], x[3:6])[0], [[1, 5], [2, 4]]),
    "by a bilinear form": (
        lambda x: F.bilinear(x[:2], x[2:4], torch.ones(1, 2, 2, dtype=x.dtype))[0],
        [[0, 2], [0, 3], [1, 2], [1, 3]],
    ),
}


class TestOperations:
    @pytest.mark.parametrize("name", [*KEPT, *LARGE])
    def test_no_entry_is_missing(self, name: str) -> None:
        for seed in SEEDS:
            text, pattern, exact = found(name, seed)
            assert not (exact & ~pattern).any(), text
            assert torch.equal(pattern, pattern.T)

    @pytest.mark.parametrize("name", KEPT)
    def test_structure_is_kept(self, name: str) -> None:
        for seed in SEEDS:
            _, pattern, exact = found(name, seed)
            assert pattern.sum() <= 1.3 * exact.sum() + 10

    @pytest.mark.parametrize("name", [*KEPT, *LARGE])
    def test_each_result_couples_what_it_multiplies(self, name: str) -> None:
        text = chosen({**KEPT, **LARGE}[name], random.Random(1))
        pattern, exact = entries(text, point(1), in_part=True)
        assert not (exact & ~pattern).any(), text
        assert name in {*COUPLED, *LARGE} or pattern.sum() <= 1.3 * exact.sum() + 10, text

    @pytest.mark.parametrize("name", PRODUCTS)
    def test_an_element_of_a_product_couples_its_factors_alone(self, name: str) -> None:
        product, pairs = PRODUCTS[name]
        pattern = hessian_sparsity(product, sample(8)).to_dense()
        assert pattern.nonzero().tolist() == sorted([*pairs, *([j, i] for i, j in pairs)])

    def test_the_table_is_that_of_the_documentation(self) -> None:
        page = Path(__file__).parents[2] / "docs" / "patterns.md"
        assert page.read_text(encoding="utf-8") == table()

    def test_constants_that_are_written_over_are_no_zeros(self) -> None:
        def f(x: Tensor) -> Tensor:
            y = torch.cat([torch.ones(3, dtype=x.dtype), x[3:]])
            return y.mul_(x).pow(3).sum()  # 1 x, of which x is 0 here

        x = torch.zeros(6, dtype=torch.float64)
        assert torch.equal(hessian_sparsity(f, x).to_dense(), torch.eye(6, dtype=torch.bool))

    def test_integers_are_no_numbers_of_elements(self) -> None:
        x = sample(6)
        f = lambda x: torch.where(torch.arange(6) < 3, x, torch.tensor(5)).pow(3).sum()  # noqa: E731
        assert hessian_sparsity(f, x).to_dense().diagonal().tolist() == [True] * 3 + [False] * 3

    def test_what_the_value_does_not_depend_on_couples_nothing(self) -> None:
        f = lambda x: (x.prod() * x)[:2].sum() * 0 + (x.prod().detach() * 0 + x[0] ** 2)  # noqa: E731
        cut = lambda x: torch.stack([x.prod(), x[0] ** 2])[1]  # noqa: E731
        assert hessian_sparsity(f, sample(5)).to_dense().sum() == 1
        assert hessian_sparsity(cut, sample(5)).to_dense().sum() == 1

    def test_a_result_beside_what_is_written_in_place(self) -> None:
        def f(x: Tensor) -> Tensor:
            torch.manual_seed(0)
            return F.rrelu(x, training=True).pow(3).sum()

        assert torch.equal(hessian_sparsity(f, sample(6)).to_dense(), torch.eye(6, dtype=torch.bool))


class TestProblems:
    def test_power_flow(self) -> None:
        """The squared mismatches of the nodes of a grid, from flows along edges that are given by their ends."""
        n = 1500
        ends = torch.stack([torch.arange(n), torch.arange(n) + 1]) % n
        susceptance = 1 + C(n) ** 2

        def f(x: Tensor) -> Tensor:
            flow = susceptance * (x[ends[0]] - x[ends[1]]).sin()
            mismatch = torch.zeros_like(x).index_add(0, ends[0], flow).index_add(0, ends[1], -flow)
            return (mismatch - 1).square().sum()

        x = sample(n)
        assert hessian_sparsity(f, x)._nnz() == 5 * n
        assert_close(ad.hessian(f, x, sparsity="auto"), ad.hessian(f, x))

    @pytest.mark.parametrize(("is_cross", "entries"), [(False, (3 * 40 - 2) ** 2), (True, 40 * 40 + 4 * 40 * 39)])
    def test_stencil(self, is_cross: bool, entries: int) -> None:
        kernel = torch.rand(1, 1, 3, 3, dtype=torch.float64) + 1
        if is_cross:
            kernel[..., ::2, ::2] = 0
        m = 40

        def f(x: Tensor) -> Tensor:
            return (x * F.conv2d(x.view(1, 1, m, m), kernel, padding=1).flatten()).sum()

        x = sample(m * m)
        assert hessian_sparsity(f, x)._nnz() == entries
        assert_close(ad.hessian(f, x, sparsity="auto"), ad.hessian(f, x))


FAMILIES = ["arrowhead", "hubs", "band", "grid", "random", "blocks", "power law", "dense", "cutoff", "empty"]


def family(name: str, n: int) -> np.ndarray:
    """A symmetric pattern with its diagonal."""
    draw = np.random.default_rng(0)
    i, j = np.arange(n)[:, None], np.arange(n)
    if name == "arrowhead":
        pattern = (i == 0) | (j == 0)
    elif name == "hubs":
        pattern = (i % 50 == 7) | (abs(i - j) < 2)
    elif name == "band":
        pattern = (abs(i - j) < 4) & (abs(i - j) != 2)
    elif name == "grid":
        side = int(n**0.5)
        pattern = (abs(i // side - j // side) <= 1) & (abs(i % side - j % side) <= 1)
    elif name == "random":
        pattern = draw.random((n, n)) < 3 / n
    elif name == "blocks":
        pattern = i // 7 == j // 7
    elif name == "power law":
        pattern = draw.random((n, n)) < 1 / (1 + i + j)
    elif name == "cutoff":
        places = draw.random((n, 3))
        pattern = ((places[:, None] - places) ** 2).sum(-1) < 0.04
    else:
        pattern = np.full((n, n), name == "dense")
    result: np.ndarray = pattern | pattern.T | (i == j)
    return result


class TestColouring:
    @pytest.mark.parametrize("name", FAMILIES)
    def test_recovers_every_entry(self, name: str) -> None:
        pattern = torch.from_numpy(family(name, 300))
        A = sample(300, 300)
        H = torch.where(pattern, A + A.T, 0.0)
        colored = decompression.coloring_of(pattern, H[0])
        values = colored.recover(colored.seeds(H.dtype) @ H)
        assert torch.equal(colored.matrix(values, torch.Size([300]), torch.strided), H)

    @pytest.mark.parametrize(
        ("name", "most"), [("arrowhead", 2), ("hubs", 10), ("blocks", 7), ("dense", 300), ("empty", 1), ("grid", 12)]
    )
    def test_few_colors(self, name: str, most: int) -> None:
        assert decompression.coloring_of(torch.from_numpy(family(name, 300)), torch.zeros(300)).count <= most

    @staticmethod
    def lines(name: str, n: int, most: float = math.inf) -> int:
        """How many lines run."""
        keys = np.flatnonzero(family(name, n))
        count = 0

        def trace(frame: object, event: str, argument: object) -> object:
            nonlocal count
            count += event == "line"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)  # type: ignore[arg-type]
        try:
            star_coloring(n, *np.divmod(keys, n), most)
        finally:
            sys.settrace(before)
        return count

    def test_an_edge_is_looked_at_a_few_times(self) -> None:
        """... also in an arrowhead, whose hub has n neighbours."""
        assert self.lines("arrowhead", 400) < 2.1 * self.lines("arrowhead", 200)

    @pytest.mark.parametrize(("name", "needed"), [("blocks", 7), ("arrowhead", 2), ("empty", 1), ("band", 5)])
    def test_stops_where_more_colors_are_needed(self, name: str, needed: int) -> None:
        i, j = np.divmod(np.flatnonzero(family(name, 70)), 70)
        assert star_coloring(70, i, j, most=needed - 1) is None
        assert star_coloring(70, i, j, most=needed) is not None

    def test_stops_at_once_where_there_are_more_edges_than_stars_have(self) -> None:
        assert star_coloring(20, *np.divmod(np.arange(400), 20), most=10) is None
        assert self.lines("dense", 20, most=10) < 10 < self.lines("dense", 20, most=11)

    @pytest.mark.parametrize("width", [0, 1, 2, 299])
    def test_a_full_band_needs_no_search(self, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(decompression, "star_coloring", None)
        monkeypatch.setattr(decompression, "_colorings", type(decompression._colorings)())  # none is known
        band = torch.ones(300, 300, dtype=torch.bool).triu(-width).tril(width)
        colored = decompression.coloring_of(band, torch.zeros(300))
        assert (colored.count, colored.full) == (min(2 * width + 1, 300), width == 299)
        keys = colored.keys.numpy()
        assert decompression._color(300, keys, most=colored.count - 1) is None
        assert decompression._color(300, keys, most=colored.count) is not None


class TestChoice:
    """``sparsity="auto"`` computes all rows where a pattern would not pay."""

    def test_few_elements_are_not_looked_at(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is prepared for it, which would take as long as their rows."""
        seen: list[int] = []
        monkeypatch.setattr(dense, "once_more", lambda find, f, x, always: seen.append((len(x), always)))
        for n in (511, 512):
            for layout in (torch.strided, torch.sparse_coo):
                ad.hessian(torch.sum, sample(n), sparsity="auto", layout=layout)
        assert seen == [(511, True), (512, False), (512, True)]

    def test_half_of_all_entries_is_few_for_a_result_that_is_sparse(self) -> None:
        assert decompression.find_coloring(lambda x: x.square().sum(), sample(2), always=True) is not None

    @pytest.mark.parametrize(("elements", "pays"), [(350_000, True), (349_999, False)])
    def test_an_entry_is_colored_as_long_as_70_elements_are_computed(
        self, elements: int, pays: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """... and finding one takes as long as 10; both may take a fifth of the time of all rows."""
        given: list[Any] = []
        diagonal = np.arange(1000) * 1001
        monkeypatch.setattr(decompression, "find_pattern", lambda *args: given.extend(args) or (diagonal, elements))
        found = decompression.find_coloring(torch.sum, sample(1000))
        assert given[2:] == [1000 / 4, 0.2 / 10]
        assert (found is not None) == pays

    @pytest.mark.parametrize(
        ("f", "n", "pays"),
        [
            (lambda x: (x[1:] * x[:-1]).sin().sum(), 1000, True),
            (lambda x: x[0] * x.sum() + x.pow(3).sum(), 1000, True),
            (lambda x: x.sum() ** 3, 1000, False),
            (lambda x: x[:500].sum() ** 3 + x.pow(3).sum(), 1000, False),
            (lambda x: (torch.where(C(600, 600) > 0.9, C(600, 600, shift=1.0), 0.0) @ x).sin().sum(), 600, False),
        ],
        ids=["chain", "arrow", "full", "half", "a tenth"],
    )
    def test_by_the_size_of_the_pattern(self, f: object, n: int, pays: bool) -> None:
        assert (decompression.find_coloring(f, sample(n)) is not None) == pays  # type: ignore[arg-type]


class ByNumPy(torch.autograd.Function):
    """sin, of which no operation is seen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.from_numpy(np.sin(x.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad_output * ByNumPy.apply(x + math.pi / 2)


class OfNeighbours(torch.autograd.Function):
    """Each element has the derivative of the next."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.square()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def vjp(ctx: Any, grad_output: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad_output.roll(1) * x


class InPartByNumPy(torch.autograd.Function):
    """x sin x, of which the operations see x times a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.from_numpy(np.sin(x.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad_output * (x.sin() + x * x.cos())


@pytest.mark.parametrize("function", [StraightThrough, ByNumPy, InPartByNumPy, OfNeighbours])
class TestFunctionsOfOthers:
    """The derivative of an ``autograd.Function`` need not be that of its operations."""

    @staticmethod
    def holds(f: Callable[[Tensor], Tensor]) -> None:
        x = sample(4)
        H = torch.autograd.functional.hessian(f, x)
        assert H.any()
        assert not ((H != 0) & ~hessian_sparsity(f, x).to_dense()).any()

    def test_no_entry_is_missing(self, function: Any) -> None:
        self.holds(lambda x: function.apply(x).pow(3).sum())
        self.holds(lambda x: function.apply(x.sin()[1:]).square().sum() + x[0] ** 3)

    def test_in_a_gradient(self, function: Any) -> None:
        def f(x: Tensor) -> Tensor:
            y = function.apply(x).pow(3).sum()
            return torch.autograd.grad(y, x, create_graph=True)[0].pow(3).sum()

        self.holds(f)

    def test_the_rest_keeps_its_structure(self, function: Any) -> None:
        f = lambda x: function.apply(x[:2]).square().sum() + x[2:].pow(3).sum()  # noqa: E731
        assert torch.equal(
            hessian_sparsity(f, sample(6)).to_dense(), torch.block_diag(C(2, 2) * 0 + 1, torch.eye(4)) > 0
        )

    def test_beside_one_with_the_derivative_of_its_operations(self, function: Any) -> None:
        """That keeps its structure."""
        f = lambda x: Cube.apply(x[2:]).square().sum() + function.apply(x[:2]).sum() * 0  # noqa: E731
        assert hessian_sparsity(f, sample(6)).to_dense()[2:, 2:].sum() == 4

    def test_the_function_is_left_as_it_was(self, function: Any) -> None:
        before = dict(vars(function))
        hessian_sparsity(lambda x: function.apply(x).sum(), sample(3))
        assert dict(vars(function)) == before


class TestLinearStructure:
    @pytest.mark.parametrize("name", FAMILIES)
    def test_of_a_matrix(self, name: str) -> None:
        n = 60
        A = torch.where(torch.from_numpy(np.roll(family(name, n), 5, 0)), sample(n, n) + 3, 0.0)
        found = linear_structure.structure(torch.mv, (A, x := sample(n)), {}, [x])
        assert found is not None
        entries = np.zeros((n, n), bool)
        entries[found] = True
        assert len(found[0]) == entries.sum()
        assert (entries == (A != 0).numpy()).all()

    def test_sums_that_cancel(self) -> None:
        A = torch.tensor([[1.0, -2.0, 1.0], [0.0, 1.0, -1.0]], dtype=torch.float64)
        found = linear_structure.structure(torch.mv, (A, x := sample(3)), {}, [x])
        assert found is not None
        assert sorted(zip(*found, strict=True)) == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2)]
