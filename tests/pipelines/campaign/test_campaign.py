"""A campaign run for real on this machine, with rehearsals in place of trainings."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.campaign import arm as arm_process, run as campaign
from pipelines.campaign.arm import ArmPlan
from pipelines.campaign.arms import check_arguments, expand, stage_arguments
from pipelines.campaign.executors.local import LocalExecutor
from pipelines.campaign.plan import arm_hours, plan_table, training_speed
from pipelines.campaign.records import find_parent
from pipelines.campaign.run import CampaignConfig, alone, run_campaign
from pipelines.campaign.spec import CampaignError, load_campaign
from pipelines.cohort.folder import Cohort
from pipelines.command.cli import run_entry_point
from pipelines.runtime.interrupts import DEADLINE_ENV
from pipelines.runtime.paths import PROJECT_ROOT
from pipelines.tracking.arms import ArmRecord, read_arms
from pipelines.tracking.heartbeat import HOURS
from pipelines.tracking.reading import StoredRun, compare_page, how_served, search_runs
from pipelines.tracking.run import Run
from pipelines.tracking.store import client
from tests.processes import WAIT_S, OpenProcess

Call = Callable[..., int]
TREE: dict[str, Any] = {
    "name": "small",
    "question": "Does it work?",
    "endpoint": {"metric": "loss/total", "goal": "minimize"},
    "stages": {"rehearsal": {"steps": 2}},
    "price_per_hour": 0.5,
    "budget": {"hours": 1.0},
}


@pytest.fixture
def call(own_store: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Write a campaign file and call the entry point on it; returns the exit code."""
    monkeypatch.setattr(campaign, "JOBS", own_store / "jobs")

    def run(*words: str, **changes: Any) -> int:
        file = own_store / "campaign.yaml"
        file.write_text(yaml.safe_dump(TREE | changes))
        options = ["--spec", str(file), *words]
        return run_entry_point("campaign", CampaignConfig, run_campaign, None, options)

    return run


def arms() -> dict[str, ArmRecord]:
    return {arm.name: arm for arm in read_arms()}


def found_parent() -> ArmRecord:
    parent = find_parent("small")
    assert parent is not None
    return parent


