"""3D backbones in the probes: cubes are read, cached, and compared with slices in the same folds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.backbone import build_backbone
from models.config import BackboneConfig
from pipelines.backbones.cube_tokens import CubeTokens, cube_spec
from pipelines.backbones.folder import LoadedBackbone, open_backbone, save_backbone
from pipelines.cohort.folder import Cohort
from pipelines.finetuning.config import FinetuneConfig
from pipelines.finetuning.run import run_finetune
from pipelines.phantom.volumetric import make_volume_cohort
from pipelines.probing.aggregation import joined, run_aggregation, volumes_beside
from pipelines.probing.config import AggregationConfig, DenseConfig, ProbeConfig, RepresentationConfig
from pipelines.probing.dense import run_dense
from pipelines.probing.readers import ProbeError, Reader, reader_of
from pipelines.probing.reading import readable, vectors_of
from pipelines.probing.representation import run_representation
from pipelines.probing.setup import labeled_nodules
from probes.splits import is_held_out
from tests.conftest import MakeOnce
from tests.pipelines.probing.test_probe_malignancy import cohort_of, noise, probed
from tests.recorder import Recorder
from transforms.nodule_crop import CropSpec

N_PATIENTS = 20
FLAT = {"arch": "custom", "depth": 1, "embed_dim": 24, "heads": 2, "registers": 0, "image_px": 16}
SETTINGS = {"folds": 3, "device": "cpu", "size_mm": 32.0, "window": "full"}


def saved(folder: Path, record: dict[str, Any] | None = None, **changes: Any) -> str:
    torch.manual_seed(0)
    config = BackboneConfig(**(FLAT | {"patch_px": 4} | changes))
    save_backbone(
        folder, build_backbone(config), config, {"leak": "", "steps": 1, "holdout": 1.0} | (record or {})
    )
    return str(folder)


@pytest.fixture(scope="module")
def cube_net(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("b") / "cubes", image_depth_px=16, patch_depth_px=4)


@pytest.fixture(scope="module")
def told_net(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("b") / "told", image_depth_px=16, patch_depth_px=4, spacing="tokens")


@pytest.fixture(scope="module")
def slice_net(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("b") / "slices")


@pytest.fixture(scope="session")
def only_z(make_once: MakeOnce) -> Cohort:
    return Cohort.open(
        make_once("only_z", lambda root: make_volume_cohort(root / "c", "only_z", N_PATIENTS)) / "c"
    )


@pytest.fixture(scope="session")
def only_mm(make_once: MakeOnce) -> Cohort:
    return Cohort.open(
        make_once("only_mm", lambda root: make_volume_cohort(root / "c", "only_mm", N_PATIENTS)) / "c"
    )


def tokens_of(cohort: Cohort, runs: Path, **settings: Any) -> CubeTokens:
    config = ProbeConfig(cohort=str(cohort.root), runs_dir=str(runs), device="cpu", **settings)
    loaded = open_backbone(config.backbone)
    nodules = labeled_nodules(config, cohort, CropSpec(size_mm=config.size_mm, out_px=16))
    found = vectors_of(config, loaded, cohort, readable(config, cohort, [loaded], nodules))
    assert isinstance(found, CubeTokens)
    return found


def twins_of(cohort: Cohort, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The positive and the negative nodule of each patient, in one order of patients."""
    table = cohort.nodules.assign(row=range(len(cohort.nodules)))
    is_positive = table["malignancy_ratings"].map(lambda ratings: ratings[0] == 5)
    return tuple(  # type: ignore[return-value]
        vectors[table[chosen].sort_values("patient_id")["row"].to_numpy()]
        for chosen in (is_positive, ~is_positive)
    )


def test_a_probe_reads_cubes_with_baselines_twins_and_tag_of_scale(only_z: Cohort, tmp_path: Path) -> None:
    record = {"mm_per_pixel": [1.0, 1.5]}
    own = saved(tmp_path / "b", record, image_depth_px=16, patch_depth_px=4)
    run = probed(
        only_z, own, tmp_path / "runs", rule="consensus", size_mm=32.0, features="roi", window="full"
    )
    assert run.metrics["probe/n_nodules"] == 2 * N_PATIENTS
    assert {"probe/auroc", "probe/random_auroc", "probe/pixels_auroc"} <= set(run.metrics)
    assert run.tags["dinox.scale"] == "out of distribution"  # 2 mm per voxel
    assert len(list((tmp_path / "runs" / "features").glob("*.npy"))) == 3  # the backbone and two twins
    # Center slices are the same in both classes, so what reads them knows nothing.
    assert run.metrics["probe/pixels_auroc"] == pytest.approx(0.5, abs=0.15)


