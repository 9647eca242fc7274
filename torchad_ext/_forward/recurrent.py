"""Rules of recurrent networks and their cells, for all directions of a sweep at once.

A step is a linear layer and elementwise functions of few numbers, so that one call for each direction would cost more
than the arithmetic: tangents are stacked ``[directions, *shape]`` here, a :class:`StackedJet` for each tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._autograd.undefined import sum_defined
from .softmax import dropout
from .sweep import Arguments, Keywords, Sweep

State = tuple[Any, ...]
Step = Callable[..., State]  # from the input's part of the gates, a state and its weights to the next state


@dataclass
class StackedJet:
    """A tensor with its tangents ``[directions, *shape]`` and its Laplacian, None for zero.

    Attributes:
        signs: of the squares of the directions ``[directions]``; None if all are 1.
    """

    value: Any
    tangents: Any
    laplacian: Any
    signs: Tensor | None

    def each(self, of: Callable[[Any, int], Any]) -> list[StackedJet]:
        """The parts that a function makes of the value; it is given the number of dimensions before."""
        value = of(self.value, 0)
        none = [None] * len(value)
        tangents = none if self.tangents is None else of(self.tangents, 1)
        laplacian = none if self.laplacian is None else of(self.laplacian, 0)
        return [StackedJet(v, t, z, self.signs) for v, t, z in zip(value, tangents, laplacian, strict=True)]

    def linear(self, weight: Any, bias: Any) -> StackedJet:
        tangents, laplacian = (
            None if row is None else F.linear(row, weight) for row in (self.tangents, self.laplacian)
        )
        return StackedJet(F.linear(self.value, weight, bias), tangents, laplacian, self.signs)

    def chunk(self, count: int) -> list[StackedJet]:
        return self.each(lambda x, _: x.chunk(count, -1))

    def __add__(self, other: StackedJet) -> StackedJet:
        tangents, laplacian = sum_defined(self.tangents, other.tangents), sum_defined(self.laplacian, other.laplacian)
        return StackedJet(self.value + other.value, tangents, laplacian, self.signs)

    def __sub__(self, other: StackedJet) -> StackedJet:
        tangents, laplacian = (None if row is None else -row for row in (other.tangents, other.laplacian))
        return self + StackedJet(-other.value, tangents, laplacian, self.signs)

    def _summed(self, squares: Any) -> Any:
        if self.signs is None:
            return squares.sum(0)
        return torch.tensordot(self.signs.to(squares.dtype), squares, 1)

    def __mul__(self, other: StackedJet) -> StackedJet:
        tangents = sum_defined(*(None if a.tangents is None else a.tangents * b.value for a, b in self._pairs(other)))
        terms = [None if a.laplacian is None else a.laplacian * b.value for a, b in self._pairs(other)]
        if self.tangents is not None and other.tangents is not None:
            terms.append(2 * self._summed(self.tangents * other.tangents))
        return StackedJet(self.value * other.value, tangents, sum_defined(*terms), self.signs)

    def _pairs(self, other: StackedJet) -> tuple[tuple[StackedJet, StackedJet], ...]:
        return (self, other), (other, self)

    def function(self, value: Any, slope: Any, curvature: Any) -> StackedJet:
        """f(x) of the value, the slope and the curvature of f; no curvature is zero."""
        if self.tangents is None:
            return StackedJet(value, None, None, self.signs)
        bent = None if curvature is None else curvature * self._summed(self.tangents.square())
        laplacian = None if self.laplacian is None else slope * self.laplacian
        return StackedJet(value, slope * self.tangents, sum_defined(laplacian, bent), self.signs)

    def sigmoid(self) -> StackedJet:
        y = self.value.sigmoid()
        slope = y * (-self.value).sigmoid()
        return self.function(y, slope, slope * (-self.value / 2).tanh())

    def tanh(self) -> StackedJet:
        y = self.value.tanh()
        slope = 4 * (2 * self.value).sigmoid() * (-2 * self.value).sigmoid()
        return self.function(y, slope, -2 * y * slope)

    def relu(self) -> StackedJet:
        return self.function(self.value.relu(), (self.value > 0).to(self.value.dtype), None)


def _lstm_step(gates: StackedJet, state: State, weight: Any, bias: Any, projection: Any = None) -> State:
    h, c = state
    i, f, g, o = (gates + h.linear(weight, bias)).chunk(4)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (h if projection is None else h.linear(projection, None)), c


def _gru_step(gates: StackedJet, state: State, weight: Any, bias: Any) -> State:
    (h,) = state
    of_x, of_h = gates.chunk(3), h.linear(weight, bias).chunk(3)
    reset, update = (of_x[0] + of_h[0]).sigmoid(), (of_x[1] + of_h[1]).sigmoid()
    new = (of_x[2] + reset * of_h[2]).tanh()
    return (new + update * (h - new),)


def _rnn_step(activation: Callable[[StackedJet], StackedJet]) -> Step:
    def step(gates: StackedJet, state: State, weight: Any, bias: Any) -> State:
        return (activation(gates + state[0].linear(weight, bias)),)

    return step


def _jet(sweep: Sweep, x: Any) -> StackedJet:
    signs = None if all(sign == 1 for sign in sweep.signs) else torch.tensor(sweep.signs, device=x.device)
    if not sweep.owns(x):
        return StackedJet(x, None, None, signs)
    return StackedJet(x.value, torch.stack(x.tangents), x.laplacian, signs)


def _joined(sweep: Sweep, jets: Sequence[StackedJet]) -> Any:
    """A tensor of the sweep, of jets one behind the other in a new first dimension."""
    like = next((jet for jet in jets if jet.tangents is not None), None)
    value = torch.stack([jet.value for jet in jets])
    if like is None:
        return value
    zero = torch.zeros_like(like.tangents)
    tangents = torch.stack([zero if jet.tangents is None else jet.tangents for jet in jets], 1)
    laplacians = [torch.zeros_like(jet.value) if jet.laplacian is None else jet.laplacian for jet in jets]
    return sweep.tensor(value, tangents.unbind(), torch.stack(laplacians))


def _states(hx: Any) -> State:
    return tuple(hx) if isinstance(hx, (list, tuple)) else (hx,)


def _cell(step: Step) -> Callable[..., Any]:
    def cell(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
        x, hx, w_ih, w_hh, b_ih, b_hh = (*args, None, None)[:6]
        if kwargs or any(map(sweep.owns, (w_ih, w_hh, b_ih, b_hh))):
            return NotImplemented
        states = tuple(_jet(sweep, state) for state in _states(hx))
        results = step(_jet(sweep, x).linear(w_ih, b_ih), states, w_hh, b_hh)
        state = tuple(_joined(sweep, [jet])[0] for jet in results)
        return state if isinstance(hx, (list, tuple)) else state[0]

    return cell


def _one_way(
    sweep: Sweep, step: Step, x: Any, states: State, weights: Sequence[Any], biased: bool, backwards: bool
) -> tuple[Any, tuple[StackedJet, ...]]:
    """The outputs ``[time, batch, features]`` of a layer in one direction, and its last state."""
    w_ih, w_hh, *rest = weights
    biases, rest = (rest[:2], rest[2:]) if biased else ((None, None), rest)
    gates = _jet(sweep, x).linear(w_ih, biases[0]).each(lambda x, dim: x.unbind(dim))
    state = tuple(_jet(sweep, s) for s in states)
    outputs = []
    for at in reversed(gates) if backwards else gates:
        state = step(at, state, w_hh, biases[1], *rest)
        outputs.append(state[0])
    return _joined(sweep, outputs[::-1] if backwards else outputs), state


def _network(step: Step) -> Callable[..., Any]:
    def network(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
        packed = len(args) != 9 or (isinstance(args[1], Tensor) and not args[1].is_floating_point())
        if kwargs or packed or any(map(sweep.owns, args[2])):  # those have the sizes of their batches in second place
            return NotImplemented
        x, hx, weights, biased, layers, p, train, bidirectional, batch_first = args
        states = _states(hx)
        x = x.transpose(0, 1) if batch_first else x
        ways = 2 if bidirectional else 1
        count = len(weights) // (layers * ways)
        last = []
        for layer in range(layers):
            x = dropout(x, p, train) if layer else x
            outputs = []
            for at in range(layer * ways, (layer + 1) * ways):
                given = weights[at * count : (at + 1) * count]
                backwards = at % ways == 1
                y, state = _one_way(sweep, step, x, tuple(s[at] for s in states), given, biased, backwards)
                outputs.append(y)
                last.append(state)
            x = torch.cat(outputs, -1) if bidirectional else outputs[0]
        ends = (_joined(sweep, jets) for jets in zip(*last, strict=True))
        return (x.transpose(0, 1) if batch_first else x, *ends)

    return network


_STEPS: dict[str, Step] = {
    "lstm": _lstm_step,
    "gru": _gru_step,
    "rnn_tanh": _rnn_step(StackedJet.tanh),
    "rnn_relu": _rnn_step(StackedJet.relu),
}
RULES: dict[str, Callable[..., Any]] = {
    **{name: _network(step) for name, step in _STEPS.items()},
    **{f"{name}_cell": _cell(step) for name, step in _STEPS.items()},
}
