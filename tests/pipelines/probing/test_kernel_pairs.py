"""One acquisition with two convolution kernels: planted in a phantom, and real."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter

from models.backbone import build_backbone
from models.config import BackboneConfig
from pipelines.audit.measures import kernel_distance
from pipelines.backbones.folder import open_backbone, save_backbone
from pipelines.cohort.folder import Cohort
from pipelines.encoders.cube_encoder import CubeEncoder
from pipelines.ingest.config import PrepareConfig
from pipelines.ingest.preparation import prepare_cohort
from pipelines.phantom.dicom import SeriesHeader, write_series
from pipelines.probing.config import ProbeConfig, RepresentationConfig
from pipelines.probing.kernel_pairs import (
    LungCrops,
    kernel_table,
    kernel_text,
    pair_crops,
    pairs_of,
    shared_slices,
)
from pipelines.probing.representation import run_representation
from probes.representation import patient_distance
from probes.statistics.checks import UnmeasurableError
from tests.recorder import Recorder
from transforms.dicom.series import read_series
from transforms.nodule_crop import CropSpec
from transforms.nodule_cube import CubeSpec

TINY = BackboneConfig(arch="custom", depth=1, embed_dim=24, heads=2, patch_px=7, registers=0, image_px=28)
SPEC = CropSpec(size_mm=40.0, out_px=40)


@pytest.fixture(scope="module")
def source(small_phantom_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The six patients, each with a second series: the same chest, and pixels of +-100 HU in turn that cancel."""
    root = tmp_path_factory.mktemp("two_kernels") / "source"
    shutil.copytree(small_phantom_source, root)
    for folder in sorted(root.glob("*/study-1")):
        series = read_series(sorted((folder / "series-1").glob("*.dcm")))
        _, y, x = series.volume_hu.shape
        sharp = 100 * (-1) ** np.add.outer(np.arange(y), np.arange(x))
        header = SeriesHeader(
            key=f"second of {series.series_uid}",
            patient_id=series.patient_id,
            flavour="ge",
            spacing_mm=series.spacing_mm,
            slice_thickness_mm=series.slice_thickness_mm,
            first_voxel_lps_mm=tuple(series.geometry.to_lps([0, 0, 0])),
            personal={"ConvolutionKernel": "ULTRA", "StudyInstanceUID": series.study_uid},
        )
        inside = np.where(series.volume_hu > -1024, series.volume_hu + sharp, -1024)
        write_series(folder / "series-2", header, inside.astype(np.int16), np.random.default_rng(0))
    return root


