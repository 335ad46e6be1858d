"""Figures of view retrieval: examples of hits and misses, and the trajectory over the steps of a pretraining."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipelines.backbones.view_retrieval import SliceSample, render_rows
from probes.retrieval import RetrievalResult

matplotlib.use("Agg")


def contact_sheet(sample: SliceSample, found: RetrievalResult, count: int = 4) -> Figure:
    """Show hits and misses: the query, its own second view, and the view that the network found nearest."""
    hits, misses = np.flatnonzero(found.rank == 0), np.flatnonzero(found.rank > 0)
    chosen = np.concatenate([_evenly(hits, count), _evenly(misses, count)])
    figure = Figure(figsize=(6, 2.1 * max(len(chosen), 1)), layout="constrained")
    axes = figure.subplots(max(len(chosen), 1), 3, squeeze=False)
    series = sample.series_ids
    for line, query in zip(axes, chosen.tolist(), strict=False):
        nearest = int(found.nearest[query])
        own, other = (
            render_rows(sample, sample.rows[[row]], torch.device("cpu")) for row in (query, nearest)
        )
        is_hit = found.rank[query] == 0
        if is_hit:
            relation = "hit"
        elif series[nearest] == series[query]:
            apart = abs(int(sample.slice_index[nearest]) - int(sample.slice_index[query]))
            relation = f"miss: same series, {apart} slices off"
        else:
            relation = "miss: another series"
        titles = ("query", f"its own view (rank {int(found.rank[query]) + 1})", relation)
        for axis, image, title in zip(line, (own[0, 0], own[1, 0], other[1, 0]), titles, strict=True):
            axis.imshow(_gray(image, sample), cmap="gray", vmin=0, vmax=1)
            axis.set_title(title, fontsize=8)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure


def trajectory(steps: Sequence[int], found: Sequence[RetrievalResult]) -> Figure:
    """Draw top-1 with its interval over patients, and top-5, over the steps of a pretraining."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axis = figure.subplots()
    top1 = np.array([[one.top1.value, one.top1.ci_low, one.top1.ci_high] for one in found])
    axis.plot(steps, top1[:, 0], marker="o", label="top-1")
    axis.fill_between(steps, top1[:, 1], top1[:, 2], alpha=0.2, label="95% interval over patients")
    axis.plot(steps, [one.top5.value for one in found], marker=".", label="top-5")
    axis.axhline(found[0].chance, color="gray", linestyle=":", label=f"chance, 1 / {found[0].n}")
    axis.set_yscale("log")
    axis.set_xlabel("step (optimizer updates)")
    axis.set_ylabel("share of slices")
    axis.legend(fontsize=8)
    return figure


def _evenly(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)] if len(rows) else rows


def _gray(image: torch.Tensor, sample: SliceSample) -> NDArray[np.float32]:
    """Return the middle slice of a normalized view, in [0, 1]."""
    return np.asarray(image[1].numpy() * sample.views.std[1] + sample.views.mean[1], dtype=np.float32)
