"""Under autocast an op gives what the function of PyTorch that it stands in for gives, dtype and gradients included."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from drop_in import MISSION, QUADRATIC_FORM, SUBJECTS, Subject, each, row
from selection import few
from torch.func import grad, hessian, jvp, vmap
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import torchad_ext as ad
from torchad_ext.ops import _STANDS_IN_FOR

pytestmark = row("autocast")

Function = Callable[..., Any]
Tensors = tuple[torch.Tensor, ...]

HALVES = [torch.bfloat16, torch.float16]
DTYPES = [torch.float64, torch.float32, *HALVES]

halves = pytest.mark.parametrize("half", HALVES, ids=str)


def stood_in_for(subject: Subject) -> Function:
    """The function of PyTorch; the definition where there is none."""
    like = _STANDS_IN_FOR.get(subject.name)
    return functools.reduce(getattr, like.split(".")[1:], torch) if like else subject.native


def assert_as_good_as(
    native: torch.Tensor, result: torch.Tensor, exact: torch.Tensor, half: torch.dtype | None, what: str = ""
) -> None:
    """The dtype of native's result, and hardly further from the exact one than native's is."""
    assert (result.dtype, result.shape, result.device) == (native.dtype, native.shape, native.device), what
    scale = exact.abs().max()
    assert scale > 1e-3, what
    of_native, of_result = ((x.double() - exact).abs().max() for x in (native, result))
    allowed = 2 * of_native + max(4 * torch.finfo(half or result.dtype).eps, 1e-13) * scale
    assert of_result <= allowed, f"{what}: error {of_result:.1e}, of native {of_native:.1e}"


def derivatives(f: Function, xs: Tensors, forward: Any, backward: Any) -> list[torch.Tensor]:
    """The value in one region; its gradients, and the gradients of the sum of their squares, in another."""
    leaves = [x.detach().requires_grad_() for x in xs]
    with forward:
        y = f(*leaves)
    with backward:
        first = torch.autograd.grad(y, leaves, torch.ones_like(y), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
    return [x.detach() for x in (y, *first, *second)]


class TestRegions:
    @each(SUBJECTS)
    @halves
    def test_dtype_and_value(self, subject: Subject, half: torch.dtype, device: str) -> None:
        for dtype in DTYPES:
            xs = subject.inputs(4, 5, dtype=dtype, device=device)
            exact = subject.native(*(x.double() for x in xs))
            with torch.autocast(device, half):
                result, native = subject.op(*xs), stood_in_for(subject)(*xs)
            assert_as_good_as(native, result, exact, half if subject is QUADRATIC_FORM else None, str(dtype))

    @each(few(SUBJECTS, lambda subject: subject in (*MISSION, QUADRATIC_FORM)))
    @halves
    @pytest.mark.parametrize(
        "regions", [(True, False), (True, True), (False, True)], ids=["forward", "both", "backward"]
    )
    def test_gradients_and_double_backward(
        self, subject: Subject, half: torch.dtype, regions: tuple[bool, bool], device: str
    ) -> None:
        for dtype in DTYPES:
            xs = subject.inputs(4, 5, dtype=dtype, device=device)
            exact = derivatives(
                subject.native, tuple(x.double() for x in xs), contextlib.nullcontext(), contextlib.nullcontext()
            )
            results = []
            for f in (subject.op, subject.native):
                inside = (torch.autocast(device, half, enabled=enabled) for enabled in regions)
                results.append(derivatives(f, xs, *inside))
            lossy = half if subject is QUADRATIC_FORM or device == "cuda" else None
            names = ["value", *["gradient"] * len(xs), *["second"] * len(xs)]
            for name, ours, native, true in zip(names, *results, exact, strict=True):
                assert_as_good_as(native, ours, true, lossy, f"{name}, {dtype}")
                assert name == "value" or ours.dtype == dtype

    @halves
    def test_a_learned_matrix_in_float32_and_a_vector_in_half(self, half: torch.dtype, device: str) -> None:
        x, A = QUADRATIC_FORM.inputs(4, 5, device=device)
        xs = x.to(half), A.float()
        outside = contextlib.nullcontext()
        exact = derivatives(QUADRATIC_FORM.native, (xs[0].double(), xs[1].double()), outside, outside)
        for region in (torch.autocast(device, half), contextlib.nullcontext()):
            ours, native = (
                derivatives(f, xs, torch.autocast(device, half), region)
                for f in (ad.quadratic_form, QUADRATIC_FORM.native)
            )
            for result, theirs, true in zip(ours, native, exact, strict=True):
                assert_as_good_as(theirs, result, true, half)

    @each([*MISSION, QUADRATIC_FORM])
    @halves
    def test_a_region_that_is_switched_off(self, subject: Subject, half: torch.dtype, device: str) -> None:
        xs = subject.inputs(4, 5, dtype=torch.float32, device=device)
        outside = subject.op(*xs)
        with torch.autocast(device, half), torch.autocast(device, enabled=False):
            inside = subject.op(*xs)
        assert inside.dtype == torch.float32 and torch.equal(inside, outside)

    @halves
    def test_the_dtype_that_is_set(self, half: torch.dtype, device: str) -> None:
        x, A = QUADRATIC_FORM.inputs(4, 5, dtype=torch.float32, device=device)
        before = torch.get_autocast_dtype(device)
        try:
            torch.set_autocast_dtype(device, half)
            with torch.autocast(device):
                result, native = ad.quadratic_form(x, A), QUADRATIC_FORM.native(x, A)
                product = torch.matmul(x.unsqueeze(-2), A)
        finally:
            torch.set_autocast_dtype(device, before)
        assert result.dtype == native.dtype and product.dtype == half
        assert torch.equal(result, native)
        assert not torch.equal(result.double(), ad.quadratic_form(x, A).double())  # the product was rounded

    @halves
    def test_mixed_dtypes_and_numbers(self, half: torch.dtype, device: str) -> None:
        x = torch.linspace(0.5, 2, 7, device=device)
        for ours, native, args in (
            (ad.pow, torch.pow, (x.to(half), x)),
            (ad.pow, torch.pow, (x.to(half), 2.5)),
            (ad.pow, torch.pow, (2.0, x.to(half))),
            (ad.softplus, F.softplus, (x.to(half), 2.0)),
            (ad.exp, torch.exp, (torch.arange(3, device=device),)),
            (ad.quadratic_form, QUADRATIC_FORM.native, (x.to(half), x.outer(x))),
            (ad.quadratic_form, QUADRATIC_FORM.native, (x, x.outer(x).to(half))),
        ):
            with torch.autocast(device, half):
                result, expected = ours(*args), native(*args)
            assert_close(result, expected, rtol=0, atol=0)

    @each([*MISSION, QUADRATIC_FORM])
    @halves
    def test_transforms(self, subject: Subject, half: torch.dtype, device: str) -> None:
        xs = subject.inputs(3, 2, dtype=torch.float32, device=device)

        def work(f: Function, xs: Tensors) -> list[torch.Tensor]:
            def energy(*v: torch.Tensor) -> torch.Tensor:
                return f(*v).float().square().sum()

            slope = grad(energy)
            return [slope(*xs), vmap(slope)(*xs), hessian(energy)(*xs), jvp(slope, xs, xs)[1]]

        exact = work(subject.native, tuple(x.double() for x in xs))
        with torch.autocast(device, half):
            results = work(subject.op, xs), work(subject.native, xs)
        for ours, native, true in zip(*results, exact, strict=True):
            assert_as_good_as(native, ours, true, half)

    @each([*MISSION, QUADRATIC_FORM])
    @halves
    def test_compiled_and_checkpointed(self, subject: Subject, half: torch.dtype, device: str) -> None:
        torch._dynamo.reset()
        xs = subject.inputs(4, 5, dtype=torch.float32, device=device)
        exact = [x.detach() for x in slopes(subject.native, tuple(x.double() for x in xs))]

        def inside(*v: torch.Tensor) -> torch.Tensor:
            with torch.autocast(device, half):
                return subject.op(*v)

        whole = torch.compile(lambda *v: subject.op(*v), fullgraph=True, backend="aot_eager")
        with torch.autocast(device, half):
            native = slopes(subject.native, xs)
            of_each = [slopes(whole, xs), slopes(lambda *v: checkpoint(subject.op, *v, use_reentrant=False), xs)]
        of_each.append(slopes(torch.compile(inside, fullgraph=True, backend="aot_eager"), xs))
        for results in of_each:
            for ours, theirs, true in zip(results, native, exact, strict=True):
                assert_as_good_as(theirs, ours, true, half)


def slopes(f: Function, xs: Tensors) -> Tensors:
    """The value and its gradients."""
    leaves = [x.detach().requires_grad_() for x in xs]
    y = f(*leaves)
    return (y.detach(), *torch.autograd.grad(y, leaves, torch.ones_like(y)))


class Network(torch.nn.Module):
    """Layers with activations, and a learned energy; ``native`` with PyTorch's own functions."""

    def __init__(self, native: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.layers = torch.nn.ParameterList(
            torch.nn.Parameter(torch.randn(8, 8, generator=generator) / 3) for _ in range(3)
        )
        self.activations: list[Function] = [torch.sin, F.silu] if native else [ad.sin, ad.silu]
        self.energy = QUADRATIC_FORM.native if native else ad.quadratic_form

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second, A = self.layers
        x = self.activations[0](x @ first)
        return self.energy(self.activations[1](x @ second), A)


Step = Callable[[Network, torch.Tensor, str, torch.dtype, torch.amp.GradScaler], torch.Tensor]


def plain(model: Network, x: torch.Tensor, device: str, half: torch.dtype, _: torch.amp.GradScaler) -> torch.Tensor:
    with torch.autocast(device, half):
        return model(x).float().square().mean()


def penalised(
    model: Network, x: torch.Tensor, device: str, half: torch.dtype, scaler: torch.amp.GradScaler
) -> torch.Tensor:
    """A gradient penalty as PyTorch's documentation has it: of the scaled loss, then unscaled by hand."""
    x = x.requires_grad_()
    with torch.autocast(device, half):
        loss = model(x).float().square().mean()
    (slope,) = torch.autograd.grad(scaler.scale(loss), x, create_graph=True)
    slope = slope / scaler.get_scale()
    with torch.autocast(device, half):
        return loss + slope.square().sum().sqrt()


def train(native: bool, step: Step, device: str, half: torch.dtype) -> Iterator[tuple[list[torch.Tensor], float]]:
    """The parameters and the scale after each step; the third step meets a batch that overflows."""
    model = Network(native).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler(device, init_scale=64.0)
    generator = torch.Generator().manual_seed(2)
    for i in range(5):
        x = torch.randn(16, 8, generator=generator).to(device) * (float("inf") if i == 2 else 1.0)
        optimizer.zero_grad()
        scaler.scale(step(model, x, device, half, scaler)).backward()
        scaler.step(optimizer)
        scaler.update()
        yield [p.detach().clone() for p in model.parameters()], scaler.get_scale()


class TestTraining:
    @halves
    @pytest.mark.parametrize("step", [plain, penalised])
    def test_steps_with_a_scaler_are_native(self, step: Step, half: torch.dtype, device: str) -> None:
        initial = [p.detach().to(device) for p in Network(native=False).parameters()]
        pairs = itertools.zip_longest(*(train(native, step, device, half) for native in (False, True)))
        scales = []
        for (ours, scale), (theirs, expected) in pairs:
            assert scale == expected
            scales.append(scale)
            for a, b in zip(ours, theirs, strict=True):
                assert_close(a, b, rtol=8 * torch.finfo(half).eps, atol=4 * torch.finfo(half).eps)
        assert scales == [64.0, 64.0, 32.0, 32.0, 32.0]
        assert all((a - b).abs().max() > 0.01 for a, b in zip(initial, ours, strict=True))

    @halves
    def test_a_model_in_half_precision(self, half: torch.dtype, device: str) -> None:
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(3)).to(device)
        results = []
        for native, dtype in ((False, half), (True, half), (True, torch.float64)):
            model = Network(native).to(device)
            model = {torch.float16: model.half, torch.bfloat16: model.bfloat16, torch.float64: model.double}[dtype]()
            y = model(x.to(dtype))
            y.sum().backward()
            results.append([y.detach(), *(p.grad for p in model.parameters())])
        for ours, theirs, exact in zip(*results, strict=True):
            assert_as_good_as(theirs, ours, exact, half)
