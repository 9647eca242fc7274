"""A compiler that obeys and sources that compile in a moment, for tests of builds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from torchad_ext._native import compile, keys, loader, toolchain
from torchad_ext._native.progress import Progress
from torchad_ext._native.state import state

ROOT = Path(__file__).resolve().parents[2]
CXX = toolchain.find_cxx()
SETTINGS = ("CXX", "CUDA_HOME", "CUDA_PATH")
LOAD = """
import sys
from dataclasses import replace
from pathlib import Path
from torchad_ext._native import compile, keys, loader
keys.CSRC = Path(sys.argv[1])
print(loader.load("cpu"))
"""


class Compiler:
    """A compiler that records its calls, then does what it was told, then what the real one does."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "c++"
        self._calls, self._orders, self._version = folder / "calls", folder / "orders", folder / "version"
        self._version.write_text("compiler 1.0")
        self.obeys("")
        self.path.write_text(
            f'#!/bin/sh\n[ "$1" = --version ] && exec cat "{self._version}"\n'
            f'echo "$@" >> "{self._calls}"\n. "{self._orders}"\nexec {CXX} "$@"\n'
        )
        self.path.chmod(0o755)

    def obeys(self, shell: str) -> None:
        self._orders.write_text(shell)

    def is_version(self, version: str) -> None:
        self._version.write_text(version)

    @property
    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines() if self._calls.exists() else []


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    """In a world without settings: this compiler, an empty cache, and no attempt made in this process."""
    for name in list(os.environ):
        if name in SETTINGS or name.startswith("TORCHAD_EXT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TORCHAD_EXT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHAD_EXT_EAGER", "0")
    monkeypatch.setattr("torchad_ext._native.cache.progress", Progress())
    monkeypatch.setattr(state, "failures", {})
    monkeypatch.setattr(state, "libraries", {})
    (tmp_path / "bin").mkdir()
    compiler = Compiler(tmp_path / "bin")
    monkeypatch.setenv("CXX", str(compiler.path))
    return compiler


@pytest.fixture
def csrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sources that compile in a moment: one for the CPU, one header."""
    folder = tmp_path / "csrc"
    (folder / "ops").mkdir(parents=True)
    (folder / "answer.cpp").write_text('#include "ops/answer.h"\nextern "C" int answer() { return ANSWER; }\n')
    (folder / "ops" / "answer.h").write_text("#define ANSWER 42\n")
    monkeypatch.setattr(keys, "CSRC", folder)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def run(script: str, *arguments: object) -> tuple[str, str]:
    """What a Python script prints, and what it writes to stderr."""
    process = start(script, *arguments)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output, errors


def with_operators(folder: Path) -> dict[str, str]:
    """The environment of a process whose cache, in this folder, holds the operators and no kernel."""
    compiled = loader.find("cpu").parent
    shutil.copytree(compiled, folder / compiled.name)
    return {**os.environ, "TORCHAD_EXT_CACHE_DIR": str(folder), "TORCHAD_EXT_EAGER": "0", "TORCHAD_EXT_STRICT": "1"}


def load_again() -> bool:
    """Loads as a new process would."""
    state.failures.clear()
    return loader.load("cpu")
