"""One NRRD of CT (.nrrd, or .nhdr with its data file) -> an HU volume (z, y, x), or a refusal.

Source: the definition of NRRD, teem.sourceforge.net/nrrd/format.html.
"""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from transforms.inflate import GZIP
from transforms.refusal import SeriesRefusedError, refuse_if
from transforms.text_header import MAX_HEADER_BYTES, beside, decimals, read_voxels, whole_numbers
from transforms.volume_file import FileVolume, check_affine, check_shape, volume_of

_TYPES = {
    name: kind
    for kind, names in {
        "i1": "signed char,int8,int8_t",
        "u1": "uchar,unsigned char,uint8,uint8_t",
        "i2": "short,short int,signed short,signed short int,int16,int16_t",
        "u2": "ushort,unsigned short,unsigned short int,uint16,uint16_t",
        "i4": "int,signed int,int32,int32_t",
        "u4": "uint,unsigned int,uint32,uint32_t",
        "i8": "longlong,long long,long long int,signed long long,signed long long int,int64,int64_t",
        "u8": "ulonglong,unsigned long long,unsigned long long int,uint64,uint64_t",
        "f4": "float",
        "f8": "double",
    }.items()
    for name in names.split(",")
}
_TO_RAS = {
    "left-posterior-superior": (-1.0, -1.0, 1.0),
    "lps": (-1.0, -1.0, 1.0),
    "right-anterior-superior": (1.0, 1.0, 1.0),
    "ras": (1.0, 1.0, 1.0),
    "left-anterior-superior": (-1.0, 1.0, 1.0),
    "las": (-1.0, 1.0, 1.0),
}
_SAME = {
    "datafile": "data file",
    "lineskip": "line skip",
    "byteskip": "byte skip",
    "axismins": "axis mins",
    "axismaxs": "axis maxs",
    "oldmin": "old min",
    "oldmax": "old max",
    "sampleunits": "sample units",
}
_KNOWN = frozenset(
    (
        "type,dimension,space,space dimension,sizes,space directions,kinds,endian,encoding,space origin,measurement "
        "frame,spacings,thicknesses,axis mins,axis maxs,centers,centerings,labels,units,space units,content,number,"
        "min,max,old min,old max,block size,blocksize,data file,line skip,byte skip,sample units"
    ).split(",")
)
_NEUTRAL = {"line skip": "0", "byte skip": "0"}
_VECTOR = re.compile(r"\(([^()]*)\)")


def read_nrrd(path: Path) -> FileVolume:
    """Read one file; of a pair name the header (.nhdr).

    Values are HU as stored. Axes are reordered and flipped to (z, y, x); nothing is resampled. Compressed voxels are
    read to their checksum, and nothing in the header is guessed.

    Raises:
        SeriesRefusedError: If it is not NRRD, not three-dimensional CT, damaged, or contradicts itself.
        OSError: If a file cannot be opened.
    """
    fields, n_bytes = _read_header(path)
    refuse_if(fields.get("dimension") != "3", "not one three-dimensional image (dimension 3)")
    shape = whole_numbers("sizes", fields.get("sizes", ""), 3)
    check_shape(shape)
    affine = _affine(fields)
    return volume_of(_voxels(path, fields, n_bytes, shape), affine)


def nrrd_files(path: Path) -> tuple[Path, ...]:
    """The file, and the file of its voxels where that is another.

    Raises:
        SeriesRefusedError: If its header cannot be read.
    """
    fields, _ = _read_header(path)
    return (path, beside(path, fields["data file"])) if "data file" in fields else (path,)