def test_arms_run_once_failures_stop_nobody_and_a_second_call_changes_nothing_that_is_done(
    call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = {
        "arms": [
            {"name": "good", "overrides": {"lr": 0.01}},
            {"name": "refused", "overrides": {"ending": "refused"}},
            {"name": "killed", "overrides": {"ending": "killed"}},
        ],
        "stop": {"retries": 1},
    }
    assert call("--parallel", "3", **tree) == 2
    first = arms()
    states = {name: (arm.status, arm.tags["dinox.arm_status"], arm.attempt) for name, arm in first.items()}
    assert states == {
        "good": ("FINISHED", "finished", 1),
        "refused": ("FAILED", "refused", 1),
        "killed": ("FAILED", "died", 2),
    }
    said = capsys.readouterr()
    assert "1 of 3 arms are done; refused refused: this rehearsal was configured to be refused" in said.err
    assert "| killed  | died" in said.out
    assert all(not arm.is_open and arm.hours(0.0) > 0 for arm in first.values())
    assert first["good"].tags["dinox.campaign"] == "small"
    assert first["good"].tags["dinox.executor"] == "local"
    assert first["good"].params["lr"] == "0.01"
    parent = found_parent()
    assert (parent.status, parent.tags["dinox.status"]) == ("FAILED", "incomplete")

    # What failed may be tried again; what is done is not touched.
    tree["arms"] = tree["arms"][:1]
    assert call(**tree) == 2
    assert "registered in run" in capsys.readouterr().err
    assert arms()["good"].tags == first["good"].tags


def test_a_campaign_that_is_done_does_nothing_says_so_and_saved_no_hours(
    call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    # The arm is looked at while it runs, and ends before its step would be read again.
    tree = {"stages": {"rehearsal": {"steps": 4, "seconds": 2.0}}, "arms": [{"name": "a"}]}
    assert call(**tree) == 0
    last = capsys.readouterr().out.rpartition("| arm ")[2]
    cells = next(line for line in last.splitlines() if line.startswith("| a ")).split("|")
    assert cells[4].strip() == "4"
    assert "saved" not in last.partition("spent")[2]
    (before,) = arms().values()
    assert before.hours(0.0) >= before.metrics[HOURS] >= 2.0 / 3600.0
    assert int((Path(before.job) / "pid").read_text()) != os.getpid()
    assert call(**tree) == 0
    (after,) = arms().values()
    assert after == before
    assert "1 finished; spent" in capsys.readouterr().out
    parent = found_parent()
    assert (parent.status, parent.tags["dinox.status"]) == ("FINISHED", "complete")
    kept = {item.path for item in client().list_artifacts(parent.run_id)}
    assert kept >= {"campaign.yaml", "campaign.md"}


@pytest.mark.slow
def test_the_budget_stops_a_campaign_and_only_its_file_can_raise_it(
    call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    # Two arms of 6 s each; 7 s are granted.
    tree = {
        "stages": {"rehearsal": {"steps": 4, "seconds": 6}},
        "arms": [{"name": "a"}, {"name": "b", "overrides": {"lr": 0.1}}],
    }
    cap = 7.0 / 3600.0
    assert call("--parallel", "1", budget={"hours": cap}, **tree) == 2
    assert "is at its budget" in capsys.readouterr().err
    used = sum(arm.hours(0.0) for arm in arms().values())
    poll = 0.5 / 3600.0
    assert used <= cap + poll
    parent = found_parent()
    assert parent.tags["dinox.status"] == "budget"
    assert call("--parallel", "2", budget={"hours": 1.0}, **tree) == 0
    assert {arm.status for arm in arms().values()} == {"FINISHED"}


@pytest.mark.parametrize(
    ("words", "changes", "sentence"),
    [
        (["--executor", "cluster"], {}, "'cluster': input should be 'local', 'submitit' or"),
        (["--parallel", "-2"], {}, "'parallel' was given -2"),
        ([], {"arms": [{"name": "a", "overrides": {"lrr": 1}}]}, "unknown key 'lrr'"),
        ([], {"arms": [{"name": "a"}, {"name": "b"}]}, "arms a and b are alike"),
        ([], {"arms": [{"name": "a", "grid": {"lr": []}}]}, "expands to no arms"),
        ([], {"budget": {"cost": 1.0}, "price_per_hour": -1}, "price_per_hour is missing"),
        ([], {"stages": {"probe_malignancy": {}}, "cohort": "nowhere"}, "no cohort in nowhere"),
        (
            [],
            {
                "stages": {"probe_malignancy": {}},
                "arms": [{"name": "a", "overrides": {"backbone": "campaign:x/y"}}],
            },
            "the backbone of x/y, which has not finished",
        ),
        (["--budget", "100"], {}, "unknown key 'budget'"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_nothing_is_submitted(
    call: Call, capsys: pytest.CaptureFixture[str], words: list[str], changes: dict[str, Any], sentence: str
) -> None:
    assert call(*words, **({"arms": [{"name": "a"}]} | changes)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert sentence in error
    assert arms() == {}
    assert find_parent("small") is None


def test_a_dry_run_shows_the_arms_and_registers_nothing(
    call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = {"arms": [{"name": "a", "grid": {"lr": [0.1, 0.01, 0.001]}}], "resources": {"stage_hours": 0.5}}
    assert call("--dry_run", "true", **tree) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "3 arms" in shown
    assert any("total" in line and "1.500 h" in line and "0.750 USD" in line for line in shown)
    assert find_parent("small") is None


def test_hours_are_estimated_from_runs_of_the_same_network_alone(own_store: Path) -> None:
    spec = load_campaign("article_vit_l")
    arms_ = expand(spec)[:1]
    line = stage_arguments(spec, arms_[0], ["0"])[0]
    configuration = check_arguments([("a", *line)])[0]
    hours = arm_hours(spec, arms_[0], configuration, 46.0)
    assert hours == pytest.approx(2000 * 16 / 46.0 / 3600.0 + 3 * 0.15)
    assert f"{hours:7.3f} h" in plan_table(spec, arms_, [configuration])
    # Done are a ViT-S of the same recipe, twice as fast as the file states for a ViT-L; a ViT-L of cubes; a ViT-L.
    cubes = {"backbone.image_depth_px": "224"}
    large = {"backbone.arch": "vit_large"}
    for changes, speed, shown in (
        ({"backbone.arch": "vit_small"}, 92.0, hours),
        (large | cubes, 2.0, hours),
        (large, 23.0, 2 * hours - 0.45),
    ):
        run = Run.start("pretrain")
        run.log_params(configuration | changes)
        run.set_tags({"dinox.recipe": spec.recipe, "dinox.device": "NVIDIA H100"})
        run.log_metrics({"perf/slices_per_s": speed})
        run.finish("FINISHED")
        assert f"{shown:7.3f} h" in plan_table(spec, arms_, [configuration])


def test_hours_are_estimated_from_whole_runs_on_the_same_kind_of_cohort_and_device_alone(
    own_store: Path, small_cohort: Cohort
) -> None:
    spec = replace(load_campaign("article_vit_l"), cohort=str(small_cohort.root))
    line = stage_arguments(spec, expand(spec)[0], ["0"])[0]
    configuration = check_arguments([("a", *line)])[0]
    for kind, device, steps, speed in (
        (small_cohort.kind, "NVIDIA H100", 2000, 30.0),
        ("real CT", "NVIDIA H100", 2000, 300.0),
        (small_cohort.kind, "cpu", 2000, 3.0),
        (small_cohort.kind, "NVIDIA H100", 2, 1.0),
    ):
        run = Run.start("pretrain")
        run.log_params(configuration | {"steps": steps})
        run.set_tags({"dinox.recipe": spec.recipe, "dinox.cohort_kind": kind, "dinox.device": device})
        run.log_metrics({"perf/slices_per_s": speed})
        run.finish("FINISHED")
    runs = search_runs(StoredRun, "tags.`dinox.entry_point` = 'pretrain'")
    speed, source = training_speed(spec, configuration, runs)
    assert speed == 30.0
    assert source.endswith(f"on {small_cohort.kind}")


@pytest.mark.parametrize(
    ("store", "command", "begins"),
    [
        ("http://me:secret@host:5001/ml", "", "http://host:5001/ml/#/compare-runs?"),
        (
            "sqlite:////elsewhere/x.db",
            "mlflow ui --backend-store-uri sqlite:////elsewhere/x.db",
            "http://127.0.0.1:5000/#",
        ),
        ("", "make ui", "http://127.0.0.1:5000/#/compare-runs?"),
    ],
)
def test_the_page_that_compares_arms_is_one_of_the_store_in_use(
    monkeypatch: pytest.MonkeyPatch, store: str, command: str, begins: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert how_served() == command
    assert compare_page(["a", "b"], "1").startswith(begins)


def test_two_calls_never_run_one_campaign_at_once(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    with alone("small"):
        assert call(arms=[{"name": "a"}]) == 2
    assert "is already run by another process" in capsys.readouterr().err


def test_an_arm_that_crashed_is_shown_with_the_end_of_its_log(
    call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(arms=[{"name": "a", "overrides": {"ending": "crashed"}}], stop={"retries": 0}) == 2
    said = capsys.readouterr()
    assert "RuntimeError: this rehearsal was configured to crash" in said.out
    assert "0 of 1 arms are done; a died: RuntimeError" in said.err


def done_here(executor: LocalExecutor, plan: ArmPlan) -> str:
    """Do what the process of an arm does, without one: to import MLflow takes seconds."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("pipelines.campaign.arm", "pipelines.command.cli"):
            patch.setattr(f"{module}.watch_deadline", lambda: None)
        for name in ("MLFLOW_RUN_ID", DEADLINE_ENV, *plan.environment):  # To be put back as they were.
            patch.setenv(name, "")
        assert arm_process.main(plan.to_json()) == 0
    signal.signal(signal.SIGTERM, before)
    return str(executor.folder / plan.name)


def test_calls_that_fail_before_they_submit_leave_nothing_running_and_cost_nothing_a_day_later(
    call: Call,
) -> None:
    tree = {"arms": [{"name": "a"}]}
    parents = []

    def fail(*_: object) -> str:
        parents.append(found_parent().status)
        raise CampaignError("no disk")

    for attempt in (1, 2):
        with pytest.MonkeyPatch.context() as broken:
            broken.setattr(LocalExecutor, "submit", fail)
            assert call(**tree) == 2
        assert (parents.pop(), found_parent().status) == ("RUNNING", "FAILED")
        (arm,) = arms().values()
        assert (arm.is_open, arm.attempt) == (True, attempt)
        client().set_tag(arm.run_id, "dinox.attempt_started", repr(time.time() - 24 * 3600.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalExecutor, "submit", done_here)
        assert call(**tree) == 0
    (arm,) = arms().values()
    assert (arm.attempt, arm.status) == (3, "FINISHED")
    assert arm.hours(time.time()) < 0.1
    parent = found_parent()
    assert (parent.status, parent.tags["dinox.error"]) == ("FINISHED", "")


def test_a_deleted_arm_gives_no_budget_back_and_is_said(
    call: Call, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalExecutor, "submit", done_here)
    tree = {"arms": [{"name": "a"}, {"name": "b", "overrides": {"lr": 0.1}}]}
    assert call(**tree) == 0
    first = arms()["a"]
    client().set_tag(first.run_id, "dinox.hours_closed", "1.0")
    client().delete_run(first.run_id)
    assert call(**tree) == 2
    said = capsys.readouterr()
    assert "campaign small is at its budget of 1 h: 1 of 2 arms are done" in said.err
    assert "1.000 h of it by 1 deleted runs (a), which are spent all the same" in said.out
    assert call(budget={"hours": 2.0}, **tree) == 0
    assert "spent 1.00" in capsys.readouterr().out.rpartition("2 finished; ")[2]
    again = [arm for arm in read_arms() if arm.name == "a" and not arm.is_deleted]
    assert [(arm.number, arm.status, arm.run_id != first.run_id) for arm in again] == [(2, "FINISHED", True)]


@pytest.mark.slow
def test_two_campaigns_at_once_write_to_one_store(own_store: Path, open_process: OpenProcess) -> None:
    started = []
    for name in ("one", "other"):
        arms_ = [{"name": f"{name}-{lr}", "overrides": {"lr": lr}} for lr in (0.1, 0.01, 0.001)]
        file = own_store / f"{name}.yaml"
        stages = {"rehearsal": {"steps": 40, "seconds": 8.0}}
        file.write_text(yaml.safe_dump(TREE | {"name": name, "arms": arms_, "stages": stages}))
        words = [sys.executable, "-m", "pipelines.campaign", "--spec", str(file), "--parallel", "2"]
        started.append(
            open_process(words, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        )
    for process in started:
        said, _ = process.communicate(timeout=5 * WAIT_S)
        assert process.returncode == 0, said.decode()[-3000:]
    found = read_arms()
    assert sorted(arm.name for arm in found) == sorted(
        f"{n}-{lr}" for n in ("one", "other") for lr in (0.1, 0.01, 0.001)
    )
    assert {(arm.status, arm.attempt) for arm in found} == {("FINISHED", 1)}
    assert all(len(Run(client(), arm.run_id).history("loss/total")) == 40 for arm in found)
