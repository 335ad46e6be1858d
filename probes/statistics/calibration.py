"""Whether predicted probabilities are calibrated, and whether acting on them would help."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from probes.statistics.checks import Floats, Ints, binary_labels, finite_scores

_NEWTON_STEPS = 50


def calibration_slope(labels: Ints, scores: Floats, weights: Floats) -> Floats:
    """Slope of the logistic regression of labels on predicted log odds; 1 is right, below 1 extreme; (B,).

    NaN where a draw holds one class only, or where the scores separate the classes: no finite slope exists.
    Source: Cox 1958, Biometrika 45:562; Van Calster et al. 2016, J. Clin. Epidemiol. 74:167.
    """
    x = _log_odds(scores)
    slope, intercept = np.ones(len(weights)), np.zeros(len(weights))
    step = np.full(len(weights), np.inf)
    for _ in range(_NEWTON_STEPS):
        predicted = _sigmoid(slope[:, None] * x + intercept[:, None])
        error, curve = weights * (labels - predicted), weights * predicted * (1 - predicted)
        g1, g0 = error @ x, error.sum(axis=1)
        h11, h10, h00 = curve @ x**2, curve @ x, curve.sum(axis=1)
        determinant = np.maximum(h11 * h00 - h10**2, 1e-300)
        step = (h00 * g1 - h10 * g0) / determinant
        slope = slope + np.clip(step, -5.0, 5.0)
        intercept = intercept + np.clip((h11 * g0 - h10 * g1) / determinant, -5.0, 5.0)
        if np.abs(step).max() < 1e-9:
            break
    return np.where((np.abs(step) < 1e-6) & _overlaps(labels, x, weights), slope, np.nan)


def calibration_intercept(labels: Ints, scores: Floats, weights: Floats) -> Floats:
    """Log odds to add to the predictions so that their mean is right (slope held at 1); 0 is right; (B,).

    Source: calibration-in-the-large, Van Calster et al. 2016.
    """
    log_odds = _log_odds(scores)
    shift = np.zeros(len(weights))
    present = _has_both(labels, weights)
    for _ in range(_NEWTON_STEPS):
        predicted = _sigmoid(log_odds + shift[:, None])
        slope = (weights * predicted * (1 - predicted)).sum(axis=1)
        step = (weights * (labels - predicted)).sum(axis=1) / np.maximum(slope, 1e-12)
        shift = shift + np.clip(step, -2.0, 2.0)
        if np.abs(step[present]).max(initial=0.0) < 1e-10:
            break
    return np.where(present, shift, np.nan)


@dataclass(frozen=True, slots=True)
class DecisionCurve:
    """Net benefit per sample of acting above each threshold, beside acting on all; acting on none is 0."""

    threshold: Floats
    net_benefit: Floats
    treat_all: Floats


def decision_curve(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, thresholds: npt.ArrayLike | None = None
) -> DecisionCurve:
    """Net benefit TP/N - FP/N * t/(1-t) of acting on every sample whose probability is at least t.

    Args:
        labels: 0 or 1, (N,).
        probabilities: Predicted probability of 1, (N,).
        thresholds: In 0 < t < 1, (T,); default 0.01 .. 0.99.

    Raises:
        ValueError: If a threshold or a probability lies outside its range.
    Source: Vickers and Elkin 2006, Med. Decis. Making 26:565.
    """
    truth = binary_labels(labels)
    probability = _probabilities(finite_scores(probabilities, len(truth)))
    grid = np.linspace(0.01, 0.99, 99) if thresholds is None else np.asarray(thresholds, dtype=np.float64)
    if not np.all((grid > 0) & (grid < 1)):
        raise ValueError(f"thresholds must lie between 0 and 1, got {grid.min():g} .. {grid.max():g}")
    odds = grid / (1 - grid)
    acts = probability[None, :] >= grid[:, None]
    net = (acts & (truth == 1)).mean(axis=1) - (acts & (truth == 0)).mean(axis=1) * odds
    return DecisionCurve(grid, net, truth.mean() - (1 - truth.mean()) * odds)


def _overlaps(labels: Ints, x: Floats, weights: Floats) -> npt.NDArray[np.bool_]:
    """Whether the drawn classes overlap in x; where they do not, no finite slope is likeliest."""
    low = [np.where((weights > 0) & (labels == label), x, np.inf).min(axis=1) for label in (0, 1)]
    high = [np.where((weights > 0) & (labels == label), x, -np.inf).max(axis=1) for label in (0, 1)]
    return np.asarray((low[0] < high[1]) & (low[1] < high[0]))


def _has_both(labels: Ints, weights: Floats) -> npt.NDArray[np.bool_]:
    positive = weights @ labels
    return np.asarray((positive > 0) & (positive < weights.sum(axis=1)))


def _probabilities(scores: Floats) -> Floats:
    if scores.min() < 0 or scores.max() > 1:
        raise ValueError(
            f"probabilities must lie in 0 .. 1, got {scores.min():g} .. {scores.max():g}; "
            "calibration of a raw score means nothing"
        )
    return scores


def _log_odds(scores: Floats) -> Floats:
    inside = np.clip(
        _probabilities(scores), 1e-6, 1 - 1e-6
    )  # a probability of exactly 0 or 1 has no finite odds
    return np.log(inside / (1 - inside))


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))
