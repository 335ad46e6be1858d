"""Stored voxels and an affine, from a file of one volume -> an HU volume (z, y, x), under one set of rules.

Every format that keeps a whole volume in a file (NIfTI, MetaImage, NRRD) ends here, and follows the rules of the DICOM
reader: which HU are plausible, which value around the circle of reconstruction is padding, which spacing is valid.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from transforms.geometry import VolumeGeometry, spacing_of
from transforms.plausible import MAX_STEP_MM, PADDING_HU, PIXEL_SPACING_MM, PLAUSIBLE_HU, outer_fill
from transforms.refusal import NO_AIR_ABOVE_HU, SeriesRefusedError, refuse_if

_orientations: Any = nibabel.orientations  # nibabel types only some of its functions

MAX_VOXELS = 2**31
_SAMPLES, _SAMPLE_BYTES = 64, 4096
_SPARSE = 16
"""One row of so many is looked at before all are."""
_SCALE_ENDS_HU = 2000
"""Scanners' scales end above it, where metal saturates; a window ends below."""
_CLIPPED_SHARE = 0.001
"""Of all voxels; the highest value of a CT that is not clipped is a single voxel's."""
MAX_SHEAR_COSINE = np.sin(np.radians(1.0))


@dataclass(frozen=True, slots=True)
class FileVolume:
    """A CT volume: (Z, Y, X) int16 HU, z toward the head, y to the back, x to the left, as axial DICOM is stored.

    `affine_ras` takes (z, y, x, 1) to RAS mm, and `stored_affine_ras` the index in the order of the file.
    """

    volume_hu: NDArray[np.int16]
    spacing_mm: tuple[float, float, float]
    affine_ras: NDArray[np.float64]
    notes: tuple[str, ...]
    stored_affine_ras: NDArray[np.float64]
    n_padding_voxels: int = 0

    @property
    def geometry(self) -> VolumeGeometry:
        """Where its voxels lie."""
        z, y, x = self.volume_hu.shape
        return VolumeGeometry((z, y, x), self.affine_ras)


def check_written(path: Path, start: int = 0) -> None:
    """Refuse a file of voxels that nobody wrote, at no cost: samples of it hold nothing but zeros.

    An interrupted copy or download reserves the whole file; what is missing reads as zeros.

    Raises:
        SeriesRefusedError: If every sample is zero.
    """
    last = max(start, os.path.getsize(path) - _SAMPLE_BYTES)
    with path.open("rb") as file:
        # At no regular distance: that of slices would see the same rows of all of them, which may be outside the body.
        for at in np.random.default_rng(0).integers(start, last, _SAMPLES, endpoint=True):
            file.seek(int(at))
            sample = file.read(_SAMPLE_BYTES)
            if any(sample) or not sample:  # an empty file is judged by its reader
                return
    raise SeriesRefusedError("its voxels are zeros throughout: the file was reserved and never written")


def check_shape(shape: tuple[int, ...]) -> None:
    """Refuse what is not one three-dimensional volume of plausible size."""
    refuse_if(
        len(shape) != 3 or min(shape) < 2 or np.prod(shape, dtype=float) > MAX_VOXELS,
        f"not one three-dimensional volume: its shape is {shape}",
    )


def check_affine(affine: NDArray[np.float64]) -> None:
    """Refuse an affine, (4, 4) from index to mm, that is not plausible for CT."""
    columns = affine[:3, :3]
    lengths = np.linalg.norm(columns, axis=0)
    refuse_if(
        not np.isfinite(affine).all() or lengths.min() == 0,
        "its affine is not finite, or a voxel has no extent",
    )
    cosines = (columns / lengths).T @ (columns / lengths) - np.eye(3)
    refuse_if(
        np.abs(cosines).max() > MAX_SHEAR_COSINE,
        "its axes are not orthogonal (gantry tilt): correct the tilt before reading",
    )
    if lengths.min() < PIXEL_SPACING_MM[0] or lengths.max() > MAX_STEP_MM:
        shown = " x ".join(f"{length:.4g}" for length in lengths)
        raise SeriesRefusedError(
            f"voxels of {shown} mm: no CT of people has such voxels (is the unit millimeters?)"
        )


