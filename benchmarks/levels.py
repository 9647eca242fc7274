"""Instruction sets for which benchmarks are kept: what our kernels and PyTorch are told to use of a CPU."""

from __future__ import annotations

import os
import sys
import tempfile

from torchad_ext._native import toolchain

# The environment in which our kernels, PyTorch's, MKL's and oneDNN's use one level of x86-64. Inductor takes kernels of
# another level out of its cache, where it finds some.
ENVIRONMENTS = {
    "v3": {
        "TORCHAD_EXT_CPU_LEVEL": "x86-64-v3",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "TORCHINDUCTOR_CACHE_DIR": os.path.join(tempfile.gettempdir(), "torchinductor-x86-64-v3"),
    },
    "v4": {"TORCHAD_EXT_CPU_LEVEL": "x86-64-v4", "ATEN_CPU_CAPABILITY": "avx512"},
}


def current() -> str:
    """The level that our kernels are compiled for: ``"v3"``, ``"v4"``, or the architecture of another CPU.

    Raises:
        BuildError: ``TORCHAD_EXT_CPU_LEVEL`` names a level that this CPU cannot run.
    """
    return toolchain.cpu_level().removeprefix("x86-64-")


def start_again_at(level: str | None) -> str:
    """The level that is measured: ``level``, or the best of this CPU. Libraries read their environment when they are
    loaded, so this program is replaced by a new run of it where the environment is not that of the level."""
    level = level or current()
    environment = ENVIRONMENTS.get(level, {})
    if any(os.environ.get(name) != value for name, value in environment.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **environment})
    try:
        return current()
    except toolchain.BuildError as error:
        sys.exit(str(error))
