"""Features of crops: `backbones.features.encode` against the bare backbone on batches that are ready for it."""

import numpy as np
import torch

from benchmarks.timing import ROUNDS, Row, median_cpu_seconds, one_thread
from models.backbone import build_backbone
from models.config import BackboneConfig
from pipelines.backbones.features import encode, network_input

CROPS, BATCH, SIZE_PX = 8, 4, 224


def measure(tiny: bool = False) -> list[Row]:
    """Encode the same crops both ways: ours begins at HU in memory and ends at an array of features."""
    size_px, crops = (28, BATCH) if tiny else (SIZE_PX, CROPS)
    crops_hu = np.random.default_rng(0).uniform(-1000, 400, (crops, 3, size_px, size_px)).astype(np.float32)
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig(arch="custom" if tiny else "vit_small", image_px=size_px)).eval()
    ready = [
        network_input(torch.from_numpy(part), backbone, "lung") for part in np.split(crops_hu, crops // BATCH)
    ]

    @torch.no_grad()
    def bare() -> None:
        for batch in ready:
            backbone(batch)

    def ours() -> None:
        encode(backbone, crops_hu, 0.22, "lung", "both", torch.device("cpu"), batch_size=BATCH)

    with one_thread():
        seconds = median_cpu_seconds({"bare": bare, "ours": ours}, rounds=1 if tiny else ROUNDS)
    return [
        Row(
            "features of crops of 224 px, ViT-S/14, one core",
            seconds["bare"] / seconds["ours"],
            ">= 0.9",
            f"times the rate of the bare backbone ({crops / seconds['ours']:.1f} crops/s)",
        )
    ]
