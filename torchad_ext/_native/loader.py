"""Operators and kernels, found among the prebuilt, in the cache, or compiled; loaded once a process.

There is one library for each device, which holds the operators and needs PyTorch's stable ABI, on the CPU others for
the quadratic form and for rows, and for each kernel a small one for the CPU, which needs nothing, or an image for the
GPU.
"""

from __future__ import annotations

import ctypes
import functools
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from .. import _settings
from .._symbolic.cpp import Kernel
from .._warnings import warn_or_raise
from . import cache, compile, keys, nvrtc, prebuilt
from .compile import ASIDE
from .state import state
from .toolchain import (
    BuildError,
    NoCompilerError,
    Toolchain,
    cpu_level,
    cpu_toolchain,
    cuda_toolchain,
    kernel_toolchain,
    present_gpus,
)

_NAMES = {
    "cpu": "the CPU kernels",
    "quadratic_form": "the quadratic form",
    "rowwise": "what runs kernels of rows",
    "cuda": "what launches CUDA kernels",
}
_LACKING = {
    "cpu": "native kernels",
    "quadratic_form": "native quadratic form",
    "rowwise": "native kernels of rows",
    "cuda": "native CUDA kernels",
}


def load(what: str) -> bool:
    """Loads the operators of ``"cpu"``, ``"quadratic_form"``, ``"rowwise"`` or ``"cuda"``, compiling them on the first
    use; tried once a process.

    The library of the CPU declares what runs pointwise kernels, so it is loaded first.

    Returns:
        Whether they are there. If not, one warning has said why and what to do.

    Raises:
        BuildError: they are not there and ``TORCHAD_EXT_STRICT=1``.
    """
    with state.loading:
        is_new = what not in state.failures
        if is_new and what != "cpu":
            with ThreadPoolExecutor(1) as beside:
                # Compiled beside the library of the CPU, unless that cannot be had.
                library = None if state.failures.get("cpu") else beside.submit(find, what)
                is_new = load("cpu")
            state.failures[what] = _failure(what, library.result) if is_new and library else state.failures["cpu"]
        elif is_new:
            state.failures[what] = _failure(what, lambda: find(what))
        failure = state.failures[what]
        if failure and (is_new or _settings.is_strict()):
            error = BuildError(str(failure))
            error.__cause__ = failure.__cause__
            warn_or_raise(error, ". The plain PyTorch definitions run instead.")
    return failure is None


def _failure(what: str, find: Callable[[], Path]) -> BuildError | None:
    """Loads a library that is found; what stood in the way, None if nothing did."""
    try:
        library = find()
        _load_library(library)
        state.libraries[what] = library
    except (RuntimeError, OSError) as error:
        failure = BuildError(f"torchad_ext has no {_LACKING[what]}: {error}")
        failure.__cause__ = error
        return failure
    return None


def find(what: str) -> Path:
    """The library of operators, prebuilt, from the cache, or compiled now.

    Raises:
        BuildError: it could not be compiled, or there is no GPU for it.
    """
    if what == "cuda":
        _check_for_gpus()
    device, target = ("cuda", platform.machine()) if what == "cuda" else ("cpu", cpu_level())
    if file := prebuilt.find(device, target, what if what in ASIDE else "operators"):
        return file
    toolchain = cuda_toolchain() if what == "cuda" else cpu_toolchain()
    return compiled(what, toolchain, f"{_NAMES[what]} for {toolchain.target}")


def compiled(what: str, toolchain: Toolchain, name: str) -> Path:
    """A library from the cache, compiled first if it is not there."""

    def make(to: Path) -> None:
        compile.compile_library(what, toolchain, to, precompile=what == "cpu")

    return cache.get_or_make(cache.entry(keys.key(what, toolchain)), name, make)


def _check_for_gpus() -> None:
    """Raises where there is no GPU, or nothing that gives it code."""
    if torch.version.hip:
        raise BuildError("this PyTorch is one for ROCm; the kernels are for the CPU and for CUDA")
    if not present_gpus():
        raise BuildError("no GPU is visible to compile for; check nvidia-smi and CUDA_VISIBLE_DEVICES")
    if not prebuilt.images():
        nvrtc.version()


def _load_library(library: Path) -> None:
    try:
        torch.ops.load_library(library)
    except OSError as error:
        # torch names the file alone; what is wrong with it stands in the cause.
        raise BuildError(f"{error.__cause__ or error}; delete {library} to have it compiled again") from error


def is_loaded(what: str) -> bool:
    """Are the operators of ``load(what)`` there?"""
    return what in state.libraries


