"""Entry point `rehearsal`: stands in for a training, so that an executor or a budget is tried before it costs anything.

It draws a falling loss of a few steps, waits as long as it is told, and ends as it is told.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import NonNegativeInt, PositiveFloat

from pipelines.command.cli import main

if TYPE_CHECKING:
    from pipelines.tracking.run import Run
from transforms.refusal import Refusal


class RehearsalRefusedError(Refusal):
    """The ending that was asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RehearsalConfig:
    """What to act out."""

    cohort: str = ""
    """Passed on by a campaign; nothing is read."""
    backbone: str = ""
    """Passed on by a campaign; nothing is read."""
    seed: NonNegativeInt = 0
    steps: int = 3
    lr: PositiveFloat = 1e-3
    seconds: float = 0.0
    """How long all steps take together."""
    ending: Literal["finished", "refused", "crashed", "killed"] = "finished"

    def __post_init__(self) -> None:
        """Refuse plays that cannot be."""
        if self.steps < 1 or self.seconds < 0:
            raise ValueError(
                f"steps must be 1 or more and seconds 0 or more, got {self.steps} and {self.seconds}"
            )


def run_rehearsal(config: RehearsalConfig, run: Run) -> None:
    """Log a loss that is lowest at a learning rate of 1e-3, then end as asked.

    Raises:
        RehearsalRefusedError: If the ending is `refused`.
    """
    rng = np.random.default_rng(config.seed)
    floor = abs(np.log10(config.lr) + 3.0)
    for step in range(1, config.steps + 1):
        time.sleep(config.seconds / config.steps)
        loss = floor + 1.0 / step + 0.01 * rng.random()
        run.log_metrics({"loss/total": float(loss), "teacher/gain": float(-loss)}, step)
    match config.ending:
        case "refused":
            raise RehearsalRefusedError("this rehearsal was told to be refused; set ending=finished")
        case "crashed":
            raise RuntimeError("this rehearsal was told to crash")
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "finished":
            return


if __name__ == "__main__":
    main("rehearsal", RehearsalConfig, run_rehearsal)
