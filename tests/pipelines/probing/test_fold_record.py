"""A training of folds whose store goes away: its records wait, and nothing is called finished before they are there."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.probing.config import SupervisedConfig
from pipelines.probing.fold_record import claimed
from pipelines.tracking.outbox import StoreAwayError
from pipelines.tracking.run import Run
from pipelines.training.run_folder import RunFolder
from tests.pipelines.tracking.test_outbox import LoopbackStore, loopback as loopback


def test_figures_wait_while_the_store_is_away_and_are_delivered_by_the_resumed_run(
    loopback: LoopbackStore, tmp_path: Path
) -> None:
    config = SupervisedConfig(runs_dir=str(tmp_path / "runs"))

    def run() -> Run:
        return Run(MlflowClient(f"http://127.0.0.1:{loopback.port}"), "run1")

    def train_while_the_store_goes_away() -> None:
        with claimed(config, run(), "supervised", "5" * 64) as own:
            assert own is not None
            loopback.stop()
            own.run.log_metrics({"finetune/supervised_2d_loss": 0.5}, 1)

    with pytest.raises(StoreAwayError, match=r"1 records wait in .*, and -P resume=\w+ then delivers them"):
        train_while_the_store_goes_away()
    assert RunFolder.state(tmp_path / "runs", "run1") == "begun"
    assert loopback.metrics == []

    loopback.start()
    with claimed(config, run(), "supervised", "5" * 64) as own:
        assert own is not None
        own.run.log_metrics({"finetune/supervised_2d_loss": 0.25}, 2)
    assert loopback.metrics == [
        ("finetune/supervised_2d_loss", 0.5, 1),
        ("finetune/supervised_2d_loss", 0.25, 2),
    ]
    assert RunFolder.state(tmp_path / "runs", "run1") == "finished"
    with claimed(config, run(), "supervised", "5" * 64) as own:
        assert own is None
