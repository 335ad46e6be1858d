"""A whole 3D training through its entry point: it ends with a verdict, figures, and a backbone that reads cubes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from pipelines.backbones.folder import open_backbone
from pipelines.cohort.folder import Cohort
from pipelines.command.cli import run_entry_point
from pipelines.tracking.store import client
from pipelines.training.config import PretrainConfig
from pipelines.training.run import train

SMALL = {
    "steps": 2, "batch_size": 4, "eval_slices": 8, "eval_every": 2, "device": "cpu", "head.prototypes": 32,
    "backbone.depth": 1, "backbone.embed_dim": 16, "backbone.heads": 2, "backbone.spacing": "tokens",
}  # fmt: skip


def test_recipe_demo_3d_ends_with_a_verdict_and_a_backbone_of_cubes_that_knows_its_millimeters(
    own_store: Path, small_cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    # To draw takes seconds.
    monkeypatch.setattr(Figure, "savefig", lambda _, file, dpi: Image.new("L", (1, 1)).save(file))
    settings = SMALL | {"cohort": small_cohort.root, "runs_dir": own_store / "runs"}
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    assert run_entry_point("pretrain", PretrainConfig, train, "demo_3d", words) == 0
    (run,) = client().search_runs(["0"])
    assert (run.info.status, run.data.tags["dinox.status"]) == ("FINISHED", "too early")
    drawn = {Path(file.path).name for file in client().list_artifacts(run.info.run_id, "figures")}
    keys = ("views", "tokens_attention", "tokens_pca", "tokens_gram", "tokens_class_map")
    assert {f"{key}_step{step:06d}.png" for key in keys for step in (0, 2)} <= drawn

    loaded = open_backbone(f"runs:/{run.info.run_id}/backbone")
    backbone = loaded.backbone
    assert (backbone.image_depth_px, backbone.patch_depth_px, backbone.takes_spacing) == (16, 8, True)
    assert backbone.mean == pytest.approx([np.mean([0.485, 0.456, 0.406])])
    assert loaded.record["mm_per_slice"] == pytest.approx([24 / 16] * 2)
    low, high = loaded.record["mm_per_pixel"]
    assert 130 / 40 <= low < high <= 170 / 40
    tokens = backbone(torch.zeros(1, 1, 16, 40, 40), spacing_mm=torch.tensor([[1.5, 3.5, 3.5]]))
    assert tokens.patch_tokens.shape == (1, 2 * 4 * 4, 16)
