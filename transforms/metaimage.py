"""One MetaImage of CT (.mha, or .mhd with its .raw or .zraw) -> an HU volume (z, y, x), or a refusal.

LUNA16 is .mhd with .raw or .zraw; LUNA25 and STOIC are .mha. Positions are LPS millimeters, as in ITK.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from transforms.inflate import ZLIB
from transforms.refusal import SeriesRefusedError, refuse_if
from transforms.text_header import MAX_HEADER_BYTES, beside, decimals, read_voxels, whole_numbers
from transforms.volume_file import FileVolume, check_affine, check_shape, volume_of

_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
"""MET_LONG is left out: writers store 4 or 8 bytes under that name."""
_SAME = {
    "Rotation": "TransformMatrix",
    "Orientation": "TransformMatrix",
    "Position": "Offset",
    "Origin": "Offset",
    "BinaryDataByteOrderMSB": "ElementByteOrderMSB",
    "ElementSize": "ElementSpacing",
}
"""Names under which older writers store the same; ElementSize counts only where ElementSpacing is missing."""
_KNOWN = frozenset(
    (
        *_SAME.values(),
        *"ObjectType NDims BinaryData CompressedData CompressedDataSize AnatomicalOrientation DimSize ElementType "
        "ElementNumberOfChannels ElementDataFile HeaderSize Modality DistanceUnits ElementToIntensityFunctionSlope "
        "ElementToIntensityFunctionOffset".split(),
    )
)
_OTHER_CASE = {name.lower(): name for name in (*_KNOWN, *_SAME)}
_FROM_TO = {"R": 0, "L": 0, "A": 1, "P": 1, "I": 2, "S": 2}
_TOWARD_PLUS = "RAI"
"""Letters of AnatomicalOrientation name where an axis comes from: R, A and I run toward left, posterior and head."""


@dataclass(frozen=True, slots=True)
class _Header:
    fields: dict[str, str]
    n_bytes: int

    def get(self, name: str, default: str = "") -> str:
        return self.fields.get(name, default)

    def truth(self, name: str, default: str) -> bool:
        value = self.get(name, default).lower()
        refuse_if(
            value not in ("true", "false", "1", "0", "t", "f", "yes", "no"), f"{name} must be True or False"
        )
        return value[0] in "t1y"


def read_metaimage(path: Path) -> FileVolume:
    """Read one file; of a pair name the header (.mhd).

    Values are HU as stored. Axes are reordered and flipped to (z, y, x); nothing is resampled. Compressed voxels are
    read to their checksum, and nothing in the header is guessed.

    Raises:
        SeriesRefusedError: If it is not MetaImage, not three-dimensional CT, damaged, or contradicts itself.
        OSError: If a file cannot be opened.
    """
    header = _read_header(path)
    _check_kind(header)
    shape = whole_numbers("DimSize", header.get("DimSize"), 3)
    check_shape(shape)
    affine, notes = _affine(header)
    return volume_of(_voxels(path, header, shape), affine, notes)


def metaimage_files(path: Path) -> tuple[Path, ...]:
    """The file, and the file of its voxels where that is another.

    Raises:
        SeriesRefusedError: If its header cannot be read.
    """
    name = _read_header(path).get("ElementDataFile")
    return (path,) if name == "LOCAL" else (path, beside(path, name))


def _read_header(path: Path) -> _Header:
    with path.open("rb") as file:
        content = file.read(MAX_HEADER_BYTES)
    fields: dict[str, str] = {}
    at = 0
    while "ElementDataFile" not in fields:
        end = content.find(b"\n", at)
        line = content[at : end if end >= 0 else len(content)].decode("latin-1").rstrip("\r")
        at = end + 1
        name, equals, value = (part.strip() for part in line.partition("="))
        refuse_if(
            not fields and (name, value) not in (("ObjectType", "Image"), ("NDims", "3")),
            "not a MetaImage (its header does not begin with ObjectType = Image)",
        )
        refuse_if(line.strip() and not (equals and name), "its header has a line without a name and `=`")
        known = _OTHER_CASE.get(name.lower(), name)
        refuse_if(name != known, f"its header writes {known} in letters of another case")
        refuse_if(name in fields and name in (*_KNOWN, *_SAME), f"its header says {name} twice")
        if name:
            fields[name] = value
        refuse_if(
            end < 0 and "ElementDataFile" not in fields,
            "its header has no ElementDataFile, which must end it",
        )
    for other, name in _SAME.items():
        if other in fields and other != "ElementSize":
            refuse_if(
                fields.get(name, fields[other]).split() != fields[other].split(),
                f"{name} and {other}, two names of one field, differ",
            )
            fields[name] = fields[other]
    fields.setdefault("ElementSpacing", fields.get("ElementSize", ""))
    return _Header(fields, at if at > 0 else len(content))


def _check_kind(header: _Header) -> None:
    refuse_if(
        header.get("ObjectType", "Image") != "Image" or header.get("NDims") != "3",
        "not one three-dimensional image (ObjectType Image, NDims 3)",
    )
    refuse_if(
        not header.truth("BinaryData", "False"),
        "its voxels are text (BinaryData is not True), which is not read",
    )
    refuse_if(
        header.get("ElementNumberOfChannels", "1") != "1",
        "its voxels are not single numbers (ElementNumberOfChannels is not 1)",
    )
    refuse_if(
        header.get("Modality", "MET_MOD_CT") not in ("MET_MOD_CT", "MET_MOD_UNKNOWN", "MET_MOD_OTHER"),
        "not CT by its Modality",
    )
    refuse_if(
        header.get("DistanceUnits", "mm") not in ("mm", "?"),
        "its lengths are not in millimeters (DistanceUnits)",
    )
    for name, neutral in (("Slope", 1.0), ("Offset", 0.0)):
        field = f"ElementToIntensityFunction{name}"
        refuse_if(
            field in header.fields and decimals(field, header.get(field), 1)[0] != neutral,
            f"{field} is not {neutral:g}: readers differ about what it does to values",
        )


def _affine(header: _Header) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Index (x, y, z) -> RAS mm, and notes on it."""
    notes = []
    spacing = decimals("ElementSpacing", header.get("ElementSpacing"), 3)
    refuse_if(spacing.min() <= 0, "ElementSpacing must be above zero")
    if "TransformMatrix" in header.fields:
        directions = decimals("TransformMatrix", header.get("TransformMatrix"), 9).reshape(3, 3)
    else:
        directions = np.eye(3)
        notes.append(
            "no TransformMatrix: axes are taken to run to the left, to the back and to the head, as ITK does"
        )
    refuse_if(
        np.abs(np.linalg.norm(directions, axis=1) - 1).max() > 1e-3,
        "TransformMatrix does not hold unit vectors, so the axes have no direction",
    )
    if "Offset" not in header.fields:
        notes.append("no Offset: millimeters count from the first voxel")
    affine_lps = np.eye(4)
    affine_lps[:3, :3] = (directions * spacing[:, None]).T  # a row of the matrix is the direction of one axis
    affine_lps[:3, 3] = decimals("Offset", header.get("Offset", "0 0 0"), 3)
    affine: NDArray[np.float64] = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_lps
    check_affine(affine)
    notes += _orientation_note(header.get("AnatomicalOrientation", "???"), directions)
    return affine, tuple(notes)


