"""What is measured on a GPU: an entry for each row, with what an H100 or H200 should reach."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from cases import (
    DECLARED,
    MANY_A,
    SHARED_A,
    Case,
    CompiledVjps,
    Inputs,
    Op,
    Randn,
    Results,
    Startup,
    f,
    form_gradient,
    form_pullback,
    form_second_pullback,
    penalty,
    penalty_of_all,
    second_pullback,
    value,
)
from torch import Tensor
from torch.autograd import grad
from training import Training, poisson

import torchad_ext as ad
from torchad_ext._row_function import shape_of
from torchad_ext.ops import CATALOGUE
from torchad_ext.rows import ROW_CATALOGUE

SETS = 3  # of buffers, used in turn: no call finds its data in the cache
DTYPES = (torch.float32, torch.bfloat16)
STARTUPS = (Startup("first call of a newly declared op", DECLARED, limit=1.0),)


def cases(elements: int = 2**26, points: int = 2**16) -> Iterator[Case | Training]:
    """Every row; ``elements`` of the large tensors, ``points`` of the training."""
    yield from kernels(elements)
    yield from against_eager(elements)
    yield from declared(elements)
    yield from small()
    yield from quadratic_form(elements)
    yield from rows(elements)
    start = functools.partial(poisson, ad.sin, 256, points=points)
    yield Training("Poisson, sin", f"4 × 256, {points} points", start, ("torch.sin",), 1.4)


def size_of(elements: int) -> str:
    return f"2^{elements.bit_length() - 1}"


class InTurn:
    """Calls a function with the first of each tensor's sets, then with the second, and so on."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function, self.turn = function, itertools.cycle(range(SETS))

    def __call__(self, *tensors: Tensor) -> Tensor:
        i = next(self.turn)
        return self.function(*(tensor[i] for tensor in tensors))