def _read_header(path: Path) -> tuple[dict[str, str], int]:
    """Fields by name, and where the voxels begin in a file that holds both."""
    with path.open("rb") as file:
        content = file.read(MAX_HEADER_BYTES)
    refuse_if(not re.match(rb"NRRD000[1-5]\r?\n", content), "not an NRRD file of version 1 to 5")
    fields: dict[str, str] = {}
    at = content.index(b"\n") + 1
    while at < len(content):
        end = content.find(b"\n", at)
        line = content[at : end if end >= 0 else len(content)].decode("latin-1").rstrip("\r")
        at = end + 1 if end >= 0 else len(content)
        if not line:
            return fields, at
        if line.startswith("#") or re.match(r"[^:]*:=", line):
            continue  # a comment, or a user-defined key
        name, colon, value = line.partition(": ")
        name = _SAME.get(name.strip().lower(), name.strip().lower())
        refuse_if(
            not colon or name not in _KNOWN,
            "its header has a line that is neither a field, a key nor a comment",
        )
        refuse_if(name in fields, "its header says a field twice")
        fields[name] = value.strip()
    refuse_if(
        "data file" not in fields,
        "its header does not end with an empty line, so the start of the voxels is not known",
    )
    return fields, at


def _affine(fields: dict[str, str]) -> NDArray[np.float64]:
    """Index in the order of the file -> RAS mm."""
    signs = _TO_RAS.get(fields.get("space", "").lower())
    if signs is None:
        raise SeriesRefusedError(
            "`space` is neither left-posterior-superior, right-anterior-superior nor left-anterior-superior, so "
            "the position of the volume in the patient is not known"
        )
    units = re.findall(r'"([^"]*)"', fields.get("space units", "") + fields.get("units", ""))
    refuse_if(
        any(unit not in ("mm", "millimeter", "") for unit in units),
        "its lengths are not in millimeters (space units)",
    )
    kinds = fields.get("kinds", "domain domain domain").split()
    refuse_if(kinds not in (["domain"] * 3, ["space"] * 3), "its axes are not three of space (kinds)")
    vectors = _VECTOR.findall(fields.get("space directions", ""))
    refuse_if(
        len(vectors) != 3 or _VECTOR.sub("", fields["space directions"]).strip(),
        "`space directions` must be three vectors",
    )
    for other in ("spacings", "axis mins", "axis maxs"):
        refuse_if(other in fields, f"`{other}` beside `space directions`: only one of them may be given")
    columns = [decimals("space directions", vector.replace(",", " "), 3) for vector in vectors]
    origin = _VECTOR.fullmatch(fields.get("space origin", ""))
    if origin is None:
        raise SeriesRefusedError("`space origin` must be one vector: where the first voxel lies")
    affine = np.eye(4)
    affine[:3, :3] = np.stack(columns, axis=1)
    affine[:3, 3] = decimals("space origin", origin.group(1).replace(",", " "), 3)
    affine = np.diag([*signs, 1.0]) @ affine
    check_affine(affine)
    return affine


def _voxels(path: Path, fields: dict[str, str], start: int, shape: tuple[int, ...]) -> NDArray[np.generic]:
    """Stored voxels, axes in the order of the file."""
    kind = _TYPES.get(fields.get("type", ""))
    if kind is None:
        raise SeriesRefusedError("`type` is not an integer or floating-point type of 8 to 64 bits")
    refuse_if(
        "old min" in fields or "old max" in fields,
        "its values were mapped to another range (old min, old max), so they are no HU",
    )
    refuse_if(
        fields.get("sample units", "").strip('" ').lower()
        not in ("", "hu", "hounsfield", "hounsfield units"),
        "its values are not in HU (sample units)",
    )
    refuse_if(
        any(fields.get(name, neutral) != neutral for name, neutral in _NEUTRAL.items()),
        "`line skip` and `byte skip` are not read: voxels must begin where the file does",
    )
    endian = fields.get("endian", "little" if kind.endswith("1") else "")
    refuse_if(
        endian not in ("little", "big"),
        "`endian` is neither little nor big, so the order of bytes is not known",
    )
    dtype = np.dtype(("<" if endian == "little" else ">") + kind)
    encoding = fields.get("encoding", "").lower()
    refuse_if(
        encoding not in ("gzip", "gz", "raw"),
        "`encoding` is neither raw nor gzip, the only ones that are read",
    )
    wbits = None if encoding == "raw" else GZIP
    if "data file" in fields:
        path, start = beside(path, fields["data file"]), 0
    return read_voxels(path, start, shape, dtype, wbits, "sizes and type")
