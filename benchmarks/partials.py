"""Measures training steps on differential equations: ``ad.partials`` against nested autograd and ``torch.compile``.

A network of four hidden layers of 128, tanh, in float32; a step is the mean square of the residual and its gradients in
all parameters. The ways run in turn in one process, on the same points and parameters, and have to agree.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from timing import alternate, quartiles
from torch import Tensor
from torch.autograd import grad

import torchad_ext as ad

Parameters = Sequence[Tensor]
Derivatives = Callable[[Callable[[Tensor], Tensor], Tensor, list[str], str], Sequence[Tensor]]
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
        "ad.partials": lambda: eager(sweep),
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


def measure(equation: Equation, points: int, seconds: float, with_compile: bool) -> list[list[str]]:
    """The rows of a table for one equation."""
    exact = ways(equation, *problem(equation, points, torch.float64))["nested autograd"]()
    made = ways(equation, *problem(equation, points, torch.float32))
    firsts, errors = {}, {}
    for name, call in list(made.items()):
        if not with_compile and "compile" in name:
            del made[name]
            continue
        start = time.perf_counter()
        try:
            results = call()
        except Exception as error:  # a rival that does not run is no rival: its row says so
            if "compile" not in name:
                raise
            del made[name]
            Console().print(f"{equation.name}: {name} does not run: {type(error).__name__}")
            continue
        firsts[name] = time.perf_counter() - start
        errors[name] = off_by([r.detach().double() for r in results], [e.detach() for e in exact])
        if errors[name] > TOLERANCE:
            raise RuntimeError(f"{equation.name}: {name} is off by {errors[name]:.1e} from nested autograd in float64")
    samples = alternate(made, seconds, lambda: None, least=5, warm=1)
    times = {name: quartiles(of) for name, of in samples.items()}
    ours = times["ad.partials"].median
    rivals = [t.median for name, t in times.items() if "compile" in name]
    rows = []
    for name, t in times.items():
        floor = {"nested autograd": equation.floor[0]}.get(
            name, equation.floor[1] if t.median == min(rivals, default=0) else None
        )
        rows.append(
            [
                equation.name,
                name,
                f"{t.median * 1e3:.0f} ({t.q1 * 1e3:.0f} to {t.q3 * 1e3:.0f})",
                f"{t.median / ours:.2f}",
                "" if floor is None or name == "ad.partials" else f"{floor}",
                f"{firsts[name]:.1f}",
                f"{errors[name]:.0e}",
            ]
        )
    return rows


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("equations", nargs="*", help="parts of names; all if there are none")
    parser.add_argument("--seconds", type=float, default=20, help="for each equation")
    parser.add_argument("--points", type=int, help="instead of those of the equation")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    options = parser.parse_args()
    torch.set_num_threads(2)
    table = Table("equation", "way", "step, ms (middle half)", "/ ad.partials", "floor", "first, s", "off by")
    for equation in EQUATIONS:
        if not options.equations or any(part.lower() in equation.name.lower() for part in options.equations):
            rows = measure(equation, options.points or equation.points, options.seconds, not options.eager)
            for row in rows:
                table.add_row(*row)
            table.add_section()
    Console(width=120).print(table, f"torch {torch.__version__}, 2 threads, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
