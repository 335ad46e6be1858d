"""Make backbones of what a lease brought back: `python -m benchmarks.gpu.collect FOLDER --out runs/from_gpu`.

Each becomes a folder that every probe takes as `backbone=FOLDER`.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from models.backbone import build_backbone
from pipelines.backbones.folder import save_backbone
from pipelines.command.config import load_recipe
from pipelines.training.config import PretrainConfig


def collect(source: Path, target: Path) -> list[Path]:
    """Join the parts of every network in a folder; weights are float32 again, with bfloat16's precision."""
    made = []
    for file in sorted(source.glob("*.json")):
        tree = json.loads(file.read_text(encoding="utf-8"))
        config = load_recipe(PretrainConfig, tree["config"])
        backbone = build_backbone(config.backbone)
        state = {key: value for part in tree["parts"] for key, value in load_file(source / part).items()}
        wide = {key: one.float() if one.dtype == torch.bfloat16 else one for key, one in state.items()}
        backbone.vit.load_state_dict(wide)
        made.append(target / file.stem)
        save_backbone(made[-1], backbone, config.backbone, tree["record"] | {"network": "backbone"})
    return made


def main(words: list[str]) -> int:
    """Collect a folder and name what was made."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.collect", description=__doc__)
    parser.add_argument("folder", type=Path, help="what --train wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the backbones")
    options = parser.parse_args(words)
    for path in collect(options.folder, options.out):
        print(f"mlflow run . -e probe_malignancy -P backbone={path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
