import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, brier_score_loss, roc_curve

from probes.statistics.bootstrap import TooFewDrawsError, mean_with_interval, patient_weights, with_interval
from probes.statistics.checks import TooFewError, UnmeasurableError
from probes.statistics.delong import delong_difference
from probes.statistics.estimate import holm, wilson_interval
from probes.statistics.metrics import (
    auroc,
    auroc_difference,
    auroc_with_interval,
    average_precision,
    balanced_accuracy,
    brier,
    sensitivity_at_90_specificity,
)


def small_cohort(seed=0, n=60, n_patients=25):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.4).astype(int)
    scores = np.round(rng.normal(size=n) + labels, 1)  # rounding plants ties
    return labels, scores, rng.integers(0, n_patients, n)


def brute_force_auroc(labels, scores):
    wins = [
        1.0 if positive > negative else 0.5 if positive == negative else 0.0
        for positive in scores[labels == 1]
        for negative in scores[labels == 0]
    ]
    return np.mean(wins)


@pytest.mark.parametrize("seed", range(5))
def test_auroc_counts_pairs_with_ties_one_half(seed):
    labels, scores, patients = small_cohort(seed)
    estimate = auroc_with_interval(labels, scores, patients, n_bootstrap=200)
    assert abs(estimate.value - brute_force_auroc(labels, scores)) < 1e-12
    assert estimate.ci_low <= estimate.value <= estimate.ci_high


@pytest.mark.parametrize(
    "metric", [auroc, average_precision, balanced_accuracy, brier, sensitivity_at_90_specificity]
)
def test_a_weighted_draw_equals_the_metric_on_repeated_samples(metric):
    labels, scores, patients = small_cohort(3)
    scores = 1 / (1 + np.exp(-scores))
    weights = next(patient_weights(np.unique(patients, return_inverse=True)[1], 20, seed=1))
    for row in weights.astype(int):
        repeated = np.repeat(np.arange(len(labels)), row)
        # Balanced accuracy keeps the threshold of the whole cohort.
        if metric is balanced_accuracy:
            witness = balanced_accuracy_score(labels[repeated], scores[repeated] >= labels.mean())
        else:
            witness = metric(labels[repeated], scores[repeated], np.ones((1, len(repeated))))[0]
        assert metric(labels, scores, row[None].astype(float))[0] == pytest.approx(witness, abs=1e-12)


def test_point_values_agree_with_scikit_learn():
    labels, scores, _ = small_cohort(1, n=300)
    probabilities = 1 / (1 + np.exp(-scores))
    once = np.ones((1, len(labels)))
    fpr, tpr, _ = roc_curve(labels, probabilities, drop_intermediate=False)
    assert average_precision(labels, probabilities, once)[0] == pytest.approx(
        average_precision_score(labels, probabilities), abs=1e-12
    )
    assert brier(labels, probabilities, once)[0] == pytest.approx(brier_score_loss(labels, probabilities))
    assert sensitivity_at_90_specificity(labels, probabilities, once)[0] == tpr[fpr <= 0.1].max()


def test_bootstrap_draws_whole_patients_and_as_many_as_there_are():
    patients = np.array([0, 0, 0, 1, 2, 2])
    weights = np.concatenate(list(patient_weights(patients, 500, seed=0)))
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 4] == weights[:, 5]).all()
    assert (weights[:, [0, 3, 4]].sum(axis=1) == 3).all()
    assert weights[:, 3].mean() == pytest.approx(1.0, abs=0.15)


def test_bootstrap_repeats_under_one_seed_and_differs_under_another():
    labels, scores, patients = small_cohort()
    first, again, other = (auroc_with_interval(labels, scores, patients, 300, seed) for seed in (4, 4, 5))
    assert first == again
    assert first != other


def test_interval_of_a_mean_is_that_of_patient_means_where_each_patient_has_one_value():
    rng = np.random.default_rng(0)
    per_patient = rng.normal(size=200)
    once = mean_with_interval(per_patient, np.arange(200))
    thrice = mean_with_interval(np.repeat(per_patient, 3), np.repeat(np.arange(200), 3))
    assert thrice.ci_low == pytest.approx(once.ci_low)  # three copies of a patient are no news
    error = per_patient.std() / np.sqrt(200)
    assert once.ci_low == pytest.approx(per_patient.mean() - 1.96 * error, abs=0.1 * error)
    assert once.ci_high == pytest.approx(per_patient.mean() + 1.96 * error, abs=0.1 * error)


