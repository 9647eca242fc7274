"""Compiles and loads the native kernels; with ``nvrtc.py`` the only file that knows compilers.

There is one library for each device, which holds the operators and needs PyTorch's stable ABI, one for the quadratic
form, and for each pointwise kernel a small one for the CPU, which needs nothing, or an image for the GPU. One more
library, of ``csrc/fast_path``, makes calls on plain tensors cheap; it needs all of PyTorch's headers and some ten
seconds, so it is compiled in the background (``background.py``), and calls go through Python until it is there. A file
is looked for in three places: among the binaries that came with the package, in the cache, and at last it is compiled
into the cache. A cache entry is a folder named by a hash of everything that counts (sources, flags, compilers, CPU or
GPU, torch), written aside and renamed into place, under a lock that the operating system frees with its holder.

Environment:
    TORCHAD_EXT_CACHE_DIR   where compiled libraries are kept (default: ``~/.cache/torchad_ext``)
    TORCHAD_EXT_STRICT      ``1``: a library that cannot be built is an error, not a warning
    TORCHAD_EXT_CXXFLAGS    flags added to the C++ compilation, ``-fsanitize=address`` for example
    TORCHAD_EXT_CPU_LEVEL   the instruction set of CPU kernels: ``x86-64-v2``, ``x86-64-v3``, ``x86-64-v4``
    TORCHAD_EXT_EAGER       ``0``: calls go through Python; ``wait``: the first one waits for the compiler
    CXX                     the C++ compiler
    CUDA_HOME               the CUDA toolkit whose NVRTC serves where none came with PyTorch
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
import sysconfig
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from .. import _settings
from .._symbolic.cpp import Kernel
from .._torch_state import can_run_avx2, can_run_avx512
from . import nvrtc
from .progress import progress

_PACKAGE = Path(__file__).resolve().parents[1]
CSRC = next((folder for folder in (_PACKAGE / "csrc", _PACKAGE.parent / "csrc") if folder.is_dir()), _PACKAGE / "csrc")
PREBUILT = _PACKAGE / "prebuilt"

# The binaries use only what this release of PyTorch's stable ABI has, and serve it and every later one.
_ABI = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
# The compiler may not fuse a * b + c on its own: a result is the same on every CPU. Nothing else trades accuracy.
_CXX_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
# PyTorch's headers then include single operators, not all of them.
_FAST_PATH_FLAGS = ["-std=c++20", "-O1", "-fPIC", "-DAT_PER_OPERATOR_HEADERS"]
# GCC collects its garbage later: a tenth of the time, for a quarter more memory.
_LATE_COLLECTION = ["--param=ggc-min-expand=1000", "--param=ggc-min-heapsize=4194304"]
# Of NVRTC, for which a function without a mark is one of the device.
_CUDA_FLAGS = ["-std=c++17", "-default-device"]
_STANDARD = ("cstdint", "cstring", "type_traits", "utility")  # headers in whose place it is given csrc/cuda/std.h
_CPU_LEVELS = {"AVX512": "x86-64-v4", "AVX2": "x86-64-v3", "DEFAULT": "x86-64"}
_CHOICES = ("x86-64-v2", "x86-64-v3", "x86-64-v4")  # of TORCHAD_EXT_CPU_LEVEL
_PRECOMPILED = "pointwise_cpu.h"  # whose parsing takes longer than a kernel itself
BUILDING = ".building-"  # the folder of an unfinished build
_SUFFIXES = (".h", ".cpp", ".cuh")
_FORM = "quadratic_form"  # a library of its own: it takes longer to compile than all that a pointwise op needs
_REMEDY = {
    **dict.fromkeys(("cpu", _FORM, "cuda"), "g++ 11 or clang++ 12 or newer is needed; CXX chooses the compiler"),
    "fast_path": "g++ 11 or clang++ 14 or newer and the headers of Python are needed (Debian and Ubuntu: python3-dev)",
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
        return _CPU_LEVELS.get(torch.backends.cpu.get_cpu_capability(), "x86-64")
    if chosen not in _CHOICES:
        raise BuildError(f"TORCHAD_EXT_CPU_LEVEL={chosen}; it is one of {', '.join(_CHOICES)}")
    can_run = [level for level in _CHOICES if _can_run(level)]
    if chosen not in can_run:
        raise BuildError(f"TORCHAD_EXT_CPU_LEVEL={chosen}, but this CPU runs no more than {can_run[-1]}; set that")
    return chosen


def _can_run(level: str) -> bool:
    """Does this CPU have the instructions of a level? PyTorch asks it for AVX2 and AVX-512, whatever it uses itself."""
    has = {"x86-64-v3": can_run_avx2, "x86-64-v4": can_run_avx512}
    return level not in has or has[level]()


def processors() -> int:
    """How many compilers to run at a time."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def present_gpus() -> tuple[str, ...]:
    """The compute capabilities of the visible GPUs, ``("90",)`` for an H200."""
    capabilities = (torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count()))
    return tuple(sorted({f"{major}{minor}" for major, minor in capabilities}))


