"""Times the row ops against PyTorch's own: value, gradient and double backward, a training step, a Laplacian.

    python benchmarks/rows.py                      # all of it
    python benchmarks/rows.py --op softmax --shape 65536,64 --threads 1 --clock cpu

A cell is the milliseconds of the fastest native way, those of the row op, and their ratio, in lower quartiles. With
``--clock cpu`` it is the time of the processor that the calling thread used, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import functools
import os
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from timing import quartiles
from torch.nn.attention import SDPBackend, sdpa_kernel

import torchad_ext as ad

SHAPES = ("4096,256", "65536,64", "1000000,3")
OPS: dict[str, tuple[Callable[..., Any], Callable[..., Any], int]] = {  # ours, native, and how many weights
    "layer_norm": (
        lambda x, w, b: ad.layer_norm(x, x.shape[-1:], w, b),
        lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b),
        2,
    ),
    "rms_norm": (lambda x, w: ad.rms_norm(x, x.shape[-1:], w), lambda x, w: F.rms_norm(x, x.shape[-1:], w), 1),
    "softmax": (lambda x: ad.softmax(x, -1), lambda x: F.softmax(x, -1), 0),
    "log_softmax": (lambda x: ad.log_softmax(x, -1), lambda x: F.log_softmax(x, -1), 0),
    "vector_norm": (lambda x: ad.vector_norm(x, dim=-1), lambda x: torch.linalg.vector_norm(x, dim=-1), 0),
    "normalize": (lambda x: ad.normalize(x, dim=-1), lambda x: F.normalize(x, dim=-1), 0),
}


def passes(f: Callable[..., Any], xs: tuple[torch.Tensor, ...]) -> dict[str, Callable[[], Any]]:
    """The value; with its gradients; with the gradients of those."""
    shape = f(*xs).shape
    cotangent = torch.randn(shape, requires_grad=True)
    second = [torch.randn_like(x) for x in xs]

    def value() -> Any:
        with torch.no_grad():
            return f(*xs)

    def gradient() -> Any:
        return torch.autograd.grad(f(*xs), xs, cotangent)

    def double() -> Any:
        gradients = torch.autograd.grad(f(*xs), xs, cotangent, create_graph=True)
        return torch.autograd.grad(gradients, (*xs, cotangent), second, allow_unused=True)

    return {"f": value, "f + b": gradient, "f + b + bb": double}


class Block(torch.nn.Module):
    """Residual layers with normalisation."""

    def __init__(self, normalize: Callable[..., torch.Tensor], width: int = 128, layers: int = 4) -> None:
        super().__init__()
        self.linear = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(layers))
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(width) for _ in range(layers))
        self.normalize = normalize

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for linear, norm in zip(self.linear, self.norms, strict=True):
            x = x + torch.tanh(linear(self.normalize(x, norm.normalized_shape, norm.weight, norm.bias)))
        return x.square().mean()


def training_step(normalize: Callable[..., torch.Tensor]) -> Callable[[], Any]:
    """The gradient in the parameters of |Hv|², H the Hessian of a LayerNorm network in its inputs."""
    torch.manual_seed(0)
    network, x = Block(normalize), torch.randn(4096, 128, requires_grad=True)
    v = torch.randn_like(x)

    def step() -> Any:
        (g,) = torch.autograd.grad(network(x), x, create_graph=True)
        (product,) = torch.autograd.grad((g * v).sum(), x, create_graph=True)
        return torch.autograd.grad(product.square().sum(), list(network.parameters()), allow_unused=True)

    return step


def laplacian(normalize: Callable[..., torch.Tensor]) -> Callable[[], Any]:
    """The Laplacian of a network with normalisation at 2,048 points in space, by one forward sweep."""
    torch.manual_seed(0)
    layers = [torch.randn(3, 64), torch.randn(64, 64) / 8, torch.randn(64, 64) / 8]
    weight, points = torch.randn(64), torch.randn(2048, 3)

    def network(x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(x @ layers[0])
        for layer in layers[1:]:
            h = torch.tanh(normalize(h, (64,), weight, weight) @ layer)
        return h.sum(-1)

    return lambda: ad.laplacian(network, points)


@ad.rowwise
def attention_weights(scores, mask, scale=1.0):  # type: ignore[no-untyped-def]
    """Scale, mask and softmax in one pass."""
    return torch.softmax(scores * scale + mask, -1)


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Two products, and a row op between them."""
    weights: torch.Tensor = attention_weights(q @ k.mT, mask, q.shape[-1] ** -0.5)
    return weights @ v


def native_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """PyTorch's, by the kernel that has a double backward."""
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v, mask)


def force_training(attend: Callable[..., torch.Tensor]) -> Callable[[], Any]:
    """The gradients of a loss on the gradient of an energy of attention, 4 heads of 32, 256 tokens, a batch of 4."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(4, 4, 256, 32, requires_grad=True) for _ in range(3))
    causal = torch.full((256, 256), float("-inf")).triu(1)

    def step() -> Any:
        forces = torch.autograd.grad(attend(q, k, v, causal).square().sum(), (q, k, v), create_graph=True)
        return torch.autograd.grad(torch.stack([f.square().sum() for f in forces]).sum(), (q, k, v))

    return step


def compare(ours: Callable[[], Any], native: Callable[[], Any], seconds: float, clock: Callable[[], float]) -> str:
    """Both in turn, for some seconds."""
    samples: tuple[list[float], list[float]] = ([], [])
    for call in (ours, native):
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(samples[0]) < 5:
        for call, times in zip((ours, native), samples, strict=True):
            start = clock()
            call()
            times.append((clock() - start) * 1e3)
    mine, theirs = (quartiles(times).q1 for times in samples)
    return f"{theirs:.2f} / {mine:.2f} = {theirs / mine:.2f}"


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", nargs="*", default=[*OPS, "training step", "laplacian", "attention"])
    parser.add_argument("--shape", nargs="*", default=list(SHAPES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    clock = time.perf_counter if given.clock == "wall" else time.thread_time
    measure = functools.partial(compare, seconds=given.seconds, clock=clock)
    table = Table("native / ours, ms", "shape", "f", "f + b", "f + b + bb")
    for shape in (tuple(map(int, text.split(","))) for text in given.shape):
        for name in (name for name in given.op if name in OPS):
            ours, native, weights = OPS[name]
            xs = tuple(torch.randn(s, requires_grad=True) for s in (shape, *[shape[-1:]] * weights))
            pairs = zip(passes(ours, xs).values(), passes(native, xs).values(), strict=True)
            table.add_row(name, str(list(shape)), *(measure(*pair) for pair in pairs))
    if "training step" in given.op:
        step = measure(training_step(ad.layer_norm), training_step(F.layer_norm))
        table.add_row("training step", "[4096, 128]", "", "", step)
    if "laplacian" in given.op:
        step = measure(laplacian(ad.layer_norm), laplacian(F.layer_norm))
        table.add_row("laplacian", "[2048, 64]", "", "", step)
    if "attention" in given.op:
        step = measure(force_training(attention), force_training(native_attention))
        table.add_row("attention", "[4, 4, 256, 32]", "", "", step)
    console = Console(width=130)
    console.print(table)
    console.print(f"{given.threads} threads, {given.clock} clock, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
