"""Every test that takes ``device`` runs on the CPU and on a GPU; without one, it is shown as skipped."""

from __future__ import annotations

import gc
import os
import re
import sysconfig
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from typing import Any

import drop_in
import pytest
import torch
from marks import replace_between
from selection import NO_GPU

from torchad_ext._native.kernels import RowKernel
from torchad_ext._row_function import RowFunction
from torchad_ext._rowwise import Rowwise
from torchad_ext.rows import ROW_CATALOGUE

HAS_HEADERS = Path(sysconfig.get_path("include"), "Python.h").exists()
# "wait" is for what a user has once it is compiled; without Python.h no user ever has it.
os.environ.setdefault("TORCHAD_EXT_EAGER", "wait" if HAS_HEADERS else "0")
_outcomes: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=("cpu", "cuda"), help="run the tests on this device only")
    parser.addoption("--drop-in-table", type=Path, metavar="FILE", help="write the table of drop_in.py into FILE")


def pytest_report_header() -> str:
    ways = {"0": "without csrc/fast_path", "wait": "with csrc/fast_path"}
    why = "" if HAS_HEADERS else f", as there is no Python.h in {sysconfig.get_path('include')}"
    return f"torch {torch.__version__}, calls {ways.get(os.environ['TORCHAD_EXT_EAGER'], 'as users have them')}{why}"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "drop_in(row): holds a row of the table in drop_in.py")
    config.addinivalue_line("markers", "long: left to `make test-all`")
    config.addinivalue_line("markers", "fast_path: needs Python.h, to compile csrc/fast_path")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("device")
        devices = [chosen] if chosen else ["cpu", "cuda"]
        metafunc.parametrize("device", [pytest.param(d, marks=NO_GPU if d == "cuda" else ()) for d in devices])


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs in the place of kernels, which take a compiler, for tests of what leads to a kernel."""
    from random_modules import interpret

    interpret(monkeypatch.setattr)


@pytest.fixture
def kernels_when_long(request: pytest.FixtureRequest) -> None:
    """Kernels where the longest tests run, programs in their place in ``make test``.

    It is for tests of what leads to a kernel, with many kernels that no other test needs.
    """
    if request.config.option.markexpr == "not long":
        request.getfixturevalue("interpreted")


@pytest.fixture
def row_kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels of rows that run, all of them by Python."""
    names: list[str] = []
    run = RowKernel.__call__
    monkeypatch.setattr(RowFunction, "fast_function", None)
    for op in (Rowwise, *ROW_CATALOGUE.values()):
        monkeypatch.setattr(op, "_front", None)
    monkeypatch.setattr(RowKernel, "__call__", lambda self, *args: names.append(self._name) or run(self, *args))
    return names


# Where another PyTorch than that of constraints.txt lacks formulas and features that a test compares with.
IS_OTHER = tuple(map(int, torch.__version__.split(".")[:2])) != (2, 13)
LACKING = re.compile(r"derivative for aten::\w+ is not implemented|trace_autograd_ops|SKIPPED INLINING|is now removed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, Any, Any]:
    try:
        return (yield)
    except (RuntimeError, AttributeError, KeyError) as error:
        if IS_OTHER and LACKING.search(str(error)):
            pytest.skip(f"PyTorch {torch.__version__} lacks it: {error}")
        raise


if not torch.cuda.is_available():
    # torch.manual_seed would keep a call for each of these, with its stack, until there is such a device.
    for _absent in (torch.cuda, torch.xpu, torch.mtia):
        _absent.manual_seed_all = lambda seed: None


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_make_collect_report() -> None:
    torch.manual_seed(0)  # a module draws the same numbers whichever were imported before it


@pytest.hookimpl(tryfirst=True)  # before the longest are left out, or taken alone
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if config.option.markexpr != "not long" and "kernels_when_long" in getattr(item, "fixturenames", ()):
            item.add_marker("long")
        if item.get_closest_marker("fast_path") and not HAS_HEADERS:
            item.add_marker(pytest.mark.skip(reason="csrc/fast_path cannot be compiled: no Python.h"))
        callspec = getattr(item, "callspec", None)
        for mark in item.iter_markers("drop_in"):
            device = mark.kwargs.get("device") or (callspec.params.get("device", "cpu") if callspec else "cpu")
            item.user_properties.append(("drop_in", (*mark.args, device)))


def pytest_collectstart() -> None:
    gc.disable()  # until all tests are collected, of which none is garbage


def pytest_collection_finish() -> None:
    """Leaves the thousands of collected tests out of garbage collection, which would look at all of them each time."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        for key, value in report.user_properties:
            if key == "drop_in":
                name, device = value
                _outcomes[name][device].append(report.outcome)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    file = config.getoption("drop_in_table")
    if file is None:
        return
    if terminalreporter.stats.get("failed") or terminalreporter.stats.get("error"):
        terminalreporter.write_line(f"{file} is left as it was: tests failed")
        return
    replace_between(file, drop_in.BEGIN, drop_in.END, drop_in.table(_outcomes))
    terminalreporter.write_line(f"the table in {file} was written")