def find_cxx() -> str | None:
    """The C++ compiler of ``CXX``, or the first of c++, g++ and clang++ there is."""
    candidates = [chosen] if (chosen := _settings.cxx()) else ["c++", "g++", "clang++"]
    return next(filter(None, map(shutil.which, candidates)), None)


def _cxx() -> str:
    compiler = find_cxx()
    if compiler is None:
        given = f"CXX={chosen} is no program" if (chosen := _settings.cxx()) else "no C++ compiler was found"
        raise BuildError(f"{given}; install g++ (Debian and Ubuntu: apt install g++) or set CXX to a compiler")
    return compiler


def cpu_toolchain(level: str | None = None) -> Toolchain:
    """The C++ compiler, for this CPU or for a named level of x86-64."""
    level = level or cpu_level()
    march = [f"-march={level}"] if level.startswith("x86-64") else []
    return Toolchain(_cxx(), (*_CXX_FLAGS, *_ABI, *march, *_settings.cxx_flags()), level)


def fast_path_toolchain() -> Toolchain:
    """The C++ compiler, for an extension module of this Python and this PyTorch."""
    compiler, headers = _cxx(), f"-I{sysconfig.get_path('include')}"
    collection = _LATE_COLLECTION if _is_gcc(compiler) else []
    return Toolchain(compiler, (*_FAST_PATH_FLAGS, *collection, headers, *_settings.cxx_flags()), _fast_path_target())


def _fast_path_target() -> str:
    return f"{sysconfig.get_config_var('SOABI')}-torch-{torch.__version__}"


def cuda_toolchain() -> Toolchain:
    """The C++ compiler, for the operators that launch kernels on GPUs."""
    return Toolchain(_cxx(), (*_CXX_FLAGS, *_ABI, "-DUSE_CUDA", *_settings.cxx_flags()), platform.machine())


def _version(compiler: str | None) -> str:
    if compiler is None:
        return ""
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, errors="replace", check=False).stdout


def _is_gcc(compiler: str) -> bool:
    return "Free Software Foundation" in _version(compiler)


