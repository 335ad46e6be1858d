"""The exact commands of the README, as a user types them, without pyenv."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import mlflow
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import ExecutionException

from pipelines.cohort.folder import Cohort
from pipelines.mlflow_plugin import CALLED_ENV, _patch, is_this_project, wrap_run
from tests.processes import OpenProcess, answers, free_port, wait_until

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
QUICK = [
    "-P", "steps=2", "-P", "batch_size=4", "-P", "eval_slices=8", "-P", "log_every=1", "-P", "backbone.depth=1",
    "-P", "backbone.image_px=28", "-P", "views.size_px=28", "-P", "head.prototypes=32",
]  # fmt: skip


def mlflow_run(store: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `mlflow run . ...` with nothing but the installed environment on PATH."""
    clean = {"HOME": str(store), "PATH": f"{BIN}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    clean["MLFLOW_TRACKING_URI"] = f"sqlite:///{store / 'mlflow.db'}"
    command = [str(BIN / "mlflow"), "run", ".", *words]
    return subprocess.run(
        command, cwd=ROOT, env=clean | environment, capture_output=True, text=True, timeout=3600
    )


@pytest.fixture(scope="module")
def store(blank_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    shutil.copy(blank_store, folder / "mlflow.db")
    return folder


def runs(store: Path, experiment: str = "Default"):
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return client.search_runs([found.experiment_id])


def test_the_public_command_line_is_what_it_was_declared_to_be() -> None:
    project = yaml.safe_load((ROOT / "MLproject").read_text())
    declared = {name: sorted(point["parameters"]) for name, point in project["entry_points"].items()}
    assert project["name"] == "dinox-ct"
    assert declared["pretrain"] == ["cohort", "recipe"]
    assert declared["probe_malignancy"] == ["backbone", "cohort"]
    assert declared["prepare"] == ["cohort", "source"]
    for name, point in project["entry_points"].items():
        module = point["command"].split()[2]
        assert point["command"].startswith("python -m pipelines.")
        place = ROOT / module.replace(".", "/")
        assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), name
        for parameter in point["parameters"]:
            assert f"{{{parameter}}}" in point["command"]


def test_bare_pretrain_runs_here_and_leaves_a_finished_run(store: Path, small_cohort: Cohort) -> None:
    if shutil.which("pyenv", path=f"{BIN}:/usr/bin:/bin"):
        pytest.skip("pyenv is installed beside the interpreter: the plugin has nothing to prove")
    done = mlflow_run(store, "-e", "pretrain", "-P", f"cohort={small_cohort.root}", *QUICK)
    assert done.returncode == 0, done.stderr
    (run,) = runs(store)
    assert run.info.status == "FINISHED"
    assert run.data.tags["dinox.entry_point"] == "pretrain"
    assert run.data.params["steps"] == "2"
    names = {"loss/total", "loss/dino", "loss/gram", "loss/koleo", "teacher/entropy", "student/entropy"}
    names |= {"teacher/center_norm", "teacher/gain", "teacher/prototypes_used", "teacher/verdict", "optim/lr"}
    names |= {"optim/grad_norm", "perf/slices_per_s", "perf/data_wait", "retrieval/top1", "retrieval/top5"}
    names |= {"retrieval/ratio", "retrieval/random_top1", "retrieval/student_top1"}
    assert names <= set(run.data.metrics)
    for tag in ("dinox.recipe", "dinox.cohort_sha", "dinox.git_commit", "dinox.status"):
        assert run.data.tags[tag]
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    held = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {
        "backbone",
        "backbone_student",
        "checkpoint",
        "figures",
        "config.yaml",
        "held_out_patients.txt",
    } <= held


@pytest.mark.slow
@pytest.mark.parametrize("how", ["--experiment-name", "MLFLOW_EXPERIMENT_NAME"])
def test_an_experiment_may_be_named(store: Path, small_cohort: Cohort, how: str) -> None:
    name = f"mine {how}"
    words, environment = (["--experiment-name", name], {}) if how.startswith("--") else ([], {how: name})
    done = mlflow_run(
        store, "-e", "pretrain", *words, "-P", f"cohort={small_cohort.root}", *QUICK, **environment
    )
    assert done.returncode == 0, done.stderr
    assert [run.info.status for run in runs(store, name)] == ["FINISHED"]


def test_a_misspelt_key_fails_the_run_with_one_sentence(
    store: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store / 'mlflow.db'}")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    # What `mlflow run` calls, which then ends with 1.
    with pytest.raises(ExecutionException):
        mlflow.projects.run(str(ROOT), "pretrain", parameters={"stpes": "20"})
    sentence = "unknown key 'stpes'; did you mean 'steps'?"
    assert sentence in capfd.readouterr().err
    newest = runs(store)[0]
    assert (newest.info.status, newest.data.tags["dinox.error"]) == ("FAILED", sentence)


@pytest.mark.slow
def test_the_bare_commands_end_well_on_the_default_cohort(tmp_path: Path) -> None:
    for entry_point in ("pretrain", "probe_malignancy"):
        done = mlflow_run(tmp_path, "-e", entry_point)
        assert done.returncode == 0, done.stderr
    by_name = {run.data.tags["dinox.entry_point"]: run for run in runs(tmp_path)}
    assert by_name["pretrain"].data.tags["dinox.status"] == "learning"
    metrics = by_name["probe_malignancy"].data.metrics
    for name in ("probe/auroc", "probe/diameter_auroc", "probe/random_auroc", "probe/gain_over_diameter"):
        assert {name, f"{name}_ci_low", f"{name}_ci_high"} <= set(metrics)


@pytest.mark.slow
def test_a_fresh_environment_made_by_uv_works(store: Path, small_cohort: Cohort) -> None:
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed")
    path = f"{BIN}:{Path(uv).parent}:/usr/bin:/bin"
    words = ["-e", "pretrain", "--env-manager", "uv", "-P", f"cohort={small_cohort.root}", *QUICK]
    # How this machine reaches a package index is its own affair.
    network = {name: value for name, value in os.environ.items() if name.startswith(("UV_", "SSL_CERT_"))}
    done = mlflow_run(store, *words, PATH=path, **network)
    assert done.returncode == 0, done.stderr


def test_the_plugin_minds_its_own_project_alone(own_store: Path, tmp_path: Path) -> None:
    (tmp_path / "MLproject").write_text("name: somebody-else\n")
    assert is_this_project(str(ROOT))
    assert is_this_project(f"file://{ROOT}")
    assert not is_this_project(str(tmp_path))
    assert not is_this_project("https://example.org/project.git")
    seen = []
    run = wrap_run(
        lambda self, uri, entry, params, version, config, *rest: seen.append(
            (config["ENV_MANAGER"], os.environ.get(CALLED_ENV))
        )
    )
    before = os.environ["PATH"]
    address = "https://example.org/project.git"
    for uri, given in (
        (str(tmp_path), None),
        (str(ROOT), "uv"),
        (f"file://{ROOT}", None),
        (address, "local"),
    ):
        run(None, uri, "pretrain", {}, None, {"ENV_MANAGER": given}, "", "0")
    assert os.environ["PATH"] == before
    assert CALLED_ENV not in os.environ
    # Only what MLflow fetches into a folder of its own is told where it was called.
    assert seen == [(None, None), ("uv", None), ("local", None), ("local", str(own_store))]


def test_the_plugin_makes_the_store_before_mlflow_does_and_one_process_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bool] = []
    lock = tmp_path / "mlflow.db.lock"

    def held() -> bool:
        with lock.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setattr("pipelines.tracking.store.MlflowClient", lambda uri: made.append(held()))
    wrap_run(lambda *_: made.append(held()))(None, str(ROOT), "pretrain", {}, None, {"ENV_MANAGER": "local"})
    assert made == [True, False]


