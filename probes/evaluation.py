"""One table: how well do frozen features predict malignancy, beside baselines that need no features?"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from probes.scoring import NoduleScores, checked_diameter
from probes.statistics.bootstrap import Metric, TooFewDrawsError, paired_difference, with_interval
from probes.statistics.calibration import calibration_intercept, calibration_slope
from probes.statistics.checks import Floats, Ints, binary_labels, patient_index
from probes.statistics.delong import delong_difference, delong_interval
from probes.statistics.metrics import (
    auroc,
    average_precision,
    balanced_accuracy,
    brier,
    sensitivity_at_90_specificity,
)

HONEST_STRATUM_MM = (6.0, 15.0)
"""Diameters, mm, within which size alone predicts least; a stratum of its own in every table."""

_MAIN_STRATA = ("all", "{:g}-{:g} mm".format(*HONEST_STRATUM_MM))

_OF_PROBABILITIES: dict[str, Metric] = {
    "average_precision": average_precision,
    "balanced_accuracy": balanced_accuracy,
    "sensitivity_at_90_specificity": sensitivity_at_90_specificity,
    "brier": brier,
    "calibration_slope": calibration_slope,
    "calibration_intercept": calibration_intercept,
}
_PEERS = ("diameter", "pixels")
"""Rows that every other row is compared with."""
_OF_RANKS = ("average_precision", "sensitivity_at_90_specificity")


def evaluate_nodules(
    labels: npt.ArrayLike,
    scores: NoduleScores | Mapping[str, Floats],
    diameter_mm: npt.ArrayLike,
    patient_ids: npt.ArrayLike,
    groups: Mapping[str, Sequence[object]] | None = None,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Every row beside diameter alone: overall, inside 6-15 mm, and by group.

    Intervals are over patients and conditional on the fitted scores. Differences are paired.

    Args:
        labels: 0 or 1, (N,).
        scores: Out-of-fold probabilities by row, (N,) each; NaN in all of them where no fold tests the nodule.
        diameter_mm: Of each nodule, (N,): the row `diameter`, as it is, without a fit. Where one is not known
            (NaN), the row and the stratum inside 6-15 mm are left out.
        patient_ids: Patient of each nodule, (N,).
        groups: Further strata by name, such as the manufacturer of each nodule's series, (N,).
        n_bootstrap: Draws of patients.
        seed: Of the draws.

    Returns:
        One line per stratum and row: counts, AUROC with bootstrap and clustered DeLong interval, differences in AUROC
        against `diameter` and `pixels` with interval and p of both methods; overall and inside 6-15 mm also average
        precision, balanced accuracy, sensitivity at 90% specificity, Brier, calibration. A stratum without three
        patients of each class keeps its counts and NaN.

    Raises:
        ValueError: If the rows were scored on different nodules, or on none.
    """
    truth = np.asarray(binary_labels(labels))
    diameter = checked_diameter(diameter_mm, len(truth))
    patients = patient_index(patient_ids, len(truth))
    rows = dict(scores.rows) if isinstance(scores, NoduleScores) else dict(scores)
    own_labels = {"shuffled_labels": scores.shuffled_labels} if isinstance(scores, NoduleScores) else {}
    tested = _tested_alike(rows, len(truth))
    table_rows = rows if diameter is None else rows | {"diameter": diameter}
    strata = _strata(tested, diameter, groups or {})
    lines = []
    for stratum, inside in strata.items():
        who = patients[inside]
        for name, score in table_rows.items():
            y = own_labels.get(name, truth)[inside]
            peers: dict[str, Floats] = {}
            if name not in own_labels:
                peers = {
                    peer: table_rows[peer][inside] for peer in _PEERS if peer in table_rows and peer != name
                }
            line: dict[str, float | str] = {"stratum": stratum, "row": name}
            line |= {"n_nodules": len(y), "n_positive": int(y.sum()), "n_patients": np.unique(who).size}
            if _has_enough(y, who):
                line |= _auroc_columns(y, score[inside], peers, who, n_bootstrap, seed)
                if stratum in _MAIN_STRATA:
                    metrics = _OF_RANKS if name == "diameter" else tuple(_OF_PROBABILITIES)
                    line |= _metric_columns(y, score[inside], metrics, who, n_bootstrap, seed)
            lines.append(line)
    return pd.DataFrame(lines)


