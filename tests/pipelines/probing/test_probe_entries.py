"""The probes of a frozen backbone, run on a small phantom cohort with an untrained backbone."""

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from scipy.ndimage import binary_dilation

from models.backbone import build_backbone
from models.config import BackboneConfig
from pipelines.backbones.folder import open_backbone, save_backbone
from pipelines.backbones.view_retrieval import encode_views, render_rows, sample_slices
from pipelines.cohort.folder import Cohort
from pipelines.cohort.slices import SliceIndex
from pipelines.command.config import nested
from pipelines.nodule.labeled import nodule_set, places_mm
from pipelines.nodule.masks import disc, marks_of, masked_crops
from pipelines.probing.aggregation import run_aggregation
from pipelines.probing.config import (
    AggregationConfig,
    DenseConfig,
    RepresentationConfig,
    RetrievalConfig,
)
from pipelines.probing.dense import run_dense
from pipelines.probing.folds import views_of_recipe
from pipelines.probing.readers import patients_to_test
from pipelines.probing.representation import crops_one_slice_further, run_representation
from pipelines.probing.retrieval import run_retrieval
from pipelines.probing.setup import ProbeError, left_out, of_rows
from pipelines.tracking.run import Run
from pipelines.training.config import PretrainConfig
from probes.splits import is_held_out
from tests.recorder import Recorder
from transforms.geometry import VolumeGeometry, index_to_lps, lps_to_index
from transforms.nodule_crop import CropSpec, crop_nodule
from transforms.views.config import ViewConfig

TINY = BackboneConfig(arch="custom", depth=1, embed_dim=24, heads=2, patch_px=7, registers=0, image_px=28)
SPEC = CropSpec(size_mm=40.0, out_px=56)


def save_tiny(folder: Path, **record: Any) -> str:
    torch.manual_seed(0)
    save_backbone(folder, build_backbone(TINY), TINY, record)
    return str(folder)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights that say they saw one half of the patients."""
    return save_tiny(tmp_path_factory.mktemp("backbone") / "tiny", holdout="half_a", leak="", steps=10)


@pytest.fixture(scope="module")
def all_seen(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights that saw every patient."""
    return save_tiny(tmp_path_factory.mktemp("backbone") / "seen", holdout=0.0, leak="no_holdout", steps=10)


def retrieved(cohort: Cohort, backbone: str, **settings: Any) -> Recorder:
    run = Recorder()
    run_retrieval(RetrievalConfig(cohort=str(cohort.root), backbone=backbone, device="cpu", **settings), run)
    return run


def test_retrieval_asks_held_out_patients_alone_and_says_so_otherwise(
    small_cohort, backbone, all_seen
) -> None:
    run = retrieved(small_cohort, backbone, slices=40)
    held_out = {p for p in small_cohort.series["patient_id"] if is_held_out(p, "half_a")}
    assert 0 < len(held_out) < 6
    assert run.metrics["retrieval/n_patients"] == len(held_out)
    assert run.metrics["retrieval/n"] == 40
    assert run.metrics["retrieval/ratio"] == pytest.approx(40 * run.metrics["retrieval/top1"])
    assert "retrieval/random_top1" in run.metrics
    assert "dinox.leak" not in run.tags
    assert set(run.tables["tables/retrieval.csv"]["token"]) == {"class_token", "mean_patch"}
    assert run.figures == ["figures/contact_sheet.png"]

    ranks = run.tables["tables/ranks.parquet"]
    assert (ranks["rank"] == 0).mean() == run.metrics["retrieval/top1"]
    assert (ranks["random_rank"] == 0).mean() == run.metrics["retrieval/random_top1"]
    assert set(ranks["patient_id"]) == held_out

    leaky = retrieved(small_cohort, all_seen, slices=40)
    assert leaky.tags["dinox.leak"] == "no_holdout"
    assert leaky.metrics["retrieval/n_patients"] == 6
    allowed = patients_to_test(open_backbone(backbone), small_cohort.series["patient_id"], "allow")
    assert allowed == (set(small_cohort.series["patient_id"]), "allowed")


