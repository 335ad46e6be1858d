"""The process of one arm of a campaign: it runs the stages in order, sends heartbeats and records how it ended.

A campaign starts it through an executor as `python -m pipelines.campaign.arm`, with its plan as the only argument or in
the environment; it is not meant for users. It does not depend on the campaign's process: it ends by itself, at its
deadline at the latest, and logs to MLflow what the campaign needs.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from pipelines.runtime.atomic import write_text
from pipelines.runtime.interrupts import DEADLINE_ENV, watch_deadline
from pipelines.tracking.heartbeat import HEARTBEAT_S, HOURS
from pipelines.tracking.names import METRICS, Tag
from pipelines.tracking.outbox import StoreAwayError
from transforms.refusal import Refusal

if TYPE_CHECKING:
    from pipelines.tracking.run import Run

# MLflow and the stages are imported late, because the plan's environment must name the store first.

PLAN_ENV = "DINOX_PLAN"
_AWAY_S = 15.0
ENDINGS = {0: "finished", 2: "refused", 3: "refused", 130: "interrupted", 143: "interrupted"}
"""Exit code of a stage -> Tag.ARM_END; every other code is a crash."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One entry point of an arm, with the MLflow run that it writes to."""

    entry_point: str
    run_id: str
    arguments: list[str]
    processes: int = 1


@dataclass(frozen=True, slots=True)
class ArmPlan:
    """Everything that an arm needs, on any machine.

    Attributes:
        run_id: The arm's MLflow run.
        attempt: Number of this attempt; a newer one replaces it.
        lease_s: How long it may run, counted from its own start.
        environment: Variables to set before anything else.
        environment_file: JSON file of this machine with more of them, which others may not read; "" for none.
    """

    campaign: str
    arm: str
    run_id: str
    attempt: int
    lease_s: float
    stages: list[StagePlan]
    environment: dict[str, str]
    environment_file: str = ""

    @property
    def name(self) -> str:
        """Unique name of the attempt."""
        return f"{self.run_id}-{self.attempt}"

    def to_json(self) -> str:
        """Return the plan as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ArmPlan:
        """Read a plan, also one that an older version submitted with `words` for `arguments`."""
        tree = json.loads(text)
        stages = [
            {"arguments" if key == "words" else key: value for key, value in stage.items()}
            for stage in tree["stages"]
        ]
        return cls(**tree | {"stages": [StagePlan(**stage) for stage in stages]})


def main(text: str) -> int:
    """Run a plan and return the exit code of the stage that ended it; 0 when all are done.

    Where the store refuses outside the stages, the code is that of the refusal, whose sentence is printed.
    """
    try:
        return _run_plan(ArmPlan.from_json(text), time.time(), time.monotonic())
    except Refusal as refusal:
        print(" ".join(str(refusal).split()), file=sys.stderr)
        return refusal.exit_code


def _run_plan(plan: ArmPlan, started: float, began: float) -> int:
    """Run a plan that started at `started`, as calendars count, and `began`, as `time.monotonic` does."""
    if "DINOX_JOB_FILE" in os.environ:
        # The process that cancels this arm may not be the one that started it.
        write_text(Path(os.environ["DINOX_JOB_FILE"]), str(os.getpid()))
    os.environ.update(plan.environment)
    if plan.environment_file:
        os.environ.update(json.loads(Path(plan.environment_file).read_text(encoding="utf-8")))
    os.environ[DEADLINE_ENV] = repr(began + plan.lease_s)
    signal.signal(signal.SIGTERM, _interrupt)
    watch_deadline()

    from pipelines.tracking.run import Run
    from pipelines.tracking.store import client

    run = Run(client(), plan.run_id)
    found, number = run.stored(), str(plan.attempt)
    is_stale = found.tags.get(Tag.ATTEMPT) != number or found.status == "FINISHED"
    if is_stale or found.tags.get(Tag.BEGUN) == number:
        # An engine may restart a job by itself; this does not renew its lease.
        print(
            f"attempt {number} at arm {plan.arm} is not needed: it was started before, replaced, or is done"
        )
        return 0
    run.set_tags({Tag.BEGUN: number, Tag.BEGUN_AT: repr(started)})
    done = threading.Event()

    def log_heartbeat() -> None:
        run.log_metrics({HOURS: (time.monotonic() - began) / 3600.0}, plan.attempt)

    def beat() -> None:
        while not done.wait(HEARTBEAT_S):
            with contextlib.suppress(Refusal):  # The end is logged once more, and then says why not.
                log_heartbeat()

    threading.Thread(target=beat, name="heartbeat", daemon=True).start()
    code = 1
    try:
        code = _run_stages(run, plan)
    except KeyboardInterrupt:
        code = 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # The end must be logged without interruption.
        done.set()
        _insist(log_heartbeat)
        _insist(lambda: _write_end(run, plan, code))
    return code


def _write_end(run: Run, plan: ArmPlan, code: int) -> None:
    if code == 0:
        run.log_metrics(_gathered(run, plan))
    # Last: with this tag the attempt has ended, even if the process is killed now.
    run.set_tags({Tag.ARM_END: ENDINGS.get(code, "crashed")})
    run.finish({0: "FINISHED", 130: "KILLED", 143: "KILLED"}.get(code, "FAILED"))


def _insist(write: Callable[[], None]) -> None:
    """Write to the store; wait while it cannot be reached, at most until the deadline."""
    while True:
        try:
            return write()
        except StoreAwayError as error:
            print(error)
            time.sleep(_AWAY_S)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run_stages(arm: Run, plan: ArmPlan) -> int:
    from pipelines.campaign.arms import run_stage

    for number, stage in enumerate(plan.stages):
        run = arm.other(stage.run_id)
        if run.stored().tags.get(Tag.DONE) == "yes":
            continue
        run.reopen()
        run.set_tags({Tag.ERROR: ""})  # The error of an earlier attempt.
        os.environ["MLFLOW_RUN_ID"] = stage.run_id
        if stage.processes > 1:
            code = _call([sys.executable, "-m", f"pipelines.{stage.entry_point}", *stage.arguments])
        else:
            code = run_stage(stage.entry_point, stage.arguments)
        if code:
            return code
        run.set_tags({Tag.DONE: "yes"})
        if number:
            run.finish("FINISHED")
    return 0


def _call(command: list[str]) -> int:
    process = subprocess.Popen(command)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        # To be asked again changes nothing: what was started saves, and is waited for.
        heard_by = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        process.terminate()
        code = process.wait()
        signal.signal(signal.SIGTERM, heard_by)
    return 128 - code if code < 0 else code


def _gathered(arm: Run, plan: ArmPlan) -> dict[str, float]:
    """Return the metrics of later stages, to be copied to the arm's own run, so that one page compares the arms."""
    gathered: dict[str, float] = {}
    for stage in plan.stages[1:]:
        gathered |= arm.other(stage.run_id).stored().metrics
    own = arm.stored().metrics
    return {name: value for name, value in gathered.items() if name in METRICS and name not in own}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if sys.argv[1:] else os.environ[PLAN_ENV]))
