"""Figures of scores: ROC, calibration, net benefit, and forests of rows."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipelines.runtime.plot_style import REFERENCE, Stroke, band, new_figure, stroke
from probes.statistics.bootstrap import with_interval
from probes.statistics.calibration import calibration_intercept, calibration_slope, decision_curve
from probes.statistics.checks import UnmeasurableError
from probes.statistics.estimate import wilson_interval
from probes.statistics.metrics import auroc_with_interval, roc_band, roc_points
from transforms.refusal import number_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Patients = NDArray[np.str_]

_NAMES = {
    "hu": "HU statistics",
    "pixels": "pixels (principal components)",
    "dictionary": "dictionary of patches",
    "random_words": "whitened random words",
    "diameter": "diameter (readers')",
    "image_diameter": "diameter in the image",
    "shuffled_labels": "features, labels shuffled",
    "random": "random weights",
}
_ORDER = (
    "features",
    "diameter",
    "features_and_diameter",
    "random_weights",
    "pixels",
    "hu",
    "dictionary",
    "random_words",
)
"""A row has the same stroke in every figure."""
_BANDED = ("features", "diameter")


def row_name(row: str) -> str:
    """Return the name of a row as figures print it."""
    first, joined, size = row.partition("_and_")
    return f"{_NAMES.get(first, first.replace('_', ' '))}{' + ' + size.replace('_', ' ') if joined else ''}"


def row_strokes(rows: Iterable[str]) -> dict[str, Stroke]:
    """Return the stroke of each row: its own, or for those without one what the figure leaves free."""
    named = list(rows)
    own = {row: _ORDER.index(row) for row in named if row in _ORDER}
    free = [number for number in range(len(_ORDER)) if number not in own.values()]
    others = [row for row in named if row not in own]
    return {
        row: stroke(own[row] if row in own else (free or [0])[others.index(row) % max(len(free), 1)])
        for row in named
    }


def counted(labels: Ints, patient_ids: Patients) -> str:
    """Return how many nodules a figure is of."""
    n_positive = int(labels.sum())
    n_patients = number_of(len(np.unique(patient_ids)), "patient")
    return f"{number_of(len(labels), 'nodule')} ({n_positive} malignant) of {n_patients}"


def roc_figure(labels: Ints, scores: Mapping[str, Floats], patient_ids: Patients) -> Figure:
    """Draw the ROC curve of every row, with AUROC and its interval over patients; bands of features and diameter.

    The band is the 95% interval of the sensitivity at each specificity, over the same draws of patients.
    """
    # Square axes as wide as the figure, and a line of legend for each row.
    figure = new_figure(4.2, 4.75 + 0.14 * len(scores), f"ROC, {counted(labels, patient_ids)}")
    axis = figure.subplots()
    strokes = row_strokes(scores)
    for row, values in scores.items():
        known = np.isfinite(values)  # without the nodules whose diameter is not known, in rows that need it
        measured = labels[known], values[known]
        own, area = strokes[row], "" if known.all() else f" (n = {known.sum()})"
        try:
            area = f"{auroc_with_interval(*measured, patient_ids[known])}{area}"
            if row in _BANDED:
                band(axis, *roc_band(*measured, patient_ids[known]), own.color)
        except UnmeasurableError:
            area = f"without an interval, too few patients{area}"
        false_positive, true_positive = roc_points(*measured)
        axis.plot(false_positive, true_positive, **own.line, label=f"{row_name(row)}: {area}")
    axis.plot([0, 1], [0, 1], **REFERENCE, label="chance: 0.500")
    axis.set(xlim=(-0.005, 1.005), ylim=(-0.005, 1.005), aspect="equal")
    axis.set(xlabel="1 - specificity", ylabel="sensitivity")
    figure.legend(loc="outside lower center", title="AUROC [95% interval over patients]; bands: 95%")
    return figure


def calibration_figure(
    labels: Ints, probabilities: Floats, patient_ids: Patients, bins: int = 8, row: str = "features"
) -> Figure:
    """Draw the observed share of malignant nodules in bins of equal size with Wilson intervals, and how many are where.

    Intercept and slope are those of `probes.statistics.calibration`, with intervals over patients.
    """
    figure = new_figure(4.6, 5.4, f"Calibration of {row_name(row)}, {counted(labels, patient_ids)}")
    axis, below = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    groups = np.array_split(np.argsort(probabilities, kind="stable"), min(bins, len(labels)))
    shares = [wilson_interval(int(labels[group].sum()), len(group)) for group in groups]
    value = np.array([share.value for share in shares])
    ends = np.array([[s.value - s.ci_low for s in shares], [s.ci_high - s.value for s in shares]])
    own, predicted = stroke(0), [probabilities[group].mean() for group in groups]
    sizes = sorted({len(group) for group in groups})
    drawn = f"bins of {' or '.join(map(str, sizes))} nodules, 95% Wilson interval"
    axis.errorbar(
        predicted, value, np.maximum(ends, 0), color=own.color, marker=own.marker, capsize=2, label=drawn
    )
    axis.plot([0, 1], [0, 1], **REFERENCE, label="perfect calibration")
    named = {"intercept": calibration_intercept, "slope": calibration_slope}
    for name, metric in named.items():
        try:
            found = str(with_interval(metric, labels, probabilities, patient_ids))
        except UnmeasurableError:
            found = "not measurable here"
        axis.plot([], [], " ", label=f"{name} {found} ({'0' if name == 'intercept' else '1'} is right)")
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="observed share of malignant nodules")
    axis.legend(loc="upper left")
    edges = np.linspace(0, 1, 21)
    kinds = [probabilities[labels == 0], probabilities[labels == 1]]
    below.hist(kinds, edges, stacked=True, color=["#BBBBBB", "#333333"], label=["benign", "malignant"])
    below.set(xlabel="predicted probability of malignancy", ylabel="nodules")
    below.legend(loc="upper right")
    return figure


def decision_figure(labels: Ints, probabilities: Mapping[str, Floats], patient_ids: Patients) -> Figure:
    """Draw the net benefit over thresholds, beside calling all nodules, or none, malignant.

    The axis ends at 1.1 times the prevalence, which no net benefit exceeds.
    """
    prevalence = float(labels.mean())
    figure = new_figure(5.2, 4.8, f"Decision curves, {counted(labels, patient_ids)}")
    axis = figure.subplots()
    strokes = row_strokes(probabilities)
    for row, values in probabilities.items():
        known = np.isfinite(values)
        curve = decision_curve(labels[known], values[known])
        text = row_name(row) + ("" if known.all() else f" (n = {known.sum()})")
        axis.plot(curve.threshold, curve.net_benefit, **strokes[row].line, label=text)
    curve = decision_curve(labels, np.full(len(labels), prevalence))
    axis.plot(
        curve.threshold,
        curve.treat_all,
        **REFERENCE | {"linestyle": (0, (8, 1, 1, 1))},
        label="all called malignant",
    )
    axis.axhline(0, **REFERENCE, label="none called malignant")
    axis.set(xlim=(0, 1), ylim=(-0.1 * prevalence, 1.1 * prevalence))
    axis.set(xlabel="threshold probability", ylabel="net benefit per nodule")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def rows_figure(table: pd.DataFrame, stratum: str = "all") -> Figure | None:
    """Draw AUROC of every row and, beside it, its paired difference from diameter; None where nothing was measured.

    Args:
        table: As `probes.evaluation.evaluate_nodules` returns it.
        stratum: Of the table.
    """
    own = table[(table["stratum"] == stratum) & table.get("auroc", pd.Series(np.nan, table.index)).notna()]
    own = own.reset_index(drop=True)
    if own.empty:
        return None
    first = own.iloc[0]
    n_patients = number_of(first["n_patients"], "patient")
    n = f"{number_of(first['n_nodules'], 'nodule')} ({first['n_positive']} malignant) of {n_patients}"
    has_gap = "minus_diameter" in own and bool(own["minus_diameter"].notna().any())
    figure = new_figure(7.2, 1.3 + 0.24 * len(own), f"Rows of the probe, {n}; 95% intervals over patients")
    axes = figure.subplots(1, 1 + has_gap, sharey=True, squeeze=False)[0]
    _forest(axes[0], own, "auroc", "_lowest", "_highest")
    axes[0].axvline(0.5, **REFERENCE)
    axes[0].set(xlabel="AUROC (shuffled labels: range)")
    axes[0].set_yticks(range(len(own)), [row_name(row) for row in own["row"]])
    if has_gap:
        _forest(axes[1], own, "minus_diameter")
        axes[1].axvline(0, **REFERENCE)
        axes[1].set(xlabel="AUROC minus that of diameter, paired")
    axes[0].invert_yaxis()
    for axis in axes:
        axis.grid(axis="x")
    return figure


def _forest(axis: Axes, rows: pd.DataFrame, name: str, *instead: str) -> None:
    """Draw values with their intervals; where there is none, between the columns with the endings `instead`."""
    for place, row in enumerate(rows.to_dict("records")):
        value: Any = row[name]
        low, high = (row.get(f"{name}_ci_{end}", np.nan) for end in ("low", "high"))
        if instead and not np.isfinite(low):
            low, high = (row.get(f"{name}{end}", np.nan) for end in instead)
        if not np.isfinite(value):
            continue
        errors = [[max(value - low, 0)], [max(high - value, 0)]] if np.isfinite(low) else None
        is_joined = "_and_" in str(row["row"])
        own = stroke(1 if is_joined else 0)
        axis.errorbar(value, place, xerr=errors, color=own.color, marker=own.marker, capsize=2)


def known_figure(known: pd.DataFrame) -> Figure:
    """Draw the partial Spearman correlation with each characteristic, with interval, of every row."""
    known = known.replace({"row": {"random": "random_weights"}})
    names, rows = known["characteristic"].unique().tolist(), known["row"].unique().tolist()
    strokes, n = row_strokes(rows), int(known["n_nodules"].max())
    figure = new_figure(
        6.5,
        1.6 + 0.55 * len(names),
        f"What readers see, beyond size and attenuation; {number_of(n, 'nodule')}",
    )
    axis = figure.subplots()
    for number, row in enumerate(rows):
        own = known[known["row"] == row].set_index("characteristic").loc[names]
        place = np.arange(len(names)) + (number - (len(rows) - 1) / 2) * 0.18
        value = own["partial_spearman"].to_numpy()
        ends = (value - own["partial_spearman_ci_low"], own["partial_spearman_ci_high"] - value)
        drawn = strokes[row]
        style: dict[str, Any] = {"color": drawn.color, "marker": drawn.marker, "linestyle": "none"}
        axis.errorbar(value, place, xerr=np.array(ends), capsize=2, label=row_name(row), **style)
    axis.axvline(0, **REFERENCE)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.grid(axis="x")
    axis.set(xlabel="partial Spearman correlation with the readers' mean, 95% interval over patients")
    figure.legend(loc="outside lower center", ncols=len(rows))
    return figure


def few_shot_figure(shots: pd.DataFrame, tested_on: str = "the test cohort") -> Figure:
    """Draw the AUROC against the number of nodules fitted on: mean and range of the draws."""
    figure = new_figure(5.2, 4.2, f"Few-shot AUROC on {tested_on}: mean and range of the draws")
    axis, strokes = figure.subplots(), row_strokes(map(str, shots["row"].unique()))
    for number, (row, own) in enumerate(shots.groupby("row")):
        areas = own.groupby("n_nodules")["auroc"].agg(["mean", "min", "max"])
        ends = [areas["mean"] - areas["min"], areas["max"] - areas["mean"]]
        place = areas.index.to_numpy() * 1.04**number  # beside each other
        drawn = strokes[str(row)]
        style = drawn.line | {"marker": drawn.marker, "capsize": 3}
        axis.errorbar(place, areas["mean"], ends, label=row_name(str(row)), **style)
    axis.axhline(0.5, **REFERENCE, label="chance")
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted(shots["n_nodules"].unique()), sorted(shots["n_nodules"].unique()))
    axis.set(xlabel="nodules to fit on", ylabel="AUROC")
    figure.legend(loc="outside lower center", ncols=3)
    return figure
