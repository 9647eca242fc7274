"""Runs the tests under several versions of PyTorch and writes the table of docs/versions.md: ``make versions``.

An environment is a version of PyTorch from the package index, installed beside the project's test requirements into
``build/versions`` and deleted afterwards, or the path of a Python interpreter that has them. A line of the table is
written as soon as its run ends; lines of environments that are not run stay.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from marks import replace_between

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "versions"
PAGE = ROOT / "docs" / "versions.md"
BEGIN, END = "<!-- make versions -->", "<!-- end of versions -->"
HEADER = "| torch | Python | compiler | date | tests | passed | failed | skipped |"
RULE = "| --- | --- | --- | --- | --- | ---: | ---: | ---: |"
# Pinned by PyTorch itself, each release to another version.
OF_TORCH = re.compile(r"(torch|setuptools|sympy|networkx|nvidia-[\w-]+)==")
FACTS = "import platform, torch; print(torch.__version__, platform.python_version())"


@dataclass(frozen=True)
class Counts:
    """How many tests had which result."""

    passed: int
    failed: int
    skipped: int

    @classmethod
    def of(cls, junit: str) -> Counts:
        """From pytest's report in XML."""
        names = ("tests", "failures", "errors", "skipped")
        suites = list(ElementTree.fromstring(junit).iter("testsuite"))
        tests, failures, errors, skipped = (sum(int(suite.get(name, 0)) for suite in suites) for name in names)
        return cls(tests - failures - errors - skipped, failures + errors, skipped)


def constraints(text: str) -> str:
    """The pins of constraints.txt without those that a release of PyTorch makes."""
    return "".join(line for line in text.splitlines(keepends=True) if not OF_TORCH.match(line))


def install(version: str) -> Path:
    """The interpreter of a new environment with a version of PyTorch."""
    folder = BUILD / f"torch-{version}"
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    pins = BUILD / "constraints.txt"
    pins.write_text(constraints((ROOT / "constraints.txt").read_text()))
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    subprocess.run([*pip, "-c", pins, f"torch=={version}", "-e", f"{ROOT}[test]"], check=True)
    return python


def run(python: Path, name: str, tests: Sequence[str], minutes: float) -> tuple[Counts, bool]:
    """Runs tests and counts them; the second result says whether the time was over before they ended.

    Raises:
        RuntimeError: pytest left no report.
    """
    report = BUILD / f"{name}.xml"
    report.unlink(missing_ok=True)
    environment = {
        "TORCHAD_EXT_CACHE_DIR": str(BUILD / "cache"),
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_WAIT_POLICY": "passive",
    }
    two_at_a_time = ["-n", "2", "--dist", "loadfile"]
    command = [python, "-m", "pytest", "-q", "-rf", *two_at_a_time, "--device", "cpu", f"--junitxml={report}", *tests]
    with (BUILD / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, preexec_fn=_hear_interrupts
        )
        try:
            process.wait(60 * minutes)
            stopped = False
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # pytest then ends with its report
            process.wait()
            stopped = True
    if not report.exists():
        raise RuntimeError(f"pytest left no report; see {log.name}")
    return Counts.of(report.read_text(encoding="utf-8")), stopped


def _hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores them


def lines_of(table: str) -> dict[tuple[str, ...], str]:
    """The lines of a table by torch and Python."""
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    return {tuple(cell.strip() for cell in row.split("|")[1:3]): row for row in rows}


def in_order(rows: Mapping[tuple[str, ...], str]) -> str:
    """The table, from the oldest torch on."""

    def key(names: tuple[str, ...]) -> list[list[int]]:
        return [[int(part) for part in re.findall(r"\d+", name.split("+")[0])] for name in names]

    return "\n".join([HEADER, RULE, *(rows[names] for names in sorted(rows, key=key)), ""])


def write(facts: tuple[str, str], rest: Sequence[object]) -> None:
    """Puts a line into the table of the page."""
    rows = lines_of(PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0])
    rows[facts] = "| " + " | ".join(map(str, (*facts, *rest))) + " |"
    replace_between(PAGE, BEGIN, END, in_order(rows))


def main() -> None:
    """Tests every environment asked for; fails if a test or an installation did."""
    parser = argparse.ArgumentParser(description="Runs the tests under several versions of PyTorch.")
    parser.add_argument("environments", nargs="+", metavar="VERSION|PYTHON", help="2.10.0, or an interpreter's path")
    parser.add_argument("--tests", default="tests", help="what pytest runs, its options included")
    parser.add_argument("--minutes", type=float, default=240.0, help="the most that the tests of one version may take")
    parser.add_argument("--keep", action="store_true", help="keep environments, of some 6 GB each")
    args = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    wrong = []
    for environment in args.environments:
        given = Path(environment).exists()
        try:
            python = Path(environment) if given else install(environment)
            said = subprocess.run([python, "-c", FACTS], check=True, capture_output=True, text=True).stdout
            torch, version = said.split()
            counts, stopped = run(python, f"torch-{torch}-python-{version}", shlex.split(args.tests), args.minutes)
        except (subprocess.CalledProcessError, RuntimeError) as error:
            wrong.append(f"{environment}: {error}")
            continue
        finally:
            if not given and not args.keep:
                shutil.rmtree(BUILD / f"torch-{environment}", ignore_errors=True)
        compiler = subprocess.run([os.environ.get("CXX", "c++"), "-dumpfullversion"], capture_output=True, text=True)
        what = f"`{args.tests}`" + (f", stopped after {args.minutes:g} minutes" if stopped else "")
        today = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
        write((torch, version), (compiler.stdout.strip(), today, what, counts.passed, counts.failed, counts.skipped))
        print(f"torch {torch}, Python {version}: {counts}")
        if counts.failed:
            wrong.append(f"torch {torch}, Python {version}: {counts.failed} failed; see the logs in {BUILD}")
    sys.exit("\n".join(wrong) or None)


if __name__ == "__main__":
    main()
