"""Measures quadratic_form with one A for a batch over a grid of lengths, batches, dtypes and derivatives.

    python benchmarks/quadratic_form_grid.py                                  # all of it; rewrites results/
    python benchmarks/quadratic_form_grid.py --n 64 300 --batch 1 8 --quick   # a part, which is printed only

A cell is how many times faster ``torchad_ext`` is than the fastest way in plain PyTorch, in lower quartiles.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import sys
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

import torch
from cases import SHARED_A, form_gradient, form_pullback, form_second_pullback, value
from rich.console import Console
from rich.table import Table
from run import RESULTS, machine
from timing import alternate, quartiles

import torchad_ext as ad

LENGTHS = (3, 16, 64, 300, 1000, 2000, 4096)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 256, 10_000)
DTYPES = ("float32", "float64")
COMPUTATIONS: dict[str, Callable[..., Any]] = {
    "f": value,
    "f + b for x": form_gradient,
    "f + b": form_pullback,
    "f + b + bb": form_second_pullback,
}
LONG = 0.3  # seconds of a call of which a few samples have to do


def ratio(n: int, batch: int, dtype: str, computation: str, seconds: float) -> dict[str, Any]:
    """A cell of the grid."""
    torch.manual_seed(0)
    randn = functools.partial(torch.randn, dtype=getattr(torch, dtype))
    run = COMPUTATIONS[computation]
    inputs = [randn(batch, n), randn(n, n)]
    if run is not value:
        inputs = [*(x.requires_grad_() for x in (*inputs, randn(batch))), randn(batch, n), randn(n, n)]
    ways: dict[str, Callable[[], Any]] = {name: functools.partial(run, op, *inputs) for name, op in SHARED_A.items()}
    if 4 * batch * n * n > 1e11:  # the three take as long, all but their last percents
        ways = {"vecdot(x @ A, x)": ways["vecdot(x @ A, x)"]}
    ways["torchad_ext"] = functools.partial(run, ad.quadratic_form, *inputs)
    if 12 * batch * n * n / 1e11 > LONG:
        samples = alternate_few(ways)
    else:
        for call in ways.values():
            call()
        samples = alternate(ways, seconds, lambda: None, 7)
    times = {name: quartiles(sample).q1 for name, sample in samples.items()}
    ours = times.pop("torchad_ext")
    fastest = min(times, key=times.__getitem__)
    return {"native": fastest, "ratio": times[fastest] / ours, "seconds": {**times, "torchad_ext": ours}}


def alternate_few(ways: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds of two calls of each way, in turn."""
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for _, (name, call) in itertools.product(range(2), ways.items()):
        start = perf_counter()
        call()
        samples[name].append(perf_counter() - start)
    return samples


def wanted(n: int, batch: int) -> float:
    """The ratio to reach: A is read once for a few vectors."""
    return 1.5 if batch <= 8 and n >= 300 else 1.0


def main() -> None:
    """Measures, prints a table for each dtype and computation, and keeps a complete run in results/."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--n", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--batch", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--dtype", nargs="+", default=DTYPES, choices=DTYPES)
    parser.add_argument("--only", nargs="+", default=tuple(COMPUTATIONS), choices=tuple(COMPUTATIONS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a few samples a cell")
    args = parser.parse_args()
    os.environ["TORCHAD_EXT_EAGER"] = "wait"  # its compiler would disturb what is measured
    torch.set_num_threads(args.threads)
    ad.quadratic_form(torch.ones(2), torch.eye(2))
    console, cells = Console(), []
    for dtype, computation in itertools.product(args.dtype, args.only):
        table = Table(f"{computation}, {dtype}", *(f"B = {batch}" for batch in args.batch))
        for n in args.n:
            row = [f"n = {n}"]
            for batch in args.batch:
                cell = ratio(n, batch, dtype, computation, 0.02 if args.quick else 0.04)
                cells.append({"n": n, "batch": batch, "dtype": dtype, "computation": computation, **cell})
                text = f"{cell['ratio']:.2f}"
                row.append(text if float(text) >= wanted(n, batch) else f"[red]{text}[/red]")
                print(end=".", file=sys.stderr, flush=True)
            table.add_row(*row)
        console.print(table)
    kept = sum(round(cell["ratio"], 2) >= wanted(cell["n"], cell["batch"]) for cell in cells)
    console.print(f"{kept} of {len(cells)} cells reach what is wanted")
    if len(cells) == len(LENGTHS) * len(BATCHES) * len(DTYPES) * len(COMPUTATIONS) and not args.quick:
        record = {"machine": machine("cpu"), "cells": cells}
        (RESULTS / "quadratic-form-grid.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
