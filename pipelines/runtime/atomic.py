"""Atomic file writes, and locks: a process killed at any instant leaves no partial file and no held lock.

Every error of the disk while writing becomes one sentence (`TargetError`).
"""

import contextlib
import ctypes
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from transforms.refusal import Refusal

TEMPORARY = ".tmp"
_HERE, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux."""


class TargetError(Refusal):
    """A file or folder cannot be written: no permission, disk full, or the path is taken by something else."""


@contextlib.contextmanager
def writing(target: Path, *also: Path) -> Iterator[None]:
    """Turn an OSError about `target`, its parents, files below it or `also` into a TargetError.

    Errors about other files pass through.
    """
    try:
        yield
    except OSError as error:
        named = error.filename and Path(os.fsdecode(error.filename))
        if named and named not in {target, *target.parents, *also} and target not in named.parents:
            raise
        raise TargetError(
            f"{target} cannot be written: {error.strerror or error}; free disk space or give write permission,"
            " or choose another path"
        ) from error


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents.

    Raises:
        TargetError: If it cannot be made.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a temporary file in the same folder, force it to disk, then rename it to `path`.

    Args:
        path: The file to make or replace; its folder exists.
        write: Called with the open file.

    Raises:
        TargetError: If it cannot be written; an older file at `path` stays unchanged.
    """
    temporary = path.with_name(f".{path.name[:120]}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}")
    with writing(path, temporary):
        try:
            with temporary.open("xb") as file:
                write(file)
            settle(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str, mode: int | None = None) -> None:
    """Write a text atomically, in UTF-8; `mode` are its permissions, such as 0o600, from its first byte on.

    Raises:
        TargetError: As `write_atomically`.
    """

    def write(file: BinaryIO) -> None:
        if mode is not None:
            os.fchmod(file.fileno(), mode)
        file.write(text.encode())

    write_atomically(path, write)


@contextlib.contextmanager
def whole_folder(target: Path, own: Collection[str]) -> Iterator[Path]:
    """Yield a new folder that takes the place of `target` when the block has ended, and not if it fails or is killed.

    Args:
        target: The folder to make or replace; its parent is made when missing.
        own: Names in it that are written anew; everything else that is there stays.

    Raises:
        TargetError: If it cannot be written; an older folder stays as it is.
    """
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    made, before = (target.with_name(f".{target.name}.{end}{TEMPORARY}") for end in ("new", "old"))
    with exclusively(target.with_name(f".{target.name}.lock")), writing(target, made, before):
        if (
            before.exists() and not target.exists()
        ):  # Killed between two names, where a disk cannot exchange them.
            before.rename(target)
        for left in (made, before):
            shutil.rmtree(left, ignore_errors=True)
        made.mkdir()
        try:
            yield made
            for kept in target.iterdir() if target.is_dir() else ():
                if kept.name not in own:
                    (shutil.copytree if kept.is_dir() else shutil.copy2)(kept, made / kept.name)
            for path in (*made.rglob("*"), made):
                _sync(path)
            _exchange(made, target, before)
        finally:
            for left in (made, before):
                shutil.rmtree(left, ignore_errors=True)


def _exchange(made: Path, target: Path, before: Path) -> None:
    """Give a folder the name of another, which gets its name, at one instant where the system can."""
    if target.exists():
        exchange = getattr(ctypes.CDLL(None), "renameat2", None)
        if exchange and not exchange(_HERE, bytes(made), _HERE, bytes(target), _EXCHANGE):
            _sync(target.parent)
            return
        target.rename(before)
    made.rename(target)
    _sync(target.parent)


def settle(temporary: Path, path: Path) -> None:
    """Force a finished file to disk, then rename it to `path`, and force the folder to disk too."""
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def exclusively(lock: Path) -> Iterator[None]:
    """Hold a lock file exclusively; waits for other processes. The kernel releases it if the process is killed."""
    with writing(lock):
        file = lock.open("a")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def waited_for(lock: Path) -> None:
    """Wait until no other process holds a lock file exclusively, where one can be seen; nothing is written."""
    with contextlib.suppress(OSError), lock.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)


class SharedPresence:
    """Shared lock of all processes that write into a folder; the only one left may remove files of killed writers."""

    def __init__(self, lock: Path) -> None:
        """Hold the lock file `lock` in shared mode; it is made when missing."""
        with writing(lock):
            self._file = lock.open("a")
        fcntl.flock(self._file, fcntl.LOCK_SH)

    def clear_abandoned(self, *folders: Path) -> None:
        """Remove temporary files from `folders`, unless another process may still be writing one of them."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(self._file, fcntl.LOCK_SH)  # a failed upgrade may have released the shared lock
            return
        for folder in folders:
            for left in folder.glob(f".*{TEMPORARY}"):
                left.unlink(missing_ok=True)
        fcntl.flock(self._file, fcntl.LOCK_SH)

    def close(self) -> None:
        """Release the lock."""
        self._file.close()