@pytest.fixture(scope="module")
def cohort(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    root = tmp_path_factory.mktemp("cohorts") / "two_kernels"
    return prepare_cohort(PrepareConfig(source=str(source), cohort=str(root), workers=1)).cohort


def mean_hu(crops: LungCrops) -> np.ndarray:
    """An encoder that sees the mean alone."""
    return crops.hu[:, 1].mean(axis=(1, 2))[:, None]


def noise_hu(crops: LungCrops) -> np.ndarray:
    """An encoder that sees how much neighboring pixels differ, away from edges, alone."""
    middle = crops.hu[:, 1]
    return np.median(np.abs(middle - uniform_filter(middle, (0, 5, 5))), axis=(1, 2))[:, None]


def of_patients(cohort: Cohort, n: int) -> Cohort:
    few = Cohort(cohort.root)
    few.series = few.series[few.series["patient_id"].isin(sorted(set(few.series["patient_id"]))[:n])]
    return few


def test_a_kernel_moves_an_encoder_of_noise_and_not_one_of_the_mean(cohort: Cohort) -> None:
    crops = pair_crops(cohort, set(cohort.series["patient_id"]), SPEC)
    assert crops is not None
    assert crops.n_patients == 6
    assert not crops.others.places
    assert crops.n_other_images == 0
    found = kernel_table(crops, {"mean": mean_hu, "noise": noise_hu})
    assert found["mean"]["moved_by_kernel"].value < 0.01
    assert found["mean"]["moved_by_next_slice"].value > 5 * found["mean"]["moved_by_kernel"].value
    assert found["noise"]["moved_by_kernel"].ci_low > 0.5
    assert found["noise"]["moved_by_next_slice"].ci_high < 0.25
    assert "not testable" not in kernel_text(crops, found)


def test_few_patients_have_distances_and_nothing_is_concluded(cohort: Cohort) -> None:
    few = of_patients(cohort, 4)
    crops = pair_crops(few, set(few.series["patient_id"]), SPEC)
    assert crops is not None
    found = kernel_table(crops, {"mean": mean_hu})
    assert isinstance(found["mean"]["moved_by_kernel"], float)
    text = kernel_text(crops, found)
    assert "not testable with 4: 5 patients" in text
    assert "[" not in text
    assert kernel_text(None, {}).startswith("kernel pairs: not testable: none of the tested patients")
    one = replace(
        crops,
        first=LungCrops(crops.first.hu[:3], crops.first.places[:3]),
        patient_ids=crops.patient_ids[:3],
        others=LungCrops(crops.first.hu[:0], []),
        other_ids=[],
    )
    with pytest.raises(UnmeasurableError, match="come from one patient"):
        kernel_table(one, {"mean": mean_hu})


def test_other_slices_another_study_or_the_same_kernel_are_no_pair(cohort: Cohort) -> None:
    series = cohort.series
    assert len(pairs_of(series)) == 6
    one, other = pairs_of(series)[0]
    assert one["patient_id"] == other["patient_id"]
    assert {one["kernel"], other["kernel"]} == {"ULTRA", one["kernel"]}
    depth = int(one["shape"][0])
    assert shared_slices(one, other).tolist() == list(range(depth))
    affine = np.array(other["affine_ras"], dtype=float).reshape(4, 4)
    affine[2, 3] += 2 * affine[2, 0]
    assert shared_slices(one, {**other, "affine_ras": affine.ravel()}).tolist() == list(range(2, depth))
    affine[2, 3] += affine[2, 0] / 2
    assert not len(shared_slices(one, {**other, "affine_ras": affine.ravel()}))
    is_sharp = series["kernel"] == "ULTRA"
    assert not pairs_of(series.assign(study_uid=np.where(is_sharp, "other", series["study_uid"])))
    assert not pairs_of(series.assign(kernel="ULTRA"))
    assert not pairs_of(series.assign(kernel=np.where(is_sharp, "", series["kernel"])))


def test_two_images_that_are_not_of_one_acquisition_are_left_out_and_counted(cohort: Cohort) -> None:
    """Patients 1 and 6 are scanned with one spacing; the second series of each is given to the other."""
    swapped = Cohort(cohort.root)
    series = swapped.series
    is_sharp = series["kernel"] == "ULTRA"
    shapes = series["shape"].map(lambda shape: int(shape[0]))
    first, last = series[is_sharp & (shapes == shapes.mode()[0])].index[:2]
    place = ["patient_id", "study_uid", "affine_ras", "slice_offsets_mm"]
    series.loc[[first, last], place] = series.loc[[last, first], place].to_numpy()
    crops = pair_crops(swapped, set(series["patient_id"]), SPEC)
    assert crops is not None
    assert crops.n_other_images == 2
    assert crops.n_patients == 4
    assert len(set(crops.other_ids)) == 2
    assert "2 pairs left out" in kernel_text(crops, kernel_table(crops, {"mean": mean_hu}))


def test_the_probe_prints_and_logs_kernel_pairs_beside_random_weights(
    cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    save_backbone(tmp_path / "seen", build_backbone(TINY), TINY, {"holdout": 0.0, "leak": "no_holdout"})
    run = Recorder()
    config = RepresentationConfig(
        cohort=str(cohort.root), backbone=str(tmp_path / "seen"), size_mm=40.0, slices=8, device="cpu"
    )
    run_representation(config, run)
    assert run.metrics["representation/n_kernel_patients"] == 6
    for network in ("", "random_"):
        for measure in ("moved_by_kernel", "moved_by_next_slice"):
            name = f"representation/{network}{measure}"
            assert run.metrics[f"{name}_ci_low"] <= run.metrics[name] <= run.metrics[f"{name}_ci_high"]
    printed = capsys.readouterr().out
    assert "of 6 patients reconstructed twice (B and ULTRA, STANDARD and ULTRA)" in printed


def cubes_of(network: Callable[[np.ndarray], np.ndarray]) -> CubeEncoder:
    spec = CubeSpec(shape=(8, 24, 24), spacing_mm=(2.0, 1.0, 1.0))
    return CubeEncoder("python:own", spec, lambda cubes, _: network(cubes)[:, None], "")


def test_an_audit_knows_how_far_a_kernel_moves_encoders_of_cubes_and_roi_readings(
    cohort: Cohort, tmp_path: Path
) -> None:
    """The planted pixels cancel in a mean over a cube; in their differences along a row they are 200 HU."""
    own, patients = ProbeConfig(seed=0), set(cohort.series["patient_id"])
    mean = kernel_distance(cohort, own, cubes_of(lambda cubes: cubes.mean((1, 2, 3))), patients)
    noise = cubes_of(lambda cubes: np.median(np.abs(np.diff(cubes, axis=3)), (1, 2, 3)))
    assert float(mean.split()[0]) < 0.05
    assert float(kernel_distance(cohort, own, noise, patients).split()[0]) > 0.5
    assert "6 patients" in mean
    torch.manual_seed(0)
    save_backbone(tmp_path / "seen", build_backbone(TINY), TINY, {"holdout": 0.0, "leak": "no_holdout"})
    roi = ProbeConfig(features="roi", window="full", size_mm=40.0, device="cpu")
    said = kernel_distance(cohort, roi, open_backbone(str(tmp_path / "seen")), patients)
    assert float(said.split()[0]) > 0
    assert "read in a disk of 10 mm; 6 patients" in said


@pytest.mark.lidc
def test_a_real_acquisition_with_two_kernels_is_found(dinox_data: Path, tmp_path: Path) -> None:
    """Philips kernels B and L: L is the sharper one."""
    folder = dinox_data / "chest" / "Lung_Dx-A0001"
    if not folder.is_dir():
        pytest.skip("DINOX_DATA has no folder `chest/Lung_Dx-A0001`")
    cohort = prepare_cohort(PrepareConfig(source=str(folder), cohort=str(tmp_path / "c"), workers=1)).cohort
    crops = pair_crops(cohort, set(cohort.series["patient_id"]), SPEC)
    assert crops is not None
    assert (crops.n_patients, crops.kernels, crops.n_other_images) == (1, ("B and L",), 0)
    assert noise_hu(crops.second).mean() > 1.5 * noise_hu(crops.first).mean()
    assert np.abs(mean_hu(crops.second) - mean_hu(crops.first)).mean() < 5
    with pytest.raises(UnmeasurableError, match="come from one patient"):
        kernel_table(crops, {"noise": noise_hu})


def test_the_distance_of_patients_is_the_mean_over_pairs_of_different_ones() -> None:
    generator = np.random.default_rng(0)
    features, patients = generator.normal(5, 1, (30, 4)), np.arange(30) // 7
    pairs = [(i, j) for i in range(30) for j in range(30) if patients[i] != patients[j]]
    expected = np.mean([((features[i] - features[j]) ** 2).sum() for i, j in pairs])
    assert patient_distance(features, patients) == pytest.approx(expected)
    with pytest.raises(UnmeasurableError, match="are equal"):
        patient_distance(np.ones((30, 4)), patients)
