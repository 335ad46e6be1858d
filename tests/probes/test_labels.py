"""Label rules on nodules small enough to label by hand."""

import numpy as np
import pandas as pd
import pytest

from probes.label_rules import LabelRule
from probes.labels import LabelError, group_by_z, label_nodules

NO_MARKS = pd.DataFrame()


def nodules_rated(
    *ratings: list[int], patients: list[str] | None = None, diameters: list[float] | None = None
) -> pd.DataFrame:
    n = len(ratings)
    return pd.DataFrame(
        {
            "nodule_id": [f"nodule-{i}" for i in range(n)],
            "volume_id": "volume",
            "series_uid": "1.2",
            "patient_id": patients or [f"patient-{i}" for i in range(n)],
            "diameter_mm": diameters or [8.0] * n,
            "malignancy_ratings": list(ratings),
            "cluster_id": range(n),
        }
    )


def marks(*rows: tuple[str, float, int]) -> pd.DataFrame:
    """(patient, median z in mm, rating) of each mark, each in a cluster of its own, one scan a patient."""
    patients, heights, ratings = zip(*rows, strict=True)
    n = len(rows)
    return pd.DataFrame(
        {
            "annotation_id": range(n),
            "volume_id": "volume",
            "series_uid": [f"series of {patient}" for patient in patients],
            "patient_id": patients,
            "malignancy": ratings,
            "diameter_mm": np.linspace(4, 8, n),
            "volume_mm3": 100.0,
            "x_lps_mm": np.arange(n) * 50.0,
            "y_lps_mm": 0.0,
            "z_lps_mm": heights,
            "contour_z_median_mm": heights,
            "cluster_id": range(n),
        }
    )


RATINGS = ([5], [4, 3], [2, 4, 4], [3, 3, 3], [1, 2, 3, 5], [4, 4, 3, 2], [2, 3, 2], [5, 5, 5, 5, 1])
BY_HAND: dict[LabelRule, list[bool | None]] = {
    #                    [5]    [4,3]  [2,4,4] [3,3,3] [1235]  [4432]  [232]  [55551]
    "any_reader": [True, True, True, False, False, True, False, True],
    "consensus": [None, None, True, False, False, True, False, True],
    "consensus_clear": [None, None, None, None, None, None, False, True],
    "lora": [None, True, True, True, False, True, False, True],
}


@pytest.mark.parametrize("rule", BY_HAND)
def test_a_rule_labels_as_by_hand(rule: LabelRule) -> None:
    labeled = label_nodules(rule, NO_MARKS, nodules_rated(*RATINGS))
    found = dict(zip(labeled.nodules["nodule_id"], labeled.nodules["is_malignant"], strict=True))
    assert [found.get(f"nodule-{i}") for i in range(len(RATINGS))] == BY_HAND[rule]
    assert len(labeled.nodules) + len(labeled.dropped) == len(RATINGS) == labeled.counts.n_given


@pytest.mark.parametrize(
    ("rule", "n_three", "fate"),
    [("consensus", 1, "benign"), ("consensus_clear", 1, "dropped"), ("lora", 1, "malignant")],
)
def test_the_counts_say_what_becomes_of_3(rule: LabelRule, n_three: int, fate: str) -> None:
    counts = label_nodules(rule, NO_MARKS, nodules_rated(*RATINGS)).counts
    assert (counts.n_three, counts.fate_of_three) == (n_three, fate)
    assert f"{n_three} rated exactly 3, {fate}" in str(counts)
    assert str(counts).startswith(f"{rule}: {counts.n_labeled} nodules = {counts.n_malignant} malignant + ")


def test_a_nodule_without_any_rating_is_dropped_with_its_reason() -> None:
    labeled = label_nodules("any_reader", NO_MARKS, nodules_rated([], [4]))
    assert labeled.dropped.to_dict("records") == [{"nodule_id": "nodule-0", "reason": "fewer than 1 reader"}]


def test_the_article_groups_by_height_alone() -> None:
    rows = marks(("a", 0.0, 5), ("a", 10.0, 1), ("a", 10.1, 5), ("b", 5.0, 2), ("a", 20.0, 5), ("a", 20.2, 1))
    groups = group_by_z(rows)
    assert groups["annotation_ids"].tolist() == [[0, 1], [2, 4], [5], [3]]
    assert groups["x_lps_mm"].tolist() == [
        25.0,
        150.0,
        250.0,
        150.0,
    ]  # x plays no part: 50 mm apart, one group
    labeled = label_nodules("article", rows, nodules_rated([3]))
    assert labeled.nodules["is_malignant"].tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("low_mm", "high_mm", "n_groups"), [(-112.5, -102.5, 1), (0.0, 10.000000000000002, 2)]
)
def test_the_article_joins_marks_at_exactly_10_mm_and_none_beyond(
    low_mm: float, high_mm: float, n_groups: int
) -> None:
    assert len(group_by_z(marks(("a", low_mm, 1), ("a", high_mm, 5)))) == n_groups


