"""Figures of view retrieval: hits and misses, and the trajectory of a pretraining."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipelines.backbones.view_retrieval import SliceSample, directions_of, render_sample
from pipelines.runtime.image_axes import image_axes
from pipelines.runtime.plot_style import REFERENCE, band, new_figure, stroke
from pipelines.training.planes import Shown
from probes.retrieval import RetrievalResult
from transforms.refusal import number_of

Ints = NDArray[np.int64]


def contact_sheet(sample: SliceSample, found: RetrievalResult, count: int = 4) -> Figure:
    """Show hits and misses: the query, its own second view, and of a miss the view that the network found nearest.

    No picture is shown twice: of a hit the nearest is its own view, and no slice is in two lines.
    """
    shown: set[int] = set()
    chosen = [
        *_each_new(np.flatnonzero(found.rank == 0), found.nearest, count, shown),
        *_each_new(np.flatnonzero(found.rank > 0), found.nearest, count, shown),
    ]
    title = f"Retrieval of {number_of(found.n, 'slice')}: hits and misses"
    figure = new_figure(5.4, 1.85 * max(len(chosen), 1) + 0.4, title)
    axes = image_axes(figure, max(len(chosen), 1), 3)
    series = sample.series_ids
    for line, query in zip(axes, chosen, strict=False):
        nearest = int(found.nearest[query])
        (first, second), (_, other) = (_shown(sample, row) for row in (query, nearest))
        if found.rank[query] == 0:
            relation = f"hit: the nearest of {found.n}"
        elif series[nearest] == series[query]:
            apart = abs(int(sample.slice_index[nearest]) - int(sample.slice_index[query]))
            relation = f"miss: same series, {number_of(apart, 'slice')} off"
        else:
            relation = "miss: another series"
        titles = ("query", f"its own view (rank {int(found.rank[query]) + 1})", relation)
        for axis, view, title in zip(line, (first, second, other), titles, strict=True):
            if title.startswith("hit"):
                axis.text(0.5, 0.5, title, ha="center", va="center")
                continue
            view.planes(0)[0].draw_ct(axis, title)
    return figure


def _shown(sample: SliceSample, number: int) -> list[Shown]:
    """Return the two views of a slice of the sample."""
    rows = sample.rows[[number]]
    rendered, directions = render_sample(sample, rows, torch.device("cpu")), directions_of(sample, rows)
    return [
        Shown.of(
            rendered.global_views[view],
            sample.views,
            (1, 1, 1),
            rendered.spacing_mm[view],
            directions[view],
            rendered.window_hu[view],
        )
        for view in range(2)
    ]


def trajectory(steps: Sequence[int], found: Sequence[RetrievalResult]) -> Figure:
    """Draw top-1 with its interval over patients, and top-5, over the steps of a pretraining."""
    figure = new_figure(5.2, 3.8, f"View retrieval of the kept backbones, {number_of(found[0].n, 'slice')}")
    axis, first, second = figure.subplots(), stroke(0), stroke(1)
    top1 = np.array([[one.top1.value, one.top1.ci_low, one.top1.ci_high] for one in found])
    axis.plot(steps, top1[:, 0], **first.line, marker=first.marker, label="top-1")
    band(axis, steps, top1[:, 1], top1[:, 2], first.color, "95% interval over patients")
    axis.plot(steps, [one.top5.value for one in found], **second.line, marker=second.marker, label="top-5")
    axis.axhline(found[0].chance, **REFERENCE, label=f"chance, 1 / {found[0].n}")
    axis.set(ylim=(0, 1.05 * max(one.top5.value for one in found)), xlabel="step (optimizer updates)")
    axis.set(ylabel="share of slices")
    axis.grid()
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _each_new(rows: Ints, nearest: Ints, count: int, shown: set[int]) -> list[int]:
    """Choose queries, spread evenly, of which neither slice is shown yet; `shown` gets theirs."""
    chosen: list[int] = []
    for row in dict.fromkeys([*_evenly(rows, count).tolist(), *rows.tolist()]):
        own = {row, int(nearest[row])}
        if len(chosen) < count and not shown & own:
            chosen.append(row)
            shown |= own
    return chosen


def _evenly(rows: Ints, count: int) -> Ints:
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)] if len(rows) else rows
