"""Compiles and loads the native kernels; the only file that knows compilers.

A library is looked for in three places: among the binaries that came with the package, in the cache, and at last it is
compiled into the cache. A cache entry is a folder named by a hash of everything that counts (sources, flags, compiler,
CPU or GPU, torch), written aside and renamed into place, under a lock that the operating system frees with its holder.

Environment:
    TORCHAD_EXT_CACHE_DIR   where compiled libraries are kept (default: ``~/.cache/torchad_ext``)
    TORCHAD_EXT_STRICT      ``1``: a library that cannot be built is an error, not a warning
    TORCHAD_EXT_CXXFLAGS    flags added to every compilation, ``-fsanitize=address`` for example
    CXX, CUDA_HOME          the C++ compiler, the CUDA toolkit
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

_PACKAGE = Path(__file__).resolve().parent
CSRC = next((folder for folder in (_PACKAGE / "csrc", _PACKAGE.parent / "csrc") if folder.is_dir()), _PACKAGE / "csrc")
PREBUILT = _PACKAGE / "prebuilt"

# The binaries use only what this release of PyTorch's stable ABI has, and serve it and every later one.
_ABI = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
# The compiler may not fuse a * b + c on its own: a result is the same on every CPU. Nothing else trades accuracy.
_CXX_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
_NVCC_FLAGS = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC", "-DUSE_CUDA", "--split-compile=0"]
_CPU_LEVELS = {"AVX512": "x86-64-v4", "AVX2": "x86-64-v3", "DEFAULT": "x86-64"}
PREBUILT_GPUS = ("80", "90", "100")


class BuildError(RuntimeError):
    """A native library could not be built. The message says why, where the log is and what to do."""


@dataclass(frozen=True)
class Toolchain:
    """How to compile for one device: the command, its flags, and what it produces code for."""

    compiler: str
    flags: tuple[str, ...]
    target: str


def cpu_level() -> str:
    """The instruction set to compile for: the best that PyTorch itself would use on this CPU."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return platform.machine()
    return _CPU_LEVELS.get(torch.backends.cpu.get_cpu_capability(), "x86-64")


def present_gpus() -> tuple[str, ...]:
    """The compute capabilities of the visible GPUs, ``("90",)`` for an H200."""
    capabilities = (torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count()))
    return tuple(sorted({f"{major}{minor}" for major, minor in capabilities}))


