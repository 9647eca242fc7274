"""quadratic_form with one A for a batch: each way to compute it, on either side of every switch, against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from drop_in import row
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, vmap
from torch.profiler import profile
from torch.testing import assert_close

from torchad_ext._native import kernels
from torchad_ext._quadratic_form import definition, quadratic_form

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
LENGTHS = [1, 3, 16, 17, 33, 64, 100, 260, 300]
BATCHES = [1, 2, 3, 4, 5, 8, 9, 17, 40]

Pair = tuple[torch.Tensor, torch.Tensor]

# How x and A lie in memory.
LAYOUTS: dict[str, Callable[[torch.Tensor, torch.Tensor], Pair]] = {
    "contiguous": lambda x, A: (x, A),
    "transposed A": lambda x, A: (x, A.mT),
    "transposed x": lambda x, A: (x.mT.contiguous().mT, A),
    "rows of larger A and x": lambda x, A: (x[:, :-1], A[:-1, :-1]),
    "columns of a larger A": lambda x, A: (x[:, 1:], A.mT[1:, 1:]),
    "every other element": lambda x, A: (x[:, ::2], A[::2, ::2]),
    "one x, repeated": lambda x, A: (x[:1].expand_as(x), A),
    "one number": lambda x, A: (x[:1, :1].expand_as(x), A),
    "one row": lambda x, A: (x, A[:1].expand_as(A)),
    "one column": lambda x, A: (x, A[:, :1].expand_as(A)),
}


def pair(n: int, batch: int, device: str, dtype: torch.dtype = torch.float64) -> Pair:
    generator = torch.Generator().manual_seed(n + batch)
    x = torch.randn(batch, n, dtype=torch.float64, generator=generator)
    A = torch.randn(n, n, dtype=torch.float64, generator=generator) / n**0.5
    return x.to(device, dtype), A.to(device, dtype)


def assert_first_derivatives(x: torch.Tensor, A: torch.Tensor) -> None:
    """q, its gradients for x and A, and q where no gradient is wanted, within roundings of the sums of magnitudes."""
    eps, least = torch.finfo(x.dtype).eps, 64 * torch.finfo(x.dtype).smallest_normal * torch.finfo(x.dtype).eps
    g = torch.linspace(-1, 2, x.shape[0], device=x.device).to(x.dtype)
    leaves = x.detach().requires_grad_(), A.detach().requires_grad_()
    q = quadratic_form(*leaves)
    grad_x, grad_A = torch.autograd.grad(q, leaves, g)
    assert q.dtype == grad_x.dtype == grad_A.dtype == x.dtype
    xd, Ad, gd = x.double(), A.double(), g.double()
    of_q = ((xd.abs() @ Ad.abs()) * xd.abs()).sum(-1)
    for value in (q, quadratic_form(x, A)):
        assert ((value.double() - definition(xd, Ad)).abs() <= 4 * eps * of_q + least).all()
    of_x = gd.abs().unsqueeze(-1) * (xd.abs() @ (Ad.abs() + Ad.abs().T))
    assert ((grad_x.double() - gd.unsqueeze(-1) * (xd @ (Ad + Ad.T))).abs() <= 6 * eps * of_x + least).all()
    of_A = (gd.abs().unsqueeze(-1) * xd.abs()).T @ xd.abs()
    assert ((grad_A.double() - (gd.unsqueeze(-1) * xd).T @ xd).abs() <= 4 * eps * of_A + least).all()


class TestValues:
    @pytest.mark.parametrize("n", LENGTHS)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @row("dtypes")
    def test_on_either_side_of_every_switch(self, n: int, dtype: torch.dtype, device: str) -> None:
        for batch in BATCHES:
            assert_first_derivatives(*pair(n, batch, device, dtype))

    @row("dtypes")
    def test_in_several_panels_and_parts(self, device: str) -> None:
        assert_first_derivatives(*pair(1100, 60, device, torch.float32))
        assert_first_derivatives(*pair(20, 1500, device, torch.float64))

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize(("n", "batch"), [(5, 4), (40, 6), (70, 20), (70, 60)])
    @row("layouts")
    def test_layouts(self, layout: str, n: int, batch: int, device: str) -> None:
        for dtype in (torch.float64, torch.float32):
            x, A = LAYOUTS[layout](*pair(n, batch, device, dtype))
            before = x.clone(), A.clone()
            assert_first_derivatives(x, A)
            assert torch.equal(x, before[0]) and torch.equal(A, before[1])

    def test_the_number_of_threads_changes_no_bit(self) -> None:
        threads = torch.get_num_threads()
        try:
            for batch in (3, 8):
                x, A = pair(600, batch, "cpu", torch.float32)
                results = []
                for count in (1, 2, 3):
                    torch.set_num_threads(count)
                    leaf = x.detach().requires_grad_()
                    q = quadratic_form(leaf, A)
                    results.append(torch.cat([q, *torch.autograd.grad(q.sum(), leaf)[0]]))
                assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
        finally:
            torch.set_num_threads(threads)


@pytest.mark.parametrize(("n", "batch"), [(3, 4), (18, 2), (18, 9), (70, 12), (70, 60)])
@row("reverse mode")
def test_second_derivatives(n: int, batch: int, device: str) -> None:
    inputs = [v.requires_grad_() for v in pair(n, batch, device)]
    cotangents = [torch.randn_like(v) for v in inputs]

    def second(f: Callable[..., torch.Tensor]) -> Any:
        first = torch.autograd.grad(f(*inputs).sin().sum(), inputs, create_graph=True)
        results = torch.autograd.grad(first, inputs, cotangents, create_graph=True)
        return [*first, *results, *torch.autograd.grad([(r * r).sum() for r in results], inputs)]

    for result, expected in zip(second(quadratic_form), second(definition), strict=True):
        assert_close(result, expected, rtol=1e-10, atol=1e-10 * float(expected.detach().abs().max()))


@pytest.mark.parametrize(("n", "batch"), [(3, 2), (17, 2)])
@row("reverse mode")
def test_gradcheck_and_gradgradcheck(n: int, batch: int, device: str) -> None:
    inputs = tuple(v.requires_grad_() for v in pair(n, batch, device))
    fast = n > 3
    assert gradcheck(quadratic_form, inputs, check_forward_ad=True, check_batched_grad=not fast, fast_mode=fast)
    assert gradgradcheck(quadratic_form, inputs, check_fwd_over_rev=True, check_batched_grad=not fast, fast_mode=fast)


@pytest.mark.parametrize("batch", [3, 30])
@row("torch.func")
def test_vmap_reaches_the_same_ways(batch: int, device: str) -> None:
    x, A = pair(40, batch, device)
    assert_close(vmap(quadratic_form, (0, None))(x, A), definition(x, A))
    slope = vmap(grad(quadratic_form), (0, None))(x, A)
    assert_close(slope, x @ (A + A.T))
    assert_close(vmap(hessian(quadratic_form), (0, None))(x, A), (A + A.T).expand(batch, 40, 40))
    stacked = torch.stack([x, x + 1])
    assert_close(vmap(quadratic_form, (0, None))(stacked, A), definition(stacked, A))


class TestWays:
    """Which way was taken, by the operators that PyTorch's profiler saw."""

    @staticmethod
    def products(n: int, batch: int, wanting: bool, dtype: torch.dtype = torch.float32) -> int:
        x, A = pair(n, batch, "cpu", dtype)
        quadratic_form(x.requires_grad_(wanting), A)  # compiles
        with profile() as recorded:
            quadratic_form(x, A)
        return [event.name for event in recorded.events()].count("aten::mm")

    @pytest.mark.parametrize(
        ("n", "batch", "value", "product"),
        [
            (8, 5000, 0, 0),
            (16, 256, 0, 0),
            (16, 257, 1, 0),
            (16, 1025, 1, 1),
            (300, 1, 0, 0),
            (300, 2, 0, 0),
            (300, 8, 0, 0),
            (300, 9, 1, 2),
            (300, 51, 1, 2),
            (300, 52, 1, 1),
        ],
    )
    def test_matrix_products(self, n: int, batch: int, value: int, product: int) -> None:
        assert self.products(n, batch, wanting=False) == value
        assert self.products(n, batch, wanting=True) == product

    @pytest.mark.parametrize(("batch", "value", "product"), [(16, 0, 0), (17, 1, 0), (64, 1, 0), (65, 1, 1)])
    def test_of_short_rows_of_doubles(self, batch: int, value: int, product: int) -> None:
        assert self.products(16, batch, False, torch.float64) == value
        assert self.products(16, batch, True, torch.float64) == product

    def test_no_way_makes_a_matrix_of_its_own_as_large_as_A(self) -> None:
        n = 1500
        for batch in (4, 16, 64):
            x, A = pair(n, batch, "cpu", torch.float32)
            quadratic_form(x.requires_grad_(), A)
            with profile(profile_memory=True) as recorded:
                quadratic_form(x, A)
            allocated = [event.cpu_memory_usage for event in recorded.events() if event.cpu_memory_usage > 0]
            assert sum(allocated) < n * n * 4 * 0.8


def test_each_element_of_A_is_in_the_sum_of_the_kernel_once() -> None:
    """q and s of unit vectors tell every element of A apart, for any number of vectors that share a reading."""
    n = 37
    A = torch.arange(n * n, dtype=torch.float64).reshape(n, n)
    kernel = kernels.find("quadratic_form_and_product", "cpu", torch.float64)
    assert kernel is not None
    for k in (1, 2, 4, 8):
        for first in range(0, n - k, k):
            x = torch.eye(n, dtype=torch.float64)[first : first + k]
            q, s = kernel(x, A)
            assert torch.equal(q, A.diagonal()[first : first + k])
            assert torch.equal(s, (A + A.T)[first : first + k])
