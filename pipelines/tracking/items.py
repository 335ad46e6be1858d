"""What a run holds of each nodule or slice, so that two runs can be compared on the same ones."""

import tempfile
from pathlib import Path

import pandas as pd

from pipelines.tracking.reading import StoredRun, artifacts, fetch_artifact

RANKS = "tables/ranks.parquet"
"""Of `probe_retrieval`: one line per slice, the rank of its second view, 0 for a hit."""
RESIDUALS = "tables/residuals.parquet"
"""Of `probe_malignancy`: one line per nodule, its rating beyond size and attenuation, and what each row predicts."""
ITEMS = {"probe_retrieval": RANKS, "probe_malignancy": RESIDUALS}


def items_of(run: StoredRun) -> pd.DataFrame | None:
    """Return the table of a run's nodules or slices; None where it logged none, as older runs did not."""
    path = ITEMS.get(run.entry_point)
    if path is None or path not in artifacts(run.run_id, "tables"):
        return None
    with tempfile.TemporaryDirectory() as folder:
        return pd.read_parquet(fetch_artifact(run.run_id, path, Path(folder)))
