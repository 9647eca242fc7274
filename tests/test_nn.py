"""Modules of ``torchad_ext.nn``: those of torch.nn in everything but the kernels, and the exchange in a model."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradgradcheck
from torch.func import hessian
from torch.testing import assert_close

import torchad_ext as ad

STAND_INS: list[tuple[str, dict[str, Any]]] = [
    ("SiLU", {}),
    ("GELU", {}),
    ("GELU", {"approximate": "tanh"}),
    ("Softplus", {"beta": 2, "threshold": 3}),
    ("Mish", {}),
    ("ELU", {"alpha": 0.5}),
    ("CELU", {"alpha": 0.5}),
    ("Tanh", {}),
    ("Sigmoid", {}),
]
stand_ins = pytest.mark.parametrize(("name", "options"), STAND_INS)


def same_derivatives(f: Callable[[Tensor], Tensor], g: Callable[[Tensor], Tensor]) -> None:
    x = torch.linspace(-3, 3, 7, dtype=torch.float64) + 0.1
    assert_close(f(x), g(x), rtol=1e-11, atol=1e-11)
    assert_close(hessian(lambda x: f(x).sum())(x), hessian(lambda x: g(x).sum())(x), rtol=1e-10, atol=1e-10)


@stand_ins
def test_a_module_is_torch_s_but_for_its_kernels(name: str, options: dict[str, Any]) -> None:
    native, ours = getattr(nn, name)(**options), getattr(ad.nn, name)(**options)
    same_derivatives(ours, native)
    assert isinstance(ours, getattr(nn, name)) and repr(ours) == repr(native)
    assert inspect.signature(type(ours)) == inspect.signature(type(native))
    x = torch.zeros(1, requires_grad=True)
    assert ours(x).grad_fn.name() == f"{name.lower().capitalize()}Backward"  # not PyTorch's, which ends in 0


@stand_ins
def test_a_module_is_copied_saved_and_scripted(name: str, options: dict[str, Any]) -> None:
    ours = getattr(ad.nn, name)(**options)
    for again in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), torch.jit.script(nn.Sequential(ours))):
        same_derivatives(again, getattr(nn, name)(**options))


@stand_ins
def test_a_module_is_compiled_and_exported(name: str, options: dict[str, Any]) -> None:
    ours, native, x = getattr(ad.nn, name)(**options), getattr(nn, name)(**options), torch.linspace(-3, 3, 7)
    assert_close(torch.compile(ours, backend="eager", fullgraph=True)(x), native(x))
    assert_close(torch.export.export(ours, (x,)).module()(x), native(x))


def test_in_place_is_refused() -> None:
    with pytest.raises(ValueError, match="new tensors"):
        ad.nn.SiLU(inplace=True)
    replaced = nn.Sequential(nn.Mish())
    ad.nn.replace_activations(replaced)
    for module in (ad.nn.ELU(), replaced[0]):
        module.inplace = False
        with pytest.raises(ValueError, match="new tensors"):
            module.inplace = True


@pytest.mark.parametrize(
    ("module", "definition"),
    [
        (ad.nn.Sin(2.0), lambda x: torch.sin(2 * x)),
        (ad.nn.Gaussian(0.5), lambda x: torch.exp(-2 * x * x)),
        (ad.nn.ShiftedSoftplus(), lambda x: F.softplus(x) - math.log(2)),
        (ad.nn.Lambda(ad.snake), lambda x: x + torch.sin(x) ** 2),
    ],
)
def test_modules_of_other_ops(module: nn.Module, definition: Callable[[Tensor], Tensor]) -> None:
    same_derivatives(module, definition)
    same_derivatives(pickle.loads(pickle.dumps(module)), definition)


def test_an_op_stands_in_sequential_as_lambda() -> None:
    with pytest.raises(TypeError, match="Module"):
        nn.Sequential(ad.sin)  # type: ignore[arg-type]
    assert_close(nn.Sequential(ad.nn.Lambda(ad.sin))(torch.ones(2)), torch.ones(2).sin())
    with pytest.raises(TypeError, match="takes a function, got int"):
        ad.nn.Lambda(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("first", [True, False])
def test_the_initialisation_of_a_sine_layer(first: bool) -> None:
    layer = ad.nn.SineLayer(50, 2000, is_first=first, omega_0=20.0)
    bound = 1 / 50 if first else math.sqrt(6 / 50) / 20
    assert layer.linear.weight.abs().max() <= bound
    assert_close(layer.linear.weight.std().item(), bound / math.sqrt(3), rtol=0.01, atol=0)


def test_activations_of_a_sine_network_keep_their_distribution() -> None:
    x = torch.rand(4000, 2) * 2 - 1
    network = ad.nn.Siren(2, 256, 4, 1)
    for layer in network.net[:-1]:
        x = layer(x)
        assert 0.6 < x.std() < 0.8  # that of an arcsine distribution is 0.707


def test_a_sine_network_is_its_definition() -> None:
    network = ad.nn.Siren(2, 8, 1, 3, outermost_linear=False, hidden_omega_0=10.0).double()
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    expected = x
    for layer, omega in zip(network.net, (30, 10, 10), strict=True):
        expected = torch.sin(omega * layer.linear(expected))
    assert_close(network(x), expected)
    assert gradgradcheck(network, x)
    assert list(network.state_dict())[:2] == ["net.0.linear.weight", "net.0.linear.bias"]


@pytest.mark.parametrize("constraint", [None, "symmetric", "positive definite"])
def test_a_quadratic_form_is_learned_under_its_constraint(constraint: str | None) -> None:
    form = ad.nn.QuadraticForm(3, constraint).double()
    with torch.no_grad():
        form.weight.normal_()
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    A = form.matrix
    assert_close(form(x), torch.einsum("bi,ij,bj->b", x, A, x))
    if constraint:
        assert_close(A, A.mT)
    if constraint == "positive definite":
        assert torch.linalg.eigvalsh(A).min() > 0
    (slope,) = torch.autograd.grad(form(x).sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert form.weight.grad is not None and form.weight.grad.abs().max() > 0


def test_layers_of_nothing() -> None:
    assert ad.nn.SineLayer(0, 3)(torch.zeros(2, 0)).shape == (2, 3)
    assert ad.nn.QuadraticForm(0)(torch.zeros(2, 0)).tolist() == [0, 0]
    with pytest.raises(ValueError, match="hidden_layers=-1; it is 0 or more"):
        ad.nn.Siren(2, 4, -1, 1)


def test_another_constraint_is_refused() -> None:
    with pytest.raises(ValueError, match="'symmetric' or 'positive definite'"):
        ad.nn.QuadraticForm(3, "diagonal")


class Swish(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.beta * x)


class FastSwish(Swish):
    def forward(self, x: Tensor) -> Tensor:
        return ad.silu(x) if self.beta == 1 else super().forward(x)


class MyTanh(nn.Tanh):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * torch.tanh(input)


class Block(nn.Module):
    """An activation of each kind that is met."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        shared = nn.SiLU()
        self.body = nn.Sequential(shared, nn.GELU("tanh"), shared, nn.ReLU(), MyTanh(), nn.SiLU(inplace=True), Swish())
        self.function: Any = torch.tanh
        self.partial: Any = functools.partial(F.softplus, beta=2.0)
        self.other: Any = math.sqrt

    def forward(self, x: Tensor) -> Tensor:
        return self.partial(self.function(self.body(self.linear(x))))


