"""Training steps with a derivative in their loss: what an op is worth in a program that uses it."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd import grad

import torchad_ext as ad
from torchad_ext.demo import SineNetwork, train

Op = Callable[..., Tensor]
Randn = Callable[..., Tensor]
Choice = Callable[[ad.Pointwise], Op]

COMPARED = 50  # the steps whose losses are compared, and are timed


@dataclass(frozen=True)
class Training:
    """``start(choice, randn)`` trains from a fixed seed with the ops as chosen, ours or native, and yields losses."""

    name: str
    size: str
    start: Callable[[Choice, Randn], Iterator[float]]
    native: Sequence[str]
    floor: float | None = None  # the ratio to reach, on a CPU with two threads in float32
    equal = True
    least = COMPARED
    attempts = 2

    def calls(self, randn: Randn) -> Mapping[str, Callable[[], Tensor]]:
        """For each way, what takes a step on from the last one and gives the losses, up to the fiftieth."""

        def step(choice: Choice) -> Callable[[], Tensor]:
            torch.manual_seed(0)
            losses: list[float] = []
            training = self.start(choice, randn)

            def next_step() -> Tensor:
                losses.append(next(training))
                return torch.tensor(losses[:COMPARED], dtype=randn(0).dtype)

            return next_step

        (native,) = self.native
        return {native: step(lambda op: op.definition), "torchad_ext": step(lambda op: op)}


class Perceptron(nn.Module):
    """Linear layers with an activation between them, ``[..., sizes[0]]`` to ``[..., sizes[-1]]``."""

    def __init__(self, activation: Op, *sizes: int) -> None:
        super().__init__()
        self.activation = activation
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        y: Tensor = self.layers[-1](x)
        return y


def adam(network: nn.Module, loss: Callable[[], Tensor]) -> Iterator[float]:
    """The losses while Adam makes them smaller."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    while True:
        optimizer.zero_grad()
        value = loss()
        torch.autograd.backward(value)
        optimizer.step()
        yield value.item()


def poisson(
    activation: ad.Pointwise, width: int, choice: Choice, randn: Randn, points: int = 16_384
) -> Iterator[float]:
    """A physics-informed network: u with Δu = -2π² sin πx sin πy on a square, 0 on its edge."""
    network = Perceptron(choice(activation), 2, *[width] * 4, 1).to(randn(()))
    inside = torch.erf(randn(points, 2) / math.sqrt(2)).requires_grad_()  # uniform in the square
    right = -2 * math.pi**2 * torch.sin(math.pi * inside.detach()).prod(-1)
    edge = inside.detach()[:1024].clone()
    edge[::2, 0], edge[1::2, 1] = edge[::2, 0].sign(), edge[1::2, 1].sign()

    def loss() -> Tensor:
        (slope,) = grad(network(inside).sum(), inside, create_graph=True)
        rows = [grad(slope[:, i].sum(), inside, create_graph=True)[0] for i in (0, 1)]
        laplacian = rows[0][:, 0] + rows[1][:, 1]
        on_edge: Tensor = network(edge)
        return (laplacian - right).square().mean() + on_edge.square().mean()

    return adam(network, loss)


def picture(sine: ad.Pointwise, width: int, choice: Choice, randn: Randn) -> Iterator[float]:
    """A SIREN learns a picture of 128 x 128 from its gradient."""
    network = SineNetwork(choice(sine), width, depth=4).to(randn(()))
    axis = torch.linspace(-1, 1, 128)
    pixels = torch.cartesian_prod(axis, axis).to(randn(())).requires_grad_()
    (gradient,) = grad(torch.sin(9 * pixels).prod(-1).sum(), pixels)
    return train(network, pixels, gradient, steps=10_000)


class Potential(nn.Module):
    """The energy of atoms, ``[count, atoms, 3]`` to ``[count]``: a network of what each sees at some distances."""

    def __init__(self, choice: Choice, width: int, features: int = 32, cutoff: float = 5.0) -> None:
        super().__init__()
        self.basis, self.envelope = choice(ad.gaussian_basis), choice(ad.polynomial_cutoff)
        self.perceptron = Perceptron(choice(ad.silu), features, width, width, width, 1)
        self.cutoff, self.spacing = cutoff, cutoff / features
        self.register_buffer("centers", torch.linspace(0, cutoff, features))

    def forward(self, positions: Tensor) -> Tensor:
        atoms = positions.shape[1]
        i, j = torch.nonzero(~torch.eye(atoms, dtype=torch.bool), as_tuple=True)
        distance = (positions[:, i] - positions[:, j]).square().sum(-1).sqrt().unsqueeze(-1)
        seen = self.basis(distance, self.centers, self.spacing) * self.envelope(distance, self.cutoff)
        energy: Tensor = self.perceptron(seen.unflatten(1, (atoms, atoms - 1)).sum(2)).sum((1, 2))
        return energy


def energy_and_forces(width: int, choice: Choice, randn: Randn) -> Iterator[float]:
    """A potential for 256 arrangements of 16 atoms, trained on energies and forces, its gradients."""
    network = Potential(choice, width).to(randn(()))
    positions = (3 * randn(256, 16, 3)).requires_grad_()
    energies, forces = randn(256), randn(256, 16, 3)

    def loss() -> Tensor:
        energy: Tensor = network(positions)
        (gradient,) = grad(energy.sum(), positions, create_graph=True)
        return (energy - energies).square().mean() + (gradient + forces).square().mean()

    return adam(network, loss)


def trainings() -> Iterator[Training]:
    activations = ((ad.sin, "torch.sin"), (ad.tanh, "torch.tanh"), (ad.silu, "F.silu"), (ad.gelu, "F.gelu"))
    for activation, native in activations:
        for width in (64, 128):
            start = functools.partial(poisson, activation, width)
            yield Training(f"Poisson, {activation.__name__}", f"4 × {width}", start, (native,), 1.6)
    start = functools.partial(picture, ad.sin, 128)
    yield Training("picture from its gradient, sin", "4 × 128", start, ("torch.sin",))
    start = functools.partial(energy_and_forces, 128)
    yield Training("energy and forces, silu", "3 × 128", start, ("plain PyTorch",), 1.6)
