"""One NIfTI file of CT (or a pair of .hdr and .img) -> an HU volume (z, y, x) with its geometry, or a refusal."""

import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from transforms.geometry import spacing_of
from transforms.inflate import GZIP, first_inflated, inflate
from transforms.refusal import SeriesRefusedError, refuse_if
from transforms.volume_file import FileVolume, check_affine, check_shape, check_written, volume_of

_HEADER_BYTES = 540
"""Of NIfTI-2; NIfTI-1 has 348."""
_SLACK_BYTES = 1 << 24
"""Header extensions, and what writers put behind the voxels."""
_GZIP_MAGIC = b"\x1f\x8b"

_DAMAGED = (
    nibabel.filebasedimages.ImageFileError,
    nibabel.spatialimages.HeaderDataError,
    ArithmeticError,
    EOFError,
    LookupError,
    OSError,
    TypeError,
    ValueError,
    zlib.error,
)


def read_nifti(path: Path) -> FileVolume:
    """Read one file, in any orientation; of a pair name the header (.hdr), the voxels lie beside it.

    Values are HU as stored, with scl_slope and scl_inter applied, rounded to integers. Axes are reordered and flipped
    to (z, y, x); nothing is resampled. Compressed files are read to their checksum.

    Raises:
        SeriesRefusedError: If it is not NIfTI, not three-dimensional CT, or its place in the patient is not stated.
    """
    with _reading():
        image = _open(path)
    affine = _affine(image)
    shape = _checked_shape(image)
    parts = nifti_files(path)
    check_written(parts[-1], _HEADER_BYTES if len(parts) == 1 else 0)
    with _reading():
        stored = np.asanyarray(image.dataobj).reshape(shape)
    return volume_of(stored, affine, _notes(image, affine))


@contextmanager
def _reading() -> Iterator[None]:
    """Silence nibabel, and turn what it raises on a damaged file into a refusal."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except _DAMAGED:
        raise SeriesRefusedError("not a NIfTI file, or one that is cut short or damaged") from None


def _open(path: Path) -> Any:
    parts = dict(zip(("header", "image"), nifti_files(path), strict=False))
    contents: dict[str, Any] = {}
    start = b""
    for name, part in parts.items():
        with part.open("rb") as file:
            is_compressed = file.read(2) == _GZIP_MAGIC
            file.seek(0)
            if name == "header":
                start = (
                    first_inflated(file, GZIP, _HEADER_BYTES) if is_compressed else file.read(_HEADER_BYTES)
                )
                file.seek(0)
            if is_compressed:
                contents[name] = BytesIO(inflate(file, GZIP, _stated_bytes(start)))
            elif part.suffix.lower() == ".gz":  # nibabel goes by the name
                contents[name] = BytesIO(file.read(_stated_bytes(start)))
            else:
                contents[name] = str(part)  # nibabel maps it
    kind = _kind(start)
    if len(parts) == 1:
        contents["image"] = contents["header"]
    holders = {
        name: nibabel.FileHolder(**{"filename" if isinstance(content, str) else "fileobj": content})
        for name, content in contents.items()
    }
    return kind.from_file_map(holders)


def nifti_files(path: Path) -> tuple[Path, ...]:
    """The file, and the file of its voxels where that is another.

    Raises:
        SeriesRefusedError: If that is not there.
    """
    return (path, _voxels_of_pair(path)) if ".hdr" in path.name.lower() else (path,)


def _voxels_of_pair(header: Path) -> Path:
    """The .img that belongs to a .hdr, in whatever case its ending is written.

    Raises:
        SeriesRefusedError: If there is none.
    """
    stem = header.name[: header.name.lower().rindex(".hdr")].lower()
    for path in sorted(header.parent.iterdir()):
        if path.name.lower() in (f"{stem}.img", f"{stem}.img.gz"):
            return path
    raise SeriesRefusedError("a header (.hdr) without the voxels (.img) that belong to it")


def _kind(start: bytes) -> Any:
    """The class of nibabel for the mark in a header. Source: nifti1.h, "magic"."""
    marks = {b"n+1\0": nibabel.Nifti1Image, b"ni1\0": nibabel.Nifti1Pair}
    marks_2 = {b"n+2\0": nibabel.Nifti2Image, b"ni2\0": nibabel.Nifti2Pair}
    kind = marks.get(start[344:348]) or marks_2.get(start[4:8])
    if kind is None:
        raise SeriesRefusedError("not a NIfTI file (no mark of NIfTI-1 or NIfTI-2 in its header)")
    return kind


def _stated_bytes(start: bytes) -> int:
    """How many bytes a file may hold by its own header."""
    kind = _kind(start).header_class
    header = kind(start[: kind.template_dtype.itemsize], check=False)
    n_voxels = np.prod(np.clip(np.array(header.get_data_shape(), dtype=float), 0, None))
    return int(min(n_voxels, 2.0**40)) * int(header.get_data_dtype().itemsize) + _SLACK_BYTES


def _notes(image: Any, affine: NDArray[np.float64]) -> tuple[str, ...]:
    pixdim_mm = np.array(image.header.get_zooms()[:3], dtype=float)
    is_other = not np.allclose(pixdim_mm, np.linalg.norm(affine[:3, :3], axis=0), rtol=1e-3)
    shown = " x ".join(f"{mm:.4g}" for mm in pixdim_mm)
    notes = {
        f"pixdim says voxels of {shown} mm, the sform other ones, which are used": is_other,
        "its header does not say the unit of lengths: millimeters are taken": image.header.get_xyzt_units()[0]
        == "unknown",
        "its affine is the identity, as after a loss of it: spacing, position and which axis runs to the head are "
        "not known": np.allclose(np.abs(affine), np.eye(4), atol=1e-6),
    }
    return tuple(note for note, holds in notes.items() if holds)


def _checked_shape(image: Any) -> tuple[int, ...]:
    shape = tuple(int(n) for n in image.shape)
    refuse_if(
        max(shape[3:], default=1) > 1 or len(shape) < 3,
        f"not one three-dimensional volume: its shape is {shape}",
    )
    check_shape(shape[:3])
    with _reading():
        kind = image.get_data_dtype().kind
    refuse_if(kind not in "iuf", "its voxels are not single numbers (color or complex values)")
    return shape[:3]


def _affine(image: Any) -> NDArray[np.float64]:
    """Index (x, y, z) -> RAS mm, as the file states it. Source: nifti1.h, "3D image orientation"."""
    header = image.header
    with _reading():
        unit = header.get_xyzt_units()[0]
        sform, has_sform = header.get_sform(), int(header["sform_code"]) > 0
        has_qform = int(header["qform_code"]) > 0
        qform = header.get_qform() if has_qform else sform
    refuse_if(unit in ("meter", "micron"), "its lengths are not in millimeters")
    refuse_if(
        not has_sform and not has_qform, "neither sform nor qform says where the volume lies in the patient"
    )
    affine = np.asarray(sform if has_sform else qform, dtype=np.float64)
    refuse_if(not np.isfinite(qform).all(), "its affine is not finite, or a voxel has no extent")
    check_affine(affine)
    if has_sform and has_qform:
        corner = np.append(np.array(image.shape[:3]) - 1, 1)
        apart_mm = max(np.abs((sform - qform) @ point).max() for point in (corner, np.array([0, 0, 0, 1])))
        refuse_if(
            apart_mm > min(spacing_of(affine)),
            f"sform and qform disagree by {apart_mm:.1f} mm about where the volume lies",
        )
    return affine
