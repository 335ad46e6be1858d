"""Voxel index <-> millimeters, and which slices are neighbors.

DICOM points are LPS, MONAI and NIfTI are RAS: the change is made here alone.

Arrays are indexed (z, y, x) with z toward the head. `affine_ras` is the 4 x 4 matrix that takes (z, y, x, 1) to RAS
millimeters. Where slices are missing the array stays compact, so one matrix cannot describe it: the distance of every
slice from the first, `slice_offsets_mm`, then says where each slice lies. It is empty when nothing is missing.
`VolumeGeometry` holds these together: code that reads a volume uses it instead of unpacking the affine itself.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from transforms.refusal import TransformError, number_of

Points = NDArray[np.float64]
Number = TypeVar("Number", int, float)

_LPS_RAS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True, eq=False, slots=True)
class VolumeGeometry:
    """Where the voxels of a volume lie in the patient.

    Attributes:
        shape: Voxels along (z, y, x).
        affine_ras: (4, 4), from (z, y, x, 1) to RAS mm.
        gaps: i where slices are missing between slice i and i + 1.
        slice_offsets_mm: Distance of each slice from the first where slices are missing, else empty.
    """

    shape: tuple[int, int, int]
    affine_ras: Points
    gaps: tuple[int, ...] = ()
    slice_offsets_mm: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Hold the affine as 4 x 4 numbers; TransformError if they are no affine."""
        object.__setattr__(self, "affine_ras", _as_affine(self.affine_ras))

    @classmethod
    def from_row(cls, row: Any) -> Self:
        """Take the geometry of a row of series.parquet, a mapping or a Series of pandas."""
        z, y, x = (int(n) for n in row["shape"])
        affine = np.asarray(row["affine_ras"], dtype=np.float64)
        return cls((z, y, x), affine, _numbers(row["gaps"], int), _numbers(row["slice_offsets_mm"], float))

    @classmethod
    def from_meta(cls, shape: Sequence[int], affine: ArrayLike, meta: Mapping[str, Any]) -> Self:
        """Take the geometry of a MetaTensor, (1, Z, Y, X) or (Z, Y, X), also after MONAI's transforms.

        Gaps are stated for the slices as they were loaded. They stay true when the volume is flipped, turned or
        resampled in the plane, and are recomputed when slices were cut off.

        Args:
            shape: Of the tensor; its last three axes count.
            affine: Of the tensor, from its own index order to RAS mm.
            meta: Of the tensor; `gaps` and `slice_offsets_mm` may be text or numbers, or may be missing.

        Raises:
            TransformError: If the axes are not what the affine says, or gaps are known and the axes are not (z toward
                the head, y, x) or the slices not those that were loaded.
        """
        z, y, x = (int(n) for n in shape[-3:])
        here = cls((z, y, x), np.asarray(affine, dtype=np.float64).copy())
        loaded_affine, loaded_shape = meta.get("original_affine"), meta.get("spatial_shape")
        if loaded_affine is None or np.shape(loaded_affine) != (4, 4):
            loaded_affine = here.affine_ras
        loaded_affine = np.asarray(loaded_affine, dtype=np.float64)
        if loaded_shape is not None and np.allclose(loaded_affine, here.affine_ras):
            loaded = [int(n) for n in loaded_shape]
            if loaded != [*here.shape] and sorted(loaded) == sorted(here.shape):
                raise TransformError(
                    f"the volume has the shape {here.shape} and was loaded as {tuple(loaded)}, but its affine is still "
                    "that of the file: its axes were exchanged without updating the affine (such as by Transposed); "
                    'use Orientationd(keys, axcodes="SPL") instead'
                )
        gaps, offsets = _numbers(meta.get("gaps"), int), _numbers(meta.get("slice_offsets_mm"), float)
        return here._with_gaps(loaded_affine, gaps, offsets) if gaps else here

    def _with_gaps(self, loaded_affine: Points, gaps: tuple[int, ...], offsets: tuple[float, ...]) -> Self:
        """This geometry with the gaps of the volume as it was loaded, z toward the head, under `loaded_affine`."""
        self.check_axes()
        step, loaded_step = self.affine_ras[:3, 0], loaded_affine[:3, 0]
        at = float((np.linalg.inv(loaded_affine) @ self.affine_ras[:, 3])[0])
        first, n_slices = round(at), self.shape[0]
        is_cut = abs(at - first) < 1e-3 and np.allclose(step, loaded_step, rtol=1e-4, atol=1e-4)
        if not is_cut or first < 0 or (offsets and first + n_slices > len(offsets)):
            raise TransformError(
                "slices of this series are missing, and it was resampled, turned or padded along z since it was "
                "loaded, so that their position is no longer known; cut triplets or crops before that"
            )
        affine, kept = self.affine_ras, tuple(gap - first for gap in gaps if 0 <= gap - first < n_slices - 1)
        if first and offsets:
            affine = affine.copy()
            affine[:3, 3] += step * (offsets[first] / np.linalg.norm(step) - first)
        own = offsets[first : first + n_slices] if kept else ()
        return type(self)(self.shape, affine, kept, tuple(offset - own[0] for offset in own))

    def as_row(self) -> dict[str, list[Any]]:
        """Columns of series.parquet: affine_ras, gaps and slice_offsets_mm."""
        return {
            "affine_ras": self.affine_ras.ravel().tolist(),
            "gaps": list(self.gaps),
            "slice_offsets_mm": list(self.slice_offsets_mm),
        }

    def as_meta(self) -> dict[str, Any]:
        """Entries of a MetaTensor's meta that `from_meta` reads.

        Gaps and offsets are text: MONAI's and torch's collation put into one batch only what has one form, and no two
        series have as many gaps.
        """
        return {
            "gaps": " ".join(map(str, self.gaps)),
            "slice_offsets_mm": " ".join(map(repr, self.slice_offsets_mm)),
            "spacing_mm": self.spacing_mm,
            "space": "RAS",
            "original_channel_dim": 0,
            "spatial_shape": np.array(self.shape),
        }

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centers along (z, y, x)."""
        return spacing_of(self.affine_ras)

    @property
    def steps_zyx(self) -> tuple[int, int, int]:
        """Index step along each axis toward the head, the back and the patient's left: +1 or -1.

        Raises:
            TransformError: If the axes are not (z toward the head, y, x).
        """
        self.check_axes()
        return 1, int(np.sign(-self.affine_ras[1, 1])), int(np.sign(-self.affine_ras[0, 2]))

    def check_axes(self) -> None:
        """Refuse a volume whose axes are not (z toward the head, y, x), y and x either way round.

        Raises:
            TransformError: If so.
        """
        axes = self.affine_ras[:3, :3]
        along = np.abs(axes).argmax(axis=0)
        if along.tolist() != [2, 1, 0] or axes[2, 0] <= 0:
            codes = ("LR", "PA", "IS")
            found = ", ".join(codes[ras][int(axes[ras, axis] > 0)] for axis, ras in enumerate(along))
            raise TransformError(
                f"the volume's axes are not (z toward the head, y, x): they run to ({found}); reorient it before, by "
                'Orientationd(keys, axcodes="SPL")'
            )

    def to_lps(self, index_zyx: ArrayLike) -> Points:
        """LPS mm of voxel indices (..., 3); see `index_to_lps`."""
        return index_to_lps(self.affine_ras, index_zyx, self.slice_offsets_mm)

    def to_index(self, points_lps_mm: ArrayLike) -> Points:
        """Fractional voxel indices of points (..., 3) in LPS mm; see `lps_to_index`."""
        return lps_to_index(self.affine_ras, points_lps_mm, self.slice_offsets_mm)

    def unbroken_run(self, z: int) -> tuple[int, int]:
        """First and last slice of those around slice z among which none is missing."""
        return unbroken_run(self.shape[0], self.gaps, z)


def unbroken_run(n_slices: int, gaps: Collection[int], z: int) -> tuple[int, int]:
    """First and last slice of those around slice z among which none is missing."""
    low = max([gap + 1 for gap in gaps if gap < z], default=0)
    return low, min([gap for gap in gaps if gap >= z], default=n_slices - 1)


def lps_to_ras(points_mm: ArrayLike) -> Points:
    """Turn points (..., 3) from left-posterior-superior to right-anterior-superior millimeters."""
    return np.asarray(np.asarray(points_mm, dtype=np.float64) * _LPS_RAS)


ras_to_lps = lps_to_ras
"""The same change of signs takes points back."""


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


def triplet_indices(
    n_slices: int,
    z: int,
    spacing_z_mm: float | None,
    gaps: Collection[int],
    stride: int = 1,
    distance_mm: float | None = None,
) -> tuple[tuple[int, int, int], bool]:
    """Find the slices below and above z.

    Args:
        n_slices: Number of slices of the volume.
        z: Index of the middle slice.
        spacing_z_mm: Distance between slice centers; needed only with `distance_mm`.
        gaps: Indices i where a gap lies between slice i and slice i + 1; no triplet reaches across one.
        stride: Distance of the neighbors in slices; used when `distance_mm` is None.
        distance_mm: Distance of the neighbors in mm; the nearest slices are taken, at least one slice away.

    Returns:
        The indices (below, z, above), and whether one of them is a repetition of z.

    Raises:
        TransformError: If z is not a slice of the volume, or a distance is not positive.
    """
    if not 0 <= z < n_slices:
        raise TransformError(
            f"slice {z} is not in a volume of {number_of(n_slices, 'slice')}, counted from 0"
        )
    if distance_mm is not None:
        if spacing_z_mm is None or not spacing_z_mm > 0:
            raise TransformError(
                f"a triplet at {distance_mm} mm needs the slice spacing in mm, got {spacing_z_mm}; "
                "give spacing_z_mm, or choose neighbors by stride"
            )
        if not distance_mm > 0:
            raise TransformError(f"the distance of a triplet's slices must be positive, got {distance_mm} mm")
        stride = max(1, round(distance_mm / spacing_z_mm))
    elif stride < 1:
        raise TransformError(f"the stride of a triplet must be at least 1 slice, got {stride}")
    below, above = z - stride, z + stride
    if below < 0 or any(below <= gap < z for gap in gaps):
        below = z
    if above >= n_slices or any(z <= gap < above for gap in gaps):
        above = z
    return (below, z, above), below == z or above == z


def _numbers(values: Any, kind: type[Number]) -> tuple[Number, ...]:
    """Numbers from text with blanks between, from any sequence of them, or from None, which is none."""
    if values is None:
        return ()
    return tuple(kind(value) for value in (values.split() if isinstance(values, str) else values))


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
