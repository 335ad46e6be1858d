"""Baselines without an image, beside every probe: how well size and the readers' own ratings predict the label.

The readers' diameter and ratings are oracles: they come from the people who gave the label. The number of readers is
never an
input: more readers mark what looks malignant, so it leaks the label.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from probes.statistics.checks import Floats, UnmeasurableError
from probes.statistics.metrics import auroc_with_interval

STRATA_MM = {
    "all": (0.0, np.inf),
    "6_15mm": (6.0, 15.0),
    "3_6mm": (3.0, 6.0),
    "6_10mm": (6.0, 10.0),
    "10_15mm": (10.0, 15.0),
    "15_40mm": (15.0, 40.0),
}
"""Smallest and largest diameter, mm, both included. Size decides less inside 6-15 mm: the honest stratum."""

ORDINAL = ("subtlety", "sphericity", "margin", "lobulation", "spiculation", "texture")
SOFT_TISSUE, NOT_CALCIFIED = 1, 6


def score_by_stratum(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    diameter_mm: npt.ArrayLike,
    patient_ids: npt.ArrayLike,
    n_bootstrap: int = 2000,
    seed: int = 0,
    strata: Sequence[str] = tuple(STRATA_MM),
) -> pd.DataFrame:
    """AUROC of one score, overall and by the readers' diameter, with intervals from a bootstrap over patients.

    Args:
        labels: 0 or 1, (N,).
        scores: Higher means more likely malignant, (N,).
        diameter_mm: Readers' mean diameter, (N,).
        patient_ids: Patient of each nodule, (N,).
        n_bootstrap: Number of draws.
        seed: Of the draws.
        strata: Names in `STRATA_MM`.

    Returns:
        One row per stratum: stratum, n_nodules, n_malignant, n_patients, auroc, ci_low, ci_high, note. Where a
        stratum holds too few nodules of a class, the three numbers are NaN and the note says why.
    """
    truth, score, diameter = np.asarray(labels), np.asarray(scores, dtype=np.float64), np.asarray(diameter_mm)
    patients = np.asarray(patient_ids)
    rows = []
    for stratum in strata:
        low, high = STRATA_MM[stratum]
        inside = (
            (diameter >= low) & (diameter <= high) if stratum != "all" else np.ones(len(truth), dtype=bool)
        )
        row = {
            "stratum": stratum,
            "n_nodules": int(inside.sum()),
            "n_malignant": int(truth[inside].sum()),
            "n_patients": len(np.unique(patients[inside])),
        }
        try:
            found = auroc_with_interval(truth[inside], score[inside], patients[inside], n_bootstrap, seed)
            row |= {"auroc": found.value, "ci_low": found.ci_low, "ci_high": found.ci_high, "note": ""}
        except UnmeasurableError as too_few:
            row |= {"auroc": np.nan, "ci_low": np.nan, "ci_high": np.nan, "note": str(too_few)}
        rows.append(row)
    return pd.DataFrame(rows)


def mean_characteristics(annotations: pd.DataFrame, nodules: pd.DataFrame) -> Floats:
    """The readers' eight characteristics of each nodule, averaged over its marks; malignancy is not among them.

    Args:
        annotations: Rows of `annotations.parquet`.
        nodules: Labeled nodules with series_uid and cluster_id, or with the annotation_ids of a rule that regroups.

    Returns:
        (N, 8): six mean ratings, the share of readers who saw soft tissue inside, and the share who saw no
        calcification; those two are categories, whose numbers have no order.

    Raises:
        UnmeasurableError: If a nodule has no mark, or it is not known which marks belong to a nodule.
    """
    if "annotation_ids" not in nodules and "cluster_id" not in nodules:
        raise UnmeasurableError(
            "the nodules carry no cluster_id, so it is not known which readers' marks are theirs"
        )
    ratings = annotations[list(ORDINAL)].astype(np.float64)
    ratings["soft_tissue"] = annotations["internalStructure"] == SOFT_TISSUE
    ratings["not_calcified"] = annotations["calcification"] == NOT_CALCIFIED
    if "annotation_ids" in nodules:
        marks = (
            nodules["annotation_ids"].explode().rename("annotation_id").rename_axis("nodule").reset_index()
        )
        marks = marks.astype({"annotation_id": np.int64})
        rated = marks.merge(ratings.assign(annotation_id=annotations["annotation_id"]), on="annotation_id")
        means = rated.drop(columns="annotation_id").groupby("nodule").mean().reindex(nodules.index)
    else:
        keys = ["series_uid", "cluster_id"]
        by_cluster = ratings.groupby([annotations[key] for key in keys]).mean()
        means = by_cluster.reindex(pd.MultiIndex.from_frame(nodules[keys]))
    if means.isna().any(axis=None):
        raise UnmeasurableError(
            f"{int(means.isna().any(axis=1).sum())} nodules have no reader's mark to take ratings from"
        )
    return means.to_numpy(dtype=np.float64)
