"""Figures of the probes: ROC, calibration and net benefit; spectrum and map of features; retrieval."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from pipelines.backbones.view_retrieval import SliceSample, render_rows
from pipelines.runtime.image_axes import image_axes
from pipelines.training.planes import Shown
from probes.retrieval import RetrievalResult
from probes.statistics.calibration import decision_curve

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_MOST_NAMED = 8  # more names than this are colored without a legend


def roc_figure(labels: Ints, scores: Mapping[str, Floats]) -> Figure:
    """Draw the ROC curve of every row."""
    figure = Figure(figsize=(5.5, 5.5), layout="constrained")
    axis = figure.subplots()
    for name, values in scores.items():
        known = np.isfinite(values)  # without the nodules whose diameter is not known, in rows that need it
        false_positive, true_positive, _ = roc_curve(labels[known], values[known])
        axis.plot(false_positive, true_positive, label=name.replace("_", " "))
    axis.plot([0, 1], [0, 1], color="gray", linestyle=":", label="chance")
    axis.set(xlabel="1 - specificity", ylabel="sensitivity")
    axis.legend(fontsize=8)
    return figure


def calibration_figure(labels: Ints, probabilities: Floats, bins: int = 8) -> Figure:
    """Draw the observed share of malignant nodules against the predicted one, in bins of equal size."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axis = figure.subplots()
    groups = np.array_split(np.argsort(probabilities, kind="stable"), min(bins, len(labels)))
    axis.plot([probabilities[g].mean() for g in groups], [labels[g].mean() for g in groups], marker="o")
    axis.plot([0, 1], [0, 1], color="gray", linestyle=":")
    axis.set(xlabel="predicted probability of a malignant label", ylabel="observed share")
    return figure


def forest_figure(known: pd.DataFrame) -> Figure:
    """Draw the partial Spearman correlation with each characteristic, with interval, of every row."""
    names, rows = known["characteristic"].unique().tolist(), known["row"].unique().tolist()
    figure = Figure(figsize=(7, 1.2 + 0.75 * len(names)), layout="constrained")
    axis = figure.subplots()
    for number, row in enumerate(rows):
        own = known[known["row"] == row].set_index("characteristic").loc[names]
        place = np.arange(len(names)) + (number - (len(rows) - 1) / 2) * 0.18
        value = own["partial_spearman"].to_numpy()
        ends = (value - own["partial_spearman_ci_low"], own["partial_spearman_ci_high"] - value)
        label = row.replace("_", " ").replace("random", "random weights", row == "random")
        axis.errorbar(value, place, xerr=np.array(ends), fmt="o", markersize=4, capsize=2, label=label)
    axis.axvline(0, color="gray", linestyle=":")
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set(xlabel="partial Spearman correlation beyond size and attenuation, 95% interval")
    figure.legend(loc="outside upper center", ncols=len(rows), fontsize=8)
    return figure


def few_shot_figure(shots: pd.DataFrame) -> Figure:
    """Draw the AUROC on the test cohort against the number of nodules fitted on: mean and range of the draws."""
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axis = figure.subplots()
    for number, (row, own) in enumerate(shots.groupby("row")):
        areas = own.groupby("n_nodules")["auroc"].agg(["mean", "min", "max"])
        ends = [areas["mean"] - areas["min"], areas["max"] - areas["mean"]]
        place = areas.index.to_numpy() * 1.04**number  # beside each other
        axis.errorbar(place, areas["mean"], ends, marker="o", capsize=3, label=str(row).replace("_", " "))
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted(shots["n_nodules"].unique()), sorted(shots["n_nodules"].unique()))
    axis.set(xlabel="nodules to fit on", ylabel="AUROC on the test cohort, range of draws")
    axis.legend(fontsize=8)
    return figure


