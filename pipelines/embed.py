"""Entry point `embed`: embeddings of a folder of CT or of a cohort as a parquet table, one row per slice."""

from pipelines.backbones.config import EmbedConfig as EmbedConfig
from pipelines.command.cli import main

if __name__ == "__main__":
    main("embed")
