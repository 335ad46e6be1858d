"""The process of an arm: it makes its attempt once, however often it is started."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.campaign import arm
from pipelines.campaign.arm import ArmPlan, StagePlan
from pipelines.runtime.interrupts import DEADLINE_ENV
from pipelines.tracking.names import Tag
from pipelines.tracking.reading import StoredRun, read_run
from pipelines.tracking.run import Run
from pipelines.tracking.store import client


@pytest.fixture
def run_id(own_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The run of an arm whose first attempt was submitted; deadlines would end the process of these tests."""
    for module in ("pipelines.campaign.arm", "pipelines.command.cli"):
        monkeypatch.setattr(f"{module}.watch_deadline", lambda: None)
    for name in ("MLFLOW_RUN_ID", DEADLINE_ENV):  # To be put back as they were.
        monkeypatch.setenv(name, "")
    monkeypatch.delenv("DINOX_JOB_FILE", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    found = client().create_run("0").info.run_id
    Run(client(), found).set_tags({Tag.ATTEMPT: "1"})
    yield found
    signal.signal(signal.SIGTERM, before)


def attempt(run_id: str, number: int) -> int:
    stages = [StagePlan("rehearsal", run_id, ["--steps", "2"])]
    return arm.main(ArmPlan("small", "one", run_id, number, 3600.0, stages, {}).to_json())


def is_trained(run_id: str) -> bool:
    return "loss/total" in read_run(StoredRun, run_id).metrics


def test_an_attempt_that_nobody_has_begun_is_made(run_id: str) -> None:
    assert attempt(run_id, 1) == 0
    run = read_run(StoredRun, run_id)
    assert is_trained(run_id)
    assert run.status == "FINISHED"
    assert (run.tags[Tag.BEGUN], run.tags[Tag.ARM_END]) == ("1", "finished")


@pytest.mark.parametrize(
    ("number", "tags"),
    [
        (1, {Tag.BEGUN: "1", Tag.BEGUN_AT: "5.0"}),
        (1, {Tag.ATTEMPT: "2", Tag.BEGUN: "1", Tag.BEGUN_AT: "5.0"}),
        (1, {Tag.ATTEMPT: "2"}),
        (2, {}),
    ],
    ids=["begun by another", "begun and superseded", "superseded", "of no campaign's asking"],
)
def test_an_attempt_that_another_has_begun_or_superseded_is_refused_and_leaves_the_record(
    run_id: str, capsys: pytest.CaptureFixture[str], number: int, tags: dict[Tag, str]
) -> None:
    Run(client(), run_id).set_tags(tags)
    before = read_run(StoredRun, run_id)
    assert attempt(run_id, number) == 0
    assert f"attempt {number} at arm one is not needed" in capsys.readouterr().out
    assert not is_trained(run_id)
    assert read_run(StoredRun, run_id).tags == before.tags
    assert read_run(StoredRun, run_id).status == before.status


def test_an_arm_that_is_done_is_not_made_again(run_id: str) -> None:
    Run(client(), run_id).finish("FINISHED")
    assert attempt(run_id, 1) == 0
    assert not is_trained(run_id)


def test_a_new_attempt_goes_on_where_another_had_begun(run_id: str) -> None:
    Run(client(), run_id).set_tags({Tag.ATTEMPT: "2", Tag.BEGUN: "1", Tag.BEGUN_AT: "5.0"})
    assert attempt(run_id, 2) == 0
    assert is_trained(run_id)


def test_a_store_that_refuses_an_arm_is_one_sentence_and_no_trace(
    run_id: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attempt("0123", 1) == 2
    assert capsys.readouterr().err.startswith("run '0123' is not in the store sqlite:")

    def deleted(*_: object) -> int:
        client().delete_run(run_id)
        return 0

    monkeypatch.setattr(arm, "_run_stages", deleted)
    assert attempt(run_id, 1) == 2
    said = capsys.readouterr().err
    assert f"run {run_id} was deleted in MLflow; " in said
    assert said.count("\n") == 1
    assert "Traceback" not in said
