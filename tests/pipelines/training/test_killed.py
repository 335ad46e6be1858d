"""Whole processes, killed at random instants: what is resumed ends as if it had never been disturbed. Slow."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from pipelines.cohort.folder import Cohort
from pipelines.training.checkpoint import lock_folder
from tests.processes import OpenProcess, answers, free_port, kill_group, wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent
TINY = {
    "batch_size": 4, "log_every": 5, "save_every": 1, "eval_every": 100, "eval_slices": 8, "device": "cpu",
    "backbone.depth": 1, "backbone.embed_dim": 16, "backbone.heads": 2, "backbone.image_px": 28,
    "views.size_px": 28, "head.prototypes": 32, "runs_dir": "",
}  # fmt: skip


class Place:
    """A folder with a store and its runs, and the commands that a user would type there."""

    def __init__(
        self, open_process: OpenProcess, folder: Path, cohort: Cohort, steps: int, store: Path | str
    ) -> None:
        self.open_process = open_process
        folder.mkdir(exist_ok=True)
        self.runs = folder / "runs"
        if isinstance(store, Path):
            shutil.copy(store, folder / "mlflow.db")
            store = f"sqlite:///{folder / 'mlflow.db'}"
        self.store = store
        self.settings = TINY | {"steps": steps, "cohort": cohort.root, "runs_dir": self.runs}
        path = f"{BIN}:/usr/bin:/bin"
        self.environment = {"PATH": path, "HOME": str(folder), "MLFLOW_TRACKING_URI": self.store}
        self.environment |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}

    def start(self, **changes: object) -> subprocess.Popen[str]:
        settings = self.settings | changes
        words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        return self.open([sys.executable, "-m", "pipelines.pretrain", *words])

    def start_project(self, **changes: object) -> subprocess.Popen[str]:
        settings = self.settings | changes
        words = [word for key, value in settings.items() for word in ("-P", f"{key}={value}")]
        return self.open([str(BIN / "mlflow"), "run", ".", "-e", "pretrain", *words])

    def open(self, words: list[str]) -> subprocess.Popen[str]:
        out = subprocess.PIPE
        return self.open_process(words, cwd=ROOT, env=self.environment, stdout=out, stderr=out, text=True)

    def finish(self, process: subprocess.Popen[str], code: int = 0) -> str:
        _, said = process.communicate(timeout=300)
        assert process.returncode == code, said
        return said

    @property
    def step(self) -> int:
        """Of the newest whole checkpoint; 0 without one."""
        return max((int(head.stem[5:]) for head in self.runs.glob("*/checkpoints/step_*.json")), default=0)

    def result(self, steps: int) -> tuple[dict[str, torch.Tensor], dict[str, set[tuple[int, float]]]]:
        """Final tensors and all curves of the one run that was trained here."""
        (folder,) = self.runs.iterdir()
        client = MlflowClient(self.store)
        run = client.get_run(folder.name)
        assert run.info.status == "FINISHED"
        names = [name for name in run.data.metrics if not name.startswith("perf/")]
        curves = {name: client.get_metric_history(folder.name, name) for name in names}
        weights = load_file(folder / "checkpoints" / f"step_{steps:08d}.safetensors")
        return weights, {name: {(p.step, p.value) for p in points} for name, points in curves.items()}


def stop_while(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Stop a process while a condition holds that only it can change."""
    while True:
        wait_until(holds, process)
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if holds():
            return
        process.send_signal(signal.SIGCONT)


def is_free(folder: Path) -> bool:
    lock = lock_folder(folder)
    if lock is not None:
        lock.close()
    return lock is not None


def assert_same(one: Place, other: Place, steps: int) -> None:
    (weights, curves), (others, other_curves) = one.result(steps), other.result(steps)
    assert curves == other_curves
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, others[name]), name


