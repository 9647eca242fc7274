"""Training steps on a Laplacian in JAX, taken one at a time as ``rivals.py`` asks; runs where JAX is installed.

Arguments are a folder and the name of an activation. The folder has the points, the right-hand side and the parameters;
the gradients of the first steps are put there. One line of JSON then says what these took, and each name of a way on
standard input is answered with the seconds of one more step.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import folx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.jet import jet

Array = Any
Op = Callable[[Array], Array]
Parameters = Sequence[tuple[Array, Array]]


def silu(x: Array) -> Array:
    return x * jax.lax.logistic(x)  # jet has no rule for jax.nn.silu


def of_sin(x: Array) -> tuple[Array, Array, Array]:
    y = jnp.sin(x)
    return y, jnp.cos(x), -y


def of_tanh(x: Array) -> tuple[Array, Array, Array]:
    y = jnp.tanh(x)
    return y, 1 - y * y, -2 * y * (1 - y * y)


def of_silu(x: Array) -> tuple[Array, Array, Array]:
    s = jax.lax.logistic(x)
    return x * s, s * (1 + x * (1 - s)), s * (1 - s) * (2 + x * (1 - 2 * s))


# An activation, and its value with its first two derivatives.
ACTIVATIONS: dict[str, tuple[Op, Callable[[Array], tuple[Array, Array, Array]]]] = {
    "sin": (jnp.sin, of_sin),
    "tanh": (jnp.tanh, of_tanh),
    "silu": (silu, of_silu),
}


def network(activation: Op, parameters: Parameters, x: Array) -> Array:
    """``[..., d]`` to ``[...]``."""
    *hidden, (weight, bias) = parameters
    for W, b in hidden:
        x = activation(x @ W.T + b)
    return (x @ weight.T + bias)[..., 0]


def directions(x: Array) -> list[Array]:
    return [jnp.broadcast_to(e, x.shape) for e in jnp.eye(x.shape[-1], dtype=x.dtype)]


def forward_over_reverse(name: str, parameters: Parameters, x: Array) -> Array:
    """The sum of (∂ᵢ∂ᵢ u), by a Jacobian-vector product of the gradient for each i."""
    gradient = jax.grad(lambda x: network(ACTIVATIONS[name][0], parameters, x).sum())
    return sum(jax.jvp(gradient, (x,), (u,))[1][:, i] for i, u in enumerate(directions(x)))


def by_jet(name: str, parameters: Parameters, x: Array) -> Array:
    """The second coefficients of Taylor polynomials along the axes."""

    def u(x: Array) -> Array:
        return network(ACTIVATIONS[name][0], parameters, x)

    return sum(jet(u, (x,), ((e, jnp.zeros_like(x)),))[1][1] for e in directions(x))


def by_folx(name: str, parameters: Parameters, x: Array) -> Array:
    def u(x: Array) -> Array:
        return network(ACTIVATIONS[name][0], parameters, x)

    return jax.vmap(lambda x: folx.forward_laplacian(u)(x).laplacian)(x)


def by_hand(name: str, parameters: Parameters, x: Array) -> Array:
    """A forward Laplacian: value, tangents and Laplacian go through each layer in one matrix product."""
    d, function = x.shape[-1], ACTIVATIONS[name][1]
    (weight, bias), *layers = parameters
    value, tangents, laplacian = x @ weight.T + bias, weight.T[:, None], jnp.zeros(())
    for W, b in layers:
        y, slope, curvature = function(value)
        laplacian = slope * laplacian + curvature * (tangents**2).sum(0)
        rows = jnp.concatenate([y[None], slope * tangents, laplacian[None]]) @ W.T
        value, tangents, laplacian = rows[0] + b, rows[1 : d + 1], rows[d + 1]
    return laplacian[:, 0]


WAYS: dict[str, Callable[[str, Parameters, Array], Array]] = {
    "jax.jit, forward over reverse": forward_over_reverse,
    "jax.jit, jet": by_jet,
    "jax.jit, folx": by_folx,
    "jax.jit, forward Laplacian by hand": by_hand,
}


def main() -> None:
    folder, activation = Path(sys.argv[1]), sys.argv[2]
    x, right, *flat = map(jnp.asarray, np.load(folder / "problem.npz").values())
    optimizer = optax.adam(1e-3)

    def stepping(laplacian: Callable[[str, Parameters, Array], Array]) -> Any:
        def loss(parameters: Parameters) -> Array:
            return ((laplacian(activation, parameters, x) + right) ** 2).mean()

        def step(parameters: Parameters, state: Any) -> tuple[Any, Any, Array, Any]:
            value, gradients = jax.value_and_grad(loss)(parameters)
            updates, state = optimizer.update(gradients, state)
            return optax.apply_updates(parameters, updates), state, value, gradients

        return jax.jit(step, donate_argnums=(0, 1))

    steps, states, first = {}, {}, {}
    for number, (name, laplacian) in enumerate(WAYS.items()):
        parameters = [(jnp.array(W), jnp.array(b)) for W, b in zip(flat[::2], flat[1::2], strict=True)]
        steps[name] = stepping(laplacian)
        start = time.perf_counter()
        *states[name], value, gradients = jax.block_until_ready(steps[name](parameters, optimizer.init(parameters)))
        first[name] = time.perf_counter() - start
        np.savez(folder / f"{number}.npz", *map(np.asarray, [*jax.tree.leaves(gradients), value]))
    versions = {package: importlib.metadata.version(package) for package in ("jax", "folx")}
    print(json.dumps({"first": first, "versions": versions}), flush=True)

    for line in sys.stdin:
        name = line.strip()
        start = time.perf_counter()
        *states[name], _, _ = jax.block_until_ready(steps[name](*states[name]))
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