def pretrained_in(called: Path, *words: str) -> str:
    """Run `mlflow run ... -e pretrain` in a folder without a word of its store; return what it said."""
    environment = {"HOME": str(called.parent), "PATH": f"{BIN}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    command = [str(BIN / "mlflow"), "run", *words, "-e", "pretrain", *QUICK]
    done = subprocess.run(command, cwd=called, env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_checkout_that_is_named_by_its_path_holds_the_runs_and_the_folder_of_the_call_their_store(
    small_cohort: Cohort, tmp_path: Path
) -> None:
    checkout, called = tmp_path / "checkout", tmp_path / "called"
    called.mkdir()
    subprocess.run(["git", "clone", "-q", str(ROOT), str(checkout)], check=True)
    words = (str(checkout), "-P", f"cohort={small_cohort.root}", "-P", "resume=auto")
    pretrained_in(called, *words)
    (run,) = MlflowClient(f"sqlite:///{called / 'mlflow.db'}").search_runs(["0"])
    record = checkout / "runs" / run.info.run_id / "run.json"
    # As if it had been killed after its last update.
    record.write_text(json.dumps(json.loads(record.read_text()) | {"finished": False}))
    assert f"continues run {run.info.run_id}" in pretrained_in(called, *words)
    assert {path.name for path in called.iterdir()} == {"mlflow.db", "mlflow.db.lock", "mlruns"}
    assert not {"mlflow.db", "mlruns"} & {path.name for path in checkout.iterdir()}


@pytest.mark.slow
def test_a_project_that_mlflow_fetches_writes_where_it_is_called(
    store: Path, small_cohort: Cohort, tmp_path: Path, open_process: OpenProcess
) -> None:
    bare, port, called = tmp_path / "dinox.git", free_port(), tmp_path / "called"
    called.mkdir()
    subprocess.run(["git", "clone", "-q", "--bare", str(ROOT), str(bare)], check=True)
    words = [
        "git",
        "daemon",
        f"--base-path={tmp_path}",
        "--export-all",
        "--listen=127.0.0.1",
        f"--port={port}",
    ]
    daemon = open_process(words)
    wait_until(lambda: answers(port), daemon)
    address = f"git://127.0.0.1:{port}/dinox.git"
    pretrained_in(called, address, "--env-manager", "local", "-P", f"cohort={small_cohort.root}")
    (run,) = MlflowClient(f"sqlite:///{called / 'mlflow.db'}").search_runs(["0"])
    assert (called / "runs" / run.info.run_id / "run.json").is_file()
    assert run.info.status == "FINISHED"


def test_the_plugin_leaves_a_process_that_is_not_its_own_as_it_was(own_store: Path, tmp_path: Path) -> None:
    def run(self: object, *_: object) -> None:
        seen.append(os.environ["PATH"])
        raise RuntimeError("the entry point failed")

    seen: list[str] = []
    before = os.environ["PATH"]
    with pytest.raises(RuntimeError):
        wrap_run(run)(None, str(ROOT), "pretrain", {}, None, {})
    assert seen[0].split(os.pathsep)[0] == str(BIN)
    assert os.environ["PATH"] == before
    (tmp_path / "MLproject").write_bytes("name: gefäß\n".encode("latin-1"))
    assert not is_this_project(str(tmp_path))
    _patch(ModuleType("a later MLflow without LocalBackend"))
