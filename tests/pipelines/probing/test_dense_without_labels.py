"""`probe_dense` reads masks: it asks for no label, and splits patients alone where no rule gives two classes."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.cohort.folder import Cohort
from pipelines.cohort.tables import NODULES, write_table
from pipelines.nodule.enough import refuse_too_few_patients
from pipelines.probing.config import DenseConfig
from pipelines.probing.dense import run_dense
from probes.statistics.checks import TooFewError
from tests.pipelines.probing.test_probe_entries import save_tiny
from tests.recorder import Recorder


@pytest.mark.parametrize("labels", ["one class", "no rating"])
def test_masks_are_probed_without_labels(small_cohort: Cohort, tmp_path: Path, labels: str) -> None:
    root, nodules = tmp_path / "c", small_cohort.nodules
    ratings = [[1, 1, 1] if labels == "one class" else []] * len(nodules)
    shutil.copytree(small_cohort.root, root)
    write_table(root / "nodules.parquet", nodules.assign(malignancy_ratings=ratings), NODULES)
    own = save_tiny(tmp_path / "backbone", holdout=1.0, leak="", steps=10)
    run = Recorder(draws=False)
    config = DenseConfig(cohort=str(root), backbone=own, size_mm=40.0, folds=2, device="cpu")
    refuse_too_few_patients(config)
    run_dense(config, run)
    assert run.metrics["dense/n_nodules"] == len(nodules) - len(run.tables["tables/dropped.parquet"]) > 5
    tested = run.tables["tables/splits.parquet"]["patient_id"]
    assert set(tested) == set(nodules["patient_id"])
    assert not tested.duplicated().any()
    said = "6 patients to test with a nodule, too few for 99 folds; what would do: folds=6"
    with pytest.raises(TooFewError, match=said):
        refuse_too_few_patients(replace(config, folds=99))
