"""What becomes a parameter of a run, under one name, and how the whole configuration is read again."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.command.cli import run_entry_point
from pipelines.command.config import flatten, nested
from pipelines.command.entry_points import ENTRY_POINTS
from pipelines.command.recorded import whole_configuration
from pipelines.report.facts import gather
from pipelines.tracking.parameters import MACHINE, PRETRAINING, compared
from pipelines.tracking.reading import StoredRun, read_run
from pipelines.training.config import PretrainConfig


def test_a_pretraining_has_about_forty_parameters_and_what_was_given() -> None:
    flat = flatten(nested(PretrainConfig())) | {"recipe": "vit_small"}
    bare = compared("pretrain", flat, set())
    assert len(bare) < 45 < len(flat)
    assert {"recipe", "cohort", "seed", "optim.lr", "objective.koleo_weight", "backbone.arch"} <= bare.keys()
    assert compared("pretrain", flat, {"workers", "optim.clip_norm"}).keys() - bare.keys() == {
        "workers",
        "optim.clip_norm",
    }


def test_machines_and_folders_are_no_parameters_and_every_listed_key_exists() -> None:
    known: set[str] = {"recipe"}
    for name, one in ENTRY_POINTS.items():
        flat = flatten(nested(one.load_schema()()))
        known |= flat.keys()
        if name != "pretrain":
            assert not compared(name, flat, set()).keys() & {"device", "runs_dir", "workers", "out"}
    assert known >= MACHINE | PRETRAINING
    assert not MACHINE & PRETRAINING


@pytest.fixture
def finished(own_store: Path, monkeypatch: pytest.MonkeyPatch) -> StoredRun:
    """A pretraining as `mlflow run` starts it: MLflow has logged its options as they were typed."""
    store = MlflowClient(f"sqlite:///{own_store / 'mlflow.db'}")
    run_id = str(store.create_run("0").info.run_id)
    typed = {"optim.lr": "3e-3", "recipe": "demo", "log_every": "7"}
    for key, text in typed.items():
        store.log_param(run_id, key, text)
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    words = [word for key, text in typed.items() for word in (f"--{key}", text)]
    schema = ENTRY_POINTS["pretrain"].load_schema()
    assert run_entry_point("pretrain", schema, lambda config, run: None, "vit_small", words) == 0
    store.set_terminated(run_id)
    return read_run(StoredRun, run_id)


def test_a_key_has_one_name_and_the_whole_configuration_is_read_as_it_was_used(finished: StoredRun) -> None:
    assert not any(name.startswith("cfg.") for name in finished.params)
    assert finished.params["optim.lr"] == "3e-3"
    assert finished.params["log_every"] == "7"
    assert finished.params["steps"] == "1400"
    assert "workers" not in finished.params
    whole = whole_configuration(finished)
    assert float(whole["optim.lr"]) == 0.003
    assert (whole["workers"], whole["watch.min_steps"]) == ("-1", "300")
    (one,) = gather([finished])
    assert one.facts["pretrain.views.window.policy"] == "lung_aware"
    assert one.facts["pretrain.optim.clip_norm"] == "0.0"


def test_a_run_without_its_file_has_its_parameters(own_store: Path) -> None:
    store = MlflowClient(f"sqlite:///{own_store / 'mlflow.db'}")
    run_id = str(store.create_run("0").info.run_id)
    store.log_param(run_id, "seed", "3")
    assert whole_configuration(read_run(StoredRun, run_id)) == {"seed": "3"}
    store.log_param(run_id, "cfg.steps", "5")  # as older runs have them
    older = read_run(StoredRun, run_id)
    assert older.is_whole
    assert whole_configuration(older) == {"seed": "3", "steps": "5"}
