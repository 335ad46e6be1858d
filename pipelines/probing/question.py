"""The primary question of a probe: do features predict the rating beyond size and attenuation, and was that learned?

Fixed in docs/decisions/0005-the-primary-question.md before it was first run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.cohort.folder import Cohort
from pipelines.nodule.labeled import NoduleSet, nodule_set
from pipelines.probing.config import ProbeConfig
from pipelines.probing.folds import Fold
from pipelines.probing.reading import FrozenFeatures
from pipelines.probing.setup import among
from probes.dictionary import PATCH_MM_PER_PX, Words, dictionary_features, learn_dictionary
from probes.nodule_rays import NoduleRegion, attenuation_inside, nodule_region
from probes.partial.base import base_matrix
from probes.partial.cross_fit import Part
from probes.partial.effect import partial_effect, r2_over_twins
from probes.partial.nested import NestedResult, nested_test
from probes.splits import is_held_out
from probes.statistics.estimate import Estimate
from transforms.nodule_crop import CropSpec

SPEC = CropSpec(size_mm=50.0, out_px=round(50.0 / PATCH_MM_PER_PX))
"""Crops for finding nodules and for the dictionary; every nodule of LIDC fits."""
TWINS = 5
BASELINE_DRAWS = 999
FEW_NODULES = 100
"""Below this number the base has fewer columns."""
Features = NDArray[np.float32]


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


def ask(
    config: ProbeConfig,
    cohort: Cohort,
    nodules: NoduleSet,
    readers: Sequence[FrozenFeatures],
    folds: Sequence[Sequence[Fold]],
    diagnosis: pd.DataFrame | None = None,
) -> Answer | None:
    """Run the primary test on the features of the backbone, of random weights, and of the dictionary.

    Args:
        config: Configuration of the probe.
        cohort: Cohort of the nodules.
        nodules: Nodules of the probe, whose features the readers return.
        readers: One per backbone; several are cross-fitted.
        folds: Folds of each backbone.
        diagnosis: As in `nodule_set`.

    Returns:
        None, after printing why, if a training fold holds too few nodules for the base.
    """
    slices_hu, region = nodules_found(config, cohort, nodules, diagnosis)
    rows, base = base_of(nodules, slices_hu, region)
    rating, patients = rating_of(nodules)[rows], nodules.patient_ids[rows]
    own_folds = [_among(one, rows, len(nodules.labels)) for one in folds]
    fewest = min(len(train) for one in own_folds for train, _ in one)
    if fewest < 2 * base.shape[1]:
        print(
            f"the primary question needs {2 * base.shape[1]} nodules in every training fold; one holds {fewest}"
        )
        return None

    def test(parts: Sequence[tuple[Features, Sequence[Fold]]], draws: int) -> NestedResult:
        made = [Part(features[rows].astype(np.float64), own) for features, own in parts]
        return nested_test(made, rating, base, patients, draws, config.seed)

    found = {
        "features": test([(r.learned(), f) for r, f in zip(readers, own_folds, strict=True)], config.draws)
    }
    twins = [
        test([(r.twin(seed), f) for r, f in zip(readers, own_folds, strict=True)], BASELINE_DRAWS)
        for seed in range(config.seed, config.seed + TWINS)
    ]
    found["random"] = twins[0]
    every_fold = [fold for one in own_folds for fold in one]
    baselines: tuple[tuple[str, Words], ...] = (("dictionary", "kmeans"), ("random_words", "random"))
    for name, words in baselines:
        parts = _dictionary_parts(words, slices_hu, region, nodules, rows, every_fold, config.seed)
        if parts:
            found[name] = test(parts, BASELINE_DRAWS)
    over = r2_over_twins(found["features"], twins, patients, config.n_bootstrap, config.seed)
    answers = {name: _answer(result, patients, config) for name, result in found.items()}
    return Answer(answers, over)


def nodules_found(
    config: ProbeConfig, cohort: Cohort, nodules: NoduleSet, diagnosis: pd.DataFrame | None
) -> tuple[NDArray[np.float32], NoduleRegion]:
    """Return the center slice of each nodule at 0.5 mm per pixel, (n, 100, 100) HU, and the nodule's region on it."""
    wide = among(nodule_set(cohort, config.rule, SPEC, diagnosis=diagnosis), nodules)
    slices_hu = wide.crops_hu[:, 1]
    return slices_hu, nodule_region(slices_hu, SPEC.mm_per_px)


def base_of(
    nodules: NoduleSet, slices_hu: NDArray[np.float32], region: NoduleRegion
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the rows of the nodules that are tested, and the base matrix of their size and attenuation.

    Nodules of unknown diameter are left out; if no diameter is known, the base has no diameter.
    """
    diameter = nodules.diameter_mm
    has_any = bool(np.isfinite(diameter).any())
    rows = np.flatnonzero(np.isfinite(diameter)) if has_any else np.arange(len(diameter))
    base = base_matrix(
        diameter[rows] if has_any else None,
        region.diameter_mm[rows],
        region.area_mm2[rows],
        attenuation_inside(slices_hu[rows], region.mask[rows]),
        is_small=len(rows) < FEW_NODULES,
    )
    return rows, base


def rating_of(nodules: NoduleSet) -> NDArray[np.float64]:
    """Return the mean of the readers' ratings of each nodule, (n,); the labels, if a nodule has no rating."""
    ratings = nodules.table["malignancy_ratings"]
    if not all(len(one) for one in ratings):
        return nodules.labels.astype(np.float64)
    return np.array([np.mean(one) for one in ratings])


def _answer(result: NestedResult, patients: NDArray[np.str_], config: ProbeConfig) -> RowAnswer:
    effect = partial_effect(result, patients, config.n_bootstrap, config.seed)
    return RowAnswer(result.z, result.p, effect.spearman, effect.r2)


def _among(folds: Sequence[Fold], rows: NDArray[np.int64], n: int) -> list[Fold]:
    """Return the same folds as indices into the tested rows."""
    place = np.full(n, -1)
    place[rows] = np.arange(len(rows))
    return [(place[train][place[train] >= 0], place[test][place[test] >= 0]) for train, test in folds]


def _dictionary_parts(
    words: Words,
    slices_hu: NDArray[np.float32],
    region: NoduleRegion,
    nodules: NoduleSet,
    rows: NDArray[np.int64],
    folds: Sequence[Fold],
    seed: int,
) -> list[tuple[Features, list[Fold]]]:
    """Return features of dictionaries, each learned without labels on half of the patients, tested on the other."""
    patients = nodules.patient_ids
    first = np.array([is_held_out(patient, "half_a") for patient in patients])
    if first.all() or not first.any():
        return []
    parts: list[tuple[Features, list[Fold]]] = []
    for own in (first, ~first):
        features = dictionary_features(learn_dictionary(slices_hu[~own], words, seed=seed), slices_hu, region)
        tested = [(train, test[own[rows][test]]) for train, test in folds]
        parts.append((features, [fold for fold in tested if len(fold[1])]))
    return [part for part in parts if part[1]]
