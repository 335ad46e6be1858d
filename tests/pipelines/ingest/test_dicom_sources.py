"""DICOM folders whose series have odd ids, or hold several volumes, as `prepare` stores them."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from pipelines.cohort.tables import CohortError
from pipelines.ingest.config import PrepareConfig
from pipelines.ingest.preparation import prepare_cohort

pytestmark = [
    pytest.mark.usefixtures("own_key"),
    pytest.mark.filterwarnings("ignore:Invalid value for VR UI"),
]
Writer = Callable[..., list[Path]]


def test_an_id_that_is_no_uid_is_stored_as_a_hash_and_still_meets_its_nodules(
    write_ct_series: Writer, tmp_path: Path
) -> None:
    def change(dataset: Dataset, index: int) -> None:
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID = "DOE JANE 7", "402915678123"

    write_ct_series(tmp_path / "source", change=change)
    table = tmp_path / "nodules.csv"
    table.write_text(
        "series_uid,patient_id,x_lps_mm,y_lps_mm,z_lps_mm,diameter_mm,label\n"
        "DOE JANE 7,somebody,-47,-37,-295,5,1\n"
    )
    config = PrepareConfig(
        source=str(tmp_path / "source"), cohort=str(tmp_path / "cohort"), annotations=str(table), workers=1
    )
    cohort = prepare_cohort(config).cohort
    (row,) = cohort.series.to_dict("records")
    assert re.fullmatch("series-[0-9a-f]{24}", row["volume_id"])
    assert row["series_uid"] == row["volume_id"]
    assert re.fullmatch("study-[0-9a-f]{24}", row["study_uid"])
    assert list(cohort.nodules["volume_id"]) == [row["volume_id"]]
    kept = b"".join(path.read_bytes() for path in cohort.root.rglob("*") if path.is_file())
    assert b"DOE" not in kept
    assert b"402915678123" not in kept
    assert prepare_cohort(config).n_new == 0


@pytest.mark.parametrize("uid", ["1.2.840.113619.2.55.3.4", "2bfbb7fd2e8b"])
def test_uids_are_replaced_since_a_hospital_finds_a_patient_by_them(
    uid: str, write_ct_series: Writer, tmp_path: Path
) -> None:
    def change(dataset: Dataset, index: int) -> None:
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID = uid, f"{uid}.77"

    write_ct_series(tmp_path / "source", change=change)
    config = PrepareConfig(source=str(tmp_path / "source"), cohort=str(tmp_path / "cohort"), workers=1)
    cohort = prepare_cohort(config).cohort
    kept = b"".join(str(path).encode() + path.read_bytes() for path in cohort.root.rglob("*.*"))
    assert uid.encode() not in kept
    known = prepare_cohort(replace(config, cohort=str(tmp_path / "public"), keep_ids=True)).cohort
    assert list(known.series["volume_id"]) == [uid]
    assert list(known.series["study_uid"]) == [f"{uid}.77"]


@pytest.mark.parametrize("uid", ["1.2.3.4", "2bfbb7fd2e8b"])
def test_a_cohort_that_holds_uids_already_keeps_its_volumes(
    uid: str, write_ct_series: Writer, tmp_path: Path
) -> None:
    write_ct_series(tmp_path / "source", series_uid=uid)
    config = PrepareConfig(
        source=str(tmp_path / "source"), cohort=str(tmp_path / "cohort"), keep_ids=True, workers=1
    )
    prepare_cohort(config)
    write_ct_series(tmp_path / "source" / "new", series_uid="1.2.3.5")
    again = prepare_cohort(replace(config, keep_ids=False))
    assert (again.n_new, again.n_present) == (1, 1)
    first, second = again.cohort.series["volume_id"]
    assert first == uid
    assert second.startswith("series-")


def test_two_phases_of_one_series_become_two_volumes_of_one_patient_that_say_so(
    write_ct_series: Writer, tmp_path: Path
) -> None:
    def change(dataset: Dataset, index: int) -> None:
        dataset.AcquisitionNumber = 1 + index // 6
        dataset.ImagePositionPatient = [-50, -40, -300 + 2.5 * (index % 6)]
        if index == 12:
            dataset.Rows, dataset.Columns = 6, 32

    write_ct_series(tmp_path / "source", n_slices=13, change=change)
    config = PrepareConfig(
        source=str(tmp_path / "source"), cohort=str(tmp_path / "cohort"), keep_ids=True, workers=1
    )
    cohort = prepare_cohort(config).cohort
    assert list(cohort.series["volume_id"]) == ["1.2.3.4_part-1", "1.2.3.4_part-2"]
    assert list(cohort.series["series_uid"]) == ["1.2.3.4", "1.2.3.4"]
    assert cohort.series["patient_id"].nunique() == 1
    assert all("distinguished by the matrix, AcquisitionNumber" in notes for notes in cohort.series["notes"])
    first, second = (cohort.volume(volume_id) for volume_id in cohort.series["volume_id"])
    np.testing.assert_array_equal(np.asarray(second) - np.asarray(first), 60)
    assert list(cohort.refused["n_files"]) == [1]
    assert prepare_cohort(config).n_new == 0


def test_a_folder_of_other_things_is_no_cohort_whatever_it_holds(
    write_ct_series: Writer, tmp_path: Path
) -> None:
    write_ct_series(tmp_path / "source")
    (tmp_path / "mine" / "rows").mkdir(parents=True)
    (tmp_path / "mine" / "rows" / "a.json").write_text("[]")
    with pytest.raises(CohortError, match="holds other files and no cohort"):
        prepare_cohort(
            PrepareConfig(source=str(tmp_path / "source"), cohort=str(tmp_path / "mine"), workers=1)
        )
