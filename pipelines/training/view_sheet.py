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
from pipelines.runtime.ct_marks import mark_ct, sides_of
from pipelines.runtime.image_axes import image_axes
from pipelines.runtime.plot_style import new_figure, stroke
from pipelines.training.config import PretrainConfig
from pipelines.training.loader import BatchPlan
from pipelines.training.planes import Shown
from transforms.hounsfield import RandWindowHUd, WindowHU
from transforms.refusal import number_of
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
    draw, columns, side = (_draw_cubes, 7, 1.5) if config.views.is_3d else (_draw_slices, 3, 2.2)
    title = f"{number_of(len(rows), 'slice')}, and the two views that the network gets of each"
    figure = new_figure(side * columns, (side + 0.15) * len(rows) + 0.3, title)
    for line, row in zip(image_axes(figure, len(rows), columns), rows.tolist(), strict=True):
        draw(line, index, row, config, step)
    return figure


def _draw_slice(axis: Axes, slice_hu: torch.Tensor, affine: Any) -> None:
    axis.imshow(WindowHU(*CLINICAL_LUNG_HU)(slice_hu).numpy(), cmap="gray", vmin=0, vmax=1)
    axis.set_title("slice")
    _mark(axis, affine, CLINICAL_LUNG_HU)


def _mark(axis: Axes, affine: Any, window_hu: tuple[float, float]) -> None:
    """Mark a slice or view whose affine takes (y, x) to RAS mm by its first two columns."""
    down, right = np.asarray(affine, dtype=np.float64)[:3, :2].T
    mark_ct(axis, sides_of(down, right), float(np.linalg.norm(right)), window_hu)


def _draw_slices(
    axes: Sequence[Axes], index: SliceIndex, row: int, config: PretrainConfig, step: int
) -> None:
    shown = slice_and_views(index, row, config.views, config.seed, step)
    _draw_slice(axes[0], shown["image"][1].as_tensor(), shown["image"].affine)
    for axis, view in zip(axes[1:], _VIEWS, strict=True):
        axis.imshow(shown[view][1].numpy(), cmap="gray", vmin=0, vmax=1)
        axis.set_title(f"{view} view, {shown[f'{view}_mm_per_pixel']:.2f} mm/px")
        _mark(axis, shown[f"{view}_affine"], shown[f"{view}_window_hu"])


def _draw_cubes(axes: Sequence[Axes], index: SliceIndex, row: int, config: PretrainConfig, step: int) -> None:
    shown = slice_and_cubes(index, row, config.views, config.seed, step)
    affine = np.asarray(shown["image"].affine)
    _draw_slice(axes[0], shown["image"].as_tensor()[0, int(index.z[row])], affine[:, 1:])
    to_slice = np.linalg.inv(affine)
    for number, view in enumerate(_VIEWS):
        cube, spacing_mm = shown[view], shown[f"{view}_spacing_mm"]
        directions = np.asarray(cube.affine)[None, :3, :3].transpose(0, 2, 1)
        window_hu = torch.tensor([shown[f"{view}_window_hu"]])
        drawn = Shown(cube.as_tensor(), (1, 1, 1), torch.tensor([spacing_mm]), directions, window_hu)
        titles = (f"{spacing_mm[1]:.2f} mm/px", f"z {spacing_mm[0]:.2f} mm", "")
        for axis, plane, title in zip(axes[1 + 3 * number :], drawn.planes(0), titles, strict=False):
            plane.draw_ct(axis, title)
        edge = cube.shape[-1] - 0.5
        corners = to_slice @ np.asarray(cube.affine) @ np.array([[0, -0.5, -0.5, 1], [0, edge, edge, 1]]).T
        (_, top, left), (_, bottom, right) = corners[:3].T
        frame = Rectangle(
            (left, top),
            right - left,
            bottom - top,
            fill=False,
            edgecolor=stroke(number).color,
            linestyle=stroke(number).linestyle,
        )
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
        `<view>_mm_per_pixel`, `<view>_window_hu` and `<view>_affine`, from its (y, x, 0, 1) to RAS mm.
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
        gray, shown[f"{view}_affine"] = shown[view].as_tensor()[None], shown[view].affine
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
