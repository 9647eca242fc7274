"""One random product by plain reverse mode finds the faults of the fast paths, and no faults where there are none."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

import torchad_ext as ad
from torchad_ext import _self_check, _torch_state
from torchad_ext._hessian import jacobian_rows, thresholds
from torchad_ext._hessian.random_product import RandomProduct

Function = Callable[[Any], Any]


def sample(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture(autouse=True)
def _nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    _self_check._paths.clear()
    monkeypatch.delenv("TORCHAD_EXT_STRICT", raising=False)
    yield
    _self_check._paths.clear()


def coupled(x: Tensor) -> Tensor:
    return (x.sin() * x.cumsum(0).cos()).sum() + x.square().mean() * x.sum()


def banded(x: Tensor) -> Tensor:
    return (x[1:].sin() * x[:-1].exp()).sum()


def of_points(x: Tensor) -> Tensor:
    return x.softmax(1).sin().sum(1)


def tall(x: Tensor) -> Tensor:
    return torch.outer(x, sample(80, seed=2).to(x)).sin()


def wide(x: Tensor) -> Tensor:
    return x.cumsum(0).sin()


# Of a point of 70 numbers.
TOOLS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "hessian": lambda x, **options: ad.hessian(coupled, x, **options),
    "diagonal": lambda x, **options: ad.hessian_diagonal(coupled, x, **options),
    "diagonal of a batch": lambda x, **options: ad.hessian_diagonal(of_points, x.view(7, 10), batched=True, **options),
    "jacobian": lambda x, **options: ad.jacobian(wide, x, **options),
    "tall jacobian": lambda x, **options: ad.jacobian(tall, x[:10], **options),
    "sparse": lambda x, **options: ad.hessian(banded, x, sparsity="auto", **options),
    "forward": lambda x, **options: ad.jacobian(wide, x, strategy="forward", **options),
    "forward over reverse": lambda x, **options: ad.hessian(coupled, x, strategy="forward-over-reverse", **options),
}


def break_rows(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """A fault of vmap: one row of a batch is off by a factor."""
    vmap = torch.func.vmap

    def faulty(function: Function, **options: Any) -> Function:
        def mapped(*batches: Any) -> Any:
            results = vmap(function, **options)(*batches)
            return (
                type(results)([spoiled(r) for r in results]) if isinstance(results, (tuple, list)) else spoiled(results)
            )

        def spoiled(result: Tensor) -> Tensor:
            factors = torch.ones(len(result), dtype=result.dtype)
            factors[len(result) // 2] = factor
            return result * factors.view(-1, *[1] * (result.dim() - 1))

        return mapped

    monkeypatch.setattr(torch.func, "vmap", faulty)
    monkeypatch.setattr(_torch_state, "_has_batch_levels", False)  # levels without torch.func.vmap


class TestFaults:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
    @pytest.mark.parametrize("name", TOOLS)
    def test_a_row_that_is_wrong_is_computed_again_with_one_warning(
        self, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        x = sample(70, dtype=dtype)
        expected = TOOLS[name](x, chunk_size=1)
        _self_check._paths.clear()
        break_rows(monkeypatch, 1.4)
        with pytest.warns(
            RuntimeWarning, match=r"the derivatives of test_random_product\.\w+ computed .*report"
        ) as found:
            result = TOOLS[name](x)
        assert sum(issubclass(warning.category, RuntimeWarning) for warning in found) == 1
        assert_close(result, expected)
        if name != "sparse":  # whose every call is checked
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert_close(TOOLS[name](x), expected)

    @pytest.mark.parametrize("name", TOOLS)
    def test_strict(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCHAD_EXT_STRICT", "1")
        break_rows(monkeypatch, 1.4)
        with pytest.raises(RuntimeError, match="differ from a random product"):
            TOOLS[name](sample(70))

    def test_unit_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x = sample(400)
        dense = jacobian_rows.dense_rows
        monkeypatch.setattr(thresholds, "_UNIT_NODES", 100)

        def faulty(results: Any, count: int) -> list[Tensor]:
            rows = dense(results, count)
            rows[0][count // 2] *= 0.6
            return rows

        monkeypatch.setattr(jacobian_rows, "dense_rows", faulty)
        with pytest.warns(RuntimeWarning, match="in batches"):
            result = ad.hessian(coupled, x)
        assert_close(result, ad.hessian(coupled, x, chunk_size=1))

    @pytest.mark.parametrize("scale", [1e-9, 1e9])
    def test_of_a_row_that_is_small_or_large_beside_the_others(
        self, scale: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scales = torch.ones(20, dtype=torch.float64)
        scales[10] = scale
        W = sample(20, 20, seed=3)
        f = lambda x: (W @ x).sin() * scales  # noqa: E731
        expected = ad.jacobian(f, sample(20), chunk_size=1)
        break_rows(monkeypatch, 1.4)
        with pytest.warns(RuntimeWarning, match="in batches"):
            assert_close(ad.jacobian(f, sample(20)), expected)

    @pytest.mark.parametrize("column", range(3))
    def test_in_a_column_that_is_small_or_large_beside_the_others(self, column: int) -> None:
        J = sample(5, 3) * torch.tensor([1e-5, 1.0, 1e5], dtype=torch.float64)
        wrong = J.clone()
        wrong[2, column] *= 1.4

        def product(rows: Tensor) -> tuple[RandomProduct, bool]:
            product = RandomProduct([sample(5)], [sample(3)])
            product.add(0, [rows])
            return product, product.agrees(lambda v: [v[0] @ J])

        (differing, agrees), (plain, plain_agrees) = product(wrong), product(J)
        assert plain_agrees
        assert not agrees
        assert differing.is_worse_than(plain)


STEPS: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.sin,
    lambda x: x.exp().clamp(max=1e4),
    lambda x: x * x.flip(0),
    lambda x: x.softmax(0),
    lambda x: x.cumsum(0),
    lambda x: torch.where(x > 0, x, 0.1 * x),
    lambda x: F.layer_norm(x, x.shape),
    lambda x: x * 1e6,
    lambda x: x * 1e-6,
    lambda x: (x * x).sqrt(),
    lambda x: x.float().double().to(x) if x.dtype == torch.float64 else x,
    lambda x: torch.linalg.vector_norm(x) * x,
    lambda x: x - x.detach(),
    lambda x: x.bfloat16().to(x),
    lambda x: x.log(),
    lambda x: torch.fft.fft(x.float()).abs().to(x),
    lambda x: sample(len(x), len(x), seed=4).to(x) @ x,
    lambda x: x.sort()[0].clamp_min(-1),
)


def random_function(seed: int) -> tuple[Function, Tensor]:
    """A chain of steps, whose elements are of very different size, and a point."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda n: int(torch.randint(n, (), generator=generator))  # noqa: E731
    chain = [STEPS[draw(len(STEPS))] for _ in range(1 + draw(4))]
    n = (4, 7, 20, 70)[draw(4)]
    dtype = (torch.float64, torch.float64, torch.float32, torch.float32, torch.float16, torch.bfloat16)[draw(6)]
    scales = 10.0 ** ((torch.rand(n, generator=generator) - 0.5) * (0, 4, 16)[draw(3)]).to(dtype)
    if dtype is torch.float16:
        scales = scales.clamp(1e-3, 1e3)
    return lambda x: functools.reduce(lambda y, step: step(y), chain, x) * scales, sample(n, seed=seed, dtype=dtype)


