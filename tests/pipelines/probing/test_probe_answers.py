"""Probes asked questions whose answer is known: random weights of a small ViT are eyes enough for each of them."""

import numpy as np
import pytest
import torch
from scipy.ndimage import zoom

from models.backbone import Backbone, build_backbone
from models.config import BackboneConfig
from pipelines.backbones.features import encode
from probes.aggregation import AggregationPart, SliceTokens, compare_aggregators
from probes.heads.linear import LinearProbe, cross_fit
from probes.splits import Splits, patient_folds
from probes.statistics.metrics import auroc_difference, auroc_with_interval
from tests.phantom_questions import (
    Question,
    constant_question,
    diameter_question,
    extent_question,
    margin_question,
    order_question,
)


@pytest.fixture(scope="module")
def random_vit() -> Backbone:
    torch.manual_seed(0)
    config = BackboneConfig(
        arch="custom", depth=2, embed_dim=96, heads=4, patch_px=4, registers=0, image_px=32
    )
    return build_backbone(config).eval().requires_grad_(False)


def features_of(backbone: Backbone, triplets_hu: np.ndarray) -> np.ndarray:
    encoded = encode(backbone, triplets_hu.astype(np.float32), 1.0, "lung", "mean_patch", torch.device("cpu"))
    return encoded.astype(np.float64)


def answers(question: Question) -> tuple[np.ndarray, Splits]:
    labels = question.is_positive.astype(int)
    return labels, patient_folds(question.patient_ids.tolist(), labels, n_folds=5)


def out_of_fold(question: Question, features: np.ndarray) -> np.ndarray:
    labels, folds = answers(question)
    return cross_fit(LinearProbe, features, labels, question.patient_ids, folds)


def middle_triplets(question: Question) -> np.ndarray:
    middle = question.volumes_hu.shape[1] // 2
    return question.volumes_hu[:, middle - 1 : middle + 2]


def slice_tokens(question: Question, backbone: Backbone) -> SliceTokens:
    n, n_slices = question.volumes_hu.shape[:2]
    beside = np.clip(np.arange(n_slices)[:, None] + [-1, 0, 1], 0, n_slices - 1)
    triplets = question.volumes_hu[:, beside].reshape(-1, 3, *question.volumes_hu.shape[2:])
    tokens = features_of(backbone, triplets).reshape(n, n_slices, -1).astype(np.float32)
    position_mm = (np.arange(n_slices) - (n_slices - 1) / 2) * question.spacing_mm[0]
    everywhere = np.broadcast_to(position_mm.astype(np.float32), (n, n_slices)).copy()
    return SliceTokens(
        torch.from_numpy(tokens), torch.from_numpy(everywhere), torch.ones(n, n_slices, dtype=torch.bool)
    )


def test_size_among_vessels_is_read_from_crops_and_not_from_whole_slices(random_vit: Backbone) -> None:
    """n = 200; crops of 32 mm at 1 mm per pixel, whole slices of 144 mm at 4.5 mm per pixel."""
    question = diameter_question(200)
    whole = np.stack(
        [zoom(volume[3:6].astype(float), (1, 1 / 3, 1 / 3), order=1) for volume in question.volumes_hu]
    )
    crops = []
    for volume, (_, y, x) in zip(question.volumes_hu, question.center_index_zyx, strict=True):
        padded = np.pad(volume[3:6].astype(float), ((0, 0), (12, 12), (12, 12)), constant_values=-850)
        top, left = (round(at) + 12 - 10 for at in (float(y), float(x)))
        crops.append(zoom(padded[:, top : top + 21, left : left + 21], (1, 32 / 21, 32 / 21), order=1))
    near = out_of_fold(question, features_of(random_vit, np.stack(crops)))
    far = out_of_fold(question, features_of(random_vit, whole))
    labels = question.is_positive.astype(int)
    gap = auroc_difference(labels, near, far, question.patient_ids)
    assert gap.value >= 0.10
    assert gap.ci_low > 0


def test_the_margin_is_read_beyond_diameter_and_not_once_it_is_blurred(random_vit: Backbone) -> None:
    """n = 120 nodules of one diameter."""
    question, blurred = margin_question(120), margin_question(120, is_blurred=True)
    labels, patients = question.is_positive.astype(int), question.patient_ids
    found = out_of_fold(question, features_of(random_vit, middle_triplets(question)))
    gain = auroc_difference(labels, found, question.diameter_mm, patients)
    assert gain.ci_low > 0
    assert gain.p < 0.05
    nothing = auroc_with_interval(
        blurred.is_positive.astype(int),
        out_of_fold(blurred, features_of(random_vit, middle_triplets(blurred))),
        blurred.patient_ids,
    )
    assert nothing.ci_low < 0.5 < nothing.ci_high


@pytest.mark.slow
def test_order_along_z_is_read_by_who_knows_positions_alone(random_vit: Backbone) -> None:
    """n = 200; two signs 24 mm apart, twins with the same triplets in another order."""
    question = order_question(200)
    labels, folds = answers(question)
    part = AggregationPart(slice_tokens(question, random_vit), folds)
    table = compare_aggregators([part], labels, question.patient_ids)
    table = table.set_index("aggregator")
    for blind in ("center", "mean", "max", "center3_mean", "center3_max"):
        assert table.loc[blind, "auroc"] < 0.6
    assert table.loc["attention_z", "auroc"] >= 0.85
    assert table.loc["attention_z", "p_holm"] < 0.05
    assert table.loc["attention_z", "minus_center_ci_low"] > 0


def test_extent_along_z_is_read_by_the_mean_and_not_by_the_center(random_vit: Backbone) -> None:
    """n = 60."""
    question = extent_question(60)
    labels, folds = answers(question)
    tokens = slice_tokens(question, random_vit)
    table = compare_aggregators(
        [AggregationPart(tokens, folds)], labels, question.patient_ids, names=["mean"]
    )
    table = table.set_index("aggregator")
    assert table.loc["mean", "auroc"] > 0.9
    assert 0.4 < table.loc["center", "auroc"] < 0.6


def test_constant_images_score_exactly_one_half(random_vit: Backbone) -> None:
    """n = 100, an odd share of positives: no fold's share of positives may rank its nodules."""
    question = constant_question(100)
    keep = np.delete(np.arange(100), [1, 3, 5, 7, 9, 11, 13])
    labels, patients = question.is_positive[keep].astype(int), question.patient_ids[keep]
    features = features_of(random_vit, middle_triplets(question))[keep]
    folds = patient_folds(patients.tolist(), labels, n_folds=5, n_repeats=3)
    scores = cross_fit(LinearProbe, features, labels, patients, folds)
    found = auroc_with_interval(labels, scores, patients, 200)
    assert (found.value, found.ci_low, found.ci_high) == (0.5, 0.5, 0.5)