def kernels(elements: int) -> Iterator[Case]:
    """Bare kernels against a copy of as many bytes: the ratio is the share of the bandwidth of a copy."""

    def copy(*tensors: Tensor) -> Tensor:
        *_, source, to = tensors
        return to.copy_(source)

    for name, order, dtype in itertools.product(("sin", "exp"), range(3), DTYPES):
        reads, writes = order + 1, (1, 1, 2)[order]

        def inputs(
            randn: Randn, reads: int = reads, writes: int = writes, dtype: torch.dtype = dtype
        ) -> tuple[Tensor, ...]:
            sizes = [elements] * (reads + writes) + [elements * (reads + writes) // 2] * 2
            return tuple(randn(SETS, size, dtype=dtype) for size in sizes)

        def kernel(*tensors: Tensor, name: str = name, order: int = order, reads: int = reads) -> Tensor:
            *given, _, _ = tensors
            xs, out = given[:reads], given[reads:]
            found = CATALOGUE[name]._order(order).kernel(xs[0].device.type, xs[0].dtype)
            if found is None:
                raise RuntimeError(f"{name} has no kernel for {xs[0].dtype} on {xs[0].device}")
            torch.ops.torchad_ext.pointwise.out(found.address, xs, [], out=out)
            return out[0]

        what = ("forward", "backward", "double backward")[order]
        row = f"{name} kernel, {what}, and a copy of as many bytes, {dtype_name(dtype)}"
        ways: dict[str, Op] = {"out.copy_(x)": InTurn(copy)}
        yield Case(row, size_of(elements), value, inputs, ways, InTurn(kernel), 0.92, equal=False)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def three(elements: int, dtype: torch.dtype = torch.float32) -> Callable[[Randn], Inputs]:
    def inputs(randn: Randn) -> Inputs:
        x, w, v = (randn(elements, dtype=dtype) for _ in range(3))
        return (3 * x).requires_grad_(), w.requires_grad_(), v

    return inputs


def against_eager(elements: int) -> Iterator[Case]:
    size = size_of(elements)
    for dtype in DTYPES:
        inputs, name = three(elements, dtype), dtype_name(dtype)
        yield Case(f"sin: f + b + bb, {name}", size, second_pullback, inputs, {"torch.sin": torch.sin}, ad.sin, 1.9)
        yield Case(f"exp: f + b + bb, {name}", size, second_pullback, inputs, {"torch.exp": torch.exp}, ad.exp)
        yield Case(f"silu: f + b + bb of sums, {name}", size, penalty, inputs, {"F.silu": F.silu}, ad.silu, 2.5)
        yield Case(f"gelu: f + b + bb of sums, {name}", size, penalty, inputs, {"F.gelu": F.gelu}, ad.gelu, 2.5)


def gradients(op: Op, *inputs: Tensor) -> Results:
    return grad(op(*inputs).sum(), inputs)


def declared(elements: int) -> Iterator[Case]:
    """A function that PyTorch has no op for."""
    name, size, ours, compiled = "f(x, a, b)", size_of(elements), ad.pointwise(f), CompiledVjps(f)

    def inputs(randn: Randn) -> Inputs:
        return tuple(x.requires_grad_() for x in (3 * randn(elements), randn(elements).abs(), randn(elements)))

    plain: dict[str, Op] = {"plain PyTorch": f}
    fused: dict[str, Op] = {"torch.compile": torch.compile(f, fullgraph=True, dynamic=False)}
    chain: dict[str, Op] = {"compiled vjps": compiled}
    yield Case(f"{name}: f + b", size, gradients, inputs, plain, ours)
    yield Case(f"{name}: f + b, against torch.compile", size, gradients, inputs, fused, ours)
    yield Case(f"{name}: second order", size, penalty_of_all, inputs, plain, ours, 6.0)
    yield Case(f"{name}: second order, against compiled vjps", size, penalty_of_all, inputs, chain, ours, 1.1)


class Replayed:
    """A computation as a CUDA graph, captured in the first call with an op and replayed in every other."""

    def __init__(self, run: Callable[..., Results]) -> None:
        self.run = run
        self.graphs: dict[Any, tuple[torch.cuda.CUDAGraph, Results]] = {}

    def __call__(self, op: Op, *inputs: Tensor) -> Results:
        if op not in self.graphs:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self.run(op, *inputs)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                results = self.run(op, *inputs)
            self.graphs[op] = graph, results
        graph, results = self.graphs[op]
        graph.replay()
        return results


def small() -> Iterator[Case]:
    """What takes as long as its launches do."""
    for elements, floor in ((2**12, 1.3), (2**20, None)):
        inputs, ways = three(elements), {"torch.sin": torch.sin}
        yield Case("sin: f + b + bb", size_of(elements), second_pullback, inputs, ways, ad.sin, floor)
        run = Replayed(second_pullback)
        yield Case("sin: f + b + bb, a CUDA graph", size_of(elements), run, inputs, ways, ad.sin)


def quadratic_form(elements: int) -> Iterator[Case]:
    op = ad.quadratic_form

    def of(*batch: int, n: int, each: bool) -> Callable[[Randn], Inputs]:
        matrices = (*batch, n, n) if each else (n, n)

        def inputs(randn: Randn) -> Inputs:
            wanting = [randn(size).requires_grad_() for size in ((*batch, n), matrices, batch)]
            return (*wanting, randn((*batch, n)), randn(matrices))

        return inputs

    for n in (4, 16, 64):
        batch = elements // (4 * n * n)
        inputs, size = of(batch, n=n, each=True), f"{size_of(batch)} × {n}"
        yield Case("quadratic_form, an A each: f + b", size, form_pullback, inputs, MANY_A, op, 3.0)
        yield Case("quadratic_form, an A each: f + b + bb", size, form_second_pullback, inputs, MANY_A, op)
    batch = elements // 1024
    inputs = of(batch, n=256, each=False)
    yield Case("quadratic_form, one A for all: f + b", f"{size_of(batch)} × 256", form_pullback, inputs, SHARED_A, op)

    n = 2 * int(elements**0.5)

    def buffers(randn: Randn) -> Inputs:
        x, A, w, *_ = of(n=n, each=False)(randn)
        return x, A, w, randn(n * n // 2), randn(n * n // 2)

    def copy(x: Tensor, A: Tensor, w: Tensor, source: Tensor, to: Tensor) -> Tensor:
        return to.copy_(source)

    def ours(*inputs: Tensor) -> Tensor:
        return form_gradient(op, *inputs)[0]

    row = "quadratic_form, one x: f + b for x, and a copy of as many bytes as A"
    yield Case(row, f"{n}", value, buffers, {"out.copy_(x)": copy}, ours, 0.85, equal=False)


ROWS: dict[str, tuple[str, Op, Op, int]] = {  # the native way, ours, and how many weights
    "layer_norm": (
        "F.layer_norm",
        lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b),
        lambda x, w, b: ad.layer_norm(x, x.shape[-1:], w, b),
        2,
    ),
    "softmax": ("torch.softmax", lambda x: torch.softmax(x, -1), lambda x: ad.softmax(x, -1), 0),
    "normalize": ("F.normalize", lambda x: F.normalize(x, dim=-1), lambda x: ad.normalize(x, dim=-1), 0),
}


def row_second_pullback(op: Op, *inputs: Tensor) -> Results:
    """For operands, a cotangent of the result, and one of each gradient."""
    count = len(inputs) // 2
    xs, w, second = inputs[:count], inputs[count], inputs[count + 1 :]
    gradients = grad(op(*xs), xs, w, create_graph=True)
    return grad(gradients, (*xs, w), second, materialize_grads=True)


def rows(elements: int) -> Iterator[Case]:
    """Functions of rows: all three passes, and bare kernels of two against a copy of as many bytes."""
    for (name, (way, native, ours, weights)), n in itertools.product(ROWS.items(), (1000, 256, 3)):
        shape = elements // (4 * n), n
        shapes = (shape, *[shape[1:]] * weights)

        def inputs(randn: Randn, shapes: Sequence[tuple[int, ...]] = shapes) -> Inputs:
            wanting = [randn(s).requires_grad_() for s in (*shapes, shapes[0])]
            return (*wanting, *(randn(s) for s in shapes))

        size = f"{shape[0]} × {n}"
        yield Case(f"{name}: f + b + bb", size, row_second_pullback, inputs, {way: native}, ours, 5.0)

    def copy(*tensors: Tensor) -> Tensor:
        *_, source, to = tensors
        return to.copy_(source)

    for name, order in itertools.product(("softmax", "layer_norm"), range(2)):
        function = ROW_CATALOGUE[name]._order(order)
        kinds = [x.op for x in function.program.inputs]
        moved = elements * (kinds.count("tensor") + 1)

        def buffers(randn: Randn, kinds: Sequence[str] = kinds, moved: int = moved) -> Inputs:
            shapes = [shape_of(kind, (elements // 256, 256)) for kind in kinds]
            return tuple(randn(SETS, *size) for size in (*shapes, (moved // 2,), (moved // 2,)))

        def kernel(*tensors: Tensor, function: Any = function) -> Tensor:
            *xs, _, _ = tensors
            found = function.kernel(xs[0].device.type, xs[0].dtype)
            if found is None:
                raise RuntimeError(f"{function.name} has no kernel for {xs[0].dtype} on {xs[0].device}")
            result: Tensor = found(xs, [1e-5] * len(function.program.scalars), (elements // 256, 256))[0]
            return result

        row = f"{name} kernel, {('forward', 'backward')[order]}, and a copy of as many bytes"
        ways: dict[str, Op] = {"out.copy_(x)": InTurn(copy)}
        yield Case(row, f"{elements // 256} × 256", value, buffers, ways, InTurn(kernel), 0.85, equal=False)
