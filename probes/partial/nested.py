"""The primary test: do features predict the rating beyond size and attenuation?

A permutation of scores would break the links of patients and of score and attenuation; the difference in AUROC of
nested models is biased against the features. Here the rating's residuals get a random sign a patient, and the whole
cross-fit, the choice of the penalty included, is repeated. See docs/decisions/0005-the-primary-question.md.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from probes.partial.cross_fit import FittedFold, Part, fit_fold
from probes.statistics.checks import Floats, finite_features, finite_scores, patient_index

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
    z_base = finite_features(base)
    y = finite_scores(rating, len(z_base))
    patient = patient_index(patient_ids, len(y))
    fitted = [
        [fit_fold(finite_features(p.features, len(y)), z_base, *fold) for fold in p.folds] for p in parts
    ]
    pools = len(parts) > 1
    predicted, observed, products = _averaged(fitted, y[:, None], pools)
    tested = np.isfinite(products[:, 0])
    if not any(len(fold.singular) for folds in fitted for fold in folds):
        return NestedResult(0.0, 1.0, np.where(tested, 0.0, np.nan), observed[:, 0], np.zeros(0))
    statistic = float(_by_patient(products[tested], patient[tested])[0])
    whole = y - z_base @ (np.linalg.pinv(z_base / _rms(z_base)) @ y / _rms(z_base))
    chunks = []
    for signs in _sign_flips(int(patient.max()) + 1, draws, seed):
        flipped = _averaged(fitted, whole[:, None] * signs[patient], pools)[2]
        chunks.append(_by_patient(flipped[tested], patient[tested]))
    reference = np.concatenate(chunks)
    spread = float(reference.std())
    z = (statistic - float(reference.mean())) / spread if spread > 0 else 0.0
    p = (1 + int((reference >= statistic).sum())) / (draws + 1)
    return NestedResult(z, p, predicted[:, 0], observed[:, 0], reference)


def _averaged(
    fitted: Sequence[Sequence[FittedFold]], targets: Floats, pools: bool
) -> tuple[Floats, Floats, Floats]:
    """Predicted and observed residuals and their products, averaged over repeats, (N, M) each; NaN if never tested."""
    sums = np.zeros((3, *targets.shape))
    times = np.zeros(len(targets))
    for folds in fitted:
        for fold in folds:
            predicted, observed, fitted_sd = fold.residuals(targets)
            # Scores of different backbones are pooled on one scale.
            scale = np.where(fitted_sd > 0, fitted_sd, 1.0) if pools else 1.0
            sums[:, fold.test] += predicted, observed, predicted / scale * observed
            times[fold.test] += 1
    with np.errstate(invalid="ignore"):
        predicted, observed, products = sums / times[:, None]
    return predicted, observed, products


def _by_patient(products: Floats, patient: npt.NDArray[np.int64]) -> Floats:
    """T = sum U / sqrt(sum U^2), U the sums by patient, (M,)."""
    sums = np.zeros((int(patient.max()) + 1, products.shape[1]))
    np.add.at(sums, patient, products)
    length = np.sqrt((sums**2).sum(0))
    return np.asarray(sums.sum(0) / np.where(length > 0, length, 1.0))


def _sign_flips(patients: int, draws: int, seed: int) -> Iterator[Floats]:
    """Random signs, (patients, chunk) at a time; draw number n is the same whatever `draws` is."""
    generator = np.random.default_rng(seed)
    for first in range(0, draws, _DRAWS_AT_ONCE):
        count = min(_DRAWS_AT_ONCE, draws - first)
        yield np.asarray(2.0 * generator.integers(0, 2, (count, patients)) - 1.0, dtype=np.float64).T


def _rms(columns: Floats) -> Floats:
    size = np.sqrt((columns**2).mean(0))
    return np.where(size > 0, size, 1.0)
