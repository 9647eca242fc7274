"""laplacian of recurrent networks: every option, against nested autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.profiler import profile
from torch.testing import assert_close

from torchad_ext._forward.fallback import _warned
from torchad_ext._forward.laplacian import _without_rules, bilaplacian, forward_laplacian, laplacian

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "without bias": {"bias": False},
    "two layers, both ways": {"num_layers": 2, "bidirectional": True},
    "dropout in evaluation": {"num_layers": 2, "dropout": 0.5, "batch_first": True},
    "relu": {"nonlinearity": "relu"},
    "projected": {"proj_size": 2},
    "projected, two layers, both ways": {"proj_size": 2, "num_layers": 2, "bidirectional": True, "bias": False},
}
KINDS = [
    (kind, name)
    for kind in (nn.RNN, nn.LSTM, nn.GRU)
    for name, options in OPTIONS.items()
    if ("proj_size" not in options or kind is nn.LSTM) and ("nonlinearity" not in options or kind is nn.RNN)
]


@pytest.fixture(autouse=True)
def _nothing_was_said() -> None:
    _warned.clear()
    _without_rules.clear()


class Recurrent(nn.Module):
    """Each coordinate of a point is a step; outputs and last states count."""

    def __init__(self, kind: type[nn.RNNBase], packed: bool = False, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.network = kind(1, 4, **options).double().train(False)
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        steps = x.unsqueeze(-1) if self.network.batch_first else x.mT.unsqueeze(-1)
        if self.packed:
            steps = nn.utils.rnn.pack_padded_sequence(steps, [x.shape[1]] * len(x), self.network.batch_first)
        y, states = self.network(steps)
        y = nn.utils.rnn.pad_packed_sequence(y, self.network.batch_first)[0] if self.packed else y
        y = (y if self.network.batch_first else y.transpose(0, 1)).square().sum((1, 2))
        return y + sum(s.sin().sum((0, 2)) for s in (states if isinstance(states, tuple) else (states,)))


def points(*shape: int) -> Tensor:
    return torch.randn(*(shape or (3, 5)), dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def by_autograd(f: Any, x: Tensor, C: Tensor | None = None) -> Tensor:
    x = x.detach().requires_grad_()
    (slope,) = grad(f(x).sum(), x, create_graph=True)
    C = torch.eye(x.shape[-1]).to(x) if C is None else C
    return sum(
        (grad(s.sum(), x, create_graph=True)[0] * row).sum(-1) for s, row in zip(slope.unbind(-1), C, strict=True)
    )


def assert_exact(f: nn.Module, x: Tensor) -> None:
    ours, theirs = laplacian(f, x), by_autograd(f, x)
    assert_close(ours, theirs)
    parameters = list(f.parameters())
    for a, b in zip(
        grad(ours.square().sum(), parameters, allow_unused=True, materialize_grads=True),
        grad(theirs.square().sum(), parameters, allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        assert_close(a, b)
    with torch.no_grad():
        result = forward_laplacian(f, x)
    assert_close(result.value, f(x).detach())
    assert_close(result.laplacian, theirs.detach())


@pytest.mark.filterwarnings("error:torchad_ext.laplacian")
@pytest.mark.parametrize(("kind", "name"), KINDS, ids=lambda x: getattr(x, "__name__", x))
def test_networks(kind: type[nn.RNNBase], name: str) -> None:
    assert_exact(Recurrent(kind, **OPTIONS[name]), points())


class Cells(nn.Module):
    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.cell = kind(2, 4, **options).double()

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for i in range(x.shape[1] - 1):
            state = self.cell(x[:, i : i + 2], state)
        h, c = state if isinstance(state, tuple) else (state, state)
        return (h * c).sum(-1)


@pytest.mark.filterwarnings("error:torchad_ext.laplacian")
@pytest.mark.parametrize("options", [{}, {"bias": False}], ids=str)
@pytest.mark.parametrize("kind", [nn.RNNCell, nn.LSTMCell, nn.GRUCell], ids=lambda kind: kind.__name__)
def test_cells(kind: Any, options: dict[str, Any]) -> None:
    assert_exact(Cells(kind, **options), points())


@pytest.mark.filterwarnings("error:torchad_ext.laplacian")
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU], ids=lambda kind: kind.__name__)
def test_states_that_vary_under_a_constant_input(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(1)
    network = kind(2, 3).double()

    def f(x: Tensor) -> Tensor:
        h = x.sin().unsqueeze(0)
        state = (h, h.exp()) if kind is nn.LSTM else h
        return network(torch.ones(4, len(x), 2).to(x), state)[0].square().sum((0, 2))

    assert_close(laplacian(f, points(4, 3)), by_autograd(f, points(4, 3)))


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU], ids=lambda kind: kind.__name__)
def test_signs_and_bilaplacians(kind: type[nn.RNNBase]) -> None:
    f, x = Recurrent(kind), points(2, 3)
    C = points(3, 3)
    C = C + C.mT  # indefinite
    assert_close(laplacian(f, x, C), by_autograd(f, x, C))
    assert_close(bilaplacian(f, x), by_autograd(lambda x: by_autograd_of(f, x), x))


def by_autograd_of(f: Any, x: Tensor) -> Tensor:
    (slope,) = grad(f(x).sum(), x, create_graph=True)
    return sum(grad(slope[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(x.shape[-1]))


def test_dropout_between_layers_has_one_mask() -> None:
    f, x = Recurrent(nn.GRU, num_layers=2, dropout=0.5), points()
    f.network.train()
    torch.manual_seed(3)
    value, _, curvature = forward_laplacian(f, x)
    torch.manual_seed(3)
    assert_close(value, f(x))
    torch.manual_seed(3)
    assert_close(curvature, by_autograd(f, x))


def test_packed_sequences_fall_back() -> None:
    with pytest.warns(UserWarning, match="torchad_ext.laplacian"):
        assert_exact(Recurrent(nn.LSTM, packed=True), points())


def test_a_step_is_as_many_calls_for_any_number_of_directions() -> None:
    counts = []
    for d in (3, 30):
        with torch.no_grad(), profile() as profiler:
            laplacian(lambda x: Recurrent(nn.LSTM)(x[:, :3]), points(2, d))
        counts.append(sum(event.name == "aten::sigmoid" for event in profiler.events()))
    assert counts[0] == counts[1]
