"""Voxel index <-> millimeters. DICOM points are LPS, MONAI and NIfTI are RAS: the change is made here alone.

Arrays are indexed (z, y, x) with z toward the head. `affine_ras` is the 4 x 4 matrix that takes (z, y, x, 1) to RAS
millimeters. Where slices are missing the array stays compact, so one matrix cannot describe it: the distance of every
slice from the first, `slice_offsets_mm`, then says where each slice lies. It is empty when nothing is missing.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from transforms.refusal import TransformError

Points = NDArray[np.float64]

_LPS_RAS = np.array([-1.0, -1.0, 1.0])


def lps_to_ras(points_lps_mm: ArrayLike) -> Points:
    """Turn points (..., 3) from left-posterior-superior to right-anterior-superior millimeters."""
    return np.asarray(np.asarray(points_lps_mm, dtype=np.float64) * _LPS_RAS)


def ras_to_lps(points_ras_mm: ArrayLike) -> Points:
    """Turn points (..., 3) from right-anterior-superior to left-posterior-superior millimeters."""
    return np.asarray(np.asarray(points_ras_mm, dtype=np.float64) * _LPS_RAS)


def index_to_lps(
    affine_ras: ArrayLike, index_zyx: ArrayLike, slice_offsets_mm: Sequence[float] | Points = ()
) -> Points:
    """Take voxel indices to patient coordinates.

    Args:
        affine_ras: (4, 4), or its 16 numbers row by row, from (z, y, x, 1) to RAS mm.
        index_zyx: (..., 3), fractions allowed; integers are voxel centers.
        slice_offsets_mm: (Z,) distance of each slice from the first along z, or empty for an even stack.

    Returns:
        LPS millimeters, (..., 3).
    """
    affine = _as_affine(affine_ras)
    index = np.array(index_zyx, dtype=np.float64)
    if len(slice_offsets_mm):
        index[..., 0] = _interpolate(
            index[..., 0], np.arange(len(slice_offsets_mm)), _grid(affine, slice_offsets_mm)
        )
    return ras_to_lps(index @ affine[:3, :3].T + affine[:3, 3])


def lps_to_index(
    affine_ras: ArrayLike, points_lps_mm: ArrayLike, slice_offsets_mm: Sequence[float] | Points = ()
) -> Points:
    """Take patient coordinates to fractional voxel indices; the inverse of `index_to_lps`.

    Args:
        affine_ras: (4, 4), or its 16 numbers row by row, from (z, y, x, 1) to RAS mm.
        points_lps_mm: LPS millimeters, (..., 3).
        slice_offsets_mm: (Z,) distance of each slice from the first along z, or empty for an even stack.

    Returns:
        Fractional indices (z, y, x), (..., 3), not clipped to the array.

    Raises:
        TransformError: If the affine is not 4 x 4 or cannot be inverted.
    """
    affine = _as_affine(affine_ras)
    inverse = np.linalg.inv(affine)
    index: Points = lps_to_ras(points_lps_mm) @ inverse[:3, :3].T + inverse[:3, 3]
    if len(slice_offsets_mm):
        index[..., 0] = _interpolate(
            index[..., 0], _grid(affine, slice_offsets_mm), np.arange(len(slice_offsets_mm))
        )
    return index


def spacing_of(affine_ras: ArrayLike) -> tuple[float, float, float]:
    """Distance in mm between voxel centers along (z, y, x): the lengths of the affine's columns."""
    z, y, x = np.linalg.norm(_as_affine(affine_ras)[:3, :3], axis=0)
    return float(z), float(y), float(x)


def _as_affine(affine_ras: ArrayLike) -> Points:
    affine = np.asarray(affine_ras, dtype=np.float64)
    if affine.size != 16:
        raise TransformError(f"an affine has 4 x 4 numbers, got shape {affine.shape}")
    affine = affine.reshape(4, 4)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise TransformError("the affine cannot be inverted: its axes must be finite and independent")
    return affine


def _grid(affine: Points, slice_offsets_mm: Sequence[float] | Points) -> Points:
    """Place of each slice in units of the regular spacing: 0, 1, 2, 5, 6 where two slices are missing."""
    return np.asarray(slice_offsets_mm, dtype=np.float64) / np.linalg.norm(affine[:3, 0])


def _interpolate(at: Points, known: ArrayLike, values: ArrayLike) -> Points:
    """Piecewise linear, continued at one index per spacing beyond both ends (np.interp would clamp)."""
    known, values = np.asarray(known, dtype=np.float64), np.asarray(values, dtype=np.float64)
    inside = np.interp(at, known, values)
    return np.asarray(inside + np.minimum(at - known[0], 0.0) + np.maximum(at - known[-1], 0.0))
