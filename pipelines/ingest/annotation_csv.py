"""A table of nodules in CSV, and how its rows are matched to the volumes of a cohort; every row left out is counted.

Columns: `file` (as seen from the source folder, or from the table's own) or `series_uid`; `patient_id`; `x_lps_mm`,
`y_lps_mm`, `z_lps_mm`; `malignancy_ratings` ("5;5;4", whole numbers 1 to 5) or `label` (0 benign, 1 malignant), which
the label rule `given` reads; `diameter_mm`, which may be missing: it is then not known (NaN), and probes leave out what
needs it. Further columns are not kept, but for those that `keep_columns` names: see `further_columns`. Tables of LUNA16
and LUNA25 are known by their columns.
"""

import math
import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.cohort.accounting import Accounting
from pipelines.cohort.folder import is_volume_id
from pipelines.cohort.pseudonyms import Pseudonyms
from pipelines.cohort.tables import NODULES, empty_table
from pipelines.ingest.further_columns import FurtherColumns, sort_columns
from pipelines.ingest.table_text import TableTextError, luna_columns, read_table_text
from transforms.geometry import VolumeGeometry
from transforms.refusal import Refusal

_COORDINATES = ("x_lps_mm", "y_lps_mm", "z_lps_mm")
_OPTIONAL_NUMBERS = ("volume_mm3", "z_min_mm", "z_max_mm")


class AnnotationTableError(Refusal):
    """A table of nodules that cannot be read."""


class RowRefusedError(Refusal):
    """A row of a table of nodules that is left out; the message says why, and is counted."""


@dataclass(frozen=True, slots=True)
class AnnotationTable:
    """The rows of a CSV as text, its file column turned into paths as the source names them."""

    path: Path
    rows: pd.DataFrame
    further: FurtherColumns

    @classmethod
    def read(cls, path: Path, keep_columns: Collection[str] = ()) -> "AnnotationTable":
        """Read the CSV, with those of its further columns that are named and can name no person.

        Raises:
            AnnotationTableError: If there is no such file, it is no CSV, or a column that is needed or named is
                missing.
        """
        if not path.is_file():
            raise AnnotationTableError(f"annotations={path} is no file; name a CSV of nodules")
        try:
            rows = read_table_text(path.read_bytes())
            luna = luna_columns(rows)
        except TableTextError as error:
            raise AnnotationTableError(f"annotations={path} {error}") from None
        missing = sorted(set(keep_columns) - set(rows))
        if luna is not None:
            rows = luna
        else:
            missing += [name for name in ("patient_id", *_COORDINATES) if name not in rows]
            for choice in (("file", "series_uid"), ("malignancy_ratings", "label")):
                if not set(choice) & set(rows):
                    missing.append(" or ".join(choice))
        if missing:
            raise AnnotationTableError(f"annotations={path} lacks the column(s) {', '.join(missing)}")
        return cls(path, rows, sort_columns(rows, frozenset(keep_columns)))

    def seen_from(self, source: Path) -> "AnnotationTable":
        """Return the table with its files named from `source`, where they are named from the table's folder."""
        if "file" not in self.rows:
            return self
        root = source.parent if source.is_file() else source
        files = [_seen_from(root, file, self.path.parent) for file in self.rows["file"]]
        return replace(self, rows=self.rows.assign(file=files))

    def of_files(self) -> dict[str, tuple[str, str, str]]:
        """By file: (patient_id, series_uid, reason to refuse the file or "") as its rows say."""
        if "file" not in self.rows:
            return {}
        said: dict[str, tuple[str, str, str]] = {}
        for file, rows in self.rows.groupby("file"):
            patients = sorted(set(rows["patient_id"]) - {""})
            series = sorted(set(rows["series_uid"]) - {""}) if "series_uid" in rows else []
            reason = ""
            if len(patients) != 1:
                reason = (
                    f"the annotation table names {len(patients)} patients for this file, only one is allowed"
                )
            elif len(series) > 1:
                reason = f"the annotation table names {len(series)} series for this file"
            said[Path(str(file)).as_posix()] = (*(patients[:1] or [""]), *(series[:1] or [""]), reason)
        return said


def _seen_from(root: Path, file: str, table_folder: Path) -> str:
    beside = table_folder / file
    if not file or (root / file).exists() or not beside.exists():
        return file
    relative = Path(os.path.relpath(beside, root))
    return file if ".." in relative.parts else relative.as_posix()


@dataclass(frozen=True, slots=True)
class Joined:
    """Nodules matched to their volume, and the number of rows that were not, by reason."""

    nodules: pd.DataFrame
    rows: Accounting


def join_annotations(
    table: AnnotationTable, series: pd.DataFrame, volume_of_file: Mapping[str, str], pseudonyms: Pseudonyms
) -> Joined:
    """Find the volume of each row and check the row against it.

    Args:
        table: Rows of the CSV.
        series: Candidate rows of the series table.
        volume_of_file: File below the source folder -> volume_id.
        pseudonyms: Replaces patient ids as in the series table.

    Returns:
        As many nodules and refused rows together as the table has rows.
    """
    by_volume = series.set_index("volume_id")
    whole = series[(series["kind"] == "series") & ~series["series_uid"].duplicated(keep=False)]
    by_series = dict(zip(whole["series_uid"], whole["volume_id"], strict=True))
    nodules: dict[int, dict[str, Any]] = {}
    refused = Counter[str]()
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
            nodules[number] = _nodule(row, number, volume_id, by_volume.loc[volume_id], pseudonyms)
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
    return Joined(pd.concat([frame, further], axis=1), accounting)


def _without_repeats(
    nodules: Mapping[int, dict[str, Any]], refused: Counter[str]
) -> dict[int, dict[str, Any]]:
    """Each place of a volume once: a row that repeats another is refused, rows that contradict each other all are."""
    places = {
        number: tuple(nodule[name] for name in ("volume_id", *_COORDINATES))
        for number, nodule in nodules.items()
    }
    said: dict[Any, set[str]] = {}
    for number, nodule in nodules.items():
        saying = (nodule["diameter_mm"], sorted(nodule["malignancy_ratings"]), nodule.get("label"))
        said.setdefault(places[number], set()).add(str(saying))
    kept, taken = {}, set()
    for number, nodule in nodules.items():
        if len(said[places[number]]) > 1:
            refused[
                "another row contradicts it at the same position (give one row per nodule, with all ratings)"
            ] += 1
        elif places[number] in taken:
            refused["it repeats another row"] += 1
        else:
            taken.add(places[number])
            kept[number] = nodule
    return kept


def _nodule(
    row: dict[str, str], number: int, volume_id: str, volume: Any, pseudonyms: Pseudonyms
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
    center = [_number(row, name) for name in _COORDINATES]
    geometry = VolumeGeometry.from_row(volume)
    index = geometry.to_index(center)
    if (index < -0.5).any() or (index > np.array(geometry.shape) - 0.5).any():
        raise RowRefusedError("its center lies outside its volume (are x, y, z LPS millimeters?)")
    diameter = _number(row, "diameter_mm") if row.get("diameter_mm") else math.nan
    if diameter <= 0:
        raise RowRefusedError("diameter_mm is not above zero")
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
        **dict(zip(_COORDINATES, center, strict=True)),
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
