"""Numbers as arguments of a declared op: those that PyTorch takes for one, and no others."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import torchad_ext as ad

THIRD = Fraction(1, 3)


class TestNumbers:
    """A number is what PyTorch takes for one."""

    @pytest.mark.parametrize(
        "number", [2, 0.5, np.float16(0.5), np.float64(0.5), np.longdouble(0.5), np.int8(2)], ids=repr
    )
    @pytest.mark.parametrize("declare", [ad.pointwise, ad.rowwise])
    def test_is_taken(self, declare: Callable[..., Any], number: Any) -> None:
        x = torch.tensor([3.0, 4.0])
        for function in (lambda x, a: x * a, lambda x, a=1.0: x + a, lambda x, a=None: x if a is None else x / a):
            torch.testing.assert_close(declare(function)(x, number), function(x, number))

    @pytest.mark.parametrize("number", [Fraction(1, 2), Decimal("0.5"), "0.5"], ids=repr)
    @pytest.mark.parametrize("declare", [ad.pointwise, ad.rowwise])
    def test_is_refused(self, declare: Callable[..., Any], number: Any) -> None:
        x = torch.tensor([3.0, 4.0])
        for function in (lambda x, a: x * a, lambda x, a=1.0: x + a, lambda x, a=None: x if a is None else a - x):
            for of in (declare(function), function):
                with pytest.raises(TypeError):
                    of(x, number)
        for function in (lambda x: torch.add(x, number), lambda x: number - x, lambda x: F.elu(x, number)):
            with pytest.raises(TypeError, match=f"{type(number).__name__}"):
                declare(function)

    @pytest.mark.parametrize("op", [ad.elu, ad.elu.derivative("input"), ad.siren.derivative("omega")], ids=repr)
    def test_a_truth_value_is_refused(self, op: Any) -> None:
        for value in (True, np.bool_(True)):
            with pytest.raises(TypeError, match=rf"torchad_ext.{op.__name__} takes a number for .*, got True"):
                op(torch.ones(2), value)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    def test_a_complex_number_makes_the_result_complex_where_the_definition_runs(self, dtype: torch.dtype) -> None:
        op, x = ad.rowwise(lambda x, a: (x * a, x.sum(-1))), torch.zeros(0, 3, dtype=dtype)
        assert [y.dtype for y in op(x, 2j)] == [torch.complex64, dtype]
        wide = op.definition(x.float(), 2j)  # PyTorch 2.14 multiplies no bfloat16 by a complex number
        assert [y.dtype for y in wide] == [torch.complex64, torch.float32]

    def test_a_refusal_says_what_to_write(self) -> None:
        for number in (Fraction(1, 2), Decimal("0.5")):
            given = rf"got {type(number).__name__}; write "
            with pytest.raises(TypeError, match=rf"torchad_ext.elu takes .* for alpha, {given}.*elu\(float\(...\)\)"):
                ad.elu(torch.ones(2), number)
            with pytest.raises(TypeError, match=rf"PyTorch takes a number, {given}float\(...\)"):
                ad.pointwise(lambda x, a=number: F.elu(x, a))

    @pytest.mark.parametrize(
        "function",
        [lambda x, a=2.0: x * (a * THIRD), lambda x, a=2.0: x + (THIRD - a), lambda x, a=2.0: x - a**THIRD],
        ids=range(3),
    )
    def test_python_computes_with_numbers_of_its_own(self, function: Callable[..., torch.Tensor]) -> None:
        """Beside a float a fraction is a float, beside an integer it is a fraction, which is no number to PyTorch."""
        op, x = ad.pointwise(function), torch.tensor([3.0, 4.0])
        for a in (2.0, 0.5):
            torch.testing.assert_close(op(x, a), function(x, a))
        assert _error(lambda: op(x, 2)) is _error(lambda: function(x, 2))

    def test_a_power_of_which_python_makes_a_number(self) -> None:
        x = torch.tensor([3.0, 4.0])
        torch.testing.assert_close(ad.pointwise(lambda x: x**THIRD)(x), x**THIRD)
        torch.testing.assert_close(ad.pointwise(lambda x, a=1.0: x**a)(x, 1 / 3), x**THIRD)


def _error(call: Callable[[], Any]) -> type[Exception] | None:
    try:
        call()
    except TypeError as error:
        return type(error)
    return None
