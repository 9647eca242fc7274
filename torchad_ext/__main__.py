"""The command line, ``python -m torchad_ext`` or ``torchad_ext``: what the commands show stands in other files."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch

import torchad_ext

from . import _settings
from . import ops as catalogue
from . import rows as row_catalogue
from ._named_ops import OPS, Mistake, Wrong, blamed, declared, drawn, named, sample_for
from ._native import cache as kept
from ._symbolic import cpp
from ._symbolic.refusals import TraceError
from ._tables import with_whole_numbers
from .ops import CATALOGUE
from .rows import ROW_CATALOGUE

if TYPE_CHECKING:
    from rich.console import Console

_DTYPES = {name: getattr(torch, name) for name in cpp.DTYPES}


def _device(context: click.Context, parameter: click.Parameter, name: str) -> str:
    if name == "cuda" and not torch.cuda.is_available():
        raise Mistake("--device cuda, but PyTorch finds no CUDA device; use --device cpu")
    return name


def _seconds(context: click.Context, parameter: click.Parameter, seconds: float) -> float:
    if not 0 <= seconds < math.inf:
        raise Mistake(f"--seconds {seconds:g}; give 0 or more, and an end")
    return seconds


_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
_on_device = click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cuda" if torch.cuda.is_available() else "cpu",
    callback=_device,
    show_default=True,
)
_in_dtype = click.option("--dtype", type=click.Choice(list(_DTYPES)), default="float32", show_default=True)
_names = click.argument("ops", nargs=-1, metavar="[OP | FILE:FUNCTION]...")
_name = click.argument("op", metavar="OP | FILE:FUNCTION")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(torchad_ext.__version__, prog_name="torchad_ext")
def app() -> None:
    """Fast, exact first and second derivatives for PyTorch, as drop-in ops.

    \b
    torchad_ext demo                        what it does, in one or two minutes
    torchad_ext doctor                      is everything there that kernels need?
    torchad_ext plot 'sin(x) * exp(-x**2)'  a formula and its derivatives, as a picture
    """


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def _tracked(items: Iterable[Any], what: str, total: int) -> Iterable[Any]:
    """The items, with a bar on stderr while they are made."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(items, what, total=total, console=console, transient=True, disable=not console.is_terminal)


def _check_interval(what: str, low: float, high: float, order: str) -> None:
    if not 0 < high - low < float("inf"):
        raise Mistake(
            f"{what} goes from {low:g} to {high:g}; {order if not low < high else 'its length must be finite'}"
        )


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=dataclasses.asdict))


@app.command()
@_on_device
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="Training steps; by default as many as take half a minute, or 30 with --quick.",
)
@click.option(
    "--output", type=click.Path(path_type=Path), default="demo_output", show_default=True, help="For pictures."
)
@click.option("--picture", type=click.Path(path_type=Path), help="To learn; by default one that matplotlib ships.")
@click.option("--quick", is_flag=True, help="Smaller sizes, a few seconds in all.")
def demo(**options: Any) -> None:
    """Verify and time the ops, and train with them.

    A sine network learns a picture from the gradient of the picture, with torch.sin and with torchad_ext.sin.

    \b
    torchad_ext demo
    torchad_ext demo --quick --output pictures
    """
    from . import demo

    os.environ.setdefault("TORCHAD_EXT_EAGER", "wait")  # its compiler would disturb what is timed
    demo.run(**options)


@app.command()
@_names
@click.option("--all", "all_", is_flag=True, help="Every op of the catalogue, as if none were named.")
@click.option("--against", metavar="FILE:FUNCTION", help="The definition of an autograd.Function, in plain PyTorch.")
@click.option(
    "--interval", type=float, nargs=2, default=(-2.0, 2.0), show_default=True, help="Of the inputs of --against."
)
@_on_device
@_as_json
def verify(
    ops: Sequence[str], all_: bool, against: str | None, interval: tuple[float, float], device: str, as_json: bool
) -> None:
    """Hold ops against their definitions.

    Value, gradient, double backward and Hessian, by native autograd in float64 and by finite differences.

    A plain function of tensors is declared as an op first. An autograd.Function is held against the function given by
    --against, on a float64 tensor for each argument of that. Exits with 1 if a derivative is wrong.

    \b
    torchad_ext verify sin exp
    torchad_ext verify my_ops.py:snake
    torchad_ext verify my_ops.py:Cube --against my_ops.py:cube --interval -1 1
    torchad_ext verify --all --json
    """
    if against and len(ops) != 1:
        raise Mistake("--against takes one autograd.Function, FILE:CLASS, to be held against it")
    _check_interval("--interval", *interval, "the first must be less than the second")
    checks, wrong = [], []
    texts = list(OPS) if all_ or not ops else ops
    for text in _tracked(texts, "Verifying", len(texts)) if as_json else texts:  # else each table shows how far it is
        try:
            if against:
                found, definition = named(text), named(against)
                inputs = sample_for(definition, *interval)
                is_function = isinstance(found, type) and issubclass(found, torch.autograd.Function)
                function = found.apply if is_function else found
                with blamed(text):
                    done = torchad_ext.verify(function, definition, inputs=inputs, devices=(device,), quiet=as_json)
            else:
                op = declared(text)
                with blamed(text):
                    done = torchad_ext.verify(op, devices=(device,), quiet=as_json)
            checks += done.checks
        except torchad_ext.VerificationError as error:
            checks += error.verification.checks
            wrong.append(str(error))
    if as_json:
        _print_json(checks)
    if wrong:
        raise Wrong("\n".join(wrong))


