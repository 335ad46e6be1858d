"""Files that are whole or not there: a reader, or a process killed at any instant, never meets half of one."""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".tmp"


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file beside its place, force it to disk, then rename it into place.

    Args:
        path: The file to make or replace; its folder exists.
        write: Called with the open file.
    """
    temporary = path.with_name(f".{path.name[:120]}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def exclusively(lock: Path) -> Iterator[None]:
    """Hold a lock file for oneself; waits for others. The kernel lets go of it if the process is killed."""
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class SharedPresence:
    """Says that this process writes into a folder, and clears what killed writers left there once nobody else does."""

    def __init__(self, lock: Path) -> None:
        """Take a share of the lock file `lock`, made when missing."""
        self._file = lock.open("a")
        fcntl.flock(self._file, fcntl.LOCK_SH)

    def clear_abandoned(self, *folders: Path) -> None:
        """Remove temporary files from `folders`, unless another process may still be writing one of them."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(self._file, fcntl.LOCK_SH)  # a failed change may have let go of our share
            return
        for folder in folders:
            for left in folder.glob(f".*{TEMPORARY}"):
                left.unlink(missing_ok=True)
        fcntl.flock(self._file, fcntl.LOCK_SH)

    def close(self) -> None:
        """Let go of the share."""
        self._file.close()
