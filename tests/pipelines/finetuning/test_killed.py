"""A whole process that is killed: what is resumed ends as if it had never been disturbed. Slow."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from safetensors.torch import load_file

from pipelines.cohort.folder import Cohort
from tests.pipelines.finetuning.test_finetune import OPTIONS
from tests.pipelines.probing.test_probe_malignancy import backbone
from tests.processes import OpenProcess, kill_group, wait_until

ROOT = Path(__file__).resolve().parents[3]


class Place:
    """A folder with a store, and the command that a user would type there."""

    def __init__(self, open_process: OpenProcess, folder: Path, store: Path, cohort: Cohort) -> None:
        folder.mkdir()
        shutil.copy(store, folder / "mlflow.db")
        self.folder, self.runs, self.open_process = folder, folder / "runs", open_process
        self.store = f"sqlite:///{folder / 'mlflow.db'}"
        own = {"cohort": cohort.root, "backbone": backbone(folder / "b", holdout=1.0), "runs_dir": self.runs}
        own |= {"max_epochs": 4, "batch_size": 8, "mode": "full", "resume": "auto"}
        self.words = [word for key, value in (OPTIONS | own).items() for word in (f"--{key}", str(value))]
        self.environment = {"PATH": os.defpath, "HOME": str(folder), "MLFLOW_TRACKING_URI": self.store}
        self.environment |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT)}

    def start(self) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "pipelines.finetune", *self.words]
        out = subprocess.PIPE
        return self.open_process(command, cwd=ROOT, env=self.environment, stdout=out, stderr=out, text=True)

    def finish(self) -> None:
        process = self.start()
        _, said = process.communicate(timeout=600)
        assert process.returncode == 0, said

    def result(self) -> tuple[pd.DataFrame, dict[str, dict[int, float]], dict[str, object]]:
        """Scores, curves and learned tensors of the one run that was trained here."""
        (folder,) = (path.parent for path in self.runs.glob("*/run.json"))
        client = MlflowClient(self.store)
        run = client.get_run(folder.name)
        assert run.info.status == "FINISHED"
        table = client.download_artifacts(folder.name, "tables/predictions.parquet", str(self.folder))
        names = [name for name in run.data.metrics if name.startswith(("finetune/", "probe/"))]
        curves = {
            name: {p.step: p.value for p in client.get_metric_history(folder.name, name)} for name in names
        }
        learned = {
            f"{file.parent.name}/{name}": one.numpy().tobytes()
            for file in folder.glob("adapters/*/learned.safetensors")
            for name, one in load_file(file).items()
        }
        return pd.read_parquet(table), curves, learned


@pytest.mark.slow
def test_a_killed_fine_tuning_ends_as_if_it_had_not_been_killed(
    grained_cohort: Cohort, blank_store: Path, tmp_path: Path, open_process: OpenProcess
) -> None:
    whole = Place(open_process, tmp_path / "whole", blank_store, grained_cohort)
    whole.finish()
    broken = Place(open_process, tmp_path / "broken", blank_store, grained_cohort)
    for saved in (
        "fold_000/step_00000001.json",
        "fold_000/step_00000003.json",
        "fold_001/step_00000002.json",
    ):
        process = broken.start()
        wait_until(lambda saved=saved: any(broken.runs.glob(f"*/checkpoints/{saved}")), process)
        kill_group(process)
    broken.finish()
    (scores, curves, learned), (others, other_curves, other_learned) = whole.result(), broken.result()
    pd.testing.assert_frame_equal(scores, others, check_exact=True)
    assert curves == other_curves
    assert len(learned) > 0
    assert learned == other_learned
