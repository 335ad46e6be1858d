"""Entry point `probe_dense`: do patch tokens show where the nodule is?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.command.cli import main
from pipelines.probing.config import DenseConfig

if TYPE_CHECKING:
    from pipelines.tracking.run import Run

__all__ = ["DenseConfig", "run_dense"]


def run_dense(config: DenseConfig, run: Run) -> None:
    """Cross-fit the dense probe on learned tokens, on those of random weights and on pixels, in the same folds."""
    from pipelines.probing import dense  # heavy: not for --help

    dense.run_dense(config, run)


if __name__ == "__main__":
    main("probe_dense", DenseConfig, run_dense)
