"""Entry point `probe_representation`: geometry of the features, beside that of random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.command.cli import main
from pipelines.probing.config import RepresentationConfig

if TYPE_CHECKING:
    from pipelines.tracking.run import Run

__all__ = ["RepresentationConfig", "run_representation"]


def run_representation(config: RepresentationConfig, run: Run) -> None:
    """Measure the backbone and random weights of its architecture on the same nodules and slices."""
    from pipelines.probing import representation  # heavy: not for --help

    representation.run_representation(config, run)


if __name__ == "__main__":
    main("probe_representation", RepresentationConfig, run_representation)
