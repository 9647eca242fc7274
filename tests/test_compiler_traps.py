"""Programs around a compiled model: what they do to it, and it to them, is what they do in eager mode."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from compiled_models import Function, compiled, hold, sizes, x_like
from own_functions import Cube
from random_modules import interpret
from torch import Tensor, nn
from torch import _higher_order_ops as higher
from torch.func import functional_call, hessian, jvp, vmap
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import torchad_ext as ad
from torchad_ext import compiler


@pytest.fixture(autouse=True)
def _without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    interpret(monkeypatch.setattr)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def keep_products() -> Any:
    return create_selective_checkpoint_contexts([torch.ops.aten.addmm.default])


def rows(x: Tensor) -> Tensor:
    return torch.softmax(x.sin() * x, -1)


class Network(nn.Module):
    """A residual layer with a normalisation, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer, self.slope = nn.LayerNorm(3), nn.Linear(3, 3), nn.Parameter(torch.tensor(1.5))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            y = self.layer(torch.sin(self.norm(x)) * x)
            x = x + y * torch.sigmoid(self.slope * y)
        return torch.softmax(x * self.slope, -1) * x


def gradients(f: Function, x: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """A double backward in the parameters."""
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(f(x).square().sum(), x, create_graph=True)
    return list(torch.autograd.grad(slope.square().sum(), parameters))


def both() -> tuple[Network, Network, Function]:
    """A network, its copy, and the compiled copy."""
    torch.manual_seed(0)
    model = Network()
    other = copy.deepcopy(model)
    return model, other, compiled(other)


def alike(f: Function, model: nn.Module, other: nn.Module) -> None:
    for ours, native in zip(
        gradients(f, x_like(4, 3), list(other.parameters())),
        gradients(model, x_like(4, 3), list(model.parameters())),
        strict=True,
    ):
        assert_close(ours, native)


class TestParameters:
    def test_a_layer_that_is_called_twice(self) -> None:
        model, other, f = both()
        alike(f, model, other)

    def test_they_change_in_place_between_calls(self) -> None:
        model, other, f = both()
        for _ in range(3):
            alike(f, model, other)
            for each in (model, other):
                with torch.no_grad():
                    for p in each.parameters():
                        p.mul_(0.9).add_(0.01)

    def test_they_are_replaced_between_calls(self) -> None:
        model, other, f = both()
        f(x_like(4, 3))
        for each in (model, other):
            each.slope = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
            each.norm.weight.data = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
        alike(f, model, other)

    def test_gradients_add_up(self) -> None:
        model, other, f = both()
        for _ in range(2):
            f(x_like(4, 3)).square().sum().backward()
            model(x_like(4, 3)).square().sum().backward()
        for ours, native in zip(other.parameters(), model.parameters(), strict=True):
            assert_close(ours.grad, native.grad)

    def test_they_stop_and_start_requiring_gradients(self) -> None:
        model, other, f = both()
        for wanted in (False, True, False):
            for each in (model, other):
                each.norm.requires_grad_(wanted)
                each.slope.requires_grad_(wanted)
                each.zero_grad(set_to_none=True)
            f(x_like(4, 3)).square().sum().backward()
            model(x_like(4, 3)).square().sum().backward()
            for ours, native in zip(other.parameters(), model.parameters(), strict=True):
                assert (ours.grad is None) == (native.grad is None) == (not ours.requires_grad)
                assert ours.grad is None or torch.allclose(ours.grad, native.grad)

    def test_the_input_starts_and_stops_requiring_a_gradient(self) -> None:
        model, other, f = both()
        for p in (*model.parameters(), *other.parameters()):
            p.requires_grad_(False)
        for wanted in (False, True, False):
            x = x_like(4, 3).requires_grad_(wanted)
            y = f(x)
            assert y.requires_grad is wanted
            assert_close(y, model(x))

    def test_parameters_given_from_outside(self) -> None:
        model, other, _ = both()
        values = {name: p.detach() * 0.5 for name, p in model.named_parameters()}
        f = compiled(lambda values, x: functional_call(other, values, (x,)))
        assert_close(f(values, x_like(4, 3)), functional_call(model, values, (x_like(4, 3),)))


class TestInputs:
    def test_one_tensor_in_two_places_and_views_of_it(self) -> None:
        def f(x: Tensor, y: Tensor) -> Tensor:
            return torch.softmax(x.sin() * y, -1) * y

        f_compiled = compiled(f)
        x = x_like(4, 3).requires_grad_()
        for pair in ((x, x), (x, x[1:2]), (x, x.detach()), (x, x.t().contiguous().t())):
            assert_close(f_compiled(*pair), f(*pair))
            assert_close(*(torch.autograd.grad(each(*pair).sin().sum(), x)[0] for each in (f_compiled, f)))

    def test_an_input_that_is_written_beside_a_view_of_it(self) -> None:
        def f(x: Tensor, y: Tensor) -> Tensor:
            z = (x.sin() * y).sum(-1)
            y.mul_(2)
            return z + (x * y.cos()).sum(-1)

        ours, native = x_like(4, 3), x_like(4, 3)
        assert_close(compiled(f)(ours, ours[:, :]), f(native, native[:, :]))
        assert_close(ours, native)

    @pytest.mark.parametrize("view", ["transposed", "stepped", "expanded", "flipped", "channels last"])
    def test_of_any_strides(self, view: str) -> None:
        x = {
            "transposed": x_like(3, 4).t(),
            "stepped": x_like(4, 6)[:, ::2],
            "expanded": x_like(1, 3).expand(4, 3),
            "flipped": x_like(4, 3).flip(0),
            "channels last": x_like(2, 3, 4, 3).to(memory_format=torch.channels_last),
        }[view]

        def f(x: Tensor) -> Tensor:
            return torch.sigmoid(x) * x.sin() - F.layer_norm(x * 2, x.shape[-1:]).exp()

        assert_close(compiled(f)(x), f(x))
        assert compiled(f)(x).stride() == f(x).stride()
        hold(f, x, highest=2)

    def test_sizes_that_are_marked_as_dynamic(self) -> None:
        def f(x: Tensor) -> Tensor:
            return torch.softmax(x.sin() / x.shape[0], -1) * x

        f_compiled = compiled(f)
        for n in (4, 9, 2):
            x = x_like(n, 3).requires_grad_()
            torch._dynamo.mark_dynamic(x, 0)
            assert_close(f_compiled(x), f(x))
            assert_close(*(torch.autograd.grad(each(x).sin().sum(), x)[0] for each in (f_compiled, f)))

    def test_numbers_that_change(self) -> None:
        def f(x: Tensor, a: float, n: int) -> Tensor:
            return torch.softmax(x * a, -1) * n + x.norm(dim=-1, keepdim=True) * a

        f_compiled = compiled(f)
        for a, n in ((0.5, 1), (1.5, 2), (2.5, 3), (-1.0, 0)):
            assert_close(f_compiled(x_like(4, 3), a, n), f(x_like(4, 3), a, n))

    def test_a_subclass_of_tensor(self) -> None:
        class Named(torch.Tensor):
            pass

        x = x_like(4, 3).as_subclass(Named)
        y = compiled(lambda x: torch.sigmoid(x) * x.sin())(x)
        assert_close(y.as_subclass(Tensor), torch.sigmoid(x_like(4, 3)) * x_like(4, 3).sin())


class Switched(nn.Module):
    """All of its parameters but one decide alone."""

    def __init__(self) -> None:
        super().__init__()
        self.slope, self.first, self.second, self.third = (
            nn.Parameter(x_like(3).cos() - c) for c in (0.0, 0.6, 0.7, 0.8)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.where(self.first > 0, x.sin(), x * x) * self.slope
        y = torch.where((self.third * x).sin() > 0, y, y * y)
        return torch.softmax(torch.where(self.second > 0, y, torch.zeros_like(self.second)), -1) * x


def test_what_decides_alone_has_no_gradient() -> None:
    """An optimizer with weight decay changes a parameter whose gradient is zero, and none without one."""
    model = Switched()
    compiled(model)(x_like(4, 3)).sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {"slope"}
    hold(model, x_like(4, 3), list(model.parameters()))
    alone = compiled(lambda c: torch.where(model.first > 0, c.sin(), c * 2))(x_like(3))
    assert not alone.requires_grad


def test_rows_without_a_slope() -> None:
    hold(lambda x: torch.sign(x.repeat(1, 10).norm(dim=-1) - 3), x_like(4, 3), highest=1)


def on_columns(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * x.sin() * x[:, :1] + torch.softmax(x * 2, -1) * x


def on_rows(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * x.mean(-1, keepdim=True) + torch.softmax(x * 2, -1) * x[0]


class TestSizesOfData:
    @pytest.mark.parametrize(("f", "place"), [(on_columns, 0), (on_rows, 1)])
    def test_that_are_marked_as_unknown(self, f: Function, place: int) -> None:
        f_compiled = compiled(f)
        for n in (4, 2, 1):
            x = x_like(n, 3) if place == 0 else x_like(3, n)
            torch._dynamo.decorators.mark_unbacked(x.requires_grad_(), place)
            assert_close(f_compiled(x), f(x))
            assert_close(*(torch.autograd.grad(each(x).sin().sum(), x)[0] for each in (f_compiled, f)))

    def test_of_a_selection(self) -> None:
        with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
            hold(lambda x: on_columns(x[x[:, 0] > 0]).sum(0), x_like(4, 3))


class TestModes:
    def test_autocast_around_and_inside(self) -> None:
        model = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3))

        def inside(x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = torch.sigmoid(model(x)) * model(x)
            return y.float() * torch.exp(y.float())

        def around(f: Function) -> Function:
            def call(x: Tensor) -> Tensor:
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    return f(x)

            return call

        x = x_like(4, 3).float().requires_grad_()
        for ours, native in ((compiled(inside), inside), (around(compiled(model)), around(model))):
            y, expected = ours(x), native(x)
            assert y.dtype == expected.dtype
            assert_close(y.float(), expected.float(), rtol=0.02, atol=0.02)
            slopes = [torch.autograd.grad(each.float().sum(), x)[0] for each in (y, expected)]
            assert_close(*slopes, rtol=0.02, atol=0.02)

    def test_kernels_run_under_autocast(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ran: list[Any] = []
        interpreted = compiler.Declared.__subclasses__()
        for cls in interpreted:
            call = cls.__call__
            monkeypatch.setattr(
                cls,
                "__call__",
                lambda op, *xs, call=call: (ran.append(torch.is_autocast_enabled("cpu")), call(op, *xs))[1],
            )
        f = compiled(lambda x: torch.sigmoid(x) * x.sin())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            f(x_like(4, 3).bfloat16())
        assert ran == [False]

    def test_gradients_switched_off_and_inference(self) -> None:
        model, _, f = both()
        x = x_like(4, 3).requires_grad_()
        assert f(x).requires_grad
        with torch.no_grad():
            assert not f(x).requires_grad
        with torch.inference_mode():
            y = f(x_like(4, 3))
            assert y.is_inference()
        assert_close(y.clone(), model(x_like(4, 3)))
        assert f(x).requires_grad

    def test_training_and_evaluation(self) -> None:
        model = nn.Sequential(
            nn.Linear(3, 3), nn.BatchNorm1d(3), nn.SiLU(), nn.Dropout(0.5), nn.LayerNorm(3), nn.Tanh()
        )
        model.double()
        other = copy.deepcopy(model)
        f = compiled(other)
        for training in (True, False, True, False):
            for each in (model, other):
                each.train(training)
            results = []
            for each in (f, model):
                torch.manual_seed(1)
                results.append(each(x_like(4, 3)))
            assert_close(*results)

    def test_anomaly_detection_and_hooks_of_saved_tensors(self) -> None:
        model, other, f = both()
        with torch.autograd.detect_anomaly(check_nan=False):
            alike(f, model, other)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x.clone()):
            alike(f, model, other)
        with torch.autograd.graph.save_on_cpu():
            alike(f, model, other)

    def test_threads(self) -> None:
        model, other, f = both()
        f(x_like(4, 3))
        found: list[Any] = []

        def run() -> None:
            try:
                alike(f, model, other)
                found.append(None)
            except BaseException as error:
                found.append(error)

        threads = [threading.Thread(target=run) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [None] * 3


class TestGraphs:
    def test_hooks_and_retained_gradients_within(self) -> None:
        def f(x: Tensor) -> tuple[Tensor, Tensor]:
            y = x.sin() * x
            z = torch.softmax(y, -1)
            return z * y, y

        found = []
        for each in (compiled(f), f):
            x = x_like(4, 3).requires_grad_()
            z, y = each(x)
            y.register_hook(lambda g: g * 2)
            y.retain_grad()
            (z * y).sum().backward()
            found.append((x.grad, y.grad))
        assert_close(*found)

    def test_a_hook_within_is_called_where_its_result_is_differentiated(self) -> None:
        def f(x: Tensor) -> tuple[Tensor, Tensor]:
            y = x.sin() * x
            z = y * 2
            z.register_hook(lambda g: g * 3)
            return y.exp(), z.cos()

        for place in (0, 1):
            found = []
            for each in (compiled(f), f):
                x = x_like(4, 3).requires_grad_()
                found.append(torch.autograd.grad(each(x)[place].sum(), x))
            assert_close(*found)

    def test_a_derivative_in_an_intermediate_result(self) -> None:
        def forces(x: Tensor) -> Tensor:
            r = (x - x.roll(1, 0)) * 2
            distance = r.norm(dim=-1)
            energy = (torch.exp(-distance) * distance).sum()
            (force,) = torch.autograd.grad(energy, r, create_graph=True)
            return force * r.sin()

        for trace in (False, True):
            torch._dynamo.reset()
            with torch._dynamo.config.patch(trace_autograd_ops=trace):
                x = x_like(4, 3).requires_grad_()
                ours, native = compiled(forces)(x), forces(x)
                assert_close(ours, native)
                assert_close(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (ours, native)))

    def test_one_graph_twice(self) -> None:
        model, other, f = both()
        for ours, native in zip(
            gradients(lambda x: f(f(x)), x_like(4, 3), list(other.parameters())),
            gradients(lambda x: model(model(x)), x_like(4, 3), list(model.parameters())),
            strict=True,
        ):
            assert_close(ours, native)

    def test_backward_twice(self) -> None:
        model, other, f = both()
        for each in (model, other):
            y = (f if each is other else each)(x_like(4, 3)).square().sum()
            y.backward(retain_graph=True)
            y.backward()
        for ours, native in zip(other.parameters(), model.parameters(), strict=True):
            assert_close(ours.grad, native.grad)

    def test_checkpoints_around_a_compiled_layer(self) -> None:
        model, _, f = both()
        for reentrant in (False, True):
            x = x_like(4, 3).requires_grad_()
            y, native = checkpoint(f, x, use_reentrant=reentrant), model(x)
            y.square().sum().backward()
            (slope,) = torch.autograd.grad(native.square().sum(), x)
            assert_close(x.grad, slope)

    @pytest.mark.parametrize("options", [{}, {"context_fn": keep_products}, {"determinism_check": "none"}])
    def test_a_checkpoint_within_draws_the_same_numbers_again(self, options: dict[str, Any]) -> None:
        layer = nn.Linear(3, 3).double()

        def body(x: Tensor) -> Tensor:
            return F.dropout(layer(x.sin() * x), 0.5) * x

        def f(x: Tensor) -> Tensor:
            return checkpoint(body, x * 2, use_reentrant=False, **options) * x.exp()

        found = []
        for each in (compiled(f), f):
            torch.manual_seed(0)
            x = x_like(4, 3).requires_grad_()
            found.append(torch.autograd.grad(each(x).square().sum(), [x, *layer.parameters()]))
        assert_close(*found)

    def test_a_checkpoint_within_writes_buffers(self) -> None:
        model = nn.Sequential(nn.BatchNorm1d(3), nn.SiLU()).double()
        other, found = copy.deepcopy(model), []
        f = compiled(lambda x: checkpoint(other, x, use_reentrant=False))
        for each in (f, lambda x: checkpoint(model, x, use_reentrant=False)):
            x = x_like(4, 3).requires_grad_()
            found.append(torch.autograd.grad(each(x.exp()).square().sum(), x))
        assert_close(*found)
        assert_close(list(other.buffers()), list(model.buffers()))

    @pytest.mark.parametrize("around", [compiled, lambda f: f])
    @pytest.mark.parametrize("within", [True, False])
    def test_the_argument_of_a_checkpoint_within_may_not_change(self, around: Function, within: bool) -> None:
        w = torch.ones((), dtype=torch.float64, requires_grad=True)

        def body(x: Tensor) -> Tensor:
            y = x.sin() * w * w
            return y * x.mul_(2).sin() if within else y

        x = x_like(4, 3)
        y = around(lambda x: checkpoint(body, x, use_reentrant=False))(x)
        x.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()

    @pytest.mark.parametrize(
        "within", [lambda x: checkpoint(rows, x, use_reentrant=False), torch.compiler.nested_compile_region(rows)]
    )
    def test_what_is_within_a_checkpoint_or_a_region_is_compiled(self, within: Function) -> None:
        def f(x: Tensor) -> Tensor:
            return within(x * 2) * within(x.cos() * x)

        hold(f, x_like(4, 3))
        assert sizes(f, x_like(4, 3).requires_grad_()) == [3, 2, 3]

    def test_a_graph_break_between_rows(self) -> None:
        def f(x: Tensor) -> Tensor:
            y = torch.softmax(x.sin() * x, -1)
            torch._dynamo.graph_break()
            return F.layer_norm(y.exp() * x, (3,))

        hold(f, x_like(4, 3), highest=2)

    def test_functions_that_branch_on_values(self) -> None:
        def f(x: Tensor) -> Tensor:
            y = (x.sin() * x).sum(-1)
            return torch.softmax(x, -1) * x if y.sum() > 0 else F.normalize(x * 2, dim=-1)

        f_compiled = compiled(f)
        for x in (x_like(4, 3), -x_like(4, 3), x_like(4, 3) + 3):
            assert_close(f_compiled(x), f(x))


class TestDerivatives:
    def test_transforms_of_a_compiled_model(self) -> None:
        model, _, f = both()
        x, v = x_like(2, 3), x_like(2, 3).cos()
        assert_close(hessian(lambda x: f(x).square().sum())(x), hessian(lambda x: model(x).square().sum())(x))
        assert_close(vmap(f)(x_like(5, 2, 3)), vmap(model)(x_like(5, 2, 3)))
        assert_close(jvp(f, (x,), (v,))[1], jvp(model, (x,), (v,))[1])

    def test_batched_gradients(self) -> None:
        model, _, f = both()
        x = x_like(4, 3).requires_grad_()
        basis = torch.eye(12, dtype=torch.float64).reshape(12, 4, 3)
        ours, native = (torch.autograd.grad(each(x), x, basis, is_grads_batched=True)[0] for each in (f, model))
        assert_close(ours, native)
        total = torch.autograd.functional.hessian(lambda x: f(x).square().sum(), x.detach(), vectorize=True)
        assert_close(total, hessian(lambda x: model(x).square().sum())(x.detach()))

    def test_forward_mode(self) -> None:
        from torch.autograd import forward_ad

        model, _, f = both()
        x = x_like(4, 3)

        def tangent(f: Function) -> Tensor:
            with forward_ad.dual_level():
                return forward_ad.unpack_dual(f(forward_ad.make_dual(x, x.cos()))).tangent

        assert_close(tangent(f), tangent(model))

    def test_the_laplacian(self) -> None:
        model, _, f = both()
        assert_close(ad.laplacian(f, x_like(4, 3)), ad.laplacian(model, x_like(4, 3)))


def chosen(x: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, lambda x: x.sin() * x, lambda x: torch.softmax(x * 2, -1) * x.exp(), (x * 1,)) * x


def chosen_in_python(x: Tensor) -> Tensor:
    return x.sin() * x * x if x.sum() > 0 else torch.softmax(x * 2, -1) * x.exp() * x


def mapped(x: Tensor) -> Tensor:
    return higher.map(lambda row: row.sin() * row.sigmoid(), x) * x.exp()


def scanned(x: Tensor) -> Any:
    return higher.scan(lambda carried, row: (carried.sin() * row, carried * row.exp()), x_like(3), x)


def scanned_in_python(x: Tensor) -> tuple[Tensor, Tensor]:
    carried, found = x_like(3), []
    for row in x:
        found.append(carried * row.exp())
        carried = carried.sin() * row
    return carried, torch.stack(found)


def repeated(x: Tensor) -> Tensor:
    return higher.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y.sin() * y), (torch.tensor(0), x * 1))[1]


def repeated_in_python(x: Tensor) -> Tensor:
    for _ in range(3):
        x = x.sin() * x
    return x


class TestControlFlow:
    """The second derivatives that PyTorch has of it are wrong."""

    @pytest.mark.parametrize(
        ("f", "in_python"),
        [
            (chosen, chosen_in_python),
            (mapped, lambda x: x.sin() * x.sigmoid() * x.exp()),
            (scanned, scanned_in_python),
            (repeated, repeated_in_python),
        ],
    )
    def test_every_order_is_right(self, f: Function, in_python: Function) -> None:
        for x in (x_like(4, 3), -x_like(4, 3)):
            hold(f, x, reference=in_python)

    def test_what_is_within_is_compiled(self) -> None:
        assert sizes(chosen, x_like(4, 3)) == [2, 4]

    def test_rows_of_a_batch_that_go_different_ways(self) -> None:
        f = vmap(lambda v: torch.cond(v.sum() > 0, torch.sin, torch.cos, (v,)))
        x = x_like(4, 3)
        expected = torch.where(x.sum(-1, True) > 0, x.sin(), x.cos())
        assert_close(compiled(lambda x: f(x) * x.exp())(x), expected * x.exp())


class OwnReversal(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return -grad_output


class TestFunctionsOfOthers:
    """Dynamo records the backward of an ``autograd.Function`` without a derivative."""

    @pytest.mark.parametrize(
        "f",
        [
            lambda x: Cube.apply(x.sin() * x),
            Cube.apply,
            lambda x: OwnReversal.apply(x * x) * x,
            lambda x: Inner.of(x) * Cube.apply(Inner.of(x)),
        ],
    )
    @pytest.mark.filterwarnings("ignore:torch.compile")
    def test_every_order_is_right(self, f: Function) -> None:
        hold(f, x_like(3))

    def test_it_is_said_once_and_what_it_calls_is_compiled(self) -> None:
        f = lambda x: Inner.of(x) * Cube.apply(x)  # noqa: E731
        with pytest.warns(UserWarning, match=r"autograd\.Function at .*test_compiler_traps.py:\d+: Dynamo records"):
            compiled(f)(x_like(3).requires_grad_())
        torch._dynamo.reset()
        explanation = ad.explain(f, x_like(3).requires_grad_())
        assert [cluster.operations for cluster in explanation.clusters][:1] == [2]
        ((_, what, why),) = explanation.left
        assert what == "autograd.Function" and "without a derivative" in why

    def test_strict_mode(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCHAD_EXT_STRICT", "1")
        with pytest.raises(Exception, match=r"cannot compile the autograd\.Function"):
            compiled(Cube.apply)(x_like(3).requires_grad_())


class Inner:
    @staticmethod
    def of(x: Tensor) -> Tensor:
        return x.sin() * x


def unsqueezed(x: Tensor) -> Tensor:
    h = x.exp()
    z = h.sin().unsqueeze(0) * x
    h.unsqueeze_(0)
    return z * h


def unsqueezed_between(x: Tensor) -> Tensor:
    h = x * 1
    z = h.sin().unsqueeze(0) * x.cos()
    h.unsqueeze_(0)
    return z * z


def transposed(x: Tensor) -> Tensor:
    y = x.sin()
    y.t_()
    return y * y.cos()


def transposed_and_written(x: Tensor) -> Tensor:
    y = x.sin() * 2
    view = y[0]
    z = view.exp()
    y.transpose_(0, 1)
    y.mul_(2)
    return z.sum() * y.cos()


def squeezed(x: Tensor) -> Tensor:
    y = x[:, :1].sin().squeeze_(-1)
    return (y * 2).cos()


def unsqueezed_after_a_checkpoint(x: Tensor) -> Tensor:
    h = x.exp()
    z = checkpoint(lambda: h.sin() * h, use_reentrant=False)
    h.unsqueeze_(0)
    return z * h


def written_into_out(x: Tensor) -> Tensor:
    y = F.threshold(x[:, 0], 0.1, 0.5)
    with torch.no_grad():
        F.normalize(x, 2.0, -1, 1e-12, y)
    return y.cos() * x


def swapped_rows(x: Tensor) -> Tensor:
    y = x.repeat(300, 100).sin()
    y.swapaxes_(0, 1)
    return torch.softmax(y, -1) * y


@pytest.mark.parametrize(
    "f",
    [
        unsqueezed,
        unsqueezed_between,
        transposed,
        transposed_and_written,
        squeezed,
        unsqueezed_after_a_checkpoint,
        written_into_out,
        swapped_rows,
    ],
)
def test_shapes_that_change_in_place(f: Function) -> None:
    """Of such a tensor Dynamo knows the last shape alone."""
    x = x_like(3, 4 if f in (swapped_rows, written_into_out) else 3)
    y, expected = compiled(f)(x), f(x)
    assert_close(y, expected)
    assert y.stride() == expected.stride()
    if f in (transposed, transposed_and_written, squeezed):  # of the others eager mode has no gradient
        hold(f, x, highest=2)


@pytest.mark.parametrize(
    "f",
    [
        vmap(lambda v: v.sin() * v),
        lambda x: vmap(torch.tanh)(x) * x.sin().exp(),
        vmap(lambda v: v + v * 2, in_dims=1),
        vmap(torch.func.grad(lambda v: (v.sin() * v).sum())),
        vmap(lambda v: jvp(lambda u: u.sin() * u, (v,), (v,))[1]),
    ],
)
def test_transforms_inside(f: Function) -> None:
    hold(lambda x: f(x) * x.cos().sum(), x_like(4, 3), highest=2)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: 2**x,
        lambda x: torch.pow(2.0, x) * x,
        F.logsigmoid,
        lambda x: F.logsigmoid(x) * x,
        lambda x: torch.float_power(2.0, x),
        lambda x: torch.xlogy(x_like(4, 3), x.abs()),
        lambda x: torch.xlogy(x, x_like(4, 3).abs()),
        lambda x: torch.logaddexp(x_like(4, 3), x),
        lambda x: torch.copysign(x, x_like(4, 3)),
        lambda x: torch.where(torch.logical_and(x > 0, x_like(4, 3) > 0), x, x_like(4, 3)),
    ],
)
@pytest.mark.parametrize("turn", [lambda x: x.mT.contiguous().mT, lambda x: x.repeat(1, 2)[:, ::2], torch.clone])
def test_strides_are_those_of_eager_mode(f: Function, turn: Function) -> None:
    """The meta functions of some have others."""
    x = turn(x_like(4, 3))
    y, expected = compiled(f)(x), f(x)
    assert_close(y, expected)
    assert y.stride() == expected.stride()
