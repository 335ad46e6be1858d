"""Entry point `pretrain`: a cohort in, a self-supervised backbone out, with a verdict on whether it learned."""

from __future__ import annotations

from pipelines.command.cli import main
from pipelines.runtime.distributed import relaunch_if_asked
from pipelines.tracking.run import Run
from pipelines.training.config import PretrainConfig


def run_pretrain(config: PretrainConfig, run: Run) -> None:
    """Train a student and its teacher on a cohort; see `pipelines.training.trainer`."""
    from pipelines.training.run import train

    train(config, run)


__all__ = ["PretrainConfig", "run_pretrain"]

if __name__ == "__main__":
    relaunch_if_asked("pipelines.pretrain")
    main("pretrain", PretrainConfig, run_pretrain, recipe="demo")
