"""One slice of CT as its header states it, every value checked before it is used."""

import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from transforms.dicom.elements import Elements, read_elements
from transforms.dicom.frames import frame_elements
from transforms.dicom.kinds import check_is_attenuation
from transforms.plausible import PIXEL_SPACING_MM
from transforms.refusal import SeriesRefusedError, refuse_if

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = frozenset(("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"))
LOSSY_SYNTAXES = frozenset(
    (
        "1.2.840.10008.1.2.4.50",
        "1.2.840.10008.1.2.4.51",
        "1.2.840.10008.1.2.4.81",
        "1.2.840.10008.1.2.4.91",
        "1.2.840.10008.1.2.4.93",
        "1.2.840.10008.1.2.4.203",
    )
)
"""JPEG baseline and extended, JPEG-LS near-lossless, JPEG 2000 and its part 2, HTJ2K: PS3.5 10."""

MAX_MATRIX = 8192
MAX_NUMBER = 1e7
MAX_POSITION_MM = 1e4
"""Coordinates farther than this from the origin, in mm, are not plausible."""
_OTHER_MODALITIES = frozenset(
    "CR DOC DX ECG KO MG MR NM OT PR PT REG RF RTDOSE RTIMAGE RTPLAN RTSTRUCT RWV SC SEG SM SR US XA".split()
)
TRAITS = (
    "ImageType",
    "ConvolutionKernel",
    "AcquisitionNumber",
    "AcquisitionTime",
    "AcquisitionDateTime",
    "TemporalPositionIdentifier",
    "NominalPercentageOfCardiacPhase",
    "ContrastBolusAgent",
    "KVP",
)
"""Elements that may distinguish the volumes of one SeriesInstanceUID; see `transforms.dicom.parts`."""
_STATES_KIND = ("ImageType", "FrameType", "VolumetricProperties", "VolumeBasedCalculationTechnique")
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class PixelEncoding:
    """How the stored values of one slice become HU. Padding is given in stored values, both ends included."""

    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    is_signed: bool
    slope: float
    intercept: float
    padding: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class SliceHeader:
    """One slice: where its pixels are, how they become HU, and where it lies in the patient.

    `frame` is 0 in files that hold one image. `pixel_offset` is -1 where the pixels need pydicom. `traits` are the
    elements of `TRAITS` as text: they are compared within a series, and never stored.
    """

    path: Path
    frame: int
    transfer_syntax: str
    pixel_offset: int
    pixels: PixelEncoding
    series_uid: str
    study_uid: str
    patient_id: str
    sop_uid: str
    frame_of_reference_uid: str
    instance_number: int
    position_lps_mm: tuple[float, ...]
    orientation: tuple[float, ...]
    pixel_spacing_mm: tuple[float, ...]
    slice_thickness_mm: float
    manufacturer: str
    kernel: str
    is_lossy: bool
    is_monochrome1: bool
    traits: tuple[str, ...]


class HeaderReader:
    """Strict reading of raw elements; every refusal names the element."""

    def __init__(self, elements: Elements) -> None:
        """Read from `elements`."""
        self._values = elements.values
        self._order = "little" if elements.is_little_endian else "big"

    def text(self, name: str) -> str:
        """The element as text without padding, or "" where it is absent or empty."""
        value = self._values.get(name, ("", b""))[1]
        return value.decode("latin-1").strip("\0 ")  # one character per byte: distinct ids stay distinct

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """The element as exactly `count` finite decimal numbers."""
        text = self.text(name)
        if not text:
            raise SeriesRefusedError(f"{name} is missing or empty")
        parts = [part.strip(" ") for part in text.split("\\")]
        if len(parts) != count or not all(_DECIMAL.fullmatch(part) for part in parts):
            raise SeriesRefusedError(f"{name} must be {count} decimal number(s), got {len(parts)} value(s)")
        values = tuple(float(part) for part in parts)
        if max(abs(value) for value in values) > MAX_NUMBER:
            raise SeriesRefusedError(
                f"{name} holds a number beyond {MAX_NUMBER:.0e}, which no scanner writes"
            )
        return values

    def integer(self, name: str, default: int | None = None) -> int:
        """The element as an unsigned 16-bit integer; `default` where absent, refused where there is none."""
        vr, value = self._values.get(name, ("", b""))
        if not value:
            if default is None:
                raise SeriesRefusedError(f"{name} is missing or empty")
            return default
        if vr not in ("", "US", "SS", "UN", "OW") or len(value) != 2:
            raise SeriesRefusedError(f"{name} must be one 16-bit integer")
        return int.from_bytes(value, self._order)  # type: ignore[arg-type]

    def __contains__(self, name: str) -> bool:
        """Whether the element is there with a value."""
        return bool(self._values.get(name, ("", b""))[1])


