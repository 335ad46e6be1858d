"""One table: how well do frozen features predict malignancy, beside baselines that need no features?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from probes.scoring import Permuted, checked_diameter
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
_OWN_PEER = {"features_and_image_diameter": "image_diameter"}
"""Rows that are compared with one more row, whose question is that of a user without a reader's diameter."""
_SIZES = ("diameter", "image_diameter")
"""Rows of millimeters, which are no probabilities."""
_IN_GROUPS = ("features", "features_and_diameter", "pixels", "random_weights", "diameter")
"""Rows of the strata by group."""
_OF_RANKS = ("average_precision", "sensitivity_at_90_specificity")


def evaluate_nodules(
    labels: npt.ArrayLike,
    scores: Mapping[str, Floats],
    diameter_mm: npt.ArrayLike,
    patient_ids: npt.ArrayLike,
    groups: Mapping[str, Sequence[object]] | None = None,
    n_bootstrap: int = 2000,
    seed: int = 0,
    permuted: Sequence[Permuted] = (),
) -> pd.DataFrame:
    """Every row beside diameter alone: overall, inside 6-15 mm, and by group.

    Intervals are over patients and conditional on the fitted scores. Differences are paired.

    Args:
        labels: 0 or 1, (N,).
        scores: Out-of-fold probabilities by row, (N,) each, or (S, N) of S seeds, whose AUROC is averaged; NaN in all
            of them where no fold tests the nodule. A row `image_diameter` is in mm.
        diameter_mm: Of each nodule, (N,): the row `diameter`, as it is, without a fit. Nodules whose diameter is not
            known (NaN) are left out of that row, of rows `..._and_diameter`, of differences from them and of the
            stratum inside 6-15 mm; where most are not known, there is no such row and no such stratum.
        patient_ids: Patient of each nodule, (N,).
        groups: Further strata by name, such as the manufacturer of each nodule's series, (N,); of the main rows alone.
        n_bootstrap: Draws of patients.
        seed: Of the draws.
        permuted: Scores that were fitted to permuted labels: the row `shuffled_labels`.

    Returns:
        One line per stratum and row: counts (where some diameters are not known, in `n_unknown_diameter`, the nodules
        that rows with the diameter are without), AUROC with bootstrap and clustered DeLong interval, differences in it
        against `diameter` and `pixels` with interval and p of both methods; overall and inside 6-15 mm also average
        precision, balanced accuracy, sensitivity at 90% specificity, Brier, calibration. A stratum without three
        patients of each class keeps its counts and NaN. The row of permuted labels has their mean AUROC, the lowest and
        the highest.

    Raises:
        ValueError: If the rows were scored on different nodules, or on none.
    """
    truth = np.asarray(binary_labels(labels))
    diameter = checked_diameter(diameter_mm, len(truth))
    patients = patient_index(patient_ids, len(truth))
    is_known = np.ones(len(truth), bool) if diameter is None else np.isfinite(diameter)
    tested = _tested_alike(scores, len(truth), is_known)
    table_rows = dict(scores) if diameter is None else dict(scores) | {"diameter": diameter}
    lines: list[dict[str, Any]] = []
    for stratum, inside in _strata(tested, diameter, groups or {}).items():
        is_main = stratum in _MAIN_STRATA
        rows = {name: one for name, one in table_rows.items() if is_main or name in _IN_GROUPS}
        unknown = {} if is_known.all() else {"n_unknown_diameter": int((inside & ~is_known).sum())}
        for name in rows:
            own = inside & is_known if _has_diameter(name) else inside
            columns = _row_columns(name, rows, truth, patients, own, is_known, is_main, n_bootstrap, seed)
            lines.append({"stratum": stratum, "row": name, **columns, **unknown})
        if permuted:
            y, who = truth[inside], patients[inside]
            areas = _permuted_columns(permuted, inside) if _has_enough(y, who) else {}
            lines.append(
                {"stratum": stratum, "row": "shuffled_labels", **_counts(y, who), **areas, **unknown}
            )
    return pd.DataFrame(lines)


