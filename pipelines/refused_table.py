"""Refused files -> rows of refused.parquet, without any name that could be a patient's."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from pipelines.cohort_tables import REFUSED
from pipelines.pseudonyms import Pseudonyms
from transforms.refused import RefusedFile


def refused_table(refused: Iterable[RefusedFile], source: Path, pseudonyms: Pseudonyms) -> pd.DataFrame:
    """One row per series, folder and reason, with the number of files; columns of REFUSED without `source_id`."""
    counts = Counter((one.series_uid, _folder(one.path, source), one.reason) for one in refused)
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


def refused_series(files: Iterable[Path], series_uid: str, reason: str) -> list[RefusedFile]:
    """Every file of a series, refused for one reason."""
    return [RefusedFile(path, series_uid, reason) for path in files]


def _folder(path: Path, source: Path) -> Path:
    """Folder of a file below the source; links inside the source are not resolved, so this never leaves it."""
    return Path(os.path.relpath(path.parent, source)) if path != source else Path()
