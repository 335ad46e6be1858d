"""Kill -9 of the campaign and of its arms, over and over: nothing is lost, runs twice, or is paid twice."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pipelines.campaign.records import find_parent
from pipelines.cohort.folder import Cohort
from pipelines.runtime.paths import PROJECT_ROOT
from pipelines.tracking.arms import ArmRecord, ledger, read_arms
from pipelines.tracking.run import Run
from pipelines.tracking.store import client
from tests.processes import OpenProcess, wait_until

KILLS = 20
PARALLEL = 2
STEPS = 120


def campaign_file(folder: Path, cohort: Cohort) -> Path:
    tree = {
        "name": "killed",
        "question": "Is anything lost or paid twice?",
        "endpoint": {"metric": "loss/total", "goal": "minimize"},
        "recipe": "demo",
        "cohort": str(cohort.root),
        "stages": {
            "pretrain": {
                "steps": STEPS,
                "batch_size": 8,
                "holdout": 0.0,
                "backbone": {"depth": 1, "embed_dim": 32, "heads": 2, "image_px": 28},
                "views.size_px": 28,
                "log_every": 5,
                "save_every": 5,
                "runs_dir": str(folder / "runs"),
            },
            "rehearsal": {"seconds": 2.0},
        },
        "price_per_hour": 0.5,
        "budget": {"hours": 10.0},
        "stop": {"retries": 2 * KILLS},
        "arms": [
            {"name": "token", "overrides": {"objective.koleo_on": "class_token"}},
            {"name": "logits", "overrides": {"objective.koleo_on": "head_logits"}},
            {"name": "none", "overrides": {"objective.koleo_weight": 0.0}},
            {"name": "simclr", "overrides": {"objective": {"kind": "simclr", "koleo_weight": 0.0}}},
        ],
    }
    file = folder / "campaign.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def started(open_process: OpenProcess, file: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pipelines.campaign", "--spec", str(file), "--parallel", str(PARALLEL)]
    with log.open("ab") as out:
        return open_process(command, cwd=PROJECT_ROOT, stdout=out, stderr=out)


def running_arms() -> list[int]:
    """Pids of the arms that run now, by their command line."""
    pids = []
    for arm in read_arms() if find_parent("killed") else []:
        pid_file = Path(arm.job or "nowhere") / "pid"
        if arm.is_open and pid_file.is_file():
            pid = int(pid_file.read_text())
            command = Path(f"/proc/{pid}/cmdline")
            if command.is_file() and b"pipelines.campaign.arm" in command.read_bytes():
                pids.append(pid)
    return pids


def complete(arm: ArmRecord) -> bool:
    steps = [step for step, _ in Run(client(), arm.run_id).history("loss/total")]
    return arm.status == "FINISHED" and steps[-1] == STEPS and arm.tags["dinox.done"] == "yes"


@pytest.mark.slow
def test_twenty_kills_lose_nothing_and_pay_nothing_twice(
    own_store: Path, small_cohort: Cohort, open_process: OpenProcess
) -> None:
    file, log, rng = campaign_file(own_store, small_cohort), own_store / "log.txt", random.Random(0)
    begun = time.time()
    process = started(open_process, file, log)
    killed_arms = 0
    for number in range(KILLS):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(2.0, 8.0))  # Any instant will do.
        if number % 2:
            # An arm may take long to start: every other kill waits for one, so that arms are hit too.
            wait_until(lambda campaign=process: running_arms() or campaign.poll() is not None, every_s=0.2)
        arms = running_arms()
        if number % 2 and arms:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(arms), signal.SIGKILL)
                killed_arms += 1
        else:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        if process.poll() is not None:
            process = started(open_process, file, log)
    assert process.wait(900) == 0, log.read_text()[-3000:]
    wall_hours = (time.time() - begun) / 3600.0

    parent, arms_now = find_parent("killed"), read_arms()
    assert parent is not None
    assert (parent.status, parent.tags["dinox.status"]) == ("FINISHED", "complete")
    assert len(arms_now) == 4
    assert all(complete(arm) for arm in arms_now)
    assert all(not arm.is_open for arm in arms_now)
    attempts = sum(arm.attempt for arm in arms_now)
    assert killed_arms >= 3
    # Each kill costs one more attempt at most; an arm that is killed when it has already finished costs none.
    assert 4 < attempts <= 4 + KILLS
    # Two arms at a time: had one run twice, or been counted twice, more hours would have passed.
    used = ledger(arms_now, time.time()).sum(numeric_only=True)
    assert 0 < used.hours <= PARALLEL * wall_hours
    assert used.cost == pytest.approx(0.5 * used.hours)

    before = {arm.run_id: arm for arm in arms_now}
    assert started(open_process, file, log).wait(300) == 0
    assert {arm.run_id: arm for arm in read_arms()} == before
    shutil.rmtree(Path(arms_now[0].job).parent)
