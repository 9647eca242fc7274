"""PyTorch's own samples on the ops that stand in for its functions, its checks of the bare kernels, and errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from drop_in import MISSION, POINTWISE, SUBJECTS, Subject, each, row
from hypothesis import given, settings
from layouts import steps, strided
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, jvp
from torch.library import opcheck
from torch.testing import assert_close
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

import torchad_ext as ad

pytest.importorskip("expecttest", reason="torch.testing._internal imports expecttest, which is not installed")
from pytorch_samples import samples_of
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo.core import OpInfo, SampleInput

INFO = {info.name.removeprefix("nn.functional."): info for info in op_db if not info.variant_test_name}
KERNELS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
COMPLEX = [torch.complex128, torch.complex64]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
EXACT = [torch.float64, torch.complex128]
UNUSUAL: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sparse": lambda x: x.to_sparse(),
    "compressed rows": lambda x: x.to_sparse_csr(),
    "quantised": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "mkldnn": lambda x: x.to_mkldnn(),
}
STANDING_IN = [subject for subject in POINTWISE if subject.name in INFO]

mission = each(MISSION)


def info_of(subject: Subject) -> OpInfo:
    return INFO[subject.name]


def within(ulps: int, dtype: torch.dtype) -> dict[str, float]:
    """The tolerance of so many units in the last place."""
    limits = torch.finfo(dtype)
    return {"rtol": ulps * limits.eps, "atol": ulps * limits.tiny * limits.eps}


def call(f: Callable[..., torch.Tensor], sample: SampleInput) -> torch.Tensor:
    return f(sample.input, *sample.args, **sample.kwargs)


def leaves(sample: SampleInput) -> list[torch.Tensor]:
    """The tensors of a sample that require a gradient, those within its arguments included."""
    return [x for x in (sample.input, *sample.args) if isinstance(x, torch.Tensor) and x.requires_grad]


def of_leaves(f: Callable[..., torch.Tensor], sample: SampleInput) -> Callable[..., torch.Tensor]:
    """f as a function of the tensors that require a gradient."""

    def function(*xs: torch.Tensor) -> torch.Tensor:
        given = iter(xs)
        arguments = [next(given) if any(x is leaf for leaf in leaves(sample)) else x for x in every]
        return f(*arguments, **sample.kwargs)

    every = (sample.input, *sample.args)
    return function


def with_gradients(subject: Subject, device: str, dtype: torch.dtype) -> list[SampleInput]:
    samples = list(samples_of(info_of(subject), dtype, device))
    assert samples
    return samples


class TestSamples:
    @row("PyTorch's own samples")
    @mission
    def test_the_dtypes_are_all_that_pytorch_supports(self, subject: Subject, device: str) -> None:
        supported = info_of(subject).supported_dtypes(device) - {torch.complex32}
        assert supported == {*KERNELS, *COMPLEX, *INTEGERS}

    @row("PyTorch's own samples")
    @mission
    @pytest.mark.parametrize(
        ("kind", "dtype"),
        [("reference_inputs", dtype) for dtype in KERNELS]
        + [("sample_inputs", dtype) for dtype in [*KERNELS, *COMPLEX, *INTEGERS]],
        ids=str,
    )
    def test_values(self, subject: Subject, dtype: torch.dtype, kind: str, device: str) -> None:
        samples = list(getattr(info_of(subject), kind)(device, dtype))
        assert samples
        for sample in samples:
            native = call(info_of(subject).op, sample)
            result = call(subject.op, sample)
            assert (result.shape, result.stride(), result.dtype) == (native.shape, native.stride(), native.dtype)
            assert_close(result, native, **within(8, result.dtype), equal_nan=True)

    @row("PyTorch's own samples")
    @mission
    @pytest.mark.parametrize("dtype", [*KERNELS, *COMPLEX], ids=str)
    def test_gradients(self, subject: Subject, dtype: torch.dtype, device: str) -> None:
        for sample in with_gradients(subject, device, dtype):
            (x,) = leaves(sample)
            results = []
            for f in (subject.op, info_of(subject).op):
                y = call(f, sample)
                (first,) = torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)
                results.append((first, torch.autograd.grad(first, x, torch.ones_like(first))[0]))
            assert_close(*results, **within(8, dtype))

    @row("PyTorch's own samples")
    @mission
    @pytest.mark.parametrize("dtype", EXACT, ids=str)
    def test_gradients_against_finite_differences(self, subject: Subject, dtype: torch.dtype, device: str) -> None:
        for sample in with_gradients(subject, device, dtype):
            f, xs = of_leaves(subject.op, sample), leaves(sample)
            assert gradcheck(f, xs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
            assert gradgradcheck(f, xs, check_fwd_over_rev=True, check_batched_grad=True, fast_mode=True)

    @row("PyTorch's own samples")
    @mission
    @pytest.mark.parametrize("dtype", EXACT, ids=str)
    def test_forward_mode(self, subject: Subject, dtype: torch.dtype, device: str) -> None:
        for sample in with_gradients(subject, device, dtype):
            (x,) = (x.detach() for x in leaves(sample))
            tangent = torch.ones_like(x) / 3
            ours, native = (torch.func.jvp(f, (x,), (tangent,)) for f in (subject.op, info_of(subject).op))
            assert_close(ours, native, **within(8, dtype))

    @row("PyTorch's own samples")
    @each(STANDING_IN)
    def test_every_op_that_stands_in(self, subject: Subject, device: str) -> None:
        for sample in with_gradients(subject, device, torch.float64):
            f, xs = of_leaves(subject.op, sample), leaves(sample)
            native = of_leaves(info_of(subject).op, sample)
            results = []
            for g in (f, native):
                y = g(*xs)
                results.append((y, torch.autograd.grad(y, xs, torch.ones_like(y), create_graph=True)))
            assert_close(*results, equal_nan=True)
            second = [torch.autograd.grad([g.sum() for g in gradients], xs) for _, gradients in results]
            assert_close(*second, equal_nan=True, rtol=1e-6, atol=1e-6)

    @row("PyTorch's own samples")
    @each([subject for subject in STANDING_IN if INFO[subject.name].error_inputs_func])  # none for sin and exp
    def test_error_inputs(self, subject: Subject, device: str) -> None:
        for error in info_of(subject).error_inputs(device):
            with pytest.raises((error.error_type, TypeError)):
                call(subject.op, error.sample_input)


def bare_calls(device: str) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """Each overload of each native operator, with arguments."""
    ops = torch.ops.torchad_ext
    x, g = torch.linspace(-1, 1, 12, device=device).reshape(3, 4), torch.linspace(0, 1, 12, device=device)
    kernels = []
    for order in range(3):
        function = ad.sin._order(order)
        kernel = function.kernel(device, x.dtype)
        assert kernel
        kernels.append(kernel.address)
    vectors = torch.linspace(-1, 1, 6, device=device).reshape(2, 3)
    matrices = torch.linspace(-1, 2, 18, device=device).reshape(2, 3, 3)
    leaves = [v.clone().requires_grad_() for v in (vectors, matrices)]
    torch.autograd.grad(ad.quadratic_form(*leaves).sum(), leaves)
    weights = vectors[:, 0].contiguous()
    of_rows = []
    for order in range(2):
        kernel = ad.softmax._order(order).kernel(device, x.dtype, True)  # of short rows
        assert kernel
        of_rows.append((ops.rowwise.default, (kernel.address, [x, g.reshape(3, 4)][: order + 1], [], [3, 4]), {}))
    return [
        *of_rows,
        (ops.pointwise.default, (kernels[0], [x], []), {}),
        (ops.pointwise.default, (kernels[0], [x.t()], []), {}),
        (ops.pointwise.default, (kernels[1], [x[:1].expand(3, 4), g.reshape(4, 3).t()], []), {}),
        (ops.pointwise.default, (kernels[2], [x, g.reshape(3, 4), x + 1], []), {}),
        (ops.pointwise.out, (kernels[0], [x], []), {"out": [torch.empty_like(x)]}),
        (ops.pointwise.out, (kernels[2], [x, x, x], []), {"out": [torch.empty_like(x), torch.empty_like(x)]}),
        (ops.quadratic_form.default, (vectors, matrices), {}),
        (ops.quadratic_form.default, (vectors[0], matrices[0].t()), {}),
        (ops.quadratic_form_and_product.default, (vectors, matrices), {}),
        (ops.quadratic_form_outer.default, (vectors, weights, None), {}),
        (ops.quadratic_form_outer.default, (vectors, None, vectors + 1), {}),
        (ops.quadratic_form_outer.default, (vectors, weights, vectors + 1), {}),
    ]


def each_tensor_replaced(
    replace: Callable[[torch.Tensor], torch.Tensor], args: tuple[Any, ...], options: dict[str, Any]
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments with one of the tensors replaced, one after the other."""
    flat, spec = tree_flatten((args, options))
    for i, x in enumerate(flat):
        if isinstance(x, torch.Tensor):
            yield tree_unflatten([*flat[:i], replace(x), *flat[i + 1 :]], spec)


