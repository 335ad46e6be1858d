"""Rows of a table of nodules, matched to the volumes of a cohort and checked; every row left out is counted."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from pipelines.cohort.accounting import Accounting
from pipelines.cohort.pseudonyms import Pseudonyms
from pipelines.cohort.tables import NODULES, empty_table, is_volume_id
from pipelines.ingest.annotation_csv import COORDINATES, AnnotationTable
from pipelines.ingest.config import Axes
from transforms.geometry import VolumeGeometry, ras_to_lps
from transforms.refusal import Refusal

_OPTIONAL_NUMBERS = ("volume_mm3", "z_min_mm", "z_max_mm")
SAME_PLACE = 0.25
"""Of the larger diameter: nearer centers are one nodule."""
SAME_PLACE_MM = 1.0


class RowRefusedError(Refusal):
    """A row of a table of nodules that is left out; the message says why, and is counted."""


@dataclass(frozen=True, slots=True)
class Joined:
    """Nodules matched to their volume, and the number of rows that were not, by reason.

    `places` are the centers that the table states in each volume, (n, 3) LPS mm, those of refused rows too.
    """

    nodules: pd.DataFrame
    rows: Accounting
    places: dict[str, NDArray[np.float64]]


def join_annotations(
    table: AnnotationTable,
    series: pd.DataFrame,
    volume_of_file: Mapping[str, str],
    pseudonyms: Pseudonyms,
    stored_affine: Callable[[str], Sequence[float]] = lambda volume_id: (),
) -> Joined:
    """Find the volume of each row and check the row against it.

    Args:
        table: Rows of the CSV.
        series: Candidate rows of the series table.
        volume_of_file: File below the source folder -> volume_id.
        pseudonyms: Replaces patient ids as in the series table.
        stored_affine: By volume_id, 16 numbers from the index (i, j, k) of a voxel in its file to RAS mm; none where
            the index is that of the cohort's volume: column, row, slice from the feet.

    Returns:
        As many nodules and refused rows together as the table has rows.
    """
    by_volume = series.set_index("volume_id")
    whole = series[(series["kind"] == "series") & ~series["series_uid"].duplicated(keep=False)]
    by_series = dict(zip(whole["series_uid"], whole["volume_id"], strict=True))
    nodules: dict[int, dict[str, Any]] = {}
    refused = Counter[str]()
    places: dict[str, list[list[float]]] = {}
    for number, given in enumerate(table.rows.to_dict("records")):
        row = {str(name): str(value) for name, value in given.items()}
        file = Path(row["file"]).as_posix() if row.get("file") else ""
        volume_id = volume_of_file.get(file) or by_series.get(
            pseudonyms.uid("series", row.get("series_uid") or "-")
        )
        if volume_id is None or volume_id not in by_volume.index:
            refused["no volume that was read belongs to it"] += 1
            continue
        try:
            if number in table.no_nodules:
                raise RowRefusedError(table.no_nodules[number])
            volume = by_volume.loc[volume_id]
            center = _center(row, table.axes, volume, stored_affine(volume_id))
            places.setdefault(volume_id, []).append(center)
            nodules[number] = _nodule(row, number, volume_id, volume, center, pseudonyms)
        except RowRefusedError as reason:
            refused[str(reason)] += 1
    kept = _without_repeats(nodules, refused)
    given_ids = Counter(nodule["nodule_id"] for nodule in kept.values())
    for number, nodule in kept.items():
        if given_ids[nodule["nodule_id"]] > 1:  # a number within a scan, not unique in the cohort
            nodule["nodule_id"] = _made_id(nodule["volume_id"], number)
    frame = pd.DataFrame(list(kept.values())) if kept else empty_table(NODULES)
    further = table.further.kept.iloc[list(kept)].reset_index(drop=True)
    accounting = Accounting("annotation rows", len(table.rows), "joined to a volume", len(frame), refused)
    centers = {volume_id: np.array(of_volume) for volume_id, of_volume in places.items()}
    return Joined(pd.concat([frame, further], axis=1), accounting, centers)


def _center(row: dict[str, str], axes: Axes, volume: Any, stored_affine: Sequence[float]) -> list[float]:
    """The center of a row in LPS mm."""
    values = [_number(row, name) for name in COORDINATES]
    if axes == "ras":
        values = ras_to_lps(values).tolist()
    elif axes == "voxel":
        if len(stored_affine):
            affine = np.array(stored_affine, dtype=np.float64).reshape(4, 4)
            values = ras_to_lps(affine[:3] @ [*values, 1.0]).tolist()
        elif volume["transfer_syntax"]:
            values = VolumeGeometry.from_row(volume).to_lps(values[::-1]).tolist()
        else:
            raise RowRefusedError(
                "the order of voxels in its file is not known: give its place in millimeters"
            )
    return values


def _without_repeats(
    nodules: Mapping[int, dict[str, Any]], refused: Counter[str]
) -> dict[int, dict[str, Any]]:
    """Each nodule once: a row that repeats another is refused, rows that contradict each other all are.

    Centers nearer than a quarter of the larger diameter (1 mm where there is none) are one nodule.
    """
    kept = {}
    for group in _places(nodules):
        sayings = {
            str(
                (nodules[n]["diameter_mm"], sorted(nodules[n]["malignancy_ratings"]), nodules[n].get("label"))
            )
            for n in group
        }
        if len(sayings) > 1:
            refused[
                "another row contradicts it at the same place (give one row per nodule, with all ratings)"
            ] += len(group)
        else:
            refused.update(["it repeats another row"] * (len(group) - 1))
            kept[group[0]] = nodules[group[0]]
    return {number: kept[number] for number in sorted(kept)}


def _places(nodules: Mapping[int, dict[str, Any]]) -> list[list[int]]:
    """Numbers of the rows at each place, in order."""
    by_volume: dict[str, list[int]] = {}
    for number, nodule in nodules.items():
        by_volume.setdefault(nodule["volume_id"], []).append(number)
    groups = []
    for numbers in by_volume.values():
        centers = np.array([[nodules[n][name] for name in COORDINATES] for n in numbers])
        diameters = np.nan_to_num([nodules[n]["diameter_mm"] for n in numbers])
        reach = np.maximum(np.maximum.outer(diameters, diameters) * SAME_PLACE, 0)
        reach[reach == 0] = SAME_PLACE_MM
        is_same = np.linalg.norm(centers[:, None] - centers[None], axis=2) < reach
        _, of_row = connected_components(is_same, directed=False)
        groups += [[n for n, g in zip(numbers, of_row, strict=True) if g == group] for group in set(of_row)]
    return groups


def _nodule(
    row: dict[str, str],
    number: int,
    volume_id: str,
    volume: Any,
    center: list[float],
    pseudonyms: Pseudonyms,
) -> dict[str, Any]:
    """One row as a nodule. Raises RowRefusedError with the reason to refuse it."""
    series_uid = row.get("series_uid") or str(volume["series_uid"])
    has_opinion = (
        "malignancy_ratings" in row or "label" in row
    )  # LUNA16's tables have none, and name no patient
    if (row["patient_id"] or has_opinion) and pseudonyms.patient(row["patient_id"], "", series_uid) != volume[
        "patient_id"
    ]:
        raise RowRefusedError("its patient_id is not the patient of its volume")
    geometry = VolumeGeometry.from_row(volume)
    index = geometry.to_index(center)
    if (index < -0.5).any() or (index > np.array(geometry.shape) - 0.5).any():
        raise RowRefusedError("its center lies outside its volume (are x, y, z what `coordinates` says?)")
    diameter = _number(row, "diameter_mm") if row.get("diameter_mm") else math.nan
    if diameter <= 0:
        raise RowRefusedError("diameter_mm is not above zero")
    if diameter > max(np.multiply(geometry.shape, geometry.spacing_mm)):
        raise RowRefusedError("diameter_mm is larger than its volume (is it in millimeters?)")
    ratings = _ratings(row.get("malignancy_ratings", ""))
    label = row.get("label", "").removesuffix(".0")  # pandas writes 1.0 where another row has no label
    if label not in ("", "0", "1"):
        raise RowRefusedError("label is not 0 or 1")
    if has_opinion and not ratings and not label:
        raise RowRefusedError("it has neither malignancy_ratings nor label")
    known = {
        "nodule_id": _nodule_id(row, number, volume_id, pseudonyms),
        "volume_id": volume_id,
        "series_uid": volume["series_uid"],
        "patient_id": volume["patient_id"],
        **dict(zip(COORDINATES, center, strict=True)),
        "diameter_mm": diameter,
        **{name: _number(row, name) if row.get(name) else math.nan for name in _OPTIONAL_NUMBERS},
        "malignancy_ratings": ratings,
        "n_readers": int(_number(row, "n_readers")) if row.get("n_readers") else len(ratings),
        "source": "csv",
        "flag": "",
    }
    if label:
        known["label"] = int(label)
    return known


def _number(row: dict[str, str], name: str) -> float:
    try:
        value = float(row[name])
    except ValueError:
        raise RowRefusedError(f"{name} is not a number") from None
    if not math.isfinite(value):
        raise RowRefusedError(f"{name} is not a finite number")
    return value


def _ratings(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(";") if part.strip()]
    if any(part not in ("1", "2", "3", "4", "5") for part in parts):
        raise RowRefusedError("malignancy_ratings are not whole numbers from 1 to 5 with ; between")
    return [int(part) for part in parts]


def _nodule_id(row: dict[str, str], number: int, volume_id: str, pseudonyms: Pseudonyms) -> str:
    """The given id, if it cannot identify a patient; else one made of the volume and the row's number."""
    given = row.get("nodule_id", "")
    is_public = pseudonyms.keep_ids or row["patient_id"] in pseudonyms.public_names
    return given if is_public and is_volume_id(given) else _made_id(volume_id, number)


def _made_id(volume_id: str, number: int) -> str:
    return f"{volume_id}_row-{number + 1}"
