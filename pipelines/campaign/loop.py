"""The loop of a campaign: poll running arms, account for ended ones, start what fits the budget, print the table."""

import math
import platform
import time
from collections import Counter
from collections.abc import Sequence

from pipelines.campaign.arm import ArmPlan, StagePlan
from pipelines.campaign.arms import arm_of, stage_arguments
from pipelines.campaign.budget import Usage, is_arm_spent, is_spent, lease_hours, spent
from pipelines.campaign.executors.base import Executor
from pipelines.campaign.plan import budget_text
from pipelines.campaign.records import CampaignRecord, Closed
from pipelines.campaign.research import Research
from pipelines.campaign.spec import CampaignError, CampaignSpec
from pipelines.campaign.table import LiveTable, line, render, saved_hours
from pipelines.runtime.interrupts import Interrupted, StopWatch
from pipelines.tracking.arms import ArmRecord
from pipelines.tracking.names import Tag
from pipelines.tracking.outbox import StoreAwayError
from pipelines.tracking.reading import compare_page, how_served, read_run
from pipelines.tracking.store import tracking_uri

_STEPS_EVERY_S = 10.0
_AWAY_S = 15.0
_PAUSES = 4.0
"""Pause after a look at the store, in times of what the look took (up to `_LONGEST_PAUSE_S`): hundreds of runs are long
to read, and the arms need the processor."""
_LONGEST_PAUSE_S = 10.0


