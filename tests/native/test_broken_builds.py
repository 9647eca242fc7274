"""Builds that are killed, cut short, refused, and shared: what is loaded is whole, or an error says what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest
from builds import CXX, LOAD, Compiler, cache, compiler, csrc, load_again, run, start

from torchad_ext import BuildError, _settings
from torchad_ext._native import loader
from torchad_ext._native.cache import get_or_make
from torchad_ext._native.state import state

pytestmark = pytest.mark.skipif(CXX is None, reason="no C++ compiler")

THREADS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from torchad_ext._native import compile, keys, loader
keys.CSRC = Path(sys.argv[1])
with ThreadPoolExecutor(4) as pool:
    print(list(pool.map(loader.load, ["cpu"] * 4)))
"""


def library(cache: Path) -> Path:
    (found,) = cache.glob("cpu-*/library.so")
    return found


@pytest.mark.long
class TestKilled:
    """A build ended by force at any moment leaves nothing that a later one could load or would wait for."""

    @pytest.mark.parametrize("tenth", range(10))
    def test_at_any_moment(self, tenth: int, csrc: Path, compiler: Compiler, cache: Path) -> None:
        compiler.obeys("sleep 0.2")
        process = start(LOAD, csrc)
        deadline = time.monotonic() + 60
        while not cache.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.08 * tenth)  # two calls of the compiler, each of 0.2 s and a little
        for pid in [*children(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        compiler.obeys("")
        output, errors = run(LOAD, csrc)
        assert output == "True\n"
        assert "waiting" not in errors
        assert not list(cache.glob("*/.building-*"))

    def test_processes_and_threads_that_start_cold_build_once(self, csrc: Path, compiler: Compiler) -> None:
        compiler.obeys("sleep 0.5")
        processes = [start(THREADS, csrc) for _ in range(8)]
        for process in processes:
            output, errors = process.communicate(timeout=300)
            assert output == "[True, True, True, True]\n", errors
        assert len(compiler.calls) == 2  # one source, one link


def children(pid: int) -> list[int]:
    """The processes below one, from the bottom up."""
    listed = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()
    return [below for child in map(int, listed) for below in [*children(child), child]]


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut short": lambda file: os.truncate(file, file.stat().st_size // 2),
    "empty": lambda file: os.truncate(file, 0),
    "a byte changed": lambda file: file.write_bytes(file.read_bytes()[:-1] + b"?"),
    "garbage": lambda file: file.write_bytes(b"garbage"),
    "without its digest": lambda file: file.with_name("library.so.sha256").unlink(),
    "with half a digest": lambda file: os.truncate(file.with_name("library.so.sha256"), 32),
}


class TestDamaged:
    @pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
    def test_a_library_is_made_again(
        self, damage: Callable[[Path], object], csrc: Path, compiler: Compiler, cache: Path
    ) -> None:
        loader.find("cpu")
        whole = library(cache).read_bytes()
        damage(library(cache))
        assert load_again()
        assert library(cache).read_bytes() == whole
        assert len(compiler.calls) == 4

    def test_one_that_cannot_be_made_again_is_not_loaded(
        self, csrc: Path, compiler: Compiler, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loader.find("cpu")
        os.truncate(library(cache), 100)
        compiler.obeys("exit 1")
        with pytest.warns(UserWarning, match="failed; its output is in"):
            assert not load_again()


class TestLocks:
    def test_a_file_that_an_ended_process_left_is_no_lock(
        self, csrc: Path, compiler: Compiler, cache: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        loader.find("cpu")
        file = library(cache)
        file.unlink()
        (file.parent / "holder").write_text("process 1 on elsewhere")
        assert load_again()
        assert "waiting" not in capfd.readouterr().err

    def test_the_holder_is_named_and_the_wait_has_an_end(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("TORCHAD_EXT_BUILD_TIMEOUT", "0.1")
        (tmp_path / "holder").write_text("process 42 on node-7")
        with filelock.FileLock(tmp_path / "lock", is_singleton=False), pytest.raises(BuildError) as caught:
            get_or_make(tmp_path / "library.so", "the CPU kernels", Path.touch)
        assert "process 42 on node-7 has held" in str(caught.value)
        assert "TORCHAD_EXT_BUILD_TIMEOUT" in str(caught.value)
        assert "waiting for process 42 on node-7, which is compiling the CPU kernels" in capfd.readouterr().err

    def test_who_builds_says_so(self, tmp_path: Path) -> None:
        said = []
        get_or_make(tmp_path / "file", "x", lambda to: (said.append((tmp_path / "holder").read_text()), to.touch()))
        assert said == [f"process {os.getpid()} on {socket.gethostname()}"]
        assert not (tmp_path / "holder").exists()

    @pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
    def test_a_file_system_may_have_none(self, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def flock(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("fcntl.flock", flock)
        (tmp_path / ".building-elsewhere").mkdir()
        file = get_or_make(tmp_path / "file", "x", lambda to: to.write_text("made"))
        assert file.read_text() == "made"
        # Another process may be at it.
        assert (tmp_path / ".building-elsewhere").exists() is (number != errno.ENOSYS)


# Each call that looks for a file, or opens, renames or syncs one, takes 20 ms, as over a busy network.
SLOW = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
static void wait_for(const char* path) {
  const char* cache = getenv("TORCHAD_EXT_CACHE_DIR");
  if (cache && path && strncmp(path, cache, strlen(cache)) == 0) usleep(20000);
}
#define SLOWED(result, name, parameters, arguments, path) \\
  result name parameters { wait_for(path); return ((result(*) parameters)dlsym(RTLD_NEXT, #name)) arguments; }
SLOWED(int, rename, (const char* from, const char* to), (from, to), from)
SLOWED(int, stat, (const char* path, struct stat* to), (path, to), path)
SLOWED(int, unlink, (const char* path), (path), path)
SLOWED(int, mkdir, (const char* path, mode_t mode), (path, mode), path)
int open(const char* path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  const int mode = flags & O_CREAT ? va_arg(rest, int) : 0;
  va_end(rest);
  wait_for(path);
  return ((int (*)(const char*, int, ...))dlsym(RTLD_NEXT, "open"))(path, flags, mode);
}
int open64(const char* path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  const int mode = flags & O_CREAT ? va_arg(rest, int) : 0;
  va_end(rest);
  return open(path, flags, mode);
}
"""


@pytest.mark.long
def test_one_of_eight_processes_builds_on_a_slow_file_system(
    csrc: Path, compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others wait, and say for whom."""
    shim = tmp_path / "slow.so"
    (tmp_path / "slow.c").write_text(SLOW)
    subprocess.run(["cc", "-shared", "-fPIC", str(tmp_path / "slow.c"), "-o", str(shim), "-ldl"], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(shim))
    ready = tmp_path / "ready"
    ready.mkdir()
    compiler.obeys(f'while [ "$(ls "{ready}" | wc -l)" -lt 8 ]; do sleep 0.1; done; sleep 2')
    begin = f"import os, pathlib; pathlib.Path({str(ready)!r}, str(os.getpid())).touch()\n"
    processes = [start(LOAD.replace("print(", begin + "print("), csrc) for _ in range(8)]
    errors = []
    for process in processes:
        output, error = process.communicate(timeout=600)
        assert output == "True\n", error
        errors.append(error)
    assert len(compiler.calls) == 2  # one source, one link
    builders = [process.pid for process, error in zip(processes, errors, strict=True) if "compiling kernels" in error]
    assert len(builders) == 1
    named = f"waiting for process {builders[0]} on {socket.gethostname()}, which is compiling"
    assert sum(named in error for error in errors) == 7


class TestCompiler:
    def test_that_hangs_is_stopped(
        self, csrc: Path, compiler: Compiler, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TORCHAD_EXT_BUILD_TIMEOUT", "1")
        compiler.obeys("sleep 100")
        with pytest.warns(UserWarning, match=r"did not end within 1 s and was stopped; .*TORCHAD_EXT_BUILD_TIMEOUT"):
            assert not loader.load("cpu")
        assert not list(cache.glob("*/.building-*"))

    def test_that_is_too_old_is_told_with_the_versions_that_are_tested(self, csrc: Path, compiler: Compiler) -> None:
        compiler.obeys("echo \"c++: error: unrecognized command line option '-std=c++17'\" >&2; exit 1")
        with pytest.warns(
            UserWarning, match=r"failed; its output is in .*library\.log; g\+\+ 12 and clang\+\+ 14 are tested"
        ):
            assert not loader.load("cpu")

    @pytest.mark.parametrize("given", ["soon", "-1", "0", "nan"])
    def test_a_time_limit_that_is_none_is_named(self, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCHAD_EXT_BUILD_TIMEOUT", given)
        with pytest.raises(ValueError, match=f"TORCHAD_EXT_BUILD_TIMEOUT={given}; it is a positive number of seconds"):
            _settings.build_timeout()


class TestCacheFolder:
    def refused(self, reason: str) -> None:
        state.failures.clear()
        with pytest.warns(UserWarning, match=reason):
            assert not loader.load("cpu")

    @pytest.mark.parametrize("mode", [0o777, 0o757, 0o1777], ids=oct)
    def test_that_others_may_write_is_refused(self, mode: int, csrc: Path, compiler: Compiler, cache: Path) -> None:
        loader.find("cpu")
        calls = len(compiler.calls)
        for folder in (library(cache).parent, cache):
            before = stat.S_IMODE(folder.stat().st_mode)
            folder.chmod(mode)
            self.refused(rf"{folder} may be written by others \(mode {mode:o}\), who .*; chmod go-w it, or set TORCHAD")
            folder.chmod(before)
        assert load_again()
        assert len(compiler.calls) == calls

    @pytest.mark.skipif(os.getuid() != 0, reason="gives a folder to another user, which root alone may")
    def test_of_another_user_is_refused(self, csrc: Path, compiler: Compiler, cache: Path) -> None:
        cache.mkdir()
        os.chown(cache, 12345, 12345)
        self.refused(r"belongs to user 12345, not to you \(user 0\)")

    @pytest.mark.skipif(os.getgid() not in (0, os.getuid()), reason="this user has no group of its own")
    def test_that_the_users_own_group_may_write_is_taken(self, csrc: Path, compiler: Compiler, cache: Path) -> None:
        cache.mkdir()
        cache.chmod(0o775)
        assert loader.load("cpu")

    def test_that_is_full_is_told(self, csrc: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("tempfile.TemporaryDirectory", full)
        with pytest.warns(UserWarning, match="No space left on device"):
            assert not loader.load("cpu")

    def test_is_asked_for_where_there_is_no_home(
        self, csrc: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def none() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("TORCHAD_EXT_CACHE_DIR")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", none)
        with pytest.warns(UserWarning, match="this user has no home folder; set TORCHAD_EXT_CACHE_DIR to a folder"):
            assert not loader.load("cpu")

    def test_serves_cpus_and_compilers_side_by_side(self, csrc: Path, compiler: Compiler, cache: Path) -> None:
        for level in ("x86-64-v2", "x86-64-v3"):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("TORCHAD_EXT_CPU_LEVEL", level)
                assert load_again()
        compiler.is_version("compiler 2.0")
        assert load_again()
        names = [folder.parent.name for folder in cache.glob("*/library.so")]
        levels = {re.sub("-[0-9a-f]+$", "", name) for name in names}  # the third is the best, which may be v3
        assert len(names) == 3 and levels >= {"cpu-x86-64-v2", "cpu-x86-64-v3"}