def test_thirty_kills_leave_no_trace(
    small_cohort: Cohort, blank_store: Path, tmp_path: Path, open_process: OpenProcess
) -> None:
    steps, kills, draw = 200, 30, random.Random(0)
    whole = Place(open_process, tmp_path / "whole", small_cohort, steps, blank_store)
    whole.finish(whole.start())
    broken = Place(open_process, tmp_path / "broken", small_cohort, steps, blank_store)
    inside_a_save = 0
    for number in range(kills):
        before = broken.step
        process = broken.start(resume="auto", workers=number % 2)
        if number % 10 == 9:  # While it starts.
            time.sleep(draw.uniform(0.0, 3.0))
        else:
            target = before + draw.randint(1, 5)
            wait_until(lambda target=target: broken.step >= target, process)
            if number % 3:
                time.sleep(draw.uniform(0.0, 0.03))
            else:
                stop_while(lambda: any(broken.runs.glob("*/checkpoints/*.part")), process)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        names = {path.name for path in broken.runs.glob("*/checkpoints/*")}
        heads = {name.removesuffix(".json") for name in names if name.endswith(".json")}
        bodies = {name.removesuffix(".safetensors") for name in names if name.endswith(".safetensors")}
        inside_a_save += bool(bodies - heads or any(name.endswith(".part") for name in names))
    assert broken.step < steps
    assert inside_a_save >= 5
    broken.finish(broken.start(resume="auto"))
    assert_same(broken, whole, steps)
    client = MlflowClient(broken.store)
    (trained,) = (folder.name for folder in broken.runs.iterdir())
    wrappers = [run for run in client.search_runs(["0"]) if run.info.run_id != trained]
    resumed = [run.data.tags.get("dinox.resumes") for run in wrappers]
    # Those that were killed while they started had not come to say what they resume.
    assert set(resumed) <= {trained, None}
    assert resumed.count(trained) >= kills - 3 - 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_end_of_mlflow_run_saves_and_stops_the_training(
    small_cohort: Cohort, blank_store: Path, tmp_path: Path, open_process: OpenProcess, number: int
) -> None:
    steps = 150
    place = Place(open_process, tmp_path, small_cohort, steps, blank_store)
    above = place.start_project()
    wait_until(lambda: place.step >= 3, above)
    above.send_signal(number)
    above.communicate()
    (folder,) = place.runs.iterdir()
    wait_until(lambda: is_free(folder))
    stopped_at = place.step
    assert 3 <= stopped_at < steps
    ended = MlflowClient(place.store).get_run(folder.name)
    assert "interrupted at step" in ended.data.tags["dinox.error"]
    # After Ctrl-C the `mlflow run` above waits for the training, and writes FAILED over the KILLED that it wrote.
    assert ended.info.status == ("FAILED" if number == signal.SIGINT else "KILLED")

    done = place.start_project(resume="auto")
    place.finish(done)
    whole = Place(open_process, tmp_path / "whole", small_cohort, steps, blank_store)
    whole.finish(whole.start())
    assert_same(place, whole, steps)


def test_two_processes_stop_together_and_go_on_together(
    small_cohort: Cohort, blank_store: Path, tmp_path: Path, open_process: OpenProcess
) -> None:
    steps = 30
    whole = Place(open_process, tmp_path / "whole", small_cohort, steps, blank_store)
    whole.finish(whole.start(nproc=2))
    broken = Place(open_process, tmp_path / "broken", small_cohort, steps, blank_store)
    process = broken.start(nproc=2)
    wait_until(lambda: broken.step >= 3, process)
    process.terminate()
    said = broken.finish(process, code=143)
    assert "interrupted at step" in said
    assert broken.step < steps
    broken.finish(broken.start(nproc=2, resume="auto"))
    assert_same(broken, whole, steps)


def test_a_sentence_of_several_processes_keeps_its_code(
    small_cohort: Cohort, blank_store: Path, tmp_path: Path, open_process: OpenProcess
) -> None:
    place = Place(open_process, tmp_path, small_cohort, 4, blank_store)
    said = place.finish(place.start(nproc=2, batch_size=5), code=2)
    assert set(said.splitlines()) == {"batch_size 5 cannot be shared evenly by 2 processes"}


class Server:
    """MLflow's own server on a port of its own, which proxies artifacts."""

    def __init__(
        self, open_process: OpenProcess, folder: Path, words: Sequence[str] = (), **environment: str
    ) -> None:
        self.words, self.environment = words, environment
        self.open_process, self.port = open_process, free_port()
        self.folder, self.address = folder, f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        folder = self.folder
        words = ["server", "--port", str(self.port), "--workers", "1"]
        words += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
        words += ["--artifacts-destination", str(folder / "artifacts"), *self.words]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"} | self.environment
        with (folder / "server.log").open("ab") as log:
            command = [str(BIN / "mlflow"), *words]
            self.process = self.open_process(command, cwd=folder, env=environment, stdout=log, stderr=log)
        wait_until(lambda: answers(self.port), self.process)

    def stop(self) -> None:
        assert self.process is not None
        kill_group(self.process)


def test_a_real_server_that_stops_gets_everything_later(
    small_cohort: Cohort, blank_store: Path, tmp_path: Path, open_process: OpenProcess
) -> None:
    steps = 60
    whole = Place(open_process, tmp_path / "whole", small_cohort, steps, blank_store)
    whole.finish(whole.start())
    server = Server(open_process, tmp_path)
    server.start()
    place = Place(open_process, tmp_path / "served", small_cohort, steps, server.address)
    process = place.start()
    wait_until(lambda: place.step >= 7, process)
    server.stop()
    said = place.finish(process, code=2)
    assert "updates are done and saved, but the tracking store http" in said
    assert place.step == steps
    server.start()
    place.finish(place.start(resume="auto"))
    assert_same(place, whole, steps)