def needing_a_gradient(x: torch.Tensor) -> torch.Tensor:
    return x.clone().requires_grad_()


class TestBareKernels:
    @row("bare kernels")
    def test_opcheck(self, device: str) -> None:
        for op, args, options in bare_calls(device):
            assert set(opcheck(op, args, options).values()) == {"SUCCESS"}

    @row("bare kernels")
    def test_every_operator_is_called_here(self, device: str) -> None:
        called = {op.name() for op, _, _ in bare_calls(device)}
        named = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("torchad_ext::")}
        assert called == named

    @row("bare kernels")
    @settings(max_examples=200, deadline=None)
    @given(x=strided(max_dims=3))
    def test_fake_strides_are_those_of_the_kernel(self, x: torch.Tensor) -> None:
        kernel = ad.sin._order(2).kernel("cpu", x.dtype)
        assert kernel
        backwards = x.new_ones(x.shape[::-1]).permute(tuple(range(x.dim())[::-1]))
        inputs = [x, backwards, x.new_ones(()).expand_as(x)]
        real = torch.ops.torchad_ext.pointwise(kernel.address, inputs, [])
        with FakeTensorMode() as mode:
            fake = torch.ops.torchad_ext.pointwise(kernel.address, [mode.from_tensor(x) for x in inputs], [])
        for ours, expected in zip(fake, real, strict=True):
            assert (ours.shape, steps(ours), ours.dtype) == (expected.shape, steps(expected), expected.dtype)

    @row("bare kernels")
    def test_a_tensor_that_needs_a_derivative_is_refused(self, device: str) -> None:
        for op, args, options in bare_calls(device):
            for changed, out in each_tensor_replaced(needing_a_gradient, args, options):
                with pytest.raises(RuntimeError, match="bare kernel and has no derivative"):
                    op(*changed, **out)
                with torch.no_grad():
                    op(*changed, **out)
            with forward_ad.dual_level():
                for changed, out in each_tensor_replaced(lambda x: forward_ad.make_dual(x, x), args, options):
                    with pytest.raises(RuntimeError, match="bare kernel and has no derivative"):
                        op(*changed, **out)

    @row("bare kernels")
    def test_transforms_are_refused(self, device: str) -> None:
        for op, args, options in bare_calls(device):
            x = next(x for x in tree_leaves(args) if isinstance(x, torch.Tensor))

            def differentiated(u: torch.Tensor, op: Any = op, args: Any = args, options: Any = options) -> torch.Tensor:
                changed, out = next(each_tensor_replaced(lambda _: u, args, options))
                return sum(y.sum() for y in tree_leaves(op(*changed, **out)))

            with pytest.raises(RuntimeError, match="bare kernel and has no derivative"):
                grad(differentiated)(x)
            with pytest.raises(RuntimeError, match="bare kernel and has no derivative"):
                jvp(differentiated, (x,), (x,))