def test_features_come_from_the_cache_the_second_time(
    only_z: Cohort, cube_net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"backbone": cube_net, "size_mm": 32.0}
    first = tokens_of(only_z, tmp_path, **settings).learned()
    monkeypatch.setattr("pipelines.backbones.cube_tokens.encode_nodule_cubes", None)
    np.testing.assert_array_equal(tokens_of(only_z, tmp_path, **settings).learned(), first)
    for changed in ({"size_mm": 30.0}, {"window": "full"}, {"features": "both"}, {"voxels": "own"}):
        with pytest.raises(TypeError):
            tokens_of(only_z, tmp_path, **(settings | changed)).learned()


def test_equal_voxels_are_one_vector_unless_the_network_is_told_their_millimeters(
    only_mm: Cohort, cube_net: str, told_net: str, tmp_path: Path
) -> None:
    deaf = tokens_of(only_mm, tmp_path, backbone=cube_net, voxels="own")
    positive, negative = twins_of(only_mm, deaf.learned())
    np.testing.assert_allclose(positive, negative, atol=1e-5)
    assert deaf.misinformed(0) is None
    told = tokens_of(only_mm, tmp_path, backbone=told_net, voxels="own")
    positive, negative = twins_of(only_mm, told.learned())
    assert np.abs(positive - negative).max(1).min() > 1e-3
    assert np.abs(told.misinformed(0) - told.learned()).max() > 1e-3
    # Read at one spacing, the same network sees balls of other sizes and is told one number.
    resampled = tokens_of(only_mm, tmp_path, backbone=cube_net, size_mm=20.0)
    positive, negative = twins_of(only_mm, resampled.learned())
    assert np.abs(positive - negative).max(1).min() > 1e-3


def test_a_probe_of_own_voxels_scores_half_without_and_reports_the_control_with_spacing(
    only_mm: Cohort, cube_net: str, told_net: str, tmp_path: Path
) -> None:
    shared = {"rule": "consensus", "voxels": "own"}
    deaf = probed(only_mm, cube_net, tmp_path / "runs", **shared)
    assert deaf.metrics["probe/auroc"] == pytest.approx(0.5, abs=1e-9)
    assert "probe/others_spacing_auroc" not in deaf.metrics
    told = probed(only_mm, told_net, tmp_path / "runs", **shared)
    assert told.metrics["probe/auroc"] > 0.6
    assert {f"probe/others_spacing_auroc{end}" for end in ("", "_ci_low", "_ci_high")} <= set(told.metrics)


def test_voxels_are_as_long_along_z_as_those_of_the_pretraining(tmp_path: Path) -> None:
    record = {"mm_per_pixel": [0.8, 1.25], "mm_per_slice": [2.0, 3.125]}
    tall = open_backbone(saved(tmp_path / "tall", record, image_depth_px=8, patch_depth_px=4))
    assert cube_spec(tall, 32.0).shape == (8, 16, 16)
    np.testing.assert_allclose(cube_spec(tall, 32.0).spacing_mm, (5.0, 2.0, 2.0))
    cubic = open_backbone(saved(tmp_path / "cubic", image_depth_px=8, patch_depth_px=4))
    assert cube_spec(cubic, 32.0).spacing_mm == (2.0, 2.0, 2.0)


