"""Entry point `export`: a backbone as a folder that timm and ONNX Runtime open by themselves, with its model card."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.backbones.config import ExportConfig
from pipelines.command.cli import main

if TYPE_CHECKING:
    from pipelines.tracking.run import Run

__all__ = ["ExportConfig", "run_export"]


def run_export(config: ExportConfig, run: Run) -> None:
    """Write weights, ONNX and card; see `pipelines.backbones.exporting`."""
    from pipelines.backbones.exporting import run_export  # heavy: not for --help

    run_export(config, run)


if __name__ == "__main__":
    main("export", ExportConfig, run_export)