def test_views_of_a_recipe_ask_every_backbone_the_same_at_its_own_size_and_scale(
    small_cohort, backbone, tmp_path, capsys
) -> None:
    recipe = tmp_path / "narrow.yaml"
    recipe.write_text("views: {extent: mm, fov_mm: [30, 31], window: {policy: article}}\n")
    other = save_tiny(tmp_path / "other", holdout="half_a", leak="", steps=10, hu_scale=0.1)
    views, origin = views_of_recipe(open_backbone(other), str(recipe))
    assert (views.size_px, views.fov_mm, views.window.hu_scale) == (28, (30.0, 31.0), 0.1)
    assert origin == f"views of recipe {recipe}"
    own = retrieved(small_cohort, backbone, slices=40).tables["tables/ranks.parquet"]
    asked = retrieved(small_cohort, backbone, slices=40, views=str(recipe)).tables["tables/ranks.parquet"]
    assert asked["slice_index"].tolist() == own["slice_index"].tolist()
    assert asked["rank"].tolist() != own["rank"].tolist()
    assert f"views of recipe {recipe}" in capsys.readouterr().out
    with pytest.raises(ProbeError, match="reads slices and views=vit_small_3d draws cubes"):
        retrieved(small_cohort, backbone, views="vit_small_3d")


def test_views_are_the_same_whenever_they_are_rendered_and_batches_do_not_matter(
    small_cohort, backbone
) -> None:
    patients = set(small_cohort.series["patient_id"])
    sample = sample_slices(SliceIndex(small_cohort, patients), ViewConfig(size_px=28), 12)
    network, device = open_backbone(backbone).backbone, torch.device("cpu")
    whole = encode_views(sample, {"one": network}, device, batch_size=12)["one"]
    parts = encode_views(sample, {"one": network}, device, batch_size=5)["one"]
    np.testing.assert_allclose(whole["class_token"], parts["class_token"], atol=1e-5)
    alone = network(render_rows(sample, sample.rows[[7]], device)[1]).class_token
    np.testing.assert_allclose(whole["class_token"][1, 7], alone[0].detach(), atol=1e-5)
    assert not np.allclose(whole["class_token"][0], whole["class_token"][1])


def test_a_run_gives_its_student_its_views_and_its_trajectory(small_cohort, own_store, tmp_path) -> None:
    trained = Run.start("pretrain")
    config = PretrainConfig(backbone=TINY, views=ViewConfig(size_px=28, fraction=(0.9, 1.0), flip=False))
    trained.log_text(yaml.safe_dump(nested(config)), "config.yaml")
    record = {"holdout": "half_a", "leak": "", "run_id": trained.run_id}
    for name, steps in (("backbone", 20), ("backbone_student", 20), ("backbones/a", 10), ("backbones/b", 5)):
        save_tiny(tmp_path / name, **record, steps=steps, network=name.partition("/")[0])
        trained.log_file(tmp_path / name, name)
    source = f"runs:/{trained.run_id}/backbone"
    run = retrieved(small_cohort, source, slices=30, checkpoints="all")
    # All folders hold the same weights, so all rows must agree.
    assert run.metrics["retrieval/student_top1"] == run.metrics["retrieval/top1"]
    assert run.metrics["retrieval/trajectory_top1@5"] == run.metrics["retrieval/top1"]
    assert run.tables["tables/trajectory.csv"]["step"].tolist() == ["5", "10"]
    # Nearly whole, unmirrored slices differ by their window alone: far easier than the default views.
    folder = str(tmp_path / "backbone")
    default = retrieved(small_cohort, folder, slices=30)
    assert run.metrics["retrieval/top5"] > default.metrics["retrieval/top5"]
    with pytest.raises(ProbeError, match="has no steps"):
        retrieved(small_cohort, folder, slices=30, checkpoints="all")


