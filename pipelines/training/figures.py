"""Figures of a training run."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from monai.transforms.compose import Compose
from monai.transforms.utility.dictionary import CopyItemsd

from pipelines.cohort.meta_volume import mapped_volume
from pipelines.cohort.slices import SliceIndex
from pipelines.tracking.run import Run
from pipelines.training.config import PretrainConfig
from pipelines.training.loader import BatchPlan
from transforms.hounsfield import RandWindowHUd, WindowHU
from transforms.triplet import SliceTripletd
from transforms.views.batch import draw_views, sample_state
from transforms.views.config import ViewConfig
from transforms.views.intensity import gaussian_blur, jitter_brightness_contrast
from transforms.views.view_crop import RandViewCropd
from transforms.window_policy import CLINICAL_LUNG_HU

matplotlib.use("Agg")

_VIEWS = ("first", "second")
_CURVES = {
    "loss": ("loss/total", "loss/dino", "loss/simclr", "loss/mae", "loss/gram", "loss/koleo", "loss/ibot"),
    "entropy": ("teacher/entropy", "student/entropy", "teacher/gain"),
    "retrieval": (
        "retrieval/top1",
        "retrieval/top1_ci_low",
        "retrieval/top1_ci_high",
        "retrieval/student_top1",
    ),
}
_UNITS = {"loss": "loss (nats for DINO)", "entropy": "nats", "retrieval": "top-1"}


def view_sheet(
    index: SliceIndex, plan: BatchPlan, config: PretrainConfig, step: int, count: int = 6
) -> Figure:
    """Show slices of a step's batch beside the two views that the network gets, with pixel size and window."""
    rows = plan.rows(step * config.accumulation)[:count]
    figure = Figure(figsize=(7.5, 2.5 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 3, squeeze=False)
    for (first, *others), row in zip(axes, rows.tolist(), strict=True):
        shown = slice_and_views(index, row, config.views, config.seed, step)
        first.imshow(WindowHU(*CLINICAL_LUNG_HU)(shown["image"][1]).numpy(), cmap="gray", vmin=0, vmax=1)
        first.set_title("slice, {:.0f} .. {:.0f} HU".format(*CLINICAL_LUNG_HU), fontsize=8)
        for axis, view in zip(others, _VIEWS, strict=True):
            axis.imshow(shown[view][1].numpy(), cmap="gray", vmin=0, vmax=1)
            low, high = shown[f"{view}_window_hu"]
            title = f"{shown[f'{view}_mm_per_pixel']:.2f} mm/px, {low:.0f} .. {high:.0f} HU"
            axis.set_title(title, fontsize=8)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure


def slice_and_views(
    index: SliceIndex, row: int, config: ViewConfig, seed: int, step: int
) -> dict[Hashable, Any]:
    """Cut one triplet and its two global views with MONAI transforms, with the random generators of the batched path.

    Returns:
        `image`: the triplet (3, H, W) in HU; `first` and `second`: gray in [0, 1], (3, S, S), each with
        `<view>_mm_per_pixel` and `<view>_window_hu`.
    """
    batch = index.read([row])
    (series,) = index.cohort.series[
        index.cohort.series["volume_id"] == index.volume_ids[index.volume[row]]
    ].to_dict("records")
    crop = RandViewCropd(_VIEWS, config, body_key="body", point_key="point")
    window = RandWindowHUd(_VIEWS, config.window)
    chain = Compose([SliceTripletd("image"), CopyItemsd("image", times=2, names=_VIEWS), crop, window])
    key = int(batch.sample_keys[0])  # after Compose, which seeds its transforms
    crop.set_random_state(state=sample_state(seed, step, key, "crop"))
    window.set_random_state(state=sample_state(seed, step, key, "window"))
    shown: dict[Hashable, Any] = chain(
        {
            "image": mapped_volume(index.cohort, series),
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


def curves(run: Run) -> Iterator[tuple[Figure, str]]:
    """Draw the run's loss, entropy and retrieval curves from its logged metrics."""
    for name, keys in _CURVES.items():
        histories = {key: run.history(key) for key in keys}
        drawn = {key: points for key, points in histories.items() if points}
        if not drawn:
            continue
        figure = Figure(figsize=(7, 4), layout="constrained")
        axis = figure.subplots()
        for key, points in drawn.items():
            axis.plot([step for step, _ in points], [value for _, value in points], label=key)
        axis.set_xlabel("step (optimizer updates)")
        axis.set_ylabel(_UNITS[name])
        axis.grid(alpha=0.3)
        figure.legend(loc="outside upper center", ncols=3, fontsize=8)
        yield figure, name