def test_difference_of_a_score_with_itself_is_zero_with_p_one():
    labels, scores, patients = small_cohort()
    difference = auroc_difference(labels, scores, scores, patients, n_bootstrap=200)
    assert (difference.value, difference.ci_low, difference.ci_high, difference.p) == (0, 0, 0, 1)


def test_planted_difference_is_found_and_its_interval_excludes_zero():
    rng = np.random.default_rng(0)
    labels = (np.arange(400) % 4 == 0).astype(int)
    patients = np.arange(400) // 2
    strong, weak = rng.normal(size=400) + 2 * labels, rng.normal(size=400) + 0.5 * labels
    difference = auroc_difference(labels, strong, weak, patients, n_bootstrap=1000)
    assert difference.ci_low > 0
    assert difference.p < 0.01
    mirrored = auroc_difference(labels, weak, strong, patients, n_bootstrap=1000)
    assert mirrored.value == -difference.value
    assert mirrored.p == difference.p


@pytest.mark.slow
@pytest.mark.parametrize("test", ["bootstrap", "delong"])
def test_paired_p_is_below_5_percent_in_3_to_7_percent_of_simulated_nulls(test):
    """1000 nulls: fixed scores of 300 nodules in 150 patients by two readers of equal skill."""
    rng = np.random.default_rng(20)
    rejected = 0
    for trial in range(1000):
        patients = np.repeat(np.arange(150), 2)
        labels = (rng.random(150) < 0.35).astype(int)[patients]
        labels = np.where(rng.random(300) < 0.2, rng.integers(0, 2, 300), labels)
        shared = rng.normal(size=300) + labels
        a, b = (shared + 0.7 * rng.normal(size=150)[patients] + 0.7 * rng.normal(size=300) for _ in range(2))
        if test == "bootstrap":
            p = auroc_difference(labels, a, b, patients, n_bootstrap=500, seed=trial).p
        else:
            p = delong_difference(labels, a, b, patients).p
        rejected += p < 0.05
    assert 0.03 <= rejected / 1000 <= 0.07


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, Stat. Med. 17:857, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0000),  # mirror of 0 of 29: 0.0000 to 0.1170
    ],
)
def test_wilson_equals_published_values(hits, n, low, high):
    estimate = wilson_interval(hits, n)
    assert estimate.value == hits / n
    assert estimate.ci_low == pytest.approx(low, abs=5e-5)
    assert estimate.ci_high == pytest.approx(high, abs=5e-5)


def test_holm_equals_the_worked_example():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, and 0.04 raised to 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]).max() == 1.0
    assert holm([]).size == 0


@pytest.mark.parametrize(
    ("labels", "scores", "patients", "words", "kind"),
    [
        ([1, 1, 1], [0.1, 0.2, 0.3], [1, 2, 3], "all 3 labels are positive", TooFewError),
        ([0, 1, 2], [0.1, 0.2, 0.3], [1, 2, 3], "labels must be 0 or 1", ValueError),
        ([0, 1, 1], [0.1, np.nan, 0.3], [1, 2, 3], "not finite", UnmeasurableError),
        ([0, 1, 1], [0.1, 0.3], [1, 2, 3], "3 labels need 3 scores", ValueError),
        ([0, 1, 1], [0.1, 0.2, 0.3], ["a", "a", "a"], "one patient", TooFewError),
        ([0, 1, 1], [0.1, 0.2, 0.3], [1, 2], "3 samples need 3 patient ids", ValueError),
        ([], [], [], "there is no sample", TooFewError),
    ],
)
def test_what_cannot_be_measured_is_refused_in_words(labels, scores, patients, words, kind):
    with pytest.raises(kind, match=words):
        auroc_with_interval(labels, scores, patients)


def test_an_interval_from_draws_that_mostly_hold_one_class_is_refused():
    labels = np.array([1, *[0] * 9])  # a draw of 10 patients misses the only positive one in 0.9 ** 10 = 35%
    with pytest.raises(TooFewDrawsError, match="more patients of the rarer class"):
        with_interval(auroc, labels, np.arange(10.0), np.arange(10), n_bootstrap=400)
