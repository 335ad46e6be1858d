import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from probes.heads.linear import C_GRID, LinearProbe, cross_fit
from probes.heads.logistic import fit_logistic
from probes.splits import patient_folds
from probes.statistics.checks import TooFewError, UnmeasurableError
from probes.statistics.metrics import auroc_with_interval


def planted(n=300, n_features=20, strength=1.5, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.normal(3.0, 5.0, (n, n_features))
    labels = (rng.random(n) < expit(strength * (features[:, 0] - 3.0) / 5.0 - 0.7)).astype(int)
    return features, labels, np.arange(n) // 2


@pytest.mark.parametrize("c", [1e-4, 1e-2, 1.0, 100.0])
@pytest.mark.parametrize(("n", "n_features"), [(300, 20), (40, 90)])
def test_one_fit_equals_scikit_learn_on_standardized_features(c, n, n_features):
    features, labels, patients = planted(n, n_features)
    probe = LinearProbe(c).fit(features, labels, patients)
    standard = (features - features.mean(0)) / features.std(0)
    witness = LogisticRegression(C=c, tol=1e-10, max_iter=10000).fit(standard, labels)
    assert probe.coef_ == pytest.approx(witness.coef_[0], abs=2e-5)
    assert probe.intercept_ == pytest.approx(witness.intercept_[0], abs=2e-5)
    log_odds = probe.decision_function(features) + logit(labels.mean())
    assert expit(log_odds) == pytest.approx(witness.predict_proba(standard)[:, 1], abs=2e-5)


def test_the_gradient_vanishes_at_the_solution_also_for_separable_classes():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 5))
    labels = (features[:, 0] > 0).astype(int)
    penalty = np.full(5, 1e-3)
    weights = fit_logistic(features, labels, penalty, np.zeros(6))
    error = expit(features @ weights[:-1] + weights[-1]) - labels
    assert np.abs(features.T @ error + penalty * weights[:-1]).max() < 1e-6
    assert abs(error.sum()) < 1e-6


def test_c_is_the_one_with_the_lowest_log_loss_in_inner_folds():
    features, labels, patients = planted(200, 8)
    probe = LinearProbe(seed=3).fit(features, labels, patients)
    losses = []
    for c in C_GRID:
        total = 0.0
        for fold in patient_folds(patients.astype(str).tolist(), labels, n_folds=5, seed=3):
            inner = LinearProbe(c).fit(features[fold.train], labels[fold.train], patients[fold.train])
            log_odds = inner.decision_function(features[fold.test]) + logit(labels[fold.train].mean())
            total -= np.log(expit(np.where(labels[fold.test] == 1, log_odds, -log_odds))).sum()
        losses.append(total / len(labels))
    assert probe.inner_log_loss_ == pytest.approx(losses, abs=1e-4)
    assert probe.c_ == C_GRID[int(np.argmin(losses))]


def test_an_unpenalized_column_survives_a_penalty_that_silences_the_rest():
    features, labels, patients = planted(300, 20)
    signal_last = features[:, ::-1]
    probe = LinearProbe(1e-6, n_unpenalized=1).fit(signal_last, labels, patients)
    alone = LinearProbe(1e3).fit(signal_last[:, -1:], labels, patients)
    assert np.abs(probe.coef_[:-1]).max() < 1e-3
    assert probe.coef_[-1] == pytest.approx(alone.coef_[0], abs=1e-3)


def test_more_features_than_samples_keep_an_unpenalized_column_apart():
    features, labels, patients = planted(40, 90)
    probe = LinearProbe(0.01, n_unpenalized=1).fit(features, labels, patients)
    standard = (features - features.mean(0)) / features.std(0)
    penalty = np.append(np.full(89, 100.0), 1e-3)
    direct = fit_logistic(standard, labels, penalty, np.zeros(91))
    assert probe.coef_ == pytest.approx(direct[:-1], abs=1e-6)


def test_evidence_does_not_move_with_the_share_of_positives():
    features, labels, patients = planted(4000, 3)
    rare = np.flatnonzero((labels == 0) | (np.arange(4000) % 5 == 0))
    common = LinearProbe(1.0).fit(features, labels, patients).decision_function(features)
    scarce = LinearProbe(1.0).fit(features[rare], labels[rare], patients[rare]).decision_function(features)
    assert abs((common - scarce).mean()) < 0.1


