"""Entry point `export_png`: a cohort as 16-bit PNG slices (HU + 32768) with an index, like LIDC on the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.command.cli import main
from pipelines.tracking.names import Tag
from transforms.refusal import number_of

if TYPE_CHECKING:
    from pipelines.tracking.run import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportPngConfig:
    """Cohort to export, and folder to write."""

    cohort: str = "cohorts/phantom"
    out: str = "exports/png"
    workers: int = 0
    """Processes; 0 takes one per core."""

    def __post_init__(self) -> None:
        """Refuse a negative number of processes."""
        if self.workers < 0:
            raise ValueError(f"workers must be 0 (one per core) or more, got {self.workers}")


def run_export_png(config: ExportPngConfig, run: Run) -> None:
    """Export, and print what was written."""
    from pipelines.cohort.folder import Cohort  # heavy: not for --help
    from pipelines.cohort.png_export import export_png
    from pipelines.runtime.parallel import available_cores

    cohort, out = Cohort.open(Path(config.cohort)), Path(config.out)
    n_slices = export_png(cohort, out, config.workers or available_cores())
    run.set_tags({Tag.COHORT_SHA: cohort.sha256})
    run.log_metrics({"export/slices": n_slices})
    print(
        f"{out}: {number_of(n_slices, 'slice')} of {number_of(len(cohort.series), 'volume')}; read them with"
        f" prepare -P from=png -P source={out}"
    )


if __name__ == "__main__":
    main("export_png")
