"""What is measured: an entry for each row."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import levels
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import grad
from torch.autograd.function import once_differentiable

import torchad_ext as ad
from torchad_ext.ops import CATALOGUE

Op = Callable[..., Tensor]
Randn = Callable[..., Tensor]
Results = Tensor | Sequence[Tensor]
Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """``run(op, *inputs)`` for our op and for every way to write it in PyTorch, the fastest of which is 1.0."""

    name: str
    size: str
    run: Callable[..., Results]
    inputs: Callable[[Randn], Inputs]
    native: Mapping[str, Op]
    ours: Op
    floor: float | None = None  # the ratio to reach, on a CPU with two threads in float32
    equal: bool = True  # do all ways give the same?
    least: int = 15  # samples
    attempts: int = 10  # at measuring it undisturbed

    def calls(self, randn: Randn) -> Mapping[str, Callable[[], Results]]:
        """The call of each way, all on the same inputs."""
        inputs, ways = self.inputs(randn), {**self.native, "torchad_ext": self.ours}
        return {name: functools.partial(self.run, op, *inputs) for name, op in ways.items()}


@dataclass(frozen=True)
class Startup:
    """A program for a fresh process, given the device and printing the seconds it took."""

    name: str
    program: str
    limit: float  # seconds
    cached: bool = True  # are the kernels compiled already?


def value(op: Op, *inputs: Tensor) -> Results:
    return op(*inputs)


def pullback(op: Op, x: Tensor, w: Tensor, _: Tensor) -> Results:
    return grad(op(x), x, w)


def second_pullback(op: Op, x: Tensor, w: Tensor, v: Tensor) -> Results:
    (g,) = grad(op(x), x, w, create_graph=True)
    return grad(g, (x, w), v)


def penalty(op: Op, x: Tensor, *_: Tensor) -> Results:
    (g,) = grad(op(x).sum(), x, create_graph=True)
    return grad((g * g).sum(), x)


def penalty_of_all(op: Op, *inputs: Tensor) -> Results:
    gradients = grad(op(*inputs).sum(), inputs, create_graph=True)
    return grad([(g * g).sum() for g in gradients], inputs)


def third_order(op: Op, x: Tensor) -> Results:
    (g,) = grad(op(x).sum(), x, create_graph=True)
    (h,) = grad((g * g).sum(), x, create_graph=True)
    return grad((h * h).sum(), x)


def form_pullback(op: Op, x: Tensor, A: Tensor, w: Tensor, *_: Tensor) -> Results:
    return grad(op(x, A), (x, A), w)


def form_second_pullback(op: Op, x: Tensor, A: Tensor, w: Tensor, v: Tensor, V: Tensor) -> Results:
    gradients = grad(op(x, A), (x, A), w, create_graph=True)
    return grad(gradients, (x, A), (v, V))


def form_gradient(op: Op, x: Tensor, A: Tensor, w: Tensor, *_: Tensor) -> Results:
    return grad(op(x, A), x, w)


def form_hessian_product(op: Op, x: Tensor, A: Tensor, w: Tensor, v: Tensor, _: Tensor) -> Results:
    (g,) = grad(op(x, A), x, w, create_graph=True)
    return grad(g, x, v)


def number(size: str) -> int:
    return int(float(size))


SIZES = ("10", "1e3", "1e4", "1e5", "1e6", "1e7")
# Ratios to reach with AVX2 and with AVX-512.
FLOORS = {
    "v3": {
        "sin: f": {"1e3": 1.0, "1e4": 1.3, "1e5": 2.5, "1e6": 3.0, "1e7": 1.4},
        "sin: f + b": {"1e3": 1.0, "1e4": 1.1, "1e5": 2.0, "1e6": 2.5, "1e7": 1.9},
        "sin: f + b + bb": {"10": 0.91, "1e3": 1.0, "1e4": 1.2, "1e5": 2.0, "1e6": 3.0, "1e7": 2.5},
        "exp: f + b + bb": {"1e3": 1.0, "1e4": 1.1, "1e5": 1.3, "1e6": 1.5, "1e7": 1.5},
    },
    "v4": {
        "sin: f": {"1e3": 1.0, "1e4": 2.0, "1e5": 5.0, "1e6": 5.0, "1e7": 1.4},
        "sin: f + b": {"1e3": 1.0, "1e4": 1.5, "1e5": 3.5, "1e6": 5.0, "1e7": 1.9},
        "sin: f + b + bb": {"10": 0.91, "1e3": 1.0, "1e4": 1.5, "1e5": 3.5, "1e6": 8.0, "1e7": 2.5},
        "exp: f + b + bb": {"1e3": 1.0, "1e4": 1.3, "1e5": 2.5, "1e6": 4.0, "1e7": 2.0},
    },
}


def pointwise() -> Iterator[Case]:
    natives: dict[str, Op] = {"sin": torch.sin, "exp": torch.exp}
    computations: dict[str, Callable[..., Results]] = {
        "f": value,
        "f + b": pullback,
        "f + b + bb": second_pullback,
        "f + b + bb of sums": penalty,
    }
    floors = FLOORS.get(levels.current(), FLOORS["v3"])
    for name, native in natives.items():
        ways = {f"torch.{name}": native}
        for (what, run), size in itertools.product(computations.items(), SIZES):
            row = f"{name}: {what}"
            floor = floors.get(row, {}).get(size)

            def inputs(randn: Randn, n: int = number(size), differentiated: bool = run is not value) -> Inputs:
                x = 3 * randn(n)
                return (x.requires_grad_(), randn(n).requires_grad_(), randn(n)) if differentiated else (x,)

            def inputs64(randn: Randn, inputs: Callable[[Randn], Inputs] = inputs) -> Inputs:
                return inputs(functools.partial(randn, dtype=torch.float64))

            yield Case(row, size, run, inputs, ways, CATALOGUE[name], floor)
            if floor and size != "10":
                floor = 1 + (floor - 1) / 2
                yield Case(f"{row}, float64", size, run, inputs64, ways, CATALOGUE[name], floor)


# Of memory of [1000, 1000, 2].
View = Callable[[Tensor], Tensor]
VIEWS: dict[str, View] = {
    "contiguous": lambda x: x[..., 0].contiguous(),
    "transposed": lambda x: x[..., 0].contiguous().T,
    "one number": lambda x: x[0, 0, 0].expand(1000, 1000),
    "a number a row": lambda x: x[:, :1, 0].expand(1000, 1000),
    "one row": lambda x: x[0, :, 0].expand(1000, 1000),
    "half of each row": lambda x: x.flatten(1)[:, 500:1500],
    "half of each row, transposed": lambda x: x.flatten(1)[:, 500:1500].T,
    "every other column": lambda x: x[..., 0],
    "every other row": lambda x: x.view(2000, 1000)[::2],
    "rows of 10 of 20": lambda x: x.view(-1, 20)[:, :10],
    "rows of 10": lambda x: x.flatten()[: 10**6].view(-1, 10),
    "channels last": lambda x: x.flatten()[: 10**6].view(10, 100, 100, 10).permute(0, 3, 1, 2),
    "channels first": lambda x: x.flatten()[: 10**6].view(10, 10, 100, 100),
    "middle of three dimensions": lambda x: x.view(100, 200, 100)[:, 50:150],
}
# How x and its cotangent lie in memory.
LAYOUTS = {
    "contiguous": ("contiguous", "contiguous"),
    "transposed": ("transposed", "transposed"),
    "cotangent transposed": ("contiguous", "transposed"),
    "cotangent of a sum": ("contiguous", "one number"),
    "cotangent of a sum of rows": ("contiguous", "a number a row"),
    "cotangent of a sum of columns": ("contiguous", "one row"),
    "half of each row": ("half of each row", "half of each row"),
    "half of each row, transposed": ("half of each row, transposed", "half of each row, transposed"),
    "every other column": ("every other column", "every other column"),
    "every other row": ("every other row", "every other row"),
    "rows of 10 of 20": ("rows of 10 of 20", "rows of 10 of 20"),
    "rows of 10 of 20, cotangent dense": ("rows of 10 of 20", "rows of 10"),
    "channels last": ("channels last", "channels last"),
    "channels last, cotangent not": ("channels last", "channels first"),
    "middle of three dimensions": ("middle of three dimensions", "middle of three dimensions"),
}


def layouts() -> Iterator[Case]:
    for layout, views in LAYOUTS.items():

        def inputs(randn: Randn, views: tuple[str, str] = views) -> Inputs:
            memory, w = 3 * randn(1000, 1000, 2), randn(1000, 1000, 2)
            return VIEWS[views[0]](memory).requires_grad_(), VIEWS[views[1]](w), w

        ways: dict[str, Op] = {"torch.sin": torch.sin}
        yield Case(f"sin, {layout}: f + b", "1e6", pullback, inputs, ways, ad.sin, 1.0)


ACTIVATIONS: dict[str, Op] = {"tanh": torch.tanh, "silu": F.silu, "gelu": F.gelu, "softplus": F.softplus}


def smallest() -> Iterator[Case]:
    """What a call costs where there is next to nothing to compute."""
    ways: dict[str, Op] = {"torch.ops.aten.sin.default": torch.ops.aten.sin.default}
    yield Case("sin: f, against the operator", "10", value, lambda randn: (3 * randn(10),), ways, ad.sin, 0.67)


def activations() -> Iterator[Case]:
    for name, native in ACTIVATIONS.items():
        ways = {f"{'torch' if native is torch.tanh else 'F'}.{name}": native}
        for size, floor in (("1e5", 2.0), ("1e6", 3.0)):

            def inputs(randn: Randn, n: int = number(size)) -> Inputs:
                return ((3 * randn(n)).requires_grad_(),)

            if name != "tanh":
                yield Case(f"{name}: f + b + bb of sums", size, penalty, inputs, ways, CATALOGUE[name], floor)
            if name in ("tanh", "silu"):
                yield Case(f"{name}: third order", size, third_order, inputs, ways, CATALOGUE[name])


def f(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.exp(-a * x**2) * torch.sin(b * x + torch.cos(x)) + torch.tanh(a * x)


class CompiledVjps:
    """The best we know to do today for a fused function with second derivatives.

    ``torch.compile`` differentiates what it compiles once. So the function, its vjp and the vjp of that are compiled
    each by itself, in their first call, and two ``autograd.Function`` tie them together.
    """

    def __init__(self, function: Op) -> None:
        self.function = function

    @functools.cached_property
    def value(self) -> Op:
        return torch.compile(self.function, fullgraph=True, dynamic=False)

    @functools.cached_property
    def vjp(self) -> Callable[..., Any]:
        return torch.compile(self._vjp, fullgraph=True, dynamic=False)

    @functools.cached_property
    def vjp_of_vjp(self) -> Callable[..., Any]:
        return torch.compile(self._vjp_of_vjp, fullgraph=True, dynamic=False)

    def _vjp(self, g: Tensor, *xs: Tensor) -> Any:
        return torch.func.vjp(self.function, *xs)[1](g)

    def _vjp_of_vjp(self, for_g: bool, g: Tensor, gs: tuple[Tensor, ...], *xs: Tensor) -> Any:
        if for_g:
            return torch.func.vjp(self._vjp, g, *xs)[1](gs)
        return None, *torch.func.vjp(functools.partial(self._vjp, g), *xs)[1](gs)

    def __call__(self, *xs: Tensor) -> Tensor:
        y: Tensor = _Value.apply(self, *xs)
        return y


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compiled: CompiledVjps, *xs: Tensor) -> Tensor:
        ctx.compiled = compiled
        ctx.save_for_backward(*xs)
        return compiled.value(*xs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_Vjp.apply(ctx.compiled, g, *ctx.saved_tensors)


class _Vjp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compiled: CompiledVjps, g: Tensor, *xs: Tensor) -> Any:
        ctx.compiled = compiled
        ctx.save_for_backward(g, *xs)
        return compiled.vjp(g, *xs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gs: Tensor) -> tuple[Tensor | None, ...]:
        g, *xs = ctx.saved_tensors
        return None, *ctx.compiled.vjp_of_vjp(ctx.needs_input_grad[1], g, gs, *xs)


def declared() -> Iterator[Case]:
    """A function that PyTorch has no op for."""
    name, ours, compiled = "f(x, a, b)", ad.pointwise(f), CompiledVjps(f)

    def inputs(size: str) -> Callable[[Randn], Inputs]:
        def inputs(randn: Randn) -> Inputs:
            n = number(size)
            return 3 * randn(n), randn(n).abs(), randn(n)

        return inputs

    def wanting(size: str) -> Callable[[Randn], Inputs]:
        return lambda randn: tuple(x.requires_grad_() for x in inputs(size)(randn))

    ways: dict[str, Op] = {"plain PyTorch": f}
    fused: dict[str, Op] = {"torch.compile": lambda *xs: compiled.value(*xs)}
    chain: dict[str, Op] = {"compiled vjps": compiled}
    for size, first, second in (("1e5", 4.0, 3.0), ("1e6", 5.0, 6.0)):
        plain, leaves = inputs(size), wanting(size)
        yield Case(f"{name}: f", size, value, plain, ways, ours, first)
        yield Case(f"{name}: f, against torch.compile", size, value, plain, fused, ours)
        yield Case(f"{name}: second order", size, penalty_of_all, leaves, ways, ours, second)
        yield Case(f"{name}: second order, against compiled vjps", size, penalty_of_all, leaves, chain, ours, 1.3)


def in_place() -> Iterator[Case]:
    """The bare kernel on memory that is there already."""

    def kernel(x: Tensor, out: Tensor) -> Tensor:
        torch.ops.torchad_ext.pointwise.out(kernel_address(CATALOGUE["sin"], x), [x], [], out=[out])
        return out

    def copy(x: Tensor, out: Tensor) -> Tensor:
        return out.copy_(x)

    def inputs(randn: Randn) -> Inputs:
        return 3 * randn(10**7), randn(10**7)

    ways = {"torch.sin(x, out=out)": lambda x, out: torch.sin(x, out=out)}
    yield Case("sin: kernel alone", "1e7", value, inputs, ways, kernel, 2.5)
    copies = {"out.copy_(x)": copy}
    yield Case("sin: kernel alone, and a copy", "1e7", value, inputs, copies, kernel, 0.77, equal=False)


def kernel_address(op: ad.Pointwise, x: Tensor) -> int:
    """The address of the kernel for tensors like ``x``, which has no public name."""
    kernel = op._usual.kernel(x.device.type, x.dtype)
    if kernel is None:
        raise RuntimeError(f"{op} has no kernel for {x.dtype} on {x.device}")
    return kernel.address


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
    def of(*batch: int, n: int, each: bool = False) -> Callable[[Randn], Inputs]:
        """x, A, and cotangents: for q, for x and for A."""
        matrices = (*batch, n, n) if each else (n, n)

        def inputs(randn: Randn) -> Inputs:
            wanting = [randn(size).requires_grad_() for size in ((*batch, n), matrices, batch)]
            return (*wanting, randn((*batch, n)), randn(matrices))

        return inputs

    op = ad.quadratic_form
    one, large = of(n=1000), of(n=4096)
    name = "quadratic_form, an A each"
    for batch, n in ((10**5, 3), (10**5, 4), (30_000, 8), (10**4, 16), (1000, 64)):
        many, size = of(batch, n=n, each=True), f"{batch:.0e} × {n}".replace("e+0", "e")
        yield Case(f"{name}: f + b", size, form_pullback, many, MANY_A, op, 4.0)
        floor = 4.0 if n >= 16 else None
        yield Case(f"{name}: f + b + bb", size, form_second_pullback, many, MANY_A, op, floor)
    name = "quadratic_form, one A for all"
    for batch, n in ((10**4, 64), (4096, 256)):
        shared, size = of(batch, n=n), f"{batch} × {n}"
        yield Case(f"{name}: f + b", size, form_pullback, shared, SHARED_A, op, 1.8)
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

    yield Case(f"{name}: f + b for x, and reading A", size, value, large, {"A.sum()": read}, ours, 0.83, equal=False)


CASES = (*smallest(), *pointwise(), *layouts(), *activations(), *declared(), *in_place(), *quadratic_form())

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

DECLARED = """
import os, sys, tempfile, time, torch, torchad_ext
x, a, b = (torch.randn(10, device=sys.argv[1]) for _ in range(3))
torchad_ext.sin(x)
with tempfile.TemporaryDirectory() as empty:
    os.environ["TORCHAD_EXT_CACHE_DIR"] = empty
    start = time.perf_counter()
    f = torchad_ext.pointwise(
        lambda x, a, b: torch.exp(-a * x**2) * torch.sin(b * x + torch.cos(x)) + torch.tanh(a * x)
    )
    f(x, a, b).tolist()
    print(time.perf_counter() - start)
"""

_TEN_OPS = """
import sys, time, torch
start = time.perf_counter()
import torchad_ext as ad
x = torch.rand(10, device=sys.argv[1], requires_grad=True)
for op in (ad.sin, ad.cos, ad.exp, ad.log, ad.tanh, ad.sigmoid, ad.erf, ad.sqrt, ad.silu, ad.gelu):
    y = op(x)
    (g,) = torch.autograd.grad(y.sum(), x)
    g.tolist()
print(time.perf_counter() - start)
"""

STARTUPS = (
    Startup("import torchad_ext, after import torch", _IMPORT, limit=0.05),
    Startup("first call, nothing compiled yet", _FIRST_CALL, limit=6.0, cached=False),
    Startup("first call, kernels in the cache", _FIRST_CALL, limit=0.1),
    Startup("first call of a newly declared op", DECLARED, limit=3.0),
    Startup("import, value and gradient of ten ops, kernels in the cache", _TEN_OPS, limit=0.2),
)
