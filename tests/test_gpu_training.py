"""What goes to a rented GPU and comes back: a smaller cohort with the same voxels, and backbones in parts."""

import json
import tarfile
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.gpu import train as training
from benchmarks.gpu.collect import collect
from benchmarks.gpu.pack import pack, smaller
from benchmarks.gpu.train import Arm
from pipelines.backbones.folder import open_backbone
from pipelines.cohort.folder import Cohort
from pipelines.ingest.config import PrepareConfig
from pipelines.ingest.preparation import prepare_cohort
from transforms.geometry import VolumeGeometry

MARKED_HU = 321
CENTER_ZYX = (4, 20, 20)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Eight scans with one voxel that is told by its HU, at the center of a nodule."""
    root = tmp_path_factory.mktemp("carried")
    (root / "scans").mkdir()
    rows = []
    for number in range(8):
        voxels = np.random.default_rng(number).integers(-900, 100, (40, 40, 9), dtype=np.int16)
        voxels[20, 20, 4] = MARKED_HU
        image = nibabel.Nifti1Image(voxels, np.diag([-1.0, -1.0, 2.0, 1.0]))
        nibabel.save(image, root / "scans" / f"{number}.nii.gz")
        place = {"x_lps_mm": 20.0, "y_lps_mm": 20.0, "z_lps_mm": 8.0, "diameter_mm": 8.0}
        rows.append({"file": f"{number}.nii.gz", "patient_id": f"p{number}", "label": number % 2} | place)
    pd.DataFrame(rows).to_csv(root / "t.csv", index=False)
    paths = {"source": str(root / "scans"), "cohort": str(root / "c"), "annotations": str(root / "t.csv")}
    return prepare_cohort(PrepareConfig(**paths, from_="nifti", keep_ids=True, workers=1)).cohort  # type: ignore[arg-type]


def test_a_packed_cohort_shows_the_same_voxel_at_the_same_place(cohort: Cohort, tmp_path: Path) -> None:
    assert pack(cohort.root, tmp_path / "small.tar.xz", side_mm=12.0, slices=5) == 8
    with tarfile.open(tmp_path / "small.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    small = Cohort.open(tmp_path / "small")
    assert len(small.nodules) == 8
    for row in small.series.to_dict("records"):
        assert tuple(row["shape"]) == (9, 12, 12)
        nodule = small.nodules[small.nodules["volume_id"] == row["volume_id"]].iloc[0]
        geometry = VolumeGeometry.from_row(row)
        index = geometry.to_index([nodule["x_lps_mm"], nodule["y_lps_mm"], nodule["z_lps_mm"]])
        assert small.volume(row["volume_id"])[tuple(np.rint(index).astype(int))] == MARKED_HU


@pytest.mark.parametrize(("kind", "shape"), [("patch", (9, 11, 11)), ("series", (3, 40, 40))])
def test_a_patch_is_cut_in_the_plane_and_a_series_along_z(
    cohort: Cohort, kind: str, shape: tuple[int, ...]
) -> None:
    row = cohort.series.to_dict("records")[0]
    volume = cohort.volume(row["volume_id"])
    changed, cut = smaller(row | {"kind": kind}, volume, side_mm=11.0, slices=3)
    assert cut.shape == shape
    before, after = VolumeGeometry.from_row(row), VolumeGeometry.from_row(changed | {"shape": cut.shape})
    place = before.to_lps(np.array(CENTER_ZYX, dtype=float))
    assert cut[tuple(np.rint(after.to_index(place)).astype(int))] == volume[CENTER_ZYX] == MARKED_HU


def test_what_is_trained_comes_back_in_parts_and_becomes_a_backbone(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "PART_BYTES", 20_000)
    monkeypatch.setattr(training, "_TIMED", 2)
    tiny = {"backbone.depth": 1, "backbone.embed_dim": 32, "backbone.heads": 2, "backbone.image_px": 16}
    tiny |= {"views.size_px": 16, "batch_size": 4, "holdout": 0.0, "log_every": 2}
    arm = Arm("tiny", "nodule_simclr", tuple((name, str(value)) for name, value in tiny.items()), 1.0)
    training.train(0.02, cohort.root, tmp_path / "back", torch.device("cpu"), (arm,))

    files = sorted((tmp_path / "back").glob("*.safetensors"))
    assert len(files) > 1
    lines = [json.loads(text) for text in (tmp_path / "back" / "tiny.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == json.loads((tmp_path / "back" / "tiny.json").read_text())["record"]["steps"]
    assert np.isfinite([line["loss/total"] for line in lines]).all()

    (folder,) = collect(tmp_path / "back", tmp_path / "backbones")
    loaded = open_backbone(str(folder))
    assert sorted(loaded.record["trained_on"]["patient"]) == [f"p{number}" for number in range(8)]
    values = torch.cat([one.flatten() for one in loaded.backbone.vit.state_dict().values()])
    assert torch.equal(values, values.bfloat16().float()), "the precision that was carried"
    assert values.std() > 0