def _orientation_note(letters: str, directions: NDArray[np.float64]) -> list[str]:
    if not letters.strip("? "):
        return []
    refuse_if(
        len(letters) != 3 or sorted(_FROM_TO.get(letter, -1) for letter in letters.upper()) != [0, 1, 2],
        "AnatomicalOrientation is not three letters of R or L, A or P, I or S",
    )
    for letter, direction in zip(letters.upper(), directions, strict=True):
        axis = int(np.abs(direction).argmax())
        if axis != _FROM_TO[letter] or (direction[axis] > 0) != (letter in _TOWARD_PLUS):
            return ["AnatomicalOrientation contradicts TransformMatrix, which is used, as in ITK"]
    return []


def _voxels(path: Path, header: _Header, shape: tuple[int, ...]) -> NDArray[np.generic]:
    """Stored voxels, (x, y, z)."""
    kind = _TYPES.get(header.get("ElementType"))
    if kind is None:
        raise SeriesRefusedError("ElementType is not an integer or floating-point type of 8 to 64 bits")
    order = ">" if header.truth("ElementByteOrderMSB", "False" if kind.endswith("1") else "") else "<"
    dtype = np.dtype(order + kind)
    is_local = header.get("ElementDataFile") == "LOCAL"
    voxels_in = path if is_local else beside(path, header.get("ElementDataFile"))
    start = header.n_bytes if is_local else 0
    is_compressed = header.truth("CompressedData", "False")
    skip = header.get("HeaderSize", "0")
    if skip == "-1" and not is_compressed and not is_local:
        # The voxels are the last of the file.
        start = os.path.getsize(voxels_in) - int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    elif skip != "0":
        raise SeriesRefusedError(
            "HeaderSize must be 0, or -1 where the voxels end an uncompressed file of their own"
        )
    stated, n_there = header.get("CompressedDataSize"), os.path.getsize(voxels_in) - start
    refuse_if(
        is_compressed and stated and whole_numbers("CompressedDataSize", stated, 1)[0] not in (0, n_there),
        f"CompressedDataSize is {stated}, {n_there} bytes are there",
    )
    return read_voxels(
        voxels_in, start, shape, dtype, ZLIB if is_compressed else None, "DimSize and ElementType"
    )
