"""Entry point `probe_retrieval`: does a second view of a held-out slice find the first among thousands?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.command.cli import main
from pipelines.probing.config import RetrievalConfig

if TYPE_CHECKING:
    from pipelines.tracking.run import Run

__all__ = ["RetrievalConfig", "run_retrieval"]


def run_retrieval(config: RetrievalConfig, run: Run) -> None:
    """Measure retrieval of teacher, student and random weights, by class token and mean patch token."""
    from pipelines.probing import retrieval  # heavy: not for --help

    retrieval.run_retrieval(config, run)


if __name__ == "__main__":
    main("probe_retrieval", RetrievalConfig, run_retrieval)
