"""Figures of a training run."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from pipelines.cohort.slices import SliceIndex
from pipelines.tracking.run import Run
from pipelines.training.config import PretrainConfig
from pipelines.training.loader import BatchPlan
from transforms.views.batch import draw_views, render_views

matplotlib.use("Agg")

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
    """Show slices of a step's batch beside the two views that the network sees of them, with scale and window."""
    batch = index.read(plan.rows(step * config.accumulation)[:count])
    views = render_views(batch, draw_views(batch, config.views, config.seed, step), config.views)
    mean, std = np.array(config.views.mean)[:, None, None], np.array(config.views.std)[:, None, None]
    rows = len(batch.sample_keys)
    figure = Figure(figsize=(7.5, 2.5 * rows), layout="constrained")
    axes = figure.subplots(rows, 3, squeeze=False)
    for i in range(rows):
        height, width = batch.size_hw[i].tolist()
        axes[i, 0].imshow(batch.triplets_hu[i, 1, :height, :width].numpy(), cmap="gray", vmin=-1350, vmax=150)
        axes[i, 0].set_title("slice, -1350 .. 150 HU", fontsize=8)
        for view in range(2):
            gray = (views.global_views[view, i].numpy() * std + mean).clip(0, 1)[1]
            low, high = views.window_hu[view, i].tolist()
            axes[i, 1 + view].imshow(gray, cmap="gray", vmin=0, vmax=1)
            title = f"{views.mm_per_pixel[view, i]:.2f} mm/px, {low:.0f} .. {high:.0f} HU"
            axes[i, 1 + view].set_title(title, fontsize=8)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure


def curves(run: Run) -> Iterator[tuple[Figure, str]]:
    """Draw the run's loss, entropy and retrieval curves from what it logged."""
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
