"""How a command ends: its exit code, its one sentence, and what the store has of it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun

from pipelines.command.cli import run_entry_point
from pipelines.rehearsal import RehearsalConfig
from pipelines.runtime.interrupts import Interrupted
from pipelines.runtime.paths import PROJECT_ROOT
from tests.processes import WAIT_S, OpenProcess
from transforms.refusal import Refusal


class OwnCodeError(Refusal):
    exit_code: ClassVar[int] = 3


def raising(error: BaseException) -> Callable[[Any, Any], None]:
    def body(config: Any, run: Any) -> None:
        raise error

    return body


def store_in(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def only_run(folder: Path) -> MlflowRun:
    (run,) = store_in(folder).search_runs(["0"])
    return run


def rehearse(body: Callable[[Any, Any], None], *words: str) -> int:
    return run_entry_point("rehearsal", RehearsalConfig, body, None, words)


ENDLESS = """
import signal, sys, time
from pipelines.command.cli import run_entry_point
from pipelines.rehearsal import RehearsalConfig
def body(config, run):
    print("begun", flush=True)
    time.sleep(3600)
signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell's background jobs start deaf to it.
sys.exit(run_entry_point("rehearsal", RehearsalConfig, body, None, []))
"""


def test_a_wrong_command_line_makes_no_store(tmp_path: Path) -> None:
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    for words in (["--stpes", "3"], ["--help"], ["--steps", "0"]):
        command = [sys.executable, "-m", "pipelines.rehearsal", *words]
        done = subprocess.run(command, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == (0 if words == ["--help"] else 2)
        assert len(done.stderr.splitlines()) == (0 if words == ["--help"] else 1)
    assert not list(tmp_path.iterdir())


def test_a_run_that_mlflow_made_before_is_closed_with_the_sentence(
    own_store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = store_in(own_store).create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    assert rehearse(raising(AssertionError("it ran")), "--stpes", "3") == 2
    sentence = "unknown key 'stpes'; did you mean 'steps'?"
    assert capsys.readouterr().err.strip() == sentence
    run = only_run(own_store)
    assert (run.info.run_id, run.info.status) == (run_id, "FAILED")
    assert run.data.tags["dinox.error"] == sentence
    assert run.data.tags["dinox.entry_point"] == "rehearsal"


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (Refusal("no such\nthing"), 2, "FAILED"),
        (OwnCodeError("nothing to read"), 3, "FAILED"),
        (Interrupted(143, "interrupted and saved"), 143, "KILLED"),
    ],
)
def test_each_ending_has_its_code_and_its_sentence_on_one_line(
    own_store: Path, capsys: pytest.CaptureFixture[str], error: Exception, code: int, status: str
) -> None:
    assert rehearse(raising(error)) == code
    sentence = str(error).replace("\n", " ")
    assert capsys.readouterr().err == f"{sentence}\n"
    run = only_run(own_store)
    assert (run.info.status, run.data.tags["dinox.error"]) == (status, sentence)


@pytest.mark.parametrize("error", [RuntimeError("patient_7"), MemoryError("patient_7")])
def test_a_bug_is_raised_and_the_run_names_its_kind_alone(own_store: Path, error: Exception) -> None:
    with pytest.raises(type(error), match="patient_7"):
        rehearse(raising(error))
    run = only_run(own_store)
    assert (run.info.status, run.data.tags["dinox.error"]) == ("FAILED", type(error).__name__)


def test_ctrl_c_ends_with_130_and_the_run_killed(own_store: Path, open_process: OpenProcess) -> None:
    command, pipe = [sys.executable, "-W", "ignore", "-c", ENDLESS], subprocess.PIPE
    process = open_process(command, cwd=PROJECT_ROOT, stdout=pipe, stderr=pipe, text=True)
    for line in iter(process.stdout.readline, "begun\n"):
        assert line.startswith("rehearsal: ")  # On a busy machine also that it is at work.
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=WAIT_S)
    assert (process.returncode, said) == (130, "interrupted\n")
    assert only_run(own_store).info.status == "KILLED"


def test_a_shape_error_is_no_refusal_but_a_bug_with_its_trace(own_store: Path) -> None:
    def body(config: Any, run: Any) -> None:
        np.zeros((2, 3)) + np.zeros((4, 5))

    with pytest.raises(
        ValueError, match="operands could not be broadcast"
    ):  # Python prints it and ends with 1.
        rehearse(body)
    run = only_run(own_store)
    assert (run.info.status, run.data.tags["dinox.error"]) == ("FAILED", "ValueError")
