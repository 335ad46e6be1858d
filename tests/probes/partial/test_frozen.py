"""The test of a frozen score on other patients: by the textbook, at its nominal size, and never refitted."""

import numpy as np
import pytest

from probes.partial.effect import weighted_r2
from probes.partial.frozen import frozen_score, frozen_test
from tests.probes.partial.test_nested import naive_residuals, simulated


def residual_of(values: np.ndarray, base: np.ndarray) -> np.ndarray:
    return values - base @ np.linalg.lstsq(base, values, rcond=None)[0]


def test_weights_are_those_of_the_first_cohort_alone() -> None:
    features, rating, base, _ = simulated(np.random.default_rng(0), 80, 0.4)
    other = np.random.default_rng(1).normal(size=(30, features.shape[1]))
    score = frozen_score(features, rating, base, other)
    rows = np.arange(len(rating) + 30)
    both = np.concatenate([features, other]), np.concatenate([rating, np.zeros(30)])
    bases = np.concatenate([base, np.zeros((30, base.shape[1]))])
    expected = naive_residuals(*both, bases, rows[: len(rating)], rows[len(rating) :])[0]
    np.testing.assert_allclose(score, expected, atol=1e-8)
    # Each nodule's score depends on its own features alone: nothing of the second cohort is fitted.
    np.testing.assert_allclose(frozen_score(features, rating, base, other[:3]), score[:3], atol=1e-10)


def test_statistic_and_reference_equal_the_textbook() -> None:
    _, rating, base, patients = simulated(np.random.default_rng(2), 50)
    score = rating + np.random.default_rng(3).normal(size=len(rating))
    found = frozen_test(score, rating, base, patients, draws=9, seed=4)
    own, observed = residual_of(score, base), residual_of(rating, base)
    np.testing.assert_allclose(found.predicted, own, atol=1e-9)
    np.testing.assert_allclose(found.observed, observed, atol=1e-9)
    who = np.unique(patients, return_inverse=True)[1]
    signs = 2.0 * np.random.default_rng(4).integers(0, 2, (9, who.max() + 1)) - 1

    def statistic(residual: np.ndarray) -> float:
        sums = np.bincount(who, own * residual)
        return float(sums.sum() / np.sqrt((sums**2).sum()))

    reference = [statistic(residual_of(sign[who] * observed, base)) for sign in signs]
    np.testing.assert_allclose(found.reference, reference)
    assert found.p == (1 + (np.array(reference) >= statistic(observed)).sum()) / 10


def test_a_score_inside_the_base_says_nothing() -> None:
    _, rating, base, patients = simulated(np.random.default_rng(5), 50)
    found = frozen_test(base @ [1.0, 2.0, -1.0, 0.5], rating, base, patients, draws=19)
    assert (found.z, found.p) == (0.0, 1.0)


@pytest.mark.parametrize(("known", "low", "high"), [(0.0, 0.0, 0.12), (0.4, 0.8, 1.0)])
def test_rejections_among_simulated_pairs_of_cohorts(known: float, low: float, high: float) -> None:
    rng = np.random.default_rng(6)
    rejected = []
    for _ in range(60):
        first, second = simulated(rng, 150, known), simulated(rng, 100, known)
        score = frozen_score(*first[:3], second[0])
        rejected.append(frozen_test(score, *second[1:], draws=99).p < 0.05)
    assert low <= np.mean(rejected) <= high


def test_what_does_not_vary_has_no_share_of_variance() -> None:
    predicted, weights = np.array([0.5, -0.5]), np.array([[1.0, 1.0], [2.0, 0.0]])
    assert np.isnan(weighted_r2(predicted, np.zeros(2), weights)).all()
    np.testing.assert_allclose(weighted_r2(predicted, 2 * predicted, weights), 0.75)
