"""How kernels are compiled, kept, found again and done without."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builds import CXX, LOAD, ROOT, Compiler, cache, compiler, csrc, load_again, run, start
from drop_in import row
from selection import few

import torchad_ext as ad
from torchad_ext import BuildError, _settings
from torchad_ext._native import ahead, compile, kernels, keys, loader, nvrtc, prebuilt, toolchain
from torchad_ext._symbolic import cpp
from torchad_ext._symbolic.cpp import Kernel
from torchad_ext.ops import CATALOGUE
from torchad_ext.rows import ROW_CATALOGUE

NVCC = shutil.which("nvcc", path=f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin")
USE_ALL = """
import torch, torchad_ext as ad
x, A = torch.randn(5), torch.randn(5, 5)
for result, expected in ((ad.sin(x), x.sin()), (ad.exp(x), x.exp()), (ad.quadratic_form(x, A), x @ A @ x)):
    torch.testing.assert_close(result, expected)
print("right")
"""

pytestmark = pytest.mark.skipif(CXX is None, reason="no C++ compiler")


CHANGES: dict[str, Callable[[pytest.MonkeyPatch, Path, Compiler], object]] = {
    "the text of a source": lambda patch, csrc, _: (csrc / "answer.cpp").write_text("int other;"),
    "the text of a header": lambda patch, csrc, _: (csrc / "ops" / "answer.h").write_text("#define ANSWER 43\n"),
    "the name of a source": lambda patch, csrc, _: (csrc / "answer.cpp").rename(csrc / "b.cpp"),
    "a new source": lambda patch, csrc, _: (csrc / "new.cuh").touch(),
    "how sources are compiled": lambda patch, csrc, _: patch.setitem(keys.COMMANDS, "link", "$compiler"),
    "a flag": lambda patch, csrc, _: patch.setattr(toolchain, "_CXX_FLAGS", [*toolchain._CXX_FLAGS, "-g"]),
    "a flag of the user": lambda patch, csrc, _: patch.setenv("TORCHAD_EXT_CXXFLAGS", "-g"),
    "the compiler": lambda patch, csrc, _: patch.setenv("CXX", str(CXX)),
    "the version of the compiler": lambda patch, csrc, compiler: compiler.is_version("compiler 1.1"),
}


class TestKey:
    """A cache entry is named by everything that counts and by nothing else."""

    @staticmethod
    def key(level: str = "x86-64-v3") -> str:
        return keys.key("cpu", toolchain.cpu_toolchain(level))

    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
    def test_changes_with(
        self,
        change: Callable[[pytest.MonkeyPatch, Path, Compiler], object],
        csrc: Path,
        compiler: Compiler,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        before = self.key()
        assert self.key() == before
        change(monkeypatch, csrc, compiler)
        assert self.key() != before

    def test_changes_with_the_target_and_shows_it(self, csrc: Path, compiler: Compiler) -> None:
        assert re.fullmatch("cpu-x86-64-v3-[0-9a-f]{16}", self.key("x86-64-v3"))
        assert self.key("x86-64-v3").rpartition("-")[2] != self.key("x86-64-v4").rpartition("-")[2]

    def test_does_not_change_with_other_files_or_the_place_of_the_sources(
        self, csrc: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = self.key()
        (csrc / "notes.md").touch()
        (csrc / ".answer.cpp.swp").touch()
        assert self.key() == before
        monkeypatch.setattr(keys, "CSRC", shutil.copytree(csrc, csrc.parent / "elsewhere"))
        assert self.key() == before

    def test_of_operators_and_kernels_does_not_change_with_torch_that_of_the_calls_does(
        self, csrc: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def both() -> tuple[str, str]:
            return self.key(), keys.key("fast_path", toolchain.fast_path_toolchain())

        before = both()
        monkeypatch.setattr(torch, "__version__", "2.99.0")
        assert both()[0] == before[0]
        assert both()[1] != before[1]

    def test_does_not_change_with_the_wording_of_a_comment_in_python(self, tmp_path: Path) -> None:
        script = "from torchad_ext._native import keys, toolchain; print(keys.key('cpu', toolchain.cpu_toolchain()))"
        package = shutil.copytree(Path(ad.__file__).parent, tmp_path / "torchad_ext")
        if not (package / "csrc").is_dir():
            shutil.copytree(keys.CSRC, package / "csrc")

        def key() -> str:
            command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {script}"]
            return subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout

        before = key()
        for file in package.rglob("*.py"):
            file.write_text(file.read_text() + "\n# A comment.\n")
        assert key() == before


class TestCache:
    def test_the_first_load_compiles_and_says_so_the_next_finds_it_in_silence(
        self, csrc: Path, compiler: Compiler, cache: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert load_again()
        said = capfd.readouterr().err
        assert said == f"torchad_ext: compiling kernels on their first use, once; kept in {cache}\n"
        assert len(compiler.calls) == 2  # one source, one link
        assert len(list(cache.glob("*/library.so"))) == 1

        assert load_again()
        assert capfd.readouterr().err == ""
        assert len(compiler.calls) == 2

    def test_a_changed_source_is_compiled_again(self, csrc: Path, compiler: Compiler, cache: Path) -> None:
        assert load_again()
        (csrc / "ops" / "answer.h").write_text("#define ANSWER 43\n")
        assert load_again()
        assert len(list(cache.glob("*/library.so"))) == 2

    def test_its_place_is_chosen_by_the_environment(
        self, compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert _settings.cache_dir() == tmp_path / "cache"
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("TORCHAD_EXT_CACHE_DIR", "~/kernels")
        assert _settings.cache_dir() == tmp_path / "kernels"
        monkeypatch.delenv("TORCHAD_EXT_CACHE_DIR")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert _settings.cache_dir() == tmp_path / "xdg" / "torchad_ext"
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert _settings.cache_dir() == tmp_path / ".cache" / "torchad_ext"

    def test_paths_and_flags_may_have_any_character(
        self, csrc: Path, compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        odd = tmp_path / "it's a $folder: ü"
        monkeypatch.setenv("TORCHAD_EXT_CACHE_DIR", str(odd / "cache"))
        monkeypatch.setattr(keys, "CSRC", shutil.copytree(csrc, odd / "csrc"))
        monkeypatch.setenv("CXX", str(shutil.copy(compiler.path, odd / "c++")))
        monkeypatch.setenv("TORCHAD_EXT_CXXFLAGS", "-DGREETING='\"good $day\"' -DNAME=x")
        (odd / "csrc" / "greeting.cpp").write_text('static_assert(sizeof(GREETING) == 10, "the flag arrives whole");')
        assert load_again()

    def test_two_processes_compile_once_and_the_second_says_that_it_waits(self, csrc: Path, compiler: Compiler) -> None:
        compiler.obeys("sleep 2")
        processes = [start(LOAD, csrc) for _ in range(2)]
        outputs, errors = zip(*(process.communicate(timeout=120) for process in processes), strict=True)
        assert outputs == ("True\n", "True\n"), errors
        assert len(compiler.calls) == 2
        assert "".join(errors).count("compiling kernels on their first use") == 1
        assert "".join(errors).count(", which is compiling the CPU kernels for") == 1
        assert "".join(errors).count("compiled 1 library in") == 1

    def test_a_killed_builder_frees_the_lock_and_its_remains_are_removed(
        self, csrc: Path, compiler: Compiler, cache: Path
    ) -> None:
        compiler.obeys("sleep 60")
        holder = start(LOAD, csrc)
        try:
            deadline = time.monotonic() + 60
            while not compiler.calls and time.monotonic() < deadline:
                time.sleep(0.05)
            assert compiler.calls, "the holder never began to compile"
            holder.kill()
            holder.wait()
            (remains,) = cache.glob("*/.building-*")

            compiler.obeys("")
            output, errors = run(LOAD, csrc)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(holder.pid, signal.SIGKILL)  # the compiler outlives its killed caller
        assert output == "True\n"
        assert "waiting" not in errors
        assert not remains.exists()
        assert len(list(cache.glob("*/library.so"))) == 1

    def test_that_cannot_be_written_is_named_with_the_remedy(
        self, csrc: Path, compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("TORCHAD_EXT_CACHE_DIR", str(tmp_path / "file"))
        with pytest.warns(UserWarning, match=r"file/cpu-.* cannot be written .*; set TORCHAD_EXT_CACHE_DIR"):
            assert not loader.load("cpu")


ACCIDENTS = {
    "the compiler fails": "echo no such luck >&2; exit 1",
    "the compiler is killed": 'echo no such luck >&2; kill -9 "$$"',
    "the linker fails midway": ('case "$*" in *-shared*) echo half > library.so; echo no such luck >&2; exit 1;; esac'),
}


X86 = toolchain.platform.machine() in ("x86_64", "AMD64")


@pytest.mark.skipif(not X86, reason="levels are those of x86-64")
class TestLevel:
    def test_kernels_are_compiled_for_the_chosen_one(
        self, csrc: Path, compiler: Compiler, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TORCHAD_EXT_CPU_LEVEL", "x86-64-v2")
        assert load_again()
        assert "-march=x86-64-v2" in compiler.calls[0].split()
        assert len(list(cache.glob("cpu-x86-64-v2-*/library.so"))) == 1

    @pytest.mark.parametrize("level", ["v3", "x86-64-v5", "x86-64", "avx2"])
    def test_an_unknown_one_is_an_error_that_names_the_known(
        self, level: str, csrc: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TORCHAD_EXT_CPU_LEVEL", level)
        known = f"TORCHAD_EXT_CPU_LEVEL={level}; it is one of x86-64-v2, x86-64-v3, x86-64-v4"
        with pytest.warns(UserWarning, match=known):
            assert not load_again()
        assert not compiler.calls

    @pytest.mark.parametrize(("level", "most"), [("x86-64-v3", "x86-64-v2"), ("x86-64-v4", "x86-64-v3")])
    def test_one_that_the_cpu_cannot_run_is_an_error_that_names_the_best(
        self, level: str, most: str, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TORCHAD_EXT_CPU_LEVEL", level)
        monkeypatch.setattr(toolchain, "can_run_avx2", lambda: most == "x86-64-v3")
        monkeypatch.setattr(toolchain, "can_run_avx512", lambda: False)
        with pytest.raises(BuildError, match=f"{level}, but this CPU runs no more than {most}; set that"):
            toolchain.cpu_level()

    def test_one_of_another_architecture_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCHAD_EXT_CPU_LEVEL", "x86-64-v3")
        monkeypatch.setattr(toolchain.platform, "machine", lambda: "aarch64")
        with pytest.raises(BuildError, match="this CPU is one of aarch64; unset it"):
            toolchain.cpu_level()


class TestLibrariesOfTheirOwn:
    """The quadratic form and rows, whose operators a pointwise op does not wait for."""

    def test_are_not_compiled_for_others(self, csrc: Path, compiler: Compiler) -> None:
        for name in ("rowwise", "quadratic_form", "quadratic_form_float"):
            (csrc / f"{name}.cpp").write_text(f"int {name};")
        assert loader.load("cpu")
        assert not [call for call in compiler.calls if "rowwise" in call or "quadratic_form" in call]
        assert loader.load("quadratic_form")
        assert not [call for call in compiler.calls if "rowwise" in call]
        assert {"quadratic_form.cpp.o", "quadratic_form_float.cpp.o"} <= set(compiler.calls[-1].split())

    def test_are_compiled_beside_that_of_the_cpu(self, csrc: Path, compiler: Compiler, tmp_path: Path) -> None:
        (csrc / "rowwise.cpp").write_text("int rows;")
        compiler.obeys(
            f"""case "$*" in *rowwise.cpp.o*) own=rows others=cpu;; *) own=cpu others=rows;; esac
            touch {tmp_path}/$own
            for i in $(seq 100); do [ -e {tmp_path}/$others ] && break; sleep 0.1; done
            [ -e {tmp_path}/$others ] || exit 1"""
        )
        assert loader.load("rowwise")


class TestPrecompiledHeader:
    """The header of the kernels is compiled with the operators; g++ takes that in its place."""

    @pytest.fixture
    def answer(self, csrc: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
        """Calls a kernel of this name, which includes the header, compiled after the operators."""
        (csrc / "pointwise_cpu.h").write_text("#pragma once\nconstexpr int answer = 42;\n")
        compiler.is_version("(C) Free Software Foundation")
        assert loader.load("cpu")
        monkeypatch.setattr(loader, "for_kernels", functools.cache(loader.for_kernels.__wrapped__))
        loader.for_kernels()

        def call(name: str) -> int:
            text = f'#include "pointwise_cpu.h"\nextern "C" int {name}() {{ return answer; }}\n'
            library = loader.compiled_kernel(name, Kernel(name, text, 0, 0, 0))
            result: int = library[name]()
            return result

        return call

    def test_is_read_in_the_place_of_the_header(self, answer: Callable[[str], int], csrc: Path) -> None:
        (csrc / "pointwise_cpu.h").write_text("#error read\n")
        assert answer("precompiled") == 42

    @pytest.mark.parametrize(
        "change",
        [
            Path.unlink,
            lambda path: path.write_bytes(b"garbage"),
            lambda path: os.truncate(path, path.stat().st_size // 2),
        ],
        ids=["gone", "broken", "cut short"],
    )
    def test_may_be_missing(self, change: Callable[[Path], object], answer: Callable[[str], int], cache: Path) -> None:
        (precompiled,) = cache.glob("*/pointwise_cpu.h.gch")
        change(precompiled)
        loader.for_kernels.cache_clear()  # as a new process would
        assert answer("plain") == 42


class TestKernelsTogether:
    """Kernels that are compiled in one run of the compiler, each into its own entry of the cache."""

    @staticmethod
    def kernels(count: int) -> list[tuple[str, Kernel]]:
        """Kernels with functors of one name."""
        ops = [ad.pointwise(functools.partial(lambda i, x: torch.sin(x) * (i + 1.5), i)) for i in range(count)]
        return [("together-float32", op._usual.source("cpu", torch.float32)) for op in ops]

    @pytest.fixture
    def compiled(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """How many files each run of the compiler compiles, into an empty cache."""
        assert loader.load("cpu")
        loader.for_kernels()  # with the header that is in the cache
        monkeypatch.setenv("TORCHAD_EXT_CACHE_DIR", str(tmp_path))
        monkeypatch.setattr(ahead, "processors", lambda: 2)
        monkeypatch.setattr(loader, "prebuilt_kernels", lambda: None)
        runs: list[int] = []
        original = compile.compile_library

        def compile_library(what: str, toolchain: Any, to: Path, kernels: Any, **options: Any) -> None:
            runs.append(len(kernels))
            original(what, toolchain, to, kernels, **options)

        monkeypatch.setattr(compile, "compile_library", compile_library)
        return runs

    def test_each_is_found_afterwards(self, compiled: list[int]) -> None:
        kernels = self.kernels(5)
        ahead.compile_kernels([*kernels, kernels[0]])
        assert compiled == [1, 1]
        addresses = {loader.load_kernel(name, "cpu", kernel) for name, kernel in kernels}
        assert compiled == [1, 1] and len(addresses) == 5 and None not in addresses
        ahead.compile_kernels(kernels)
        assert compiled == [1, 1]

    def test_one_that_does_not_compile_does_not_keep_the_others_from_it(self, compiled: list[int]) -> None:
        kernels = self.kernels(2)
        wrong = replace(kernels[0][1], symbol="wrong", text='#include "pointwise_cpu.h"\nwrong')
        ahead.compile_kernels([*kernels, ("wrong-float32", wrong)])
        assert all(loader.load_kernel(name, "cpu", kernel) for name, kernel in kernels)
        with pytest.warns(UserWarning, match="no native kernel of wrong-float32"):
            assert loader.load_kernel("wrong-float32", "cpu", wrong) is None


class TestProgress:
    BATCH = """
