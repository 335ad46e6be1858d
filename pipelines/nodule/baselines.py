"""The baselines of a cohort's nodules: AUROC of size, readers' ratings and pixels, with intervals, by stratum."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from pipelines.cohort.folder import Cohort
from pipelines.nodule.config import NodulesConfig
from probes.heads.linear import LinearProbe, cross_fit
from probes.label_rules import LabelRule
from probes.labels import Labeled
from probes.size_baseline import (
    STRATA_MM,
    mean_characteristics,
    score_by_stratum,
)
from probes.splits import Splits, patient_folds
from probes.statistics.checks import TooFewError, UnmeasurableError

_SIZES = (("diameter", "mm"), ("volume", "mm3"))


def rules_table(labeled: Mapping[LabelRule, Labeled], settings: NodulesConfig) -> pd.DataFrame:
    """Counts of each rule, its use of rating 3, and the AUROC of the readers' diameter under it."""
    rows = []
    for rule, one in labeled.items():
        counts = one.counts
        row: dict[str, Any] = {
            "rule": rule,
            "nodules": counts.n_labeled,
            "malignant": counts.n_malignant,
            "benign": counts.n_benign,
            "patients": counts.n_patients,
            "rated_3": counts.n_three,
            "fate_of_3": counts.fate_of_three,
        }
        scored = score_baseline(
            "diameter", one.nodules, one.nodules["diameter_mm"], settings, ("all", "6_15mm")
        )
        for stratum, suffix in (("all", ""), ("6_15mm", "_6_15mm")):
            found = scored.set_index("stratum").loc[stratum]
            row |= {f"{name}{suffix}": found[name] for name in ("auroc", "ci_low", "ci_high")}
        rows.append(row)
    return pd.DataFrame(rows)


def measure_baselines(cohort: Cohort, labeled: Labeled, settings: NodulesConfig) -> pd.DataFrame:
    """Measure the baselines that need no image: diameter, volume, and readers' characteristics if there are marks.

    Args:
        cohort: The cohort; its marks give the characteristics.
        labeled: Its nodules under one rule.
        settings: Folds and draws.

    Returns:
        One row per baseline and stratum, see `score_by_stratum`. What cannot be measured is printed with its reason.
    """
    nodules = labeled.nodules
    tables = [score_baseline(name, nodules, nodules[f"{name}_{unit}"], settings) for name, unit in _SIZES]
    if len(cohort.annotations):
        try:
            ratings = mean_characteristics(cohort.annotations, nodules)
        except UnmeasurableError as reason:
            print(f"characteristics: not measured: {reason}")
        else:
            tables += _characteristics(ratings, nodules, settings)
    return pd.concat(tables, ignore_index=True)


def _characteristics(
    ratings: NDArray[np.float64], nodules: pd.DataFrame, settings: NodulesConfig
) -> list[pd.DataFrame]:
    """The baseline of the readers' characteristics; empty where there are too few patients for folds."""
    splits = folds_of("characteristics", nodules, settings)
    if splits is None:
        return []
    scores = cross_fit(LinearProbe, ratings, labels_of(nodules), splits.patient_ids, splits)
    return [score_baseline("characteristics", nodules, scores, settings)]


def baseline_metrics(baselines: pd.DataFrame) -> dict[str, float]:
    """Metrics of the baselines: `nodules/<baseline>_auroc` with `_ci_low`, `_ci_high` and the stratum as suffix."""
    metrics = {}
    for row in baselines[baselines["auroc"].notna()].to_dict("records"):
        suffix = "" if row["stratum"] == "all" else f"_{row['stratum']}"
        for name, ending in (("auroc", ""), ("ci_low", "_ci_low"), ("ci_high", "_ci_high")):
            metrics[f"nodules/{row['baseline']}_auroc{ending}{suffix}"] = float(row[name])
    return metrics


def folds_of(baseline: str, nodules: pd.DataFrame, settings: NodulesConfig) -> Splits | None:
    """Patient folds; no backbone is involved, so every patient is unseen. None and a printed reason if too few."""
    patients = nodules["patient_id"].astype(str).tolist()
    try:
        return patient_folds(
            patients,
            labels_of(nodules),
            n_folds=settings.folds,
            n_repeats=settings.repeats,
            seed=settings.seed,
        )
    except TooFewError as reason:
        print(f"{baseline}: not measured: {reason}")
        return None


def labels_of(nodules: pd.DataFrame) -> NDArray[np.int64]:
    """1 for malignant, (n,)."""
    return nodules["is_malignant"].to_numpy(dtype=np.int64)


def score_baseline(
    baseline: str,
    nodules: pd.DataFrame,
    scores: ArrayLike,
    settings: NodulesConfig,
    strata: Sequence[str] = tuple(STRATA_MM),
) -> pd.DataFrame:
    """Score one baseline on labeled nodules: rows of `score_by_stratum` under its name."""
    rows = score_by_stratum(
        labels_of(nodules),
        scores,
        nodules["diameter_mm"],
        nodules["patient_id"],
        settings.n_bootstrap,
        settings.seed,
        strata,
    )
    rows.insert(0, "baseline", baseline)
    return rows
