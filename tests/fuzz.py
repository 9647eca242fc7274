"""Random programs held against plain PyTorch: ``python tests/fuzz.py --seconds 600 --what declared``, or ``make fuzz``.

Two kinds of programs are composed from tables of templates:

- *declared*: elementwise functions of all names in ``FUNCTIONS`` of ``torch_functions.py``, nested masks, run-time
  numbers, writes in place, ``no_grad``. :func:`torchad_ext.pointwise` declares them, and the values and the derivatives
  of order 1 to 3 that its kernels give in one of four dtypes are compared with native autograd of the definition in
  float64.
- *tools*: functions made of tensor operations, for the derivative tools, which are compared with the rows of
  ``torch.autograd.grad`` in a Python loop.

A declared op may differ by its rounding errors. These are measured (Monte Carlo arithmetic; Parker, Pierce and Eggert,
Computing in Science & Engineering 2 (4), 2000): the results of every operation, in the definition and in the op's
expressions, are perturbed by some units in the last place. How far that moves a result is its bound, which is large
where rounding decides a branch. A wrong sign, formula or branch is beyond it.

A failure is shrunk, printed as a program that can be pasted, and kept in ``tests/fuzz_seeds``, which the suite replays.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

TESTS = Path(__file__).parent
sys.path[:0] = [str(TESTS / "symbolic"), str(TESTS / "hessian"), str(TESTS), str(TESTS.parent)]

from structured import KEPT, chosen  # noqa: E402
from test_trace import DOMAINS, POSITIVE, SPELLINGS, WITH_NUMBERS, Polygamma, gradients, listed  # noqa: E402

import torchad_ext as ad  # noqa: E402
from torchad_ext import _settings  # noqa: E402
from torchad_ext._hessian import thresholds  # noqa: E402
from torchad_ext._symbolic.evaluate import evaluate  # noqa: E402
from torchad_ext._symbolic.expr import OPERATIONS  # noqa: E402
from torchad_ext._symbolic.refusals import TraceError  # noqa: E402

Tensors = tuple[torch.Tensor, ...]
SEEDS = Path(__file__).with_name("fuzz_seeds")
DTYPES = ("float16", "bfloat16", "float32", "float64")
ORDERS = 3


class Failure(AssertionError):
    """A program gives another result than plain PyTorch.

    Attributes:
        of: the tool, or the order of the derivative, and whether it raises.
        at: the number of the point.
    """

    def __init__(self, of: Any, message: str, at: int | None = None, raises: bool = False) -> None:
        super().__init__(message)
        self.of, self.at, self.raises = of, at, raises


class Refused(Exception):
    """A program is not taken, with a message that says why."""


# Programs


@dataclass(frozen=True)
class Statement:
    """Lines that assign a value or a mask to a name."""

    name: str
    text: str

    @property
    def is_mask(self) -> bool:
        return self.name.startswith("m")

    @property
    def operands(self) -> list[str]:
        return [name for name in dict.fromkeys(re.findall(r"\b[tm]\d+\b|\b[xyz]\b", self.text)) if name != self.name]

    def with_name(self, old: str, new: str) -> Statement:
        return Statement(self.name, re.sub(rf"\b{old}\b", new, self.text))


@dataclass(frozen=True)
class Program:
    """A function as statements, each of which may use the names of earlier ones."""

    arguments: str
    statements: tuple[Statement, ...]
    outputs: tuple[str, ...]
    result: str = "{}"  # of one output
    joined: str = ", "

    @property
    def source(self) -> str:
        lines = [line for each in self.statements for line in each.text.splitlines()]
        result = self.joined.join(self.result.format(output) for output in self.outputs)
        return "\n    ".join([f"def f({self.arguments}):", *lines, f"return {result}"])

    def needed(self) -> Program:
        """The program without the statements that no output depends on."""
        wanted, kept = set(self.outputs), []
        for statement in reversed(self.statements):
            if statement.name in wanted:
                wanted.update(statement.operands)
                kept.append(statement)
        return replace(self, statements=tuple(reversed(kept)))

    def smaller(self) -> Iterator[Program]:
        """Programs with fewer outputs or statements."""
        if len(self.outputs) > 1:
            for output in self.outputs:
                yield replace(self, outputs=(output,)).needed()
        for i, statement in enumerate(self.statements):  # in place of a statement, what it is made of
            others = [name for name in statement.operands if name.startswith("m") == statement.is_mask]
            for other in [*others, "(x > 0.3)" if statement.is_mask else "x"]:
                rest = (s.with_name(statement.name, other) for s in self.statements[i + 1 :])
                outputs = tuple(other if name == statement.name else name for name in self.outputs)
                yield replace(self, statements=(*self.statements[:i], *rest), outputs=outputs).needed()


def shrunk(program: Program, fails: Callable[[Program], bool], seconds: float = 60) -> Program:
    """The smallest program found that fails."""
    end = time.monotonic() + seconds
    seen = {program.source}
    shrinking = True
    while shrinking:
        shrinking = False
        for smaller in sorted(program.smaller(), key=lambda p: len(p.source)):
            if smaller.source in seen or time.monotonic() > end:
                continue
            seen.add(smaller.source)
            if fails(smaller):
                program, shrinking = smaller, True
                break
    return program


PRELUDE = "import math\n\nimport torch\nimport torch.nn.functional as F\n\nimport torchad_ext as ad\n"


def namespace(prelude: str) -> dict[str, Any]:
    space: dict[str, Any] = {"__name__": "fuzz"}
    exec(prelude, space)
    return space


def function_of(source: str, prelude: str = PRELUDE) -> Callable[..., Any]:
    space = namespace(prelude)
    exec(compile(source, "<program>", "exec"), space)
    function: Callable[..., Any] = space["f"]
    function.__name__ = f"fuzz{os.getpid()}"  # of its kernels, which are deleted after use
    return function


# Declared ops: the generator

# Letters stand for: x, y, z an earlier value; p, q, r an earlier mask; k a number; a, b run-time numbers; t the result.
NUMBERS = (0.1, 0.7, -0.3, 1 / 3, 1e-3, 3, 2, -1, 0.5, 2.5, 1e4, 1e-8, -0.0, 0)
COMPOSED = """
x - (y - z); (x - y) - z; x - (y + z); x + (y - z); -(x * y); -x * y; -(x + y); -x ** 2; (-x) ** 2; x * (y / 3)
x * y / 3; x / (y * y + 1) / 2; x / ((y * y + 1) / 2); 2 - -x; (x * y) ** 2; x * y ** 2; x - y * z; (x - y) * z
-(-x) * y; x * -y; 2 ** (x / 3) / 2; (2 ** -(x * x)) ** 2; x * k; x + k; k - x; x * k / 3; x * torch.full_like(y, k)
x * torch.tensor(k); torch.where(p, x, y); torch.where(p, x, k); torch.where(p, k, x)
torch.where(p, torch.where(q, x, y), z); torch.where(p, x, torch.where(q, y, torch.where(r, z, x)))
torch.where(p & q, x, torch.where(p | q, y, z)); torch.where(~p, x, y) - torch.where(p, x, y); p * x; x * ~p
x * (p & q) + y * (p | q); p * k * x; k * (p * x); (p * 2 - 1) * x; (1 - 1 * p) * x; k * p * x; p / 3 * x; (p + k) * x
x * p.float(); x * p.to(x.dtype); x * p.type(x.dtype); p.to(x) * y
torch.where(p, torch.ones_like(x), torch.zeros_like(x)) * y; torch.where(p, 1.0, 0.0) * x; x * a; x + b * y
x * (a + b) ** 2; torch.where(x > a, x, b); torch.where(p, a, x); x * a ** 0.5; x * (a * b + 3); x * math.sqrt(a)
x * min(a, 1); x * (a // 2); x * (a % 2); x * max(a, b); torch.clamp(x, b, a); torch.exp(b * x * x); x.detach() * y
torch.where(p, x.detach(), y); x * torch.zeros_like(y, dtype=y.dtype); x * x.new_tensor(0.3); x.masked_fill(p, k)
torch.tanh(torch.masked_fill(x, p & q, 0.5)); torch.where(torch.isnan(x), y, x)
"""
LINES = (
    "t = x * 1.0\nt += y",
    "t = torch.sin(x)\nt *= y",
    "t = x + y\nt -= k * z",
    "t = x * y\nt /= 3",
    "t = x.clone()\nt.mul_(y)\nt.add_(z)",
    "t = torch.atan(x)\nt.mul_(p)",
    "t = x + 0\nt.clamp_(-0.5, 0.7)",
    "t = x * y\nt.sin_()",
    "t = x * y\nt **= 2",
    "with torch.no_grad():\n    t = torch.sin(x) * y",
    "with torch.no_grad():\n    t = torch.where(p, x, y)\nt = t * x",
)
MASKS = """
x > k; x <= k; x >= a; b < x; x < y; x <= y; x >= y; x > y; x == abs(x); x != abs(y); x + y > z; k < x * y
torch.isnan(x); p & q; p | q; p ^ q; ~p; p & (q | r); (p & q) | r; (p | q) & r; p | (q & r); ~(p | q) & r; ~(p & q)
~p | q; p & ~q; p == q; p != q; (p | q) == r; (p & q) != r; p | (q == r); (p == q) & r; (x > y) == (y > z)
(x > k) != (y < k); torch.logical_and(p, q); torch.logical_or(p, torch.logical_not(q)); torch.logical_xor(p, q); p * q
p + q; p > q; p <= q; torch.where(p, x, y) > z; torch.bitwise_or(p, q & r); (x > k) & (y > k) & (z > k)
(x > k) | (y > k) & (z > k); torch.where(p, q, r)
"""


def accepted(text: str) -> bool:
    """Can a template be declared by itself?"""
    program = Program(
        "x, y, z, a=0.7, b=-1.3", (Statement("t0", filled(text, "t0", random.Random(0), [], [])),), ("t0",)
    )
    return declared_or_error(program) is None


def declared_or_error(program: Program) -> str | None:
    try:
        ad.pointwise(function_of(program.source))
    except (TypeError, ValueError, RuntimeError) as error:
        return str(error).splitlines()[-1].strip()
    return None


def filled(
    text: str,
    name: str,
    draw: random.Random,
    values: Sequence[str],
    masks: Sequence[str],
    domain: tuple[float, float] | None = None,
) -> str:
    """The statement of a template, with operands in place of its letters."""

    def value(_letter: str) -> str:
        # What was made last is used more often, so that programs are deep.
        chosen = draw.choice([*values[-3:], *values, "x", "y", "z"])
        return chosen if domain is None else f"({domain[1] - domain[0]:.6g} * torch.sigmoid({chosen}) + {domain[0]})"

    def mask(_letter: str) -> str:
        return draw.choice(masks[-4:]) if masks else f"({draw.choice('xyz')} > {draw.choice(NUMBERS)})"

    chosen: dict[str, str] = {"t": name}

    def operand(match: re.Match[str]) -> str:
        letter = match[0]
        if letter not in chosen:
            kind = value if letter in "xyz" else mask if letter in "pqr" else lambda _: repr(draw.choice(NUMBERS))
            chosen[letter] = kind(letter)
        return chosen[letter]

    text = re.sub(r"(?<![\w.])[xyzpqrkt](?![\w(])", operand, text)
    return text if re.search(rf"^\s*{name} = ", text, re.MULTILINE) else f"{name} = {text}"


class Composer:
    """Draws declared programs. ``refused`` counts the statements that were not taken, by their messages."""

    def __init__(self) -> None:
        numbers = [("a number", text) for text in listed(WITH_NUMBERS)]
        composed = [("composed", text) for text in [*listed(COMPOSED), *LINES]]
        spelled = [(name, text) for name, texts in SPELLINGS.items() for text in texts]
        everything = [*spelled, *numbers, *composed]
        self.missing = [text for _, text in everything if not accepted(text)]
        missing = set(self.missing)
        self.spelled: dict[str, list[str]] = {}
        for name, text in spelled:
            if text not in missing:
                self.spelled.setdefault(name, []).append(text)
        self.numbers = [text for _, text in numbers if text not in missing]
        self.composed = [text for _, text in composed if text not in missing]
        self.masks = [text for text in listed(MASKS) if accepted(f"torch.where({text}, x, y)")]
        self.missing += [text for text in listed(MASKS) if text not in self.masks]
        self.refused: Counter[str] = Counter()

    def statement(self, name: str, draw: random.Random, values: list[str], masks: list[str]) -> Statement:
        if name.startswith("m"):
            return Statement(name, filled(draw.choice(self.masks), name, draw, values, masks))
        kind = draw.random()
        if kind < 0.5:
            function = draw.choice(list(self.spelled))
            text, domain = draw.choice(self.spelled[function]), DOMAINS.get(function)
        elif kind < 0.6:
            text, domain = draw.choice(self.numbers), POSITIVE
        else:
            text, domain = draw.choice(self.composed), None
        return Statement(name, filled(text, name, draw, values, masks, domain))

    def program(self, draw: random.Random) -> Program:
        program = Program("x, y, z, a=0.7, b=-1.3", (), ("x",))
        points = [torch.linspace(-1.9, 2.1, 23, dtype=torch.float64).roll(5 * i) for i in range(3)]
        values: list[str] = []
        masks: list[str] = []
        for i in range(draw.randint(5, 22)):
            name = f"{'m' if draw.random() < 0.3 else 't'}{i}"
            statement = self.statement(name, draw, values, masks)
            output = f"torch.where({name}, x, y)" if statement.is_mask else name
            longer = replace(program, statements=(*program.statements, statement), outputs=(output,))
            if problem := declared_or_error(longer):
                self.refused[problem] += 1
                continue
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = function_of(longer.source)(*points)
            if result.isfinite().all() and result.abs().max() < 1e3:
                program = replace(longer, outputs=program.outputs)
                (masks if statement.is_mask else values).append(name)
        count = draw.randint(1, 5)
        outputs = values[-1:] + draw.sample(values[:-1], min(count - 1, len(values[:-1])))
        return replace(program, outputs=tuple(outputs) or ("x",)).needed()


# Declared ops: the check


@dataclass(frozen=True)
class Declared:
    """A declared op at some points, in some dtype, to some order."""

    source: str
    dtype: str
    points: dict[str, list[float]]
    numbers: dict[str, float]
    orders: int
    awkward: bool = False  # the points are kinks, infinities and the like
    what: str = "declared"

    @property
    def text(self) -> str:
        """The case as a program to paste."""
        tensors = (
            f"{name} = torch.tensor({column!r}, dtype=torch.{self.dtype}, requires_grad=True)"
            for name, column in self.points.items()
        )
        arguments = ", ".join([*self.points, *(f"{name}={number!r}" for name, number in self.numbers.items())])
        return (
            f"{PRELUDE}\ninf, nan = math.inf, math.nan\n\n\n{self.source}\n\n\n" + "\n".join(tensors) + "\n"
            f"print(ad.pointwise(f)({arguments}), f({arguments}))\n"
        )


class Reference(TorchFunctionMode):
    """Native PyTorch, with its missing second derivatives and inaccurate functions as formulas.

    Numbers are rounded as they are in the dtype.

    Attributes:
        unsure: the points at which it depends on the rounding of a number what is right.
    """

    def __init__(self, dtype: torch.dtype, leaves: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.dtype, self.leaves = dtype, {id(x) for x in leaves}
        self.unsure = torch.zeros_like(leaves[0], dtype=torch.bool)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "").strip("_").removeprefix("special_")
        if name in FORMULAS:
            with self:
                return FORMULAS[name](*args, **(kwargs or {}))
        if self.dtype != torch.float64:
            operands = args
            if name in COMPARED or name in STEPS:  # PyTorch has an infinity there
                for x in (x.detach() for x in args if isinstance(x, torch.Tensor) and x.shape == self.unsure.shape):
                    self.unsure |= x.isfinite() & (x.abs() > torch.finfo(self.dtype).max)
            if self.dtype.itemsize < 4:
                self._mark(name, [x for x in operands if isinstance(x, (torch.Tensor, float))])
            args = self._rounded(name, operands, args)
            kwargs = dict(zip(kwargs, self._rounded(name, operands, kwargs.values()), strict=True)) if kwargs else None
        return func(*args, **(kwargs or {}))

    def _mark(self, name: str, operands: Sequence[Any]) -> None:
        """Marks where a decision depends on the rounding of what was computed to a half type."""
        eps = 2 * torch.finfo(self.dtype).eps
        computed = any(isinstance(x, torch.Tensor) and id(x) not in self.leaves for x in operands)
        if not computed or any(isinstance(x, torch.Tensor) and not x.is_floating_point() for x in operands):
            return
        with torch.no_grad():
            if name in COMPARED and len(operands) > 1:
                first, *others = operands
                for other in others:
                    size = torch.maximum(*(torch.as_tensor(x, dtype=torch.float64).abs() for x in (first, other)))
                    self.unsure |= (first - other).abs() <= eps * size
            elif name in STEPS:
                steps = operands[0] / operands[1] if len(operands) > 1 else operands[0]
                twice = 2 * steps
                self.unsure |= (twice - twice.round()).abs() <= 2 * eps * twice.abs()

    def _rounded(self, name: str, operands: Sequence[Any], given: Any) -> tuple[Any, ...]:
        """The arguments with numbers as PyTorch has them: in float32 for half types, in the dtype where it compares."""
        tensors = [x for x in operands if isinstance(x, torch.Tensor) and x.shape == self.unsure.shape]
        exact = name in COMPARED and all(id(x) in self.leaves for x in tensors)
        dtype = self.dtype if exact else torch.float32
        results = []
        for x in given:
            if isinstance(x, float):
                if name in ROUNDED and not exact and torch.tensor(x, dtype=self.dtype).item() != x:
                    near = 4 * torch.finfo(self.dtype).eps * abs(x)
                    for tensor in tensors:
                        self.unsure |= (tensor.detach().abs() - abs(x)).abs() <= near
                x = torch.tensor(x, dtype=dtype).item()
            results.append(x)
        return tuple(results)


COMPARED = frozenset(
    "lt le gt ge eq ne less greater less_equal greater_equal not_equal clamp clip clamp_min clamp_max "
    "maximum minimum max min".split()
)
STEPS = frozenset("floor ceil round trunc fix frac fmod remainder mod floor_divide floordiv div".split())
ROUNDED = COMPARED | frozenset(
    "hardtanh hardshrink softshrink threshold relu6 floor_divide floordiv remainder fmod mod isclose softplus "
    "div".split()
)
FORMULAS: dict[str, Callable[..., Any]] = {
    # It computes this with a float 1/6, and has no second derivative.
    "hardsigmoid": lambda x, **_: F.relu6(x + 3) / 6,
    # It rounds 1 / alpha to a float in the derivative.
    "celu": lambda x, alpha=1.0, **_: torch.where(x > 0, x, alpha * torch.expm1(torch.where(x > 0, 0.0, x) / alpha)),
    # Its value at -inf is nan.
    "hardswish": lambda x, **_: torch.where(
        x <= -3, 0.0, torch.where(x < 3, x.clamp(-3, 3) * (x.clamp(-3, 3) + 3) / 6, x)
    ),
    # Its 1 + erf cancels.
    "gelu": lambda x, approximate="none": (
        x * torch.erfc(-x * math.sqrt(0.5)) / 2
        if approximate == "none"
        else x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    ),
    # It rounds pi x before it takes the sine, which is small next to an integer.
    "sinc": lambda x: torch.where(x.abs() < 0.5, torch.sinc(x), _sinc_by_nearest(torch.where(x.abs() < 0.5, 1.0, x))),
    # Its trigamma is wrong in the tenth digit.
    **dict.fromkeys(("lgamma", "gammaln"), lambda x: Polygamma.apply(-1, x)),
    **dict.fromkeys(("digamma", "psi"), lambda x: Polygamma.apply(0, x)),
    "polygamma": lambda *args: Polygamma.apply(*(args if isinstance(args[0], int) else args[::-1])),
    # It has no derivative of these.
    "floordiv": lambda a, b: torch.div(_constant(a), _constant(b), rounding_mode="floor"),
    "rfloordiv": lambda a, b: torch.div(_constant(b), _constant(a), rounding_mode="floor"),
    "floor_divide": lambda a, b: torch.div(_constant(a), _constant(b), rounding_mode="floor"),
    "rmod": lambda x, number: torch.remainder(torch.full_like(x, number), x),
}


def _sinc_by_nearest(x: torch.Tensor) -> torch.Tensor:
    nearest = x.detach().round()
    sign = 1 - 2 * torch.remainder(nearest, 2)
    return sign * torch.sin(math.pi * (x - nearest)) / (math.pi * x)


def _constant(x: Any) -> Any:
    return x.detach() if isinstance(x, torch.Tensor) else torch.tensor(float(x), dtype=torch.float64)


EXACT = frozenset(
    "where clone neg abs full_like zeros_like ones_like scalar_tensor _to_copy clamp clamp_min clamp_max maximum "
    "minimum relu sign sgn floor ceil round trunc threshold threshold_backward hardtanh hardtanh_backward ones zeros "
    "full empty_like new_zeros new_full copy fill masked_fill hardshrink logical_and sum expand".split()
)


class Noise(TorchDispatchMode):
    """Perturbs the results of all operations, those of autograd included, by up to a relative size.

    Attributes:
        extreme: the points at which a result lies outside the range of what computes.
    """

    def __init__(self, size: float, seed: int, points: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.size, self.generator, self.dtype = size, torch.Generator().manual_seed(seed), dtype
        self.limits = torch.finfo(torch.promote_types(dtype, torch.float32))  # half types are computed in float32
        self.extreme = torch.zeros(points, dtype=torch.bool)

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        """x where an op rounds it to the dtype."""
        if self.dtype.itemsize > 2:
            return x
        return x * (
            1 + torch.finfo(self.dtype).eps * (2 * torch.rand(x.shape, generator=self.generator, dtype=x.dtype) - 1)
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._efficientzerotensor.default:  # it crashes where a mode sees it
            func = torch.ops.aten.zeros.default
        result = func(*args, **kwargs)
        exact = func.overloadpacket.__name__ in EXACT or any(r.alias_info for r in func._schema.returns)
        return tree_map(lambda x: self._perturbed(x, exact), result)

    def _perturbed(self, x: Any, exact: bool) -> Any:
        if not isinstance(x, torch.Tensor) or x.dtype != torch.float64 or x.is_meta:
            return x
        if x.shape == self.extreme.shape:
            size = x.abs()
            large = (size > self.limits.max / 16) & x.isfinite()
            self.extreme |= large | ((size < 16 * self.limits.tiny) & (size > 0))
        if exact or not self.size:
            return x
        return x * (1 + self.size * (2 * torch.rand(x.shape, generator=self.generator, dtype=x.dtype) - 1))


def reverse(
    f: Callable[..., Any], xs: Sequence[torch.Tensor], cotangents: Sequence[Tensors], orders: int
) -> list[Tensors]:
    """The value, its gradient, the gradient of that and so on, each for cotangents of the one before."""
    leaves = [x.detach().clone().requires_grad_() for x in xs]
    results = f(*leaves)
    levels = [results if isinstance(results, tuple) else (results,)]
    for order in range(orders):
        levels.append(gradients(levels[-1], leaves, cotangents[order][: len(levels[-1])]))
    return [tuple(y.detach() for y in level) for level in levels]


def by_expressions(
    program: Program,
    xs: Sequence[torch.Tensor],
    numbers: dict[str, float],
    cotangents: Sequence[Tensors],
    orders: int,
) -> list[list[torch.Tensor | None]]:
    """The same by the expressions of an op; None for zero."""
    arguments = list(xs)
    present: Sequence[int] = range(len(program.outputs))
    count = len(program.outputs)
    levels: list[list[torch.Tensor | None]] = []
    for order in range(orders + 1):
        values = evaluate(program, *arguments, *(numbers[str(s.value)] for s in program.scalars)) if present else ()
        given = dict(zip(present, values if isinstance(values, tuple) else (values,), strict=True))
        levels.append([given.get(i) for i in range(count)])
        if order == orders:
            break
        derivative = program.vjp([str(x.value) in "xyz" for x in program.inputs], [True] * len(present))
        names = [str(x.value) for x in program.inputs if str(x.value) in "xyz"]
        everything = [*arguments, *(cotangents[order][i] for i in present)]
        arguments = [everything[i] for i in derivative.arguments]
        present = ["xyz".index(names[i]) for i in derivative.results]
        program, count = derivative.program, len(xs)
    return levels


RUNS = 8  # of perturbed arithmetic, at the most
SAFETY = 4  # kernels may be so much further off than the worst of them


def check_declared(case: Declared) -> None:
    """Raises Failure where kernels differ from the definition, Refused if there is no op."""
    function = function_of(case.source)
    dtype = getattr(torch, case.dtype)
    awkward = case.awkward
    xs = [torch.tensor(column, dtype=dtype) for column in case.points.values()]
    numbers = list(case.numbers.values())
    generator = torch.Generator().manual_seed(0)
    shape = xs[0].shape
    cotangents = [
        tuple((torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5).to(dtype) for _ in range(5))
        for _ in range(case.orders)
    ]
    function.__defaults__ = tuple(numbers)  # the usual call of the op
    try:
        op = ad.pointwise(function)
    except TraceError as error:
        raise Refused(str(error).splitlines()[-1].strip()) from error
    try:
        native = function(*xs, *numbers)
    except RuntimeError as error:
        raise Refused(f"native: {str(error).splitlines()[0]}") from error
    result = op(*xs, *numbers)
    for got, expected in zip(*(y if isinstance(y, tuple) else (y,) for y in (result, native)), strict=True):
        if got.dtype != expected.dtype:
            raise Failure("dtype", f"order 0: dtype {got.dtype}, expected {expected.dtype}", 0)
    wide = [x.double() for x in xs]
    wide_cotangents = [tuple(c.double() for c in level) for level in cotangents]
    unsure = torch.zeros(shape, dtype=torch.bool)

    def reference(*leaves: torch.Tensor) -> Any:
        with Reference(dtype, leaves) as mode:
            values = function(*leaves, *numbers)
        if mode.unsure.shape == shape:
            unsure.logical_or_(mode.unsure)
        return values

    def expressions() -> list[list[torch.Tensor | None]]:
        return by_expressions(op._usual.program, wide, case.numbers, wide_cotangents, case.orders)

    try:
        natives = reverse(lambda *leaves: function(*leaves, *numbers), xs, cotangents, case.orders)
        references = reverse(reference, wide, wide_cotangents, case.orders)
    except RuntimeError as error:
        raise Refused(f"native: {str(error).splitlines()[0]}") from error
    results = reverse(lambda *leaves: op(*leaves, *numbers), xs, cotangents, case.orders)
    if awkward:  # PyTorch's scalar and vectorised kernels differ at some
        many = [tuple(c.repeat(64) for c in level) for level in wide_cotangents]
        tiled = reverse(reference, [x.repeat(64) for x in wide], many, case.orders)
    exact = expressions()
    size = max(4 * torch.finfo(torch.float32 if dtype.itemsize < 4 else dtype).eps, 2.0**-48)
    spreads = [[torch.zeros(shape, dtype=torch.float64) for _ in level] for level in references]
    limits = torch.finfo(dtype)
    lost = torch.stack([y.isnan() for y in references[0]]).any(0)

    def failure() -> Failure | None:
        for order, (level, native_level) in enumerate(zip(results, references, strict=True)):
            for i, (got, expected) in enumerate(zip(level, native_level, strict=True)):
                got = got.double().expand(shape)
                bound = SAFETY * spreads[order][i] + 2 * limits.eps * (expected.abs() + limits.tiny)
                right = (got - expected).abs() <= bound
                right |= (got == expected) | (got.isnan() & expected.isnan()) | unsure
                right |= got == natives[order][i].double()
                right |= expected.isfinite() & (expected.abs() > limits.max / 16)
                if not awkward:
                    right |= ~expected.isfinite()
                elif order:
                    right |= expected.isnan() | (lost & got.isnan())
                if awkward:
                    right |= tiled_differs(tiled[order][i], expected)
                if not right.all():
                    at = int((~right).nonzero()[0])
                    where = ", ".join(f"{name}={column[at]!r}" for name, column in case.points.items())
                    what = f"output {i}" if order == 0 else f"derivative in {'xyz'[i]}"
                    numbers = f"got {got[at].item()!r}, expected {expected[at].item()!r} within {bound[at].item():.2g}"
                    return Failure(order, f"order {order}, {what}, {case.dtype}: {numbers} at {where}", at)
        return None

    for run in range(RUNS):  # each widens the bounds
        noise = Noise(size, run, len(xs[0]), dtype)
        rounded = dataclasses.replace(OPERATIONS["rounded"], reference=noise.rounded)
        with mock.patch.dict(OPERATIONS, rounded=rounded), noise:
            noisy = reverse(reference, wide, wide_cotangents, case.orders), expressions()
        unsure |= noise.extreme
        for of, perturbed in zip((references, exact), noisy, strict=True):
            for spread, level, moved in zip(spreads, of, perturbed, strict=True):
                for i, (y, z) in enumerate(zip(level, moved, strict=True)):
                    if y is not None and z is not None:
                        difference = (y - z).abs().masked_fill(~y.isfinite() & (y.nan_to_num() == z.nan_to_num()), 0)
                        spread[i] = torch.maximum(spread[i], difference.nan_to_num(math.inf))
        if not (found := failure()):
            return
    raise found


def tiled_differs(tiled: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    first = tiled.expand(64 * len(expected))[: len(expected)]
    return ~torch.isclose(first, expected, rtol=1e-9, atol=1e-12, equal_nan=True)


SPECIAL = [sign * x for x in (0.0, 1.0, 0.5, 2.0, 3.0, 6.0, math.inf) for sign in (1, -1)] + [
    math.nan,
    1e-320,
    0.7,
    0.1,
]


def declared_cases(program: Program, draw: random.Random) -> Iterator[Declared]:
    """A program in a dtype, at common and at awkward points."""
    dtype = draw.choice(DTYPES)
    kind = getattr(torch, dtype)
    numbers = {"a": draw.choice((0.7, 0.5, 1.0, 2.5, 0.1)), "b": draw.choice((-1.3, 0.4, -2.0, 0.0))}

    def rounded(values: list[float]) -> list[float]:
        return [float(v) for v in torch.tensor(values, dtype=torch.float64).to(kind).tolist()]

    common = {name: rounded([draw.uniform(-2, 2) for _ in range(37)]) for name in "xyz"}
    yield Declared(program.source, dtype, common, numbers, ORDERS)
    literals = [float(n) for n in re.findall(r"(?<![\w.])\d+\.\d+(?:e-?\d+)?", program.source)]
    special = [*SPECIAL, float(torch.finfo(kind).tiny / 8), *literals, *(-n for n in literals), *numbers.values()]
    awkward = {name: rounded([draw.choice(special) for _ in range(15)]) for name in "xyz"}
    yield Declared(program.source, dtype, awkward, numbers, 1, awkward=True)


# Derivative tools: the generator

TOOLS_PRELUDE = (
    PRELUDE
    + '''

def C(*shape, shift=0.0):
    """A constant tensor without equal elements."""
    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * 2.3 + shift).view(shape)


J = torch.arange(24) * 5 % 7  # indices, some of them twice
S = torch.eye(24, dtype=torch.float64).roll(1, 0).to_sparse()


class Flip(torch.autograd.Function):
    """x with the gradient of -x."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return -g


class Through(torch.autograd.Function):
    """The sign of x with the gradient of tanh, as a spiking network has it."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 - x.tanh() ** 2)


class Cube(torch.autograd.Function):
    """x³, whose second derivative PyTorch loses, because backward takes 3x² for a constant."""

    @staticmethod
    def forward(ctx, x):
        ctx.d = 3 * x**2
        return x**3

    @staticmethod
    def backward(ctx, g):
        return g * ctx.d


def near_one(x):
    return torch.eye(3, dtype=x.dtype) + 0.1 * x.flatten()[:9].view(3, 3)


@ad.pointwise
def declared(u, v, a=0.7):
    return torch.where(u > a * v, torch.sin(u) * v, torch.tanh(u - v))


def scaled(x):
    with torch.no_grad():
        s = x.norm()
    return x / (1 + s)
'''
)
# PyTorch's wrong functions as right ones, for the reference.
RIGHT = "\nclass Cube:\n    apply = staticmethod(lambda x: x**3)\n"

# u, v, w stand for earlier values, n for the size of the last dimension of u. Row templates treat each row of x alike.
ROWS = """
u.sin(); u.tanh(); torch.exp(-u * u); F.softplus(u); F.gelu(u); F.silu(u); torch.sigmoid(u); torch.atan(u); u.cos()
torch.log1p(u * u); torch.sqrt(1 + u * u); (1 + u * u) ** -0.5; u ** 3 / 3; F.elu(u); F.mish(u); u.abs() * u
F.relu(u) * u; torch.lgamma(2 + u * u); torch.erf(u); torch.asinh(u); torch.special.expit(u); u.clamp(-0.9, 1.1) * u
torch.sinc(u); ad.sin(u); ad.exp(-u * u); ad.silu(u); ad.gelu(u); ad.gelu(u, approximate="tanh"); ad.softplus(u)
ad.snake(u); declared(u, v); ad.pow(1 + u * u, 0.3); ad.tanh(u) * v; declared(u, v, 0.2); u * v; u + v; u - v
u / (1 + v * v); torch.where(u > v, u * v, v); torch.maximum(u, v); torch.hypot(u, 1 + v * v); torch.lerp(u, v, 0.3)
torch.addcmul(u, v, w); torch.atan2(u, 1 + v * v); u.masked_fill(v > 0, 0.5); u * (v > 0); u @ C(n, 3)
u @ C(n, 5, shift=1.0); F.linear(u, C(4, n), C(4)); u @ C(n, n) + u; torch.einsum("...i,ij,...j->...", u, C(n, n), u)
torch.einsum("...i,...j->...ij", u, u); (u.unsqueeze(-1) * u.unsqueeze(-2)).flatten(-2)
(u.unsqueeze(-2) @ C(n, 2)).squeeze(-2); ad.quadratic_form(u, C(n, n))
ad.quadratic_form(u, C(n, n)).unsqueeze(-1) * v; (u * u).sum(-1, keepdim=True); u.sum(-1, keepdim=True) * v
u.mean(-1, keepdim=True).sin(); u.prod(-1, keepdim=True); u.amax(-1, keepdim=True) * u; u.max(-1, keepdim=True)[0] * u
u.min(-1, keepdim=True).values * u; torch.logsumexp(u, -1, keepdim=True); torch.logsumexp(input=u, dim=-1).sin()
torch.softmax(u, -1); F.softmax(input=u, dim=-1) * u; F.log_softmax(u, dim=-1); u.norm(dim=-1, keepdim=True)
torch.linalg.vector_norm(u, 3, dim=-1, keepdim=True) * u; torch.linalg.norm(u, dim=-1).sin()
u.var(-1, keepdim=True) * u; u.std(-1, keepdim=True); torch.var_mean(u, dim=-1, keepdim=True)[0]
F.normalize(u, dim=-1); F.layer_norm(u, (n,)); F.layer_norm(u, (n,), C(n), C(n, shift=2.0)); F.rms_norm(u, (n,))
u[..., ::2]; u[..., 1:] * u[..., :-1]; u.flip(-1) * u; u.roll(1, -1) * u; u[..., :1] * v; u[..., [0, n - 1, 0]]
u.diff(dim=-1); torch.cat([u, v], -1); torch.cat([u, u.sin()], dim=-1); torch.stack([u, v], -1).flatten(-2)
F.pad(u, (1, 2)); u.repeat_interleave(2, -1); u.cumsum(-1) / n; u.cumprod(-1); u.cummax(-1)[0]
torch.logcumsumexp(u, -1); u.sort(-1)[0] * C(n); u.topk(2, -1).values; u.sort(-1, descending=True).values
u.index_select(-1, torch.arange(n - 1, -1, -1)) * u; u.gather(-1, u.argsort(-1)) * C(n); u.unfold(-1, 2, 1).prod(-1)
torch.fft.fft(u).real; torch.fft.rfft(u).abs().square() / n; torch.fft.irfft(torch.fft.rfft(u) * C(n // 2 + 1), n)
torch.fft.fft(u).imag.sin(); (1j * u).exp().real; (1j * u).exp().conj().imag
(torch.exp(1j * u) * torch.complex(u, v)).imag; torch.complex(u, v).abs(); torch.complex(u, v).conj().mul(1j).real
torch.polar(1 + u * u, v).imag; torch.view_as_real(torch.complex(u, v).square()).sum(-1)
-torch.complex(u, v).conj().imag; torch.linalg.vector_norm(torch.complex(u, v), dim=-1, keepdim=True)
torch.complex(u, v).var(-1, keepdim=True); torch.complex(u, v).std(-1, keepdim=True); torch.complex(u, v).norm(dim=-1)
torch.view_as_complex(torch.stack([u * u + 0.1, v], -1)).angle()
(torch.complex(u, v) @ torch.complex(C(n, 2), C(n, 2, shift=1.0))).real; F.cosine_similarity(u, v, dim=-1)
F.glu(torch.cat([u, v], -1), -1); torch.outer(C(3), u.flatten()).sum() * 0 + u
F.smooth_l1_loss(u, v, reduction="none"); u.clone().mul_(v); u.detach() * v
u / (1 + u.detach().norm(dim=-1, keepdim=True)); Flip.apply(u) * v; Through.apply(u) * v; Cube.apply(u)
Cube.apply(u) * v; t = u.clone()|t[..., 0] = t[..., 0] * 2
t = torch.zeros_like(u)|t[..., 1:] = u[..., :-1] * v[..., 1:]
with torch.no_grad():|    s = u.norm(dim=-1, keepdim=True)|t = u / (1 + s)
t = u * 1|t.mul_(v); t = u * 1|t -= v|t /= 2; t = u * 1|t[..., 1:] += v[..., :1]; t = u * 1|t[t > 0.3] = 0.3
t = u * 1|t[..., [0, 1]] = v[..., :2].sin(); t = u * 1|t.view(-1, n)[:, 1] *= 2; t = u * 1|t.transpose(0, -1).exp_()
t = torch.empty_like(u)|t.copy_(v.sin())|t[..., -1].add_(u[..., 0]); t = u * 1|t.clamp_(-0.4, 0.6)|t = t * u
t = torch.zeros_like(u)|t.index_add_(-1, torch.arange(n), u * v)
t = u * 1|s = t.unsqueeze(-1)|s.mul_(2)|t = t + s[..., 0]
t = u * 1|s = t[..., 0]|t.add_(v)|t = t * s.unsqueeze(-1); t = u * 1|s = t.detach()|t.mul_(v)|t = t * s
t = u * 1|t.masked_fill_(v > 0, 0.5)|t[..., 0].zero_(); F.relu(u * 1, inplace=True) * v; F.silu(u + 0, inplace=True)
t = torch.complex(u, v) * 1|t.mul_(1j)|t[..., 0] *= 2|t = t.real + t.imag; torch.special.i0(u) * v; torch.ldexp(u, v)
t = torch.zeros(*u.shape, 2, dtype=u.dtype)|t[..., 1] = u|t[..., 0] += v|t = t.prod(-1)
(torch.complex(u, v) / (2 + 1j * v)).real; torch.complex(1 + u * u, v).angle(); torch.complex(1 + u * u, v).sgn().imag
torch.log(2 + torch.complex(u * u, v)).imag; torch.complex(u, v).sin().real; (torch.complex(u, v) ** 3).imag
torch.complex(1 + u * u, v).sqrt().imag; torch.rnn_tanh_cell(u, u.sin(), C(n, n), C(n, n, shift=1.0))
torch.gru_cell(u, v, C(3 * n, n), C(3 * n, n, shift=1.0), C(3 * n), C(3 * n, shift=2.0))
torch.lstm_cell(u, [v, u], C(4 * n, n), C(4 * n, n, shift=1.0), C(4 * n), C(4 * n, shift=2.0))[0]
"""
WHOLE = """
scaled(u); u @ u.mT; u.mT @ u; torch.mm(u, u.t()); C(3, u.shape[0]) @ u; u.sum(0); u.mean(0, keepdim=True) * u
u.sum() * v; u.reshape(-1); u.T * 2; u.transpose(0, -1) * 3; u.flatten()[:9].view(3, 3); u.norm() * v
F.group_norm(u.reshape(1, 3, -1), 3).pow(3); F.group_norm(u.reshape(1, 4, -1), 2, C(4), C(4))
F.batch_norm(u, None, None, training=True) * v; F.batch_norm(u.reshape(-1, 2), None, None, C(2), training=True)
F.instance_norm(u.reshape(1, 2, -1)).pow(3); F.conv1d(u.reshape(1, 1, -1), C(2, 1, 3))
F.conv1d(u.reshape(1, 1, -1), C(2, 1, 3), padding=1).tanh(); F.conv2d(u.reshape(1, 1, 3, -1), C(2, 1, 2, 2))
F.conv_transpose1d(u.reshape(1, 1, -1), C(1, 2, 3)); F.max_pool1d(u.reshape(1, 1, -1), 2)
F.avg_pool1d(u.reshape(1, 1, -1), 2); F.interpolate(u.reshape(1, 1, -1), scale_factor=2, mode="linear")
torch.linalg.inv(near_one(u)); torch.linalg.solve(near_one(u), C(3, 2)); torch.logdet(near_one(u))
torch.linalg.det(u.flatten()[:4].view(2, 2)); torch.matrix_exp(0.1 * u.flatten()[:9].view(3, 3))
torch.linalg.cholesky(near_one(u) @ near_one(u).mT)
torch.linalg.eigvalsh(torch.diag(C(3)) + near_one(u) + near_one(u).mT); torch.linalg.qr(near_one(u))[1]
torch.linalg.svdvals(torch.diag(C(3)) + near_one(u))
torch.zeros(5, dtype=u.dtype).scatter_add(0, torch.arange(u.numel()) % 5, u.flatten())
torch.zeros(4, dtype=u.dtype).index_add(0, torch.arange(u.numel()) % 4, u.flatten().sin())
u.flatten().take(torch.arange(0, u.numel(), 2)); u[u > 0]; torch.masked_select(u, u > 0).prod()
u.flatten().index_put((torch.tensor([0, 1]),), u.flatten()[:2].sin()); torch.kron(u.flatten()[:3], u.flatten()[:2])
torch.cdist(u.reshape(-1, 1)[:4], C(3, 1)); torch.tril(u.flatten()[:9].view(3, 3)); torch.diag(u.flatten()[:4])
torch.outer(u.flatten()[:5], u.flatten()[:5]); torch.trapezoid(u)
F.cross_entropy(u.reshape(1, -1), torch.tensor([1])); F.mse_loss(u, u.flip(-1) * 2)
torch.linalg.cross(u.flatten()[:3], u.flatten()[1:4])
F.scaled_dot_product_attention(u.reshape(1, -1, 1)[:, :6], u.reshape(1, -1, 1)[:, :6], u.reshape(1, -1, 1)[:, :6])
torch.einsum("i,ij,j->i", u.flatten(), C(u.numel(), u.numel()), u.flatten()); torch.cat([u, v], 0)
torch.vstack([u.flatten()[:2], v.flatten()[:2]]); torch.unbind(u)[0]; u.std() * u; u.var() * u; u.prod() * 1e-3
F.embedding(torch.tensor([0, 1, 1]), u.reshape(-1, 1)); torch.stack(u.flatten().split(2)[:2]).sum(0)
torch.softmax(u, 0) * u; F.layer_norm(u, u.shape) * v; u.cumsum(0) / 9; u.roll(1, 0) * u; u.flip(0) * u
torch.fft.fft2(u).real; torch.fft.fft(u.flatten()).conj().imag.sin(); u.expand(2, *u.shape).sin()
torch.logsumexp(u.flatten(), 0) * v; u.max() * u; torch.linalg.matrix_norm(u.flatten()[:4].view(2, 2))
u.unsqueeze(0).conj().real.square()
"""


AT_A_LEAF = re.compile("autograd.grad")


class ToolsComposer:
    """Draws programs of tensor operations."""

    def __init__(self) -> None:
        rows, whole = ([text.replace("|", "\n") for text in listed(texts)] for texts in (ROWS, WHOLE))
        structured = [
            re.sub(r"\bu\b", "(C(24, u.numel()).tril(1).triu(-1) @ u.flatten())", text) for text in KEPT.values()
        ]
        self.rows, self.any = rows, rows + whole + [text for text in structured if not AT_A_LEAF.search(text)]
        self.space = namespace(TOOLS_PRELUDE)
        self.missing: list[str] = []
        self.refused: Counter[str] = Counter()

    def statement(self, text: str, name: str, operands: Sequence[str], space: dict[str, Any]) -> Statement | None:
        """The statement of a template, which is run; None if its value does not fit or there is none."""
        u, v, w = operands
        chosen = {"u": u, "v": v, "w": w, "t": name, "n": f"{u}.shape[-1]", "s": f"{name}_scale"}
        text = re.sub(r"(?<![\w.\"'])[uvwnts](?![\w(\"'])", lambda match: chosen[match[0]], text)
        if not re.search(rf"^\s*{name}\b.* = ", text, re.MULTILINE):
            text = f"{name} = {text}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec(text, space)
        except (RuntimeError, IndexError, ValueError, TypeError, ArithmeticError):
            return None
        y = space[name]
        fits = y.is_floating_point() and 0 < y.numel() <= 2000 and y.requires_grad
        return Statement(name, text) if fits and y.isfinite().all() and y.abs().max() < 100 else None

    def case(self, draw: random.Random) -> tuple[Program, tuple[int, ...], str]:
        """A program, the shape of x, and what it is: to a ``scalar``, to a number for each of the ``rows`` of x, or
        a ``map`` to many numbers."""
        kind = draw.choice(("scalar", "scalar", "rows", "map"))
        sizes = (3, 4, 5, 6, 9, 12, 63, 64, 65) if kind != "scalar" else (3, 5, 6, 9, 12, 24, 63, 64, 65, 255, 256, 260)
        shape: tuple[int, ...] = (draw.choice(sizes),)
        if kind == "rows":
            shape = (draw.choice((1, 2, 3, 5)), draw.choice((2, 3, 4, 6)))
        elif draw.random() < 0.25:
            shape = draw.choice(((3, 3), (4, 3), (2, 6), (16, 16), (8, 8), (2, 130)))
        results = {"scalar": "({}).square().sum()", "rows": "({}).reshape(len(x), -1).square().sum(1)", "map": "{}"}
        joined = {"scalar": " + ", "rows": " + ", "map": ", "}
        space = {**self.space, "x": self.space["C"](*shape, shift=0.4).requires_grad_()}
        statements: list[Statement] = []
        names = ["x"]
        wanted = draw.randint(1, 7)
        for _ in range(40):
            if len(statements) == wanted:
                break
            text = chosen(draw.choice(self.rows if kind == "rows" else self.any), draw)
            operands = [draw.choice([*names[-2:], *names]) for _ in "uvw"]
            statement = self.statement(text, f"t{len(statements)}", operands, space)
            if statement and (kind != "rows" or space[statement.name].shape[:-1] == shape[:1]):
                statements.append(statement)
                names.append(statement.name)
        outputs = tuple(dict.fromkeys([names[-1], *draw.sample(names, min(len(names), draw.randint(0, 2)))]))
        outputs = outputs if kind != "map" else outputs[:2]
        program = Program("x", tuple(statements), outputs, results[kind], joined[kind]).needed()
        return program, shape, kind


# Derivative tools: the check


@dataclass(frozen=True)
class Tools:
    """A function of a tensor: to a ``scalar``, to a number for each of its ``rows``, or a ``map`` to many numbers."""

    source: str
    shape: tuple[int, ...]
    kind: str
    what: str = "tools"

    @property
    def x(self) -> str:
        return f"C({', '.join(map(str, self.shape))}, shift=0.4)"

    @property
    def text(self) -> str:
        """The case as a program to paste; f needs what stands in TOOLS_PRELUDE."""
        return f"{self.source}\n\nx = {self.x}\n"


def pulled_rows(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The Jacobian of y ``[*m]`` in x ``[*n]`` as ``[m, n]``, a row at a time by the plainest reverse mode."""
    rows = [
        torch.autograd.grad(e, x, retain_graph=True, allow_unused=True, materialize_grads=True)[0].flatten().detach()
        for e in (y.flatten() if y.requires_grad else ())
    ]
    return torch.stack(rows) if rows else torch.zeros(y.numel(), x.numel(), dtype=x.dtype)


def plain_hessian(f: Callable[..., torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    x = x.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(f(x), x, create_graph=True, allow_unused=True, materialize_grads=True)
    return pulled_rows(gradient, x)


def differences(f: Callable[..., torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The Hessian by central differences of the gradient."""

    def gradient(at: torch.Tensor) -> torch.Tensor:
        at = at.detach().requires_grad_()
        return torch.autograd.grad(f(at), at, allow_unused=True, materialize_grads=True)[0].flatten()

    h = 1e-5
    units = torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape)
    return torch.stack([(gradient(x + h * e) - gradient(x - h * e)) / (2 * h) for e in units])


Tool = tuple[str, Callable[[], torch.Tensor], torch.Tensor]


def tools_of(case: Tools, f: Callable[..., Any], right: Callable[..., Any], x: torch.Tensor) -> list[Tool]:
    """The calls that take a program, each with what it has to give."""
    n = x.numel()
    if case.kind == "map":
        values = right(leaf := x.clone().requires_grad_())
        many = isinstance(values, tuple)
        rows = [pulled_rows(y, leaf) for y in (values if many else (values,))]
        expected = torch.cat(rows)

        def flat(J: Any) -> torch.Tensor:
            return torch.cat([block.reshape(-1, n) for block in (J if many else (J,))])

        return [
            ("ad.jacobian(f, x)", lambda: flat(ad.jacobian(f, x)), expected),
            ("ad.jacobian(f, x, chunk_size=1)", lambda: flat(ad.jacobian(f, x, chunk_size=1)), expected),
            ("ad.jacobian(f, x, chunk_size=5)", lambda: flat(ad.jacobian(f, x, chunk_size=5)), expected),
            ('ad.jacobian(f, x, strategy="reverse")', lambda: flat(ad.jacobian(f, x, strategy="reverse")), expected),
        ]
    if case.kind == "rows":
        each = [plain_hessian(lambda p: right(p.unsqueeze(0))[0], p) for p in x]
        diagonal = torch.stack([H.diagonal() for H in each])
        trace = diagonal.sum(1)
        value = right(leaf := x.clone().requires_grad_())
        slopes = torch.autograd.grad(value.sum(), leaf)[0]
        last = x.shape[1] - 1
        mixed = torch.stack([H[0, last] for H in each])
        return [
            ("ad.partials(f, x, [(0, last)])", lambda: ad.partials(f, x, [(0, last)])[0], mixed),
            ("ad.partials(f, x, [(last,)])", lambda: ad.partials(f, x, [(last,)])[0], slopes[:, last]),
            ("ad.hessian_diagonal(f, x, batched=True)", lambda: ad.hessian_diagonal(f, x, batched=True), diagonal),
            ("ad.laplacian(f, x)", lambda: ad.laplacian(f, x), trace),
            ("ad.laplacian(f, x, chunk_size=2)", lambda: ad.laplacian(f, x, chunk_size=2), trace),
            ("ad.forward_laplacian(f, x).value", lambda: ad.forward_laplacian(f, x).value, value.detach()),
            ("ad.forward_laplacian(f, x).jacobian", lambda: ad.forward_laplacian(f, x).jacobian, slopes),
            ("ad.forward_laplacian(f, x).laplacian", lambda: ad.forward_laplacian(f, x).laplacian, trace),
            (
                "ad.laplacian(f, x), differentiable",
                lambda: ad.laplacian(f, x.clone().requires_grad_()).detach(),
                trace,
            ),
        ]
    H = plain_hessian(right, x)
    v = torch.cos(torch.arange(n, dtype=x.dtype) * 1.7).view_as(x)
    product = (v.flatten() @ H).view_as(x)
    square = (n, n)
    calls: list[Tool] = [
        ("ad.hvp(f, x, v)", lambda: ad.hvp(f, x, v), product),
        ("ad.vhp(f, x, v)", lambda: ad.vhp(f, x, v), product),
        ("ad.hessian(f, x)", lambda: ad.hessian(f, x).view(square), H),
        ("ad.hessian(f, x, chunk_size=7)", lambda: ad.hessian(f, x, chunk_size=7).view(square), H),
        ("ad.hessian_diagonal(f, x)", lambda: ad.hessian_diagonal(f, x), H.diagonal().view_as(x)),
        (
            "ad.hessian(f, x), differentiable",
            lambda: ad.hessian(f, x.clone().requires_grad_()).detach().view(square),
            H,
        ),
    ]
    calls.append(
        (
            "ad.hessian_sparsity(f, x), and the rest of the Hessian",
            lambda: H.masked_fill(ad.hessian_sparsity(f, x).to_dense(), 0.0) / H.abs().max().clamp_min(1.0),
            torch.zeros_like(H),
        )
    )
    symmetric = torch.allclose(H, H.T, rtol=1e-9, atol=1e-9 * float(H.abs().max()))  # not of every Function
    if symmetric:
        calls.append(('ad.hessian(f, x, sparsity="auto")', lambda: ad.hessian(f, x, sparsity="auto").view(square), H))
    if n <= 65:
        forward = "forward-over-reverse"
        calls += [
            ("ad.hessian(f, x, chunk_size=1)", lambda: ad.hessian(f, x, chunk_size=1).view(square), H),
            (f'ad.hessian(f, x, strategy="{forward}")', lambda: ad.hessian(f, x, strategy=forward).view(square), H),
        ]
    if x.dim() == 1 and n <= 65:
        calls.append(("ad.laplacian(f, x)", lambda: ad.laplacian(f, x), H.trace()))
        calls.append(("ad.forward_laplacian(f, x).laplacian", lambda: ad.forward_laplacian(f, x).laplacian, H.trace()))
    constants = re.search(r"detach|no_grad|scaled|Flip|Through", case.source)  # which differences of H see as variables
    if n <= 65 and symmetric and not constants:  # the derivative in x of v^T H v, by differences of the products

        def along(at: torch.Tensor) -> torch.Tensor:
            return (plain_hessian(right, at) @ v.flatten()).view_as(x)

        thirds = [(along(x + h * v) - along(x - h * v)) / (2 * h) for h in (1e-5, 2e-5)]
        certain = torch.allclose(*thirds, rtol=0, atol=1e-5 * float(thirds[0].abs().max().clamp_min(1e-3)))

        def trained() -> torch.Tensor:
            leaf = x.clone().requires_grad_()
            product = (ad.hvp(f, leaf, v) * v).sum()
            return torch.autograd.grad(product, leaf, allow_unused=True, materialize_grads=True)[0]

        if certain:
            calls.append(("torch.autograd.grad((ad.hvp(f, x, v) * v).sum(), x)", trained, thirds[0]))
    return calls


def check_tools(case: Tools, tools: Sequence[str] | None = None) -> None:
    """Raises Failure where a tool gives something else than a loop of ``torch.autograd.grad``."""
    f, right = function_of(case.source, TOOLS_PRELUDE), function_of(case.source, TOOLS_PRELUDE + RIGHT)
    x = eval(case.x, namespace(TOOLS_PRELUDE))
    of_any_pattern = mock.patch.multiple(thresholds, FEW_ELEMENTS=0, SHARE=math.inf, SAVING=1)
    with warnings.catch_warnings(), of_any_pattern:
        warnings.simplefilter("ignore")
        try:
            calls = tools_of(case, f, right, x)
        except RuntimeError as error:
            raise Refused(f"native: {str(error).splitlines()[0]}") from error
        for name, call, expected in calls:
            if tools is not None and name not in tools:
                continue
            try:
                result = call().detach()
            except (RuntimeError, NotImplementedError) as error:
                text = str(error)
                if any(reason in text for reason in NOT_DIFFERENTIABLE):
                    continue
                problem = f"{name}: raises {type(error).__name__}: {text.splitlines()[0]}"
                raise Failure(name, problem, raises=True) from error
            except (TypeError, ValueError, AttributeError, KeyError, IndexError, AssertionError) as error:
                if any(reason in str(error) for reason in NOT_DIFFERENTIABLE):
                    continue
                problem = f"{name}: raises {type(error).__name__}: {str(error)[:300]}"
                raise Failure(name, problem, raises=True) from error
            if result.shape != expected.shape:
                raise Failure(name, f"{name}: shape {list(result.shape)}, expected {list(expected.shape)}")
            scale = expected.abs().max().clamp_min(1e-3) if expected.numel() else 1.0
            tolerance = (1e-4 if name.startswith("torch.autograd") else 1e-8) * scale
            wrong = ~((result - expected).abs() <= tolerance)
            if (
                wrong.any()
                and expected.isfinite().all()
                and not _ill_conditioned(case, right, x, name, result, expected)
            ):
                at = tuple(wrong.nonzero()[0].tolist())
                error = ((result - expected).abs().max() / scale).item()
                raise Failure(
                    name,
                    f"{name}: got {result[at].item():.9g}, expected {expected[at].item():.9g} at {list(at)}; off by "
                    f"{error:.2g} of the largest",
                )


NOT_DIFFERENTIABLE = (
    "not differentiable often enough", "not implemented", "Cube", "derivative for", "jvp", "forward mode", "forward AD",
    "give chunk_size=1", "makes each result depend on all points", "setup_context", "data-dependent", "vmap",
)  # fmt: skip


def _ill_conditioned(
    case: Tools, right: Callable[..., Any], x: torch.Tensor, name: str, result: torch.Tensor, expected: torch.Tensor
) -> bool:
    """Does the expected result move as far where x is rounded, or is it PyTorch's that is wrong?"""
    moved = {
        n: e
        for n, _, e in tools_of(case, right, right, x * (1 + 1e-13 * torch.cos(torch.arange(x.numel())).view_as(x)))
    }
    tenfold = 10 * (moved[name] - expected).abs().max() if name in moved else torch.tensor(math.inf)
    if bool((result - expected).abs().max() <= 1e3 * tenfold):
        return True
    if case.kind != "scalar" or result.shape != (x.numel(), x.numel()):
        return False
    exact = differences(right, x)
    scale = 1e-4 * exact.abs().max()
    return bool((result - exact).abs().max() < scale < (expected - exact).abs().max())


# Running


Case = Declared | Tools


def check(case: Case, of: Any = None) -> None:
    """Raises Failure where a case fails, ``of`` being the failure of another case that it has to repeat."""
    if isinstance(case, Declared):
        check_declared(case)
    else:
        check_tools(case, None if of is None else [of])


def failure_of(case: Case, like: Failure | None = None) -> Failure | None:
    """How a case fails, if in the same way as another one."""
    try:
        check(case, like.of if like and isinstance(case, Tools) else None)
    except Failure as failure:
        if like is None or (failure.raises, str(failure.of) == "dtype") == (like.raises, str(like.of) == "dtype"):
            return failure
    except Refused:
        return None
    except Exception as error:  # of a program that shrinking made invalid, or of the library
        return None if like else Failure("crash", f"{type(error).__name__}: {error}", raises=True)
    finally:
        for folder in _settings.cache_dir().glob(f"fuzz{os.getpid()}*"):
            shutil.rmtree(folder, ignore_errors=True)
    return None


def minimal(case: Case, program: Program, failure: Failure, seconds: float = 40) -> tuple[Case, Failure]:
    """The smallest case found that fails in the same way."""
    if isinstance(case, Declared):
        if failure.at is not None:
            one = replace(case, points={name: [column[failure.at]] for name, column in case.points.items()})
            case = one if failure_of(one, failure) else case
        if isinstance(failure.of, int):
            case = replace(case, orders=failure.of)
    else:
        lengths = [(n,) for n in (3, 4, 6, 9, 64)]
        shapes = [(1, 3), (2, 3)] if case.kind == "rows" else [*lengths, (3, 3), (256,)]
        smaller = (replace(case, shape=shape) for shape in shapes if math.prod(shape) < math.prod(case.shape))
        case = next((each for each in smaller if failure_of(each, failure)), case)
    program = shrunk(program, lambda p: bool(failure_of(replace(case, source=p.source), failure)), seconds)
    case = replace(case, source=program.source)
    return case, failure_of(case, failure) or failure


def signature(case: Case, failure: Failure) -> str:
    """What failures of one cause have in common: the functions and operators of the smallest program."""
    body = case.source.partition("\n")[2]
    words = set(re.findall(r"[A-Za-z_]{2,}|[-+*/%&|^~<>=!]+", body)) - {
        "torch",
        "return",
        "=",
        "self",
        "shape",
        "len",
        "reshape",
    }
    return " ".join([case.what, "raises" if failure.raises else "differs", *sorted(words)])


def path_of(case: Case, failure: Failure) -> Path:
    digest = hashlib.sha256(signature(case, failure).encode()).hexdigest()[:10]
    return SEEDS / f"{case.what}-{digest}.json"


def to_json(case: Case, failure: Failure) -> str:
    return json.dumps({**asdict(case), "source": case.source.splitlines(), "found": str(failure)}, indent=1) + "\n"


def from_json(text: str) -> Case:
    fields = json.loads(text)
    del fields["found"]
    fields["source"] = "\n".join(fields["source"])
    if fields["what"] == "declared":
        return Declared(**fields)
    return Tools(**{**fields, "shape": tuple(fields["shape"])})


@functools.cache
def composer(what: str) -> Any:
    return Composer() if what == "declared" else ToolsComposer()


def cases(what: str, seed: int) -> Iterator[tuple[Program, Case]]:
    """The cases of a seed, with the program from which each is made."""
    draw = random.Random(f"{what} {seed}")
    if what == "declared":
        program = composer(what).program(draw)
        for case in declared_cases(program, draw):
            yield program, case
    else:
        program, shape, kind = composer(what).case(draw)
        yield program, Tools(program.source, shape, kind)


def work(what: str, seeds: Sequence[int], end: float) -> None:
    """Runs seeds, and prints lines of JSON for the parent process: each seed, each failure, and what was refused."""
    for seed in seeds:
        if time.time() > end:
            break
        print(json.dumps({"seed": seed, "what": what}), flush=True)
        for program, case in cases(what, seed):
            if failure := failure_of(case):
                case, failure = minimal(case, program, failure)
                message = f"{failure} (seed {seed})"
                found = {"case": to_json(case, failure), "text": case.text, "path": str(path_of(case, failure))}
                print(json.dumps({**found, "message": message}), flush=True)
                break
    drawn = composer(what)
    print(json.dumps({"refused": drawn.refused, "missing": drawn.missing}), flush=True)


CHUNK = 50  # seeds of one process: kernels stay loaded
CACHE = Path(__file__).parents[1] / "build" / "fuzz"  # of kernels of random programs


class Fuzzer:
    """Runs processes, each for some seeds, and keeps what fails."""

    def __init__(self, kinds: Sequence[str], seed: int, count: int | None, seconds: float) -> None:
        self.began, self.end = time.time(), time.time() + seconds
        starts = itertools.count(seed, CHUNK) if count is None else range(seed, seed + count, CHUNK)
        last = math.inf if count is None else seed + count
        self.chunks = ((what, start, int(min(CHUNK, last - start))) for start in starts for what in kinds)
        self.ran: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.missing: set[str] = set()
        self.found: Counter[str] = Counter()
        self.lock = threading.Lock()

    def run(self) -> None:
        """One process after another."""
        environment = {"TORCHAD_EXT_EAGER": "wait", "TORCHAD_EXT_CACHE_DIR": str(CACHE), **os.environ}
        while time.time() < self.end:
            with self.lock:
                chunk = next(self.chunks, None)
            if chunk is None:
                return
            what, start, count = chunk
            command = [sys.executable, __file__, "--what", what, "--seed", str(start), "--count", str(count)]
            process = subprocess.run(
                [*command, "--worker", str(self.end)], capture_output=True, text=True, env=environment, check=False
            )
            with self.lock:
                seeds = self.read(process.stdout)
                if process.returncode:
                    ended = f"the process ended with {process.returncode} at seed {seeds[-1:]}"
                    self.report(f"{what}-crash", f"{ended}:\n{process.stderr[-3000:]}")
                print(self.summary(), flush=True)

    def read(self, output: str) -> list[int]:
        seeds = []
        for line in output.splitlines():
            result = json.loads(line)
            if "seed" in result:
                self.ran[result["what"]] += 1
                seeds.append(result["seed"])
            elif "case" in result:
                path = Path(result["path"])
                if not path.exists():
                    path.parent.mkdir(exist_ok=True)
                    path.write_text(result["case"], encoding="utf-8")
                self.report(path.name, f"{result['message']}\n\n{result['text']}")
            else:
                self.refused.update(result["refused"])
                self.missing.update(result["missing"])
        return seeds

    def report(self, name: str, text: str) -> None:
        if not self.found[name]:
            print(f"\n{'=' * 100}\n{name}: {text}", flush=True)
        self.found[name] += 1

    def summary(self) -> str:
        ran = " and ".join(f"{n} {what}" for what, n in sorted(self.ran.items())) or "no"
        failed = f"{sum(self.found.values())} failed in {len(self.found)} ways"
        return f"{time.time() - self.began:.0f} s: {ran} programs ran, {failed}"


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0, help="the first seed; each makes one program")
    parser.add_argument("--count", type=int, help="how many seeds to run; by default as many as there is time for")
    parser.add_argument("--what", choices=("declared", "tools", "all"), default="all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many processes run at a time")
    parser.add_argument("--worker", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        torch.set_num_threads(1)
        work(given.what, range(given.seed, given.seed + given.count), given.worker)
        return 0
    kinds = ("declared", "tools") if given.what == "all" else (given.what,)
    fuzzer = Fuzzer(kinds, given.seed, given.count, given.seconds)
    threads = [threading.Thread(target=fuzzer.run) for _ in range(given.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("\nRefused, so not used:", *sorted(repr(text) for text in fuzzer.missing), sep="\n  ")
    print("\nRefused within a program, so left out:")
    for text, count in fuzzer.refused.most_common(20):
        print(f"  {count} times: {text}")
    print("\nFailures:")
    for name, count in fuzzer.found.most_common():
        print(f"  {count} times: {name}")
    print(fuzzer.summary())
    return 1 if fuzzer.found else 0


if __name__ == "__main__":
    sys.exit(main())