@pytest.fixture
def block() -> Block:
    return Block().double()


X = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)


class TestReplaceActivations:
    def test_the_report(self, block: Block) -> None:
        report = ad.nn.replace_activations(block, extra={Swish: ad.silu})
        assert report.changed == {
            "body.0": ("SiLU", "torchad_ext.nn.SiLU"),
            "body.1": ("GELU", "torchad_ext.nn.GELU"),
            "body.6": ("Swish", "silu"),
            "function": ("tanh", "tanh"),
            "partial": ("softplus with options", "softplus with options"),
        }
        assert set(report.left) == {"body.3", "body.4", "body.5", "other"}
        assert "no op for ReLU" in report.left["body.3"] and "subclass of Tanh" in report.left["body.4"]
        assert "writes into its input" in report.left["body.5"] and "sqrt" in report.left["other"]
        assert len(str(report).splitlines()) == 9

    def test_a_forward_of_its_own_is_left(self) -> None:
        model = nn.Sequential(nn.Tanh())
        model[0].forward = torch.sin
        report = ad.nn.replace_activations(model)
        assert "has a forward of its own" in report.left["0"]
        assert not report.changed
        assert_close(model(X), X.sin())

    def test_functions_that_are_no_op_of_that_name(self) -> None:
        def tanh(x: Tensor) -> Tensor:
            return torch.tanh(x)

        model = nn.Sequential(nn.Linear(3, 3))
        model[0].activation, model[0].init, model[0].bias_init = tanh, nn.init.zeros_, functools.partial(nn.init.ones_)
        assert ad.nn.replace_activations(model).left == {
            "0.activation": "test_nn.tanh is not known to be an activation; name an op, extra={function: op}"
        }

    def test_functions_that_others_may_share_are_left(self) -> None:
        class Model(nn.Module):
            of_class = staticmethod(F.silu)

            def __init__(self) -> None:
                super().__init__()
                self.several = [F.silu, math.sqrt, 3.0]
                self.by_name = {"tanh": torch.tanh}
                self.modules_by_name = {"tanh": nn.Tanh()}

        report = ad.nn.replace_activations(Model())
        assert not report.changed
        assert report.left == {
            "of_class": "silu stands in the class Model; put the op there",
            "several": "silu stands in a list; put the op there",
            "by_name": "tanh stands in a dict; put the op there",
            "modules_by_name": "Tanh stands in a dict; put the op there",
        }

    def test_a_list_of_modules_that_are_registered(self) -> None:
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.activation = nn.Tanh()
                self.layers = [self.activation]

        report = ad.nn.replace_activations(Model())
        assert set(report.changed) == {"activation"} and not report.left

    def test_a_compiled_model(self, block: Block) -> None:
        report = ad.nn.replace_activations(torch.compile(block, backend="eager"))
        assert report.changed and not any("ctx" in path or "config" in path for path in report.left)

    def test_functions_that_write_are_left(self) -> None:
        model = nn.Module()
        model.act = functools.partial(F.silu, inplace=True)
        model.into = functools.partial(torch.exp, out=torch.empty(3))
        model.plain = functools.partial(F.silu, inplace=False)
        report = ad.nn.replace_activations(model)
        assert set(report.changed) == {"plain"}
        assert all("writes into a tensor" in report.left[name] for name in ("act", "into"))

    @pytest.mark.parametrize("extra", [{Swish: ad.silu}, {Swish: FastSwish}])
    def test_the_model_computes_the_same(self, block: Block, extra: dict[Any, Any]) -> None:
        before = copy.deepcopy(block)
        ad.nn.replace_activations(block, extra=extra)
        for model in (block, copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
            assert_close(model(X), before(X))
            assert_close(*(hessian(lambda x, m=m: m(x).sum())(X) for m in (model, before)))

    def test_everything_else_stays(self, block: Block) -> None:
        block.body[0].register_forward_hook(lambda module, args, result: calls.append(module))
        calls: list[nn.Module] = []
        block.body[1].eval()
        modules, state = dict(block.named_modules()), block.state_dict()
        ad.nn.replace_activations(block, extra={Swish: ad.silu})
        assert dict(block.named_modules()) == modules
        block.load_state_dict(state)
        assert [m.training for m in block.body] == [True, False, *[True] * 5]
        block(X)
        assert calls == [block.body[0]] * 2

    def test_it_is_undone(self, block: Block) -> None:
        before = block(X)
        report = ad.nn.replace_activations(block, extra={Swish: ad.silu})
        report.undo()
        assert type(block.body[0]) is nn.SiLU and "forward" not in vars(block.body[6])
        assert block.function is torch.tanh and block.partial.func is F.softplus
        assert_close(block(X), before, rtol=0, atol=0)
        assert ad.nn.replace_activations(block).changed

    def test_what_was_parametrised_meanwhile_is_not_undone(self) -> None:
        model = nn.Sequential(Swish())
        report = ad.nn.replace_activations(model, extra={Swish: FastSwish})
        nn.utils.parametrize.register_parametrization(model[0], "beta", nn.Identity())
        with pytest.raises(RuntimeError, match="0 was made a FastSwish and is a ParametrizedFastSwish now"):
            report.undo()
        model(X)
        nn.utils.parametrize.remove_parametrizations(model[0], "beta")
        report.undo()
        assert type(model[0]) is Swish

    def test_a_subclass_of_what_extra_names_is_left(self) -> None:
        model = nn.Sequential(Swish(), FastSwish())
        nn.utils.parametrize.register_parametrization(model[0], "beta", nn.Identity())
        report = ad.nn.replace_activations(model, extra={Swish: FastSwish})
        assert not report.changed and set(report.left) == {"0"}
        assert "ParametrizedSwish is a subclass of Swish" in report.left["0"]

    def test_a_second_time_there_is_nothing_to_do(self, block: Block) -> None:
        ad.nn.replace_activations(block)
        assert ad.nn.replace_activations(block).changed == {}

    def test_an_activation_may_be_the_model(self) -> None:
        model = nn.SiLU()
        assert ad.nn.replace_activations(model).changed == {"(model)": ("SiLU", "torchad_ext.nn.SiLU")}
        assert type(model) is ad.nn.SiLU

    def test_what_torch_jit_recorded_is_left(self) -> None:
        report = ad.nn.replace_activations(nn.Sequential(torch.jit.script(nn.SiLU())))
        assert "before scripting" in report.left["0"]

    @pytest.mark.parametrize(
        ("extra", "message"),
        [
            ({Swish: 3}, "give a function, or for a class a subclass"),
            ({Swish: nn.SiLU}, "give a function, or for a class a subclass"),
            ({torch.tanh: nn.SiLU}, "give a function, or for a class a subclass"),
            ({"Swish": ad.silu}, "extra has 'Swish' for a key; give the class"),
            ([Swish], "extra is a dict, .*, got list"),
        ],
    )
    def test_a_wrong_extra(self, extra: Any, message: str) -> None:
        with pytest.raises(TypeError, match=message):
            ad.nn.replace_activations(nn.Linear(1, 1), extra=extra)

    def test_a_wrong_model(self) -> None:
        with pytest.raises(TypeError, match=r"takes a torch\.nn\.Module, got Pointwise"):
            ad.nn.replace_activations(ad.sin)  # type: ignore[arg-type]
