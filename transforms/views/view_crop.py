"""Random crops of a triplet as MONAI transforms: the geometry of `views.batch` for one sample in a `Compose`.

Given the same generators, `SliceTripletd`, `RandViewCropd`, `RandWindowHUd` and a normalization show exactly the
views of the batched path: `set_random_state(state=sample_state(seed, step, key, "crop"))`, and "window".
"""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform, Randomizable
from numpy.typing import NDArray

from transforms.body_grid import GRID
from transforms.refusal import TransformError
from transforms.triplet import VOLUME_KEYS
from transforms.views.config import Interpolation, ViewConfig
from transforms.views.crops import UNIFORMS_PER_CROP, SliceFrames, crop_flips, place_crops
from transforms.views.resample import resize_crop


def pixel_spacing_mm(triplet_hu: Any, pixel_mm: tuple[float, float] | None) -> tuple[float, float]:
    """Return the pixel spacing (y, x) that was given, or else that of the MetaTensor's affine.

    Raises:
        TransformError: If there is neither.
    """
    if pixel_mm is not None:
        return pixel_mm
    if isinstance(triplet_hu, MetaTensor):
        columns = np.linalg.norm(np.asarray(triplet_hu.affine, dtype=np.float64)[:3, :2], axis=0)
        return float(columns[0]), float(columns[1])
    raise TransformError(
        "a view has no scale without the pixel spacing; give pixel_mm, or a MetaTensor with an affine"
    )


def _check_slice(image: Any) -> None:
    """Refuse what is no slice: of a volume, rows and columns would be taken for other axes."""
    is_slice = image.ndim == 3
    if is_slice and isinstance(image, MetaTensor):
        across = np.abs(np.asarray(image.affine, dtype=np.float64)[:3, 2])
        is_slice = int(across.argmax()) == 2
    if not is_slice:
        raise TransformError(
            f"a view is cut from an axial slice (C, H, W), got shape {tuple(image.shape)} whose last axes are no rows "
            "and columns of one; cut a triplet out of the volume before, by SliceTripletd"
        )


def cut_view(
    triplet_hu: Any,
    box_yxhw: NDArray[np.float64],
    is_flipped: bool,
    size_px: int,
    interpolation: Interpolation = "bicubic",
) -> torch.Tensor:
    """Crop, resize and mirror a triplet.

    Args:
        triplet_hu: (3, H, W) HU, array or tensor; a MetaTensor's affine takes (y, x, 0, 1) to RAS mm.
        box_yxhw: Top, left, height and width of the crop in pixels.
        is_flipped: Whether to mirror left and right.
        size_px: Side of the view.
        interpolation: The kernel.

    Returns:
        (3, size_px, size_px) float32 HU; a MetaTensor, with the affine of the view, if one came in.
    """
    view = np.empty((len(triplet_hu), size_px, size_px), dtype=np.float32)
    resize_crop(np.asarray(triplet_hu), box_yxhw, size_px, is_flipped, view, interpolation)
    if not isinstance(triplet_hu, MetaTensor):
        return torch.from_numpy(view)
    top, left, height, width = (float(n) for n in box_yxhw)
    step_y, step_x = height / size_px, width / size_px
    to_slice = np.diag([step_y, step_x, 1.0, 1.0])
    to_slice[:2, 3] = top + step_y / 2 - 0.5, left + step_x / 2 - 0.5
    if is_flipped:
        to_slice[1, 3] += step_x * (size_px - 1)
        to_slice[1, 1] = -step_x
    affine = np.asarray(triplet_hu.affine, dtype=np.float64) @ to_slice
    meta = {name: value for name, value in triplet_hu.meta.items() if name not in VOLUME_KEYS}
    return MetaTensor(torch.from_numpy(view), affine=torch.from_numpy(affine), meta=meta)


class RandViewCropd(Randomizable, MapTransform):
    """Crop, resize and mirror each key at random: the keys are the global views of one sample.

    Reads of the config what concerns the geometry of global views; window and normalization are the transforms
    that follow. Under `shared_scale` all keys get one scale. Adds `<key>_mm_per_pixel` beside each key.
    """

    def __init__(
        self,
        keys: KeysCollection,
        config: ViewConfig | None = None,
        body_key: str | None = None,
        point_key: str | None = None,
        pixel_mm_key: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        """Name the views and what they are drawn from.

        Args:
            keys: Triplets (3, H, W) in HU, one copy per view.
            config: Settings of the views (default `ViewConfig()`).
            body_key: Holds the body grid (32, 32) uint8: 0 outside, 1 body, 2 lung.
            point_key: Holds a point (y, x) in pixel indices, for `center="point"`.
            pixel_mm_key: Holds the pixel spacing (y, x) in mm; a MetaTensor brings its own.
            allow_missing_keys: As in all MONAI transforms.

        Raises:
            TransformError: If crops are to be centered on something that no key holds.
        """
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.config = config or ViewConfig()
        self.body_key, self.point_key, self.pixel_mm_key = body_key, point_key, pixel_mm_key
        keys_by_center = {"body": "body_key", "lung": "body_key", "point": "point_key", "uniform": ""}
        needed = keys_by_center[self.config.center]
        if needed and getattr(self, needed) is None:
            raise TransformError(
                f"crops centered on the {self.config.center} need {needed}; name it, or use center='uniform'"
            )
        self.uniforms = np.zeros((len(self.keys), UNIFORMS_PER_CROP))

    def randomize(self, data: Any = None) -> None:
        """Draw the uniform numbers of all keys from `self.R`."""
        self.uniforms = self.R.random_sample((len(self.keys), UNIFORMS_PER_CROP))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Cut a view out of every key."""
        cut = dict(data)
        self.randomize()
        flips = crop_flips(self.config, self.uniforms)
        for view, key in enumerate(self.keys):
            if key not in cut and self.allow_missing_keys:
                continue
            _check_slice(cut[key])
            pixel_mm = pixel_spacing_mm(cut[key], cut[self.pixel_mm_key] if self.pixel_mm_key else None)
            box = place_crops(
                self.config, self.uniforms[:, None], len(self.keys), self._frame(cut, key, pixel_mm)
            )
            box_yxhw = box[view, 0]
            size_px, interpolation = self.config.size_px, self.config.interpolation
            cut[key] = cut_view(cut[key], box_yxhw, bool(flips[view]), size_px, interpolation)
            cut[f"{key}_mm_per_pixel"] = float(np.sqrt((box_yxhw[2:] * pixel_mm).prod())) / size_px
        return cut

    def _frame(
        self, data: Mapping[Hashable, Any], key: Hashable, pixel_mm: tuple[float, float]
    ) -> SliceFrames:
        body = data[self.body_key] if self.body_key else np.ones((GRID, GRID), np.uint8)
        point = data[self.point_key] if self.point_key else (np.nan, np.nan)
        return SliceFrames(
            size_hw=np.array([data[key].shape[-2:]], dtype=np.int64),
            pixel_mm=np.array([pixel_mm], dtype=np.float64),
            body=np.asarray(body)[None],
            point_yx_px=np.array([point], dtype=np.float64),
        )
