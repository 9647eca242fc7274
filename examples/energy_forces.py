"""A potential of small clusters, trained on energies and forces, and a picture of its forces against the true ones.

Forces are the negative gradient of the energy, so training on them differentiates a gradient. The clusters have the
energy of Lennard-Jones, in its own units.
"""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from training import Processes, options

import torchad_ext as ad

ATOMS, CUTOFF, CENTERS = 6, 3.0, 16


def distances(positions: Tensor) -> Tensor:
    """Distances of pairs, each pair once: ``[..., atoms, 3]`` to ``[..., pairs]``."""
    i, j = torch.triu_indices(ATOMS, ATOMS, 1, device=positions.device)
    return (positions[..., i, :] - positions[..., j, :]).square().sum(-1).sqrt()


def lennard_jones(positions: Tensor) -> Tensor:
    """The true energy, Σ 4 (r⁻¹² − r⁻⁶) over pairs: ``[..., atoms, 3]`` to ``[...]``."""
    inverse = distances(positions) ** -6
    return (4 * (inverse**2 - inverse)).sum(-1)


def forces(energy: Tensor, positions: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
    return -gradient


class Potential(nn.Module):
    """An energy, ``[count, atoms, 3]`` to ``[count]``: a network of each distance, seen through Gaussians."""

    def __init__(self, native: bool, width: int = 32) -> None:
        super().__init__()
        ops = (ad.gaussian_basis, ad.polynomial_cutoff, ad.silu)
        self.basis, self.cutoff, self.activation = (op.definition if native else op for op in ops)
        self.first, self.second, self.last = nn.Linear(CENTERS, width), nn.Linear(width, width), nn.Linear(width, 1)
        self.register_buffer("centers", torch.linspace(0.5, CUTOFF, CENTERS))

    def forward(self, positions: Tensor) -> Tensor:
        r = distances(positions).unsqueeze(-1)
        seen = self.basis(r, self.centers, CUTOFF / CENTERS) * self.cutoff(r, CUTOFF)
        hidden = self.activation(self.second(self.activation(self.first(seen))))
        energy: Tensor = (self.last(hidden) * self.cutoff(r, CUTOFF)).sum((-1, -2))
        return energy


class Errors(nn.Module):
    """The squared errors of energy and forces of each cluster."""

    def __init__(self, potential: nn.Module) -> None:
        super().__init__()
        self.potential = potential

    def forward(self, positions: Tensor, energies: Tensor, true_forces: Tensor) -> Tensor:
        positions = positions.detach().requires_grad_()
        energy = self.potential(positions)
        off = (forces(energy, positions) - true_forces).square().mean((-1, -2))
        return (energy - energies).square() / ATOMS**2 + off


def clusters(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Octahedra whose atoms are moved at random, with their energies and forces."""
    corners = torch.cat([torch.eye(3), -torch.eye(3)]) * 0.79
    positions = (corners + 0.04 * torch.randn(count, ATOMS, 3)).requires_grad_()
    energies = lennard_jones(positions)
    return positions.detach(), energies.detach(), forces(energies, positions).detach()


def draw(potential: nn.Module, losses: list[float]) -> Figure:
    """Forces on clusters that were not trained on, and the losses."""
    positions, _, true_forces = clusters(200)
    positions.requires_grad_()
    ours = forces(potential(positions), positions).detach()
    figure = Figure(figsize=(8.5, 3.8), layout="constrained")
    first, second = figure.subplots(1, 2)
    first.plot(true_forces.flatten().numpy(), ours.flatten().numpy(), ".", markersize=2)
    low, high = true_forces.min().item(), true_forces.max().item()
    first.plot([low, high], [low, high], color="0.5", linewidth=1)
    first.set(title="forces on clusters never seen", xlabel="Lennard-Jones", ylabel="network")
    second.semilogy(losses)
    second.set(title="mean squared error of energy and forces", xlabel="training step")
    return figure


def main() -> None:
    chosen = options(str(__doc__), steps=500)
    torch.manual_seed(0)
    data, potential = clusters(256), Potential(chosen.native)
    with Processes.join(chosen.device) as processes:
        losses = processes.train(Errors(potential), data, chosen.steps, rate=3e-3)
        if processes.rank == 0:
            draw(potential.cpu(), losses).savefig(chosen.output / "energy_forces.png", dpi=120)
            print(f"saved {chosen.output / 'energy_forces.png'}")


if __name__ == "__main__":
    main()
