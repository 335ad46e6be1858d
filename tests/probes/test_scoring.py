"""Out-of-fold rows: which labels each is fitted on, and which column carries no penalty."""

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from probes.heads.linear import LinearProbe, cross_fit
from probes.scoring import checked_diameter, score_nodules
from probes.splits import patient_folds
from probes.statistics.metrics import auroc_with_interval


def nodules(n: int = 120, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels, features that know them, diameters that know them less, and patients of one nodule each."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) % 3 == 0).astype(int)
    features = rng.normal(size=(n, 4)) + 3 * labels[:, None]
    diameter = np.exp(rng.normal(2.1, 0.4, n) + 0.4 * labels)
    return labels, features, diameter, np.array([f"p{i:03d}" for i in range(n)])


def test_the_shuffled_row_is_fitted_on_the_shuffled_labels() -> None:
    labels, features, diameter, patients = nodules()
    folds = patient_folds(patients.tolist(), labels, n_folds=4).folds
    scored = score_nodules(LinearProbe, features, labels, diameter, patients, folds, seed=3)
    assert sorted(scored.shuffled_labels) == sorted(labels)
    assert (scored.shuffled_labels != labels).any()
    row = scored.rows["shuffled_labels"]
    np.testing.assert_array_equal(
        row, cross_fit(LinearProbe, features, scored.shuffled_labels, patients, folds)
    )
    assert auroc_with_interval(labels, scored.rows["features"], patients, 50).value > 0.95
    assert abs(auroc_with_interval(scored.shuffled_labels, row, patients, 50).value - 0.5) < 0.2


def test_the_diameter_beside_the_features_carries_no_penalty() -> None:
    """Features that are constant leave log diameter alone, as a regression without a penalty fits it."""
    labels, _, diameter, patients = nodules(n=60)
    folds = patient_folds(patients.tolist(), labels, n_folds=3).folds
    silent = np.zeros((60, 3))
    scored = score_nodules(lambda: LinearProbe(1.0), silent, labels, diameter, patients, folds)
    expected = np.empty(60)
    size = np.log(diameter)[:, None]
    for fold in folds:
        alone = LogisticRegression(C=1e8, tol=1e-10).fit(size[fold.train], labels[fold.train])
        evidence = alone.decision_function(size[fold.test]) - logit(labels[fold.train].mean())
        expected[fold.test] = expit(evidence + logit(labels.mean()))
    np.testing.assert_allclose(scored.rows["features_and_diameter"], expected, atol=1e-3)
    assert expected.std() > 0.05  # a penalty would pull all of them toward the share of positives


def test_a_diameter_is_above_zero_or_not_known() -> None:
    assert checked_diameter([3.0, 0.1], 2) is not None
    assert checked_diameter([3.0, np.nan], 2) is None
    for wrong in (0.0, -1.0):
        with pytest.raises(ValueError, match="2 diameters above 0 mm, got 1"):
            checked_diameter([3.0, wrong], 2)
