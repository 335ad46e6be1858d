"""A campaign as MLflow records it: the parent run, one child run an arm, and what each attempt at it used.

MLflow is the only state: whatever was killed, the next call reads from here what is done, what runs and what it cost.

Tags of an arm's run: dinox.campaign, dinox.arm, dinox.seed, dinox.overrides, dinox.entry_points, dinox.stages (run ids
of the later ones), dinox.executor, dinox.host, dinox.price_per_hour, dinox.attempt (number of the newest),
dinox.attempts_closed, dinox.hours_closed, dinox.cost_closed, dinox.job, dinox.lease_hours, dinox.arm_end. Its metric
campaign/hours is the age of the newest attempt, written by the arm itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from pipelines.campaign.arms import Arm
from pipelines.campaign.spec import CampaignError, CampaignSpec
from pipelines.tracking.arms import ArmRecord
from pipelines.tracking.heartbeat import HOURS
from pipelines.tracking.run import Run
from pipelines.tracking.store import client
from pipelines.tracking.stored_runs import read_run, search_runs


class CampaignRecord:
    """The parent run of a campaign and its children."""

    def __init__(self, run: Run, name: str) -> None:
        """Attach to the parent run."""
        self.run, self.name = run, name
        self.store = client()
        self.experiment_id = run.experiment_id

    @classmethod
    def open(cls, wrapper: Run, spec: CampaignSpec, design: str, spec_text: str) -> CampaignRecord:
        """Find the campaign's parent run, or make this run its parent and register the design in it.

        Raises:
            CampaignError: If a campaign of this name was registered with another design.
        """
        found = find_parent(spec.name)
        if found is None:
            wrapper.log_text(spec_text, "campaign.yaml")
            wrapper.set_tags(
                {
                    "dinox.campaign": spec.name,
                    "dinox.question": spec.question,
                    "dinox.endpoint": f"{spec.endpoint.goal} {spec.endpoint.metric}",
                    "dinox.correction": spec.correction,
                    "mlflow.runName": spec.name,
                    # Last: with the design a campaign is registered.
                    "dinox.design": design,
                }
            )
            return cls(wrapper, spec.name)
        if found.tags["dinox.design"] != design:
            raise CampaignError(
                f"campaign {spec.name} was registered in run {found.run_id} with another question, endpoint, recipe or"
                " arms; restore those, or give the changed campaign a name of its own"
            )
        if found.run_id != wrapper.run_id:
            wrapper.set_tags({"dinox.resumes": found.run_id})
        parent = wrapper.other(found.run_id) if found.run_id != wrapper.run_id else wrapper
        return cls(parent, spec.name)

    def arms(self) -> list[ArmRecord]:
        """Read every arm, in the order in which they were added."""
        query = f"tags.`mlflow.parentRunId` = '{self.run.run_id}'"
        found = search_runs(ArmRecord, [self.experiment_id], query)
        return sorted(found, key=lambda record: int(record.tags.get("dinox.number", "0")))

    def arm(self, run_id: str) -> ArmRecord:
        """Read one arm anew."""
        return read_run(ArmRecord, run_id)

    def add_arms(self, arms: Sequence[Arm]) -> None:
        """Make a run for every arm that has none, and one for each of its later stages."""
        there = {record.name: record for record in self.arms()}
        for arm in arms:
            record = there.get(arm.name)
            run_id = record.run_id if record else self._new_arm(arm, len(there))
            if record is None:
                there[arm.name] = ArmRecord(run_id, "SCHEDULED", {}, {}, {})
            if len(arm.stages) > 1 and (record is None or "dinox.stages" not in record.tags):
                ids = [self._new_stage(arm, stage, run_id) for stage in list(arm.stages)[1:]]
                self.tag(run_id, {"dinox.stages": ",".join(ids)})

    def _new_arm(self, arm: Arm, number: int) -> str:
        tags = {
            "mlflow.parentRunId": self.run.run_id,
            "dinox.campaign": self.name,
            "dinox.arm": arm.name,
            "dinox.number": str(number),
            "dinox.seed": str(arm.seed),
            "dinox.overrides": json.dumps(arm.overrides),
            "dinox.entry_points": json.dumps(arm.stages),
            "dinox.on_record": "" if arm.on_record is None else str(arm.on_record).lower(),
            "dinox.note": arm.note,
            "dinox.hypothesis": arm.hypothesis,
        }
        return self._new_run(arm.name, tags)

    def _new_stage(self, arm: Arm, stage: str, run_id: str) -> str:
        tags = {"mlflow.parentRunId": run_id, "dinox.campaign": self.name, "dinox.stage": stage}
        return self._new_run(f"{arm.name}-{stage}", tags | {"dinox.arm_of": arm.name})

    def _new_run(self, name: str, tags: dict[str, str]) -> str:
        run_id = self.store.create_run(self.experiment_id, run_name=name, tags=tags).info.run_id
        self.store.update_run(run_id, status="SCHEDULED")
        return str(run_id)

    def tag(self, run_id: str, tags: dict[str, str]) -> None:
        """Set tags of an arm at once."""
        Run(self.store, run_id).set_tags(tags)

    def history(self, record: ArmRecord, metric: str) -> list[tuple[int, float]]:
        """Return the (step, value) pairs of a metric of an arm."""
        return Run(self.store, record.run_id).history(metric)

    def open_attempt(self, record: ArmRecord, tags: dict[str, str]) -> int:
        """Write down that an arm is about to be started: from here on it costs, whoever dies."""
        number, now = record.attempt + 1, time.time()
        self.store.log_metric(record.run_id, HOURS, 0.0, step=number)
        self.tag(
            record.run_id,
            tags
            | {
                "dinox.attempt": str(number),
                "dinox.attempt_started": repr(now),
                "dinox.arm_end": "",
                "dinox.job": "",
                "dinox.pending": "no",
            },
        )
        self.store.update_run(record.run_id, status="RUNNING")
        return number

    def close_attempt(self, record: ArmRecord, now: float, was_submitted: bool = True) -> None:
        """Account for an attempt of which nothing runs any more; doing it twice counts it once.

        One that was written down and then never submitted, because the engine refused it or the campaign was killed in
        between, used nothing, however long ago that was.
        """
        if not record.is_open:
            return
        used = record.hours_of_ended_attempt(now) if was_submitted or record.has_begun else 0.0
        closed = float(record.tags.get("dinox.hours_closed", "0")) + used
        self.tag(
            record.run_id,
            {
                "dinox.hours_closed": repr(closed),
                "dinox.cost_closed": repr(record.cost_before + used * record.price_per_hour),
                "dinox.attempts_closed": str(record.attempt),
            },
        )

    def end_arm(self, record: ArmRecord, status: str, why: str) -> None:
        """Close an arm's run, and whatever of its stages an ended process left open."""
        self.tag(record.run_id, {"dinox.arm_status": why})
        for run_id in record.stage_run_ids:
            if self.store.get_run(run_id).info.status == "RUNNING":
                self.store.set_terminated(run_id, status=status)


def find_parent(name: str) -> ArmRecord | None:
    """Return the parent run of a campaign, wherever in the store it lies."""
    query = f"tags.`dinox.campaign` = '{name}' and tags.`dinox.entry_point` = 'campaign'"
    parents = [found for found in search_runs(ArmRecord, None, query) if "dinox.design" in found.tags]
    return parents[-1] if parents else None
