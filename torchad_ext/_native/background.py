"""A compilation in the background, by a process of its own that takes only the time that no other process wants.

It outlives the process that starts it, so that a short script need not wait and the next one finds the library. It
holds the lock of its cache entry, which the operating system frees with its last process, and publishes the library by
a rename. A compilation that fails leaves its output in ``library.log`` and is not tried again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from .cache import UNFINISHED, is_whole, remove_unfinished

# Reads a line first: its priority is set by then. ninja ends with 1 where a command failed, not where it was stopped;
# so it does where the compiler alone was, as its driver says.
_SCRIPT = r"""
read -r _
python=$1 digest=$2
shift 2
"$@" > library.log 2>&1
case $? in
  0) "$python" -ISc "$digest" && mv -f library.so.sha256 library.so .. && rm -f ../library.log ;;
  1) grep -qE "(Terminated|Interrupt|Hangup)( signal|$)" library.log || mv -f library.log .. ;;
esac
rm -rf "$PWD"
"""
_DIGEST = """
import hashlib, pathlib
digest = hashlib.sha256(pathlib.Path("library.so").read_bytes()).hexdigest()
pathlib.Path("library.so.sha256").write_text(digest)
"""


def start(folder: Path, prepare: Callable[[Path], list[str]]) -> Callable[[], object]:
    """Starts the compilation of ``folder / "library.so"``, unless a process is at it already.

    Args:
        folder: a cache entry.
        prepare: makes an empty folder ready and gives the command that compiles ``library.so`` there.

    Returns:
        A function that waits for the end of the compilation, with or without success.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return lambda: _wait_for(lock)
    try:
        remove_unfinished(folder)
        if is_whole(folder / "library.so"):
            return lambda: None
        inside = tempfile.mkdtemp(dir=folder, prefix=UNFINISHED)
        command = ["/bin/sh", "-c", _SCRIPT, "torchad_ext", sys.executable, _DIGEST, *prepare(Path(inside))]
        quiet = subprocess.DEVNULL
        builder = subprocess.Popen(
            command,
            cwd=inside,
            stdin=subprocess.PIPE,
            stdout=quiet,
            stderr=quiet,
            start_new_session=True,
            pass_fds=[lock],  # an open file holds the lock, whichever process it is open in
        )
        _put_last(builder.pid)
    finally:
        os.close(lock)
    assert builder.stdin
    with builder.stdin as pipe:
        pipe.write(b"\n")
    return builder.wait


def _put_last(process: int) -> None:
    """Gives a process the lowest priority there is, each way as far as the system knows it."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, process, 19)
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(process, os.SCHED_IDLE, os.sched_param(0))
    # Linux may share time out among sessions first, and this is a new one.
    with contextlib.suppress(OSError):
        Path(f"/proc/{process}/autogroup").write_text("19")


def _wait_for(lock: int) -> None:
    """Waits until no process holds a lock, and closes its file."""
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
    finally:
        os.close(lock)
