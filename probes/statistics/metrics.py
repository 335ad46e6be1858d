"""How well a score separates malignant from benign, with patient-clustered intervals.

Every metric takes weights (B, N), one row per bootstrap draw, and returns (B,): all draws are then one sort
and a few cumulative sums. `auroc_with_interval` and `auroc_difference` are the two that most callers want.
"""

from functools import partial

import numpy as np
import numpy.typing as npt

from probes.statistics.bootstrap import paired_difference, patient_weights, with_interval
from probes.statistics.checks import Floats, Ints, patient_index


def auroc(labels: Ints, scores: Floats, weights: Floats) -> Floats:
    """Chance that a positive scores above a negative, ties one half; (B,), NaN where a class is absent."""
    positive, negative = _class_weights_by_score(labels, scores, weights)
    # Ascending scores: negatives below the score of each positive, and half of those that tie with it.
    below = np.cumsum(negative, axis=1) - 0.5 * negative
    with np.errstate(invalid="ignore"):
        return np.asarray((positive * below).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1)))


auroc_with_interval = partial(with_interval, auroc)
"""Area under the ROC curve with its 95% interval over patients: `with_interval` without its first argument."""
auroc_difference = partial(paired_difference, auroc)
"""AUROC of a first score minus that of a second on the same samples: `paired_difference` likewise."""


def average_precision(labels: Ints, scores: Floats, weights: Floats) -> Floats:
    """Precision averaged over the recall that each threshold adds; (B,), NaN where there is no positive."""
    true_positive, false_positive, added = _counts_above(labels, scores, weights)
    with np.errstate(invalid="ignore"):
        precision = true_positive / (true_positive + false_positive)
        # A threshold that no drawn sample reaches has no precision and adds no recall.
        gained = np.where(added > 0, added * precision, 0.0).sum(axis=1)
        return np.asarray(gained / true_positive[:, -1])


def sensitivity_at_90_specificity(labels: Ints, scores: Floats, weights: Floats) -> Floats:
    """Highest sensitivity at a specificity of at least 0.90; (B,), NaN where a class is absent."""
    true_positive, false_positive, _ = _counts_above(labels, scores, weights)
    with np.errstate(invalid="ignore"):
        sensitivity = true_positive / true_positive[:, -1:]
        specificity = 1.0 - false_positive / false_positive[:, -1:]
    best = np.where(specificity >= 0.90 - 1e-12, sensitivity, 0.0).max(axis=1)
    absent = (true_positive[:, -1] == 0) | (false_positive[:, -1] == 0)
    return np.where(absent, np.nan, best)


def balanced_accuracy(labels: Ints, scores: Floats, weights: Floats) -> Floats:
    """Mean of sensitivity and specificity, calling positive from the share of positives upwards; (B,).

    At that threshold a calibrated probability equals the prior; 0.5 would call nearly nothing malignant where
    malignancy is rare.
    """
    called = scores >= labels.mean()
    with np.errstate(invalid="ignore"):
        sensitivity = weights @ (called & (labels == 1)) / (weights @ (labels == 1))
        specificity = weights @ (~called & (labels == 0)) / (weights @ (labels == 0))
    return np.asarray((sensitivity + specificity) / 2)


def brier(labels: Ints, scores: Floats, weights: Floats) -> Floats:
    """Mean squared error of predicted probabilities; (B,)."""
    return np.asarray(weights @ (scores - labels) ** 2 / weights.sum(axis=1))


def roc_points(labels: Ints, scores: Floats) -> tuple[Floats, Floats]:
    """False and true positive rates at each threshold, from (0, 0) to (1, 1): (G + 1,) each."""
    true_positive, false_positive, _ = _counts_above(labels, scores, np.ones((1, len(labels))))
    rates = (np.concatenate([[0.0], side[0] / side[0, -1]]) for side in (false_positive, true_positive))
    first, second = rates
    return first, second


def roc_band(
    labels: Ints, scores: Floats, patient_ids: npt.ArrayLike, n_bootstrap: int = 2000, seed: int = 0
) -> tuple[Floats, Floats, Floats]:
    """Pointwise 95% band of the ROC curve over patients, by the draws of `with_interval`.

    Args:
        labels: 0 or 1, (N,).
        scores: (N,).
        patient_ids: Patient of each sample, (N,).
        n_bootstrap: Number of draws; those that hold one class only are left out.
        seed: Of the draws.

    Returns:
        False positive rates, and the lower and upper sensitivity there: (101,) each.
    """
    at, curves = np.linspace(0.0, 1.0, 101), []
    for weights in patient_weights(patient_index(patient_ids, len(labels)), n_bootstrap, seed):
        true_positive, false_positive, _ = _counts_above(labels, scores, weights)
        for hits, alarms in zip(true_positive, false_positive, strict=True):
            if hits[-1] > 0 and alarms[-1] > 0:
                curves.append(
                    np.interp(at, np.append(0.0, alarms / alarms[-1]), np.append(0.0, hits / hits[-1]))
                )
    low, high = np.quantile(curves, (0.025, 0.975), axis=0)
    return at, low, high


def _class_weights_by_score(labels: Ints, scores: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Weight of positives and of negatives at each distinct score, ascending: (B, G) each."""
    order = np.argsort(scores, kind="stable")
    ordered = weights[:, order]
    first_of_tie = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    positive = np.add.reduceat(ordered * labels[order], first_of_tie, axis=1)
    return positive, np.add.reduceat(ordered, first_of_tie, axis=1) - positive


def _counts_above(labels: Ints, scores: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """True and false positives at each threshold, descending, and the positives that it adds: (B, G) each."""
    positive, negative = (side[:, ::-1] for side in _class_weights_by_score(labels, scores, weights))
    return np.cumsum(positive, axis=1), np.cumsum(negative, axis=1), positive
