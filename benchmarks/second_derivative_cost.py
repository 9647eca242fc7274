"""How the cost of second derivatives grows with the number n of variables.

    python benchmarks/second_derivative_cost.py [--rounds 7] [--output benchmarks/results/second_derivative_cost.json]

Times sin, exp, the quadratic form, a network and a chain of neighbours at several n, fits seconds = factor nᵖ to the
largest sizes of each, and keeps seconds and exponents. Notebook 03 has the pictures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from run import machine

import torchad_ext as ad
from torchad_ext.plot import Cost, measure_cost

Function = Callable[[torch.Tensor], torch.Tensor]

SMALL = (256, 512, 1024, 2048, 4096)  # a Hessian has n² entries
LARGE = (*SMALL, 2**15, 2**16, 2**17, 2**18)


def quadratic(sizes: tuple[int, ...]) -> Function:
    """xᵀAx with one A for each n."""
    matrices = {n: torch.randn(n, n, dtype=torch.float64) for n in sizes}
    return lambda x: ad.quadratic_form(x, matrices[len(x)])


def network(sizes: tuple[int, ...], width: int = 64) -> Function:
    """A network of n inputs and one output, two hidden layers of sines."""
    first = {n: torch.randn(width, n, dtype=torch.float64) / n**0.5 for n in sizes}
    second, last = torch.randn(width, width, dtype=torch.float64) / width**0.5, torch.randn(width, dtype=torch.float64)

    def f(x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = ad.sin(second @ ad.sin(first[len(x)] @ x))
        return last @ hidden

    return f


def chain(x: torch.Tensor) -> torch.Tensor:
    """Neighbours meet: the Hessian is tridiagonal."""
    terms: torch.Tensor = ad.sin(x[1:] - x[:-1]) * ad.exp(-x[1:] * x[1:])
    return terms.sum()


def costs(rounds: int) -> dict[str, Cost]:
    """The costs of every function."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # threads that wait for each other would count
    functions: Mapping[str, tuple[Function, tuple[int, ...]]] = {
        "sum of sin": (lambda x: ad.sin(x).sum(), LARGE),
        "sum of exp": (lambda x: ad.exp(x).sum(), LARGE),
        "quadratic form": (quadratic(SMALL), SMALL),
        "network": (network(LARGE[:7]), LARGE[:7]),
    }
    found = {name: measure_cost(f, sizes, rounds=rounds, dtype=torch.float64) for name, (f, sizes) in functions.items()}
    sparse = {"sparse Hessian": lambda f, x: ad.hessian(f, x, sparsity="auto", layout=torch.sparse_coo)}
    found["chain of neighbours, sparse"] = measure_cost(
        chain, (2**13, 2**14, 2**15, 2**16), quantities=sparse, rounds=rounds
    )
    found["chain of neighbours, dense"] = measure_cost(
        chain, SMALL[:4], quantities={"full Hessian": ad.hessian}, rounds=rounds
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "second_derivative_cost.json"
    )
    options = parser.parse_args()
    found = costs(options.rounds)
    for name, cost in found.items():
        print(f"{name:28}" + "  ".join(f"{quantity} n^{p:.2f}" for quantity, p in cost.exponents.items()))
    kept = {
        "machine": machine("cpu"),
        "costs": {
            name: {
                "sizes": cost.sizes,
                "seconds": {q: [s if s == s else None for s in seconds] for q, seconds in cost.seconds.items()},
                "exponents": {q: round(p, 2) for q, p in cost.exponents.items()},
            }
            for name, cost in found.items()
        },
    }
    options.output.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
