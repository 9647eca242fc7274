"""partials, Sum and taylor: against closed forms and nested reverse mode of the definition in float64."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from own_functions import Cube
from selection import few
from torch import Tensor, nn
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.func import functional_call, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import torchad_ext as ad
from torchad_ext import _self_check
from torchad_ext._forward.correction_mode import with_corrections
from torchad_ext._forward.fallback import _warned
from torchad_ext.ops import CATALOGUE

Function = Callable[[Tensor], Tensor]
Index = tuple[int, ...]

# A rule that is missing is an error, but where a test expects the warning.
pytestmark = [pytest.mark.filterwarnings("error:torchad_ext"), pytest.mark.usefixtures("kernels_when_long")]


@pytest.fixture(autouse=True)
def _nothing_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHAD_EXT_STRICT", raising=False)
    _warned.clear()
    monkeypatch.setattr(_self_check, "_paths", type(_self_check._paths)())


def points(*shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return low + (high - low) * torch.rand(*(shape or (5, 3)), dtype=torch.float64, generator=generator)


def nested(f: Function, x: Tensor, index: Index) -> Tensor:
    """A derivative by reverse mode of reverse mode, where PyTorch's derivatives are right ones."""
    x = x if x.requires_grad else x.detach().requires_grad_()
    y = with_corrections(f)(x)
    results = []
    for row in y.reshape(*x.shape[:-1], -1).unbind(-1):
        for i in index:
            row = grad(row.sum(), x, create_graph=True, materialize_grads=True)[0][..., i]
            row = row if row.requires_grad else row + 0 * x.sum()
        results.append(row)
    return torch.stack(results, -1).reshape(y.shape)


def all_to(order: int, d: int) -> list[Index]:
    return [index for n in range(order + 1) for index in itertools.combinations_with_replacement(range(d), n)]


def agree(f: Function, x: Tensor, orders: Sequence[Index], rtol: float = 1e-9, atol: float = 1e-9) -> None:
    for order, y in zip(orders, ad.partials(f, x, orders), strict=True):
        expected = nested(f, x, order)
        assert y.shape == expected.shape
        assert_close(y, expected, rtol=rtol, atol=atol, msg=lambda text, order=order: f"{order}: {text}")