def test_patches_as_long_as_their_nodule_are_read_without_z_and_it_is_said(
    cube_net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort = cohort_of(tmp_path, noise, [0, 1] * 4)
    series = cohort.series.assign(kind="patch")
    cohort.series = series
    found = tokens_of(cohort, tmp_path / "runs", backbone=cube_net, rule="given", size_mm=14.0)
    assert "no z: 8 of 8 nodules lie in patches as long as they are" in capsys.readouterr().out
    (batch,) = found.cubes.batches(8)
    np.testing.assert_array_equal(batch.hu, np.repeat(batch.hu[:, :1], 16, axis=1))


def aggregated(cohort: Cohort, **settings: Any) -> Recorder:
    run = Recorder(draws=False)
    run_aggregation(AggregationConfig(cohort=str(cohort.root), **(SETTINGS | settings)), run)
    return run


def test_volumetric_tokens_stand_beside_slices_in_the_same_folds(
    only_z: Cohort, cube_net: str, slice_net: str
) -> None:
    run = aggregated(only_z, backbone=slice_net, volumetric=cube_net)
    table = run.tables["tables/aggregation.csv"].set_index("aggregator")
    assert {"center", "mean", "attention_z", "planes", "volumetric", "volumetric_random"} <= set(table.index)
    assert (table["n_nodules"] == 2 * N_PATIENTS).all()
    # Twins hold the same triplets, so the mean over z and the center slice are the same for both, to rounding.
    for blind in ("center", "mean", "center3_mean"):
        assert table.loc[blind, "auroc"] == pytest.approx(0.5, abs=0.03)
    assert run.metrics["aggregation/volumetric_auroc"] == table.loc["volumetric", "auroc"]
    assert np.isfinite(table.loc["volumetric", "p_holm"])
    assert np.isnan(table.loc["volumetric_random", "p_holm"])
    assert {"aggregation/volumetric_over_random", "aggregation/volumetric_over_random_p"} <= set(run.metrics)
    assert run.tags["dinox.probed_volumes"] == cube_net


def test_patients_are_tested_that_neither_network_saw(only_z: Cohort, slice_net: str, tmp_path: Path) -> None:
    half = saved(tmp_path / "half", {"holdout": "half_a"}, image_depth_px=16, patch_depth_px=4)
    other = saved(tmp_path / "other", {"holdout": "half_b"})
    config = AggregationConfig(cohort=str(only_z.root), volumetric=half)
    nodules = labeled_nodules(config, only_z, CropSpec(size_mm=32.0, out_px=16))
    patients = nodules.patient_ids

    def reader(name: str) -> Reader[LoadedBackbone]:
        return reader_of(open_backbone(name), only_z, patients, "avoid")

    (volumes,) = volumes_beside(config, [reader(slice_net)], only_z, nodules)
    both = joined(reader(slice_net), volumes)
    assert both.tested == {patient for patient in patients if is_held_out(patient, "half_a")} != set(patients)
    assert both.loaded.source == slice_net
    with pytest.raises(ProbeError, match="no patient may be tested by both"):
        volumes_beside(config, [reader(other)], only_z, nodules)
    with pytest.raises(ProbeError, match="volumetric names 1 backbones and backbone 2"):
        volumes_beside(config, [reader(slice_net), reader(other)], only_z, nodules)


def test_networks_of_the_wrong_kind_are_refused_in_one_sentence(
    only_z: Cohort, only_mm: Cohort, cube_net: str, told_net: str, slice_net: str, tmp_path: Path
) -> None:
    with pytest.raises(ProbeError, match="there are no slices of it to pool; name it by volumetric="):
        aggregated(only_z, backbone=cube_net)
    with pytest.raises(ProbeError, match="reads slices; name a 3D backbone"):
        aggregated(only_z, backbone=slice_net, volumetric=slice_net)
    with pytest.raises(ProbeError, match=r"must read alike; these read cubes of \[0, 16\] voxels"):
        probed(only_z, f"{cube_net},{slice_net}", tmp_path, rule="consensus")
    with pytest.raises(ProbeError, match="voxels=own is of 3D backbones"):
        probed(only_z, slice_net, tmp_path, rule="consensus", voxels="own")
    with pytest.raises(ProbeError, match="input=whole_slice shows slices"):
        probed(only_z, cube_net, tmp_path, rule="consensus", input="whole_slice")
    with pytest.raises(ProbeError, match="reads cubes; probe_representation compares slices"):
        run_representation(RepresentationConfig(cohort=str(only_z.root), backbone=cube_net), Recorder())
    for name in (cube_net, told_net):
        with pytest.raises(ProbeError, match="finetune trains 2D backbones"):
            run_finetune(
                FinetuneConfig(cohort=str(only_z.root), backbone=name, runs_dir=str(tmp_path)), Recorder()
            )


def test_dense_probe_finds_balls_in_cubes(only_mm: Cohort, cube_net: str) -> None:
    run = Recorder()
    config = DenseConfig(
        cohort=str(only_mm.root),
        backbone=cube_net,
        folds=3,
        device="cpu",
        size_mm=28.0,
        window="full",
        jitter_mm=4.0,
    )
    run_dense(config, run)
    table = run.tables["tables/dense.csv"].set_index("row")
    assert run.tags["dinox.masks"] == "balls"
    assert table.loc["features", "n_nodules"] == 2 * N_PATIENTS
    # Gray values tell a bright ball from lung, to within the patches of 7 mm.
    assert table.loc["pixels", "dice"] > 0.6
    assert 0 < table.loc["features", "dice"] < 1
    assert run.figures == ["figures/masks.png"]
