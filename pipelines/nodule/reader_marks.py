"""The readers' marks of labeled nodules, also where a cohort was made from patches and a table of nodules."""

import numpy as np
import pandas as pd

from pipelines.cohort.folder import Cohort
from pipelines.cohort.pseudonyms import lidc_scans
from pipelines.lidc.marks import rows_for_series

_NEAREST_MM = 0.05
"""Largest difference between the mean diameter of a cluster of marks and that of the table."""


def marks_of(cohort: Cohort, nodules: pd.DataFrame) -> pd.DataFrame:
    """Return the marks of nodules.

    The cohort's own, by cluster; else those of LIDC-IDRI, if the table of nodules names its series: by malignancy
    ratings and mean diameter, which together name one cluster of a series.

    Args:
        cohort: Where the marks may be.
        nodules: Labeled nodules, n rows.

    Returns:
        Columns of `annotations.parquet` with `row`, the position of the nodule, 0 .. n - 1; no row for a nodule whose
        marks are not known.
    """
    keys = ["series_uid", "cluster_id"]
    rows = nodules.reset_index(drop=True).rename_axis("row").reset_index()
    if len(cohort.annotations) and "annotation_ids" in nodules:  # of a rule that regroups the marks
        own = rows[["row", "annotation_ids"]].explode("annotation_ids").dropna()
        own = own.rename(columns={"annotation_ids": "annotation_id"}).astype({"annotation_id": np.int64})
        return cohort.annotations.merge(own, on="annotation_id")
    if len(cohort.annotations) and "cluster_id" in nodules:
        return cohort.annotations.merge(rows[["row", *keys]], on=keys)
    series = set(nodules["series_uid"]) & lidc_scans().keys()
    if not series:
        return pd.DataFrame({"row": np.zeros(0, np.int64)})
    marks, _ = rows_for_series(sorted(series))
    clusters = marks.groupby(keys, as_index=False).agg(
        ratings=("malignancy", lambda own: tuple(sorted(own))), mean_mm=("diameter_mm", "mean")
    )
    named = rows[["row", "series_uid", "diameter_mm"]].copy()
    named["ratings"] = rows["malignancy_ratings"].map(lambda own: tuple(sorted(own)))
    pairs = named.merge(clusters, on=["series_uid", "ratings"])
    pairs["gap"] = (pairs["mean_mm"] - pairs["diameter_mm"]).abs()
    nearest = pairs[pairs["gap"] < _NEAREST_MM].sort_values("gap").drop_duplicates("row")
    return marks.merge(nearest[[*keys, "row"]], on=keys)
