"""sin and exp: values, layouts, derivatives of every order and mode, and what happens where there is no kernel."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from drop_in import rounded_once, row
from hypothesis import given, settings
from layouts import NAMED, sample, strided
from torch._vmap_internals import _vmap
from torch.autograd import DeviceType, gradcheck, gradgradcheck
from torch.func import functionalize, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.profiler import profile
from torch.testing import assert_close

import torchad_ext as ad
from torchad_ext import Pointwise
from torchad_ext._elementwise import Elementwise

WRITTEN = [ad.sin, ad.exp]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
HALVES = [torch.float16, torch.bfloat16]

ops = pytest.mark.parametrize("op", WRITTEN, ids=lambda op: op.__name__)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def bare(*args: Any) -> list[torch.Tensor]:
    """The operator that runs a kernel, without derivatives."""
    return torch.ops.torchad_ext.pointwise(*args)


def address(op: Pointwise, x: torch.Tensor, order: int = 0) -> int:
    """Where the kernel of a derivative is."""
    kernel = op._order(order).kernel(x.device.type, x.dtype)
    assert kernel
    return kernel.address


def every_float32(low: int, high: int, step: int) -> torch.Tensor:
    """The float32 numbers whose bits are low, low + step, ... and their negatives."""
    bits = torch.arange(low, high, step, dtype=torch.int64).to(torch.int32)
    return torch.cat([bits.view(torch.float32), -bits.view(torch.float32)])


def floats_apart(a: torch.Tensor, b: torch.Tensor) -> int:
    """How many float32 numbers lie between corresponding elements, at most."""

    def ordinal(x: torch.Tensor) -> torch.Tensor:
        bits = x.view(torch.int32).long()
        return torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)

    return int((ordinal(a) - ordinal(b)).abs().max())


def ulps_apart(result: torch.Tensor, reference: torch.Tensor) -> float:
    """The largest difference over the spacing of the reference's dtype at the reference."""
    limits = torch.finfo(reference.dtype)
    result, reference = result.double(), reference.double()
    return float(((result - reference).abs() / (limits.eps * reference.abs().clamp_min(limits.tiny))).max())


