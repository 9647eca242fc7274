"""Operands that broadcast: their gradients are sums in the operand's shape, made by the kernel, in every order."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from selection import few
from torch import Tensor

import torchad_ext as ad
from torchad_ext._broadcast import Broadcast

Shapes = list[tuple[int, ...]]


@ad.pointwise
def message(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return x * torch.sin(y) * z + torch.exp(-z * z) * y


@ad.pointwise
def pair(x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    return x * torch.sin(y) * z, torch.exp(0.1 * y) * x + z


@ad.pointwise
def product(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return x * y * z


PATTERNS: list[Shapes] = [
    [(4, 3), (3,), (4, 1)],
    [(2, 1, 3), (2, 4, 1), (1, 4, 3)],
    [(2, 3, 4, 2), (3, 1, 2), (2, 1, 4, 1)],
    [(4, 3), (), (1, 1)],
    [(5,), (1,), ()],
    [(4, 1), (1, 3), (2, 1, 1)],
    [(0, 3), (3,), (0, 1)],
]
OF_ONE: list[Shapes] = [  # nothing is summed, although shapes differ
    [(1, 4, 3), (4, 3), (4, 1)],
    [(2, 3), (1, 1, 2, 3), (3,)],
    [(1, 2, 1, 3), (2, 1, 3), ()],
]
LARGE: list[Shapes] = [
    [(3000, 64), (64,), (3000, 1)],
    [(700, 3, 64), (700, 1, 64), (700, 3, 1)],
    [(40, 5000), (5000,), (40, 1)],
    [(60000, 3), (3,), (60000, 1)],
    [(30, 50, 20, 7), (50, 1, 7), (30, 1, 20, 1)],
    [(8, 64, 14, 14), (64, 1, 1), (14,)],
    [(300, 1, 7), (1, 90, 1), (300, 90, 7)],
    [(200_000,), (1,), ()],
]
patterns = pytest.mark.parametrize("shapes", PATTERNS, ids=str)


def leaves(shapes: Shapes, dtype: torch.dtype = torch.float64, device: str = "cpu") -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64).to(device, dtype).requires_grad_() for shape in shapes]


def reversed_in_memory(x: Tensor) -> Tensor:
    """x with its first dimension the innermost in memory."""
    backwards = tuple(reversed(range(x.dim())))
    return x.permute(backwards).contiguous().permute(backwards)


def total(op: Callable[..., Tensor | tuple[Tensor, ...]]) -> Callable[..., Tensor]:
    def function(*xs: Tensor) -> Tensor:
        y = op(*xs)
        return sum((z.sum() for z in y), torch.zeros(())) if isinstance(y, tuple) else y.sum()

    return function


def summed(terms: Any, shape: tuple[int, ...]) -> Any:
    """The sum of an array in a shape that broadcasts to its own."""
    own = (1,) * (terms.ndim - len(shape)) + shape
    axes = tuple(d for d in range(terms.ndim) if own[d] != terms.shape[d])
    return terms.sum(axis=axes, keepdims=True).reshape(shape)


class TestDerivatives:
    @patterns
    @pytest.mark.parametrize("op", few([message, pair], lambda op: op is pair), ids=["one result", "two results"])
    def test_first_and_second_in_both_modes_and_in_batches(self, shapes: Shapes, op: ad.Pointwise, device: str) -> None:
        xs = leaves(shapes, device=device)
        assert torch.autograd.gradcheck(op, xs, check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(op, xs, check_fwd_over_rev=True, check_batched_grad=True)

    @patterns
    def test_third(self, shapes: Shapes, device: str) -> None:
        def slope(*xs: Tensor) -> Tensor:
            gradients = torch.autograd.grad(message(*xs).square().sum(), xs, create_graph=True)
            return sum((g.square().sum() for g in gradients), torch.zeros(()))

        assert torch.autograd.gradgradcheck(slope, leaves(shapes, device=device))

    @patterns
    def test_under_transforms(self, shapes: Shapes, device: str) -> None:
        xs = tuple(x.detach() for x in leaves(shapes, device=device))
        expected = torch.func.hessian(total(pair.definition), argnums=(0, 1, 2))(*xs)
        torch.testing.assert_close(torch.func.hessian(total(pair), argnums=(0, 1, 2))(*xs), expected)
        twice = torch.func.jacrev(torch.func.jacrev(total(pair), argnums=(0, 1, 2)), argnums=(0, 1, 2))
        torch.testing.assert_close(twice(*xs), expected)

    def test_of_members_of_a_batch_are_sums_of_each(self, device: str) -> None:
        x, y, z = (torch.randn(5, *shape, dtype=torch.float64, device=device) for shape in ((4, 3), (3,), (4, 1)))

        def slopes(op: Callable[..., Tensor]) -> tuple[Tensor, ...]:
            gradient = torch.func.grad(total(op), argnums=(0, 1, 2))
            return torch.vmap(gradient, in_dims=(0, None, 2))(x, y[0], z.movedim(0, 2))

        torch.testing.assert_close(slopes(message), slopes(message.definition))

    def test_wanted_of_some_operands_alone(self, device: str) -> None:
        for wanted in range(1, 8):
            xs = [x.detach() for x in leaves([(4, 3), (3,), (4, 1)], device=device)]
            chosen = [x.requires_grad_() for i, x in enumerate(xs) if wanted >> i & 1]
            results = []
            for op in (message, message.definition):
                first = torch.autograd.grad(op(*xs).square().sum(), chosen, create_graph=True)
                second = torch.autograd.grad(total(lambda *gs: gs)(*first), chosen)
                results.append((first, second))
            torch.testing.assert_close(*results)

    def test_of_a_result_that_is_not_used(self, device: str) -> None:
        xs = leaves([(4, 3), (3,), (4, 1)], device=device)
        ours, native = (torch.autograd.grad(op(*xs)[1].sum(), xs) for op in (pair, pair.definition))
        torch.testing.assert_close(ours, native)

    def test_of_expanded_operands(self, device: str) -> None:
        x, y, z = leaves([(4, 1), (3,), ()], device=device)
        results = []
        for op in (message, message.definition):
            value = op(x.expand(4, 3), y.expand(4, 3), z)
            results.append(torch.autograd.grad(value.square().sum(), (x, y, z), create_graph=True))
        torch.testing.assert_close(*results)

    @pytest.mark.parametrize("shapes", [*PATTERNS, *OF_ONE], ids=str)
    def test_of_operands_in_any_order_in_memory(self, shapes: Shapes, device: str) -> None:
        for in_reverse in itertools.product((False, True), repeat=3):
            results = []
            for op in (pair, pair.definition):
                torch.manual_seed(0)
                xs = leaves(shapes, device=device)
                given = [reversed_in_memory(x) if r else x for x, r in zip(xs, in_reverse, strict=True)]
                first = torch.autograd.grad(total(op)(*given).square(), given, create_graph=True)
                second = torch.autograd.grad(total(lambda *gs: gs)(*[g.square() for g in first]), given)
                results.append((first, second))
            torch.testing.assert_close(*results)


class TestSums:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
    @pytest.mark.parametrize("shapes", LARGE, ids=str)
    def test_are_as_exact_as_those_of_pytorch(self, shapes: Shapes, dtype: torch.dtype, device: str) -> None:
        xs = leaves(shapes, dtype, device)
        shape = torch.broadcast_shapes(*shapes)
        cotangent = torch.randn(shape, dtype=torch.float64).to(device, dtype)
        sums = torch.autograd.grad(product(*xs), xs, cotangent)
        whole = [x.detach().expand(shape).requires_grad_() for x in xs]
        wide = [x.detach().double().cpu().numpy().astype(np.longdouble) for x in (*xs, cotangent)]
        for i, (found, x) in enumerate(zip(sums, xs, strict=True)):
            a, b = (w for j, w in enumerate(wide[:3]) if j != i)
            exact, size = (summed(y, tuple(x.shape)) for y in (wide[3] * (a * b), abs(wide[3] * (a * b))))
            (terms,) = torch.autograd.grad(product(*whole), whole[i], cotangent)  # not summed by the kernel
            errors = [abs(y.double().cpu().numpy() - exact) for y in (found, terms.sum_to_size(x.shape))]
            rounding = float(torch.finfo(dtype).eps) * size
            assert (errors[0] <= errors[1] + rounding).all()
            ours, native = (np.sqrt(np.mean(error**2)) for error in errors)
            assert ours <= 1.5 * native + 1e-2 * rounding.mean()

    def test_of_many_equal_numbers_lose_none(self) -> None:
        x, bias = torch.ones(3_000_000, 1), torch.zeros((), requires_grad=True)
        (gradient,) = torch.autograd.grad(message(x, bias, x), bias, torch.full_like(x, 0.1))
        expected = (1 + torch.exp(torch.tensor(-1.0).double())) * torch.tensor(0.1).double() * x.numel()
        assert abs(float(gradient) - float(expected)) < 1e-6 * float(expected)

    @pytest.mark.parametrize("shapes", LARGE, ids=str)
    def test_are_the_same_bits_for_any_number_of_threads(self, shapes: Shapes) -> None:
        xs, threads = leaves(shapes, torch.float32), torch.get_num_threads()
        cotangent = torch.randn(torch.broadcast_shapes(*shapes))
        results = []
        try:
            for count in (1, 2, 3, 7):
                torch.set_num_threads(count)
                results.append(torch.autograd.grad(message(*xs), xs, cotangent))
        finally:
            torch.set_num_threads(threads)
        for other in results[1:]:
            assert all(map(torch.equal, results[0], other))

    def test_are_made_where_memory_is_permuted(self) -> None:
        x = torch.randn(20, 30, 40, dtype=torch.float64).permute(2, 0, 1).requires_grad_()
        y, z = torch.randn(40, 1, 30, dtype=torch.float64, requires_grad=True), torch.randn(20, 1).double()
        results = [torch.autograd.grad(total(op)(x, y, z), (x, y)) for op in (message, message.definition)]
        torch.testing.assert_close(*results)

    def test_are_no_pass_of_pytorch(self) -> None:
        xs = leaves(LARGE[0], torch.float32)
        y = message(*xs)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            torch.autograd.grad(y, xs, torch.ones_like(y))
        names = [event.key for event in profile.key_averages()]
        assert any("message_backward" in name for name in names)
        assert not any("sum" in name for name in names)


def test_results_have_the_shape_of_what_they_depend_on() -> None:
    mixed = ad.pointwise(lambda x, b: (torch.sin(x * b), x.exp()))
    for shapes in ([(4, 3), (3,)], [(3,), (4, 3)]):
        xs = leaves(shapes)
        for _ in range(2):  # the second call is one of C++
            torch.testing.assert_close(mixed(*xs), mixed.definition(*xs))


def test_a_broadcast_of_one_shape_is_the_elementwise_function() -> None:
    x = torch.randn(3, 2, dtype=torch.float64)
    whole = Broadcast.of(message._usual, [x, x, x], (3, 2))
    torch.testing.assert_close(whole.apply([x, x, x], ()), message.definition(x, x, x))
