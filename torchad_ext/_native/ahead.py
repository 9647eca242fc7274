"""Kernels compiled ahead of their first use, several in each run of the compiler."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from .._symbolic.cpp import Kernel
from . import cache, compile, keys, loader
from .progress import progress
from .toolchain import BuildError, processors


def compile_kernels(kernels: Sequence[tuple[str, Kernel]]) -> None:
    """Compiles the kernels for the CPU that are not there yet into the cache.

    Args:
        kernels: with the names that ``loader.load_kernel`` is going to be given. It tries again, and says, what fails
            here.
    """
    with contextlib.suppress(BuildError, OSError):
        toolchain, shared, _ = loader.for_kernels()
        library = loader.prebuilt_kernels()
        lacking = {}
        for name, kernel in kernels:
            file = cache.entry(keys.kernel_key(name, kernel, shared, toolchain))
            if not (library and hasattr(library, kernel.symbol)) and not cache.is_whole(file):
                lacking[file] = kernel
        in_order = sorted(lacking.items(), key=lambda each: len(each[1].text))
        shares = filter(None, (in_order[i :: processors()] for i in range(processors())))
        with ThreadPoolExecutor(processors()) as pool:
            list(pool.map(_compile_together, shares))


def _compile_together(lacking: Sequence[tuple[Path, Kernel]]) -> None:
    """Compiles kernels as one file, whose headers are read once, and puts the library where each is looked for."""
    toolchain, _, precompiled = loader.for_kernels()
    lines = [line for _, kernel in lacking for line in kernel.text.splitlines()]
    includes = dict.fromkeys(line for line in lines if line.startswith("#include"))  # g++ finds one precompiled once
    rest = [line for line in lines if line not in includes]
    together = replace(lacking[0][1], text="\n".join([*includes, *rest, ""]))
    with (
        tempfile.TemporaryDirectory(prefix="torchad_ext-") as folder,
        progress.of(f"{len(lacking)} kernels for the CPU", lacking[0][0].parent),
    ):
        library = Path(folder, "library.so")
        compile.compile_library("cpu", toolchain, library, [together], precompiled=precompiled)
        for file, _ in lacking:
            cache.put(file, library)
