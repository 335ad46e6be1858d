"""The tables of a cohort: their columns and types, and how they reach the disk."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.lidc.pylidc_compat import RATINGS
from pipelines.runtime.atomic import write_atomically
from transforms.refusal import Refusal

_TEXT, _REAL, _WHOLE, _TRUTH = pa.string(), pa.float64(), pa.int64(), pa.bool_()

SERIES = pa.schema(
    [
        ("volume_id", _TEXT),
        ("patient_id", _TEXT),
        ("study_uid", _TEXT),
        ("series_uid", _TEXT),
        ("shape", pa.list_(_WHOLE)),  # (z, y, x)
        ("spacing_mm", pa.list_(_REAL)),  # (z, y, x)
        ("affine_ras", pa.list_(_REAL)),  # 16 numbers, row by row: (z, y, x, 1) -> RAS mm
        ("gaps", pa.list_(_WHOLE)),  # i: slices are missing between slice i and i + 1
        ("slice_offsets_mm", pa.list_(_REAL)),  # distance of each slice from the first; empty without gaps
        ("manufacturer", _TEXT),
        ("kernel", _TEXT),
        ("slice_thickness_mm", _REAL),
        ("transfer_syntax", _TEXT),
        ("is_lossy", _TRUTH),
        ("n_padding_voxels", _WHOLE),
        ("kind", _TEXT),  # "series", or "patch": cut around a nodule, without its surroundings
        ("sha256", _TEXT),  # of the voxels, int16 little-endian in C order
        ("notes", _TEXT),
        ("patient_key", _TEXT),  # fingerprint of the key under which patient_id replaces a PatientID, else ""
        ("origin", _TEXT),  # "" for CT, or what it was drawn as, where its source says it: see `Cohort.kind`
    ]
)
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_MOST_CELLS = 100_000_000
LATER = ("patient_key", "origin")
"""Text columns that older cohorts lack: "" there."""

ANNOTATIONS = pa.schema(
    [
        ("annotation_id", _WHOLE),
        ("volume_id", _TEXT),
        ("series_uid", _TEXT),
        ("scan_id", _WHOLE),
        ("study_uid", _TEXT),
        ("patient_id", _TEXT),
        *((name, _WHOLE) for name in RATINGS),
        *((name, _REAL) for name in ("diameter_mm", "volume_mm3", "x_lps_mm", "y_lps_mm", "z_lps_mm")),
        *((f"contour_z_{name}_mm", _REAL) for name in ("min", "max", "median")),
        ("cluster_id", _WHOLE),
    ]
)

NODULES = pa.schema(
    [
        ("nodule_id", _TEXT),
        ("volume_id", _TEXT),
        ("series_uid", _TEXT),
        ("patient_id", _TEXT),
        *((name, _REAL) for name in ("x_lps_mm", "y_lps_mm", "z_lps_mm", "diameter_mm", "volume_mm3")),
        ("malignancy_ratings", pa.list_(_WHOLE)),
        ("n_readers", _WHOLE),
        ("z_min_mm", _REAL),
        ("z_max_mm", _REAL),
        ("source", _TEXT),  # "pylidc", "phantom" or "csv"
        ("flag", _TEXT),  # description of what is doubtful; "" if nothing
    ]
)

REFUSED = pa.schema(
    [
        ("series_uid", _TEXT),
        ("folder", _TEXT),  # below the source, each part hashed that is not public
        ("n_files", _WHOLE),
        ("n_rows", _WHOLE),  # of the annotation table, 0 where files are refused
        ("reason", _TEXT),
        ("source_id", _TEXT),  # distinguishes the sources of one cohort
    ]
)


_ANY = pa.schema([])


def _numbers(count: int, low: float) -> Callable[[Any], bool]:
    def are_right(values: Any) -> bool:
        return bool(
            _is_list(values) and len(values) == count and np.isfinite(values).all() and min(values) > low
        )

    return are_right


def _is_list(values: Any) -> bool:
    return values is not None and not isinstance(values, float) and None not in list(values)


def _matches(form: str) -> Callable[[Any], bool]:
    return lambda text: isinstance(text, str) and re.fullmatch(form, text) is not None


_FORMS: dict[str, Callable[[Any], bool]] = {
    "volume_id": lambda text: isinstance(text, str) and is_volume_id(text),
    "nodule_id": _matches(r"[^\0]*"),
    "sha256": _matches("[0-9a-f]{64}"),
    "shape": _numbers(3, 0),
    "spacing_mm": _numbers(3, 0),
    "affine_ras": _numbers(16, -math.inf),
    "gaps": _is_list,
    "slice_offsets_mm": _is_list,
    "malignancy_ratings": _is_list,
}
"""What a cell must be for a row to be read; a table of others may hold anything."""


def is_volume_id(text: str) -> bool:
    """Whether a text can be the id of a volume, and so the name of its files."""
    return _ID.fullmatch(text) is not None


class CohortError(Refusal):
    """A cohort is not there, is of another version, or one of its files cannot be used."""


def empty_table(schema: pa.Schema) -> pd.DataFrame:
    """A table of no rows with the right columns."""
    frame: pd.DataFrame = schema.empty_table().to_pandas()
    return frame


def read_table(path: Path, schema: pa.Schema) -> pd.DataFrame:
    """Read a table of the cohort; an absent one is empty.

    Raises:
        CohortError: If it is no whole Parquet file, or a column is missing.
    """
    if not path.is_file():
        return empty_table(schema)
    try:
        frame = read_parquet(path, schema)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise CohortError(f"table {path} is damaged or cannot be read; prepare the cohort again") from error
    missing = [name for name in schema.names if name not in frame.columns]
    frame[[name for name in missing if name in LATER]] = ""
    missing = [name for name in missing if name not in LATER]
    if missing:
        raise CohortError(f"table {path} lacks the column {missing[0]}; prepare the cohort again")
    for name in filter(frame.columns.__contains__, _FORMS):
        right = frame[name].map(_FORMS[name])
        if not right.all():
            row = int(right.to_numpy(dtype=bool).argmin()) + 1
            raise CohortError(f"table {path} holds in row {row} no valid {name}; prepare the cohort again")
    return frame


def read_parquet(path: Path, schema: pa.Schema = _ANY) -> pd.DataFrame:
    """Read a Parquet file, after a look at its size: a few bytes can state billions of rows.

    Args:
        path: The file.
        schema: Types of those columns that have one.

    Raises:
        CohortError: If it has more cells than any table here.
        ArrowException, ValueError, OSError: If it is damaged or cannot be read.
    """
    stated = pq.read_metadata(path)
    if stated.num_rows * max(stated.num_columns, 1) > _MOST_CELLS:
        raise CohortError(
            f"table {path} states {stated.num_rows} rows, more than any table here; write it again"
        )
    table = pq.read_table(path)
    table.validate(full=True)  # Text that is no UTF-8 would be found where it is used.
    for number, name in enumerate(table.column_names):
        if name in schema.names and table.schema.field(number).type != schema.field(name).type:
            table = table.set_column(number, name, table.column(number).cast(schema.field(name).type))
    frame: pd.DataFrame = table.to_pandas()
    return frame


def write_table(path: Path, frame: pd.DataFrame, schema: pa.Schema) -> None:
    """Write a table whole or not at all: the same rows give the same bytes.

    Raises:
        ValueError: If a column is missing or does not fit its type.
    """
    missing = [name for name in schema.names if name not in frame.columns]
    if missing:
        raise ValueError(f"table {path.name} lacks the column(s) {', '.join(missing)}")
    extra = [name for name in frame.columns if name not in schema.names]
    frame = frame[[*schema.names, *extra]]
    try:
        known = pa.Table.from_pandas(frame[schema.names], schema=schema, preserve_index=False)
        table = known
        for name in extra:
            table = table.append_column(name, pa.array(frame[name], from_pandas=True))
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"table {path.name} has a column of the wrong type: {error}") from error
    write_atomically(path, lambda file: pq.write_table(table.replace_schema_metadata(None), file))
