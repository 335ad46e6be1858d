"""Entry point `nodules`: the nodules of a cohort under every label rule, and the baselines that need no network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.command.cli import main
from pipelines.nodule.config import NodulesConfig

if TYPE_CHECKING:
    from pipelines.tracking.run import Run

__all__ = ["NodulesConfig", "run_nodules"]


def run_nodules(config: NodulesConfig, run: Run) -> None:
    """Label the nodules under every rule and measure the baselines; see `pipelines.nodule.overview`."""
    from pipelines.nodule.overview import run_nodules  # heavy: not for --help

    run_nodules(config, run)


if __name__ == "__main__":
    main("nodules", NodulesConfig, run_nodules)
