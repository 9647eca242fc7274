"""Progress of compilations on stderr: one line that a terminal overwrites, else one at the first and one at exit."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Progress:
    """The compilations of this process, running and done."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forgets what was compiled, and by whom: a thread that compiles does not live on in a fork."""
        self._changing = threading.RLock()
        self._under_way: list[str] = []
        self._line: Any = None  # of a terminal
        self._compiled, self._seconds = 0, 0.0
        self._owner = os.getpid()
        self._announced = False

    def say(self, text: str) -> None:
        if _is_open(sys.stderr):
            print(f"torchad_ext: {text}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def of(self, name: str, folder: Path) -> Iterator[None]:
        """Shows the compilation of ``name`` while the block runs.

        Args:
            name: names it on the line.
            folder: its cache entry; the cache is named once.
        """
        self._begin(name, folder)
        start = time.perf_counter()
        try:
            yield
            self._compiled += 1
        finally:
            self._seconds += time.perf_counter() - start
            self._end(name)

    def _begin(self, name: str, folder: Path) -> None:
        with self._changing:
            self._under_way.append(name)
            if _is_open(sys.stderr) and sys.stderr.isatty():
                if self._line is None:
                    from rich.console import Console

                    self._line = Console(stderr=True).status("")
                    self._line.start()
                self._line.update(f"torchad_ext: compiling {name}")
            elif not self._announced:
                self.say(f"compiling kernels on their first use, once; kept in {folder.parent}")
                self._announced = True

    def _end(self, name: str) -> None:
        with self._changing:
            self._under_way.remove(name)
            if self._line and not self._under_way:
                self._line.stop()
                self._line = None

    def finish(self) -> None:
        """Says what was compiled, in the process that compiled it."""
        if self._compiled and os.getpid() == self._owner:
            libraries = "library" if self._compiled == 1 else "libraries"
            self.say(f"compiled {self._compiled} {libraries} in {self._seconds:.1f} s")
            self._compiled = 0


def _is_open(stream: Any) -> bool:
    """Can it be written to? A process without a console, as a daemon or under pythonw, has None or a closed stream."""
    return stream is not None and not stream.closed


progress = Progress()
atexit.register(progress.finish)
