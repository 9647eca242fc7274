"""Measures the relative error of every op and of its first three derivatives over its whole range, ours and native's.

The exact results are power series in mpmath. The error of a result is relative to the largest exact one within 1 % of
the point, so that a zero crossing has the scale of its surroundings, and what is denormal that of the least normal
number. Where the exact result overflows, nothing is compared.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mpmath
import taylor
import torch
import torch.nn.functional as F
from marks import replace_between
from mpmath import mpf
from taylor import ORDER, Series, exp, log, power, series, sigmoid, tanh
from torch import Tensor

import torchad_ext as ad
from torchad_ext.ops import CATALOGUE

HERE = Path(__file__).resolve().parent
README = HERE / "README.md"
BEGIN, END = "<!-- errors over the whole range -->", "<!-- end of errors over the whole range -->"
DTYPES = (torch.float32, torch.float64)
Op = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        name: as in the table.
        ours: the op.
        native: what it replaces.
        exact: its formula on power series.
        bounds: where it is sampled in float64, and in float32.
        centres: numbers near which it is sampled densely.
        digits: of the exact results, more where their formula cancels: 1 - tanh has its first at the 300th.
        reach: what is next to a point besides 1 % of it, where a derivative crosses zero near 0 but not at 0.
    """

    name: str
    ours: Op
    native: Op
    exact: Callable[[Series], Series]
    bounds: dict[torch.dtype, tuple[float, float]]
    centres: tuple[float, ...] = (0.0,)
    digits: int = 120
    reach: float = 0.0


_CANCELLING = (
    "tanh", "sigmoid", "silu", "gelu, tanh form", "softplus", "mish", "shifted_softplus", "F.logsigmoid", "F.softsign",
    "F.tanhshrink",
)  # fmt: skip


def _subject(
    name: str,
    exact: Callable[[Series], Series],
    double: tuple[float, float],
    single: tuple[float, float] | None = None,
    *,
    ours: Op | None = None,
    native: Op | None = None,
    centres: tuple[float, ...] = (0.0,),
    reach: float = 0.0,
) -> Subject:
    op = ours or CATALOGUE[name]
    plain = native or (CATALOGUE[name].definition if name in CATALOGUE else ours)
    assert plain is not None
    bounds = {torch.float64: double, torch.float32: single or double}
    return Subject(name, op, plain, exact, bounds, centres, 700 if name in _CANCELLING else 120, reach)


def _softplus(u: Series) -> Series:
    return u if u.terms[0] > 20 else log(1 + exp(u))


def _cutoff(u: Series) -> Series:
    z = u / 5
    return series(0) if u.terms[0] >= 5 else 1 - 28 * z**6 + 48 * z**7 - 21 * z**8


def _elu(u: Series) -> Series:
    return u if u.terms[0] > 0 else exp(u) - 1


def _tan(u: Series) -> Series:
    return taylor.sin(u) / taylor.cos(u)


def _sinc(u: Series) -> Series:
    angle: Series = u * mpmath.pi
    return taylor.sin(angle) / angle


def _gelu_tanh(u: Series) -> Series:
    z: Series = (u + u**3 * mpf("0.044715")) * (2 * mpmath.sqrt(2 / mpmath.pi))
    return u * sigmoid(z)


def _through(function: Op) -> Op:
    return ad.pointwise(lambda x: function(x))


