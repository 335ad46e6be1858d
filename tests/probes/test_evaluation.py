import numpy as np
import pytest

from probes.evaluation import evaluate_nodules, headline
from probes.scoring import Target, permutation, score_permuted
from probes.splits import patient_folds
from probes.statistics.checks import TooFewError
from probes.statistics.delong import delong_interval
from probes.statistics.metrics import auroc, auroc_difference, auroc_with_interval

DRAWS = 100


@pytest.fixture(scope="module")
def cohort():
    """Size is most informative; the margin, only in the features, adds to it; pixels carry size alone."""
    rng = np.random.default_rng(0)
    n = 300
    diameter = np.exp(rng.normal(2.1, 0.4, n))
    margin = rng.normal(size=n)
    labels = (
        rng.random(n) < 1 / (1 + np.exp(-(2.5 * (np.log(diameter) - 2.2) + 1.5 * margin - 0.5)))
    ).astype(int)
    features = np.column_stack([margin, np.log(diameter), rng.normal(size=(n, 6))]) @ rng.normal(size=(8, 8))
    pixels = np.column_stack([np.log(diameter) + 0.3 * rng.normal(size=n), rng.normal(size=n)])
    patients = np.array([f"p{i:03d}" for i in np.arange(n) // 2])
    return labels, features, pixels, diameter, patients


@pytest.fixture(scope="module")
def scores(cohort):
    labels, features, pixels, diameter, patients = cohort
    folds = patient_folds(patients.tolist(), labels, n_folds=5).folds
    target = Target(labels, patients)
    return {
        "features": target.score([(features, folds)]),
        "features_and_diameter": target.score_with_size([(features, folds)], diameter),
        "pixels": target.score([(pixels, folds)]),
        "random_weights": np.stack([target.score([(one, folds)]) for one in (pixels, features[:, :2])]),
        "dictionary_and_diameter": target.score_with_size([(pixels, folds)], diameter),
        "image_diameter": 1.1 * diameter,
    }


@pytest.fixture(scope="module")
def permuted(cohort):
    labels, features, _, _, patients = cohort
    folds = patient_folds(patients.tolist(), labels, n_folds=5).folds
    return score_permuted(Target(labels, patients), [(features, folds)], seed=0, times=3)


@pytest.fixture(scope="module")
def table(cohort, scores, permuted):
    labels, _, _, diameter, patients = cohort
    makers = np.where(np.arange(len(labels)) // 2 % 3 == 0, "GE", "SIEMENS")
    makers[:4] = "Rare"
    groups = {"manufacturer": makers.tolist()}
    return evaluate_nodules(labels, scores, diameter, patients, groups, n_bootstrap=DRAWS, permuted=permuted)


def test_main_strata_hold_every_row_and_groups_the_main_ones(table):
    groups = {"features", "features_and_diameter", "pixels", "random_weights", "shuffled_labels", "diameter"}
    rows = groups | {"dictionary_and_diameter", "image_diameter"}
    named = ("manufacturer: GE", "manufacturer: Rare", "manufacturer: SIEMENS")
    expected = dict.fromkeys(named, groups) | {"all": rows, "6-15 mm": rows}
    assert table.groupby("stratum")["row"].agg(set).to_dict() == expected


def test_random_weights_are_the_mean_over_their_seeds(cohort, scores, table):
    labels, _, _, diameter, patients = cohort
    line = table[table["stratum"] == "all"].set_index("row").loc["random_weights"]
    each = [auroc_with_interval(labels, one, patients, DRAWS) for one in scores["random_weights"]]
    assert line["auroc"] == pytest.approx(np.mean([one.value for one in each]))
    assert min(one.ci_low for one in each) < line["auroc_ci_low"] < line["auroc"]
    gaps = [
        auroc_difference(labels, one, diameter, patients, DRAWS).value for one in scores["random_weights"]
    ]
    assert line["minus_diameter"] == pytest.approx(np.mean(gaps))
    assert line["brier"] == pytest.approx(
        np.mean([((one - labels) ** 2).mean() for one in scores["random_weights"]])
    )


def test_permuted_labels_have_their_mean_and_range(cohort, permuted, table):
    patients = cohort[4]
    areas = [auroc_with_interval(one.labels, one.scores, patients, 20).value for one in permuted]
    line = table[(table["stratum"] == "all") & (table["row"] == "shuffled_labels")].iloc[0]
    assert line["auroc"] == pytest.approx(np.mean(areas))
    assert (line["auroc_lowest"], line["auroc_highest"]) == (min(areas), max(areas))


def test_numbers_are_those_of_the_metrics_on_the_stratum(cohort, scores, table):
    labels, _, _, diameter, patients = cohort
    inside = (diameter >= 6) & (diameter <= 15)
    line = table[(table["stratum"] == "6-15 mm") & (table["row"] == "features_and_diameter")].iloc[0]
    score = scores["features_and_diameter"]
    area = auroc_with_interval(labels[inside], score[inside], patients[inside], DRAWS)
    gap = auroc_difference(labels[inside], score[inside], diameter[inside], patients[inside], DRAWS)
    assert (line["auroc"], line["auroc_ci_low"], line["auroc_ci_high"]) == (
        area.value,
        area.ci_low,
        area.ci_high,
    )
    assert (line["minus_diameter"], line["minus_diameter_p"]) == (gap.value, gap.p)
    assert (
        line["auroc_delong_ci_low"] == delong_interval(labels[inside], score[inside], patients[inside]).ci_low
    )
    assert line["n_nodules"] == inside.sum()
    assert line["n_positive"] == labels[inside].sum()


def test_planted_margin_is_found_beyond_diameter_and_shuffled_labels_are_not(table):
    lines = table[table["stratum"] == "all"].set_index("row")
    assert lines.loc["features_and_diameter", "minus_diameter_ci_low"] > 0
    assert lines.loc["features_and_diameter", "minus_diameter_p"] < 0.05
    assert lines.loc["features", "minus_pixels_ci_low"] > 0
    assert lines.loc["pixels", "auroc"] < lines.loc["features", "auroc"]
    assert 0.4 < lines.loc["shuffled_labels", "auroc"] < 0.6
    assert np.isnan(lines.loc["shuffled_labels", "minus_diameter"])  # other labels: nothing to pair
    assert np.isnan(lines.loc["diameter", "brier"])  # millimeters are no probability
    assert 0.5 < lines.loc["features", "calibration_slope"] < 1.5


def test_few_positives_are_shuffled_until_every_training_fold_has_both_classes():
    labels, patients = np.repeat([1, 0], [4, 26]), np.array([f"p{i:02d}" for i in range(30)])
    for seed in range(20):
        folds = patient_folds(patients.tolist(), labels, n_folds=2, seed=seed).folds
        shuffled = labels[permutation(labels, patients, folds, seed)]
        assert sorted(shuffled) == sorted(labels)
        for fold in folds:
            assert (shuffled[fold.train] == 1).sum() == 2  # one shuffle alone gives 1 to 3, or 0 or 4
    plenty = np.random.default_rng(0).integers(0, 2, 30)
    folds = patient_folds(patients.tolist(), plenty, n_folds=5).folds
    np.testing.assert_array_equal(
        plenty[permutation(plenty, patients, folds, 7)], np.random.default_rng(7).permutation(plenty)
    )
    with pytest.raises(TooFewError, match="no shuffle of 0 positives"):
        permutation(labels * 0, patients, [(np.arange(15), np.arange(15, 30))], 0)


def test_a_stratum_with_two_patients_keeps_its_counts_and_no_numbers(table):
    lines = table[table["stratum"] == "manufacturer: Rare"]
    assert (lines["n_nodules"] == 4).all()
    assert (lines["n_patients"] == 2).all()
    assert lines["auroc"].isna().all()


def test_headline_names_the_numbers_of_a_run(table):
    found = headline(table)
    lines = table[table["stratum"] == "all"].set_index("row")
    assert found["probe/auroc"] == lines.loc["features", "auroc"]
    assert found["probe/diameter_auroc"] == lines.loc["diameter", "auroc"]
    assert found["probe/pixels_auroc_ci_low"] == lines.loc["pixels", "auroc_ci_low"]
    assert found["probe/gain_over_diameter"] == lines.loc["features_and_diameter", "minus_diameter"]
    assert found["probe/gain_over_diameter_p"] == lines.loc["features_and_diameter", "minus_diameter_p"]
    assert found["probe/n_nodules"] == 300
    assert "probe/auroc_6_15mm" in found
    assert "probe/dictionary_auroc" not in found  # no such row was scored
    joined = lines.loc["dictionary_and_diameter"]
    assert found["probe/dictionary_with_diameter_auroc_ci_high"] == joined["auroc_ci_high"]
    assert found["probe/dictionary_gain_over_diameter_p"] == joined["minus_diameter_p"]
    assert found["probe/image_diameter_auroc"] == found["probe/diameter_auroc"]
    assert found["probe/shuffled_auroc_lowest"] <= found["probe/shuffled_auroc"]
    assert all(np.isfinite(value) for value in found.values())


def test_only_tested_nodules_count_and_rows_on_other_nodules_are_refused(cohort):
    labels, features, _, diameter, patients = cohort
    folds = [(np.arange(150), np.arange(150, 300))]
    scored = {"features": Target(labels, patients).score([(features, folds)])}
    table = evaluate_nodules(labels, scored, diameter, patients, n_bootstrap=50)
    assert table["n_nodules"].max() == 150
    other = scored | {"elsewhere": np.where(np.arange(300) < 200, 0.5, np.nan)}
    with pytest.raises(ValueError, match="'elsewhere' was scored on other nodules"):
        evaluate_nodules(labels, other, diameter, patients)
    with pytest.raises(ValueError, match="none of the 300 nodules was tested"):
        evaluate_nodules(labels, {"features": np.full(300, np.nan)}, diameter, patients)
    with pytest.raises(ValueError, match="diameters above 0 mm"):
        evaluate_nodules(labels, {"features": features[:, 0]}, diameter - 5, patients)


def test_nodules_without_a_diameter_leave_the_rows_of_diameter_and_are_counted(cohort):
    """A tenth are not known: those rows, and differences from them, are what they are on the other nodules alone."""
    labels, features, _, diameter, patients = cohort
    some, known = diameter.copy(), np.arange(300) % 10 > 0
    some[~known] = np.nan
    folds = patient_folds(patients.tolist(), labels, n_folds=5).folds
    target = Target(labels, patients)
    scored = {
        "features": target.score([(features, folds)]),
        "features_and_diameter": target.score_with_size([(features, folds)], some),
    }
    assert (np.isfinite(scored["features_and_diameter"]) == known).all()
    table = evaluate_nodules(labels, scored, some, patients, n_bootstrap=50)
    others = {name: score[known] for name, score in scored.items()}
    alone = evaluate_nodules(labels[known], others, diameter[known], patients[known], n_bootstrap=50)
    got, want = (one[one["stratum"] == "all"].set_index("row") for one in (table, alone))
    for row in ("diameter", "features_and_diameter"):
        assert got.loc[row, "n_nodules"] == known.sum()
        for column in ("auroc", "auroc_ci_low", "average_precision"):
            assert got.loc[row, column] == want.loc[row, column]
    for column in ("minus_diameter", "minus_diameter_ci_low", "minus_diameter_p", "minus_diameter_delong_p"):
        assert got.loc["features", column] == want.loc["features", column]
        assert got.loc["features_and_diameter", column] == want.loc["features_and_diameter", column]
    assert got.loc["features", "n_nodules"] == 300
    assert got.loc["features", "auroc"] == auroc(labels, scored["features"], np.ones((1, 300)))[0]
    assert set(got["n_unknown_diameter"]) == {30}
    assert headline(table)["probe/n_unknown_diameter"] == 30
    assert "probe/n_unknown_diameter" not in headline(alone)
    honest = table[table["stratum"] == "6-15 mm"].set_index("row").loc["features", "n_nodules"]
    assert honest == (known & (diameter >= 6) & (diameter <= 15)).sum()


def test_where_most_diameters_are_unknown_no_row_and_no_stratum_of_diameter_is_made_up(cohort):
    labels, features, pixels, diameter, patients = cohort
    some = diameter.copy()
    some[: 1 + len(some) // 2] = np.nan
    folds = patient_folds(patients.tolist(), labels, n_folds=5).folds
    target = Target(labels, patients)
    scored = {"features": target.score([(features, folds)]), "pixels": target.score([(pixels, folds)])}
    table = evaluate_nodules(labels, scored, some, patients, n_bootstrap=50)
    assert set(table["row"]) == set(scored)
    assert set(table["stratum"]) == {"all"}
    assert not [name for name in table.columns if "diameter" in name]
    metrics = headline(table)
    assert metrics["probe/n_nodules"] == len(labels)
    assert "probe/pixels_auroc" in metrics
    assert not [name for name in metrics if "diameter" in name or "mm" in name]
