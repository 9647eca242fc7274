"""Operands that broadcast: value, gradients and double backward of a million elements, native against one declared op.

    python benchmarks/broadcast.py [--seconds 5] [--threads 2] [--check]

One process; both ways run in turn on the same data, and medians are compared. Gradients have to agree first.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timing import alternate, quartiles
from torch import Tensor
from torch.autograd import grad

import torchad_ext as ad

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Case:
    """A function of operands of some shapes; ``floor`` is the ratio to reach."""

    function: Callable[..., Tensor]
    shapes: Shapes
    floor: float = 1.5


def biased(x: Tensor, bias: Tensor) -> Tensor:
    return torch.tanh(x + bias)


def biased_silu(x: Tensor, bias: Tensor) -> Tensor:
    return F.silu(x + bias)


def message(filters: Tensor, features: Tensor, cutoff: Tensor) -> Tensor:
    return filters * features * cutoff


def vectors(along: Tensor, direction: Tensor, over: Tensor, mu: Tensor) -> Tensor:
    return along * direction + over * mu


edges = 5208
CASES = {
    "tanh(x + bias), 16384 x 64": Case(biased, ((16384, 64), (64,))),
    "silu(x + bias), 1024 x 1024": Case(biased_silu, ((1024, 1024), (1024,))),
    "PaiNN, filter x features x cutoff, 5208 x 192": Case(message, ((edges, 192), (edges, 192), (edges, 1))),
    "PaiNN, vectors, 5208 x 3 x 64": Case(vectors, ((edges, 1, 64), (edges, 3, 1), (edges, 1, 64), (edges, 3, 64))),
}


def gradients(op: Callable[..., Tensor], xs: list[Tensor], cotangent: Tensor, seeds: list[Tensor]) -> list[Tensor]:
    """Value, gradients and the gradients of those."""
    first = grad(op(*xs), xs, cotangent, create_graph=True)
    return [*first, *grad(first, (*xs, cotangent), seeds, materialize_grads=True)]


def measure(case: Case, seconds: float) -> dict[str, float]:
    """The median milliseconds of each way."""
    torch.manual_seed(0)
    xs = [torch.randn(shape, requires_grad=True) for shape in case.shapes]
    cotangent = torch.randn(torch.broadcast_shapes(*case.shapes), requires_grad=True)
    seeds = [torch.randn_like(x) for x in xs]
    op = ad.pointwise(case.function)
    ways = {
        name: lambda op=of: gradients(op, xs, cotangent, seeds)
        for name, of in (("native", case.function), ("torchad_ext", op))
    }
    for ours, native in zip(ways["torchad_ext"](), ways["native"](), strict=True):
        torch.testing.assert_close(ours, native, rtol=1e-3, atol=1e-4 * float(native.detach().abs().max()))
    samples = alternate(ways, seconds, lambda: None, least=5, warm=2, lead=3)
    return {name: quartiles(times).median * 1e3 for name, times in samples.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--check", action="store_true", help="fail where a floor is missed")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    print("| f + b + bb | native, ms | torchad_ext, ms | gain | floor |\n|---|---:|---:|---:|---:|")
    missed = []
    for name, case in CASES.items():
        times = measure(case, given.seconds)
        gain = times["native"] / times["torchad_ext"]
        print(
            f"| {name} | {times['native']:.2f} | {times['torchad_ext']:.2f} | {gain:.2f} | {case.floor} |", flush=True
        )
        missed += [name] * (gain < case.floor)
    if given.check and missed:
        raise SystemExit(f"below the floor: {', '.join(missed)}")


if __name__ == "__main__":
    main()
