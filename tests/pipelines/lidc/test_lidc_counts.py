"""The published and the measured numbers of LIDC-IDRI, from the database alone."""

import pandas as pd
import pytest

from pipelines.lidc.contours import read_scans
from pipelines.lidc.marks import rows_for_series
from probes.label_rules import LabelRule
from probes.labels import Labeled, label_nodules
from probes.statistics.metrics import auroc_with_interval

Tables = tuple[pd.DataFrame, pd.DataFrame]


@pytest.fixture(scope="module")
def tables() -> Tables:
    return rows_for_series()


def label(rule: LabelRule, tables: Tables) -> Labeled:
    annotations, nodules = tables
    return label_nodules(rule, annotations, nodules)


def test_the_database_holds_1018_scans_and_6859_marks(tables: Tables) -> None:
    scans, (annotations, _) = read_scans(), tables
    assert (len(scans), scans["series_uid"].nunique(), scans["patient_id"].nunique()) == (1018, 1018, 1010)
    assert (len(annotations), annotations["annotation_id"].nunique()) == (6859, 6859)
    assert (annotations["scan_id"].nunique(), annotations["patient_id"].nunique()) == (883, 875)
    assert annotations.drop(columns=["x_lps_mm", "y_lps_mm"]).notna().all(axis=None)
    assert (annotations["volume_mm3"] > 0).all()
    assert annotations["diameter_mm"].between(2, 100).all()


def test_pylidcs_clustering_gives_2651_nodules(tables: Tables) -> None:
    _, nodules = tables
    readers = nodules["n_readers"].value_counts()
    assert len(nodules) == 2651
    assert [int(readers[n]) for n in (1, 2, 3, 4)] == [771, 488, 481, 897]
    assert int((nodules["n_readers"] > 4).sum()) == int((nodules["flag"] != "").sum()) == 14
    assert nodules.loc[nodules["flag"] != "", "scan_id"].nunique() == 14


@pytest.mark.parametrize(
    ("rule", "n_malignant", "n_benign", "n_patients"),
    [
        ("article", 455, 1719, 875),
        ("any_reader", 545, 2106, 875),
        ("consensus", 430, 962, 696),
        ("consensus_clear", 387, 422, 509),
        ("lora", 896, 984, 796),
        ("luna_fmcib", 387, 422, 509),
    ],
)
def test_a_rule_reproduces_its_counts(
    rule: LabelRule, n_malignant: int, n_benign: int, n_patients: int, tables: Tables
) -> None:
    labeled = label(rule, tables)
    counts = labeled.counts
    assert (counts.n_malignant, counts.n_benign, counts.n_patients) == (n_malignant, n_benign, n_patients)
    assert int(labeled.nodules["is_malignant"].sum()) == n_malignant
    assert counts.n_given == counts.n_labeled + sum(counts.dropped.values())
    assert len(labeled.dropped) == sum(counts.dropped.values())
    assert labeled.nodules["nodule_id"].is_unique
    if rule != "article":
        assert set(labeled.nodules["nodule_id"]) | set(labeled.dropped["nodule_id"]) == set(
            tables[1]["nodule_id"]
        )


def test_the_articles_rule_keeps_every_mark_and_merges_different_nodules(tables: Tables) -> None:
    nodules = label("article", tables).nodules
    assert sorted(nodules["annotation_ids"].explode()) == sorted(tables[0]["annotation_id"])
    assert (nodules["n_clusters"] > 1).mean() == pytest.approx(0.195, abs=0.005)


@pytest.mark.parametrize(
    ("rule", "stratum_mm", "expected", "n_nodules"),
    [
        ("article", (0, 100), 0.899, 2174),
        ("consensus", (0, 100), 0.922, 1392),
        ("consensus", (6, 15), 0.861, 965),
        ("consensus", (6, 10), 0.766, 679),
        ("consensus", (10, 15), 0.722, 286),
    ],
)
def test_diameter_alone_reaches_its_known_auroc(
    rule: LabelRule, stratum_mm: tuple[int, int], expected: float, n_nodules: int, tables: Tables
) -> None:
    nodules = label(rule, tables).nodules
    nodules = nodules[nodules["diameter_mm"].between(*stratum_mm)]
    found = auroc_with_interval(nodules["is_malignant"], nodules["diameter_mm"], nodules["patient_id"], 200)
    assert len(nodules) == n_nodules
    assert found.value == pytest.approx(expected, abs=0.005)
    assert found.ci_low < found.value < found.ci_high


def test_no_nodule_is_wider_than_a_crop_of_50_mm(tables: Tables) -> None:
    diameter = tables[1]["diameter_mm"]
    assert diameter.max() < 50
    assert (diameter < 32).mean() > 0.98
