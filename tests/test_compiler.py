"""The backend of torch.compile: what it fuses, what it leaves alone, and that nothing else changes."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import pickle
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from compiled_models import Function, compiled, hold, sizes, x_like
from random_modules import check
from selection import few
from torch import Tensor, nn
from torch.func import grad, hessian, jacfwd, vmap
from torch.fx import Graph
from torch.testing import assert_close

import torchad_ext as ad
from torchad_ext._fusion import fused_ops, graph_calls
from torchad_ext._fusion.clusters import LONGEST, Clusters


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def gate(x: Tensor) -> Tensor:
    return torch.sigmoid(3 * x) * torch.sin(x) + x


class Network(nn.Module):
    """Layers of one kind, with a residual connection and a learned slope."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3) for _ in range(depth)])
        self.slope = nn.Parameter(torch.tensor(1.5))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            y = layer(x)
            x = x + y * torch.sigmoid(self.slope * y)
        return x.sum(-1)


class TestWhatIsFused:
    def test_a_chain_is_one_op(self) -> None:
        assert sizes(gate, x_like(4)) == [5]
        hold(gate, x_like(4))

    def test_equal_clusters_share_an_op(self) -> None:
        explanation = ad.explain(Network(), x_like(4, 3))
        assert len(explanation.clusters) == 3
        assert len({id(cluster.op) for cluster in explanation.clusters}) == 1

    def test_of_other_numbers_they_do_not(self) -> None:
        explanation = ad.explain(
            lambda x: ((2 * x).sin().sum() + (3 * x).sin().sum(), (2.0 * x).sin().sum()), x_like(4)
        )
        assert len({id(cluster.op) for cluster in explanation.clusters}) == 3

    def test_a_network_with_its_parameters(self) -> None:
        model = Network()
        hold(model, x_like(4, 3), list(model.parameters()))

    def test_a_cheap_call_by_itself_is_left(self) -> None:
        assert sizes(lambda x: (x @ x + x) @ x, x_like(3, 3)) == []

    def test_operands_that_broadcast(self) -> None:
        def f(x: Tensor) -> Tensor:
            return torch.sin(x) * x[:, :1] + x[0] * x[0, 0]

        assert sizes(f, x_like(4, 3)) == [3]  # a product of rows, which is cheap, is left
        hold(f, x_like(4, 3))

    def test_an_output_that_does_not_depend_on_all_inputs(self) -> None:
        def f(x: Tensor) -> tuple[Tensor, Tensor]:
            y = x.sin() * x
            return y.cumsum(0), (y * x[:1]).exp()

        assert sizes(f, x_like(4, 3)) == [4]
        hold(f, x_like(4, 3))

    def test_masks_and_constants_within(self) -> None:
        def f(x: Tensor) -> Tensor:
            far = (x > 0.3) | (x.mean(-1, keepdim=True) > 0.1)
            return torch.where(far, torch.logaddexp(x, torch.zeros_like(x)), x * x).masked_fill(x < -1, 0.5)

        assert sizes(f, x_like(4, 3)) == [4]
        hold(f, x_like(4, 3))

    @pytest.mark.parametrize(
        "view",
        [
            lambda x: x.unsqueeze(1),
            lambda x: torch.unsqueeze(x, dim=-2),
            lambda x: x[:, None],
            lambda x: x[..., None, :],
        ],
    )
    def test_calls_with_a_view_between_them(self, view: Function) -> None:
        def f(x: Tensor) -> Tensor:
            chain = torch.sin(x) * x[0] + x[:, :1]
            return torch.exp(view(chain) * x[:, None, :]) + x[0, :, None]

        assert sizes(f, x_like(3, 3)) == [5]
        hold(f, x_like(3, 3))

    def test_a_view_with_a_first_dimension_between_calls(self) -> None:
        def f(x: Tensor) -> Tensor:
            return torch.exp((x.sin() * x).unsqueeze(0) * x[None])

        assert sizes(f, x_like(3, 3)) == [4]
        hold(f, x_like(3, 3))

    def test_a_view_of_what_others_read_stays(self) -> None:
        def f(x: Tensor) -> Tensor:
            y = x.sin() * x
            return (y.unsqueeze(1) * x[:, None]).exp().sum() + y.cumsum(0).sum()

        assert sizes(f, x_like(3, 3)) == [2, 2]
        hold(f, x_like(3, 3))

    def test_a_view_of_a_choice_stays(self) -> None:
        def f(x: Tensor) -> Tensor:
            return (torch.where(x > 0, x.sin(), x * x).unsqueeze(1) * x[:, None]).exp()

        assert sizes(f, x_like(3, 3)) == [3, 2]
        hold(f, x_like(3, 3))

    def test_a_view_that_no_call_of_its_shape_reads_stays(self) -> None:
        def f(x: Tensor) -> Tensor:
            return ((x.sin() * x).unsqueeze(1) * torch.stack([x, x], 1)).exp()

        assert sizes(f, x_like(3, 3)) == [2, 2]
        hold(f, x_like(3, 3))

    @pytest.mark.parametrize("seed", few(range(60), lambda seed: seed < 30))
    @pytest.mark.usefixtures("interpreted")
    def test_random_modules(self, seed: int) -> None:
        check(seed)

    @pytest.mark.parametrize("seed", few(range(1000, 1004), lambda seed: seed == 1000))
    def test_random_modules_by_kernels(self, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(graph_calls, "SMALLEST", 0)
        check(seed)

    def test_what_compiles_at_the_end_is_faster_to_call_than_the_parts(self) -> None:
        model = compiled(gate)
        x = x_like(4)
        model(x)
        with torch.profiler.profile() as profile:
            model(x)
        names = {event.name for event in profile.events()}
        assert not names & {"aten::sigmoid", "aten::sin", "aten::mul", "aten::add"}


def written(x: Tensor) -> Tensor:
    y = x * 2
    before = y + 1
    y.mul_(3)
    return before * y


def written_through_a_view(x: Tensor) -> Tensor:
    y = x * 2
    first = y[:1]
    before = y + 1
    first.add_(5)
    return before * y.sin()


def written_item(x: Tensor) -> Tensor:
    y = x * 2
    before = y + y
    y[0] = 1.0
    return before * y.cos()


def written_by_an_operator(x: Tensor) -> Tensor:
    y = x * 2
    before = y + 1
    y += x
    y *= 2
    return before - y


def written_by_an_option(x: Tensor) -> Tensor:
    y = x * 2
    before = y + 1
    z = F.silu(y + 0, True)
    F.elu(y, inplace=True)
    return before * y + z


def written_into_out(x: Tensor) -> Tensor:
    with torch.no_grad():
        y = torch.empty_like(x)
        torch.sin(x, out=y)
        before = y * 2
        torch.cos(x, out=y)
    return x * before + y


def written_into_out_by_its_place(x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x * 2
        before = y.exp() * y
        F.normalize(x, 2.0, -1, 1e-12, y)
        after = y.exp() * y + before
    return x * after


def written_by_an_overload(x: Tensor) -> Tensor:
    y = x * 2
    before = y + 1
    torch.ops.aten.mul_.Tensor(y, x)
    return before * y.sin()


def written_after_a_result_was_kept(x: Tensor) -> Tensor:
    y = x.cumsum(0)
    e = y.exp()  # eager mode keeps e for the derivative, an op would keep y
    y.add_(1)
    return e * y


def written_by_keyword_after_a_result_was_kept(x: Tensor) -> Tensor:
    y = x.cumsum(0)
    e = y.exp()
    F.silu(input=y, inplace=True)
    return e * y


def written_in_a_list_after_a_result_was_kept(x: Tensor) -> Tensor:
    y = x.cumsum(0)
    e = y.exp()
    torch._foreach_mul_([y], 2.0)
    return e * y


def written_by_dropout_after_a_result_was_kept(x: Tensor) -> Tensor:
    y = x.cumsum(0)
    e = y.exp()
    F.dropout(y, 1.0, True, True)
    return e * x + y


def written_after_a_dropout_of_nothing(x: Tensor) -> Tensor:
    y, u = x.cumsum(0), x.cumsum(1)
    z, v = F.dropout(y, 0.5, training=False), F.dropout(u, 0.0)  # which are y and u
    e, f = z[:2].exp(), u[2:].exp()
    y.mul_(0.5)
    v.mul_(0.5)
    return torch.cat([e, f]) * y * u


def written_by_an_embedding(x: Tensor) -> Tensor:
    y = x.detach() * 3
    before = y * 2
    z = F.embedding(torch.tensor([0, 2]), y, max_norm=0.5)  # which scales rows of y
    return x * before.sin() + (y * 2).cos() * x + z.sum()


def written_by_an_embedding_twice(x: Tensor) -> Tensor:
    y = x.detach() * 3
    z = F.embedding(torch.tensor([1]), y, None, 0.5)
    w = (y * 2).sin() * x
    return w + F.embedding(torch.tensor([0]), y, None, 0.1, 1.0) * z + y.cos() * x


def written_result(x: Tensor) -> Tensor:
    y, z = x.sin() * x, x.cos() * x
    y.mul_(z)
    return y + z


@pytest.mark.parametrize(
    "f",
    [
        written,
        written_through_a_view,
        written_item,
        written_by_an_operator,
        written_by_an_option,
        written_into_out,
        written_into_out_by_its_place,
        written_by_an_overload,
        written_after_a_result_was_kept,
        written_by_keyword_after_a_result_was_kept,
        written_in_a_list_after_a_result_was_kept,
        written_by_dropout_after_a_result_was_kept,
        written_after_a_dropout_of_nothing,
        written_by_an_embedding,
        written_by_an_embedding_twice,
        written_result,
    ],
)
@pytest.mark.usefixtures("interpreted")
class TestWrites:
    def test_nothing_moves_across(self, f: Function) -> None:
        hold(f, x_like(4, 3))

    def test_an_input_that_is_written_has_its_new_values(self, f: Function) -> None:
        def of_input(x: Tensor) -> Tensor:
            y = f(x) * x
            x.mul_(2)
            return y + x.sin()

        ours, native = x_like(4, 3), x_like(4, 3)
        assert_close(compiled(of_input)(ours), of_input(native))
        assert_close(ours, native)


def detached(x: Tensor) -> Tensor:
    with torch.no_grad():
        y = torch.sin(x) * x
    return y * x + x.detach() * x.exp()


def enabled_again(x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x * 2
        with torch.enable_grad():
            z = x.sin() * y
    return z * y


def switched(x: Tensor) -> Tensor:
    y = x.sin() * x
    torch.set_grad_enabled(False)
    z = y.cos() * x
    torch.set_grad_enabled(True)
    return z * y


@pytest.mark.usefixtures("kernels_when_long")
class TestSwitches:
    @pytest.mark.usefixtures("interpreted")
    @pytest.mark.parametrize("f", [detached, enabled_again, switched])
    def test_nothing_moves_across_no_grad(self, f: Function) -> None:
        hold(f, x_like(4, 3))

    def test_a_view_does_not_leave_no_grad(self) -> None:
        def f(x: Tensor) -> Tensor:
            y = x.sin() * x
            with torch.no_grad():
                v = y.unsqueeze(0)
            return torch.exp(v * x[None])

        hold(f, x_like(4))

    def test_a_mask_of_what_requires_a_gradient_gives_none(self) -> None:
        def f(x: Tensor, c: Tensor) -> Tensor:
            return torch.where(x > 0, c, 2 * c)

        x = x_like(4).requires_grad_()
        assert not compiled(f)(x, torch.ones(4).double()).requires_grad

    def test_under_autocast_dtypes_are_those_of_eager_mode(self) -> None:
        model = nn.Sequential(nn.Linear(3, 3), nn.SiLU(), nn.Linear(3, 3))

        def inside(x: Tensor) -> Tensor:
            y = x.sin() * x
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = model(y) * y
            return y.exp() * x

        x = x_like(4, 3).float()
        assert_close(compiled(inside)(x), inside(x))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ours, native = compiled(model)(x), model(x)
        assert ours.dtype == native.dtype == torch.bfloat16
        assert_close(ours, native)

    def test_under_inference_mode(self) -> None:
        f = compiled(gate)
        x = x_like(4)
        with torch.inference_mode():
            assert f(x).is_inference()
        x.requires_grad_()
        assert f(x).requires_grad
        with torch.no_grad():
            assert not f(x).requires_grad

    def test_forward_mode_inside_and_outside(self) -> None:
        from torch.autograd import forward_ad

        def tangent(f: Function, x: Tensor) -> Tensor:
            with forward_ad.dual_level():
                return forward_ad.unpack_dual(f(forward_ad.make_dual(x, torch.ones_like(x)))).tangent

        x = x_like(4)
        assert_close(tangent(compiled(gate), x), tangent(gate, x))

        def inside(x: Tensor) -> Tensor:
            return torch.func.jvp(gate, (x,), (x,))[1] * x

        assert_close(compiled(inside)(x), inside(x))


@pytest.mark.usefixtures("kernels_when_long")
class TestClusters:
    @pytest.mark.parametrize("seed", range(30))
    def test_any_graph_has_an_order(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        graph = Graph()
        nodes = [graph.placeholder("x")]
        for _ in range(60):
            i, j, kind = (int(torch.randint(n, (), generator=generator)) for n in (len(nodes), len(nodes), 5))
            a, b = nodes[-1 - i // 4], nodes[-1 - j // 4]
            calls = [(torch.mul, (a, b)), (torch.sin, (a,)), (torch.add, (a, b)), (torch.matmul, (a, b))]
            calls.append((torch.where, (graph.call_function(torch.gt, (a, b)), a, b)))
            nodes.append(graph.call_function(*calls[kind]))
        graph.output(nodes[-1])
        for node in graph.nodes:
            bool_ = node.target is torch.gt
            node.meta["example_value"] = torch.zeros(3, 3, dtype=torch.bool if bool_ else torch.float64)
        clusters = Clusters(list(graph.nodes))
        order = clusters.in_order()
        assert any(len(group) > 2 for group in order)
        seen: set[Any] = set()
        for group in order:
            assert set(clusters.reads(group)) <= seen
            seen |= set(group)

    def test_what_goes_through_a_reduction_and_comes_back_is_not_one_cluster(self) -> None:
        def f(x: Tensor) -> Tensor:
            y = x.sin() * x
            return y.exp() * y.sum() + y

        assert sizes(f, x_like(4)) == [3, 2]
        hold(f, x_like(4))

    @pytest.mark.usefixtures("interpreted")
    def test_a_long_chain_is_cut(self) -> None:
        def f(x: Tensor) -> Tensor:
            for _ in range(90):
                x = x.sin() * 1.1
            return x

        assert sizes(f, x_like(4)) == [LONGEST, 180 - LONGEST]
        hold(f, x_like(4), highest=1)


@pytest.mark.usefixtures("kernels_when_long")
class TestShapesAndNumbers:
    def test_any_batch_size(self) -> None:
        model = Network()
        f = torch.compile(model, backend="torchad_ext", dynamic=True)
        for n in (5, 0, 1, 7, 2):
            x = torch.randn(n, 3, dtype=torch.float64, requires_grad=True)
            assert_close(f(x), model(x))
            slopes = [torch.autograd.grad(each(x).sum(), x, create_graph=True)[0] for each in (f, model)]
            assert_close(*(torch.autograd.grad(s.square().sum(), x)[0] for s in slopes))

    def test_sizes_as_numbers(self) -> None:
        def f(x: Tensor) -> Tensor:
            return (x.sin() / x.shape[0] + x).exp() * x.size(0)

        for n in (3, 4, 5, 6):
            hold(f, x_like(n, 2), highest=2)
            torch._dynamo.reset()
        f_compiled = torch.compile(f, backend="torchad_ext", dynamic=True)
        for n in (3, 4, 5, 6):
            assert_close(f_compiled(x_like(n, 2)), f(x_like(n, 2)))

    def test_changing_numbers(self) -> None:
        def f(x: Tensor, a: float) -> Tensor:
            return torch.sin(a * x) * x + a

        count, known = compiled(f), len(fused_ops._ops)
        for a in (0.5, 1.5, 2.5, 3.5, 4.5, 5.5):
            assert_close(count(x_like(4), a), f(x_like(4), a))
        assert len(fused_ops._ops) <= known + 2  # one for the first number, one for all others

    def test_mixed_dtypes_end_a_cluster(self) -> None:
        def f(x: Tensor) -> Tensor:
            y = (x.sin() * x).float()
            z = y.exp() * y
            return z + x.cos() * x

        assert sizes(f, x_like(4)) == [2, 2, 2]
        hold(f, x_like(4), highest=1)

    def test_tensors_of_other_dtypes_are_left(self) -> None:
        def f(x: Tensor) -> Tensor:
            number = torch.arange(4)
            return x.sin() * number + (number == 2) * x.exp() + (x + 1j).real * torch.tensor(2.0)

        hold(f, x_like(4))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    def test_other_floating_point(self, dtype: torch.dtype) -> None:
        x = x_like(4).to(dtype)
        assert_close(compiled(gate)(x), gate(x), rtol=2e-2 if dtype != torch.float32 else 1e-6, atol=1e-3)

    def test_masks_from_outside_and_masks_as_results(self) -> None:
        def f(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
            positive = x > 0
            y = torch.where(mask, x.sin() * x, x * x)
            return torch.where(positive, y.exp(), y), positive & mask

        x, mask = x_like(6), torch.tensor([True, False] * 3)
        for ours, native in zip(compiled(f)(x, mask), f(x, mask), strict=True):
            assert_close(ours, native)
        hold(lambda x: f(x, mask)[0], x)

    def test_strides_are_those_of_eager_mode(self) -> None:
        def f(x: Tensor) -> Tensor:
            y = x.t().contiguous().t()
            z = (y * y).sin()  # in columns
            return (x.exp() + z).view(-1)  # in rows

        hold(f, x_like(4, 3))
        assert "strides" in str(ad.explain(f, x_like(4, 3)))

    def test_views_and_aliases_stay_what_they_are(self) -> None:
        def f(x: Tensor) -> tuple[Tensor, ...]:
            y = x.sin() * x
            return y, y.view(-1), y.detach(), x.t(), x

        x = x_like(4, 3)
        y, flat, detached, turned, same = compiled(f)(x)
        assert y.data_ptr() == flat.data_ptr() == detached.data_ptr()
        assert turned.data_ptr() == x.data_ptr() and same is x


@pytest.mark.usefixtures("kernels_when_long")
class TestModules:
    def test_training_gives_the_same_parameters(self) -> None:
        def trained(wrap: Function) -> list[Tensor]:
            torch.manual_seed(0)
            model = Network()
            optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
            f = wrap(model)
            for step in range(5):
                x = x_like(4, 3).mul(step + 1).requires_grad_()
                (slope,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
                optimizer.zero_grad()
                slope.square().sum().backward()
                optimizer.step()
            return list(model.parameters())

        for ours, native in zip(trained(compiled), trained(lambda model: model), strict=True):
            assert_close(ours, native)

    def test_dropout_draws_the_same_and_batch_norm_counts_the_same(self) -> None:
        model = nn.Sequential(
            nn.Linear(3, 8), nn.SiLU(), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.GELU(), nn.Dropout(0.2)
        )
        model.double()
        other = copy.deepcopy(model)
        f = compiled(other)
        for training in (True, False, True):
            for each in (model, other):
                each.train(training)
            torch.manual_seed(3)
            expected = model(x_like(4, 3))
            torch.manual_seed(3)
            assert_close(f(x_like(4, 3)), expected)
        for ours, native in zip(other.buffers(), model.buffers(), strict=True):
            assert_close(ours, native)

    def test_draws_keep_their_order(self) -> None:
        def f(x: Tensor) -> Tensor:
            y = x.sin() * x
            first = torch.rand_like(x) * y.exp()
            return F.dropout(x, 0.5) + first * torch.randn(4)

        torch.manual_seed(1)
        expected = f(x_like(4))
        torch.manual_seed(1)
        assert_close(compiled(f)(x_like(4)), expected)

    def test_checkpoint(self) -> None:
        from torch.utils.checkpoint import checkpoint

        def f(x: Tensor) -> Tensor:
            return checkpoint(gate, x.exp() * x, use_reentrant=False).sin() * x

        hold(f, x_like(4))

    def test_hooks_are_called(self) -> None:
        model, calls = Network(), []
        model.layers[0].register_forward_hook(lambda module, args, result: result * 2)
        x = x_like(4, 3).requires_grad_()
        expected = model(x)
        y = compiled(model)(x)
        assert_close(y, expected)
        model.slope.register_hook(lambda g: calls.append(g))
        y.sum().backward()
        assert len(calls) == 1

    def test_hooks_of_all_modules_are_called_for_those_of_the_model(self) -> None:
        called: list[nn.Module] = []
        hook = nn.modules.module.register_module_forward_hook(lambda module, *_: called.append(module))
        try:
            compiled(lambda x: x.sin() * x)(x_like(4))
        finally:
            hook.remove()
        assert called == []

    def test_saving_and_loading(self) -> None:
        model = Network()
        f = compiled(model)
        f(x_like(4, 3))
        again = pickle.loads(pickle.dumps(model))
        assert_close(again(x_like(4, 3)), model(x_like(4, 3)))
        file = io.BytesIO()
        torch.save(f.state_dict(), file)
        file.seek(0)
        f.load_state_dict({key: value * 2 for key, value in torch.load(file).items()})
        assert_close(f(x_like(4, 3)), model(x_like(4, 3)))
        assert_close(copy.deepcopy(f)(x_like(4, 3)), model(x_like(4, 3)))

    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_distributed_data_parallel(self, tmp_path: Any) -> None:
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
        try:
            model = Network()
            expected = torch.autograd.grad(model(x_like(4, 3)).sum(), list(model.parameters()))
            f = compiled(nn.parallel.DistributedDataParallel(model))
            f(x_like(4, 3)).sum().backward()
            for parameter, native in zip(model.parameters(), expected, strict=True):
                assert_close(parameter.grad, native)
        finally:
            dist.destroy_process_group()


@pytest.mark.usefixtures("kernels_when_long")
class TestDerivativeTools:
    def test_torch_func_of_a_compiled_function(self) -> None:
        f = compiled(lambda x: gate(x).sum())
        x = x_like(4)
        native = hessian(lambda x: gate(x).sum())(x)
        assert_close(hessian(f)(x), native)
        assert_close(jacfwd(grad(f))(x), native)
        assert_close(vmap(grad(f))(x_like(5, 4)), vmap(grad(lambda x: gate(x).sum()))(x_like(5, 4)))
        assert_close(ad.hessian(f, x), native)

    def test_the_laplacian_of_a_compiled_network(self) -> None:
        model = Network()
        assert_close(ad.laplacian(compiled(model), x_like(4, 3)), ad.laplacian(model, x_like(4, 3)))

    @pytest.mark.parametrize("trace", [False, True])
    def test_a_gradient_inside(self, trace: bool) -> None:
        def force(x: Tensor) -> Tensor:
            if not x.requires_grad:
                x = x.requires_grad_()
            (slope,) = torch.autograd.grad(gate(x).sum(), x, create_graph=True)
            return slope.sin() * x

        with torch._dynamo.config.patch(trace_autograd_ops=trace):
            hold(force, x_like(4), highest=2)

    def test_transforms_inside(self) -> None:
        def f(x: Tensor) -> Tensor:
            return vmap(grad(lambda x: gate(x).sum()))(x).sin() * x

        hold(f, x_like(4, 3), highest=2)

    def test_a_compiled_function_in_a_compiled_function(self) -> None:
        inner = compiled(gate)

        def outer(x: Tensor) -> Tensor:
            return inner(x.exp() * 0.1) * x

        hold(outer, x_like(4))
        assert_close(torch.compile(outer, backend="aot_eager")(x_like(4)), outer(x_like(4)))

    def test_a_graph_break_costs_nothing_but_speed(self) -> None:
        def f(x: Tensor) -> Tensor:
            y = x.sin() * x
            torch._dynamo.graph_break()
            return y.exp() * x

        hold(f, x_like(4))
        assert ad.explain(f, x_like(4)).graphs == 2

    @pytest.mark.parametrize("call", [lambda y: torch.sin(y) * y, lambda y: torch.softmax(y.sin(), -1) * y])
    def test_a_gradient_after_a_graph_break_is_autograd_s(self, call: Function) -> None:
        def f(x: Tensor) -> Tensor:
            (slope,) = torch.autograd.grad(call(x @ W).sum(), W, create_graph=True)
            return slope.square().sum()

        W = x_like(3, 4).requires_grad_()
        assert ad.explain(f, x_like(5000, 3)).graphs == 2  # before and after the gradient
        hold(f, x_like(5000, 3), [W], highest=1)

    def test_ops_in_the_model(self) -> None:
        def f(x: Tensor) -> Tensor:
            return ad.silu(x) * ad.sin(x) + ad.quadratic_form(x, torch.eye(4, dtype=torch.float64))

        assert max(sizes(f, x_like(4))) >= 3
        hold(f, x_like(4))


@pytest.mark.usefixtures("kernels_when_long")
class TestExplain:
    def test_the_table(self) -> None:
        def f(x: Tensor, ids: Tensor) -> Tensor:
            y = torch.sin(x) * x
            return y.sum() * ids + (ids == 1) * x.exp()

        explanation = ad.explain(f, x_like(4), torch.arange(4))
        cluster, exp = explanation.clusters
        line = f.__code__.co_firstlineno + 1
        assert cluster.source == f"{__file__}:{line}" and cluster.operations == 2
        assert cluster.op.latex().endswith(r"x_{0} \, \sin x_{0}") and exp.operations == 1
        assert explanation.others == {"sum": 1} and explanation.graphs == 1
        text = str(explanation)
        assert f"{line}" in text and ("sin(x0) * x0" in text or "x0 * sin(x0)" in text)
        assert re.search(r"mul left +takes .*int64", text)
        assert text.endswith("1 graph; other calls: 1 sum")

    @pytest.mark.parametrize("around", [contextlib.nullcontext(), torch.device("cpu")])  # a mode, which makes the calls
    def test_places_are_in_the_code_of_the_user_or_in_the_model(self, around: Any) -> None:
        def f(x: Tensor) -> Tensor:
            return F.silu(x) + model(x).cumsum(0) + graph(x)

        model = nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.SiLU())).double()
        graph = torch.fx.symbolic_trace(lambda x: x.sin() * x)
        line = f"{__file__}:{f.__code__.co_firstlineno + 1}"
        with around:
            for g, expected in (f, line), (model, "0.1 (SiLU)"), (nn.SiLU(), "(model) (SiLU)"):
                assert {cluster.source for cluster in ad.explain(g, x_like(4, 3)).clusters} == {expected}

    def test_every_call_explains(self) -> None:
        def f(x: Tensor) -> Tensor:
            return torch.sin(x) * x

        assert [sizes(f, x_like(4)) for _ in range(12)] == [[2]] * 12
        assert compiled(f)(x_like(4).requires_grad_()).grad_fn.name() != "MulBackward0"

    def test_a_model_stays_as_it_is(self) -> None:
        model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Dropout(), torch.nn.LazyBatchNorm1d()).double()
        buffers, before = dict(model.named_buffers()), copy.deepcopy(model[0].state_dict())
        torch.manual_seed(0)
        ad.explain(model, x_like(4, 3))
        drawn = torch.rand(3)
        torch.manual_seed(0)
        assert_close(drawn, torch.rand(3), rtol=0, atol=0)
        assert_close(dict(model[0].state_dict()), dict(before), rtol=0, atol=0)
        assert all(x is buffers[name] for name, x in model[0].named_buffers(prefix="0"))

    def test_a_model_that_is_compiled_already(self) -> None:
        model = Network()
        expected = sizes(model, x_like(4, 3))
        model.compile(backend="eager")
        assert sizes(model, x_like(4, 3)) == sizes(compiled(Network()), x_like(4, 3)) == expected != []

    def test_of_no_function(self) -> None:
        with pytest.raises(TypeError, match="takes a model and its inputs, got int"):
            ad.explain(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("setting", [{"mode": "max-autotune"}, {"options": {"triton.cudagraphs": True}}])
def test_settings_of_other_backends_are_refused(setting: dict[str, Any]) -> None:
    ((name, value),) = setting.items()
    with pytest.raises(Exception, match=re.escape(f"has no mode and no options, got {name}={value!r}; leave it out")):
        compiled(gate, **setting)(x_like(4))


def test_the_name_is_found_without_an_import(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    entries = re.search(r"\[project\.entry-points\.(\w+)\]\n(.*)\n", (root / "pyproject.toml").read_text())
    installed = tmp_path / "torchad_ext-0.1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Name: torchad_ext\nVersion: 0.1\n")
    (installed / "entry_points.txt").write_text(f"[{entries[1]}]\n{entries[2].replace(chr(34), '')}\n")
    code = (
        "import sys, torch; print(torch.compile(lambda x: x.sin() * x, backend='torchad_ext')(torch.zeros(1)));"
        "print(sys.modules['torchad_ext._fusion.fused_ops']._ops)"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    output = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)
    assert "tensor([0.])" in output and "torchad_ext.compiled.sin_mul" in output


def test_importing_the_package_does_not_import_dynamo() -> None:
    code = "import sys, torchad_ext; print('torch._dynamo' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_nothing_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Guards may run slower")  # Dynamo's, of Python 3.13.0
        compiled(Network())(x_like(4, 3)).sum().backward()
