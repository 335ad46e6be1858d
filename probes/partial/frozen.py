"""The primary test on other patients: a score that was frozen before, and no refit."""

import numpy as np
import numpy.typing as npt

from probes.partial.cross_fit import fit_fold
from probes.partial.nested import NestedResult, over_patients, sign_flips, without_base
from probes.statistics.checks import Floats, finite_features, finite_scores, patient_index


def frozen_score(features: Floats, rating: Floats, base: Floats, other_features: Floats) -> Floats:
    """Fit residual on residual in one cohort, and apply its weights to the features of another.

    Args:
        features: (N, D).
        rating: (N,).
        base: (N, Q).
        other_features: (M, D).

    Returns:
        (M,). What it shares with the other cohort's base is taken out there, by `frozen_test`.
    """
    n = len(rating)
    both = np.concatenate([finite_features(features, n), finite_features(other_features)])
    # The other cohort's base is zero here: its own is fitted in it, and this one's is not carried over.
    bases = np.concatenate([base, np.zeros((len(other_features), base.shape[1]))])
    everyone = np.concatenate([finite_scores(rating, n), np.zeros(len(other_features))])
    return fit_fold(both, bases, np.arange(n), np.arange(n, len(both))).residuals(everyone)[0]


def frozen_test(
    score: npt.ArrayLike,
    rating: npt.ArrayLike,
    base: npt.ArrayLike,
    patient_ids: npt.ArrayLike,
    draws: int = 9999,
    seed: int = 0,
) -> NestedResult:
    """Test whether a frozen score predicts a rating beyond a base that is fitted here.

    Args:
        score: (N,).
        rating: (N,).
        base: (N, Q) with an intercept.
        patient_ids: Patient of each nodule, (N,).
        draws: Random signs by patient of the rating's residuals.
        seed: Of the signs.
    """
    z_base = finite_features(base)
    y, predicted = (finite_scores(values, len(z_base)) for values in (rating, score))
    patient = patient_index(patient_ids, len(y))
    own = without_base(predicted, z_base)
    observed = without_base(y, z_base)
    if own.std() <= 1e-9 * max(float(np.abs(predicted).max()), 1e-300):
        return NestedResult(0.0, 1.0, np.zeros(len(y)), observed, np.zeros(0))
    one_hot = np.zeros((len(y), int(patient.max()) + 1))
    one_hot[np.arange(len(y)), patient] = 1.0
    statistic = float(over_patients((own * observed)[None] @ one_hot)[0])
    chunks = []
    for signs in sign_flips(one_hot.shape[1], draws, seed):
        flipped = without_base((signs[:, patient] * observed).T, z_base).T
        chunks.append(over_patients((flipped * own) @ one_hot))
    return NestedResult.against(np.concatenate(chunks), statistic, own, observed)