def network(activation: Any = torch.tanh, d: int = 3, outputs: int = 2) -> Any:
    class Activation(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return activation(x)  # type: ignore[no-any-return]

    torch.manual_seed(1)
    layers = [nn.Linear(d, 6), Activation(), nn.Linear(6, 6), Activation(), nn.Linear(6, outputs)]
    return nn.Sequential(*layers).double()


class TestClosedForms:
    def test_every_derivative_of_a_product_of_waves(self) -> None:
        x = points()
        k = torch.tensor([1.5, -0.7, 2.0], dtype=torch.float64)
        orders = all_to(4, 3)
        f = lambda x: torch.sin(x[:, 0] * k[0]) * torch.exp(x[:, 1] * k[1]) * torch.cos(x[:, 2] * k[2])  # noqa: E731
        for order, y in zip(orders, ad.partials(f, x, orders), strict=True):
            a, b, c = (order.count(i) for i in range(3))
            expected = (
                k[0] ** a * torch.sin(k[0] * x[:, 0] + a * math.pi / 2)
                * k[1] ** b * torch.exp(k[1] * x[:, 1])
                * k[2] ** c * torch.cos(k[2] * x[:, 2] + c * math.pi / 2)
            )  # fmt: skip
            assert_close(y, expected)

    def test_the_sixth_derivative_of_a_composition(self) -> None:
        x = points(7, 1, low=0.5, high=2.0)
        *_, sixth = ad.partials(lambda x: torch.log(x * x).sum(-1), x, ["", "xxxxxx"], names="x")
        assert_close(sixth, -2 * 120 / x[:, 0] ** 6)

    @pytest.mark.parametrize("order", few([6, 10], lambda order: order == 6))
    def test_taylor_coefficients(self, order: int) -> None:
        x, v = points(4, 2), torch.tensor([0.3, -0.5], dtype=torch.float64)
        coefficients = ad.taylor(lambda x: torch.exp(torch.sin(x).sum(-1)) / (3 + x[:, 0]), x, v, order)
        assert len(coefficients) == order + 1
        # Cauchy's integral on a circle, which needs no derivative.
        count = 64
        s = 0.9 * torch.exp(2j * math.pi * torch.arange(count, dtype=torch.float64) / count)
        z = x + 0j + s.reshape(-1, 1, 1) * v
        values = torch.exp(torch.sin(z).sum(-1)) / (3 + z[..., 0])
        for k, c in enumerate(coefficients):
            assert_close(c, (values * s.reshape(-1, 1) ** -k).mean(0).real, rtol=1e-9, atol=1e-11)

    def test_direction_may_differ_from_point_to_point(self) -> None:
        x, v = points(4, 2), points(4, 2) + 2
        *_, third = ad.taylor(lambda x: (x**3).sum(-1), x, v, 3)
        assert_close(third, (v**3).sum(-1))

    def test_orders_share_what_they_need(self) -> None:
        x = points()
        f = lambda x: torch.sin(x).prod(-1)  # noqa: E731
        first, permuted, repeated = ad.partials(f, x, ["xyt", "tyx", "xyt"], names="txy")
        assert_close(first, torch.cos(x).prod(-1))
        assert torch.equal(first, permuted) and torch.equal(first, repeated)


class TestSums:
    def test_weighted_sum_is_the_sum_of_its_terms(self) -> None:
        x, f = points(), network()
        terms, weights = ["tt", "xx", "yy", "t"], (1.0, -0.3, 2.5, 0.7)
        (together,) = ad.partials(f, x, [ad.Sum(*terms, weights=weights)], names="txy")
        apart = ad.partials(f, x, terms, names="txy")
        assert_close(together, sum(w * y for w, y in zip(weights, apart, strict=True)))

    @pytest.mark.parametrize("name", ["three factors", "quotient", "in place"])
    def test_sums_of_products(self, name: str) -> None:
        x, f = points(), OF_POINTS[name]
        terms = {(0, 0): 1.0, (1, 1): -0.3, (0, 2): 2.5, (1, 2, 2): 0.5}
        (together,) = ad.partials(f, x, [ad.Sum(*terms, weights=list(terms.values()))])
        assert_close(together, sum(w * nested(f, x, index) for index, w in terms.items()))

    def test_bilaplacian_beside_other_derivatives(self) -> None:
        x, f = points(4, 2), network(d=2)
        square = ad.Sum("xxxx", "xxyy", "yyyy", weights=(1, 2, 1))
        value, u_xxy, result = ad.partials(f, x, ["", "xxy", square], names="xy")
        terms = [((0,) * 4, 1), ((0, 0, 1, 1), 2), ((1,) * 4, 1)]
        assert_close(result, sum(w * nested(f, x, index) for index, w in terms), rtol=1e-9, atol=1e-9)
        assert_close(value, f(x))
        assert_close(u_xxy, nested(f, x, (0, 0, 1)), rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize(
        ("orders", "count"),
        [
            (["xxx", "t"], 5),  # 1, t, x, xx, xxx
            ([ad.Sum("tt", "xx", "yy")], 5),  # 1, t, x, y and the sum
            ([ad.Sum("t", "xx", weights=(1, -2))], 3),  # 1, x and the sum
            ([ad.Sum("xxxx", "xxyy", "yyyy", weights=(1, 2, 1))], 9),  # 1, x, y, xx, xy, yy, two gradients and the sum
            (["xx", "yy", ad.Sum("xx", "yy")], 5),  # the sum comes of its terms
        ],
    )
    def test_only_what_is_needed_travels(self, orders: list[Any], count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        from torchad_ext._forward import partials as module

        seen = []
        sweep = module.JetSweep
        monkeypatch.setattr(
            module, "JetSweep", lambda *a, algebra, **o: seen.append(len(algebra)) or sweep(*a, algebra=algebra, **o)
        )
        ad.partials(lambda x: x.sin().prod(-1), points(), orders, names="txy")
        assert seen == [count]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Linear(1, 12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.rows(x.unsqueeze(-1)).chunk(3, -1)
        y: Tensor = torch.softmax(q @ k.mT / 2, -1) @ v
        return y.flatten(-2).sin().sum(-1)


class Gated(nn.Module):
    """A gated network of Fourier features, 0 on the edge of the cube."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(3, 4))
        self.value, self.gate, self.last = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        phases = x @ self.frequencies
        features = torch.cat([phases.sin(), phases.cos()], -1)
        y = self.last(torch.tanh(self.value(features)) * torch.sigmoid(self.gate(features)))
        return (x * (1 - x)).prod(-1, keepdim=True) * y  # type: ignore[no-any-return]


class DeepONet(nn.Module):
    """Σ_k b_k(a) t_k(x), a sum over products of two networks."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.trunk = nn.Linear(4, 6), nn.Sequential(nn.Linear(3, 6), nn.GELU(), nn.Linear(6, 6))
        self.register_buffer("a", torch.randn(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bk,...k->...b", self.branch(self.a).tanh(), self.trunk(x).tanh())


MODELS: dict[str, Callable[[], Any]] = {
    "attention": Attention,
    "gated Fourier features": Gated,
    "DeepONet": DeepONet,
    "layer_norm": lambda: nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.SiLU(), nn.Linear(6, 2)),
    "mish": lambda: nn.Sequential(nn.Linear(3, 6), nn.Mish(), nn.Linear(6, 2)),
}
OF_POINTS: dict[str, Function] = {
    "quotient": lambda x: x[:, 0] / (2 + x[:, 1] * x[:, 2]),
    "norm": lambda x: (x + 3).norm(dim=-1),
    "power": lambda x: (x + 2) ** 3.5,
    "powers of two tensors": lambda x: (x[:, :1] + 2) ** x[:, 1:],
    "three factors": lambda x: torch.einsum("na,na,na->n", x.sin(), x.cos(), x.exp()),
    "matrices": lambda x: (x.unsqueeze(-1) @ x.sin().unsqueeze(-2)) @ torch.ones(3, 2, dtype=x.dtype),
    "cumulative product": lambda x: x.cumprod(-1),
    "views": lambda x: torch.stack([x.flip(-1).roll(1, -1), x.exp()]).permute(1, 2, 0).reshape(len(x), -1)[:, ::2],
    "in place": lambda x: x.sin().mul_(x).add_(1).prod(-1),
    "assignment": lambda x: _assigned(x),
    "where": lambda x: torch.where(x > 0.1, x.sin(), x**3).prod(-1),
    "convolution": lambda x: (
        F.conv1d(x.unsqueeze(1).sin(), torch.ones(2, 1, 2, dtype=x.dtype), padding=1).flatten(1) ** 2
    ),
    "of one coordinate": lambda x: x[:, 0].exp(),
    "linear": lambda x: x @ torch.ones(3, 2, dtype=x.dtype),
    "through complex numbers": lambda x: (torch.complex(x, x.sin()) ** 2).real.exp(),
    "two dtypes": lambda x: torch.atan2(x.sin(), torch.full((3,), 2.0)) * x.exp(),
    "a power for each coordinate": lambda x: (x + 2) ** torch.tensor([1, 2, 3]),
    "logsumexp": lambda x: torch.logsumexp(3 * x, -1),
}


def _assigned(x: Tensor) -> Tensor:
    y = x.exp().clone()
    y[:, 0] = x[:, 1] * x[:, 2]
    return y.prod(-1)


class TestPrograms:
    @pytest.mark.parametrize("name", MODELS)
    def test_models_to_order_four(self, name: str) -> None:
        torch.manual_seed(0)
        model = MODELS[name]().double()
        agree(
            model,
            points(4, 3, low=0.1, high=0.9),
            [(), (0,), (1, 1), (0, 1, 2), (0, 0, 1, 2), (2, 2, 2, 2)],
            1e-8,
            1e-8,
        )

    @pytest.mark.parametrize("name", OF_POINTS)
    def test_operations_to_order_three(self, name: str) -> None:
        agree(OF_POINTS[name], points(), [(), (0,), (1, 2), (0, 0, 1), (0, 1, 2)])

    def test_a_network_to_order_four_in_three_coordinates(self) -> None:
        agree(network(), points(), all_to(4, 3))

    def test_a_network_to_order_six_in_one(self) -> None:
        agree(network(d=1), points(5, 1), [(0,) * n for n in range(7)], 1e-8, 1e-8)

    @pytest.mark.parametrize("name", few(CATALOGUE, lambda name: list(CATALOGUE).index(name) % 4 == 0))
    def test_every_op_of_the_catalogue(self, name: str) -> None:
        op = CATALOGUE[name]
        ((low, high),) = [op.intervals[argument] for argument in op.domain][:1]
        x = points(4, 2)
        argument = lambda x: (low + high) / 2 + (high - low) / 5 * torch.sin(x.sum(-1) + x[..., 0] ** 2)  # noqa: E731
        orders = [(), (0,), (0, 1), (0, 0, 1)]
        expected = [nested(lambda x: op.definition(argument(x), *_others(op)), x, order) for order in orders]
        results = ad.partials(lambda x: op(argument(x), *_others(op)), x, orders)
        assert_close(results, tuple(expected), rtol=1e-8, atol=1e-8)

    def test_one_point_and_many_dimensions(self) -> None:
        f = lambda x: x.sin().prod(-1)  # noqa: E731
        x = points(2, 3, 2)
        (many,) = ad.partials(f, x, [(0, 1)])
        assert_close(many, x.cos().prod(-1))
        assert_close(ad.partials(f, x[0, 0], [(0, 1)])[0], many[0, 0])

    def test_chunks_give_what_all_points_give(self) -> None:
        x, f = points(7, 3), network()
        assert_close(
            ad.partials(f, x, ["", "xxy"], names="xyz", chunk_size=3), ad.partials(f, x, ["", "xxy"], names="xyz")
        )

    @pytest.mark.parametrize(
        "sums",
        [
            [ad.Sum("xx", weights=(0,))],
            [ad.Sum("xx", "xx", weights=(1, -1))],
            [ad.Sum("tx", "xt", weights=(1, -1)), ad.Sum("", weights=(0,))],
        ],
    )
    def test_sums_without_terms_are_zero(self, sums: list[ad.Sum]) -> None:
        f = lambda x: (x[:, :1] * x[:, 1:]).sin()  # noqa: E731
        u_x, *zeros = ad.partials(f, points(3, 2), ["x", *sums], names="tx")
        assert_close(u_x, ad.partials(f, points(3, 2), ["x"], names="tx")[0])
        assert all(torch.equal(zero, torch.zeros(3, 1, dtype=u_x.dtype)) for zero in zeros)
        of = lambda x: ad.partials(f, x, sums, names="tx")[0]  # noqa: E731
        assert torch.equal(torch.func.vmap(of)(points(3, 2).unsqueeze(1))[:, 0], zeros[0])

    @pytest.mark.parametrize(
        "f",
        [
            lambda x: x.view_as(x),
            lambda x: x[:, 1] + 1,
            lambda x: x.exp(),
            lambda x: F.linear(x, points(2, 3)),
            lambda x: torch.cat([x, x.sin()], 1),
        ],
        ids=["identity", "coordinate", "exp", "linear", "both"],
    )
    def test_results_may_be_written_to(self, f: Function) -> None:
        x, v = points(), points()
        for results in (ad.partials(f, x, ["t", "x", "xx"], names="txy"), ad.taylor(f, x, v, 2)[1:]):
            expected = [y.clone() + i for i, y in enumerate(results)]
            for i, y in enumerate(results):
                y += i
            assert_close(results, tuple(expected))
            assert torch.equal(x, points()) and torch.equal(v, points())

    def test_what_is_not_there_is_zero(self) -> None:
        x = points()
        value, slope, mixed = ad.partials(lambda x: x[:, 0] ** 2, x, [(), (1,), (0, 1)])
        assert_close(value, x[:, 0] ** 2)
        assert not slope.any() and not mixed.any()
        constant, slope = ad.partials(lambda x: torch.ones(len(x), dtype=x.dtype), x, [(), (0,)])
        assert constant.all() and not slope.any()


def _others(op: ad.Pointwise) -> tuple[float, ...]:
    return tuple(sum(op.intervals[argument]) / 2 for argument in list(op.domain)[1:])


TERMS = [
    torch.sin,
    torch.exp,
    torch.tanh,
    torch.sigmoid,
    F.softplus,
    torch.atan,
    lambda x: x * x,
    lambda x: 1 / (x * x + 2),
]


programs = given(
    st.lists(st.tuples(st.integers(0, len(TERMS) - 1), st.sampled_from("+*/")), min_size=1, max_size=4),
    st.lists(st.lists(st.integers(0, 2), max_size=4).map(tuple), min_size=1, max_size=3),
)


def agree_on(steps: list[tuple[int, str]], orders: list[Index]) -> None:
    weights = points(3, 4)

    def f(x: Tensor) -> Tensor:
        y = x @ weights
        for i, combine in steps:
            z = TERMS[i](y.roll(1, -1))
            y = y + z if combine == "+" else y * z if combine == "*" else z / (3 + y * y)
        return y.sum(-1)

    assume(bool((f(points(3, 3)).abs() < 1e100).all()))  # an exponential of exponentials overflows in nested autograd
    agree(f, points(3, 3), orders, 1e-7, 1e-7)


@pytest.mark.usefixtures("interpreted")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@programs
def test_random_functions(steps: list[tuple[int, str]], orders: list[Index]) -> None:
    agree_on(steps, orders)


@pytest.mark.long
@settings(max_examples=50, deadline=None)
@programs
def test_random_functions_by_kernels(steps: list[tuple[int, str]], orders: list[Index]) -> None:
    agree_on(steps, orders)


class TestDerivativesOfTheResult:
    """Training needs the gradient of the derivatives, in parameters and in points."""

    def test_gradcheck(self) -> None:
        model, x = network(d=2, outputs=1), points(2, 2).requires_grad_()
        names, parameters = zip(*model.named_parameters(), strict=True)

        def f(x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
            u = lambda x: functional_call(model, dict(zip(names, parameters, strict=True)), x)  # noqa: E731
            return ad.partials(u, x, ["", "t", "xx", ad.Sum("tt", "xxx")], names="tx")

        assert gradcheck(f, (x, *(p.detach().requires_grad_() for p in parameters)))

    def test_gradgradcheck(self) -> None:
        model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)).double()
        f = lambda x: ad.partials(model, x, ["", "xx", "tx"], names="tx")  # noqa: E731
        assert gradgradcheck(f, (points(2, 2).requires_grad_(),))

    def test_a_training_step_is_that_of_nested_autograd(self) -> None:
        model, x = network(d=2, outputs=1), points(6, 2)
        u, u_t, u_x, u_xxx = ad.partials(model, x, ["", "t", "x", "xxx"], names="tx")
        ours = grad((u_t + 6 * u * u_x + u_xxx).square().mean(), list(model.parameters()))
        u, u_t, u_x, u_xxx = (nested(model, x, index) for index in ((), (0,), (1,), (1, 1, 1)))
        assert_close(ours, grad((u_t + 6 * u * u_x + u_xxx).square().mean(), list(model.parameters())))

    def test_a_coefficient_is_learned_through_it(self) -> None:
        x, c = points(4, 1), torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        (u_xx,) = ad.partials(lambda x: torch.sin(c * x).sum(-1), x, ["xx"], names="x")
        (slope,) = grad(u_xx.sum(), c)
        assert_close(slope, (-2 * c * torch.sin(c * x) - c**2 * x * torch.cos(c * x)).sum())

    def test_a_compiled_model_is_followed_as_it_was_written(self) -> None:
        model, x = network(d=2), points(4, 2)
        graphs = []
        compiled = torch.compile(model, backend=lambda graph, _: graphs.append(graph) or graph.forward)
        assert_close(compiled(x), model(x))
        count = len(graphs)
        agree(compiled, x, [(), (1, 1)])
        assert len(graphs) == count

    def test_without_gradients_the_result_has_none(self) -> None:
        with torch.no_grad():
            (y,) = ad.partials(network(), points(), [(0, 0)])
        assert not y.requires_grad
        assert_close(y, nested(network(), points(), (0, 0)))

    def test_a_sweep_in_a_sweep(self) -> None:
        x = points()
        f = lambda x: torch.sin(x).prod(-1)  # noqa: E731
        inner = lambda x: ad.partials(f, x, ["xx"], names="xyz")[0]  # noqa: E731
        assert_close(ad.partials(inner, x, ["xy"], names="xyz")[0], nested(f, x, (0, 0, 0, 1)))
        assert_close(ad.laplacian(inner, x), 3 * torch.sin(x).prod(-1))


class Regularized(nn.Module):
    """A module that keeps a penalty and hidden numbers of its last call, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 4, dtype=torch.float64)
        self.calls = 0
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.sizes.append(len(x))
        self.hidden = self.layer(x).tanh()
        self.penalty = self.hidden.square().mean() + self.layer.weight.square().sum()
        return self.hidden.sum(-1)


WHERE_F_KEEPS: dict[str, Callable[[Function, Tensor], Any]] = {
    "laplacian": ad.laplacian,
    "forward_laplacian": ad.forward_laplacian,
    "bilaplacian": ad.bilaplacian,
    "partials": lambda f, x: ad.partials(f, x, ["xx"], names="xy"),
    "taylor": lambda f, x: ad.taylor(f, x, torch.ones_like(x), 2),
}


class TestWhatAFunctionKeeps:
    @pytest.mark.parametrize("n", [5, 3000])  # one comparison is of all points, one of some
    @pytest.mark.parametrize("tool", WHERE_F_KEEPS)
    def test_a_module_is_as_after_one_call(self, tool: str, n: int) -> None:
        module, x = Regularized(), points(n, 2).requires_grad_()
        module(x)
        expected = grad(module.penalty, [x, module.layer.weight])
        hidden = module.hidden.detach()
        for count in (2, 3):  # the first is compared with nested autograd
            WHERE_F_KEEPS[tool](module, x)
            assert module.calls == count and module.sizes == [n] * count
            assert_close(grad(module.penalty, [x, module.layer.weight], retain_graph=True), expected)
            with torch.no_grad():
                assert_close(module.hidden.mean(0), hidden.mean(0))
            assert_close(copy.deepcopy(module.hidden.detach()), hidden)
            module.hidden.sum().backward()

    def test_what_a_function_captures(self) -> None:
        module, calls, last = Regularized(), [], {}

        def f(x: Tensor) -> Tensor:
            calls.append(x)
            last["hidden"] = x.sin()
            return functional_call(module, {"layer.weight": module.layer.weight * 2}, (x,)) * last["hidden"].sum(-1)

        weight = module.layer.weight
        ad.partials(f, points(3000, 2), ["xx"], names="xy")
        assert len(calls) == module.calls == 1 and len(last["hidden"]) == 3000
        assert module.layer.weight is weight

    def test_a_function_that_was_not_followed(self) -> None:
        kept: list[Tensor] = []

        def f(x: Tensor) -> Tensor:
            kept.append(x.sin())
            return grad(kept[-1].sum(), x, create_graph=True)[0].sum(-1)

        with pytest.warns(UserWarning, match="cannot follow"):
            ad.laplacian(f, points(5, 2))
        for y in kept:
            assert_close((y * 2).detach(), 2 * points(5, 2).sin())


class TestTransforms:
    def test_vmap_over_parameters(self) -> None:
        x = points(4, 2)
        scales = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
        of = lambda c: ad.partials(lambda x: torch.sin(c * x).prod(-1), x, ["xx", "xy"], names="xy")  # noqa: E731
        for y, expected in zip(vmap(of)(scales), zip(*map(of, scales), strict=True), strict=True):
            assert_close(y, torch.stack(expected))

    def test_vmap_over_points(self) -> None:
        x, f = points(4, 2), lambda x: torch.sin(x).prod(-1)
        assert_close(vmap(lambda x: ad.partials(f, x, [(0, 1)])[0])(x), torch.cos(x).prod(-1))

    def test_jacobians_by_both_modes(self) -> None:
        x = points(2, 2)
        f = lambda x: ad.partials(lambda x: torch.sin(x).prod(-1), x, [(0, 1)])[0]  # noqa: E731
        expected = torch.autograd.functional.jacobian(lambda x: torch.cos(x).prod(-1), x)
        assert_close(torch.func.jacrev(f)(x), expected)
        assert_close(torch.func.jacfwd(f)(x), expected)

    def test_autocast(self) -> None:
        model, x = network(d=2).float(), points(5, 2).float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            given = ad.partials(model, x, ["", "xx"], names="tx")
        for y, index in zip(given, ((), (1, 1)), strict=True):
            assert_close(y.float(), nested(model, x, index), rtol=0.1, atol=0.1)

    def test_autocast_of_a_product_of_two_dtypes(self) -> None:
        model, x = network(d=2, outputs=1).float(), points(5, 2, low=0.1, high=0.9).float()
        bounded = lambda x: model(x) * (x * (1 - x)).prod(-1, keepdim=True)  # noqa: E731
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (given,) = ad.partials(bounded, x, ["xx"], names="tx")
            assert given.dtype == bounded(x).dtype
        assert_close(given, nested(bounded, x, (1, 1)), rtol=0.1, atol=0.1)

    def test_checkpoint(self) -> None:
        model, x = network(d=2, outputs=1), points(5, 2)
        loss = lambda u: ad.partials(u, x, ["xx"], names="tx")[0].square().sum()  # noqa: E731
        *parameters, _ = model.parameters()
        plain = grad(loss(model), parameters)
        outside = grad(checkpoint(loss, model, use_reentrant=False), parameters)
        assert_close(outside, plain)

    def test_compiled(self) -> None:
        model, x = network(d=2), points(5, 2)
        compiled = torch.compile(lambda x: ad.partials(model, x, ["", "xx"], names="tx"), backend="aot_eager")
        with torch.no_grad():
            given = compiled(x)
        for y, index in zip(given, ((), (1, 1)), strict=True):
            assert_close(y, nested(model, x, index))

    @pytest.mark.parametrize("tracer", [torch.jit.trace, lambda f, x: make_fx(f)(x)], ids=["jit", "make_fx"])
    def test_traced(self, tracer: Callable[[Function, Tensor], Function]) -> None:
        f = lambda x: ad.partials(lambda x: x.sin().sum(-1).exp(), x, ["xxt"], names="tx")[0]  # noqa: E731
        traced, others = tracer(f, points(5, 2)), points(5, 2, low=1.0, high=2.0)
        assert_close(traced(others), f(others))


class TestFallback:
    def test_what_is_not_followed_warns_once_and_is_right(self) -> None:
        x = points()
        f = lambda x: Cube.apply(x).sin().prod(-1)  # noqa: E731
        with pytest.warns(UserWarning, match=r"torchad_ext\.partials cannot follow .*by nested autograd"):
            given = ad.partials(f, x, [(), (0, 0), (0, 1, 2)])
        plain = lambda x: (x**3).sin().prod(-1)  # noqa: E731
        assert_close(given, tuple(nested(plain, x, index) for index in ((), (0, 0), (0, 1, 2))))
        assert_close(ad.partials(f, x, [(1,)])[0], nested(plain, x, (1,)))  # no second warning

    def test_strict(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCHAD_EXT_STRICT", "1")
        with pytest.raises(RuntimeError, match="TORCHAD_EXT_STRICT"):
            ad.partials(lambda x: torch.linalg.eigvalsh(x.unsqueeze(-1) * x.unsqueeze(-2)), points(), [(0,)])

    def test_a_backward_that_has_no_derivative(self) -> None:
        class Once(Cube):
            @staticmethod
            @torch.autograd.function.once_differentiable
            def backward(ctx: Any, grad_y: Tensor) -> Tensor:
                return Cube.backward(ctx, grad_y)

        with pytest.warns(UserWarning, match="cannot follow"), pytest.raises(RuntimeError, match="once_differentiable"):
            ad.partials(lambda x: Once.apply(x).sum(-1), points(), [(0, 0)])

    def test_in_inference_mode(self) -> None:
        x = points(5, 2, low=0.5, high=1.0)
        calls: list[Callable[[Tensor], Tensor]] = [
            lambda x: torch.stack(ad.partials(lambda x: Cube.apply(x.sin()).sum(-1), x, ["x", "xx"], names="xy")),
            lambda x: torch.stack(ad.taylor(lambda x: Cube.apply(x.sin()).sum(-1), x, torch.ones_like(x), 3)),
            lambda x: ad.laplacian(lambda x: Cube.apply(x.sin()).sum(-1), x),
        ]
        for call in calls:
            with pytest.warns(UserWarning, match="torchad_ext"):
                outside = call(x)
            with torch.inference_mode():
                assert_close(call(x), outside)
                assert_close(call(x.clone()), outside)

    def test_taylor_falls_back_too(self) -> None:
        x, v = points(4, 2), torch.tensor([1.0, 2.0], dtype=torch.float64)
        with pytest.warns(UserWarning, match=r"torchad_ext\.taylor cannot follow"):
            coefficients = ad.taylor(lambda x: Cube.apply(x).sum(-1), x, v, 3)
        assert_close(coefficients, ad.taylor(lambda x: (x**3).sum(-1), x, v, 3))


class TestErrors:
    @pytest.mark.parametrize(
        ("orders", "names", "message"),
        [
            (["z"], "txy", r"'z' has letters that are not in names='txy'"),
            (["x"], None, "needs the letters of the coordinates"),
            (["x"], "tx", "takes a string of 3 different letters"),
            (["x"], ["x", "y", "z"], "takes a string of 3 different letters"),
            (["x"], "txx", "takes a string of 3 different letters"),
            ([(0, 3)], None, "outside of 0 to 2"),
            (["x" * 11], "txy", "order 10 at most"),
        ],
    )
    def test_derivatives_that_there_are_not(self, orders: list[Any], names: str | None, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ad.partials(lambda x: x.sum(-1), points(), orders, names=names)

    @pytest.mark.parametrize("orders", ["xx", [1], [None], ad.Sum("xx")])
    def test_orders_of_other_types(self, orders: Any) -> None:
        with pytest.raises(TypeError, match=r"takes (a list of )?derivatives"):
            ad.partials(lambda x: x.sum(-1), points(), orders, names="txy")

    def test_integer_points(self) -> None:
        with pytest.raises(TypeError, match=r"floating-point x, got torch\.int64"):
            ad.partials(lambda x: x.sum(-1), torch.ones(3, 2, dtype=torch.int64), [(0,)])

    def test_a_function_without_derivatives(self) -> None:
        with pytest.raises(TypeError, match=r"torch\.bool, which has no derivative"):
            ad.partials(lambda x: x.sum(-1) > 0, points(), [(0,)])

    def test_a_function_that_mixes_points(self) -> None:
        with pytest.raises(ValueError, match="each result from its own point"):
            ad.partials(lambda x: x.sum(), points(), [(0,)])
        with pytest.raises(ValueError, match="f mixes points"):
            ad.partials(lambda x: x - x.mean(0), points(), [(0,)])

    def test_sums(self) -> None:
        with pytest.raises(ValueError, match="a weight for each of 2"):
            ad.Sum("xx", "yy", weights=(1,))
        with pytest.raises(ValueError, match="got none"):
            ad.Sum()
        with pytest.raises(TypeError, match="multiply the derivative"):
            ad.Sum("xx", weights=(torch.ones(()),))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"write \[2\.0\]"):
            ad.Sum("xx", weights=2.0)  # type: ignore[arg-type]
        assert ad.Sum("xx", "yy", weights=[Fraction(1, 2), np.float32(3)]).weights == (0.5, 3.0)

    @pytest.mark.parametrize("chunk_size", [0, -1, 2.5, True])
    def test_chunk_size(self, chunk_size: Any) -> None:
        with pytest.raises(ValueError, match=f"chunk_size of 1 or more, got {chunk_size}"):
            ad.partials(lambda x: x.sum(-1), points(), [(0,)], chunk_size=chunk_size)

    def test_taylor(self) -> None:
        x, v = points(4, 2), torch.ones(2, dtype=torch.float64)
        with pytest.raises(ValueError, match="order from 0 to 10"):
            ad.taylor(lambda x: x.sum(-1), x, v, 11)
        with pytest.raises(ValueError, match="broadcasts"):
            ad.taylor(lambda x: x.sum(-1), x, torch.ones(3, dtype=torch.float64), 1)
        with pytest.raises(TypeError, match="direction is"):
            ad.taylor(lambda x: x.sum(-1), x, v.float(), 1)
