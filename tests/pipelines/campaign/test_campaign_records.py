"""A campaign in MLflow: registered once, each attempt counted once, also after a kill in between."""

import platform
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.campaign.arms import Arm, arm_of
from pipelines.campaign.plan import refuse_arms_elsewhere
from pipelines.campaign.records import CampaignRecord, Closed, find_parent
from pipelines.campaign.spec import BudgetSpec, CampaignError, CampaignSpec, EndpointSpec
from pipelines.tracking.arms import ArmRecord, ledger
from pipelines.tracking.heartbeat import HEARTBEAT_S, HOURS
from pipelines.tracking.outbox import RunDeletedError
from pipelines.tracking.reading import read_run
from pipelines.tracking.run import Run

SPEC = CampaignSpec(
    name="small",
    question="Does it work?",
    endpoint=EndpointSpec(metric="loss/total"),
    stages={"rehearsal": {}, "probe_malignancy": {}},
    budget=BudgetSpec(hours=1.0),
)
ARM = Arm(name="a", seed=7, overrides={"lr": 1e-05}, stages=SPEC.stages, on_record=False, hypothesis="none")
LEASE = {"dinox.price_per_hour": "0.5", "dinox.lease_hours": "0.25"}


@pytest.fixture
def record(own_store: Path) -> CampaignRecord:
    return CampaignRecord.open(Run.start("campaign"), SPEC, "design", "name: small\n")


def only_arm(record: CampaignRecord) -> ArmRecord:
    record.add_arms([ARM])
    (arm,) = record.arms()
    return arm


def test_a_second_call_finds_the_campaign_and_makes_no_arm_twice(record: CampaignRecord) -> None:
    first = only_arm(record)
    wrapper = Run.start("campaign")
    again = CampaignRecord.open(wrapper, SPEC, "design", "")
    assert again.run.run_id == record.run.run_id
    assert wrapper.store.get_run(wrapper.run_id).data.tags["dinox.resumes"] == record.run.run_id
    again.add_arms([ARM])
    (arm,) = again.arms()
    assert arm.run_id == first.run_id
    assert arm.stage_run_ids == first.stage_run_ids
    assert len(arm.stage_run_ids) == 2
    assert replace(arm_of(arm)) == ARM
    assert arm.status == "SCHEDULED"


def test_another_design_under_the_same_name_is_refused(record: CampaignRecord) -> None:
    with pytest.raises(CampaignError, match=r"registered in run [0-9a-f]{32} with another"):
        CampaignRecord.open(Run.start("campaign"), SPEC, "another design", "")


def test_an_attempt_is_paid_for_once_however_often_it_is_closed(record: CampaignRecord) -> None:
    arm = only_arm(record)
    number = record.open_attempt(arm, LEASE)
    run = Run(record.store, arm.run_id)
    run.log_metrics({HOURS: 0.1}, number)
    run.set_tags({"dinox.begun": "1", "dinox.begun_at": "0", "dinox.arm_end": "finished"})
    opened = read_run(ArmRecord, arm.run_id)
    assert opened.is_open
    for _ in range(3):
        record.close_attempt(read_run(ArmRecord, arm.run_id), now=1e12)
    closed = read_run(ArmRecord, arm.run_id)
    assert not closed.is_open
    assert closed.hours(now=1e12) == pytest.approx(0.1)
    record.close_attempt(opened, now=1e12)  # A campaign that had read before another closed it.
    assert read_run(ArmRecord, arm.run_id).hours(now=1e12) == pytest.approx(0.1)


def test_retries_add_up_and_a_new_attempt_starts_at_nothing(record: CampaignRecord) -> None:
    arm = only_arm(record)
    for hours in (0.1, 0.3):
        number = record.open_attempt(read_run(ArmRecord, arm.run_id), LEASE)
        run = Run(record.store, arm.run_id)
        run.log_metrics({HOURS: hours}, number)
        run.set_tags({"dinox.begun": str(number), "dinox.begun_at": "0", "dinox.arm_end": "interrupted"})
        record.close_attempt(read_run(ArmRecord, arm.run_id), now=1e12)
    third = read_run(ArmRecord, arm.run_id)
    assert third.hours(now=0.0) == pytest.approx(0.4)
    record.open_attempt(third, LEASE)
    opened = read_run(ArmRecord, arm.run_id)
    assert opened.metrics[HOURS] == 0.0
    assert opened.attempt == 3


