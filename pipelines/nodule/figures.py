"""Figures of nodules that need no image: counts per rule, malignancy against diameter, agreement of readers."""

from itertools import pairwise, permutations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score

from probes.statistics.estimate import wilson_interval

BENIGN, MALIGNANT = "#4878a8", "#c8553d"
_EDGES_MM = (3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40)


def rules_figure(rules: pd.DataFrame) -> Figure:
    """Draw the nodules that each rule calls benign and malignant."""
    figure = Figure(figsize=(8, 0.6 * len(rules) + 1.4), layout="constrained")
    axis = figure.subplots()
    axis.barh(rules["rule"], rules["benign"], color=BENIGN, label="benign")
    axis.barh(rules["rule"], rules["malignant"], left=rules["benign"], color=MALIGNANT, label="malignant")
    for place_y, row in enumerate(rules.to_dict("records")):
        text = f" {row['malignant']} + {row['benign']}; 3 is {row['fate_of_3']}"
        axis.text(row["nodules"], place_y, text, va="center", fontsize=8)
    axis.set(xlim=(0, 1.45 * rules["nodules"].max()), xlabel="nodules (malignant + benign)")
    axis.invert_yaxis()
    axis.legend(fontsize=8, loc="lower right")
    return figure


def malignancy_figure(nodules: pd.DataFrame) -> Figure:
    """Draw rating against diameter, and the share called malignant by diameter with Wilson intervals."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    diameter = nodules["diameter_mm"].to_numpy(dtype=np.float64)
    is_malignant = nodules["is_malignant"].to_numpy(dtype=bool)
    jitter = np.random.default_rng(0).uniform(-0.15, 0.15, len(nodules))
    for chosen, color, name in ((~is_malignant, BENIGN, "benign"), (is_malignant, MALIGNANT, "malignant")):
        rating = nodules["malignancy_rating"].to_numpy(dtype=np.float64)[chosen] + jitter[chosen]
        left.scatter(diameter[chosen], rating, s=6, alpha=0.5, color=color, label=f"{name} ({chosen.sum()})")
    left.set_ylabel("rating of the rule (jittered)")
    left.legend(fontsize=8)
    for low, high in pairwise(_EDGES_MM):
        inside = (diameter >= low) & (diameter < high)
        if inside.any():
            share = wilson_interval(int(is_malignant[inside].sum()), int(inside.sum()))
            middle = float(np.sqrt(low * high))
            right.plot([middle, middle], [share.ci_low, share.ci_high], color="gray")
            right.plot(middle, share.value, "o", color=MALIGNANT)
            right.text(middle, -0.06, str(inside.sum()), ha="center", fontsize=7, color="gray")
    right.set(ylim=(-0.1, 1.02), ylabel="share malignant, 95% interval")
    right.set_title("gray: number of nodules", fontsize=8)
    for axis in (left, right):
        axis.set(xscale="log", xlabel="readers' mean diameter (mm)")
        axis.set_xticks([3, 5, 10, 20, 40], ["3", "5", "10", "20", "40"])
        axis.minorticks_off()
    return figure


def agreement_figure(nodules: pd.DataFrame) -> Figure:
    """Draw how often two readers' ratings coincide on the same nodule, with weighted kappa."""
    counts = rating_pairs(nodules)
    figure = Figure(figsize=(4.8, 4.4), layout="constrained")
    axis = figure.subplots()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axis.imshow(share, cmap="Blues", vmin=0, vmax=1, origin="lower")
    for row in range(5):
        for column in range(5):
            color = "white" if share[row, column] > 0.5 else "black"
            axis.text(
                column, row, f"{share[row, column]:.2f}", ha="center", va="center", color=color, fontsize=8
            )
    axis.set_xticks(range(5), [str(n) for n in range(1, 6)])
    axis.set_yticks(range(5), [f"{n + 1}\n({int(counts[n].sum())})" for n in range(5)])
    axis.set(xlabel="malignancy rating of another reader", ylabel="rating of a reader (pairs)")
    axis.set_title(f"weighted kappa {weighted_kappa(counts):.2f}", fontsize=10)
    figure.colorbar(image, label="share of the row")
    return figure


def rating_pairs(nodules: pd.DataFrame) -> NDArray[np.float64]:
    """Count ordered pairs of malignancy ratings of two readers of one nodule, (5, 5)."""
    counts = np.zeros((5, 5))
    for ratings in nodules["malignancy_ratings"]:
        for one, other in permutations([int(r) for r in ratings], 2):
            counts[one - 1, other - 1] += 1
    return counts


def weighted_kappa(pairs: NDArray[np.float64]) -> float:
    """Cohen's kappa with quadratic weights from counts of rating pairs (5, 5); NaN without pairs.

    Source: Cohen 1968, doi 10.1037/h0026256.
    """
    one, other = np.indices(pairs.shape).reshape(2, -1)
    if not pairs.sum():
        return float("nan")
    return float(cohen_kappa_score(one, other, weights="quadratic", sample_weight=pairs.ravel()))
