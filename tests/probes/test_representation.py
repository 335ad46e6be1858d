import itertools

import numpy as np
import pytest

from probes.heads.linear import LinearProbe
from probes.identifiability import identifiability
from probes.representation import (
    alignment,
    class_separation,
    geometry,
    knn_malignancy,
    principal_map,
    spectrum,
    stability,
)
from probes.statistics.checks import TooFewError, UnmeasurableError
from probes.statistics.rank import effective_rank


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def some(n=30, n_features=5, seed=0, mean=1.0):
    return np.random.default_rng(seed).normal(mean, 1.0, (n, n_features))


def test_pairwise_numbers_equal_loops_over_all_pairs():
    features, labels = some(), np.arange(30) % 3 == 0
    labels = labels.astype(int)
    centered = features - features.mean(axis=0)
    pairs = list(itertools.combinations(range(30), 2))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    found = geometry(features)
    assert found["cosine"] == pytest.approx(np.mean([cosine(features[i], features[j]) for i, j in pairs]))
    assert found["centered_cosine"] == pytest.approx(
        np.mean([cosine(centered[i], centered[j]) for i, j in pairs])
    )
    assert found["uniformity"] == pytest.approx(
        np.log(np.mean([np.exp(-2 * ((unit[i] - unit[j]) ** 2).sum()) for i, j in pairs]))
    )
    same = [cosine(features[i], features[j]) for i, j in pairs if labels[i] == labels[j]]
    cross = [cosine(features[i], features[j]) for i, j in pairs if labels[i] != labels[j]]
    assert class_separation(features, labels) == pytest.approx(np.mean(same) - np.mean(cross))


def test_effective_rank_is_known_for_known_spectra():
    orthogonal = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 8)))[0]
    assert effective_rank(orthogonal) == pytest.approx(8.0)
    assert effective_rank(np.outer(np.arange(1.0, 21.0), [1.0, 2.0, 3.0])) == pytest.approx(1.0)
    # Singular values 3 and 1: entropy of (0.75, 0.25).
    two = orthogonal[:, :2] * [3.0, 1.0]
    assert effective_rank(two) == pytest.approx(np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25)))
    assert effective_rank(np.zeros((5, 3))) == 0.0


def test_a_large_common_mean_hides_the_rank_until_it_is_taken_away():
    found = geometry(some(500, 16, mean=50.0))
    assert found["effective_rank"] < 3
    assert found["centered_effective_rank"] > 15
    assert found["cosine"] > 0.99
    assert abs(found["centered_cosine"]) < 0.02


def test_active_dimensions_are_those_that_vary_by_more_than_a_hundredth():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 5)) * [1.0, 0.02, 0.005, 0.0, 3.0] + 7
    assert geometry(features)["active_dims"] == 3


def test_uniformity_is_lowest_for_points_spread_over_the_sphere():
    sphere = geometry(some(1000, 64, mean=0.0))["uniformity"]
    assert sphere == pytest.approx(-4.0, abs=0.15)
    assert geometry(np.ones((10, 4)))["uniformity"] == pytest.approx(0.0)


def test_spectrum_shares_sum_to_one_and_match_the_covariance():
    features = some(200, 4) * [1, 2, 3, 4]
    shares = spectrum(features)
    eigenvalues = np.linalg.eigvalsh(np.cov(features.T))[::-1]
    assert shares == pytest.approx(eigenvalues / eigenvalues.sum())
    assert spectrum(np.ones((6, 3))).sum() == 0


def test_alignment_and_stability_have_their_known_ends():
    features, patients = some(400, 12, mean=0.0), np.arange(400) // 2
    assert alignment(features, 3 * features, patients).value == pytest.approx(0.0)
    assert alignment(features, -features, patients).value == pytest.approx(4.0)
    assert stability(features, features, patients).value == 0.0
    shuffled = np.random.default_rng(1).permutation(features)
    assert stability(features, shuffled, patients).value == pytest.approx(1.0, abs=0.05)
    # A shift along one of 12 axes by one standard deviation: 1 over twice 12.
    shifted = features + np.eye(12)[0]
    assert stability(features, shifted, patients).value == pytest.approx(1 / 24, rel=0.1)


