"""What `probe_malignancy` promises of several backbones, of its cache, and of inputs that cannot go together."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch

from models.backbone import build_backbone
from models.config import BackboneConfig
from pipelines.backbones.folder import open_backbone, save_backbone
from pipelines.cohort.folder import Cohort
from pipelines.cohort.meta_volume import crop_at
from pipelines.cohort.tables import NODULES, SERIES, write_table
from pipelines.ingest.config import PrepareConfig
from pipelines.ingest.preparation import prepare_cohort
from pipelines.probing.config import ProbeConfig
from pipelines.probing.malignancy import run_probe
from pipelines.probing.reading import FrozenFeatures
from pipelines.probing.setup import labeled_nodules, open_cohort
from probes.splits import is_held_out
from tests.recorder import Recorder
from transforms.nodule_crop import CropSpec
from transforms.refusal import NoCropError

TINY = BackboneConfig(arch="custom", depth=1, embed_dim=24, heads=2, patch_px=7, registers=0, image_px=14)
N_PATIENTS = 36

Voxels = Callable[[int], np.ndarray]


def backbone(folder: Path, seed: int = 0, **record: Any) -> str:
    torch.manual_seed(seed)
    save_backbone(folder, build_backbone(TINY), TINY, {"leak": "", "steps": 1} | record)
    return str(folder)


def cohort_of(root: Path, voxels: Voxels, labels: list[int], prefix: str = "p") -> Cohort:
    """One NIfTI scan and one nodule, in its middle, of patient p0, p1 ... for each label."""
    rows = []
    (root / "scans").mkdir(parents=True)
    for number, label in enumerate(labels):
        image = nibabel.Nifti1Image(voxels(number).astype(np.int16), np.diag([-1.0, -1.0, 2.0, 1.0]))
        nibabel.save(image, root / "scans" / f"{number}.nii.gz")
        place = {"x_lps_mm": 20.0, "y_lps_mm": 20.0, "z_lps_mm": 4.0, "diameter_mm": 8.0}
        rows.append({"file": f"{number}.nii.gz", "patient_id": f"{prefix}{number}", "label": label} | place)
    pd.DataFrame(rows).to_csv(root / "t.csv", index=False)
    config = PrepareConfig(
        source=str(root / "scans"),
        cohort=str(root / "c"),
        from_="nifti",
        annotations=str(root / "t.csv"),
        keep_ids=True,
        workers=1,
    )
    return prepare_cohort(config).cohort


def probed(cohort: Cohort, backbones: str, runs: Path, **changes: Any) -> Recorder:
    run = Recorder(draws=False)
    settings = {
        "rule": "given",
        "size_mm": 14.0,
        "folds": 3,
        "repeats": 1,
        "n_bootstrap": 20,
        "draws": 99,
        "device": "cpu",
    }
    config = ProbeConfig(
        cohort=str(cohort.root), backbone=backbones, runs_dir=str(runs), **(settings | changes)
    )
    with fewer_repeats():
        run_probe(config, run)
    return run


@contextlib.contextmanager
def fewer_repeats() -> Iterator[None]:
    """Let probes do less of what is only repeated: networks with random weights, permutations, patches, draws."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("probes.dictionary._PATCHES_PER_CROP", 40)
        patch.setattr("pipelines.probing.malignancy.PERMUTATIONS", 2)
        patch.setattr("pipelines.probing.question.PERMUTATIONS", 2)
        patch.setattr("pipelines.probing.reading.TWINS", 2)
        for module in ("question", "external"):
            patch.setattr(f"pipelines.probing.{module}.BASELINE_DRAWS", 199)
        yield


