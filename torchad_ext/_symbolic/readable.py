"""Expressions as one would write them by hand: constants and powers gathered, like terms collected, common factors out.

These forms are for a reader. They are equal as functions of real numbers, not in rounding, and cancel what can be
cancelled (x / x = 1), so kernels are made of the expressions themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction

from .expr import Expr, _node, constant, topological

Monomial = frozenset[tuple[Expr, int]]  # factors, none of them a sum, a product or a rational number, with exponents
Polynomial = dict[Monomial, Fraction]

_TERMS = 24  # of a product that is multiplied out
_ONE: Monomial = frozenset()


def readable(expression: Expr, length: Callable[[Expr], int]) -> Expr:
    """The shortest of some forms of an expression.

    Args:
        expression: a number, not a truth value.
        length: how long a form is when it is written.
    """
    plain, expanded = (_Forms(most).polynomial(expression) for most in (1, _TERMS))
    forms = [_sum(plain), _factored(plain), _sum(expanded), _factored(expanded)]
    return min(forms, key=length)


class _Forms:
    """Polynomials in the functions that an expression is made of; products of at most ``most`` terms are expanded."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.known: dict[Expr, Polynomial] = {}

    def polynomial(self, expression: Expr) -> Polynomial:
        for node in topological([expression]):
            if node not in self.known:
                self.known[node] = self._of(node)
        return self.known[expression]

    def _of(self, node: Expr) -> Polynomial:
        args = [self.known[arg] for arg in node.args]
        match node.op:
            case "constant":
                return _number(node)
            case "tensor" | "scalar":
                return _atom(node)
            case "rounded" | "float64":
                return args[0]
            case "neg":
                return {monomial: -c for monomial, c in args[0].items()}
            case "add":
                return _added(args[0], args[1], 1)
            case "sub":
                return _added(args[0], args[1], -1)
            case "mul":
                return self._product(args[0], args[1])
            case "div":
                return self._product(args[0], _power(args[1], -1))
            case "reciprocal":
                return _power(args[0], -1)
            case "rsqrt":
                return _power(_atom(_node("sqrt", (_sum(args[0]),))), -1)
            case "pow" if (exponent := _integer(args[1])) is not None:
                return self._power(args[0], exponent)
            case "exp_minus_square":
                return self._exponential({m: -c for m, c in self._power(args[0], 2).items()})
            case "exp":
                return self._exponential(args[0])
            case "one_minus_square":
                return _added({_ONE: Fraction(1)}, self._power(args[0], 2), -1)
            case "logistic_density":
                return self._logistic_density(args[0])
            case "tanh_half":
                return self._tanh_half(args[0])
            case "where":
                return self._where(*node.args)
        return _atom(_node(node.op, tuple(map(_sum, args))))

    def _where(self, condition: Expr, *branches: Expr) -> Polynomial:
        first, second = (
            self.polynomial(_assuming(branch, condition, truth))
            for branch, truth in zip(branches, (True, False), strict=True)
        )
        if first == second:
            return first
        return _atom(_node("where", (_sum(self.known[condition]), _factored(first), _factored(second))))

    def _logistic_density(self, x: Polynomial) -> Polynomial:
        """σ'(2u) = (1 - tanh(u)²) / 4 and σ'(u) = σ(u) (1 - σ(u))"""
        if (half := _half(x)) is not None:
            return {_ONE: Fraction(1, 4), frozenset([(_node("tanh", (half,)), 2)]): Fraction(-1, 4)}
        sigma = _node("sigmoid", (_sum(x),))
        return {frozenset([(sigma, 1)]): Fraction(1), frozenset([(sigma, 2)]): Fraction(-1)}

    def _tanh_half(self, x: Polynomial) -> Polynomial:
        """tanh(u / 2) = 2 σ(u) - 1"""
        if (half := _half(x)) is not None:
            return _atom(_node("tanh", (half,)))
        return {frozenset([(_node("sigmoid", (_sum(x),)), 1)]): Fraction(2), _ONE: Fraction(-1)}

    def _exponential(self, x: Polynomial) -> Polynomial:
        return _atom(_node("exp", (_sum(x),))) if x else {_ONE: Fraction(1)}

    def _product(self, a: Polynomial, b: Polynomial) -> Polynomial:
        if min(len(a), len(b)) > 1 and len(a) * len(b) > self.most:
            a, b = _bracket(a), _bracket(b)
        result: Polynomial = {}
        for (m, c), (n, d) in ((x, y) for x in a.items() for y in b.items()):
            result = _added(result, {_multiplied(m, n): c * d}, 1)
        return result

    def _power(self, x: Polynomial, exponent: int) -> Polynomial:
        if len(x) > 1 and exponent > 1 and len(x) ** exponent <= self.most:
            result = x
            for _ in range(exponent - 1):
                result = self._product(result, x)
            return result
        return _power(x, exponent)


