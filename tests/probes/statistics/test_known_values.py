"""Statistics at their edges: a score on the threshold, a p on both sides, the fewest patients that carry a number."""

from statistics import NormalDist

import numpy as np
import pytest

from probes.evaluation import evaluate_nodules
from probes.identifiability import identifiability
from probes.statistics.bootstrap import TooFewDrawsError, mean_difference, mean_with_interval, with_interval
from probes.statistics.calibration import decision_curve
from probes.statistics.checks import TooFewError
from probes.statistics.delong import delong_interval
from probes.statistics.estimate import Estimate
from probes.statistics.metrics import balanced_accuracy, sensitivity_at_90_specificity

ONCE = np.ones((1, 4))


def test_a_score_on_the_threshold_is_called_positive() -> None:
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.5, 0.9])
    assert balanced_accuracy(labels, scores, ONCE)[0] == 1.0
    assert balanced_accuracy(1 - labels, scores[::-1].copy(), ONCE)[0] == 1.0
    curve = decision_curve(labels, scores, [0.5])
    assert curve.net_benefit[0] == 0.5  # both positives are acted on, no negative is


def test_a_specificity_of_exactly_90_percent_is_enough() -> None:
    labels = np.array([0] * 10 + [1] * 2)
    scores = np.array([*range(10), 8.5, 9.5])
    assert sensitivity_at_90_specificity(labels, scores, np.ones((1, 12)))[0] == 1.0
    scores[8] = 9.2  # two negatives in ten lie above the lower positive
    assert sensitivity_at_90_specificity(labels, scores, np.ones((1, 12)))[0] == 0.5


@pytest.mark.parametrize("shift", [0.06, 0.1, 0.14, -0.1])
def test_the_p_of_a_difference_counts_both_sides(shift: float) -> None:
    """The normal test of a mean is the witness: 400 patients, one value each."""
    values = np.random.default_rng(0).normal(size=400)
    values += shift - values.mean()
    found = mean_difference(values, np.zeros(400), np.arange(400), n_bootstrap=8000)
    expected = 2 * NormalDist().cdf(-abs(shift) / (values.std() / 20))
    assert found.p == pytest.approx(expected, abs=0.02)
    assert (found.p < 0.05) == (found.ci_low > 0 or found.ci_high < 0)


def test_an_interval_holds_95_percent_of_the_draws() -> None:
    values = np.random.default_rng(0).normal(size=400)
    found = mean_with_interval(values, np.arange(400), n_bootstrap=8000)
    half = 1.96 * values.std() / 20
    assert found.ci_low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert found.ci_high == pytest.approx(values.mean() + half, abs=0.05 * half)


def share_of(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A metric without a value in the draws that miss the first patient."""
    return np.where(weights[:, 0] > 0, weights @ scores, np.nan)


@pytest.mark.parametrize(("n_nan", "is_measured"), [(9, True), (10, True), (11, False)])
def test_a_tenth_of_the_draws_may_carry_no_value(
    n_nan: int, is_measured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = np.ones((100, 4))
    weights[:n_nan, 0] = 0
    monkeypatch.setattr("probes.statistics.bootstrap.patient_weights", lambda *_: iter([weights]))
    labels, scores, patients = [0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4], [1, 2, 3, 4]
    if is_measured:
        assert with_interval(share_of, labels, scores, patients, 100).value == pytest.approx(1.0)
    else:
        with pytest.raises(TooFewDrawsError, match="only 89 of 100"):
            with_interval(share_of, labels, scores, patients, 100)


@pytest.mark.parametrize(("n_of_class", "is_measured"), [(1, False), (2, True)])
def test_delong_needs_two_patients_of_each_class(n_of_class: int, is_measured: bool) -> None:
    labels = np.array([1] * n_of_class + [0] * 6)
    for truth in (labels, 1 - labels):
        if is_measured:
            assert 0 <= delong_interval(truth, np.arange(len(truth)) % 3, np.arange(len(truth))).value <= 1
        else:
            with pytest.raises(TooFewError, match="two patients of each class"):
                delong_interval(truth, np.arange(len(truth)) % 3, np.arange(len(truth)))


@pytest.mark.parametrize(("n_patients", "is_measured"), [(2, False), (3, True)])
@pytest.mark.parametrize("rare", [0, 1])
def test_a_stratum_needs_three_patients_of_each_class(n_patients: int, is_measured: bool, rare: int) -> None:
    rng = np.random.default_rng(0)
    # The rare class has so many patients in the stratum, with two nodules each, and the other class has twelve.
    patients = np.concatenate([np.repeat(np.arange(n_patients), 2), np.arange(12) + 10, np.arange(40) + 30])
    labels = np.concatenate([np.full(2 * n_patients, rare), np.full(12, 1 - rare), np.arange(40) % 2])
    maker = ["few"] * (2 * n_patients + 12) + ["many"] * 40
    table = evaluate_nodules(
        labels,
        {"features": rng.random(len(labels))},
        np.full(len(labels), 8.0),
        patients,
        groups={"maker": maker},
        n_bootstrap=100,
    )
    line = table[(table["stratum"] == "maker: few") & (table["row"] == "features")].iloc[0]
    assert line["n_nodules"] == 2 * n_patients + 12
    assert np.isfinite(line["auroc"]) == is_measured


def test_the_honest_stratum_holds_both_of_its_ends() -> None:
    diameter = np.array([5.99, 6.0, 15.0, 15.01] * 10)
    labels = np.repeat([0, 1], 20)
    table = evaluate_nodules(labels, {"features": diameter / 20}, diameter, np.arange(40), n_bootstrap=50)
    assert (table[table["stratum"] == "6-15 mm"]["n_nodules"] == 20).all()


@pytest.mark.parametrize(("n_patients", "left_out"), [(9, ("c",)), (10, ())])
def test_a_scanner_is_told_apart_from_ten_patients_on(n_patients: int, left_out: tuple[str, ...]) -> None:
    names = np.array(["a"] * 12 + ["b"] * 12 + ["c"] * n_patients)
    features = np.random.default_rng(0).normal(size=(len(names), 3))
    assert identifiability(features, names, np.arange(len(names)))[1] == left_out


def test_a_value_without_an_interval_says_so() -> None:
    assert str(Estimate(0.0632, float("nan"), float("nan"))) == "0.063 (no interval)"
    assert str(Estimate(0.9, 0.85, 0.95)) == "0.900 [0.850, 0.950]"
