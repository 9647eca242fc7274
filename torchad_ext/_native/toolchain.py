"""Compilers, their flags, and the machines that they produce code for."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import _settings
from .._torch_state import can_run_avx2, can_run_avx512

# The binaries use only what this release of PyTorch's stable ABI has, and serve it and every later one.
_ABI = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
# The compiler may not fuse a * b + c on its own: a result is the same on every CPU. Nothing else trades accuracy.
_CXX_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
# GCC's default; vectors of one size that convert into each other, Clang's, make calls of overloads ambiguous.
_CXX_FLAGS += ["-fno-lax-vector-conversions"]
# PyTorch's headers then include single operators, not all of them.
_FAST_PATH_FLAGS = ["-std=c++20", "-O1", "-fPIC", "-DAT_PER_OPERATOR_HEADERS"]
# GCC collects its garbage later: a tenth of the time, for a quarter more memory.
_LATE_COLLECTION = ["--param=ggc-min-expand=1000", "--param=ggc-min-heapsize=4194304"]
CPU_LEVELS = {"AVX512": "x86-64-v4", "AVX2": "x86-64-v3", "DEFAULT": "x86-64"}
_CHOICES = ("x86-64-v2", "x86-64-v3", "x86-64-v4")  # of TORCHAD_EXT_CPU_LEVEL


class BuildError(RuntimeError):
    """A native library could not be built. The message says why, where the log is and what to do."""


class NoCompilerError(BuildError):
    """There is no C++ compiler."""


@dataclass(frozen=True)
class Toolchain:
    """How to compile a library: the command, its flags, what it produces code for, and flags to link with."""

    compiler: str
    flags: tuple[str, ...]
    target: str
    link_flags: tuple[str, ...] = ()

    @property
    def is_gcc(self) -> bool:
        return "Free Software Foundation" in version(self.compiler)


def cpu_level() -> str:
    """The instruction set to compile for: that of ``TORCHAD_EXT_CPU_LEVEL``, or the best that PyTorch itself would use
    on this CPU.

    Raises:
        BuildError: the level is unknown, or this CPU cannot run it.
    """
    chosen = _settings.cpu_level()
    machine = platform.machine()
    if machine not in ("x86_64", "AMD64"):
        if chosen:
            raise BuildError(f"TORCHAD_EXT_CPU_LEVEL={chosen}, but this CPU is one of {machine}; unset it")
        return machine
    if not chosen:
        return CPU_LEVELS.get(torch.backends.cpu.get_cpu_capability(), "x86-64")
    if chosen not in _CHOICES:
        raise BuildError(f"TORCHAD_EXT_CPU_LEVEL={chosen}; it is one of {', '.join(_CHOICES)}")
    levels = [level for level in _CHOICES if can_run(level)]
    if chosen not in levels:
        raise BuildError(f"TORCHAD_EXT_CPU_LEVEL={chosen}, but this CPU runs no more than {levels[-1]}; set that")
    return chosen


def can_run(level: str) -> bool:
    """Does this CPU have the instructions of a level? PyTorch asks it for AVX2 and AVX-512, whatever it uses itself."""
    has = {"x86-64-v3": can_run_avx2, "x86-64-v4": can_run_avx512}
    return level not in has or has[level]()


def processors() -> int:
    """The number of compilers to run at a time."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def present_gpus() -> tuple[str, ...]:
    """The compute capabilities of the visible GPUs, ``("90",)`` for an H200."""
    capabilities = (torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count()))
    return tuple(sorted({f"{major}{minor}" for major, minor in capabilities}))


def find_cxx() -> str | None:
    """The C++ compiler of ``CXX``, or the first of c++, g++ and clang++ there is."""
    candidates = [chosen] if (chosen := _settings.cxx()) else ["c++", "g++", "clang++"]
    return next(filter(None, map(shutil.which, candidates)), None)


def find_zig() -> str | None:
    """The program of PyPI's ``ziglang``, which carries Clang and is installed without root; None if it is not there."""
    package = importlib.util.find_spec("ziglang")
    return shutil.which("zig", path=str(Path(package.origin).parent)) if package and package.origin else None


def _cxx() -> str:
    compiler = find_cxx()
    if compiler is None:
        given = f"CXX={chosen} is no program" if (chosen := _settings.cxx()) else "no C++ compiler was found"
        raise NoCompilerError(f"{given}; install g++ (Debian and Ubuntu: apt install g++) or set CXX to a compiler")
    return compiler


def version(compiler: str) -> str:
    """The text that a compiler says about itself."""
    option = "version" if compiler == find_zig() else "--version"
    return subprocess.run([compiler, option], capture_output=True, text=True, errors="replace", check=False).stdout


def cpu_toolchain(level: str | None = None) -> Toolchain:
    """The C++ compiler, for this CPU or for a named level of x86-64.

    Raises:
        BuildError: there is none, or ``TORCHAD_EXT_CPU_LEVEL`` names a level that this CPU cannot run.
    """
    level = level or cpu_level()
    march = [f"-march={level}"] if level.startswith("x86-64") else []
    return Toolchain(_cxx(), (*_CXX_FLAGS, *_ABI, *march, *_settings.cxx_flags()), level)


def kernel_toolchain() -> Toolchain:
    """The compiler for pointwise kernels: as for ``cpu_toolchain``, or ``zig c++`` where there is no other.

    Operators are not compiled with Zig: its C++ library is another than PyTorch's, across which no exception passes.

    Raises:
        BuildError: as ``cpu_toolchain``.
    """
    try:
        return cpu_toolchain()
    except NoCompilerError as error:
        zig = find_zig()
        if _settings.cxx():
            raise
        if zig is None:
            raise NoCompilerError(f"{error}, or, for kernels alone, pip install 'torchad_ext[compiler]'") from None
    level = cpu_level()
    cpu = [f"-mcpu={level.replace('-', '_')}"] if level.startswith("x86-64") else []
    # Kernels use nothing of a C++ library, which Zig would compile first.
    return Toolchain(zig, ("c++", *_CXX_FLAGS, *cpu, *_settings.cxx_flags()), level, ("-nostdlib++", "-s"))


def fast_path_toolchain() -> Toolchain:
    """The C++ compiler, for an extension module of this Python and this PyTorch."""
    plain = Toolchain(_cxx(), (), "")
    collection = _LATE_COLLECTION if plain.is_gcc else []
    headers = f"-I{sysconfig.get_path('include')}"
    return Toolchain(
        plain.compiler, (*_FAST_PATH_FLAGS, *collection, headers, *_settings.cxx_flags()), fast_path_target()
    )


def fast_path_target() -> str:
    """The Python and the PyTorch that an extension module serves."""
    return f"{sysconfig.get_config_var('SOABI')}-torch-{torch.__version__}"


def cuda_toolchain() -> Toolchain:
    """The C++ compiler, for the operators that launch kernels on GPUs."""
    return Toolchain(_cxx(), (*_CXX_FLAGS, *_ABI, "-DUSE_CUDA", *_settings.cxx_flags()), platform.machine())