def test_each_attempt_costs_what_an_hour_cost_then(record: CampaignRecord) -> None:
    arm = only_arm(record)
    for price, hours in (("0.5", 2.0), ("3.0", 0.1)):
        number = record.open_attempt(read_run(ArmRecord, arm.run_id), LEASE | {"dinox.price_per_hour": price})
        run = Run(record.store, arm.run_id)
        run.log_metrics({HOURS: hours}, number)
        run.set_tags({"dinox.begun": str(number), "dinox.begun_at": "0", "dinox.arm_end": "interrupted"})
        record.close_attempt(read_run(ArmRecord, arm.run_id), now=1e12)
    closed = read_run(ArmRecord, arm.run_id)
    assert (closed.hours(0.0), closed.cost(0.0)) == (pytest.approx(2.1), pytest.approx(1.3))
    (row,) = ledger([closed], 0.0).itertuples()
    assert row.cost == pytest.approx(1.3)


def test_an_attempt_that_was_never_submitted_costs_nothing_however_late_that_is_seen(
    record: CampaignRecord,
) -> None:
    arm = only_arm(record)
    record.open_attempt(arm, LEASE)  # Then the campaign is killed, or the engine refuses the job.
    tomorrow = time.time() + 24 * 3600.0
    record.close_attempt(read_run(ArmRecord, arm.run_id), tomorrow, was_submitted=False)
    closed = read_run(ArmRecord, arm.run_id)
    assert not closed.is_open
    assert (closed.hours(tomorrow), closed.cost(tomorrow)) == (0.0, 0.0)


def test_an_arm_that_may_run_out_of_sight_is_not_taken_for_dead() -> None:
    def opened(**tags: str) -> ArmRecord:
        return record_of({"dinox.arm": "a"} | {f"dinox.{key}": value for key, value in tags.items()})

    here, elsewhere = platform.node(), "another-machine"
    for fine in (
        opened(executor="local", host=here),
        opened(executor="submitit", arm_end="finished"),
        opened(executor="submitit", attempts_closed="1"),
    ):
        refuse_arms_elsewhere([fine], "local", now=30.0)
    with pytest.raises(CampaignError, match=r"arm a was started by executor submitit, .* executor=submitit"):
        refuse_arms_elsewhere([opened(executor="submitit")], "local", now=1e9)
    begun = opened(executor="local", host=elsewhere, begun="1", begun_at="10")
    lives = replace(begun, metrics={HOURS: 1.0})
    with pytest.raises(CampaignError, match="arm a runs on machine another-machine; continue the campaign"):
        refuse_arms_elsewhere([lives], "local", now=3600.0 + 60.0)
    refuse_arms_elsewhere([lives], "local", now=3600.0 + 3600.0)  # Silent for an hour: its machine is gone.


def used(record: CampaignRecord, arm: ArmRecord, hours: float) -> None:
    """Let an arm run for some hours, and be asked to stop."""
    number = record.open_attempt(read_run(ArmRecord, arm.run_id), LEASE)
    run = Run(record.store, arm.run_id)
    run.log_metrics({HOURS: hours}, number)
    run.set_tags({"dinox.begun": str(number), "dinox.begun_at": "0", "dinox.arm_end": "interrupted"})
    record.close_attempt(read_run(ArmRecord, arm.run_id), now=1e12)


def reread(record: CampaignRecord) -> list[Closed]:
    """What the next call of a campaign knows of arms that are gone."""
    again = CampaignRecord(record.run, "small")
    again.arms()
    return [*(again.spent_by_gone(one, 1e12) for one in again.gone), *again.purged]


