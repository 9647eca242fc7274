"""Calls on plain tensors in C++: the extension module of ``csrc/fast_path``, once it is there.

It needs all of PyTorch's headers and some ten seconds of a compiler, so it is compiled in the background, and calls go
through Python until it is there.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import inspect
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from .. import _settings
from .._warnings import warn_or_raise
from . import background, cache, compile, keys, loader, prebuilt
from .progress import progress
from .state import state
from .toolchain import BuildError, Toolchain, fast_path_target, fast_path_toolchain

_DEVICES = {"cpu": 0, "cuda": 1}


def module() -> ModuleType | None:
    """The extension module, or None while there is none.

    The first call after a kernel was loaded loads it; if it has to be compiled, a process of its own does that in the
    background. ``TORCHAD_EXT_EAGER=wait`` waits for it, ``0`` goes without.
    """
    if state.fast_path is not None or (state.fast_path_started and state.fast_path_failure is None):
        return state.fast_path
    mode = _settings.fast_path()
    if mode == "0" or not loader.is_loaded("cpu"):
        return None
    with state.starting:
        if not state.fast_path_started:
            state.fast_path_started = True
            _load(lambda: _loaded(compiling=mode == "wait"))
            if state.fast_path is None and state.fast_path_failure is None:
                _load(_compile_aside)
        failure, state.fast_path_failure = state.fast_path_failure, None
    if failure:
        warn_or_raise(failure, ". Calls go through Python, which takes some microseconds more.")
    return state.fast_path


def _load(load: Callable[[], ModuleType | None]) -> None:
    try:
        if loaded := load():
            loaded.set_run(_DEVICES["cpu"], loader.run_kernel("cpu"))
            state.fast_path = loaded
    except (RuntimeError, OSError, AttributeError) as error:  # it may lack what is asked of it
        state.fast_path_failure = BuildError(f"torchad_ext has no native calls: {error}")


def _entry() -> tuple[Toolchain, Path]:
    """How the module is compiled, and where the cache keeps it."""
    toolchain = fast_path_toolchain()
    return toolchain, cache.entry(keys.key("fast_path", toolchain))


def _loaded(compiling: bool) -> ModuleType | None:
    """The module; None if it is not there and is not to be compiled.

    Raises:
        BuildError: it could not be compiled, now or by an earlier process, or not be loaded.
    """
    library = prebuilt.find("fast_path", fast_path_target(), "calls")
    if library is None:
        toolchain, library = _entry()
        if compiling:
            library = loader.compiled("fast_path", toolchain, f"the calls in eager mode for {toolchain.target}")
        elif not cache.is_whole(library):
            if (log := library.with_suffix(".log")).exists():
                failed = compile.failed("fast_path", toolchain, log)
                raise BuildError(f"{failed}; it is tried again when you delete that file")
            return None
    extension = importlib.machinery.ExtensionFileLoader("torchad_ext_eager", str(library))
    spec = importlib.util.spec_from_loader(extension.name, extension)
    assert spec
    try:
        module = importlib.util.module_from_spec(spec)
        extension.exec_module(module)
    except ImportError as error:
        raise BuildError(f"{error}; delete {library} to have it compiled again") from error
    return module


def _compile_aside() -> None:
    """Starts to compile the module into the cache, in a process of its own, and loads it at its end."""
    toolchain, library = _entry()

    def prepare(folder: Path) -> list[str]:
        command = compile.prepare("fast_path", toolchain, folder)
        progress.say(f"compiling faster calls in the background, once; kept in {library.parent}")
        return command

    try:
        wait = background.start(library.parent, prepare)
    except OSError as error:
        raise cache.unwritable(library.parent, error) from error

    def load() -> None:
        wait()
        _load(lambda: _loaded(compiling=False))

    threading.Thread(target=load, name="torchad_ext", daemon=True).start()


def device_number(device: str) -> int:
    """How the module calls a device; its kernels can be run from now on."""
    assert state.fast_path
    if device != "cpu":
        state.fast_path.set_run(_DEVICES[device], loader.run_kernel(device))
    return _DEVICES[device]


def take_rows() -> None:
    """Kernels of rows can be run from now on: their operator is loaded."""
    assert state.fast_path
    state.fast_path.set_run_rows(loader.run_kernel("rowwise"))


def front(parameters: Sequence[inspect.Parameter]) -> Any:
    """A front of an op with these parameters, which takes the calls that it is told of."""
    assert state.fast_path
    names = tuple("" if p.kind is p.POSITIONAL_ONLY else p.name for p in parameters)
    defaults = tuple(... if p.default is p.empty else p.default for p in parameters)
    return state.fast_path.Front(names, defaults, sum(p.kind is not p.KEYWORD_ONLY for p in parameters))
