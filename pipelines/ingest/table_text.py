"""The text of a table of nodules as people have it: comma, semicolon or tab, decimal commas, LUNA's columns."""

import csv
import io
import math
import re

import pandas as pd

_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+([eE][+-]?[0-9]+)?")
_LUNA = {
    "seriesuid": "series_uid",
    "seriesinstanceuid": "series_uid",
    "patientid": "patient_id",
    "coordx": "x_lps_mm",
    "coordy": "y_lps_mm",
    "coordz": "z_lps_mm",
    "diameter_mm": "diameter_mm",
    "label": "label",
}
"""Columns of LUNA16 and LUNA25, in lower case; their coordinates are LPS millimeters."""
_LUNA_NEEDS = {"series_uid", "x_lps_mm", "y_lps_mm", "z_lps_mm"}


class TableTextError(Exception):
    """A text that is no table; the message says why, behind the name of the file."""


def read_table_text(content: bytes) -> pd.DataFrame:
    """Read a CSV as text without blanks around it; missing values at the end of a row are empty.

    Raises:
        TableTextError: If it is no CSV, or a row has more values than there are columns.
    """
    try:
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        first = text.partition("\n")[0]
        separator = max(",;\t", key=first.count)
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    except (UnicodeDecodeError, csv.Error):
        raise TableTextError("cannot be read as CSV in UTF-8") from None
    rows = [[value.strip() for value in line] for line in lines if any(value.strip() for value in line)]
    if not rows:
        raise TableTextError("cannot be read as CSV in UTF-8: it is empty")
    columns = rows[0]
    while columns[-1] == "":
        columns.pop()
    if len(set(columns)) < len(columns):
        raise TableTextError("names a column twice")
    for number, row in enumerate(rows[1:], start=2):
        if any(row[len(columns) :]):
            raise TableTextError(f"has more values than columns in row {number}")
    padded = [(row + [""] * len(columns))[: len(columns)] for row in rows[1:]]
    frame = pd.DataFrame(padded, columns=columns, dtype=str)
    return frame if separator == "," else _with_points(frame)


def _with_points(frame: pd.DataFrame) -> pd.DataFrame:
    """Decimal commas as points, in the columns that hold nothing but numbers."""
    for name in frame:
        values = frame[name]
        is_comma = values.str.fullmatch(_DECIMAL_COMMA)
        if is_comma.any() and (is_comma | values.str.fullmatch(r"[+-]?[0-9.eE+-]*")).all():
            frame[name] = values.where(~is_comma, values.str.replace(",", "."))
    return frame


def luna_columns(frame: pd.DataFrame) -> pd.DataFrame | None:
    """A table of LUNA16 or LUNA25 under our names; None where it is another.

    LUNA16's nodules have neither label nor ratings: they say where nodules are, and how large.
    """
    names = [str(name) for name in frame]
    ours = {name: _LUNA[name.lower()] for name in names if name.lower() in _LUNA}
    if "coordx" not in map(str.lower, names) or not set(ours.values()) >= _LUNA_NEEDS:
        return None
    renamed = frame.rename(columns=ours)
    if renamed.columns.duplicated().any():
        raise TableTextError("names the series or a coordinate twice")
    if "class" in frame:
        raise TableTextError("holds candidates (class), most of which are no nodules: take annotations.csv")
    return renamed if "patient_id" in renamed else renamed.assign(patient_id="")


def lndb_columns(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[int, str]] | None:
    """LNDb's trainNodules_gt.csv under our names, and the reasons of rows that are no nodules; None for another table.

    Scan 7 is the file LNDb-0007.mhd, of one patient; places are world coordinates of MetaImage, LPS mm; RadID lists
    the readers who marked the finding; Volume, mm3, gives the diameter of a sphere.
    """
    if not {"LNDbID", "x", "y", "z"} <= set(frame):
        return None
    if "RadFindingID" not in frame:
        raise TableTextError("holds a row for each reader: take trainNodules_gt.csv, which joins them")
    scan = "LNDb-" + frame["LNDbID"].str.zfill(4)
    ours = {"x": "x_lps_mm", "y": "y_lps_mm", "z": "z_lps_mm", "Volume": "volume_mm3"}
    renamed = frame.rename(columns=ours).assign(file=scan, patient_id=scan)
    renamed["n_readers"] = (frame["RadFindingID"].str.count(",") + 1).astype(str)
    if "Volume" in frame:
        volumes = pd.to_numeric(frame["Volume"], errors="coerce")
        diameters = (volumes.where(volumes > 0) * 6 / math.pi) ** (1 / 3)
        renamed["diameter_mm"] = diameters.map("{:.4f}".format).where(diameters.notna(), "")
        renamed["volume_mm3"] = frame["Volume"].where(diameters.notna(), "")
    is_none = frame.get("Nodule", pd.Series("1", index=frame.index)).isin(["0", "0.0"])
    reason = "it is a finding that is no nodule (Nodule is 0)"
    return renamed, {number: reason for number, none in enumerate(is_none) if none}


def patients_by_series(rows: pd.DataFrame) -> dict[str, str]:
    """The patient that a table names for each SeriesInstanceUID, where it names one."""
    if "series_uid" not in rows:
        return {}
    named = rows[(rows["series_uid"] != "") & (rows["patient_id"] != "")].groupby("series_uid")["patient_id"]
    return {str(uid): str(of_series.iloc[0]) for uid, of_series in named if of_series.nunique() == 1}
