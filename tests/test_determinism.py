"""Bits that depend on the operands alone: neither on the number of threads nor on what else is computed beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from selection import few

import torchad_ext as ad
from torchad_ext.ops import CATALOGUE
from torchad_ext.rows import ROW_CATALOGUE

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
dtypes = pytest.mark.parametrize("dtype", few(DTYPES, lambda dtype: dtype == torch.float32), ids=str)
SPECIAL = (0.0, -0.0, torch.nan, torch.inf, -torch.inf, 1e-45, 1e30, -1e30, 1e6, 3e4, -7e4, 88.0, -104.0)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def bits(results: Sequence[torch.Tensor]) -> list[bytes]:
    return [y.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for y in results]


def derivatives(f: Callable[..., torch.Tensor], leaves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The value, the gradients, and the gradients of these in all leaves."""
    leaves = [x.detach().requires_grad_() for x in leaves]
    y = f(*leaves)
    firsts = torch.autograd.grad(y, leaves, torch.cos(y.detach().nan_to_num(0, 1, -1)), create_graph=True)
    wanted = [g for g in firsts if g.requires_grad]
    seconds = torch.autograd.grad(wanted, leaves, [torch.ones_like(g) for g in wanted], allow_unused=True)
    return [y, *firsts, *(g for g in seconds if g is not None)]


def assert_threads_do_not_matter(f: Callable[..., torch.Tensor], leaves: Sequence[torch.Tensor]) -> None:
    torch.set_num_threads(1)
    alone = bits(derivatives(f, leaves))
    for threads in range(2, 9):
        torch.set_num_threads(threads)
        assert bits(derivatives(f, leaves)) == alone, f"{threads} threads"


def products_depend_on_threads(x: torch.Tensor, A: torch.Tensor) -> bool:
    """Is it so of the products that stand in ``quadratic_form`` for a batch of x and one A?"""
    if x.dim() != 2 or A.dim() != 2:
        return False
    made = []
    for threads in range(1, 9):
        torch.set_num_threads(threads)
        made.append(bits([x @ A, A @ x.T, x @ (A + A.T), x.T @ (2 * x)]))
    return any(each != made[0] for each in made)


def sample(op: Any, shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tensors = []
    for low, high in (op.intervals[name] for name in op.domain):
        x = low + (high - low) * torch.rand(shape, dtype=torch.float64, generator=generator)
        tensors.append(x.to(dtype))
    return tensors


@dtypes
@pytest.mark.parametrize("name", list(CATALOGUE))
class TestElements:
    def test_neighbours(self, name: str, dtype: torch.dtype) -> None:
        """A number has one sine, be it first or last of a vector, alone, or beside nan and 1e30."""
        op = CATALOGUE[name]
        tensors = sample(op, (131,), dtype)
        every_fifth = torch.tensor(SPECIAL, dtype=torch.float64).to(dtype)
        beside = [x.clone() for x in tensors]
        for x in beside:
            x[::5] = every_fifth.repeat(3)[: len(x[::5])]
        plain = torch.arange(131) % 5 != 0
        whole = derivatives(op, tensors)
        mixed = derivatives(op, beside)
        assert bits([y[plain] for y in mixed]) == bits([y[plain] for y in whole])
        for begin, end in ((0, 1), (1, 130), (3, 20), (130, 131)):
            part = derivatives(op, [x[begin:end] for x in tensors])
            assert bits(part) == bits([y[begin:end] for y in whole])
            part = derivatives(op, [x[begin:end] for x in beside])
            assert bits(part) == bits([y[begin:end] for y in mixed])


@ad.pointwise
def everything(x, y):
    """Every scalar function that the kernels have."""
    return (
        x.sin(), x.cos(), x.tan(), x.asin(), x.acos(), x.atan(), x.sinh(), x.cosh(), x.tanh(), x.asinh(), x.acosh(),
        x.atanh(), x.exp(), x.exp2(), x.expm1(), x.log(), x.log2(), x.log10(), x.log1p(), x.sqrt(), x.rsqrt(), x.erf(),
        x.erfc(), torch.special.erfcx(x), x.lgamma(), x.digamma(), x.sigmoid(), x.sinc(),
        torch.hypot(x, y), torch.atan2(x, y), torch.pow(x, y), torch.logaddexp(x, y),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lanes(dtype: torch.dtype) -> None:
    """A function of a number does not depend on the numbers beside it in a vector."""
    powers = [sign * 2.0**k for k in range(-20, 40, 3) for sign in (1, -1)]
    x = torch.tensor([*SPECIAL, *powers, 0.25, 0.999, 1.0, 1.5, -0.999, 2.7, 1e-30, 1e300], dtype=torch.float64).to(
        dtype
    )
    x, y = (z.flatten() for z in torch.meshgrid(x, x, indexing="ij"))
    alone = everything(x.repeat_interleave(32), y.repeat_interleave(32))
    for name, whole, each in zip(everything.program.outputs, everything(x, y), alone, strict=True):
        assert bits([whole]) == bits([each[::32]]), name.op


@dtypes
class TestThreads:
    @pytest.mark.parametrize("name", ["sin", "exp", "gelu"])
    def test_elements(self, name: str, dtype: torch.dtype) -> None:
        assert_threads_do_not_matter(CATALOGUE[name], sample(CATALOGUE[name], (7, 30_011), dtype))

    @pytest.mark.parametrize("shapes", [((300, 700), (700,)), ((300, 700), (300, 1)), ((30_000,), ())], ids=str)
    def test_broadcast(self, shapes: tuple[tuple[int, ...], tuple[int, ...]], dtype: torch.dtype) -> None:
        """The gradient of an operand that was repeated is a sum."""
        leaves = [torch.rand(shape, dtype=torch.float64).add(0.5).to(dtype) for shape in shapes]
        assert_threads_do_not_matter(ad.pow, leaves)

    @pytest.mark.parametrize("shape", [(4000, 3), (5000, 9), (700, 300), (3, 70_001)], ids=str)
    @pytest.mark.parametrize("name", ["softmax", "layer_norm", "vector_norm"])
    def test_rows(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        x = torch.randn(shape, dtype=torch.float64).to(dtype)
        if name != "layer_norm":
            return assert_threads_do_not_matter(lambda x: ROW_CATALOGUE[name](x, dim=-1), [x])
        weights = [torch.rand(shape[-1:], dtype=torch.float64).to(dtype) for _ in range(2)]
        assert_threads_do_not_matter(lambda x, w, b: ad.layer_norm(x, None, w, b), [x, *weights])

    @pytest.mark.parametrize(
        "shapes",
        [((900,), (900, 900)), ((3, 500), (500, 500)), ((200, 65), (65, 65)), ((3000, 5), (5, 5)),
         ((9000, 32), (32, 32)), ((4000, 13), (13, 13)), ((400, 12), (400, 12, 12)), ((50, 1, 33), (2, 33, 33)),
         ((20_000, 3), (3, 3))],
        ids=str,
    )  # fmt: skip
    def test_quadratic_form(self, shapes: tuple[tuple[int, ...], tuple[int, ...]], dtype: torch.dtype) -> None:
        leaves = [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]
        if products_depend_on_threads(*leaves):
            pytest.skip("PyTorch's own products of these matrices depend on the number of threads here")
        assert_threads_do_not_matter(ad.quadratic_form, leaves)
