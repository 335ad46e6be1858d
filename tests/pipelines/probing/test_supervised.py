"""Networks trained on the labels: rows beside the other probes, and a training that is ended and goes on."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.probing.config import SupervisedConfig
from pipelines.probing.fold_record import FoldRecord
from pipelines.probing.setup import ProbeError
from pipelines.probing.supervised import run_supervised
from pipelines.runtime.interrupts import Interrupted
from probes.heads.fitting import EpochFigures, Training
from tests.recorder import Recorder


def test_supervised_rows_stand_beside_diameter_and_pixels_and_an_ended_run_goes_on(
    rated_cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = rated_cohort
    run = Recorder()
    config = SupervisedConfig(
        cohort=str(root),
        networks="2d",
        image_px=16,
        folds=2,
        max_epochs=2,
        n_bootstrap=50,
        device="cpu",
        runs_dir=str(tmp_path / "whole"),
    )
    run_supervised(config, run)
    rows = run.tables["tables/predictions.parquet"]
    assert np.isfinite(rows[["supervised_2d", "pixels"]]).all(axis=None)
    assert set(run.tables["tables/supervised.csv"]["row"]) == {"supervised_2d", "pixels", "diameter"}
    assert run.metrics["probe/n_nodules"] == len(rows)
    assert "figures/roc.png" in run.figures
    epochs = run.tables["tables/supervised_2d_epochs.csv"]
    assert epochs[["fold", "epoch"]].to_numpy().tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]
    assert run.metrics["finetune/supervised_2d_loss@4"] == epochs["loss"].iloc[-1]
    with pytest.raises(ProbeError, match=r"weights names nowhere\.safetensors"):
        run_supervised(replace(config, weights="nowhere.safetensors"), Recorder())

    epoch_done, done = FoldRecord.epoch_done, []

    def then_end(record: FoldRecord, training: Training, figures: EpochFigures) -> None:
        epoch_done(record, training, figures)
        done.append(training.epoch)
        if len(done) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(FoldRecord, "epoch_done", then_end)
    broken = replace(config, runs_dir=str(tmp_path / "broken"), resume="auto")
    with pytest.raises(Interrupted, match=r"of fold 2; -P resume=auto"):
        run_supervised(broken, Recorder())
    resumed = Recorder()
    run_supervised(broken, resumed)
    assert len(done) == 4  # No epoch was trained twice.
    pd.testing.assert_frame_equal(resumed.tables["tables/predictions.parquet"], rows, check_exact=True)