def volume_of(
    stored: NDArray[Any], affine_ras: NDArray[np.float64], notes: tuple[str, ...] = ()
) -> FileVolume:
    """Turn stored voxels into a volume: axes are reordered and flipped, nothing is resampled.

    Args:
        stored: HU as numbers of any type, three axes in any order.
        affine_ras: (4, 4), from the indices of `stored` to RAS mm; see `check_affine`.
        notes: Notes on the volume, added to those found here.

    Raises:
        SeriesRefusedError: If the values are not HU of a chest.
    """
    volume_hu, (lowest, highest), is_rounded = _to_hu(stored)
    to_lps = _orientations.ornt_transform(
        _orientations.io_orientation(affine_ras), _orientations.axcodes2ornt(("L", "P", "S"))
    )
    affine = affine_ras @ _orientations.inv_ornt_aff(to_lps, stored.shape)
    oriented = np.ascontiguousarray(_orientations.apply_orientation(volume_hu, to_lps).transpose(2, 1, 0))
    if n_padding := sum(map(_fill_outside, oriented)) if lowest < PADDING_HU else 0:
        lowest, highest = int(oriented.min()), int(oriented.max())
    _check_range(lowest, highest)
    if n_blank := sum(not one[::_SPARSE].any() and not one.any() for one in oriented):
        notes = (
            *notes,
            f"{n_blank} slice(s) hold nothing but 0 HU, as where a file was not written to its end",
        )
    if is_rounded:
        notes = (*notes, "HU were not integers as stored and are rounded")
    if lowest < PADDING_HU:
        notes = (*notes, "values below -1024 HU are kept")
    if highest < _SCALE_ENDS_HU and _is_clipped(oriented[:, ::_SPARSE], highest):
        notes = (*notes, f"values end at {highest} HU, which many voxels hold: clipped to a window")
    return FileVolume(
        volume_hu=oriented,
        spacing_mm=spacing_of(affine[:, [2, 1, 0, 3]]),
        affine_ras=affine[:, [2, 1, 0, 3]],
        notes=notes,
        stored_affine_ras=affine_ras,
        n_padding_voxels=n_padding,
    )


def _is_clipped(sample_hu: NDArray[np.int16], highest: int) -> bool:
    return int(np.count_nonzero(sample_hu == highest)) > max(_CLIPPED_SHARE * sample_hu.size, 50)


def _check_range(low: float, high: float) -> None:
    refuse_if(
        low >= NO_AIR_ABOVE_HU,
        f"no value lies below {NO_AIR_ABOVE_HU} HU (they run from {low:g} to {high:g}): a mask, or not CT in HU",
    )
    refuse_if(
        low < PLAUSIBLE_HU[0] or high > PLAUSIBLE_HU[1],
        f"its values run from {low:g} to {high:g}, which no CT in HU does ({PLAUSIBLE_HU[0]} to {PLAUSIBLE_HU[1]})",
    )


def _to_hu(stored: NDArray[Any]) -> tuple[NDArray[np.int16], tuple[int, int], bool]:
    """Values as int16 HU, the lowest and the highest of them, and whether any had to be rounded."""
    low, high = stored.min(), stored.max()
    refuse_if(not (np.isfinite(low) and np.isfinite(high)), "some voxels are not numbers (NaN or infinite)")
    if low >= NO_AIR_ABOVE_HU:
        _check_range(low, high)
    refuse_if(low < -32768 or high > 32767, f"HU from {low:g} to {high:g} do not fit 16 bits")
    if stored.dtype.kind in "iu":
        return stored.astype(np.int16), (int(low), int(high)), False
    volume_hu = np.empty(stored.shape, dtype=np.int16, order="F")  # as the file has it
    is_rounded = False
    for k in range(stored.shape[2]):  # plane by plane: numbers of 64 bits are large enough once
        rounded = np.rint(stored[..., k])
        is_rounded |= bool(np.abs(rounded - stored[..., k]).max() > 1e-3)
        volume_hu[..., k] = rounded
    return volume_hu, (round(float(low)), round(float(high))), is_rounded


def _fill_outside(slice_hu: NDArray[np.int16]) -> int:
    """Set the one value around the circle of reconstruction to -1024 HU, as for DICOM; how many voxels held it."""
    fill = outer_fill(slice_hu, 1.0, 0.0)
    if fill is None:
        return 0
    is_fill = slice_hu == fill
    slice_hu[is_fill] = PADDING_HU
    return int(np.count_nonzero(is_fill))
