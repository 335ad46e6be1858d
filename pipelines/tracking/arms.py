"""The arms of campaigns as MLflow records them: what each attempt used, and the ledger of all."""

import re
from collections.abc import Sequence

import pandas as pd

from pipelines.tracking.heartbeat import HEARTBEAT_S, HOURS
from pipelines.tracking.names import Tag
from pipelines.tracking.reading import StoredRun, search_runs

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=-]{0,99}")
"""Allowed names of campaigns and arms."""
_SILENCE_S = 6 * HEARTBEAT_S
"""After so long without a heartbeat, another machine takes an attempt for dead."""


class ArmRecord(StoredRun):
    """One arm as recorded in MLflow."""

    @property
    def name(self) -> str:
        """Name of the arm."""
        return self.tags[Tag.ARM]

    @property
    def number(self) -> int:
        """Number of the arm in the order in which arms were added."""
        return int(self.tags.get(Tag.NUMBER, "0"))

    @property
    def stage_run_ids(self) -> list[str]:
        """Run ids of the stages; the first is the arm's own run."""
        return [self.run_id, *(id_ for id_ in self.tags.get(Tag.STAGES, "").split(",") if id_)]

    @property
    def attempt(self) -> int:
        """Number of the newest attempt; 0 before the first."""
        return int(self.tags.get(Tag.ATTEMPT, "0"))

    @property
    def is_open(self) -> bool:
        """Whether the newest attempt was started and not yet accounted for."""
        return self.attempt > int(self.tags.get(Tag.ATTEMPTS_CLOSED, "0"))

    @property
    def job(self) -> str:
        """The executor's handle of the newest attempt; "" when the campaign ended before it was stored."""
        return self.tags.get(Tag.JOB, "")

    @property
    def ending(self) -> str:
        """How the newest attempt ended, as it logged itself: finished, refused, interrupted, crashed; "" before."""
        return self.tags.get(Tag.ARM_END, "")

    @property
    def price_per_hour(self) -> float:
        """Price of an hour of this arm."""
        return float(self.tags.get(Tag.PRICE_PER_HOUR, "0"))

    @property
    def is_pending(self) -> bool:
        """Whether the newest attempt still waits for its machine, at no cost."""
        return self.is_open and self.tags.get(Tag.PENDING) == "yes"

    @property
    def is_done(self) -> bool:
        """Whether nothing of the arm is left to do."""
        return self.status == "FINISHED" or self.tags.get(Tag.ARM_STATUS) == "pruned"

    def hours(self, now: float) -> float:
        """Wall hours of all attempts, the running one included; that of a deleted arm up to its last sign of life."""
        closed = float(self.tags.get(Tag.HOURS_CLOSED, "0"))
        if self.is_open and self.is_deleted:
            return closed + self.hours_of_ended_attempt(now)
        return closed + self.age(now) if self.is_open else closed

    def cost(self, now: float) -> float:
        """Cost of all attempts, each at the price of its own time."""
        return self.cost_before + (self.age(now) * self.price_per_hour if self.is_open else 0.0)

    @property
    def cost_before(self) -> float:
        """Cost of the attempts that are accounted for."""
        hours = float(self.tags.get(Tag.HOURS_CLOSED, "0"))
        return float(self.tags.get(Tag.COST_CLOSED, hours * self.price_per_hour))

    @property
    def has_begun(self) -> bool:
        """Whether the newest attempt has started and written to its run."""
        return self.tags.get(Tag.BEGUN) == str(self.attempt)

    def is_alive(self, now: float) -> bool:
        """Whether the newest attempt sent a heartbeat recently."""
        last = float(self.tags.get(Tag.ATTEMPT_STARTED, "0"))
        if self.has_begun:
            last = float(self.tags[Tag.BEGUN_AT]) + 3600.0 * self.metrics.get(HOURS, 0.0)
        return self.is_open and not self.ending and now - last < _SILENCE_S

    def leased_hours(self, now: float) -> float:
        """Hours until the running attempt ends itself."""
        if not self.is_open:
            return 0.0
        return max(float(self.tags.get(Tag.LEASE_HOURS, "0")) - self.age(now), 0.0)

    def age(self, now: float) -> float:
        """Hours since the newest attempt was submitted, or since it no longer waits for its machine."""
        if self.is_pending:
            return 0.0
        started = float(self.tags.get(Tag.ATTEMPT_STARTED, str(now)))
        return max((now - started) / 3600.0, self.metrics.get(HOURS, 0.0))

    def hours_of_ended_attempt(self, now: float) -> float:
        """Wall hours of the newest attempt, once it no longer runs.

        One that ended by itself logged its hours; the time before it began is added. One that was killed may have
        run until its next heartbeat. For one that never began, all time since its submission counts.
        """
        logged, age = self.metrics.get(HOURS, 0.0), self.age(now)
        if not self.has_begun:
            return age
        before = (float(self.tags[Tag.BEGUN_AT]) - float(self.tags[Tag.ATTEMPT_STARTED])) / 3600.0
        logged += 0.0 if self.is_pending else max(before, 0.0)
        # Never more than since its submission: the clock of its machine may have been set in between.
        return min(logged if self.ending else logged + HEARTBEAT_S / 3600.0, age)


LEDGER = ("campaign", "currency", "arms", "finished", "deleted", "hours", "gpu_hours", "cost")


def ledger(arms: Sequence[ArmRecord], now: float) -> pd.DataFrame:
    """Sum the arms by campaign and currency; arms that never started are in no row.

    Returns:
        Columns `LEDGER`: `arms` were ever started, the `deleted` among them too, `finished` are done; `gpu_hours` is
        hours times GPUs of an arm, 0 where arms ran on a CPU.
    """
    started = [
        (
            arm.tags[Tag.CAMPAIGN],
            arm.tags.get(Tag.CURRENCY, ""),
            1,
            int(arm.is_done and not arm.is_deleted),
            int(arm.is_deleted),
            arm.hours(now),
            arm.hours(now) * int(arm.tags.get(Tag.GPUS, "0")),
            arm.cost(now),
        )
        for arm in arms
        if arm.attempt
    ]
    return pd.DataFrame(started, columns=LEDGER).groupby(["campaign", "currency"], as_index=False).sum()


def read_arms() -> list[ArmRecord]:
    """Read the arms of every campaign in the store; deleted ones too, whose hours were spent all the same."""
    found = search_runs(ArmRecord, f"tags.`{Tag.NUMBER}` != ''", with_deleted=True)
    return [arm for arm in found if Tag.ARM in arm.tags]
