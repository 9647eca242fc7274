"""Measures training steps on differential equations: ``ad.partials`` against other ways in PyTorch and in JAX.

A network of four hidden layers of 128, tanh, in float32; a step is the mean square of the residual and its gradients in
all parameters. The ways run in turn, those of JAX in a process of their own, on the same points and parameters, and
have to agree. ``make rivals`` makes the environment of JAX, build/rivals.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from marks import replace_between
from memory import peak
from rich.console import Console
from rich.table import Table
from rivals import JAX, InJax, as_table
from run import HERE, RESULTS, machine
from timing import alternate, quartiles
from torch import Tensor
from torch.autograd import grad

import torchad_ext as ad

Parameters = Sequence[Tensor]
Derivatives = Callable[[Callable[[Tensor], Tensor], Tensor, list[str], str], Sequence[Tensor]]
Json = dict[str, Any]
PAGE = HERE.parent / "docs" / "partials.md"
BEGIN, END = "<!-- benchmarks/partials.py -->", "<!-- end of partials -->"
MEMORY = "<!-- benchmarks/partials.py --memory -->", "<!-- end of memory -->"
OURS = "ad.partials"
HEADER = ("", "way", "step, ms", "middle half", "/ ad.partials", "floor", "first, s", "off by")
TOLERANCE = 1e-3  # of loss and gradients in float32, relative to nested autograd in float64


@dataclass(frozen=True)
class Equation:
    """A differential equation in some coordinates, and what training on it costs.

    Attributes:
        orders: its derivatives for ``ad.partials``.
        residual: of these.
        terms: the derivatives without sums, with ``residual_of_terms`` for them.
        floor: how often faster than nested autograd a step has to be, and than the best of the others.
    """

    name: str
    names: str
    orders: Sequence[str | ad.Sum]
    residual: Callable[..., Tensor]
    terms: Sequence[str]
    residual_of_terms: Callable[..., Tensor]
    floor: tuple[float, float]
    outputs: int = 1
    points: int = 16_384


def _navier_stokes(w: Tensor, w_t: Tensor, w_x: Tensor, w_y: Tensor, laplacian: Tensor) -> Tensor:
    """Momentum in x and y, and the divergence, of velocities u, v and pressure p."""
    u, v = w[:, :1], w[:, 1:2]
    momentum = w_t + u * w_x + v * w_y - 0.01 * laplacian
    return torch.cat([momentum[:, :1] + w_x[:, 2:], momentum[:, 1:2] + w_y[:, 2:], w_x[:, :1] + w_y[:, 1:2]], 1)


def _burgers(u: Tensor, u_t: Tensor, u_x: Tensor, u_xx: Tensor) -> Tensor:
    return u_t + u * u_x - 0.01 * u_xx


def _kdv(u: Tensor, u_t: Tensor, u_x: Tensor, u_xxx: Tensor) -> Tensor:
    return u_t + 6 * u * u_x + u_xxx


EQUATIONS = [
    Equation("Burgers", "tx", ["", "t", "x", "xx"], _burgers, ["", "t", "x", "xx"], _burgers, (1.8, 1.2)),
    Equation(
        "wave 2-D",
        "txy",
        [ad.Sum("tt", "xx", "yy", weights=(1, -4, -4))],
        lambda wave: wave,
        ["tt", "xx", "yy"],
        lambda u_tt, u_xx, u_yy: u_tt - 4 * (u_xx + u_yy),
        (2.4, 1.4),
    ),
    Equation("KdV", "tx", ["", "t", "x", "xxx"], _kdv, ["", "t", "x", "xxx"], _kdv, (2.6, 1.4)),
    Equation(
        "beam",
        "tx",
        [ad.Sum("tt", "xxxx")],
        lambda beam: beam,
        ["tt", "xxxx"],
        lambda u_tt, u_xxxx: u_tt + u_xxxx,
        (4, 1.5),
    ),
    Equation(
        "biharmonic 2-D",
        "xy",
        [ad.Sum("xxxx", "xxyy", "yyyy", weights=(1, 2, 1))],
        lambda bilaplacian: bilaplacian,
        ["xxxx", "xxyy", "yyyy"],
        lambda u_xxxx, u_xxyy, u_yyyy: u_xxxx + 2 * u_xxyy + u_yyyy,
        (6, 2),
        points=4096,
    ),
    Equation(
        "Navier-Stokes 2-D",
        "txy",
        ["", "t", "x", "y", ad.Sum("xx", "yy")],
        _navier_stokes,
        ["", "t", "x", "y", "xx", "yy"],
        lambda w, w_t, w_x, w_y, w_xx, w_yy: _navier_stokes(w, w_t, w_x, w_y, w_xx + w_yy),
        (3, 1.4),
        outputs=3,
    ),
]


def network(parameters: Parameters, x: Tensor) -> Tensor:
    """``[..., d]`` to ``[..., outputs]``."""
    *hidden, weight, bias = parameters
    for W, b in zip(hidden[::2], hidden[1::2], strict=True):
        x = torch.tanh(F.linear(x, W, b))
    return F.linear(x, weight, bias)


def nested(u: Callable[[Tensor], Tensor], x: Tensor, orders: Sequence[str], names: str) -> list[Tensor]:
    """Derivatives by nested autograd, each gradient taken once for all derivatives that need it."""
    x = x.detach().requires_grad_()
    outputs = u(x).unbind(-1)

    @functools.cache
    def gradient(output: int, order: str) -> Tensor:
        return grad(derivative(output, order).sum(), x, create_graph=True)[0]

    def derivative(output: int, order: str) -> Tensor:
        return gradient(output, order[:-1])[:, names.index(order[-1])] if order else outputs[output]

    return [torch.stack([derivative(i, order) for i in range(len(outputs))], -1) for order in orders]


def by_jvps(u: Callable[[Tensor], Tensor], x: Tensor, orders: Sequence[str], names: str) -> list[Tensor]:
    """Derivatives by nested forward mode, which ``torch.compile`` follows."""

    def along(f: Callable[[Tensor], Tensor], letter: str) -> Callable[[Tensor], Tensor]:
        direction = torch.eye(len(names))[names.index(letter)].to(x).expand(x.shape)
        return lambda x: torch.func.jvp(f, (x,), (direction,))[1]

    return [functools.reduce(along, order, u)(x) for order in orders]


def by_gradients(u: Callable[[Tensor], Tensor], x: Tensor, orders: Sequence[str], names: str) -> list[Tensor]:
    """Derivatives by nested reverse mode of ``torch.func``, which ``torch.compile`` follows."""
    count = u(x).shape[-1]

    def along(f: Callable[[Tensor], Tensor], letter: str) -> Callable[[Tensor], Tensor]:
        return lambda x: torch.func.grad(lambda x: f(x).sum())(x)[:, names.index(letter)]

    def output(i: int) -> Callable[[Tensor], Tensor]:
        return lambda x: u(x)[:, i]

    def of(order: str) -> Tensor:
        return torch.stack([functools.reduce(along, order, output(i))(x) for i in range(count)], -1)

    return [of(order) for order in orders]


def ways(equation: Equation, x: Tensor, parameters: Parameters) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """Each way to the loss and its gradients."""

    def loss(derivatives: Any, parameters: Parameters, x: Tensor) -> Tensor:
        u = functools.partial(network, parameters)
        terms = derivatives(u, x, equation.terms, equation.names)
        return equation.residual_of_terms(*terms).square().mean()

    def sweep(parameters: Parameters, x: Tensor) -> Tensor:
        u = functools.partial(network, parameters)
        numbers = ad.partials(u, x, equation.orders, names=equation.names)
        return equation.residual(*numbers).square().mean()

    def eager(loss: Callable[[Parameters, Tensor], Tensor]) -> tuple[Tensor, ...]:
        value = loss(parameters, x)
        return value, *grad(value, list(parameters), materialize_grads=True)

    def compiled(derivatives: Any) -> Callable[[], tuple[Tensor, ...]]:
        step: Any = torch.compile(torch.func.grad_and_value(functools.partial(loss, derivatives)))
        plain = [p.detach() for p in parameters]

        def call() -> tuple[Tensor, ...]:
            gradients, value = step(plain, x)
            return value, *gradients

        return call

    return {
        "nested autograd": lambda: eager(functools.partial(loss, nested)),
        "torch.compile, nested jvp": compiled(by_jvps),
        "torch.compile, nested grad": compiled(by_gradients),
        OURS: lambda: eager(sweep),
    }


def problem(equation: Equation, points: int, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(0)
    d = len(equation.names)
    sizes = itertools.pairwise((d, *[128] * 4, equation.outputs))
    layers = [torch.nn.Linear(a, b) for a, b in sizes]
    parameters = [p.detach().to(dtype).requires_grad_() for layer in layers for p in (layer.weight, layer.bias)]
    return (2 * torch.rand(points, d) - 1).to(dtype), parameters


def off_by(results: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest difference, relative to the largest number of each tensor."""
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in zip(results, exact, strict=True))


