"""AUROC intervals and paired tests without resampling: DeLong, and Obuchowski's form for clusters."""

from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from probes.statistics.checks import Floats, Ints, TooFewError, binary_labels, finite_scores, patient_index
from probes.statistics.estimate import Z_95, Difference, Estimate


def delong_interval(
    labels: npt.ArrayLike, scores: npt.ArrayLike, patient_ids: npt.ArrayLike | None = None
) -> Estimate:
    """AUROC with its 95% normal interval, conditional on the scores.

    Args:
        labels: 0 or 1, (N,).
        scores: Higher means more likely 1, (N,).
        patient_ids: Patient of each sample, (N,): Obuchowski's clustered variance. None: DeLong's, every
            sample its own patient.

    Raises:
        TooFewError: If a class is absent, or fewer than two patients hold it.
    Source: DeLong et al. 1988, Biometrics 44:837; Obuchowski 1997, Biometrics 53:567.
    """
    truth = binary_labels(labels)
    score = finite_scores(scores, len(truth))
    area, covariance = delong_covariance(truth, score[None], patient_ids)
    half = Z_95 * float(np.sqrt(max(covariance[0, 0], 0.0)))  # ties leave no variance, or less by rounding
    value = float(area[0])
    return Estimate(value, max(0.0, value - half), min(1.0, value + half))


def delong_difference(
    labels: npt.ArrayLike,
    scores_a: npt.ArrayLike,
    scores_b: npt.ArrayLike,
    patient_ids: npt.ArrayLike | None = None,
) -> Difference:
    """AUROC of scores_a minus AUROC of scores_b with interval and two-sided p, both normal and paired.

    Args:
        labels: 0 or 1, (N,).
        scores_a: First score, (N,).
        scores_b: Second score of the same samples, (N,).
        patient_ids: As in `delong_interval`.

    Returns:
        The difference; p is 1 where the two scores rank alike, so that no variance is left.

    Raises:
        TooFewError: As `delong_interval`.
    Source: DeLong et al. 1988; Obuchowski 1997.
    """
    truth = binary_labels(labels)
    pair = np.stack([finite_scores(scores, len(truth)) for scores in (scores_a, scores_b)])
    area, covariance = delong_covariance(truth, pair, patient_ids)
    value = float(area[0] - area[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    error = float(np.sqrt(max(variance, 0.0)))
    if error < 1e-12:
        return Difference(value, value, value, 1.0 if abs(value) < 1e-12 else 0.0)
    p = 2 * NormalDist().cdf(-abs(value) / error)
    return Difference(value, value - Z_95 * error, value + Z_95 * error, p)


def delong_covariance(
    labels: Ints, scores: Floats, patient_ids: npt.ArrayLike | None = None
) -> tuple[Floats, Floats]:
    """AUROC of each of K scores and the covariance between them.

    Args:
        labels: 0 or 1, (N,).
        scores: K scores of the same samples, (K, N).
        patient_ids: Patient of each sample, (N,); None: every sample its own patient.

    Returns:
        Areas (K,) and covariance (K, K).

    Raises:
        TooFewError: If fewer than two patients hold a class.
    """
    is_positive = labels == 1
    n_positive, n_negative = int(is_positive.sum()), int((~is_positive).sum())
    place = np.stack([_placements(is_positive, score) for score in scores])
    area = place[:, is_positive].mean(axis=1)

    # Sum over each patient of (placement - area): one sample per patient gives back DeLong's own terms.
    n = len(labels)
    patient = np.arange(n) if patient_ids is None else patient_index(patient_ids, n)
    n_patients = int(patient.max()) + 1
    centered = place - area[:, None]
    positive_sum, negative_sum = np.zeros((2, len(scores), n_patients))
    for k, row in enumerate(centered):
        positive_sum[k] = np.bincount(patient[is_positive], row[is_positive], n_patients)
        negative_sum[k] = np.bincount(patient[~is_positive], row[~is_positive], n_patients)

    with_positive = np.unique(patient[is_positive]).size
    with_negative = np.unique(patient[~is_positive]).size
    if min(with_positive, with_negative) < 2:
        raise TooFewError(
            f"DeLong's variance needs two patients of each class, got {with_positive} with positives "
            f"and {with_negative} with negatives"
        )
    among_positive = with_positive / (with_positive - 1) * positive_sum @ positive_sum.T / n_positive**2
    among_negative = with_negative / (with_negative - 1) * negative_sum @ negative_sum.T / n_negative**2
    across = n_patients / (n_patients - 1) * positive_sum @ negative_sum.T / (n_positive * n_negative)
    return area, among_positive + among_negative + across + across.T


def _placements(is_positive: npt.NDArray[np.bool_], scores: Floats) -> Floats:
    """Share of the other class that each sample beats, ties one half: V10 of positives, V01 of negatives.

    Midranks give all of them in one sort. Source: Sun and Xu 2014, IEEE Signal Process. Lett. 21:1389.
    """
    n_positive, n_negative = int(is_positive.sum()), int((~is_positive).sum())
    overall = rankdata(scores)
    place = np.empty(len(scores))
    place[is_positive] = (overall[is_positive] - rankdata(scores[is_positive])) / n_negative
    place[~is_positive] = 1.0 - (overall[~is_positive] - rankdata(scores[~is_positive])) / n_positive
    return place
