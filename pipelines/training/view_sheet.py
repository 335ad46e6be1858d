"""The sheet of a run's views: slices of a batch beside the two views of each, drawn by MONAI's transforms."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from monai.data.meta_tensor import MetaTensor
from monai.transforms.compose import Compose
from monai.transforms.utility.dictionary import CopyItemsd

from pipelines.cohort.meta_volume import mapped_volume
from pipelines.cohort.slices import SliceIndex
from pipelines.runtime.image_axes import image_axes
from pipelines.training.config import PretrainConfig
from pipelines.training.loader import BatchPlan
from pipelines.training.planes import Shown
from transforms.hounsfield import RandWindowHUd, WindowHU
from transforms.triplet import SliceTripletd
from transforms.views.batch import draw_views
from transforms.views.config import ViewConfig
from transforms.views.cube_crop import RandCubed
from transforms.views.keyed import sample_state
from transforms.views.resample import gaussian_blur, jitter_brightness_contrast
from transforms.views.view_crop import RandViewCropd
from transforms.window_policy import CLINICAL_LUNG_HU

_VIEWS = ("first", "second")


def view_sheet(
    index: SliceIndex, plan: BatchPlan, config: PretrainConfig, step: int, count: int = 6
) -> Figure:
    """Show slices of a step's batch beside the two views that the network gets, with voxel size and window.

    Of a cube the three planes through its middle are shown, and on the slice a frame where it lies.
    """
    rows = plan.rows(step * config.accumulation)[:count]
    draw, columns, side = (_draw_cubes, 7, 1.8) if config.views.is_3d else (_draw_slices, 3, 2.5)
    figure = Figure(figsize=(side * columns, side * len(rows)), layout="constrained")
    for line, row in zip(image_axes(figure, len(rows), columns), rows.tolist(), strict=True):
        draw(line, index, row, config, step)
    return figure


def _draw_slice(axis: Axes, slice_hu: torch.Tensor) -> None:
    axis.imshow(WindowHU(*CLINICAL_LUNG_HU)(slice_hu).numpy(), cmap="gray", vmin=0, vmax=1)
    axis.set_title("slice, {:.0f} .. {:.0f} HU".format(*CLINICAL_LUNG_HU), fontsize=8)


def _draw_slices(
    axes: Sequence[Axes], index: SliceIndex, row: int, config: PretrainConfig, step: int
) -> None:
    shown = slice_and_views(index, row, config.views, config.seed, step)
    _draw_slice(axes[0], shown["image"][1])
    for axis, view in zip(axes[1:], _VIEWS, strict=True):
        axis.imshow(shown[view][1].numpy(), cmap="gray", vmin=0, vmax=1)
        low, high = shown[f"{view}_window_hu"]
        title = f"{shown[f'{view}_mm_per_pixel']:.2f} mm/px, {low:.0f} .. {high:.0f} HU"
        axis.set_title(title, fontsize=8)


def _draw_cubes(axes: Sequence[Axes], index: SliceIndex, row: int, config: PretrainConfig, step: int) -> None:
    shown = slice_and_cubes(index, row, config.views, config.seed, step)
    _draw_slice(axes[0], shown["image"][0, int(index.z[row])])
    to_slice = np.linalg.inv(np.asarray(shown["image"].affine))
    for number, view in enumerate(_VIEWS):
        cube, spacing_mm = shown[view], shown[f"{view}_spacing_mm"]
        planes = Shown(cube.as_tensor(), (1, 1, 1), torch.tensor([spacing_mm])).planes(0)
        low, high = shown[f"{view}_window_hu"]
        titles = (f"{spacing_mm[1]:.2f} mm", f"z {spacing_mm[0]:.2f} mm", f"{low:.0f} .. {high:.0f} HU")
        for axis, plane, title in zip(axes[1 + 3 * number :], planes, titles, strict=False):
            plane.draw(axis, title, cmap="gray", vmin=0, vmax=1)
        edge = cube.shape[-1] - 0.5
        corners = to_slice @ np.asarray(cube.affine) @ np.array([[0, -0.5, -0.5, 1], [0, edge, edge, 1]]).T
        (_, top, left), (_, bottom, right) = corners[:3].T
        frame = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=f"C{number}")
        axes[0].add_patch(frame)


def _series_of(index: SliceIndex, row: int) -> MetaTensor:
    is_own = index.cohort.series["volume_id"] == index.volume_ids[index.volume[row]]
    (series,) = index.cohort.series[is_own].to_dict("records")
    return mapped_volume(index.cohort, series)


def slice_and_cubes(
    index: SliceIndex, row: int, config: ViewConfig, seed: int, step: int
) -> dict[Hashable, Any]:
    """Cut the two global cubes of a slice with MONAI transforms, with the random generators of the batched path.

    Returns:
        `image`: the volume (1, Z, Y, X) in HU, mapped; `first` and `second`: gray in [0, 1], (1, D, S, S), each with
        `<view>_spacing_mm` and `<view>_window_hu`.
    """
    frames, key = index.frames(np.array([row])), int(index.keys(np.array([row]))[0])
    crop = RandCubed(_VIEWS, config, volume_key="image", body_key="body", point_key="point")
    window = RandWindowHUd(_VIEWS, config.window)
    chain = Compose([crop, window])
    crop.set_random_state(
        state=sample_state(seed, step, key, "crop")
    )  # after Compose, which seeds its transforms
    window.set_random_state(state=sample_state(seed, step, key, "window"))
    volume, z = _series_of(index, row), int(index.z[row])
    shown: dict[Hashable, Any] = chain(
        {"image": volume, "z": z, "body": frames.body[0], "point": frames.point_yx_px[0]}
    )
    return shown


def slice_and_views(
    index: SliceIndex, row: int, config: ViewConfig, seed: int, step: int
) -> dict[Hashable, Any]:
    """Cut one triplet and its two global views with MONAI transforms, with the random generators of the batched path.

    Returns:
        `image`: the triplet (3, H, W) in HU; `first` and `second`: gray in [0, 1], (3, S, S), each with
        `<view>_mm_per_pixel` and `<view>_window_hu`.
    """
    batch = index.read([row])
    crop = RandViewCropd(_VIEWS, config, body_key="body", point_key="point")
    window = RandWindowHUd(_VIEWS, config.window)
    chain = Compose([SliceTripletd("image"), CopyItemsd("image", times=2, names=_VIEWS), crop, window])
    key = int(batch.sample_keys[0])  # after Compose, which seeds its transforms
    crop.set_random_state(state=sample_state(seed, step, key, "crop"))
    window.set_random_state(state=sample_state(seed, step, key, "window"))
    shown: dict[Hashable, Any] = chain(
        {
            "image": _series_of(index, row),
            "z": int(index.z[row]),
            "body": batch.body[0].numpy(),
            "point": batch.center_yx_px[0].numpy(),
        }
    )
    draws = draw_views(batch, config, seed, step)
    for number, view in enumerate(_VIEWS):
        gray = shown[view].as_tensor()[None]
        if any(config.color_jitter):
            brightness, contrast = (
                torch.from_numpy(drawn[number].astype(np.float32))
                for drawn in (draws.brightness, draws.contrast)
            )
            gray = jitter_brightness_contrast(gray, brightness, contrast)
        if any(config.gaussian_blur):
            gray = gaussian_blur(gray, torch.from_numpy(draws.blur_px[number].astype(np.float32)))
        shown[view] = gray[0]
    return shown
