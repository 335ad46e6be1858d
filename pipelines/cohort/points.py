"""Places that views are centered on: annotated nodules, or blobs that are found in lung without any label."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.cohort.folder import Cohort
from pipelines.runtime.atomic import make_folder, write_atomically
from pipelines.runtime.parallel import available_cores, run_jobs
from pipelines.runtime.progress import progress
from transforms.geometry import VolumeGeometry

Places = Mapping[str, NDArray[np.float64]]
"""By volume: index (z, y, x) and diameter in mm of each place, (n, 4); of two on one slice the later one is taken."""

_VERSION = 1
"""Of `find_blobs`, in the names of what it found: a change of it finds everything anew."""


class Point(NamedTuple):
    """What a slice shows of a place: its center in pixels, and its diameter."""

    y: float
    x: float
    diameter_mm: float


def annotated_places(cohort: Cohort, volume_ids: Sequence[str]) -> Places:
    """Return the nodules of some volumes, the largest last; one of unknown diameter has 0 mm."""
    rows = {str(row["volume_id"]): row for row in cohort.series.to_dict("records")}
    found: dict[str, list[list[float]]] = {}
    nodules = cohort.nodules[cohort.nodules["volume_id"].isin(list(volume_ids))]
    nodules = nodules.assign(diameter_mm=nodules["diameter_mm"].fillna(0.0))
    for nodule in nodules.sort_values("diameter_mm").to_dict("records"):
        volume_id = str(nodule["volume_id"])
        center = [float(nodule[f"{axis}_lps_mm"]) for axis in "xyz"]
        index = VolumeGeometry.from_row(rows[volume_id]).to_index(center).tolist()
        found.setdefault(volume_id, []).append([*index, float(nodule["diameter_mm"])])
    return {volume_id: np.array(own) for volume_id, own in found.items()}


def blob_places(cohort: Cohort, volume_ids: Sequence[str], folder: Path) -> Places:
    """Return the blobs of some volumes, the largest last; found once (seconds a volume) and kept in `folder`."""
    series = cohort.series[cohort.series["volume_id"].isin(list(volume_ids))].to_dict("records")
    files = {str(row["volume_id"]): folder / f"{row['sha256']}-{_VERSION}.npy" for row in series}
    missing = [row for row in series if not files[str(row["volume_id"])].is_file()]
    jobs = run_jobs(partial(_find, cohort, folder), missing, available_cores())
    for row, result in progress(jobs, desc="blobs", total=len(missing), unit="volume"):
        if result is not None:
            raise RuntimeError(f"a process that looked for blobs in volume {row['volume_id']} crashed")
    found = {volume_id: np.load(file) for volume_id, file in files.items()}
    return {volume_id: own[np.argsort(own[:, 3], kind="stable")] for volume_id, own in found.items()}


def _find(cohort: Cohort, folder: Path, row: Mapping[Any, Any]) -> None:
    from transforms.views.blobs import (
        find_blobs,  # It needs scipy, which nothing else of training on a GPU does.
    )

    volume_id = str(row["volume_id"])
    z, y, x = (float(side) for side in row["spacing_mm"])
    blobs = find_blobs(cohort.volume(volume_id), (z, y, x), cohort.body(volume_id))
    make_folder(folder)
    write_atomically(folder / f"{row['sha256']}-{_VERSION}.npy", lambda file: np.save(file, blobs))


def first_then(places: Places, others: Places) -> Places:
    """Return both; where both touch a slice, `places` are taken."""
    return {
        volume_id: np.concatenate([one[volume_id] for one in (others, places) if volume_id in one])
        for volume_id in {*places, *others}
    }


def slice_points(
    places: Places, volume_ids: Sequence[str], n_slices: Sequence[int], slice_mm: Sequence[float]
) -> dict[tuple[int, int], Point]:
    """Return the place that each slice shows, by number of the volume and index of the slice.

    A place touches the slices within its radius, at least the one of its center.
    """
    points: dict[tuple[int, int], Point] = {}
    for number, volume_id in enumerate(volume_ids):
        for z, y, x, diameter_mm in places.get(volume_id, np.zeros((0, 4))).tolist():
            reach = max(diameter_mm / 2 / slice_mm[number], 0.5)
            first, last = max(0, int(np.ceil(z - reach))), min(n_slices[number] - 1, int(z + reach))
            points |= {(number, touched): Point(y, x, diameter_mm) for touched in range(first, last + 1)}
    return points
