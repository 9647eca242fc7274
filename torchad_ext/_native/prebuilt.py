"""The binaries that a wheel brings: how they are called, made and found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from .. import _settings
from .._symbolic.cpp import Kernel
from . import nvrtc
from .compile import ASIDE, compile_image, compile_library
from .keys import PACKAGE, sources_hash
from .toolchain import (
    CPU_LEVELS,
    BuildError,
    cpu_level,
    cpu_toolchain,
    cuda_toolchain,
    fast_path_toolchain,
    present_gpus,
)

FOLDER = PACKAGE / "prebuilt"
GPUS = ("80", "90", "100")


def library(device: str, target: str, what: str = "operators") -> Path:
    """Where a wheel built with ``TORCHAD_EXT_PREBUILD=1`` keeps a library, whether it has it or not."""
    return FOLDER / f"{what}-{device}-{target}-{sources_hash()[:16]}.so"


def image(gpu: str) -> Path:
    """Where such a wheel keeps the CUDA kernels for a GPU."""
    return FOLDER / f"kernels-cuda-sm_{gpu}-{sources_hash()[:16]}.cubin"


def make(folder: Path, devices: str, kernels: Callable[[str], Sequence[Kernel]]) -> list[Path]:
    """Compiles the libraries of a wheel into ``folder``: for every CPU of this architecture and for ``GPUS``.

    Args:
        folder: takes the place of ``FOLDER``.
        devices: ``"cpu"``, or ``"1"`` for the CPU and, where there is an NVRTC, CUDA.
        kernels: the pointwise kernels to compile for a device.

    Raises:
        BuildError: ``devices`` is something else, or a compiler failed.
    """
    if devices not in ("1", "cpu"):
        raise BuildError(f"TORCHAD_EXT_PREBUILD={devices}; it is 1, or cpu to leave CUDA out")
    levels = sorted(CPU_LEVELS.values()) if cpu_level().startswith("x86-64") else [cpu_level()]
    chosen = [("cpu", cpu_toolchain(level), what) for level in levels for what in ("operators", *ASIDE, "kernels")]
    chosen.append(("fast_path", fast_path_toolchain(), "calls"))
    gpus = GPUS if devices == "1" and nvrtc.is_there() else ()
    if gpus:
        chosen.append(("cuda", cuda_toolchain(), "operators"))
    files = []
    for device, toolchain, what in chosen:
        file = folder / library(device, toolchain.target, what).name
        sources = kernels(device) if what == "kernels" else ()
        compile_library(what if what in ASIDE else device, toolchain, file, sources, precompile=bool(sources))
        files.append(file)
    for gpu in gpus:
        file = folder / image(gpu).name
        compile_image([kernel.text for kernel in kernels("cuda")], gpu, file)
        files.append(file)
    return files


def find(device: str, target: str, what: str) -> Path | None:
    """A library that came with the package and serves this machine; None if there is none."""
    file = library(device, target, what)
    return file if file.exists() and not _settings.cxx_flags() else None


def described(files: Sequence[Path]) -> list[str]:
    """Each kind of binary with the machines that it serves: ``"kernels for x86-64 and x86-64-v3"``."""
    targets: dict[str, list[str]] = {}
    for file in sorted(files):
        what, device, target = file.stem.rpartition("-")[0].split("-", 2)
        targets.setdefault(f"{device.upper()} {what}" if device in ("cpu", "cuda") else what, []).append(target)
    return [f"{what} for {' and '.join(of)}" for what, of in targets.items()]


def images() -> list[Path]:
    """The images that came with the package, if they serve all visible GPUs."""
    files = [image(gpu) for gpu in GPUS]
    return [file for file in files if file.exists()] if all(map(runs_on, present_gpus())) else []


def runs_on(gpu: str) -> bool:
    """Does code of ``GPUS`` run on a GPU? It does on its own compute capability and on those with the same major number
    and a higher minor one."""
    return any(gpu[:-1] == built[:-1] and gpu[-1] >= built[-1] for built in GPUS)