def test_representation_stands_beside_random_weights(small_cohort, all_seen) -> None:
    run = Recorder()
    config = RepresentationConfig(
        cohort=str(small_cohort.root), backbone=all_seen, size_mm=40.0, slices=30, device="cpu"
    )
    run_representation(config, run)
    table = run.tables["tables/representation.csv"].set_index("measure")
    assert {"backbone", "random", "meaning"} <= set(table.columns)
    for measure in ("active_dims", "cosine", "class_separation", "effective_rank", "uniformity", "alignment"):
        assert f"representation/{measure}" in run.metrics
        assert f"representation/random_{measure}" in run.metrics
    assert run.metrics["representation/active_dims"] <= 24
    assert run.tags["dinox.leak"] == "no_holdout"
    networks = ("backbone", "random")
    drawn = [f"figures/{what}_{name}.png" for name in networks for what in ("map", "nearest")]
    assert run.figures == ["figures/spectrum.png", *drawn]
    # Six patients are too few to distinguish manufacturers: this is reported, with no value.
    assert "representation/manufacturer_accuracy" not in run.metrics


def test_one_slice_further_is_the_neighboring_slice(small_cohort) -> None:
    moved_to = Cohort(small_cohort.root)
    affines = small_cohort.series.set_index("volume_id")["affine_ras"]
    for above in (2.2, 2.5, 3.5, 3.9):  # rounded to even, a half would be its own neighbor
        heights = [index_to_lps(affines[v], [above, 30, 30])[2] for v in moved_to.nodules["volume_id"]]
        moved_to.nodules["z_lps_mm"] = heights
        nodules = nodule_set(moved_to, "consensus", SPEC)
        moved, can_move = crops_one_slice_further(moved_to, nodules, SPEC)
        assert can_move.all()
        np.testing.assert_array_equal(moved[:, :2], nodules.crops_hu[:, 1:])


def test_discs_lie_where_the_nodules_are_and_are_never_just_in_the_middle(small_cohort) -> None:
    nodules = nodule_set(small_cohort, "consensus", SPEC)
    crops = masked_crops(small_cohort, nodules.table, SPEC, jitter_mm=10.0, seed=0)
    assert crops.source == "discs"
    solid = (nodules.table["true_density"] == "solid").to_numpy()[crops.kept]
    off_center, contrast_hu = [], []
    for hu, mask, readers in zip(
        crops.crops_hu[solid],
        crops.masks[solid],
        np.array(crops.reader_masks, dtype=object)[solid],
        strict=True,
    ):
        contrast_hu.append(hu[1][mask].mean() - hu[1][dilated(mask, 5) & ~dilated(mask, 2)].mean())
        assert len(readers) == 4
        rows, columns = np.nonzero(mask)
        off_center.append(np.hypot(rows.mean() - 27.5, columns.mean() - 27.5) * SPEC.mm_per_px)
    assert np.median(off_center) > 3.0
    assert np.median(contrast_hu) > 300
    diameter = nodules.table["diameter_mm"].to_numpy()[crops.kept]
    area_mm2 = crops.masks.sum(axis=(1, 2)) * SPEC.mm_per_px**2
    assert area_mm2 == pytest.approx(np.pi * diameter**2 / 4, rel=0.25)


def test_stored_outlines_are_cropped_with_their_image(small_cohort, tmp_path) -> None:
    """A mask that repeats what the image shows, bright voxels around one nodule, must show it again in the crop."""
    root = tmp_path / "with_masks"
    shutil.copytree(small_cohort.root, root)
    nodules = nodule_set(small_cohort, "consensus", SPEC)
    nodule = nodules.table[nodules.table["true_density"] == "solid"].iloc[0]
    row = small_cohort.series.set_index("volume_id").loc[nodule["volume_id"]]
    z, y, x = np.rint(lps_to_index(list(row["affine_ras"]), [nodule[f"{a}_lps_mm"] for a in "xyz"])).astype(
        int
    )
    start = np.array([z - 1, y - 6, x - 6])
    box = small_cohort.volume(nodule["volume_id"])[z - 1 : z + 2, y - 6 : y + 7, x - 6 : x + 7]
    (root / "masks").mkdir()
    np.savez_compressed(root / "masks" / f"{nodule['nodule_id']}.npz", mask=box > -300, start_zyx=start)
    cohort = Cohort.open(root)
    # Marks of the phantom are in no database of outlines; without them no reader is asked for.
    cohort.annotations = cohort.annotations.iloc[:0]
    crops = masked_crops(cohort, nodules.table, SPEC, jitter_mm=8.0, seed=3)
    assert crops.source == "contours"
    assert nodules.table["nodule_id"].iloc[crops.kept].tolist() == [nodule["nodule_id"]]
    inside, shown = crops.masks[0], crops.crops_hu[0, 1]
    agreement = (
        2 * (inside & (shown > -300)).sum() / (inside.sum() + (shown[dilated(inside, 2)] > -300).sum())
    )
    assert agreement > 0.75
    assert crops.reader_masks[0].shape == (0, 56, 56)


