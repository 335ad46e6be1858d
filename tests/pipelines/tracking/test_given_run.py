"""`MLFLOW_RUN_ID` reaches every process below an `mlflow run`: which of them write to that run, and which do not."""

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

from pipelines.command.cli import run_entry_point
from pipelines.rehearsal import RehearsalConfig, run_rehearsal
from pipelines.tracking.store import client


def rehearsed(*words: str) -> int:
    return run_entry_point("rehearsal", RehearsalConfig, run_rehearsal, None, words)


@pytest.fixture
def given(own_store: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run as `mlflow run . -e rehearsal` makes it."""
    run = client().create_run("0", tags={"mlflow.project.entryPoint": "rehearsal"}).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run)
    return run


def everything_of(run_id: str) -> tuple[object, ...]:
    run = client().get_run(run_id)
    return run.info.status, run.data.tags, run.data.metrics, run.data.params, client().list_artifacts(run_id)


def finish(store: MlflowClient, run_id: str) -> None:
    store.set_terminated(run_id)


def belong_to_a_pretraining(store: MlflowClient, run_id: str) -> None:
    store.set_tag(run_id, "dinox.entry_point", "pretrain")


def be_made_for_another(store: MlflowClient, run_id: str) -> None:
    store.set_tag(run_id, "mlflow.project.entryPoint", "campaign")


def delete(store: MlflowClient, run_id: str) -> None:
    store.delete_run(run_id)


def test_a_run_that_was_made_for_this_entry_point_is_the_one_that_is_written(given: str) -> None:
    assert rehearsed() == 0
    (run,) = client().search_runs(["0"])
    assert run.info.run_id == given
    assert "loss/total" in run.data.metrics


@pytest.mark.parametrize(
    ("happens", "why"),
    [
        (finish, "is finished"),
        (belong_to_a_pretraining, "is of pretrain"),
        (be_made_for_another, "is of campaign"),
        (delete, "was deleted"),
    ],
)
@pytest.mark.parametrize(("words", "code"), [((), 0), (("--stpes", "3"), 2)])
def test_a_run_of_somebody_else_is_never_written_to(
    given: str,
    capsys: pytest.CaptureFixture[str],
    happens: Callable[[MlflowClient, str], None],
    why: str,
    words: tuple[str, ...],
    code: int,
) -> None:
    happens(client(), given)
    before = everything_of(given)
    assert rehearsed(*words) == code
    assert everything_of(given) == before
    assert f"MLFLOW_RUN_ID names run {given}, which {why}" in capsys.readouterr().out
    others = [
        run for run in client().search_runs(["0"], run_view_type=ViewType.ALL) if run.info.run_id != given
    ]
    assert [run.info.status for run in others] == ["FINISHED"] * (code == 0)
