"""Every dtype and memory layout, for every op: values, dtypes and strides are native's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import pytest
import torch
from compiled_together import compiled_together
from drop_in import MISSION, POINTWISE, SUBJECTS, Subject, each, rounded_once, row
from layouts import NAMED, sample, steps
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

import torchad_ext as ad

HALVES = [torch.float16, torch.bfloat16]
COMPLEX = [torch.complex64, torch.complex128]
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool]
SECOND = {"sin": lambda z: -z.sin(), "exp": torch.exp}
FIRST = {"sin": torch.cos, "exp": torch.exp}


def outcome(compute: Callable[[], torch.Tensor]) -> torch.Tensor | type[Exception]:
    """What it computes, or the kind of error that it raises."""
    try:
        return compute()
    except Exception as error:
        return type(error)


def as_native(subject: Subject, compute: Callable[[Callable[..., torch.Tensor]], torch.Tensor]) -> torch.Tensor | None:
    """Asserts that the op does as the native one, to the bit and the dtype; gives the value, None if both raise."""
    ours, native = (outcome(lambda f=f: compute(f)) for f in (subject.op, subject.native))
    if not isinstance(native, torch.Tensor):
        assert ours is native
        return None
    assert isinstance(ours, torch.Tensor), ours
    assert (ours.shape, ours.dtype, ours.device) == (native.shape, native.dtype, native.device)
    assert_close(ours, native, rtol=0, atol=0, equal_nan=True)
    return ours


def complex_inputs(subject: Subject, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    xs = subject.inputs(4, 3, dtype=torch.float64, device=device)
    return [torch.complex(x, x.flip(-1) / 2).to(dtype) for x in xs]


def whole_numbers(subject: Subject, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    return [torch.arange(x.numel(), device=device).remainder(3).reshape(x.shape).to(dtype) for x in subject.inputs(3)]


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    with compiled_together():
        for subject, dtype in product(POINTWISE, [*HALVES, torch.float32]):
            subject.op(*subject.inputs(2, dtype=dtype))


class TestDtypes:
    @row("dtypes")
    @each(POINTWISE)
    @pytest.mark.parametrize("dtype", HALVES, ids=str)
    def test_every_half_is_rounded_once(self, subject: Subject, dtype: torch.dtype, device: str) -> None:
        every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).to(device)
        xs = [every, every[torch.randperm(2**16).to(device)]][: len(subject.intervals)]
        result = subject.op(*xs)
        assert result.dtype == dtype
        assert subject.op._usual.kernel(device, dtype) is not None
        assert_close(result, rounded_once(subject.op, *xs), rtol=0, atol=0, equal_nan=True)

    @row("dtypes")
    @each(SUBJECTS)
    @pytest.mark.parametrize("dtype", COMPLEX, ids=str)
    def test_complex_values(self, subject: Subject, dtype: torch.dtype, device: str) -> None:
        xs = complex_inputs(subject, dtype, device)
        result = as_native(subject, lambda f: f(*xs))
        assert result is None or (result.dtype == dtype and result.imag.abs().max() > 1e-3)

    @row("dtypes")
    @each(SUBJECTS)
    @pytest.mark.parametrize("dtype", COMPLEX, ids=str)
    def test_complex_gradients(self, subject: Subject, dtype: torch.dtype, device: str) -> None:
        xs = [x.requires_grad_() for x in complex_inputs(subject, dtype, device)]

        def gradients(f: Callable[..., torch.Tensor]) -> Iterator[torch.Tensor]:
            y = f(*xs)
            first = torch.autograd.grad(y, xs, torch.full_like(y, 1 - 2j), create_graph=True)
            yield from first
            yield from torch.autograd.grad(first, xs, [torch.full_like(x, 2 + 1j) for x in xs])

        result = as_native(subject, lambda f: torch.cat([g.flatten() for g in gradients(f)]))
        assert result is None or result.abs().max() > 1e-3

    @row("dtypes")
    @each(MISSION)
    def test_complex_gradients_are_those_of_the_conjugate(self, subject: Subject, device: str) -> None:
        (z,) = (z.requires_grad_() for z in complex_inputs(subject, torch.complex128, device))
        g, v = (torch.full_like(z, number).requires_grad_() for number in (1 - 2j, 3 + 1j))
        (first,) = torch.autograd.grad(subject.op(z), z, g, create_graph=True)
        assert_close(first, g * FIRST[subject.name](z).conj())
        second, of_g = torch.autograd.grad(first, (z, g), v)
        assert_close(second, v.conj() * g * SECOND[subject.name](z).conj())  # of a function of conj(z)
        assert_close(of_g, v * FIRST[subject.name](z))

    @row("dtypes")
    @each([*MISSION, SUBJECTS[-1]])
    def test_complex_derivatives_against_finite_differences(self, subject: Subject, device: str) -> None:
        xs = [x.requires_grad_() for x in complex_inputs(subject, torch.complex128, device)]
        assert gradcheck(subject.op, xs, check_forward_ad=True, check_batched_grad=True)
        assert gradgradcheck(subject.op, xs, check_fwd_over_rev=True)

    @row("dtypes")
    @each(SUBJECTS)
    @pytest.mark.parametrize("dtype", INTEGERS, ids=str)
    def test_integers_and_bool(self, subject: Subject, dtype: torch.dtype, device: str) -> None:
        xs = whole_numbers(subject, dtype, device)
        as_native(subject, lambda f: f(*xs))

    @row("dtypes")
    @pytest.mark.parametrize(
        "dtypes", [*product([torch.float32, torch.float64, torch.int64, torch.complex64], repeat=2)]
    )
    def test_mixed_dtypes(self, dtypes: tuple[torch.dtype, torch.dtype], device: str) -> None:
        x, p = (torch.tensor([1, 2, 3], device=device).to(dtype) for dtype in dtypes)
        result, native = ad.pow(x, p), torch.pow(x, p)
        assert result.dtype == native.dtype
        assert_close(result, native)


class TestLayouts:
    @row("layouts")
    @each(POINTWISE)
    @pytest.mark.parametrize("layout", NAMED)
    def test_gradients_have_native_values_and_strides(self, subject: Subject, layout: str, device: str) -> None:
        base = sample(torch.float64, device).abs().remainder(0.5) + 0.3  # in the domain of all
        results = []
        for f in (subject.op, subject.native):
            xs = [NAMED[layout](base).detach().requires_grad_() for _ in subject.intervals]
            y = f(*xs)
            cotangent = torch.empty_like(y).copy_(torch.linspace(1, 2, y.numel()).reshape(y.shape))
            results.append(torch.autograd.grad(y, xs, cotangent))
        for ours, native in zip(*results, strict=True):
            assert (ours.shape, ours.dtype, steps(ours)) == (native.shape, native.dtype, steps(native))
            assert_close(ours, native, rtol=1e-11, atol=1e-12)

    @row("layouts", device="cuda")
    @each(MISSION)
    @pytest.mark.parametrize("layout", ["contiguous", "transposed", "expanded"])
    def test_more_than_two_to_the_31_elements(self, subject: Subject, layout: str) -> None:
        wanted = 7 * 2**32  # bytes: input, value, cotangent, gradient, and native's own
        if not torch.cuda.is_available() or torch.cuda.mem_get_info()[0] < wanted:
            pytest.skip(f"needs a GPU with {wanted >> 30} GiB free")
        columns = 2**16 + 1
        x = torch.zeros(2**15, columns, dtype=torch.float16, device="cuda")
        x[-1] = torch.linspace(-3, 3, columns)
        x = {"contiguous": x, "transposed": x.t(), "expanded": x[-1].expand_as(x)}[layout].requires_grad_()
        y = subject.op(x)
        (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
        assert (y.numel(), y.stride()) == (x.numel(), subject.native(x.detach()).stride())
        ends = [(0, slice(None)), (-1, slice(None)), (slice(None), -1)]
        for result, f in ((y, subject.native), (gradient, FIRST[subject.name])):
            for end in ends:
                assert_close(result[end].float(), f(x[end].float()), rtol=2**-10, atol=2**-10)
