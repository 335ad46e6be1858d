import numpy as np
import pytest
from scipy.stats import norm

from probes.statistics.checks import TooFewError
from probes.statistics.delong import delong_covariance, delong_difference, delong_interval
from probes.statistics.metrics import auroc_with_interval


def cohort(seed=0, n=40, n_patients=16):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.4).astype(int)
    scores = np.round(rng.normal(size=(2, n)) + labels, 1)
    return labels, scores, rng.integers(0, n_patients, n)


def brute_force_covariance(labels, scores, clusters):
    """Obuchowski's variance from the kernel of every pair, with plain loops."""
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    m, n = len(positive), len(negative)
    kernel = np.array(
        [[[(s[i] > s[j]) + 0.5 * (s[i] == s[j]) for j in negative] for i in positive] for s in scores]
    )
    area = kernel.mean(axis=(1, 2))
    v10, v01 = kernel.mean(axis=2), kernel.mean(axis=1)
    ids = np.unique(clusters)
    with_positive = sum(np.any(clusters[positive] == c) for c in ids)
    with_negative = sum(np.any(clusters[negative] == c) for c in ids)
    covariance = np.zeros((2, 2))
    for a in range(2):
        for b in range(2):
            s10 = s01 = s11 = s11_swapped = 0.0
            for c in ids:
                own_p, own_n = clusters[positive] == c, clusters[negative] == c
                x = [v10[k][own_p].sum() - own_p.sum() * area[k] for k in range(2)]
                y = [v01[k][own_n].sum() - own_n.sum() * area[k] for k in range(2)]
                s10, s01 = s10 + x[a] * x[b], s01 + y[a] * y[b]
                s11, s11_swapped = s11 + x[a] * y[b], s11_swapped + x[b] * y[a]
            covariance[a, b] = (
                with_positive / ((with_positive - 1) * m) * s10 / m
                + with_negative / ((with_negative - 1) * n) * s01 / n
                + len(ids) / (len(ids) - 1) * (s11 + s11_swapped) / (m * n)
            )
    return area, covariance


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("is_clustered", [True, False])
def test_areas_and_covariance_equal_the_brute_force_u_statistic(seed, is_clustered):
    labels, scores, patients = cohort(seed)
    clusters = patients if is_clustered else np.arange(len(labels))
    area, covariance = delong_covariance(labels, scores, patients if is_clustered else None)
    brute_area, brute = brute_force_covariance(labels, scores, clusters)
    assert np.abs(area - brute_area).max() < 1e-12
    assert np.abs(covariance - brute).max() < 1e-12


def test_unclustered_variance_is_the_sample_variance_of_the_placements():
    # Two positives at 2, 4 and three negatives at 1, 3, 5: V10 = 1/3, 2/3; V01 = 1, 1/2, 0; area 1/2.
    labels, scores = np.array([1, 1, 0, 0, 0]), np.array([[2.0, 4.0, 1.0, 3.0, 5.0]])
    area, covariance = delong_covariance(labels, scores)
    assert area[0] == pytest.approx(0.5)
    assert covariance[0, 0] == pytest.approx((1 / 18) / 2 + (1 / 4) / 3)


@pytest.mark.parametrize("is_clustered", [True, False])
def test_interval_agrees_with_2000_bootstraps(is_clustered):
    labels, scores, patients = cohort(2, n=600, n_patients=250)
    if not is_clustered:
        patients = np.arange(600)
    analytic = delong_interval(labels, scores[0], patients)
    resampled = auroc_with_interval(labels, scores[0], patients, n_bootstrap=2000)
    assert analytic.value == pytest.approx(resampled.value, abs=1e-12)
    assert analytic.ci_low == pytest.approx(resampled.ci_low, abs=0.005)
    assert analytic.ci_high == pytest.approx(resampled.ci_high, abs=0.005)


def test_clustered_interval_is_wider_where_patients_hold_alike_nodules():
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(100), 5)
    labels = (rng.random(100) < 0.4).astype(int)[patients]
    scores = labels + rng.normal(size=100)[patients] + 0.2 * rng.normal(size=500)
    clustered, independent = delong_interval(labels, scores, patients), delong_interval(labels, scores)
    bootstrap = auroc_with_interval(labels, scores, patients)

    def width(estimate):
        return estimate.ci_high - estimate.ci_low

    # Five copies of nearly one measurement: the standard error grows by nearly sqrt(5).
    assert 1.7 < width(clustered) / width(independent) < 2.3
    assert width(bootstrap) / width(clustered) == pytest.approx(1.0, abs=0.15)


def test_paired_p_is_that_of_the_normal_difference():
    labels, scores, patients = cohort(4, n=120, n_patients=50)
    area, covariance = brute_force_covariance(labels, scores, patients)
    z = (area[0] - area[1]) / np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    difference = delong_difference(labels, scores[0], scores[1], patients)
    assert difference.value == pytest.approx(area[0] - area[1], abs=1e-12)
    assert difference.p == pytest.approx(2 * norm.sf(abs(z)), rel=1e-9)


def test_scores_that_rank_alike_differ_by_nothing():
    labels, scores, patients = cohort()
    difference = delong_difference(labels, scores[0], np.exp(scores[0]), patients)
    assert difference.value == 0.0
    assert difference.p == 1.0


def test_one_patient_with_all_positives_is_refused():
    with pytest.raises(TooFewError, match="two patients of each class"):
        delong_interval([1, 1, 0, 0], [4.0, 3.0, 2.0, 1.0], ["a", "a", "b", "c"])


def test_twins_with_equal_scores_leave_no_variance_and_no_warning() -> None:
    """Each patient has one nodule of either class with one score: AUROC is 0.5 whatever is drawn."""
    scores = np.repeat(np.random.default_rng(0).normal(size=20), 2)
    found = delong_interval(np.tile([0, 1], 20), scores, np.repeat(np.arange(20), 2))
    assert (found.value, found.ci_low, found.ci_high) == pytest.approx((0.5, 0.5, 0.5), abs=1e-6)
