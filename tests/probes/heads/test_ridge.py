"""The ridge of a graded target against scikit-learn's, and what its evidence may not do."""

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from probes.heads.linear import LinearProbe, cross_fit
from probes.heads.ridge import Rated, RidgeProbe
from probes.splits import patient_folds
from probes.statistics.metrics import auroc_with_interval


def graded(n: int = 150, n_features: int = 6, seed: int = 0) -> tuple[Rated, np.ndarray, np.ndarray]:
    """Features of a graded target whose upper third is class 1; patients of two samples."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, n_features)) * np.arange(1, n_features + 1)
    target = features[:, 0] + 0.2 * features[:, 1] + rng.normal(size=n) + 3
    patients = np.array([f"p{i // 2:03d}" for i in range(n)])
    return Rated(features, target), (target > np.quantile(target, 2 / 3)).astype(int), patients


@pytest.mark.parametrize("n_features", [6, 250])
def test_predictions_equal_those_of_scikit_learn_at_the_chosen_penalty(n_features: int) -> None:
    samples, labels, patients = graded(n_features=n_features)
    probe = RidgeProbe().fit(samples, labels, patients)
    reference = make_pipeline(StandardScaler(), Ridge(alpha=probe.penalty_))
    reference.fit(samples.features, samples.target)
    np.testing.assert_allclose(probe.predict(samples), reference.predict(samples.features), atol=1e-8)


def test_the_calibration_rests_on_predictions_of_samples_left_out() -> None:
    samples, labels, patients = graded()
    probe = RidgeProbe().fit(samples, labels, patients)
    x = StandardScaler().fit_transform(samples.features)
    left_out = cross_val_predict(Ridge(alpha=probe.penalty_), x, samples.target, cv=LeaveOneOut())
    again = RidgeProbe()
    again._calibrate(left_out, labels)
    assert probe.slope_ == pytest.approx(again.slope_, rel=1e-6)
    assert probe.neutral_ == pytest.approx(again.neutral_, rel=1e-6)
    probabilities = expit(probe.decision_function(samples) + logit(labels.mean()))
    assert probabilities.mean() == pytest.approx(labels.mean(), abs=0.02)


def test_columns_without_a_penalty_are_fitted_as_by_least_squares() -> None:
    samples, labels, patients = graded()
    silent = Rated(np.column_stack([np.zeros((150, 3)), samples.features[:, :2]]), samples.target)
    found = RidgeProbe(n_unpenalized=2).fit(silent, labels, patients).predict(silent)
    design = np.column_stack([np.ones(150), samples.features[:, :2]])
    np.testing.assert_allclose(found, design @ np.linalg.lstsq(design, samples.target, rcond=None)[0])


def test_a_size_that_is_the_same_for_all_changes_nothing() -> None:
    samples, labels, patients = graded()
    sized = Rated(np.column_stack([samples.features, np.full(150, 2.1)]), samples.target)
    alone = RidgeProbe().fit(samples, labels, patients)
    beside = RidgeProbe(n_unpenalized=1).fit(sized, labels, patients)
    np.testing.assert_allclose(beside.decision_function(sized), alone.decision_function(samples), atol=1e-9)


def test_a_graded_target_says_more_than_its_upper_third() -> None:
    areas = {True: [], False: []}
    for seed in range(5):
        samples, labels, patients = graded(200, 40, seed)
        folds = patient_folds(patients.tolist(), labels, n_folds=4, seed=seed)
        for graded_target, area in areas.items():
            factory = RidgeProbe if graded_target else LinearProbe
            scores = cross_fit(
                factory, samples if graded_target else samples.features, labels, patients, folds
            )
            area.append(auroc_with_interval(labels, scores, patients, 20).value)
    assert np.mean(areas[True]) > np.mean(areas[False])


@pytest.mark.parametrize("say", ["nothing", "noise"])
def test_features_that_say_nothing_score_one_half_and_never_less_by_their_calibration(say: str) -> None:
    areas = []
    for seed in range(8):
        samples, labels, patients = graded(seed=seed)
        noise = np.random.default_rng(seed).normal(size=(150, 20)) if say == "noise" else np.ones((150, 2))
        folds = patient_folds(patients.tolist(), labels, n_folds=5, seed=seed)
        scores = cross_fit(RidgeProbe, Rated(noise, samples.target), labels, patients, folds)
        areas.append(auroc_with_interval(labels, scores, patients, 20).value)
    assert np.mean(areas) == pytest.approx(0.5, abs=0.04 if say == "noise" else 1e-12)


def test_a_target_that_falls_with_the_label_is_read_backward_only_if_asked() -> None:
    samples, labels, patients = graded()
    falling = Rated(samples.features, -samples.target)
    assert RidgeProbe().fit(falling, labels, patients).slope_ == 0
    signed = RidgeProbe(is_signed=True).fit(falling, labels, patients)
    upright = RidgeProbe().fit(samples, labels, patients)
    np.testing.assert_allclose(
        signed.decision_function(falling), upright.decision_function(samples), atol=1e-9
    )
