"""Out-of-fold scores of nodules: a probe of features, and in the same folds everything that it is compared with."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.heads.linear import LinearProbe, Probe, Samples, cross_fit
from probes.refusals import TooFewError
from probes.splits import Fold
from probes.statistics.checks import Floats, Ints, binary_labels, finite_features

SHUFFLES = 1000
"""Tries for shuffled labels that can still be fitted."""


@dataclass(frozen=True, slots=True)
class NoduleScores:
    """Out-of-fold scores of the same nodules by row of the table, and the labels of the shuffled row."""

    rows: dict[str, Floats]
    shuffled_labels: Ints


def score_nodules(
    probe_factory: Callable[[], Probe[Any]],
    features: Samples,
    labels: npt.ArrayLike,
    diameter_mm: npt.ArrayLike,
    patient_ids: npt.ArrayLike,
    folds: Iterable[Fold | tuple[Ints, Ints]],
    baselines: Mapping[str, tuple[Callable[[], Probe[Any]], Samples]] | None = None,
    vectors: npt.ArrayLike | None = None,
    seed: int = 0,
    prior: float | None = None,
    shuffled: Ints | None = None,
) -> NoduleScores:
    """Cross-fit a probe and everything that it has to be compared with, in the same folds.

    Args:
        probe_factory: Makes the probe of the features.
        features: What it is fitted on, N nodules.
        labels: 0 or 1, (N,).
        diameter_mm: Of each nodule, above 0, (N,); NaN where it is not known.
        patient_ids: Patient of each nodule, (N,).
        folds: Training and test rows.
        baselines: Further rows by name, each a probe factory and what it is fitted on: `pixels`, `random_weights`.
        vectors: Features (N, D) that join diameter in a linear probe; None: `features`, if they are (N, D).
        seed: Of the shuffle and of the inner folds of the probe with diameter.
        prior: See `probes.heads.linear.cross_fit`: one for all calls whose scores are pooled.
        shuffled: Uninformative labels, from `shuffle_labels` over the folds of all calls whose scores are pooled;
            None: over these folds.

    Returns:
        Rows `features`, `features_and_diameter` (where there are vectors, and the diameter of every nodule is
        known), `shuffled_labels` and the baselines.

    Raises:
        TooFewError: As `probes.heads.linear.cross_fit` and `shuffle_labels`.
        ValueError: If a known diameter is not above 0.
    """
    truth, pairs = binary_labels(labels), list(folds)
    diameter = checked_diameter(diameter_mm, len(truth))
    rows = {"features": cross_fit(probe_factory, features, truth, patient_ids, pairs, prior)}
    beside = features if vectors is None and np.ndim(features) == 2 else vectors  # type: ignore[arg-type]
    if beside is not None and diameter is not None:
        # Log diameter carries no penalty: where the features are shrunk to zero, diameter alone remains.
        joined = np.column_stack([finite_features(beside, len(truth)), np.log(diameter)])  # type: ignore[arg-type]
        rows["features_and_diameter"] = cross_fit(
            lambda: LinearProbe(n_unpenalized=1, seed=seed), joined, truth, patient_ids, pairs, prior
        )
    for name, (baseline_factory, inputs) in (baselines or {}).items():
        rows[name] = cross_fit(baseline_factory, inputs, truth, patient_ids, pairs, prior)
    if shuffled is None:
        shuffled = shuffle_labels(truth, np.asarray(patient_ids), pairs, seed)
    rows["shuffled_labels"] = cross_fit(probe_factory, features, shuffled, patient_ids, pairs, prior)
    return NoduleScores(rows, shuffled)


def shuffle_labels(
    labels: Ints, patient_ids: npt.NDArray[Any], folds: Sequence[Fold | tuple[Ints, Ints]], seed: int
) -> Ints:
    """Return shuffled labels, shuffled again until a probe can be fitted to every training fold.

    A single shuffle of few positives may leave a training fold with one class, where the true labels left two.

    Args:
        labels: 0 or 1, (N,).
        patient_ids: Patient of each nodule, (N,).
        folds: Training and test rows.
        seed: Of the shuffles.

    Raises:
        TooFewError: If no shuffle leaves two patients of each class (or one, as the labels do) in every training fold.
    """
    trained = [fold.train if isinstance(fold, Fold) else fold[0] for fold in folds]

    def rarest(shuffled: Ints) -> int:
        """Fewest patients that any class has in any training fold."""
        own = [patient_ids[train][shuffled[train] == label] for train in trained for label in (0, 1)]
        return min(len(np.unique(patients)) for patients in own)

    needed = max(1, min(2, rarest(labels)))
    generator = np.random.default_rng(seed)
    for _ in range(SHUFFLES):
        shuffled: Ints = generator.permutation(labels)
        if rarest(shuffled) >= needed:
            return shuffled
    raise TooFewError(
        f"no shuffle of {int(labels.sum())} positives among {len(labels)} nodules leaves what a probe needs of"
        " each class in every training fold; give more nodules or other folds"
    )


def checked_diameter(diameter_mm: npt.ArrayLike, n: int) -> Floats | None:
    """Diameters as float64 (N,); None where one is not known (NaN).

    A row with the diameter of only some nodules is not comparable to the others and is left out.

    Raises:
        ValueError: If there are not n of them, or one is not above 0 mm.
    """
    diameter = np.asarray(diameter_mm, dtype=np.float64)
    is_unknown = np.isnan(diameter)
    if diameter.shape != (n,) or not (is_unknown | (diameter > 0)).all():
        raise ValueError(
            f"{n} nodules need {n} diameters above 0 mm, got {int((diameter > 0).sum())} of them"
        )
    return None if is_unknown.any() else diameter
