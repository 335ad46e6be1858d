"""Whether files of a cohort are still what `prepare` wrote: at no cost where nothing touched them, else by their hash.

The time of change of a volume is set to a moment made of its hash. Whatever writes to the file moves it, and then the
hash counts; where that is right (a copied cohort, one of an older version) the moment is set again.
"""

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from transforms.body_grid import GRID, body_grid
from transforms.numpy_file import UNREADABLE

_YEAR_2000_S = 946_684_800
_DAYS_30_YEARS_S = 30 * 365 * 86_400


def stamp_ns(sha256: str) -> int:
    """The time of change of a volume, in nanoseconds: a moment of 2000 to 2030, in steps of 2 s as every disk has."""
    seconds = int(sha256[:12], 16) % _DAYS_30_YEARS_S
    return (_YEAR_2000_S + seconds - seconds % 2) * 1_000_000_000


def write_stamped(file: BinaryIO, array: NDArray[Any], sha256: str) -> None:
    """Write an array in NumPy's format, and stamp the open file."""
    np.lib.format.write_array(file, array)
    file.flush()
    os.utime(file.fileno(), ns=(stamp_ns(sha256), stamp_ns(sha256)))


def voxel_sha256(volume_hu: NDArray[np.int16]) -> str:
    """Hash of the voxels as little-endian int16 in C order, slice by slice."""
    digest = hashlib.sha256()
    for slice_hu in volume_hu:
        digest.update(np.ascontiguousarray(slice_hu, dtype="<i2").data)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Hash of a file; "" where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def is_touched(path: Path, sha256: str) -> bool:
    """Whether the time of change of a volume is another than that of its hash: it may have been altered, or copied."""
    return path.stat().st_mtime_ns != stamp_ns(sha256)


def is_altered(path: Path, volume_hu: NDArray[np.int16], sha256: str) -> bool:
    """Whether a volume is no longer that of its hash; only one that was touched is hashed, and stamped if right."""
    if not is_touched(path, sha256):
        return False
    if voxel_sha256(volume_hu) != sha256:
        return True
    if os.access(
        path, os.W_OK
    ):  # a cohort that may only be read stays as it is, and is hashed by every process
        with contextlib.suppress(OSError):
            os.utime(path, ns=(path.stat().st_atime_ns, stamp_ns(sha256)))
    return False


def has_shape(mapped: NDArray[Any], folder: str, shape: tuple[int, ...]) -> bool:
    """Whether an array is the volume, or the body grid, of a volume of this shape (Z, Y, X)."""
    if folder == "body":
        return mapped.shape == (shape[0], GRID, GRID) and mapped.dtype == np.uint8
    return mapped.shape == shape and mapped.dtype == np.int16


def is_whole(root: Path, row: Mapping[Any, Any], anew: bool) -> bool:
    """Whether a volume and its body grid are those of a row of the series table.

    Args:
        root: The cohort.
        row: The row.
        anew: Hash the voxels and compute the body grid again, whatever the times say.
    """
    paths = {name: root / name / f"{row['volume_id']}.npy" for name in ("volumes", "body")}
    shape, sha256 = tuple(int(n) for n in row["shape"]), str(row["sha256"])
    try:
        volume, body = (np.load(paths[name], mmap_mode="r") for name in ("volumes", "body"))
        if not has_shape(volume, "volumes", shape) or not has_shape(body, "body", shape):
            return False
        if not anew:
            return not is_altered(paths["volumes"], volume, sha256)
        is_patch = row["kind"] == "patch"
        return voxel_sha256(volume) == sha256 and np.array_equal(body, body_grid(volume, is_patch))
    except (*UNREADABLE, OSError):
        return False
