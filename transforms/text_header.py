"""Reading values of text headers (MetaImage, NRRD) strictly: a value is right as a whole, or the file is refused."""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from transforms.refusal import SeriesRefusedError

MAX_HEADER_BYTES = 1 << 20
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_WHOLE = re.compile(r"[0-9]{1,9}")


def decimals(name: str, text: str, count: int) -> NDArray[np.float64]:
    """Exactly `count` finite numbers with spaces between, (count,)."""
    parts = text.split()
    if len(parts) != count or not all(map(_DECIMAL.fullmatch, parts)):
        raise SeriesRefusedError(f"{name} must be {count} number(s)")
    values = np.array([float(part) for part in parts])
    if not np.isfinite(values).all() or np.abs(values).max() > 1e7:
        raise SeriesRefusedError(f"{name} holds a number out of range")
    return values


def whole_numbers(name: str, text: str, count: int) -> tuple[int, ...]:
    """Exactly `count` whole numbers, none below zero, with spaces between."""
    parts = text.split()
    if len(parts) != count or not all(map(_WHOLE.fullmatch, parts)):
        raise SeriesRefusedError(f"{name} must be {count} whole number(s)")
    return tuple(int(part) for part in parts)


def beside(header: Path, name: str) -> Path:
    """The file that a header names for its voxels; it must lie in the same folder.

    Raises:
        SeriesRefusedError: If it does not, or is not there.
    """
    if not name or "\0" in name or Path(name).name != name or name in (".", ".."):
        raise SeriesRefusedError("its voxels must lie in one file beside the header, named without a folder")
    path = header.parent / name
    if not path.is_file():
        raise SeriesRefusedError("the file with its voxels, which the header names, is not there")
    return path
