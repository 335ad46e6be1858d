"""Cubes of HU around a nodule, at the spacing and in the size of the 3D encoder that reads them.

Voxels need not be cubic, since an encoder is read at the spacing of its training. A patch that was cut to the length
of its nodule gives no third dimension: how long it is would reveal the label, so its center slice is repeated.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from transforms.geometry import VolumeGeometry, lps_to_ras
from transforms.nodule_crop import refuse_gap
from transforms.nodule_sampling import Placement, Volume, place, sample_box

_TO_RAS = np.array([[0.0, 0.0, -1.0], [0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])
"""Steps of (z, y, x), toward the head, the back and the patient's left, in RAS."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CubeSpec:
    """Shape and spacing of a cube, (z, y, x): toward the head, the back and the patient's left (SPL)."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]

    def affine_ras(self, center_lps_mm: ArrayLike) -> NDArray[np.float64]:
        """Return the matrix from (z, y, x, 1) of the cube to RAS mm, (4, 4)."""
        affine = np.eye(4)
        affine[:3, :3] = _TO_RAS * np.array(self.spacing_mm)
        middle = (np.array(self.shape) - 1) / 2
        affine[:3, 3] = lps_to_ras(center_lps_mm) - affine[:3, :3] @ middle
        return affine


def cut_cube(
    volume_hu: Volume, geometry: VolumeGeometry, center_lps_mm: ArrayLike, spec: CubeSpec, is_patch: bool
) -> NDArray[np.float32]:
    """Cut a cube around a point.

    Args:
        volume_hu: (Z, Y, X) HU.
        geometry: Of the volume.
        center_lps_mm: Of the cube, LPS mm.
        spec: Shape and spacing.
        is_patch: Whether the volume was cut to the length of its nodule; its center slice is then repeated along z.

    Returns:
        HU, of shape `spec.shape`; air outside the volume.

    Raises:
        NoCropError: As `check_cube`.
    """
    at = place(geometry, center_lps_mm)
    if is_patch:
        alone = Placement(np.array([0.0, *at.index_zyx[1:]]), at.spacing_mm, at.steps_zyx)
        sides_mm = (at.spacing_mm[0], *spec.spacing_mm[1:])
        one = volume_hu[at.slice_index : at.slice_index + 1]
        return np.repeat(sample_box(one, alone, sides_mm, (1, *spec.shape[1:])), spec.shape[0], axis=0)
    refuse_gap(at, geometry.gaps, spec.shape[0] * spec.spacing_mm[0])
    return sample_box(volume_hu, at, spec.spacing_mm, spec.shape)


def check_cube(
    geometry: VolumeGeometry, center_lps_mm: Sequence[float], spec: CubeSpec, is_patch: bool
) -> None:
    """Refuse a cube that cannot be cut, without reading the volume.

    Raises:
        NoCropError: If the center lies outside the volume, or slices are missing inside the cube.
    """
    at = place(geometry, center_lps_mm)
    if not is_patch:
        refuse_gap(at, geometry.gaps, spec.shape[0] * spec.spacing_mm[0])
