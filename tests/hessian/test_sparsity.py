"""Patterns by propagation, star coloring and recovery: against dense Hessians, brute force and known counts."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import mmap
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_derivatives import Cubed, chains, composed, sample
from torch import Tensor, nn
from torch.testing import assert_close

import torchad_ext as ad
from torchad_ext import SparsityError, _self_check, hessian_sparsity
from torchad_ext._hessian import decompression, thresholds
from torchad_ext._hessian.decompression import coloring_of
from torchad_ext._hessian.pullback import GraphPullback

Function = Callable[[Tensor], Tensor]
BAND = sample(6, 6).tril(1).triu(-1)


@pytest.fixture(autouse=True)
def _small_patterns_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thresholds, "FEW_ELEMENTS", 0)
    monkeypatch.setattr(thresholds, "SHARE", math.inf)
    monkeypatch.setattr(thresholds, "SAVING", 2)


def pattern_of(f: Function, x: Tensor) -> Tensor:
    return torch.autograd.functional.hessian(f, x) != 0


class Products:
    """Counts the Hessian-vector products that are taken, the one that checks included."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        pull_rows = GraphPullback.pull_rows
        pull_without_graph = GraphPullback.pull_without_graph

        def of_rows(pullback: Any, cotangents: Any) -> Any:
            self.count += len(cotangents[0])
            return pull_rows(pullback, cotangents)

        def of_one(pullback: Any, cotangents: Any) -> Any:
            self.count += 1
            return pull_without_graph(pullback, cotangents)

        monkeypatch.setattr(GraphPullback, "pull_rows", of_rows)
        monkeypatch.setattr(GraphPullback, "pull_without_graph", of_one)


# The patterns that are exact.
EXACT: dict[str, Function] = {
    "elementwise": lambda x: (x.sin() * x.exp()).sum(),
    "linear": lambda x: (BAND.to(x.device) @ x).sum() - x.mean(),
    "neighbours": lambda x: (x[:-1].sin() * x[1:].exp()).sum(),
    "square of differences": lambda x: (x[1:] - x[:-1]).square().sum(),
    "quadratic form": lambda x: x @ BAND.to(x.device) @ x,
    "ad.quadratic_form": lambda x: ad.quadratic_form(x, BAND.to(x.device)) + ad.sin(x).sum(),
    "layer": lambda x: (BAND.to(x.device) @ x).tanh().sum(),
    "batch of blocks": lambda x: x.view(3, 2).softmax(1)[:, 0].square().sum(),
    "arrow": lambda x: x[0] * x.sum() + x.pow(3).sum(),
    "bilinear": lambda x: (x[:3] * x[3:]).sum(),
    "gather": lambda x: (x[torch.tensor([2, 0, 1])] * x[:3]).sum(),
    "cat": lambda x: (torch.cat([x[3:], x[:3].flip(0)]) * x).sum(),
    "padded": lambda x: (torch.nn.functional.pad(x, (1, 1), value=2.0)[2:] * x).sum(),
    "where": lambda x: torch.where(torch.arange(6, device=x.device) < 2, x, 0.0).exp().sum(),
    "in place": lambda x: x.clone().mul_(x).sum(),
    "in place on a view": lambda x: assigned(x.clone(), 2).square().sum(),
    "zeroed": lambda x: zeroed(x.clone()).square().sum(),
    "logsumexp": lambda x: x[:3].logsumexp(0) + x[3:].exp().prod(),
    "matrices": lambda x: (x[:4].view(2, 2) @ x[2:].view(2, 2)).sum(),
    "Function": lambda x: Cubed.apply(x[1:] - x[:-1]).sum(),
    "constant": lambda x: x.new_ones(()),
    "gradient": lambda x: torch.autograd.grad((x[1:] * x[:-1] ** 2).sum(), x, create_graph=True)[0].square().sum(),
    "complex view": lambda x: torch.view_as_complex(x.view(3, 2)).pow(3).real.sum(),
    "complex view of a part": lambda x: torch.view_as_complex(x[2:].view(2, 2)).pow(3).real.sum() + x.square().sum(),
    "complex product": lambda x: (torch.view_as_complex(x.view(3, 2)).conj() * (1 + 1j)).pow(3).imag.sum(),
    "complex matrices": lambda x: (
        (torch.view_as_complex(x.view(3, 2)) @ (1j * torch.eye(3, dtype=x.dtype, device=x.device))).pow(3).real.sum()
    ),
    "multiplied by i": lambda x: (1j * x + 1).pow(3).real.sum(),
    "polar": lambda x: torch.polar(x[:3], x[3:]).pow(2).real.sum(),
    "complex in place": lambda x: squared_as_complex(x.clone()).pow(3).sum(),
    "real part in place": lambda x: without_real_part(torch.view_as_complex(x.clone().view(3, 2))).pow(3).imag.sum(),
    "sizes of complex numbers": lambda x: torch.complex(x[:3], x[3:]).abs().sum(),
    "directions of complex numbers": lambda x: torch.view_as_real(torch.complex(x[:3], x[3:]).sgn()).sum(),
    "fft of rows": lambda x: torch.fft.rfft(x.view(2, 3)).abs().pow(4).sum(),
    "fft and back": lambda x: torch.fft.ifft(torch.fft.fft(x.view(2, 3)) * BAND.to(x.device)[0, :3]).real.pow(3).sum(),
}


