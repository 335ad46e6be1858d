"""The process of one arm of a campaign: its stages one after another, signs of life, and an end that is on record.

A campaign starts it through an executor as `python -m pipelines.campaign.arm`, with its plan as the only word or in the
environment; nobody else does. It needs no campaign to go on: it ends by itself, at its deadline at the latest, and
leaves in MLflow what the campaign must know.
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

from pipelines.runtime.interrupts import DEADLINE_ENV, watch_deadline
from pipelines.tracking.heartbeat import HEARTBEAT_S, HOURS
from pipelines.tracking.names import METRICS, Tag
from pipelines.tracking.outbox import StoreAwayError

if TYPE_CHECKING:
    from pipelines.tracking.run import Run

# MLflow and the stages are imported late: by then the environment says where the store is.

PLAN_ENV = "DINOX_PLAN"
_AWAY_S = 15.0
ENDINGS = {0: "finished", 2: "refused", 3: "refused", 130: "interrupted", 143: "interrupted"}
"""Exit code of a stage -> Tag.ARM_END; every other code is a crash."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One entry point of an arm, with the MLflow run that it writes to."""

    entry_point: str
    run_id: str
    words: list[str]
    processes: int = 1


@dataclass(frozen=True, slots=True)
class ArmPlan:
    """All that an arm needs to know, on whatever machine it wakes up.

    Attributes:
        run_id: The arm's MLflow run.
        attempt: Which attempt at the arm this is; a newer one makes it superfluous.
        lease_s: How long it may run, counted from its own start.
        environment: Variables to set before anything else.
    """

    campaign: str
    arm: str
    run_id: str
    attempt: int
    lease_s: float
    stages: list[StagePlan]
    environment: dict[str, str]

    def to_json(self) -> str:
        """Write the plan as one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ArmPlan:
        """Read a plan."""
        tree = json.loads(text)
        return cls(**tree | {"stages": [StagePlan(**stage) for stage in tree["stages"]]})


def main(text: str) -> int:
    """Run a plan and return the exit code of the stage that ended it; 0 when all are done."""
    started = time.time()
    plan = ArmPlan.from_json(text)
    if "DINOX_JOB_FILE" in os.environ:
        # Whoever cancels this arm later may not be the process that started it.
        Path(os.environ["DINOX_JOB_FILE"]).write_text(str(os.getpid()), encoding="ascii")
    os.environ.update(plan.environment)
    os.environ[DEADLINE_ENV] = repr(started + plan.lease_s)
    signal.signal(signal.SIGTERM, _interrupt)
    watch_deadline()

    from pipelines.tracking.reading import run_status, run_tags
    from pipelines.tracking.run import Run
    from pipelines.tracking.store import client

    run = Run(client(), plan.run_id)
    tags, number = run_tags(run.run_id), str(plan.attempt)
    is_stale = tags.get(Tag.ATTEMPT) != number or run_status(run.run_id) == "FINISHED"
    if is_stale or tags.get(Tag.BEGUN) == number:
        # An engine may start a job again by itself; its lease is not renewed by that.
        print(
            f"attempt {number} at arm {plan.arm} is superfluous: it was begun before, superseded, or is done"
        )
        return 0
    run.set_tags({Tag.BEGUN: number, Tag.BEGUN_AT: repr(started)})
    done = threading.Event()

    def say_alive() -> None:
        run.log_metrics({HOURS: (time.time() - started) / 3600.0}, plan.attempt)

    def beat() -> None:
        while not done.wait(HEARTBEAT_S):
            with contextlib.suppress(StoreAwayError):
                say_alive()

    threading.Thread(target=beat, name="heartbeat", daemon=True).start()
    code = 1
    try:
        code = _run_stages(plan)
    except KeyboardInterrupt:
        code = 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # What follows must be written down.
        done.set()
        _insist(say_alive)
        _insist(lambda: _write_end(run, plan, code))
    return code


def _write_end(run: Run, plan: ArmPlan, code: int) -> None:
    if code == 0:
        run.log_metrics(_gathered(plan))
    # Last: with it the attempt is over, whatever is killed now.
    run.set_tags({Tag.ARM_END: ENDINGS.get(code, "crashed")})
    run.finish({0: "FINISHED", 130: "KILLED", 143: "KILLED"}.get(code, "FAILED"))


def _insist(write: Callable[[], None]) -> None:
    """Write when the store is back, if it is away; the deadline ends the waiting."""
    while True:
        try:
            return write()
        except StoreAwayError as error:
            print(error)
            time.sleep(_AWAY_S)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run_stages(plan: ArmPlan) -> int:
    from pipelines.campaign.stages import run_stage
    from pipelines.tracking.reading import run_tags
    from pipelines.tracking.run import Run
    from pipelines.tracking.store import client

    for number, stage in enumerate(plan.stages):
        run = Run(client(), stage.run_id)
        if run_tags(run.run_id).get(Tag.DONE) == "yes":
            continue
        run.reopen()
        run.set_tags({Tag.ERROR: ""})  # What an earlier attempt ended with.
        os.environ["MLFLOW_RUN_ID"] = stage.run_id
        if stage.processes > 1:
            code = _call([sys.executable, "-m", f"pipelines.{stage.entry_point}", *stage.words])
        else:
            code = run_stage(stage.entry_point, stage.words)
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


def _gathered(plan: ArmPlan) -> dict[str, float]:
    """What later stages measured, to be copied to the arm's own run, so that one page compares the arms."""
    from pipelines.tracking.reading import run_metrics

    gathered: dict[str, float] = {}
    for stage in plan.stages[1:]:
        gathered |= run_metrics(stage.run_id)
    own = run_metrics(plan.run_id)
    return {name: value for name, value in gathered.items() if name in METRICS and name not in own}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if sys.argv[1:] else os.environ[PLAN_ENV]))
