"""The state of this process: what it compiled, loaded, or could not; one object, which a fork starts with new locks."""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path
from types import ModuleType

from .progress import progress
from .toolchain import BuildError


class State:
    """The native code of a process.

    Attributes:
        libraries: the operators that are loaded, ``"cpu"``, ``"quadratic_form"``, ``"rowwise"`` and ``"cuda"``, and
            their files.
        failures: what was tried: None where it succeeded.
        kernels: the libraries of compiled kernels by key. They stay as long as the process.
        fast_path: the extension module of ``csrc/fast_path``, once it is there.
        fast_path_failure: why it is not, until somebody was told.
        fast_path_started: was it looked for?
        loading: held while operators are loaded.
        starting: held while the fast path is looked for.
        lack_was_told: did a warning say that kernels which did not come with the package run as definitions?
    """

    def __init__(self) -> None:
        self.libraries: dict[str, Path] = {}
        self.failures: dict[str, BuildError | None] = {}
        self.kernels: dict[str, ctypes.CDLL] = {}
        self.fast_path: ModuleType | None = None
        self.fast_path_failure: BuildError | None = None
        self.fast_path_started = False
        self.lack_was_told = False
        self._renew_locks()

    def _renew_locks(self) -> None:
        self.loading, self.starting = threading.RLock(), threading.RLock()

    def after_fork(self) -> None:
        """Gives up what the threads of the parent hold and do: they do not live on in a child."""
        self._renew_locks()
        self.fast_path_started = self.fast_path is not None
        progress.restart()


state = State()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=state.after_fork)
