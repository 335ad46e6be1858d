"""A table of nodules in CSV, as it is written and as `pipelines.ingest.joining` needs it.

Columns: `file` (as seen from the source folder, or from the table's own) or `series_uid`; `patient_id`; `x_lps_mm`,
`y_lps_mm`, `z_lps_mm` (or `x_ras_mm` and so on, or `x_voxel`, or `x`, `y`, `z` with `coordinates` stated);
`malignancy_ratings` ("5;5;4", whole numbers 1 to 5) or `label` (0 benign, 1 malignant), which
the label rule `given` reads; `diameter_mm`, which may be missing: it is then not known (NaN), and probes leave out what
needs it. Further columns are not kept, but for those that `keep_columns` names: see `further_columns`. Tables of
LUNA16, LUNA25 and LNDb are known by their columns.
"""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from pipelines.ingest.config import Axes, Coordinates
from pipelines.ingest.further_columns import FurtherColumns, sort_columns
from pipelines.ingest.table_text import TableTextError, lndb_columns, luna_columns, read_table_text
from transforms.dicom.tree import walk_files
from transforms.refusal import Refusal

COORDINATES = ("x_lps_mm", "y_lps_mm", "z_lps_mm")
_NAMES = {"lps": "{}_lps_mm", "ras": "{}_ras_mm", "voxel": "{}_voxel"}
_VOLUME_ENDINGS = (".mha", ".mhd", ".nii", ".nii.gz", ".nrrd", ".nhdr")


class AnnotationTableError(Refusal):
    """A table of nodules that cannot be read."""


@dataclass(frozen=True, slots=True)
class AnnotationTable:
    """The rows of a CSV as text, its file column turned into paths as the source names them.

    Attributes:
        path: Of the file.
        rows: The columns that are read, under our names; places in `COORDINATES`, whatever `axes` they count along.
        further: The other columns.
        axes: What the places are: mm in LPS or RAS, or the index of a voxel in its file.
        has_stems: Whether `file` holds names of files without folder and ending, as LNDb's numbers stand for.
        no_nodules: Reason to leave out a row, by its number.
    """

    path: Path
    rows: pd.DataFrame
    further: FurtherColumns
    axes: Axes = "lps"
    has_stems: bool = False
    no_nodules: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def read(
        cls, path: Path, keep_columns: Collection[str] = (), coordinates: Coordinates = "by_name"
    ) -> "AnnotationTable":
        """Read the CSV, with those of its further columns that are named and can name no person.

        Raises:
            AnnotationTableError: If there is no such file, it is no CSV, a column that is needed or named is missing,
                or what its coordinates are is neither said by their names nor by `coordinates`, or otherwise by both.
        """
        if not path.is_file():
            raise AnnotationTableError(f"annotations={path} is no file; name a CSV of nodules")
        try:
            rows = read_table_text(path.read_bytes())
            luna, lndb = luna_columns(rows), lndb_columns(rows)
        except TableTextError as error:
            raise AnnotationTableError(f"annotations={path} {error}") from None
        missing = sorted(set(keep_columns) - set(rows))
        axes: Axes = "lps"
        no_nodules: dict[int, str] = {}
        if luna is not None or lndb is not None:
            _refuse_contradiction(path, "columns of LUNA or LNDb", ["lps"], coordinates)
        if luna is not None:
            rows = luna
        elif lndb is not None:
            rows, no_nodules = lndb
        else:
            rows, axes = _with_places(path, rows, coordinates)
            missing += [name for name in ("patient_id", *COORDINATES) if name not in rows]
            for choice in (("file", "series_uid"), ("malignancy_ratings", "label")):
                if not set(choice) & set(rows):
                    missing.append(" or ".join(choice))
        if missing:
            raise AnnotationTableError(f"annotations={path} lacks the column(s) {', '.join(missing)}")
        further = sort_columns(rows, frozenset(keep_columns))
        return cls(path, rows, further, axes, lndb is not None, no_nodules)

    def seen_from(self, source: Path) -> "AnnotationTable":
        """Return the table with its files named from `source`, where they are named from the table's folder."""
        if "file" not in self.rows:
            return self
        root = source.parent if source.is_file() else source
        if self.has_stems:
            named = _by_stem(root)
            files = [named.get(file.lower(), file) for file in self.rows["file"]]
        else:
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


def _with_places(path: Path, rows: pd.DataFrame, coordinates: Coordinates) -> tuple[pd.DataFrame, Axes]:
    """The rows with their places under one set of names, and what they are."""
    known: tuple[Axes, ...] = ("lps", "ras", "voxel")
    named = [axes for axes in known if {_NAMES[axes].format(axis) for axis in "xyz"} <= set(rows)]
    axes = (named or ["lps"])[0] if coordinates == "by_name" else coordinates
    if not {"x", "y", "z"} <= set(rows):
        _refuse_contradiction(path, "names of its columns", named, coordinates)
    if coordinates == "by_name" and len(named) != 1 and (named or {"x", "y", "z"} <= set(rows)):
        raise AnnotationTableError(
            f"annotations={path} does not say what its coordinates are: state coordinates=lps, ras or voxel"
        )
    for pattern in (_NAMES[axes], "{}"):
        own = {pattern.format(axis): ours for axis, ours in zip("xyz", COORDINATES, strict=True)}
        if set(own) <= set(rows):
            others = [name for name in COORDINATES if name not in own]  # of a table that has several kinds
            return rows.drop(columns=others, errors="ignore").rename(columns=own), axes
    return rows, axes


def _refuse_contradiction(path: Path, what: str, named: list[Axes], stated: Coordinates) -> None:
    if named and stated not in ("by_name", *named):
        raise AnnotationTableError(
            f"coordinates={stated} contradicts annotations={path}, whose places are {named[0]} by the {what}: leave "
            "coordinates out, or name the columns x, y, z if they hold something else"
        )


def _by_stem(root: Path) -> dict[str, str]:
    """Paths below a folder of the volumes that are the only ones of their name, by it, in lower case."""
    found: dict[str, list[str]] = {}
    for path in walk_files(root):
        name = path.name.lower()
        ending = next(
            (one for one in sorted(_VOLUME_ENDINGS, key=len, reverse=True) if name.endswith(one)), ""
        )
        if ending:
            found.setdefault(name.removesuffix(ending), []).append(
                Path(os.path.relpath(path, root)).as_posix()
            )
    return {stem: paths[0] for stem, paths in found.items() if len(paths) == 1}


def _seen_from(root: Path, file: str, table_folder: Path) -> str:
    beside = table_folder / file
    if not file or (root / file).exists() or not beside.exists():
        return file
    relative = Path(os.path.relpath(beside, root))
    return file if ".." in relative.parts else relative.as_posix()
