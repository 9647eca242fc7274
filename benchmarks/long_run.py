"""A long life of one process: training steps with double backward, hundreds of declared ops, threads.

``python benchmarks/long_run.py --steps 100000`` prints memory, Python objects and loaded kernels at ten points, and
ends with an error where one of them grew after the first.
"""

from __future__ import annotations

import argparse
import gc
import math
import resource
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import torchad_ext as ad
from torchad_ext._native.state import state

POINTS = 10
MOST_GROWTH = 8 << 20  # bytes: of the allocator's and the interpreter's own, for any number of steps


@dataclass(frozen=True)
class Held:
    """What a process holds: bytes in memory, Python objects, and loaded kernels."""

    memory: int
    objects: int
    kernels: int

    def __str__(self) -> str:
        return f"{self.memory / 2**20:8.1f} MiB {self.objects:9,} objects {self.kernels:5} kernels"


def held() -> Held:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Held(pages * resource.getpagesize(), len(gc.get_objects()), len(state.kernels))


def trainer(seed: int = 0) -> Callable[[], float]:
    """A step of Adam on a loss of the Laplacian of a small network, with a normalisation and a quadratic form."""
    generator = torch.Generator().manual_seed(seed)
    layers = [torch.nn.Linear(3, 16), torch.nn.Linear(16, 16), torch.nn.Linear(16, 1)]
    form = torch.nn.Parameter(torch.eye(3))
    weight = torch.nn.Parameter(torch.ones(16))
    parameters = [*(p for layer in layers for p in layer.parameters()), form, weight]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)

    def u(x: torch.Tensor) -> torch.Tensor:
        y = ad.layer_norm(ad.siren(layers[0](x), omega=2.0), None, weight)
        value: torch.Tensor = layers[2](ad.gelu(layers[1](y))).squeeze(-1) + 0.1 * ad.quadratic_form(x, form)
        return value

    def step() -> float:
        x = torch.rand(32, 3, generator=generator).requires_grad_()
        (slope,) = torch.autograd.grad(u(x).sum(), x, create_graph=True)
        (bent,) = torch.autograd.grad(slope.square().sum(), x, create_graph=True)
        loss = (slope.square().sum(-1) - 1).square().mean() + 1e-3 * bent.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def train(steps: int, report: Callable[[str], None] = print) -> Iterator[Held]:
    """What is held at each of ten points of a training run."""
    step, start = trainer(), time.perf_counter()
    for done in range(1, steps + 1):
        loss = step()
        if done % max(1, steps // POINTS) == 0:
            now = held()
            report(f"{done:9,} steps {now} loss {loss:9.3g} {time.perf_counter() - start:7.0f} s")
            yield now


def declare(count: int, rounds: int = 3) -> list[int]:
    """Declares ops, each again and again as a loop or a notebook's cell does; the libraries loaded after each round."""
    x = torch.linspace(0.1, 1, 8)
    loaded = []
    for _ in range(rounds):
        for i in range(count):
            slope = 1 + i / 1000

            def f(x: torch.Tensor, slope: float = slope) -> torch.Tensor:
                return math.exp(slope) * x.sin() + x  # asks for the value of a number: one kernel each

            torch.testing.assert_close(ad.pointwise(f)(x), f(x))
        loaded.append(len(state.kernels))
    return loaded


def train_at_once(threads: int, steps: int) -> list[float]:
    """The last losses of networks that are trained by so many threads."""
    losses = [0.0] * threads

    def run(thread: int) -> None:
        step = trainers[thread]
        for _ in range(steps):
            losses[thread] = step()

    trainers = []
    for _ in range(threads):
        torch.manual_seed(0)
        trainers.append(trainer())
    all_threads = [threading.Thread(target=run, args=(thread,)) for thread in range(threads)]
    for thread in all_threads:
        thread.start()
    for thread in all_threads:
        thread.join()
    return losses


def grew(first: Held, last: Held) -> list[str]:
    """What is more than it was."""
    grown = ["memory"] if last.memory > first.memory + MOST_GROWTH else []
    grown += ["Python objects"] if last.objects > first.objects + 100 else []
    return grown + (["kernels"] if last.kernels > first.kernels else [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--ops", type=int, default=0, help="declare so many ops, three times each, before")
    given = parser.parse_args()
    if given.ops:
        print(f"{given.ops} ops declared three times; kernels after each round: {declare(given.ops)}")
    steps = given.steps
    first, *rest = train(steps)
    if rest and (grown := grew(first, rest[-1])):
        raise SystemExit(f"{' and '.join(grown)} grew in {steps:,} steps")


if __name__ == "__main__":
    main()
