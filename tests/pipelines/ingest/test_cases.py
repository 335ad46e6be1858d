"""Inputs on which this reader, or others, once failed: each is read right, or refused for what is wrong with it."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from monai.data import DataLoader, Dataset
from monai.transforms.compose import Compose
from monai.transforms.spatial.dictionary import Orientationd

from pipelines.ingest.config import PrepareConfig
from pipelines.ingest.preparation import NothingReadError, Prepared, prepare_cohort
from transforms.dicom.load import LoadDicomSeriesd
from transforms.refusal import TransformError
from transforms.triplet import SliceTripletd

pytestmark = [pytest.mark.lidc, pytest.mark.usefixtures("own_key")]


@pytest.fixture(scope="module")
def cases(dinox_data: Path) -> Path:
    if not (dinox_data / "cases").is_dir():
        pytest.skip("DINOX_DATA has no folder `cases`")
    return dinox_data / "cases"


def prepared(source: Path, cohort: Path, **options: object) -> Prepared:
    return prepare_cohort(PrepareConfig(source=str(source), cohort=str(cohort), workers=1, **options))  # type: ignore[arg-type]


REFUSED = {
    "axial-mip/in": "a maximum intensity projection and not a slice",
    "gz-crc/in": "compressed data are damaged",
    "nifti-hu-times-10/in": r"its values run from -10240 to \d+, which no CT in HU does",
    "two-slices-far-apart/in": r"the slices lie 200\.0 mm apart: single images and no series",
}


@pytest.mark.parametrize("folder", REFUSED)
def test_what_cannot_be_read_right_is_refused_for_what_is_wrong_with_it(
    folder: str, cases: Path, tmp_path: Path
) -> None:
    with pytest.raises(NothingReadError, match=REFUSED[folder]):
        prepared(cases / folder, tmp_path / "c")


READ = {
    "gz-crc/good.nii.gz": ((-1, 0, 0), "its header does not say the unit of lengths"),
    "hash-uid-digits/in": ((6, 0, 0), ""),
    "hash-uid-digits/in_series": ((6, 0, 0), ""),
    "no-preamble/in": ((6, -1000, -464), ""),
    "nifti-identity-affine/in": ((-1, 0, 0), "its affine is the identity"),
    "two-slices-far-apart/hrct": (
        (10, 0, 0),
        "thin slices lie 20 mm apart: what lies between them is missing",
    ),
}


@pytest.mark.parametrize("folder", READ)
def test_what_can_be_read_is_read_whole_and_what_is_odd_is_noted(
    folder: str, cases: Path, tmp_path: Path
) -> None:
    (n_slices, lowest, highest), note = READ[folder]
    cohort = prepared(cases / folder, tmp_path / "c").cohort
    (row,) = cohort.series.to_dict("records")
    volume = cohort.volume(row["volume_id"])
    assert n_slices in (-1, len(volume))
    assert lowest == highest or (volume.min(), volume.max()) == (lowest, highest)
    assert note in row["notes"]
    assert bool(row["notes"]) == bool(note)
    assert len(row["gaps"]) == (n_slices - 1 if "thin" in note else 0)


@pytest.mark.parametrize(
    ("folder", "n_slices"), [("phases-one-series", 6), ("two-acquisitions-interleaved", 4)]
)
def test_two_acquisitions_under_one_uid_are_two_volumes(
    folder: str, n_slices: int, cases: Path, tmp_path: Path
) -> None:
    done = prepared(cases / folder / "in", tmp_path / "c")
    assert [int(shape[0]) for shape in done.cohort.series["shape"]] == [n_slices, n_slices]
    assert {float(spacing[0]) for spacing in done.cohort.series["spacing_mm"]} == {2.5}
    assert all("AcquisitionNumber" in notes for notes in done.cohort.series["notes"])
    assert not done.files.left_out


def test_padding_that_no_format_but_dicom_declares_is_kept_and_noted(cases: Path, tmp_path: Path) -> None:
    dicom, nifti = (
        prepared(cases / "nifti-padding" / kind, tmp_path / kind).cohort for kind in ("dicom", "nifti")
    )
    assert list(dicom.series["n_padding_voxels"]) == [1728]
    assert "values below -1024 HU are kept" in nifti.series["notes"][0]
    expected, kept = (one.volume(one.series["volume_id"][0]) for one in (dicom, nifti))
    np.testing.assert_array_equal(np.maximum(kept, -1024), expected)
    assert np.count_nonzero(kept < -1024) == 1728


@pytest.mark.parametrize(
    ("table", "place", "diameter_mm"),
    [("semicolon.csv", (0.5, 1.5, -280.0), 8.2), ("trailing.csv", (0.0, 1.0, -280.0), 8.0)],
)
def test_tables_as_spreadsheets_write_them_are_read(
    table: str, place: tuple[float, ...], diameter_mm: float, cases: Path, tmp_path: Path
) -> None:
    done = prepared(
        cases / "csv-locale" / "in", tmp_path / "c", annotations=str(cases / "csv-locale" / table)
    )
    (nodule,) = done.cohort.nodules.to_dict("records")
    assert tuple(nodule[f"{axis}_lps_mm"] for axis in "xyz") == place
    assert (nodule["diameter_mm"], nodule["label"]) == (diameter_mm, 1)


def test_luna16_is_the_volume_that_it_should_be_with_its_nodule(cases: Path, tmp_path: Path) -> None:
    case = cases / "luna16-mhd"
    cohort = prepared(case / "in", tmp_path / "c", annotations=str(case / "annotations.csv")).cohort
    (row,) = cohort.series.to_dict("records")
    assert list(row["shape"]) == [20, 36, 40]
    np.testing.assert_allclose(row["spacing_mm"], (2.5, 0.7, 0.7))
    np.testing.assert_allclose(np.array(row["affine_ras"]).reshape(4, 4)[:3, 3], (12.6, 12.6, -300))
    assert cohort.volume(row["volume_id"]).min() == -1024
    (nodule,) = cohort.nodules.to_dict("records")
    assert [nodule[f"{axis}_lps_mm"] for axis in "xyz"] == [0, 1, -280]
    assert re.fullmatch("series-[0-9a-f]{24}", row["volume_id"])


def test_a_file_that_was_mended_at_its_source_is_read_again(cases: Path, tmp_path: Path) -> None:
    shutil.copytree(cases / "stale-prepare" / "first", tmp_path / "source")
    before = prepared(tmp_path / "source", tmp_path / "c", verify=True).cohort
    shutil.copy(cases / "stale-prepare" / "second" / "a.nii.gz", tmp_path / "source" / "a.nii.gz")
    again = prepared(tmp_path / "source", tmp_path / "c", verify=True)
    assert again.n_new == 1
    assert before.series["spacing_mm"][0][0] == pytest.approx(2.5)
    assert again.cohort.series["spacing_mm"][0][0] == pytest.approx(1.25)


def test_volumes_with_and_without_a_note_make_one_batch(cases: Path) -> None:
    items = [{"image": str(cases / "monai-batch-notes" / name), "z": 2} for name in "ab"]
    chain = Compose([LoadDicomSeriesd("image"), SliceTripletd("image")])
    (batch,) = DataLoader(Dataset(items, chain), batch_size=2)
    assert batch["image"].shape[:2] == (2, 3)
    assert sorted(map(bool, batch["image"].meta["notes"])) == [False, True]


def test_a_triplet_is_not_cut_along_another_axis(cases: Path) -> None:
    turn = Orientationd("image", axcodes="RAS", labels=None)
    chain = Compose([LoadDicomSeriesd("image"), turn, SliceTripletd("image")])
    with pytest.raises(RuntimeError) as caught:  # MONAI's own, around ours
        chain({"image": str(cases / "triplet-after-orientation" / "in"), "z": 2})
    assert "axes are not (z" in str(caught.value.__cause__)
    assert isinstance(caught.value.__cause__, TransformError)
