"""verify bites: it accepts right ops and catches every way to be wrong that is known here."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import Function, gradcheck

import torchad_ext as ad
from torchad_ext import Pointwise
from torchad_ext._elementwise import Elementwise
from torchad_ext._native import fast_path
from torchad_ext._verification.verify import _name

X = (torch.linspace(-2, 2, 7, dtype=torch.float64),)


def cube(x: torch.Tensor) -> torch.Tensor:
    return x * x * x


class Right(Function):
    """x^3 as a textbook would write it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x * x * grad_output


class WrongValue(Right):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x**3 * (1 + 1e-14)


class WrongFirst(Right):
    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return 3.01 * x * x * grad_output


class SavedIntermediate(Right):
    """f' is right. Its factor x^2 was made inside forward, so that f'' loses the term through it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(3 * x * x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> torch.Tensor:
        (slope,) = ctx.saved_tensors
        return slope * grad_output


class WrongSecond(Right):
    """f' is right and f'' is not: the backward is another Function with a wrong derivative."""

    class Backward(Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, grad_output: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x, grad_output)
            return 3 * x * x * grad_output

        @staticmethod
        def backward(ctx: Any, grad_grad_x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x, grad_output = ctx.saved_tensors
            return 6.1 * x * grad_output * grad_grad_x, 3 * x * x * grad_grad_x

    @classmethod
    def backward(cls, ctx: Any, grad_output: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return WrongSecond.Backward.apply(ctx.saved_tensors[0], grad_output)


class Once(Right):
    """No second derivative at all."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x * x * grad_output


def failures(op: Callable[..., torch.Tensor], **options: Any) -> set[str]:
    """The derivatives that verify finds wrong."""
    with pytest.raises(ad.VerificationError) as caught:
        ad.verify(op, cube, inputs=X, quiet=True, **options)
    return {check.derivative for check in caught.value.verification.failures}


def test_a_right_function_passes() -> None:
    assert ad.verify(Right.apply, cube, inputs=X, quiet=True).passed


@pytest.mark.parametrize("op", [ad.sin, ad.exp, ad.quadratic_form], ids=lambda op: op.__name__)
def test_the_ops_of_the_library_pass(op: Callable[..., torch.Tensor], device: str) -> None:
    verification = ad.verify(op, devices=[device], quiet=True)
    assert verification.passed
    assert {c.derivative for c in verification.checks} == {
        "value", "gradient", "double backward", "gradcheck", "gradgradcheck", "Hessian",
    }  # fmt: skip
    assert {c.dtype for c in verification.checks} == {"float64", "float32"}


def test_a_wrong_value_is_caught() -> None:
    assert "value" in failures(WrongValue.apply, dtypes=[torch.float64])


def test_a_wrong_first_derivative_is_caught() -> None:
    assert {"gradient", "gradcheck", "double backward", "Hessian"} <= failures(WrongFirst.apply)


def test_a_wrong_second_derivative_is_caught() -> None:
    assert failures(WrongSecond.apply) == {"double backward", "gradgradcheck", "Hessian"}


def test_an_intermediate_saved_in_forward_is_caught_though_gradcheck_passes() -> None:
    assert gradcheck(SavedIntermediate.apply, X[0].clone().requires_grad_())
    assert failures(SavedIntermediate.apply) == {"double backward", "gradgradcheck", "Hessian"}


def test_a_missing_second_derivative_is_caught() -> None:
    assert failures(Once.apply) == {"double backward", "gradgradcheck", "Hessian"}


def test_every_failure_is_described_by_inputs_got_expected_and_relative_error() -> None:
    with pytest.raises(ad.VerificationError) as caught:
        ad.verify(WrongFirst.apply, cube, inputs=torch.tensor(2.0), quiet=True)
    first, also, *others = str(caught.value).splitlines()
    number = r"-?[\d.e+-]+"
    at = (
        rf"with respect to x at x = 2.0, grad_output = {number}: got {number}, expected {number}, relative error 0.0033"
    )
    assert re.fullmatch(
        rf"torchad_ext.verify: WrongFirst, float64, cpu: the gradient differs .*: {at} \({number} ulp, .*", first
    )
    assert also == "  Wrong as well (5):"
    failed = [re.match(r"  (float\d\d), cpu: the ([a-zA-Z ]+) differs", line) for line in others]
    assert [match.groups() for match in failed if match] == [
        ("float64", "double backward"), ("float64", "gradcheck"), ("float64", "Hessian"),
        ("float32", "gradient"), ("float32", "double backward"),
    ]  # fmt: skip
    gradcheck, hessian = others[1:3]
    assert "d output / d x at x = 2.0: got 12.04, expected 12.0" in gradcheck
    assert re.search(r"entry \(x, x\) at x = 2.0: got 6.02\d*, expected 6.0, relative error 0.0033", hessian)


def test_the_element_with_the_largest_error_is_named() -> None:
    def wrong(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        result = x * y
        result[1, 2] += 1e-3
        return result

    x, y = torch.arange(6.0).view(2, 3), torch.tensor([7.0, 8.0, 9.0])
    with pytest.raises(ad.VerificationError, match=r"at element \[1, 2\], x = 5.0, y = 9.0: got 45.001"):
        ad.verify(wrong, lambda x, y: x * y, inputs=(x, y), quiet=True)


def test_only_a_wrong_second_derivative_gets_the_advice_to_save_inputs() -> None:
    messages = {}
    for op in (SavedIntermediate, WrongFirst):
        with pytest.raises(ad.VerificationError) as caught:
            ad.verify(op.apply, cube, inputs=X, quiet=True)
        messages[op] = str(caught.value)
    assert "ctx.save_for_backward(x)" in messages[SavedIntermediate]
    assert "ctx.save_for_backward(x)" not in messages[WrongFirst]


class OneElement(Right):
    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> torch.Tensor:
        gradient = Right.backward(ctx, grad_output)
        return gradient * torch.where(torch.arange(7) == 5, 1.001, 1.0).to(gradient)


class OnlyFloat32(Right):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x**3 * (1 + 1e-5 * (x.dtype == torch.float32))


class WrongShape(Right):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x[1:] ** 3


class InPlace(Right):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x.clone())
        return x.pow_(3).clone()


class NoTensor(Right):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> Any:
        return 1.0


class Raises(Right):
    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> torch.Tensor:
        raise KeyError("slope")


class NoGradient(Right):
    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> Any:
        return None


class NoCotangent(Right):
    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x * x


class ByNumpy(Right):
    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return torch.from_numpy(3 * x.detach().numpy() ** 2 * grad_output.detach().numpy())


class NotReentrant(Right):
    calls = 0

    @classmethod
    def backward(cls, ctx: Any, grad_output: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        cls.calls += 1
        return Right.backward(ctx, grad_output) * (1 + 1e-9 * cls.calls)


class WrongTangent(Function):
    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> torch.Tensor:
        return Right.backward(ctx, grad_output)

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor) -> torch.Tensor:
        return 3.1 * ctx.saved_tensors[0] ** 2 * tangent


class OfMemory(Right):
    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> torch.Tensor:
        return Right.backward(ctx, grad_output.as_strided(grad_output.shape, grad_output.contiguous().stride()))


class OfContiguous(Right):
    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> torch.Tensor:
        assert grad_output.is_contiguous()
        return Right.backward(ctx, grad_output)


class OfStrides(Right):
    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> torch.Tensor:
        return Right.backward(ctx, grad_output if all(grad_output.stride()) else 2 * grad_output)


class OfContiguousInputs(Right):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = Right.forward(ctx, x)
        return result if x.is_contiguous() else 2 * result


class WrongInABatch(Function):
    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> torch.Tensor:
        return Right.backward(ctx, grad_output)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: torch.Tensor) -> Any:
        return WrongInABatch.apply(x.flip(in_dims[0])), in_dims[0]


class SlopeOfCube(Function):
    """3x²g, the derivative of whose derivative lacks a term."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, g)
        return 3 * x**2 * g

    @staticmethod
    def backward(ctx: Any, v: torch.Tensor) -> Any:
        x, g = ctx.saved_tensors
        return 6 * x.detach() * g * v, 3 * x**2 * v


class WrongThird(Right):
    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> Any:
        return SlopeOfCube.apply(*ctx.saved_tensors, grad_output)


class TwiceOnly(Right):
    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> Any:
        return OnceSlope.apply(*ctx.saved_tensors, grad_output)


class OnceSlope(SlopeOfCube):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, v: torch.Tensor) -> Any:
        x, g = ctx.saved_tensors
        return 6 * x * g * v, 3 * x**2 * v


class Product(Function):
    """x y, whose gradient in x is right only where that in y is wanted too."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, y)
        return x * y

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        x, y = ctx.saved_tensors
        return (y * g, x * g) if ctx.needs_input_grad[1] else (x * g, None)


class TangentRaises(WrongTangent):
    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor) -> torch.Tensor:
        raise KeyError("tangent")


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (OneElement, r"float64, cpu: the gradient differs .* at element \[5\], x = 1.333333333333\d*, grad_output = "),
        (OnlyFloat32, r"OnlyFloat32, float32, cpu: the value differs .* relative error 1e-05"),
        (WrongShape, r"the value differs .*: has shape \[6\], expected \[7\]"),
        (InPlace, r"the value is computed by changing the inputs in place"),
        (NoTensor, r"the value raised TypeError: it returned float, expected a tensor"),
        (Raises, r"the gradient, gradcheck, gradgradcheck, Hessian raised KeyError: 'slope' \(test_verify.py:\d+\)"),
        (Once, r"the double backward differs .*: got 0.0, expected .*[^$]*is once_differentiable"),
        (NoGradient, r"the gradient differs .*: got 0.0, expected "),
        (NoCotangent, r"gradcheck differs from finite differences: d output\[\d\] / d x\[\d\] at x\[\d\] = "),
        (ByNumpy, r"double backward differs .*; the gradient does not require grad"),
        (ByNumpy, r"gradcheck fails for batched gradients \(is_grads_batched=True\)"),
        (NotReentrant, r"gradcheck fails: Backward is not reentrant"),
        (WrongTangent, r"gradcheck differs from finite differences: d output\[\d\] / d x\[\d\] in forward mode at x"),
        (TangentRaises, r"gradcheck, gradgradcheck raised KeyError: 'tangent'"),
        (OfMemory, r"the gradient differs .*; the cotangents are not contiguous"),
        (OfContiguous, r"the gradient raised AssertionError: .*; the cotangents are not contiguous"),
        (OfStrides, r"the gradient differs .*; the cotangents are ones that are expanded"),
        (OfContiguousInputs, r"the value differs .*; the inputs are not contiguous"),
        (WrongInABatch, r"the value differs .*; it is that of torch.func.vmap"),
        (WrongThird, r"the third order differs from finite differences of the double backward"),
    ],
)
def test_every_way_to_be_wrong_is_described(op: type[Function], message: str) -> None:
    with pytest.raises(ad.VerificationError, match=message) as caught:
        ad.verify(op.apply, cube, inputs=X, quiet=True)
    assert str(caught.value).startswith(f"torchad_ext.verify: {op.__name__}, ")


def test_a_gradient_that_is_wrong_in_one_input_alone_is_caught() -> None:
    with pytest.raises(ad.VerificationError, match=r"with respect to x .*; no other input requires a gradient"):
        ad.verify(Product.apply, lambda x, y: x * y, inputs=(X[0], 2 + X[0]), quiet=True)


def test_a_function_may_have_no_third_derivative_and_refuse_inputs_that_are_not_contiguous() -> None:
    def strict(x: torch.Tensor) -> torch.Tensor:
        return TwiceOnly.apply(x.view(-1)).view(x.shape)

    assert ad.verify(strict, cube, inputs=torch.stack([X[0], X[0] + 3]), quiet=True).passed


def test_wrong_strides_and_dtype_are_caught() -> None:
    with pytest.raises(ad.VerificationError, match=r"has strides \[1, 2\], expected \[3, 1\]"):
        ad.verify(lambda x: x.t().contiguous().t() ** 3, cube, inputs=[torch.randn(2, 3).double()], quiet=True)
    with pytest.raises(ad.VerificationError, match=r"has dtype torch.float64, expected torch.float32"):
        ad.verify(lambda x: x.double() ** 3, cube, inputs=X, dtypes=[torch.float32], quiet=True)


def test_a_nan_or_infinity_in_the_wrong_place_is_caught() -> None:
    inputs = [torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)]
    for wrong in (torch.nan, torch.inf):
        with pytest.raises(ad.VerificationError, match="value differs"):
            ad.verify(
                lambda x, w=wrong: torch.where(x == 0, w * x.sign().add(1), x**3), cube, inputs=inputs, quiet=True
            )


def test_a_number_for_a_nan_is_caught() -> None:
    with pytest.raises(ad.VerificationError, match=r"at element .* got 0.5, expected nan"):
        ad.verify(lambda x: torch.full_like(x, 0.5), lambda x: x.log(), inputs=-torch.ones(2), quiet=True)


def test_the_table_says_how_wrong_a_derivative_is() -> None:
    with pytest.raises(ad.VerificationError) as caught:
        ad.verify(WrongFirst.apply, cube, inputs=X, dtypes=torch.float64, quiet=True)
    table = str(caught.value.verification)
    assert "WrongFirst against its definition" in table and "3e-03" in table and "gradcheck" in table


DECLARED: dict[str, Callable[..., Any]] = {
    "linear": lambda x: 2 * x,
    "constant": lambda x: x * 0 + 1,
    "identity": lambda x: x,
    "piecewise constant": lambda x: torch.round(x),
    "independent of x": lambda x: torch.zeros_like(x),
    "condition only": lambda c, x: torch.where(c > 0, x.sin(), x.exp()),
    "constants by a condition": lambda c, x: torch.where(c > 0, 1.0 + 0 * x, 2.0 + 0 * x),
    "constant first, then smooth": lambda x: (x * 0 + 1, x.sin()),
    "each output of its own input": lambda x, y: (x.sin(), 3 * y),
    "linear in one with a number": lambda x, a=2.0: a * x,
}


@pytest.mark.parametrize("function", DECLARED.values(), ids=DECLARED)
def test_derivatives_may_vanish_or_be_constant(function: Callable[..., Any]) -> None:
    checks = ad.verify(ad.pointwise(function), dtypes=[torch.float64], quiet=True).checks
    assert {c.derivative for c in checks} >= {"value", "gradient", "double backward", "Hessian"}


@pytest.mark.parametrize("function", DECLARED.values(), ids=DECLARED)
def test_a_wrong_derivative_is_caught_where_the_right_one_vanishes_or_is_constant(
    function: Callable[..., Any],
) -> None:
    """The same values, and 1e-9 too much in the derivative in the last argument."""

    def wrong(*xs: torch.Tensor) -> Any:
        excess = 1e-9 * (xs[-1] - xs[-1].detach())
        result = function(*xs)
        return tuple(y + excess for y in result) if isinstance(result, tuple) else result + excess

    xs = [torch.linspace(-2, 1.9, 5, dtype=torch.float64) for p in inspect.signature(function).parameters if p != "a"]
    assert ad.verify(function, function, inputs=xs, quiet=True).passed
    with pytest.raises(ad.VerificationError, match="float64, cpu: the gradient differs"):
        ad.verify(wrong, function, inputs=xs, quiet=True)


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (lambda x: (x.round().long(), x > 0), X[0]),  # nothing to differentiate
        (lambda x: (x.argmax(), x.sin()), X[0]),
        (lambda x, i: x.sin()[i], (X[0], torch.tensor([0, 2, 2]))),
        (lambda x, a, mask: torch.where(mask, a * x, x.exp()), (X[0], 2.0, X[0] > 0)),
        (lambda x: x**3, torch.zeros(3, 0)),
        (lambda x: x**3, torch.tensor(0.5)),
        (lambda x: x.pow(2).sum(), X[0]),
    ],
)
def test_integers_masks_numbers_and_tensors_of_any_size(function: Callable[..., Any], inputs: Any) -> None:
    assert ad.verify(function, function, inputs=inputs, quiet=True).passed


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * torch.abs(x),
        lambda x: torch.exp(-x.abs()),
        F.softsign,
        lambda x: x.sgn() * x**3,
        lambda x: x.norm(1) * x,
        lambda x: x.abs() ** 1.5,
        F.relu6,
        torch.floor,
        lambda x: x / x.abs().sum(-1, keepdim=True),
        lambda x: F.l1_loss(x, x.flip(0), reduction="none") * x,
    ],
)
def test_second_derivatives_may_be_zeros_without_memory(function: Callable[..., Any]) -> None:
    x = torch.tensor([-1.5, 0.3, 1.1, -0.2])
    assert ad.verify(function, function, inputs=x, quiet=True).passed


def test_a_wrong_integer_is_caught() -> None:
    with pytest.raises(ad.VerificationError, match=r"at element \[5\], x = 1.33.*: got 1, expected 0"):
        ad.verify(lambda x: (x > 1).long(), lambda x: (x > 1.5).long(), inputs=X[0], quiet=True)


@pytest.mark.parametrize(
    ("op", "inputs"),
    [(ad.softplus, (X[0], 2.0)), (ad.elu, (X[0], 0.5)), (ad.pow, (X[0].abs() + 1, 2.5))],
)
def test_an_op_is_verified_with_other_arguments_than_its_defaults(op: Pointwise, inputs: tuple[Any, ...]) -> None:
    assert ad.verify(op, inputs=inputs, quiet=True).passed


@pytest.mark.parametrize(
    "function", [lambda x: torch.relu(x), lambda x: x.detach() * x, lambda x: x.log()], ids=["kink", "detach", "domain"]
)
def test_finite_differences_are_left_out_with_a_warning_where_the_definition_fails_them(
    function: Callable[..., Any],
) -> None:
    x = torch.tensor([-1.0, 0.0, 2.0])  # linear near 2
    with pytest.warns(RuntimeWarning, match="left out, because native autograd of the definition differs from finite"):
        assert ad.verify(ad.pointwise(function), dtypes=torch.float64, inputs=x, quiet=True).passed
    with pytest.raises(ad.VerificationError, match="the gradient differs"):
        ad.verify(lambda x: function(x) + 0.1 * (x - x.detach()), function, inputs=x[2:], quiet=True)


class Layer(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @classmethod
    def make(cls, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize(
    ("op", "name"),
    [
        (Right.apply, "Right"),
        (functools.partial(Right.apply), "Right"),
        (Layer(), "Layer"),
        (Layer().forward, "Layer.forward"),
        (Layer.make, "Layer.make"),
        (torch.sin, "sin"),
        (failures, "failures"),
        (lambda x: x, r"lambda (test_verify.py:"),
        (ad.pointwise(lambda x: x * x), r"lambda (test_verify.py:"),
    ],
)
def test_a_function_is_called_by_its_own_name(op: Callable[..., Any], name: str) -> None:
    assert _name(op).startswith(name)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((Right.apply,), {}, TypeError, "Right has no definition .* give the same function in plain PyTorch"),
        ((Right.apply, cube), {}, TypeError, r"no sample inputs are known for Right; give some, inputs=\(x, ...\)"),
        ((Right, cube), {"inputs": X}, TypeError, "op is the class Right; give a function, Right.apply"),
        ((Layer, cube), {"inputs": X}, TypeError, r"op is the class Layer; give a function, Layer\(...\)"),
        (
            (Right.apply, X[0]),
            {},
            TypeError,
            r"definition must be a function of tensors, got Tensor; .*inputs=\(x, ...\)",
        ),
        (("sin",), {}, TypeError, "op must be a function of tensors, got str"),
        ((Right.apply, cube), {"inputs": 1.0}, TypeError, "inputs must be a tensor or a tuple of tensors, got float"),
        ((Right.apply, cube), {"inputs": ()}, TypeError, "no tensor of floating point to differentiate, got nothing"),
        ((Right.apply, cube), {"inputs": [1.0]}, TypeError, "no tensor of floating point to differentiate, got float"),
        ((Right.apply, cube), {"inputs": torch.arange(3)}, TypeError, "no tensor of floating point .* got torch.int64"),
        ((Right.apply, cube), {"inputs": X[0] * 1j}, TypeError, r"inputs\[0\] is complex; give real, strided tensors"),
        ((Right.apply, cube), {"inputs": X[0].to("meta")}, TypeError, r"inputs\[0\] is meta; give .* with data"),
        ((Right.apply, cube), {"inputs": X[0].to_sparse()}, TypeError, r"inputs\[0\] is torch.sparse_coo"),
        ((Right.apply, cube), {"inputs": torch.ones(50, 50)}, ValueError, "2,500 elements, at most 2,000"),
        (
            (Right.apply, cube),
            {"inputs": X * 2},
            ValueError,
            r"definition of Right raised TypeError: .* x1 \[7\] torch.f",
        ),
        ((Right.apply, lambda x: x.nope()), {"inputs": X}, ValueError, r"AttributeError: .*nope.* \(test_verify.py:"),
        ((Right.apply, lambda x: None), {"inputs": X}, ValueError, "returned NoneType, expected a tensor or a tuple"),
        ((ad.sin,), {"dtypes": torch.int64}, TypeError, "dtypes are of floating point, .*; got torch.int64"),
        ((ad.sin,), {"dtypes": ["float32"]}, TypeError, "dtypes are of floating point, .*; got 'float32'"),
        ((ad.sin,), {"dtypes": ()}, ValueError, "dtypes is empty, so there is nothing to check"),
        ((ad.sin,), {"devices": []}, ValueError, "devices is empty, so there is nothing to check"),
        ((ad.sin,), {"devices": "gpu"}, ValueError, "device 'gpu' cannot be used"),
        ((ad.sin,), {"ulps": -1}, ValueError, "ulps is the largest error allowed, 0 or more; got -1"),
    ],
)
def test_misuse_is_told_with_the_remedy(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"torchad_ext.verify: .*{message}"):
        ad.verify(*arguments, **options)


WRONG = """
namespace torchad_ext {{
struct Wrong {{
  template <class... T>
  TORCHAD_EXT_FUNCTION auto operator()(T... x) const {{
    auto y = {right}{{}}(x...);
    for (auto& value : y.value) value = value * number<std::decay_t<decltype(value)>>(1.00001);
    return y;
  }}
}};
}}
"""


@pytest.mark.parametrize("name", ["sin", "sin_backward", "sin_double_backward"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("way", ["C++", "Python"])
def test_a_wrong_kernel_of_the_library_is_caught(
    name: str, dtype: torch.dtype, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = Elementwise.functor

    def corrupted(function: Elementwise, dtype: str) -> tuple[str, str]:
        right, text = find(function, dtype)
        return ("Wrong", f"{text}\n{WRONG.format(right=right)}") if function.name == name else (right, text)

    monkeypatch.setattr(Elementwise, "functor", corrupted)
    if way == "Python":
        monkeypatch.setattr(fast_path, "module", lambda: None)
    op = Pointwise(ad.sin.definition, name="sin", written=ad.sin._written)
    with pytest.raises(ad.VerificationError, match=r"sin, float.., cpu: the (value|gradient|double backward)"):
        ad.verify(op, dtypes=[dtype], quiet=True)


@pytest.mark.usefixtures("interpreted")
def test_rounding_errors_of_large_scores_are_allowed() -> None:
    """A share next to 1 has an error of a unit, which is much of the difference that its gradient is."""
    ad.verify(ad.rowwise(lambda x: torch.softmax(4 * x, -1)))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.std(-1, unbiased=False),
        lambda x: torch.linalg.vector_norm(x - x.mean(-1, keepdim=True), dim=-1),
    ],
)
@pytest.mark.usefixtures("interpreted")
def test_rows_of_which_pytorch_has_no_second_derivative(function: Callable[..., Any]) -> None:
    """Those of one element, which is its mean."""
    assert ad.verify(ad.rowwise(function), quiet=True).passed