def _half(x: Polynomial) -> Expr | None:
    """Half of an even multiple."""
    return _sum({m: c / 2 for m, c in x.items()}) if all(c % 2 == 0 for c in x.values()) else None


def _assuming(expression: Expr, condition: Expr, truth: bool) -> Expr:
    """An expression where a condition is known to hold, or not to hold."""
    known: dict[Expr, Expr] = {}
    for node in topological([expression]):
        args = tuple(known[arg] for arg in node.args)
        decided = node.op == "where" and node.args[0] is condition
        known[node] = args[1 if truth else 2] if decided else _node(node.op, args) if args else node
    return known[expression]


def _number(node: Expr) -> Polynomial:
    """A constant, by its name where it has one."""
    value = node.number
    pi, two = constant(math.pi), constant(2.0)
    named: dict[float, tuple[Fraction | int, Expr, int]] = {
        math.pi**2: (1, pi, 2),
        2 / math.sqrt(math.pi): (2, _node("sqrt", (pi,)), -1),
        math.sqrt(math.pi) / 2: (Fraction(1, 2), _node("sqrt", (pi,)), 1),
        math.sqrt(0.5): (1, _node("sqrt", (two,)), -1),
    }
    if abs(value) in named:
        factor, atom, exponent = named[abs(value)]
        return {frozenset([(atom, exponent)]): Fraction(factor) * (1 if value > 0 else -1)}
    if not math.isfinite(value):
        return _atom(node)
    fraction = Fraction(value).limit_denominator(1000)
    if float(fraction) == value:
        return {_ONE: fraction} if fraction else {}
    return _atom(node)


def _atom(node: Expr) -> Polynomial:
    return {frozenset([(node, 1)]): Fraction(1)}


def _bracket(x: Polynomial) -> Polynomial:
    """A sum as one factor."""
    return x if len(x) < 2 else _atom(_sum(x))


def _added(a: Polynomial, b: Polynomial, sign: int) -> Polynomial:
    result = dict(a)
    for monomial, c in b.items():
        total = result.pop(monomial, Fraction(0)) + sign * c
        if total:
            result[monomial] = total
    return result


def _multiplied(m: Monomial, n: Monomial) -> Monomial:
    exponents = dict(m)
    for atom, exponent in n:
        exponents[atom] = exponents.get(atom, 0) + exponent
    for atom in [atom for atom, exponent in exponents.items() if atom.op == "sqrt" and abs(exponent) > 1]:
        exponent, inner = exponents.pop(atom), atom.args[0]
        exponents[inner] = exponents.get(inner, 0) + int(exponent / 2)
        exponents[atom] = exponent - 2 * int(exponent / 2)
    return frozenset((atom, exponent) for atom, exponent in exponents.items() if exponent)


def _power(x: Polynomial, exponent: int) -> Polynomial:
    if exponent == 0:
        return {_ONE: Fraction(1)}
    if len(x) == 1:
        ((monomial, c),) = x.items()
        return {frozenset((atom, n * exponent) for atom, n in monomial): c**exponent}
    if not x:
        return {} if exponent > 0 else {frozenset([(constant(0.0), exponent)]): Fraction(1)}
    return {frozenset([(_sum(x), exponent)]): Fraction(1)}


