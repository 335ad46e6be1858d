"""Executors: the task that a rented machine gets, what keeps a campaign off it, and Slurm for real."""

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pipelines.campaign.arm import ArmPlan, StagePlan
from pipelines.campaign.arms import arguments_of
from pipelines.campaign.executors import open_executor
from pipelines.campaign.executors.local import LocalExecutor, visible_gpus
from pipelines.campaign.executors.skypilot import SkyPilotExecutor, deployable_commit, task_config
from pipelines.campaign.spec import CampaignError, CampaignSpec, ResourcesSpec, load_campaign
from pipelines.runtime import paths
from pipelines.runtime.extras import MissingPackageError
from pipelines.runtime.paths import PROJECT_ROOT
from tests.processes import WAIT_S, OpenProcess, answers, free_port, wait_until

PLAN = ArmPlan(
    "small",
    "a",
    "0123abcd",
    2,
    90.0,
    [StagePlan("pretrain", "0123abcd", ["--note", "it's; rm -rf /"])],
    {"X": "y"},
)


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose only commit is pushed to its origin."""
    origin, work = tmp_path / "origin.git", tmp_path / "work"
    git(tmp_path, "init", "--bare", str(origin))
    git(tmp_path, "init", str(work))
    (work / "file").write_text("1")
    for words in (["add", "file"], ["commit", "-m", "1"], ["remote", "add", "origin", str(origin)]):
        git(work, *words)
    git(work, "push", "origin", "HEAD:main")
    monkeypatch.setattr(paths, "PROJECT_ROOT", work)
    return work


def test_a_commit_that_is_pushed_can_be_deployed(checkout: Path) -> None:
    address, commit = deployable_commit()
    assert address.endswith("origin.git")
    assert len(commit) == 40


def test_a_dirty_tree_an_unpushed_commit_or_a_password_is_refused(checkout: Path) -> None:
    (checkout / "file").write_text("2")
    with pytest.raises(CampaignError, match="files differ from the last commit"):
        deployable_commit()
    git(checkout, "commit", "-am", "2")
    with pytest.raises(CampaignError, match="is not on a branch of origin; push it first"):
        deployable_commit()
    git(checkout, "push", "origin", "HEAD:main")
    git(checkout, "remote", "set-url", "origin", "https://me:secret@host/x.git")
    with pytest.raises(CampaignError, match="holds a user or password") as caught:
        deployable_commit()
    assert "secret" not in str(caught.value)
    git(checkout, "remote", "set-url", "origin", "git@host:me/x.git")
    with pytest.raises(CampaignError, match=r"git@host:me/x\.git, needs an SSH key"):
        deployable_commit()
    git(checkout, "remote", "remove", "origin")
    with pytest.raises(CampaignError, match="must be a repository with a remote 'origin'"):
        deployable_commit()


def rented(**resources: object) -> CampaignSpec:
    spec = load_campaign("article_vit_s")
    return replace(spec, resources=replace(spec.resources, **resources))  # type: ignore[arg-type]


def test_what_a_rented_machine_lacks_is_refused(checkout: Path) -> None:
    with pytest.raises(CampaignError, match="a rented machine has no cohorts/lidc"):
        SkyPilotExecutor(rented(), 0)
    with pytest.raises(CampaignError, match=r"resources\.accelerator must name the GPU"):
        SkyPilotExecutor(rented(accelerator=""), 0)
    if shutil.which("sky") is None:
        with pytest.raises(MissingPackageError, match=r"install it with pip install -e '\.\[cloud\]'"):
            SkyPilotExecutor(rented(cohort_uri="s3://b/c"), 0)


def test_the_task_clones_installs_runs_and_ends_with_its_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "s3cret")
    spec = rented(cohort_uri="s3://bucket/lidc")
    task = task_config(spec, PLAN, "https://host/x.git", "c" * 40)
    assert task["resources"] == {"cpus": "8+", "memory": "32+", "accelerators": "RTX4090:1", "infra": "vast"}
    assert task["name"] == "dinox-0123abcd-2"
    assert "git clone https://host/x.git" in task["setup"]
    assert f"git checkout --quiet {'c' * 40}" in task["setup"]
    assert "timeout --kill-after=60 210 .venv/bin/python -m pipelines.campaign.arm" in task["run"]
    assert task["file_mounts"] == {"~/dinox_cohort": "s3://bucket/lidc"}
    # The plan travels as a variable: no word of it is ever read by a shell.
    assert ArmPlan.from_json(task["envs"]["DINOX_PLAN"]) == PLAN
    assert "rm -rf" not in task["run"] + task["setup"]
    assert task["secrets"] == {"MLFLOW_TRACKING_TOKEN": "s3cret"}
    assert "s3cret" not in json.dumps({key: value for key, value in task.items() if key != "secrets"})
    assert yaml.safe_load(yaml.safe_dump(task)) == task


def test_the_setup_of_a_rented_machine_does_not_rest_on_its_own_python(tmp_path: Path) -> None:
    """Its words are run by a shell, with a Python that is too old and tools that write down how they were called."""
    spec = rented(cohort_uri="s3://bucket/lidc")
    task = task_config(spec, PLAN, "https://host/x.git", "c" * 40)
    tools, home = tmp_path / "tools", tmp_path / "home"
    tools.mkdir()
    home.mkdir()
    write = f'echo "$0 $*" >> {tmp_path}/called'
    for name, words in (
        ("git", 'test "$1" != clone || mkdir -p "$3"'),
        (
            "python3",
            'test "$*" = "-m pip install --quiet --user uv" && install -D $(dirname $0)/_uv $HOME/.local/bin/uv',
        ),
        ("_uv", "true"),
    ):
        (tools / name).write_text(f"#!/bin/sh\n{write}\n{words}\n")
        (tools / name).chmod(0o755)
    environment = {"HOME": str(home), "PATH": f"{tools}:/usr/bin:/bin"}
    subprocess.run(["bash", "-c", task["setup"]], env=environment, check=True)
    called = [line.split(" ", 1) for line in (tmp_path / "called").read_text().splitlines()]
    assert [words for tool, words in called if tool.endswith("/uv")] == [
        "venv --quiet --python 3.11 .venv",
        "pip install --quiet --python .venv/bin/python --editable .",
    ]
    assert len([tool for tool, _ in called if tool.endswith("/python3")]) == 1


def test_skypilot_takes_the_task() -> None:
    sky = pytest.importorskip("sky")
    spec = rented(cohort_uri="s3://bucket/lidc")
    task = task_config(spec, PLAN, "https://host/x.git", "c" * 40)
    assert sky.Task.from_yaml_config(task).name == "dinox-0123abcd-2"


def test_gpus_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7")
    assert visible_gpus() == ["2", "5", "7"]
    executor = LocalExecutor(ResourcesSpec(gpus=2), 0, tmp_path)
    assert executor.parallel == 1
    assert executor._free_devices() == ["2", "5", "7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert visible_gpus() == []


def test_campaigns_of_several_names_share_the_devices_of_a_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7")
    job = tmp_path / "other-campaign" / "its-arm-1"
    job.mkdir(parents=True)
    (job / "devices").write_text("2,7")
    with (job / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        executor = LocalExecutor(ResourcesSpec(gpus=1), 0, tmp_path / "this-campaign")
        assert "other campaigns run 1 arm on this machine: its GPUs are shared out" in capsys.readouterr().out
        assert (executor.parallel, executor._free_devices()) == (1, ["5"])
        (job / "devices").write_text("2,5,7")
        assert executor.parallel == 0
        with pytest.raises(
            CampaignError, match="were taken by an arm of another campaign just now; a needs 1"
        ):
            executor.submit(PLAN)
        LocalExecutor(ResourcesSpec(), 0, tmp_path / "this-campaign")
        assert "its cores are not divided anew" in capsys.readouterr().out
    assert (executor.parallel, executor._free_devices()) == (3, ["2", "5", "7"])


def test_a_job_whose_lock_is_held_by_anybody_is_running_and_can_be_canceled(
    tmp_path: Path, open_process: OpenProcess
) -> None:
    # What a campaign finds that was killed and called again: no child of its own, only the lock.
    folder = tmp_path / "job-1"
    folder.mkdir()
    holder = (
        "import fcntl, os, sys, time; from pathlib import Path; lock = open(sys.argv[1] + '/lock', 'a');"
        "fcntl.flock(lock, fcntl.LOCK_EX); Path(sys.argv[1], 'pid').write_text(str(os.getpid())); time.sleep(600)"
    )
    process = open_process([sys.executable, "-c", holder, str(folder)])
    pid = folder / "pid"
    wait_until(lambda: pid.is_file() and pid.read_text() == str(process.pid), process)
    executor = LocalExecutor(ResourcesSpec(), 1, tmp_path)
    assert executor.find("job-1") == str(folder)
    assert executor.find("job-2") == ""
    assert executor.poll(str(folder)) == "running"
    executor.cancel(str(folder))
    assert process.wait(WAIT_S) == -signal.SIGTERM
    assert executor.poll(str(folder)) == "ended"


@pytest.fixture
def loopback_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A one-node Slurm on this machine, with a munge of its own; skipped where Slurm is not installed."""
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"a one-node Slurm needs root and {', '.join(missing) or 'nothing else'}")
    for name in ("state", "spool", "munge"):
        (tmp_path / name).mkdir(mode=0o700)
    key = tmp_path / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    munge = tmp_path / "munge"
    files = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    options = [f"--{option}={munge / name}" for option, name in files.items()]
    subprocess.run(["munged", f"--key-file={key}", *options, "--force"], check=True)
    host = socket.gethostname().split(".")[0]
    (tmp_path / "slurm.conf").write_text(
        f"""ClusterName=loop
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthInfo=socket={munge}/socket
StateSaveLocation={tmp_path}/state
SlurmdSpoolDir={tmp_path}/spool
SlurmctldPidFile={tmp_path}/slurmctld.pid
SlurmdPidFile={tmp_path}/slurmd.pid
SlurmctldLogFile={tmp_path}/slurmctld.log
SlurmdLogFile={tmp_path}/slurmd.log
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
    )
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    subprocess.run(["slurmctld"], check=True)
    subprocess.run(["slurmd"], check=True)
    yield
    for name in ("slurmd.pid", "slurmctld.pid", "munge/pid"):
        pid = tmp_path / name
        if pid.is_file():
            os.kill(int(pid.read_text()), signal.SIGTERM)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_process: OpenProcess) -> str:
    """A tracking server with artifacts of its own."""
    port = free_port()
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    command = [Path(sys.executable).with_name("mlflow"), "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    command += ["--artifacts-destination", str(tmp_path / "artifacts")]
    with (tmp_path / "server.log").open("wb") as log:
        process = open_process(command, stdout=log, stderr=log)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    wait_until(lambda: answers(port), process)
    return f"http://127.0.0.1:{port}"


CAMPAIGN = {
    "name": "queued",
    "question": "Does a queue run arms?",
    "endpoint": {"metric": "loss/total", "goal": "minimize"},
    "stages": {"rehearsal": {"steps": 2, "seconds": 2}},
    "resources": {"memory_gb": 1.0},
    "price_per_hour": 0.5,
    "budget": {"hours": 1.0},
    "stop": {"retries": 0},
    "arms": [
        {"name": "a", "grid": {"lr": [0.001, 0.01]}},
        {"name": "crash", "overrides": {"ending": "crashed"}},
    ],
}


@pytest.mark.slow
def test_slurm_runs_the_arms_of_a_campaign(loopback_slurm: None, server: str, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    from pipelines.tracking.arms import read_arms

    (tmp_path / "campaign.yaml").write_text(yaml.safe_dump(CAMPAIGN))
    command = [sys.executable, "-m", "pipelines.campaign", "--spec", str(tmp_path / "campaign.yaml")]
    done = subprocess.run(
        [*command, "--executor", "submitit"], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 2, done.stderr
    assert "2 of 3 arms are done; crash died: RuntimeError" in done.stderr
    arms = {arm.name: arm for arm in read_arms()}
    assert {name: arm.status for name, arm in arms.items()} == {
        "a-lr=0.001": "FINISHED",
        "a-lr=0.01": "FINISHED",
        "crash": "FAILED",
    }
    assert all(arm.job.isdigit() and 0 < arm.hours(0.0) < 0.1 for arm in arms.values())


@pytest.mark.slow
def test_submitit_s_own_processes_rehearse_the_same_path(own_store: Path) -> None:
    pytest.importorskip("submitit")
    from pipelines.campaign.executors.submitit import SubmititExecutor
    from pipelines.tracking.run import Run
    from pipelines.tracking.store import client

    run = Run(client(), client().create_run("0").info.run_id)
    run.set_tags({"dinox.attempt": "1"})
    uri = f"sqlite:///{own_store / 'mlflow.db'}"
    stage = StagePlan("rehearsal", run.run_id, arguments_of({"steps": 2, "seconds": 1.0}))
    plan = ArmPlan("c", "a", run.run_id, 1, 60.0, [stage], {"MLFLOW_TRACKING_URI": uri})
    executor = SubmititExecutor(ResourcesSpec(memory_gb=1.0), 1, own_store, cluster="local")
    handle = executor.submit(plan)
    assert executor.poll(handle) == "running"
    wait_until(lambda: executor.poll(handle) == "ended")
    assert run.stored().status == "FINISHED", executor.logs(handle)


def test_a_job_that_slurm_does_not_take_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("submitit")
    for name in ("sbatch", "srun"):
        tool = tmp_path / name
        tool.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpuu' >&2\nexit 1\n")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    executor = open_executor("submitit", load_campaign("demo"), 0, tmp_path)
    with pytest.raises(CampaignError, match=r"Slurm does not accept arm a: .*invalid partition") as caught:
        executor.submit(PLAN)
    assert "\n" not in str(caught.value)


def test_a_slurm_job_is_written_for_this_user_alone_and_without_a_password(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("submitit")
    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'Submitted batch job 7'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    plan = replace(PLAN, environment={"MLFLOW_TRACKING_URI": "https://anna:s3cret@h.example"})
    executor = open_executor("submitit", load_campaign("demo"), 0, tmp_path / "jobs")
    assert executor.submit(plan) == "7"
    files = [path for path in (tmp_path / "jobs").rglob("*") if path.is_file()]
    holding = [path for path in files if b"s3cret" in path.read_bytes()]
    assert [path.name for path in holding] == [f"{plan.name}.environment.json"]
    assert len(files) >= 3
    assert not any(path.stat().st_mode & 0o077 for path in files if path.suffix != ".out")
    assert not (tmp_path / "jobs" / "submitit").stat().st_mode & 0o077


def test_without_slurm_its_executor_says_where_to_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CampaignError, match="needs Slurm's sbatch on this machine; run it on a login node"):
        open_executor("submitit", load_campaign("demo"), 0, tmp_path)