class TestValue:
    @ops
    @pytest.mark.parametrize("bits", [(0, 0x3F80_0000), (0x3F80_0000, 0x461C_4000)], ids=["below 1", "1 to 10000"])
    @row("dtypes")
    def test_float32_is_within_one_float_of_the_correctly_rounded_result(
        self, op: Pointwise, device: str, bits: tuple[int, int]
    ) -> None:
        x = every_float32(*bits, step=(bits[1] - bits[0]) // 1_000_003)
        correct = op.definition(x.double()).float()
        finite = correct.isfinite()
        allowed = 1 if device == "cpu" else 2  # CUDA's own sinf and expf: at most 2
        assert floats_apart(op(x.to(device)).cpu()[finite], correct[finite]) <= allowed

    @ops
    def test_float32_overflow_and_underflow_round_as_they_should(self, op: Pointwise, device: str) -> None:
        x = torch.cat([torch.linspace(87, 90, 30_001), torch.linspace(-106, -86, 200_001)])
        correct = op.definition(x.double()).float()
        result = op(x.to(device)).cpu()
        assert torch.equal(result.isinf(), correct.isinf())
        assert floats_apart(result, correct) <= (1 if device == "cpu" else 2)

    def test_sin_of_huge_float32(self, device: str) -> None:
        x = every_float32(0x461C_4000, 0x7F80_0000, 9973)
        assert floats_apart(ad.sin(x.to(device)).cpu(), x.double().sin().float()) <= (1 if device == "cpu" else 2)

    @ops
    @row("dtypes")
    def test_float64_is_within_four_ulp_of_native(self, op: Pointwise, device: str) -> None:
        multiples = torch.arange(-4000, 4001) * (math.pi / 2)
        x = torch.cat([torch.linspace(-700, 700, 1_000_003, dtype=torch.float64), multiples.double()])
        native = op.definition(x)
        finite = native.isfinite()
        assert ulps_apart(op(x.to(device)).cpu()[finite], native[finite]) <= 4

    def test_sin_of_huge_float64(self, device: str) -> None:
        x = torch.logspace(8, 300, 4001, dtype=torch.float64)
        assert ulps_apart(ad.sin(x.to(device)).cpu(), x.sin()) <= 4

    @ops
    @pytest.mark.parametrize("dtype", HALVES, ids=str)
    @row("dtypes")
    def test_every_half_is_rounded_once(self, op: Pointwise, dtype: torch.dtype, device: str) -> None:
        x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).to(device)
        assert_close(op(x), rounded_once(op, x), rtol=0, atol=0, equal_nan=True)

    @ops
    @dtypes
    @row("dtypes")
    def test_special_values_are_native(self, op: Pointwise, dtype: torch.dtype, device: str) -> None:
        tiny = torch.finfo(dtype).smallest_normal
        x = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, tiny, -tiny, tiny / 4, -tiny / 4], dtype=dtype)
        x = x.repeat(5).to(device)
        result, native = op(x), op.definition(x)
        assert_close(result, native, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(result.signbit()[~native.isnan()], native.signbit()[~native.isnan()])

    @ops
    def test_a_special_value_leaves_its_neighbours_alone(self, op: Pointwise, device: str) -> None:
        x = torch.linspace(-3, 3, 64, device=device)
        expected = op(x)
        for special in (math.nan, math.inf, 1e30, 300.0, -1e-40):
            y = x.clone()
            y[17] = special
            keep = torch.arange(64, device=device) != 17
            assert floats_apart(op(y)[keep].cpu(), expected[keep].cpu()) <= 1

    @ops
    @pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64], ids=str)
    @row("dtypes")
    def test_other_dtypes_are_native(self, op: Pointwise, dtype: torch.dtype, device: str) -> None:
        x = torch.tensor([0, 1, 2], device=device).to(dtype)
        assert_close(op(x), op.definition(x), rtol=0, atol=0)

    @ops
    def test_large_tensors_on_all_threads(self, op: Pointwise, device: str) -> None:
        x = torch.linspace(-20, 20, 4_000_003, device=device)  # beyond the caches of two threads
        assert floats_apart(op(x).cpu(), op.definition(x.double()).float().cpu()) <= 2
        x = x[:2_000_000].view(2000, 1000)[:, 3:]
        assert floats_apart(op(x).cpu(), op.definition(x.double()).float().cpu()) <= 2

    @ops
    def test_large_results_in_memory_of_any_alignment(self, op: Pointwise, device: str) -> None:
        x = torch.linspace(-20, 20, 2_000_000, dtype=torch.float64, device=device)
        kernel = op._usual.kernel(device, torch.float64)
        for offset in range(8):
            memory = torch.full((x.numel() + 16,), math.nan, dtype=torch.float64, device=device)
            out = memory[offset : offset + x.numel()]
            torch.ops.torchad_ext.pointwise.out(kernel.address, [x], [], out=[out])
            assert torch.equal(out, op(x))
            assert memory.isnan().sum() == 16


