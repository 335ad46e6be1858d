"""Three neighboring slices as the three channels of one image: (z - 1, z, z + 1), or so many mm apart.

Nothing is interpolated. Where a neighbor does not exist (volume edge) or is not one (a gap between slices),
z itself is repeated, and a flag says so.
"""

from collections.abc import Collection, Hashable, Mapping
from typing import Any

import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform, Transform
from numpy.typing import NDArray

from transforms.geometry import VolumeGeometry, lps_to_ras, triplet_indices
from transforms.refusal import TransformError

VOLUME_KEYS = ("affine", "original_affine", "spatial_shape", "gaps", "slice_offsets_mm")
"""Entries of a MetaTensor's meta that hold for the whole volume and are dropped for a slice."""


class SliceTriplet(Transform):
    """Cut the triplet around one slice out of a volume; array form of `SliceTripletd`.

    Args:
        stride: Distance of the neighbors in slices.
        distance_mm: Distance of the neighbors in mm instead; the nearest slices are taken.
    """

    def __init__(self, stride: int = 1, distance_mm: float | None = None) -> None:
        """Keep how far away the neighbors are; TransformError if that is not a positive distance."""
        triplet_indices(1, 0, 1.0, (), stride, distance_mm)
        self.stride = stride
        self.distance_mm = distance_mm
        self.is_replicated = False

    def __call__(  # type: ignore[override]  # which slice is an argument, not a setting
        self,
        volume_hu: torch.Tensor | NDArray[Any],
        z: int,
        spacing_z_mm: float | None = None,
        gaps: Collection[int] | None = None,
    ) -> torch.Tensor | NDArray[Any]:
        """Cut the triplet; `is_replicated` then says whether z was repeated in place of a neighbor.

        Args:
            volume_hu: (Z, Y, X), or channel first (1, Z, Y, X). A MetaTensor brings its own spacing (affine)
                and gaps (see `VolumeGeometry.from_meta`).
            z: Index of the middle slice.
            spacing_z_mm: Distance between slice centers, for a plain array with `distance_mm`.
            gaps: Indices i where a gap lies between slice i and i + 1; None takes those of the MetaTensor.

        Returns:
            (3, Y, X), channels (below, z, above), same kind and dtype. A MetaTensor keeps the in-plane
            geometry: its affine takes (y, x, 0, 1) to RAS mm on slice z.

        Raises:
            TransformError: If the shape is not that of a volume, z is not in it, or a MetaTensor's affine says that
                its axes are not (z toward the head, y, x).
        """
        if not (volume_hu.ndim == 3 or (volume_hu.ndim == 4 and volume_hu.shape[0] == 1)):
            raise TransformError(
                f"a triplet is cut from a volume (Z, Y, X) or (1, Z, Y, X), got shape {tuple(volume_hu.shape)}"
            )
        if not isinstance(volume_hu, MetaTensor):
            return self._cut(volume_hu[0] if volume_hu.ndim == 4 else volume_hu, z, spacing_z_mm, gaps or ())
        geometry = VolumeGeometry.from_meta(volume_hu.shape, volume_hu.affine, volume_hu.meta)
        geometry.check_axes()
        spacing_z_mm = geometry.spacing_mm[0] if spacing_z_mm is None else spacing_z_mm
        gaps = geometry.gaps if gaps is None else gaps
        triplet = self._cut(volume_hu.as_tensor().reshape(geometry.shape), z, spacing_z_mm, gaps)
        plane = geometry.affine_ras[:, [1, 2, 0, 3]]
        plane[:3, 3] = lps_to_ras(geometry.to_lps((int(z), 0, 0)))
        kept = {name: value for name, value in volume_hu.meta.items() if name not in VOLUME_KEYS}
        return MetaTensor(triplet, affine=torch.from_numpy(plane), meta=kept)

    def _cut(
        self, volume: Any, z: int, spacing_z_mm: float | None, gaps: Collection[int]
    ) -> torch.Tensor | NDArray[Any]:
        indices, self.is_replicated = triplet_indices(
            len(volume), int(z), spacing_z_mm, gaps, self.stride, self.distance_mm
        )
        triplet: torch.Tensor | NDArray[Any] = volume[list(indices)]
        return triplet


class SliceTripletd(MapTransform):
    """Cut the triplet around slice `data[z_key]` out of each key.

    Adds `<key>_is_replicated`: whether z was repeated in place of a missing neighbor.
    """

    def __init__(
        self,
        keys: KeysCollection,
        z_key: str = "z",
        stride: int = 1,
        distance_mm: float | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        """Take the keys, the key that holds the slice index, and how far away the neighbors are."""
        super().__init__(keys, allow_missing_keys)
        self.z_key = z_key
        self.cut = SliceTriplet(stride, distance_mm)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Cut every key."""
        cut = dict(data)
        for key in self.key_iterator(cut):
            cut[key] = self.cut(cut[key], cut[self.z_key])
            cut[f"{key}_is_replicated"] = self.cut.is_replicated
        return cut
