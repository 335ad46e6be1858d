"""Entry point `prepare`: a folder of CT to a cohort; files that cannot be read correctly are refused with a reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.command.cli import main
from pipelines.ingest.config import PrepareConfig
from pipelines.tracking.names import Tag

if TYPE_CHECKING:
    from pipelines.tracking.run import Run


def run_prepare(config: PrepareConfig, run: Run) -> None:
    """Prepare the cohort, log counts and an overview to the MLflow run, and tell the user what became of each file."""
    from pipelines.ingest.overview_page import overview  # heavy: not for --help
    from pipelines.ingest.preparation import prepare_cohort
    from pipelines.ingest.report import counts, lines

    prepared = prepare_cohort(config)
    cohort = prepared.cohort
    run.set_tags({Tag.COHORT_SHA: cohort.sha256})
    run.log_metrics(counts(prepared))
    if len(cohort.refused):
        run.log_table(cohort.refused, "tables/refused.parquet")
    print("\n".join(lines(prepared)))
    page, figure = overview(cohort)
    run.log_text(page, "overview.html")
    run.log_figure(figure, "figures/overview.png")


if __name__ == "__main__":
    main("prepare")
