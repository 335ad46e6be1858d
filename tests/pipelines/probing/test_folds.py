"""Folds of a probe, and what is said of the nodules that none of them tests."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from models.backbone import build_backbone
from models.config import BackboneConfig
from pipelines.backbones.folder import LoadedBackbone
from pipelines.nodule.labeled import NoduleSet
from pipelines.probing.config import DenseConfig, SupervisedConfig
from pipelines.probing.folds import fold_plan
from pipelines.probing.readers import Reader
from pipelines.probing.setup import account, among
from pipelines.tracking.run import SilentRun
from probes.labels import Labeled, RuleCounts
from probes.splits import is_held_out

TINY = BackboneConfig(arch="custom", depth=1, embed_dim=24, heads=2, patch_px=7, registers=0, image_px=28)
N_PATIENTS = 40


def nodule_set(n: int = N_PATIENTS) -> NoduleSet:
    """One nodule a patient, every other one malignant."""
    table = pd.DataFrame(
        {
            "nodule_id": [f"n{number}" for number in range(n)],
            "patient_id": [f"p{number}" for number in range(n)],
            "is_malignant": [number % 2 for number in range(n)],
        }
    )
    counts = RuleCounts("given", n, n // 2, n - n // 2, n, 0, "not read", {})
    crops = np.arange(n, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 2, 2), np.float32)
    dropped = pd.DataFrame({"nodule_id": [], "reason": [], "kind": []})
    return NoduleSet(table, crops, np.zeros(n, bool), np.ones(n), dropped, Labeled(table, dropped, counts))


def reader(nodules: NoduleSet, holdout: float) -> Reader:
    loaded = LoadedBackbone(build_backbone(TINY), TINY, "folder", {"holdout": holdout}, "sha", {})
    return Reader(loaded, {patient for patient in nodules.patient_ids if is_held_out(patient, holdout)}, "")


def test_without_a_backbone_every_patient_is_tested_once_and_the_articles_split_is_kept() -> None:
    nodules = nodule_set()
    plan = fold_plan(SupervisedConfig(), None, nodules)
    assert sorted(np.concatenate([test for _, test in plan.folds])) == list(range(N_PATIENTS))
    (fold,) = fold_plan(SupervisedConfig(split="article"), None, nodules).folds
    train, test = fold
    assert len(test) == N_PATIENTS // 5
    assert sorted([*train, *test]) == list(range(N_PATIENTS))


def test_nodules_that_no_fold_tests_are_counted_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    nodules = nodule_set()
    unseen = [is_held_out(f"p{number}", 0.5) for number in range(N_PATIENTS)]
    plan = fold_plan(DenseConfig(), reader(nodules, 0.5), nodules)
    tested = account(SilentRun(), nodules, plan.folds)
    assert tested.tolist() == np.flatnonzero(unseen).tolist()
    n = sum(unseen)
    assert 10 < n < 30
    assert capsys.readouterr().out == (
        f"{N_PATIENTS} nodules: {n} tested, {N_PATIENTS - n} left out: {N_PATIENTS - n} fitted on, never tested\n"
    )
    # The article's split of unseen patients alone: the others are in neither part.
    article = fold_plan(DenseConfig(split="article"), reader(nodules, 0.5), nodules)
    account(SilentRun(), nodules, article.folds)
    assert f"{N_PATIENTS - n} neither fitted on nor tested" in capsys.readouterr().out


def test_nodules_are_matched_to_other_crops_of_them_by_name() -> None:
    nodules = nodule_set()
    kinds = pd.DataFrame(
        {"nodule_id": [f"n{n}" for n in range(3, N_PATIENTS)], "reason": "gap", "kind": "gap"}
    )
    some = among(nodules, replace(nodule_set(3), dropped=kinds))
    assert some.dropped["nodule_id"].tolist() == kinds["nodule_id"].tolist()
    with pytest.raises(RuntimeError, match="the rest went missing"):
        among(nodules, nodule_set(3))  # nothing says why the others are not there
    assert some.table["nodule_id"].tolist() == ["n0", "n1", "n2"]
    assert some.crops_hu[:, 0, 0, 0].tolist() == [0.0, 1.0, 2.0]
    assert among(some, nodules) is some
