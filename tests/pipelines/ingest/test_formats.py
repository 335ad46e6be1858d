"""The format of a source is found by itself, and the same scan is the same volume through every door."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from pipelines.ingest.config import PrepareConfig
from pipelines.ingest.ct_volumes import CtFolder
from pipelines.ingest.preparation import Prepared, prepare_cohort

pytestmark = pytest.mark.usefixtures("own_key")
Writer = Callable[..., list[Path]]
UID = "1.2.826.0.1.3680043.8.498.16"


def prepared(source: Path, cohort: Path, **options: object) -> Prepared:
    return prepare_cohort(
        PrepareConfig(source=str(source), cohort=str(cohort), keep_ids=True, workers=1, **options)  # type: ignore[arg-type]
    )


@pytest.fixture
def image(write_ct_series: Writer, tmp_path: Path) -> SimpleITK.Image:
    files = write_ct_series(tmp_path / "dicom")
    return SimpleITK.ReadImage([str(file) for file in sorted(files, key=lambda file: file.name[-5])])


def write_npy(image: SimpleITK.Image, path: Path) -> None:
    """The array as SimpleITK gives it, index (k, j, i), and its description."""
    np.save(path, SimpleITK.GetArrayFromImage(image))
    corner = np.array(image.TransformIndexToPhysicalPoint((0, 0, 0)))
    ends = [
        image.TransformIndexToPhysicalPoint(tuple(int(a == axis) for a in range(3))) for axis in (2, 1, 0)
    ]
    lps = np.column_stack([*(np.array(end) - corner for end in ends), corner])
    affine = np.vstack([np.diag([-1, -1, 1]) @ lps, [0, 0, 0, 1]])
    description = {"affine_ras": affine.ravel().tolist(), "unit": "HU"}
    path.with_suffix(".json").write_text(json.dumps(description))


NAMES = ("v.mha", "v.mhd", "v.nrrd", "v.nhdr", "v.nii.gz", "v.NII.GZ", "v.hdr", "v.npy")


@pytest.mark.parametrize(
    ("axes", "names"), [("LPS", NAMES), ("RAS", NAMES[::2]), ("SAL", NAMES[1::2])], ids=["LPS", "RAS", "SAL"]
)
def test_one_scan_is_the_same_volume_in_every_format_found_by_itself(
    axes: str, names: tuple[str, ...], image: SimpleITK.Image, tmp_path: Path
) -> None:
    cohort = prepared(tmp_path / "dicom", tmp_path / "c-dicom").cohort
    expected = np.array(cohort.volume("1.2.3.4"))
    for name in names:
        folder = tmp_path / f"s-{name}"
        folder.mkdir()
        written, oriented = folder / name.lower(), SimpleITK.DICOMOrient(image, axes)
        if name == "v.npy":
            write_npy(oriented, written)
        else:
            SimpleITK.WriteImage(oriented, written, useCompression=name != "v.mhd")
        written.rename(folder / name)
        for source in (folder, folder / name)[: 2 if axes == "LPS" else 1]:
            done = prepared(source, tmp_path / f"c-{name}")
            (row,) = done.cohort.series.to_dict("records")
            np.testing.assert_array_equal(done.cohort.volume(row["volume_id"]), expected)
            np.testing.assert_allclose(row["affine_ras"], cohort.series["affine_ras"][0], atol=1e-4)
            assert done.cohort.refused.empty
            assert row["n_padding_voxels"] == 0
            (volume,) = CtFolder(source)
            np.testing.assert_array_equal(volume.volume_hu, expected)


def test_a_file_named_by_a_uid_is_that_series(image: SimpleITK.Image, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    SimpleITK.WriteImage(image, tmp_path / "s" / f"{UID}.mhd", useCompression=True)
    (row,) = prepared(tmp_path / "s", tmp_path / "c").cohort.series.to_dict("records")
    assert (row["volume_id"], row["series_uid"]) == (UID, UID)


def test_other_formats_beside_dicom_are_refused_by_name_and_read_when_asked_for(
    image: SimpleITK.Image, tmp_path: Path
) -> None:
    SimpleITK.WriteImage(image, tmp_path / "dicom" / "v.mha")
    SimpleITK.WriteImage(image, tmp_path / "dicom" / "w.mhd")
    done = prepared(tmp_path / "dicom", tmp_path / "c")
    assert list(done.cohort.series["volume_id"]) == ["1.2.3.4"]
    (refused,) = done.cohort.refused.to_dict("records")
    assert refused["reason"] == "a file of another format beside DICOM series; read it with from=metaimage"
    assert refused["n_files"] == 3
    assert len(prepared(tmp_path / "dicom", tmp_path / "m", from_="metaimage").cohort.series) == 2


def test_formats_of_volumes_may_be_mixed_and_a_damaged_file_is_refused_alone(
    image: SimpleITK.Image, tmp_path: Path
) -> None:
    (tmp_path / "s").mkdir()
    for name in ("a.mha", "b.nrrd", "c.nii.gz", "d.mhd"):
        SimpleITK.WriteImage(image, tmp_path / "s" / name, useCompression=True)
    (tmp_path / "s" / "d.zraw").write_bytes((tmp_path / "s" / "d.zraw").read_bytes()[:-4])
    (tmp_path / "s" / "readme.txt").write_text("of the scans")
    done = prepared(tmp_path / "s", tmp_path / "c")
    assert len(done.cohort.series) == 3
    assert done.cohort.refused["n_files"].sum() == 3
    assert any("CompressedDataSize" in reason for reason in done.cohort.refused["reason"])
