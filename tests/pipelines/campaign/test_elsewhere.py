"""Arms and the processes, stores and servers around them: passwords, signals, and servers that do not answer."""

import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipelines.campaign.arm import ArmPlan
from pipelines.campaign.arms import check_arguments
from pipelines.campaign.executors.local import LocalExecutor
from pipelines.campaign.plan import check_store
from pipelines.campaign.spec import CampaignError, ResourcesSpec
from pipelines.cohort.tables import CohortError
from pipelines.runtime.paths import PROJECT_ROOT
from tests.processes import WAIT_S, OpenProcess, wait_until


def test_the_password_of_a_store_is_on_no_command_line(tmp_path: Path) -> None:
    # No store answers there: the arm waits for it, which is long enough to look.
    environment = {"MLFLOW_TRACKING_URI": "http://user:secret@127.0.0.1:9"}
    plan = ArmPlan("c", "a", "0123", 1, 60.0, [], environment)
    executor = LocalExecutor(ResourcesSpec(), 1, tmp_path)
    handle = executor.submit(plan)
    try:
        words = Path(f"/proc/{executor._pid(handle)}/cmdline")
        wait_until(words.read_bytes)  # A process that is only starting has none yet.
        command = words.read_bytes()
        assert b"pipelines.campaign.arm" in command
        assert b"secret" not in command
    finally:
        os.killpg(executor._pid(handle), signal.SIGKILL)
        # The executor itself waits for what it started: no zombie stays.
        wait_until(lambda: not words.exists())
    assert executor.poll(handle) == "ended"


STAGE = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True))
print("begun", flush=True)
sys.stdin.read()
print("saved", flush=True)
"""
ARM = f"""
import signal, sys
from pipelines.campaign import arm
signal.signal(signal.SIGTERM, arm._interrupt)
sys.exit(arm._call([sys.executable, "-c", {STAGE!r}]))
"""


def test_an_arm_that_is_asked_twice_to_stop_still_waits_for_what_it_started(
    open_process: OpenProcess,
) -> None:
    pipe = subprocess.PIPE
    arm = open_process([sys.executable, "-c", ARM], cwd=PROJECT_ROOT, stdin=pipe, stdout=pipe, text=True)
    assert arm.stdout.readline() == "begun\n"
    arm.terminate()
    assert arm.stdout.readline() == "asked\n"
    arm.terminate()
    arm.stdin.close()
    assert arm.stdout.readline() == "saved\n"
    assert arm.wait(WAIT_S) == 0


def test_arms_elsewhere_need_a_server_that_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/x.db")
    check_store("local", str(tmp_path))
    with pytest.raises(CampaignError, match="set MLFLOW_TRACKING_URI to the http address"):
        check_store("submitit", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    with pytest.raises(CampaignError, match=r"the tracking server at 127.0.0.1 does not answer") as caught:
        check_store("skypilot", str(tmp_path))
    assert "secret" not in str(caught.value)


class Guarded(BaseHTTPRequestHandler):
    """A proxy in front of a tracking server: it asks who is there."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_asks_for_a_password_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Guarded)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for user in ("", "user:secret@"):
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{user}127.0.0.1:{server.server_port}")
            check_store("submitit", str(tmp_path))
            with pytest.raises(CampaignError, match="is that machine itself"):
                check_store("skypilot", "mlflow-artifacts:/0")
    finally:
        server.shutdown()
        server.server_close()


def test_a_cohort_that_is_missing_is_named_before_anything_starts() -> None:
    lines = [("a", "pretrain", ["--recipe", "wall"]), ("b", "rehearsal", ["--steps", "7"])]
    assert [one["steps"] for one in check_arguments(lines)] == [3000, 7]
    with pytest.raises(CohortError, match="no cohort in nowhere"):
        check_arguments(lines, ["nowhere"])