def noise(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(-300, 200, (40, 40, 5)).clip(-1000, 400)


def test_cross_fitted_backbones_that_see_nothing_score_one_half_though_the_halves_differ(
    tmp_path: Path,
) -> None:
    in_a = np.array([is_held_out(f"p{number}", "half_a") for number in range(N_PATIENTS)])
    turn = np.where(in_a, np.cumsum(in_a), np.cumsum(~in_a))
    labels = np.where(in_a, turn % 3 > 0, turn % 4 == 0).astype(int)  # two thirds malignant against a quarter
    cohort = cohort_of(tmp_path, lambda number: np.full((40, 40, 5), -700), labels.tolist())
    pair = [backbone(tmp_path / half, seed, holdout=half) for seed, half in enumerate(("half_a", "half_b"))]
    run = probed(cohort, ",".join(pair), tmp_path / "runs")
    assert run.tags["dinox.probed"] == ",".join(pair)
    assert len(set(run.tags["dinox.backbone_sha"].split(","))) == 2
    assert run.metrics["probe/n_nodules"] == N_PATIENTS
    for row in ("", "random_", "pixels_", "shuffled_"):
        assert run.metrics[f"probe/{row}auroc"] == pytest.approx(0.5, abs=1e-9), row


def features_of(cohort: Cohort, name: str, runs: Path) -> tuple[np.ndarray, np.ndarray]:
    """Of a backbone and of its random twin, as a probe of this cohort reads them."""
    config = ProbeConfig(
        cohort=str(cohort.root), rule="given", size_mm=14.0, device="cpu", runs_dir=str(runs)
    )
    nodules = labeled_nodules(config, open_cohort(config), CropSpec(size_mm=14.0, out_px=14))
    reader = FrozenFeatures(config, open_backbone(name), nodules)
    return reader.learned(), reader.twin(0)


def test_features_are_computed_anew_when_places_or_scales_change_and_only_then(tmp_path: Path) -> None:
    cohort = cohort_of(tmp_path, noise, [number % 2 for number in range(12)])
    name, runs = backbone(tmp_path / "b", holdout=1.0), tmp_path / "runs"
    first = features_of(cohort, name, runs)
    cached = {path.name for path in (runs / "features").iterdir()}
    assert len(cached) == 2
    np.testing.assert_array_equal(features_of(cohort, name, runs), first)
    assert {path.name for path in (runs / "features").iterdir()} == cached

    # The same volumes and ids with places put right, as `prepare` with a mended table leaves them.
    moved = cohort.nodules.assign(x_lps_mm=26.0)
    write_table(cohort.root / "nodules.parquet", moved, NODULES)
    mended = features_of(cohort, name, runs)
    np.testing.assert_array_equal(mended, features_of(cohort, name, tmp_path / "other"))
    assert not np.allclose(mended[0], first[0])

    # Random weights of the same architecture under another scale of HU.
    tenth = backbone(tmp_path / "tenth", 1, holdout=1.0, hu_scale=0.1)
    shown = features_of(cohort, tenth, runs)
    np.testing.assert_array_equal(shown, features_of(cohort, tenth, tmp_path / "third"))
    assert not np.allclose(shown[1], mended[1])


def test_a_whole_slice_has_no_neighborhood_of_its_nodule() -> None:
    with pytest.raises(ValueError, match="features=neighborhood is the middle of the image"):
        ProbeConfig(input="whole_slice", features="neighborhood")


def test_a_whole_slice_through_a_nodule_off_the_grid_is_left_out_of_every_row(tmp_path: Path) -> None:
    cohort = cohort_of(tmp_path, noise, [number % 2 for number in range(14)])
    off = cohort.nodules.copy()
    off.loc[3, "x_lps_mm"] = 90.0
    write_table(cohort.root / "nodules.parquet", off, NODULES)
    # So small a file is taken for a patch.
    write_table(cohort.root / "series.parquet", cohort.series.assign(kind="series"), SERIES)
    run = probed(cohort, backbone(tmp_path / "b", holdout=1.0), tmp_path / "runs", input="whole_slice")
    assert run.metrics["probe/n_nodules"] == 13
    assert run.tables["tables/dropped.parquet"]["nodule_id"].tolist() == [off["nodule_id"][3]]


def planted_in_crops(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[str], Any]) -> None:
    """Call `spoil` with the volume of every seventh patient before its nodule is cropped."""

    def crop(cohort: Cohort, row: Any, *arguments: Any) -> Any:
        if list(cohort.series["volume_id"]).index(row["volume_id"]) % 7 == 6:
            spoil(row["volume_id"])
        return crop_at(cohort, row, *arguments)

    monkeypatch.setattr("pipelines.nodule.labeled.crop_at", crop)


def test_a_bug_in_every_seventh_crop_ends_the_probe_and_makes_no_smaller_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = cohort_of(tmp_path, noise, [number % 2 for number in range(28)])
    planted_in_crops(monkeypatch, lambda _: np.zeros(3) + np.zeros(4))
    with pytest.raises(ValueError, match="operands could not be broadcast"):
        probed(cohort, backbone(tmp_path / "b", holdout=1.0), tmp_path / "runs")


def test_nodules_without_a_crop_and_those_only_trained_on_are_counted_and_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort = cohort_of(tmp_path, noise, [number % 2 for number in range(28)])
    unlabeled = cohort.nodules.assign(label=cohort.nodules["label"].where(cohort.nodules.index > 0))
    write_table(cohort.root / "nodules.parquet", unlabeled, NODULES)

    def spoil(volume_id: str) -> None:
        raise NoCropError("center outside the volume", f"the center lies outside {volume_id}")

    planted_in_crops(monkeypatch, spoil)
    run = probed(cohort, backbone(tmp_path / "b", holdout=0.6), tmp_path / "runs")
    left_out, seen = run.tables["tables/dropped.parquet"], "fitted on, never tested"
    n_tested, n_seen = int(run.metrics["probe/n_nodules"]), int((left_out["kind"] == seen).sum())
    assert left_out["kind"].value_counts().to_dict() == {
        "the table of nodules states no label": 1,
        "no crop (center outside the volume)": 4,
        seen: n_seen,
    }
    shown = capsys.readouterr().out
    assert f"28 nodules: {n_tested} tested, {len(left_out)} left out: {n_seen} {seen}; 4 no crop" in shown
    tested = run.tables["tables/predictions.parquet"]["nodule_id"].tolist()
    assert sorted([*tested, *left_out["nodule_id"]]) == sorted(cohort.nodules["nodule_id"])
    assert len(tested) == n_tested
