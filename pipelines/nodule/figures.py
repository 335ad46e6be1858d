"""Figures of nodules that need no image: counts per rule, malignancy against diameter, agreement of readers."""

from itertools import pairwise, permutations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipelines.runtime.plot_style import BENIGN, MALIGNANT, new_figure
from probes.statistics.bootstrap import patient_weights
from probes.statistics.estimate import Estimate, wilson_interval
from transforms.refusal import number_of

_DRAWS = 1000
_EDGES_MM = (3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40)


def rules_figure(rules: pd.DataFrame) -> Figure:
    """Draw the nodules that each rule calls benign and malignant."""
    figure = new_figure(6.5, 0.45 * len(rules) + 1.3, "Nodules under each label rule")
    axis = figure.subplots()
    axis.barh(rules["rule"], rules["benign"], color=BENIGN, label="benign", hatch="//")
    axis.barh(rules["rule"], rules["malignant"], left=rules["benign"], color=MALIGNANT, label="malignant")
    for place_y, row in enumerate(rules.to_dict("records")):
        text = f" {row['malignant']} malignant + {row['benign']} benign; rated 3: {row['fate_of_3']}"
        axis.text(row["nodules"], place_y, text, va="center", fontsize=7)
    axis.set(xlim=(0, 1.75 * rules["nodules"].max()), xlabel="nodules")
    axis.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def malignancy_figure(nodules: pd.DataFrame) -> Figure:
    """Draw rating against diameter, and the share called malignant by diameter with Wilson intervals."""
    n = f"{number_of(len(nodules), 'nodule')} ({int(nodules['is_malignant'].sum())} malignant)"
    n_patients = number_of(nodules["patient_id"].nunique(), "patient")
    figure = new_figure(7.2, 3.4, f"Rating and diameter, {n} of {n_patients}")
    left, right = figure.subplots(1, 2)
    diameter = nodules["diameter_mm"].to_numpy(dtype=np.float64)
    is_malignant = nodules["is_malignant"].to_numpy(dtype=bool)
    jitter = np.random.default_rng(0).uniform(-0.15, 0.15, len(nodules))
    kinds = ((~is_malignant, BENIGN, "o", "benign"), (is_malignant, MALIGNANT, "^", "malignant"))
    for chosen, color, marker, name in kinds:
        rating = nodules["malignancy_rating"].to_numpy(dtype=np.float64)[chosen] + jitter[chosen]
        style = {"s": 7, "alpha": 0.6, "color": color, "marker": marker, "linewidth": 0}
        left.scatter(diameter[chosen], rating, label=f"{name} ({chosen.sum()})", **style)
    left.set_ylabel("rating of the rule (jittered)")
    left.legend()
    for low, high in pairwise(_EDGES_MM):
        inside = (diameter >= low) & (diameter < high)
        if inside.any():
            share = wilson_interval(int(is_malignant[inside].sum()), int(inside.sum()))
            middle = float(np.sqrt(low * high))
            right.plot([middle, middle], [share.ci_low, share.ci_high], color="gray")
            right.plot(middle, share.value, "o", color=MALIGNANT)
            right.text(middle, -0.06, str(inside.sum()), ha="center", fontsize=7, color="gray")
    right.set(ylim=(-0.1, 1.02), ylabel="share malignant, 95% interval")
    right.set_title("gray: number of nodules")
    known = diameter[diameter > 0]
    first, last = (known.min() / 1.1, known.max() * 1.1) if len(known) else (_EDGES_MM[0], _EDGES_MM[-1])
    ticks = [size for size in (1, 2, 3, 5, 10, 20, 40, 80) if first <= size <= last]
    for axis in (left, right):
        axis.set(xscale="log", xlabel="readers' mean diameter (mm)")
        axis.set_xticks(ticks, [str(size) for size in ticks])
        axis.minorticks_off()
        axis.set_xlim(first, last)
    return figure


def agreement_figure(nodules: pd.DataFrame) -> Figure:
    """Draw how often two readers' ratings coincide on the same nodule, with weighted kappa and its interval."""
    by_nodule = rating_pairs(nodules)
    counts, n_shared = by_nodule.sum(axis=0), int((by_nodule.sum(axis=(1, 2)) > 0).sum())
    found = agreement(by_nodule, nodules["patient_id"].to_numpy(dtype=np.str_))
    measures = "; ".join(f"{name} {value}" for name, value in found.items())
    title = f"Agreement of two readers on {number_of(n_shared, 'nodule')}"
    if measures:
        title += f"; 95% intervals over patients\n{measures}"
    figure = new_figure(4.6, 4.2, title)
    axis = figure.subplots()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axis.imshow(share, cmap="Blues", vmin=0, vmax=1, origin="lower")
    for row in range(5):
        for column in range(5):
            color = "white" if share[row, column] > 0.5 else "black"
            axis.text(
                column, row, f"{share[row, column]:.2f}", ha="center", va="center", color=color, fontsize=7
            )
    axis.set_xticks(range(5), [str(n) for n in range(1, 6)])
    axis.set_yticks(range(5), [f"{n + 1}\n({int(counts[n].sum())})" for n in range(5)])
    axis.set(xlabel="malignancy rating of another reader", ylabel="rating of a reader (pairs)")
    figure.colorbar(image, label="share of the row", shrink=0.85)
    return figure


def rating_pairs(nodules: pd.DataFrame) -> NDArray[np.float64]:
    """Count ordered pairs of malignancy ratings of two readers of each nodule, (n, 5, 5)."""
    counts = np.zeros((len(nodules), 5, 5))
    for own, ratings in zip(counts, nodules["malignancy_ratings"], strict=True):
        for one, other in permutations([int(r) for r in ratings], 2):
            own[one - 1, other - 1] += 1
    return counts


def agreement(pairs: NDArray[np.float64], patient_ids: NDArray[np.str_]) -> dict[str, Estimate]:
    """Return weighted kappa and the share of equal ratings, with 95% intervals over patients; nothing without pairs.

    Args:
        pairs: Of each nodule, (n, 5, 5).
        patient_ids: Patient of each nodule, (n,).
    """
    if not pairs.any():
        return {}
    patients, number = np.unique(patient_ids, return_inverse=True)
    by_patient = np.zeros((len(patients), 5, 5))
    np.add.at(by_patient, number, pairs)
    weights = np.concatenate(list(patient_weights(np.arange(len(patients)), _DRAWS, 0)))
    drawn = np.tensordot(weights, by_patient, 1)
    measures = {"weighted kappa": weighted_kappa, "equal ratings": _equal_share}
    return {
        name: Estimate(float(of(pairs.sum(axis=0))), *np.nanquantile(of(drawn), (0.025, 0.975)).tolist())
        for name, of in measures.items()
    }


def weighted_kappa(pairs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cohen's kappa with quadratic weights from counts of rating pairs (..., 5, 5); NaN without pairs.

    Source: Cohen 1968, doi 10.1037/h0026256.
    """
    one, other = np.indices(pairs.shape[-2:])
    penalty, total = (one - other) ** 2, pairs.sum(axis=(-2, -1))
    by_chance = pairs.sum(axis=-1)[..., :, None] * pairs.sum(axis=-2)[..., None, :]
    with np.errstate(invalid="ignore"):
        apart = (penalty * pairs).sum(axis=(-2, -1)) * total / (penalty * by_chance).sum(axis=(-2, -1))
    return np.asarray(1 - apart)


def _equal_share(pairs: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        return np.asarray(np.trace(pairs, axis1=-2, axis2=-1) / pairs.sum(axis=(-2, -1)))
