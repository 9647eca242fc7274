"""The check of a sweep by a random sum: it finds wrong rules and functions that mix points, and nothing else."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import torchad_ext as ad
from torchad_ext import _self_check
from torchad_ext._forward import partials as module
from torchad_ext._forward.jets import JetSweep

pytestmark = pytest.mark.filterwarnings("error:torchad_ext")
Function = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def _nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHAD_EXT_STRICT", raising=False)
    monkeypatch.setattr(_self_check, "_paths", type(_self_check._paths)())


def points(n: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(n, 2, dtype=dtype, generator=torch.Generator().manual_seed(0)) + 0.2


MANY = 5000  # points, of which some are checked


def product(x: Tensor) -> Tensor:
    return torch.einsum("ni,ni->ni", x.sin(), x.exp())


@pytest.fixture
def wrong_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule of Leibniz that lacks the last of its terms."""
    terms = JetSweep._terms
    monkeypatch.setattr(
        JetSweep, "_terms", lambda self, a, n: list(terms(self, a, n))[: -1 if a > 1 and n > 1 else None]
    )


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The checks that were made."""
    made: list[Any] = []
    of = module.RandomSum
    monkeypatch.setattr(module, "RandomSum", lambda *args: made.append(args) or of(*args))
    return made


@pytest.mark.usefixtures("wrong_products")
class TestWrongRules:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("n", [6, MANY])
    def test_numbers_are_right_after_a_warning(self, n: int, dtype: torch.dtype) -> None:
        x = points(n, dtype)
        for again in (False, True):
            if again:
                (u_xx,) = ad.partials(product, x, ["xx"], names="tx")
            else:
                with pytest.warns(RuntimeWarning, match=r"partials: .*product computed in one sweep differ"):
                    (u_xx,) = ad.partials(product, x, ["xx"], names="tx")
            expected = torch.stack([torch.zeros_like(x[:, 1]), 2 * x[:, 1].exp() * x[:, 1].cos()], -1)
            assert_close(u_xx, expected)

    def test_the_result_can_be_trained_on(self) -> None:
        x = points().requires_grad_()
        with pytest.warns(RuntimeWarning, match="those of nested autograd"):
            (u_xx,) = ad.partials(product, x, ["xx"], names="tx")
        (slope,) = torch.autograd.grad(u_xx.sum(), x)
        assert_close(slope[:, 1], 2 * x[:, 1].exp() * (x[:, 1].cos() - x[:, 1].sin()))

    def test_one_wrong_output_of_many_shows(self) -> None:
        f = lambda x: torch.cat([x, x.sin(), x.exp(), product(x)], -1)  # noqa: E731
        with pytest.warns(RuntimeWarning, match="report it"):
            ad.partials(f, points(), ["xx"], names="tx")

    def test_of_derivatives_that_cancel(self) -> None:
        f = lambda x: sum(torch.einsum("n,n->n", y, y) for y in (x[:, 1].sin(), x[:, 1].cos()))  # noqa: E731
        for x in (points(), torch.zeros(6, 2, dtype=torch.float64)):
            with pytest.warns(RuntimeWarning, match="report it"):
                ad.partials(f, x, ["xx"], names="tx")
            _self_check._paths.clear()

    def test_other_sweeps(self) -> None:
        with pytest.warns(RuntimeWarning, match=r"taylor: the derivatives"):
            c = ad.taylor(product, points(), torch.ones(2, dtype=torch.float64), 2)
        assert_close(c[2], points().exp() * points().cos())
        with pytest.warns(RuntimeWarning, match=r"bilaplacian: the derivatives"):
            ad.bilaplacian(product, points())

    def test_strict(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCHAD_EXT_STRICT", "1")
        with pytest.raises(RuntimeError, match="report it"):
            ad.partials(product, points(), ["xx"], names="tx")


class TestFunctionsThatMixPoints:
    @pytest.mark.parametrize(
        "f",
        [
            lambda x: x - x.mean(0),
            lambda x: x.flip(0) * x,
            lambda x: x @ x.T,
            lambda x: x.softmax(0),
            lambda x: x.cumsum(0),
        ],
    )
    def test_are_named(self, f: Function) -> None:
        with pytest.raises(ValueError, match="f mixes points"):
            ad.partials(f, points(), ["x", "xx"], names="tx")

    @pytest.mark.parametrize("n", [2, 3, 7])
    @pytest.mark.parametrize("f", [lambda x: x.flip(0).exp(), lambda x: x.roll(1, 0).exp(), lambda x: x - x.mean(0)])
    def test_each_time(self, f: Function, n: int) -> None:
        for _ in range(5):
            with pytest.raises(ValueError, match="f mixes points"):
                ad.partials(f, points(n), ["x"], names="tx")

    @pytest.mark.parametrize(
        ("f", "mixed"),
        [
            (lambda x: (x - x.mean(1, keepdim=True)).sin(), lambda x: (x - x.mean(0, keepdim=True)).sin()),
            (lambda x: x.sum(dim=(1,)).exp(), lambda x: x.sum(dim=(0,)).exp().sum().expand(6)),
            (lambda x: torch.einsum("ni,ni->n", x, x), lambda x: torch.einsum("ni,mi->n", x, x)),
            (lambda x: ad.softmax(x, 1), lambda x: ad.softmax(x, 0)),
            (nn.Linear(2, 2).double(), lambda x: torch.ones(6, 6).double() @ x),
        ],
    )
    def test_after_another_function_of_the_same_operations(self, f: Function, mixed: Function) -> None:
        for _ in range(3):
            ad.partials(f, points(), ["x"], names="tx")
        with pytest.raises(ValueError, match="f mixes points"):
            ad.partials(mixed, points(), ["x"], names="tx")

    @pytest.mark.parametrize("f", [lambda x: x - x.mean(0), lambda x: x.flip(0) * x, lambda x: x / x.amax(0)])
    @pytest.mark.parametrize("x", [points(MANY), torch.cartesian_prod(*[torch.linspace(0, 1, 70).double()] * 2)])
    def test_among_many(self, x: Tensor, f: Function) -> None:
        with pytest.raises(ValueError, match="f mixes points"):
            ad.partials(f, x, ["x", "xx"], names="tx")


class TestNoFalseAlarm:
    @pytest.mark.parametrize(
        ("f", "second"),
        [
            (lambda x: (x + 1) ** x, [[2.0, 0.0]] * 3),  # PyTorch: 1
            (lambda x: x.relu(), [[0.0, 0.0]] * 3),
            (lambda x: x.norm(dim=-1) ** 2, [2.0] * 3),
        ],
    )
    def test_at_kinks(self, f: Function, second: list[Any]) -> None:
        (u_tt,) = ad.partials(f, torch.zeros(3, 2, dtype=torch.float64), ["tt"], names="tx")
        assert_close(u_tt, torch.tensor(second, dtype=torch.float64))

    def test_of_a_function_that_gives_another_result_each_time(self) -> None:
        calls = []
        f = lambda x: x.sin() * (calls.append(x) or len(calls))  # noqa: E731
        (u_x,) = ad.partials(f, points(), ["x"], names="tx")
        assert_close(u_x[:, 1], points()[:, 1].cos())

    @pytest.mark.parametrize("write", [lambda y, x: y.add_(x), lambda y, x: y.unbind(-1)[1].mul_(x[:, 0])])
    def test_of_writes_that_pytorch_does_not_differentiate(self, write: Callable[[Tensor, Tensor], Any]) -> None:
        def f(x: Tensor) -> Tensor:
            y = x.exp()  # which its gradient reads
            write(y, x)
            return y[:, 1]

        x = points()
        with pytest.raises(RuntimeError, match="inplace"):
            torch.autograd.grad(f(x.requires_grad_()).sum(), x)
        value, u_x = ad.partials(f, x.detach(), ["", "x"], names="tx")
        plain = torch.func.vmap(torch.func.jacfwd(lambda x: f(x.unsqueeze(0))[0]))(x.detach())
        assert_close((value, u_x), (f(x.detach()), plain[:, 1]))

    def test_in_float32_at_order_six(self) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
        ad.partials(model, points(200, torch.float32), ["x" * 6, "ttxx"], names="tx")

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize(
        "f",
        [
            lambda x: (50 * x).logsumexp(-1),
            lambda x: (50 * x).softmax(-1)[:, 0],
            lambda x: nn.functional.silu(30 * x).sum(-1),
            lambda x: torch.tanh(30 * x[:, 0]) + x[:, 1] ** 2,
            lambda x: torch.sigmoid(100 * x[:, 0]) * x[:, 1].sin(),
        ],
        ids=["logsumexp", "softmax", "silu", "tanh", "sigmoid"],
    )
    def test_of_a_steep_function_that_is_flat_at_most_points(self, f: Function, seed: int, dtype: torch.dtype) -> None:
        """Where 1 - tanh² and the like have no digits in nested autograd, and are rounded alike at points beside."""
        x = 2 * torch.rand(1000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 1
        ad.partials(f, x.to(dtype), ["t", "x", "tt", "tx", "ttx", "ttxx"], names="tx")

    def test_of_derivatives_that_cancel(self) -> None:
        """Σ |FFT|² is a sum of squares, and its mixed derivatives are 0, or a rounding of their terms."""
        f = lambda x: torch.fft.fft(torch.cat([x, x.sin()], -1)).abs().square().sum(-1)  # noqa: E731
        for dtype in (torch.float32, torch.float64):
            x = torch.randn(5, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
            ad.partials(f, x, ["", "xxz", "zzz"], names="xyz")

    def test_dropout_draws_once(self, checks: list[Any]) -> None:
        model = nn.Sequential(nn.Linear(2, 30), nn.Dropout(), nn.Tanh(), nn.Linear(30, 1)).double()
        states = []
        for _ in range(2):
            torch.manual_seed(0)
            u_xx, state = ad.partials(model, points(), ["xx"], names="tx"), torch.get_rng_state()
            states.append((u_xx[0], state))
            _self_check.fast_path(next(iter(_self_check._paths)))._checking = 1e9
        assert len(checks) == 1
        assert torch.equal(states[0][0], states[1][0]) and torch.equal(states[0][1], states[1][1])


class Annealed(nn.Module):
    """A network with buffers that each call of it writes, one of which its gradient reads."""

    def __init__(self, write: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.write, self.weight = write, nn.Parameter(torch.tensor([0.5, 1.5], dtype=torch.float64))
        self.register_buffer("window", torch.tensor([0.5, 0.25], dtype=torch.float64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.write(self.window)
        y = torch.zeros_like(x)
        y[:, 0] = x.prod(-1)
        y.add_(x)
        return (y * (self.weight * self.window)).sin()


class TestHighOrders:
    """Nested gradients of order k are those of a graph that grows as 3 to the power k."""

    @pytest.mark.parametrize(("order", "checked"), [(4, 4), (6, 6), (9, 6)])
    def test_are_checked_up_to_the_sixth(self, order: int, checked: int, checks: list[Any]) -> None:
        x = torch.rand(5, 2, dtype=torch.float64)
        ad.taylor(lambda x: torch.exp(x[:, 0] - 2 * x[:, 1]), x, torch.ones_like(x), order)
        ((*_, functionals, _, _, _),) = checks
        assert [max(map(sum, functional)) for functional in functionals] == list(range(checked + 1))

    def test_one_alone_is_checked(self, checks: list[Any]) -> None:
        x = torch.rand(5, 1, dtype=torch.float64)
        ad.partials(lambda x: torch.log1p(x).sum(-1), x, ["xxxxxxx"], names="x")
        ((*_, functionals, _, _, _),) = checks
        assert [max(map(sum, functional)) for functional in functionals] == [7]


class TestWhatFunctionsWrite:
    """A comparison leaves buffers, and what autograd has saved of them, as the one call of f left them."""

    @pytest.mark.parametrize("wrapped", [lambda module: module, lambda module: lambda x: x * module(x)])
    @pytest.mark.parametrize(
        "write",
        [
            lambda window: window.mul_(0.5).add_(0.25),
            lambda window: torch.sqrt(window, out=window),
            lambda window: window.view(2, 1)[1].fill_(2.0),
            lambda window: window.__setitem__(0, window[1] + 1),
            lambda window: torch.no_grad()(window.copy_)(torch.tensor([3.0, 4.0])),
        ],
        ids=["methods", "out", "view", "assignment", "no_grad"],
    )
    @pytest.mark.parametrize(
        "tool",
        [
            lambda f, x: ad.partials(f, x, ["xx"], names="tx")[0],
            lambda f, x: ad.taylor(f, x, torch.ones_like(x), 2)[2],
            ad.bilaplacian,
        ],
        ids=["partials", "taylor", "bilaplacian"],
    )
    @pytest.mark.parametrize("n", [6, MANY])
    def test_buffers(self, tool: Any, write: Any, wrapped: Any, n: int, checks: list[Any]) -> None:
        module, once = Annealed(write), Annealed(write)
        result = tool(wrapped(module), points(n))
        assert len(checks) == 1
        once(points(n))
        assert module.calls == 1 and torch.equal(module.window, once.window)
        result.square().sum().backward()
        assert module.weight.grad is not None and module.weight.grad.isfinite().all()

    def test_of_a_function_that_fails_when_it_runs_again(self, checks: list[Any]) -> None:
        window, calls = torch.ones(2, dtype=torch.float64), []

        def f(x: Tensor) -> Tensor:
            calls.append(x)
            window.mul_(0.5)
            if len(calls) > 1:
                raise RuntimeError("once is enough")
            return (x * window).sin()

        ad.partials(f, points(), ["xx"], names="tx")
        assert len(checks) == 1 and window.eq(0.5).all()


class TestManyPoints:
    """Where f gives for some points alone what it gives for all, these are checked: as much memory as they need."""

    def test_some_are_checked(self, checks: list[Any]) -> None:
        class Called:  # what f captures is as one call leaves it, but for classes
            sizes: ClassVar[list[int]] = []

        ad.partials(lambda x: (Called.sizes.append(len(x)), product(x))[1], points(MANY), ["xx"], names="tx")
        first, *others = Called.sizes
        assert first == MANY and others and max(others) <= 1024
        ((_, x, value, directions, *_),) = checks
        assert len(x) == len(value) == len(directions[0]) == 1024

    def test_points_in_several_dimensions(self, checks: list[Any]) -> None:
        ad.partials(lambda x: x.sin(), points(MANY).reshape(250, 20, 2), ["xx"], names="tx")
        assert checks[0][1].shape == (51, 20, 2)

    @pytest.mark.parametrize(
        "of",
        [
            lambda x, c: x.sin() * c,  # a coefficient for each point
            lambda x, c: x.sin() if len(x) == MANY else x.exp(),
            lambda x, c: x.sin() if len(x) == MANY else x[:, 0].sin(),
            lambda x, c: x.sin() if len(x) == MANY else x.float().sin(),
            lambda x, c: x.sin() if len(x) == MANY else None,
        ],
    )
    def test_all_where_f_takes_no_others(self, of: Callable[[Tensor, Tensor], Any], checks: list[Any]) -> None:
        c = points(MANY)[:, :1]
        ad.partials(lambda x: of(x, c), points(MANY), ["xx"], names="tx")
        assert len(checks[0][1]) == MANY

    def test_dropout(self) -> None:
        torch.manual_seed(0)
        ad.partials(nn.Sequential(nn.Linear(2, 30), nn.Dropout(), nn.Tanh()).double(), points(MANY), ["xx"], names="tx")

    def test_what_torch_compile_made_is_not_compiled_again(self) -> None:
        compiled: list[Any] = []
        model = torch.compile(product, backend=lambda graph, _: compiled.append(graph) or graph)
        ad.partials(model, points(MANY), ["xx"], names="tx")
        assert not compiled


class TestWhenItChecks:
    def test_a_small_share_of_the_time(self, checks: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
        now = 0.0

        def clock() -> float:
            nonlocal now
            now += 1.0  # a sweep takes a second, and so does a check
            return now

        monkeypatch.setattr(module.time, "perf_counter", clock)
        for _ in range(100):
            ad.partials(product, points(), ["xx"], names="tx")
        assert 2 <= len(checks) <= 5

    def test_a_program_of_other_operations(self, checks: list[Any]) -> None:
        for f in (product, torch.tanh, functools.partial(torch.add, 1)):
            ad.partials(f, points(), ["xx"], names="tx")
        assert len(checks) == 3

    def test_no_more_often_for_other_numbers_of_points(self, checks: list[Any]) -> None:
        f = lambda x: x.view(len(x), 1, 2).sin().flatten(1)  # noqa: E731
        for n in range(100, 130):
            ad.partials(f, points(n), ["x"], names="tx")
            _self_check.fast_path(next(iter(_self_check._paths)))._checking = 1e9
        assert len(checks) == 1

    def test_not_where_transforms_or_autocast_run(self, checks: list[Any]) -> None:
        of = lambda x: ad.partials(product, x, ["xx"], names="tx")[0]  # noqa: E731
        torch.func.vmap(of)(points().unsqueeze(1))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            of(points(dtype=torch.float32))
        of(points(dtype=torch.bfloat16))
        assert not checks