def test_the_article_keeps_the_scans_of_a_patient_apart() -> None:
    rows = marks(("a", 0.0, 5), ("a", 1.0, 1), ("a", 2.0, 4), ("a", 3.0, 2))
    rows["series_uid"] = ["second", "first", "second", "first"]
    groups = group_by_z(rows)
    assert groups["annotation_ids"].tolist() == [[1, 3], [0, 2]]
    assert groups["series_uid"].tolist() == ["first", "second"]
    assert groups["nodule_id"].tolist() == ["a_article-0", "a_article-1"]


def test_luna_drops_small_marks_before_it_counts_readers() -> None:
    nodules = nodules_rated([5, 5, 1], [4, 4, 4, 1])
    rows = marks(*[("patient-0", 0.0, r) for r in (5, 5, 1)], *[("patient-1", 0.0, r) for r in (4, 4, 4, 1)])
    rows = rows.assign(
        cluster_id=[0, 0, 0, 1, 1, 1, 1], series_uid="1.2", diameter_mm=[9, 9, 2.9, 9, 9, 9, 2.9]
    )
    labeled = label_nodules("luna_fmcib", rows, nodules)
    assert labeled.nodules["nodule_id"].tolist() == ["nodule-1"]
    assert labeled.nodules["malignancy_rating"].tolist() == [4.0]
    assert labeled.dropped["reason"].tolist() == ["fewer than 3 readers"]


@pytest.mark.parametrize(
    ("ratings", "label"), [([2, 2, 3, 3], False), ([3, 3, 4, 4], True), ([3, 3, 3, 4], None)]
)
def test_luna_rounds_half_to_even(ratings: list[int], label: bool | None) -> None:
    rows = marks(*[("patient-0", 0.0, r) for r in ratings]).assign(cluster_id=0, series_uid="1.2")
    labeled = label_nodules("luna_fmcib", rows, nodules_rated(ratings))
    assert labeled.nodules["is_malignant"].tolist() == ([] if label is None else [label])


def test_a_diagnosis_is_borne_by_the_patients_largest_nodule() -> None:
    nodules = nodules_rated(
        [1], [5], [2], [3], [3], patients=["a", "a", "b", "c", "d"], diameters=[5, 9, 7, 7, 7]
    )
    diagnosis = pd.DataFrame({"patient_id": ["a", "b", "c", "e"], "diagnosis": [3, 1, 0, 2]})
    labeled = label_nodules("tcia_diagnosis", NO_MARKS, nodules, diagnosis)
    assert labeled.nodules["nodule_id"].tolist() == ["nodule-1", "nodule-2"]
    assert labeled.nodules["is_malignant"].tolist() == [True, False]
    assert labeled.counts.dropped == {
        "patient without a diagnosis": 2,
        "not the patient's largest nodule": 1,
    }


@pytest.mark.parametrize(
    ("diagnosis", "reason"),
    [
        (None, "needs TCIA's table of diagnoses"),
        (pd.DataFrame({"patient": ["a"]}), "no column patient_id, diagnosis"),
        (pd.DataFrame({"patient_id": ["a", "a"], "diagnosis": [1, 2]}), "patient a has two rows"),
        (pd.DataFrame({"patient_id": ["a"], "diagnosis": [4]}), "none of 0 unknown, 1 benign"),
    ],
)
def test_a_table_of_diagnoses_that_cannot_be_is_refused(diagnosis: pd.DataFrame | None, reason: str) -> None:
    with pytest.raises(LabelError, match=reason):
        label_nodules("tcia_diagnosis", NO_MARKS, nodules_rated([3]), diagnosis)


def test_among_nodules_without_a_diameter_none_is_known_to_be_the_largest() -> None:
    nodules = nodules_rated(
        [1], [5], [2], patients=["a", "a", "b"], diameters=[5.0, float("nan"), float("nan")]
    )
    diagnosis = pd.DataFrame({"patient_id": ["a", "b"], "diagnosis": [3, 2]})
    labeled = label_nodules("tcia_diagnosis", NO_MARKS, nodules, diagnosis)
    assert labeled.nodules["nodule_id"].tolist() == ["nodule-2"]  # the only one of its patient
    assert labeled.dropped["reason"].str.contains("has no diameter").tolist() == [True, True]


def test_a_given_label_is_taken_as_it_stands_whatever_the_ratings_say() -> None:
    nodules = nodules_rated([5, 5, 5], [], [], [1], patients=["a", "b", "c", "c"]).assign(
        label=[0.0, 1.0, np.nan, 1.0]
    )
    labeled = label_nodules("given", NO_MARKS, nodules)
    assert labeled.nodules["nodule_id"].tolist() == ["nodule-0", "nodule-1", "nodule-3"]
    assert labeled.nodules["is_malignant"].tolist() == [False, True, True]
    assert labeled.dropped["nodule_id"].tolist() == ["nodule-2"]
    assert str(labeled.counts) == (
        "given: 3 nodules = 2 malignant + 1 benign from 3 patients; ratings are not read"
        "; dropped 1: the table of nodules states no label"
    )


