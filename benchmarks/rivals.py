"""Measures a training step on a Laplacian against the other ways to write it, in PyTorch and in JAX.

A network u of four hidden layers of 128 is trained on Δu = -f at 16,384 points in d dimensions: a step is the loss
mean (Δu + f)², its gradients in all parameters, and Adam. ``make rivals`` makes the environment of JAX, build/rivals.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import figures
import numpy as np
import torch
import torch.nn.functional as F
from marks import replace_between
from rich.console import Console
from rich.table import Table
from run import HERE, RESULTS, duration, machine
from timing import alternate, quartiles
from torch import Tensor
from torch.autograd import grad

import torchad_ext as ad

PAGE = HERE.parent / "docs" / "performance.md"
BEGIN, END = "<!-- make rivals -->", "<!-- end of rivals -->"
JAX = HERE.parent / "build" / "rivals" / "bin" / "python"
HEADER = ("", "network", "step", "middle half", "first step", "loss off by", "gradients off by")
TOLERANCE = 1e-4  # of the loss and of the gradients in float32, relative to those in float64

Json = dict[str, Any]
Op = Callable[..., Any]
Tensors = Sequence[Tensor]
Result = tuple[Tensors, Tensor]  # gradients and loss


class Problem(NamedTuple):
    """Points ``[n, d]``, f at each, and the weights and biases in turn."""

    x: Tensor
    right: Tensor
    parameters: Tensors

    @classmethod
    def of(cls, d: int, points: int, width: int = 128) -> Problem:
        torch.manual_seed(0)
        x = 2 * torch.rand(points, d) - 1
        layers = [torch.nn.Linear(a, b) for a, b in itertools.pairwise((d, *[width] * 4, 1))]
        right = d * math.pi**2 * torch.sin(math.pi * x).prod(-1)
        return cls(x, right, [p.detach() for layer in layers for p in (layer.weight, layer.bias)])

    def to(self, dtype: torch.dtype) -> Problem:
        return Problem(self.x.to(dtype), self.right.to(dtype), [p.to(dtype, copy=True) for p in self.parameters])


def network(activation: Op, parameters: Tensors, x: Tensor) -> Tensor:
    """``[..., d]`` to ``[..., 1]``."""
    *hidden, weight, bias = parameters
    for W, b in zip(hidden[::2], hidden[1::2], strict=True):
        x = activation(F.linear(x, W, b))
    return F.linear(x, weight, bias)


def nested_autograd(activation: Op, parameters: Tensors, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    (slope,) = grad(network(activation, parameters, x).sum(), x, create_graph=True)
    rows = [grad(slope[:, i].sum(), x, create_graph=True)[0] for i in range(x.shape[1])]
    return torch.stack([row[:, i] for i, row in enumerate(rows)]).sum(0)


def reverse_over_reverse(activation: Op, parameters: Tensors, x: Tensor) -> Tensor:
    slope = torch.func.grad(lambda x: network(activation, parameters, x).sum())
    rows = [torch.func.grad(lambda x, i=i: slope(x)[:, i].sum())(x)[:, i] for i in range(x.shape[1])]
    return torch.stack(rows).sum(0)


def by_hand(function: Op, parameters: Tensors, x: Tensor) -> Tensor:
    """A forward Laplacian: value, tangents and Laplacian go through each layer in one matrix product."""
    d = x.shape[1]
    weight, bias, *layers = parameters
    value, tangents, laplacian = F.linear(x, weight, bias), weight.T.unsqueeze(1), torch.zeros(())
    for W, b in zip(layers[::2], layers[1::2], strict=True):
        y, slope, curvature = function(value)
        laplacian = slope * laplacian + curvature * tangents.square().sum(0)
        rows = torch.cat([y.unsqueeze(0), slope * tangents, laplacian.unsqueeze(0)]) @ W.T
        value, tangents, laplacian = rows[0] + b, rows[1 : d + 1], rows[d + 1]
    return laplacian.squeeze(1)


def one_sweep(activation: Op, parameters: Tensors, x: Tensor) -> Tensor:
    return ad.laplacian(functools.partial(network, activation, parameters), x).squeeze(1)


def of_sin(x: Tensor) -> Tensors:
    y = x.sin()
    return y, x.cos(), -y


def of_tanh(x: Tensor) -> Tensors:
    y = x.tanh()
    return y, 1 - y * y, -2 * y * (1 - y * y)


def of_silu(x: Tensor) -> Tensors:
    s = x.sigmoid()
    return x * s, s * (1 + x * (1 - s)), s * (1 - s) * (2 + x * (1 - 2 * s))


class Activation(NamedTuple):
    """An activation of PyTorch, ours, and its value with its first two derivatives."""

    native: Op
    ours: Op
    with_derivatives: Op


ACTIVATIONS = {
    "sin": Activation(torch.sin, ad.sin, of_sin),
    "tanh": Activation(torch.tanh, ad.tanh, of_tanh),
    "silu": Activation(F.silu, ad.silu, of_silu),
}


def eagerly(laplacian: Op, activation: Op) -> Callable[[Problem], Result]:
    def of(problem: Problem) -> Result:
        parameters = [p.requires_grad_() for p in problem.parameters]
        loss = (laplacian(activation, parameters, problem.x) + problem.right).square().mean()
        return grad(loss, parameters, materialize_grads=True), loss.detach()

    return of


def compiled(laplacian: Op, activation: Op) -> Callable[[Problem], Result]:
    def loss(parameters: Tensors, x: Tensor, right: Tensor) -> Tensor:
        u: Tensor = laplacian(activation, parameters, x)
        return (u + right).square().mean()

    of: Any = torch.compile(torch.func.grad_and_value(loss))
    return lambda problem: of(problem.parameters, problem.x, problem.right)


def ways(name: str) -> Mapping[str, Callable[[Problem], Result]]:
    """The ways in PyTorch to gradients and loss."""
    activation = ACTIVATIONS[name]
    return {
        "PyTorch, nested autograd": eagerly(nested_autograd, activation.native),
        "the same with our activation": eagerly(nested_autograd, activation.ours),
        "torch.compile, reverse over reverse": compiled(reverse_over_reverse, activation.native),
        "torch.compile, forward Laplacian by hand": compiled(by_hand, activation.with_derivatives),
        "ad.laplacian": eagerly(one_sweep, activation.native),
    }


class Step:
    """A training step by one of the ways: each call takes one."""

    def __init__(self, of: Callable[[Problem], Result], problem: Problem) -> None:
        self.of, self.problem = of, problem
        self.optimizer = torch.optim.Adam(problem.parameters, lr=1e-3)

    def __call__(self) -> Result:
        gradients, loss = self.of(self.problem)
        for p, g in zip(self.problem.parameters, gradients, strict=True):
            p.grad = g
        self.optimizer.step()
        return gradients, loss


class InJax:
    """The ways of a script in a process of their own, which waits while it is not asked for a step."""

    def __init__(self, python: Path, script: str, folder: Path, *arguments: str) -> None:
        command = [str(python), str(HERE / script), str(folder), *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        header = json.loads(self._line())
        self.first, self.versions = header["first"], header["versions"]
        self.results: dict[str, Result] = {}
        for number, name in enumerate(self.first):
            *gradients, loss = map(torch.from_numpy, np.load(folder / f"{number}.npz").values())
            self.results[name] = gradients, loss

    def _line(self) -> str:
        assert self.process.stdout
        line: str = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"JAX ended with status {self.process.wait()}; what it said stands above")
        return line

    def step(self, name: str) -> None:
        assert self.process.stdin
        print(name, file=self.process.stdin, flush=True)
        self._line()

    def close(self) -> None:
        self.process.communicate()


def measured(name: str, d: int, points: int, python: Path, rounds: int) -> tuple[list[Json], Json]:
    """The rows of one network, and the versions of JAX's packages."""
    torch.compiler.reset()
    problem = Problem.of(d, points)
    exact = eagerly(nested_autograd, ACTIVATIONS[name].native)(problem.to(torch.float64))
    steps: dict[str, Callable[[], object]] = {}
    first: dict[str, float] = {}
    results: dict[str, Result] = {}
    for way, of in ways(name).items():
        steps[way] = step = Step(of, problem.to(torch.float32))
        start = time.perf_counter()
        results[way] = step()
        first[way] = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "problem.npz", *(t.numpy() for t in (problem.x, problem.right, *problem.parameters)))
        with contextlib.closing(InJax(python, "rivals_jax.py", Path(folder), name)) as jax:
            first |= jax.first
            results |= jax.results
            steps |= {way: functools.partial(jax.step, way) for way in jax.first}
            samples = alternate(steps, 0, lambda: None, rounds, warm=1)
    rows = []
    for way, seconds in samples.items():
        off = [distance(results[way][i], exact[i]) for i in (0, 1)]
        if not max(off) <= TOLERANCE:
            raise RuntimeError(f"{way}: gradients and loss are off by {off[0]:.0e} and {off[1]:.0e}")
        row = {"way": way, "network": f"{name}, d = {d}", "seconds": quartiles(seconds)._asdict(), "first": first[way]}
        rows.append({**row, "gradients_off_by": off[0], "loss_off_by": off[1], "samples": len(seconds)})
    return rows, jax.versions