class TestErrors:
    @row("errors")
    @each(SUBJECTS)
    @pytest.mark.parametrize(
        "wrong", ["x", [1.0], None, torch.zeros(1).numpy()], ids=lambda wrong: type(wrong).__name__
    )
    def test_what_is_not_a_tensor(self, subject: Subject, wrong: object) -> None:
        with pytest.raises(TypeError, match=rf"{subject.name} takes .*got {type(wrong).__name__}"):
            subject.op(*[wrong] * len(subject.inputs(1)))

    @row("errors")
    @each(SUBJECTS)
    def test_numbers_alone(self, subject: Subject) -> None:
        with pytest.raises(TypeError, match=rf"{subject.name} takes .*got"):
            subject.op(*[0.5] * len(subject.inputs(1)))

    @row("errors")
    @each(SUBJECTS)
    def test_arguments_of_native_that_the_op_has_not(self, subject: Subject) -> None:
        xs = subject.inputs(3)
        with pytest.raises(TypeError, match="unexpected keyword argument 'out'"):
            subject.op(*xs, out=torch.empty(3))

    @row("errors")
    @each([subject for subject in SUBJECTS if len(subject.inputs(3)) > 1])
    def test_mixed_devices(self, subject: Subject, device: str) -> None:
        x, y = subject.inputs(3, device=device)
        for xs in ((x, y.to("meta")), (x.to("meta"), y)):
            with pytest.raises((RuntimeError, ValueError), match=r"device|is on"):
                subject.op(*xs)

    @row("errors")
    @each(SUBJECTS)
    @pytest.mark.parametrize("layout", UNUSUAL)
    def test_layouts_that_native_refuses(self, subject: Subject, layout: str) -> None:
        for differentiable in (False, layout != "quantised"):  # a quantised tensor can have no gradient
            xs = [UNUSUAL[layout](x).requires_grad_(differentiable) for x in subject.inputs(3, 3, dtype=torch.float32)]
            outcomes = []
            for f in (subject.native, subject.op):
                try:
                    outcomes.append((f(*xs).layout, ""))
                except (RuntimeError, ValueError) as error:
                    outcomes.append((type(error), str(error).partition("\n")[0]))
            assert outcomes[0] == outcomes[1]

    @row("errors")
    @each(SUBJECTS)
    def test_integers_have_no_derivative(self, subject: Subject, device: str) -> None:
        xs = tuple(x.mul(2).to(torch.int64) for x in subject.inputs(3, device=device))
        for take in (
            lambda f: grad(lambda *u: f(*u).sum())(*xs),
            lambda f: jvp(f, xs, xs),
            lambda f: torch.autograd.grad(f(*xs).sum(), xs),
            lambda f: f(*(x.requires_grad_() for x in xs)),
        ):
            with pytest.raises((RuntimeError, ValueError)) as native:
                take(subject.native)
            with pytest.raises(native.type, match=re.escape(str(native.value).partition("\n")[0])):
                take(subject.op)

    @row("errors")
    @each(SUBJECTS)
    def test_gradients_that_do_not_fit(self, subject: Subject, device: str) -> None:
        xs = subject.inputs(3, 4, device=device, requires_grad=True)
        for wrong in (torch.ones(5, device=device), torch.ones(5, device="meta")):
            with pytest.raises(RuntimeError) as native:
                torch.autograd.grad(subject.native(*xs), xs, wrong)
            with pytest.raises(native.type, match=re.escape(str(native.value).partition("\n")[0])):
                torch.autograd.grad(subject.op(*xs), xs, wrong)
        with pytest.raises(RuntimeError, match="grad can be implicitly created only for scalar outputs"):
            subject.op(*xs).backward()
        with pytest.raises(RuntimeError, match="does not require grad"):
            subject.op(*(x.detach() for x in xs)).sum().backward()
