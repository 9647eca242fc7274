"""What a wheel and a source distribution contain, what they need to be built, and that they work where installed."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from dataclasses import replace
from email.parser import Parser
from pathlib import Path

import pytest
import setuptools
import torch

import torchad_ext
from torchad_ext import _wheel
from torchad_ext._native import compile, kernels, keys, prebuilt, toolchain
from torchad_ext.ops import CATALOGUE, gelu
from torchad_ext.rows import ROW_CATALOGUE

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*") if path.is_file()}
USE = """
import torch, torchad_ext
x = torch.randn(1001, requires_grad=True)
y = torchad_ext.sin(x)
torch.testing.assert_close(y, x.sin())
(gradient,) = torch.autograd.grad(y.sum(), x)
torch.testing.assert_close(gradient, x.detach().cos())
print(torchad_ext.__file__, *torch.ops.loaded_libraries, sep="\\n")
"""
USE_DECLARED = """
import torch, torchad_ext as ad
x = (0.5 + torch.rand(5, 7)).requires_grad_()
for op in (
    ad.pointwise(lambda x: x * torch.sin(x)),
    ad.pointwise(lambda x: torch.cos(x) / x),
    ad.rowwise(lambda x: x / x.sum(-1, keepdim=True)),
):
    for y, z in zip(*([f(x), *torch.autograd.grad(f(x).sin().sum(), x)] for f in (op, op.definition))):
        torch.testing.assert_close(y, z)
ad.silu(x).sum().backward()
print(*torch.ops.loaded_libraries)
"""

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="no source tree to build from")
needs_compiler = pytest.mark.skipif(toolchain.find_cxx() is None, reason="no C++ compiler")


def environment(**settings: str) -> dict[str, str]:
    """This process's, without what would change a build."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TORCHAD_EXT_") and k not in ("CXX", "PYTHONPATH")}
    return {**kept, **settings}


