"""What a probe is fitted to: ratings, labels, and columns of two values, numbers or names."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipelines.cohort.folder import Cohort
from pipelines.cohort.tables import NODULES, write_table
from pipelines.nodule.labeled import nodule_set
from pipelines.probing.config import ProbeConfig
from pipelines.probing.setup import ProbeError
from pipelines.probing.target import aim_of
from tests.pipelines.probing.grain import LABELS, QUESTION
from tests.pipelines.probing.test_probe_malignancy import backbone, probed
from tests.recorder import Recorder
from transforms.nodule_crop import CropSpec

SPEC = CropSpec(size_mm=28.0, out_px=14)
FEW = QUESTION | {"n_bootstrap": 20, "draws": 99}


@pytest.fixture(scope="module")
def columned(grained_cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Labels alternate; the columns are told by the grain, by nothing, or hold what cannot be a target."""
    root = tmp_path_factory.mktemp("columned") / "c"
    shutil.copytree(grained_cohort.root, root)
    nodules = grained_cohort.nodules
    grain, number = nodules["label"].to_numpy(dtype=int), np.arange(len(nodules))
    own = {
        "coarse": np.where(grain == 1, "yes", "no"),
        "grade": 10.0 - 4 * grain + (number % 3) / 10,
        "kind": np.where(grain == 1, "a", np.where(number % 4 == 0, "b", "c")),
        "some": np.where(number < 8, np.nan, grain),
        "one": 3.0,
    }
    write_table(root / "nodules.parquet", nodules.assign(**own), NODULES)
    return Cohort.open(root)


def aim(cohort: Cohort, **options: Any) -> Any:
    config = ProbeConfig(cohort=str(cohort.root), rule="given", **options)
    return aim_of(config, nodule_set(cohort, "given", SPEC))


def test_a_column_of_two_values_takes_the_place_of_the_label(columned: Cohort) -> None:
    found = aim(columned, target="coarse")
    np.testing.assert_array_equal(found.nodules.labels, found.nodules.table["label"])
    assert found.rating is None
    some = aim(columned, target="some")
    assert len(some.nodules.labels) == len(LABELS) - 8
    assert some.nodules.dropped["kind"].tolist() == ["the table states no some"] * 8


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"target": "nothing"}, "target=nothing is neither rating, label nor a column"),
        ({"target": "one"}, "target=one holds 1 value"),
        ({"target": "malignancy_ratings"}, "target=malignancy_ratings holds lists"),
        ({"target": "rating"}, "target=rating needs readers' ratings of every nodule"),
        ({"target": "grade", "head": "mlp"}, "head=mlp is fitted to two classes"),
    ],
)
def test_what_cannot_be_a_target_is_refused(columned: Cohort, options: dict[str, str], sentence: str) -> None:
    with pytest.raises(ProbeError, match=sentence):
        aim(columned, **options)


def test_ratings_are_the_default_of_crops_under_rules_that_sum_them_up(small_cohort: Cohort) -> None:
    nodules = nodule_set(small_cohort, "consensus", CropSpec(size_mm=24.0, out_px=16))
    means = [np.mean(own) for own in nodules.table["malignancy_ratings"]]
    rating = aim_of(ProbeConfig(), nodules).rating
    assert rating is not None
    np.testing.assert_allclose(rating, means)
    for options in ({"target": "label"}, {"head": "mlp"}, {"input": "whole_slice"}):
        assert aim_of(ProbeConfig(**options), nodules).rating is None  # type: ignore[arg-type]
    np.testing.assert_array_equal(aim_of(ProbeConfig(target="label"), nodules).asked, nodules.labels)
    np.testing.assert_allclose(aim_of(ProbeConfig(head="mlp"), nodules).asked, means)
    assert aim_of(ProbeConfig(rule="given"), nodules).rating is None


@pytest.fixture(scope="module")
def graded(columned: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    root = tmp_path_factory.mktemp("graded")
    return probed(columned, backbone(root / "b", holdout=1.0), root / "runs", **FEW, target="grade")


def test_numbers_are_fitted_by_a_ridge_and_ranked_against_the_label(graded: Recorder) -> None:
    assert graded.metrics["probe/dictionary_auroc"] > 0.9  # though the grade falls with the label
    assert graded.metrics["probe/dictionary_nested_z"] > 3
    low, value, high = (graded.metrics[f"probe/target_spearman{end}"] for end in ("_ci_low", "", "_ci_high"))
    assert low <= value <= high


def test_names_have_an_auroc_each(
    columned: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = probed(columned, backbone(tmp_path / "b", holdout=1.0), tmp_path / "r", **FEW, target="kind")
    assert 0 <= run.metrics["probe/target_auroc"] <= 1
    shown = capsys.readouterr().out
    assert all(f"kind={name} against the others, features: AUROC" in shown for name in "abc")


def test_marks_are_found_by_series_ratings_and_diameter() -> None:
    from types import SimpleNamespace

    from pipelines.cohort.pseudonyms import lidc_scans
    from pipelines.lidc.marks import rows_for_series
    from pipelines.nodule.reader_marks import marks_of

    series = sorted(lidc_scans())[:3]
    marks, clusters = rows_for_series(series)
    empty: Any = SimpleNamespace(annotations=pd.DataFrame())
    found = marks_of(empty, clusters.drop(columns="cluster_id", errors="ignore"))
    expected = marks.sort_values("annotation_id")["annotation_id"].tolist()
    assert sorted(found["annotation_id"]) == expected
    for row, own in found.groupby("row"):
        cluster = clusters.iloc[row]
        assert sorted(own["malignancy"]) == sorted(cluster["malignancy_ratings"])
        assert set(own["series_uid"]) == {cluster["series_uid"]}
    own: Any = SimpleNamespace(
        annotations=marks
    )  # a cohort of its own marks, by cluster or regrouped by a rule
    keys = ["row", "annotation_id"]
    by_cluster = marks_of(own, clusters)[keys].sort_values(keys).to_numpy()
    np.testing.assert_array_equal(by_cluster, found[keys].sort_values(keys).to_numpy())
    regrouped = pd.DataFrame({"annotation_ids": [expected[:2], [], expected[2:3]]}, index=[7, 8, 9])
    np.testing.assert_array_equal(
        marks_of(own, regrouped)[keys].sort_values(keys),
        [[0, expected[0]], [0, expected[1]], [2, expected[2]]],
    )
    moved = clusters.assign(diameter_mm=clusters["diameter_mm"] + 1)
    assert len(marks_of(empty, moved)) < len(marks) / 2
    assert marks_of(empty, clusters.assign(series_uid="1.2.3")).empty
