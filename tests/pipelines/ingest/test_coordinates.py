"""Places of nodules in LPS, RAS or voxels, LNDb's table, and rows that cannot be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK

from pipelines.ingest.annotation_csv import AnnotationTable, AnnotationTableError
from pipelines.ingest.config import PrepareConfig
from pipelines.ingest.preparation import Prepared, prepare_cohort

pytestmark = pytest.mark.usefixtures("own_key")
Writer = Callable[..., list[Path]]
SHAPE, SPACING = (24, 64, 64), (2.5, 4.0, 4.0)
CENTERS = [(10, 30, 16), (14, 36, 50), (8, 26, 44)]
"""(z, y, x) of three nodules in the lungs of a phantom that is no mirror image of itself."""


def chest() -> np.ndarray:
    z, y, x = np.mgrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    volume = np.full(SHAPE, -1000, dtype=np.int16)
    volume[((y - 31) / 24) ** 2 + ((x - 31) / 29) ** 2 < 1] = 40
    for middle in (17, 46):
        volume[((y - 31) / 14) ** 2 + ((x - middle) / 10) ** 2 < 1] = -850
    for center in CENTERS:
        volume[np.abs(np.stack([z, y, x], -1) - center).max(-1) <= 1] = 20
    return volume


def image() -> SimpleITK.Image:
    made = SimpleITK.GetImageFromArray(chest())
    made.SetSpacing(SPACING[::-1])
    made.SetOrigin((-127.0, -120.0, -300.0))
    return made


LPS = [[float(v) for v in image().TransformIndexToPhysicalPoint(center[::-1])] for center in CENTERS]


def prepared(folder: Path, rows: list[Any], header: str, **options: Any) -> Prepared:
    table = folder / "t.csv"
    table.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return prepare_cohort(
        PrepareConfig(
            source=str(folder / "s"), cohort=str(folder / "c"), annotations=str(table), workers=1, **options
        )
    )


def header_of(names: str) -> str:
    return f"file,patient_id,{names},diameter_mm,label"


def rows_of(points: list[Any], **changes: Any) -> list[Any]:
    return [("a.nii.gz", "P", *point, 8, 1) for point in points]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "s").mkdir()
    SimpleITK.WriteImage(SimpleITK.DICOMOrient(image(), "RAS"), tmp_path / "s" / "a.nii.gz")
    return tmp_path


def test_places_in_ras_and_in_voxels_of_the_file_are_those_in_lps(source: Path) -> None:
    stored = np.linalg.inv(nibabel.load(source / "s" / "a.nii.gz").affine)
    ras = [(-x, -y, z) for x, y, z in LPS]
    voxels = [tuple((stored @ [*point, 1])[:3].round(3)) for point in ras]
    assert voxels[0] != pytest.approx(CENTERS[0][::-1])  # the file is stored in another order than we keep it
    for names, points, options in (
        ("x_lps_mm,y_lps_mm,z_lps_mm", LPS, {}),
        ("x_ras_mm,y_ras_mm,z_ras_mm", ras, {}),
        ("x,y,z", ras, {"coordinates": "ras"}),
        ("x_lps_mm,y_lps_mm,z_lps_mm", LPS, {"coordinates": "lps"}),
        ("x_voxel,y_voxel,z_voxel", voxels, {}),
        ("x,y,z", voxels, {"coordinates": "voxel"}),
    ):
        done = prepared(source, rows_of(points), header_of(names), **options)
        found = sorted(done.cohort.nodules[["x_lps_mm", "y_lps_mm", "z_lps_mm"]].to_numpy().tolist())
        np.testing.assert_allclose(found, sorted(LPS), atol=1e-2)
        assert done.doubt == ""
        assert done.columns is not None
        assert done.columns.n_left_out == 0


def test_places_that_nobody_named_are_not_guessed(source: Path) -> None:
    with pytest.raises(AnnotationTableError, match="state coordinates=lps, ras or voxel"):
        prepared(source, rows_of(LPS), header_of("x,y,z"))


@pytest.mark.parametrize(
    ("names", "stated", "refused"),
    [
        ("x_lps_mm,y_lps_mm,z_lps_mm", "ras", "coordinates=ras contradicts .* are lps by the names"),
        ("x_lps_mm,y_lps_mm,z_lps_mm", "voxel", "coordinates=voxel contradicts .* are lps by the names"),
        ("x_ras_mm,y_ras_mm,z_ras_mm", "lps", "coordinates=lps contradicts .* are ras by the names"),
        ("x_voxel,y_voxel,z_voxel", "lps", "coordinates=lps contradicts .* are voxel by the names"),
        ("seriesuid,coordX,coordY,coordZ", "ras", "contradicts .* are lps by the columns of LUNA"),
        ("seriesuid,coordX,coordY,coordZ", "voxel", "contradicts .* are lps by the columns of LUNA"),
        ("LNDbID,RadFindingID,x,y,z", "voxel", "contradicts .* are lps by the columns of LUNA or LNDb"),
        ("seriesuid,coordX,coordY,coordZ", "lps", ""),
        ("LNDbID,RadFindingID,x,y,z", "lps", ""),
        ("x_lps_mm,y_lps_mm,z_lps_mm,x_voxel,y_voxel,z_voxel", "voxel", ""),  # one of two that it has
        ("x_lps_mm,y_lps_mm,z_lps_mm,x,y,z", "ras", ""),
    ],
)
def test_coordinates_that_contradict_the_names_of_the_columns_are_refused(
    names: str, stated: str, refused: str, tmp_path: Path
) -> None:
    header = names if "ID" in names or "seriesuid" in names else header_of(names)
    (tmp_path / "t.csv").write_text(header + "\n")
    if refused:
        with pytest.raises(AnnotationTableError, match=refused):
            AnnotationTable.read(tmp_path / "t.csv", (), stated)  # type: ignore[arg-type]
    else:
        assert AnnotationTable.read(tmp_path / "t.csv", (), stated).axes == stated  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, y, z: (-x, -y, z), r"3 would"),
        (lambda x, y, z: (-x, y, z), r"mirrored from left to right 3 would"),
        (lambda x, y, z: (x, y, -z), r"mirrored from head to feet 3 would"),
        (lambda x, y, z: (z, y, x), r"in the order z, y, x 3 would"),
        (lambda x, y, z: (x + 500, y, z), r"3 of 3 centers .* outside the body or its volume"),
        (lambda x, y, z: (x, -118.0, z), r"3 of 3 centers .* outside the body or its volume"),
    ],
)
def test_centers_that_fit_better_otherwise_are_told(
    change: Callable[..., Any], said: str, source: Path
) -> None:
    import re

    done = prepared(
        source, rows_of([change(*point) for point in LPS]), header_of("x_lps_mm,y_lps_mm,z_lps_mm")
    )
    assert re.search(said, done.doubt), done.doubt


def test_dicom_voxels_are_column_row_and_slice_from_the_feet(write_ct_series: Writer, tmp_path: Path) -> None:
    write_ct_series(tmp_path / "s")
    rows = [("1.2.3.4", "somebody", 3, 4, 1, 5, 1)]
    done = prepared(tmp_path, rows, "series_uid,patient_id,x_voxel,y_voxel,z_voxel,diameter_mm,label")
    (nodule,) = done.cohort.nodules.to_dict("records")
    found = [nodule[f"{axis}_lps_mm"] for axis in "xyz"]
    np.testing.assert_allclose(found, (-50 + 3 * 0.6, -40 + 4 * 0.7, -300 + 2.5))


def test_rows_nearer_than_a_quarter_of_the_diameter_are_one_nodule_and_may_not_contradict(
    source: Path,
) -> None:
    near = [LPS[0], [LPS[0][0] + 1.5, *LPS[0][1:]], LPS[1], [LPS[1][0] + 1.5, *LPS[1][1:]], LPS[2]]
    rows = rows_of(near)
    rows[3] = (*rows[3][:-1], 0)
    rows.append((*rows[4][:5], 400, 1))
    done = prepared(source, rows, header_of("x_lps_mm,y_lps_mm,z_lps_mm"))
    assert done.rows is not None
    assert {reason[:24]: n for reason, n in done.rows.left_out.items()} == {
        "it repeats another row": 1,
        "another row contradicts ": 2,
        "diameter_mm is larger th": 1,
    }
    assert sorted(done.cohort.nodules["x_lps_mm"]) == sorted([LPS[0][0], LPS[2][0]])


LNDB = "LNDbID,RadID,RadFindingID,FindingID,x,y,z,AgrLevel,Nodule,Volume,Text"


def test_the_table_of_lndb_meets_its_scans_in_whatever_folder(tmp_path: Path) -> None:
    folder = tmp_path / "s" / "data0"
    folder.mkdir(parents=True)
    SimpleITK.WriteImage(image(), folder / "LNDb-0007.mhd")
    rows = [
        (7, '"1,3"', '"2,1"', 1, *LPS[0], 2, 1, 268.08, 5.0),
        (7, 1, 3, 2, *LPS[1], 1, 0, 0, 0),
        (8, 1, 1, 1, *LPS[2], 1, 1, 100, 4.0),
    ]
    done = prepared(tmp_path, rows, LNDB)
    (nodule,) = done.cohort.nodules.to_dict("records")
    np.testing.assert_allclose([nodule[f"{axis}_lps_mm"] for axis in "xyz"], LPS[0])
    assert nodule["diameter_mm"] == pytest.approx(8.0, abs=0.01)
    assert (nodule["volume_mm3"], nodule["n_readers"]) == (268.08, 2)
    assert done.rows is not None
    assert sorted(reason[:40] for reason in done.rows.left_out) == [
        "it is a finding that is no nodule (Nodul",
        "no volume that was read belongs to it",
    ]
    (tmp_path / "each.csv").write_text("LNDbID,RadID,FindingID,x,y,z,Nodule,Volume,Text\n7,1,1,0,0,0,1,5,5\n")
    with pytest.raises(AnnotationTableError, match=r"take trainNodules_gt\.csv"):
        AnnotationTable.read(tmp_path / "each.csv")