def test_planted_signal_is_found_and_the_scores_are_out_of_fold():
    features, labels, patients = planted(400, 30, strength=4.0)
    folds = patient_folds(patients.astype(str).tolist(), labels, n_folds=5, n_repeats=2)
    scores = cross_fit(LinearProbe, features, labels, patients, folds)
    assert auroc_with_interval(labels, scores, patients, 200).value > 0.93

    # By hand: each row's probability is the mean over the two repeats of probes that did not see its patient.
    by_hand = np.zeros(len(labels))
    prior = np.log(labels.mean() / (1 - labels.mean()))
    for fold in folds:
        probe = LinearProbe().fit(features[fold.train], labels[fold.train], patients[fold.train])
        by_hand[fold.test] += expit(probe.decision_function(features[fold.test]) + prior) / 2
    assert scores == pytest.approx(by_hand, abs=1e-12)


def test_features_that_know_nothing_score_every_sample_alike():
    """The trap of pooled folds: with each fold's own share of positives this AUROC would be far below 0.5."""
    _, labels, patients = planted(203)
    folds = patient_folds(patients.astype(str).tolist(), labels, n_folds=5)
    scores = cross_fit(LinearProbe, np.full((203, 7), 4.2), labels, patients, folds)
    assert np.ptp(scores) == 0.0
    assert scores[0] == pytest.approx(labels.mean())


def test_rows_that_no_fold_tests_are_nan_and_pairs_of_index_arrays_serve_as_folds():
    features, labels, patients = planted(100, 4)
    scores = cross_fit(
        lambda: LinearProbe(1.0), features, labels, patients, [(np.arange(60), np.arange(60, 90))]
    )
    assert np.isfinite(scores[60:90]).all()
    assert np.isnan(scores[:60]).all()
    assert np.isnan(scores[90:]).all()


@pytest.mark.slow
def test_200_label_shuffles_of_the_whole_probe_average_one_half_and_their_intervals_cover_it():
    """C chosen by inner folds and 5-fold cross-fitting, again for each shuffle of 400 nodules in 200 patients.

    Coverage stays below 95% by nature: every pair of samples meets twice, once on either side of a split, so the
    AUROC of a null varies more (up to sqrt 2) than intervals conditional on training can know.
    """
    rng = np.random.default_rng(0)
    patients = np.arange(400) // 2
    features = rng.normal(size=(400, 128)) + 0.5 * rng.normal(size=(200, 128))[patients]
    values, covered = [], 0
    for shuffle in range(200):
        labels = rng.permutation((np.arange(400) < 133).astype(int))
        folds = patient_folds(patients.astype(str).tolist(), labels, n_folds=5, seed=shuffle)
        scores = cross_fit(LinearProbe, features, labels, patients, folds)
        estimate = auroc_with_interval(labels, scores, patients, 1000)
        values.append(estimate.value)
        covered += estimate.ci_low <= 0.5 <= estimate.ci_high
    assert 0.48 <= np.mean(values) <= 0.52
    assert 0.85 <= covered / 200 <= 0.99


@pytest.mark.parametrize(
    ("spoil", "words", "kind"),
    [
        (
            lambda f, y, p: (np.where(np.arange(f.size).reshape(f.shape) == 5, np.nan, f), y, p),
            "NaN or infinity",
            UnmeasurableError,
        ),
        (lambda f, y, p: (f, np.zeros_like(y), p), "labels are negative", TooFewError),
        (lambda f, y, p: (f, y, np.zeros_like(p)), "two patients of each class", TooFewError),
        (lambda f, y, p: (f[:-1], y, p), "rows of features", ValueError),
        (lambda f, y, p: (f[:, 0], y, p), "must be an array", ValueError),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_words(spoil, words, kind):
    features, labels, patients = spoil(*planted(40, 4))
    with pytest.raises(kind, match=words):
        LinearProbe().fit(features, labels, patients)


def test_a_fold_that_shares_a_patient_is_refused():
    features, labels, patients = planted(40, 4)
    with pytest.raises(ValueError, match="also trains on"):
        cross_fit(LinearProbe, features, labels, patients, [(np.arange(21), np.arange(21, 40))])
    with pytest.raises(ValueError, match="test no sample"):
        cross_fit(LinearProbe, features, labels, patients, [])
    with pytest.raises(ValueError, match="C must be above 0"):
        LinearProbe(0.0).fit(features, labels, patients)
