"""One NumPy file of CT (NAME.npy) with NAME.json beside it -> an HU volume (z, y, x), or a refusal.

The JSON says what an array cannot: `affine_ras`, 16 numbers row by row that take the index (i, j, k, 1) of the array to
RAS millimeters, and `unit`, which must be "HU".
"""

import json
import tokenize
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transforms.refusal import SeriesRefusedError, refuse_if
from transforms.text_header import MAX_HEADER_BYTES
from transforms.volume_file import FileVolume, check_affine, check_shape, check_written, volume_of

UNREADABLE = (
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    OverflowError,
    RecursionError,
    tokenize.TokenError,
)
"""What NumPy and json raise about hostile content."""


def read_numpy(path: Path) -> FileVolume:
    """Read one array and its description.

    Raises:
        SeriesRefusedError: If it is no array of numbers, not three-dimensional CT, damaged, or not described.
        OSError: If a file cannot be opened.
    """
    affine = _affine(numpy_files(path)[1])
    try:
        stored = np.lib.format.open_memmap(path, mode="r")
    except UNREADABLE:
        raise SeriesRefusedError("not a NumPy file of numbers, or one that is cut short") from None
    refuse_if(stored.dtype.kind not in "iuf", "its voxels are not single numbers")
    check_shape(stored.shape)
    refuse_if(
        path.stat().st_size != stored.offset + stored.nbytes, "its voxels are not as many as its header says"
    )
    check_written(path, stored.offset)
    return volume_of(stored.astype(stored.dtype.newbyteorder("="), copy=False), affine)


def numpy_files(path: Path) -> tuple[Path, ...]:
    """The array, and its description.

    Raises:
        SeriesRefusedError: If there is none.
    """
    description = path.with_suffix(".json")
    refuse_if(
        not description.is_file(),
        "an array without a description: NAME.json beside NAME.npy must have affine_ras (16 numbers) and unit (HU)",
    )
    return path, description


def _affine(description: Path) -> NDArray[np.float64]:
    """Index (i, j, k) -> RAS mm."""
    with description.open("rb") as file:
        content = file.read(MAX_HEADER_BYTES)
    try:
        tree: Any = json.loads(content)
        affine = np.array(tree["affine_ras"], dtype=np.float64).reshape(4, 4)
        unit = tree["unit"]
    except UNREADABLE:
        raise SeriesRefusedError(
            "its description is no JSON with affine_ras (16 numbers, from index to RAS mm) and unit"
        ) from None
    refuse_if(unit != "HU", "its unit is not HU")
    refuse_if(not np.array_equal(affine[3], [0, 0, 0, 1]), "affine_ras does not end with the row 0 0 0 1")
    check_affine(affine)
    return affine
