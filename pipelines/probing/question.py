"""The primary question of a probe: do features predict the rating beyond size and attenuation, and was that learned?

Fixed in docs/decisions/0005-the-primary-question.md before it was first run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.nodule.labeled import NoduleSet
from pipelines.probing.config import ProbeConfig
from pipelines.probing.folds import Fold
from pipelines.probing.rows import TWINS, Found, Inputs
from probes.partial.base import Attenuation, base_matrix
from probes.partial.cross_fit import Part
from probes.partial.effect import partial_effect, r2_over_twins
from probes.partial.nested import NestedResult, nested_test
from probes.scoring import Pairs, Parts
from probes.splits import Fold as Split
from probes.statistics.estimate import Estimate

BASELINE_DRAWS = 999
FEW_NODULES = 100
"""Below this number the base has fewer columns."""


@dataclass(frozen=True, slots=True)
class RowAnswer:
    """Result of the test for one row."""

    z: float
    p: float
    spearman: Estimate
    r2: Estimate

    def columns(self) -> dict[str, float]:
        """Return the numbers by the suffix of their metric."""
        found = {"nested_z": self.z, "nested_p": self.p}
        for name, one in (("partial_spearman", self.spearman), ("partial_r2", self.r2)):
            found |= {name: one.value, f"{name}_ci_low": one.ci_low, f"{name}_ci_high": one.ci_high}
        return found


@dataclass(frozen=True)
class Answer:
    """Result of the test for each row, and how far the backbone is above its random twins.

    Attributes:
        rows: `features`, `random` and, where they could be learned, `dictionary` and `random_words`.
        over_random_r2: Partial R2 of the features minus the mean of the twins.
    """

    rows: dict[str, RowAnswer]
    over_random_r2: Estimate

    @property
    def is_learned(self) -> bool:
        """Whether the claim holds: p below 0.05, and above the random twins with the interval above 0."""
        return self.rows["features"].p < 0.05 and self.over_random_r2.ci_low > 0

    def metrics(self) -> dict[str, float]:
        """Return the metrics to log."""
        found = {f"probe/{name}": value for name, value in self.rows["features"].columns().items()}
        for name, row in self.rows.items():
            if name != "features":
                found |= {f"probe/{name}_nested_z": row.z, f"probe/{name}_partial_r2": row.r2.value}
        over = self.over_random_r2
        ends = {"": over.value, "_ci_low": over.ci_low, "_ci_high": over.ci_high}
        return found | {f"probe/over_random_r2{end}": value for end, value in ends.items()}

    def table(self) -> pd.DataFrame:
        """Return a table with one line per row."""
        return pd.DataFrame([{"row": name} | row.columns() for name, row in self.rows.items()])

    def __str__(self) -> str:
        """Return the table, and the claim in one sentence."""
        lines = [
            f"{'beyond size and HU':24} {'z':>6} {'p':>7}  {'partial Spearman [95%]':24} partial R2 [95%]"
        ]
        lines += [
            f"{name:24} {row.z:6.2f} {row.p:7.4f}  {row.spearman!s:24} {row.r2}"
            for name, row in self.rows.items()
        ]
        claim = "learned" if self.is_learned else "not shown to have learned anything beyond them"
        return "\n".join([*lines, f"partial R2 above {TWINS} random twins: {self.over_random_r2}: {claim}"])


def ask(config: ProbeConfig, nodules: NoduleSet, inputs: Inputs, found: Found) -> Answer | None:
    """Run the primary test on the features of the backbone, of random weights, and of the dictionaries.

    Args:
        config: Configuration of the probe.
        nodules: Nodules of the probe.
        inputs: Of the rows, one vector a nodule.
        found: The nodules in their images.

    Returns:
        None, after printing why, if a training fold holds too few nodules for the base.
    """
    rows, base = base_of(nodules, found)
    rating, patients = rating_of(nodules, config.target)[rows], nodules.patient_ids[rows]
    fewest = min(
        len(train) for _, folds in inputs.features for train, _ in _among(folds, rows, len(found.slices_hu))
    )
    if fewest < 2 * base.shape[1]:
        print(
            f"the primary question needs {2 * base.shape[1]} nodules in every training fold; one holds {fewest}"
        )
        return None

    def test(parts: Parts, draws: int) -> NestedResult:
        made = [
            Part(np.asarray(features, dtype=np.float64)[rows], _among(folds, rows, len(nodules.labels)))
            for features, folds in parts
        ]
        return nested_test(made, rating, base, patients, draws, config.seed)

    results = {"features": test(inputs.features, config.draws)}
    twins = [test(twin, BASELINE_DRAWS) for twin in inputs.twins]
    results["random"] = twins[0]
    results |= {name: test(parts, BASELINE_DRAWS) for name, parts in inputs.others.items() if name != "hu"}
    over = r2_over_twins(results["features"], twins, patients, config.n_bootstrap, config.seed)
    answers = {name: _answer(result, patients, config) for name, result in results.items()}
    return Answer(answers, over)


def base_of(nodules: NoduleSet, found: Found) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the rows of the nodules that are tested, and the base matrix of their size and attenuation.

    Nodules of unknown diameter are left out; if no diameter is known, the base has no diameter.
    """
    diameter = nodules.diameter_mm
    has_any = bool(np.isfinite(diameter).any())
    rows = np.flatnonzero(np.isfinite(diameter)) if has_any else np.arange(len(diameter))
    base = base_matrix(
        diameter[rows] if has_any else None,
        found.region.diameter_mm[rows],
        found.region.area_mm2[rows],
        Attenuation(*(column[rows] for column in found.attenuation)),
        is_small=len(rows) < FEW_NODULES,
    )
    return rows, base


def rating_of(nodules: NoduleSet, target: str = "") -> NDArray[np.float64]:
    """Return what the primary test is about, (n,): the mean of the readers' ratings of each nodule.

    The labels, if a nodule has no rating or the labels are the probe's target.
    """
    ratings = nodules.table["malignancy_ratings"]
    if target == "label" or not all(len(one) for one in ratings):
        return nodules.labels.astype(np.float64)
    return np.array([np.mean(one) for one in ratings])


def _answer(result: NestedResult, patients: NDArray[np.str_], config: ProbeConfig) -> RowAnswer:
    effect = partial_effect(result, patients, config.n_bootstrap, config.seed)
    return RowAnswer(result.z, result.p, effect.spearman, effect.r2)


def _among(folds: Pairs, rows: NDArray[np.int64], n: int) -> list[Fold]:
    """Return the folds that test something as indices into the tested rows."""
    place = np.full(n, -1)
    place[rows] = np.arange(len(rows))
    pairs = [(fold.train, fold.test) if isinstance(fold, Split) else fold for fold in folds]
    found = [(place[train][place[train] >= 0], place[test][place[test] >= 0]) for train, test in pairs]
    return [(train, test) for train, test in found if len(test)]
