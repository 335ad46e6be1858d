"""Columns of a user's table of nodules beyond those that we read: an allow-list, since any of them may name a person.

Kept is what `keep_columns` names, where it holds numbers or short codes of a category; never text, and no identifier.
"""

import re
from dataclasses import dataclass

import pandas as pd

from pipelines.cohort.tables import NODULES

READ = frozenset(("file", "label", *NODULES.names)) - {"flag"}
"""Columns that are read, or that a cohort's own table has; `flag` is text, which only we write."""
MOST_CODES = 20
_NUMBER = re.compile(r"(?=.*[0-9])[+-]?[0-9]{0,6}(\.[0-9]*)?([eE][+-]?[0-9]{1,2})?")
"""Whole numbers of seven digits and more are dates, telephone numbers or identifiers."""
_CODE = re.compile(r"(?!(?:.*[0-9]){5})[A-Za-z0-9][A-Za-z0-9+_-]{0,11}")
_PERSONAL = re.compile(
    r"(^|_|[a-z ])(name|birth|dob|mrn|accession|institution|hospital|physician|doctor|address|phone|mail|zip|postal"
    r"|comment|remark|note|report|path|date)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class FurtherColumns:
    """What becomes of the columns that are not read.

    Attributes:
        kept: One row per row of the table, numbers or codes.
        unnamed: Names of the columns that nobody asked for.
        unfit: Names of those that were asked for and hold text, or could identify a patient.
    """

    kept: pd.DataFrame
    unnamed: tuple[str, ...]
    unfit: tuple[str, ...]

    @property
    def n_left_out(self) -> int:
        """Columns that are not kept."""
        return len(self.unnamed) + len(self.unfit)

    def __str__(self) -> str:
        """Say what is not kept, with names: for the console, and never to be stored."""
        said = []
        if self.unnamed:
            said.append(
                f"{len(self.unnamed)} column(s) of the annotation table are not kept (keep_columns would name those "
                f"to keep): {', '.join(self.unnamed)}"
            )
        if self.unfit:
            said.append(
                f"{len(self.unfit)} column(s) of keep_columns are not kept, since they hold text, dates or what may "
                f"identify a patient (kept are numbers, and up to {MOST_CODES} codes of 12 letters): "
                f"{', '.join(self.unfit)}"
            )
        return "\n".join(said)


def sort_columns(rows: pd.DataFrame, named: frozenset[str]) -> FurtherColumns:
    """Sort the further columns of a table, which holds text.

    Args:
        rows: The table.
        named: Columns to keep if they can be kept.
    """
    kept, unfit = {}, []
    further = [str(name) for name in rows if name not in READ]
    for name in filter(named.__contains__, further):
        values = rows[name]
        filled = values[values != ""]
        may_name = name in NODULES.names or _PERSONAL.search(name)  # the first is `flag`, which only we write
        if not may_name and filled.str.fullmatch(_NUMBER).all():
            kept[name] = pd.to_numeric(values.where(values != ""), errors="coerce")
        elif not may_name and _are_codes(rows, filled):
            kept[name] = values
        else:
            unfit.append(name)
    unnamed = tuple(name for name in further if name not in named)
    return FurtherColumns(pd.DataFrame(kept, index=rows.index), unnamed, tuple(unfit))


def _are_codes(rows: pd.DataFrame, filled: pd.Series) -> bool:
    """Whether values are codes of a few categories, each of several patients: more codes would tell patients apart."""
    n_patients = max(rows[name].nunique() for name in ("patient_id", "series_uid", "file") if name in rows)
    n_codes = filled.nunique()
    return bool(filled.str.fullmatch(_CODE).all()) and n_codes <= min(MOST_CODES, n_patients / 2)