def test_neighbors_of_the_same_patient_do_not_count():
    """Nodules of one patient are copies with one label; the patients know nothing of one another."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(80), 4)
    features = rng.normal(size=(80, 10))[patients] + 0.01 * rng.normal(size=(320, 10))
    labels = (np.arange(80) % 2)[patients]
    assert 0.35 < knn_malignancy(features, labels, patients, k=3).value < 0.65
    as_if_unrelated = knn_malignancy(features, labels, np.arange(320), k=3).value
    assert as_if_unrelated > 0.99


def test_knn_equals_a_loop():
    features, patients = some(40, 3), np.arange(40) // 3
    labels = (features[:, 0] > 1).astype(int)
    votes = []
    for i in range(40):
        others = [j for j in range(40) if patients[j] != patients[i]]
        nearest = sorted(others, key=lambda j: -cosine(features[i], features[j]))[:5]
        votes.append(labels[nearest].mean())
    pairs = [
        (a > b) + 0.5 * (a == b) for a in np.array(votes)[labels == 1] for b in np.array(votes)[labels == 0]
    ]
    assert knn_malignancy(features, labels, patients, k=5).value == pytest.approx(np.mean(pairs))


def test_principal_map_finds_the_two_planted_directions():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(300, 2)) * [3.0, 2.0]
    features = np.column_stack([hidden[:, 0]] * 5 + [hidden[:, 1]] * 3) + 0.05 * rng.normal(size=(300, 8))
    places = principal_map(features)
    assert abs(np.corrcoef(places[:, 0], hidden[:, 0])[0, 1]) > 0.99
    assert abs(np.corrcoef(places[:, 1], hidden[:, 1])[0, 1]) > 0.99


def test_a_planted_scanner_is_read_and_an_absent_one_is_not():
    rng = np.random.default_rng(0)
    patients = np.arange(240) // 2
    makers = np.array(["GE", "GE", "GE", "PHILIPS", "SIEMENS"])[patients % 5]
    makers[:6] = "TOSHIBA"
    features = rng.normal(size=(240, 10))
    absent, left_out = identifiability(features, makers, patients)
    assert left_out == ("TOSHIBA",)
    assert absent.ci_low < 1 / 3 < absent.ci_high
    features[:, 0] += 4 * (makers == "GE")
    features[:, 1] += 4 * (makers == "PHILIPS")
    planted, _ = identifiability(features, makers, patients)
    assert planted.value > 0.9  # also the rare ones: the share of a class is taken out
    assert planted.ci_low < planted.value < planted.ci_high


def test_identifiability_of_two_classes_agrees_with_one_linear_probe():
    rng = np.random.default_rng(0)
    features, patients = rng.normal(size=(100, 4)), np.arange(100)
    values = np.where(features[:, 0] > 0, "a", "b")
    accuracy, _ = identifiability(features, values, patients)
    whole = LinearProbe(1e-2).fit(features, (values == "a").astype(int), patients).decision_function(features)
    assert ((whole > 0) == (values == "a")).mean() == pytest.approx(accuracy.value, abs=0.06)


@pytest.mark.parametrize(
    ("call", "words", "kind"),
    [
        (lambda x, p: geometry(x[:1]), "at least 2 samples", TooFewError),
        (lambda x, p: geometry(np.where(x > 2, np.nan, x)), "NaN or infinity", UnmeasurableError),
        (lambda x, p: class_separation(x, np.zeros(30)), "labels are negative", TooFewError),
        (lambda x, p: class_separation(x[:2], [0, 1]), "at least one class", TooFewError),
        (lambda x, p: alignment(x, x[:, :2], p), "one shape", ValueError),
        (
            lambda x, p: stability(np.ones((30, 2)), np.ones((30, 2)), p),
            "features are equal",
            UnmeasurableError,
        ),
        (lambda x, p: knn_malignancy(x, np.arange(30) % 2, np.zeros(30)), "one patient", TooFewError),
        (
            lambda x, p: knn_malignancy(x, np.arange(30) % 2, p, k=28),
            "need more than 28 to choose from, got 28",
            TooFewError,
        ),
        (lambda x, p: identifiability(x, ["a"] * 30, p), "two classes with 10 patients", TooFewError),
    ],
)
def test_what_cannot_be_measured_is_refused_in_words(call, words, kind):
    with pytest.raises(kind, match=words):
        call(some(), np.arange(30) // 2)
