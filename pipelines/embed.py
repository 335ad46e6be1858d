"""Entry point `embed`: embeddings of a folder of CT or of a cohort as a parquet table, one row per slice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.backbones.config import EmbedConfig
from pipelines.command.cli import main

if TYPE_CHECKING:
    from pipelines.tracking.run import Run

__all__ = ["EmbedConfig", "run_embed"]


def run_embed(config: EmbedConfig, run: Run) -> None:
    """Embed every slice that can be read correctly; see `pipelines.backbones.embedding`."""
    from pipelines.backbones.embedding import run_embed  # heavy: not for --help

    run_embed(config, run)


if __name__ == "__main__":
    main("embed", EmbedConfig, run_embed)