def find_nvcc() -> str | None:
    """The CUDA compiler of ``CUDA_HOME``, of the ``PATH``, or of the usual place."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    candidates = [os.path.join(home, "bin", "nvcc") for home in homes if home]
    return next((path for path in candidates if os.path.exists(path)), None) or shutil.which("nvcc")


def find_cxx() -> str | None:
    """The C++ compiler of ``CXX``, or the first of c++, g++ and clang++ there is."""
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((path for path in map(shutil.which, candidates) if path), None)


def cpu_toolchain(level: str | None = None) -> Toolchain:
    """The C++ compiler, for this CPU or for a named level of x86-64."""
    compiler = find_cxx()
    if compiler is None:
        raise BuildError("no C++ compiler was found; install g++ (Debian and Ubuntu: apt install g++) or set CXX")
    level = level or cpu_level()
    march = [f"-march={level}"] if level.startswith("x86-64") else []
    return Toolchain(compiler, (*_CXX_FLAGS, *_ABI, *march, *os.environ.get("TORCHAD_EXT_CXXFLAGS", "").split()), level)


def cuda_toolchain(gpus: tuple[str, ...] | None = None) -> Toolchain:
    """nvcc, for the visible GPUs or for named compute capabilities."""
    compiler = find_nvcc()
    if compiler is None:
        raise BuildError("no nvcc was found; install the CUDA toolkit or set CUDA_HOME")
    gpus = gpus or present_gpus()
    codes = [f"-gencode=arch=compute_{gpu},code=sm_{gpu}" for gpu in gpus]
    return Toolchain(compiler, (*_NVCC_FLAGS, *_ABI, *codes), "sm_" + "_".join(gpus))


@functools.cache
def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout


@functools.cache
def _sources_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in CSRC.rglob("*") if p.is_file()):
        digest.update(str(path.relative_to(CSRC)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def cache_key(device: str, toolchain: Toolchain) -> str:
    """The name of a cache entry: the target in clear, then a hash of everything that counts."""
    parts = [_sources_hash(), *toolchain.flags, toolchain.compiler, _version(toolchain.compiler), torch.__version__]
    return f"{device}-{toolchain.target}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}"


def cache_dir() -> Path:
    """The folder of compiled libraries."""
    if chosen := os.environ.get("TORCHAD_EXT_CACHE_DIR"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchad_ext"


def _escape(path: str | Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def write_ninja(folder: Path, sources: list[Path], toolchain: Toolchain) -> None:
    """Writes ``build.ninja`` into ``folder``: compile every source, link them to ``library.so``."""
    torch_root = Path(torch.__file__).resolve().parent
    objects = [f"{source.name}.o" for source in sources]
    libraries = f"-L{_escape(torch_root / 'lib')} -ltorch -ltorch_cpu -lc10"
    lines = [
        f"compiler = {_escape(toolchain.compiler)}",
        f"flags = {' '.join(toolchain.flags)} -isystem {_escape(torch_root / 'include')} -I{_escape(CSRC)}",
        "rule compile",
        "  command = $compiler $flags -c $in -o $out",
        "rule link",
        f"  command = $compiler $flags -shared $in -o $out {libraries}",
        *(f"build {o}: compile {_escape(source)}" for o, source in zip(objects, sources, strict=True)),
        f"build library.so: link {' '.join(objects)}",
        "default library.so",
    ]
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")


def _run_ninja(folder: Path) -> subprocess.CompletedProcess[str]:
    try:
        import ninja

        command = os.path.join(ninja.BIN_DIR, "ninja")
    except ImportError as error:
        command = shutil.which("ninja") or ""
        if not command:
            raise BuildError("ninja was not found; pip install ninja") from error
    return subprocess.run(
        [command, "-C", str(folder), "library.so"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


def compile_library(device: str, toolchain: Toolchain, to: Path) -> None:
    """Compiles the kernels of a device and puts the library at ``to``, whole or not at all.

    Raises:
        BuildError: the compiler failed; its output is kept beside ``to``, in a file ending in ``.log``.
    """
    sources = sorted(CSRC.glob("*.cpp" if device == "cpu" else "*.cu"))
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=".building-") as name:
        folder = Path(name)
        write_ninja(folder, sources, toolchain)
        result = _run_ninja(folder)
        if result.returncode != 0:
            log = to.with_suffix(".log")
            log.write_text(result.stdout)
            raise BuildError(f"{toolchain.compiler} failed; its output is in {log}")
        os.replace(folder / "library.so", to)


def _say(text: str) -> None:
    print(f"torchad_ext: {text}", file=sys.stderr, flush=True)


def _acquire(lock, what: str) -> None:
    import filelock

    try:
        lock.acquire(timeout=1)
    except filelock.Timeout:
        _say(f"waiting for another process, which is compiling {what}")
        lock.acquire()


def _cached(device: str, toolchain: Toolchain) -> Path:
    """The library of a device from the cache, compiled first if it is not there."""
    import filelock

    root = cache_dir()
    library = root / cache_key(device, toolchain) / "library.so"
    if library.exists():
        return library
    what = f"the {device.upper()} kernels for {toolchain.target}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(str(library.parent) + ".lock")
        _acquire(lock, what)
    except OSError as error:
        raise BuildError(f"the cache folder {root} cannot be written ({error}); set TORCHAD_EXT_CACHE_DIR") from error
    try:
        if not library.exists():
            _say(f"compiling {what}, once, with {toolchain.compiler}; kept in {library.parent}")
            start = time.perf_counter()
            compile_library(device, toolchain, library)
            _say(f"compiled {what} in {time.perf_counter() - start:.1f} s")
    finally:
        lock.release()
    return library


def prebuilt_library(device: str, target: str) -> Path:
    """Where a wheel built with ``TORCHAD_EXT_PREBUILD=1`` keeps a library, whether it has it or not."""
    return PREBUILT / f"{device}-{target}-{_sources_hash()[:16]}.so"


def _find(device: str) -> Path:
    target = cpu_level() if device == "cpu" else "sm_" + "_".join(PREBUILT_GPUS)
    prebuilt = prebuilt_library(device, target)
    if prebuilt.exists() and (device == "cpu" or set(present_gpus()) <= set(PREBUILT_GPUS)):
        return prebuilt
    return _cached(device, cpu_toolchain() if device == "cpu" else cuda_toolchain())


_loaded: dict[str, bool] = {}
_loading = threading.RLock()


def load(device: str) -> bool:
    """Loads the kernels of ``"cpu"`` or ``"cuda"``, compiling them on the first use; tried once a process.

    The CUDA kernels implement operators that the CPU library declares, so loading them loads it first.

    Returns:
        Whether the kernels are there. If not, one warning has said why and what to do.

    Raises:
        BuildError: they are not there and ``TORCHAD_EXT_STRICT=1``.
    """
    if device in _loaded:
        return _loaded[device]
    with _loading:
        if device in _loaded:
            return _loaded[device]
        try:
            if device == "cuda" and not load("cpu"):
                raise BuildError("the CUDA kernels need the CPU kernels, which could not be built")
            torch.ops.load_library(_find(device))
            _loaded[device] = True
        except (BuildError, OSError) as error:
            message = f"no native {device.upper()} kernels: {error}"
            if os.environ.get("TORCHAD_EXT_STRICT") == "1":
                raise BuildError(message) from error
            _loaded[device] = False
            warnings.warn(f"torchad_ext: {message}. The plain PyTorch definitions run instead.", stacklevel=4)
        return _loaded[device]