def dilated(mask: np.ndarray, steps: int) -> np.ndarray:
    return binary_dilation(mask, iterations=steps)


def test_a_disc_lies_at_its_mark_in_patient_space() -> None:
    mark = {"x_lps_mm": 10.0, "y_lps_mm": -20.0, "z_lps_mm": 0.0, "diameter_mm": 8.0}
    spec = CropSpec(size_mm=40.0, out_px=40)
    found = disc(
        mark, np.array([4.0, -12.0, 0.0]), spec
    )  # the mark lies 6 mm to the left and 8 mm to the front
    rows, columns = np.nonzero(found)
    assert columns.mean() - 19.5 == pytest.approx(6.0)
    assert rows.mean() - 19.5 == pytest.approx(-8.0)
    assert found.sum() == pytest.approx(np.pi * 16, rel=0.1)


def test_marks_are_found_by_their_rule_their_cluster_or_their_place() -> None:
    annotations = pd.DataFrame(
        {
            "annotation_id": [1, 2, 3, 4],
            "volume_id": ["v", "v", "v", "w"],
            "cluster_id": [5, 5, 6, 5],
            "x_lps_mm": [0.0, 3.0, 30.0, 0.0],
            "y_lps_mm": 0.0,
            "z_lps_mm": 0.0,
        }
    )
    nodule = {"volume_id": "v", "x_lps_mm": 0.0, "y_lps_mm": 0.0, "z_lps_mm": 0.0, "diameter_mm": 8.0}
    ids = [mark["annotation_id"] for mark in marks_of(annotations, nodule)]
    assert ids == [1, 2]
    assert [m["annotation_id"] for m in marks_of(annotations, nodule | {"cluster_id": 6})] == [3]
    assert [m["annotation_id"] for m in marks_of(annotations, nodule | {"annotation_ids": [2, 3]})] == [2, 3]


def test_dense_probe_prints_tokens_beside_pixels_random_weights_and_readers(small_cohort, all_seen) -> None:
    run = Recorder()
    config = DenseConfig(
        cohort=str(small_cohort.root),
        backbone=all_seen,
        size_mm=40.0,
        folds=2,
        rule="any_reader",
        device="cpu",
    )
    run_dense(config, run)
    assert list(run.tables["tables/dense.csv"]["row"]) == [
        "features",
        "random_weights",
        "pixels",
        "inter_reader",
    ]
    assert 0 <= run.metrics["dense/dice"] <= 1
    assert run.metrics["dense/inter_reader_dice"] > 0.8
    assert run.tags["dinox.masks"] == "discs"
    assert run.tags["dinox.leak"] == "no_holdout"
    with pytest.raises(ValueError, match="less than half of size_mm"):
        DenseConfig(jitter_mm=30.0)


def test_every_aggregator_is_tested_against_the_center_on_the_same_nodules(rated_cohort, all_seen) -> None:
    run = Recorder()
    config = AggregationConfig(
        cohort=str(rated_cohort), backbone=all_seen, size_mm=32.0, z_range_mm=6.0, folds=2, device="cpu"
    )
    run_aggregation(config, run)
    table = run.tables["tables/aggregation.csv"].set_index("aggregator")
    names = [
        "center",
        "mean",
        "max",
        "center3_mean",
        "center3_max",
        "attention_z",
        "attention_center",
        "planes",
    ]
    assert table.index.tolist() == names
    assert table["n_nodules"].nunique() == 1
    assert np.isfinite(
        table.loc[["mean", "max", "center3_mean", "center3_max", "attention_z", "planes"], "p_holm"]
    ).all()
    over = table.loc["attention_z", "auroc"] - table.loc["attention_center", "auroc"]
    assert run.metrics["aggregation/attention_z_over_own_center"] == pytest.approx(over)
    assert "aggregation/attention_z_over_own_center_ci_low" in run.metrics
    assert "aggregation/attention_center_gain" not in run.metrics
    assert run.metrics["aggregation/mean_auroc"] == table.loc["mean", "auroc"]
    assert run.tags["dinox.leak"] == "no_holdout"


