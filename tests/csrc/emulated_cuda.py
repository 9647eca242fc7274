"""The CUDA kernels and what launches them on the host, for the fixture ``emulated_cuda``."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from torchad_ext._elementwise import Elementwise
from torchad_ext._native import compile, keys, loader, toolchain

ON_HOST = Path(__file__).parent / "cuda_on_host"
GPUS = ("80", "90")  # of the machine that is played, whose driver takes code for the second


def compile_cxx(*arguments: object) -> None:
    flags = ("-std=c++20", "-O1", "-fPIC", "-ffp-contract=off", "-Wno-unknown-pragmas")
    subprocess.run([toolchain._cxx(), *flags, *map(str, arguments)], check=True)


def compile_image(texts: Sequence[str], gpu: str, to: Path) -> None:
    """In the place of ``compile.compile_image``: kernels that the driver in ``cuda_on_host`` runs."""
    to.parent.mkdir(parents=True, exist_ok=True)
    if gpu != GPUS[1]:
        to.write_text("\0".join(["code for another GPU", *texts]))
        return
    source, preprocessed, library = (to.with_suffix(suffix) for suffix in (".cpp", ".ii", ".so"))
    source.write_text("\n".join(texts))
    headers = (f"-I{keys.CSRC}", f"-I{ON_HOST}", "-D__CUDACC__", "-include", "cuda.h")
    compile_cxx("-E", source, *headers, "-o", preprocessed)
    exports, where = [], ""
    kernels = re.compile(r'namespace (torchad_ext::\w+)|extern "C" +void +(\w+)\(')
    for namespace, name in kernels.findall(preprocessed.read_text()):
        where = namespace or where
        exports += [f"namespace {where} {{ ON_HOST({name}) }}"] if name else []
    source.write_text("\n".join([*texts, *exports]))
    # An access that is not aligned ends the process, as it ends a kernel.
    strictly = ("-fsanitize=alignment", "-fsanitize-undefined-trap-on-error")
    compile_cxx("-shared", source, *headers, *strictly, "-o", library)
    to.write_text("\0".join([str(library), *texts]))


def changed_sources(folder: Path) -> Path:
    """The sources that launch kernels by the driver in ``cuda_on_host``, whose operators take CPU tensors."""
    csrc = folder / "csrc"
    shutil.copytree(keys.CSRC, csrc)
    shutil.copy(ON_HOST / "half.cuh", csrc / "cuda")
    compile_cxx("-shared", ON_HOST / "driver.cpp", "-o", folder / "driver.so")
    for source in (csrc / "pointwise.h", *(csrc / "cuda").glob("*.*")):
        text = source.read_text().replace("(torchad_ext, CUDA, m)", "(torchad_ext_on_host, CPU, m)")
        text = text.replace("libcuda.so.1", str(folder / "driver.so")).replace("x.get_device_index()", "0")
        source.write_text(text)
    schemas = re.findall(r'm\.def\(".*?"\);', "".join(path.read_text() for path in sorted(csrc.glob("*.cpp"))))
    (csrc / "cuda" / "on_host.cpp").write_text(
        "#include <torch/csrc/stable/library.h>\n"
        f"STABLE_TORCH_LIBRARY_FRAGMENT(torchad_ext_on_host, m) {{ {' '.join(schemas)} }}\n"
    )
    return csrc


def compile_operators(library: Path) -> None:
    """What launches kernels, of the sources in ``keys.CSRC``."""
    chosen = toolchain.cuda_toolchain()
    headers = (f"-I{ON_HOST}", "-isystem", str(Path(torch.__file__).resolve().parent / "include"))
    compile.compile_library("cuda", replace(chosen, flags=(*headers, *chosen.flags, "-O1")), library)


def forget() -> None:
    """What this process found of CUDA is looked for again."""
    for cached in (loader._cuda, loader._prebuilt_module, loader._for_images):
        cached.cache_clear()


def address(function: Elementwise, dtype: torch.dtype) -> int:
    """The kernel of a function."""
    return loader.load_kernel(function.name, "cuda", function.source("cuda", dtype)) or 0