@app.command()
@_names
@_on_device
@_in_dtype
@click.option(
    "--seconds", type=float, default=3.0, show_default=True, callback=_seconds, help="To measure, for each op."
)
@_as_json
def bench(ops: Sequence[str], device: str, dtype: str, seconds: float, as_json: bool) -> None:
    """Time ops against their definitions in plain PyTorch.

    Both in turn, in this process; sin, exp and quadratic_form by default.

    \b
    torchad_ext bench
    torchad_ext bench silu --dtype float64
    torchad_ext bench my_ops.py:snake --json
    """
    from rich import box
    from rich.table import Table

    from . import _bench

    os.environ.setdefault("TORCHAD_EXT_EAGER", "wait")
    columns = ("", "elements", "torchad_ext, ms", "PyTorch, ms", "ratio")
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    found = {text: declared(text) for text in ops or ("sin", "exp", "quadratic_form")}
    each = len(_bench.SIZES) * len(_bench.COMPUTATIONS)  # rows

    def timed() -> Iterator[_bench.Row]:
        for text, op in found.items():
            with blamed(text):
                yield from _bench.rows(op, device, _DTYPES[dtype], seconds / each, _bench.SIZES)

    rows = []
    for row in _tracked(timed(), "Timing", each * len(found)):
        rows.append({**dataclasses.asdict(row), "device": device, "dtype": dtype, "ratio": row.ratio})
        name = f"{row.op}: value" if row.computes == "value" else row.computes
        table.add_row(name, f"{row.elements:,}", str(row.ours), str(row.native), f"{row.ratio:.2f}")
    if as_json:
        _print_json(rows)
        return
    _console().print(with_whole_numbers(table))
    print(f"{dtype} on {device}: median (quartiles) of runs in turn; ratio: PyTorch / torchad_ext")


@app.command()
@_as_json
def doctor(as_json: bool) -> None:
    """Say what kernels need and do not find.

    Each problem comes with its remedy. Exits with 1 if something cannot work.

    \b
    torchad_ext doctor
    torchad_ext doctor --json
    """
    from . import doctor

    findings = doctor.diagnose()
    routes = doctor.routes(findings)
    is_broken = any(finding.state == doctor.PROBLEM for finding in findings)
    if as_json:
        _print_json({"works": not is_broken, "findings": findings, "routes": routes})
    else:
        _show_findings(findings, routes)
    sys.exit(is_broken)


def _show_findings(findings: list[Any], routes: dict[str, str]) -> None:
    from rich import box
    from rich.table import Column, Table
    from rich.text import Text

    colours = {"ok": "green", "note": "yellow", "problem": "bold red"}
    table = Table("", "", Column(overflow="fold"), box=None, show_header=False, pad_edge=False)
    for finding in findings:
        remedy = f"\n→ {finding.remedy}" if finding.remedy else ""
        state = Text(finding.state, style=colours[finding.state])
        table.add_row(state, finding.subject, Text(finding.text + remedy))
    where = Table("what", "runs on", box=box.SIMPLE_HEAD, pad_edge=False)
    for what, route in routes.items():
        where.add_row(what, Text(route))
    _console().print(table, "", where)


@app.command(context_settings={"ignore_unknown_options": True})  # a formula may begin with a minus
@click.argument("formula", metavar="FORMULA | FILE:FUNCTION")
@click.option("--low", type=float, default=-3.0, show_default=True, help="Left end.")
@click.option("--high", type=float, default=3.0, show_default=True, help="Right end.")
@click.option("--orders", type=click.IntRange(0, 5), default=2, show_default=True, help="How many derivatives.")
@click.option("--points", type=click.IntRange(2, 100_000), default=400, show_default=True, help="How many points.")
@click.option(
    "--output", type=click.Path(path_type=Path), default="formula.png", show_default=True, help="The picture."
)
@_as_json
def plot(formula: str, low: float, high: float, orders: int, points: int, output: Path, as_json: bool) -> None:
    """Draw a formula, or an op of one's own, and its derivatives.

    Each order runs on a fused kernel of its own. The formula is read against a list of names, and never run as Python.

    \b
    torchad_ext plot 'sin(x) * exp(-x**2)'
    torchad_ext plot 'silu(x)' --low -6 --high 6 --orders 3 --output silu.svg
    torchad_ext plot 'x**3 / 3' --points 5 --json
    torchad_ext plot my_ops.py:snake
    """
    from . import _formula
    from .plot import derivatives, plot_derivatives

    is_op = re.search(r"\.py:\w+$", formula) is not None
    try:
        f = drawn(formula) if is_op else torchad_ext.pointwise(_formula.parse(formula))
    except _formula.FormulaError as error:
        raise Mistake(str(error)) from None
    _check_interval("the interval", low, high, "--low must be less than --high")
    if as_json:
        x = torch.linspace(low, high, points, dtype=torch.float64)
        with blamed(formula):
            lines = derivatives(f, x, orders)
        values = [[y if abs(y) < float("inf") else None for y in line.tolist()] for line in lines]
        _print_json({"formula": formula, "x": x.tolist(), "derivatives": values})
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    with blamed(formula):
        ax = plot_derivatives(f, low, high, orders, points, ax=figure.subplots())
    ax.set_title(formula.rpartition(":")[2] if is_op else f"f(x) = {formula.strip()}")
    if output.is_dir():
        raise Mistake(f"--output {output} is a folder; give the name of a picture in it, as {output / 'formula.png'}")
    output = output if output.suffix else output.with_suffix(".png")
    try:
        figure.savefig(output, dpi=150)
    except (ValueError, OSError) as error:  # a kind of file that matplotlib does not write, or no folder for it
        raise Mistake(f"--output {output}: {getattr(error, 'strerror', error)}") from None
    print(f"saved {output}")