def call(*arguments: object, cwd: Path, **settings: str) -> str:
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(
        command, cwd=cwd, env=environment(**settings), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def build_wheel(tree: Path, to: Path, **settings: str) -> Path:
    call("-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", to, ".", cwd=tree, **settings)
    (wheel,) = to.glob("*.whl")
    return wheel


def install(wheel: Path, target: Path) -> Path:
    call("-m", "pip", "install", "--no-deps", "--no-index", "--target", target, wheel, cwd=wheel.parent)
    return target


def contents(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def copy_tree(to: Path) -> Path:
    """The files that a build reads, so that nothing is written to the source tree."""
    to.mkdir()
    files = ["setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"]
    for name in (*files, "Makefile", "constraints.txt"):
        shutil.copy(ROOT / name, to)
    for name in ("torchad_ext", "csrc"):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__", "csrc", "prebuilt"))
    return to


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain wheel, built where there is no compiler, torch cannot be imported, and a prebuilding one was built."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = copy_tree(folder / "tree")
    (folder / "blocked").mkdir()
    (folder / "blocked" / "torch.py").write_text("raise ImportError('torch is not to be imported')\n")
    (tree / "build" / "lib" / "torchad_ext" / "prebuilt").mkdir(parents=True)
    (tree / "build" / "lib" / "torchad_ext" / "prebuilt" / "old.so").touch()
    return build_wheel(tree, folder / "dist", PATH="", PYTHONPATH=str(folder / "blocked"))


@pytest.fixture(scope="session")
def prebuilt_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel with the CPU kernels in it; not optimised, which compiles faster."""
    folder = tmp_path_factory.mktemp("prebuilt")
    tree = copy_tree(folder / "tree")
    wheel = build_wheel(tree, folder / "dist", TORCHAD_EXT_PREBUILD="cpu", TORCHAD_EXT_CXXFLAGS="-O0")
    assert not (tree / "torchad_ext" / "prebuilt").exists()
    assert not (tree / "torchad_ext" / "csrc").exists()
    return wheel


def test_a_wheel_needs_neither_compiler_nor_torch_and_serves_every_platform(wheel: Path) -> None:
    assert wheel.name == f"torchad_ext-{torchad_ext.__version__}-py3-none-any.whl"


def test_a_wheel_contains_the_package_and_the_kernel_sources_and_nothing_else(wheel: Path) -> None:
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "torchad_ext").rglob("*.py")}
    expected = modules | {"torchad_ext/py.typed"} | {f"torchad_ext/{source}" for source in SOURCES}
    assert {name for name in contents(wheel) if ".dist-info/" not in name} == expected


def test_its_metadata_name_the_version_of_the_package_and_what_it_needs(wheel: Path) -> None:
    (name,) = (name for name in contents(wheel) if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(zipfile.ZipFile(wheel).read(name).decode())
    assert metadata["Version"] == torchad_ext.__version__
    assert metadata["Requires-Python"] == ">=3.10"
    needed = {re.match(r"[\w-]+", line)[0] for line in metadata.get_all("Requires-Dist") if "extra ==" not in line}
    assert needed == {"torch", "numpy", "ninja", "matplotlib", "filelock", "rich", "click"}


def test_a_wheel_installs_the_command(wheel: Path) -> None:
    (name,) = (name for name in contents(wheel) if name.endswith(".dist-info/entry_points.txt"))
    assert "torchad_ext = torchad_ext.__main__:main" in zipfile.ZipFile(wheel).read(name).decode()


@pytest.mark.long
@needs_compiler
def test_an_installed_wheel_compiles_its_own_sources(wheel: Path, tmp_path: Path) -> None:
    package = install(wheel, tmp_path / "site packages")
    (tmp_path / "empty").mkdir()
    settings = {
        "PYTHONPATH": str(package),
        "TORCHAD_EXT_CACHE_DIR": str(tmp_path / "cache"),
        "TORCHAD_EXT_CXXFLAGS": "-O0",
        "TORCHAD_EXT_EAGER": "0",
        "TORCHAD_EXT_STRICT": "1",
    }
    output = call("-c", USE, cwd=tmp_path / "empty", **settings)
    *_, module, library, said = output.splitlines()
    assert re.match(r"torchad_ext: compiled \d libraries", said)
    assert Path(module).parent == package / "torchad_ext"
    assert Path(library).is_relative_to(tmp_path / "cache")


def test_an_installed_wheel_and_a_checkout_share_their_cache(wheel: Path, tmp_path: Path) -> None:
    package = install(wheel, tmp_path / "package")
    script = "from torchad_ext._native import keys; print(keys.sources_hash())"
    installed = call("-c", script, cwd=tmp_path, PYTHONPATH=str(package))
    assert installed.strip() == keys.sources_hash()


@pytest.mark.long
@needs_compiler
def test_a_prebuilt_wheel_is_bound_to_its_platform_and_to_no_python(prebuilt_wheel: Path) -> None:
    assert re.fullmatch(r"torchad_ext-[\d.]+-py3-none-(?!any)\w+\.whl", prebuilt_wheel.name)


@pytest.mark.long
@needs_compiler
@pytest.mark.fast_path
def test_a_prebuilt_wheel_has_a_library_for_every_level_of_its_architecture(prebuilt_wheel: Path) -> None:
    levels = (
        ["x86-64", "x86-64-v3", "x86-64-v4"] if toolchain.cpu_level().startswith("x86") else [toolchain.cpu_level()]
    )
    libraries = {
        f"torchad_ext/prebuilt/{prebuilt.library('cpu', level, what).name}"
        for level in levels
        for what in ("operators", "quadratic_form", "rowwise", "kernels")
    }
    libraries.add(
        f"torchad_ext/prebuilt/{prebuilt.library('fast_path', toolchain.fast_path_toolchain().target, 'calls').name}"
    )
    assert {name for name in contents(prebuilt_wheel) if name.endswith(".so")} == libraries
    assert {f"torchad_ext/{source}" for source in SOURCES} <= contents(prebuilt_wheel)


@pytest.mark.long
@needs_compiler
def test_a_prebuilt_wheel_works_where_there_is_no_compiler(prebuilt_wheel: Path, tmp_path: Path) -> None:
    package = install(prebuilt_wheel, tmp_path / "package")
    (tmp_path / "empty").mkdir()
    cache = tmp_path / "cache"
    settings = {"PATH": "", "TORCHAD_EXT_STRICT": "1", "TORCHAD_EXT_CACHE_DIR": str(cache)}
    output = call("-c", USE, cwd=tmp_path / "empty", PYTHONPATH=str(package), **settings)
    module, library = output.splitlines()
    assert Path(module).parent == package / "torchad_ext"
    assert Path(library).parent == package / "torchad_ext" / "prebuilt"
    assert not cache.exists()


@pytest.mark.long
@needs_compiler
def test_both_catalogues_run_natively_to_second_derivatives_where_there_is_no_compiler(
    prebuilt_wheel: Path, tmp_path: Path
) -> None:
    package = install(prebuilt_wheel, tmp_path / "package")
    settings = {"PATH": "", "HOME": "", "TORCHAD_EXT_STRICT": "1", "PYTHONPATH": str(package)}
    for level in filter(toolchain.can_run, ("x86-64", "x86-64-v3", "x86-64-v4")):
        capability = {level: name for name, level in toolchain.CPU_LEVELS.items()}[level].lower()
        output = call(
            ROOT / "tests" / "native" / "run_catalogues.py", cwd=tmp_path, ATEN_CPU_CAPABILITY=capability, **settings
        )
        assert output == f"{len(CATALOGUE) + len(ROW_CATALOGUE) + 1} ops\n"


@pytest.mark.long
@needs_compiler
def test_declared_ops_run_their_definitions_after_one_warning_where_there_is_no_compiler(
    prebuilt_wheel: Path, tmp_path: Path
) -> None:
    package = install(prebuilt_wheel, tmp_path / "package")
    output = call("-c", USE_DECLARED, cwd=tmp_path, PATH="", HOME="", PYTHONPATH=str(package))
    assert output.count("Warning: ") == 1
    assert "no C++ compiler was found; install g++" in output
    assert "operators-cpu-" in output.splitlines()[-1]


@pytest.mark.long
@needs_compiler
@pytest.mark.skipif(toolchain.find_zig() is None, reason="no ziglang")
def test_declared_ops_are_compiled_by_zig_where_there_is_no_other_compiler(
    prebuilt_wheel: Path, tmp_path: Path
) -> None:
    package = install(prebuilt_wheel, tmp_path / "package")
    settings = {"PATH": "", "HOME": str(tmp_path), "TORCHAD_EXT_STRICT": "1", "PYTHONPATH": str(package)}
    output = call("-c", USE_DECLARED, cwd=tmp_path, **settings)
    assert "Warning: " not in output
    assert "torchad_ext: compiled 6 libraries" in output
    assert "operators-cpu-" in output


@pytest.mark.long
@needs_compiler
def test_flags_of_the_user_are_not_ignored_for_a_prebuilt_library(prebuilt_wheel: Path, tmp_path: Path) -> None:
    package = install(prebuilt_wheel, tmp_path / "package")
    script = "from torchad_ext._native import loader; print(loader.find('cpu'))"
    settings = {"PYTHONPATH": str(package), "TORCHAD_EXT_CACHE_DIR": str(tmp_path / "cache")}
    assert "prebuilt" in call("-c", script, cwd=tmp_path, **settings)
    output = call("-c", script, cwd=tmp_path, TORCHAD_EXT_CXXFLAGS="-O0 -DOWN", **settings)
    assert f"\n{tmp_path / 'cache'}" in output


@needs_compiler
def test_functors_of_one_name_in_one_library_stay_apart(tmp_path: Path) -> None:
    chosen = toolchain.cpu_toolchain()
    inlining_nothing = replace(chosen, flags=(*chosen.flags, "-O0"))
    x, library = torch.linspace(-3, 3, 1001, dtype=torch.float64), tmp_path / "library.so"
    functions = {way: gelu.resolve([x, way])[1] for way in ("none", "tanh")}
    sources = {way: function.source("cpu", x.dtype) for way, function in functions.items()}
    compile.compile_library("cpu", inlining_nothing, library, list(sources.values()), precompile=True)
    for way, source in sources.items():
        address = ctypes.addressof(ctypes.c_char.in_dll(ctypes.CDLL(str(library)), source.symbol))
        (y,) = kernels.PointwiseKernel("gelu", "cpu", address)([x], [])
        torch.testing.assert_close(y, torch.nn.functional.gelu(x, approximate=way))
    assert [path.name for path in tmp_path.iterdir()] == ["library.so"]


def test_a_misspelt_prebuild_is_refused(tmp_path: Path) -> None:
    with pytest.raises(torchad_ext.BuildError, match="TORCHAD_EXT_PREBUILD=yes; it is 1, or cpu"):
        prebuilt.make(tmp_path, "yes", _wheel.prebuilt_kernels)


@pytest.fixture
def isolated(tmp_path: Path) -> Path:
    """A folder with setuptools, and with what takes everything else from the path, as pip isolates a build."""
    (tmp_path / "isolated").mkdir()
    installed = Path(setuptools.__file__).parents[1]
    for path in (*installed.glob("setuptools*"), *installed.glob("_distutils_hack")):
        (tmp_path / "isolated" / path.name).symlink_to(path)
    script = "import sys; sys.path = [path for path in sys.path if 'site-packages' not in path]"
    (tmp_path / "isolated" / "sitecustomize.py").write_text(script)
    return tmp_path / "isolated"


def build_isolated(python: str, isolated: Path, tmp_path: Path) -> str:
    """What a prebuilding ``setup.py`` says where nothing installed is on the path; a wrong choice ends it soon."""
    process = subprocess.run(
        [python, "setup.py", "build_py"],
        cwd=copy_tree(tmp_path / "tree"),
        env=environment(PYTHONPATH=str(isolated), TORCHAD_EXT_PREBUILD="neither"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert process.returncode != 0
    return process.stdout


def test_a_prebuilding_build_that_is_isolated_finds_the_installed_torch(isolated: Path, tmp_path: Path) -> None:
    said = build_isolated(sys.executable, isolated, tmp_path)
    assert "TORCHAD_EXT_PREBUILD=neither; it is 1, or cpu" in said


def test_a_prebuilding_build_without_torch_says_what_to_do(isolated: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "empty")
    said = build_isolated(str(tmp_path / "empty" / "bin" / "python"), isolated, tmp_path)
    assert "torch is not installed for " in said and "pip install --no-build-isolation ." in said


def test_a_source_distribution_can_be_built_from(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path / "tree")
    script = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    call("-c", script, tmp_path / "dist", cwd=tree)
    (archive,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    assert SOURCES | {"setup.py", "pyproject.toml", "LICENSE", "README.md", "torchad_ext/py.typed"} <= names
