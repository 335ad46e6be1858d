"""Autonomous research inside a campaign: proposals become arms, refusals keep their reasons, people can read it all.

Proposed arms are ordinary arms: same stages, same executor, same budget. A proposal changes keys of the space that the
campaign's file fixes and nothing else.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence

from pipelines.campaign_arms import Arm, stage_words
from pipelines.campaign_records import ArmRecord, CampaignRecord
from pipelines.campaign_spec import CampaignSpec
from pipelines.config import RecipeError
from pipelines.executors import Executor
from pipelines.proposers import Outcome, ProposalError, Proposer, inside_space, open_proposer
from pipelines.stages import check_words

MOST_REFUSALS = 5
"""In a row: then the proposer is not asked again in this call."""
LOG = "research.md"
_PRUNE_EVERY_S = 10.0


class Research:
    """Asks the proposer of a campaign for arms, and writes down what came of each."""

    def __init__(self, spec: CampaignSpec, record: CampaignRecord) -> None:
        """Open the proposer, if the campaign has one."""
        self.spec, self.record = spec, record
        self.proposer: Proposer | None = open_proposer(spec) if spec.proposer.kind != "none" else None
        self.refusals: list[str] = []
        self.refused_in_a_row = 0
        self._is_done = False
        self._pruned_at = -math.inf
        self._curves: dict[str, list[tuple[int, float]]] = {}

    def propose(self, records: Sequence[ArmRecord], slots: int) -> list[ArmRecord]:
        """Add one arm if there is room for it in the file's count; the next comes when this one is on record."""
        proposed = [record for record in records if record.arm.hypothesis]
        is_full = len(proposed) >= self.spec.proposer.max_arms or len(records) >= self.spec.max_arms
        if self.proposer is None or slots < 1 or is_full or self._is_done:
            return []
        try:
            found = self.proposer.propose([self._outcome(record) for record in proposed])
            if found is None:
                self._is_done = True
                return []
            overrides = inside_space(self.spec.proposer, found.overrides)
            arm = Arm(
                name=f"{self.spec.proposer.kind}-{len(proposed):03d}",
                seed=self.spec.seeds[0],
                overrides=overrides,
                stages=self.spec.stages,
                hypothesis=found.hypothesis or "none given",
            )
            self._check(arm, records)
        except (ProposalError, RecipeError) as refusal:
            self._refuse(str(refusal))
            return []
        self.refused_in_a_row = 0
        self.record.add_arms([arm])
        return [record for record in self.record.arms() if record.name == arm.name]

    def _check(self, arm: Arm, records: Sequence[ArmRecord]) -> None:
        twin = next((record.name for record in records if record.arm.overrides == arm.overrides), None)
        if twin:
            raise ProposalError(f"it is arm {twin} again")
        lines = [(arm.name, entry, words) for entry, words in stage_words(self.spec, arm, ["0"])]
        check_words(lines)

    def _refuse(self, reason: str) -> None:
        self.refusals.append(reason)
        self.refused_in_a_row += 1
        self._is_done = self.refused_in_a_row >= MOST_REFUSALS
        print(f"proposal refused: {reason}")

    def prune(self, records: Sequence[ArmRecord], executor: Executor) -> None:
        """End running arms that the proposer gives up; asked now and then only, because curves are long."""
        is_due = time.monotonic() - self._pruned_at > _PRUNE_EVERY_S
        if self.proposer is None or not self.spec.proposer.prune_metric or not is_due:
            return
        self._pruned_at = time.monotonic()
        proposed = [record for record in records if record.arm.hypothesis]
        names = set(self.proposer.to_prune([self._outcome(record) for record in proposed]))
        for record in proposed:
            if record.name in names and record.is_open:
                self.record.tag(record.run_id, {"dinox.pruned": "yes"})
                executor.cancel(record.job)

    def _outcome(self, record: ArmRecord) -> Outcome:
        state = "running"
        if record.is_done:
            state = "pruned" if record.tags.get("dinox.arm_status") == "pruned" else "finished"
        elif not record.is_open and record.attempt:
            state = "failed"
        curve = self._curve(record) if self.spec.proposer.prune_metric in record.metrics else []
        value = record.metrics.get(self.spec.endpoint.metric) if state in ("finished", "pruned") else None
        return Outcome(record.name, record.arm.overrides, record.arm.hypothesis, state, value, curve)

    def _curve(self, record: ArmRecord) -> list[tuple[int, float]]:
        if record.is_open or record.run_id not in self._curves:
            self._curves[record.run_id] = self.record.history(record, self.spec.proposer.prune_metric)
        return self._curves[record.run_id]

    def write_log(self, records: Sequence[ArmRecord]) -> None:
        """Write hypothesis, arm and outcome of each step, and every refusal, for people to read."""
        if self.proposer is None:
            return
        lines = [f"# Research log of campaign {self.spec.name}", "", f"Question: {self.spec.question}", ""]
        for record in records:
            if record.arm.hypothesis:
                outcome = self._outcome(record)
                value = "no value" if outcome.value is None else f"{outcome.value:.5g}"
                lines.append(f"- **{record.name}** {json.dumps(dict(outcome.overrides))}")
                lines.append(f"  - hypothesis: {outcome.hypothesis}")
                lines.append(f"  - outcome: {outcome.state}, {self.spec.endpoint.metric} {value}")
        lines += ["", "Refused:", *(f"- {reason}" for reason in self.refusals or ["none"])]
        self.record.run.log_text("\n".join(lines) + "\n", LOG)
        self.record.run.set_tags({"dinox.refused_proposals": str(len(self.refusals))})