def distance(given: Tensor | Tensors, exact: Tensor | Tensors) -> float:
    """‖given - exact‖ / ‖exact‖, over all gradients together."""

    def flat(ys: Tensor | Tensors) -> Tensor:
        return torch.cat([y.detach().double().flatten() for y in ([ys] if isinstance(ys, Tensor) else ys)])

    a, b = flat(given), flat(exact)
    return float((a - b).norm() / b.norm())


def lines(rows: Sequence[Json]) -> Iterator[list[str]]:
    """The cells of HEADER for each row."""
    for row in rows:
        q1, median, q3 = (duration(second) for second in row["seconds"].values())
        errors = [f"{row[key]:.0e}" for key in ("loss_off_by", "gradients_off_by")]
        yield [row["way"], row["network"], median, f"{q1} – {q3}", duration(row["first"]), *errors]


def by_network(rows: Sequence[Json]) -> list[list[str]]:
    """A column for each network, milliseconds in them."""
    networks, names = ([*dict.fromkeys(row[key] for row in rows)] for key in ("network", "way"))
    times = {(row["way"], row["network"]): f"{1e3 * row['seconds']['median']:.0f}" for row in rows}
    return [["ms", *networks], *([name, *(times[name, network] for network in networks)] for name in names)]


def as_table(table: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    header, *others = table
    rule = ["---" if i == 0 else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *others)) + "\n"