class TestNoFalseAlarm:
    @pytest.mark.parametrize("seeds", [range(60)])
    def test_of_random_functions(self, seeds: range) -> None:
        """Ill-scaled, with inf and nan, and rounded midway."""
        for seed in seeds:
            f, x = random_function(seed)
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="torchad_ext")
                with contextlib.suppress(RuntimeError):  # of a function that is not implemented for a dtype
                    ad.jacobian(f, x)
                    ad.hessian(lambda x, f=f: f(x).sum(), x)

    @pytest.mark.parametrize(
        "f",
        [lambda x: F.layer_norm(x, (4,)), lambda x: F.group_norm(x, 2), lambda x: x.softmax(-1)],
        ids=["layer_norm", "group_norm", "softmax"],
    )
    def test_of_derivatives_that_are_rounding_errors_alone(self, f: Function) -> None:
        """Sums that depend on nothing."""
        W = sample(4, 4, seed=3)
        for rows in (1, 3, 16):
            for x in sample(60, rows, 4):
                _self_check._paths.clear()
                with warnings.catch_warnings():
                    warnings.filterwarnings("error", message="torchad_ext")
                    ad.jacobian(lambda x: f(x @ W).sum(-1), x)
                    ad.hessian(lambda x: f(x @ W).sum(), x)
                    ad.hessian_diagonal(lambda x: f(x @ W).sum(), x)
                    ad.hessian_diagonal(lambda x: f(x @ W).sum(-1).abs(), x, batched=True)


