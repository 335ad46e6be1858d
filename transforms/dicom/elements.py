"""The header of a DICOM file as raw element values: tag -> (VR, bytes).

Values stay bytes until `dicom_header` reads them strictly: a header is not trusted, and most of its elements are
neither needed nor to be kept. Little-endian files without sequences of undefined length are walked here, in one short
read; all others go through pydicom. Both give the same elements.
"""

import contextlib
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader, BytesIO, FileIO
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset, read_file_meta_info
from pydicom.tag import BaseTag
from pydicom.uid import UID

from transforms.inflate import RAW, first_inflated, inflate
from transforms.refusal import NoImageError, SeriesRefusedError

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"

TAGS = {
    "SOPClassUID": 0x00080016,
    "SOPInstanceUID": 0x00080018,
    "ImageType": 0x00080008,
    "FrameType": 0x00089007,
    "VolumetricProperties": 0x00089206,
    "VolumeBasedCalculationTechnique": 0x00089207,
    "AcquisitionTime": 0x00080032,
    "AcquisitionDateTime": 0x0008002A,
    "Modality": 0x00080060,
    "Manufacturer": 0x00080070,
    "PatientID": 0x00100020,
    "ContrastBolusAgent": 0x00180010,
    "SliceThickness": 0x00180050,
    "KVP": 0x00180060,
    "ConvolutionKernel": 0x00181210,
    "StudyInstanceUID": 0x0020000D,
    "SeriesInstanceUID": 0x0020000E,
    "AcquisitionNumber": 0x00200012,
    "InstanceNumber": 0x00200013,
    "ImagePositionPatient": 0x00200032,
    "ImageOrientationPatient": 0x00200037,
    "FrameOfReferenceUID": 0x00200052,
    "TemporalPositionIdentifier": 0x00200100,
    "NominalPercentageOfCardiacPhase": 0x00209241,
    "SamplesPerPixel": 0x00280002,
    "PhotometricInterpretation": 0x00280004,
    "NumberOfFrames": 0x00280008,
    "Rows": 0x00280010,
    "Columns": 0x00280011,
    "PixelSpacing": 0x00280030,
    "BitsAllocated": 0x00280100,
    "BitsStored": 0x00280101,
    "HighBit": 0x00280102,
    "PixelRepresentation": 0x00280103,
    "PixelPaddingValue": 0x00280120,
    "PixelPaddingRangeLimit": 0x00280121,
    "RescaleIntercept": 0x00281052,
    "RescaleSlope": 0x00281053,
    "RescaleType": 0x00281054,
    "LossyImageCompression": 0x00282110,
}
"""Every element that is ever read from a header, by its DICOM keyword."""