def _row_columns(
    name: str,
    rows: Mapping[str, Floats],
    truth: Ints,
    patients: Ints,
    own: npt.NDArray[np.bool_],
    is_known: npt.NDArray[np.bool_],
    is_main: bool,
    n_bootstrap: int,
    seed: int,
) -> dict[str, float]:
    """Counts and figures of a row on its own nodules."""
    y, who, score = truth[own], patients[own], rows[name]
    columns = _counts(y, who)
    if _has_enough(y, who):
        peers = _peers_of(name, rows)
        columns |= _auroc_columns(truth, score, peers, patients, own, is_known, n_bootstrap, seed)
        if is_main:
            metrics = _OF_RANKS if name in _SIZES else tuple(_OF_PROBABILITIES)
            columns |= _metric_columns(y, score[..., own], metrics, who, n_bootstrap, seed)
    return columns


def _has_diameter(row: str) -> bool:
    """Whether a row needs the readers' diameter."""
    return row == "diameter" or row.endswith("_and_diameter")


def _counts(y: Ints, who: Ints) -> dict[str, float]:
    return {"n_nodules": len(y), "n_positive": int(y.sum()), "n_patients": np.unique(who).size}


def _peers_of(name: str, rows: Mapping[str, Floats]) -> dict[str, Floats]:
    """Rows that a row is compared with."""
    chosen = (*_PEERS, _OWN_PEER.get(name, ""))
    return {peer: rows[peer] for peer in chosen if peer in rows and peer != name}


def matched_by_size(labels: Ints, diameter_mm: Floats) -> npt.NDArray[np.bool_]:
    """Nodules of a subset in which size says little: each malignant one with the two benign ones nearest in diameter.

    Largest first, each benign one once; malignant ones without two benign ones within 10% of their diameter are left
    out.

    Args:
        labels: 0 or 1, (N,).
        diameter_mm: (N,), above 0.

    Returns:
        (N,).
    """
    size, free = np.log(diameter_mm), labels == 0
    kept = np.zeros(len(labels), bool)
    for one in sorted(np.flatnonzero(labels == 1), key=lambda row: -size[row]):
        gap = np.where(free, np.abs(size - size[one]), np.inf)
        nearest = np.argsort(gap, kind="stable")[:2]
        if len(nearest) == 2 and gap[nearest].max() <= np.log(1.1):
            free[nearest], kept[nearest], kept[one] = False, True, True
    return kept


