"""Compressed bytes of a file, inflated to their checksum: image libraries often stop before they reach it."""

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from transforms.refusal import SeriesRefusedError

try:  # zlib's interface, in half of its time; not on every processor
    from isal import isal_zlib
except ImportError:
    _fastest: ModuleType = zlib
else:
    _fastest = isal_zlib

GZIP, ZLIB, RAW = 31, 15, -15
"""`wbits` of zlib: a gzip file (checked by CRC-32), a zlib stream (checked by Adler-32), one without checksum."""
FREE_BYTES = 1 << 27
MOST_GROWTH = 100
"""What has inflated to more than 128 MB, and 100 times what was read of it, is no CT: CT shrinks to a third."""
_AT_ONCE = 1 << 18


def check_growth(n_bytes: int, files: Iterable[Path]) -> None:
    """Refuse files that are too small for the voxels which they claim, before any is decoded.

    Args:
        n_bytes: Of all voxels.
        files: That hold them.

    Raises:
        SeriesRefusedError: If no CT is compressed so far, see `MOST_GROWTH`.
    """
    n_stored = sum(path.stat().st_size for path in set(files))
    if n_bytes > max(FREE_BYTES, MOST_GROWTH * n_stored):
        raise SeriesRefusedError(
            f"{n_stored} bytes are too few for {n_bytes} bytes of voxels: no CT is compressed {MOST_GROWTH} times"
        )


def inflate(file: BinaryIO, wbits: int, max_bytes: int, max_input: int = 1 << 62) -> bytes:
    """Inflate what follows in a file.

    Args:
        file: Open where the compressed bytes begin.
        wbits: `GZIP` or `ZLIB`.
        max_bytes: More than this is refused before it is held; so is what no CT inflates to, see `MOST_GROWTH`.
        max_input: Compressed bytes that belong to the stream.

    Raises:
        SeriesRefusedError: If the bytes are damaged (wrong checksum), cut short, or too many.
    """
    return b"".join(_checked(file, wbits, max_bytes, max_input))


def inflate_array(file: BinaryIO, wbits: int, max_bytes: int) -> NDArray[np.uint8]:
    """Inflate what follows in a file in a sixth less time than `inflate`: nothing is held twice.

    Raises:
        SeriesRefusedError: As `inflate`.
    """
    held = np.empty(min(max_bytes, FREE_BYTES), np.uint8)
    n_bytes = 0
    for chunk in _checked(file, wbits, max_bytes, 1 << 62):
        end = n_bytes + len(chunk)
        if end > len(held):  # not at once: the header may claim what is not there
            held.resize(min(2 * end, max_bytes), refcheck=False)
        held.data[n_bytes:end] = chunk
        n_bytes = end
    return held[:n_bytes]


def _checked(file: BinaryIO, wbits: int, max_bytes: int, max_input: int) -> Iterator[bytes]:
    n_bytes, start = 0, file.tell()
    for chunk in _inflated(file, wbits, max_input):
        n_bytes += len(chunk)
        if n_bytes > max(FREE_BYTES, MOST_GROWTH * (file.tell() - start)):
            raise SeriesRefusedError(
                f"its compressed data inflate to more than {MOST_GROWTH} times their size: no CT"
            )
        if n_bytes > max_bytes:
            raise SeriesRefusedError(
                "its compressed data are damaged: they inflate to more than its header says"
            )
        yield chunk


def first_inflated(file: BinaryIO, wbits: int, n_bytes: int) -> bytes:
    """Inflate the first bytes alone, fewer where there are no more; nothing checks them."""
    start = b""
    for chunk in _inflated(file, wbits, 1 << 62):
        start += chunk[: n_bytes - len(start)]
        if len(start) == n_bytes:
            break
    return start


def _inflated(file: BinaryIO, wbits: int, max_input: int) -> Iterator[bytes]:
    """Chunks of at most 256 kB; several gzip members may follow each other, and zeros may end them."""
    stream, waiting, has_ended = _fastest.decompressobj(wbits), b"", False
    try:
        while True:
            if not waiting:
                waiting = file.read(min(_AT_ONCE, max_input))
                max_input -= len(waiting)
                if not waiting:
                    break
            if has_ended:
                waiting = waiting.lstrip(b"\0")
                if not waiting:
                    continue
                if wbits != GZIP or not waiting.startswith(b"\x1f"):
                    raise SeriesRefusedError("its compressed data are damaged: other bytes follow them")
                stream, has_ended = _fastest.decompressobj(wbits), False
            yield stream.decompress(waiting, _AT_ONCE)
            waiting = stream.unconsumed_tail
            if stream.eof:
                waiting, has_ended = stream.unused_data, True
    except _fastest.error:
        raise SeriesRefusedError(
            "its compressed data are damaged (their checksum or their form is wrong)"
        ) from None
    if not has_ended:
        raise SeriesRefusedError("its compressed data are cut short")
