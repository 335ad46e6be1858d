"""NIfTI, PNG and tables of nodules come into a cohort in the same way, and every row left out is counted."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest

from pipelines.cohort.folder import Cohort
from pipelines.cohort.tables import NODULES
from pipelines.ingest.annotation_csv import AnnotationTable, AnnotationTableError
from pipelines.ingest.config import PrepareConfig
from pipelines.ingest.preparation import NothingReadError, Prepared, prepare_cohort
from pipelines.ingest.sources.found import SourceError
from transforms.geometry import index_to_lps

Writer = Callable[..., list[Path]]

NODULE = {
    "file": "a/LIDC-IDRI-0003_n1.nii.gz",
    "patient_id": "LIDC-IDRI-0003",
    "x_lps_mm": "3.0",
    "y_lps_mm": "2.0",
    "z_lps_mm": "5.0",
    "diameter_mm": "7.5",
    "malignancy_ratings": "5;4;5",
    "lobe": "upper left",
    "patient_name": "Isolde",
}


pytestmark = pytest.mark.usefixtures("own_key")


def prepared(source: Path, cohort: Path, **changes: Any) -> Prepared:
    return prepare_cohort(
        PrepareConfig(**{"source": str(source), "cohort": str(cohort), "workers": 1} | changes)
    )


def write_nifti(path: Path, shape_xyz: tuple[int, int, int] = (10, 12, 8), low: int = -900) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(len(path.name)).integers(low, 300, shape_xyz).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1.0, -1.0, 2.0, 1.0])), path)


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_table_meets_its_files_and_every_other_row_is_counted(tmp_path: Path) -> None:
    write_nifti(tmp_path / "s" / "a" / "LIDC-IDRI-0003_n1.nii.gz")
    write_nifti(tmp_path / "s" / "a" / "LIDC-IDRI-0004_n1.nii.gz", (200, 200, 8))
    write_nifti(tmp_path / "s" / "mask.nii.gz", low=0)
    rows = [
        NODULE,
        NODULE
        | {"file": "a/LIDC-IDRI-0004_n1.nii.gz", "patient_id": "LIDC-IDRI-0004", "nodule_id": "LIDC-4a"},
        NODULE | {"file": "a/missing.nii.gz"},
        NODULE | {"x_lps_mm": "300"},
        NODULE | {"malignancy_ratings": "5;9"},
        NODULE | {"diameter_mm": "wide"},
        NODULE | {"malignancy_ratings": ""},
        NODULE | {"malignancy_ratings": "", "label": "1", "x_lps_mm": "6.0"},
        NODULE | {"label": "maybe"},
    ]
    table = write_csv(tmp_path / "s" / "nodules.csv", rows)
    done = prepared(tmp_path / "s", tmp_path / "c", from_="nifti", annotations=str(table))
    cohort = done.cohort
    assert len(cohort.nodules) + done.rows.left_out.total() == len(rows)
    assert done.rows.left_out.total() == int(cohort.refused["n_rows"].sum()) == 6
    assert list(cohort.series["volume_id"]) == ["LIDC-IDRI-0003_n1", "LIDC-IDRI-0004_n1"]
    assert list(cohort.series["kind"]) == ["patch", "series"]
    assert list(cohort.series["patient_id"]) == ["LIDC-IDRI-0003", "LIDC-IDRI-0004"]
    assert done.files.left_out.total() == 1  # the mask; the table itself is no refused file
    first = cohort.nodules.iloc[0]
    assert (first["source"], first["n_readers"]) == ("csv", 3)
    assert list(first["malignancy_ratings"]) == [5, 4, 5]
    assert set(cohort.nodules) == {*NODULES.names, "label"}
    assert sorted(cohort.nodules["nodule_id"]) == [
        "LIDC-4a",
        "LIDC-IDRI-0003_n1_row-1",
        "LIDC-IDRI-0003_n1_row-8",
    ]
    assert cohort.nodules.set_index("nodule_id")["label"].dropna().to_dict() == {"LIDC-IDRI-0003_n1_row-8": 1}


@pytest.mark.parametrize("named_from", ["source", "table"])
def test_files_are_named_from_the_source_or_from_the_table(named_from: str, tmp_path: Path) -> None:
    write_nifti(tmp_path / "data" / "volumes" / "a.nii")
    file = "a.nii" if named_from == "source" else "volumes/a.nii"
    row = {"file": file, "patient_id": "P1", "x_lps_mm": "1", "y_lps_mm": "1", "z_lps_mm": "1", "label": "1"}
    csv = write_csv(tmp_path / "data" / "nodules.csv", [row])
    done = prepared(tmp_path / "data" / "volumes", tmp_path / "cohort", from_="nifti", annotations=str(csv))
    assert len(done.cohort.nodules) == 1
    assert done.rows.left_out.total() == 0


def test_a_table_joins_dicom_by_series_uid(write_ct_series: Writer, tmp_path: Path) -> None:
    write_ct_series(tmp_path / "s")
    row = {key: value for key, value in NODULE.items() if key != "file"} | {"series_uid": "1.2.3.4"}
    place = {"x_lps_mm": "-47", "y_lps_mm": "-36", "z_lps_mm": "-295", "patient_id": "somebody"}
    rows = [row | place, row | place | {"patient_id": "another"}, row | place | {"series_uid": "1.2.9"}]
    table = write_csv(tmp_path / "t.csv", rows)
    done = prepared(tmp_path / "s", tmp_path / "c", annotations=str(table))
    assert len(done.cohort.nodules) == 1
    reasons = done.cohort.refused.loc[done.cohort.refused["n_rows"] > 0, "reason"].tolist()
    assert any("not the patient of its volume" in reason for reason in reasons)
    assert any("no volume that was read" in reason for reason in reasons)
    assert done.cohort.nodules["patient_id"].tolist() == done.cohort.series["patient_id"].tolist()
    assert done.cohort.nodules["patient_id"].str.startswith("anon-").all()


def test_names_that_are_not_public_are_hashed(tmp_path: Path) -> None:
    write_nifti(tmp_path / "s" / "isolde_q.nii.gz")
    table = write_csv(
        tmp_path / "t.csv",
        [NODULE | {"file": "isolde_q.nii.gz", "patient_id": "isolde", "nodule_id": "isolde-1"}],
    )
    done = prepared(tmp_path / "s", tmp_path / "c", from_="nifti", annotations=str(table))
    everything = b"".join(path.read_bytes() for path in (tmp_path / "c").rglob("*") if path.is_file())
    assert b"isolde" not in everything
    assert len(done.cohort.nodules) == 1
    kept = prepared(tmp_path / "s", tmp_path / "k", from_="nifti", annotations=str(table), keep_ids=True)
    assert kept.cohort.series["volume_id"].tolist() == ["isolde_q"]
    assert kept.cohort.nodules["nodule_id"].tolist() == ["isolde-1"]


def test_a_table_that_comes_later_tells_the_patient_of_the_volumes_that_are_there(tmp_path: Path) -> None:
    write_nifti(tmp_path / "s" / "scan.nii.gz")
    first = prepared(tmp_path / "s", tmp_path / "c", from_="nifti").cohort
    table = write_csv(tmp_path / "t.csv", [NODULE | {"file": "scan.nii.gz"}])
    again = prepared(tmp_path / "s", tmp_path / "c", from_="nifti", annotations=str(table))
    assert again.cohort.series["volume_id"].tolist() == first.series["volume_id"].tolist()
    assert again.cohort.series["patient_id"].tolist() == ["LIDC-IDRI-0003"]
    assert len(again.cohort.nodules) == 1


def test_a_file_that_the_table_gives_to_two_patients_is_refused(tmp_path: Path) -> None:
    write_nifti(tmp_path / "s" / "a" / "LIDC-IDRI-0003_n1.nii.gz")
    table = write_csv(tmp_path / "t.csv", [NODULE, NODULE | {"patient_id": "LIDC-IDRI-0004"}])
    with pytest.raises(NothingReadError, match="names 2 patients for this file"):
        prepared(tmp_path / "s", tmp_path / "c", from_="nifti", annotations=str(table))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as CSV"),
        (
            "file,patient_id\na,b\n",
            r"lacks the column\(s\) x_lps_mm, y_lps_mm, z_lps_mm, malignancy",
        ),
    ],
)
def test_a_table_that_cannot_be_joined_is_refused_whole(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(AnnotationTableError, match=message):
        AnnotationTable.read(tmp_path / "t.csv")
    with pytest.raises(AnnotationTableError, match="is no file"):
        AnnotationTable.read(tmp_path / "none.csv")


def test_one_nifti_file_is_a_source(tmp_path: Path) -> None:
    write_nifti(tmp_path / "s" / "v.nii.gz")
    done = prepared(tmp_path / "s" / "v.nii.gz", tmp_path / "c", from_="nifti")
    assert done.n_new == 1
    assert done.cohort.series["volume_id"].str.fullmatch(r"name-[0-9a-f]{16}").all()


@pytest.mark.parametrize("keep_ids", [False, True])
def test_no_two_files_become_one_volume(keep_ids: bool, tmp_path: Path) -> None:
    names = ["LIDC-IDRI-0003 a", "LIDC-IDRI-0003_a", "b c", "b_c", "\u5f20\u4e09", "long" * 55, "plain"]
    for i, name in enumerate(names):
        write_nifti(tmp_path / "s" / f"{name}.nii.gz", (10, 12, 8 + i))
    done = prepared(tmp_path / "s", tmp_path / "c", from_="nifti", keep_ids=keep_ids)
    assert done.n_new == len(done.cohort.series) == len(names)
    assert sorted(shape[0] for shape in done.cohort.series["shape"]) == list(range(8, 8 + len(names)))
    assert ("plain" in done.cohort.series["volume_id"].tolist()) == keep_ids


@pytest.mark.lidc
def test_a_few_of_the_740_nodules_come_in_with_their_patients(dinox_data: Path, tmp_path: Path) -> None:
    rows = pd.read_csv(dinox_data / "lidc_nodules" / "nodules.csv", dtype=str).head(12)
    for file in rows["file"]:
        (tmp_path / "s" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(dinox_data / "lidc_nodules" / file, tmp_path / "s" / file)
    rows.to_csv(tmp_path / "s" / "nodules.csv", index=False)
    done = prepared(
        tmp_path / "s", tmp_path / "c", from_="nifti", annotations=str(tmp_path / "s" / "nodules.csv")
    )
    assert sorted(done.cohort.nodules["nodule_id"]) == sorted(rows["nodule_id"])
    assert set(done.cohort.series["kind"]) == {"patch"}
    assert set(done.cohort.series["patient_id"]) == set(rows["patient_id"])
    assert_inside(done.cohort)


@pytest.mark.slow
@pytest.mark.lidc
def test_all_740_nodules_of_414_patients_come_in(dinox_data: Path, tmp_path: Path) -> None:
    source = dinox_data / "lidc_nodules"
    done = prepared(source, tmp_path / "c", from_="nifti", annotations=str(source / "nodules.csv"), workers=2)
    assert (len(done.cohort.nodules), done.rows.left_out.total()) == (740, 0)
    assert done.cohort.nodules["patient_id"].nunique() == done.cohort.series["patient_id"].nunique() == 414
    assert_inside(done.cohort)


def assert_inside(cohort: Cohort) -> None:
    """The center of each nodule lies between the outermost voxel centers of its own volume, give or take 3 mm."""
    series = cohort.series.set_index("volume_id")
    for nodule in cohort.nodules.itertuples():
        affine, shape = (list(series.loc[nodule.volume_id, name]) for name in ("affine_ras", "shape"))
        corners = index_to_lps(affine, [(0, 0, 0), np.array(shape) - 1])
        center = np.array([nodule.x_lps_mm, nodule.y_lps_mm, nodule.z_lps_mm])
        assert np.all(center > corners.min(axis=0) - 3)
        assert np.all(center < corners.max(axis=0) + 3)


def test_a_corrected_table_replaces_the_rows_of_the_first(tmp_path: Path) -> None:
    write_nifti(tmp_path / "s" / "a" / "LIDC-IDRI-0003_n1.nii.gz")
    write_nifti(tmp_path / "s" / "LIDC-IDRI-0004_n1.nii.gz")
    other = NODULE | {"file": "LIDC-IDRI-0004_n1.nii.gz", "patient_id": "LIDC-IDRI-0004"}
    table = str(write_csv(tmp_path / "t.csv", [NODULE, other]))
    assert len(prepared(tmp_path / "s", tmp_path / "c", from_="nifti", annotations=table).cohort.nodules) == 2
    write_csv(tmp_path / "t.csv", [other | {"diameter_mm": "9"}])
    again = prepared(tmp_path / "s", tmp_path / "c", from_="nifti", annotations=table)
    assert again.cohort.nodules["diameter_mm"].tolist() == [9.0]
    kept = prepared(tmp_path / "s", tmp_path / "c", from_="nifti")
    assert kept.cohort.nodules["diameter_mm"].tolist() == [9.0]


def test_the_hub_without_a_network_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match="the data set nobody/nothing cannot be fetched from the Hub"):
        prepared(Path("nobody/nothing"), tmp_path / "c", from_="hub")
    assert not (tmp_path / "c").exists()
