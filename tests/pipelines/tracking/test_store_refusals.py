"""What the tracking store refuses ends with exit 2 and one sentence, and nothing secret is printed."""

import contextlib
import importlib.util
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.command.cli import run_entry_point
from pipelines.rehearsal import RehearsalConfig, run_rehearsal
from pipelines.tracking.outbox import StoreAwayError
from pipelines.tracking.reading import StoredRun, read_run
from pipelines.tracking.run import Run
from pipelines.tracking.store import NotInStoreError, StoreRefusedError, answering


def rehearse() -> int:
    return run_entry_point("rehearsal", RehearsalConfig, run_rehearsal, None, ["--steps", "1"])


def one_sentence(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "secret" not in said
    return said.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("file:./runs_of_old", "store file:./runs_of_old cannot be opened: The filesystem tracking backend"),
        ("./runs_of_old", "store ./runs_of_old cannot be opened: The filesystem tracking backend"),
        ("mysql://anna:secret@db/x", "Python has no module 'MySQLdb', its driver; install that"),
        ("mssql+pyodbc://anna:secret@db/x", "Python has no module 'pyodbc', its driver; install that"),
        ("mysql+nonsense://anna:secret@db/x", "store mysql+nonsense://***@db/x cannot be opened: "),
        ("foo://anna:secret@db/x", "store foo://***@db/x cannot be opened: "),
        ("http://[anna:secret@db", "store http://***@db cannot be opened: "),
        ("sqlite:///folder", "store sqlite:///folder is a folder"),
        ("sqlite:///file/below.db", "store sqlite:///file/below.db cannot be opened: "),
    ],
)
def test_a_store_that_cannot_be_opened_is_one_sentence(
    own_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    uri: str,
    sentence: str,
) -> None:
    (own_store / "folder").mkdir()
    (own_store / "file").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert rehearse() == 2
    said = one_sentence(capsys)
    assert sentence in said
    assert "set MLFLOW_TRACKING_URI to a" in said


def garbled(path: Path) -> None:
    path.write_bytes(b"not a database" * 300)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def of_tomorrow(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("update alembic_version set version_num = 'ffffffffffff'")
        database.commit()


@pytest.mark.parametrize(
    ("damage", "why"),
    [(garbled, "not a database"), (cut, "malformed"), (of_tomorrow, "out-of-date database schema")],
)
def test_a_database_that_is_damaged_or_of_another_mlflow_is_named(
    own_store: Path,
    blank_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    why: str,
) -> None:
    # A name of its own: MLflow keeps each store that it has opened.
    path = own_store / f"{damage.__name__}.db"
    shutil.copy(blank_store, path)
    damage(path)
    before = path.read_bytes()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    assert rehearse() == 2
    said = one_sentence(capsys)
    assert str(path) in said
    assert why in said
    assert path.read_bytes() == before


class Guard:
    """A server that answers every request with one status."""

    def __init__(self) -> None:
        guard, self.status = self, 401

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(guard.status)
                self.send_header("Content-Length", "17")
                self.end_headers()
                self.wfile.write(b"<html>who?</html>")

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Guard]:
    guard = Guard()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://anna:secret@127.0.0.1:{guard.server.server_port}")
    yield guard
    guard.server.shutdown()
    guard.thread.join()
    guard.server.server_close()


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_asks_who_is_there_is_one_sentence(
    guard: Guard, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    guard.status = status
    assert rehearse() == 2
    said = one_sentence(capsys)
    assert f"failed with error code {status}" in said
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in said
    with pytest.raises(StoreRefusedError) as refusal:  # Not as of a run that is missing.
        read_run(StoredRun, "0123")
    assert not isinstance(refusal.value, NotInStoreError)


def test_a_server_that_fails_is_away_and_not_refusing(guard: Guard) -> None:
    guard.status = 502
    with pytest.raises(StoreAwayError, match=r"the tracking store http://\*\*\*@127\.0\.0\.1"):
        read_run(StoredRun, "0123")


@pytest.mark.parametrize(
    ("name", "is_deleted"),
    [("MLFLOW_EXPERIMENT_ID", False), ("MLFLOW_EXPERIMENT_ID", True), ("MLFLOW_RUN_ID", False)],
)
def test_an_experiment_or_run_that_is_unknown_or_deleted_is_named(
    own_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    is_deleted: bool,
) -> None:
    store, given = MlflowClient(), "4711"
    if is_deleted:
        given = store.create_experiment("gone")
        store.delete_experiment(given)
    monkeypatch.setenv(name, given)
    assert rehearse() == 2
    said = one_sentence(capsys)
    assert ("deleted" if is_deleted else "4711") in said
    assert f"({name}={given} was given)" in said


def test_an_experiment_that_was_deleted_by_name_is_named(
    own_store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = MlflowClient()
    store.delete_experiment(store.create_experiment("gone"))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "gone")
    assert rehearse() == 2
    assert "(MLFLOW_EXPERIMENT_NAME=gone was given)" in one_sentence(capsys)


def test_a_file_that_was_to_be_sent_and_is_not_there_is_a_bug() -> None:
    with pytest.raises(FileNotFoundError), answering():
        Path("nowhere").read_text()
    with pytest.raises(StoreRefusedError, match=r"refuses: .*Not a directory"), answering():
        Path(__file__, "below").mkdir()


def test_a_module_of_our_own_that_is_missing_is_our_bug() -> None:
    with pytest.raises(ModuleNotFoundError), answering():
        import_module("pipelines.tracking.no_such_module")


def test_artifacts_in_an_object_store_need_its_package(
    own_store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec("boto3"):
        pytest.skip("boto3 is installed: it would ask the network")
    MlflowClient().create_experiment("far", artifact_location="s3://bucket/mlflow")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "far")
    assert rehearse() == 2
    assert "needs a module 'boto3' for its artifacts; install that" in one_sentence(capsys)


@pytest.mark.parametrize(
    ("module", "name", "reason"),
    [
        ("botocore.exceptions", "NoCredentialsError", "Unable to locate credentials"),
        ("botocore.exceptions", "EndpointConnectionError", 'Could not connect to "https://s3.nowhere/"'),
        ("botocore.errorfactory", "NoSuchBucket", "The specified bucket does not exist"),
        ("boto3.exceptions", "S3UploadFailedError", "Failed to upload config.yaml to bucket"),
    ],
)
def test_an_object_store_that_fails_is_away(
    own_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: str,
    name: str,
    reason: str,
) -> None:
    """As boto3 raises them: its errors descend from Exception alone."""
    kind = type(name, (Exception,), {"__module__": module})

    def fail(*_: object, **__: object) -> None:
        raise kind(reason)

    monkeypatch.setattr(MlflowClient, "log_artifact", fail)
    assert rehearse() == 2
    sentence = one_sentence(capsys)
    assert sentence.startswith("the object store that holds the artifacts of sqlite:")
    assert reason in sentence
    (run,) = MlflowClient().search_runs(["0"])
    assert (run.info.status, run.data.tags["dinox.error"]) == ("FAILED", sentence)
    # A training goes on, and keeps what could not be sent.
    training = Run(MlflowClient(), run.info.run_id)
    outbox = training.buffer_in(own_store / "outbox")
    training.log_text("kept", "kept.txt")
    assert len(outbox) == 1
    with pytest.raises(RuntimeError, match="a bug"), answering():
        raise RuntimeError("a bug")
