"""Baselines on made-up nodules whose answer is known."""

import numpy as np
import pandas as pd
import pytest

from probes.heads.linear import LinearProbe, cross_fit
from probes.size_baseline import STRATA_MM, mean_characteristics, score_by_stratum
from probes.splits import patient_folds
from probes.statistics.checks import UnmeasurableError


def made_up(n: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, diameters in mm that part them in part, and patients."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.4).astype(int)
    diameter_mm = np.exp(rng.normal(2.0 + 0.6 * labels, 0.4)).clip(3, 39)
    return labels, diameter_mm, np.array([f"p{i // 2}" for i in range(n)])


def test_each_stratum_is_scored_on_its_own_nodules() -> None:
    labels, diameter, patients = made_up()
    table = score_by_stratum(labels, diameter, diameter, patients, n_bootstrap=100).set_index("stratum")
    assert list(table.index) == list(STRATA_MM)
    for stratum, (low, high) in STRATA_MM.items():
        inside = (diameter >= low) & (diameter <= high)
        above = diameter[inside & (labels == 1)][:, None] - diameter[inside & (labels == 0)]
        row = table.loc[stratum]
        assert (row["n_nodules"], row["n_malignant"]) == (inside.sum(), labels[inside].sum())
        assert row["n_patients"] == len(set(patients[inside]))
        assert row["auroc"] == pytest.approx((above > 0).mean() + 0.5 * (above == 0).mean())
        assert row["ci_low"] < row["auroc"] < row["ci_high"]
    assert table.loc["6_15mm", "auroc"] < table.loc["all", "auroc"]


def test_a_stratum_with_too_few_of_a_class_says_so_instead_of_a_number() -> None:
    labels, diameter, patients = made_up()
    labels[diameter < 6] = 0
    row = score_by_stratum(labels, diameter, diameter, patients, 50, strata=["3_6mm"]).iloc[0]
    assert np.isnan([row["auroc"], row["ci_low"], row["ci_high"]]).all()
    assert row["note"]


def marks_of(n_nodules: int, labels: np.ndarray, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Nodules whose spiculation follows the label, with as many marks as the label wants: a planted leak."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(n_nodules):
        for _ in range(3 + labels[number]):
            ordinal = {
                name: int(rng.integers(1, 6)) for name in ("subtlety", "sphericity", "margin", "lobulation")
            }
            spiculation = int(np.clip(rng.integers(1, 4) + labels[number], 1, 5))
            rows.append(
                {
                    "annotation_id": len(rows),
                    "series_uid": f"s{number // 2}",
                    "cluster_id": number % 2,
                    **ordinal,
                }
                | {"spiculation": spiculation, "texture": 5, "internalStructure": 1, "calcification": 6}
                | {"malignancy": 5 if labels[number] else 1}
            )
    nodules = pd.DataFrame(
        {
            "series_uid": [f"s{i // 2}" for i in range(n_nodules)],
            "cluster_id": [i % 2 for i in range(n_nodules)],
        }
    )
    return pd.DataFrame(rows), nodules


def test_characteristics_are_the_readers_means_and_neither_malignancy_nor_their_number() -> None:
    labels = np.array([0, 1, 0, 1])
    annotations, nodules = marks_of(4, labels)
    annotations.loc[0, ["calcification", "internalStructure"]] = [3, 4]
    features = mean_characteristics(annotations, nodules)
    assert features.shape == (4, 8)
    first = annotations.iloc[:3]
    assert features[0, :5] == pytest.approx(
        first[["subtlety", "sphericity", "margin", "lobulation", "spiculation"]].mean().to_numpy()
    )
    assert features[0, 6:] == pytest.approx([2 / 3, 2 / 3])
    assert features[1, 6:] == pytest.approx([1, 1])
    twice = pd.concat([annotations, annotations])
    assert mean_characteristics(twice, nodules) == pytest.approx(features)
    other = annotations.assign(malignancy=3)
    assert mean_characteristics(other, nodules) == pytest.approx(features)


def test_characteristics_follow_the_marks_of_a_rule_that_regroups() -> None:
    annotations, nodules = marks_of(4, np.array([0, 1, 0, 1]))
    ids = annotations.groupby(["series_uid", "cluster_id"])["annotation_id"].apply(list).tolist()
    regrouped = pd.DataFrame({"annotation_ids": [ids[2] + ids[3], ids[0]]}, index=[5, 9])
    found = mean_characteristics(annotations, regrouped)
    both = annotations[annotations["annotation_id"].isin(ids[2] + ids[3])]
    assert found[0, 0] == pytest.approx(both["subtlety"].mean())
    assert found[1] == pytest.approx(mean_characteristics(annotations, nodules)[0])


def test_a_nodule_without_a_mark_is_refused() -> None:
    annotations, nodules = marks_of(2, np.array([0, 1]))
    with pytest.raises(UnmeasurableError, match="1 nodules have no reader's mark"):
        mean_characteristics(
            annotations, pd.concat([nodules, pd.DataFrame({"series_uid": ["x"], "cluster_id": [0]})])
        )


def test_characteristics_score_what_was_planted_and_no_more() -> None:
    labels, _, patients = made_up(n=300)
    annotations, nodules = marks_of(300, labels)
    splits = patient_folds(patients.tolist(), labels)
    features = mean_characteristics(annotations, nodules)
    scores = cross_fit(LinearProbe, features, labels, splits.patient_ids, splits)
    planted = score_by_stratum(labels, scores, np.full(300, 8.0), patients, 50, strata=["all"])["auroc"][0]
    assert 0.85 < planted < 0.99
    features[:, 4] = 0  # without spiculation nothing is left, though the number of readers reveals the label
    blind = cross_fit(LinearProbe, features, labels, splits.patient_ids, splits)
    left = score_by_stratum(labels, blind, np.full(300, 8.0), patients, 50, strata=["all"])["auroc"][0]
    assert left == pytest.approx(0.5, abs=0.09)
