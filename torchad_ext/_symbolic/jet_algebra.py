"""Jet algebras: which numbers travel through a program so that the partial derivatives that are wanted come out.

A jet of a function u at a point is the list of its numbers p(u), for some functionals p = Σ_α w_α D_α with the Taylor
coefficients D_α = ∂^α / α!. The product of functions has

    D_α(u v) = Σ_{β + γ = α} D_β(u) D_γ(v),

so a set of functionals is closed if it holds, with D_α, the contractions D_{α - e_i}. A sum travels as one number: of
the wave operator ∂_tt - c² (∂_xx + ∂_yy) the contractions are ∂_t, ∂_x, ∂_y and 1, so that five numbers are enough, and
of the bilaplacian in the plane the contractions are spanned by 9 functionals, 1, ∂_x, ∂_y, ∂_xx, ∂_xy, ∂_yy, ∂_x Δ,
∂_y Δ and Δ² (the space of contractions of a polynomial, Macaulay's inverse system).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

Index = tuple[int, ...]  # how often to differentiate in each coordinate
Functional = Mapping[Index, Fraction]  # Σ_α w_α D_α


@dataclass(frozen=True)
class JetAlgebra:
    """A basis of a closed set of functionals, the value first.

    Attributes:
        basis: the functionals, each as pairs of an index and its weight. Each has a pivot, an index that the others do
            not have, with the weight 1.
        pivots: these indices.
        products: for each functional p_a the triples (C, b, c) of p_a(u v) = Σ C p_b(u) p_c(v).
    """

    basis: tuple[tuple[tuple[Index, Fraction], ...], ...]
    pivots: tuple[Index, ...]
    products: tuple[tuple[tuple[float, int, int], ...], ...]

    def __len__(self) -> int:
        return len(self.basis)

    @property
    def order(self) -> int:
        """The highest order of its derivatives."""
        return max(sum(index) for functional in self.basis for index, _ in functional)

    def coordinates(self, functional: Functional) -> dict[int, float]:
        """The weights c_b of a functional of the set, Σ_b c_b p_b."""
        return {b: float(functional[pivot]) for b, pivot in enumerate(self.pivots) if functional.get(pivot)}


def derivative(index: Index) -> dict[Index, Fraction]:
    """The functional ∂^α = α! D_α."""
    return {index: Fraction(math.prod(map(math.factorial, index)))}


def total(functionals: Iterable[tuple[Fraction, Functional]]) -> dict[Index, Fraction]:
    """A weighted sum of functionals."""
    weights: dict[Index, Fraction] = {}
    for factor, functional in functionals:
        for index, weight in functional.items():
            weights[index] = weights.get(index, Fraction(0)) + factor * weight
    return {index: weight for index, weight in weights.items() if weight}


def _contracted(functional: Functional, i: int) -> dict[Index, Fraction]:
    """D_{α - e_i} in place of D_α."""
    return {(*index[:i], index[i] - 1, *index[i + 1 :]): w for index, w in functional.items() if index[i]}


def jet_algebra(functionals: Iterable[Functional], coordinates: int) -> JetAlgebra:
    """The smallest closed set with the value and some functionals of a function of so many coordinates."""
    return _jet_algebra(tuple(tuple(sorted(functional.items())) for functional in functionals), coordinates)


@functools.lru_cache(1024)
def _jet_algebra(functionals: tuple[tuple[tuple[Index, Fraction], ...], ...], coordinates: int) -> JetAlgebra:
    reduced: dict[Index, dict[Index, Fraction]] = {}  # by pivot: the reduced row echelon form
    value = (0,) * coordinates
    waiting: list[Functional] = [{value: Fraction(1)}, *map(dict, functionals)]
    while waiting:
        functional = waiting.pop(0)
        rest = total([(Fraction(1), functional), *((-functional.get(a, Fraction(0)), p) for a, p in reduced.items())])
        if not rest:
            continue
        pivot = min(rest, key=lambda index: (sum(index), tuple(-n for n in index)))
        added = {index: weight / rest[pivot] for index, weight in rest.items()}
        for a, p in reduced.items():
            reduced[a] = total([(Fraction(1), p), (-p.get(pivot, Fraction(0)), added)])
        reduced[pivot] = added
        waiting += [_contracted(rest, i) for i in range(coordinates)]
    pivots = sorted(reduced, key=lambda index: (sum(index), tuple(-n for n in index)))
    products = []
    for pivot in pivots:
        # The coefficient of D_β ⊗ D_γ is w_{β + γ}; a tensor product p_b ⊗ p_c shows at its two pivots.
        functional, triples = reduced[pivot], []
        for b, beta in enumerate(pivots):
            for c, gamma in enumerate(pivots):
                if weight := functional.get(tuple(map(sum, zip(beta, gamma, strict=True)))):
                    triples.append((float(weight), b, c))
        products.append(tuple(triples))
    return JetAlgebra(tuple(tuple(reduced[a].items()) for a in pivots), tuple(pivots), tuple(products))
