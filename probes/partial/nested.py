"""The primary test: do features predict the rating beyond size and attenuation?

A permutation of scores would break the links of patients and of score and attenuation; the difference in AUROC of
nested models is biased against the features. Here the rating's residuals get a random sign a patient, and the whole
cross-fit, the choice of the penalty included, is repeated. See docs/decisions/0005-the-primary-question.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from probes.partial.cross_fit import FittedFold, Part, Targets, fit_fold
from probes.statistics.checks import Floats, Ints, finite_features, finite_scores, patient_index

_DRAWS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class NestedResult:
    """The test and the residuals behind it.

    Attributes:
        z: Standard deviations of the reference that the statistic lies above its mean; 0 inside the span of the base.
        p: One-sided; 1 inside the span of the base.
        predicted: Out-of-fold residual of the rating as the features predict it, mean over repeats, (N,); NaN where
            a nodule is never tested.
        observed: Its out-of-fold residual on the base, (N,); NaN likewise.
        reference: Statistics under the null, (draws,).
    """

    z: float
    p: float
    predicted: Floats
    observed: Floats
    reference: Floats

    @classmethod
    def against(
        cls, reference: Floats, statistic: float, predicted: Floats, observed: Floats
    ) -> NestedResult:
        """Place a statistic among those under the null."""
        spread = float(reference.std())
        z = (statistic - float(reference.mean())) / spread if spread > 0 else 0.0
        p = (1 + int((reference >= statistic).sum())) / (len(reference) + 1)
        return cls(z, p, predicted, observed, reference)


def nested_test(
    parts: Sequence[Part],
    rating: npt.ArrayLike,
    base: npt.ArrayLike,
    patient_ids: npt.ArrayLike,
    draws: int = 9999,
    seed: int = 0,
) -> NestedResult:
    """Test whether features predict a rating beyond a base.

    Args:
        parts: Features with their folds; several where backbones are cross-fitted, each testing patients of its own.
        rating: (N,), finite; a binary label as 0 and 1.
        base: (N, Q) with an intercept, see `probes.partial.base.base_matrix`.
        patient_ids: Patient of each nodule, (N,).
        draws: Sign flips.
        seed: Of the flips.

    Raises:
        ValueError: If shapes do not agree or a number is not finite.
    """
    return nested_tests(parts, [rating], base, patient_ids, draws, seed)[0]


def nested_tests(
    parts: Sequence[Part],
    ratings: Sequence[npt.ArrayLike],
    base: npt.ArrayLike,
    patient_ids: npt.ArrayLike,
    draws: int = 9999,
    seed: int = 0,
) -> list[NestedResult]:
    """Run `nested_test` on several ratings; the features are decomposed once for all."""
    z_base = finite_features(base)
    n = len(z_base)
    patient = patient_index(patient_ids, n)
    fitted = [[fit_fold(finite_features(p.features, n), z_base, *fold) for fold in p.folds] for p in parts]
    return [_tested(fitted, finite_scores(y, n), z_base, patient, draws, seed) for y in ratings]


def _tested(
    fitted: Sequence[Sequence[FittedFold]], y: Floats, base: Floats, patient: Ints, draws: int, seed: int
) -> NestedResult:
    pools = len(fitted) > 1
    times: Ints = np.bincount(np.concatenate([f.test for folds in fitted for f in folds]), minlength=len(y))
    predicted, observed, products = _averaged(fitted, y, times, pools)
    tested = times > 0
    if not any(len(fold.singular) for folds in fitted for fold in folds):
        return NestedResult(0.0, 1.0, np.where(tested, 0.0, np.nan), observed, np.zeros(0))
    of_patient = np.bincount(patient[tested], products[tested], int(patient.max()) + 1).astype(np.float64)
    statistic = float(over_patients(of_patient[None])[0])
    whole = without_base(y, base)
    flips = [
        (fold, Targets.by_patient(fold, whole, patient), _sums(patient[fold.test], times[fold.test]))
        for folds in fitted
        for fold in folds
    ]
    reference = np.concatenate(
        [_flipped(flips, signs, pools) for signs in sign_flips(len(of_patient), draws, seed)]
    )
    return NestedResult.against(reference, statistic, predicted, observed)


def _averaged(
    fitted: Sequence[Sequence[FittedFold]], target: Floats, times: Ints, pools: bool
) -> tuple[Floats, Floats, Floats]:
    """Predicted and observed residuals and their products, averaged over repeats, (N,) each; NaN if never tested."""
    sums = np.zeros((3, len(target)))
    for fold in (fold for folds in fitted for fold in folds):
        predicted, observed, fitted_sd = fold.residuals(target)
        # Scores of different backbones are pooled on one scale.
        scale = fitted_sd if pools and fitted_sd > 0 else 1.0
        sums[:, fold.test] += predicted, observed, predicted / scale * observed
    with np.errstate(invalid="ignore"):
        predicted, observed, products = sums / times
    return predicted, observed, products


def _flipped(
    flips: Sequence[tuple[FittedFold, Targets, tuple[Ints, Floats]]], signs: Floats, pools: bool
) -> Floats:
    """T of every row of signs (M, P), (M,)."""
    sums = np.zeros_like(signs)
    for fold, targets, (who, weights) in flips:
        predicted, observed, fitted_sd = fold.predict(targets, signs)
        if pools:
            predicted /= np.where(fitted_sd > 0, fitted_sd, 1.0)[:, None]
        predicted *= observed
        sums[:, who] += predicted @ weights
    return over_patients(sums)


def _sums(patient: Ints, times: Ints) -> tuple[Ints, Floats]:
    """Patients of test rows (S,), and the matrix (S, patients) that sums means over `times` repeats by patient."""
    who, place = np.unique(patient, return_inverse=True)
    weights = np.zeros((len(patient), len(who)))
    weights[np.arange(len(patient)), place] = 1.0 / times
    return who, weights


def over_patients(sums: Floats) -> Floats:
    """T = sum U / sqrt(sum U^2) of sums by patient U, (M, P), (M,)."""
    length = np.sqrt((sums**2).sum(1))
    return np.asarray(sums.sum(1) / np.where(length > 0, length, 1.0))


def sign_flips(patients: int, draws: int, seed: int) -> Iterator[Floats]:
    """Random signs, (chunk, patients) at a time; draw number n is the same whatever `draws` is."""
    generator = np.random.default_rng(seed)
    for first in range(0, draws, _DRAWS_AT_ONCE):
        count = min(_DRAWS_AT_ONCE, draws - first)
        yield np.asarray(2.0 * generator.integers(0, 2, (count, patients)) - 1.0, dtype=np.float64)


def without_base(values: Floats, base: Floats) -> Floats:
    """Residuals of values (N,) or (N, M) on a base (N, Q), by the pseudo-inverse: columns may span each other."""
    size = np.sqrt((base**2).mean(0))
    scaled = base / np.where(size > 0, size, 1.0)  # HU and shares differ by orders of magnitude
    return np.asarray(values - scaled @ (np.linalg.pinv(scaled) @ values))
