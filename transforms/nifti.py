"""One NIfTI file of CT -> an HU volume (z, y, x) with its geometry, or a refusal with its reason."""

import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from transforms.geometry import VolumeGeometry, spacing_of
from transforms.refusal import NO_AIR_ABOVE_HU, SeriesRefusedError

_orientations: Any = nibabel.orientations  # nibabel types only some of its functions

MAX_VOXELS = 2**31
MAX_SHEAR_COSINE = np.sin(np.radians(1.0))

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


@dataclass(frozen=True, slots=True)
class NiftiVolume:
    """A CT volume: (Z, Y, X) int16 HU, z toward the head, y to the back, x to the left, as axial DICOM is stored."""

    volume_hu: NDArray[np.int16]
    spacing_mm: tuple[float, float, float]
    affine_ras: NDArray[np.float64]
    notes: tuple[str, ...]

    @property
    def geometry(self) -> VolumeGeometry:
        """Where its voxels lie."""
        z, y, x = self.volume_hu.shape
        return VolumeGeometry((z, y, x), self.affine_ras)


def read_nifti(path: Path) -> NiftiVolume:
    """Read one file, in any orientation.

    Values are HU as stored, with scl_slope and scl_inter applied, rounded to integers. Axes are reordered and flipped
    to (z, y, x); nothing is resampled.

    Raises:
        SeriesRefusedError: If it is not NIfTI, not three-dimensional CT, or its place in the patient is not stated.
    """
    with _reading():
        image = nibabel.load(path)
    if not isinstance(image, nibabel.Nifti1Image):
        raise SeriesRefusedError("not a NIfTI file")
    affine = _affine(image)
    shape = _checked_shape(image)
    with _reading():
        stored = np.asanyarray(image.dataobj).reshape(shape)
    volume_hu, is_rounded = _to_hu(stored)
    to_lps = _orientations.ornt_transform(
        _orientations.io_orientation(affine), _orientations.axcodes2ornt(("L", "P", "S"))
    )
    affine = affine @ _orientations.inv_ornt_aff(to_lps, shape)
    oriented = _orientations.apply_orientation(volume_hu, to_lps).transpose(2, 1, 0)
    return NiftiVolume(
        volume_hu=np.ascontiguousarray(oriented),
        spacing_mm=spacing_of(affine[:, [2, 1, 0, 3]]),
        affine_ras=affine[:, [2, 1, 0, 3]],
        notes=("HU were not integers as stored and are rounded",) if is_rounded else (),
    )


@contextmanager
def _reading() -> Iterator[None]:
    """Let nibabel work in silence, and turn what it raises on a damaged file into a refusal."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except _DAMAGED:
        raise SeriesRefusedError("not a NIfTI file, or one that is cut short or damaged") from None


def _checked_shape(image: Any) -> tuple[int, ...]:
    shape = tuple(int(n) for n in image.shape)
    spatial, further = shape[:3], shape[3:]
    if (
        len(spatial) < 3
        or max(further, default=1) > 1
        or min(spatial) < 2
        or np.prod(spatial, dtype=float) > MAX_VOXELS
    ):
        raise SeriesRefusedError(f"not one three-dimensional volume: its shape is {shape}")
    with _reading():
        kind = image.get_data_dtype().kind
    if kind not in "iuf":
        raise SeriesRefusedError("its voxels are not single numbers (color or complex values)")
    return spatial


def _affine(image: Any) -> NDArray[np.float64]:
    """Index (x, y, z) -> RAS mm, as the file states it. Source: nifti1.h, "3D image orientation"."""
    header = image.header
    with _reading():
        unit = header.get_xyzt_units()[0]
        sform, has_sform = header.get_sform(), int(header["sform_code"]) > 0
        has_qform = int(header["qform_code"]) > 0
        qform = header.get_qform() if has_qform else sform
    if unit in ("meter", "micron"):
        raise SeriesRefusedError("its lengths are not in millimeters")
    if not has_sform and not has_qform:
        raise SeriesRefusedError("neither sform nor qform says where the volume lies in the patient")
    affine = np.asarray(sform if has_sform else qform, dtype=np.float64)
    columns = affine[:3, :3]
    lengths = np.linalg.norm(columns, axis=0)
    if not (np.isfinite(affine).all() and np.isfinite(qform).all()) or lengths.min() < 1e-3:
        raise SeriesRefusedError("its affine is not finite, or a voxel has no extent")
    if has_sform and has_qform:
        corner = np.append(np.array(image.shape[:3]) - 1, 1)
        apart_mm = max(np.abs((sform - qform) @ point).max() for point in (corner, np.array([0, 0, 0, 1])))
        if apart_mm > lengths.min():
            raise SeriesRefusedError(
                f"sform and qform disagree by {apart_mm:.1f} mm about where the volume lies"
            )
    cosines = (columns / lengths).T @ (columns / lengths) - np.eye(3)
    if np.abs(cosines).max() > MAX_SHEAR_COSINE:
        raise SeriesRefusedError("its axes are not orthogonal (gantry tilt): correct the tilt before reading")
    return affine


def _to_hu(stored: NDArray[Any]) -> tuple[NDArray[np.int16], bool]:
    """Values as int16 HU, and whether any of them had to be rounded."""
    low, high = stored.min(), stored.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise SeriesRefusedError("some voxels are not numbers (NaN or infinite)")
    if low >= NO_AIR_ABOVE_HU:
        raise SeriesRefusedError(
            f"no value lies below {NO_AIR_ABOVE_HU} HU (they run from {low:g} to {high:g}): a mask, or not CT in HU"
        )
    if low < -32768 or high > 32767:
        raise SeriesRefusedError(f"HU from {low:g} to {high:g} do not fit 16 bits")
    if stored.dtype.kind in "iu":
        return stored.astype(np.int16), False
    volume_hu = np.empty(stored.shape, dtype=np.int16, order="F")  # as the file has it
    is_rounded = False
    for k in range(stored.shape[2]):  # plane by plane: numbers of 64 bits are large enough once
        rounded = np.rint(stored[..., k])
        is_rounded |= bool(np.abs(rounded - stored[..., k]).max() > 1e-3)
        volume_hu[..., k] = rounded
    return volume_hu, is_rounded
