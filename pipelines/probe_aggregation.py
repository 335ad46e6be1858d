"""Entry point `probe_aggregation`: does the third dimension add information, and which pooling keeps it?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.command.cli import main
from pipelines.probing.config import AggregationConfig

if TYPE_CHECKING:
    from pipelines.tracking.run import Run

__all__ = ["AggregationConfig", "run_aggregation"]


def run_aggregation(config: AggregationConfig, run: Run) -> None:
    """Encode slices and planes around each nodule, pool them, and test each pooling against the center slice."""
    from pipelines.probing import aggregation  # heavy: not for --help

    aggregation.run_aggregation(config, run)


if __name__ == "__main__":
    main("probe_aggregation", AggregationConfig, run_aggregation)
