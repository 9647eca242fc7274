"""What is measured: an entry for each row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import grad

import torchad_ext as ad

Op = Callable[..., Tensor]
Randn = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """``run(op, *inputs)`` for our op and for every way to write it in PyTorch, the fastest of which is 1.0."""

    name: str
    size: str
    run: Callable[..., object]
    inputs: Callable[[Randn], tuple[Tensor, ...]]
    native: Mapping[str, Op]
    ours: Op
    floor: float | None = None  # the ratio that a CPU should reach with two threads in float32


@dataclass(frozen=True)
class Startup:
    """A program for a fresh process, given the device and printing the seconds it took."""

    name: str
    program: str
    limit: float  # seconds
    cached: bool = True  # are the kernels compiled already?


def value(op: Op, *inputs: Tensor) -> object:
    return op(*inputs)


def pullback(op: Op, x: Tensor, w: Tensor, _: Tensor) -> object:
    return grad(op(x), x, w)


def second_pullback(op: Op, x: Tensor, w: Tensor, v: Tensor) -> object:
    (g,) = grad(op(x), x, w, create_graph=True)
    return grad(g, (x, w), v)


def penalty(op: Op, x: Tensor, *_: Tensor) -> object:
    (g,) = grad(op(x).sum(), x, create_graph=True)
    return grad((g * g).sum(), x)


def form_pullback(op: Op, x: Tensor, A: Tensor, w: Tensor, *_: Tensor) -> object:
    return grad(op(x, A), (x, A), w)


def form_second_pullback(op: Op, x: Tensor, A: Tensor, w: Tensor, v: Tensor, V: Tensor) -> object:
    gradients = grad(op(x, A), (x, A), w, create_graph=True)
    return grad(gradients, (x, A), (v, V))


def form_gradient(op: Op, x: Tensor, A: Tensor, w: Tensor, *_: Tensor) -> object:
    return grad(op(x, A), x, w)


def form_hessian_product(op: Op, x: Tensor, A: Tensor, w: Tensor, v: Tensor, _: Tensor) -> object:
    (g,) = grad(op(x, A), x, w, create_graph=True)
    return grad(g, x, v)


SIZES = ("1e3", "1e4", "1e5", "1e6", "1e7")
FLOORS = {("sin", "1e5"): 2.5, ("sin", "1e6"): 5.0, ("exp", "1e6"): 2.0}
POINTWISE = {"sin": (torch.sin, ad.sin), "exp": (torch.exp, ad.exp)}


def pointwise() -> Iterator[Case]:
    for name, (native, ours) in POINTWISE.items():
        for size in SIZES:

            def plain(randn: Randn, n: int = int(float(size))) -> tuple[Tensor, ...]:
                return (3 * randn(n),)

            def with_cotangents(randn: Randn, n: int = int(float(size))) -> tuple[Tensor, ...]:
                return (3 * randn(n)).requires_grad_(), randn(n).requires_grad_(), randn(n)

            ways = {f"torch.{name}": native}
            floor = FLOORS.get((name, size))
            yield Case(f"{name}: f", size, value, plain, ways, ours)
            yield Case(f"{name}: f + b", size, pullback, with_cotangents, ways, ours)
            yield Case(f"{name}: f + b + bb", size, second_pullback, with_cotangents, ways, ours, floor)
            yield Case(f"{name}: f + b + bb of sums", size, penalty, with_cotangents, ways, ours)


def in_place() -> Iterator[Case]:
    """The bare kernel on memory that is there already."""

    def kernel(x: Tensor, out: Tensor) -> Tensor:
        torch.ops.torchad_ext.sin.out(x, out=out)
        return out

    def copy(x: Tensor, out: Tensor) -> Tensor:
        return out.copy_(x)

    def inputs(randn: Randn) -> tuple[Tensor, ...]:
        return 3 * randn(10**7), randn(10**7)

    ways = {"torch.sin(x, out=out)": lambda x, out: torch.sin(x, out=out)}
    yield Case("sin: kernel alone", "1e7", value, inputs, ways, kernel, 2.5)
    yield Case("sin: kernel alone, and a copy", "1e7", value, inputs, {"out.copy_(x)": copy}, kernel, 0.5)


def _einsum(x: Tensor, A: Tensor) -> Tensor:
    return torch.einsum("...i,...ij,...j->...", x, A, x)


ONE_A: dict[str, Op] = {
    "x @ A @ x": lambda x, A: x @ A @ x,
    "x.dot(A @ x)": lambda x, A: x.dot(A @ x),
    "einsum": _einsum,
}
SHARED_A: dict[str, Op] = {
    "((x @ A) * x).sum(-1)": lambda x, A: ((x @ A) * x).sum(-1),
    "vecdot(x @ A, x)": lambda x, A: torch.linalg.vecdot(x @ A, x),
    "einsum": _einsum,
}
MANY_A: dict[str, Op] = {
    "bmm": lambda x, A: torch.bmm(torch.bmm(x.unsqueeze(1), A), x.unsqueeze(2)).flatten(),
    "(x * (A @ x)).sum(-1)": lambda x, A: (x * (A @ x.unsqueeze(-1)).squeeze(-1)).sum(-1),
    "(x * (A * x).sum(-1)).sum(-1)": lambda x, A: (x * (A * x.unsqueeze(-2)).sum(-1)).sum(-1),
    "einsum": _einsum,
}


def quadratic_form() -> Iterator[Case]:
    def of(*batch: int, n: int, each: bool = False) -> Callable[[Randn], tuple[Tensor, ...]]:
        """x, A, and cotangents: for q, for x and for A."""
        matrices = (*batch, n, n) if each else (n, n)

        def inputs(randn: Randn) -> tuple[Tensor, ...]:
            leaves = [randn(size).requires_grad_() for size in ((*batch, n), matrices, batch)]
            return (*leaves, randn((*batch, n)), randn(matrices))

        return inputs

    op = ad.quadratic_form
    many, shared, one, large = of(10**4, n=16, each=True), of(10**4, n=64), of(n=1000), of(n=4096)
    name, size = "quadratic_form, an A each", "1e4 × 16"
    yield Case(f"{name}: f + b", size, form_pullback, many, MANY_A, op, 2.5)
    yield Case(f"{name}: f + b + bb", size, form_second_pullback, many, MANY_A, op)
    name, size = "quadratic_form, one A for all", "1e4 × 64"
    yield Case(f"{name}: f + b", size, form_pullback, shared, SHARED_A, op)
    yield Case(f"{name}: f + b + bb", size, form_second_pullback, shared, SHARED_A, op)
    name, size = "quadratic_form, one x", "1000"
    yield Case(f"{name}: f + b", size, form_pullback, one, ONE_A, op)
    yield Case(f"{name}: f + b + bb", size, form_second_pullback, one, ONE_A, op, 1.5)
    yield Case(f"{name}: Hessian-vector product", size, form_hessian_product, one, ONE_A, op)
    name, size = "quadratic_form, one x", "4096"
    yield Case(f"{name}: f + b for x", size, form_gradient, large, ONE_A, op)

    def ours(x: Tensor, A: Tensor, w: Tensor, *_: Tensor) -> Tensor:
        return grad(op(x, A), x, w)[0]

    def read(x: Tensor, A: Tensor, *_: Tensor) -> Tensor:
        return A.detach().sum()

    yield Case(f"{name}: f + b for x, and reading A", size, value, large, {"A.sum()": read}, ours)


CASES = (*pointwise(), *in_place(), *quadratic_form())

_FIRST_CALL = """
import sys, time, torch, torchad_ext
x = torch.randn(10, device=sys.argv[1])
start = time.perf_counter()
torchad_ext.sin(x).tolist()
print(time.perf_counter() - start)
"""

_IMPORT = """
import time, torch
start = time.perf_counter()
import torchad_ext
print(time.perf_counter() - start)
"""

STARTUPS = (
    Startup("import torchad_ext, after import torch", _IMPORT, limit=0.05),
    Startup("first call, nothing compiled yet", _FIRST_CALL, limit=10.0, cached=False),
    Startup("first call, kernels in the cache", _FIRST_CALL, limit=0.1),
)
