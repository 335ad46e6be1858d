"""Crops around a nodule as MONAI transforms; `transforms.nodule_crop` says what is cut, and how."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform, Randomizable, Transform
from numpy.typing import ArrayLike

from transforms.geometry import VolumeGeometry
from transforms.nodule_crop import CropSpec, crop_nodule
from transforms.refusal import TransformError


class NoduleCrop(Randomizable, Transform):
    """Crop a volume around a nodule; array form of `NoduleCropd`.

    Args:
        spec: Form and size of the crop.
        jitter_mm: Largest random shift of the center in x and in y. Only with `set_random_state`: an unseeded
            shift would be a different crop in every run.
    """

    def __init__(self, spec: CropSpec, jitter_mm: float = 0.0) -> None:
        """Keep the specification; TransformError if the jitter is negative."""
        if jitter_mm < 0:
            raise TransformError(f"jitter_mm must not be negative, got {jitter_mm}")
        self.spec = spec
        self.jitter_mm = jitter_mm
        self.is_seeded = False
        self.is_replicated = False
        self.shift_lps_mm = np.zeros(3)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> "NoduleCrop":
        """Seed the jitter."""
        super().set_random_state(seed, state)
        self.is_seeded = True
        return self

    def randomize(self, data: Any = None) -> None:
        """Draw the shift of the center."""
        if self.jitter_mm == 0:
            return
        if not self.is_seeded:
            raise TransformError(
                "jitter_mm is not 0 but the transform has no seed; call set_random_state first"
            )
        self.shift_lps_mm[:2] = self.R.uniform(-self.jitter_mm, self.jitter_mm, 2)

    def __call__(  # type: ignore[override]  # where the nodule lies is an argument, not a setting
        self,
        volume_hu: MetaTensor,
        center_lps_mm: ArrayLike,
        diameter_mm: float | None = None,
        randomize: bool = True,
    ) -> torch.Tensor:
        """Crop; `is_replicated` then says whether a slice was repeated in place of a missing neighbor.

        Args:
            volume_hu: (1, Z, Y, X) with its affine; `meta` may carry gaps, slice_offsets_mm and kind
                ("patch": the volume was cut to the length of its nodule).
            center_lps_mm: Center of the nodule, LPS mm.
            diameter_mm: Of the nodule; read by the control arm alone.
            randomize: Whether to draw a new shift, or to keep the last one.

        Returns:
            HU, float32, shaped as `CropSpec.form` says.

        Raises:
            TransformError: If the volume has no geometry, or its axes are not (z toward the head, y, x).
            NoCropError: If the nodule cannot be cropped so (see `crop_nodule`).
        """
        if not isinstance(volume_hu, MetaTensor) or volume_hu.ndim != 4 or volume_hu.shape[0] != 1:
            raise TransformError(
                f"a nodule is cropped from a MetaTensor (1, Z, Y, X), which carries its affine; got "
                f"{type(volume_hu).__name__} of shape {tuple(volume_hu.shape)}"
            )
        if randomize:
            self.randomize()
        crop = crop_nodule(
            volume_hu.as_tensor()[0].cpu().numpy(),
            VolumeGeometry.from_meta(volume_hu.shape, volume_hu.affine, volume_hu.meta),
            np.asarray(center_lps_mm, dtype=np.float64) + self.shift_lps_mm,
            self.spec,
            is_patch=volume_hu.meta.get("kind") == "patch",
            diameter_mm=diameter_mm,
        )
        self.is_replicated = crop.is_replicated
        return torch.from_numpy(crop.hu)


class NoduleCropd(Randomizable, MapTransform):
    """Crop each key around the nodule at `data[center_key]`.

    Adds `<key>_is_replicated`. The control arm reads the diameter from `data["diameter_mm"]`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spec: CropSpec,
        center_key: str = "center_lps_mm",
        jitter_mm: float = 0.0,
        allow_missing_keys: bool = False,
    ) -> None:
        """Take the keys, what to cut, and the key that holds the center."""
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.center_key = center_key
        self.crop = NoduleCrop(spec, jitter_mm)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> "NoduleCropd":
        """Seed the jitter."""
        super().set_random_state(seed, state)
        self.crop.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Crop every key, all with the same shift."""
        cropped = dict(data)
        self.crop.randomize()
        for key in self.key_iterator(cropped):
            diameter_mm = cropped.get("diameter_mm")
            cropped[key] = self.crop(cropped[key], cropped[self.center_key], diameter_mm, randomize=False)
            cropped[f"{key}_is_replicated"] = self.crop.is_replicated
        return cropped
