"""Entry point `pretrain`: a cohort to a self-supervised backbone, with a verdict on whether it learned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.command.cli import main
from pipelines.training.config import PretrainConfig

if TYPE_CHECKING:
    from pipelines.tracking.run import Run

__all__ = ["PretrainConfig", "run_pretrain"]


def run_pretrain(config: PretrainConfig, run: Run) -> None:
    """Train a student and its teacher on a cohort; see `pipelines.training.trainer`."""
    from pipelines.training.run import train  # heavy: not for --help

    train(config, run)


if __name__ == "__main__":
    main("pretrain", PretrainConfig, run_pretrain, recipe="demo")
