"""Compiles and loads the native kernels; the only file that knows compilers.

There is one library for each device, which holds the operators and needs PyTorch's stable ABI, and a small one for each
pointwise kernel, which needs nothing. One more, of ``csrc/eager``, makes calls on plain tensors cheap; it needs all of
PyTorch's headers and a quarter of a minute, so it is compiled in the background, and calls go through Python until it
is there. A library is looked for in three places: among the binaries that came with the package, in the cache, and at
last it is compiled into the cache. A cache entry is a folder named by a hash of everything that counts (sources, flags,
compilers, CPU or GPU, torch), written aside and renamed into place, under a lock that the operating system frees with
its holder.

Environment:
    TORCHAD_EXT_CACHE_DIR   where compiled libraries are kept (default: ``~/.cache/torchad_ext``)
    TORCHAD_EXT_STRICT      ``1``: a library that cannot be built is an error, not a warning
    TORCHAD_EXT_CXXFLAGS    flags added to the C++ compilation, ``-fsanitize=address`` for example
    TORCHAD_EXT_EAGER       ``0``: calls go through Python; ``wait``: the first one waits for the compiler
    CXX, CUDA_HOME          the C++ compiler, also of nvcc, and the CUDA toolkit
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from .codegen import Kernel

_PACKAGE = Path(__file__).resolve().parent
CSRC = next((folder for folder in (_PACKAGE / "csrc", _PACKAGE.parent / "csrc") if folder.is_dir()), _PACKAGE / "csrc")
PREBUILT = _PACKAGE / "prebuilt"

# The binaries use only what this release of PyTorch's stable ABI has, and serve it and every later one.
_ABI = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
# The compiler may not fuse a * b + c on its own: a result is the same on every CPU. Nothing else trades accuracy.
_CXX_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
_EAGER_FLAGS = ["-std=c++20", "-O1", "-fPIC"]
_NVCC_FLAGS = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC", "-DUSE_CUDA", "--split-compile=0"]
_CPU_LEVELS = {"AVX512": "x86-64-v4", "AVX2": "x86-64-v3", "DEFAULT": "x86-64"}
_BUILDING = ".building-"
_SUFFIXES = (".h", ".cpp", ".cuh", ".cu")
_NVCC_ENVIRONMENT = ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "NVCC_CCBIN")
_REMEDY = {
    "cpu": "g++ 11 or clang++ 12 or newer is needed; CXX chooses the compiler",
    "cuda": "CUDA 12.8 or newer is needed; CUDA_HOME chooses the toolkit, CXX its C++ compiler",
    "eager": "g++ 11 or clang++ 14 or newer and the headers of Python are needed (Debian and Ubuntu: python3-dev)",
}
PREBUILT_GPUS = ("80", "90", "100")


class BuildError(RuntimeError):
    """A native library could not be built. The message says why, where the log is and what to do."""


@dataclass(frozen=True)
class Toolchain:
    """How to compile a library: the command, its flags, and what it produces code for."""

    compiler: str
    flags: tuple[str, ...]
    target: str


def cpu_level() -> str:
    """The instruction set to compile for: the best that PyTorch itself would use on this CPU."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return platform.machine()
    return _CPU_LEVELS.get(torch.backends.cpu.get_cpu_capability(), "x86-64")


