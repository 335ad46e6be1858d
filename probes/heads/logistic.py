"""L2-penalized logistic regression by Newton's method: the solver that the linear probe runs thousands of times."""

import numpy as np
from scipy.linalg import LinAlgError
from scipy.linalg.lapack import dposv
from scipy.special import expit

from probes.statistics.checks import Floats

_MAX_STEPS = 100


def fit_logistic(
    features: Floats, labels: Floats, penalty: Floats, start: Floats, tolerance: float = 1e-8
) -> Floats:
    """Minimize the summed log loss plus half the penalized squares of the coefficients.

    With penalty 1/C this is scikit-learn's `LogisticRegression(C=C)`. The Hessian is summed in float32, which halves
    its cost and only bends the direction of a step; gradients and line search are float64, so the minimum is exact.

    Args:
        features: (N, D) float64; center them, or the intercept is slow to converge.
        labels: 0 or 1, or a share between them, (N,).
        penalty: One weight per coefficient, (D,), above 0.
        start: Coefficients and, last, intercept to start from, (D + 1,).
        tolerance: Stop where no component of the gradient exceeds tolerance * N.

    Returns:
        Coefficients and, last, intercept, (D + 1,).
    """
    ones = np.ones((len(features), 1))
    design = np.hstack([features, ones])
    narrow = design.astype(np.float32)
    ridge = np.append(penalty, 0.0)
    weights = start.copy()
    margin = design @ weights
    loss = _loss(margin, labels, weights, ridge)
    for _ in range(_MAX_STEPS):
        predicted = expit(margin)
        gradient = design.T @ (predicted - labels) + ridge * weights
        if np.abs(gradient).max() <= tolerance * len(labels):
            break
        scaled = narrow * np.sqrt(predicted * (1 - predicted)).astype(np.float32)[:, None]
        hessian = (scaled.T @ scaled).astype(np.float64)
        hessian.flat[:: len(hessian) + 1] += ridge + 1e-6
        _, step, failed = dposv(hessian, gradient)  # Called directly: checks around it took most of the time.
        if failed:
            raise LinAlgError("the Hessian of a logistic regression is not positive definite")
        margin_step = design @ step
        shrink = 1.0
        # Far from the minimum a full Newton step may overshoot; halve it until the loss falls.
        while shrink > 1e-6:
            trial = weights - shrink * step
            trial_loss = _loss(margin - shrink * margin_step, labels, trial, ridge)
            if trial_loss <= loss:
                break
            shrink /= 2
        else:
            break  # only rounding is left
        weights, margin, loss = trial, margin - shrink * margin_step, trial_loss
    return weights


def row_space(features: Floats) -> Floats:
    """Orthonormal basis (D, R) of the rows' span, R <= N: all that a ridge penalty lets coefficients use.

    With more features than samples, fitting features @ basis gives the same minimum from a far smaller Hessian.
    """
    values, vectors = np.linalg.eigh(features @ features.T)
    kept = values > values[-1] * 1e-10
    return np.asarray(features.T @ (vectors[:, kept] / np.sqrt(values[kept])))


def log_loss(labels: Floats, margin: Floats) -> float:
    """Summed log loss of log odds (N,), without overflow for large ones."""
    return float((np.logaddexp(0.0, margin) - labels * margin).sum())


def _loss(margin: Floats, labels: Floats, weights: Floats, ridge: Floats) -> float:
    return log_loss(labels, margin) + 0.5 * float(ridge @ weights**2)
