"""Ridge of residuals on residuals, cross-fitted over patients, for many targets at once.

Everything is linear in the target but the choice of the penalty, so one decomposition of a fold's features serves the
rating and all its sign-flipped copies; and a patient's nodules share a sign, so they are summed before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probes.statistics.checks import Floats, Ints

PENALTIES = np.logspace(0, 6, 13)
LEAST_SD = 0.1
"""Features whose residual varies less are functions of the base: it explains 99% of them, as of the diameter itself,
of which the base holds a spline of the logarithm. Of networks and dictionaries none is below 0.33 on 740 nodules."""


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

    def residuals(self, target: Floats) -> tuple[Floats, Floats, float]:
        """Predict the test residuals of a target (N,).

        Returns:
            Predicted and observed residuals of the test rows, (S,) each, and the standard deviation of the fitted
            training residuals.
        """
        one = Targets.whole(self, target)
        predicted, observed, fitted_sd = self.predict(one, np.ones((1, 1)))
        return predicted[0], observed[0], float(fitted_sd[0])

    def predict(self, targets: Targets, signs: Floats) -> tuple[Floats, Floats, Floats]:
        """Predict the test residuals of a target whose patients got signs.

        Args:
            targets: Of this fold.
            signs: (M, P), one row a draw.

        Returns:
            Predicted and observed residuals of the test rows, (M, S) each, and the standard deviation of the fitted
            training residuals, (M,).
        """
        trained = signs[:, targets.train_patient]
        rotated = trained @ targets.left
        shrink = self.singular**2 / (self.singular**2 + PENALTIES[:, None])  # (L, K)
        left_over = (targets.total - ((trained @ targets.span) ** 2).sum(1))[:, None]
        left_over = left_over - rotated**2 @ (1.0 - (1.0 - shrink) ** 2).T  # (M, L)
        freedom = len(self.train) - self.span.shape[1] - shrink.sum(1)
        # A penalty so small that no degree of freedom is left fits everything, so its error means nothing.
        per_freedom = np.where(freedom > 0, left_over / np.maximum(freedom, 1e-9) ** 2, np.inf)
        rotated *= shrink[np.argmin(per_freedom, axis=1)]  # fitted values in the basis `left`
        fitted_sd = np.sqrt(np.einsum("mk,mk->m", rotated, rotated) / len(self.train))
        observed = signs[:, targets.test_patient] * targets.test
        observed -= (trained @ targets.coefficients) @ self.base_test.T
        return rotated @ (self.onto_test / self.singular).T, observed, fitted_sd


@dataclass(frozen=True, slots=True)
class Targets:
    """A target in one fold, summed by patient: a sign a patient then costs a row of T patients, not of nodules.

    Attributes:
        train_patient: Column of `signs` of each training patient, (P,).
        test_patient: Column of `signs` of each test row, (S,).
        left: Target times `FittedFold.left`, (P, K); residualizing first would change nothing: `left` is orthogonal to
            the base.
        span: Likewise, (P, R).
        coefficients: Likewise of the coefficients on the base, (P, Q).
        total: Sum of squares in the training rows.
        test: In the test rows, (S,).
    """

    train_patient: Ints
    test_patient: Ints
    left: Floats
    span: Floats
    coefficients: Floats
    total: float
    test: Floats

    @classmethod
    def by_patient(cls, fold: FittedFold, target: Floats, patient: Ints) -> Targets:
        """Sum a target (N,) by patient, given the patient of each nodule, (N,)."""
        who, place = np.unique(patient[fold.train], return_inverse=True)
        own = target[fold.train]
        of_patient = np.zeros((len(who), len(own)))
        of_patient[place, np.arange(len(own))] = own
        return cls(
            who,
            patient[fold.test],
            of_patient @ fold.left,
            of_patient @ fold.span,
            of_patient @ fold.to_coefficients.T,
            float(own @ own),
            target[fold.test],
        )

    @classmethod
    def whole(cls, fold: FittedFold, target: Floats) -> Targets:
        """One target without signs."""
        return cls.by_patient(fold, target, np.zeros(len(target), dtype=np.int64))


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
