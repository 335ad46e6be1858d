"""CT slices as 16-bit PNG: stored value = HU + 32768, slope 1. Anything else is refused."""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from transforms.inflate import check_growth
from transforms.plausible import PLAUSIBLE_HU
from transforms.refusal import NO_AIR_ABOVE_HU, SeriesRefusedError, refuse_if

OFFSET = 32768
_LEVEL = 2
"""Seven times as fast as zlib's default of 6 on CT, for 6 % more bytes."""
ENCODING = "uint16 = HU + 32768"


def encode_png(slice_hu: NDArray[np.int16]) -> bytes:
    """One slice, (Y, X) int16 HU, as the bytes of a PNG."""
    stored = slice_hu.view(np.uint16) ^ np.uint16(OFFSET)  # adds 32768 modulo 2^16
    buffer = io.BytesIO()
    Image.fromarray(stored).save(buffer, format="PNG", compress_level=_LEVEL)
    return buffer.getvalue()


def holds_slice(path: Path, slice_hu: NDArray[np.int16]) -> bool:
    """Whether a file is there and holds these voxels, (Y, X) int16 HU."""
    try:
        return np.array_equal(_stored(path) ^ np.uint16(OFFSET), slice_hu.view(np.uint16))
    except SeriesRefusedError:
        return False


def read_png_slices(files: Sequence[Path]) -> NDArray[np.int16]:
    """Slices of one series, in the order given, as (Z, Y, X) int16 HU.

    Raises:
        SeriesRefusedError: If a file is no 16-bit gray PNG, sizes differ, or the values are not HU + 32768.
    """
    with _opened(files[0]) as image:
        check_growth(2 * image.width * image.height * len(files), files)
    first = _stored(files[0])
    volume = np.empty((len(files), *first.shape), dtype=np.uint16)
    volume[0] = first
    for path, out in zip(files[1:], volume[1:], strict=True):
        stored = _stored(path)
        refuse_if(
            stored.shape != first.shape,
            f"the matrix changes within the series: {first.shape}, then {stored.shape}",
        )
        out[...] = stored
    volume ^= np.uint16(OFFSET)
    volume_hu = volume.view(np.int16)
    low, high = int(volume_hu.min()), int(volume_hu.max())
    refuse_if(
        low < PLAUSIBLE_HU[0] or high > PLAUSIBLE_HU[1] or low >= NO_AIR_ABOVE_HU,
        f"read as value - {OFFSET} the voxels run from {low} to {high} HU, which no chest CT does: "
        "the PNGs were written with another convention",
    )
    return volume_hu


def _stored(path: Path) -> NDArray[np.uint16]:
    with _opened(path) as image:
        mode, stored = image.mode, np.asarray(image)
    refuse_if(mode != "I;16", f"not a 16-bit gray PNG (Pillow calls it mode {mode})")
    return stored.astype(np.uint16, copy=False)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A PNG whose pixels are decoded when they are asked for; what Pillow raises on a damaged one is a refusal."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG"]) as image:
                yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise SeriesRefusedError("not a PNG, or one that is missing, cut short or damaged") from None
