"""Figures of scores: what legend, limits and bands say is what was measured."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from pipelines.figures.scores import (
    calibration_figure,
    decision_figure,
    known_figure,
    roc_figure,
    row_name,
    row_strokes,
    rows_figure,
)
from pipelines.runtime.plot_style import STROKES
from probes.statistics.bootstrap import with_interval
from probes.statistics.calibration import calibration_intercept, calibration_slope, decision_curve
from probes.statistics.metrics import auroc_with_interval, roc_band, roc_points

RNG = np.random.default_rng(0)
LABELS = (RNG.random(120) < 0.3).astype(np.int64)
PATIENTS = np.array([f"p{number // 2}" for number in range(120)])
GOOD = 1 / (1 + np.exp(-(2.0 * LABELS - 1.6 + RNG.normal(size=120))))
SIZE = 6 + 3 * LABELS + RNG.normal(size=120)


def legend_of(figure) -> list[str]:  # type: ignore[no-untyped-def]
    legends = [*figure.legends, *(one for axis in figure.axes if (one := axis.get_legend()))]
    return [text.get_text() for legend in legends for text in legend.get_texts()]


def test_the_curve_is_that_of_an_independent_implementation() -> None:
    ties = np.round(GOOD, 1)
    false_positive, true_positive = roc_points(LABELS, ties)
    expected = roc_curve(LABELS, ties, drop_intermediate=False)
    np.testing.assert_allclose([false_positive, true_positive], expected[:2])
    assert np.trapezoid(true_positive, false_positive) == pytest.approx(roc_auc_score(LABELS, ties))


def test_the_band_holds_the_curve_and_narrows_with_more_patients() -> None:
    at, low, high = roc_band(LABELS, GOOD, PATIENTS, n_bootstrap=300)
    curve = np.interp(at, *roc_points(LABELS, GOOD))
    assert np.mean((low <= curve) & (curve <= high)) > 0.97
    tiled = [np.tile(one, 9) for one in (LABELS, GOOD)]
    others = np.concatenate([np.char.add(PATIENTS, f"-{copy}") for copy in range(9)])
    _, low9, high9 = roc_band(*tiled, others, n_bootstrap=300)
    assert (high9 - low9).mean() < 0.5 * (high - low).mean()


def test_roc_names_every_area_with_its_interval_and_bands_features_and_diameter() -> None:
    figure = roc_figure(LABELS, {"features": GOOD, "pixels": GOOD[::-1], "diameter": SIZE}, PATIENTS)
    assert figure.get_suptitle() == f"ROC, 120 nodules ({LABELS.sum()} malignant) of 60 patients"
    said = legend_of(figure)
    assert f"features: {auroc_with_interval(LABELS, GOOD, PATIENTS)}" in said
    assert f"diameter (readers'): {auroc_with_interval(LABELS, SIZE, PATIENTS)}" in said
    assert said[-1] == "chance: 0.500"
    axis = figure.axes[0]
    assert len(axis.collections) == 2
    strokes = row_strokes(["features", "diameter"])
    filled = {tuple(one.get_facecolor()[0][:3].round(3)) for one in axis.collections}
    assert filled == {
        tuple(round(int(own.color[k : k + 2], 16) / 255, 3) for k in (1, 3, 5)) for own in strokes.values()
    }
    assert axis.get_xlim() == axis.get_ylim() == pytest.approx((-0.005, 1.005))


def test_rows_that_know_fewer_nodules_say_how_many() -> None:
    unknown = SIZE.copy()
    unknown[:20] = np.nan
    area = auroc_with_interval(LABELS[20:], SIZE[20:], PATIENTS[20:])
    said = legend_of(roc_figure(LABELS, {"features": GOOD, "diameter": unknown}, PATIENTS))
    assert f"diameter (readers'): {area} (n = 100)" in said
    chance = np.where(np.isfinite(unknown), 0.3, np.nan)
    figure = decision_figure(LABELS, {"features": GOOD, "diameter": chance}, PATIENTS)
    assert "diameter (readers') (n = 100)" in legend_of(figure)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    everyone = decision_curve(LABELS, GOOD).treat_all
    np.testing.assert_array_equal(lines["all called malignant"].get_ydata(), everyone)


def test_no_two_rows_of_a_figure_share_a_stroke() -> None:
    rows = [
        "features",
        "random_weights",
        "pixels",
        "hu",
        "dictionary",
        "random_words",
        "features_and_diameter",
    ]
    assert len(set(row_strokes([*rows, "diameter"]).values())) == len(STROKES)
    assert len(set(row_strokes(["supervised_2d", "supervised_3d", "pixels", "diameter"]).values())) == 4
    assert row_strokes(rows)["pixels"] == row_strokes(["x", "pixels"])["pixels"]
    assert row_name("features_and_diameter") == "features + diameter"
    assert row_name("hu_and_diameter") == "HU statistics + diameter"


def test_calibration_has_every_nodule_in_its_counts_and_states_intercept_and_slope() -> None:
    figure = calibration_figure(LABELS, GOOD, PATIENTS, bins=6)
    upper, lower = figure.axes
    said = legend_of(figure)
    for name, metric in (("intercept", calibration_intercept), ("slope", calibration_slope)):
        value = with_interval(metric, LABELS, GOOD, PATIENTS)
        assert any(text.startswith(f"{name} {value}") for text in said)
    assert any("bins of 20 nodules" in text for text in said)
    heights = [sum(bar.get_height() for bar in bars) for bars in lower.containers]
    assert heights == [(LABELS == 0).sum(), (LABELS == 1).sum()]
    drawn = upper.containers[0].lines[0].get_ydata()
    order = np.argsort(GOOD, kind="stable").reshape(6, 20)
    np.testing.assert_allclose(drawn, LABELS[order].mean(axis=1))
    for axis in (upper, lower):
        assert axis.get_xlim() == pytest.approx((-0.02, 1.02))


def test_the_axis_of_a_decision_curve_ends_just_above_the_prevalence() -> None:
    figure = decision_figure(LABELS, {"features": GOOD, "diameter": np.full(120, LABELS.mean())}, PATIENTS)
    (axis,) = figure.axes
    assert axis.get_ylim() == pytest.approx((-0.1 * LABELS.mean(), 1.1 * LABELS.mean()))
    said = legend_of(figure)
    assert said == ["features", "diameter (readers')", "all called malignant", "none called malignant"]
    lines = {line.get_label(): line for line in axis.lines}
    curve = decision_curve(LABELS, GOOD)
    np.testing.assert_array_equal(lines["features"].get_ydata(), curve.net_benefit)
    np.testing.assert_array_equal(lines["all called malignant"].get_ydata(), curve.treat_all)


def test_a_forest_shows_every_row_and_its_difference_from_diameter() -> None:
    gap = {"minus_diameter": 0.02, "minus_diameter_ci_low": -0.01, "minus_diameter_ci_high": 0.05}
    counts = {"stratum": "all", "n_nodules": 120, "n_positive": 36, "n_patients": 60}
    table = pd.DataFrame(
        [
            counts | {"row": "features", "auroc": 0.9, "auroc_ci_low": 0.85, "auroc_ci_high": 0.94} | gap,
            counts | {"row": "diameter", "auroc": 0.88, "auroc_ci_low": 0.8, "auroc_ci_high": 0.93},
            counts | {"row": "shuffled_labels", "auroc": 0.5, "auroc_lowest": 0.4, "auroc_highest": 0.6},
            counts | {"stratum": "6-15 mm", "row": "features", "auroc": 0.1},
        ]
    )
    figure = rows_figure(table)
    assert figure is not None
    assert "120 nodules (36 malignant) of 60 patients" in figure.get_suptitle()
    left, right = figure.axes
    names = [text.get_text() for text in left.get_yticklabels()]
    assert names == ["features", "diameter (readers')", "features, labels shuffled"]

    def ends(axis) -> list[list[float]]:  # type: ignore[no-untyped-def]
        return [
            segment[:, 0].round(3).tolist() for bars in axis.collections for segment in bars.get_segments()
        ]

    assert ends(left) == [[0.85, 0.94], [0.8, 0.93], [0.4, 0.6]]
    assert ends(right) == [[-0.01, 0.05]]
    assert rows_figure(table.assign(auroc=np.nan)) is None


def test_known_characteristics_are_drawn_with_intervals_and_n() -> None:
    lines = [
        {"row": row, "characteristic": name, "n_nodules": 77, "partial_spearman": value}
        | {"partial_spearman_ci_low": value - 0.1, "partial_spearman_ci_high": value + 0.1}
        for row, value in (("features", 0.3), ("random", 0.1))
        for name in ("texture", "margin")
    ]
    figure = known_figure(pd.DataFrame(lines))
    assert "77 nodules" in figure.get_suptitle()
    assert legend_of(figure) == ["features", "random weights"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["texture", "margin"]
