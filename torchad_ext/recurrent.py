"""Recurrent networks and their cells, composed of linear layers and elementwise functions.

The arguments are those of the functions behind ``nn.RNN``, ``nn.LSTM``, ``nn.GRU`` and their cells. PyTorch's own have
no forward mode, and their double backward goes through all steps for each direction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .composed import dropout

State = tuple[Any, ...]
Step = Callable[..., State]  # of what a layer makes of the input, a state and the weights that act on it


def _lstm_step(gates: Any, state: State, weight: Any, bias: Any, projection: Any = None) -> State:
    h, c = state
    i, f, g, o = (gates + F.linear(h, weight, bias)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (h if projection is None else F.linear(h, projection)), c


def _gru_step(gates: Any, state: State, weight: Any, bias: Any) -> State:
    (h,) = state
    of_x, of_h = gates.chunk(3, -1), F.linear(h, weight, bias).chunk(3, -1)
    reset, update = (of_x[0] + of_h[0]).sigmoid(), (of_x[1] + of_h[1]).sigmoid()
    new = (of_x[2] + reset * of_h[2]).tanh()
    return (new + update * (h - new),)


def _rnn_step(activation: Callable[[Any], Any]) -> Step:
    def step(gates: Any, state: State, weight: Any, bias: Any) -> State:
        return (activation(gates + F.linear(state[0], weight, bias)),)

    return step


def _cell(step: Step) -> Callable[..., Any]:
    def cell(x: Any, hx: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None) -> Any:
        state = step(F.linear(x, w_ih, b_ih), tuple(hx) if isinstance(hx, (list, tuple)) else (hx,), w_hh, b_hh)
        return state if len(state) > 1 else state[0]

    return cell


def _one_way(step: Step, x: Any, state: State, weights: Sequence[Any], biased: bool, backwards: bool) -> Any:
    """The outputs ``[time, batch, features]`` of a layer in one direction, and its last state."""
    w_ih, w_hh, *rest = weights
    biases, rest = (rest[:2], rest[2:]) if biased else ((None, None), rest)
    gates = F.linear(x, w_ih, biases[0]).unbind(0)
    outputs = []
    for at in reversed(gates) if backwards else gates:
        state = step(at, state, w_hh, biases[1], *rest)
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if backwards else outputs), state


def _network(step: Step) -> Callable[..., Any]:
    def network(
        x: Any, hx: Any, weights: Any, biased: bool = False, layers: int = 0, p: float = 0.0, train: bool = False,
        bidirectional: bool = False, batch_first: bool = False,
    ) -> Any:  # fmt: skip
        if isinstance(weights, Tensor):  # of packed sequences, with their batch sizes in second place
            return NotImplemented
        states = tuple(hx) if isinstance(hx, (list, tuple)) else (hx,)
        x = x.transpose(0, 1) if batch_first else x
        ways = 2 if bidirectional else 1
        count = len(weights) // (layers * ways)
        last = []
        for layer in range(layers):
            x = dropout(x, p, train) if layer else x
            outputs = []
            for way in range(ways):
                at = layer * ways + way
                given = weights[at * count : (at + 1) * count]
                y, state = _one_way(step, x, tuple(s[at] for s in states), given, biased, way == 1)
                outputs.append(y)
                last.append(state)
            x = torch.cat(outputs, -1) if bidirectional else outputs[0]
        return (x.transpose(0, 1) if batch_first else x, *map(torch.stack, zip(*last, strict=True)))

    return network


_STEPS: dict[str, Step] = {
    "lstm": _lstm_step,
    "gru": _gru_step,
    "rnn_tanh": _rnn_step(torch.tanh),
    "rnn_relu": _rnn_step(torch.relu),
}
RECURRENT: dict[str, Callable[..., Any]] = {
    **{name: _network(step) for name, step in _STEPS.items()},
    **{f"{name}_cell": _cell(step) for name, step in _STEPS.items()},
}
