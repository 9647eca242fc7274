"""The cache: a folder of entries, each made once by whichever process needs it first.

An entry is a folder named by its key. A file in it is written aside and renamed into place, under a lock that the
operating system frees with its holder. Its digest lies beside it: a file that was cut short or damaged is made again,
never loaded. Code is run from these folders, so folders that somebody else may write are refused.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .. import _settings
from .progress import progress
from .toolchain import BuildError

UNFINISHED = ".building-"  # prefix of what is not finished
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}  # of a file system that has none
_ENTRY = re.compile(r".+-[0-9a-f]{16}")
_FILES = re.compile(
    r"lock|holder|((library\.so|image\.cubin|\w+\.h\.gch)(\.sha256)?)|(library|image)\.log|"
    + re.escape(UNFINISHED)
    + ".+"
)


@dataclass(frozen=True)
class Entry:
    """An entry of the cache.

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
    """Where a file of an entry is, whether it is there or not.

    Raises:
        BuildError: somebody else may write there.
    """
    root = _settings.cache_dir()
    for folder in (root, root / key):
        _check_owner(folder)
    return root / key / file


def _check_owner(folder: Path) -> None:
    if not hasattr(os, "getuid"):
        return
    try:
        status = folder.stat()
    except OSError:  # it is made later, by this user
        return
    user = os.getuid()
    # A group of the user's own, by custom, has the number of the user.
    others = stat.S_IWOTH | (stat.S_IWGRP if status.st_gid not in (0, status.st_uid) else 0)
    if status.st_uid not in (0, user):
        reason = f"belongs to user {status.st_uid}, not to you (user {user})"
    elif status.st_mode & others:
        reason = f"may be written by others (mode {stat.S_IMODE(status.st_mode):o})"
    else:
        return
    raise BuildError(
        f"{folder} {reason}, who could put code there that you would run; chmod go-w it, or set TORCHAD_EXT_CACHE_DIR "
        "to a folder of your own"
    )


def get_or_make(file: Path, name: str, make: Callable[[Path], None]) -> Path:
    """A file of an entry, made first if it is not there or damaged.

    Args:
        file: where it is, of ``entry``.
        name: what it is called in messages.
        make: writes it, whole or not at all.

    Raises:
        BuildError: the cache cannot be written, or another process holds its lock for too long.
    """
    if is_whole(file):
        return file
    with _locked(file.parent, name) as alone:
        if not is_whole(file):
            if alone:
                remove_unfinished(file.parent)
            with progress.of(name, file.parent):
                make(file)
                seal(file)
    return file


def put(file: Path, made: Path) -> None:
    """Copies what was made elsewhere into an entry, unless it is there.

    Raises:
        BuildError: the cache cannot be written, or another process holds its lock for too long.
    """
    with _locked(file.parent, file.parent.name):
        if not is_whole(file):
            aside = file.with_name(f"{UNFINISHED}{os.getpid()}")
            shutil.copyfile(made, aside)
            os.replace(aside, file)
            seal(file)


def seal(file: Path) -> None:
    """Writes the digest of a finished file beside it."""
    _digest_of(file).write_text(_sha256(file), encoding="ascii")


def is_whole(file: Path) -> bool:
    """Is a file of an entry there, as it was sealed?"""
    try:
        return _digest_of(file).read_text(encoding="ascii") == _sha256(file)
    except (OSError, UnicodeDecodeError):  # it is not there, or may not be read
        return False


def _digest_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def remove_unfinished(folder: Path) -> None:
    """Removes what killed processes left in an entry whose lock is held."""
    for left in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def unwritable(folder: Path, error: OSError) -> BuildError:
    """The error for a cache that cannot be written."""
    return BuildError(f"{folder} cannot be written ({error}); set TORCHAD_EXT_CACHE_DIR to a folder")


@contextlib.contextmanager
def _locked(folder: Path, name: str) -> Iterator[bool]:
    """Holds the lock of an entry; gives False on a file system without locks, where two processes may make the same."""
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        release = _acquired(folder, name)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise unwritable(folder, error) from error
        release = None
    try:
        yield release is not None
    finally:
        if release:
            release()


def _acquired(folder: Path, name: str) -> Callable[[], None]:
    """Acquires the lock of an entry, says for whom it waits, and gives the function that releases it."""
    import filelock

    lock, holder = filelock.FileLock(folder / "lock"), folder / "holder"
    try:
        lock.acquire(timeout=1)
    except filelock.Timeout:
        progress.say(f"waiting for {_named(holder)}, which is compiling {name}")
        limit = _settings.build_timeout()
        try:
            lock.acquire(timeout=limit)
        except filelock.Timeout:
            raise BuildError(
                f"{_named(holder)} has held {folder / 'lock'} for more than {limit:g} s; end it, wait longer with "
                "TORCHAD_EXT_BUILD_TIMEOUT, or set TORCHAD_EXT_CACHE_DIR to another folder"
            ) from None
    with contextlib.suppress(OSError):
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")

    def release() -> None:
        holder.unlink(missing_ok=True)
        lock.release()

    return release


def _named(holder: Path) -> str:
    """The process that holds a lock, as far as it said."""
    with contextlib.suppress(OSError):
        return holder.read_text(encoding="utf-8") or "another process"
    return "another process"


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
