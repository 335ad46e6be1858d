"""Stored values -> Hounsfield units, int16, with padding set to -1024 HU and counted."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.encaps import get_frame
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID

from transforms.dicom.codestream import check_codestream
from transforms.dicom.elements import DEFLATED, dcmread, decoding, read_deflated
from transforms.dicom.header import PixelEncoding, SliceHeader, check_pixel_bytes
from transforms.plausible import PADDING_HU, PLAUSIBLE_HU, outer_fill
from transforms.refusal import refuse_if

TISSUE_ABOVE_HU = -900
"""Padding above this value, HU, cannot be distinguished from tissue."""

_FREE_FILE_BYTES = 1 << 26
"""A larger file must not have more than twice the bytes of its pixels: it is read whole where pydicom has to."""
Slice = NDArray[np.int16]
Stored = NDArray[np.int16] | NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Decoded:
    """What decoding one slice had to do: padding voxels found, HU rounded, bits masked off; and its lowest HU."""

    n_padding: int
    is_rounded: bool
    has_unused_bits: bool
    lowest_hu: float


class SliceDecoder:
    """Decodes the slices of one series; keeps a multi-frame file open while its frames follow each other."""

    def __init__(self) -> None:
        """Start with no file open."""
        self._path: Path | None = None
        self._dataset = pydicom.Dataset()

    def decode_into(self, header: SliceHeader, out: Slice) -> Decoded:
        """Decode one slice into `out`, (Y, X) int16, C order, in HU.

        Uncompressed little-endian pixels are read straight into `out` and rescaled there; all else goes through
        pydicom.

        Raises:
            SeriesRefusedError: If the pixels cannot be decoded, or their HU do not fit int16.
            OSError: If the file cannot be read.
        """
        pixels = header.pixels
        if header.pixel_offset >= 0 and pixels.bits_allocated == 16 and sys.byteorder == "little":
            with header.path.open("rb", buffering=0) as file:
                file.seek(header.pixel_offset + header.frame * out.nbytes)
                refuse_if(file.readinto(out.data.cast("B")) != out.nbytes, "pixel data are cut short")
        else:
            out.view(np.uint16)[...] = self._stored_words(header)
        return stored_to_hu(out, pixels)

    def _stored_words(self, header: SliceHeader) -> NDArray[np.uint16]:
        """Decode one frame through pydicom to 16-bit words, sign-extended where signed."""
        rows, columns = header.pixels.rows, header.pixels.columns
        with decoding("pixel data cannot be decoded: the file is damaged or its compression is not known"):
            if self._path != header.path:
                self._path, self._dataset = None, _open_pixels(header)
                self._path = header.path
            self._check_frame(header)
            decoded = pixel_array(self._dataset, index=header.frame, raw=True)
        refuse_if(
            decoded.shape != (rows, columns),
            f"pixel data decode to {decoded.shape}, the header says {rows} x {columns}",
        )
        return decoded.astype(np.int16 if decoded.dtype.kind == "i" else np.uint16).view(np.uint16)

    def _check_frame(self, header: SliceHeader) -> None:
        """Refuse a compressed frame of another size before a decoder allocates it."""
        pixels, dataset = header.pixels, self._dataset
        if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
            n_frames = int(dataset.get("NumberOfFrames") or 1)
            frame = get_frame(dataset.PixelData, header.frame, number_of_frames=n_frames)
            n_bytes = pixels.bits_allocated // 8
            check_codestream(header.transfer_syntax, frame, pixels.rows, pixels.columns, n_bytes)


def stored_to_hu(words: Slice, pixels: PixelEncoding) -> Decoded:
    """Turn stored 16-bit words into HU, in place.

    HU = stored x slope + intercept, rounded to the nearest integer. Source: PS3.3 C.11.1.1.2; padding C.7.5.1.1.2.

    Args:
        words: (Y, X) int16 holding the words as stored (signed or not by `pixels`), overwritten with HU.
        pixels: How the words are to be read.
    """
    stored = words if pixels.is_signed else words.view(np.uint16)
    is_declared, has_unused_bits = _find_declared_and_mask(stored, pixels)
    is_padding = _with_outer_fill(is_declared, stored, pixels)
    n_padding = int(np.count_nonzero(is_padding)) if is_padding is not None else 0
    slope, intercept = pixels.slope, pixels.intercept
    neutral_hu: float = PADDING_HU
    if is_padding is not None and n_padding:
        # The stored value that comes nearest to -1024 HU takes the place of padding, which must not count below.
        limits = np.iinfo(stored.dtype)
        neutral = min(max(round((PADDING_HU - intercept) / slope), int(limits.min)), int(limits.max))
        neutral_hu = neutral * slope + intercept
        np.copyto(stored, neutral, where=is_padding, casting="unsafe")

    low, high = int(stored.min()) * slope + intercept, int(stored.max()) * slope + intercept
    refuse_if(low < -32768 or high > 32767, f"HU from {low:.0f} to {high:.0f} do not fit 16 bits")
    refuse_if(
        low < PLAUSIBLE_HU[0],
        f"values down to {low:.0f} HU, which no CT has (at least {PLAUSIBLE_HU[0]} is read)",
    )
    is_rounded = not (slope == 1 and intercept.is_integer())
    if is_rounded:
        words[...] = np.rint(stored * slope + intercept)
    else:
        words.view(np.uint16)[...] += np.uint16(int(intercept) & 0xFFFF)  # modulo 2^16; the result fits
    if is_padding is not None and neutral_hu != PADDING_HU:
        np.copyto(words, PADDING_HU, where=is_padding)
    return Decoded(n_padding, is_rounded, has_unused_bits, low)


def _find_declared_and_mask(stored: Stored, pixels: PixelEncoding) -> tuple[NDArray[np.bool_] | None, bool]:
    """Where the declared padding is, and whether bits beyond BitsStored had to be masked off, which is done here.

    Padding is looked for before that, since vendors write it wider than BitsStored, and after it, since 12 bits need
    not carry their sign into the other 4.
    """
    if pixels.padding is None:
        return None, _mask_unused_bits(stored, pixels)
    low, high = pixels.padding
    is_declared = _within(stored, low, high)
    has_unused_bits = _mask_unused_bits(stored, pixels)
    if has_unused_bits:
        is_declared |= _within(stored, low, high)
    if is_declared.any():
        _check_padding(high, pixels)
    return is_declared, has_unused_bits


def _within(stored: Stored, low: int, high: int) -> NDArray[np.bool_]:
    return np.asarray(stored == low if low == high else (stored >= low) & (stored <= high))


def _with_outer_fill(
    is_declared: NDArray[np.bool_] | None, stored: Stored, pixels: PixelEncoding
) -> NDArray[np.bool_] | None:
    if is_declared is not None and is_declared[0, 0]:
        return is_declared  # the corners hold what is declared, so no other value fills them
    fill = outer_fill(stored, pixels.slope, pixels.intercept)
    if fill is None:
        return is_declared
    is_fill: NDArray[np.bool_] = stored == fill
    return is_fill if is_declared is None else is_declared | is_fill


def _check_padding(highest: int, pixels: PixelEncoding) -> None:
    """Refuse padding whose value tissue may have too; values beyond BitsStored belong to no voxel."""
    highest_hu = highest * pixels.slope + pixels.intercept
    refuse_if(
        highest < 1 << pixels.bits_stored and highest_hu > TISSUE_ABOVE_HU,
        f"PixelPaddingValue is {highest_hu:.0f} HU, a value that tissue has too, so padding cannot be separated "
        "from the patient",
    )


def _mask_unused_bits(stored: Stored, pixels: PixelEncoding) -> bool:
    """Keep the bits that are stored, with their sign; True where other bits had been set. Source: PS3.5 8.1.1."""
    if pixels.bits_stored == 16:
        return False
    before = stored.copy()
    np.left_shift(stored, 16 - pixels.bits_stored, out=stored)
    np.right_shift(stored, 16 - pixels.bits_stored, out=stored)
    return not np.array_equal(before, stored)


def _open_pixels(header: SliceHeader) -> pydicom.Dataset:
    path, is_deflated = header.path, header.transfer_syntax == DEFLATED
    n_bytes = header.pixels.rows * header.pixels.columns * header.pixels.bits_allocated // 8
    if is_deflated or path.stat().st_size > _FREE_FILE_BYTES:
        head = (
            read_deflated(path)
            if is_deflated
            else dcmread(path, stop_before_pixels=True, specific_tags=["NumberOfFrames"], force=True)
        )
        n_bytes *= int(head.get("NumberOfFrames") or 1)
        refuse_if(
            path.stat().st_size > _FREE_FILE_BYTES + 2 * n_bytes,
            f"the file has {path.stat().st_size} bytes, far more than the {n_bytes} of its pixels",
        )
    dataset = read_deflated(path, n_bytes) if is_deflated else dcmread(path, force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:  # a file without its file header
        dataset.file_meta.TransferSyntaxUID = UID(header.transfer_syntax)
    refuse_if("PixelData" not in dataset, "the file holds no pixel data")
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        _check_codestream_end(dataset)
    else:
        check_pixel_bytes(header.pixels, int(dataset.get("NumberOfFrames") or 1), len(dataset.PixelData))
    return dataset


def _check_codestream_end(dataset: pydicom.Dataset) -> None:
    """Refuse JPEG, JPEG-LS and JPEG 2000 streams without an end marker: decoders fill what is missing with zeros.

    Writers pad the last fragment by a byte or a few, so the marker is near the end, not always at it.
    """
    is_jpeg_family = dataset.file_meta.TransferSyntaxUID.startswith("1.2.840.10008.1.2.4")
    refuse_if(
        is_jpeg_family and b"\xff\xd9" not in dataset.PixelData[-16:],
        "pixel data are cut short: the compressed image has no end",
    )
