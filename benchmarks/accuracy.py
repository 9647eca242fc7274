"""Measures the error of sin, exp and their derivatives, ours and native PyTorch's, in units in the last place (ulp).

float32: all 2**32 inputs, against native float64. float64: random inputs of every exponent, against the C library in
80 bits, and inputs that are hard, against mpmath. float16 and bfloat16: all 65,536 inputs, against native float64.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import torch
from marks import replace_between
from rich.progress import Progress
from torch import Tensor

import torchad_ext as ad

HERE = Path(__file__).resolve().parent
README = HERE / "README.md"
BEGIN, END = "<!-- accuracy -->", "<!-- end of accuracy -->"

Function = Callable[[Tensor], Tensor]
PIECE = 1 << 19  # stays in the cache
PRECISION = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24}
BITS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}


def derivatives(library: Any) -> dict[str, tuple[Callable[[Any], Any], ...]]:
    """What each derivative of an op is, with the functions of a library."""
    return {"sin": (library.sin, library.cos, lambda x: -library.sin(x)), "exp": (library.exp,) * 3}


NATIVE, EXACT, LONG = derivatives(torch), derivatives(mpmath), derivatives(np)


def derivative(name: str, order: int) -> Function:
    """The kernel of a derivative with respect to x, for cotangents of 1."""
    op = getattr(ad, name)

    def evaluate(x: Tensor) -> Tensor:
        ones = torch.ones((), dtype=x.dtype).expand_as(x)
        result = op._order(order).run((x, *[ones] * order), ())
        return result[0] if isinstance(result, tuple) else result  # type: ignore[no-any-return]

    return evaluate


@dataclass
class Error:
    """The largest error so far, in ulp of the exact result, where it is, and how many special values are wrong."""

    ulp: float = 0.0
    at: float = math.nan
    wrong: int = 0
    inputs: int = field(default=0, repr=False)

    def add(self, x: Tensor, y: Tensor, exact: Tensor) -> None:
        """Takes results ``y`` at ``x`` of which float64 ``exact`` is the exact value, up to its own last place."""
        limits = torch.finfo(y.dtype)
        size = exact.abs()
        # 2**e of the binade of the exact result lies in its exponent bits; a unit is 2**(e + 1 - precision).
        exponent = (size.clamp_min(limits.smallest_normal).view(torch.int64) >> 52) + 1 - PRECISION[y.dtype]
        ulps = (y.double() - exact).abs_().div_((exponent << 52).view(torch.float64))
        if not bool((ulps < math.inf).all() & (size < limits.max).all()):
            finite = size < limits.max
            # An infinite result is right where the exact one rounds to it; a nan only where the exact one is nan.
            right = (y == exact.float().to(y.dtype)) | (y.isnan() & exact.isnan())
            self.wrong += int((~finite & ~right).sum())
            ulps = torch.where(finite, ulps.nan_to_num(math.inf, math.inf), 0.0)
        worst = int(ulps.argmax())
        if float(ulps[worst]) > self.ulp:
            self.ulp, self.at = float(ulps[worst]), float(x[worst])
        self.inputs += x.numel()


def all_of(dtype: torch.dtype, step: int = 1) -> Iterator[Tensor]:
    """Every ``step``-th number of a dtype of at most 32 bits, in pieces."""
    bits = 8 * dtype.itemsize
    for start in range(-(1 << bits - 1), 1 << bits - 1, PIECE * step):
        stop = min(start + PIECE * step, 1 << bits - 1)
        yield torch.arange(start, stop, step).to(BITS[dtype]).view(dtype)


def pieces(dtype: torch.dtype, step: int = 1) -> int:
    return math.ceil((1 << 8 * dtype.itemsize) / (PIECE * step))


def exhaustive(name: str, order: int, dtype: torch.dtype, step: int = 1) -> Iterator[tuple[Error, Error]]:
    """Our error and native's, after each piece."""
    ours, native = Error(), Error()
    function, reference = derivative(name, order), NATIVE[name][order]
    for x in all_of(dtype, step):
        exact = reference(x.double())
        ours.add(x, function(x), exact)
        native.add(x, reference(x), exact)
        yield ours, native


def random_float64(count: int) -> Tensor:
    """Random bits: every exponent and sign is as likely."""
    bits = np.random.default_rng(0).integers(0, 1 << 64, count, dtype=np.uint64)
    x = torch.from_numpy(bits.view(np.int64)).view(torch.float64)
    return x[x.isfinite()]


