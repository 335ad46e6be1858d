"""Do the centers of a table of nodules lie where nodules can lie, or would they in another coordinate system?"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from transforms.geometry import VolumeGeometry

_OTHERWISE: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "RAS (columns x_ras_mm and so on, or x, y, z with coordinates=ras)": lambda p: p * [-1, -1, 1],
    "mirrored from left to right": lambda p: p * [-1, 1, 1],
    "mirrored from front to back": lambda p: p * [1, -1, 1],
    "mirrored from head to feet": lambda p: p * [1, 1, -1],
    "in the order z, y, x": lambda p: p[:, ::-1],
}
_TISSUE_ABOVE_HU = -700
_FEW = 3
_MORE_BY = 0.25
"""Share of the centers by which another reading must fit better, to be named."""


def doubts_about_places(places: Mapping[str, NDArray[np.float64]], series: pd.DataFrame, root: Path) -> str:
    """One sentence about centers that lie outside the body, or show no tissue where another reading would; "" if none.

    Args:
        places: By volume_id, centers (n, 3) in LPS mm as the table was read.
        series: Rows of the series table.
        root: The cohort, whose volumes and body grids are looked at.
    """
    rows = {str(row["volume_id"]): row for row in series.to_dict("records") if row["volume_id"] in places}
    n_all = sum(map(len, places.values()))
    if n_all < _FEW:
        return ""
    n_in_body, n_fit = 0, 0
    fit_otherwise = dict.fromkeys(_OTHERWISE, 0)
    for volume_id, points in places.items():
        geometry = VolumeGeometry.from_row(rows[volume_id])
        volume, body = (
            np.load(root / name / f"{volume_id}.npy", mmap_mode="r") for name in ("volumes", "body")
        )
        in_body, fits = _look(points, geometry, volume, body)
        n_in_body += int(in_body.sum())
        n_fit += int(fits.sum())
        for name, change in _OTHERWISE.items():
            fit_otherwise[name] += int(_look(change(points), geometry, volume, body)[1].sum())
    best = max(fit_otherwise, key=lambda name: fit_otherwise[name])
    if fit_otherwise[best] > n_fit + _MORE_BY * n_all:
        return (
            f"{n_fit} of {n_all} centers of the annotation table lie on tissue inside the body; read as {best} "
            f"{fit_otherwise[best]} would: are the coordinates what they are said to be?"
        )
    if n_in_body < n_all / 2:
        return (
            f"{n_all - n_in_body} of {n_all} centers of the annotation table lie outside the body or its volume: "
            "are the coordinates what they are said to be?"
        )
    return ""


def _look(
    points_lps_mm: NDArray[np.float64],
    geometry: VolumeGeometry,
    volume: NDArray[np.int16],
    body: NDArray[np.uint8],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """For each point whether it lies in the body, and whether it also has tissue beside it."""
    indices = np.rint(geometry.to_index(points_lps_mm)).astype(np.int64)
    in_body, fits = np.zeros(len(indices), dtype=bool), np.zeros(len(indices), dtype=bool)
    for i, (z, y, x) in enumerate(indices):
        if not (0 <= z < len(volume) and 0 <= y < volume.shape[1] and 0 <= x < volume.shape[2]):
            continue
        cell = body[z, y * body.shape[1] // volume.shape[1], x * body.shape[2] // volume.shape[2]]
        around = volume[z, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        in_body[i] = cell > 0
        fits[i] = in_body[i] and int(around.max()) > _TISSUE_ABOVE_HU
    return in_body, fits
