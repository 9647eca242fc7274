"""What is measured of Laplacians through the operations that have a rule of their own, a row for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from cases import Case, Inputs, Op, Randn, Results
from derivative_cases import nested_laplacian
from torch import Tensor
from torch.autograd import grad

import torchad_ext as ad


def forward_over_reverse(f: Op, x: Tensor, record: bool) -> Tensor:
    """All directions at once."""

    def total(x: Tensor) -> Tensor:
        return f(x).sum()

    gradient: Any = torch.func.grad(total)

    def of(e: Tensor) -> Tensor:
        row: Tensor = (torch.func.jvp(gradient, (x,), (e.expand_as(x),))[1] * e).sum(-1)
        return row

    result: Tensor = torch.func.vmap(of)(torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)).sum(0)
    return result


def ours(f: Op, x: Tensor, record: bool) -> Tensor:
    with torch.set_grad_enabled(record):
        result: Tensor = ad.laplacian(f, x.detach())
    return result


def square(y: Tensor) -> Tensor:
    """[points, 36] as well-conditioned matrices [points, 6, 6]."""
    matrices: Tensor = y.unflatten(-1, (6, 6)) + 3 * torch.eye(6, dtype=y.dtype, device=y.device)
    return matrices


def definite(y: Tensor) -> Tensor:
    return square(y) @ square(y).mT


def summed(y: Tensor) -> Tensor:
    total: Tensor = y.flatten(1).sum(-1)
    return total


# Of the sines of 36 linear functions of each point.
OPERATIONS: dict[str, Op] = {
    "diff": lambda y: summed(y.diff().square()),
    "solve": lambda y: summed(torch.linalg.solve(square(y), y[:, :6])),
    "inv": lambda y: summed(torch.linalg.inv(square(y))),
    "slogdet": lambda y: torch.linalg.slogdet(square(y))[1],
    "det": lambda y: torch.linalg.det(square(y)),
    "cholesky": lambda y: summed(torch.linalg.cholesky(definite(y))),
    "solve_triangular": lambda y: summed(torch.linalg.solve_triangular(square(y), y[:, :6, None], upper=True)),
    "eigvalsh": lambda y: summed(torch.linalg.eigvalsh(definite(y)).log()),
    "matrix_exp": lambda y: summed(torch.linalg.matrix_exp(square(y) / 9)),
    "cosine_similarity": lambda y: F.cosine_similarity(y, y.cos(), dim=-1),
    "logit": lambda y: summed(torch.logit(0.3 + 0.4 * y.square())),
    "logaddexp": lambda y: summed(torch.logaddexp(y, y.cos())),
    "cumprod": lambda y: summed(y.cumprod(-1)),
    "prod": lambda y: y.prod(-1),
    "logcumsumexp": lambda y: summed(y.logcumsumexp(-1)),
    "var_mean": lambda y: torch.var_mean(y, -1)[0],
    "sort": lambda y: y.square().sort(-1)[0][:, 0],
    "mse_loss": lambda y: F.mse_loss(y, torch.full_like(y, 0.3), reduction="none").sum(-1),
    "huber_loss": lambda y: F.huber_loss(y, torch.full_like(y, 0.3), reduction="none").sum(-1),
    "cross_entropy": lambda y: F.cross_entropy(
        y, torch.zeros(len(y), dtype=torch.long, device=y.device), reduction="none"
    ),
}


def wave_function(*parameters: Tensor) -> Op:
    """log |det| of 8 orbitals of 8 electrons, from a network on their 24 coordinates."""
    first, second, orbitals = parameters

    def log_psi(x: Tensor) -> Tensor:
        y = F.linear(F.linear(x, first).tanh(), second).tanh()
        log_determinant: Tensor = torch.linalg.slogdet(F.linear(y, orbitals).unflatten(-1, (8, 8)))[1]
        return log_determinant

    return log_psi


def step(f: Callable[..., Op]) -> Callable[..., Results]:
    """The gradient of a loss of the Laplacian in the parameters of f."""

    def run(op: Op, x: Tensor, *parameters: Tensor) -> Results:
        return grad(op(f(*parameters), x, True).square().mean(), parameters)

    return run


def evaluation(f: Callable[..., Op]) -> Callable[..., Results]:
    def run(op: Op, x: Tensor, *parameters: Tensor) -> Results:
        return op(f(*parameters), x, False).detach()

    return run


def operations() -> Iterator[Case]:
    both: dict[str, Op] = {"nested autograd": nested_laplacian, "jvp of grad": forward_over_reverse}

    def points(d: int, count: int, *shapes: tuple[int, int], record: bool) -> Callable[[Randn], Inputs]:
        def inputs(randn: Randn) -> Inputs:
            weights = ((randn(*shape) / shape[1] ** 0.5).requires_grad_(record) for shape in shapes)
            return randn(count, d).requires_grad_(), *weights

        return inputs

    orbitals = (64, 24), (64, 64), (64, 64)
    for run, record, name in ((step, True, "training step"), (evaluation, False, "evaluation")):
        # A gradient through forward mode of a solver is wrong.
        ways = {"nested autograd": nested_laplacian} if record else both
        inputs = points(24, 512, *orbitals, record=record)
        title = f"laplacian of log |det|, 8 electrons: {name}"
        # Of 512 determinants some nearly vanish: in float32 their Laplacians have three digits, by any way.
        yield Case(title, "512 × 24", run(wave_function), inputs, ways, ours, 2.0, equal=False)
        for operation, of in OPERATIONS.items():

            def f(weight: Tensor, of: Op = of) -> Op:
                return lambda x: of(F.linear(x, weight).sin())

            natives = {"nested autograd": nested_laplacian} if operation == "huber_loss" else ways
            inputs = points(6, 512, (36, 6), record=record)
            is_right = not (record and operation == "logcumsumexp")  # PyTorch's third derivative of it is nan
            row = f"laplacian of {operation}: {name}"
            yield Case(row, "512 × 6", run(f), inputs, natives, ours, 1 / 1.2, equal=is_right)


CASES = tuple(operations())
