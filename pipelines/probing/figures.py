"""Figures of a probe: ROC, calibration and net benefit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from probes.statistics.calibration import decision_curve

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def roc_figure(labels: Ints, scores: Mapping[str, Floats]) -> Figure:
    """Draw the ROC curve of every row."""
    figure = Figure(figsize=(5.5, 5.5), layout="constrained")
    axis = figure.subplots()
    for name, values in scores.items():
        false_positive, true_positive, _ = roc_curve(labels, values)
        axis.plot(false_positive, true_positive, label=name.replace("_", " "))
    axis.plot([0, 1], [0, 1], color="gray", linestyle=":", label="chance")
    axis.set_xlabel("1 - specificity")
    axis.set_ylabel("sensitivity")
    axis.legend(fontsize=8)
    return figure


def calibration_figure(labels: Ints, probabilities: Floats, bins: int = 8) -> Figure:
    """Draw the observed share of malignant nodules against the predicted one, in bins of equal size."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axis = figure.subplots()
    groups = np.array_split(np.argsort(probabilities, kind="stable"), min(bins, len(labels)))
    axis.plot([probabilities[g].mean() for g in groups], [labels[g].mean() for g in groups], marker="o")
    axis.plot([0, 1], [0, 1], color="gray", linestyle=":")
    axis.set_xlabel("predicted probability of a malignant label")
    axis.set_ylabel("observed share")
    return figure


def decision_figure(labels: Ints, probabilities: Mapping[str, Floats]) -> Figure:
    """Draw the net benefit over thresholds, beside calling all nodules, or none, malignant."""
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axis = figure.subplots()
    for name, values in probabilities.items():
        curve = decision_curve(labels, values)
        axis.plot(curve.threshold, curve.net_benefit, label=name.replace("_", " "))
    axis.plot(curve.threshold, curve.treat_all, color="gray", linestyle="--", label="all malignant")
    axis.axhline(0, color="gray", linestyle=":", label="none malignant")
    axis.set_ylim(bottom=-0.05)
    axis.set_xlabel("threshold probability")
    axis.set_ylabel("net benefit")
    axis.legend(fontsize=8)
    return figure
