"""The cache: a folder of entries, each made once by whichever process needs it first.

An entry is a folder named by its key. A file in it is written aside and renamed into place, under a lock that the
operating system frees with its holder.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .. import _settings
from .progress import progress
from .toolchain import BuildError

UNFINISHED = ".building-"  # how what is not finished is called
_ENTRY = re.compile(r".+-[0-9a-f]{16}")
_FILES = re.compile(r"lock|library\.(so|log)|image\.(cubin|log)|\w+\.h\.gch|" + re.escape(UNFINISHED) + ".+")


@dataclass(frozen=True)
class Entry:
    """What the cache keeps of one key.

    Attributes:
        folder: where.
        size: of its files, in bytes.
        made: when, in seconds since 1970.
        is_finished: is the library or the image there?
    """

    folder: Path
    size: int
    made: float
    is_finished: bool


def entry(key: str, file: str = "library.so") -> Path:
    """Where a file of an entry is, whether it is there or not."""
    return _settings.cache_dir() / key / file


def get_or_make(file: Path, name: str, make: Callable[[Path], None]) -> Path:
    """A file of an entry, made first if it is not there.

    Args:
        file: where it is, of ``entry``.
        name: what it is called in messages.
        make: writes it, whole or not at all.

    Raises:
        BuildError: the cache cannot be written.
    """
    if os.path.exists(file):  # False where the folder may not be read, too
        return file
    with _locked(file.parent, name):
        if not file.exists():
            remove_unfinished(file.parent)
            with progress.of(name, file.parent):
                make(file)
    return file


def remove_unfinished(folder: Path) -> None:
    """Removes what killed processes left in an entry whose lock is held."""
    for left in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def unwritable(folder: Path, error: OSError) -> BuildError:
    """The error for a cache that cannot be written."""
    return BuildError(f"{folder} cannot be written ({error}); set TORCHAD_EXT_CACHE_DIR to a folder")


@contextlib.contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    import filelock

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / "lock")
        try:
            lock.acquire(timeout=1)
        except filelock.Timeout:
            progress.say(f"waiting for another process, which is compiling {name}")
            lock.acquire()
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def entries() -> list[Entry]:
    """The entries of the cache, the newest first; other files that lie in its folder are left out.

    Raises:
        OSError: the folder cannot be read.
    """
    root = _settings.cache_dir()
    found = []
    for folder in root.iterdir() if root.is_dir() else ():
        if folder.is_symlink() or not folder.is_dir() or not _ENTRY.fullmatch(folder.name):
            continue
        names = [path.name for path in folder.iterdir()]
        if all(map(_FILES.fullmatch, names)):
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            is_finished = not {"library.so", "image.cubin"}.isdisjoint(names)
            found.append(Entry(folder, size, folder.stat().st_mtime, is_finished))
    return sorted(found, key=lambda entry: entry.made, reverse=True)


def remove(entry: Entry) -> bool:
    """Removes an entry, unless a process is making it. Processes that have loaded its library keep that.

    Returns:
        Whether it was removed.

    Raises:
        OSError: it may not be removed.
    """
    import filelock

    lock = filelock.FileLock(entry.folder / "lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return False
    try:
        shutil.rmtree(entry.folder)
    finally:
        lock.release()
    return True
