"""Entry point `probe_supervised`: networks trained on the labels themselves, in the folds of the other probes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.command.cli import main
from pipelines.probing.config import SupervisedConfig

if TYPE_CHECKING:
    from pipelines.tracking.run import Run

__all__ = ["SupervisedConfig", "run_supervised"]


def run_supervised(config: SupervisedConfig, run: Run) -> None:
    """Cross-fit the networks and print them beside diameter and pixels on the same nodules and folds."""
    from pipelines.probing import supervised  # heavy: not for --help

    supervised.run_supervised(config, run)


if __name__ == "__main__":
    main("probe_supervised", SupervisedConfig, run_supervised)
