"""Exact derivatives of formulas: power series of three terms beyond the first, with coefficients of mpmath."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Union

import mpmath
from mpmath import mpf

ORDER = 3
Number = Union["Series", float, mpf]


class Series:
    """The Taylor polynomial of a function at a point: coefficient k is the k-th derivative over k!."""

    def __init__(self, terms: Sequence[mpf]) -> None:
        self.terms = [*terms, *[mpf(0)] * (ORDER + 1 - len(terms))]

    @property
    def derivatives(self) -> list[mpf]:
        """Of orders 0 to ORDER."""
        return [c * mpmath.factorial(k) for k, c in enumerate(self.terms)]

    def __add__(self, other: Number) -> Series:
        return Series([a + b for a, b in zip(self.terms, series(other).terms, strict=True)])

    def __neg__(self) -> Series:
        return Series([-a for a in self.terms])

    def __sub__(self, other: Number) -> Series:
        return self + -series(other)

    def __mul__(self, other: Number) -> Series:
        b = series(other).terms
        return Series([mpmath.fdot(self.terms[: k + 1], b[k::-1]) for k in range(ORDER + 1)])

    def __truediv__(self, other: Number) -> Series:
        b = series(other).terms
        quotient: list[mpf] = []
        for k in range(ORDER + 1):
            quotient.append((self.terms[k] - mpmath.fdot(quotient, b[k:0:-1])) / b[0])
        return Series(quotient)

    def __radd__(self, other: Number) -> Series:
        return self + other

    def __rsub__(self, other: Number) -> Series:
        return series(other) - self

    def __rmul__(self, other: Number) -> Series:
        return self * other

    def __rtruediv__(self, other: Number) -> Series:
        return series(other) / self

    def __pow__(self, n: int) -> Series:
        result = series(1)
        for _ in range(n):
            result = result * self
        return result


def series(x: Number) -> Series:
    return x if isinstance(x, Series) else Series([mpf(x)])


def variable(x: float) -> Series:
    return Series([mpf(x), mpf(1)])


def antiderivative(value: mpf, slope: Series, u: Series) -> Series:
    """f(u) from its value at the point and the series of f'(u)."""
    product = (slope * Series([k * c for k, c in enumerate(u.terms)][1:])).terms
    return Series([value, *(product[k - 1] / k for k in range(1, ORDER + 1))])


def exp(u: Series) -> Series:
    terms = [mpmath.exp(u.terms[0])]
    for k in range(1, ORDER + 1):
        terms.append(mpmath.fsum(j * u.terms[j] * terms[k - j] for j in range(1, k + 1)) / k)
    return Series(terms)


def power(u: Series, p: float | mpf) -> Series:
    """u^p for u > 0."""
    a, terms = u.terms, [u.terms[0] ** mpf(p)]
    for k in range(1, ORDER + 1):
        terms.append(mpmath.fsum((p * j - k + j) * a[j] * terms[k - j] for j in range(1, k + 1)) / (k * a[0]))
    return Series(terms)


def by_slope(function: Callable[[mpf], mpf], slope: Callable[[Series], Series]) -> Callable[[Series], Series]:
    """A function of series from one of numbers and its derivative."""
    return lambda u: antiderivative(function(u.terms[0]), slope(u), u)


def _shifted_sine(u: Series, quarters: int) -> Series:
    s, c = mpmath.sin(u.terms[0]), mpmath.cos(u.terms[0])
    at = [(s, c, -s, -c)[(quarters + k) % 4] / mpmath.factorial(k) for k in range(ORDER + 1)]
    step, result = Series([mpf(0), *u.terms[1:]]), series(0)
    for c in reversed(at):
        result = result * step + c
    return result


def sin(u: Series) -> Series:
    return _shifted_sine(u, 0)


def cos(u: Series) -> Series:
    return _shifted_sine(u, 1)


def sigmoid(u: Series) -> Series:
    return 1 / (1 + exp(-u))


def tanh(u: Series) -> Series:
    return 1 - 2 / (1 + exp(2 * u))


def gaussian(u: Series) -> Series:
    return exp(-1 * u * u)


log = by_slope(mpmath.log, lambda u: 1 / u)
log1p = by_slope(mpmath.log1p, lambda u: 1 / (1 + u))
erf = by_slope(mpmath.erf, lambda u: 2 / mpmath.sqrt(mpmath.pi) * gaussian(u))
erfc = by_slope(mpmath.erfc, lambda u: -2 / mpmath.sqrt(mpmath.pi) * gaussian(u))
asin = by_slope(mpmath.asin, lambda u: power(1 - u * u, mpf(-0.5)))
acos = by_slope(mpmath.acos, lambda u: -power(1 - u * u, mpf(-0.5)))
acosh = by_slope(mpmath.acosh, lambda u: power(u * u - 1, mpf(-0.5)))
atanh = by_slope(mpmath.atanh, lambda u: 1 / (1 - u * u))


def ndtr(u: Series) -> Series:
    """The normal distribution function."""
    return erfc(-1 * u / mpmath.sqrt(2)) / 2