import sys
from pathlib import Path
from torchad_ext._native.progress import progress
sys.stderr.isatty = lambda: sys.argv[1] == "terminal"
for name in ("sin", "exp", "tanh"):
    with progress.of(name, Path("cache", name)):
        pass
"""

    def test_is_a_line_at_the_start_and_one_at_the_end(self) -> None:
        _, errors = run(self.BATCH, "file")
        first, last = errors.splitlines()
        assert first == "torchad_ext: compiling kernels on their first use, once; kept in cache"
        assert re.fullmatch(r"torchad_ext: compiled 3 libraries in \d+\.\d s", last)

    def test_is_one_line_that_a_terminal_overwrites(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
        _, errors = run(self.BATCH, "terminal")
        erase = "\x1b[1A\x1b[2K"  # the line above
        for name in ("sin", "exp", "tanh"):
            shown = errors.index(f"compiling {name}")
            assert erase in errors[shown : errors.find("compiling", shown + 1) % len(errors)]
        # A line and a carriage return, which is read as one, for each that is erased; the last one stays.
        assert errors.count("\n") <= 2 * errors.count(erase) + 1


class TestFailedBuild:
    @pytest.mark.parametrize("accident", ACCIDENTS.values(), ids=ACCIDENTS.keys())
    def test_publishes_nothing_and_keeps_its_log(
        self, accident: str, csrc: Path, compiler: Compiler, cache: Path
    ) -> None:
        compiler.obeys(accident)
        with pytest.warns(UserWarning, match="The plain PyTorch definitions run instead") as caught:
            assert not loader.load("cpu")
        (log,) = cache.glob("*/library.log")
        assert "no such luck" in log.read_text()
        assert f"{compiler.path} failed; its output is in {log}; g++ 12" in str(caught[0].message)
        assert {path.name for path in log.parent.iterdir()} == {"library.log", "lock"}

        compiler.obeys("")
        assert load_again()
        assert not log.exists()

    def test_is_not_tried_again_and_warns_once(self, csrc: Path, compiler: Compiler) -> None:
        compiler.obeys("exit 1")
        with pytest.warns(UserWarning, match="has no native kernels") as caught:
            assert [loader.load("cpu") for _ in range(3)] == [False] * 3
        assert len(caught) == 1
        assert len(compiler.calls) == 1

    def test_is_told_once_for_what_needs_the_library(self, csrc: Path, compiler: Compiler) -> None:
        (csrc / "rowwise.cpp").write_text("int rows;")
        compiler.obeys("exit 1")
        with pytest.warns(UserWarning, match="has no native kernels:") as caught:
            assert [loader.load("rowwise"), loader.load("cpu"), loader.load("quadratic_form")] == [False] * 3
        assert len(caught) == 1

    @row("threads")
    def test_is_tried_by_one_of_many_threads(self, csrc: Path, compiler: Compiler) -> None:
        compiler.obeys("sleep 0.2; exit 1")
        with ThreadPoolExecutor(8) as pool, pytest.warns(UserWarning, match="has no native kernels") as caught:
            results = list(pool.map(loader.load, ["cpu"] * 8))
        assert results == [False] * 8
        assert len(caught) == len(compiler.calls) == 1

    def test_is_an_error_every_time_when_strict(
        self, csrc: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TORCHAD_EXT_STRICT", "1")
        compiler.obeys("exit 1")
        for _ in range(2):
            with pytest.raises(BuildError, match=r"has no native kernels: .*c\+\+ failed"):
                loader.load("cpu")
        assert len(compiler.calls) == 1

    def test_a_library_that_cannot_be_loaded_is_one_too(self, csrc: Path, compiler: Compiler) -> None:
        (csrc / "answer.cpp").write_text("int missing(); int answer = missing();")
        with pytest.warns(
            UserWarning, match=r"undefined symbol: .*missing.*; delete .*library\.so to have it compiled"
        ):
            assert not loader.load("cpu")

    def test_a_compiler_that_is_not_there_is_named(self, compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CXX", "no-such-compiler")
        with pytest.raises(BuildError, match="CXX=no-such-compiler is no program; install g"):
            toolchain.cpu_toolchain()

    def test_a_missing_ninja_is_named(
        self, csrc: Path, compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "ninja", None)
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.warns(UserWarning, match="ninja was not found; pip install ninja"):
            assert not loader.load("cpu")


class TestWithoutACompiler:
    @pytest.fixture(autouse=True)
    def _no_compiler(self, compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CXX")
        monkeypatch.setenv("PATH", "")

    def test_the_definitions_run_after_one_warning(self) -> None:
        output, errors = run(USE_ALL)
        assert output == "right\n"
        assert errors.count("Warning") == 1
        assert "no C++ compiler was found; install g++" in errors

    def test_it_is_an_error_when_strict(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCHAD_EXT_STRICT", "1")
        process = start(USE_ALL)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "BuildError: torchad_ext has no native kernels: no C++ compiler was found" in errors


class TestZig:
    """Zig serves where there is no other compiler, for kernels alone."""

    @pytest.fixture(autouse=True)
    def _zig_alone(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setenv("PATH", "")
        (tmp_path / "ziglang").mkdir()
        (tmp_path / "ziglang" / "__init__.py").touch()
        (tmp_path / "ziglang" / "zig").write_text("#!/bin/sh\necho 0.17.0\n")
        (tmp_path / "ziglang" / "zig").chmod(0o755)
        monkeypatch.syspath_prepend(tmp_path)

    def test_it_compiles_kernels_for_this_cpu(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        found = toolchain.kernel_toolchain()
        assert found.compiler == str(tmp_path / "ziglang" / "zig") and found.flags[0] == "c++"
        assert toolchain.version(found.compiler) == "0.17.0\n" and not found.is_gcc
        if found.target.startswith("x86-64"):
            assert f"-mcpu={found.target.replace('-', '_')}" in found.flags
        assert not [flag for flag in found.flags if flag.startswith("-march")]

    def test_it_compiles_no_operators(self) -> None:
        with pytest.raises(toolchain.NoCompilerError, match=r"no C\+\+ compiler was found"):
            toolchain.cpu_toolchain()

    def test_a_chosen_compiler_that_is_not_there_is_not_replaced(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CXX", "no-such-compiler")
        with pytest.raises(toolchain.NoCompilerError, match="CXX=no-such-compiler is no program"):
            toolchain.kernel_toolchain()

    def test_without_it_the_error_names_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ziglang", None)
        with pytest.raises(toolchain.NoCompilerError, match=r"pip install 'torchad_ext\[compiler\]'"):
            toolchain.kernel_toolchain()


class TestImport:
    def test_compiles_and_loads_nothing(self, csrc: Path, compiler: Compiler, cache: Path) -> None:
        output, errors = run("import torch, torchad_ext; print(torch.ops.loaded_libraries)")
        assert output == "set()\n"
        assert errors == ""
        assert not compiler.calls
        assert not cache.exists()

    def test_costs_nothing_beside_torch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # the first of three runs compiles the Python
        script = """
