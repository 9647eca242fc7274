"""Proves torchad_ext on the GPU at hand, and measures it there: ``make gpu``, or ``make gpu GPU_PARTS="build paths"``.

Each part is a process of its own within a budget of seconds; one that fails or takes too long does not keep the next
from running. What became of a part is written to ``build/gpu/parts.md`` when it ends, each row of the benchmarks to
``results/<gpu>-float32.json`` and ``.md`` when it is measured: an end without warning loses what is at work, no more.
Logs of the parts and the notebooks' figures lie in ``build/gpu``.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "build" / "gpu"

LIMIT = 480.0  # seconds for everything


@dataclass(frozen=True)
class Part:
    """Commands that run one after another, and the most seconds they may take together."""

    name: str
    commands: Sequence[Sequence[str]]
    seconds: float
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a part: its time, whether it succeeded, and the last line it printed."""

    name: str
    seconds: float
    succeeded: bool
    said: str


def parts(device: str, quick: bool) -> dict[str, Part]:
    """Every part by its name, in order; ``quick`` is for trying this out."""
    python = [sys.executable, "-u"]
    every_path = [*python, "benchmarks/every_path.py", device]
    has_headers = Path(sysconfig.get_path("include"), "Python.h").exists()
    strict = {"TORCHAD_EXT_STRICT": "1", "TORCHAD_EXT_EAGER": "wait" if has_headers else "0"}
    tests = [*python, "-m", "pytest", "-q", "-rf", "--device", device]
    if importlib.util.find_spec("xdist"):
        tests += ["-n", str(min(16, os.cpu_count() or 1)), "--dist", "worksteal"]
    if quick:
        tests += ["tests/test_quadratic_form.py", "-k", "value"]
    measure = [*python, "benchmarks/run.py", "--device", device]
    measure += ["--quick", "--only", "sin: f . b 1e3"] if quick else ["--seconds", "1"]
    sanitizer = shutil.which("compute-sanitizer")
    tools = ("memcheck", "racecheck") if sanitizer else ()
    checks = [[sanitizer or "", "--tool", tool, "--error-exitcode", "1", *every_path] for tool in tools]
    notebooks = sorted(ROOT.glob("notebooks/*.ipynb"))
    drawn = [[*python, "benchmarks/run_notebook.py", str(path), str(OUTPUT / path.stem)] for path in notebooks]
    build = [*python, "-c", f"import torch, torchad_ext as ad; ad.sin(torch.ones(3, device={device!r}))"]
    every = [
        Part("build", [build], 60, strict),
        Part("paths", [every_path], 90, strict),
        Part("bench", [measure], 150),
        Part("tests", [tests], 240),
        *([Part("sanitizer", checks, 100)] if checks else []),
        Part("notebooks", drawn[:1] if quick else drawn, 120),
    ]
    return {part.name: part for part in every}


def run(part: Part, log: Path, most: float) -> Outcome:
    """Runs the commands of a part from the root of the project for at most so many seconds, their output into a log."""
    start, failures = time.perf_counter(), []
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **part.environment}
    with log.open("w") as output:
        for command in part.commands:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                if code := process.wait(max(most - (time.perf_counter() - start), 0.1)):
                    failures.append(f"exit status {code}")
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # its workers too, which would disturb the next part
                process.wait()
                failures.append(f"stopped after {most:.0f} s")
                break
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    ended = f"{', '.join(failures)}: " if failures else ""
    return Outcome(part.name, time.perf_counter() - start, not failures, ended + (lines[-1] if lines else ""))


def report(device: str, outcomes: Sequence[Outcome]) -> str:
    """What became of the parts, as Markdown."""
    gpu = torch.cuda.get_device_name() if device == "cuda" else "no GPU"
    lines = [f"- {o.name}: {'right' if o.succeeded else 'failed'}, {o.seconds:.0f} s; {o.said}" for o in outcomes]
    return "\n".join([f"{gpu}, torch {torch.__version__}, Python {platform.python_version()}", "", *lines, ""])


def main() -> None:
    """Runs the parts, writes what became of each when it ends, and prints a table; fails if one of them did."""
    parser = argparse.ArgumentParser(description="Proves and measures torchad_ext on the GPU at hand.")
    parser.add_argument("parts", nargs="*", help="build, paths, bench, tests, sanitizer, notebooks; by default all")
    parser.add_argument("--device", default="cuda", help="cpu to try this out where there is no GPU")
    parser.add_argument("--quick", action="store_true", help="little of each: does everything run?")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU: torch.cuda.is_available() is False; --device cpu tries this out without one")
    known = parts(args.device, args.quick)
    if unknown := [name for name in args.parts if name not in known]:
        sys.exit(f"no part is called {', '.join(unknown)}; there are {', '.join(known)}")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    console = Console()
    table = Table("part", "seconds", "of", "", "its last line")
    outcomes: list[Outcome] = []
    for part in (known[name] for name in args.parts or known):
        left = LIMIT - sum(outcome.seconds for outcome in outcomes)
        budget = max(min(part.seconds, left), 1.0)
        console.print(f"{part.name}: at most {budget:.0f} s, of {left:.0f} s that are left ...")
        outcome = run(part, OUTPUT / f"{part.name}.log", budget)
        outcomes.append(outcome)
        (OUTPUT / "parts.md").write_text(report(args.device, outcomes), encoding="utf-8")
        verdict = "right" if outcome.succeeded else "[red]failed"
        console.print(f"{part.name}: {verdict} after {outcome.seconds:.0f} s")
        table.add_row(outcome.name, f"{outcome.seconds:.0f}", f"{budget:.0f}", verdict, outcome.said[:200])
    console.print(table)
    sys.exit(0 if all(outcome.succeeded for outcome in outcomes) else f"see the logs in {OUTPUT}")


if __name__ == "__main__":
    main()