def processors() -> int:
    """How many compilers to run at a time."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    return next(filter(None, map(shutil.which, candidates)), None)


def _cxx() -> str:
    compiler = find_cxx()
    if compiler is None:
        given = f"CXX={os.environ['CXX']} is no program" if os.environ.get("CXX") else "no C++ compiler was found"
        raise BuildError(f"{given}; install g++ (Debian and Ubuntu: apt install g++) or set CXX to a compiler")
    return compiler


def _chosen_flags() -> list[str]:
    return shlex.split(os.environ.get("TORCHAD_EXT_CXXFLAGS", ""))


def cpu_toolchain(level: str | None = None) -> Toolchain:
    """The C++ compiler, for this CPU or for a named level of x86-64."""
    level = level or cpu_level()
    march = [f"-march={level}"] if level.startswith("x86-64") else []
    return Toolchain(_cxx(), (*_CXX_FLAGS, *_ABI, *march, *_chosen_flags()), level)


def eager_toolchain() -> Toolchain:
    """The C++ compiler, for an extension module of this Python and this PyTorch."""
    headers = f"-I{sysconfig.get_path('include')}"
    return Toolchain(_cxx(), (*_EAGER_FLAGS, headers, *_chosen_flags()), _eager_target())


def _eager_target() -> str:
    return f"{sysconfig.get_config_var('SOABI')}-torch-{torch.__version__}"


def cuda_toolchain(gpus: tuple[str, ...] | None = None) -> Toolchain:
    """nvcc, for the visible GPUs or for named compute capabilities."""
    compiler = find_nvcc()
    if compiler is None:
        raise BuildError("no nvcc was found; install the CUDA toolkit or set CUDA_HOME")
    gpus = gpus or present_gpus()
    if not gpus:
        raise BuildError("no GPU is visible to compile for; check nvidia-smi and CUDA_VISIBLE_DEVICES")
    host = [f"-ccbin={find_cxx()}"] if os.environ.get("CXX") else []
    codes = [f"-gencode=arch=compute_{gpu},code=sm_{gpu}" for gpu in gpus]
    return Toolchain(compiler, (*_NVCC_FLAGS, *_ABI, *host, *codes), "sm_" + "_".join(gpus))


def _version(compiler: str | None) -> str:
    if compiler is None:
        return ""
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, errors="replace", check=False).stdout


def _sources_hash() -> str:
    """A hash of the sources and of this file, which says how they are compiled: the same in a checkout and a wheel."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted(path for path in CSRC.rglob("*") if path.suffix in _SUFFIXES):
        digest.update(b"\0" + path.relative_to(CSRC).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def cache_key(device: str, toolchain: Toolchain) -> str:
    """The name of a cache entry: the target in clear, then a hash of everything that counts."""
    parts = [_sources_hash(), *toolchain.flags, toolchain.compiler, _version(toolchain.compiler), torch.__version__]
    if device == "cuda":
        parts += [_version(find_cxx()), *(os.environ.get(name, "") for name in _NVCC_ENVIRONMENT)]
    return f"{device}-{toolchain.target}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}"


def cache_dir() -> Path:
    """The folder of compiled libraries."""
    if chosen := os.environ.get("TORCHAD_EXT_CACHE_DIR"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchad_ext"


def _shell(*words: str) -> str:
    """Words of a shell command as the value of a ninja variable."""
    return shlex.join(words).replace("$", "$$")


def _path(path: Path) -> str:
    """A path as an input of a ninja rule, which quotes it for the shell."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def write_ninja(folder: Path, sources: list[Path], toolchain: Toolchain, libraries: Sequence[str]) -> None:
    """Writes ``build.ninja`` into ``folder``: compile every source, link them and PyTorch's libraries to
    ``library.so``."""
    torch_root = os.path.dirname(os.path.realpath(torch.__file__))
    objects = [f"{source.name}.o" for source in sources]
    headers = ["-isystem", f"{torch_root}/include"] if libraries else []
    linked = [f"-L{torch_root}/lib", *(f"-l{library}" for library in libraries)] if libraries else []
    lines = [
        f"compiler = {_shell(toolchain.compiler, *toolchain.flags)}",
        f"headers = {_shell(*headers, f'-I{CSRC}')}",
        f"libraries = {_shell(*linked)}",
        "rule compile",
        "  command = $compiler $headers -c $in -o $out",
        "rule link",
        "  command = $compiler -shared $in -o $out $libraries",
        *(f"build {o}: compile {_path(source)}" for o, source in zip(objects, sources, strict=True)),
        f"build library.so: link {' '.join(objects)}",
        "default library.so",
    ]
    (folder / "build.ninja").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _find_ninja() -> str:
    with contextlib.suppress(ImportError):
        import ninja

        if command := shutil.which("ninja", path=ninja.BIN_DIR):
            return command
    if command := shutil.which("ninja"):
        return command
    raise BuildError("ninja was not found; pip install ninja")


def compile_library(what: str, toolchain: Toolchain, to: Path, kernels: Sequence[Kernel] = ()) -> None:
    """Compiles the operators of a device, pointwise kernels or eager mode, and puts the library at ``to``, whole or not
    at all.

    Args:
        what: ``"cpu"``, ``"cuda"`` or ``"eager"``.
        toolchain: how.
        to: the library.
        kernels: what to compile for a device in place of the operators.

    Raises:
        BuildError: the compiler failed; its output is kept beside ``to``, in a file ending in ``.log``.
    """
    suffix = ".cu" if what == "cuda" else ".cpp"
    log = to.with_suffix(".log")
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=_BUILDING, ignore_cleanup_errors=True) as name:
        sources = sorted((CSRC / "eager" if what == "eager" else CSRC).glob(f"*{suffix}"))
        libraries = ["torch", "torch_cpu", "c10", *(["torch_python"] if what == "eager" else [])]
        if kernels:
            sources = [Path(name, f"{kernel.symbol}{suffix}").absolute() for kernel in kernels]
            libraries = []
            for source, kernel in zip(sources, kernels, strict=True):
                source.write_text(kernel.text, encoding="utf-8")
        write_ninja(Path(name), sources, toolchain, libraries)
        failed, output = _run([_find_ninja(), "-C", name, "library.so"])
        if failed:
            texts = (kernel.text.encode() for kernel in kernels)
            log.write_bytes(b"\n".join([output, *texts]))
            raise BuildError(f"{toolchain.compiler} failed; its output is in {log}; {_REMEDY[what]}")
        os.replace(Path(name, "library.so"), to)
    log.unlink(missing_ok=True)


_running: set[subprocess.Popen[bytes]] = set()
_ending = threading.Event()


def _run(command: list[str]) -> tuple[bool, bytes]:
    """Runs a command; whether it failed, and what it said. Whatever it started ends with this process, or before."""
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    _running.add(running)
    if _ending.is_set():
        _stop(running)
    try:
        output, _ = running.communicate()
    except BaseException:
        _stop(running)
        raise
    finally:
        _running.discard(running)
    if _ending.is_set():
        raise BuildError("the process ends")
    return running.returncode != 0, output


def _stop(running: subprocess.Popen[bytes]) -> None:
    # Asked first: ninja's compilers are in groups of their own, which it ends when it hears of its end.
    for ending in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, ending)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(timeout=5)
            return


@atexit.register
def _stop_all(owner: int = os.getpid()) -> None:
    if os.getpid() == owner:  # not in a fork, whose parent still waits for them
        _ending.set()
        for running in list(_running):
            _stop(running)


def _say(text: str) -> None:
    print(f"torchad_ext: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _locked(folder: Path, what: str) -> Iterator[None]:
    """Holds the lock of a cache entry, which the operating system frees when its holder dies."""
    import filelock

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / "lock")
        try:
            lock.acquire(timeout=1)
        except filelock.Timeout:
            _say(f"waiting for another process, which is compiling {what}")
            lock.acquire()
    except OSError as error:
        raise BuildError(f"{folder} cannot be written ({error}); set TORCHAD_EXT_CACHE_DIR to a folder") from error
    try:
        yield
    finally:
        lock.release()


def _in_cache(key: str) -> Path:
    return cache_dir() / key / "library.so"


def _from_cache(what: str, toolchain: Toolchain, name: str, key: str, kernels: Sequence[Kernel] = ()) -> Path:
    """A library, called ``name`` in messages, from the cache; compiled first if it is not there."""
    library = _in_cache(key)
    folder = library.parent
    if os.path.exists(library):
        return library
    with _locked(folder, name):
        if not library.exists():
            for killed in folder.glob(f"{_BUILDING}*"):
                shutil.rmtree(killed, ignore_errors=True)
            if not kernels:
                _say(f"compiling {name}, once, with {toolchain.compiler}; kept in {folder}")
            start = time.perf_counter()
            compile_library(what, toolchain, library, kernels)
            _say(f"compiled {name} in {time.perf_counter() - start:.1f} s")
    return library


def prebuilt_library(device: str, target: str, what: str = "operators") -> Path:
    """Where a wheel built with ``TORCHAD_EXT_PREBUILD=1`` keeps a library, whether it has it or not."""
    return PREBUILT / f"{what}-{device}-{target}-{_sources_hash()[:16]}.so"


def prebuild(folder: Path, devices: str, kernels: Callable[[str], Sequence[Kernel]]) -> list[Path]:
    """Compiles the libraries of a wheel into ``folder``: for every CPU of this architecture and for ``PREBUILT_GPUS``.

    Args:
        folder: takes the place of ``PREBUILT``.
        devices: ``"cpu"``, or ``"1"`` for the CPU and, where there is an nvcc, CUDA.
        kernels: the pointwise kernels to compile for a device.
    """
    if devices not in ("1", "cpu"):
        raise BuildError(f"TORCHAD_EXT_PREBUILD={devices}; it is 1, or cpu to leave CUDA out")
    levels = sorted(_CPU_LEVELS.values()) if cpu_level() in _CPU_LEVELS.values() else [cpu_level()]
    chosen = [("cpu", cpu_toolchain(level)) for level in levels]
    if devices == "1" and find_nvcc():
        chosen.append(("cuda", cuda_toolchain(PREBUILT_GPUS)))
    libraries = []
    for device, toolchain in chosen:
        for what, sources in (("operators", ()), ("kernels", kernels(device))):
            library = folder / prebuilt_library(device, toolchain.target, what).name
            compile_library(device, toolchain, library, sources)
            libraries.append(library)
    library = folder / prebuilt_library("eager", eager_toolchain().target, "calls").name
    compile_library("eager", eager_toolchain(), library)
    return [*libraries, library]


def _runs_on(gpu: str) -> bool:
    """GPU code runs on its own compute capability and on those with the same major number and a higher minor one."""
    return any(gpu[:-1] == built[:-1] and gpu[-1] >= built[-1] for built in PREBUILT_GPUS)


def _prebuilt(device: str, what: str) -> Path | None:
    """A library that came with the package and serves this machine."""
    target = cpu_level() if device == "cpu" else "sm_" + "_".join(PREBUILT_GPUS)
    library = prebuilt_library(device, target, what)
    fits = not os.environ.get("TORCHAD_EXT_CXXFLAGS") if device == "cpu" else all(map(_runs_on, present_gpus()))
    return library if fits and library.exists() else None


def _find(device: str) -> Path:
    """The library of a device's operators."""
    if prebuilt := _prebuilt(device, "operators"):
        return prebuilt
    toolchain = cpu_toolchain() if device == "cpu" else cuda_toolchain()
    name = f"the {device.upper()} kernels for {toolchain.target}"
    return _from_cache(device, toolchain, name, cache_key(device, toolchain))


def is_loaded(device: str) -> bool:
    """Are the operators of a device there?"""
    return device in _loaded


def run_kernel(device: str) -> int:
    """The address of the function that runs the kernels of a device, whose operators are loaded."""
    function = getattr(ctypes.CDLL(str(_loaded[device])), f"torchad_ext_run_{device}")
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def load_eager(compiling: bool) -> ModuleType | None:
    """The extension module of ``csrc/eager``; None if it is not there and is not to be compiled.

    Raises:
        BuildError: it could not be compiled or loaded.
    """
    library = prebuilt_library("eager", _eager_target(), "calls")
    if os.environ.get("TORCHAD_EXT_CXXFLAGS") or not library.exists():
        toolchain = eager_toolchain()
        key = cache_key("eager", toolchain)
        if not compiling and not _in_cache(key).exists():
            return None
        library = _from_cache("eager", toolchain, f"the calls in eager mode for {toolchain.target}", key)
    loader = importlib.machinery.ExtensionFileLoader("torchad_ext_eager", str(library))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec
    try:
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except ImportError as error:
        raise BuildError(f"{error}; delete {library} to have it compiled again") from error
    return module


_failures: dict[str, BuildError | None] = {}
_loaded: dict[str, Path] = {}
_loading = threading.RLock()


def _forget_the_lock() -> None:
    global _loading
    _loading = threading.RLock()


if hasattr(os, "register_at_fork"):  # a thread that loads does not live on in a child, its lock would
    os.register_at_fork(after_in_child=_forget_the_lock)


def load(device: str) -> bool:
    """Loads the kernels of ``"cpu"`` or ``"cuda"``, compiling them on the first use; tried once a process.

    The CUDA kernels implement operators that the CPU library declares, so loading them loads it first.

    Returns:
        Whether the kernels are there. If not, one warning has said why and what to do.

    Raises:
        BuildError: they are not there and ``TORCHAD_EXT_STRICT=1``.
    """
    strict = os.environ.get("TORCHAD_EXT_STRICT") == "1"
    with _loading:
        if device == "cuda" and not load("cpu"):
            _failures["cuda"] = _failures["cpu"]
        if device not in _failures:
            _failures[device] = failure = _failure(device)
            if failure and not strict:
                warnings.warn(f"{failure}. The plain PyTorch definitions run instead.", stacklevel=4)
    if (failure := _failures[device]) and strict:
        raise BuildError(str(failure)) from failure.__cause__
    return failure is None


def _failure(device: str) -> BuildError | None:
    try:
        library = _find(device)
        _load_library(library)
        _loaded[device] = library
    except (RuntimeError, OSError) as error:
        # The CUDA kernels need those for the CPU: where these are missing, there are none.
        kernels = "native kernels" if device == "cpu" else "native CUDA kernels"
        failure = BuildError(f"torchad_ext has no {kernels}: {error}")
        failure.__cause__ = error
        return failure
    return None


def _load_library(library: Path) -> None:
    try:
        torch.ops.load_library(library)
    except OSError as error:
        # torch names the file alone; what is wrong with it stands in the cause.
        raise BuildError(f"{error.__cause__ or error}; delete {library} to have it compiled again") from error


@functools.cache
def _prebuilt_kernels(device: str) -> ctypes.CDLL | None:
    library = _prebuilt(device, "kernels")
    return ctypes.CDLL(str(library)) if library else None


@functools.cache
def _for_kernels(device: str) -> tuple[Toolchain, str]:
    """How the pointwise kernels of this process are compiled, and the part of their keys that they share."""
    toolchain = cpu_toolchain() if device == "cpu" else cuda_toolchain()
    return toolchain, cache_key(device, toolchain)


_compiled: dict[str, ctypes.CDLL] = {}  # a library stays as long as the process


def _compiled_kernel(name: str, device: str, kernel: Kernel) -> ctypes.CDLL:
    toolchain, shared = _for_kernels(device)
    digest = hashlib.sha256(f"{shared}\0{kernel.text}".encode()).hexdigest()[:16]
    key = f"{name}-{device}-{toolchain.target}-{digest}"
    if key not in _compiled:
        library = _from_cache(device, toolchain, f"{name} for the {device.upper()}", key, [kernel])
        _compiled[key] = ctypes.CDLL(str(library))
    return _compiled[key]


def load_kernel(name: str, device: str, kernel: Kernel) -> int | None:
    """The address of a pointwise kernel, compiled on its first use.

    Args:
        name: of the kernel, to be told what is compiled.
        device: ``"cpu"`` or ``"cuda"``, whose operators are loaded.
        kernel: what to compile.

    Returns:
        The address; None if it could not be compiled, and one warning has said why and what to do.

    Raises:
        BuildError: it could not be compiled and ``TORCHAD_EXT_STRICT=1``.
    """
    try:
        library = _prebuilt_kernels(device)
        if library is None or not hasattr(library, kernel.symbol):
            library = _compiled_kernel(name, device, kernel)
        return ctypes.addressof(ctypes.c_char.in_dll(library, kernel.symbol))
    except (BuildError, OSError) as error:
        failure = BuildError(f"torchad_ext has no native kernel of {name}: {error}")
        if os.environ.get("TORCHAD_EXT_STRICT") == "1":
            raise failure from error
        warnings.warn(f"{failure}. The plain PyTorch definition runs instead.", stacklevel=7)
        return None
