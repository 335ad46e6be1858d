"""Ridge of residuals on residuals, cross-fitted over patients, for many targets at once.

Everything is linear in the target but the choice of the penalty, so one decomposition of a fold's features serves the
rating and all its sign-flipped copies.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probes.statistics.checks import Floats, Ints

PENALTIES = np.logspace(0, 6, 13)
LEAST_SD = 1e-6
"""Features whose residual varies less lie inside the span of the base."""


@dataclass(frozen=True, slots=True)
class Part:
    """Features, and the folds in which they are fitted and tested.

    Attributes:
        features: (N, D), finite.
        folds: Pairs of training and test rows; a row may be tested once a repeat.
    """

    features: Floats
    folds: Sequence[tuple[Ints, Ints]]


@dataclass(frozen=True, slots=True)
class FittedFold:
    """The part of a fold's fit that does not depend on the target.

    Attributes:
        to_coefficients: Pseudo-inverse of the base's training rows, (Q, T).
        span: Orthonormal basis of the base's training rows, (T, R).
        left: Left singular vectors of the training features' residuals, (T, K); K = 0 inside the span of the base.
        singular: Their singular values, (K,).
        onto_test: Test features' residuals times right singular vectors, (S, K).
    """

    train: Ints
    test: Ints
    base_test: Floats
    to_coefficients: Floats
    span: Floats
    left: Floats
    singular: Floats
    onto_test: Floats

    def residuals(self, targets: Floats) -> tuple[Floats, Floats, Floats]:
        """Predict the test residuals of targets (N, M).

        Returns:
            Predicted and observed residuals of the test rows, (S, M) each, and the standard deviation of the fitted
            training residuals, (M,).
        """
        trained = targets[self.train]
        observed = targets[self.test] - self.base_test @ (self.to_coefficients @ trained)
        rotated = (
            self.left.T @ trained
        )  # residualizing first would change nothing: `left` is orthogonal to the base
        squared = rotated**2
        total = (trained**2).sum(0) - ((self.span.T @ trained) ** 2).sum(0)
        shrink = self.singular**2 / (self.singular**2 + PENALTIES[:, None])  # (L, K)
        left_over = total - (1.0 - (1.0 - shrink) ** 2) @ squared  # (L, M)
        freedom = len(self.train) - self.span.shape[1] - shrink.sum(1)
        # A penalty so small that no degree of freedom is left fits everything, so its error means nothing.
        per_freedom = np.where(
            freedom[:, None] > 0, left_over / np.maximum(freedom[:, None], 1e-9) ** 2, np.inf
        )
        chosen = np.argmin(per_freedom, axis=0)
        weighted = shrink[chosen].T * rotated  # (K, M): fitted values in the basis `left`
        fitted_sd = np.sqrt((weighted**2).sum(0) / len(self.train))
        return self.onto_test @ (weighted / self.singular[:, None]), observed, fitted_sd


def fit_fold(features: Floats, base: Floats, train: Ints, test: Ints) -> FittedFold:
    """Residualize features on the base in the training rows, and decompose what is left."""
    own = base[train]
    span, sizes, rest = np.linalg.svd(own / _scale(own), full_matrices=False)
    rank = int((sizes > 1e-10 * sizes[0]).sum())
    span = span[:, :rank]
    to_coefficients = (rest[:rank].T / sizes[:rank]) @ span.T / _scale(own)[:, None]
    x, x_test = features[train], features[test]
    mean, sd = x.mean(0), x.std(0)
    varies = sd > 0
    x, x_test = ((rows[:, varies] - mean[varies]) / sd[varies] for rows in (x, x_test))
    coefficients = to_coefficients @ x
    x, x_test = x - own @ coefficients, x_test - base[test] @ coefficients
    x -= span @ (span.T @ x)  # once more, against rounding
    is_new = x.std(0) > LEAST_SD if x.size else np.zeros(x.shape[1], bool)
    left, singular, right = np.linalg.svd(x[:, is_new], full_matrices=False)
    kept = singular > 1e-8 * max(singular.max(initial=0.0), 1.0)
    onto_test = x_test[:, is_new] @ right[kept].T
    return FittedFold(
        train, test, base[test], to_coefficients, span, left[:, kept], singular[kept], onto_test
    )


def _scale(columns: Floats) -> Floats:
    """Sizes of columns, 1 for those that are all zero: HU and shares differ by orders of magnitude."""
    size = np.sqrt((columns**2).mean(0))
    return np.where(size > 0, size, 1.0)
