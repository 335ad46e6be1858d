"""`probe_retrieval` of a 3D backbone that no run made: cubes at the scale of its record, small volumes counted."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models.backbone import build_backbone
from models.config import BackboneConfig
from pipelines.backbones.folder import open_backbone, save_backbone
from pipelines.backbones.view_retrieval import encode_views, retrieve
from pipelines.cohort.folder import Cohort
from pipelines.probing.figures import contact_sheet
from pipelines.probing.folds import slices_of, training_views

NETWORK = BackboneConfig(
    arch="custom", depth=1, embed_dim=16, heads=2, image_px=16, patch_px=4, image_depth_px=8, patch_depth_px=4
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    backbone = build_backbone(NETWORK)
    backbone.mean, backbone.std = (0.3,), (0.2,)
    record = {"mm_per_pixel": [1.0, 4.2], "leak": "", "steps": 1, "holdout": 1.0}
    save_backbone(tmp_path / "cubes", backbone, NETWORK, record)
    return tmp_path / "cubes"


def test_cubes_have_the_size_and_scale_of_the_network(folder: Path) -> None:
    views, origin = training_views(open_backbone(str(folder)))
    assert origin == "default views"
    assert views.view_shapes() == [(8, 16, 16)] * 2
    assert views.fov_mm == pytest.approx((16.0, 67.2))
    assert (views.channel_mean, views.channel_std) == (pytest.approx((0.3,)), pytest.approx((0.2,)))


def test_slices_are_accounted_for_and_shown(
    folder: Path, small_cohort: Cohort, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = open_backbone(str(folder))
    patients = set(small_cohort.series["patient_id"])
    n_all = sum(int(shape[0]) for shape in small_cohort.series["shape"])
    sample, _ = slices_of(loaded, small_cohort, patients, 6)
    said = capsys.readouterr().out
    assert f"{n_all} slices: 6 compared" in said
    assert "hold no cube" not in said
    tokens = encode_views(sample, {"backbone": loaded.backbone}, torch.device("cpu"))["backbone"][
        "class_token"
    ]
    assert tokens.shape == (2, 6, 16)
    found = retrieve(sample, tokens)
    axes = [axis for axis in contact_sheet(sample, found).axes if axis.images]
    assert {axis.get_title().split()[0] for axis in axes} == {"axial"}
    for axis in axes:  # each picture says where left is, how long its bar is, and its window
        texts = [text.get_text() for text in axis.texts]
        assert {"L", "R", "A"} <= set(texts)
        assert {text.split()[-1] for text in texts} >= {"mm", "HU"}
    pictures = [np.asarray(axis.images[0].get_array()).tobytes() for axis in axes]
    assert len(pictures) == len(set(pictures)) >= 2

    depths = zip(small_cohort.series["shape"], small_cohort.series["spacing_mm"], strict=True)
    lengths = [(int(shape[0]), float(shape[0] * mm[0])) for shape, mm in depths]
    between = (min(mm for _, mm in lengths) + max(mm for _, mm in lengths)) / 2
    loaded.record["mm_per_pixel"] = [between / 8, between / 8]  # as deep as some of the volumes are not
    short = [n_slices for n_slices, mm in lengths if mm < between]
    assert short, "volumes of one length test nothing"
    slices_of(loaded, small_cohort, patients, 6)
    said = capsys.readouterr().out
    assert f"{len(short)} of {len(small_cohort.series)} volumes hold no cube of {between:.3g} x " in said
    assert f"{sum(short)} in volumes that hold no cube" in said