class TestWhatACheckLeavesAlone:
    @pytest.mark.parametrize("name", TOOLS)
    def test_random_numbers(self, name: str) -> None:
        TOOLS[name](sample(70))  # the graph is known, or not
        for _ in range(2):
            state = torch.get_rng_state()
            TOOLS[name](sample(70))
            assert torch.equal(torch.get_rng_state(), state)
            _self_check._paths.clear()

    @pytest.mark.parametrize("strategy", ["reverse", "forward"])
    def test_a_function_that_draws_random_numbers(self, strategy: str) -> None:
        x = sample(20)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for height in (20, 200):
                W = sample(20, height)
                state = torch.get_rng_state()
                J = ad.jacobian(lambda x, W=W: F.dropout(x @ W), x, strategy=strategy)
                after = torch.get_rng_state()
                torch.set_rng_state(state)
                F.dropout(x @ W)
                assert torch.equal(torch.get_rng_state(), after)
                kept = J.ne(0).any(1)
                assert_close(J[kept], 2 * W.T[kept])

    @pytest.mark.parametrize("strategy", ["reverse-over-reverse", "forward-over-reverse"])
    @pytest.mark.parametrize("layout", [torch.strided, torch.sparse_coo], ids=str)
    @pytest.mark.parametrize("n", [4, 300])
    def test_a_sparse_hessian_draws_random_numbers_once(self, n: int, layout: torch.layout, strategy: Any) -> None:
        masks, states = [], []

        def f(x: Tensor) -> Tensor:
            masks.append(torch.rand(n, dtype=x.dtype) < 0.5)
            states.append(torch.get_rng_state())
            return (x * masks[-1]).pow(3).sum() + (x.sum() if x.sum() < 0 else x.sum() ** 2)

        for x in (-sample(n).abs(), sample(n).abs()):  # a diagonal, and a full matrix
            masks.clear(), states.clear()
            H = ad.hessian(f, x, sparsity="auto", layout=layout, strategy=strategy)
            assert torch.equal(torch.get_rng_state(), states[0])
            assert len(masks) == 1 or "forward" in strategy
            assert_close(H.to_dense(), torch.diag(6 * x * masks[0]) + 2 * (x.sum() > 0))

    def test_f_runs_once(self) -> None:
        calls = []
        for f in (coupled, tall, wide):
            calls.clear()
            ad.jacobian(lambda x, f=f: (calls.append(1), f(x))[1], sample(40))
            assert len(calls) == 1
        ad.hessian(lambda x: (calls.append(1), coupled(x))[1], sample(40))
        assert len(calls) == 2

    def test_the_result_is_differentiable(self) -> None:
        x = sample(20).requires_grad_()
        grad = torch.autograd.grad(ad.hessian(lambda x: x.pow(4).sum(), x).sum(), x)[0]
        assert_close(grad, 24 * x.detach())

    def test_its_share_of_the_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 0.0
        monkeypatch.setattr(_self_check.time, "perf_counter", lambda: now)
        path, checks = _self_check.FastPath(), 0
        for _ in range(1000):
            with path.running():
                now += 1
                if path.is_due:
                    checks += 1
                    with path.checking():
                        now += 1
        assert 15 < checks < 25  # of a cost like that of the tool itself