def assigned(x: Tensor, i: int) -> Tensor:
    x[i:].mul_(x[0].clone())
    return x


def zeroed(x: Tensor) -> Tensor:
    x[:2].zero_()
    x[2] = 1.0
    return x


def squared_as_complex(x: Tensor) -> Tensor:
    torch.view_as_complex(x.view(-1, 2)).square_()
    return x


def bits_kept(x: Tensor) -> Tensor:
    halves = x.detach().view(torch.float32)[1::2]
    halves.copy_(halves.clone())
    return x


def without_real_part(z: Tensor) -> Tensor:
    torch.view_as_real(z)[..., 0].zero_()
    return z


class TestPattern:
    @pytest.mark.parametrize("name", EXACT)
    def test_is_exact(self, name: str, device: str) -> None:
        x = sample(6, device=device)
        found = hessian_sparsity(EXACT[name], x)
        assert found.layout is torch.sparse_coo
        assert found.is_coalesced()
        assert torch.equal(found.to_dense(), pattern_of(EXACT[name], x))

    @settings(max_examples=30, deadline=None)
    @given(chain=chains)
    def test_covers_every_entry(self, chain: list[str]) -> None:
        x = sample(6)
        found = hessian_sparsity(composed(chain), x).to_dense()
        assert (found | (torch.func.hessian(composed(chain))(x).abs() < 1e-12)).all()
        assert torch.equal(found, found.T)

    @pytest.mark.parametrize(
        "f",
        [
            lambda x: torch.linalg.inv(torch.eye(3, device=x.device) + x.view(2, 3).T @ x.view(2, 3)).sum(),
            lambda x: torch.nn.functional.conv1d(x.view(1, 1, 6), x[:2].view(1, 1, 2)).exp().sum(),
            lambda x: x.sort()[0][:2].prod(),
            lambda x: torch.func.grad(lambda y: y.pow(3).sum())(x).prod(),
            lambda x: x.to(torch.float32).sin().double().prod(),
            lambda x: x.to_sparse().sum() ** 2,
            lambda x: torch.linalg.eigvals(x[:4].view(2, 2) + x[2:].view(2, 2)).pow(2).sum().real,
            lambda x: bits_kept(x.clone()).prod(),
        ],
        ids=["inverse", "convolution", "sort", "gradient inside", "rounded", "sparse", "eigenvalues", "bits"],
    )
    def test_covers_unknown_operations(self, f: Function, device: str) -> None:
        x = sample(6, device=device)
        expected = torch.autograd.functional.hessian(f, x) != 0
        assert (hessian_sparsity(f, x).to_dense() | ~expected).all()

    @pytest.mark.parametrize(
        ("f", "entries"),
        [
            (lambda x, c: (c * x * x.roll(1)).sum(), 12),
            (lambda x, c: ((c + 1).log() * x * x.roll(1)).sum(), 12),
            (lambda x, c: c @ (x * x.roll(1)), 12),
            (lambda x, c: torch.addcmul(x, c, x.roll(1)).square().sum(), 18),
            (lambda x, c: torch.stack([c, x]).prod(0).square().sum(), 6),
            (lambda x, c: (torch.zeros(6, 6).to(x).copy_(c) @ x).sin().sum(), 36),
            (lambda x, c: (torch.diag(c) @ x).sin().sum(), 6),
            (lambda x, c: ((torch.eye(6).to(x) * c) @ x).sin().sum(), 6),
            (lambda x, c: (torch.complex(c, c) * torch.complex(x, x.roll(1))).abs().square().sum(), 18),
        ],
        ids="product computed vector addcmul stacked written diagonal masked complex".split(),
    )
    def test_what_f_captures_may_change(self, f: Callable[..., Tensor], entries: int, device: str) -> None:
        x, c = sample(6, device=device), torch.zeros(6, dtype=torch.float64, device=device, requires_grad=True)
        assert hessian_sparsity(lambda x: f(x, c), x)._nnz() == entries
        constant = c.detach()
        expected = pattern_of(lambda x: f(x, constant), x)
        assert torch.equal(hessian_sparsity(lambda x: f(x, constant), x).to_dense(), expected)
        with torch.no_grad():
            assert torch.equal(hessian_sparsity(lambda x: f(x, c), x).to_dense(), expected)

    def test_the_global_state_stays(self) -> None:
        x = sample(4).requires_grad_()
        state = torch.get_rng_state()
        ad.hessian(lambda x: x.pow(3).sum(), x, sparsity="auto")
        assert torch.equal(state, torch.get_rng_state())
        assert torch.equal(x, sample(4))

    def test_x_is_no_tensor(self) -> None:
        for x, said in (
            (1.0, "takes tensors for x; got float"),
            (torch.arange(3), "takes floating-point tensors for x; got torch.int64"),
            (torch.zeros(3).to(torch.float8_e5m2), "no arithmetic for x of torch.float8_e5m2; see x.float()"),
        ):
            with pytest.raises(TypeError, match=said):
                hessian_sparsity(lambda x: x, x)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("name", "find"),
        [("hessian_sparsity", hessian_sparsity), ("hessian", lambda f, x: ad.hessian(f, x, sparsity="auto"))],
    )
    def test_f_has_no_single_value(self, name: str, find: Callable[[Any, Tensor], Tensor]) -> None:
        x = sample(3)
        with pytest.raises(ValueError, match=rf"torchad_ext.{name} takes f with a value without dim.*got shape \[3\]"):
            find(lambda x: x.square(), x)
        for value, got in ((lambda x: 1.0, "float"), (lambda x: x.sum() > 0, "torch.bool")):
            with pytest.raises(TypeError, match=rf"torchad_ext.{name} takes .*tensors for the value of f; got {got}"):
                find(value, x)


