"""Every op and its first three derivatives keep their digits over the whole range, far out and next to 0.

The points, the exact results and the scale of an error are those of ``benchmarks/tails.py``.
"""

from __future__ import annotations

from itertools import product

import mpmath
import pytest
import tails
import taylor
import torch
from selection import few
from tails import SUBJECTS, Subject

import torchad_ext as ad
from torchad_ext.ops import CATALOGUE

BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5}


def is_due(subject: Subject, dtype: torch.dtype) -> bool:
    """float64 for the catalogue, whose kernels other tests compile too, and float32 for every third of the others."""
    if subject.name in CATALOGUE:
        return dtype == torch.float64
    return dtype == torch.float32 and SUBJECTS.index(subject) % 3 == 0


def named(x: Subject | torch.dtype) -> str:
    return x.name if isinstance(x, Subject) else str(x)


@pytest.mark.parametrize(("subject", "dtype"), few(product(SUBJECTS, BOUNDS), is_due), ids=named)
def test_relative_error_over_the_whole_range(subject: Subject, dtype: torch.dtype) -> None:
    for order, (ours, _) in enumerate(tails.errors(subject, dtype, 12)):
        assert ours.relative <= BOUNDS[dtype], f"order {order} at {ours.at!r}: {ours.relative:.1e}"


def test_the_whole_catalogue_is_measured() -> None:
    assert CATALOGUE.keys() <= {subject.name for subject in SUBJECTS}


def test_the_measure_finds_a_slope_that_cancels() -> None:
    """The derivative of tanh by PyTorch, 1 - y^2, has no digit left from 20 on."""
    (subject,) = (each for each in SUBJECTS if each.name == "tanh")
    _, (_, native), *_ = tails.errors(subject, torch.float64, 12)
    assert native.relative > 0.1


@pytest.mark.parametrize("x", [0.7, -3.1])
def test_power_series_have_the_derivatives_that_mpmath_finds_by_differences(x: float) -> None:
    with mpmath.workdps(40):
        for exact, plain in (
            (taylor.tanh, mpmath.tanh),
            (taylor.ndtr, mpmath.ncdf),
            (lambda u: taylor.log(1 + taylor.exp(u)), lambda v: mpmath.log(1 + mpmath.exp(v))),
            (lambda u: taylor.sin(u) / u, lambda v: mpmath.sin(v) / v),
            (lambda u: taylor.power(u * u, 1.25), lambda v: abs(v) ** 2.5),
            (lambda u: 1 - u * taylor.erf(2 * u), lambda v: 1 - v * mpmath.erf(2 * v)),
        ):
            found = exact(taylor.variable(x)).derivatives
            expected = [mpmath.diff(plain, x, n) for n in range(taylor.ORDER + 1)]
            assert all(mpmath.almosteq(a, b, 1e-15) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_the_schnet_activation_is_exactly_zero_at_zero(dtype: torch.dtype, device: str) -> None:
    x = torch.zeros(3, dtype=dtype, device=device)
    for op in (ad.shifted_softplus, ad.shifted_softplus.definition):
        assert torch.equal(op(x), x)


def test_definitions_are_as_good_as_the_kernels_of_their_values() -> None:
    def error(result: torch.Tensor, exact: list[float]) -> float:
        return max(abs(a - b) / abs(b) for a, b in zip(result.tolist(), exact, strict=True))

    x = torch.tensor([-30.0, -1e-9, 1e-14, 1e-5, 0.9, 1.1, 25.0, 800.0], dtype=torch.float64)
    with mpmath.workdps(400):
        exact = [float(mpmath.log((mpmath.exp(v) + 1) / 2)) for v in x.tolist()]
    assert error(ad.shifted_softplus.definition(x), exact) < 1e-15
    r = torch.tensor([0.1, 2.4, 2.6, 4.9, 4.9999, 5 - 1e-9], dtype=torch.float64)
    with mpmath.workdps(60):
        us = [mpmath.mpf(v) / 5 for v in r.tolist()]
        exact = [float(1 - 28 * u**6 + 48 * u**7 - 21 * u**8) for u in us]
    assert error(ad.polynomial_cutoff.definition(r), exact) < 1e-14