_NAMES = {tag: name for name, tag in TAGS.items()}
_TRANSFER_SYNTAX = 0x00020010
_PIXEL_DATA = 0x7FE00010
_LONG_VRS = frozenset(
    (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
)
_UNDEFINED = 0xFFFFFFFF
_FIRST_READ = 16 * 1024
_MAX_HEADER_BYTES = 1 << 24
_ARCHIVES = (b"PK\x03\x04", b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!")

DECODING_ERRORS = (
    InvalidDicomError,
    BytesLengthException,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""Exceptions that pydicom and its decoders raise on damaged files; each becomes a refusal."""


@contextlib.contextmanager
def decoding(reason: str) -> Iterator[None]:
    """Silence pydicom and its decoders, and turn what they raise on a damaged file into a refusal.

    Their warnings and logs may quote header text, such as a patient's name.
    """
    loggers = [logging.getLogger(name) for name in ("pydicom", "openjpeg", "libjpeg")]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.CRITICAL + 1)
            yield
    except SeriesRefusedError:
        raise
    except DECODING_ERRORS:
        raise SeriesRefusedError(reason) from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise SeriesRefusedError(reason) from None  # what pydicom raises where a file ends too early
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":
            raise
        raise SeriesRefusedError(reason) from None  # a panic in a Rust decoder is no Exception
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@dataclass(frozen=True, slots=True)
class Elements:
    """Raw elements of one file.

    `values` maps a DICOM keyword to (VR, or "" where the file states none; bytes). `pixel_offset` is where uncompressed
    little-endian pixel data begin in the file and `pixel_bytes` how many of them it holds; the offset is -1 where only
    pydicom can reach them.
    """

    transfer_syntax: str
    is_little_endian: bool
    values: dict[str, tuple[str, bytes]]
    pixel_offset: int = -1
    pixel_bytes: int = -1


def read_elements(path: Path) -> Elements:
    """Read the header of one file.

    Raises:
        SeriesRefusedError: If the file is empty, is not DICOM, or ends within its header.
        OSError: If it cannot be opened.
    """
    with path.open("rb") as file:
        start = file.read(_FIRST_READ)
        if not start:
            raise SeriesRefusedError("the file is empty")
        bare_syntax = "" if start[128:132] == b"DICM" else _bare_start(start)
        if start[128:132] != b"DICM" and not bare_syntax:
            is_nifti = path.name.endswith((".nii", ".nii.gz"))
            if is_nifti:
                raise SeriesRefusedError("a NIfTI file; read it with from=nifti")
            if start.startswith(_ARCHIVES):
                raise NoImageError(
                    "an archive (zip, gz, 7z, rar), which is not opened: unpack it if it holds CT"
                )
            raise NoImageError("not a DICOM file (no DICM mark after the preamble)")
        return _walk(file, start, bare_syntax) or _read_by_pydicom(path, bare_syntax)


def _bare_start(start: bytes) -> str:
    """Transfer syntax of a data set without preamble and file meta group, by its first element; "" if it is none.

    Only the two uncompressed little-endian syntaxes can be recognized. Many old archives and toolkits write such files.
    """
    if len(start) < 12 or start[:2] != b"\x08\x00" or start[3] != 0:
        return ""
    _, _, length = struct.unpack_from("<HHL", start)
    if start[4:6] in (b"UL", b"CS", b"UI", b"LO", b"SH", b"DA"):  # what group 0008 can begin with
        return EXPLICIT_LITTLE
    return IMPLICIT_LITTLE if length <= 256 and length % 2 == 0 else ""


def _walk(file: BinaryIO, start: bytes, bare_syntax: str) -> Elements | None:
    """Walk the elements of an uncompressed little-endian file; None where pydicom has to."""
    try:
        meta, at = (bare_syntax, 0) if bare_syntax else _walk_meta(start)
        if meta not in (IMPLICIT_LITTLE, EXPLICIT_LITTLE):
            return None
        size, data = file.seek(0, 2), start
        while True:
            found = _walk_dataset(data, at, meta == EXPLICIT_LITTLE)
            if found is None:
                return None
            values, offset, length = found
            if offset >= 0:
                return Elements(meta, True, values, offset, min(length, size - offset))
            if len(data) >= size:
                return None
            if len(data) >= _MAX_HEADER_BYTES:
                raise SeriesRefusedError(
                    "its header has no end within 16 MB, so it is damaged or no CT slice"
                )
            file.seek(0)
            data = file.read(len(data) * 8)
    except struct.error:
        return None


def _walk_meta(data: bytes) -> tuple[str, int]:
    """Transfer syntax, and where the data set begins. Source: PS3.10 7.1."""
    at, syntax = 132, ""
    while data[at : at + 2] == b"\x02\x00":
        tag, length, value_at = _explicit_element(data, at)
        if length == _UNDEFINED:
            return "", at
        if tag == _TRANSFER_SYNTAX:
            syntax = data[value_at : value_at + length].decode("ascii", "replace").rstrip("\0 ")
        at = value_at + length
    return syntax, at


def _explicit_element(data: bytes, at: int) -> tuple[int, int, int]:
    """Tag, length and place of the value of the explicit element at `at`. Source: PS3.5 7.1.2."""
    group, element, vr, length = struct.unpack_from("<HH2sH", data, at)
    if vr in _LONG_VRS:
        return group << 16 | element, struct.unpack_from("<L", data, at + 8)[0], at + 12
    if not (vr.isalpha() and vr.isupper()):
        raise struct.error("no VR where one is required")
    return group << 16 | element, length, at + 8


def _walk_dataset(
    data: bytes, at: int, is_explicit: bool
) -> tuple[dict[str, tuple[str, bytes]], int, int] | None:
    """Elements up to the pixel data, its offset (-1: `data` ends before it) and length; None: too unusual."""
    values: dict[str, tuple[str, bytes]] = {}
    previous = 0
    while at + 12 <= len(data):
        if is_explicit:
            tag, length, value_at = _explicit_element(data, at)
        else:
            group, element, length = struct.unpack_from("<HHL", data, at)
            tag, value_at = group << 16 | element, at + 8
        if tag == _PIXEL_DATA:
            return (values, value_at, length) if length != _UNDEFINED else None
        if length == _UNDEFINED or not previous < tag < _PIXEL_DATA:
            return None
        if tag in _NAMES:
            if value_at + length > len(data):
                break
            vr = data[at + 4 : at + 6].decode("ascii") if is_explicit else ""
            values[_NAMES[tag]] = (vr, data[value_at : value_at + length])
        previous, at = tag, value_at + length
    return values, -1, -1


def _read_by_pydicom(path: Path, bare_syntax: str = "") -> Elements:
    with decoding("the file is damaged: its header cannot be read to the end"):
        tags = [*TAGS.values()]
        with path.open("rb") as file:
            start = file.read(_FIRST_READ)
            is_deflated = start[128:132] == b"DICM" and _walk_meta(start)[0] == DEFLATED
        if is_deflated:
            dataset = read_deflated(path)
        else:
            dataset = dcmread(path, stop_before_pixels=True, specific_tags=tags, force=bool(bare_syntax))
        values = raw_values(dataset)
        syntax = bare_syntax or str(dataset.file_meta.get("TransferSyntaxUID", ""))
        syntax = DEFLATED if is_deflated else syntax
        return Elements(syntax, bool(dataset.original_encoding[1]), values)


class _Within(BufferedReader):
    """A file that is never asked for more than it has: memory is taken for what is asked."""

    def __init__(self, path: Path) -> None:
        super().__init__(FileIO(path))
        self._size = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(self._size - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


def dcmread(path: Path, **options: Any) -> pydicom.FileDataset:
    """`pydicom.dcmread`, which takes 4 GB of memory for an element that claims to be so long in a file of 2 KB."""
    with _Within(path) as file:
        return pydicom.dcmread(file, **options)


def read_deflated(path: Path, pixel_bytes: int = 0) -> pydicom.FileDataset:
    """Read a file of the deflated transfer syntax: its header, and so many bytes of pixels as its header says.

    Raises:
        SeriesRefusedError: If it is cut short, damaged, or inflates to more; see `transforms.inflate`.
    """
    with path.open("rb") as file:
        start = file.read(_FIRST_READ)
        file.seek(_walk_meta(start)[1])
        if pixel_bytes:
            inflated = inflate(file, RAW, _MAX_HEADER_BYTES + pixel_bytes)
        else:
            inflated = first_inflated(file, RAW, _MAX_HEADER_BYTES)
    content = BytesIO(inflated)
    dataset = read_dataset(content, False, True, stop_when=None if pixel_bytes else _is_pixel_data)
    # As if the file had been written without deflation: that syntax has the same elements.
    meta = read_file_meta_info(path)
    meta.TransferSyntaxUID = UID(EXPLICIT_LITTLE)
    return pydicom.FileDataset(content, dataset, file_meta=meta, is_implicit_VR=False, is_little_endian=True)


def _is_pixel_data(tag: BaseTag, vr: str | None, length: int) -> bool:
    return int(tag) == _PIXEL_DATA


def raw_values(dataset: pydicom.Dataset) -> dict[str, tuple[str, bytes]]:
    """What pydicom read of `TAGS`, before it makes values of the bytes."""
    values: dict[str, tuple[str, bytes]] = {}
    for name, tag in TAGS.items():
        element = dataset.get_item(tag) if tag in dataset else None
        if isinstance(element, RawDataElement) and isinstance(element.value, bytes):
            values[name] = (element.VR or "", element.value)
    return values
