"""The errors of sin, exp and their derivatives: a fixed sample of what ``make ulp`` measures exhaustively."""

from __future__ import annotations

import accuracy
import pytest
import torch
from accuracy import NATIVE, Error

import torchad_ext as ad

functions = pytest.mark.parametrize(("name", "order"), [(name, order) for name in NATIVE for order in range(3)])


@functions
def test_float32_is_within_one_ulp(name: str, order: int) -> None:
    *_, (ours, _) = accuracy.exhaustive(name, order, torch.float32, step=4093)
    assert ours.ulp <= 1 and ours.wrong == 0 and ours.inputs > 10**6


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_every_float32_of_a_binade_is_within_one_ulp(name: str) -> None:
    x = torch.arange(0x40800000, 0x41000000, dtype=torch.int32).view(
        torch.float32
    )  # from 4 to 8: even and odd quadrants
    error = Error()
    error.add(x, getattr(ad, name)(x), getattr(torch, name)(x.double()))
    assert 0.5 < error.ulp < 0.95 and error.wrong == 0


@functions
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_is_correctly_rounded(name: str, order: int, dtype: torch.dtype) -> None:
    ((ours, _),) = accuracy.exhaustive(name, order, dtype)
    assert ours.ulp <= 0.5 and ours.wrong == 0 and ours.inputs == 2**16


@functions
def test_float64_is_within_one_ulp(name: str, order: int) -> None:
    for ours, _ in accuracy.float64_errors(name, order, 10**5).values():
        assert ours.ulp <= 1 and ours.wrong == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_measure_finds_a_wrong_last_digit_and_wrong_special_values(dtype: torch.dtype) -> None:
    x = torch.linspace(0.5, 1.5, 100).to(dtype)
    exact = x.double().sin()
    error = Error()
    error.add(x, exact.to(dtype), exact)
    assert error.ulp <= 0.5
    wrong = exact.to(dtype)
    wrong[7] = torch.nextafter(wrong[7], torch.zeros((), dtype=dtype))
    error.add(x, wrong, exact)
    assert 0.5 < error.ulp <= 1.5 and error.at == float(x[7])
    special = torch.tensor([torch.inf, -torch.inf, torch.nan, 1.0], dtype=torch.float64)
    error.add(x[:4], special.to(dtype), special)
    assert error.wrong == 0
    error.add(x[:4], torch.tensor([1.0, torch.inf, 1.0, torch.nan], dtype=dtype), special)
    assert error.wrong == 3 and error.ulp == torch.inf