POSITIVE, ANY = ((1e-290, 1e290), (1e-36, 1e36)), ((-1e290, 1e290), (-1e36, 1e36))
SUBJECTS = [
    _subject("sin", taylor.sin, (-1e5, 1e5)),
    _subject("cos", taylor.cos, (-1e5, 1e5)),
    _subject("tan", _tan, (-1e5, 1e5)),
    _subject("exp", exp, (-744, 709), (-103, 88)),
    _subject("expm1", lambda u: exp(u) - 1, (-744, 709), (-103, 88)),
    _subject("log", log, *POSITIVE, centres=(0.0, 1.0)),
    _subject("log1p", taylor.log1p, (-1.0, 1e290), (-1.0, 1e36), centres=(0.0, -1.0)),
    _subject("tanh", tanh, (-372, 372), (-52, 52)),
    _subject("sigmoid", sigmoid, (-744, 744), (-103, 103)),
    _subject("erf", taylor.erf, (-26.5, 26.5), (-9.2, 9.2)),
    _subject("sinc", _sinc, (-1e5, 1e5)),
    _subject("square", lambda u: u * u, (-1e150, 1e150), (-1e18, 1e18)),
    _subject("sqrt", lambda u: power(u, mpf(0.5)), *POSITIVE),
    _subject("rsqrt", lambda u: power(u, mpf(-0.5)), *POSITIVE),
    _subject("reciprocal", lambda u: 1 / u, *ANY),
    _subject(
        "pow",
        lambda u: power(u, mpf(2.5)),
        *POSITIVE,
        ours=lambda x: ad.pow(x, 2.5),
        native=lambda x: torch.pow(x, 2.5),
    ),
    _subject("silu", lambda u: u * sigmoid(u), (-744, 744), (-103, 103)),
    _subject("gelu", lambda u: u * taylor.ndtr(u), (-37.5, 37.5), (-12.9, 12.9)),
    _subject(
        "gelu, tanh form",
        _gelu_tanh,
        (-21.5, 21.5),
        (-10.2, 10.2),
        ours=lambda x: ad.gelu(x, approximate="tanh"),
        native=lambda x: F.gelu(x, approximate="tanh"),
    ),
    _subject("softplus", _softplus, (-744, 744), (-103, 103)),
    _subject("mish", lambda u: u * tanh(log(1 + exp(u))), (-744, 354), (-103, 43.5), reach=0.01),
    _subject("elu", _elu, (-744, 1e30), (-103, 1e30)),
    _subject("celu", _elu, (-744, 1e30), (-103, 1e30)),
    _subject("snake", lambda u: u + taylor.sin(u) ** 2, (-1e5, 1e5)),
    _subject("siren", lambda u: taylor.sin(30 * u), (-30, 30), (-4, 4)),
    _subject("gaussian", lambda u: exp(-1 * u * u / 2), (-37.5, 37.5), (-12.9, 12.9)),
    _subject("shifted_softplus", lambda u: log((exp(u) + 1) / 2), (-744, 744), (-103, 103)),
    _subject("gaussian_basis", lambda u: exp(-1 * u * u / 2), (-37.5, 37.5), (-12.9, 12.9)),
    _subject("polynomial_cutoff", _cutoff, (0.0, 6.0), centres=(0.0, 5.0)),
    _subject(
        "F.logsigmoid",
        lambda u: -log(1 + exp(-u)),
        (-744, 744),
        (-103, 103),
        ours=_through(F.logsigmoid),
        native=F.logsigmoid,
    ),
    _subject(
        "torch.special.ndtr",
        taylor.ndtr,
        (-38.4, 38.4),
        (-14, 14),
        ours=_through(torch.special.ndtr),
        native=torch.special.ndtr,
    ),
    _subject("torch.erfc", taylor.erfc, (-26.5, 26.5), (-9.2, 9.2), ours=_through(torch.erfc), native=torch.erfc),
    _subject("torch.asin", taylor.asin, (-1.0, 1.0), ours=_through(torch.asin), native=torch.asin, centres=(0, 1, -1)),
    _subject("torch.acos", taylor.acos, (-1.0, 1.0), ours=_through(torch.acos), native=torch.acos, centres=(0, 1, -1)),
    _subject(
        "torch.atanh", taylor.atanh, (-1.0, 1.0), ours=_through(torch.atanh), native=torch.atanh, centres=(0, 1, -1)
    ),
    _subject("torch.acosh", taylor.acosh, (1.0, 1e9), ours=_through(torch.acosh), native=torch.acosh, centres=(1.0,)),
    _subject(
        "torch.log2", lambda u: log(u) / mpmath.log(2), *POSITIVE, ours=_through(torch.log2), native=torch.log2,
        centres=(0.0, 1.0),
    ),
    _subject(
        "torch.log10", lambda u: log(u) / mpmath.log(10), *POSITIVE, ours=_through(torch.log10), native=torch.log10,
        centres=(0.0, 1.0),
    ),
    _subject(
        "F.softsign",
        lambda u: u / (1 + (u if u.terms[0] > 0 else -u)),
        (-1e60, 1e60),
        (-1e8, 1e8),
        ours=_through(F.softsign),
        native=F.softsign,
    ),
    _subject(
        "F.tanhshrink", lambda u: u - tanh(u), (-372, 372), (-52, 52), ours=_through(F.tanhshrink), native=F.tanhshrink
    ),
]  # fmt: skip


