"""What only z and only millimeters tell, learned from scratch by a recipe and read by the probes: minutes."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.command.config import find_recipe, load_recipe, read_yaml
from pipelines.phantom.volumetric import VolumeQuestion, make_volume_cohort
from pipelines.probing.aggregation import run_aggregation
from pipelines.probing.config import AggregationConfig, ProbeConfig
from pipelines.probing.malignancy import run_probe
from pipelines.tracking.run import Run
from pipelines.training.config import PretrainConfig
from pipelines.training.run import train
from tests.recorder import Recorder

pytestmark = pytest.mark.slow

FLAT = {"backbone.image_depth_px": 0, "backbone.patch_depth_px": 0, "views.depth_px": 0}


def trained(root: Path, question: VolumeQuestion, **changes: Any) -> str:
    """Pretrain by recipe `only_z`, changed, on the cohort of a question; return the backbone's name."""
    cohort = root / question
    if not cohort.exists():
        make_volume_cohort(cohort, question)
    words = {
        "cohort": str(cohort),
        "runs_dir": str(root / "runs"),
        "workers": 0,
        "eval_slices": 64,
        **changes,
    }
    overrides = [
        (key, value if isinstance(value, str) else json.dumps(value)) for key, value in words.items()
    ]
    config = load_recipe(PretrainConfig, read_yaml(find_recipe("only_z")), overrides)
    run = Run.start("pretrain")
    train(config, run)
    return f"runs:/{run.run_id}/backbone"


def test_the_order_along_z_is_told_by_cubes_and_not_by_pooled_slices(own_store: Path) -> None:
    """400 nodules of 200 patients, those of half_a tested; 500 updates from scratch in either dimension."""
    slices = trained(own_store, "only_z", **FLAT)
    cubes = trained(own_store, "only_z")
    run = Recorder(draws=False)
    cohort = str(own_store / "only_z")
    run_aggregation(AggregationConfig(cohort=cohort, backbone=slices, volumetric=cubes, size_mm=32.0), run)
    found = {name: run.metrics[f"aggregation/{name}_auroc"] for name in ("center", "mean", "volumetric")}
    assert found["volumetric"] >= 0.85
    assert max(found["center"], found["mean"]) <= 0.60
    assert run.metrics["aggregation/volumetric_over_random_ci_low"] > 0


@pytest.mark.parametrize("spacing", ["tokens", "off"])
def test_millimeters_are_told_by_who_is_told_the_spacing(spacing: str, own_store: Path) -> None:
    """400 nodules of 200 patients in equal voxels, those of half_a tested; 400 updates."""
    changes = {
        "backbone.spacing": spacing,
        "backbone.patch_depth_px": 8,
        "views.fov_mm": [11, 48],
        "views.shared_scale": False,
        "views.center_jitter_mm": 1.0,
        "slices": "all",
        "batch_size": 64,
        "steps": 400,
    }
    name = trained(own_store, "only_mm", **changes)
    run = Recorder(draws=False)
    config = ProbeConfig(
        cohort=str(own_store / "only_mm"),
        backbone=name,
        voxels="own",
        features="both",
        repeats=1,
        n_bootstrap=200,
        draws=99,
        runs_dir=str(own_store / "runs"),
    )
    run_probe(config, run)
    if spacing == "off":
        assert run.metrics["probe/auroc"] <= 0.60
    else:
        assert run.metrics["probe/auroc"] >= 0.85
        assert run.metrics["probe/others_spacing_auroc"] <= 0.60