def read_slice_headers(path: Path) -> list[SliceHeader]:
    """Read the header of one file: one slice, or one for each frame of an Enhanced CT.

    Raises:
        SeriesRefusedError: Carrying `series_uid` where it is known: if the file is no CT slice, or if
            anything that HU or geometry need is missing or invalid.
        OSError: If the file cannot be opened.
    """
    elements = read_elements(path)
    header = HeaderReader(elements)
    series_uid = ""
    try:
        series_uid = header.text("SeriesInstanceUID")
        _check_kind(header)
        refuse_if(
            not series_uid,
            "SeriesInstanceUID is missing or empty, so it is not known which files belong together",
        )
        if header.text("SOPClassUID") not in ENHANCED_CT:
            refuse_if(
                header.text("NumberOfFrames") not in ("", "1"),
                "several frames in one CT Image: only Enhanced CT says where each frame lies",
            )
            return [_slice(path, elements, header, series_uid)]
        slices = []
        for frame, of_frame in enumerate(frame_elements(path, elements)):
            header = HeaderReader(of_frame)
            _check_kind(header)
            slices.append(_slice(path, of_frame, header, series_uid, frame))
        return slices
    except SeriesRefusedError as refusal:
        raise SeriesRefusedError(refusal.reason, series_uid) from None


def _check_kind(header: HeaderReader) -> None:
    modality = header.text("Modality")
    if modality != "CT":
        shown = modality if modality in _OTHER_MODALITIES else "missing or unknown"
        raise SeriesRefusedError(f"not CT (Modality is {shown})")
    check_is_attenuation("\\".join(header.text(name) for name in _STATES_KIND))
    sop_class = header.text("SOPClassUID")
    refuse_if(
        sop_class not in ("", CT_IMAGE, *ENHANCED_CT),
        "not a CT image by its SOP class (a dose report, a screen save or another object)",
    )


def _slice(
    path: Path, elements: Elements, header: HeaderReader, series_uid: str, frame: int = 0
) -> SliceHeader:
    refuse_if(
        not elements.transfer_syntax, "TransferSyntaxUID is missing, so the pixel encoding is not known"
    )
    pixels = pixel_encoding(header)
    if elements.pixel_offset >= 0:
        check_pixel_bytes(pixels, int(header.text("NumberOfFrames") or 1), elements.pixel_bytes)
    spacing = header.numbers("PixelSpacing", 2)
    refuse_if(min(spacing) <= 0, "PixelSpacing must be above zero")
    if min(spacing) < PIXEL_SPACING_MM[0] or max(spacing) > PIXEL_SPACING_MM[1]:
        raise SeriesRefusedError(
            f"PixelSpacing of {spacing[0]:g} x {spacing[1]:g} mm: no CT scanner for patients has such pixels"
        )
    position = header.numbers("ImagePositionPatient", 3)
    refuse_if(
        max(map(abs, position)) > MAX_POSITION_MM,
        "ImagePositionPatient lies more than 10 m from its origin, which is not plausible",
    )
    number = header.text("InstanceNumber")
    return SliceHeader(
        path=path,
        frame=frame,
        transfer_syntax=elements.transfer_syntax,
        pixel_offset=elements.pixel_offset,
        pixels=pixels,
        series_uid=series_uid,
        study_uid=header.text("StudyInstanceUID"),
        patient_id=header.text("PatientID"),
        sop_uid=header.text("SOPInstanceUID"),
        frame_of_reference_uid=header.text("FrameOfReferenceUID"),
        instance_number=int(number) if re.fullmatch(r"[+-]?[0-9]{1,9}", number) else 0,
        position_lps_mm=position,
        orientation=header.numbers("ImageOrientationPatient", 6),
        pixel_spacing_mm=spacing,
        slice_thickness_mm=optional_number(header, "SliceThickness"),
        manufacturer=plain_text(header.text("Manufacturer")),
        kernel=plain_text(header.text("ConvolutionKernel")),
        is_lossy=elements.transfer_syntax in LOSSY_SYNTAXES or header.text("LossyImageCompression") == "01",
        is_monochrome1=header.text("PhotometricInterpretation") == "MONOCHROME1",
        traits=tuple(sys.intern(header.text(name)) for name in TRAITS),
    )


