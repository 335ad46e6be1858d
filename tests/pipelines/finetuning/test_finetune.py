"""Entry point `finetune`: the rows of its table, and that an ended run goes on as if it had not ended."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

from pipelines.cohort.folder import Cohort
from pipelines.finetuning.config import FinetuneConfig
from pipelines.finetuning.run import run_finetune
from pipelines.probing.fold_record import FoldRecord
from pipelines.probing.readers import ProbeError
from pipelines.runtime.interrupts import Interrupted
from probes.heads.fitting import EpochFigures, Training
from tests.pipelines.probing.test_probe_malignancy import backbone, fewer_repeats, probed
from tests.recorder import Recorder

OPTIONS: dict[str, Any] = {
    "rule": "given",
    "size_mm": 14.0,
    "folds": 2,
    "repeats": 1,
    "n_bootstrap": 20,
    "draws": 99,
    "device": "cpu",
    "features": "mean_patch",
    "window": "full",
}


def finetuned(cohort: Cohort, folder: Path, **changes: Any) -> Recorder:
    run = Recorder(draws=False)
    own = {"backbone": str(folder / "b"), "runs_dir": str(folder / "runs"), "max_epochs": 3, "batch_size": 8}
    config = FinetuneConfig(cohort=str(cohort.root), **(OPTIONS | own | changes))
    with fewer_repeats():
        run_finetune(config, run)
    return run


def learned(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor that the networks of a run learned."""
    files = sorted((folder / "runs" / "a_run" / "adapters").glob("*/learned.safetensors"))
    return {
        f"{file.parent.name}/{name}": one.numpy() for file in files for name, one in load_file(file).items()
    }


@pytest.fixture(scope="module")
def undisturbed(grained_cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder]:
    folder = tmp_path_factory.mktemp("undisturbed")
    backbone(folder / "b", holdout=1.0)
    return folder, finetuned(grained_cohort, folder)


def test_the_tuned_rows_stand_marked_beside_the_rows_of_the_frozen_backbone(
    undisturbed: tuple[Path, Recorder], grained_cohort: Cohort
) -> None:
    folder, run = undisturbed
    table = run.tables["tables/probe.csv"].query("stratum == 'all'").set_index("row")
    assert set(table.index[table["trained_on_labels"]]) == {"finetuned", "finetuned_and_diameter"}
    assert {"features", "features_and_diameter", "pixels", "random_weights", "hu", "diameter"} <= set(
        table.index
    )
    frozen = probed(grained_cohort, str(folder / "b"), folder / "runs", **OPTIONS)
    same = ("probe/auroc", "probe/pixels_auroc", "probe/random_auroc", "probe/shuffled_auroc")
    assert {name: run.metrics[name] for name in same} == {name: frozen.metrics[name] for name in same}

    predictions = run.tables["tables/predictions.parquet"]
    positive = predictions["is_malignant"].to_numpy(dtype=bool)
    above = np.subtract.outer(*(predictions["finetuned"].to_numpy()[rows] for rows in (positive, ~positive)))
    by_hand = (above > 0).mean() + (above == 0).mean() / 2
    assert run.metrics["probe/finetuned_auroc"] == pytest.approx(by_hand)
    gain = run.metrics["probe/finetuned_auroc"] - run.metrics["probe/auroc"]
    assert run.metrics["probe/finetuned_over_frozen"] == pytest.approx(gain)
    assert 0 < run.metrics["finetune/trained_share"] < 0.2

    epochs = run.tables["tables/epochs.csv"]
    assert epochs[["fold", "epoch"]].to_numpy().tolist() == [[f, e] for f in (0, 1) for e in (1, 2, 3)]
    logged = [run.metrics[f"finetune/validation_auroc@{step}"] for step in range(1, 7)]
    assert logged == epochs["validation_auroc"].tolist()


@pytest.mark.parametrize("ended_after", [2, 4])
def test_a_run_that_was_ended_goes_on_to_the_same_scores_and_weights_to_the_last_bit(
    ended_after: int,
    undisturbed: tuple[Path, Recorder],
    grained_cohort: Cohort,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole_folder, whole = undisturbed
    backbone(tmp_path / "b", holdout=1.0)
    epoch_done, done = FoldRecord.epoch_done, []

    def then_end(record: FoldRecord, training: Training, figures: EpochFigures) -> None:
        epoch_done(record, training, figures)
        done.append(training.epoch)
        if len(done) == ended_after:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(FoldRecord, "epoch_done", then_end)
    with pytest.raises(Interrupted, match=r"of fold [12]; -P resume=auto") as ending:
        finetuned(grained_cohort, tmp_path)
    assert ending.value.exit_code == 143

    resumed = finetuned(grained_cohort, tmp_path)
    assert len(done) == 6  # No epoch was trained twice.
    names = ("tables/predictions.parquet", "tables/epochs.csv", "tables/probe.csv")
    for name in names:
        pd.testing.assert_frame_equal(resumed.tables[name], whole.tables[name], check_exact=True)
    expected, found = learned(whole_folder), learned(tmp_path)
    assert expected.keys() == found.keys()
    assert len(expected) > 0
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def test_what_fine_tuning_cannot_do_is_refused(
    grained_cohort: Cohort, undisturbed: tuple[Path, Recorder]
) -> None:
    folder, _ = undisturbed
    with pytest.raises(ProbeError, match="learns two classes; target=volume_id has more"):
        finetuned(grained_cohort, folder, target="volume_id", runs_dir=str(folder / "other"))
    with pytest.raises(ValueError, match=r"finetune trains a backbone; .* encoder=astra frozen"):
        FinetuneConfig(encoder="astra")
    with pytest.raises(ValueError, match="finetune has no test_cohort"):
        FinetuneConfig(test_cohort="cohorts/ours")
