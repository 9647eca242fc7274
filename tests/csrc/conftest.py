"""CUDA that is played on the host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import emulated_cuda as on_host
import pytest
import torch

from torchad_ext._native import compile, keys, loader, prebuilt
from torchad_ext._native.state import state


@pytest.fixture(scope="session")
def operators_on_host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what launches the kernels; registered as ``torch.ops.torchad_ext_on_host``, once a process."""
    folder = tmp_path_factory.mktemp("on_host")
    csrc = on_host.changed_sources(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "CSRC", csrc)
        on_host.compile_operators(folder / "operators.so")
    torch.ops.load_library(folder / "operators.so")
    return folder


@pytest.fixture(scope="module")
def emulated_cuda(operators_on_host: Path) -> Iterator[None]:
    """Kernels for CUDA are compiled for the driver that runs them on the host."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "CSRC", operators_on_host / "csrc")
        patch.setattr(compile, "compile_image", on_host.compile_image)
        for module in (loader, prebuilt):
            patch.setattr(module, "present_gpus", lambda: on_host.GPUS)
        patch.setenv("TORCHAD_EXT_CACHE_DIR", str(operators_on_host / "cache"))
        patch.setenv("TORCHAD_EXT_STRICT", "1")
        patch.setitem(state.libraries, "cuda", operators_on_host / "operators.so")
        on_host.forget()
        yield
    on_host.forget()