def save(record: Json) -> None:
    """Writes results/rivals.json and .md, the medians into docs/performance.md, and the picture of the README."""
    facts = "; ".join(f"{key} {value}" for key, value in record["machine"].items())
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "rivals.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    (RESULTS / "rivals.md").write_text(f"{facts}\n\n{as_table([HEADER, *lines(record['rows'])])}")
    replace_between(PAGE, BEGIN, END, f"{as_table(by_network(record['rows']))}\n{facts}\n")
    figures.main()


def main() -> None:
    """Measures, prints a table, and keeps a complete run."""
    parser = argparse.ArgumentParser(description="Measures training steps on a Laplacian in PyTorch and in JAX.")
    parser.add_argument("--jax", type=Path, default=JAX, help="the Python that has the packages of rivals.txt")
    parser.add_argument("--rounds", type=int, default=7, help="steps that are timed of each way")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one small network, three steps: does everything run?")
    args = parser.parse_args()
    if not args.jax.exists():
        sys.exit(f"{args.jax} is missing; `make rivals` makes an environment with JAX")

    console = Console(width=150)
    torch.set_num_threads(args.threads)
    networks, points, rounds = [*itertools.product((2, 3), ACTIVATIONS)], 16_384, args.rounds
    if args.quick:
        networks, points, rounds = networks[:1], 256, 3
    record: Json = {"machine": machine("cpu"), "rows": []}
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as empty:  # so that every first step compiles
        caches = {name: f"{empty}/{name}" for name in ("TORCHAD_EXT_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")}
        os.environ |= {**caches, "TORCHAD_EXT_EAGER": "wait", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
        ad.exp(torch.ones(3))  # builds what all kernels have in common
        for d, name in networks:
            try:
                rows, versions = measured(name, d, points, args.jax, rounds)
            except RuntimeError as error:  # the other networks are not to be lost
                failed.append(f"{name}, d = {d}: {error}")
                continue
            record["rows"] += rows
            record["machine"] |= versions
            table = Table(*HEADER)
            for line in lines(rows):
                table.add_row(*line)
            console.print(table)
    if not (args.quick or failed):
        save(record)
    sys.exit("\n".join(["failed, and nothing kept:", *failed]) if failed else 0)


if __name__ == "__main__":
    main()
