"""A physics-informed network for Δu = −2π² sin πx sin πy on a square, u = 0 on its edge, and a picture of its error.

``ad.laplacian`` takes the network as it is; with --native the second derivatives are nested by hand.
"""

from __future__ import annotations

import math

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from training import Processes, options

import torchad_ext as ad


class Solution(nn.Module):
    """u(x), ``[..., 2]`` to ``[...]``: a network, times a factor that is 0 on the edge of the square [−1, 1]²."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers = [nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)]
        self.network = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        inside = (1 - x**2).prod(-1)
        value: Tensor = self.network(x).squeeze(-1)
        return inside * value


class Residuals(nn.Module):
    """(Δu − f)² at each point."""

    def __init__(self, solution: nn.Module, native: bool) -> None:
        super().__init__()
        self.solution, self.native = solution, native

    def forward(self, x: Tensor) -> Tensor:
        right = -2 * math.pi**2 * torch.sin(math.pi * x).prod(-1)
        laplacian = nested(self.solution, x) if self.native else ad.laplacian(self.solution, x)
        return (laplacian - right).square()


def nested(u: nn.Module, x: Tensor) -> Tensor:
    """The Laplacian by differentiating the gradient once for each coordinate."""
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(u(x).sum(), x, create_graph=True)
    second = [torch.autograd.grad(slope[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(x.shape[-1])]
    return torch.stack(second).sum(0)


def draw(solution: nn.Module, losses: list[float]) -> Figure:
    """The solution, its error and the losses."""
    axis = torch.linspace(-1, 1, 101)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        u = solution(grid).view(101, 101)
    error = u - torch.sin(math.pi * grid).prod(-1).view(101, 101)
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    for ax, values, colours, title in ((first, u, "viridis", "u"), (second, error, "RdBu", "u − exact")):
        largest = values.abs().max().item()
        image = ax.imshow(
            values.T.numpy(), origin="lower", extent=(-1, 1, -1, 1), cmap=colours, vmin=-largest, vmax=largest
        )
        figure.colorbar(image, ax=ax)
        ax.set(title=title, xlabel="x", ylabel="y")
    third.semilogy(losses)
    third.set(title="mean (Δu − f)²", xlabel="training step")
    return figure


def main() -> None:
    chosen = options(str(__doc__), steps=1000)
    torch.manual_seed(0)
    points, solution = 2 * torch.rand(2048, 2) - 1, Solution()
    with Processes.join(chosen.device) as processes:
        losses = processes.train(Residuals(solution, chosen.native), (points,), chosen.steps, rate=3e-3)
        if processes.rank == 0:
            draw(solution.cpu(), losses).savefig(chosen.output / "pinn_poisson.png", dpi=120)
            print(f"saved {chosen.output / 'pinn_poisson.png'}")


if __name__ == "__main__":
    main()
