"""Refused files -> rows of refused.parquet, without any name that could be a patient's."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from pipelines.cohort.pseudonyms import Pseudonyms
from pipelines.cohort.tables import REFUSED
from transforms.refusal import RefusedFile


def refused_table(refused: Iterable[RefusedFile], source: Path, pseudonyms: Pseudonyms) -> pd.DataFrame:
    """One row per series, folder and reason, with the number of files; columns of REFUSED without `source_id`."""
    counts = Counter(
        (pseudonyms.uid("series", one.series_uid), _folder(one.path, source), one.reason) for one in refused
    )
    rows = [
        {
            "series_uid": series_uid,
            "folder": pseudonyms.folder(folder),
            "n_files": n_files,
            "n_rows": 0,
            "reason": reason,
        }
        for (series_uid, folder, reason), n_files in sorted(counts.items())
    ]
    return pd.DataFrame(rows, columns=[name for name in REFUSED.names if name != "source_id"])


def with_refused_rows(refused: pd.DataFrame, rows: Counter[str]) -> pd.DataFrame:
    """Add the rows of an annotation table that match no volume, counted by reason."""
    further = [
        {
            "series_uid": "",
            "folder": ".",
            "n_files": 0,
            "n_rows": count,
            "reason": f"row(s) of the annotation table: {why}",
        }
        for why, count in sorted(rows.items())
    ]
    return pd.concat([refused, pd.DataFrame(further, columns=refused.columns)]) if further else refused


def _folder(path: Path, source: Path) -> Path:
    """Folder of a file below the source; links inside the source are not resolved, so this never leaves it."""
    return Path(os.path.relpath(path.parent, source)) if path != source else Path()
