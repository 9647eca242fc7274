"""Training steps on differential equations in JAX, one at a time as ``partials.py`` asks; runs where JAX is installed.

Arguments are a folder and the name of an equation. The folder has the points and the parameters; gradients and loss of
each way are put there. One line of JSON then says what the first steps took, and each name of a way on standard input
is answered with the seconds of one more step.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.jet import jet

Array = Any
Function = Callable[[Array], Array]


def network(parameters: Sequence[Array], x: Array) -> Array:
    """``[..., d]`` to ``[..., outputs]``."""
    *hidden, weight, bias = parameters
    for W, b in zip(hidden[::2], hidden[1::2], strict=True):
        x = jnp.tanh(x @ W.T + b)
    return x @ weight.T + bias


def axis(x: Array, i: int) -> Array:
    return jnp.broadcast_to(jnp.eye(x.shape[-1], dtype=x.dtype)[i], x.shape)


def by_jvps(u: Function, x: Array, orders: Sequence[tuple[int, ...]]) -> list[Array]:
    """Each derivative by nested forward mode."""

    def along(f: Function, i: int) -> Function:
        return lambda x: jax.jvp(f, (x,), (axis(x, i),))[1]

    return [functools.reduce(along, order, u)(x) for order in orders]


def by_jet(u: Function, x: Array, orders: Sequence[tuple[int, ...]]) -> list[Array]:
    """Taylor coefficients along lines; 12 u_xxyy is what the fourth derivatives along x ± y are more than 2 u_xxxx +
    2 u_yyyy."""

    @functools.cache
    def line(*directions: tuple[int, int]) -> list[Array]:
        v = sum(sign * axis(x, i) for i, sign in directions)
        highest = max(map(len, orders))
        value, derivatives = jet(u, (x,), ((v, *[jnp.zeros_like(x)] * (highest - 1)),))
        return [value, *derivatives]

    def of(order: tuple[int, ...]) -> Array:
        if len(set(order)) <= 1:
            return line((order[0] if order else 0, 1))[len(order)]
        i, j = sorted(set(order))
        if order != (i, i, j, j):
            raise NotImplementedError(order)
        fourth = line((i, 1), (j, 1))[4] + line((i, 1), (j, -1))[4]
        return (fourth - 2 * line((i, 1))[4] - 2 * line((j, 1))[4]) / 12

    return [of(order) for order in orders]


def navier_stokes(w: Array, w_t: Array, w_x: Array, w_y: Array, w_xx: Array, w_yy: Array) -> Array:
    u, v = w[:, :1], w[:, 1:2]
    momentum = w_t + u * w_x + v * w_y - 0.01 * (w_xx + w_yy)
    return jnp.concatenate([momentum[:, :1] + w_x[:, 2:], momentum[:, 1:2] + w_y[:, 2:], w_x[:, :1] + w_y[:, 1:2]], 1)


# The residual of each equation of partials.py, of the derivatives that stand there.
RESIDUALS: dict[str, Callable[..., Array]] = {
    "Burgers": lambda u, u_t, u_x, u_xx: u_t + u * u_x - 0.01 * u_xx,
    "wave 2-D": lambda u_tt, u_xx, u_yy: u_tt - 4 * (u_xx + u_yy),
    "KdV": lambda u, u_t, u_x, u_xxx: u_t + 6 * u * u_x + u_xxx,
    "beam": lambda u_tt, u_xxxx: u_tt + u_xxxx,
    "biharmonic 2-D": lambda u_xxxx, u_xxyy, u_yyyy: u_xxxx + 2 * u_xxyy + u_yyyy,
    "Navier-Stokes 2-D": navier_stokes,
}
WAYS = {"jax.jit, nested jvp": by_jvps, "jax.jit, jet": by_jet}


def main() -> None:
    folder, equation, orders = Path(sys.argv[1]), sys.argv[2], [tuple(order) for order in json.loads(sys.argv[3])]
    x, *parameters = map(jnp.asarray, np.load(folder / "problem.npz").values())

    def stepping(derivatives: Any) -> Any:
        def loss(parameters: Sequence[Array]) -> Array:
            terms = derivatives(functools.partial(network, parameters), x, orders)
            return (RESIDUALS[equation](*terms) ** 2).mean()

        return jax.jit(jax.value_and_grad(loss))

    steps = {name: stepping(derivatives) for name, derivatives in WAYS.items()}
    first = {}
    for number, (name, step) in enumerate(steps.items()):
        start = time.perf_counter()
        value, gradients = jax.block_until_ready(step(parameters))
        first[name] = time.perf_counter() - start
        np.savez(folder / f"{number}.npz", *map(np.asarray, [*gradients, value]))
    print(json.dumps({"first": first, "versions": {"jax": importlib.metadata.version("jax")}}), flush=True)

    for line in sys.stdin:
        start = time.perf_counter()
        jax.block_until_ready(steps[line.strip()](parameters))
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