def memory(equation: Equation, way: str, points: int) -> int:
    """Bytes that a step adds at its peak to a process that has taken it for few points."""
    for count in (64, points):
        call = ways(equation, *problem(equation, count, torch.float32))[way]
        call() if count == 64 else None
    return peak(call)


def memories() -> list[list[str]]:
    """The cells of a table: what a step adds at its peak, each in a process of its own."""
    cells = []
    for equation in EQUATIONS:
        bytes_of = []
        for way in ("nested autograd", OURS):
            command = [sys.executable, __file__, "--memory-of", equation.name, way]
            bytes_of.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        nested, ours = bytes_of
        cells.append([equation.name, f"{nested / 1e6:.0f}", f"{ours / 1e6:.0f}", f"{nested / ours:.2f}"])
    return [["MB", "nested autograd", OURS, "ratio"], *cells]


def measure(
    equation: Equation, points: int, seconds: float, rounds: int, python: Path | None, with_compile: bool
) -> list[Json]:
    """The rows of one equation; with JAX if its Python is given."""
    torch.compiler.reset()
    x, parameters = problem(equation, points, torch.float32)
    exact = [t.detach() for t in ways(equation, *problem(equation, points, torch.float64))["nested autograd"]()]
    steps: dict[str, Callable[[], object]] = {}
    firsts: dict[str, float] = {}
    errors: dict[str, float] = {}
    failed: dict[str, str] = {}
    for name, call in ways(equation, x, parameters).items():
        if "compile" in name and not with_compile:
            continue
        start = time.perf_counter()
        try:
            results = call()
        except Exception as error:  # a rival that does not run is no rival: its row says so
            if "compile" not in name:
                raise
            failed[name] = f"does not run: {str(error).splitlines()[0].split('. ')[0]}"
            continue
        firsts[name] = time.perf_counter() - start
        errors[name] = off_by([r.detach().double() for r in results], exact)
        steps[name] = call
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        if python:
            np.savez(Path(folder) / "problem.npz", *(t.detach().numpy() for t in (x, *parameters)))
            orders = json.dumps([[equation.names.index(letter) for letter in order] for order in equation.terms])
            jax = InJax(python, "partials_jax.py", Path(folder), equation.name, orders)
            stack.enter_context(contextlib.closing(jax))
            for name, (gradients, loss) in jax.results.items():
                errors[name] = off_by([loss.double(), *(g.double() for g in gradients)], exact)
                steps[name], firsts[name] = functools.partial(jax.step, name), jax.first[name]
        for name, off in errors.items():
            if not off <= TOLERANCE:
                raise RuntimeError(f"{equation.name}: {name} is off by {off:.1e} from nested autograd in float64")
        samples = alternate(steps, seconds, lambda: None, least=rounds, warm=1)
    rows: list[Json] = [{"equation": equation.name, "way": name, "failed": why} for name, why in failed.items()]
    for name, of in samples.items():
        row: Json = {"equation": equation.name, "way": name, "seconds": quartiles(of)._asdict()}
        rows.append({**row, "first": firsts[name], "off_by": errors[name], "samples": len(of)})
    return rows