def hard_float64() -> Tensor:
    """Where digits are lost: beside multiples of pi/2, at the ends of the exponential's range, and tiny numbers."""
    multiples = torch.arange(1, 3001, dtype=torch.float64) * (math.pi / 2)
    powers = [float(mpmath.pi / 2 * mpmath.mpf(2) ** k * odd) for k in range(0, 1000, 7) for odd in (1, 3)]
    worst = [6381956970095103.0 * 2.0**797, 5319372648326541.0 * 2.0**-49]  # the nearest to a multiple of pi/2
    ends = torch.cat([torch.linspace(709.7, 709.79, 500), torch.linspace(-745.2, -708.0, 1500)]).double()
    tiny = torch.logspace(-320, -3, 500, dtype=torch.float64)
    x = torch.cat([multiples, torch.tensor([*powers, *worst], dtype=torch.float64), ends, tiny])
    return torch.cat([x, torch.nextafter(x, torch.tensor(math.inf, dtype=x.dtype)), -x])


def error_float64(result: Tensor, x: Tensor, exact: Any) -> Error:
    """The error of float64 results, given exact ones as numpy's longdouble."""
    y = result.numpy().astype(np.longdouble)
    limits = np.finfo(np.float64)
    finite = np.isfinite(exact) & (np.abs(exact) < limits.max)
    _, exponent = np.frexp(np.maximum(np.abs(exact), limits.tiny))
    with np.errstate(invalid="ignore", over="ignore"):
        ulps = np.where(finite, np.abs(y - exact) / np.ldexp(np.longdouble(1), exponent - 53), 0)
        rounded = exact.astype(np.float64)
        right = (y == rounded) | (np.isnan(y) & np.isnan(exact))
    worst = int(np.argmax(np.where(np.isnan(ulps), np.inf, ulps)))
    return Error(float(ulps[worst]), float(x[worst]), int((~finite & ~right).sum()), len(x))


def by_mpmath(function: Callable[[Any], Any], x: Tensor) -> Any:
    """Exact values as numpy's longdouble."""
    with mpmath.workprec(200):
        digits = [mpmath.nstr(function(mpmath.mpf(v)), 25) for v in x.tolist()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of what is infinite
        return np.array(digits, dtype=np.longdouble)


@functools.cache
def hard_results(function: Callable[[Any], Any]) -> tuple[Tensor, Any]:
    """The hard inputs with the exact results of a function of mpmath."""
    x = hard_float64()
    return x, by_mpmath(function, x)


def float64_errors(name: str, order: int, count: int) -> dict[str, tuple[Error, Error]]:
    """Our error and native's at random and at hard inputs."""
    function, native = derivative(name, order), NATIVE[name][order]
    results = {"hard": hard_results(EXACT[name][order])}
    if np.finfo(np.longdouble).nmant > 60:
        x = random_float64(count)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            results["random"] = x, LONG[name][order](x.numpy().astype(np.longdouble))
    return {
        kind: (error_float64(function(x), x, exact), error_float64(native(x), x, exact))
        for kind, (x, exact) in results.items()
    }


def main() -> None:
    """Measures everything, prints the table, and keeps it in results/accuracy.json and in the README."""
    parser = argparse.ArgumentParser(description="Measures errors in units in the last place.")
    parser.add_argument("--step", type=int, default=1, help="only every so manyth float32; nothing is kept then")
    step = parser.parse_args().step
    lines = ["| | inputs | ours, ulp | at | native, ulp | at | wrong special values, ours and native |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    record = []

    def note(name: str, order: int, what: str, ours: Error, native: Error) -> None:
        row = {"function": name + "′" * order, "inputs": what, "count": ours.inputs}
        record.append({**row, "ours": vars(ours), "native": vars(native)})
        errors = f"{ours.ulp:.3f} | {ours.at:.9g} | {native.ulp:.3f} | {native.at:.9g}"
        lines.append(f"| {name}{'′' * order} | {what}, {ours.inputs:,} | {errors} | {ours.wrong}, {native.wrong} |")

    with Progress() as progress:
        for name in NATIVE:
            for order in range(3):
                for dtype in (torch.float16, torch.bfloat16, torch.float32):
                    of = str(dtype).removeprefix("torch.")
                    sparse = step if dtype is torch.float32 else 1
                    title = f"{name}{'′' * order} {of}"
                    for errors in progress.track(
                        exhaustive(name, order, dtype, sparse), total=pieces(dtype, sparse), description=title
                    ):
                        ours, native = errors
                    note(name, order, f"all {of}" if sparse == 1 else f"some {of}", ours, native)
                for kind, (ours, native) in float64_errors(name, order, 10**7).items():
                    note(name, order, f"{kind} float64", ours, native)
    table = "\n".join(lines) + "\n"
    print(table)
    if step == 1:
        (HERE / "results" / "accuracy.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        replace_between(README, BEGIN, END, table)


if __name__ == "__main__":
    main()