@app.command()
@_name
@click.option(
    "--order", type=click.IntRange(0, 10), default=0, show_default=True, help="1 the gradient, 2 the double backward."
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Print the whole file that is compiled for it.")
@_in_dtype
@_as_json
def source(op: str, order: int, device: str | None, dtype: str, as_json: bool) -> None:
    """Print the C++ of a kernel.

    Its functor, or with --device the whole file that is compiled.

    \b
    torchad_ext source sin --order 2
    torchad_ext source my_ops.py:snake --device cuda --dtype bfloat16
    """
    found = declared(op)
    if found is torchad_ext.quadratic_form:
        from ._native.keys import CSRC

        file = {"cuda": "cuda/quadratic_form.cuh"}.get(device or "cpu", "quadratic_form.h")
        text = (CSRC / file).read_text(encoding="utf-8")
    elif device is None:
        text = found.source(order)
    else:
        function = found._order(order)
        text = function.source(device, _DTYPES[dtype], *function.variants[-1]).text
    if as_json:
        _print_json({"op": op, "order": order, "device": device, "source": text})
    elif sys.stdout and sys.stdout.isatty():  # None where it is closed
        from rich.syntax import Syntax

        _console().print(Syntax(text, "c++", theme="ansi_dark", background_color="default"))
    else:
        print(text)


@app.command()
@click.option("--list", "list_", is_flag=True, help="Show each entry; also by default.")
@click.option("--clear", is_flag=True, help="Remove the entries, but for those being compiled.")
@_as_json
def cache(list_: bool, clear: bool, as_json: bool) -> None:
    """List what was compiled, or remove it.

    Files that are not of the cache are left alone, and so are entries that are being compiled.

    \b
    torchad_ext cache --list
    torchad_ext cache --clear
    """
    if list_ and clear:
        raise Mistake("give --list or --clear, not both")
    folder, entries = _settings.cache_dir(), kept.entries()
    if clear:
        removed = [entry for entry in entries if kept.remove(entry)]
        size, busy = sum(entry.size for entry in removed), len(entries) - len(removed)
        if as_json:
            _print_json({"folder": str(folder), "removed": len(removed), "bytes": size, "busy": busy})
        else:
            left = f"; left {busy} that are being compiled" if busy else ""
            print(f"removed {len(removed)} entries, {size / 1e6:.1f} MB, from {folder}{left}")
        return
    if as_json:
        listed = [{**dataclasses.asdict(entry), "folder": str(entry.folder)} for entry in entries]
        _print_json({"folder": str(folder), "entries": listed})
        return
    for entry in entries:
        state = "" if entry.is_finished else "  (not finished, or failed)"
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.made))
        print(f"{made}  {entry.size / 1e3:8.1f} kB  {entry.folder.name}{state}")
    print(f"{len(entries)} entries, {sum(entry.size for entry in entries) / 1e6:.1f} MB, in {folder}")


@app.command()
@_as_json
def ops(as_json: bool) -> None:
    """Print the catalogue: ops of elements, and ops of rows.

    As tables in Markdown, or as JSON.

    \b
    torchad_ext ops
    torchad_ext ops --json
    """
    if as_json:
        _print_json(list(_described()))
    else:
        print(catalogue.table(), row_catalogue.table(), sep="\n", end="")


def _described() -> Iterator[dict[str, Any]]:
    for of, known, stands_in_for in (
        ("elements", CATALOGUE, catalogue.stands_in_for),
        ("rows", ROW_CATALOGUE, row_catalogue.stands_in_for),
    ):
        for name, op in known.items():
            formula, like = op.latex().partition(" = ")[2], stands_in_for(name) or None
            described = {"name": name, "of": of, "signature": str(op.__signature__), "latex": formula}
            yield {**described, "stands_in_for": like}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command, and exits: with 0, with 1 if something is wrong, with 2 if the command line is.

    Args:
        arguments: by default those of the process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # letters that its encoding lacks
    try:
        app(arguments or ["--help"], prog_name="torchad_ext")
    except (AssertionError, OSError, TraceError, torchad_ext.BuildError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
