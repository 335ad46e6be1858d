"""`python -m pipelines.report`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.command.cli import main
from pipelines.report.config import ReportConfig

if TYPE_CHECKING:
    from pipelines.tracking.run import Run


def run_report(config: ReportConfig, run: Run) -> None:
    """See `pipelines.report.run`."""
    from pipelines.report.run import run_report  # heavy: not for --help

    run_report(config, run)


if __name__ == "__main__":
    main("report", ReportConfig, run_report)
