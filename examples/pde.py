"""Three differential equations solved by networks, with ``ad.partials``, and the errors of their solutions.

Burgers' equation against the solution of Cole and Hopf, the Korteweg-de Vries equation against its soliton, a beam
against its polynomial. ``python examples/pde.py`` prints the errors, and fails where one is larger than it should be.
The loss and its gradients are those of nested autograd, which is checked too.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import torchad_ext as ad

Function = Callable[[Tensor], Tensor]
Partials = Callable[[Function, Tensor, Sequence[str], str], Sequence[Tensor]]


def in_one_sweep(f: Function, x: Tensor, orders: Sequence[str], names: str) -> Sequence[Tensor]:
    return ad.partials(f, x, orders, names=names)


def by_nested_autograd(f: Function, x: Tensor, orders: Sequence[str], names: str) -> Sequence[Tensor]:
    x = x.detach().requires_grad_()
    results = []
    for order in orders:
        y = f(x)
        for letter in order:
            (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
            y = slope[:, names.index(letter)]
        results.append(y)
    return results


@dataclass(frozen=True)
class Problem:
    """An equation on a box of points ``[n, d]``.

    Attributes:
        box: the bounds of each coordinate.
        solution: the function that a network stands for: it fulfils what the edge asks for.
        residual: of the equation, for a way to take derivatives.
        exact: the exact solution.
        tolerance: of the largest error, relative to the largest value.
    """

    name: str
    box: Sequence[tuple[float, float]]
    solution: Callable[[Function, Tensor], Tensor]
    residual: Callable[[Partials, Function, Tensor], Tensor]
    exact: Function
    tolerance: float

    def points(self, count: int) -> Tensor:
        low, high = torch.tensor(self.box, dtype=torch.float64).T
        return low + (high - low) * torch.quasirandom.SobolEngine(len(self.box), seed=0).draw(
            count, dtype=torch.float64
        )


VISCOSITY = 0.1
SPEED = 0.5  # of the soliton's crest, 4 κ²


def burgers(partials: Partials, u: Function, x: Tensor) -> Tensor:
    u, u_t, u_x, u_xx = partials(u, x, ["", "t", "x", "xx"], "tx")
    return u_t + u * u_x - VISCOSITY * u_xx


def cole_hopf(x: Tensor) -> Tensor:
    """u_t + u u_x = ν u_xx with u = -sin πx at t = 0: u = -2 ν φ_x / φ, φ the heat flow of exp(-cos(πx) / (2πν))."""
    nodes = torch.linspace(-8, 8, 801, dtype=x.dtype)
    t, at = x[:, :1], x[:, 1:]
    y = at - nodes * (4 * VISCOSITY * t).sqrt()
    weights = torch.exp(-nodes.square() - torch.cos(math.pi * y) / (2 * math.pi * VISCOSITY))
    return -(weights * torch.sin(math.pi * y)).sum(-1) / weights.sum(-1)


def kdv(partials: Partials, u: Function, x: Tensor) -> Tensor:
    u, u_t, u_x, u_xxx = partials(u, x, ["", "t", "x", "xxx"], "tx")
    return u_t + 6 * u * u_x + u_xxx


def soliton(x: Tensor) -> Tensor:
    """u = c / 2 sech²(√c / 2 (x - c t))"""
    return SPEED / 2 / torch.cosh(math.sqrt(SPEED) / 2 * (x[:, 1] - SPEED * x[:, 0])) ** 2


def before_and_beside(exact: Function, low: float, high: float) -> Callable[[Function, Tensor], Tensor]:
    """The exact solution at the first time, the network after it; the equation of third order has to find the rest."""

    def solution(network: Function, x: Tensor) -> Tensor:
        start = torch.cat([0 * x[:, :1], x[:, 1:]], 1)
        bump = (x[:, 1] - low) * (high - x[:, 1]) / (high - low) ** 2
        return exact(start) + x[:, 0] * bump * network(x)

    return solution


def beam(partials: Partials, u: Function, x: Tensor) -> Tensor:
    (u_xxxx,) = partials(u, x, ["xxxx"], "x")
    return u_xxxx / 24 - 1


def deflection(x: Tensor) -> Tensor:
    """u'''' = 24 with u = u' = 0 at both ends: u = x² (1 - x)²"""
    return (x * (1 - x)).square().squeeze(-1)


PROBLEMS = [
    Problem(
        "Burgers, Cole-Hopf",
        [(0.0, 1.0), (-1.0, 1.0)],
        lambda network, x: -torch.sin(math.pi * x[:, 1]) + x[:, 0] * (1 - x[:, 1] ** 2) * network(x),
        burgers,
        cole_hopf,
        5e-3,
    ),
    Problem(
        "Korteweg-de Vries, soliton",
        [(0.0, 1.0), (-16.0, 16.0)],
        before_and_beside(soliton, -16, 16),
        kdv,
        soliton,
        2e-2,
    ),
    Problem(
        "clamped beam, polynomial",
        [(0.0, 1.0)],
        lambda network, x: (x * (1 - x)).square().squeeze(-1) * network(x),
        beam,
        deflection,
        1e-3,
    ),
]


def perceptron(d: int, width: int = 24) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(d, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1), nn.Flatten(0)]
    return nn.Sequential(*layers).double()


def loss_and_gradients(problem: Problem, network: nn.Module, x: Tensor, partials: Partials) -> tuple[Tensor, ...]:
    loss = problem.residual(partials, lambda x: problem.solution(network, x), x).square().mean()
    return loss, *torch.autograd.grad(loss, list(network.parameters()))


def solve(problem: Problem, steps: int, count: int = 512) -> tuple[nn.Module, float]:
    """The trained network and its last loss, by L-BFGS."""
    network, x = perceptron(len(problem.box)), problem.points(count)
    optimizer = torch.optim.LBFGS(network.parameters(), max_iter=steps, history_size=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        loss, *gradients = loss_and_gradients(problem, network, x, in_one_sweep)
        for p, g in zip(network.parameters(), gradients, strict=True):
            p.grad = g
        return loss

    optimizer.step(closure)
    return network, closure().item()


def main() -> int:
    """Solves each problem, and counts those whose error is too large."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="iterations of L-BFGS; default: %(default)s")
    steps = parser.parse_args().steps
    torch.set_num_threads(1)  # the tensors are small
    failed = 0
    for problem in PROBLEMS:
        start = time.perf_counter()
        network, loss = solve(problem, steps)
        x = problem.points(2000)
        with torch.no_grad():
            exact = problem.exact(x)
            error = ((problem.solution(network, x) - exact).abs().max() / exact.abs().max()).item()
        ways = [loss_and_gradients(problem, network, x[:64], way) for way in (in_one_sweep, by_nested_autograd)]
        for ours, nested in zip(*ways, strict=True):
            torch.testing.assert_close(ours, nested)
        failed += error > problem.tolerance
        print(
            f"{problem.name}: largest error {error:.1e}, at most {problem.tolerance:.0e} wanted; loss {loss:.1e}, "
            f"{time.perf_counter() - start:.0f} s"
        )
    return failed


if __name__ == "__main__":
    sys.exit(main() > 0)