def pixel_encoding(header: HeaderReader) -> PixelEncoding:
    """Pixel layout, padding and rescale of a file. Source: PS3.3 C.7.6.3, C.7.5.1.1.2, C.11.1."""
    rows, columns = header.integer("Rows"), header.integer("Columns")
    if not (0 < rows <= MAX_MATRIX and 0 < columns <= MAX_MATRIX):
        raise SeriesRefusedError(f"a matrix of {rows} x {columns} is no CT slice (1 to {MAX_MATRIX} is read)")
    refuse_if(header.integer("SamplesPerPixel", 1) != 1, "a color image: CT has one sample per pixel")
    refuse_if(
        header.text("PhotometricInterpretation") not in ("", "MONOCHROME1", "MONOCHROME2"),
        "PhotometricInterpretation is neither MONOCHROME1 nor MONOCHROME2, so the values are no CT numbers",
    )
    allocated, stored = header.integer("BitsAllocated"), header.integer("BitsStored")
    high_bit = header.integer("HighBit", stored - 1)
    if allocated not in (8, 16) or not 0 < stored <= allocated or high_bit != stored - 1:
        raise SeriesRefusedError(
            f"{allocated} bits allocated, {stored} stored, high bit {high_bit}: no layout of 8 or 16-bit pixels "
            "(HighBit must be BitsStored - 1)"
        )
    is_signed = header.integer("PixelRepresentation")
    if is_signed not in (0, 1):
        raise SeriesRefusedError(f"PixelRepresentation must be 0 or 1, got {is_signed}")
    refuse_if(
        "RescaleSlope" not in header or "RescaleIntercept" not in header,
        "RescaleSlope or RescaleIntercept is missing, so stored values are not known in HU",
    )
    slope, intercept = header.numbers("RescaleSlope", 1)[0], header.numbers("RescaleIntercept", 1)[0]
    if not 1e-3 <= slope <= 1e3:
        raise SeriesRefusedError(f"RescaleSlope must lie above zero, between 0.001 and 1000, got {slope:g}")
    refuse_if(
        header.text("RescaleType").upper() not in ("", "HU"),
        "RescaleType is not HU, so the values are no CT numbers",
    )
    return PixelEncoding(
        rows,
        columns,
        allocated,
        stored,
        bool(is_signed),
        slope,
        intercept,
        _padding(header, allocated, bool(is_signed)),
    )


def _padding(header: HeaderReader, bits_allocated: int, is_signed: bool) -> tuple[int, int] | None:
    if "PixelPaddingValue" not in header:
        return None
    value = header.integer("PixelPaddingValue")
    limit = header.integer("PixelPaddingRangeLimit", value)
    if is_signed:  # often written as unsigned beside signed pixels: 63536 is -2000
        half = 1 << (bits_allocated - 1)
        value, limit = (((v + half) % (2 * half)) - half for v in (value, limit))
    return min(value, limit), max(value, limit)


def check_pixel_bytes(pixels: PixelEncoding, n_frames: int, n_bytes: int) -> None:
    """Refuse pixel data that do not hold exactly the stated matrix (one byte of padding to even length is right)."""
    expected = pixels.rows * pixels.columns * pixels.bits_allocated // 8 * n_frames
    if n_bytes not in (expected, expected + expected % 2):
        state = "cut short" if n_bytes < expected else "too long"
        raise SeriesRefusedError(
            f"pixel data are {state}: {n_bytes} bytes where {pixels.rows} x {pixels.columns} pixels need {expected}"
        )


def optional_number(header: HeaderReader, name: str) -> float:
    """A number that is only reported: NaN where it is absent or unreadable."""
    try:
        return header.numbers(name, 1)[0]
    except SeriesRefusedError:
        return math.nan


def as_number(text: str) -> float | None:
    """A text as a decimal number; None where it is none."""
    return float(text) if _DECIMAL.fullmatch(text) else None


def plain_text(text: str) -> str:
    """Manufacturer and kernel, kept only as short plain text: no other header text is stored."""
    return text if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 .,+/_()-]{0,63}", text) else ""
