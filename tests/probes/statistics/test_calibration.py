import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from probes.statistics.bootstrap import with_interval
from probes.statistics.calibration import calibration_intercept, calibration_slope, decision_curve


def calibrated(n=4000, seed=0):
    rng = np.random.default_rng(seed)
    log_odds = rng.normal(-1.0, 1.5, n)
    labels = (rng.random(n) < 1 / (1 + np.exp(-log_odds))).astype(int)
    return labels, log_odds


def probability(log_odds):
    return 1 / (1 + np.exp(-log_odds))


def test_probabilities_that_are_right_have_slope_one_and_intercept_zero():
    labels, log_odds = calibrated()
    patients = np.arange(len(labels)) // 2
    slope = with_interval(calibration_slope, labels, probability(log_odds), patients, n_bootstrap=200)
    intercept = with_interval(calibration_intercept, labels, probability(log_odds), patients, n_bootstrap=200)
    assert slope.ci_low < 1 < slope.ci_high
    assert intercept.ci_low < 0 < intercept.ci_high


def test_overconfidence_halves_the_slope_and_a_planted_shift_returns_as_intercept():
    labels, log_odds = calibrated()
    once = np.ones((1, len(labels)))
    honest = calibration_slope(labels, probability(log_odds), once)[0]
    assert calibration_slope(labels, probability(2 * log_odds), once)[0] == pytest.approx(
        honest / 2, rel=1e-6
    )
    base = calibration_intercept(labels, probability(log_odds), once)[0]
    assert calibration_intercept(labels, probability(log_odds - 0.8), once)[0] == pytest.approx(
        base + 0.8, abs=1e-6
    )


def test_slope_equals_unpenalized_logistic_regression_under_weights():
    labels, log_odds = calibrated(500)
    weights = np.random.default_rng(1).integers(0, 4, (3, 500)).astype(float)
    slopes = calibration_slope(labels, probability(log_odds), weights)
    for row, slope in zip(weights, slopes, strict=True):
        witness = LogisticRegression(C=1e12, tol=1e-10, max_iter=1000).fit(
            log_odds[:, None], labels, sample_weight=row
        )
        assert slope == pytest.approx(witness.coef_[0, 0], rel=1e-5)


def test_scores_that_separate_the_classes_have_no_slope():
    labels = np.array([0, 0, 1, 1])
    assert np.isnan(calibration_slope(labels, np.array([0.1, 0.2, 0.8, 0.9]), np.ones((1, 4)))[0])


def test_decision_curve_equals_hand_computed_net_benefit():
    curve = decision_curve([1, 0, 1, 0, 0], [0.9, 0.8, 0.6, 0.3, 0.1], thresholds=[0.2, 0.5])
    # t = 0.2: TP 2, FP 2; t = 0.5: TP 2, FP 1.
    assert curve.net_benefit == pytest.approx([2 / 5 - 2 / 5 * 0.25, 2 / 5 - 1 / 5])
    assert curve.treat_all == pytest.approx([2 / 5 - 3 / 5 * 0.25, 2 / 5 - 3 / 5])


def test_acting_on_right_probabilities_is_never_worse_than_acting_on_all_or_nobody():
    labels, log_odds = calibrated(20000)
    curve = decision_curve(labels, probability(log_odds), thresholds=np.arange(0.05, 0.8, 0.05))
    assert (curve.net_benefit >= np.maximum(curve.treat_all, 0) - 0.003).all()


def test_a_raw_score_is_not_a_probability():
    with pytest.raises(ValueError, match="probabilities must lie in"):
        decision_curve([0, 1], [-2.0, 3.0])
    with pytest.raises(ValueError, match="calibration of a raw score"):
        calibration_slope(np.array([0, 1]), np.array([-2.0, 3.0]), np.ones((1, 2)))
    with pytest.raises(ValueError, match="thresholds must lie"):
        decision_curve([0, 1], [0.2, 0.3], thresholds=[0.0, 0.5])
