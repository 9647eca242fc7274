"""An examination of this machine: each finding with its remedy, and what runs where."""

from __future__ import annotations

import difflib
import os
import platform
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from . import _settings
from ._native import cache, compile, nvrtc, prebuilt, toolchain
from ._native.toolchain import BuildError
from ._torch_state import missing

OK, NOTE, PROBLEM = "ok", "note", "problem"
_PROBE = "#include <cmath>\n#include <type_traits>\nint main() { return std::is_same_v<int, int> ? 0 : 1; }\n"
_LEAST_SPACE = 100 << 20  # bytes; all kernels of a large project are some tens of megabytes
_OLDEST = (2, 10)  # whose stable ABI has what the kernels need


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: ``"compiler"``, for example.
        state: ``"ok"``; ``"note"``, something works slower or not at all, and need not; ``"problem"``, it should.
        text: what was found.
        remedy: what to do; empty where nothing need be done.
    """

    subject: str
    state: str
    text: str
    remedy: str = ""


def diagnose() -> list[Finding]:
    """Looks at everything that native kernels need; compiles a program of three lines, and no kernel.

    Returns:
        The findings, problems included: nothing is raised for them.

    Example:
        >>> [finding.subject for finding in diagnose()][:3]
        ['torch', 'CPU level', 'compiler']
    """
    looks = (_torch, _cpu_level, _compiler, _ninja, _python_headers, _gpu, _nvrtc, _cache, _prebuilt, _settings_given)
    return [finding for look in looks for finding in look()]


def routes(findings: list[Finding]) -> dict[str, str]:
    """The routes of each device and part: kernels, or the plain definition and why.

    Example:
        >>> sorted(routes(diagnose()))
        ['CPU: calls on plain tensors', 'CPU: catalogue, quadratic_form', 'CPU: declared ops', 'GPU: ops']
    """
    broken = {finding.subject for finding in findings if finding.state == PROBLEM}
    lacking = {finding.subject for finding in findings if finding.state != OK}
    brought = _brought("cpu")
    can_build = broken.isdisjoint({"torch", "CPU level", "cache"}) and lacking.isdisjoint({"compiler", "ninja"})
    kernels, plain = "native kernels, compiled on first use", "the plain PyTorch definition"
    of_catalogue = "native kernels, prebuilt" if brought else kernels if can_build else plain
    gpu = "no GPU is visible to this PyTorch"
    if toolchain.present_gpus():
        can_launch = broken.isdisjoint({"NVRTC", "GPU", "cache"}) and (can_build or _brought("cuda"))
        gpu = kernels if can_launch else plain
    has_calls = can_build and toolchain.find_cxx() is not None and "Python.h" not in lacking
    calls = "C++" if has_calls and _settings.fast_path() != "0" else "Python"
    return {
        "CPU: catalogue, quadratic_form": of_catalogue,
        "CPU: declared ops": kernels if can_build else plain,
        "CPU: calls on plain tensors": "C++" if _brought("fast_path") else calls,
        "GPU: ops": gpu,
    }


def _brought(device: str) -> bool:
    """Did operators of a device come with the package?"""
    if device == "fast_path":
        return prebuilt.find("fast_path", toolchain.fast_path_target(), "calls") is not None
    try:
        target = platform.machine() if device == "cuda" else toolchain.cpu_level()
    except BuildError:
        return False
    return prebuilt.find(device, target, "operators") is not None


def _torch() -> Iterator[Finding]:
    text = f"{torch.__version__}, Python {platform.python_version()}"
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < _OLDEST:
        yield Finding("torch", PROBLEM, text, f"pip install 'torch>={_OLDEST[0]}.{_OLDEST[1]}'")
    elif missing:
        text = f"{text}; it lacks {', '.join(missing)}, for which slower public ways serve"
        yield Finding("torch", NOTE, text, "install a version of PyTorch that docs/versions.md names")
    else:
        yield Finding("torch", OK, text)


def _cpu_level() -> Iterator[Finding]:
    try:
        level = toolchain.cpu_level()
    except BuildError as error:
        yield Finding("CPU level", PROBLEM, str(error), "unset TORCHAD_EXT_CPU_LEVEL, or set one that is named")
        return
    threads = f"{toolchain.processors()} processors, {torch.get_num_threads()} threads of PyTorch"
    yield Finding("CPU level", OK, f"{level}; {threads}")


def _compiler() -> Iterator[Finding]:
    remedy = "install g++ 11 or clang++ 12 or newer (Debian and Ubuntu: apt install g++; conda: conda install gxx)"
    try:
        # Zig compiles kernels alone, so that it serves where the operators are brought.
        chosen = toolchain.kernel_toolchain() if _brought("cpu") else toolchain.cpu_toolchain()
    except BuildError as error:
        if "CPU" not in str(error):  # whose level is a finding of its own
            state = NOTE if _brought("cpu") else PROBLEM
            yield Finding("compiler", state, str(error), f"{remedy}, or set CXX")
        return
    text = f"{chosen.compiler}: {toolchain.version(chosen.compiler).partition(chr(10))[0]}"
    command = [chosen.compiler, *chosen.flags, "-fsyntax-only", "-x", "c++", "-"]
    try:
        tried = subprocess.run(command, input=_PROBE, capture_output=True, text=True, check=False, errors="replace")
    except OSError as error:
        yield Finding("compiler", PROBLEM, f"{text}, which cannot be run: {error}", remedy)
        return
    if tried.returncode:
        line = next((line for line in tried.stderr.splitlines() if "error" in line), tried.stderr[-200:])
        yield Finding("compiler", PROBLEM, f"{text}, which does not compile three lines: {line}", remedy)
    else:
        yield Finding("compiler", OK, text)


def _ninja() -> Iterator[Finding]:
    try:
        command = compile.ninja_command()
    except BuildError:
        state = NOTE if _brought("cpu") else PROBLEM
        yield Finding("ninja", state, "not found", "pip install ninja")
    else:
        yield Finding("ninja", OK, command)


def _python_headers() -> Iterator[Finding]:
    folder = sysconfig.get_path("include")
    if Path(folder, "Python.h").exists():
        yield Finding("Python.h", OK, folder)
    else:
        remedy = "Debian and Ubuntu: apt install python3-dev; without it a call costs some microseconds more"
        yield Finding("Python.h", NOTE, f"not in {folder}; calls on plain tensors go through Python", remedy)


def _gpu() -> Iterator[Finding]:
    if torch.version.hip:
        yield Finding("GPU", NOTE, "this PyTorch is one for ROCm; on its GPUs the plain definitions run")
    elif not torch.cuda.is_available():
        if shutil.which("nvidia-smi") and not torch.version.cuda:
            remedy = "install a PyTorch for CUDA, see https://pytorch.org/get-started"
            yield Finding("GPU", NOTE, "there is an nvidia-smi, but this PyTorch is one for the CPU", remedy)
        else:
            yield Finding("GPU", OK, "none; everything runs on the CPU")
    else:
        names = (torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        capabilities = ", ".join(f"sm_{gpu}" for gpu in toolchain.present_gpus())
        yield Finding("GPU", OK, f"{', '.join(names)} ({capabilities}), CUDA {torch.version.cuda}")


def _nvrtc() -> Iterator[Finding]:
    try:
        yield Finding("NVRTC", OK, nvrtc.version())
    except nvrtc.NvrtcError as error:
        if not torch.cuda.is_available():
            yield Finding("NVRTC", OK, "not found, and not needed without a GPU")
            return
        state = NOTE if prebuilt.images() else PROBLEM
        yield Finding("NVRTC", state, str(error), "pip install nvidia-cuda-nvrtc, or set CUDA_HOME to a CUDA toolkit")


def _cache() -> Iterator[Finding]:
    folder = _settings.cache_dir()
    remedy = "set TORCHAD_EXT_CACHE_DIR to a folder that you may write"
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir():
        yield Finding("cache", PROBLEM, f"{existing} is no folder", remedy)
        return
    try:
        kept = cache.entries()
    except OSError as error:
        yield Finding("cache", PROBLEM, f"{folder} cannot be read: {error.strerror}", remedy)
        return
    rights = "rwx" if os.access(existing, os.R_OK | os.W_OK | os.X_OK) else "may not be written"
    size = sum(entry.size for entry in kept)
    text = f"{folder}: {len(kept)} entries, {size / 1e6:.1f} MB, {rights}"
    state = NOTE if _brought("cpu") else PROBLEM
    space = shutil.disk_usage(existing).free
    if rights != "rwx":
        yield Finding("cache", state, text, remedy)
    elif os.statvfs(existing).f_flag & os.ST_NOEXEC:
        yield Finding("cache", state, f"{text}; its file system is mounted noexec, so no library loads", remedy)
    elif space < _LEAST_SPACE:
        remedy = "python -m torchad_ext cache --clear, or set TORCHAD_EXT_CACHE_DIR to a disk with room"
        yield Finding("cache", PROBLEM, f"{text}; {space >> 20} MiB are free", remedy)
    else:
        yield Finding("cache", OK, text)
    failed = [log for entry in kept if not entry.is_finished for log in entry.folder.glob("*.log")]
    if failed:
        names = f"{len(failed)} compilations failed, the last in {failed[0]}"
        yield Finding("cache", NOTE, names, "read that log; python -m torchad_ext cache --clear has all tried again")


def _prebuilt() -> Iterator[Finding]:
    files = [path for path in prebuilt.FOLDER.glob("*") if path.suffix in (".so", ".cubin")]
    if not files:
        yield Finding("prebuilt", OK, "none; kernels are compiled on their first use")
    elif _settings.cxx_flags():
        text = f"{len(files)} binaries, not used while TORCHAD_EXT_CXXFLAGS is set"
        yield Finding("prebuilt", NOTE, text, "unset TORCHAD_EXT_CXXFLAGS")
    elif not _brought("cpu"):
        text = f"{len(files)} binaries, none of which serves this CPU and these sources"
        yield Finding("prebuilt", NOTE, text, "install the wheel again, for this machine")
    else:
        size = sum(path.stat().st_size for path in files)
        yield Finding("prebuilt", OK, f"{', '.join(prebuilt.described(files))}; {size / 1e6:.1f} MB")


def _settings_given() -> Iterator[Finding]:
    given = _settings.given()
    for name in given:
        if name not in _settings.NAMES:
            near = difflib.get_close_matches(name, _settings.NAMES, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(_settings.NAMES)}"
            yield Finding("settings", NOTE, f"{name} is set, and unknown", remedy)
    known = [f"{name}={value}" for name, value in given.items() if name in _settings.NAMES]
    yield Finding("settings", OK, ", ".join(known) or "no environment variable is set")
