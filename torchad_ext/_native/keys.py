"""Keys of what is compiled: a change of anything that counts is another key, so that a kernel is compiled again.

Sources, commands, flags and the compiler count; the wording of the Python that generates a kernel does not.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from .._symbolic.cpp import Kernel
from .toolchain import Toolchain, version

PACKAGE = Path(__file__).resolve().parents[1]
CSRC = next((folder for folder in (PACKAGE / "csrc", PACKAGE.parent / "csrc") if folder.is_dir()), PACKAGE / "csrc")
_SUFFIXES = (".h", ".cpp", ".cuh")
COMMANDS = {
    "compile": "$compiler $headers -c $in -o $out",
    "precompile": "$compiler -x c++-header $in -o $out",
    "link": "$compiler -shared $in -o $out $libraries",
}
PYTORCH = ("torch", "torch_cpu", "c10")  # the libraries that operators are linked to
# Flags of NVRTC, for which a function without a mark is one of the device.
CUDA_FLAGS = ["-std=c++17", "-default-device"]
# Each pass over a row computes a value again, and compares it with the largest: products and sums round alike in all.
ROWS, ROW_FLAGS = "cuda/rowwise.cuh", ["-fmad=false"]


def sources_hash() -> str:
    """A hash of the C++ and of the commands that compile it: the same in a checkout and a wheel."""
    digest = hashlib.sha256(repr((COMMANDS, PYTORCH, CUDA_FLAGS, ROW_FLAGS)).encode())
    for path in sorted(path for path in CSRC.rglob("*") if path.suffix in _SUFFIXES):
        digest.update(b"\0" + path.relative_to(CSRC).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def hashed(*parts: str) -> str:
    """The part of a cache key that stands for all of ``parts``."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def key(what: str, toolchain: Toolchain) -> str:
    """The key of a library: its target in clear, then a hash of everything that counts.

    The version of PyTorch is part of the target of the calls, and counts for nothing else (``toolchain._ABI``).
    """
    compiler = toolchain.compiler
    counts = hashed(sources_hash(), *toolchain.flags, compiler, version(compiler))
    return f"{what}-{toolchain.target}-{counts}"


def kernel_key(name: str, kernel: Kernel, shared: str, toolchain: Toolchain) -> str:
    """The key of a pointwise kernel for the CPU; ``shared`` is that of the operators."""
    return f"{name}-cpu-{toolchain.target}-{hashed(shared, kernel.text)}"


def image_key(name: str, kernel: Kernel, gpu: str, shared: str) -> str:
    """The key of a CUDA kernel; ``shared`` stands for the headers and for NVRTC."""
    return f"{name}-cuda-sm_{gpu}-{hashed(shared, kernel.text)}"
