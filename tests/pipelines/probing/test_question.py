"""The primary question, asked of cohorts whose answer is known, and the reading inside the nodule."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.backbones.features import inside_and_around, patch_shares
from pipelines.cohort.folder import Cohort
from pipelines.probing.question import Answer, Question, RowAnswer, rating_of, side_by_side
from pipelines.probing.reading import FrozenFeatures
from probes.scoring import Parts
from probes.statistics.estimate import Estimate
from tests.pipelines.probing.grain import LABELS, QUESTION, N
from tests.pipelines.probing.test_probe_malignancy import backbone, cohort_of, probed
from tests.probes.partial.test_nested import folds_of, simulated
from tests.recorder import Recorder


def test_characteristics_that_the_grain_shows_are_known_and_others_are_not(grained: Recorder) -> None:
    known = grained.tables["tables/known.csv"].set_index(["row", "characteristic"])
    words = known.loc["dictionary"]
    assert words.loc["spiculation", "nested_z"] > 3
    assert words.loc["calcification", "nested_z"] > 3
    assert words.loc["calcification", "auroc"] > 0.9
    assert np.isnan(words.loc["spiculation", "auroc"])
    for name in ("texture", "lobulation", "margin", "sphericity"):
        assert abs(words.loc[name, "partial_spearman"]) < 0.5
    assert grained.metrics["known/spiculation_nested_z"] == known.loc[("features", "spiculation"), "nested_z"]
    assert "known/calcification_auroc_ci_low" in grained.metrics


def test_the_marks_of_one_reader_are_a_ceiling(grained: Recorder) -> None:
    assert grained.metrics["probe/other_reader_n_nodules"] == N
    assert grained.metrics["probe/other_reader_auroc"] == 1.0  # he sees what the others rate
    assert grained.metrics["probe/other_reader_gain_over_diameter"] > 0.3


def test_grain_that_size_and_hu_do_not_show_is_known_to_the_dictionary(grained: Recorder) -> None:
    assert grained.metrics["probe/dictionary_nested_z"] > 3
    assert grained.metrics["probe/random_words_nested_z"] > 3
    assert grained.metrics["probe/dictionary_partial_r2"] > 0.3


def test_features_beside_the_dictionary_know_what_it_knows_and_random_ones_add_little(
    grained: Recorder,
) -> None:
    assert grained.metrics["probe/joined_nested_z"] > 3
    added = [grained.metrics[f"probe/joined_over_dictionary_r2{end}"] for end in ("_ci_low", "", "_ci_high")]
    known = [grained.metrics[f"probe/{row}_partial_r2"] for row in ("joined", "dictionary")]
    assert added[1] == pytest.approx(known[0] - known[1])
    assert added[0] <= added[1] <= added[2]
    assert added[1] < 0.1


def test_two_rows_side_by_side_are_tested_where_both_are() -> None:
    one = [(np.array([[1.0], [2], [3], [4]]), [([0, 1], [2, 3]), ([2, 3], [0, 1])])]
    halves = [(np.full((4, 1), 5.0), [([0, 1], [2])]), (np.full((4, 1), 7.0), [([2, 3], [0, 1])])]
    (first, its), (second, others) = side_by_side(one, halves)
    np.testing.assert_array_equal(first, [[1, 5], [2, 5], [3, 5], [4, 5]])
    np.testing.assert_array_equal(second[:, 1], 7.0)
    assert [(list(train), list(test)) for train, test in its] == [([0, 1], [2])]
    assert [(list(train), list(test)) for train, test in others] == [([2, 3], [0, 1])]


def test_every_row_of_the_question_is_stored(grained: Recorder) -> None:
    table = grained.tables["tables/question.csv"].set_index("row")
    assert set(table.index) == {"features", "random", "dictionary", "random_words", "joined"}
    assert table.loc["features", "nested_z"] == grained.metrics["probe/nested_z"]
    assert 1 / 200 <= grained.metrics["probe/nested_p"] <= 1
    low, value, high = (
        grained.metrics[f"probe/partial_spearman{end}"] for end in ("_ci_low", "", "_ci_high")
    )
    assert low <= value <= high


def test_residuals_of_each_nodule_give_the_metrics_again(grained: Recorder) -> None:
    items = grained.tables["tables/residuals.parquet"]
    assert len(items) == N == items["nodule_id"].nunique()
    observed = items["observed"]

    def r2(column: str) -> float:
        return float(1 - ((observed - items[column]) ** 2).sum() / (observed**2).sum())

    twins = [r2(name) for name in items if name.startswith("random_")]
    assert len(twins) > 1
    assert r2("features") == pytest.approx(grained.metrics["probe/partial_r2"])
    assert r2("features") - np.mean(twins) == pytest.approx(grained.metrics["probe/over_random_r2"])


def test_random_weights_of_another_seed_are_not_learned(grained: Recorder) -> None:
    assert grained.metrics["probe/over_random_r2_ci_low"] < 0.05


def test_features_of_constant_images_answer_nothing(tmp_path: Path) -> None:
    cohort = cohort_of(tmp_path, lambda number: np.full((40, 40, 5), -700), LABELS[:28])
    few = QUESTION | {"n_bootstrap": 20, "draws": 99, "baselines": "random"}
    run = probed(cohort, backbone(tmp_path / "b", holdout=1.0), tmp_path / "runs", **few)
    assert (run.metrics["probe/nested_z"], run.metrics["probe/nested_p"]) == (0.0, 1.0)
    assert run.metrics["probe/over_random_r2"] == pytest.approx(0.0, abs=1e-9)


def test_on_a_constant_grid_inside_around_and_everywhere_agree() -> None:
    tokens = torch.randn(3, 1, 8).expand(3, 16, 8)
    mask, ring = torch.rand(3, 16), torch.rand(3, 16)
    found = inside_and_around(tokens, mask, ring).unflatten(1, (3, 8))
    torch.testing.assert_close(found, tokens[:, :3], atol=1e-6, rtol=0)


def test_tokens_are_weighted_by_their_share_of_the_mask() -> None:
    mask = np.zeros((1, 8, 8), bool)
    mask[0, 2:6, 2:5] = True  # 2 x 2 px of the first patch, 2 x 1 of the second, and the same below
    shares = patch_shares(mask, 4)
    torch.testing.assert_close(shares, torch.tensor([[4.0, 2.0, 4.0, 2.0]]) / 16)
    ring = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    tokens = torch.tensor([[[1.0], [5.0], [3.0], [9.0]]])
    mean = (4 * 1 + 2 * 5 + 4 * 3 + 2 * 9) / 12
    torch.testing.assert_close(inside_and_around(tokens, shares, ring), torch.tensor([[mean, 9.0, 5.0]]))
    faint = torch.tensor([[0.25, 0.1, 0.25, 0.1]])  # shares below half of the largest do not give the maximum
    assert inside_and_around(tokens, faint, ring)[0, 1] == 3.0
    without_ring = inside_and_around(tokens, shares, torch.zeros(1, 4))[0]
    assert without_ring[2] == without_ring[0]


def test_features_that_nodules_of_like_diameter_exchanged_say_nothing() -> None:
    features, rating, base, patients = simulated(np.random.default_rng(0), 100, 0.6)
    rows = np.arange(len(rating))
    question = Question(rows, rating, base, patients, np.exp(base[:, 1]), len(rating), 50, 0)
    parts: Parts = [(features, folds_of(patients, repeats=2))]
    assert question.test(parts, 199).z > 4
    permuted = question.permuted(parts, repeats=2)
    assert len(set(permuted)) == 20
    assert -1.5 < np.mean(permuted) < 0.5
    assert max(permuted) < 4


def test_nodules_without_a_value_leave_the_question_and_its_folds() -> None:
    features, rating, base, patients = simulated(np.random.default_rng(1), 60, 0.6)
    rows = np.flatnonzero(np.arange(len(rating)) % 7 > 0)
    folds = folds_of(patients)
    few = Question(rows, rating[rows], base[rows], patients[rows], rating[rows], len(rating), 50, 0)
    found = few.test([(features, folds)], 99)
    assert np.isfinite(found.observed).all()
    train, test = folds[0]
    own_train, own_test = few.among(folds)[0]
    np.testing.assert_array_equal(rows[own_train], np.intersect1d(train, rows))
    np.testing.assert_array_equal(rows[own_test], np.intersect1d(test, rows))


def test_features_that_hold_the_label_are_called_a_leak(
    grained_cohort: Cohort,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def learned(reader: FrozenFeatures) -> np.ndarray:
        return reader.nodules.labels[:, None] + np.random.default_rng(0).normal(0, 1e-3, (N, 2))

    monkeypatch.setattr(FrozenFeatures, "learned", learned)
    few = QUESTION | {"n_bootstrap": 20, "draws": 99, "baselines": "random"}
    run = probed(grained_cohort, backbone(tmp_path / "b", holdout=1.0), tmp_path / "runs", **few)
    assert run.metrics["probe/auroc"] > 0.985
    assert run.metrics["probe/partial_r2"] > 0.98
    assert run.metrics["probe/over_diameter_z"] > 3
    assert run.tags["dinox.leak"] == "features hold the rating"
    assert set(run.tables["tables/question.csv"]["row"]) == {"features", "random"}  # as baselines=random asks
    assert "tables/known.csv" not in run.tables
    assert "leak (features hold the rating)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("p", "low", "learned"), [(0.01, 0.001, True), (0.06, 0.001, False), (0.01, -0.001, False)]
)
def test_learned_takes_both_the_test_and_the_gap_to_random_weights(
    p: float, low: float, learned: bool
) -> None:
    one = Estimate(0.1, 0.0, 0.2)
    answer = Answer({"features": RowAnswer(2.0, p, one, one)}, 5, Estimate(0.01, low, 0.02))
    assert answer.is_learned is learned
    assert (": learned" in str(answer)) is learned


def test_the_rating_is_the_readers_mean_where_they_rated(small_cohort) -> None:
    from pipelines.nodule.labeled import nodule_set
    from transforms.nodule_crop import CropSpec

    nodules = nodule_set(small_cohort, "consensus", CropSpec(size_mm=24.0, out_px=16))
    expected = [sum(ratings) / len(ratings) for ratings in nodules.table["malignancy_ratings"]]
    np.testing.assert_allclose(rating_of(nodules), expected)
    assert len(set(expected)) > 2