def run_kernel(what: str) -> int:
    """The address of the function that runs kernels of ``"cpu"``, ``"cuda"`` or ``"rowwise"``, which are loaded."""
    function = getattr(ctypes.CDLL(str(state.libraries[what])), f"torchad_ext_run_{what}")
    return ctypes.cast(function, ctypes.c_void_p).value or 0


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
        library = prebuilt_kernels()
        if library is None or not hasattr(library, kernel.symbol):
            library = compiled_kernel(name, kernel)
        return ctypes.addressof(ctypes.c_char.in_dll(library, kernel.symbol))

    def on_cuda() -> int:
        arguments = _module(name, kernel), kernel.symbol.encode(), kernel.inputs, kernel.outputs, kernel.dtype
        if kernel.kinds:
            kinds = (ctypes.c_int32 * len(kernel.kinds))(*kernel.kinds)
            of_rows: int = _cuda().torchad_ext_cuda_row_kernel(*arguments, kinds)
            return of_rows
        address: int = _cuda().torchad_ext_cuda_kernel(*arguments)
        return address

    return _or_warn(name, on_cpu if device == "cpu" else on_cuda)


def load_quadratic_form(name: str, kernel: Kernel) -> bool:
    """Loads the CUDA kernels of the quadratic form for a dtype, as ``load_kernel`` loads one.

    Returns:
        Whether they are there.
    """

    def load() -> int:
        _cuda().torchad_ext_cuda_quadratic_form(_module(name, kernel), kernel.dtype)
        return 1

    return _or_warn(name, load) is not None


def _or_warn(name: str, load: Callable[[], int]) -> int | None:
    """The result of a load; None if it failed, and one warning has said why; one for all where there is no compiler."""
    try:
        return load()
    except (BuildError, nvrtc.NvrtcError, OSError) as error:
        failure = BuildError(f"torchad_ext has no native kernel of {name}: {error}")
        failure.__cause__ = error
    instead = ". The plain PyTorch definition runs instead"
    if isinstance(failure.__cause__, NoCompilerError) and not _settings.is_strict():
        if state.lack_was_told:
            return None
        state.lack_was_told = True
        instead += ", and those of all kernels that did not come with the package"
    warn_or_raise(failure, f"{instead}.")
    return None


@functools.cache
def prebuilt_kernels() -> ctypes.CDLL | None:
    library = prebuilt.find("cpu", cpu_level(), "kernels")
    return ctypes.CDLL(str(library)) if library else None


@functools.cache
def for_kernels() -> tuple[Toolchain, str, Path | None]:
    """How the pointwise kernels of this process are compiled, the part of their keys that they share, and the folder of
    their precompiled header if it is there."""
    toolchain = kernel_toolchain()
    shared = keys.key("cpu", toolchain)
    header = cache.entry(shared, compile.PRECOMPILED)
    return toolchain, shared, header.parent if cache.is_whole(header) else None


def compiled_kernel(name: str, kernel: Kernel) -> ctypes.CDLL:
    """The library of a pointwise kernel for the CPU."""
    toolchain, shared, precompiled = for_kernels()
    key = keys.kernel_key(name, kernel, shared, toolchain)
    if key not in state.kernels:

        def make(to: Path) -> None:
            compile.compile_library("cpu", toolchain, to, [kernel], precompiled=precompiled)

        state.kernels[key] = ctypes.CDLL(str(cache.get_or_make(cache.entry(key), f"{name} for the CPU", make)))
    return state.kernels[key]


@functools.cache
def _for_images() -> str:
    """The part of the keys of images that they share."""
    return keys.hashed(keys.sources_hash(), nvrtc.version())


def _compiled_image(name: str, kernel: Kernel, gpu: str) -> Path:
    file = cache.entry(keys.image_key(name, kernel, gpu, _for_images()), "image.cubin")
    return cache.get_or_make(file, f"{name} for sm_{gpu}", lambda to: compile.compile_image([kernel.text], gpu, to))


@functools.cache
def _cuda() -> ctypes.CDLL:
    library = ctypes.CDLL(str(state.libraries["cuda"]))
    for function in ("module", "kernel", "row_kernel"):
        getattr(library, f"torchad_ext_cuda_{function}").restype = ctypes.c_void_p
    return library


def _new_module(images: Sequence[Path]) -> ctypes.c_void_p:
    contents = [image.read_bytes() for image in images]
    starts = (ctypes.c_char_p * len(contents))(*contents)
    sizes = (ctypes.c_int64 * len(contents))(*map(len, contents))
    return ctypes.c_void_p(_cuda().torchad_ext_cuda_module(starts, sizes, len(contents)))


@functools.cache
def _prebuilt_module() -> tuple[bytes, ctypes.c_void_p]:
    """The images that came with the package: one of them, which names the kernels that are there, and their module."""
    images = prebuilt.images()
    return (images[0].read_bytes(), _new_module(images)) if images else (b"", ctypes.c_void_p())


def _module(name: str, kernel: Kernel) -> ctypes.c_void_p:
    """The module of a CUDA kernel."""
    names, module = _prebuilt_module()
    if kernel.symbol.encode() in names:
        return module
    return _new_module([_compiled_image(name, kernel, gpu) for gpu in present_gpus()])
