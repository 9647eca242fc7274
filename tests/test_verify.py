"""verify bites: it accepts right ops and catches every way to be wrong that is known here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.autograd import Function, gradcheck

import torchad_ext as ad
from torchad_ext.elementwise import Elementwise

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


def test_wrong_strides_and_dtype_are_caught() -> None:
    with pytest.raises(ad.VerificationError, match=r"Got shape \[2, 3\].*strides \[1, 2\], expected"):
        ad.verify(lambda x: x.t().contiguous().t() ** 3, cube, inputs=[torch.randn(2, 3).double()], quiet=True)
    with pytest.raises(ad.VerificationError, match=r"Got .*float64.*expected .*float32"):
        ad.verify(lambda x: x.double() ** 3, cube, inputs=X, dtypes=[torch.float32], quiet=True)


def test_a_nan_or_infinity_in_the_wrong_place_is_caught() -> None:
    inputs = [torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)]
    for wrong in (torch.nan, torch.inf):
        with pytest.raises(ad.VerificationError, match="value differs"):
            ad.verify(
                lambda x, w=wrong: torch.where(x == 0, w * x.sign().add(1), x**3), cube, inputs=inputs, quiet=True
            )


@pytest.mark.parametrize("name", ["sin", "sin_backward", "sin_double_backward"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_wrong_kernel_of_the_library_is_caught(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = Elementwise.kernel

    def corrupted(function: Elementwise, *key: Any) -> Any:
        kernel = find(function, *key)
        if kernel is None or function.name != name:
            return kernel
        return lambda xs, scalars: [output * (1 + 1e-5) for output in kernel(xs, scalars)]

    monkeypatch.setattr(Elementwise, "kernel", corrupted)
    with pytest.raises(ad.VerificationError, match=r"sin, float.., cpu: the (value|gradient|double backward)"):
        ad.verify(ad.sin, dtypes=[dtype], quiet=True)


def test_the_message_names_op_dtype_device_derivative_and_error() -> None:
    with pytest.raises(ad.VerificationError) as caught:
        ad.verify(WrongFirst.apply, cube, inputs=X, dtypes=[torch.float32], quiet=True)
    message = str(caught.value)
    for part in ("apply", "float32", "cpu", "gradient", "ulp, at most 4 allowed"):
        assert part in message


def test_the_table_shows_every_derivative(capsys: pytest.CaptureFixture[str]) -> None:
    verification = ad.verify(Right.apply, cube, inputs=X)
    printed = capsys.readouterr().out
    for part in ("value", "gradient", "gradcheck", "Hessian"):
        assert part in printed and part in str(verification)


def test_what_cannot_be_verified_says_what_to_give() -> None:
    with pytest.raises(TypeError, match="has no definition; give one"):
        ad.verify(lambda x: x)
    with pytest.raises(TypeError, match=r"no sample inputs are known .* give some, inputs="):
        ad.verify(Right.apply, cube)
