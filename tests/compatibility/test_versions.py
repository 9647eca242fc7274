"""The table of tested versions is what their runs counted, and the operators keep to the oldest promised PyTorch."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
import torch
import versions
from packaging.specifiers import SpecifierSet
from selection import few
from versions import Counts

from torchad_ext._native import compile, keys, toolchain

PASSING = "import pytest\ndef test_right(): pass\ndef test_wrong(): assert 0\n@pytest.mark.skip\ndef test_not(): pass\n"
PAGE = f"# Versions\n\n{versions.BEGIN}\n{versions.HEADER}\n{versions.RULE}\n{versions.END}\n\nThe end.\n"
NO_COMPILER = pytest.mark.skipif(toolchain.find_cxx() is None, reason="no C++ compiler")
# What the headers of PyTorch's stable ABI define since a release after the oldest promised one, whatever the target.
NEWER = """STABLE_TORCH_ERROR_CODE_CHECK AT_OPAQUE_TYPES C10_WARP_SIZE_LOWER_BOUND C10_WARP_SIZE_UPPER_BOUND
TORCH_VERSION_2_11_0 TORCH_VERSION_2_12_0 TORCH_VERSION_2_13_0""".split()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of three tests."""
    for name, path in (("ROOT", "."), ("BUILD", "build"), ("PAGE", "page.md")):
        monkeypatch.setattr(versions, name, tmp_path / path)
    (tmp_path / "build").mkdir()
    (tmp_path / "page.md").write_text(PAGE)
    (tmp_path / "conftest.py").write_text("def pytest_addoption(parser): parser.addoption('--device')")
    (tmp_path / "test_some.py").write_text(PASSING)
    return tmp_path


@pytest.mark.long
def test_a_run_is_counted(root: Path) -> None:
    assert versions.run(Path(sys.executable), "one", ["test_some.py"], 1.0) == (Counts(1, 1, 1), False)
    (root / "test_some.py").write_text("import nothing_of_this_name")
    assert versions.run(Path(sys.executable), "one", ["test_some.py"], 1.0) == (Counts(0, 1, 0), False)


@pytest.mark.long
def test_a_run_that_takes_too_long_counts_what_ended(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Impatient(subprocess.Popen):  # type: ignore[type-arg]
        def wait(self, timeout: float | None = None) -> int:
            while timeout == 60 * 240.0:
                if (root / "reached").exists():
                    raise subprocess.TimeoutExpired(self.args, timeout)
                time.sleep(0.01)
            return super().wait(timeout)

    monkeypatch.setattr(versions.subprocess, "Popen", Impatient)
    # It is reached once the results before it have arrived.
    steps = "import time", "time.sleep(3)", f"open({str(root / 'reached')!r}, 'w')", "time.sleep(60)"
    slow = f"def test_slow():\n    {'; '.join(steps)}\n"
    (root / "test_some.py").write_text(PASSING + slow)
    assert versions.run(Path(sys.executable), "one", ["test_some.py"], 240.0) == (Counts(1, 1, 1), True)


def test_a_run_without_a_report_is_an_error(root: Path) -> None:
    (root / "conftest.py").write_text("import os\nos._exit(3)")
    with pytest.raises(RuntimeError, match=r"one\.log"):
        versions.run(Path(sys.executable), "one", [], 1.0)


def test_a_line_replaces_that_of_its_versions_and_no_other(root: Path) -> None:
    versions.write(("2.13.0+cpu", "3.11.7"), ("12.2.0", "2026-01-01", "`tests`", 3, 2, 1))
    versions.write(("2.9.1", "3.13.5"), ("12.2.0", "2026-01-01", "`tests`", 9, 0, 0))
    versions.write(("2.13.0+cpu", "3.11.7"), ("12.2.0", "2026-02-02", "`tests`", 5, 0, 1))
    table = (root / "page.md").read_text()
    assert table.startswith(PAGE.partition(versions.END)[0] + "| 2.9.1 | 3.13.5 | 12.2.0 | 2026-01-01 |")
    assert table.count("\n| 2.13.0+cpu | 3.11.7 | 12.2.0 | 2026-02-02 | `tests` | 5 | 0 | 1 |\n") == 1
    assert table.endswith(PAGE.partition(versions.END)[2]) and "2026-01-01 | `tests` | 3" not in table


def test_pins_of_pytorch_are_left_to_it() -> None:
    pins = "# The versions.\ntorch==2.13.0\nnvidia-cuda-nvrtc==13.0.88\nnumpy==2.4.6; x\npytest==9.2.0\nsympy==1.14.0\n"
    assert versions.constraints(pins) == "# The versions.\nnumpy==2.4.6; x\npytest==9.2.0\n"


def test_the_oldest_promised_pytorch_is_the_same_everywhere() -> None:
    root = Path(__file__).resolve().parents[2]
    (promised,) = re.findall(r'"torch>=([\d.]+)"', (root / "pyproject.toml").read_text())
    major, minor = map(int, promised.split("."))
    assert [f"-DTORCH_TARGET_VERSION=0x{major:02x}{minor:02x}000000000000"] == toolchain._ABI
    assert f"torch {promised} or newer" in (root / "README.md").read_text()
    assert f"PyTorch {promised} or newer" in (root / "docs" / "versions.md").read_text()
    assert promised in (root / "Makefile").read_text()


def compiles(source: Path, tools: toolchain.Toolchain, tmp_path: Path) -> str:
    """The complaints of a compiler for which names that the oldest headers lack are errors."""
    used = {line for path in keys.CSRC.rglob("*.*") for line in re.findall("#include <torch/.+>", path.read_text())}
    older = tmp_path / "older.h"
    only_stable = sorted(line for line in used if re.search("torch/(csrc/(stable|inductor)|headeronly)/", line))
    older.write_text("\n".join([*only_stable, *(f"#undef {n}\n#pragma GCC poison {n}" for n in NEWER), ""]))
    headers = ["-isystem", str(Path(torch.__file__).parent / "include"), f"-I{keys.CSRC}", "-include", str(older)]
    command = [tools.compiler, *tools.flags, "-O0", "-fsyntax-only", *headers, str(source)]
    return subprocess.run(command, capture_output=True, text=True).stderr


@NO_COMPILER
@pytest.mark.parametrize("what", few(["cpu", "quadratic_form", "cuda"], lambda what: what == "cpu"))
def test_operators_compile_with_its_part_of_the_headers(what: str, tmp_path: Path) -> None:
    tools = toolchain.cuda_toolchain() if what == "cuda" else toolchain.cpu_toolchain()
    for source in compile._sources(what):
        assert compiles(source, tools, tmp_path) == ""


@NO_COMPILER
def test_a_newer_name_does_not_compile(tmp_path: Path) -> None:
    source = tmp_path / "newer.cpp"
    source.write_text(f"void f() {{ {NEWER[0]}(0); }}")
    assert "poisoned" in compiles(source, toolchain.cpu_toolchain(), tmp_path)


def test_pins_hold_for_the_oldest_promised_python() -> None:
    """A pin without a condition on Python is of a release that runs on the oldest."""
    oldest = re.findall(r'requires-python = ">=(.*)"', (versions.ROOT / "pyproject.toml").read_text())[0]
    pins = re.findall(r"^([\w.-]+)==[^;\n]+$", (versions.ROOT / "constraints.txt").read_text(), re.MULTILINE)
    installed = {one.name for one in metadata.distributions()} & set(pins)
    promised = {name: metadata.metadata(name)["Requires-Python"] for name in installed}
    assert len(promised) > 20
    assert [name for name, of in promised.items() if of and oldest not in SpecifierSet(of)] == []
