"""Names and defaults of the probes' options, written down apart from the code: recipes and campaigns rest on them."""

import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest

from pipelines.command.help import describe
from pipelines.probing import config as configurations
from pipelines.probing.config import FoldedProbe, ProbeConfig

EVERY = {"cohort": "cohorts/phantom", "backbone": "", "seed": 0, "device": "auto"}
NODULES = EVERY | {"rule": "consensus", "size_mm": 50.0}
FOLDS = NODULES | {"split": "folds", "folds": 5, "repeats": 1, "leak": "avoid"}
OPTIONS: dict[str, dict[str, Any]] = {
    "ProbeConfig": FOLDS
    | {"repeats": 5, "diagnosis": "", "input": "crop", "image_px": 0, "window": "lung", "runs_dir": "runs"}
    | {"features": "class_token", "head": "logistic", "n_bootstrap": 2000, "draws": 9999, "baselines": "all"}
    | {"target": "", "test_cohort": "", "shots": "", "encoder": "", "match_mm": 3.0, "voxels": "resampled"},
    "RetrievalConfig": EVERY
    | {"slices": 4096, "adjacent_slices": 2, "checkpoints": "last", "leak": "avoid", "views": ""},
    "RepresentationConfig": NODULES
    | {"window": "lung", "other_window": "wide", "features": "class_token", "slices": 512},
    "DenseConfig": FOLDS | {"window": "lung", "jitter_mm": 12.0},
    "AggregationConfig": FOLDS
    | {"window": "lung", "features": "class_token", "z_range_mm": 12.0, "volumetric": ""},
    "SupervisedConfig": FOLDS
    | {"networks": "both", "weights": "", "size_mm": 40.0, "image_px": 32, "cube_px": 16, "lr": 3e-4}
    | {
        "batch_size": 32,
        "max_epochs": 0,
        "patience": 5,
        "n_bootstrap": 2000,
        "runs_dir": "runs",
        "resume": "",
    },
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_and_their_defaults_are_those_on_record(name: str) -> None:
    config = getattr(configurations, name)()
    assert {field.name: getattr(config, field.name) for field in fields(config)} == OPTIONS[name]


@pytest.mark.parametrize("name", [name for name, options in OPTIONS.items() if "folds" in options])
@pytest.mark.parametrize("wrong", [{"folds": 1}, {"repeats": 0}])
def test_every_probe_with_folds_refuses_what_makes_none(name: str, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="folds must be 2 or more and repeats 1 or more"):
        getattr(configurations, name)(**wrong)


def test_an_option_stated_again_keeps_the_meaning_that_its_base_gave_it() -> None:
    lines = describe("probe_malignancy", ProbeConfig()).splitlines()
    assert FoldedProbe().repeats == 1
    said = lines[lines.index("  --repeats INT = 5") + 1]
    assert said == "      How often the patients are shuffled again and split into folds."


def test_a_probe_is_configured_without_anything_heavy() -> None:
    code = (
        "import sys\n"
        "import pipelines.probing.config\n"
        "print({'numpy', 'pandas', 'torch', 'monai', 'sklearn', 'mlflow', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
