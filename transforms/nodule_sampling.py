"""Samples of a volume around a point: square windows and boxes of a stated size in mm.

Each axis is resampled by a triangle filter: linear interpolation where the result is finer than the voxels,
and as wide as the result's pixel where it is coarser, so that small structures are averaged and not skipped.
Outside the image lies air.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from transforms.geometry import VolumeGeometry
from transforms.refusal import NoCropError

BORDER_HU = -1024.0
"""What lies outside the image."""

Volume = NDArray[np.int16] | NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a point lies in a volume, and which way the volume's axes run.

    Attributes:
        index_zyx: Fractional voxel index of the point, (3,).
        spacing_mm: Voxel spacing (z, y, x).
        steps_zyx: Index step along each axis toward the head, the back and the patient's left: +1 or -1.
    """

    index_zyx: NDArray[np.float64]
    spacing_mm: tuple[float, float, float]
    steps_zyx: tuple[int, int, int]

    @property
    def slice_index(self) -> int:
        """The slice nearest to the point; of two as near, the upper one."""
        return int(np.floor(self.index_zyx[0] + 0.5))


def place(geometry: VolumeGeometry, center_lps_mm: ArrayLike) -> Placement:
    """Find a point in a volume.

    Args:
        geometry: Of the volume.
        center_lps_mm: The point, LPS mm, (3,).

    Returns:
        The place of the point.

    Raises:
        NoCropError: If the point lies outside the volume or between its slices where some are missing.
        TransformError: If the volume's axes are not (z toward the head, y, x).
    """
    steps = geometry.steps_zyx
    index = geometry.to_index(center_lps_mm)
    if index.shape != (3,) or not np.isfinite(index).all():
        raise NoCropError(
            "center is no point",
            f"a nodule's center is three finite numbers in LPS mm, got {center_lps_mm!r}",
        )
    for name, at, length in zip(("slice", "row", "column"), index, geometry.shape, strict=True):
        if not -0.5 <= at < length - 0.5:
            raise NoCropError(
                "center outside the volume",
                f"the nodule's center lies at {name} {at:.1f}, outside the {length} {name}s of its volume",
            )
    _refuse_missing_slice(geometry, float(index[0]))
    return Placement(index, geometry.spacing_mm, steps)


def _refuse_missing_slice(geometry: VolumeGeometry, slice_number: float) -> None:
    """Refuse a point that lies where slices are missing: the nearest slice that is there shows another place."""
    offsets = np.array(geometry.slice_offsets_mm)
    # Ends of the volume reach half a spacing, and so does a gap; slices may drift by a tenth of one.
    if 0 < slice_number < len(offsets) - 1:
        at_mm = np.interp(slice_number, np.arange(len(offsets)), offsets)
        away_mm = abs(float(at_mm) - offsets[int(np.floor(slice_number + 0.5))])
        if away_mm > 0.6 * geometry.spacing_mm[0]:
            raise NoCropError(
                "center where slices are missing",
                f"the nodule's center lies {away_mm:.1f} mm from the nearest slice, where slices are missing",
            )


def axis_weights(n_in: int, center: float, step: float, n_out: int) -> tuple[slice, NDArray[np.float32]]:
    """Weights that sample one axis at `n_out` places around `center`.

    Args:
        n_in: Voxels along the axis.
        center: Fractional index of the middle of the result.
        step: Voxels from one sample to the next; negative runs backwards.
        n_out: Samples.

    Returns:
        The voxels that are read, and their weights, (n_out, voxels read). A row sums to less than 1 by the
        share that lies outside the axis.
    """
    places = center + (np.arange(n_out) - (n_out - 1) / 2) * step
    reach = max(1.0, abs(step))
    first, last = int(np.floor(places.min() - reach)), int(np.ceil(places.max() + reach))
    voxels = np.arange(first, last + 1)
    weights = np.maximum(1.0 - np.abs(voxels - places[:, None]) / reach, 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    read = slice(min(max(first, 0), n_in), min(max(last + 1, 0), n_in))
    return read, weights[:, read.start - first : read.stop - first].astype(np.float32)


def sample_windows(
    volume_hu: Volume, at: Placement, slices: Sequence[int], size_mm: float, out_px: int
) -> NDArray[np.float32]:
    """Square windows of stated slices around the point; rows run to the back, columns to the patient's left.

    Args:
        volume_hu: (Z, Y, X) HU.
        at: Place of the point.
        slices: Indices of the slices, repeats allowed.
        size_mm: Side of the window.
        out_px: Side of the result in pixels.

    Returns:
        (slices, out_px, out_px) HU.
    """
    pixel_mm = size_mm / out_px
    rows, row_weights = _weights(volume_hu, at, 1, pixel_mm, out_px)
    columns, column_weights = _weights(volume_hu, at, 2, pixel_mm, out_px)
    distinct = sorted(set(slices))
    block = np.stack([np.asarray(volume_hu[k, rows, columns], dtype=np.float32) for k in distinct])
    # Relative to the border, what lies outside the image contributes nothing.
    windows = (row_weights @ ((block - np.float32(BORDER_HU)) @ column_weights.T)).astype(
        np.float32, copy=False
    )
    windows += np.float32(BORDER_HU)
    return windows[[distinct.index(k) for k in slices]]


def sample_box(
    volume_hu: Volume, at: Placement, pixel_mm: float | Sequence[float], out_zyx: Sequence[int]
) -> NDArray[np.float32]:
    """A box of voxels around the point.

    Args:
        volume_hu: (Z, Y, X) HU.
        at: Place of the point.
        pixel_mm: Side of a cubic voxel of the result, or its sides (z, y, x).
        out_zyx: Voxels of the result.

    Returns:
        HU, of shape `out_zyx`, axes toward the head, the back and the patient's left.
    """
    sides_mm = np.broadcast_to(np.asarray(pixel_mm, dtype=np.float64), 3).tolist()
    (slices, z_weights), (rows, y_weights), (columns, x_weights) = (
        _weights(volume_hu, at, axis, sides_mm[axis], n_out) for axis, n_out in enumerate(out_zyx)
    )
    block = np.asarray(volume_hu[slices, rows, columns], dtype=np.float32) - np.float32(BORDER_HU)
    block = y_weights @ (block @ x_weights.T)
    box = np.tensordot(z_weights, block, axes=1).astype(np.float32, copy=False)
    return box + np.float32(BORDER_HU)


def _weights(
    volume_hu: Volume, at: Placement, axis: int, pixel_mm: float, n_out: int
) -> tuple[slice, NDArray[np.float32]]:
    step = at.steps_zyx[axis] * pixel_mm / at.spacing_mm[axis]
    return axis_weights(volume_hu.shape[axis], float(at.index_zyx[axis]), step, n_out)