def _strata(
    tested: npt.NDArray[np.bool_], diameter: Floats | None, groups: Mapping[str, Sequence[object]]
) -> dict[str, npt.NDArray[np.bool_]]:
    """Which nodules are in each stratum, by its name."""
    low, high = HONEST_STRATUM_MM
    everyone, honest = _MAIN_STRATA
    strata = {everyone: tested}
    if diameter is not None:
        strata[honest] = tested & (diameter >= low) & (diameter <= high)
    for group, values in groups.items():
        of_group = np.array([str(value) for value in values])
        for value in np.unique(of_group[tested]):
            strata[f"{group}: {value}"] = tested & (of_group == value)
    return strata


def headline(table: pd.DataFrame) -> dict[str, float]:
    """The numbers that a run is compared by, from the table of `evaluate_nodules`.

    Returns:
        `probe/auroc`, `probe/diameter_auroc`, `probe/gain_over_diameter` (features and diameter, less diameter), each
        with `_ci_low` and `_ci_high`, the gain with `_p`; with suffix `_6_15mm` inside 6-15 mm; and counts. A row
        of another name keeps it: `probe/<row>_auroc`. NaN is left out.
    """
    found: dict[str, float] = {}
    names = {"features": "", "diameter": "diameter_", "pixels": "pixels_", "random_weights": "random_"}
    names |= {"shuffled_labels": "shuffled_", "features_and_diameter": "with_diameter_"}
    low, high = HONEST_STRATUM_MM
    for stratum, suffix in zip(_MAIN_STRATA, ("", f"_{low:g}_{high:g}mm"), strict=True):
        lines = table[table["stratum"] == stratum].set_index("row")
        if lines.empty:
            continue
        for row in lines.index:
            prefix = names.get(str(row), f"{row}_")
            for part in ("", "_ci_low", "_ci_high"):
                found[f"probe/{prefix}auroc{part}{suffix}"] = _number(lines, str(row), f"auroc{part}")
        if "features_and_diameter" in lines.index:
            for part in ("", "_ci_low", "_ci_high", "_p"):
                gain = _number(lines, "features_and_diameter", f"minus_diameter{part}")
                found[f"probe/gain_over_diameter{part}{suffix}"] = gain
        for count in ("n_nodules", "n_positive", "n_patients"):
            found[f"probe/{count}{suffix}"] = _number(lines, str(lines.index[0]), count)
    return {key: value for key, value in found.items() if np.isfinite(value)}


def _number(lines: pd.DataFrame, row: str, column: str) -> float:
    return float(lines.at[row, column]) if column in lines.columns else float("nan")  # type: ignore[arg-type]


def _auroc_columns(
    y: Ints, score: Floats, peers: Mapping[str, Floats], who: Ints, n_bootstrap: int, seed: int
) -> dict[str, float]:
    area, delong = with_interval(auroc, y, score, who, n_bootstrap, seed), delong_interval(y, score, who)
    columns = area.named("auroc")
    columns |= {"auroc_delong_ci_low": delong.ci_low, "auroc_delong_ci_high": delong.ci_high}
    for name, peer in peers.items():
        gap = paired_difference(auroc, y, score, peer, who, n_bootstrap, seed)
        columns |= gap.named(f"minus_{name}")
        columns |= {
            f"minus_{name}_p": gap.p,
            f"minus_{name}_delong_p": delong_difference(y, score, peer, who).p,
        }
    return columns


def _metric_columns(
    y: Ints, score: Floats, metrics: Sequence[str], who: Ints, n_bootstrap: int, seed: int
) -> dict[str, float]:
    columns: dict[str, float] = {}
    for name in metrics:
        metric = _OF_PROBABILITIES[name]
        columns[name] = float(metric(y, score, np.ones((1, len(y))))[0])
        try:
            found = with_interval(metric, y, score, who, n_bootstrap, seed)
        except TooFewDrawsError:
            continue  # scores that (nearly) separate the classes have a calibration slope in few draws or none
        columns |= {f"{name}_ci_low": found.ci_low, f"{name}_ci_high": found.ci_high}
    return columns


def _has_enough(truth: Ints, patients: Ints) -> bool:
    """Three patients of each class: with fewer, a tenth of the bootstrap draws miss a class."""
    return min(np.unique(patients[truth == label]).size for label in (0, 1)) >= 3


def _tested_alike(rows: Mapping[str, Floats], n: int) -> npt.NDArray[np.bool_]:
    if not rows:
        raise ValueError("no row of scores to evaluate")
    tested = {name: np.isfinite(np.asarray(score, dtype=np.float64)) for name, score in rows.items()}
    first = next(iter(tested.values()))
    for name, own in tested.items():
        if own.shape != (n,) or not np.array_equal(own, first):
            raise ValueError(
                f"row {name!r} was scored on other nodules than the rest; rows must share their folds"
            )
    if not first.any():
        raise ValueError(f"none of the {n} nodules was tested")
    return first
