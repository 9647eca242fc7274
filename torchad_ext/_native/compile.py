"""Libraries and images from sources: what is compiled, and by which commands."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .. import _settings
from .._symbolic.cpp import Kernel
from . import keys, nvrtc
from .cache import UNFINISHED, seal
from .toolchain import BuildError, Toolchain

# Operators with a library of their own: each takes about as long to compile as all that a pointwise op needs.
ASIDE = ("quadratic_form", "rowwise")
_HEADER = "pointwise_cpu.h"  # whose parsing takes longer than a kernel itself
PRECOMPILED = f"{_HEADER}.gch"
_HERE = Path()  # the folder of a compilation, whose precompiled header it makes itself
# Headers in whose place it is given csrc/cuda/std.h.
_STANDARD = ("cmath", "cstdint", "cstring", "type_traits", "utility")
_REMEDY = {
    **dict.fromkeys(("cpu", *ASIDE, "cuda"), "g++ 12 and clang++ 14 are tested; CXX chooses the compiler"),
    "fast_path": "g++ 12 and clang++ 14 are tested; it needs the headers of Python (Debian and Ubuntu: python3-dev)",
}


def prepare(
    what: str,
    toolchain: Toolchain,
    folder: Path,
    kernels: Sequence[Kernel] = (),
    precompiled: Path | None = None,
) -> list[str]:
    """Makes a folder ready for the compilation of ``library.so``, and gives the command; see ``compile_library``."""
    libraries: Sequence[str] = ()
    if kernels:
        sources = [folder.absolute() / f"{kernel.symbol}.cpp" for kernel in kernels]
        for source, kernel in zip(sources, kernels, strict=True):
            source.write_text(kernel.text, encoding="utf-8")
    else:
        sources, libraries = _sources(what), (*keys.PYTORCH, *(["torch_python"] if what == "fast_path" else []))
    text = _ninja_file(sources, toolchain, libraries, precompiled)
    (folder / "build.ninja").write_text(text, encoding="utf-8")
    return [ninja_command(), "-C", str(folder), "library.so"]


def _sources(what: str) -> list[Path]:
    if what in ("cuda", "fast_path"):
        return sorted((keys.CSRC / what).glob("*.cpp"))
    if what in ASIDE:
        return sorted(keys.CSRC.glob(f"{what}*.cpp"))
    return sorted(path for path in keys.CSRC.glob("*.cpp") if not path.name.startswith(ASIDE))


def _ninja_file(
    sources: Sequence[Path], toolchain: Toolchain, libraries: Sequence[str], precompiled: Path | None
) -> str:
    """Every source compiled, with the headers in ``precompiled`` if it is given, and linked with PyTorch's libraries to
    ``library.so``; and a header compiled for others."""
    syntax = _ninja().ninja_syntax
    torch_root = os.path.dirname(os.path.realpath(torch.__file__))
    headers = ["-isystem", f"{torch_root}/include"] if libraries else [f"-I{precompiled}"] if precompiled else []
    first = [PRECOMPILED] if precompiled == _HERE else []
    linked = [f"-L{torch_root}/lib", *(f"-l{library}" for library in libraries)] if libraries else []
    text = io.StringIO()
    writer = syntax.Writer(text, width=10**6)
    for name, words in {
        "compiler": [toolchain.compiler, *toolchain.flags],
        "headers": [*headers, f"-I{keys.CSRC}"],
        "libraries": [*linked, *toolchain.link_flags],
    }.items():
        writer.variable(name, syntax.escape(shlex.join(words)))
    for name, command in keys.COMMANDS.items():
        writer.rule(name, command)
    for source in sources:
        writer.build(f"{source.name}.o", "compile", _path(source), implicit=first)
    writer.build("library.so", "link", [f"{source.name}.o" for source in sources])
    writer.build(PRECOMPILED, "precompile", _path(keys.CSRC / _HEADER))
    return text.getvalue()


def _path(path: Path) -> str:
    # ninja_syntax escapes a dollar before a space alone.
    return re.sub(r"\$(?! )", "$$", str(path))


def _ninja() -> Any:
    try:
        import ninja
        import ninja.ninja_syntax
    except ImportError:
        raise BuildError("ninja was not found; pip install ninja") from None
    return ninja


def ninja_command() -> str:
    """The command.

    Raises:
        BuildError: there is none.
    """
    command = shutil.which("ninja", path=_ninja().BIN_DIR) or shutil.which("ninja")
    if command is None:
        raise BuildError("ninja was not found; pip install ninja")
    return command


def failed(what: str, toolchain: Toolchain, log: Path) -> BuildError:
    """The error for a compiler that failed and left its output in a file."""
    return BuildError(f"{toolchain.compiler} failed; its output is in {log}; {_REMEDY[what]}")


def compile_library(
    what: str,
    toolchain: Toolchain,
    to: Path,
    kernels: Sequence[Kernel] = (),
    precompile: bool = False,
    precompiled: Path | None = None,
) -> None:
    """Compiles operators, pointwise kernels for the CPU or the fast path, and puts the library at ``to``, whole or not
    at all.

    Args:
        what: ``"cpu"``, ``"quadratic_form"``, ``"rowwise"``, ``"cuda"`` or ``"fast_path"``.
        toolchain: how.
        to: the library.
        kernels: what to compile for the CPU in place of the operators.
        precompile: compile the header of the kernels too, which g++ takes in its place: for ``kernels``, or to lie
            beside ``to`` for those that are compiled later.
        precompiled: the folder of such a header.

    Raises:
        BuildError: the compiler failed; its output is kept beside ``to``, in a file ending in ``.log``.
    """
    log = to.with_suffix(".log")
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=UNFINISHED, ignore_cleanup_errors=True) as name:
        precompile = precompile and toolchain.is_gcc and (keys.CSRC / _HEADER).exists()
        command = prepare(what, toolchain, Path(name), kernels, _HERE if precompile and kernels else precompiled)
        precompile = precompile and not kernels
        has_failed, output = _run([*command, PRECOMPILED] if precompile else command)
        if has_failed:
            texts = (kernel.text.encode() for kernel in kernels)
            log.write_bytes(b"\n".join([output, *texts]))
            raise failed(what, toolchain, log)
        if precompile:
            os.replace(Path(name, PRECOMPILED), to.parent / PRECOMPILED)
            seal(to.parent / PRECOMPILED)
        os.replace(Path(name, "library.so"), to)
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
    source, standard = "\n".join(texts), (keys.CSRC / "cuda" / "std.h").read_text(encoding="utf-8")
    version = nvrtc.version()
    exact = keys.ROW_FLAGS if any(keys.ROWS in text for text in texts) else ()
    options = [*keys.CUDA_FLAGS, *exact, f"-arch=sm_{gpu}", f"-I{keys.CSRC}"]
    try:
        image = nvrtc.compile(source, options, dict.fromkeys(_STANDARD, standard))
    except nvrtc.NvrtcError as error:
        log.write_text(f"{error}\n{source}", encoding="utf-8")
        raise BuildError(f"NVRTC {version} failed; its output is in {log}") from error
    with tempfile.NamedTemporaryFile(dir=to.parent, prefix=UNFINISHED, delete=False) as file:
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
    limit = _settings.build_timeout()
    try:
        output, _ = running.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        _stop(running)
        raise BuildError(
            f"the compiler did not end within {limit:g} s and was stopped; give it longer with "
            "TORCHAD_EXT_BUILD_TIMEOUT, or set CXX to another one"
        ) from None
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
