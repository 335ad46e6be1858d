"""Reading text headers (MetaImage, NRRD) and their voxels strictly: right as a whole, or the file is refused."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transforms.inflate import inflate_array
from transforms.refusal import refuse_if
from transforms.volume_file import check_written

MAX_HEADER_BYTES = 1 << 20
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_WHOLE = re.compile(r"[0-9]{1,9}")


def decimals(name: str, text: str, count: int) -> NDArray[np.float64]:
    """Exactly `count` finite numbers with spaces between, (count,)."""
    parts = text.split()
    refuse_if(
        len(parts) != count or not all(map(_DECIMAL.fullmatch, parts)), f"{name} must be {count} number(s)"
    )
    values = np.array([float(part) for part in parts])
    refuse_if(
        not np.isfinite(values).all() or np.abs(values).max() > 1e7, f"{name} holds a number out of range"
    )
    return values


def whole_numbers(name: str, text: str, count: int) -> tuple[int, ...]:
    """Exactly `count` whole numbers, none below zero, with spaces between."""
    parts = text.split()
    refuse_if(
        len(parts) != count or not all(map(_WHOLE.fullmatch, parts)),
        f"{name} must be {count} whole number(s)",
    )
    return tuple(int(part) for part in parts)


def beside(header: Path, name: str) -> Path:
    """The file that a header names for its voxels; it must lie in the same folder.

    Raises:
        SeriesRefusedError: If it does not, or is not there.
    """
    refuse_if(
        not name or len(name) > 255 or "\0" in name or Path(name).name != name or name in (".", ".."),
        "its voxels must lie in one file beside the header, named without a folder",
    )
    path = header.parent / name
    refuse_if(not path.is_file(), "the file with its voxels, which the header names, is not there")
    return path


def read_voxels(
    path: Path, start: int, shape: tuple[int, ...], dtype: np.dtype[Any], wbits: int | None, fields: str
) -> NDArray[np.generic]:
    """Stored voxels, axes in the order of the file, the first of which varies fastest; mapped where not compressed.

    Args:
        path: The file that holds them.
        start: Where they begin.
        shape: Of the voxels.
        dtype: As stored.
        wbits: `GZIP` or `ZLIB` of `transforms.inflate`; None where they are not compressed.
        fields: The fields of the header that say how many bytes they are, for the refusal.

    Raises:
        SeriesRefusedError: If there are fewer or more, they are damaged, or were never written.
    """
    n_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    n_there = path.stat().st_size - max(start, 0)
    check_written(path, max(start, 0))
    content = np.empty(0, np.uint8)
    if wbits:
        with path.open("rb") as file:
            file.seek(start)
            content = inflate_array(file, wbits, n_bytes)
    refuse_if(
        (len(content) if wbits else n_there) != n_bytes,
        f"its voxels are {'not' if wbits else f'{max(n_there, 0)} bytes and not'} the {n_bytes} bytes that {fields} "
        "need: cut short, or too long",
    )
    if not wbits:
        return np.memmap(path, dtype, mode="r", offset=start, shape=shape, order="F")
    return content.view(dtype).reshape(shape, order="F")
