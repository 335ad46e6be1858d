"""Entry point `export`: a backbone as a folder that timm and ONNX Runtime open by themselves, with its model card."""

from pipelines.backbones.config import ExportConfig as ExportConfig
from pipelines.command.cli import main

if __name__ == "__main__":
    main("export")