class TestLayout:
    @ops
    @dtypes
    @pytest.mark.parametrize("layout", NAMED)
    @row("layouts")
    def test_values_and_strides_are_native(self, op: Pointwise, dtype: torch.dtype, layout: str, device: str) -> None:
        x = NAMED[layout](sample(dtype, device))
        before = x.clone()
        result, native = op(x), op.definition(x)
        assert (result.shape, result.stride(), result.dtype) == (native.shape, native.stride(), native.dtype)
        assert_close(result, op.definition(x.double()).to(dtype))
        assert torch.equal(x, before)

    @ops
    @settings(max_examples=200, deadline=None)
    @given(x=strided())
    @row("layouts")
    def test_any_strides(self, op: Pointwise, x: torch.Tensor) -> None:
        result, native = op(x), op.definition(x)
        assert result.stride() == native.stride()
        assert_close(result, native)

    @ops
    @settings(max_examples=100, deadline=None)
    @given(x=strided(max_dims=3), repeated=strided(max_dims=3))
    @row("layouts")
    def test_kernels_of_several_inputs_of_different_strides(
        self, op: Pointwise, x: torch.Tensor, repeated: torch.Tensor
    ) -> None:
        grad_output = (
            torch.linspace(-1, 1, x.numel(), dtype=x.dtype).reshape(x.shape[::-1]).permute(list(range(x.dim()))[::-1])
        )
        grad_grad_x = repeated.flatten()[:1].sum().expand_as(x)
        second = op._order(2)
        inputs = x, grad_output, grad_grad_x
        for result, expected in zip(second.run(inputs, ()), second.definition(*inputs), strict=True):
            assert_close(result, expected)

    def test_out_writes_into_a_given_buffer_and_nowhere_else(self, device: str) -> None:
        memory = torch.full((1003,), 7.0, device=device)
        x = torch.linspace(-9, 9, 1000, device=device)
        torch.ops.torchad_ext.pointwise.out(address(ad.sin, x), [x], [], out=[memory[2:1002]])
        assert_close(memory[2:1002], x.sin())
        assert memory[:2].eq(7).all() and memory[1002:].eq(7).all()

    def test_out_refuses_a_buffer_with_gaps(self, device: str) -> None:
        x = torch.zeros(3, device=device)
        with pytest.raises(RuntimeError, match="out must be dense"):
            torch.ops.torchad_ext.pointwise.out(address(ad.sin, x), [x], [], out=[torch.zeros(6, device=device)[::2]])

    def test_outputs_lie_alike_in_memory(self, device: str) -> None:
        x = torch.randn(2, 3, dtype=torch.float64, device=device)
        both = ad.sin._order(2).kernel(device, x.dtype)
        assert both
        out = [torch.empty_like(x), torch.empty(3, 2, dtype=x.dtype, device=device).mT]
        with pytest.raises(RuntimeError, match="outputs that are not summed must have the same strides"):
            both([x, x, x], [], out=out)


def orders(f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, highest: int) -> list[torch.Tensor]:
    """f and its derivatives by repeated reverse mode."""
    x = x.detach().requires_grad_()
    results = [f(x)]
    for _ in range(highest):
        results.append(torch.autograd.grad(results[-1].sum(), x, create_graph=True)[0])
    return [result.detach() for result in results]