def test_slices_have_their_place_in_mm_and_padding_where_the_volume_or_a_gap_ends() -> None:
    # Slices 2.5 mm apart from 0 mm upwards; rows to the back, columns to the left.
    affine = [0, 0, -1.0, 0, 0, -1.0, 0, 0, 2.5, 0, 0, 0, 0, 0, 0, 1]
    row = {
        "affine_ras": affine,
        "slice_offsets_mm": [],
        "spacing_mm": [2.5, 1.0, 1.0],
        "shape": [6, 9, 9],
        "gaps": [],
    }
    position_mm, is_there = places_mm(row, [0.0, 0.0, 3.0], 5)  # 3 mm lies 0.5 mm above slice 1
    assert position_mm == pytest.approx([-5.5, -3.0, -0.5, 2.0, 4.5])
    assert is_there.tolist() == [False, True, True, True, True]
    _, cut = places_mm(row | {"gaps": [2]}, [0.0, 0.0, 3.0], 5)  # nothing is joined across slices 2 and 3
    assert cut.tolist() == [False, True, True, True, False]


def test_slices_of_unlike_spacings_are_one_array_whose_padding_says_nothing_of_the_nodule(
    small_cohort,
) -> None:
    spec = CropSpec(form="slices", size_mm=24.0, out_px=12, z_range_mm=5.0)
    nodules = nodule_set(small_cohort, "any_reader", spec)
    spacing_mm = nodules.table["spacing_z_mm"].to_numpy()
    assert len(set(spacing_mm)) > 2
    longest = 2 * int(5.0 / spacing_mm.min() + 1e-6) + 1
    assert nodules.crops_hu.shape == (len(spacing_mm), longest, 3, 12, 12)
    rows = {row["volume_id"]: row for row in small_cohort.series.to_dict("records")}
    for number, nodule in enumerate(nodules.table.to_dict("records")):
        row = rows[nodule["volume_id"]]
        geometry, center = VolumeGeometry.from_row(row), [nodule[f"{axis}_lps_mm"] for axis in "xyz"]
        own = crop_nodule(small_cohort.volume(nodule["volume_id"]), geometry, center, spec).hu
        np.testing.assert_array_equal(nodules.crops_hu[number, : len(own)], own)
        assert (nodules.crops_hu[number, len(own) :] == -1024).all()
        # What is there follows from the volume alone: every slice of it within reach of the middle one.
        z_mm = geometry.to_index(center)[0] * spacing_mm[number]
        all_mm = np.arange(row["shape"][0]) * spacing_mm[number] - z_mm
        middle_mm = all_mm[np.abs(all_mm).argmin()]
        expected = all_mm[np.abs(all_mm - middle_mm) <= 5.0 + 1e-6]
        there = nodules.place_mm[number][np.isfinite(nodules.place_mm[number])]
        np.testing.assert_allclose(there, expected, atol=1e-6)
    swapped = copy.copy(small_cohort)
    swapped.nodules = small_cohort.nodules.assign(diameter_mm=30.0)
    np.testing.assert_array_equal(nodule_set(swapped, "any_reader", spec).place_mm, nodules.place_mm)
    others = left_out(nodules, np.arange(len(nodules.labels)) >= 2, "not asked for")
    half = of_rows(nodules, np.arange(2), others)
    assert half.dropped["kind"].tolist() == ["not asked for"] * (len(nodules.labels) - 2)
    with pytest.raises(RuntimeError, match="the rest went missing"):
        of_rows(nodules, np.arange(2), others.iloc[1:])
    assert half.place_mm.shape == (2, longest)
    assert nodule_set(small_cohort, "any_reader", SPEC).place_mm is None
