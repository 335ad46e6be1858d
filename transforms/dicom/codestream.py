"""What a compressed image says of its own size, read before any decoder is asked: decoders allocate what it says.

Sources: ISO/IEC 10918-1 B.2.2 (JPEG, SOF), 14495-1 C.2.2 (JPEG-LS), 15444-1 A.5.1 (JPEG 2000, SIZ), PS3.5 G (RLE).
"""

import struct

from transforms.refusal import SeriesRefusedError

_RLE = "1.2.840.10008.1.2.5"
_JPEG_FAMILY = "1.2.840.10008.1.2.4."
_JPEG_2000 = b"\xff\x4f\xff\x51"
_SIZES = frozenset((*range(0xC0, 0xD0), 0xF7)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_MOST_TILES = 4096
_RLE_GROWTH = 64
"""Two bytes of RLE become at most 128."""
_FREE_PIXELS = 2048 * 2048
_PIXELS_PER_BYTE = 1000


def check_codestream(transfer_syntax: str, codestream: bytes, rows: int, columns: int, n_bytes: int) -> None:
    """Refuse a compressed image whose own size is not that of the header.

    Args:
        transfer_syntax: UID of it.
        codestream: One image.
        rows: Rows of the header.
        columns: Its Columns.
        n_bytes: Bytes of a pixel.

    Raises:
        SeriesRefusedError: If it says another size or none, or is far too short for it.
    """
    if transfer_syntax == _RLE:
        if len(codestream) * _RLE_GROWTH < rows * columns * n_bytes:
            raise SeriesRefusedError("pixel data are cut short: too few bytes of RLE for the matrix")
        return
    if not transfer_syntax.startswith(_JPEG_FAMILY):
        return
    try:
        size = _size(codestream)
    except (struct.error, IndexError):
        size = None
    if size is None:
        raise SeriesRefusedError("the compressed image does not say its size: it is damaged")
    if size != (rows, columns, 1):
        raise SeriesRefusedError(
            f"the compressed image is {size[0]} x {size[1]} with {size[2]} sample(s) per pixel, the header says "
            f"{rows} x {columns} with 1"
        )
    if rows * columns > max(_FREE_PIXELS, _PIXELS_PER_BYTE * len(codestream)):
        raise SeriesRefusedError(
            f"{len(codestream)} bytes are too few for an image of {rows} x {columns} pixels"
        )


def _size(codestream: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and samples per pixel; None where it does not say them."""
    start = codestream.find(_JPEG_2000, 0, 1024)  # behind the boxes of a JP2 file, which DICOM does not have
    if start >= 0:
        x1, y1, x0, y0, tile_x, tile_y = struct.unpack_from(">6L", codestream, start + 8)
        (samples,) = struct.unpack_from(">H", codestream, start + 40)
        rows, columns = y1 - y0, x1 - x0
        if not tile_x or not tile_y or -(-rows // tile_y) * -(-columns // tile_x) > _MOST_TILES:
            raise SeriesRefusedError(f"the compressed image has more than {_MOST_TILES} tiles")
        return rows, columns, samples
    if codestream[:2] != b"\xff\xd8":
        return None
    at, found = 2, None
    while True:
        while codestream[at] == 0xFF and codestream[at + 1] == 0xFF:  # fill bytes
            at += 1
        marker, length = codestream[at + 1], struct.unpack_from(">H", codestream, at + 2)[0]
        if codestream[at] != 0xFF or marker == _END_OF_IMAGE:
            return None
        if marker == _START_OF_SCAN:
            return found
        if marker in _SIZES:
            if found is not None:
                return None
            rows, columns, samples = struct.unpack_from(">HHB", codestream, at + 5)
            found = rows, columns, samples
        at += 2 + length
