"""Programs: functions of several expressions, closed under ``vjp`` (reverse mode over the graph) and ``jvp`` (forward
mode, by the same derivatives)."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from .differentiation import pullback, pushforward, total
from .expr import OPERATIONS, Expr, column, constant, make, row, tensor, topological
from .jet_algebra import JetAlgebra, jet_algebra
from .softmaxes import softmaxes, with_known

_POLES = frozenset("div reciprocal rsqrt polygamma".split())
_FEW_OPERATIONS = 64  # of a quotient whose factors are looked for
_HIGHEST_POWER = 4  # in it
_QUICK = frozenset("add sub mul neg".split())  # computed again from known operands
_SYMBOL = {"tensor": tensor, "row": row, "column": column}


def _unique(name: str, taken: Iterable[str]) -> str:
    taken = set(taken)
    candidates = (name if i == 1 else f"{name}{i}" for i in range(1, len(taken) + 2))
    return next(candidate for candidate in candidates if candidate not in taken)


def _of_squares(
    curvature: Expr,
    slopes: Mapping[Expr, Expr],
    tangents: Mapping[Expr, Sequence[Expr]],
    inputs: tuple[Expr, Expr],
    signs: Sequence[int],
) -> Expr:
    """f_ab Σ_k ±x_a,k x_b,k"""
    if not _has_pole(curvature):
        pairs = zip(signs, tangents[inputs[0]], tangents[inputs[1]], strict=True)
        return curvature * functools.reduce(operator.add, [s * (u * v) for s, u, v in pairs])
    for a, b in (inputs, inputs[::-1]):
        if a in slopes and (quotient := _quotient(curvature, slopes[a])) is not None:
            pairs = zip(signs, tangents[a], tangents[b], strict=True)
            return functools.reduce(operator.add, [s * (quotient * v * (slopes[a] * u)) for s, u, v in pairs])
    pairs = zip(signs, tangents[inputs[0]], tangents[inputs[1]], strict=True)
    return functools.reduce(operator.add, [s * (curvature * u * v) for s, u, v in pairs])


def _has_pole(x: Expr) -> bool:
    """May an expression be large although its operands are not?"""
    return any(
        node.op in _POLES or (node.op == "pow" and not (node.args[1].is_constant and node.args[1].number >= 0))
        for node in topological([x])
    )


def _quotient(x: Expr, y: Expr) -> Expr | None:
    """x / y where all factors of y, and all its denominators, are among those of x; None elsewhere."""
    if len(topological([x, y])) > _FEW_OPERATIONS:
        return None
    (c, of_x), (d, of_y) = _factors(x), _factors(y)
    if not c or not d or not math.isfinite(c / d):
        return None
    if any(n * of_x.get(base, 0.0) <= 0 or abs(n) > abs(of_x[base]) for base, n in of_y.items()):
        return None
    rest = {base: n - of_y.get(base, 0.0) for base, n in of_x.items() if n != of_y.get(base, 0.0)}
    if not all(n.is_integer() and abs(n) <= _HIGHEST_POWER for n in rest.values()):
        return None
    times = {n / of_y.get(base, math.inf) for base, n in rest.items()}
    if rest.keys() == of_y.keys() and len(times) == 1 and (power := times.pop()).is_integer():  # of roots: x / y = c y²
        return math.prod([y] * int(power), start=constant(c / d ** (power + 1)))
    powers = [[base if n > 0 else constant(1) / base] * int(abs(n)) for base, n in rest.items()]
    return math.prod(itertools.chain(*powers), start=constant(c / d))


def _factors(x: Expr) -> tuple[float, dict[Expr, float]]:
    """A number, and the other factors of an expression with their powers."""
    known: dict[Expr, tuple[float, dict[Expr, float]]] = {}
    for node in topological([x]):
        factors: dict[Expr, float] = {}
        if node.is_constant:
            known[node] = node.number, factors
        elif node.op in ("neg", "mul", "div"):
            number = -1.0 if node.op == "neg" else 1.0
            for arg, sign in zip(node.args, (1, -1 if node.op == "div" else 1), strict=False):
                c, of_arg = known[arg]
                number = number * c if sign == 1 else number / c if c else math.nan
                for base, n in of_arg.items():
                    factors[base] = factors.get(base, 0.0) + sign * n
            known[node] = number, {base: n for base, n in factors.items() if n}
        elif node.op == "pow" and node.args[1].is_constant:
            known[node] = 1.0, {node.args[0]: node.args[1].number}
        else:
            known[node] = 1.0, {node: 1.0}
    return known[x]


def _product(u: Mapping[int, Expr], v: Mapping[int, Expr], algebra: JetAlgebra) -> dict[int, Expr]:
    """The numbers after the value of a product of jets whose values are zero."""
    product: dict[int, Expr] = {}
    for a, triples in enumerate(algebra.products):
        terms: dict[Expr, float] = {}
        for weight, b, c in triples:
            if b in u and c in v:
                terms[u[b] * v[c]] = terms.get(u[b] * v[c], 0.0) + weight
        if terms:
            product[a] = functools.reduce(operator.add, (weight * term for term, weight in terms.items()))
    return product


def _taylor_terms(
    y: Expr, deltas: Mapping[Expr, Mapping[int, Expr]], algebra: JetAlgebra
) -> Iterator[tuple[Expr, Mapping[int, Expr]]]:
    """The derivatives f_κ / κ! of y with the powers δ^κ of the jets of its inputs."""
    inputs = list(deltas)
    level: list[tuple[Expr, int, int, Mapping[int, Expr] | None]] = [(y, 0, 0, None)]
    while level:
        higher: list[tuple[Expr, int, int, Mapping[int, Expr] | None]] = []
        for slope, first, repeated, power in level:
            for i, x in enumerate(inputs[first:], first):
                f = pushforward([slope], {x: constant(1)})[0]
                of = deltas[x] if power is None else _product(power, deltas[x], algebra)
                if f is not None and of:
                    times = repeated + 1 if i == first else 1
                    f = f * (1 / times) if times > 1 else f
                    yield f, of
                    higher.append((f, i, times, of))
        level = higher


def _of_operation(node: Expr, deltas: Mapping[Expr, Mapping[int, Expr]], algebra: JetAlgebra) -> dict[int, Expr]:
    """The numbers after the value of one operation, from those of its operands."""
    numbers: dict[int, Expr] = {}
    if OPERATIONS[node.op].reduction:  # linear
        for b, x in deltas[node.args[0]].items():
            if (of_row := pushforward([node], {node.args[0]: x})[0]) is not None:
                numbers[b] = of_row
        return numbers
    symbols = {arg: (row if arg.is_row else tensor)(f"operand {i}") for i, arg in enumerate(deltas)}
    operand = {symbol: arg for arg, symbol in symbols.items()}
    alone = make(node.op, *(symbols.get(arg, arg) for arg in node.args))
    for slope, power in _taylor_terms(alone, {symbols[arg]: of for arg, of in deltas.items()}, algebra):
        known: dict[Expr, Expr] = {}
        for part in topological([slope]):
            known[part] = make(part.op, *(known[x] for x in part.args)) if part.args else operand.get(part, part)
        for b, number in power.items():
            term = known[slope] * number
            numbers[b] = numbers[b] + term if b in numbers else term
    return numbers


def _without_norms(outputs: Iterable[Expr]) -> list[Expr]:
    """The outputs with roots of sums of squares, of no slope at 0, in place of norms."""
    known: dict[Expr, Expr] = {}
    outputs = list(outputs)
    for node in topological(outputs):
        known[node] = make(node.op, *(known[arg] for arg in node.args)) if node.args else node
        if node.op == "row_norm":
            x = known[node.args[0]]
            square = make("row_sum", x * x)
            is_zero = make("eq", square, 0)
            root = make("sqrt", make("where", is_zero, 1, square))
            known[node] = root * make("where", is_zero, 0, 1)
    return [known[y] for y in outputs]


def propagated(
    outputs: Sequence[Expr], deltas: Mapping[Expr, Mapping[int, Expr]], algebra: JetAlgebra
) -> list[Mapping[int, Expr]]:
    """The numbers after the value of each output, operation by operation, from those of the inputs that have some."""
    known = dict(deltas)
    outputs = _without_norms(outputs)
    for node in topological(outputs):
        if node in known or not node.args or OPERATIONS[node.op].derivative is None:
            continue
        given = {arg: known[arg] for arg in node.args if known.get(arg)}
        if given:
            known[node] = _of_operation(node, given, algebra)
    return [known.get(y, {}) for y in outputs]


@dataclass(frozen=True)
class Program:
    """Several expressions in the same symbols: what a kernel computes.

    Attributes:
        inputs: the symbols of the tensors, in the order of the kernel's arguments.
        scalars: the symbols of the numbers that follow them.
        outputs: the expressions.
        names: a name for each output.
        kinds: of each output, ``"tensor"`` for a value an element, ``"row"`` for one a row, ``"column"`` for the sum
            over all rows; empty if all are the first.
    """

    inputs: tuple[Expr, ...]
    scalars: tuple[Expr, ...]
    outputs: tuple[Expr, ...]
    names: tuple[str, ...]
    kinds: tuple[str, ...] = ()

    def vjp(self, wanted: Sequence[bool], given: Sequence[bool]) -> ProgramDerivative:
        """The gradients of the wanted inputs, for cotangents of the given outputs."""
        seeds = self._symbols("grad_", self.names, self.kinds)
        targets = [x for x, w in zip(self.inputs, wanted, strict=True) if w]
        cotangents = (
            (output, total(seed) if output.is_row and not seed.is_row else seed)
            for output, seed, is_given in zip(self.outputs, seeds, given, strict=True)
            if is_given
        )
        gradients = pullback(cotangents, targets)
        results = {f"grad_{x.value}": gradients.get(x) for x in self.inputs if x in targets}
        kinds = [x.op for x in targets]
        return self._derivative([s for s, is_given in zip(seeds, given, strict=True) if is_given], results, kinds)

    def jvp(self, given: Sequence[bool]) -> ProgramDerivative:
        """The tangents of the outputs, for tangents of the given inputs."""
        seeds = self._symbols("tangent_", [str(x.value) for x in self.inputs], [x.op for x in self.inputs])
        tangents = {x: seed for x, seed, is_given in zip(self.inputs, seeds, given, strict=True) if is_given}
        results = dict(
            zip((f"tangent_{name}" for name in self.names), pushforward(self.outputs, tangents), strict=True)
        )
        given_seeds = [s for s, is_given in zip(seeds, given, strict=True) if is_given]
        return self._derivative(given_seeds, results, self.kinds)

    def laplacian(self, carried: Sequence[int], signs: Sequence[int]) -> ProgramDerivative:
        """The outputs y, their tangents y_k along some directions and their Laplacians Δy, from those of the inputs.

        y_k = Σ_a f_a x_a,k and Δy = Σ_a f_a Δx_a + Σ_ab f_ab Σ_k ±x_a,k x_b,k with the derivatives f_a and f_ab.

        Where f_ab has a pole, the squares of small x_a,k underflow and f_ab overflows, although Δy does neither. So f_a
        is taken out of f_ab if it is a factor, and the rest multiplies x_b,k: of log x the sum is Σ_k ∓(x_k / x) y_k.

        Args:
            carried: of each input, 0 for a constant, 1 if its tangents are given, 2 if its Laplacian is as well.
            signs: of the squares of the directions, 1 or -1.
        """
        if self._is_of_rows:
            return self._laplacian_of_rows(carried, signs)
        count = len(signs)
        prefixes = [*(f"tangent{k}_" for k in range(count)), "laplacian_"]
        keys = [(x, prefix) for x in self.inputs for prefix in prefixes]
        symbols = dict(zip(keys, self._symbols("", [f"{prefix}{x.value}" for x, prefix in keys]), strict=True))
        orders = dict(zip(self.inputs, carried, strict=True))
        tangents = {x: [symbols[x, prefix] for prefix in prefixes[:-1]] for x, order in orders.items() if order}
        laplacians = {x: symbols[x, "laplacian_"] for x, order in orders.items() if order == 2}
        seeds = [s for x in tangents for s in (*tangents[x], *([laplacians[x]] if x in laplacians else []))]
        one = constant(1)
        results: dict[str, Expr | None] = {}
        for name, y in zip(self.names, self.outputs, strict=True):
            slopes = {x: f for x in tangents if (f := pushforward([y], {x: one})[0]) is not None}
            terms = [f * laplacians[a] for a, f in slopes.items() if a in laplacians]
            for (a, slope), b in itertools.product(slopes.items(), tangents):
                if (curvature := pushforward([slope], {b: one})[0]) is not None:
                    terms.append(_of_squares(curvature, slopes, tangents, (a, b), signs))
            results[f"value_{name}"] = y
            for k in range(count):
                along = [f * tangents[a][k] for a, f in slopes.items()]
                results[f"tangent{k}_{name}"] = functools.reduce(operator.add, along) if along else None
            results[f"laplacian_{name}"] = functools.reduce(operator.add, terms) if terms else None
        return self._derivative(seeds, results)

    def partials(self, carried: Sequence[Sequence[bool]], algebra: JetAlgebra) -> ProgramDerivative:
        """The outputs with their other numbers of a jet, from those of the inputs.

        With the numbers δ of x - x(0), f(x) = Σ_κ f_κ(x(0)) / κ! δ^κ for the derivatives f_κ in the inputs; δ is
        nilpotent, so that the sum ends with the order of the algebra.

        Args:
            carried: of each input, which of its numbers after the value are given; the others are zero.
            algebra: says which numbers there are, and those of a product.
        """
        rows = range(1, len(algebra))
        keys = [(x, b) for x, given in zip(self.inputs, carried, strict=True) for b in rows if given[b - 1]]
        seeds = self._symbols("", [f"d{b}_{x.value}" for x, b in keys], [x.op for x, _ in keys])
        deltas: dict[Expr, dict[int, Expr]] = {}
        for (x, b), seed in zip(keys, seeds, strict=True):
            deltas.setdefault(x, {})[b] = seed
        results: dict[str, Expr | None] = {}
        if self._is_of_rows:
            return self._propagated(seeds, deltas, algebra, [f"d{b}" for b in rows])
        for name, y in zip(self.names, self.outputs, strict=True):
            terms: dict[int, Expr] = {}
            for slope, power in _taylor_terms(y, deltas, algebra):
                for b, number in power.items():
                    terms[b] = terms[b] + slope * number if b in terms else slope * number
            results[f"value_{name}"] = y
            results |= {f"d{b}_{name}": terms.get(b) for b in rows}
        return self._derivative(seeds, results)

    def shared(self, derivative: Program, known: Iterable[Expr]) -> list[Expr]:
        """The values that a derivative needs and that are known, or that this program computes anyway: values of the
        row made of sums over it, and each output that is a softmax."""
        own = topological(self.outputs)
        summed: set[Expr] = set()
        for node in own:
            if (node.op in OPERATIONS and OPERATIONS[node.op].reduction) or any(arg in summed for arg in node.args):
                summed.add(node)
        of_softmaxes = softmaxes((*self.outputs, *known))
        shared = {node for node in own if node in summed and node.is_row and not node.is_mask}
        shared |= {y for y, _ in of_softmaxes.values()} | set(known)
        found: dict[Expr, None] = {}
        seen: set[Expr] = set()
        stack = list(derivative.outputs)
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if node in shared:
                found[node] = None
            else:
                stack.extend(of_softmaxes.get(node, node.args))
        return [node for node in found if node.op not in _QUICK or not found.keys() >= set(node.args)]

    @property
    def _is_of_rows(self) -> bool:
        """Are its functions of rows, and of no elements alone?"""
        nodes = (*self.inputs, *topological(self.outputs))
        return any(node.is_row or node.op == "column" for node in nodes)

    def _propagated(
        self,
        seeds: Sequence[Expr],
        deltas: Mapping[Expr, Mapping[int, Expr]],
        algebra: JetAlgebra,
        names: Sequence[str],
        scales: Sequence[float] = (),
    ) -> ProgramDerivative:
        """The outputs and their numbers, each times a scale."""
        results: dict[str, Expr | None] = {}
        for name, y, numbers in zip(self.names, self.outputs, propagated(self.outputs, deltas, algebra), strict=True):
            results[f"value_{name}"] = y
            for b, prefix in enumerate(names, 1):
                number = numbers.get(b)
                scale = scales[b - 1] if scales else 1.0
                results[f"{prefix}_{name}"] = number if number is None or scale == 1 else scale * number
        kinds = self.kinds or ("tensor",) * len(self.outputs)
        return self._derivative(seeds, results, [kind for kind in kinds for _ in range(len(algebra))])

    def _laplacian_of_rows(self, carried: Sequence[int], signs: Sequence[int]) -> ProgramDerivative:
        """The Laplacian as one number of a jet beside the tangents: Σ ±D_2 of the directions, half of it."""
        count = len(signs)
        twice = [tuple(2 * (i == k) for i in range(count)) for k in range(count)]
        algebra = jet_algebra([dict(zip(twice, map(Fraction, signs), strict=True))], count)
        names = [*(f"tangent{k}" for k in range(count)), "laplacian"]
        keys = [(x, b) for x, order in zip(self.inputs, carried, strict=True) for b in range(1, count + order) if order]
        seeds = self._symbols("", [f"{names[b - 1]}_{x.value}" for x, b in keys], [x.op for x, _ in keys])
        deltas: dict[Expr, dict[int, Expr]] = {}
        for (x, b), seed in zip(keys, seeds, strict=True):
            deltas.setdefault(x, {})[b] = seed if b <= count else 0.5 * signs[0] * seed
        return self._propagated(seeds, deltas, algebra, names, [1.0] * count + [2.0 * signs[0]])

    def recording(self, known: Sequence[Expr], kept: Sequence[Expr]) -> tuple[Program, tuple[int, ...]]:
        """The program with some values as operands instead of computing them, and with values of the row as results.

        Args:
            known: values that are given, as operands after the inputs.
            kept: values of the row that become results after the outputs.

        Returns:
            The program, and the places of its operands among the inputs and ``known``: those that it still needs.
        """
        kinds = ["row" if node.is_row else "tensor" for node in known]
        given = self._symbols("kept_", [str(i) for i in range(len(known))], kinds)
        outputs = with_known((*self.outputs, *kept), dict(zip(known, given, strict=True)))
        occurring = set(topological(outputs))
        operands = (*self.inputs, *given)
        used = tuple(i for i, x in enumerate(operands) if x in occurring) or (0,)[: len(operands)]
        program = Program(
            tuple(operands[i] for i in used),
            self.scalars,
            outputs,
            (*self.names, *(f"kept_{i}" for i in range(len(kept)))),
            (*(self.kinds or ("tensor",) * len(self.outputs)), *("row" for _ in kept)),
        )
        return program, used

    def _symbols(self, prefix: str, names: Sequence[str], kinds: Sequence[str] = ()) -> list[Expr]:
        taken = [str(x.value) for x in (*self.inputs, *self.scalars)]
        symbols = []
        for name, kind in zip(names, kinds or ["tensor"] * len(names), strict=True):
            taken.append(_unique(prefix + name, taken))
            symbols.append(_SYMBOL[kind](taken[-1]))
        return symbols

    def _derivative(
        self, seeds: Sequence[Expr], results: dict[str, Expr | None], kinds: Sequence[str] = ()
    ) -> ProgramDerivative:
        arguments = (*self.inputs, *seeds)
        outputs = {name: result for name, result in results.items() if result is not None}
        wanted = tuple(kinds) or ("tensor",) * len(results)
        occurring = set(topological(outputs.values()))
        used = tuple(i for i, x in enumerate(arguments) if x in occurring)
        program = Program(
            tuple(arguments[i] for i in used),
            tuple(x for x in self.scalars if x in occurring),
            tuple(outputs.values()),
            tuple(outputs),
            tuple(kind for kind, result in zip(wanted, results.values(), strict=True) if result is not None),
        )
        return ProgramDerivative(
            program,
            used,
            tuple(i for i, x in enumerate(self.scalars) if x in occurring),
            tuple(i for i, result in enumerate(results.values()) if result is not None),
            wanted,
        )

    def __len__(self) -> int:
        """The number of operations."""
        return sum(bool(node.args) for node in topological(self.outputs))


@dataclass(frozen=True)
class ProgramDerivative:
    """A derivative of a program, reduced to what is not zero.

    Attributes:
        program: computes the results that are not zero from the arguments that they depend on.
        arguments: which of (the inputs, the given cotangents or tangents) its inputs are.
        scalars: which of the scalars its scalars are.
        results: which of the wanted results its outputs are; the others are zero.
        kinds: of each wanted result.
    """

    program: Program
    arguments: tuple[int, ...]
    scalars: tuple[int, ...]
    results: tuple[int, ...]
    kinds: tuple[str, ...]
