"""Out-of-fold rows: which labels each is fitted on, and which column carries no penalty."""

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression

from probes.heads.linear import LinearProbe, cross_fit
from probes.scoring import Target, checked_diameter, score_permuted
from probes.splits import patient_folds
from probes.statistics.metrics import auroc_with_interval


def nodules(n: int = 120, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels, features that know them, diameters that know them less, and patients of one nodule each."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) % 3 == 0).astype(int)
    features = rng.normal(size=(n, 4)) + 3 * labels[:, None]
    diameter = np.exp(rng.normal(2.1, 0.4, n) + 0.4 * labels)
    return labels, features, diameter, np.array([f"p{i:03d}" for i in range(n)])


def test_each_permutation_is_fitted_in_the_folds_of_one_repeat() -> None:
    labels, features, _, patients = nodules()
    folds = patient_folds(patients.tolist(), labels, n_folds=4, n_repeats=2).folds
    found = score_permuted(Target(labels, patients), [(features, folds)], seed=3, times=4, repeats=2)
    for number, one in enumerate(found):
        assert sorted(one.labels) == sorted(labels)
        assert (one.labels != labels).any()
        own = folds[:4] if number % 2 == 0 else folds[4:]
        np.testing.assert_array_equal(one.scores, cross_fit(LinearProbe, features, one.labels, patients, own))
    areas = [auroc_with_interval(one.labels, one.scores, patients, 50).value for one in found]
    assert abs(np.mean(areas) - 0.5) < 0.15
    assert len(set(areas)) == 4


def test_ratings_are_permuted_with_their_labels() -> None:
    labels, _, _, patients = nodules(60)
    target = Target(labels, patients, rating=10.0 * labels + np.arange(60) / 60)
    permuted = target.permuted(np.random.default_rng(0).permutation(60))
    assert permuted.rating is not None
    np.testing.assert_array_equal(permuted.rating > 5, permuted.labels == 1)


def test_parts_test_patients_of_their_own_and_never_the_same_twice() -> None:
    labels, features, _, patients = nodules()
    folds = patient_folds(patients.tolist(), labels, n_folds=4).folds
    target = Target(labels, patients, prior=0.3)
    first, second = ((features, folds[:2]), (5 * features, folds[2:]))
    scores = target.score([first, second])
    np.testing.assert_allclose(scores, target.score([(features, folds)]), atol=1e-6)
    assert np.isnan(target.score([first])[folds[2].test]).all()
    with pytest.raises(ValueError, match="two parts of a row test the same nodule"):
        target.score([first, first])


def test_the_diameter_beside_the_features_carries_no_penalty() -> None:
    """Features that are constant leave log diameter alone, as a regression without a penalty fits it."""
    labels, _, diameter, patients = nodules(n=60)
    folds = patient_folds(patients.tolist(), labels, n_folds=3).folds
    size = np.log(diameter)[:, None]
    scores = Target(labels, patients).score_with_size([(np.zeros((60, 3)), folds)], diameter)
    expected = np.empty(60)
    for fold in folds:
        alone = LogisticRegression(C=1e8, tol=1e-10).fit(size[fold.train], labels[fold.train])
        evidence = alone.decision_function(size[fold.test]) - logit(labels[fold.train].mean())
        expected[fold.test] = expit(evidence + logit(labels.mean()))
    np.testing.assert_allclose(scores, expected, atol=1e-3)
    assert expected.std() > 0.05  # a penalty would pull all of them toward the share of positives


@pytest.mark.parametrize("has_rating", [False, True])
def test_constant_pixels_leave_the_diameter_beside_them_alone(has_rating: bool) -> None:
    labels, _, diameter, patients = nodules()
    folds = patient_folds(patients.tolist(), labels, n_folds=4).folds
    target = Target(labels, patients, rating=labels + np.log(diameter) if has_rating else None)
    silent = np.full((120, 5), 3.0)
    joined = target.score_pixels([(silent, folds)], diameter)
    np.testing.assert_allclose(joined, target.score_with_size([(silent, folds)], diameter), atol=1e-9)
    for fold in folds:
        assert spearmanr(joined[fold.test], diameter[fold.test]).statistic == pytest.approx(1.0)
    np.testing.assert_allclose(target.score_pixels([(silent, folds)]), labels.mean(), atol=1e-12)


def test_a_diameter_is_above_zero_or_not_known() -> None:
    assert checked_diameter([3.0, 0.1], 2) is not None
    np.testing.assert_equal(checked_diameter([3.0, np.nan], 2), [3.0, np.nan])
    assert checked_diameter([3.0, np.nan, np.nan], 3) is None
    for wrong in (0.0, -1.0):
        with pytest.raises(ValueError, match="2 diameters above 0 mm, got 1"):
            checked_diameter([3.0, wrong], 2)