def _sources_hash() -> str:
    """A hash of the sources and of what says how they are compiled: the same in a checkout and a wheel."""
    digest = hashlib.sha256(Path(__file__).read_bytes() + Path(nvrtc.__file__).read_bytes())
    for path in sorted(path for path in CSRC.rglob("*") if path.suffix in _SUFFIXES):
        digest.update(b"\0" + path.relative_to(CSRC).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def cache_key(device: str, toolchain: Toolchain) -> str:
    """The name of a cache entry: the target in clear, then a hash of everything that counts."""
    parts = [_sources_hash(), *toolchain.flags, toolchain.compiler, _version(toolchain.compiler), torch.__version__]
    return f"{device}-{toolchain.target}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}"


def _shell(*words: str) -> str:
    """Words of a shell command as the value of a ninja variable."""
    return shlex.join(words).replace("$", "$$")


def _path(path: Path) -> str:
    """A path as an input of a ninja rule, which quotes it for the shell."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def write_ninja(
    folder: Path, sources: list[Path], toolchain: Toolchain, libraries: Sequence[str], precompiled: Path | None
) -> None:
    """Writes ``build.ninja`` into ``folder``: compile every source, with the headers in ``precompiled`` if it is given,
    link them and PyTorch's libraries to ``library.so``; and compile a header for others."""
    torch_root = os.path.dirname(os.path.realpath(torch.__file__))
    objects = [f"{source.name}.o" for source in sources]
    headers = ["-isystem", f"{torch_root}/include"] if libraries else [f"-I{precompiled}"] if precompiled else []
    linked = [f"-L{torch_root}/lib", *(f"-l{library}" for library in libraries)] if libraries else []
    lines = [
        f"compiler = {_shell(toolchain.compiler, *toolchain.flags)}",
        f"headers = {_shell(*headers, f'-I{CSRC}')}",
        f"libraries = {_shell(*linked)}",
        "rule compile",
        "  command = $compiler $headers -c $in -o $out",
        "rule precompile",
        "  command = $compiler -x c++-header $in -o $out",
        "rule link",
        "  command = $compiler -shared $in -o $out $libraries",
        *(f"build {o}: compile {_path(source)}" for o, source in zip(objects, sources, strict=True)),
        f"build library.so: link {' '.join(objects)}",
        f"build {_PRECOMPILED}.gch: precompile {_path(CSRC / _PRECOMPILED)}",
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


def _sources(what: str) -> list[Path]:
    if what in ("cuda", "fast_path"):
        return sorted((CSRC / what).glob("*.cpp"))
    return sorted(path for path in CSRC.glob("*.cpp") if (path.stem == _FORM) is (what == _FORM))


def _prepare(
    what: str,
    toolchain: Toolchain,
    folder: Path,
    kernels: Sequence[Kernel] = (),
    precompiled: Path | None = None,
) -> list[str]:
    """Makes a folder ready for the compilation of ``library.so`` as ``compile_library`` describes it; its command."""
    sources = _sources(what)
    libraries = ["torch", "torch_cpu", "c10", *(["torch_python"] if what == "fast_path" else [])]
    if kernels:
        sources = [folder.absolute() / f"{kernel.symbol}.cpp" for kernel in kernels]
        libraries = []
        for source, kernel in zip(sources, kernels, strict=True):
            source.write_text(kernel.text, encoding="utf-8")
    write_ninja(folder, sources, toolchain, libraries, precompiled)
    return [_find_ninja(), "-C", str(folder), "library.so"]


def _failed(what: str, toolchain: Toolchain, log: Path) -> BuildError:
    return BuildError(f"{toolchain.compiler} failed; its output is in {log}; {_REMEDY[what]}")


def compile_library(
    what: str,
    toolchain: Toolchain,
    to: Path,
    kernels: Sequence[Kernel] = (),
    precompile: bool = False,
    precompiled: Path | None = None,
) -> None:
    """Compiles operators, pointwise kernels for the CPU or eager mode, and puts the library at ``to``, whole or not at
    all.

    Args:
        what: ``"cpu"``, ``"quadratic_form"``, ``"cuda"`` or ``"fast_path"``.
        toolchain: how.
        to: the library.
        kernels: what to compile for the CPU in place of the operators.
        precompile: compile the header of the kernels too, to lie beside ``to``; g++ takes it in its place.
        precompiled: the folder of such a header.

    Raises:
        BuildError: the compiler failed; its output is kept beside ``to``, in a file ending in ``.log``.
    """
    log = to.with_suffix(".log")
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=BUILDING, ignore_cleanup_errors=True) as name:
        command = _prepare(what, toolchain, Path(name), kernels, precompiled)
        made = ["library.so", *([f"{_PRECOMPILED}.gch"] if precompile else [])]
        failed, output = _run([*command[:-1], *made])
        if failed:
            texts = (kernel.text.encode() for kernel in kernels)
            log.write_bytes(b"\n".join([output, *texts]))
            raise _failed(what, toolchain, log)
        for file in made:
            os.replace(Path(name, file), to if file == "library.so" else to.parent / file)
    log.unlink(missing_ok=True)


def compile_image(texts: Sequence[str], gpu: str, to: Path) -> None:
    """Compiles CUDA kernels to the code of a GPU and puts it at ``to``, whole or not at all.

    Args:
        texts: the files of the kernels.
        gpu: its compute capability, ``"90"`` for an H100.
        to: the image.

    Raises:
        NvrtcError: there is no NVRTC.
        BuildError: it failed; its output is kept beside ``to``, in a file ending in ``.log``.
    """
    log = to.with_suffix(".log")
    to.parent.mkdir(parents=True, exist_ok=True)
    source, standard = "\n".join(texts), (CSRC / "cuda" / "std.h").read_text(encoding="utf-8")
    version = nvrtc.version()
    options = [*_CUDA_FLAGS, f"-arch=sm_{gpu}", f"-I{CSRC}"]
    try:
        image = nvrtc.compile(source, options, dict.fromkeys(_STANDARD, standard))
    except nvrtc.NvrtcError as error:
        log.write_text(f"{error}\n{source}", encoding="utf-8")
        raise BuildError(f"NVRTC {version} failed; its output is in {log}") from error
    with tempfile.NamedTemporaryFile(dir=to.parent, prefix=BUILDING, delete=False) as file:
        file.write(image)
    os.replace(file.name, to)
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


def _unwritable(folder: Path, error: OSError) -> BuildError:
    return BuildError(f"{folder} cannot be written ({error}); set TORCHAD_EXT_CACHE_DIR to a folder")


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
            progress.say(f"waiting for another process, which is compiling {what}")
            lock.acquire()
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def _in_cache(key: str, file: str = "library.so") -> Path:
    return _settings.cache_dir() / key / file


def _from_cache(file: Path, name: str, make: Callable[[Path], None]) -> Path:
    """A file of the cache, called ``name`` in messages; made first if it is not there."""
    folder = file.parent
    if os.path.exists(file):
        return file
    with _locked(folder, name):
        if not file.exists():
            for killed in folder.glob(f"{BUILDING}*"):
                shutil.rmtree(killed) if killed.is_dir() else killed.unlink()
            with progress.of(name, folder):
                make(file)
    return file


def _library_from_cache(what: str, toolchain: Toolchain, name: str, key: str) -> Path:
    file = _in_cache(key)

    def make(to: Path) -> None:
        precompile = what == "cpu" and _is_gcc(toolchain.compiler) and (CSRC / _PRECOMPILED).exists()
        compile_library(what, toolchain, to, precompile=precompile)

    return _from_cache(file, name, make)


def prebuilt_library(device: str, target: str, what: str = "operators") -> Path:
    """Where a wheel built with ``TORCHAD_EXT_PREBUILD=1`` keeps a library, whether it has it or not."""
    return PREBUILT / f"{what}-{device}-{target}-{_sources_hash()[:16]}.so"


def prebuilt_image(gpu: str) -> Path:
    """Where such a wheel keeps the CUDA kernels for a GPU."""
    return PREBUILT / f"kernels-cuda-sm_{gpu}-{_sources_hash()[:16]}.cubin"


def prebuild(folder: Path, devices: str, kernels: Callable[[str], Sequence[Kernel]]) -> list[Path]:
    """Compiles the libraries of a wheel into ``folder``: for every CPU of this architecture and for ``PREBUILT_GPUS``.

    Args:
        folder: takes the place of ``PREBUILT``.
        devices: ``"cpu"``, or ``"1"`` for the CPU and, where there is an NVRTC, CUDA.
        kernels: the pointwise kernels to compile for a device.
    """
    if devices not in ("1", "cpu"):
        raise BuildError(f"TORCHAD_EXT_PREBUILD={devices}; it is 1, or cpu to leave CUDA out")
    levels = sorted(_CPU_LEVELS.values()) if cpu_level().startswith("x86-64") else [cpu_level()]
    chosen = [("cpu", cpu_toolchain(level), what) for level in levels for what in ("operators", _FORM, "kernels")]
    chosen.append(("fast_path", fast_path_toolchain(), "calls"))
    gpus = PREBUILT_GPUS if devices == "1" and nvrtc.is_there() else ()
    if gpus:
        chosen.append(("cuda", cuda_toolchain(), "operators"))
    files = []
    for device, toolchain, what in chosen:
        library = folder / prebuilt_library(device, toolchain.target, what).name
        compile_library(
            _FORM if what == _FORM else device, toolchain, library, kernels(device) if what == "kernels" else ()
        )
        files.append(library)
    for gpu in gpus:
        image = folder / prebuilt_image(gpu).name
        compile_image([kernel.text for kernel in kernels("cuda")], gpu, image)
        files.append(image)
    return files


def _runs_on(gpu: str) -> bool:
    """GPU code runs on its own compute capability and on those with the same major number and a higher minor one."""
    return any(gpu[:-1] == built[:-1] and gpu[-1] >= built[-1] for built in PREBUILT_GPUS)


def _prebuilt(device: str, target: str, what: str) -> Path | None:
    """A library that came with the package and serves this machine."""
    library = prebuilt_library(device, target, what)
    return library if library.exists() and not _settings.cxx_flags() else None


def _prebuilt_images() -> list[Path]:
    """The images that came with the package, if they serve all visible GPUs."""
    images = [prebuilt_image(gpu) for gpu in PREBUILT_GPUS]
    return [image for image in images if image.exists()] if all(map(_runs_on, present_gpus())) else []


def _find(what: str) -> Path:
    """The library of ``load(what)``."""
    if what == "cuda":
        _check_for_gpus()
    on_cpu = what != "cuda"
    held = _FORM if what == _FORM else "operators"
    if prebuilt := _prebuilt("cpu" if on_cpu else "cuda", cpu_level() if on_cpu else platform.machine(), held):
        return prebuilt
    toolchain = cpu_toolchain() if on_cpu else cuda_toolchain()
    name = {"cpu": "the CPU kernels", _FORM: "the quadratic form", "cuda": "what launches CUDA kernels"}[what]
    return _library_from_cache(what, toolchain, f"{name} for {toolchain.target}", cache_key(what, toolchain))


def _check_for_gpus() -> None:
    """Raises where there is no GPU, or nothing that gives it code."""
    if torch.version.hip:
        raise BuildError("this PyTorch is one for ROCm; the kernels are for the CPU and for CUDA")
    if not present_gpus():
        raise BuildError("no GPU is visible to compile for; check nvidia-smi and CUDA_VISIBLE_DEVICES")
    if not _prebuilt_images():
        nvrtc.version()


def is_loaded(device: str) -> bool:
    """Are the operators of a device there?"""
    return device in _loaded


def run_kernel(device: str) -> int:
    """The address of the function that runs the kernels of a device, whose operators are loaded."""
    function = getattr(ctypes.CDLL(str(_loaded[device])), f"torchad_ext_run_{device}")
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _fast_path_entry() -> tuple[Toolchain, Path]:
    """How the extension module of ``csrc/fast_path`` is compiled, and where the cache keeps it."""
    toolchain = fast_path_toolchain()
    return toolchain, _in_cache(cache_key("fast_path", toolchain))


def compile_fast_path_aside() -> Callable[[], object]:
    """Starts to compile the extension module of ``csrc/fast_path`` into the cache, in a process of its own.

    Returns:
        A function that waits for its end.

    Raises:
        BuildError: there is no compiler, or the cache cannot be written.
    """
    from . import background

    toolchain, library = _fast_path_entry()

    def prepare(folder: Path) -> list[str]:
        command = _prepare("fast_path", toolchain, folder)
        progress.say(f"compiling faster calls in the background, once; kept in {library.parent}")
        return command

    try:
        return background.start(library.parent, prepare)
    except OSError as error:
        raise _unwritable(library.parent, error) from error


def load_fast_path(compiling: bool) -> ModuleType | None:
    """The extension module of ``csrc/fast_path``; None if it is not there and is not to be compiled.

    Raises:
        BuildError: it could not be compiled, now or by an earlier process, or not be loaded.
    """
    library = prebuilt_library("fast_path", _fast_path_target(), "calls")
    if _settings.cxx_flags() or not library.exists():
        toolchain, library = _fast_path_entry()
        if compiling:
            name = f"the calls in eager mode for {toolchain.target}"
            library = _library_from_cache("fast_path", toolchain, name, library.parent.name)
        elif not library.exists():
            if (log := library.with_suffix(".log")).exists():
                raise BuildError(f"{_failed('fast_path', toolchain, log)}; it is tried again when you delete that file")
            return None
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


def load(what: str) -> bool:
    """Loads the operators of ``"cpu"``, ``"quadratic_form"`` or ``"cuda"``, compiling them on the first use; tried once
    a process.

    The library of the CPU declares what runs pointwise kernels, so it is loaded first.

    Returns:
        Whether they are there. If not, one warning has said why and what to do.

    Raises:
        BuildError: they are not there and ``TORCHAD_EXT_STRICT=1``.
    """
    strict = _settings.is_strict()
    with _loading:
        if what != "cpu" and not load("cpu"):
            _failures[what] = _failures["cpu"]
        if what not in _failures:
            _failures[what] = failure = _failure(what)
            if failure and not strict:
                warnings.warn(f"{failure}. The plain PyTorch definitions run instead.", stacklevel=4)
    if (failure := _failures[what]) and strict:
        raise BuildError(str(failure)) from failure.__cause__
    return failure is None


def _failure(what: str) -> BuildError | None:
    try:
        library = _find(what)
        _load_library(library)
        _loaded[what] = library
    except (RuntimeError, OSError) as error:
        kernels = {"cpu": "native kernels", _FORM: "native quadratic form", "cuda": "native CUDA kernels"}[what]
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
def _prebuilt_kernels() -> ctypes.CDLL | None:
    library = _prebuilt("cpu", cpu_level(), "kernels")
    return ctypes.CDLL(str(library)) if library else None


@functools.cache
def _for_kernels() -> tuple[Toolchain, str]:
    """How the pointwise kernels of this process are compiled, and the part of their keys that they share."""
    toolchain = cpu_toolchain()
    return toolchain, cache_key("cpu", toolchain)


_compiled: dict[str, ctypes.CDLL] = {}  # a library stays as long as the process


def _compiled_kernel(name: str, kernel: Kernel) -> ctypes.CDLL:
    toolchain, shared = _for_kernels()
    digest = hashlib.sha256(f"{shared}\0{kernel.text}".encode()).hexdigest()[:16]
    key = f"{name}-cpu-{toolchain.target}-{digest}"
    if key not in _compiled:

        def make(to: Path) -> None:
            compile_library("cpu", toolchain, to, [kernel], precompiled=_in_cache(shared).parent)

        _compiled[key] = ctypes.CDLL(str(_from_cache(_in_cache(key), f"{name} for the CPU", make)))
    return _compiled[key]


@functools.cache
def _for_images() -> str:
    """The part of the keys of images that they share."""
    return "\0".join([_sources_hash(), nvrtc.version(), *_CUDA_FLAGS])


def _compiled_image(name: str, kernel: Kernel, gpu: str) -> Path:
    digest = hashlib.sha256(f"{_for_images()}\0{kernel.text}".encode()).hexdigest()[:16]
    file = _in_cache(f"{name}-cuda-sm_{gpu}-{digest}", "image.cubin")
    return _from_cache(file, f"{name} for sm_{gpu}", lambda to: compile_image([kernel.text], gpu, to))


@functools.cache
def _cuda() -> ctypes.CDLL:
    library = ctypes.CDLL(str(_loaded["cuda"]))
    library.torchad_ext_cuda_module.restype = library.torchad_ext_cuda_kernel.restype = ctypes.c_void_p
    return library


def _new_module(images: Sequence[Path]) -> ctypes.c_void_p:
    contents = [image.read_bytes() for image in images]
    starts = (ctypes.c_char_p * len(contents))(*contents)
    sizes = (ctypes.c_int64 * len(contents))(*map(len, contents))
    return ctypes.c_void_p(_cuda().torchad_ext_cuda_module(starts, sizes, len(contents)))


@functools.cache
def _prebuilt_module() -> tuple[bytes, ctypes.c_void_p]:
    """The images that came with the package: one of them, which names the kernels that are there, and their module."""
    images = _prebuilt_images()
    return (images[0].read_bytes(), _new_module(images)) if images else (b"", ctypes.c_void_p())


def _module(name: str, kernel: Kernel) -> ctypes.c_void_p:
    """The module of a CUDA kernel."""
    names, module = _prebuilt_module()
    if kernel.symbol.encode() in names:
        return module
    return _new_module([_compiled_image(name, kernel, gpu) for gpu in present_gpus()])


def _or_warn(name: str, load: Callable[[], int], stacklevel: int) -> int | None:
    """What is loaded; None if it could not be, and one warning has said why."""
    try:
        return load()
    except (BuildError, nvrtc.NvrtcError, OSError) as error:
        failure = BuildError(f"torchad_ext has no native kernel of {name}: {error}")
        if _settings.is_strict():
            raise failure from error
        warnings.warn(f"{failure}. The plain PyTorch definition runs instead.", stacklevel=stacklevel)
        return None


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

    def on_cpu() -> int:
        library = _prebuilt_kernels()
        if library is None or not hasattr(library, kernel.symbol):
            library = _compiled_kernel(name, kernel)
        return ctypes.addressof(ctypes.c_char.in_dll(library, kernel.symbol))

    def on_cuda() -> int:
        numbers = kernel.inputs, kernel.outputs, kernel.dtype
        address: int = _cuda().torchad_ext_cuda_kernel(_module(name, kernel), kernel.symbol.encode(), *numbers)
        return address

    return _or_warn(name, on_cpu if device == "cpu" else on_cuda, stacklevel=8)


def load_quadratic_form(name: str, kernel: Kernel) -> bool:
    """Loads the CUDA kernels of the quadratic form for a dtype, as ``load_kernel`` loads one.

    Returns:
        Whether they are there.
    """

    def load() -> int:
        _cuda().torchad_ext_cuda_quadratic_form(_module(name, kernel), kernel.dtype)
        return 1

    return _or_warn(name, load, stacklevel=7) is not None
