"""Entry point `probe_malignancy`: frozen features of nodules beside baselines that need no backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.command.cli import main
from pipelines.probing.config import ProbeConfig

if TYPE_CHECKING:
    from pipelines.tracking.run import Run

__all__ = ["ProbeConfig", "run_probe"]


def run_probe(config: ProbeConfig, run: Run) -> None:
    """Fit a probe on frozen features out of fold, and print it beside its baselines."""
    from pipelines.probing import malignancy  # heavy: not for --help

    malignancy.run_probe(config, run)


if __name__ == "__main__":
    main("probe_malignancy", ProbeConfig, run_probe)
