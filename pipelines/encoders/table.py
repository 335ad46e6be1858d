"""`features=table:FILE`: vectors of nodules that were computed elsewhere, one row a nodule."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.cohort.tables import read_parquet
from transforms.refusal import Refusal

SCHEME = "table:"
PLACE = ("x_lps_mm", "y_lps_mm", "z_lps_mm")
OWNERS = ("patient_id", "series_uid", "volume_id")
"""Columns that may say whose place it is."""
_FORMATS = (".csv", ".parquet")


class TableError(Refusal):
    """A table of features does not say clearly which vector belongs to which nodule."""


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """Vectors of nodules from elsewhere.

    Attributes:
        source: `table:FILE`.
        keys: nodule_id, or places with the columns that say whose they are; one row a vector.
        vectors: (rows, D), finite.
        columns: Names of the D columns.
        sha256: Of the file.
        match_mm: Largest distance of a place from the center of its nodule.
    """

    source: str
    keys: pd.DataFrame
    vectors: NDArray[np.float32]
    columns: tuple[str, ...]
    sha256: str
    match_mm: float = 3.0
    run_id: str = ""
    record: dict[str, Any] = field(default_factory=dict)

    def rows_of(self, nodules: pd.DataFrame, others: Sequence[pd.DataFrame] = ()) -> NDArray[np.int64]:
        """Return the row of each nodule.

        Args:
            nodules: Tables of nodules that a probe asks about.
            others: Tables of further nodules whose rows may be there too.

        Raises:
            TableError: If a nodule has no row, or a row belongs to no nodule, or to several.
        """
        everyone = pd.concat([nodules, *others], ignore_index=True)
        # Rules may leave a nodule out of `nodules`; it is then known from `others`.
        everyone = everyone.drop_duplicates(["nodule_id", "patient_id", *PLACE], ignore_index=True)
        shared = everyone["nodule_id"][everyone["nodule_id"].duplicated()]
        if len(shared) and "nodule_id" in self.keys:
            raise TableError(
                f"both cohorts have a nodule '{shared.iloc[0]}', so that ids do not say whose a row of {self.source}"
                f" is; give {', '.join(PLACE)} and patient_id instead"
            )
        ids = self.keys["nodule_id"] if "nodule_id" in self.keys else self._nearest(everyone)
        unmatched = ids[~ids.isin(everyone["nodule_id"])]
        if len(unmatched):
            raise TableError(
                f"{self.source} has {len(unmatched)} ids that no nodule of the cohort has, such as"
                f" '{unmatched.iloc[0]}'{_of_floats(unmatched.iloc[0])}; the cohort's are such as"
                f" '{everyone['nodule_id'].iloc[0]}'"
            )
        doubled = ids[ids.duplicated()]
        if len(doubled):
            raise TableError(
                f"{self.source} has several rows of nodule '{doubled.iloc[0]}'; give each nodule one vector"
            )
        row = pd.Series(np.arange(len(ids)), index=ids)
        missing = nodules["nodule_id"][~nodules["nodule_id"].isin(row.index)]
        if len(missing):
            raise TableError(
                f"{self.source} lacks {len(missing)} of {len(nodules)} nodules, such as '{missing.iloc[0]}'; a table"
                " holds every nodule of the probe, so that all rows are scored on the same ones"
            )
        return row.loc[nodules["nodule_id"]].to_numpy(dtype=np.int64)

    def _nearest(self, nodules: pd.DataFrame) -> pd.Series:
        """Return the id of the one nodule within `match_mm` of each place."""
        owners = [name for name in OWNERS if name in self.keys and name in nodules]
        ids = []
        for number, key in enumerate(self.keys.to_dict("records"), start=1):
            is_own = np.ones(len(nodules), bool)
            for name in owners:
                is_own &= (nodules[name].astype(str) == str(key[name])).to_numpy()
            own = nodules[is_own]
            away = np.linalg.norm(own[list(PLACE)].to_numpy(float) - [key[name] for name in PLACE], axis=1)
            near = own["nodule_id"].to_numpy()[away <= self.match_mm]
            if len(near) != 1:
                nearest = f"; the nearest is {away.min():.1f} mm away" if len(away) and not len(near) else ""
                raise TableError(
                    f"row {number} of {self.source} lies within {self.match_mm:g} mm of {len(near)} nodules{nearest};"
                    " places are LPS mm, and patient_id, series_uid or volume_id beside them says whose they are"
                )
            ids.append(near[0])
        return pd.Series(ids)


def open_table(source: str, match_mm: float = 3.0) -> FeatureTable:
    """Read `table:FILE`: nodule_id or places, and numbers: one column of lists, or one column a number.

    Raises:
        TableError: If the file cannot be read, or its ids, places or numbers are not clear.
    """
    path = Path(source.removeprefix(SCHEME))
    frame = _read(source, path)
    index = [str(name) for name in frame if _is_index(str(name), frame[name])]
    if index:
        raise TableError(
            f"{source} has a column '{index[0]}' that counts its rows, an index and no feature; write the table"
            " without its index (index=False)"
        )
    has_ids = "nodule_id" in frame
    if not has_ids and not set(PLACE) <= set(frame):
        raise TableError(
            f"{source} has neither nodule_id nor {', '.join(PLACE)}; it has {', '.join(map(str, frame))}"
        )
    names = ["nodule_id"] if has_ids else [*PLACE, *(name for name in OWNERS if name in frame)]
    keys = frame[names]
    if has_ids and pd.api.types.is_float_dtype(keys["nodule_id"]):
        raise TableError(
            f"{source}: nodule_id holds floats, such as {keys['nodule_id'].iloc[0]}; write ids as text, as the"
            " cohort has them"
        )
    if keys.isna().any(axis=None):
        raise TableError(f"{source}: row {_first(keys.isna())} has no {', no '.join(names)}")
    if has_ids:
        keys = keys.astype({"nodule_id": str})
    vectors, columns = _vectors(
        source, frame.drop(columns=[*names, *(n for n in (*PLACE, *OWNERS) if n in frame)], errors="ignore")
    )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return FeatureTable(source, keys, vectors, columns, digest, match_mm)


def _read(source: str, path: Path) -> pd.DataFrame:
    if path.suffix not in _FORMATS or not path.is_file():
        raise TableError(f"features={source} names no file that ends in {' or '.join(_FORMATS)}")
    try:
        if path.suffix == ".parquet":
            frame = read_parquet(path)
        else:
            frame = pd.read_csv(path, dtype={"nodule_id": str} | dict.fromkeys(OWNERS, str))
    except (
        OSError,
        ValueError,
        UnicodeDecodeError,
    ) as error:  # pyarrow and pandas raise children of ValueError
        raise TableError(f"{source} is damaged, or no table") from error
    if frame.empty:
        raise TableError(f"{source} has no rows")
    if frame.index.name is not None or not isinstance(frame.index, pd.RangeIndex):
        raise TableError(
            f"{source} was written with an index of rows; write it without (index=False), ids as a column nodule_id"
        )
    return frame


def _is_index(name: str, column: pd.Series) -> bool:
    if name.startswith(("Unnamed", "__index_level")) or name in ("index", "level_0"):
        return True
    is_number = pd.api.types.is_integer_dtype(column) and len(column) > 2
    return bool(is_number and name != "nodule_id" and (column.diff().iloc[1:] == 1).all())


def _vectors(source: str, frame: pd.DataFrame) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Return the numbers (n, D) of the columns that are left, and the names of the columns."""
    if frame.shape[1] == 1 and frame.iloc[:, 0].map(lambda one: isinstance(one, list | np.ndarray)).all():
        name, lists = str(frame.columns[0]), frame.iloc[:, 0]
        lengths = lists.map(len)
        if lengths.nunique() > 1:
            row = int((lengths != lengths.iloc[0]).idxmax())
            raise TableError(
                f"{source}: row {row + 1} has {lengths.iloc[row]} numbers, others {lengths.iloc[0]}; vectors have one"
                " length"
            )
        frame = pd.DataFrame(lists.tolist(), columns=[f"{name}_{n}" for n in range(int(lengths.iloc[0]))])
    text = [str(name) for name in frame if not pd.api.types.is_numeric_dtype(frame[name])]
    if text:
        raise TableError(
            f"{source}: column '{text[0]}' holds no numbers; keep nodule_id or places, and numbers alone"
        )
    if not frame.shape[1]:
        raise TableError(f"{source} has no column of numbers beside its ids")
    values = frame.to_numpy(dtype=np.float64)
    is_bad = ~np.isfinite(values)
    if is_bad.any():
        row, column = np.argwhere(is_bad)[0]
        raise TableError(
            f"{source}: row {row + 1} has no finite number in column '{frame.columns[column]}'"
            f" ({int(is_bad.any(axis=1).sum())} rows have such gaps); leave out what is not known"
        )
    return values.astype(np.float32), tuple(map(str, frame))


def _first(is_so: pd.DataFrame) -> int:
    """Number of the first row, from 1, in which something is so."""
    return int(np.flatnonzero(is_so.any(axis=1))[0]) + 1


def _of_floats(name: str) -> str:
    head, _, tail = name.partition(".")
    return (
        " (a number with a decimal point: ids were read as floats)" if head.isdigit() and tail == "0" else ""
    )