class TestDerivatives:
    @ops
    @row("reverse mode")
    def test_gradcheck_in_every_mode(self, op: Pointwise, device: str) -> None:
        x = torch.randn(3, 4, dtype=torch.float64, device=device, requires_grad=True)
        assert gradcheck(op, x, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)

    @ops
    @pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced", "0-dimensional"])
    @row("reverse mode")
    def test_gradgradcheck_in_every_mode(self, op: Pointwise, layout: str, device: str) -> None:
        x = NAMED[layout](sample(torch.float64, device, scale=1)[:1, :2, :3, :4]).requires_grad_()
        assert gradgradcheck(op, x, check_fwd_over_rev=True, check_rev_over_rev=True, check_batched_grad=True)

    @ops
    @dtypes
    def test_gradient_and_double_backward_agree_with_native_in_float64(
        self, op: Pointwise, dtype: torch.dtype, device: str
    ) -> None:
        ad.verify(op, dtypes=[dtype], devices=[device], quiet=True)

    @ops
    @row("reverse mode")
    def test_five_orders_of_reverse_mode(self, op: Pointwise, device: str) -> None:
        x = torch.linspace(-2, 2, 33, dtype=torch.float64, device=device)
        assert_close(orders(op, x, 5), orders(op.definition, x, 5), rtol=1e-14, atol=1e-14)

    @ops
    @pytest.mark.parametrize(
        "modes", [m for n in (1, 2, 3, 4) for m in ("f" * n, "r" * n)] + ["fr", "rf", "frf", "rfr"]
    )
    @row("forward mode")
    def test_nested_modes(self, op: Pointwise, modes: str, device: str) -> None:
        def nest(f: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
            for mode in modes:
                f = jacfwd(f) if mode == "f" else jacrev(f)
            return f

        x = torch.tensor([0.3, -1.2], dtype=torch.float64, device=device)
        result = nest(lambda u: (op(u) * u).sum())(x)
        assert result.abs().max() > 0.1
        assert_close(result, nest(lambda u: (op.definition(u) * u).sum())(x), rtol=1e-14, atol=1e-14)

    @ops
    @row("torch.func")
    def test_hessian_against_the_closed_form(self, op: Pointwise, device: str) -> None:
        second = {"sin": lambda x: -x.sin(), "exp": torch.exp}[op.__name__]
        x = torch.randn(5, dtype=torch.float64, device=device)
        expected = torch.diag(second(x))
        for take in (
            hessian(lambda u: op(u).sum()),
            lambda u: torch.autograd.functional.hessian(lambda v: op(v).sum(), u),
            lambda u: torch.autograd.functional.hessian(lambda v: op(v).sum(), u, vectorize=True),
            lambda u: torch.autograd.functional.hessian(
                lambda v: op(v).sum(), u, vectorize=True, outer_jacobian_strategy="forward-mode"
            ),
        ):
            assert_close(take(x), expected, rtol=1e-14, atol=1e-14)

    @ops
    @pytest.mark.parametrize("in_dim", [0, 1, -1])
    @row("torch.func")
    def test_vmap_inside_and_outside_of_grad(self, op: Pointwise, in_dim: int, device: str) -> None:
        x = torch.randn(3, 4, dtype=torch.float64, device=device)
        for f in (
            lambda g: vmap(g, in_dim),
            lambda g: vmap(grad(lambda u: g(u).sum().square()), in_dim),
            lambda g: grad(lambda u: vmap(g, in_dim)(u).square().sum()),
            lambda g: vmap(hessian(lambda u: g(u).sum()), in_dim),
        ):
            assert_close(f(op)(x), f(op.definition)(x))

    @ops
    @row("torch.func")
    def test_jvp_with_a_missing_tangent(self, op: Pointwise, device: str) -> None:
        x, t = torch.randn(2, 3, dtype=torch.float64, device=device)
        result = jvp(lambda u, v: op(u) * v, (x, t), (t, x))
        assert_close(result, jvp(lambda u, v: op.definition(u) * v, (x, t), (t, x)))

    @ops
    @row("torch.func")
    def test_functionalize_around_and_inside_of_other_transforms(self, op: Pointwise, device: str) -> None:
        x = torch.randn(3, dtype=torch.float64, device=device)
        assert_close(functionalize(op)(x), op.definition(x))
        assert_close(functionalize(jacfwd(op))(x), jacfwd(op.definition)(x))
        assert_close(functionalize(vmap(op))(x), op.definition(x))
        assert_close(functionalize(jacrev(jacrev(op)))(x), jacrev(jacrev(op.definition))(x))
        assert_close(jacrev(functionalize(jacrev(op)))(x), jacrev(jacrev(op.definition))(x))

    @ops
    @row("torch.func")
    def test_batched_gradients(self, op: Pointwise, device: str) -> None:
        x = torch.randn(4, dtype=torch.float64, device=device, requires_grad=True)
        cotangents = torch.randn(3, 4, dtype=torch.float64, device=device)
        result = torch.autograd.grad(op(x), x, cotangents, is_grads_batched=True)
        assert_close(result, torch.autograd.grad(op.definition(x), x, cotangents, is_grads_batched=True))

    @ops
    @row("torch.func")
    def test_batched_gradients_of_gradients_are_kernels(self, op: Pointwise, device: str) -> None:
        x = torch.randn(4, 5, dtype=torch.float64, device=device, requires_grad=True)
        cotangents = torch.randn(3, 5, 4, dtype=torch.float64, device=device).mT
        (slope,) = torch.autograd.grad(op(x).sum(), x, create_graph=True)
        torch.autograd.grad(slope.sum(), x, retain_graph=True)
        with profile() as profiler:
            (result,) = torch.autograd.grad(slope, x, cotangents, is_grads_batched=True, retain_graph=True)
        rows = [torch.autograd.grad(slope, x, row, retain_graph=True)[0] for row in cotangents]
        assert_close(result, torch.stack(rows), rtol=0, atol=0)
        kernels = [event.name for event in profiler.events() if event.name.startswith("torchad_ext::")]
        assert kernels == [f"torchad_ext::{op.__name__}_double_backward_input"]

    @ops
    def test_batched_gradients_without_the_calls_in_cpp(
        self, op: Pointwise, monkeypatch: pytest.MonkeyPatch, device: str
    ) -> None:
        monkeypatch.setattr(Elementwise, "fast_function", None)
        x, batch = torch.randn(4, device=device), torch.randn(4, 3, device=device).T
        with profile() as profiler:
            result = _vmap(lambda g: op._order(1).apply([x, g], ()))(batch)
        assert_close(result, op._order(1).run([x.expand(3, 4), batch], ()), rtol=0, atol=0)
        assert any(event.name == f"torchad_ext::{op.__name__}_backward" for event in profiler.events())

    @ops
    def test_batches_of_gradients_in_one_another(self, op: Pointwise, device: str) -> None:
        derivative, x = op._order(1), torch.randn(4, device=device)
        outer, inner = torch.randn(3, 4, device=device), torch.randn(2, 4, device=device)
        for pair in (lambda g, h: (g, h), lambda g, h: (h, g), lambda g, h: (x, g), lambda g, h: (x, h)):

            def nested(f: Callable[..., Any], pair: Callable[..., Any] = pair) -> torch.Tensor:
                return _vmap(lambda g: _vmap(lambda h: f(*pair(g, h)) + 0 * h)(inner))(outer)

            assert_close(nested(lambda *xs: derivative.apply(xs, ())), nested(derivative.definition))

    @ops
    @row("reverse mode")
    def test_the_expanded_gradient_of_a_sum(self, op: Pointwise, device: str) -> None:
        x = torch.randn(300, dtype=torch.float64, device=device)
        assert_close(orders(lambda u: op(u).sum(), x, 2), orders(lambda u: op.definition(u).sum(), x, 2))

    @ops
    @row("reverse mode")
    def test_an_unused_half_of_the_double_backward(self, op: Pointwise, device: str) -> None:
        x, g, v = torch.randn(3, 50, dtype=torch.float64, device=device)
        for wanted in ((True, False), (False, True), (True, True)):
            results = []
            for f in (op, op.definition):
                leaves = [x.clone().requires_grad_(), g.clone().requires_grad_(wanted[1])]
                (first,) = torch.autograd.grad(f(leaves[0]), leaves[0], leaves[1], create_graph=True)
                targets = [leaf for leaf, w in zip(leaves, wanted, strict=True) if w]
                results.append(torch.autograd.grad(first, targets, v))
            assert_close(*results)

    @ops
    @row("reverse mode")
    def test_changing_a_saved_input_in_place_raises_as_native_does(self, op: Pointwise, device: str) -> None:
        x = torch.randn(3, device=device, requires_grad=True).clone()
        y = op(x)
        x.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()

    @ops
    @row("reverse mode")
    def test_parameters_hooks_and_accumulation(self, op: Pointwise, device: str) -> None:
        weight = torch.nn.Parameter(torch.randn(4, device=device))
        seen: list[torch.Tensor] = []
        weight.register_hook(seen.append)
        op(weight).sum().backward()
        op(weight).sum().backward()
        assert len(seen) == 2
        (expected,) = torch.autograd.grad(op.definition(weight).sum(), weight)
        assert_close(weight.grad, 2 * expected)


class TestFusion:
    def kernels(self, work: Callable[[], object]) -> list[str]:
        with profile() as recorded:
            work()
        events = (event for event in recorded.events() if event.device_type == DeviceType.CPU)
        return [event.name for event in events if event.name.startswith("torchad_ext::")]

    @ops
    def test_each_order_is_one_kernel(self, op: Pointwise, device: str) -> None:
        name = f"torchad_ext::{op.__name__}"
        x, g = (torch.randn(9, device=device, requires_grad=True) for _ in range(2))
        y = op(x)
        assert self.kernels(lambda: op(x)) == [name]
        assert self.kernels(lambda: torch.autograd.grad(y, x, g, retain_graph=True)) == [f"{name}_backward"]
        (first,) = torch.autograd.grad(y, x, g, create_graph=True)
        assert self.kernels(lambda: torch.autograd.grad(first.sum(), (x, g))) == [f"{name}_double_backward"]

    @ops
    def test_outputs_nobody_wants_are_not_computed(self, op: Pointwise, device: str) -> None:
        x = torch.randn(9, device=device, requires_grad=True)
        (first,) = torch.autograd.grad(op(x).sum(), x, create_graph=True)
        called = self.kernels(lambda: torch.autograd.grad(first.sum(), x))
        assert called == [f"torchad_ext::{op.__name__}_double_backward_input"]


class TestWithoutKernels:
    @row("torch.compile")
    @row("export")
    @ops
    def test_tracing_sees_the_definition(self, op: Pointwise) -> None:
        x = torch.randn(5)
        compiled = torch.compile(lambda u: op(u) * 2, fullgraph=True, backend="aot_eager")
        assert_close(compiled(x), op.definition(x) * 2)
        graph = torch.export.export(torch.nn.Sequential(_Module(op)), (x,)).graph_module.code
        assert "torchad_ext" not in graph and op.__name__ in graph

    @row("fake and meta")
    @ops
    def test_meta_and_fake_tensors(self, op: Pointwise) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        assert op(torch.empty(2, 3, device="meta")).shape == (2, 3)
        with FakeTensorMode() as mode:
            assert op(mode.from_tensor(torch.empty(3, 2).t())).stride() == (1, 2)

    @row("autocast")
    @ops
    def test_autocast_gives_the_native_dtype(self, op: Pointwise, device: str) -> None:
        x = torch.randn(4, device=device).to(torch.bfloat16)
        with torch.autocast(device, dtype=torch.bfloat16):
            assert op(x).dtype == op.definition(x).dtype


class TestErrors:
    @pytest.mark.parametrize("route", ["C++", "Python", "quadratic_form"])
    def test_memory_that_is_not_there_is_the_error_of_pytorch(self, route: str, device: str) -> None:
        x = torch.ones(1, 1, 1, device=device).expand(2**46, 1, 1)
        call = {
            "C++": lambda: ad.sin(x),
            "Python": lambda: ad.sin._order(0).run((x,), ()),
            "quadratic_form": lambda: ad.quadratic_form(x[..., 0], x),
        }[route]
        expected = torch.OutOfMemoryError if device == "cuda" else RuntimeError
        with pytest.raises(expected, match=r"out of memory|can't allocate memory"):
            call()

    @ops
    @pytest.mark.parametrize("wrong", [1.0, 2, [1.0], None], ids=repr)
    @row("errors")
    def test_what_is_not_a_tensor(self, op: Pointwise, wrong: object) -> None:
        given = "a number" if isinstance(wrong, (int, float)) else type(wrong).__name__
        with pytest.raises(TypeError, match=rf"got {given}; write torchad_ext.{op.__name__}\(torch.as_tensor"):
            op(wrong)

    @ops
    @row("errors")
    def test_a_numpy_array(self, op: Pointwise) -> None:
        with pytest.raises(TypeError, match="got ndarray"):
            op(torch.zeros(2).numpy())

    @ops
    @row("errors")
    def test_arguments_that_do_not_fit_the_signature(self, op: Pointwise) -> None:
        with pytest.raises(TypeError, match=rf"{op.__name__}\(input\): too many positional arguments"):
            op(torch.zeros(1), torch.zeros(1))
        with pytest.raises(TypeError, match="missing a required argument: 'input'"):
            op()

    @row("bare kernels")
    def test_a_bare_kernel_refuses_what_needs_a_derivative(self, device: str) -> None:
        x = torch.randn(3, device=device)
        kernel = address(ad.sin, x)
        assert_close(bare(kernel, [x], [])[0], x.sin())
        for call in (
            lambda: bare(kernel, [x.clone().requires_grad_()], []),
            lambda: jvp(lambda x: bare(kernel, [x], [])[0], (x,), (x,)),
        ):
            with pytest.raises(RuntimeError, match="bare kernel and has no derivative"):
                call()
        with torch.no_grad():
            assert_close(bare(kernel, [x.clone().requires_grad_()], [])[0], x.sin())

    @row("bare kernels")
    def test_a_bare_kernel_refuses_tensors_that_do_not_match(self, device: str) -> None:
        x = torch.randn(3, device=device)
        backward = address(ad.sin, x, order=1)
        for other, message in ((x[:2], "one shape"), (x[None], "one shape"), (x.double(), "given a tensor of Double")):
            with pytest.raises(RuntimeError, match=message):
                bare(backward, [x, other], [])
        with pytest.raises(RuntimeError, match="kernel of 2 inputs was given 1 tensors"):
            bare(backward, [x], [])
        with pytest.raises(RuntimeError, match="kernel for Float was given a tensor of Int"):
            bare(address(ad.sin, x), [x.int()], [])


class _Module(torch.nn.Module):
    def __init__(self, op: Pointwise) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.op(x)