def points(subject: Subject, dtype: torch.dtype, count: int) -> Tensor:
    """Numbers of a dtype: in equal steps, and at distances from each centre that grow geometrically."""
    low, high = subject.bounds[dtype]
    steps = torch.linspace(low, high, count, dtype=torch.float64) + (high - low) / count * 0.37
    near = [steps]
    for centre in subject.centres:
        least = max(torch.finfo(dtype).eps * abs(centre), low) if low >= 0 else torch.finfo(dtype).eps * abs(centre)
        for side in (low - centre, high - centre):
            if side:
                from_, to = math.log10(least or 1e-12), math.log10(abs(side))
                distances = torch.logspace(min(from_, to), to, count, dtype=torch.float64)
                near.append(centre + math.copysign(1, side) * distances * 0.997)
    x = torch.cat(near).to(dtype).unique()
    inside: Tensor = x[(x > low) & (x < high) & (x != 0)]
    return inside


def exact(subject: Subject, x: float) -> tuple[list[mpf], list[mpf]]:
    """The exact results of all orders at a point, and the largest ones near it."""
    low, high = subject.bounds[torch.float64]
    reach = 0.01 * abs(x) + subject.reach
    near = [v for v in (x - reach, x - reach / 2, x + reach / 2, x + reach) if low < v < high]
    with mpmath.workdps(subject.digits):
        middle, *around = (subject.exact(taylor.variable(v)).derivatives for v in (x, *near))
        return middle, [max(map(abs, each)) for each in zip(middle, *around, strict=True)]


def derivatives(op: Op, x: Tensor) -> Iterator[Tensor]:
    """The results of all orders by repeated reverse mode."""
    x = x.clone().requires_grad_()
    y = op(x)
    yield y.detach()
    for _ in range(ORDER):
        y = torch.autograd.grad(y.sum(), x, create_graph=True)[0] if y.requires_grad else torch.zeros_like(x)
        yield y.detach()


@dataclass
class Error:
    """The largest relative error, and where it is."""

    relative: float = 0.0
    at: float = math.nan


def errors(subject: Subject, dtype: torch.dtype, count: int) -> Iterator[tuple[Error, Error]]:
    """Our error and native's, of each order."""
    x = points(subject, dtype, count)
    reference = [exact(subject, v) for v in x.tolist()]
    limits = torch.finfo(dtype)
    results = zip(derivatives(subject.ours, x), derivatives(subject.native, x), strict=True)
    for order, pair in enumerate(results):
        found = (Error(), Error())
        for error, result in zip(found, pair, strict=True):
            for v, y, (middle, scale) in zip(x.tolist(), result.tolist(), reference, strict=True):
                if scale[order] > limits.max:
                    continue
                relative = float(abs(mpf(y) - middle[order]) / max(scale[order], limits.smallest_normal))
                if not relative <= error.relative:
                    error.relative, error.at = relative, v
        yield found


def main() -> None:
    """Measures everything, prints the table, and keeps it in results/tails.json and in the README."""
    parser = argparse.ArgumentParser(description="Measures the relative errors of derivatives over the whole range.")
    parser.add_argument("--count", type=int, default=60, help="points in equal steps, and on each side of a centre")
    parser.add_argument("--only", default="", help="subjects whose name contains this; nothing is kept then")
    chosen = parser.parse_args()
    orders = " | ".join(f"{'f' + '′' * order}" for order in range(ORDER + 1))
    lines = [f"| | dtype | {orders} |", "| --- | --- |" + " ---: |" * (ORDER + 1)]
    record = []
    for subject in SUBJECTS:
        if chosen.only not in subject.name:
            continue
        for dtype in DTYPES:
            name = str(dtype).removeprefix("torch.")
            cells = []
            for order, (ours, native) in enumerate(errors(subject, dtype, chosen.count)):
                row = {"op": subject.name, "dtype": name, "order": order}
                record.append({**row, "ours": vars(ours), "native": vars(native)})
                cells.append(f"{ours.relative:.1e}, {native.relative:.1e}")
                if chosen.only:
                    print(order, ours, native)
            lines.append(f"| {subject.name} | {name} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    if not chosen.only:
        table = "\n".join(lines) + "\n"
        (HERE / "results" / "tails.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        replace_between(README, BEGIN, END, table)


if __name__ == "__main__":
    main()
