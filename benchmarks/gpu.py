"""Proves torchad_ext on the GPU at hand, and measures it there: ``make gpu``.

It builds the kernels, runs the whole test suite on the GPU and the benchmarks, looks for wrong memory accesses and
races with NVIDIA's compute-sanitizer where there is one, and runs the notebooks; eight minutes at the most. Each step
is a process of its own; one that fails does not keep the next from running. Results lie in
``results/<gpu>-float32.json`` and ``.md``, the notebooks' figures and the logs of all steps in ``build/gpu``.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "build" / "gpu"

LIMIT = 480.0  # seconds for everything


@dataclass(frozen=True)
class Step:
    """A command, and the most seconds it may take."""

    name: str
    command: list[str]
    seconds: float
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a step: its time, whether it succeeded, and the last line it printed."""

    name: str
    seconds: float
    succeeded: bool
    said: str


def steps(device: str, quick: bool) -> Iterator[Step]:
    """Everything, in order; ``quick`` is for trying this out."""
    python = [sys.executable, "-u"]
    every_path = [*python, "benchmarks/every_path.py", device]
    strict = {"TORCHAD_EXT_STRICT": "1", "TORCHAD_EXT_EAGER": "wait"}
    yield Step("build", every_path, 120, strict)
    tests = [*python, "-m", "pytest", "-q", "--device", device]
    if importlib.util.find_spec("xdist"):
        tests += ["-n", str(min(16, os.cpu_count() or 1)), "--dist", "worksteal"]
    if quick:
        tests += ["tests/test_quadratic_form.py", "-k", "value"]
    yield Step("tests", tests, 260)
    measure = [*python, "benchmarks/run.py", "--device", device]
    measure += ["--quick", "--only", "sin: f . b 1e3"] if quick else ["--seconds", "1"]
    yield Step("benchmarks", measure, 180)
    if sanitizer := shutil.which("compute-sanitizer"):
        for tool in ("memcheck", "racecheck"):
            yield Step(tool, [sanitizer, "--tool", tool, "--error-exitcode", "1", *every_path], 80)
    for notebook in sorted(ROOT.glob("notebooks/*.ipynb")):
        folder = str(OUTPUT / notebook.stem)
        yield Step(notebook.stem, [*python, "benchmarks/run_notebook.py", str(notebook), folder], 120)


def run(step: Step, log: Path, most: float) -> Outcome:
    """Runs a step from the root of the project for at most so many seconds, its output into a log."""
    start, most = time.perf_counter(), min(step.seconds, most)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **step.environment}
    with log.open("w") as output:
        try:
            code = subprocess.run(
                step.command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, timeout=most
            ).returncode
            ended = "" if code == 0 else f"exit status {code}: "
        except subprocess.TimeoutExpired:
            ended = f"stopped after {most:.0f} s: "
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return Outcome(step.name, time.perf_counter() - start, not ended, ended + (lines[-1] if lines else ""))


def main() -> None:
    """Runs every step and prints a table of what became of them; fails if one of them did."""
    parser = argparse.ArgumentParser(description="Proves and measures torchad_ext on the GPU at hand.")
    parser.add_argument("--device", default="cuda", help="cpu to try this out where there is no GPU")
    parser.add_argument("--quick", action="store_true", help="little of each: does everything run?")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU: torch.cuda.is_available() is False; --device cpu tries this out without one")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    console = Console()
    table = Table("step", "seconds", "", "its last line")
    outcomes: list[Outcome] = []
    for step in steps(args.device, args.quick):
        console.print(f"{step.name} ...")
        left = LIMIT - sum(outcome.seconds for outcome in outcomes)
        outcome = run(step, OUTPUT / f"{step.name}.log", max(left, 1.0))
        outcomes.append(outcome)
        verdict = "right" if outcome.succeeded else "[red]failed"
        table.add_row(outcome.name, f"{outcome.seconds:.0f}", verdict, outcome.said[:200])
    console.print(table)
    sys.exit(0 if all(outcome.succeeded for outcome in outcomes) else f"see the logs in {OUTPUT}")


if __name__ == "__main__":
    main()