class CampaignLoop:
    """One call of a campaign; its state is read from and written to MLflow."""

    def __init__(
        self, spec: CampaignSpec, record: CampaignRecord, executor: Executor, executor_name: str
    ) -> None:
        """Start from the records in MLflow; nothing else is kept between calls."""
        self.spec, self.record, self.executor, self.executor_name = spec, record, executor, executor_name
        self.research = Research(spec, record)
        self.deaths: Counter[str] = Counter()
        self.given_up: set[str] = set()
        self.canceled: set[str] = set()
        self.is_over_budget = False
        self.pause_s = executor.poll_s
        self.table = LiveTable()
        self.steps: dict[str, int] = {}
        self._steps_at = -math.inf
        self._last_read: set[tuple[str, int]] = set()

    def go(self) -> None:
        """Run until every arm is finished or given up, or the budget is spent.

        Raises:
            CampaignError: If some arms are not finished at the end.
            Interrupted: When asked to stop.
        """
        stop, is_over = StopWatch(), False
        try:
            self.record.run.reopen()
            self.record.run.set_tags({Tag.ERROR: ""})  # The error of an earlier call.
            while not (is_over := self._is_over(stop)):
                time.sleep(self.pause_s)
        finally:
            stop.close()
            if not is_over:  # The caller reports the error; a continued parent run is closed here.
                self.record.run.finish("FAILED")
        self._end(stop.exit_code)

    def _is_over(self, stop: StopWatch) -> bool:
        """Poll, account, start; return whether nothing runs and nothing is left to start."""
        started = time.monotonic()
        try:
            is_over = self._turn(stop)
            took = time.monotonic() - started
            self.pause_s = max(self.executor.poll_s, min(_PAUSES * took, _LONGEST_PAUSE_S))
            return is_over
        except StoreAwayError as error:
            # Arms continue within their leases; their records are read when the store answers again.
            print(f"{error}; trying again in {_AWAY_S:.0f} s")
            time.sleep(_AWAY_S)
            return False

    def _turn(self, stop: StopWatch) -> bool:
        records = [self._seen(record) if record.is_open else record for record in self.record.arms()]
        gone = [record for record in self.record.gone if self._is_running_though_gone(record)]
        self.research.prune(records, self.executor)
        usages = self._usages(records)
        running = [record for record in records if record.is_open] + gone
        self.is_over_budget |= is_spent(self.spec.budget, usages, self.pause_s)
        if stop.exit_code is not None or self.is_over_budget:
            for record in running:
                self.canceled.add(record.run_id)
                self.executor.cancel(record.job)
            is_over = not running
        else:
            is_started = self._start(records, usages)
            is_over = not is_started and not running and not self.research.may_add(records)
        if not is_over:
            self._show(records)
        return is_over

    # Looking

    def _seen(self, record: ArmRecord) -> ArmRecord:
        handle = record.job or self.executor.find(f"{record.run_id}-{record.attempt}")
        state = self.executor.poll(handle) if handle else "ended"
        if state == "ended":
            # Read again: with the last values that it wrote before it ended.
            record = read_run(ArmRecord, record.run_id)
            self.record.close_attempt(record, self.record.now(), was_submitted=bool(handle))
            self._judge(record)
            return read_run(ArmRecord, record.run_id)
        news = {Tag.JOB: handle, Tag.PENDING: "yes" if state == "pending" else "no"}
        if news.items() <= record.tags.items():
            return record
        if state == "running" and record.is_pending:
            news[Tag.ATTEMPT_STARTED] = repr(self.record.now())
        self.record.run_of(record).set_tags(news)
        return read_run(ArmRecord, record.run_id)

    def _is_running_though_gone(self, record: ArmRecord) -> bool:
        """End an arm that was deleted while it ran, and account for it; return whether it still runs."""
        if not self.record.is_open_and_gone(record):
            return False
        handle = record.job or self.executor.find(f"{record.run_id}-{record.attempt}")
        if handle and self.executor.poll(handle) != "ended":
            self.canceled.add(record.run_id)
            self.executor.cancel(handle)
            return True
        self.record.close_gone(record, self.record.now(), was_seen=record.run_id in self.canceled)
        return False

    def _judge(self, record: ArmRecord) -> None:
        """Record the status of an arm after an attempt has ended."""
        if record.ending == "finished" or record.status == "FINISHED":
            self.record.end_arm(record, "FINISHED", "finished")
        elif record.tags.get(Tag.PRUNED) == "yes":
            self.record.end_arm(record, "KILLED", "pruned")
        elif record.ending == "interrupted" or record.run_id in self.canceled:
            self.record.end_arm(record, "KILLED", "interrupted")
        elif record.ending == "refused":
            self.given_up.add(record.run_id)
            self.record.end_arm(record, "FAILED", "refused")
        else:
            self.deaths[record.run_id] += 1
            if self.deaths[record.run_id] > self.spec.stop.retries:
                self.given_up.add(record.run_id)
            self.record.end_arm(record, "FAILED", "died")

    def _usages(self, records: Sequence[ArmRecord]) -> list[Usage]:
        now = self.record.now()
        usages = [
            Usage(
                hours=record.hours(now),
                price_per_hour=record.price_per_hour,
                leased_hours=record.leased_hours(now),
                is_running=record.is_open and not record.is_pending,
                surcharge=record.cost(now) - record.hours(now) * record.price_per_hour,
            )
            for record in records
        ]
        return usages + [Usage(kept.hours, 0.0, surcharge=kept.cost) for kept in self._gone(now)]

    def _gone(self, now: float) -> list[Closed]:
        """What arms spent that were deleted since: it is spent all the same."""
        return [
            *(self.record.spent_by_gone(record, now) for record in self.record.gone),
            *self.record.purged,
        ]

    # Starting

    def _start(self, records: Sequence[ArmRecord], usages: list[Usage]) -> bool:
        """Start as many arms as slots and budget allow; return whether any was started."""
        slots = self.executor.parallel - sum(record.is_open for record in records)
        waiting = [r for r in records if not r.is_open and not r.is_done and r.run_id not in self.given_up]
        if len(waiting) < slots:
            waiting += self.research.propose(records)
        is_any = bool(waiting) and not self.executor.parallel  # Another campaign has the devices: look again.
        while slots > 0 and waiting and not self.is_over_budget:
            record = waiting.pop(0)
            used = record.hours(self.record.now())
            share = min(slots, len(waiting) + 1)
            hours = lease_hours(self.spec.budget, usages, self.spec.price, used, share)
            if hours:
                self._submit(record, hours)
                usages.append(Usage(0.0, self.spec.price, hours, is_running=True))
                slots, is_any = slots - 1, True
            elif is_arm_spent(self.spec.budget, used):
                self.given_up.add(record.run_id)
                self.record.end_arm(record, "KILLED", "arm budget")
            elif not any(usage.leased_hours for usage in usages):
                self.is_over_budget = True
        return is_any

    def _submit(self, record: ArmRecord, hours: float) -> None:
        spec, arm = self.spec, arm_of(record)
        number = self.record.open_attempt(
            record,
            {
                Tag.EXECUTOR: self.executor_name,
                Tag.HOST: platform.node() if self.executor_name == "local" else "",
                Tag.PRICE_PER_HOUR: repr(spec.price),
                Tag.CURRENCY: spec.currency,
                Tag.GPUS: str(spec.resources.gpus),
                Tag.LEASE_HOURS: repr(hours),
                Tag.ARM_STATUS: "",
            },
        )
        lines_ = zip(stage_arguments(spec, arm, record.stage_run_ids), record.stage_run_ids, strict=True)
        stages = [
            StagePlan(entry_point, run_id, arguments, _processes(arguments))
            for (entry_point, arguments), run_id in lines_
        ]
        environment = {
            "MLFLOW_TRACKING_URI": tracking_uri(),
            "MLFLOW_EXPERIMENT_ID": self.record.experiment_id,
        }
        plan = ArmPlan(spec.name, arm.name, record.run_id, number, hours * 3600.0, stages, environment)
        self.record.run_of(record).set_tags({Tag.JOB: self.executor.submit(plan)})

    # Showing

    def _show(self, records: Sequence[ArmRecord], is_end: bool = False) -> None:
        self._read_steps(records)
        rows = [line(record, self.steps.get(record.run_id), self.record.now()) for record in records]
        text = render(rows, self._total(records))
        if self.table.show(text, repr([row[1:3] for row in rows]), is_end):
            self.record.run.log_text(text, "campaign.md")

    def _read_steps(self, records: Sequence[ArmRecord]) -> None:
        """Read the last step of running arms every few seconds, and once of each that ended: curves are long."""
        is_due = time.monotonic() - self._steps_at > _STEPS_EVERY_S
        self._steps_at = time.monotonic() if is_due else self._steps_at
        for record in records:
            key = record.run_id, record.attempt
            if "loss/total" in record.metrics and (is_due if record.is_open else key not in self._last_read):
                self.steps[record.run_id] = self.record.run_of(record).history("loss/total")[-1][0]
                self._last_read |= set() if record.is_open else {key}

    def _total(self, records: Sequence[ArmRecord]) -> str:
        used, now = spent(self._usages(records)), self.record.now()
        saved = sum(saved_hours(record, self.steps.get(record.run_id), now) for record in records)
        counts = Counter(record.tags.get(Tag.ARM_STATUS) or record.status.lower() for record in records)
        return (
            f"{', '.join(f'{count} {status}' for status, count in counts.items())}; spent {used.hours:.3f} h,"
            f" {used.cost:.4f} {self.spec.currency} of {budget_text(self.spec)}"
            + (f"; saved {saved:.3f} h by ending hopeless arms" if saved else "")
            + self._gone_said(now)
        )

    def _gone_said(self, now: float) -> str:
        gone = self._gone(now)
        if not gone:
            return ""
        names = ", ".join(sorted({record.name for record in self.record.gone})) or "unknown arms"
        hours = sum(kept.hours for kept in gone)
        return f"; {hours:.3f} h of it by {len(gone)} deleted runs ({names}), which are spent all the same"

    # Ending

    def _end(self, code: int | None) -> None:
        records = self.record.arms()
        self._show(records, is_end=True)
        self.research.write_log(records)
        missing = [record for record in records if not record.is_done]
        status = "complete" if not missing else "budget" if self.is_over_budget else "incomplete"
        if code is not None:
            status = "interrupted"
        parent = self.record.run
        parent.set_tags({Tag.STATUS: status})
        page = compare_page(
            [record.run_id for record in records if record.attempt], self.record.experiment_id
        )
        print("Compare the arms in the browser:")
        if command := how_served():
            print(f"{command}\nthen open")
        print(page)
        if status == "complete":
            if not parent.is_wrapped:
                parent.finish("FINISHED")
            return
        parent.finish("KILLED" if status == "interrupted" else "FAILED")
        done = f"{len(records) - len(missing)} of {len(records)} arms are done"
        if code is not None:
            raise Interrupted(
                code, f"campaign {self.spec.name} was interrupted: {done}; the same command continues it"
            )
        if self.is_over_budget:
            raise CampaignError(
                f"campaign {self.spec.name} is at its budget of {budget_text(self.spec)}: {done}; raise it in the"
                " campaign's file, then the same command continues it"
            )
        first = missing[0]
        if first.tags.get(Tag.ARM_STATUS) == "died":
            print(f"\nThe end of the output of {first.name}:\n{self.executor.logs(first.job)}")
        raise CampaignError(
            f"campaign {self.spec.name}: {done}; {first.name} {first.tags.get(Tag.ARM_STATUS)}:"
            f" {first.tags.get(Tag.ERROR) or 'it was killed'}"
        )


def _processes(arguments: Sequence[str]) -> int:
    return int(arguments[arguments.index("--nproc") + 1]) if "--nproc" in arguments else 1