def decision_figure(labels: Ints, probabilities: Mapping[str, Floats]) -> Figure:
    """Draw the net benefit over thresholds, beside calling all nodules, or none, malignant."""
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axis = figure.subplots()
    for name, values in probabilities.items():
        known = np.isfinite(values)
        curve = decision_curve(labels[known], values[known])
        axis.plot(curve.threshold, curve.net_benefit, label=name.replace("_", " "))
    axis.plot(curve.threshold, curve.treat_all, color="gray", linestyle="--", label="all malignant")
    axis.axhline(0, color="gray", linestyle=":", label="none malignant")
    axis.set_ylim(bottom=-0.05)
    axis.set(xlabel="threshold probability", ylabel="net benefit")
    axis.legend(fontsize=8)
    return figure


def spectrum_figure(spectra: Mapping[str, Floats]) -> Figure:
    """Draw the share of the variance along each principal direction, by network."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for name, shares in spectra.items():
        drawn = shares[shares > 1e-8]
        axis.plot(np.arange(1, len(drawn) + 1), drawn, label=name.replace("_", " "))
    axis.set(yscale="log", xlabel="principal direction", ylabel="share of variance")
    axis.legend(fontsize=8)
    return figure


def map_figure(places: Floats, colorings: Mapping[str, NDArray[np.generic]]) -> Figure:
    """Draw the map once for each coloring: numbers on a color scale, names in distinct colors."""
    figure = Figure(figsize=(11, 9), layout="constrained")
    axes = figure.subplots(2, 2).ravel()
    for axis, (title, values) in zip(axes, colorings.items(), strict=False):
        if np.issubdtype(values.dtype, np.floating):
            drawn = axis.scatter(places[:, 0], places[:, 1], c=values, s=10, cmap="viridis")
            figure.colorbar(drawn, ax=axis)
        else:
            _scatter_names(axis, places, values.astype(str))
        axis.set(title=title, xlabel="principal component 1", ylabel="principal component 2")
    return figure


def _scatter_names(axis: Axes, places: Floats, names: NDArray[np.str_]) -> None:
    distinct = np.unique(names)
    if len(distinct) > _MOST_NAMED:
        code = np.searchsorted(distinct, names) * 7 % 20  # neighbors in the alphabet get different colors
        axis.scatter(places[:, 0], places[:, 1], c=code, s=10, cmap="tab20")
        return
    for name in distinct:
        own = places[names == name]
        axis.scatter(own[:, 0], own[:, 1], s=10, label=name or "unknown")
    axis.legend(fontsize=8)


def contact_sheet(sample: SliceSample, found: RetrievalResult, count: int = 4) -> Figure:
    """Show hits and misses: the query, its own second view, and of a miss the view that the network found nearest.

    No picture is shown twice: of a hit the nearest is its own view, and no slice is in two lines.
    """
    shown: set[int] = set()
    chosen = [
        *_each_new(np.flatnonzero(found.rank == 0), found.nearest, count, shown),
        *_each_new(np.flatnonzero(found.rank > 0), found.nearest, count, shown),
    ]
    figure = Figure(figsize=(6, 2.1 * max(len(chosen), 1)), layout="constrained")
    axes = image_axes(figure, max(len(chosen), 1), 3)
    series = sample.series_ids
    for line, query in zip(axes, chosen, strict=False):
        nearest = int(found.nearest[query])
        own, other = (
            render_rows(sample, sample.rows[[row]], torch.device("cpu")) for row in (query, nearest)
        )
        if found.rank[query] == 0:
            relation = f"hit: the nearest of {found.n}"
        elif series[nearest] == series[query]:
            apart = abs(int(sample.slice_index[nearest]) - int(sample.slice_index[query]))
            relation = f"miss: same series, {apart} slices off"
        else:
            relation = "miss: another series"
        titles = ("query", f"its own view (rank {int(found.rank[query]) + 1})", relation)
        for axis, image, title in zip(line, (own[0], own[1], other[1]), titles, strict=True):
            if title.startswith("hit"):
                axis.text(0.5, 0.5, title, ha="center", va="center")
                continue
            Shown.of(image, sample.views).planes(0)[0].draw(axis, title, cmap="gray", vmin=0, vmax=1)
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
    axis.set(yscale="log", xlabel="step (optimizer updates)", ylabel="share of slices")
    axis.legend(fontsize=8)
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
