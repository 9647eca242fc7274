"""Eager mode in C++: the module of ``csrc/fast_path``, which makes calls on plain tensors cheap, once it is there."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

from .. import _settings
from . import build

_DEVICES = {"cpu": 0, "cuda": 1}
_starting = threading.RLock()
_started = False
_module: ModuleType | None = None
_failure: build.BuildError | None = None


def _forget_the_thread() -> None:
    global _starting, _started
    _starting, _started = threading.RLock(), _module is not None


if hasattr(os, "register_at_fork"):  # a child has neither the thread that compiles nor the one that holds the lock
    os.register_at_fork(after_in_child=_forget_the_thread)


def module() -> ModuleType | None:
    """The extension module, or None while there is none.

    The first call after a kernel was loaded loads it; if it has to be compiled, a process of its own does that in the
    background. ``TORCHAD_EXT_EAGER=wait`` waits for it, ``0`` goes without.
    """
    global _started, _failure
    if _module is not None or (_started and _failure is None):
        return _module
    mode = _settings.fast_path()
    if mode == "0" or not build.is_loaded("cpu"):
        return None
    with _starting:
        if not _started:
            _started = True
            _load(lambda: build.load_fast_path(compiling=mode == "wait"))
            if _module is None and _failure is None:
                _load(_compile_aside)
        failure, _failure = _failure, None
    if failure:
        if _settings.is_strict():
            raise failure
        warnings.warn(f"{failure}. Calls go through Python, which takes some microseconds more.", stacklevel=4)
    return _module


def _compile_aside() -> None:
    wait = build.compile_fast_path_aside()

    def load() -> None:
        wait()
        _load(lambda: build.load_fast_path(compiling=False))

    threading.Thread(target=load, name="torchad_ext", daemon=True).start()


def _load(load: Callable[[], ModuleType | None]) -> None:
    global _module, _failure
    try:
        if loaded := load():
            loaded.set_run(_DEVICES["cpu"], build.run_kernel("cpu"))
            _module = loaded
    except (RuntimeError, OSError, AttributeError) as error:  # it may lack what is asked of it
        _failure = build.BuildError(f"torchad_ext has no native calls: {error}")


def device_number(device: str) -> int:
    """How the module calls a device; its kernels can be run from now on."""
    assert _module
    if device != "cpu":
        _module.set_run(_DEVICES[device], build.run_kernel(device))
    return _DEVICES[device]


def front() -> Any:
    """A front of an op, which takes the calls that it is told of."""
    assert _module
    return _module.Front()
