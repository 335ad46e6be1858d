"""Tables of nodules as people have them: other separators, decimal commas, LUNA's columns."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from pipelines.cohort.pseudonyms import Pseudonyms
from pipelines.ingest.annotation_csv import AnnotationTable, AnnotationTableError
from pipelines.ingest.config import PrepareConfig
from pipelines.ingest.preparation import prepare_cohort

pytestmark = pytest.mark.usefixtures("own_key")
UID = "1.2.826.0.1.3680043.8.498.16"
HEADER = "file,patient_id,x_lps_mm,y_lps_mm,z_lps_mm,diameter_mm,label"
PLAIN = f"{HEADER}\na.nii.gz,P1,0.5,1.5,-280,8.2,1\n"


@pytest.mark.parametrize(
    "content",
    [
        PLAIN.replace(",", ";").replace(".5", ",5").replace("8.2", "8,2").encode(),
        PLAIN.replace(",", "\t").replace(".5", ",5").encode(),
        b"\xef\xbb\xbf" + PLAIN.encode(),
        PLAIN.encode("utf-16"),
        PLAIN.replace("8.2,1\n", "8.2,1,\n").encode(),
        PLAIN.replace("\n", ",,\r\n").encode(),
        PLAIN.replace(",", " , ").encode(),
    ],
)
def test_the_same_table_is_read_however_it_is_written(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    (row,) = AnnotationTable.read(tmp_path / "t.csv").rows.to_dict("records")
    assert list(row) == HEADER.split(",")
    assert [float(row[name]) for name in HEADER.split(",")[2:]] == [0.5, 1.5, -280, 8.2, 1]
    assert (row["file"], row["patient_id"]) == ("a.nii.gz", "P1")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (PLAIN.replace(",1\n", ",1,2\n"), "more values than columns in row 2"),
        (PLAIN.replace("label", "file"), "names a column twice"),
        ("", "it is empty"),
        ("seriesuid,coordX,coordY,coordZ,class\n1.2.3,0,0,0,0\n", "holds candidates"),
        (f'{HEADER}\n"a.nii.gz,P1', "cannot be read as CSV"),
    ],
)
def test_a_table_that_says_two_things_is_refused_with_its_reason(
    content: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(AnnotationTableError, match=reason):
        AnnotationTable.read(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("table", "label"),
    [
        (f"seriesuid,coordX,coordY,coordZ,diameter_mm\n{UID},0,1,-280,8\n", None),
        (
            "PatientID,SeriesInstanceUID,StudyDate,CoordX,CoordY,CoordZ,LesionID,AnnotationID,NoduleID,label,"
            f"Age_at_StudyDate,Gender\n100012,{UID},19990102,0,1,-280,1,9_1,100012_1,1,61,Male\n",
            1,
        ),
    ],
)
def test_tables_of_luna_meet_the_file_that_is_named_by_their_series(
    table: str, label: int | None, tmp_path: Path
) -> None:
    (tmp_path / "s").mkdir()
    voxels = np.random.default_rng(0).integers(-1000, 400, (20, 36, 40)).astype(np.int16)
    image = SimpleITK.GetImageFromArray(voxels)
    image.SetSpacing((0.7, 0.7, 2.5))
    image.SetOrigin((-12.6, -12.6, -300.0))
    SimpleITK.WriteImage(image, tmp_path / "s" / f"{UID}.mhd", useCompression=True)
    (tmp_path / "t.csv").write_text(table)
    done = prepare_cohort(
        PrepareConfig(
            source=str(tmp_path / "s"),
            cohort=str(tmp_path / "c"),
            annotations=str(tmp_path / "t.csv"),
            workers=1,
        )
    )
    (nodule,) = done.cohort.nodules.to_dict("records")
    assert [nodule[f"{axis}_lps_mm"] for axis in "xyz"] == [0, 1, -280]
    assert nodule["volume_id"] == Pseudonyms.of_user().uid("series", UID)
    assert nodule.get("label") == label
    assert list(nodule["malignancy_ratings"]) == []
    kept = b"".join(path.read_bytes() for path in done.cohort.root.rglob("*") if path.is_file())
    assert not any(
        personal in kept for personal in (UID.encode(), b"100012", b"19990102", b"Male", b"Gender")
    )
