"""Calls along rows in the clusters of the backend: softmax, norms, normalisation, sums over the last dimension."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from compiled_models import Function, compiled, hold, sizes, x_like
from random_modules import interpret, layer_norm
from torch import Tensor
from torch.testing import assert_close

import torchad_ext as ad
from torchad_ext._fusion import fused_ops, graph_calls

WEIGHT = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _of_any_size_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    interpret(monkeypatch.setattr)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


CHAINS: dict[str, Function] = {
    "softmax": lambda x: torch.softmax(x.sin() * 2, -1) * x,
    "softmax, by name": lambda x: F.softmax(x.sin(), dim=1).log(),
    "softmax, method": lambda x: x.sin().softmax(1) * x,
    "log_softmax": lambda x: F.log_softmax(x * x, dim=-1) - x,
    "logsumexp": lambda x: x - torch.logsumexp(x.sin(), 1, keepdim=True),
    "logsumexp, method": lambda x: x.sin().logsumexp((-1,), True) * x,
    "layer_norm without a weight": lambda x: F.layer_norm(x.sin(), (3,)).tanh(),
    "rms_norm": lambda x: F.rms_norm(x.sin(), (3,), WEIGHT) * x,
    "rms_norm with eps": lambda x: torch.rms_norm(x.sin(), (3,), None, 0.1) * x,
    "normalize": lambda x: F.normalize(x.sin(), dim=-1) * x,
    "normalize along its usual dimension": lambda x: F.normalize(x.sin()) * x,
    "norm": lambda x: x / x.norm(dim=-1, keepdim=True),
    "norm, by position": lambda x: x.sin().norm(2, -1, True) * x,
    "torch.norm": lambda x: torch.norm(x.sin(), dim=1, keepdim=True).exp(),
    "linalg.norm": lambda x: torch.linalg.norm(x.sin(), dim=-1) ** 2,
    "linalg.vector_norm": lambda x: torch.linalg.vector_norm(x * x, dim=(-1,)).log(),
    "sum": lambda x: (x * x.sin()).sum(-1),
    "sum of a dropped dimension": lambda x: (x * x.sin()).sum(1).exp(),
    "mean": lambda x: x - x.exp().mean([-1], True),
    "mean by axis": lambda x: torch.mean(x.exp(), axis=-1).sin(),  # type: ignore[call-overload]
    "var": lambda x: x.sin().var(-1, keepdim=True) * x,
    "var without a correction": lambda x: torch.var(x.sin(), dim=-1, correction=0).exp(),
    "std": lambda x: x.sin().std(-1, unbiased=False, keepdim=True) * x,
    "amax": lambda x: x - x.sin().amax(-1, keepdim=True),
    "amin": lambda x: torch.exp(-x.amin(1)),
    "cosine_similarity": lambda x: F.cosine_similarity(x.sin(), x * x, dim=-1).exp(),
    "vecdot": lambda x: torch.linalg.vecdot(x.sin(), x).exp(),
    "distance": lambda x: torch.exp(-(x - 0.3).norm(dim=-1)),
    "a view between": lambda x: x / (x.exp().sum(-1).unsqueeze(-1) + 1),
    "a view by an index": lambda x: x * x.exp().mean(-1)[:, None].sin(),
    "a view by an ellipsis": lambda x: x * (x * x).sum(-1).tanh()[..., None],
    "squeezed": lambda x: (x * x).sum(-1, keepdim=True).sqrt().squeeze(-1).sin(),
    "squeezed by an index": lambda x: (x * x).sum(-1, keepdim=True).sqrt()[:, 0].sin(),
    "a mask of a row": lambda x: torch.where(x > x.mean(-1, keepdim=True), x.sin(), x.std(-1, keepdim=True)),
}


class TestWhatIsFused:
    @pytest.mark.parametrize("name", CHAINS)
    def test_a_chain_is_one_op_with_all_derivatives(self, name: str) -> None:
        f = CHAINS[name]
        x = x_like(4, 3).requires_grad_()
        explanation = ad.explain(f, x)
        assert len(explanation.clusters) == 1 and not explanation.left, explanation
        assert type(explanation.clusters[0].op).__name__ == "Rowwise"
        hold(f, x_like(4, 3), highest=2)

    @pytest.mark.parametrize("shape", [(4, 3), (2, 2, 3), (1, 3), (2, 40)])
    def test_layer_norm_has_a_right_third_derivative(self, shape: tuple[int, ...]) -> None:
        weight, bias = (torch.linspace(a, b, shape[-1], dtype=torch.float64) for a, b in ((0.5, 2.0), (-1.0, 1.0)))

        def f(x: Tensor) -> Tensor:
            return F.layer_norm(x.sin(), shape[-1:], weight, bias) * x

        assert sizes(f, x_like(*shape)) == [3]
        hold(f, x_like(*shape), reference=lambda x: layer_norm(x.sin(), shape[-1:], weight, bias) * x)

    def test_and_finite_differences_agree(self) -> None:
        f = compiled(lambda x: F.layer_norm(x.sin(), (3,), WEIGHT, WEIGHT) * x)

        def curvature(x: Tensor) -> Tensor:
            x = x if x.requires_grad else x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(f(x).sin().sum(), x, create_graph=True)
            return torch.autograd.grad(slope.square().sum(), x, create_graph=True)[0]

        x = x_like(2, 3).requires_grad_()
        (third,) = torch.autograd.grad((curvature(x) * x_like(2, 3)).sum(), x)
        v, step = x_like(2, 3).cos(), 1e-5
        with torch.no_grad():
            ahead, behind = x + step * v, x - step * v
        numeric = ((curvature(ahead) - curvature(behind)) / (2 * step) * x_like(2, 3)).sum()
        assert_close((third * v).sum(), numeric.detach(), rtol=1e-6, atol=1e-6)

    def test_weights_that_are_trained(self) -> None:
        weight, scale = WEIGHT.clone().requires_grad_(), torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

        def f(x: Tensor) -> Tensor:
            return torch.softmax(x * weight, -1) * scale + x[:, :1]

        assert sizes(f, x_like(4, 3).requires_grad_()) == [4]
        hold(f, x_like(4, 3), [weight, scale])

    def test_several_results_of_an_element_a_row_and_neither(self) -> None:
        def f(x: Tensor) -> tuple[Tensor, ...]:
            y = torch.softmax(x.sin(), -1)
            s = (y * x).sum(-1)
            return y.cumsum(-1), s.cumsum(0), (y.amax(-1, keepdim=True) * s[:, None]).tanh()

        assert sizes(f, x_like(4, 3).requires_grad_()) == [7]
        hold(f, x_like(4, 3))

    def test_equal_rows_of_other_lengths_share_an_op(self) -> None:
        explanation = ad.explain(
            lambda x, y: (F.softmax(x.sin(), 1), F.softmax(y.sin(), -1)), x_like(4, 3), x_like(2, 3, 5)[:, 0]
        )
        assert len({id(cluster.op) for cluster in explanation.clusters}) == 1

    def test_any_batch_size(self) -> None:
        def f(x: Tensor) -> Tensor:
            y = torch.softmax(x.sin() * x.shape[0], -1)
            return y - y.norm(dim=-1).unsqueeze(-1)

        for dynamic in (True, None):
            torch._dynamo.reset()
            f_compiled = torch.compile(f, backend="torchad_ext", dynamic=dynamic)
            for n in (5, 0, 1, 7, 2):
                x = torch.randn(n, 3, dtype=torch.float64, requires_grad=True)
                assert_close(f_compiled(x), f(x))
                slopes = [torch.autograd.grad(each(x).sum(), x, create_graph=True)[0] for each in (f_compiled, f)]
                assert_close(*(torch.autograd.grad(s.square().sum(), x)[0] for s in slopes))

    def test_any_length_of_rows(self) -> None:
        def f(x: Tensor) -> Tensor:
            return (x - x.mean(-1, keepdim=True)) * x.sum(-1)[:, None].sin()

        f_compiled = torch.compile(f, backend="torchad_ext", dynamic=True)
        for n in (5, 1, 7, 2, 40):
            x = x_like(3, n).requires_grad_()
            assert_close(f_compiled(x), f(x))
            assert_close(*(torch.autograd.grad(each(x).square().sum(), x)[0] for each in (f_compiled, f)))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    def test_other_floating_point(self, dtype: torch.dtype) -> None:
        def f(x: Tensor) -> Tensor:
            return F.layer_norm(x.sin(), (3,)) * x

        x, tolerance = x_like(4, 3).to(dtype), 32 * torch.finfo(dtype).eps
        expected = f(x.double())
        assert compiled(f)(x).dtype == dtype
        assert (compiled(f)(x) - expected).abs().max() <= tolerance * expected.abs().max()


LEFT: dict[str, Function] = {
    "another dimension": lambda x: x.sin().softmax(0) * x,
    "all dimensions": lambda x: x.sin() * x.sum() + x.norm(),
    "two dimensions": lambda x: F.layer_norm(x.sin(), (4, 3)) * x,
    "another order": lambda x: x.norm(1, -1, True) * x.sin() + F.normalize(x, 3.0, -1),
    "another dtype": lambda x: (x.sin().sum(-1, keepdim=True, dtype=torch.float32) * 2).double() * x,
    "a count of truth values": lambda x: (x > 0).sum(-1, keepdim=True) * x.sin(),
    "one row": lambda x: x[0].sin().softmax(-1) * x,
    "rows of one element": lambda x: x[:, :1].sin().softmax(-1) * x + x[:, :1].std(-1, unbiased=False, keepdim=True),
    "rows that broadcast": lambda x: x[:1].sin().softmax(-1) * x.cos(),
    "a row as a column": lambda x: x[:3].exp().sum(-1) * x.sin() * x[:3].exp().mean(-1),
    "a largest element and where it is": lambda x: x.sin().max(-1, keepdim=True)[0] * x,
}


def test_by_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(graph_calls, "SMALLEST", 0)
    monkeypatch.setattr(fused_ops, "_ops", {})

    def f(x: Tensor) -> Tensor:
        return (torch.softmax(x.sin() * WEIGHT, -1) * x).sum(-1)

    hold(f, x_like(4, 3))


class TestWhatIsLeft:
    @pytest.mark.parametrize("name", LEFT)
    def test_other_calls_stay_what_they_are(self, name: str) -> None:
        hold(LEFT[name], x_like(4, 3))

    def test_calls_by_themselves(self) -> None:
        assert sizes(lambda x: (x @ x).sum(-1), x_like(3, 3).requires_grad_()) == []
        assert sizes(lambda x: (x @ x).softmax(-1), x_like(3, 3)) == []
        assert sizes(lambda x: (x @ x).softmax(-1), x_like(3, 3).requires_grad_()) == [1]

    def test_few_elements(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(graph_calls, "SMALLEST", 65_536)

        def f(x: Tensor) -> Tensor:
            return x.sin().softmax(-1)

        assert sizes(f, torch.ones(20, 40)) == [1]
        assert "an op gains nothing on 800 elements" in str(ad.explain(f, torch.ones(20, 40)))
        assert sizes(f, torch.ones(2000, 40)) == [2] and sizes(f, torch.ones(4000, 3)) == [2]

    def test_strides_are_those_of_eager_mode(self) -> None:
        def f(x: Tensor) -> tuple[Tensor, Tensor]:
            y = x.t().contiguous().t() * 2
            z = y.sin()
            return z, (z.softmax(-1) * x).contiguous()

        hold(f, x_like(4, 3))
        assert [y.stride() for y in compiled(f)(x_like(4, 3))] == [y.stride() for y in f(x_like(4, 3))]

    def test_strides_of_dimensions_of_one_element(self) -> None:
        def f(x: Tensor) -> Tensor:
            return F.rms_norm(x.unsqueeze(-1).mT, (3,))

        x = x_like(4, 3).requires_grad_()
        assert compiled(f)(x).stride() == f(x).stride()

    def test_images_with_channels_last(self) -> None:
        x = x_like(2, 3, 4, 5).to(memory_format=torch.channels_last)

        def f(x: Tensor) -> Tensor:
            return x.sin().softmax(-1) * x

        assert compiled(f)(x).stride() == f(x).stride()
        hold(f, x)


class TestWrites:
    def test_results_that_are_written_later(self) -> None:
        def f(x: Tensor) -> Tensor:
            s = (x * 3).mean(-1, keepdim=True)
            y = x - s
            s.mul_(2)
            return y * s.sin()

        hold(f, x_like(4, 3))

    def test_through_a_view_of_rows(self) -> None:
        def f(x: Tensor) -> Tensor:
            d = (x * x).sum(-1)
            e = d.unsqueeze(-1)
            y = x + e
            e.mul_(3)
            return y + d[:, None].sin()

        hold(f, x_like(4, 3))

    def test_views_of_rows_that_leave_stay_views(self) -> None:
        def f(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            d = (x * x.sin()).sum(-1)
            e = d.unsqueeze(-1)
            return d, e, x * e

        d, e, _ = compiled(f)(x_like(4, 3))
        assert d.data_ptr() == e.data_ptr()
        hold(f, x_like(4, 3))

    def test_inputs_that_are_written_later(self) -> None:
        def f(x: Tensor) -> Tensor:
            y = x * 1
            z = y * 2 - y.mean(-1, keepdim=True)
            y.add_(1)
            return z * y

        hold(f, x_like(4, 3))


class TestAwkwardNumbers:
    def test_zero_rows(self) -> None:
        x = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
        for f in (
            lambda x: x.sin().norm(dim=-1) * 2,
            lambda x: (x * 2).std(-1) * 3,
            lambda x: F.normalize(x * 2, dim=-1) * 3,
            lambda x: F.cosine_similarity(x * 2, x.sin(), dim=-1) * 3,
        ):
            torch._dynamo.reset()
            ours, native = (torch.autograd.grad(each(x).sum(), x)[0] for each in (compiled(f), f))
            assert_close(ours, native)

    def test_infinite_and_equal_numbers(self) -> None:
        infinity = float("inf")
        x = torch.tensor([[1.0, -infinity, 2.0], [0.5, 0.5, 0.5], [-infinity] * 3], dtype=torch.float64)
        for f in (
            lambda x: torch.logsumexp(x * 2, -1) + 1,
            lambda x: (x * 2).softmax(-1) * 3,
            lambda x: (x * 2).amax(-1) * 3,
        ):
            torch._dynamo.reset()
            given = x.clone().requires_grad_()
            ours, native = compiled(f)(given), f(given)
            assert_close(ours, native, equal_nan=True)
            ours, native = (torch.autograd.grad(y[:2].sum(), given)[0][:2] for y in (ours, native))
            assert_close(ours, native, equal_nan=True)


def test_without_a_compiler_the_definition_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchad_ext._row_function import RowFunction

    monkeypatch.setattr(RowFunction, "_compile", lambda self, device, dtype: None)
    monkeypatch.setattr(fused_ops, "_ops", {})
    for name in ("softmax", "rms_norm", "normalize", "sum", "a view between"):
        hold(CHAINS[name], x_like(4, 3))
