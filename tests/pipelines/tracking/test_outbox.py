"""A store that is away loses nothing: records wait on disk, in order, and are delivered when it is back."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient

from pipelines import rehearsal
from pipelines.campaign.arms import run_stage
from pipelines.command.cli import run_entry_point
from pipelines.tracking.outbox import Outbox, Record, StoreAwayError
from pipelines.tracking.run import Run
from pipelines.tracking.store import StoreRefusedError


class LoopbackStore:
    """Answers MLflow's REST calls on one port; may be stopped and started again on the same port."""

    def __init__(self, artifacts: Path) -> None:
        self.info = {"run_id": "run1", "artifact_uri": artifacts.as_uri(), "status": "RUNNING"}
        self.seen: list[tuple[str, dict]] = []
        self.status = 200
        self.port = 0
        self.start()

    def start(self) -> None:
        store = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if store.status == 200:
                    store.seen.append((self.path.split("/mlflow/")[1], body))
                self.answer()

            def do_GET(self) -> None:
                self.answer()

            def answer(self) -> None:
                refusal = {"error_code": "INVALID_PARAMETER_VALUE"}
                known = {"run_info": store.info, "run": {"info": store.info}}
                answer = json.dumps(known if store.status == 200 else refusal).encode()
                self.send_response(store.status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def metrics(self) -> list[tuple[str, float, int]]:
        batches = [body for path, body in self.seen if path == "runs/log-batch"]
        return [(m["key"], m["value"], m["step"]) for b in batches for m in b.get("metrics", [])]


@pytest.fixture
def loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackStore]:
    # One retry of a refused connection would wait for two seconds; the outbox is what retries here.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    store = LoopbackStore(tmp_path / "artifacts")
    yield store
    store.stop()


def buffered(loopback: LoopbackStore, folder: Path) -> Run:
    run = Run(MlflowClient(f"http://127.0.0.1:{loopback.port}"), "run1")
    run.buffer_in(folder).retry_s = 0.0
    return run


def test_a_stopped_server_gets_everything_in_order_when_it_is_back(
    loopback: LoopbackStore, tmp_path: Path
) -> None:
    run = buffered(loopback, tmp_path / "outbox")
    run.log_metrics({"loss/total": 3.0}, 1)
    loopback.stop()
    run.log_metrics({"loss/total": 2.0}, 2)
    run.set_tags({"dinox.status": "wall"})
    run.finish("KILLED")
    assert run.outbox is not None
    assert len(run.outbox) == 3
    loopback.start()
    run.log_metrics({"loss/total": 1.0}, 3)
    assert loopback.metrics == [("loss/total", 3.0, 1), ("loss/total", 2.0, 2), ("loss/total", 1.0, 3)]
    assert [path for path, _ in loopback.seen] == ["runs/log-batch"] * 3 + ["runs/update", "runs/log-batch"]
    assert len(run.outbox) == 0


def test_the_process_that_resumes_delivers_what_a_killed_one_left(
    loopback: LoopbackStore, tmp_path: Path
) -> None:
    loopback.stop()
    buffered(loopback, tmp_path / "outbox").log_metrics({"loss/total": 2.0}, 2)
    loopback.start()
    buffered(loopback, tmp_path / "outbox").log_metrics({"loss/total": 1.0}, 3)
    assert loopback.metrics == [("loss/total", 2.0, 2), ("loss/total", 1.0, 3)]


def test_a_store_that_refuses_is_not_away(loopback: LoopbackStore, tmp_path: Path) -> None:
    run = buffered(loopback, tmp_path / "outbox")
    loopback.status = 400
    with pytest.raises(StoreRefusedError, match="refuses: INVALID_PARAMETER_VALUE"):
        run.log_metrics({"loss/total": 2.0}, 2)
    assert not (tmp_path / "outbox").exists()


def test_without_an_outbox_an_absent_store_is_one_sentence(
    loopback: LoopbackStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    loopback.stop()
    with pytest.raises(StoreAwayError, match=r"cannot be reached .* set MLFLOW_TRACKING_URI"):
        Run(MlflowClient(f"http://127.0.0.1:{loopback.port}"), "run1").log_metrics({"loss/total": 2.0}, 2)
    loopback.start()


@pytest.mark.parametrize("is_begun", [False, True])
def test_an_entry_point_ends_in_one_sentence_and_an_arm_may_be_tried_again(
    loopback: LoopbackStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_begun: bool,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{loopback.port}")
    if is_begun:
        monkeypatch.setenv("MLFLOW_RUN_ID", "run2")  # MLflow keeps the artifact folder of each id it saw
        body = rehearsal.run_rehearsal
        monkeypatch.setattr(rehearsal, "run_rehearsal", lambda *it: loopback.stop() or body(*it))
    else:
        loopback.stop()
    words = ["--steps", "1"]
    what = (rehearsal.RehearsalConfig, rehearsal.run_rehearsal, None, words)
    assert run_entry_point("rehearsal", *what) == 2
    assert "cannot be reached" in capsys.readouterr().err.splitlines()[-1]
    if is_begun:
        loopback.start()
    assert run_stage("rehearsal", words) == 1
    if not is_begun:
        loopback.start()


def test_figures_and_folders_wait_with_their_bytes(loopback: LoopbackStore, tmp_path: Path) -> None:
    run = buffered(loopback, tmp_path / "outbox")
    loopback.stop()
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "model.bin").write_bytes(b"\x00\x01")
    run.log_text("said", "notes/said.txt")
    run.log_file(weights, "backbones/step_1")
    run.log_image(Figure(figsize=(1, 1)), "tokens/pca", 4)
    (weights / "model.bin").unlink()
    loopback.start()
    assert run.outbox is not None
    assert len(run.outbox) == 3
    assert run.outbox.flush(is_last=True)
    held = tmp_path / "artifacts"
    assert (held / "notes/said.txt").read_text() == "said"
    assert (held / "backbones/step_1/model.bin").read_bytes() == b"\x00\x01"
    png = held / "figures" / "tokens_pca_step000004.png"
    assert png.read_bytes().startswith(b"\x89PNG")
    assert not list((tmp_path / "outbox").iterdir())


def test_an_absent_store_is_asked_once_in_a_while(tmp_path: Path) -> None:
    asked = []

    def deliver(record: Record) -> None:
        asked.append(record.content["number"])
        raise StoreAwayError("away")

    outbox = Outbox(tmp_path / "outbox", deliver)
    for number in range(5):
        outbox.post(Record("run1", "batch", {"number": number}))
    assert asked == [0]
    assert len(outbox) == 5
    assert not outbox.flush(is_last=True)
    assert asked == [0, 0]
