"""Autonomous research inside a campaign: proposals become arms, refused ones are logged with their reasons.

Proposed arms are ordinary arms: same stages, same executor, same budget. A proposal can only change keys of the search
space in the campaign's file. A proposer runs in its own thread; meanwhile the campaign continues to watch its arms.
"""

import json
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from pipelines.campaign.arms import Arm, arm_of, check_arguments, stage_arguments
from pipelines.campaign.executors.base import Executor
from pipelines.campaign.proposers.base import Outcome, ProposalError, Proposer, inside_space
from pipelines.campaign.proposers.llm import LlmProposer
from pipelines.campaign.proposers.optuna import OptunaProposer
from pipelines.campaign.records import CampaignRecord
from pipelines.campaign.spec import CampaignSpec
from pipelines.command.config import RecipeError
from pipelines.tracking.arms import ArmRecord
from pipelines.tracking.names import Tag
from pipelines.tracking.old_names import current_metric

T = TypeVar("T")

MOST_REFUSALS = 5
"""After so many refusals in a row the proposer is not asked again in this call."""
LOG = "research.md"
_PRUNE_EVERY_S = 10.0


def in_background(task: Callable[[], T]) -> Future[T]:
    """Start a task in a thread; unlike an executor's, a campaign that ends does not wait for it."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(task())
        except BaseException as error:  # Raised again where the result is read.
            future.set_exception(error)

    threading.Thread(target=work, name="proposer", daemon=True).start()
    return future


def ask(spec: CampaignSpec, proposer: Proposer, outcomes: Sequence[Outcome], number: int) -> Arm | None:
    """Return the arm that a proposer suggests; None when nothing more is worth trying.

    Raises:
        ProposalError: If the answer lies outside of the search space or repeats an arm.
        RecipeError: If an entry point refuses it.
    """
    found = proposer.propose(outcomes)
    if found is None:
        return None
    overrides = inside_space(spec.proposer, found.overrides)
    twin = next((outcome.name for outcome in outcomes if dict(outcome.overrides) == overrides), None)
    if twin:
        raise ProposalError(f"it repeats arm {twin}")
    arm = Arm(
        name=f"{spec.proposer.kind}-{number:03d}",
        seed=spec.seeds[0],
        overrides=overrides,
        stages=spec.stages,
        hypothesis=found.hypothesis or "none given",
    )
    check_arguments([(arm.name, *stage) for stage in stage_arguments(spec, arm, ["0"])])
    return arm


class Research:
    """Asks the proposer of a campaign for arms, and logs the outcome of each."""

    def __init__(self, spec: CampaignSpec, record: CampaignRecord) -> None:
        """Open the proposer, if the campaign has one."""
        self.spec, self.record = spec, record
        kind = {"none": None, "optuna": OptunaProposer, "llm": LlmProposer}[spec.proposer.kind]
        self.proposer: Proposer | None = kind(spec) if kind else None
        self.refusals: list[str] = []
        self._in_a_row = 0
        self._is_done = self.proposer is None
        self._request: Future[Arm | None] | None = None
        self._pruned_at = -math.inf
        self._curves: dict[str, list[tuple[int, float]]] = {}

    def may_add(self, records: Sequence[ArmRecord]) -> bool:
        """Whether arms may be added: the proposer has not stopped, and the limits of the file are not reached."""
        added = [*records, *self.record.gone]  # A deleted arm counts: to delete some gives no new ones.
        is_full = len(_proposed(added)) >= self.spec.proposer.max_arms or len(added) >= self.spec.max_arms
        return not self._is_done and not is_full

    def propose(self, records: Sequence[ArmRecord]) -> list[ArmRecord]:
        """Return the arm proposed since the last call, now recorded in MLflow, or start the next request."""
        if self.proposer is None or not self.may_add(records):
            return []
        request = self._request
        if request is None:
            outcomes = [self._outcome(record) for record in _proposed(records)]
            number = len(_proposed([*records, *self.record.gone]))  # A deleted arm's name is not given again.
            self._request = in_background(partial(ask, self.spec, self.proposer, outcomes, number))
        if request is None or not request.done():
            return []
        self._request = None
        try:
            arm = request.result()
        except (ProposalError, RecipeError) as refusal:
            self.refusals.append(str(refusal))
            self._in_a_row += 1
            self._is_done = self._in_a_row >= MOST_REFUSALS
            print(f"proposal refused: {refusal}")
            return []
        self._in_a_row = 0
        if arm is None:
            self._is_done = True
            return []
        self.record.add_arms([arm])
        return [record for record in self.record.arms() if record.name == arm.name]

    def prune(self, records: Sequence[ArmRecord], executor: Executor) -> None:
        """Stop running arms that the proposer gives up; asked only from time to time, because curves are long."""
        is_due = time.monotonic() - self._pruned_at > _PRUNE_EVERY_S
        if self.proposer is None or not self.spec.proposer.prune_metric or not is_due:
            return
        self._pruned_at = time.monotonic()
        proposed = _proposed(records)
        names = set(self.proposer.to_prune([self._outcome(record) for record in proposed]))
        for record in proposed:
            if record.name in names and record.is_open:
                self.record.run_of(record).set_tags({Tag.PRUNED: "yes"})
                executor.cancel(record.job)

    def _outcome(self, record: ArmRecord) -> Outcome:
        state = "running"
        if record.is_done:
            state = "pruned" if record.tags.get(Tag.ARM_STATUS) == "pruned" else "finished"
        elif not record.is_open and record.attempt:
            state = "failed"
        curve = self._curve(record) if self.spec.proposer.prune_metric in record.metrics else []
        endpoint = current_metric(self.spec.endpoint.metric)
        value = record.metrics.get(endpoint) if state in ("finished", "pruned") else None
        return Outcome(record.name, arm_of(record).overrides, arm_of(record).hypothesis, state, value, curve)

    def _curve(self, record: ArmRecord) -> list[tuple[int, float]]:
        if record.is_open or record.run_id not in self._curves:
            self._curves[record.run_id] = self.record.run_of(record).history(self.spec.proposer.prune_metric)
        return self._curves[record.run_id]

    def write_log(self, records: Sequence[ArmRecord]) -> None:
        """Log hypothesis, arm and outcome of each step, and every refusal, as a readable page."""
        if self.proposer is None:
            return
        lines = [f"# Research log of campaign {self.spec.name}", "", f"Question: {self.spec.question}", ""]
        for record in _proposed(records):
            outcome = self._outcome(record)
            value = "no value" if outcome.value is None else f"{outcome.value:.5g}"
            lines.append(f"- **{record.name}** {json.dumps(dict(outcome.overrides))}")
            lines.append(f"  - hypothesis: {outcome.hypothesis}")
            lines.append(f"  - outcome: {outcome.state}, {self.spec.endpoint.metric} {value}")
        lines += ["", "Refused:", *(f"- {reason}" for reason in self.refusals or ["none"])]
        self.record.run.log_text("\n".join(lines) + "\n", LOG)
        self.record.run.set_tags({Tag.REFUSED_PROPOSALS: str(len(self.refusals))})


def _proposed(records: Sequence[ArmRecord]) -> list[ArmRecord]:
    return [record for record in records if arm_of(record).hypothesis]
