"""Short trainings, and what has to be equal of two of them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from safetensors.torch import load_file

from pipelines.cohort.folder import Cohort
from pipelines.command.cli import run_entry_point
from pipelines.training.config import PretrainConfig
from pipelines.training.run import train

STEPS = 6
QUICK = {
    "steps": STEPS, "batch_size": 4, "log_every": 1, "save_every": 2, "eval_every": 3, "eval_slices": 8,
    "backbone.depth": 1, "backbone.embed_dim": 16, "backbone.heads": 2, "backbone.image_px": 28,
    "views.size_px": 28, "head.prototypes": 32, "keep_backbones": "true", "device": "cpu",
}  # fmt: skip


def pretrain(folder: Path, cohort: Cohort, **changes: object) -> int:
    settings = QUICK | {"cohort": cohort.root, "runs_dir": folder / "runs"} | changes
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    return run_entry_point("pretrain", PretrainConfig, train, "demo", words)


def stored_runs(folder: Path) -> list[MlflowRun]:
    """All runs of the test's store, oldest first."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    return sorted(client.search_runs(["0"]), key=lambda run: run.info.start_time)


@dataclass
class Outcome:
    """What must not depend on interruptions."""

    weights: dict[str, torch.Tensor]
    curves: dict[str, set[tuple[int, float]]]
    backbones: list[int]


def outcome(folder: Path, run: MlflowRun) -> Outcome:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    run = client.get_run(run.info.run_id)
    assert run.info.status == "FINISHED"
    names = [name for name in run.data.metrics if not name.startswith("perf/")]
    points = {name: client.get_metric_history(run.info.run_id, name) for name in names}
    kept = client.list_artifacts(run.info.run_id, "backbones")
    newest = folder / "runs" / run.info.run_id / "checkpoints" / f"step_{STEPS:08d}.safetensors"
    return Outcome(
        load_file(newest),
        {name: {(point.step, point.value) for point in found} for name, found in points.items()},
        [int(file.path.split("_")[-1]) for file in kept],
    )


def assert_same(one: Outcome, other: Outcome) -> None:
    assert one.curves == other.curves
    assert one.backbones == other.backbones
    assert one.weights.keys() == other.weights.keys()
    for name, tensor in one.weights.items():
        assert torch.equal(tensor, other.weights[name]), name
