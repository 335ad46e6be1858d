"""Files that are whole or not there, and locks: a process killed at any instant leaves no half file and no held lock.

What the disk does not let us write is refused in one sentence, whoever writes.
"""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from transforms.refusal import Refusal

TEMPORARY = ".tmp"


class TargetError(Refusal):
    """A file or folder cannot be written: it is not ours to write, the disk is full, or something is in its place."""


@contextlib.contextmanager
def writing(target: Path, *also: Path) -> Iterator[None]:
    """Turn what the disk refuses at `target`, above or below it into a TargetError; so with `also`.

    Errors about other files pass through.
    """
    try:
        yield
    except OSError as error:
        named = error.filename and Path(os.fsdecode(error.filename))
        if named and named not in {target, *target.parents, *also} and target not in named.parents:
            raise
        raise TargetError(
            f"{target} cannot be written: {error.strerror or error}; make room or give the right to write there,"
            " or name another place"
        ) from error


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where they are missing.

    Raises:
        TargetError: If that cannot be.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file beside its place, force it to disk, then rename it into place.

    Args:
        path: The file to make or replace; its folder exists.
        write: Called with the open file.

    Raises:
        TargetError: If the disk does not take it; what was at `path` stays as it was.
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


def settle(temporary: Path, path: Path) -> None:
    """Force a finished file to disk, then rename it into its place, and force that to disk too."""
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
    """Hold a lock file for oneself; waits for others. The kernel lets go of it if the process is killed."""
    with writing(lock):
        file = lock.open("a")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class SharedPresence:
    """Says that this process writes into a folder, and clears what killed writers left there once nobody else does."""

    def __init__(self, lock: Path) -> None:
        """Take a share of the lock file `lock`, made when missing."""
        with writing(lock):
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
