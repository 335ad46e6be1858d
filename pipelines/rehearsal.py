"""Entry point `rehearsal`: replaces a training, to test an executor or a budget before it costs anything.

It logs a falling loss for a few steps, takes `seconds`, and ends as configured.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from pipelines.command.cli import main
from pipelines.command.config import Seed

if TYPE_CHECKING:
    from pipelines.tracking.run import Run
from transforms.refusal import Refusal


class RehearsalRefusedError(Refusal):
    """The ending `refused` was configured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RehearsalConfig:
    """What to simulate."""

    cohort: str = ""
    """Passed on by a campaign; nothing is read."""
    backbone: str = ""
    """Passed on by a campaign; nothing is read."""
    seed: Seed = 0
    steps: PositiveInt = 3
    lr: PositiveFloat = 1e-3
    seconds: NonNegativeFloat = 0.0
    """Duration of all steps together."""
    ending: Literal["finished", "refused", "crashed", "killed"] = "finished"


def run_rehearsal(config: RehearsalConfig, run: Run) -> None:
    """Log a loss that is lowest at a learning rate of 1e-3, then end as configured.

    Raises:
        RehearsalRefusedError: If the ending is `refused`.
    """
    rng = np.random.default_rng(config.seed)
    lowest = abs(np.log10(config.lr) + 3.0)
    for step in range(1, config.steps + 1):
        time.sleep(config.seconds / config.steps)
        loss = lowest + 1.0 / step + 0.01 * rng.random()
        run.log_metrics({"loss/total": float(loss), "teacher/gain": float(-loss)}, step)
    match config.ending:
        case "refused":
            raise RehearsalRefusedError("this rehearsal was configured to be refused; set ending=finished")
        case "crashed":
            raise RuntimeError("this rehearsal was configured to crash")
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main("rehearsal")
