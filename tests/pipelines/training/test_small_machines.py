"""Disks that are full or read-only, and 1 MB of shared memory, made for real in mounts of forked processes alone."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipelines.campaign import run as campaign
from pipelines.cohort.folder import Cohort
from pipelines.command.cli import run_entry_point
from pipelines.command.entry_points import ENTRY_POINTS
from pipelines.runtime.paths import PROJECT_ROOT
from tests.pipelines.probing.test_probe_malignancy import backbone
from tests.pipelines.training.compared import QUICK

pytestmark = pytest.mark.slow
_NEW_MOUNTS, _NEW_USERS = 0x00020000, 0x10000000


def mounted(words: list[str], task: Callable[[], int], log: Path) -> tuple[int, str]:
    """Do a task in a fork that sees a mount of its own; return its code and what it said."""
    pid = os.fork()
    if not pid:
        code = 99
        try:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            ids = os.getuid(), os.getgid()
            if ctypes.CDLL(None).unshare(_NEW_MOUNTS | _NEW_USERS):
                os._exit(98)
            for name, line in (
                ("setgroups", "deny"),
                ("uid_map", f"0 {ids[0]} 1"),
                ("gid_map", f"0 {ids[1]} 1"),
            ):
                Path(f"/proc/self/{name}").write_text(line)
            if subprocess.run(["mount", *words]).returncode:
                os._exit(98)
            code = task()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == 98:
        pytest.skip("this machine lets nobody make mount namespaces")
    return code, log.read_text(errors="replace")


def tmpfs(kilobytes: int, folder: Path) -> list[str]:
    return ["-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]


def given(command: str, options: dict[str, object]) -> int:
    one = ENTRY_POINTS[command]
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return run_entry_point(one.name, one.load_schema(), one.run, one.recipe, words)


@pytest.mark.parametrize("what", ["checkpoint", "store", "artifacts", "cohort", "export", "campaign"])
def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(
    what: str, own_store: Path, small_cohort: Cohort, small_phantom_source: Path, own_key: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    small = own_store / "small"
    small.mkdir()
    trained = QUICK | {"cohort": small_cohort.root, "runs_dir": own_store / "runs", "resume": "auto"}
    spec = own_store / "campaign.yaml"
    tree = {"name": "small", "question": "?", "endpoint": {"metric": "loss/total", "goal": "minimize"}}
    tree |= {
        "stages": {"rehearsal": {}},
        "price_per_hour": 0.5,
        "budget": {"hours": 1.0},
        "arms": [{"name": "a"}],
    }
    spec.write_text(yaml.safe_dump(tree))
    commands: dict[str, tuple[str, dict[str, object], int]] = {
        "checkpoint": ("pretrain", trained | {"runs_dir": small / "runs"}, 300),
        "store": ("pretrain", trained, (own_store / "mlflow.db").stat().st_size // 1024 + 40),
        "artifacts": ("pretrain", trained, 150),
        "cohort": ("prepare", {"source": small_phantom_source, "cohort": small / "c", "workers": 1}, 300),
        "export": ("export", {"backbone": backbone(own_store / "b"), "out": small / "e", "onnx": "no"}, 24),
        "campaign": ("campaign", {"spec": spec}, 64),
    }
    command, options, kilobytes = commands[what]
    store = own_store / "mlflow.db"
    if what == "campaign":
        monkeypatch.setattr(campaign, "JOBS", small / "jobs")
    if what == "artifacts":  # Those of the Default experiment lie where the store was made.
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "small")
        from mlflow import MlflowClient

        def made() -> int:
            MlflowClient().create_experiment("small", artifact_location=str(small / "artifacts"))
            return 0

        assert mounted(tmpfs(1000, small), made, own_store / "log")[0] == 0

    def do() -> int:
        if what == "store":
            shutil.copy(store, small / "mlflow.db")
            os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{small / 'mlflow.db'}"
        if what == "campaign":  # Full before its first arm starts.
            (small / "ballast").write_bytes(bytes(os.statvfs(small).f_bavail * os.statvfs(small).f_frsize))
        return given(command, options)

    code, said = mounted(tmpfs(kilobytes, small), do, own_store / "log")
    last = said.strip().splitlines()[-1]
    assert code == 2, said
    assert "Traceback" not in said or what == "store"  # MLflow itself prints that of its database.
    assert re.search(r"No space left on device|the disk of .* is full|requested and \d+ written", last), last
    if what != "store":
        code, said = mounted(tmpfs(100_000, small), lambda: given(command, options), own_store / "log")
        assert code == 0, said


@pytest.mark.parametrize("folder", ["runs", "home"])
def test_a_read_only_folder_is_one_sentence(
    folder: str,
    own_store: Path,
    small_cohort: Cohort,
    small_phantom_source: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = own_store / folder
    place.mkdir()
    commands: dict[str, tuple[str, dict[str, object]]] = {
        "runs": ("pretrain", QUICK | {"cohort": small_cohort.root, "runs_dir": place}),
        "home": ("prepare", {"source": small_phantom_source, "cohort": own_store / "c", "workers": 1}),
    }
    if folder == "home":
        monkeypatch.setenv("HOME", str(place))
        monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    words = ["-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", str(place)]
    code, said = mounted(words, lambda: given(*commands[folder]), own_store / "log")
    assert code == 2, said
    assert "Traceback" not in said
    assert "Read-only file system" in said.strip().splitlines()[-1], said


def test_a_megabyte_of_shared_memory_is_refused_before_the_first_batch(
    own_store: Path, small_cohort: Cohort
) -> None:
    options = QUICK | {
        "cohort": small_cohort.root,
        "runs_dir": own_store / "runs",
        "workers": 8,
        "batch_size": 32,
    }
    code, said = mounted(tmpfs(1024, Path("/dev/shm")), lambda: given("pretrain", options), own_store / "log")
    assert code == 2, said
    assert "8 loader processes need" in said.strip().splitlines()[-1]
    assert "--shm-size=1g, or give workers=" in said


def in_a_read_only_checkout(
    commands: list[tuple[str, dict[str, object]]], log: Path
) -> tuple[list[str], str]:
    """Give commands, one after the other, where the folder of this project cannot be written; their exit codes."""

    def do() -> int:
        os.chdir(PROJECT_ROOT)
        with pytest.raises(OSError, match="Read-only"):
            (PROJECT_ROOT / "x").touch()
        for command, options in commands:
            print(f"code {given(command, options)}", flush=True)
        return 0

    code, said = mounted(["--bind", "-o", "ro", str(PROJECT_ROOT), str(PROJECT_ROOT)], do, log)
    assert code == 0, said
    return re.findall(r"^code (\d)$", said, re.MULTILINE), said


def test_a_checkout_that_cannot_be_written_writes_where_it_is_told(
    own_store: Path, small_phantom_source: Path, own_key: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_store / "new").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{own_store / 'new' / 'mlflow.db'}")
    cohort = own_store / "c"
    commands: list[tuple[str, dict[str, object]]] = [
        ("prepare", {"source": small_phantom_source, "cohort": cohort, "workers": 1}),
        ("pretrain", QUICK | {"cohort": cohort, "runs_dir": own_store / "runs"}),
        ("probe_retrieval", {"cohort": cohort}),
        ("export", {"out": own_store / "e", "onnx": "no"}),
        ("embed", {"source": cohort, "out": own_store / "e.parquet"}),
        ("export_png", {"cohort": cohort, "out": own_store / "png", "workers": 1}),
        ("report", {"out": own_store / "report"}),
    ]
    codes, said = in_a_read_only_checkout(commands, own_store / "log")
    assert codes == ["0"] * len(commands), said
    assert list((own_store / "new" / "mlruns" / "0").iterdir())


@pytest.mark.parametrize("store", ["", "named"])
def test_a_checkout_that_cannot_be_written_is_one_sentence(
    store: str, own_store: Path, small_cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not store:
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(own_store))
    commands: list[tuple[str, dict[str, object]]] = [
        ("prepare", {}),
        ("pretrain", QUICK | {"cohort": small_cohort.root}),
        ("export", {"backbone": backbone(own_store / "b"), "onnx": "no"}),
        ("embed", {"backbone": own_store / "b", "source": small_cohort.root}),
        ("export_png", {"cohort": small_cohort.root}),
        ("campaign", {}),
    ]
    codes, said = in_a_read_only_checkout(commands, own_store / "log")
    assert codes == ["2"] * len(commands), said
    assert "Traceback" not in said
    assert said.count("Read-only file system") == len(commands), said