def lines(rows: Sequence[Json]) -> Iterator[list[str]]:
    """The cells of HEADER for each row of one equation."""
    floors = next(equation.floor for equation in EQUATIONS if equation.name == rows[0]["equation"])
    medians = {row["way"]: row["seconds"]["median"] for row in rows if "seconds" in row}
    best = min((name for name in medians if name not in ("nested autograd", OURS)), key=medians.__getitem__, default="")
    for row in rows:
        if "failed" in row:
            yield [row["equation"], row["way"], row["failed"], *[""] * (len(HEADER) - 3)]
            continue
        name, (q1, median, q3) = row["way"], row["seconds"].values()
        floor = {"nested autograd": floors[0], best: floors[1]}.get(name, "")
        times = f"{median * 1e3:.0f}", f"{q1 * 1e3:.0f} – {q3 * 1e3:.0f}", f"{median / medians[OURS]:.2f}"
        yield [row["equation"], name, *times, f"{floor}", f"{row['first']:.1f}", f"{row['off_by']:.0e}"]


def save(record: Json, cells: Sequence[Sequence[str]]) -> None:
    """Writes results/partials.json and the table of docs/partials.md."""
    facts = "; ".join(f"{key} {value}" for key, value in record["machine"].items())
    (RESULTS / "partials.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    replace_between(PAGE, BEGIN, END, f"{as_table([HEADER, *cells])}\n{facts}\n")


def main() -> None:
    """Measures, prints a table, and keeps a complete run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("equations", nargs="*", help="parts of names; all if there are none")
    parser.add_argument("--seconds", type=float, default=20, help="for each equation")
    parser.add_argument("--points", type=int, help="instead of those of the equation")
    parser.add_argument("--jax", type=Path, default=JAX, help="the Python that has the packages of rivals.txt")
    parser.add_argument("--without-jax", action="store_true")
    parser.add_argument("--without-compile", action="store_true", help="without torch.compile, which takes minutes")
    parser.add_argument("--quick", action="store_true", help="256 points, three steps: does everything run?")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of times, in results/ and docs/ too")
    parser.add_argument("--memory-of", nargs=2, metavar=("EQUATION", "WAY"), help="print the bytes that a step adds")
    options = parser.parse_args()
    torch.set_num_threads(2)
    if options.memory:
        text = as_table(memories())
        (RESULTS / "partials-memory.md").write_text(text)
        replace_between(PAGE, *MEMORY, text)
        print(text)
        return
    if options.memory_of:
        name, way = options.memory_of
        equation = next(equation for equation in EQUATIONS if equation.name == name)
        print(memory(equation, way, options.points or equation.points))
        return
    if not (options.without_jax or options.jax.exists()):
        sys.exit(f"{options.jax} is missing; `make rivals` makes an environment with JAX, --without-jax does without")
    points = 256 if options.quick else options.points
    record: Json = {"machine": machine("cpu"), "rows": []}
    cells: list[list[str]] = []
    for equation in EQUATIONS:
        if not options.equations or any(part.lower() in equation.name.lower() for part in options.equations):
            python = None if options.without_jax else options.jax
            rounds = 3 if options.quick else 5
            seconds = 0 if options.quick else options.seconds
            rows = measure(equation, points or equation.points, seconds, rounds, python, not options.without_compile)
            record["rows"] += rows
            cells += lines(rows)
            shown = Table(*HEADER)
            for row in lines(rows):
                shown.add_row(*row)
            Console(width=120).print(shown)
    print(f"torch {torch.__version__}, 2 threads, load {os.getloadavg()[0]:.1f}")
    if not (points or options.equations or options.without_jax or options.without_compile):
        save(record, cells)


if __name__ == "__main__":
    main()
