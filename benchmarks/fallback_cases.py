"""What is measured of Laplacians of recurrent networks, of writes in place, of complex numbers and without a rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from cases import Case, Inputs, Op, Randn, Results
from torch import Tensor
from torch.autograd import grad

import torchad_ext as ad


def nested(f: Op, x: Tensor, record: bool) -> Tensor:
    """Reverse mode over reverse mode, a direction at a time."""
    (slope,) = grad(f(x).sum(), x, create_graph=True)
    rows = (grad(s.sum(), x, create_graph=record, retain_graph=True)[0] for s in slope.unbind(-1))
    return torch.stack([row[:, i] for i, row in enumerate(rows)]).sum(0)


def batched(f: Op, x: Tensor, record: bool) -> Tensor:
    """Reverse mode over reverse mode, all directions at once."""
    (slope,) = grad(f(x).sum(), x, create_graph=True)
    d = x.shape[-1]
    units = torch.eye(d, dtype=x.dtype, device=x.device).unsqueeze(1).expand(d, *x.shape)
    (rows,) = grad(slope, x, units, is_grads_batched=True, create_graph=record, retain_graph=True)
    return rows.diagonal(dim1=0, dim2=-1).sum(-1)


def forward(f: Op, x: Tensor, record: bool) -> Tensor:
    """Forward mode over reverse mode, a direction at a time."""
    gradient = torch.func.grad(lambda x: f(x).sum())
    units = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    rows = (torch.func.jvp(gradient, (x,), (unit.expand_as(x),))[1] for unit in units)
    return torch.stack([row[:, i] for i, row in enumerate(rows)]).sum(0)


def ours(f: Op, x: Tensor, record: bool) -> Tensor:
    with torch.set_grad_enabled(record):
        return ad.laplacian(f, x.detach())


Network = Callable[..., Tensor]


def lstm(x: Tensor, *parameters: Tensor) -> Tensor:
    *weights, out = parameters
    state = x.new_zeros(1, len(x), out.shape[-1])
    steps = torch.lstm(x.unsqueeze(-1), (state, state), weights, True, 1, 0.0, False, False, True)[0]
    return F.linear(steps, out).sum((1, 2))


def atoms(x: Tensor, *parameters: Tensor) -> Tensor:
    """A block in the manner of SchNet: pairs of four particles, gathered by their distances and added in place."""
    A, B, out = parameters
    at = x.unflatten(-1, (4, -1))
    i, j = torch.triu_indices(4, 4, 1)
    distances = (at[:, i] - at[:, j]).square().sum(-1).add_(1e-2).sqrt()
    pairs = F.linear(torch.exp(-((distances.unsqueeze(-1) - torch.linspace(0, 3, len(A.mT)).to(x)) ** 2)), A).tanh()
    y = torch.zeros(len(x), 4, A.shape[0]).to(x)
    y.index_add_(1, i, pairs)
    y.index_add_(1, j, pairs)
    y = y.clone().add_(F.linear(y, B).tanh())
    return F.linear(y, out).sum((1, 2))


def hidden(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    return F.linear(F.linear(x, A).tanh(), B).tanh()


def wave(x: Tensor, *parameters: Tensor) -> Tensor:
    *layers, out = parameters
    y = hidden(x, *layers)
    return F.linear((torch.exp(1j * y) * torch.complex(y, y.sin())).real, out).squeeze(-1)


def bessel(x: Tensor, *parameters: Tensor) -> Tensor:
    *layers, out = parameters
    return F.linear(torch.special.i0(hidden(x, *layers)), out).squeeze(-1)


def exponential(x: Tensor, *parameters: Tensor) -> Tensor:
    *layers, out = parameters
    return F.linear(torch.linalg.matrix_exp(hidden(x, *layers).unflatten(-1, (8, 8)) / 10).flatten(1), out).squeeze(-1)


def laplacians() -> Iterator[Case]:
    def scaled(randn: Randn, *shapes: tuple[int, ...]) -> Inputs:
        return tuple(randn(*shape) / shape[-1] ** 0.5 for shape in shapes)

    layers = ((64, 3), (64, 64), (1, 64))
    sizes: dict[str, tuple[Network, tuple[int, int], tuple[tuple[int, ...], ...], tuple[Op, ...]]] = {
        "an LSTM of 90 steps": (lstm, (8, 90), ((64, 1), (64, 16), (64,), (64,), (1, 16)), (batched,)),  # a loop: 7 s
        "a SchNet block, in place": (atoms, (256, 12), ((32, 16), (32, 32), (1, 32)), (nested, batched, forward)),
        "complex phases": (wave, (1024, 3), layers, (nested, batched, forward)),
        "an operation without an expression, i0": (bessel, (1024, 3), layers, (nested, batched, forward)),
        "an operation without a rule, matrix_exp": (exponential, (64, 3), layers, (nested, batched, forward)),
    }

    def case(name: str, record: bool) -> Case:
        network, points, shapes, ways = sizes[name]

        def inputs(randn: Randn) -> Inputs:
            parameters = scaled(randn, *shapes)
            return randn(*points).requires_grad_(), *(p.requires_grad_(record) for p in parameters)

        def run(op: Op, x: Tensor, *parameters: Tensor) -> Results:
            y = op(lambda x: network(x, *parameters), x, record)
            return grad(y.square().mean(), parameters, allow_unused=True) if record else y.detach()

        native = {way.__name__: way for way in ways}
        kind = "training step" if record else "evaluation"
        size = " × ".join(map(str, points))
        return Case(f"laplacian of {name}: {kind}", size, run, inputs, native, ours, 1 / 1.2, least=3, attempts=2)

    for name in sizes:
        for record in (False, True):
            yield case(name, record)


CASES = tuple(laplacians())
