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
    """``TORCHAD_EXT_CACHE_DIR``, the folder of compiled libraries; ``~/.cache/torchad_ext`` by default."""
    if chosen := os.environ.get("TORCHAD_EXT_CACHE_DIR"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchad_ext"


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
