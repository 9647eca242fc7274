"""A program of rows as passes over a row: which sums belong to one pass, and what each pass computes.

A sum needs those that its terms depend on, so a row is read once for each level of sums and once more for the outputs.
Between two passes the values of the row that the next ones need are computed. Each of these parts is a program of
elements, whose symbols stand for operands, for values of the row and for values that an earlier pass kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from .cpp import lower
from .expr import OPERATIONS, SYMBOLS, Expr, make, scalar, tensor, topological
from .program import Program

# Computed again in each pass: loading them would take as long.
_CHEAP = frozenset("add sub mul neg abs where maximum minimum clamp_min clamp_max detach rounded copysign sign".split())

_STEMS = {"row_sum": "sum", "row_amax": "max", "row_amin": "min"}  # of names for their results


@dataclass(frozen=True)
class Part:
    """A program of elements.

    Attributes:
        program: its inputs stand for values in ``arguments``.
        arguments: the places of its inputs among the values of :class:`Passes`.
    """

    program: Program
    arguments: tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """A pass over the row, and what follows from its sums.

    Attributes:
        terms: what is reduced, and after that what later passes keep; None before the first pass.
        reductions: how each term is reduced.
        reduced_at: the place of the first result, in a row.
        kept_at: the place of the first kept value.
        row: values of the row that follow; None if there are none.
        row_at: the place of the first of them.
    """

    terms: Part | None
    reductions: str
    reduced_at: int
    kept_at: int
    row: Part | None
    row_at: int


@dataclass(frozen=True)
class Passes:
    """A program as passes over a row.

    Its values stand in one list: the operands of every kind, values of the row, values kept from pass to pass.

    Attributes:
        stages: the passes, led by one without terms.
        elements: the outputs with a value an element or to be summed over all rows, in order; None if there are none.
        row_outputs: the places of the outputs with a value a row, in order.
        values: how many values of the row there are beside the operands.
        kept: how many values are kept.
    """

    stages: tuple[Stage, ...]
    elements: Part | None
    row_outputs: tuple[int, ...]
    values: int
    kept: int


def _levels(order: Iterable[Expr]) -> dict[Expr, int]:
    """How many sums stand one under another below each node."""
    levels: dict[Expr, int] = {}
    for node in order:
        levels[node] = max((levels[arg] for arg in node.args), default=0) + _reduces(node)
    return levels


def _reduces(node: Expr) -> bool:
    return node.op in OPERATIONS and bool(OPERATIONS[node.op].reduction)


def _below(roots: Iterable[Expr], ends: set[Expr]) -> list[Expr]:
    """The nodes below some roots, each after its operands, without what lies below ``ends``."""
    order: dict[Expr, None] = {}
    stack = [(root, False) for root in roots]
    while stack:
        node, entered = stack.pop()
        if entered or (node in ends and node not in order):
            order[node] = None
        elif node not in order:
            stack.append((node, True))
            stack.extend((arg, False) for arg in node.args if arg not in order)
    return list(order)


def _is_stored(node: Expr) -> bool:
    """Is it a value of the row that has a place, as truth values, operands and numbers have not?"""
    return node.is_row and not node.is_mask and bool(node.args)


def split(program: Program, dtype: str) -> Passes:
    """The passes of a program for tensors of a dtype."""
    kinds = program.kinds or ("tensor",) * len(program.outputs)
    program = replace(program, outputs=lower(program, dtype), kinds=kinds)
    order = topological(program.outputs)
    levels = _levels(order)
    last = max((levels[node] for node in order if _reduces(node)), default=0)
    reductions = [[n for n in order if _reduces(n) and levels[n] == level] for level in range(last + 1)]
    of_elements = [y for y, kind in zip(program.outputs, kinds, strict=True) if kind != "row"]
    of_rows = [y for y, kind in zip(program.outputs, kinds, strict=True) if kind == "row"]

    roots = [[n.args[0] for n in stage] for stage in reductions] + [of_elements]  # of each pass, the first has none
    rows = {n for n in order if n.is_row}
    stored = {n for n in rows if _is_stored(n)}
    kept_after = _kept(roots, stored)
    kept = [node for nodes in kept_after for node in nodes]

    # Values of the row that a pass, a later row or an output needs.
    needed = set(of_rows)
    for i, of_pass in enumerate(roots):
        ends = stored | {n for nodes in kept_after[:i] for n in nodes}
        needed |= {n for n in _below(of_pass, ends) if n in stored}
    for level in range(last, -1, -1):
        of_level = [n for n in needed if levels[n] == level and not _reduces(n)]
        needed |= {n for n in _below(of_level, _at_lower(stored, levels, level)) if n in stored and levels[n] < level}
    places: dict[Expr, int] = {x: i for i, x in enumerate(program.inputs)}
    follows = []
    for level, of_level in enumerate(reductions):
        derived = [
            n
            for n in dict.fromkeys((*order, *of_rows))
            if n in needed and levels[n] == level and not _reduces(n) and n not in places
        ]
        follows.append((len(places), len(places) + len(of_level), derived))
        places |= {n: len(places) + i for i, n in enumerate(of_level)}
        places |= {n: len(places) + i for i, n in enumerate(derived)}
    values = len(places) - len(program.inputs)
    places |= {n: len(places) + i for i, n in enumerate(kept)}

    printer = _Parts(program, places)
    stages = []
    known: set[Expr] = set(program.inputs)
    for level, (of_level, (reduced_at, row_at, derived)) in enumerate(zip(reductions, follows, strict=True)):
        now_kept = kept_after[level]
        terms = [n.args[0] for n in of_level]
        part = printer.part(f"terms{level}", [*terms, *now_kept], known) if terms else None
        known |= set(of_level)
        row = printer.part(f"row{level}", derived, known) if derived else None
        known |= {*derived, *now_kept}
        kinds_of = "".join(OPERATIONS[n.op].reduction for n in of_level)
        kept_at = places[now_kept[0]] if now_kept else 0
        stages.append(Stage(part, kinds_of, reduced_at, kept_at, row, row_at))
    elements = printer.part("elements", of_elements, known) if of_elements else None
    return Passes(tuple(stages), elements, tuple(places[y] for y in of_rows), values, len(kept))


def _at_lower(stored: set[Expr], levels: dict[Expr, int], level: int) -> set[Expr]:
    return {n for n in stored if levels[n] < level or _reduces(n)}


def _kept(roots: Sequence[Sequence[Expr]], stored: set[Expr]) -> list[list[Expr]]:
    """Values that each pass keeps for those after it: dear to compute, and needed in both."""
    below = [set(_below(of_pass, stored)) - stored for of_pass in roots]
    dear = {
        node
        for nodes in below
        for node in nodes
        if node.args and node.varies and not node.is_mask and not node.is_row and node.op not in _CHEAP
        if sum(node in other for other in below) > 1
    }
    made: list[list[Expr]] = []
    available: set[Expr] = set()
    used: set[Expr] = set()
    for of_pass in roots:
        needed = _below(of_pass, stored | available)
        used |= set(needed) & available
        made.append([node for node in needed if node in dear and node not in available])
        available |= set(made[-1])
    return [[node for node in nodes if node in used] for nodes in made]


class _Parts:
    """Makes programs of elements of parts of a program of rows."""

    def __init__(self, program: Program, places: dict[Expr, int]) -> None:
        self.program, self.places = program, places
        taken = {str(x.value) for x in (*program.inputs, *program.scalars)}
        length = next(name for name in ("n", "length", "row_length") if name not in taken)
        self.length = scalar(length)
        self.scalars = (*program.scalars, self.length)
        self.symbols: dict[Expr, Expr] = {}
        for node, place in places.items():
            if node.args or node not in program.inputs:
                stem = _STEMS.get(node.op, "row" if node.is_row else "kept")
                name = f"{stem}{place}"
                while name in taken:
                    name += "_"
                self.symbols[node] = tensor(name)

    def part(self, name: str, outputs: Sequence[Expr], known: set[Expr]) -> Part:
        """The program of some nodes, given those that are known."""
        values: dict[Expr, Expr] = {}
        used: dict[Expr, None] = {}
        for node in _below(outputs, known):
            if node in known or node.op in SYMBOLS:
                values[node] = self.symbols.get(node, node)
                used[node] = None
            elif node.op == "length":
                values[node] = self.length
            else:
                values[node] = make(node.op, *(values[arg] for arg in node.args)) if node.args else node
        if not used:  # a functor finds its type in its arguments
            used[self.program.inputs[0]] = None
        results = tuple(values[y] for y in outputs)
        inputs = sorted(used, key=self.places.__getitem__)
        has_numbers = any(x in self.scalars for x in topological(results))
        program = Program(
            tuple(values.get(x, x) for x in inputs),
            self.scalars if has_numbers else (),
            results,
            tuple(f"{name}_{i}" for i in range(len(results))),
        )
        return Part(program, tuple(self.places[x] for x in inputs))