def _permuted_columns(permuted: Sequence[Permuted], inside: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Mean AUROC of all permutations, and the lowest and highest; none where the stratum lacks a class."""
    weights = np.ones((1, int(inside.sum())))
    areas = np.array([auroc(one.labels[inside], one.scores[inside], weights)[0] for one in permuted])
    areas = areas[np.isfinite(areas)]
    if not len(areas):
        return {}
    return {"auroc": areas.mean(), "auroc_lowest": areas.min(), "auroc_highest": areas.max()}


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


PREFIXES = {"features": "", "random_weights": "random_", "shuffled_labels": "shuffled_"}


def headline(table: pd.DataFrame) -> dict[str, float]:
    """The numbers that a run is compared by, from the table of `evaluate_nodules`.

    Returns:
        `probe/auroc`, `probe/diameter_auroc`, `probe/gain_over_diameter` (features and diameter, less diameter), each
        with `_ci_low` and `_ci_high`, the gain with `_p`; with suffix `_6_15mm` inside 6-15 mm; and counts. A row
        of another name keeps it: `probe/<row>_auroc`, and joined with diameter `probe/<row>_with_diameter_auroc` and
        `probe/<row>_gain_over_diameter`. NaN is left out.
    """
    found: dict[str, float] = {}
    low, high = HONEST_STRATUM_MM
    for stratum, suffix in zip(_MAIN_STRATA, ("", f"_{low:g}_{high:g}mm"), strict=True):
        lines = table[table["stratum"] == stratum].set_index("row")
        if lines.empty:
            continue
        for row in lines.index:
            own, _, size = str(row).partition("_and_")
            prefix = PREFIXES.get(own, f"{own}_")
            joined = f"{prefix}with_{size}_" if size else prefix
            for part in ("", "_ci_low", "_ci_high", "_lowest", "_highest"):
                found[f"probe/{joined}auroc{part}{suffix}"] = _number(lines, str(row), f"auroc{part}")
            for part in ("", "_ci_low", "_ci_high", "_p") if size else ():
                gain = _number(lines, str(row), f"minus_{size}{part}")
                found[f"probe/{prefix}gain_over_{size}{part}{suffix}"] = gain
        for count in ("n_nodules", "n_positive", "n_patients"):
            found[f"probe/{count}{suffix}"] = _number(lines, str(lines.index[0]), count)
        if not suffix:
            found["probe/n_unknown_diameter"] = _number(lines, str(lines.index[0]), "n_unknown_diameter")
    return {key: value for key, value in found.items() if np.isfinite(value)}


def _number(lines: pd.DataFrame, row: str, column: str) -> float:
    return float(lines.at[row, column]) if column in lines.columns else float("nan")  # type: ignore[arg-type]


def _auroc_columns(
    truth: Ints,
    scores: Floats,
    peers: Mapping[str, Floats],
    patients: Ints,
    own: npt.NDArray[np.bool_],
    is_known: npt.NDArray[np.bool_],
    n_bootstrap: int,
    seed: int,
) -> dict[str, float]:
    """AUROC of a row on its own nodules, and less each peer on those that both have."""
    y, score, who = truth[own], scores[..., own], patients[own]
    columns = with_interval(auroc, y, score, who, n_bootstrap, seed).named("auroc")
    if score.ndim == 1:
        delong = delong_interval(y, score, who)
        columns |= {"auroc_delong_ci_low": delong.ci_low, "auroc_delong_ci_high": delong.ci_high}
    for name, others in peers.items():
        both = own & is_known if _has_diameter(name) else own
        y, score, peer, who = truth[both], scores[..., both], others[..., both], patients[both]
        if not _has_enough(y, who):
            continue
        gap = paired_difference(auroc, y, score, peer, who, n_bootstrap, seed)
        columns |= gap.named(f"minus_{name}") | {f"minus_{name}_p": gap.p}
        if score.ndim == peer.ndim == 1:
            columns[f"minus_{name}_delong_p"] = delong_difference(y, score, peer, who).p
    return columns


def _metric_columns(
    y: Ints, score: Floats, metrics: Sequence[str], who: Ints, n_bootstrap: int, seed: int
) -> dict[str, float]:
    columns: dict[str, float] = {}
    for name in metrics:
        metric = _OF_PROBABILITIES[name]
        seeds = np.atleast_2d(score)
        columns[name] = float(np.mean([metric(y, one, np.ones((1, len(y))))[0] for one in seeds]))
        try:
            found = with_interval(metric, y, score, who, n_bootstrap, seed)
        except TooFewDrawsError:
            continue  # scores that (nearly) separate the classes have a calibration slope in few draws or none
        columns |= {f"{name}_ci_low": found.ci_low, f"{name}_ci_high": found.ci_high}
    return columns


def _has_enough(truth: Ints, patients: Ints) -> bool:
    """Three patients of each class: with fewer, a tenth of the bootstrap draws miss a class."""
    return min(np.unique(patients[truth == label]).size for label in (0, 1)) >= 3


def _tested_alike(
    rows: Mapping[str, Floats], n: int, is_known: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    if not rows:
        raise ValueError("no row of scores to evaluate")
    tested = {name: np.isfinite(np.atleast_2d(score)) for name, score in rows.items()}
    first: npt.NDArray[np.bool_] = next(iter(tested.values()))[0]
    for name, own in tested.items():
        expected = first & is_known if _has_diameter(name) and first.shape == (n,) else first
        if first.shape != (n,) or not (own.shape[1:] == (n,) and (own == expected).all()):
            raise ValueError(
                f"row {name!r} was scored on other nodules than the rest; rows must share their folds"
            )
    if not first.any():
        raise ValueError(f"none of the {n} nodules was tested")
    return first
