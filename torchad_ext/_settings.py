"""Environment variables, read when they are asked for."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

_HOMES = ("CUDA_HOME", "CUDA_PATH")
NAMES = tuple(f"TORCHAD_EXT_{name}" for name in "CACHE_DIR STRICT CXXFLAGS CPU_LEVEL EAGER PREBUILD".split())


def given() -> dict[str, str]:
    """The variables whose names begin with ``TORCHAD_EXT_``, known or not."""
    return {name: value for name, value in os.environ.items() if name.startswith("TORCHAD_EXT_")}


def is_strict() -> bool:
    """``TORCHAD_EXT_STRICT=1``: what would be a warning and a slower way is an error."""
    return os.environ.get("TORCHAD_EXT_STRICT") == "1"


def cache_dir() -> Path:
    """``TORCHAD_EXT_CACHE_DIR``, the folder of compiled libraries; ``~/.cache/torchad_ext`` by default.

    Raises:
        RuntimeError: it is not set, and there is no home folder.
    """
    if chosen := os.environ.get("TORCHAD_EXT_CACHE_DIR"):
        return Path(chosen).expanduser()
    if parent := os.environ.get("XDG_CACHE_HOME"):
        return Path(parent) / "torchad_ext"
    try:
        return Path.home() / ".cache" / "torchad_ext"
    except RuntimeError as error:
        raise RuntimeError("this user has no home folder; set TORCHAD_EXT_CACHE_DIR to a folder") from error


def build_timeout() -> float:
    """``TORCHAD_EXT_BUILD_TIMEOUT``, the seconds that a compilation, or a wait for another process's, may take; 600 by
    default.

    Raises:
        ValueError: it is no positive number.
    """
    given = os.environ.get("TORCHAD_EXT_BUILD_TIMEOUT") or "600"
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise ValueError(f"TORCHAD_EXT_BUILD_TIMEOUT={given}; it is a positive number of seconds")
    return seconds


def cpu_level() -> str | None:
    """``TORCHAD_EXT_CPU_LEVEL``, the instruction set of CPU kernels; None for the best one that PyTorch would use."""
    return os.environ.get("TORCHAD_EXT_CPU_LEVEL") or None


def cxx() -> str | None:
    """``CXX``, the C++ compiler; None for the first one found."""
    return os.environ.get("CXX") or None


def cxx_flags() -> list[str]:
    """``TORCHAD_EXT_CXXFLAGS``, flags added to each C++ compilation."""
    return shlex.split(os.environ.get("TORCHAD_EXT_CXXFLAGS", ""))


def fast_path() -> str | None:
    """``TORCHAD_EXT_EAGER``: ``"0"``, calls go through Python; ``"wait"``, the first one waits for the compiler."""
    return os.environ.get("TORCHAD_EXT_EAGER")


def cuda_homes() -> list[str]:
    """``CUDA_HOME`` and ``CUDA_PATH``, the toolkits whose NVRTC serves where none came with PyTorch."""
    return [home for name in _HOMES if (home := os.environ.get(name))]
