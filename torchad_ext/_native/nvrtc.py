"""NVRTC, NVIDIA's compiler as a library: CUDA C++ to machine code for a GPU, in this process.

It comes with every PyTorch for CUDA, so neither the CUDA toolkit nor a C++ compiler is needed.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import glob
import os
import sys
from collections.abc import Collection, Iterator, Sequence

import torch

from .. import _settings


class NvrtcError(RuntimeError):
    """NVRTC is not there, or could not compile; the message is what it said."""


def _majors() -> tuple[str, ...]:
    """The major versions of CUDA whose code the driver of this PyTorch takes."""
    return (torch.version.cuda.partition(".")[0],) if torch.version.cuda else ("13", "12")


def _candidates() -> Iterator[str]:
    """Where the library may be: with PyTorch and the packages it comes with, in a toolkit, where the system looks."""
    homes = (*_settings.cuda_homes(), sys.prefix, "/usr/local/cuda")
    folders = [os.path.join(entry, "nvidia", name, "lib") for entry in sys.path for name in ("cu*", "cuda_nvrtc")]
    folders += [os.path.join(os.path.dirname(torch.__file__), "lib")]
    folders += [os.path.join(home, lib) for home in homes for lib in ("lib64", "lib")]
    for major in _majors():
        for folder in folders:
            yield from sorted(glob.glob(os.path.join(folder, f"libnvrtc.so.{major}")))
        yield f"libnvrtc.so.{major}"


@functools.cache
def _library() -> ctypes.CDLL:
    for candidate in _candidates():
        with contextlib.suppress(OSError):
            # It looks for this one, of its own version, where the system looks, which may not be where it lies.
            for builtins in glob.glob(os.path.join(os.path.dirname(candidate) or "-", "libnvrtc-builtins.so*")):
                ctypes.CDLL(builtins)
            return ctypes.CDLL(candidate)
    names = " or ".join(f"libnvrtc.so.{major}" for major in _majors())
    raise NvrtcError(f"no NVRTC was found ({names}); pip install nvidia-cuda-nvrtc, or set CUDA_HOME to a CUDA toolkit")


def _call(name: str, *arguments: object) -> None:
    library = _library()
    if error := getattr(library, name)(*arguments):
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise NvrtcError(f"{name}: {library.nvrtcGetErrorString(error).decode()}")


def _strings(texts: Collection[str]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * len(texts))(*(text.encode() for text in texts))


def _text(what: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    _call(f"nvrtcGet{what}", program, text)
    return text.raw


@functools.cache
def version() -> str:
    """The version of the library.

    Raises:
        NvrtcError: there is none.
    """
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def is_there() -> bool:
    """Was the library found?"""
    try:
        return bool(version())
    except NvrtcError:
        return False


def compile(source: str, options: Sequence[str], headers: dict[str, str]) -> bytes:
    """The machine code, a cubin, of a source.

    Args:
        source: CUDA C++.
        options: of NVRTC; ``-arch=sm_90`` names the GPU.
        headers: texts that are included under these names, beside those found through the options.

    Raises:
        NvrtcError: there is no NVRTC, or it refused; the message is its log.
    """
    program = ctypes.c_void_p()
    names, texts = (_strings(part) for part in (headers, headers.values()))
    _call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), b"kernel.cu", len(headers), texts, names)
    try:
        try:
            _call("nvrtcCompileProgram", program, len(options), _strings(options))
        except NvrtcError as error:
            log = _text("ProgramLog", program).rstrip(b"\0").decode(errors="replace")
            raise NvrtcError(f"{error}\n{log}") from None
        return _text("CUBIN", program)
    finally:
        _call("nvrtcDestroyProgram", ctypes.byref(program))