import gc, sys, time
start = time.process_time()
import torch
gc.disable()  # a collection of what torch made may fall due in what comes after it
before, between = set(sys.modules), time.process_time()
import torchad_ext
print((time.process_time() - between) / (between - start), *set(sys.modules) - before)
"""
        runs = [run(script)[0].split() for _ in range(3)]
        heavy = {"matplotlib", "rich", "sympy", "ninja", "filelock", "mpmath", "torch.utils.cpp_extension"}
        heavy |= {f"torchad_ext.{module}" for module in set(ad._LATER.values())}
        assert not heavy & set(runs[0])
        assert min(float(one[0]) for one in runs) < 0.1


class TestCuda:
    @pytest.fixture
    def gpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (loader, prebuilt):
            monkeypatch.setattr(module, "present_gpus", lambda: ("90",))

    @pytest.mark.usefixtures("csrc", "gpus")
    def test_without_nvrtc_there_is_one_warning(self, compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(nvrtc, "_candidates", lambda: iter(["libnvrtc.so.0"]))
        monkeypatch.setattr(nvrtc, "_library", nvrtc._library.__wrapped__)
        monkeypatch.setattr(nvrtc, "version", nvrtc.version.__wrapped__)
        with pytest.warns(UserWarning, match="has no native CUDA kernels: no NVRTC was found .* pip install") as caught:
            assert [loader.load("cuda") for _ in range(2)] == [False, False]
        assert len(caught) == 1
        assert loader.load("cpu")

    def test_where_the_cpu_kernels_failed_there_is_no_second_warning(self, compiler: Compiler, csrc: Path) -> None:
        compiler.obeys("exit 1")
        with pytest.warns(UserWarning, match="has no native kernels"):
            assert not loader.load("cpu")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not loader.load("cuda")

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            (lambda patch: patch.setattr(loader, "present_gpus", tuple), r"no GPU is visible .*CUDA_VISIBLE_DEVICES"),
            (lambda patch: patch.setattr(torch.version, "hip", "6.4"), "this PyTorch is one for ROCm"),
        ],
        ids=["no GPU", "another GPU"],
    )
    @pytest.mark.usefixtures("compiler", "gpus")
    def test_without_a_gpu_for_cuda_nothing_is_compiled(
        self, change: Callable[[pytest.MonkeyPatch], None], error: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        change(monkeypatch)
        with pytest.raises(BuildError, match=error):
            loader.find("cuda")

    @pytest.mark.parametrize(
        ("gpu", "runs"),
        [("86", True), ("89", True), ("90", True), ("103", True), ("80", False), ("75", False), ("120", False)],
    )
    def test_prebuilt_code_runs_on_its_family_of_gpus(
        self, gpu: str, runs: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(prebuilt, "GPUS", ("86", "90", "100"))
        assert prebuilt.runs_on(gpu) is runs


@pytest.fixture(scope="session")
def cuda_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What launches CUDA kernels."""
    library = tmp_path_factory.mktemp("cuda") / "library.so"
    compile.compile_library("cuda", toolchain.cuda_toolchain(), library)
    return library