def test_what_an_arm_spent_outlives_its_run_and_the_run_of_its_campaign(record: CampaignRecord) -> None:
    arm = only_arm(record)
    used(record, arm, 0.1)
    used(record, arm, 0.3)
    spent = [(pytest.approx(0.4), pytest.approx(0.2), 2)]
    record.store.delete_run(arm.run_id)
    assert reread(record) == spent
    record.add_arms([ARM])
    (new,) = record.arms()
    assert (new.number, new.attempt) == (1, 0)
    for run_id in arm.stage_run_ids:  # As `mlflow gc` does.
        record.store._tracking_client.store._hard_delete_run(run_id)
    assert reread(record) == spent
    used(record, new, 0.5)
    record.store.delete_run(record.run.run_id)
    other = CampaignRecord.open(Run.start("campaign"), SPEC, "design", "")
    assert other.run.run_id != record.run.run_id
    assert other.arms() == []
    assert reread(other) == [(pytest.approx(0.5), pytest.approx(0.25), 1)]


def test_an_arm_that_is_deleted_while_it_runs_counts_until_it_has_ended(record: CampaignRecord) -> None:
    arm = only_arm(record)
    number = record.open_attempt(arm, LEASE)
    run = Run(record.store, arm.run_id)
    run.log_metrics({HOURS: 0.1}, number)
    started = float(read_run(ArmRecord, arm.run_id).tags["dinox.attempt_started"])
    run.set_tags({"dinox.begun": "1", "dinox.begun_at": repr(started)})
    record.store.delete_run(arm.run_id)
    with pytest.raises(RunDeletedError, match=f"run {arm.run_id} was deleted in MLflow"):
        run.log_metrics({HOURS: 0.2}, number)
    record.arms()
    (gone,) = record.gone
    assert record.is_open_and_gone(gone)
    record.close_gone(gone, started + 3600.0, was_seen=True)
    assert not record.is_open_and_gone(gone)
    assert reread(record) == [(pytest.approx(1.0), pytest.approx(0.5), 1)]
    record.closed.clear()
    record.close_gone(gone, started + 3600.0, was_seen=False)  # Nobody saw it end.
    assert record.spent_by_gone(gone, 1e12).hours == pytest.approx(0.1 + HEARTBEAT_S / 3600.0)


def record_of(tags: dict[str, str], hours: float = 0.0) -> ArmRecord:
    return ArmRecord(
        "id", "RUNNING", {"dinox.attempt": "1", "dinox.attempt_started": "0"} | tags, {HOURS: hours}, {}
    )


def test_a_killed_attempt_counts_to_its_next_sign_of_life_at_most() -> None:
    begun = {"dinox.begun": "1", "dinox.begun_at": "0"}
    beat = HEARTBEAT_S / 3600.0
    assert record_of(begun, 1.0).hours_of_ended_attempt(now=10 * 3600.0) == pytest.approx(1.0 + beat)
    assert record_of(begun, 1.0).hours_of_ended_attempt(now=3600.0 + 2.0) == pytest.approx(1.0 + 2.0 / 3600.0)
    assert record_of(begun | {"dinox.arm_end": "crashed"}, 1.0).hours_of_ended_attempt(now=1e9) == 1.0


def test_the_machine_before_the_arm_began_is_paid_for_too() -> None:
    late = {"dinox.begun": "1", "dinox.begun_at": "360", "dinox.arm_end": "finished"}
    assert record_of(late, 1.0).hours_of_ended_attempt(now=1e9) == pytest.approx(1.1)
    assert record_of({}).hours_of_ended_attempt(now=720.0) == pytest.approx(0.2)  # It never began.


def test_a_job_that_waits_costs_nothing_and_keeps_its_lease() -> None:
    waiting = record_of({"dinox.pending": "yes", "dinox.lease_hours": "2"})
    assert waiting.hours(now=7200.0) == 0.0
    assert waiting.leased_hours(now=7200.0) == 2.0
    running = record_of({"dinox.pending": "no", "dinox.lease_hours": "2"})
    assert running.hours(now=1800.0) == pytest.approx(0.5)
    assert running.leased_hours(now=1800.0) == pytest.approx(1.5)


def test_an_arm_ends_with_its_stages(record: CampaignRecord) -> None:
    arm = only_arm(record)
    record.open_attempt(arm, LEASE)
    Run(record.store, arm.stage_run_ids[1]).reopen()
    record.end_arm(read_run(ArmRecord, arm.run_id), "KILLED", "interrupted")
    assert [record.store.get_run(i).info.status for i in arm.stage_run_ids] == ["KILLED", "KILLED"]
    assert find_parent("small") is not None
    assert find_parent("other") is None
