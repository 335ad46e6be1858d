"""Whom a probe may test follows from what is on record of the backbone."""

import numpy as np
import pytest
import torch

from models.backbone import build_backbone
from models.config import BackboneConfig
from pipelines.backbones.folder import LoadedBackbone
from pipelines.backbones.warm_start import first_weights
from pipelines.probing.readers import patients_to_test, unseen_patients
from probes.splits import is_held_out

PATIENTS = np.array([f"patient-{number}" for number in range(40)])
HALF = {str(patient) for patient in PATIENTS if is_held_out(str(patient), "half_a")}


def loaded(source: str = "folder", **record: object) -> LoadedBackbone:
    config = BackboneConfig(arch="custom", depth=1, embed_dim=16, heads=2, image_px=28)
    with torch.device("meta"):
        backbone = build_backbone(config)
    return LoadedBackbone(backbone, config, source, dict(record), "", {})


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        (loaded(holdout="half_a", leak=""), HALF),
        # A leak on record weighs more than the share that was to be left out: nobody counts as unseen.
        (loaded(holdout="half_a", leak="no_holdout"), set()),
        (loaded(holdout=0.0, leak=""), set()),
        (loaded(recipe="somebody's"), None),
        (loaded("timm:vit_small_patch14_dinov2"), {str(patient) for patient in PATIENTS}),
    ],
)
def test_unseen_patients_are_those_that_the_record_vouches_for(
    backbone: LoadedBackbone, expected: set[str] | None
) -> None:
    assert 0 < len(HALF) < len(PATIENTS)
    assert unseen_patients(backbone, PATIENTS) == expected


@pytest.mark.parametrize(
    ("backbone", "leak"),
    [
        (loaded(recipe="somebody's"), "unknown"),
        (loaded(holdout=0.0, leak=""), "no_holdout"),
        (loaded(holdout="half_a", leak="no_holdout"), "no_holdout"),
        (loaded("timm:vit_small_patch14_dinov2"), ""),
    ],
)
def test_a_leak_is_named_and_everybody_is_tested(backbone: LoadedBackbone, leak: str) -> None:
    assert patients_to_test(backbone, PATIENTS, "avoid") == (set(PATIENTS.tolist()), leak)


def test_allowing_a_leak_tests_everybody_and_names_it_where_there_is_one() -> None:
    half = loaded(holdout="half_a", leak="")
    assert patients_to_test(half, PATIENTS, "avoid") == (HALF, "")
    assert patients_to_test(half, PATIENTS, "allow") == (set(PATIENTS.tolist()), "allowed")


def test_first_weights_that_may_have_seen_anybody_leave_the_tag_unknown() -> None:
    half = loaded(holdout="half_a", leak="", first_weights="unknown")
    assert patients_to_test(half, PATIENTS, "avoid") == (HALF, "unknown")
    known = loaded(holdout="half_a", leak="", first_weights="known")
    assert patients_to_test(known, PATIENTS, "avoid") == (HALF, "")
    for weights, seen, said in (
        ("", {}, ""),
        ("timm", {}, ""),
        ("hf:DIR", {}, "unknown"),
        ("shipped:a", {"patient": ["p"]}, "known"),
    ):
        assert first_weights(BackboneConfig(weights=weights), seen) == said
