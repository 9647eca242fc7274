"""verify bites: it accepts right ops and catches every way to be wrong that is known here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.autograd import Function, gradcheck

import torchad_ext as ad
from torchad_ext import Pointwise, _eager
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
        monkeypatch.setattr(_eager, "module", lambda: None)
    op = Pointwise(ad.sin.definition, name="sin", written=ad.sin._written)
    with pytest.raises(ad.VerificationError, match=r"sin, float.., cpu: the (value|gradient|double backward)"):
        ad.verify(op, dtypes=[dtype], quiet=True)