def symmetric(n: int, edges: list[tuple[int, int]]) -> Tensor:
    pattern = torch.eye(n, dtype=torch.bool)
    for i, j in edges:
        pattern[i, j] = pattern[j, i] = True
    return pattern


class TestColouring:
    @settings(max_examples=50, deadline=None)
    @given(data=st.data(), n=st.integers(1, 9))
    def test_is_a_star_coloring(self, data: st.DataObject, n: int) -> None:
        pairs = list(itertools.combinations(range(n), 2))
        pattern = symmetric(n, data.draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else [])
        colors = coloring_of(pattern, torch.zeros(n)).colors.tolist()
        for i, j in pattern.fill_diagonal_(False).nonzero().tolist():
            assert colors[i] != colors[j]
        for path in itertools.permutations(range(n), 4):
            if all(pattern[i, j] for i, j in itertools.pairwise(path)):
                assert len({colors[i] for i in path}) > 2

    @settings(max_examples=30, deadline=None)
    @given(data=st.data(), n=st.integers(1, 9))
    def test_recovers_every_symmetric_matrix(self, data: st.DataObject, n: int) -> None:
        pairs = list(itertools.combinations(range(n), 2))
        pattern = symmetric(n, data.draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else [])
        H = torch.where(pattern, sample(n, n) + sample(n, n).T, 0.0)
        colored = coloring_of(pattern, H[0])
        values = colored.recover(colored.seeds(H.dtype) @ H)
        assert torch.equal(colored.matrix(values, torch.Size([n]), torch.strided), H)

    @pytest.mark.parametrize(
        ("f", "count"),
        [
            (lambda x: x.pow(3).sum(), 1 + 1),
            (lambda x: (x[:-1].sin() * x[1:].exp()).sum(), 3 + 1),
            (lambda x: (x[:-2] * x[1:-1] * x[2:]).sum(), 5 + 1),
            (lambda x: x.view(-1, 4).prod(1).sum(), 4 + 1),
            (lambda x: x[-1] * x.square().sum(), 2 + 1),
            (lambda x: x.prod(), 40 + 1),
            (lambda x: x[:30].prod() + x.square().sum(), 40 + 1),
        ],
        ids=["diagonal", "tridiagonal", "pentadiagonal", "blocks", "arrow", "full", "more than half"],
    )
    @pytest.mark.parametrize("layout", [torch.strided, torch.sparse_coo], ids=str)
    def test_one_product_for_each_color_and_one_that_checks(
        self, f: Function, count: int, layout: torch.layout, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        products = Products(monkeypatch)
        monkeypatch.setattr(_self_check, "_paths", type(_self_check._paths)())  # no graph is known
        x = sample(40)
        result = ad.hessian(f, x, sparsity="auto", layout=layout)
        assert products.count == count
        assert result.layout is layout
        assert_close(result.to_dense(), torch.func.hessian(f)(x))


@pytest.mark.parametrize(
    ("count", "dtype", "where", "pages"),
    [
        (2**21 - 1, torch.float64, "cpu", 0),
        (2**21, torch.float64, "cpu", 1),
        (2**21 + 1, torch.float64, "cpu", 1),
        (2**22 - 1, torch.float32, "cpu", 0),
        (2**22, torch.float32, "cpu", 1),
        (2**22, torch.float64, "meta", 0),
    ],
)
def test_the_operating_system_gives_16_megabytes_of_zeros(
    count: int, dtype: torch.dtype, where: str, pages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """... on the CPU, which takes memory for what is written alone."""
    made, mapped = [], mmap.mmap
    monkeypatch.setattr(mmap, "mmap", lambda *args, **kwargs: made.append(mapped(*args, **kwargs)) or made[0])
    zeros = decompression._zeros(count, torch.ones(1, dtype=dtype, device=where))
    assert (len(zeros), zeros.dtype, zeros.device.type, len(made)) == (count, dtype, where, pages)
    assert where == "meta" or not zeros.any()


class TestHessian:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
    @pytest.mark.parametrize("given", ["auto", "dense", "sparse"])
    def test_results(self, given: str, dtype: torch.dtype, device: str) -> None:
        x = sample(3, 5, device=device, dtype=dtype)
        f = lambda x: (x[:, :-1].sin() * x[:, 1:].exp()).sum()  # noqa: E731
        expected = torch.func.hessian(f)(x)
        pattern = expected.view(15, 15) != 0
        sparsity: Any = {"auto": "auto", "dense": pattern, "sparse": pattern.to_sparse_csr()}[given]
        assert_close(ad.hessian(f, x, sparsity=sparsity), expected)
        sparse = ad.hessian(f, x, sparsity=sparsity, layout=torch.sparse_coo, chunk_size=2)
        assert sparse.is_coalesced()
        assert_close(sparse.to_dense(), expected.view(15, 15))

    @pytest.mark.parametrize("layout", [torch.strided, torch.sparse_coo])
    def test_gradients_in_weights_of_zero(self, layout: torch.layout, device: str) -> None:
        x, c = sample(12, device=device), torch.zeros(12, dtype=torch.float64, device=device, requires_grad=True)
        H = ad.hessian(lambda x: (c * x * x.roll(1)).sum(), x, sparsity="auto", layout=layout).to_dense()
        assert not H.any()
        for i in range(12):
            (gradient,) = torch.autograd.grad(H[i, i - 1], c, retain_graph=True)
            assert_close(gradient, torch.eye(12, dtype=torch.float64, device=device)[i])

    @pytest.mark.parametrize("norm", [nn.BatchNorm1d(4), nn.InstanceNorm1d(4, track_running_stats=True)], ids=str)
    @pytest.mark.parametrize("find", [hessian_sparsity, functools.partial(ad.hessian, sparsity="auto")])
    def test_buffers_are_written_once(self, find: Callable[[Any, Tensor], Tensor], norm: nn.Module) -> None:
        norm, x = copy.deepcopy(norm).double(), sample(5, 4, 3)
        before = copy.deepcopy(norm.state_dict())
        norm(x)
        after = copy.deepcopy(norm.state_dict())
        norm.load_state_dict(before)
        find(lambda x: norm(x).exp().sum(), x)
        assert_close(norm.state_dict(), after)

    def test_half_a_pattern_will_do(self) -> None:
        x = sample(5)
        f = lambda x: (x[:-1] * x[1:].sin()).sum()  # noqa: E731
        assert_close(ad.hessian(f, x, sparsity=pattern_of(f, x).triu(1)), torch.func.hessian(f)(x))

    @pytest.mark.parametrize("missing", [(0, 1), (2, 3), (0, 4)])
    def test_a_pattern_that_lacks_entries_raises(self, missing: tuple[int, int], device: str) -> None:
        x = sample(5, device=device)
        f = lambda x: x.prod()  # noqa: E731
        pattern = torch.ones(5, 5, dtype=torch.bool, device=device)
        pattern[missing] = pattern[missing[::-1]] = False
        with pytest.raises(
            SparsityError, match=r"outside of the sparsity pattern of 23 entries.*Give a larger pattern"
        ):
            ad.hessian(f, x, sparsity=pattern)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
    def test_neither_an_offset_nor_large_entries_hide_what_is_missing(self, dtype: torch.dtype) -> None:
        x = sample(6, dtype=dtype)
        for f in (lambda x: 1e6 + x[0] * x[5], lambda x: x.square().sum() + 1e3 * torch.finfo(dtype).eps * x[0] * x[5]):
            with pytest.raises(SparsityError):
                ad.hessian(f, x, sparsity=torch.eye(6, dtype=torch.bool))

    def test_nan_in_the_check_alone_raises(self) -> None:
        v, nan = sample(3), torch.tensor([float("nan"), 0, 0])
        diagonal = coloring_of(torch.eye(3, dtype=torch.bool), v)
        diagonal.check(torch.stack([1 + nan, v + nan]), v, lambda seeds: seeds, is_found=False)
        with pytest.raises(SparsityError):
            diagonal.check(torch.stack([1 + 0 * v, v + nan]), v, lambda seeds: seeds, is_found=False)

    def test_nan_in_one_row_hides_nothing_in_another(self) -> None:
        v, entries = sample(3), torch.tensor([float("nan"), 1, 1])
        diagonal = coloring_of(torch.eye(3, dtype=torch.bool), v)
        another = entries + torch.tensor([0, 0, 1e-6])
        diagonal.check(torch.stack([entries, v * entries]), v, lambda seeds: seeds * entries, is_found=False)
        with pytest.raises(SparsityError):
            diagonal.check(torch.stack([entries, v * another]), v, lambda seeds: seeds * another, is_found=False)

    def test_zeros_pass_the_check(self) -> None:
        v = sample(3)
        coloring_of(torch.eye(3, dtype=torch.bool), v).check(torch.zeros(2, 3).to(v), v, torch.zeros_like, False)

    def test_rounding_is_that_of_products_with_vectors_as_short(self) -> None:
        v = 1e-10 * sample(3)
        diagonal = coloring_of(torch.eye(3, dtype=torch.bool), v)
        with pytest.raises(SparsityError):
            diagonal.check(
                torch.stack([1 + 0 * v, v * (1 + 1e-6)]), v, lambda seeds: seeds * (1 + 1e-6), is_found=False
            )

    def test_a_function_that_is_not_its_operations_raises(self) -> None:
        class Coupled(Cubed):
            @staticmethod
            def backward(ctx: Any, grad_output: Tensor) -> Tensor:
                return grad_output * ctx.saved_tensors[0].sum()

        with pytest.raises(SparsityError, match=r"pattern of 4 entries that was found.*Leave sparsity out"):
            ad.hessian(lambda x: Coupled.apply(x).sum(), sample(4), sparsity="auto")

    def test_infinite_entries_stay(self) -> None:
        x = torch.tensor([0.0, 1.0], dtype=torch.float64)
        result = ad.hessian(lambda x: x.sqrt().sum(), x, sparsity="auto")
        assert_close(result.diagonal(), torch.func.hessian(lambda x: x.sqrt().sum())(x).diagonal(), equal_nan=True)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
    def test_a_hessian_of_rounding_errors_passes_the_check(self, dtype: torch.dtype, device: str) -> None:
        x = sample(50, device=device, dtype=dtype)
        result = ad.hessian(lambda x: (x.sin().square() + x.cos().square()).sum(), x, sparsity="auto")
        assert result.abs().max() < 10 * torch.finfo(dtype).eps

    @pytest.mark.parametrize(
        "f",
        [
            lambda x: (x[1:].float().sin() * x[:-1].float().exp()).sum().double(),
            lambda x: (x[1:] * x[:-1]).sum() + 1e10 * (x[0].sin().square() + x[0].cos().square()),
            lambda x: torch.nn.functional.layer_norm(x.view(-1, 4), [4]).square().sum(),
            lambda x: torch.nn.functional.batch_norm(x.view(10, 4).T, None, None, training=True).pow(2).sum(),
        ],
        ids=["float32 midway", "one entry of rounding errors", "layer norm", "batch norm"],
    )
    def test_rounding_midway_passes_the_check(self, f: Function) -> None:
        pattern = torch.eye(10, dtype=torch.bool).repeat_interleave(4, 0).repeat_interleave(4, 1)
        band = sample(40, 40).tril(1).triu(-1) != 0
        for seed in range(5):
            x = torch.randn(40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            ad.hessian(f, x, sparsity=pattern | band)

    def test_huge_rounding_errors_in_a_full_pattern(self) -> None:
        x = torch.tensor([800.0, -800.0, 1e-300], dtype=torch.float64)
        expected = torch.func.hessian(torch.prod)(x)
        assert_close(ad.hessian(torch.prod, x, sparsity="auto"), expected)
        assert_close(ad.hessian(torch.prod, x, sparsity=torch.ones(3, 3, dtype=torch.bool)), expected)

    def test_empty(self) -> None:
        assert ad.hessian(lambda x: x.square().sum(), torch.zeros(0), sparsity="auto").shape == (0, 0)
        assert coloring_of(torch.ones(0, 0, dtype=torch.bool), torch.zeros(0)).count == 0

    def test_errors(self) -> None:
        x, f = sample(3), lambda x: x.square().sum()
        for pattern, message in (
            ("all", "got 'all'"),
            (True, "got True"),
            (torch.ones(3, 3), r"bool tensor of shape \[3, 3\].*got torch.float32 of shape \[3, 3\]"),
            (torch.ones(4, 4, dtype=torch.bool), r"x having 3 elements; got torch.bool of shape \[4, 4\]"),
            (torch.ones(2, 3, dtype=torch.bool), r"x having 3 elements; got torch.bool of shape \[2, 3\]"),
        ):
            with pytest.raises(ValueError, match=message):
                ad.hessian(f, x, sparsity=pattern)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="with sparsity takes one tensor for x; got a pytree"):
            ad.hessian(lambda xs: xs[0].sum(), (x,), sparsity="auto")
        with pytest.raises(ValueError, match="leave sparsity out there"):
            torch.func.vmap(lambda x: ad.hessian(f, x, sparsity="auto"))(sample(2, 3))
        with pytest.raises(ValueError, match=r"torch.sparse_coo and sparsity=None; layout is torch.strided, or"):
            ad.hessian(f, x, layout=torch.sparse_coo)