def test_a_cohort_without_labels_and_one_without_ratings_say_which_rule_would_do() -> None:
    with pytest.raises(LabelError, match=r"'given' needs nodules with a label.*column label holds 0 benign"):
        label_nodules("given", NO_MARKS, nodules_rated([3]))
    with pytest.raises(LabelError, match="'given' needs nodules with a label"):
        label_nodules("given", NO_MARKS, nodules_rated([3]).assign(label=np.nan))
    with pytest.raises(LabelError, match="neither 0 benign nor 1 malignant"):
        label_nodules("given", NO_MARKS, nodules_rated([3]).assign(label=2))
    with pytest.raises(LabelError, match=r"'consensus' reads ratings, and no nodule.*rule 'given'"):
        label_nodules("consensus", NO_MARKS, nodules_rated([], []).assign(label=[1, np.nan]))
    some = label_nodules("any_reader", NO_MARKS, nodules_rated([], [4]).assign(label=[1, np.nan]))
    assert some.nodules["nodule_id"].tolist() == ["nodule-1"]


@pytest.mark.parametrize("rule", ["article", "luna_fmcib"])
def test_rules_that_need_marks_say_so_where_a_cohort_has_none(rule: LabelRule) -> None:
    with pytest.raises(LabelError, match=f"'{rule}' needs the readers' marks one by one.*choose consensus"):
        label_nodules(rule, NO_MARKS, nodules_rated([3, 3, 3]))


def test_unknown_rules_ratings_and_missing_columns_are_refused() -> None:
    with pytest.raises(LabelError, match="'majority' does not exist; choose one of consensus, article"):
        label_nodules("majority", NO_MARKS, nodules_rated([3]))
    with pytest.raises(LabelError, match="malignancy rating 6 is not one of LIDC's 1 to 5"):
        label_nodules("consensus", NO_MARKS, nodules_rated([3, 6, 3]))
    with pytest.raises(LabelError, match="table of nodules has no column patient_id"):
        label_nodules("consensus", NO_MARKS, nodules_rated([3]).drop(columns="patient_id"))


def test_a_rule_leaves_its_tables_as_they_were() -> None:
    nodules = nodules_rated(*RATINGS)
    before = nodules.copy(deep=True)
    label_nodules("consensus", NO_MARKS, nodules)
    pd.testing.assert_frame_equal(nodules, before)


EDGES: list[tuple[LabelRule, list[int], bool | None]] = [
    ("consensus", [3, 3, 4, 4], True),  # median 3.5
    ("consensus", [2, 3, 3, 4], False),
    ("consensus", [4, 4], None),
    ("consensus_clear", [3, 4, 3, 4], True),  # mean 3.5
    ("consensus_clear", [3, 3, 4], None),
    ("consensus_clear", [2, 3, 2, 3], False),  # mean 2.5
    ("consensus_clear", [3, 3, 2], None),
    ("consensus_clear", [5, 5], None),
    ("lora", [3, 3], True),
    ("lora", [3, 2], False),
    ("lora", [5], None),
    ("any_reader", [3], False),
    ("any_reader", [3, 4], True),
]


@pytest.mark.parametrize(("rule", "ratings", "label"), EDGES)
def test_a_rating_on_the_edge_of_a_rule_falls_on_its_stated_side(
    rule: LabelRule, ratings: list[int], label: bool | None
) -> None:
    labeled = label_nodules(rule, NO_MARKS, nodules_rated(ratings))
    assert labeled.nodules["is_malignant"].tolist() == ([] if label is None else [label])


def test_luna_keeps_a_mark_of_exactly_3_mm() -> None:
    rows = marks(*[("patient-0", 0.0, 5)] * 3).assign(
        cluster_id=0, series_uid="1.2", diameter_mm=[3.0, 3.0, 3.0]
    )
    assert label_nodules("luna_fmcib", rows, nodules_rated([5, 5, 5])).nodules["is_malignant"].tolist() == [
        True
    ]


@pytest.mark.parametrize("rating", [0, 6])
def test_ratings_run_from_1_to_5(rating: int) -> None:
    with pytest.raises(LabelError, match=f"malignancy rating {rating} is not"):
        label_nodules("any_reader", NO_MARKS, nodules_rated([rating]))
    assert label_nodules("any_reader", NO_MARKS, nodules_rated([1], [5])).counts.n_malignant == 1


@pytest.mark.parametrize(("diagnosis", "label"), [(0, None), (1, False), (2, True), (3, True)])
def test_a_primary_and_a_metastatic_diagnosis_are_malignant(diagnosis: int, label: bool | None) -> None:
    table = pd.DataFrame({"patient_id": ["patient-0"], "diagnosis": [diagnosis]})
    labeled = label_nodules("tcia_diagnosis", NO_MARKS, nodules_rated([3]), table)
    assert labeled.nodules["is_malignant"].tolist() == ([] if label is None else [label])


def test_of_nodules_as_large_the_first_bears_the_diagnosis() -> None:
    nodules = nodules_rated([3], [3], patients=["a", "a"], diameters=[7.0, 7.0])
    labeled = label_nodules(
        "tcia_diagnosis", NO_MARKS, nodules, pd.DataFrame({"patient_id": ["a"], "diagnosis": [2]})
    )
    assert labeled.nodules["nodule_id"].tolist() == ["nodule-0"]
