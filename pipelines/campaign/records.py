"""A campaign in MLflow: the parent run, one child run per arm, and the hours and cost of each attempt.

MLflow holds the only state: after any process was killed, the next call reads here what is done, what runs and what
it cost. Tags of an arm's run are listed in `pipelines.tracking.names`. Its metric campaign/hours is the age of the
newest attempt, logged by the arm itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import NamedTuple

from pipelines.campaign.arms import Arm
from pipelines.campaign.spec import CampaignError, CampaignSpec
from pipelines.tracking.arms import ArmRecord
from pipelines.tracking.heartbeat import HOURS
from pipelines.tracking.names import Tag
from pipelines.tracking.reading import StoredRun, read_run, search_runs
from pipelines.tracking.run import Run
from pipelines.tracking.store import answering


class Closed(NamedTuple):
    """What the attempts of an arm used that are accounted for."""

    hours: float
    cost: float
    attempts: float


class CampaignRecord:
    """The parent run of a campaign and its children."""

    def __init__(self, run: Run, name: str) -> None:
        """Attach to the parent run."""
        self.run, self.name, self.store = run, name, run.store
        self.experiment_id = run.stored().experiment_id
        self._epoch_s = time.time() - time.monotonic()
        self.gone: list[ArmRecord] = []
        """Arms whose hours count although they are no longer of this campaign: deleted, or of a deleted parent run."""
        self.purged: list[Closed] = []
        """What arms spent of which the store knows nothing any more."""
        kept = [dict(run.history(f"campaign/closed_{name}")) for name in Closed._fields]
        self.closed = {number: Closed(*(values.get(number, 0.0) for values in kept)) for number in kept[0]}
        """By the number of the arm; the parent run keeps it, so that it outlives the arm's own run."""

    @classmethod
    def open(cls, wrapper: Run, spec: CampaignSpec, design: str, spec_text: str) -> CampaignRecord:
        """Find the campaign's parent run, or make this run its parent and register the design there.

        Raises:
            CampaignError: If a campaign of this name was registered with another design.
        """
        found = find_parent(spec.name)
        if found is None:
            wrapper.log_text(spec_text, "campaign.yaml")
            wrapper.set_tags(
                {
                    Tag.CAMPAIGN: spec.name,
                    Tag.QUESTION: spec.question,
                    Tag.ENDPOINT: f"{spec.endpoint.goal} {spec.endpoint.metric}",
                    Tag.CORRECTION: spec.correction,
                    Tag.RUN_NAME: spec.name,
                    # Last: a campaign is registered once its design is set.
                    Tag.DESIGN: design,
                }
            )
            return cls(wrapper, spec.name)
        if found.tags[Tag.DESIGN] != design:
            raise CampaignError(
                f"campaign {spec.name} was registered in run {found.run_id} with another question, endpoint, recipe or"
                " arms; restore those, or give the changed campaign a new name"
            )
        if found.run_id == wrapper.run_id:
            return cls(wrapper, spec.name)
        wrapper.set_tags({Tag.RESUMES: found.run_id})
        return cls(wrapper.other(found.run_id), spec.name)

    def arms(self) -> list[ArmRecord]:
        """Read every arm, in the order in which they were added; those that are gone are kept apart."""
        found = search_runs(ArmRecord, f"tags.`{Tag.CAMPAIGN}` = '{self.name}'", with_deleted=True)
        own: list[ArmRecord] = []
        self.gone = []
        for record in sorted(found, key=lambda record: record.number):
            if Tag.ARM in record.tags:
                is_own = not record.is_deleted and record.tags.get(Tag.PARENT) == self.run.run_id
                (own if is_own else self.gone).append(record)
        known = {record.number for record in (*own, *self.gone)}
        self.purged = [kept for number, kept in self.closed.items() if number not in known]
        return own

    def add_arms(self, arms: Sequence[Arm]) -> None:
        """Create a run for every arm that has none, and one for each of its later stages."""
        there = {record.name: record for record in self.arms()}
        taken = [record.number for record in (*there.values(), *self.gone)]
        number = max([*taken, *self.closed], default=-1)
        for arm in arms:
            if arm.name not in there:
                number += 1
                there[arm.name] = ArmRecord(self._new_arm(arm, number), "SCHEDULED", {}, {}, {})
            record = there[arm.name]
            if len(arm.stages) > 1 and Tag.STAGES not in record.tags:
                ids = [self._new_stage(arm, stage, record.run_id) for stage in list(arm.stages)[1:]]
                self.run_of(record).set_tags({Tag.STAGES: ",".join(ids)})

    def _new_arm(self, arm: Arm, number: int) -> str:
        return self._new_run(
            arm.name,
            {
                Tag.PARENT: self.run.run_id,
                Tag.CAMPAIGN: self.name,
                Tag.ARM: arm.name,
                Tag.NUMBER: str(number),
                Tag.SEED: str(arm.seed),
                Tag.OVERRIDES: json.dumps(arm.overrides),
                Tag.ENTRY_POINTS: json.dumps(arm.stages),
                Tag.ON_RECORD: "" if arm.on_record is None else str(arm.on_record).lower(),
                Tag.NOTE: arm.note,
                Tag.HYPOTHESIS: arm.hypothesis,
            },
        )

    def _new_stage(self, arm: Arm, stage: str, run_id: str) -> str:
        return self._new_run(
            f"{arm.name}-{stage}",
            {Tag.PARENT: run_id, Tag.CAMPAIGN: self.name, Tag.STAGE: stage, Tag.ARM_OF: arm.name},
        )

    @answering()
    def _new_run(self, name: str, tags: dict[Tag, str]) -> str:
        run_id = self.store.create_run(
            self.experiment_id, run_name=name, tags={tag.value: text for tag, text in tags.items()}
        ).info.run_id
        self.store.update_run(run_id, status="SCHEDULED")
        return str(run_id)

    def now(self) -> float:
        """Return seconds since the epoch, by a clock that nobody sets while this process lives."""
        return self._epoch_s + time.monotonic()

    def run_of(self, record: ArmRecord) -> Run:
        """Return the run of an arm, to read its history or to write to it."""
        return Run(self.store, record.run_id)

    @answering()
    def open_attempt(self, record: ArmRecord, tags: dict[Tag, str]) -> int:
        """Record that an arm will be started: from now on it costs, even if a process dies.

        Returns:
            The number of the attempt.
        """
        number, now = record.attempt + 1, self.now()
        self.store.log_metric(record.run_id, HOURS, 0.0, step=number)
        self.run_of(record).set_tags(
            tags
            | {
                Tag.ATTEMPT: str(number),
                Tag.ATTEMPT_STARTED: repr(now),
                Tag.ARM_END: "",
                Tag.JOB: "",
                Tag.PENDING: "no",
            },
        )
        self.store.update_run(record.run_id, status="RUNNING")
        return number

    def close_attempt(self, record: ArmRecord, now: float, was_submitted: bool = True) -> None:
        """Add up hours and cost of an attempt that has ended; a second call changes nothing.

        An attempt that was recorded but never submitted, because the engine refused it or the campaign was killed in
        between, used nothing.
        """
        if not record.is_open:
            return
        used = record.hours_of_ended_attempt(now) if was_submitted or record.has_begun else 0.0
        closed = float(record.tags.get(Tag.HOURS_CLOSED, "0")) + used
        self._keep(record, used)
        self.run_of(record).set_tags(
            {
                Tag.HOURS_CLOSED: repr(closed),
                Tag.COST_CLOSED: repr(record.cost_before + used * record.price_per_hour),
                Tag.ATTEMPTS_CLOSED: str(record.attempt),
            },
        )

    def close_gone(self, record: ArmRecord, now: float, was_seen: bool) -> None:
        """Account for an attempt of an arm that is gone and has ended; nothing is written to its own run.

        Its heartbeats end when it is deleted, so if this process saw it run, it counts until now.
        """
        self._keep(record, record.age(now) if was_seen else record.hours_of_ended_attempt(now))

    def is_open_and_gone(self, record: ArmRecord) -> bool:
        """Whether the newest attempt of an arm that is gone is not yet accounted for."""
        kept = self.closed.get(record.number)
        return record.is_open and (kept is None or kept.attempts < record.attempt)

    def spent_by_gone(self, record: ArmRecord, now: float) -> Closed:
        """Return the hours and cost of an arm that is gone."""
        if record.is_open and not self.is_open_and_gone(record):
            return self.closed[record.number]
        return Closed(record.hours(now), record.cost(now), record.attempt)

    def _keep(self, record: ArmRecord, used: float) -> None:
        before = float(record.tags.get(Tag.HOURS_CLOSED, "0"))
        cost = record.cost_before + used * record.price_per_hour
        kept = self.closed[record.number] = Closed(before + used, cost, float(record.attempt))
        values = {f"campaign/closed_{name}": value for name, value in kept._asdict().items()}
        self.run.log_metrics(values, record.number)

    @answering()
    def end_arm(self, record: ArmRecord, status: str, why: str) -> None:
        """Close an arm's run, and those of its stages that are still open."""
        self.run_of(record).set_tags({Tag.ARM_STATUS: why})
        for run_id in record.stage_run_ids:
            if read_run(StoredRun, run_id).status == "RUNNING":
                self.store.set_terminated(run_id, status=status)


def find_parent(name: str) -> ArmRecord | None:
    """Return the parent run of a campaign, in any experiment of the store; None if there is none."""
    query = f"tags.`{Tag.CAMPAIGN}` = '{name}' and tags.`{Tag.ENTRY_POINT}` = 'campaign'"
    parents = [found for found in search_runs(ArmRecord, query) if Tag.DESIGN in found.tags]
    return parents[-1] if parents else None