def _integer(x: Polynomial) -> int | None:
    if not x:
        return 0
    value = x.get(_ONE) if len(x) == 1 else None
    return value.numerator if value is not None and value.denominator == 1 and abs(value) <= 64 else None


def _factored(x: Polynomial) -> Expr:
    """The sum with the factors that all of its terms have in front."""
    if len(x) < 2:
        return _sum(x)
    terms = [dict(monomial) for monomial in x]
    shared = set(terms[0]).intersection(*terms[1:])
    common = {atom: min(term[atom] for term in terms) for atom in shared}
    content = Fraction(math.gcd(*(c.numerator for c in x.values())), math.lcm(*(c.denominator for c in x.values())))
    if not common and content == 1:
        return _sum(x)
    inverse = frozenset((atom, -exponent) for atom, exponent in common.items())
    rest = {_multiplied(monomial, inverse): c / content for monomial, c in x.items()}
    if _order_of_terms(rest)[0][1] < 0:
        rest, content = {m: -c for m, c in rest.items()}, -content
    factor = _sum(rest)
    return _product({frozenset([*common.items(), (factor, 1)]): content})


def _sum(x: Polynomial) -> Expr:
    """The terms by falling degree, a positive one first where there is one."""
    total: Expr | None = None
    for monomial, c in _order_of_terms(x):
        if total is None:
            total = _product({monomial: c})
        else:
            total = _node("add" if c > 0 else "sub", (total, _product({monomial: abs(c)})))
    return constant(0.0) if total is None else total


def _order_of_terms(x: Polynomial) -> list[tuple[Monomial, Fraction]]:
    terms = sorted(x.items(), key=lambda term: (_degree(term[0]), _text(term[0])))
    first = next((i for i, (_, c) in enumerate(terms) if c > 0), 0)
    return [terms[first], *terms[:first], *terms[first + 1 :]] if terms else []


def _degree(monomial: Monomial) -> tuple[int, int]:
    """In the tensors, then in everything, the highest first."""
    return -sum(n for atom, n in monomial if atom.op == "tensor"), -sum(n for _, n in monomial)


def _text(monomial: Monomial) -> str:
    return " ".join(f"{atom}{exponent}" for atom, exponent in sorted(monomial, key=_place))


def _place(factor: tuple[Expr, int]) -> tuple[int, str]:
    """Numbers, then symbols, then brackets, then exponentials, then other functions."""
    kinds = {"constant": 0, "scalar": 1, "tensor": 2, "add": 3, "sub": 3, "exp": 4}
    return kinds.get(factor[0].op, 5), str(factor[0])


def _product(term: Mapping[Monomial, Fraction]) -> Expr:
    """One term as a product over a product."""
    ((monomial, c),) = term.items()
    factors = sorted(monomial, key=_place)
    above = [_raised(atom, exponent) for atom, exponent in factors if exponent > 0]
    below = [_raised(atom, -exponent) for atom, exponent in factors if exponent < 0]
    size, denominator = abs(c), 1
    if below or size.denominator not in (1, 2, 4) or (size.numerator > 1 and size.denominator > 1):
        size, denominator = Fraction(size.numerator), size.denominator
    if size != 1 or not above:
        above.insert(0, constant(float(size)))
    if denominator != 1:
        below.insert(0, constant(float(denominator)))
    result = _chain(above)
    if below:
        result = _node("div", (result, _chain(below)))
    if c > 0:
        return result
    return constant(-result.number) if result.is_constant else _node("neg", (result,))


def _chain(factors: Iterable[Expr]) -> Expr:
    first, *rest = factors
    for factor in rest:
        first = _node("mul", (first, factor))
    return first


def _raised(atom: Expr, exponent: int) -> Expr:
    if exponent == 1:
        return atom
    if atom.op == "exp":  # (e^u)^n = e^(nu)
        times = {m: c * exponent for m, c in _Forms(1).polynomial(atom.args[0]).items()}
        return _node("exp", (_sum(times),))
    return _node("pow", (atom, constant(float(exponent))))