@pytest.fixture(scope="module")
def spills_are_errors() -> Iterator[None]:
    """Code that spills registers to memory does not compile."""
    if not nvrtc.is_there():
        pytest.skip("no NVRTC: pip install nvidia-cuda-nvrtc; the CUDA sources are not compiled")
    with pytest.MonkeyPatch.context() as patch:
        strictly = ("--ptxas-options=--warn-on-spills", "--ptxas-options=--warning-as-error")
        patch.setattr(keys, "CUDA_FLAGS", [*keys.CUDA_FLAGS, *strictly])
        yield


@pytest.fixture(scope="module", params=["80", "90"])
def image(
    request: pytest.FixtureRequest, spills_are_errors: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A GPU and its code for a kernel of every dtype."""
    image = tmp_path_factory.mktemp("cuda") / "image.cubin"
    kernels = [ad.sin._order(2).source("cuda", getattr(torch, dtype)) for dtype in cpp.DTYPES]
    compile.compile_image([kernel.text for kernel in kernels], request.param, image)
    return request.param, image


@pytest.fixture(scope="session")
def cuobjdump() -> Callable[..., str]:
    """NVIDIA's disassembler, of the toolkit or of its PyPI packages."""
    packages = [os.path.join(entry, "nvidia", "cu13", "bin") for entry in sys.path]
    path = os.pathsep.join([*packages, "/usr/local/cuda/bin", os.environ.get("PATH", "")])
    command = shutil.which("cuobjdump", path=path)
    if command is None or shutil.which("nvdisasm", path=path) is None:
        pytest.skip("no cuobjdump and nvdisasm: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")

    def disassemble(*arguments: object) -> str:
        environment = {**os.environ, "PATH": path}
        return subprocess.run(
            [command, *map(str, arguments)], env=environment, capture_output=True, text=True, check=True
        ).stdout

    return disassemble


@pytest.mark.long
@pytest.mark.usefixtures("spills_are_errors")
class TestCudaSources:
    """They compile where there is an NVRTC, GPU or not, and spill no register."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_of_the_catalogue(self, dtype: torch.dtype, tmp_path: Path) -> None:
        kernels = [op._order(2).source("cuda", dtype) for op in CATALOGUE.values()]
        compile.compile_image([kernel.text for kernel in kernels], "90", tmp_path / "image.cubin")
        image = (tmp_path / "image.cubin").read_bytes()
        assert all(kernel.symbol.encode() in image for kernel in kernels)

    @pytest.mark.parametrize(("gpu", "dtype"), [("80", "float32"), ("90", "float32"), ("90", "float64")])
    def test_of_the_rows(self, gpu: str, dtype: str, tmp_path: Path) -> None:
        for op in ROW_CATALOGUE.values():
            kernel = op._order(2).source("cuda", getattr(torch, dtype))
            compile.compile_image([kernel.text], gpu, tmp_path / "image.cubin")
            assert kernel.symbol.encode() in (tmp_path / "image.cubin").read_bytes()

    @pytest.mark.parametrize(("gpu", "dtype"), [("80", "bfloat16"), ("90", "float32"), ("90", "float64")])
    def test_of_the_quadratic_form(self, gpu: str, dtype: str, tmp_path: Path) -> None:
        kernel = cpp.quadratic_form(dtype)
        compile.compile_image([kernel.text], gpu, tmp_path / "image.cubin")
        assert kernel.symbol.encode() in (tmp_path / "image.cubin").read_bytes()

    @pytest.mark.skipif(NVCC is None, reason="no nvcc")
    @pytest.mark.parametrize("gpu", ["80", "90"])
    def test_are_taken_by_nvcc(self, gpu: str, tmp_path: Path) -> None:
        kernels = [ad.celu._order(2).source("cuda", torch.bfloat16), cpp.quadratic_form("float32")]
        kernels.append(ad.layer_norm._order(2).source("cuda", torch.float16))
        (tmp_path / "kernels.cu").write_text("\n".join(kernel.text for kernel in kernels))
        flags = ["-std=c++17", f"-arch=sm_{gpu}", f"-I{keys.CSRC}", "-Werror=all-warnings", "-cubin"]
        subprocess.run([str(NVCC), *flags, "kernels.cu", "-o", "kernels.cubin"], cwd=tmp_path, check=True)

    def test_a_spilled_register_is_an_error(self, tmp_path: Path) -> None:
        text = """
            extern "C" __global__ void __launch_bounds__(1024, 2) reverse(volatile float* x) {
              float all[64];
              #pragma unroll
              for (int i = 0; i < 64; ++i) all[i] = x[i];
              #pragma unroll
              for (int i = 0; i < 64; ++i) x[i] = all[63 - i];
            }"""
        with pytest.raises(BuildError, match=r"NVRTC [\d.]+ failed; its output is in .*image\.log"):
            compile.compile_image([text], "90", tmp_path / "image.cubin")
        assert "Registers are spilled" in (tmp_path / "image.log").read_text()
        assert not (tmp_path / "image.cubin").exists()

    def test_move_contiguous_data_in_128_bit_accesses(
        self, image: tuple[str, Path], cuobjdump: Callable[..., str]
    ) -> None:
        gpu, path = image
        code = cuobjdump("-sass", path)
        assert set(re.findall(r"sm_\d+", code)) == {f"sm_{gpu}"}
        kernels = [part for part in code.split("Function : ")[1:] if "_contiguous" in part.partition("\n")[0]]
        assert len(kernels) == 4  # one for each dtype
        for kernel in kernels:
            assert re.search(r"LDG\.E\S*\.128", kernel), kernel.partition("\n")[0]
            assert re.search(r"STG\.E\S*\.128", kernel), kernel.partition("\n")[0]

    @pytest.mark.parametrize("dtype", cpp.DTYPES)
    def test_move_rows_in_128_bit_accesses(self, dtype: str, tmp_path: Path, cuobjdump: Callable[..., str]) -> None:
        kernel = ad.softmax._order(1).source("cuda", getattr(torch, dtype))
        compile.compile_image([kernel.text], "90", tmp_path / "image.cubin")
        code = cuobjdump("-sass", tmp_path / "image.cubin")
        assert re.search(r"LDG\.E\S*\.128", code) and re.search(r"STG\.E\S*\.128", code)

    def test_join_no_product_and_sum_of_a_row(self, tmp_path: Path, cuobjdump: Callable[..., str]) -> None:
        """The largest of x y + y, computed in one pass, equals an element of the next: both round alike."""

        def f(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x * y + y

        joined = []
        for op in (ad.pointwise(f), ad.rowwise(lambda x, y: f(x, y).amax(-1, keepdim=True))):
            compile.compile_image([op._order(0).source("cuda", torch.float32).text], "90", tmp_path / "image.cubin")
            joined.append("FFMA" in cuobjdump("-sass", tmp_path / "image.cubin"))
        assert joined == [True, False]


@pytest.mark.parametrize("kernels", few(["cpu", "cuda"], lambda kernels: kernels == "cpu"))
def test_the_kernels_stand_on_the_stable_abi_alone(kernels: str, request: pytest.FixtureRequest) -> None:
    """No symbol of PyTorch's C++ interface, which differs between releases, is left to be found; none of CUDA's."""
    if shutil.which("nm") is None:
        pytest.skip("no nm: the symbols of a library cannot be listed")
    library = loader.find("cpu") if kernels == "cpu" else request.getfixturevalue("cuda_library")
    command = ["nm", "-D", "--undefined-only", library]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "aoti_torch_" in symbols
    assert not re.findall(r"\b_ZNK?(?:2at|3c10|5torch)\w*|\bcu[A-Z]\w*|\bcuda\w*", symbols)


@pytest.mark.parametrize("name", few(sorted(ROW_CATALOGUE), lambda name: name == "layer_norm"))
def test_a_loop_over_rows_calls_nothing(name: str) -> None:
    """All that is computed of an element is inlined, in kernels of many results as in short ones."""
    if shutil.which("nm") is None:
        pytest.skip("no nm: the symbols of a library cannot be listed")
    for order, is_short in itertools.product(range(3), (True, False)):
        function = ROW_CATALOGUE[name]._order(order)
        for member in {function, function.recorded(()).function}:
            kernel = member.source("cpu", torch.float32, is_short)
            library = loader.compiled_kernel(kernels.title(member.name, torch.float32), kernel)
            listed = subprocess.run(["nm", library._name], capture_output=True, text=True, check=True).stdout
            called = re.findall(r" [tTW] (_Z\w*torchad_ext\w*)", listed)
            assert called and [symbol for symbol in called if not re.search("3runE|9store_sumE", symbol)] == []
