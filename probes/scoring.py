"""Out-of-fold scores of nodules: a probe of features, and in the same folds everything that it is compared with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.heads.linear import LinearProbe, Probe, Samples, cross_fit
from probes.heads.ridge import Rated, RidgeProbe
from probes.pixels import PixelProbe
from probes.splits import Fold
from probes.statistics.checks import Floats, Ints, TooFewError, finite_features

TRIES = 1000
"""For a permutation of the labels that can still be fitted."""

Pairs = Sequence[Fold | tuple[Ints, Ints]]
"""Training and test rows."""
Parts = Sequence[tuple[Samples, Pairs]]
"""Inputs of one row of the table, with their folds; several where each tests patients of its own: cross-fitted
backbones, dictionaries of the other half."""
Factory = Callable[[], Probe[Any]]


@dataclass(frozen=True, slots=True)
class Target:
    """What every row of the table is fitted to.

    Attributes:
        labels: 0 or 1, (N,); every AUROC is against them.
        patient_ids: Patient of each nodule, (N,).
        prior: One share of positives for all scores that are ranked together, see `probes.heads.linear.cross_fit`.
        rating: Graded target for a ridge, (N,); None: a logistic regression is fitted to the labels.
        seed: Of inner folds.
        is_signed: Whether the rating may fall with the label, as no rating of malignancy does.
    """

    labels: Ints
    patient_ids: npt.NDArray[Any]
    prior: float | None = None
    rating: Floats | None = None
    seed: int = 0
    is_signed: bool = False

    def score(self, parts: Parts, factory: Factory | None = None) -> Floats:
        """Return one out-of-fold score a nodule, (N,); NaN where no part tests it.

        Args:
            parts: Inputs and folds.
            factory: Makes the probe, which is fitted to the labels; None: a linear one, to rating or labels.

        Raises:
            TooFewError: As `probes.heads.linear.cross_fit`.
            ValueError: If two parts test the same nodule.
        """
        return self._pooled(parts, factory, self._linear)

    def score_with_size(self, features: Parts, size_mm: Floats) -> Floats:
        """Score features (N, D) joined with ln size.

        The size carries no penalty: where the features are shrunk to zero, size alone remains. A sample whose size is
        not known (NaN) is neither fitted nor scored.
        """
        size = np.log(size_mm)
        joined: Parts = [
            (np.column_stack([finite_features(own, len(size)), size]), folds)  # type: ignore[arg-type]
            for own, folds in among_known(features, size_mm)
        ]
        return self._pooled(joined, None, lambda: self._linear(1))

    def score_pixels(self, parts: Parts, size_mm: Floats | None = None) -> Floats:
        """Score gray values through their principal components, joined with ln size if there is one: as above."""
        free = 0 if size_mm is None else 1
        if size_mm is not None:
            known = among_known(parts, size_mm)
            parts = [(np.column_stack([np.asarray(own), np.log(size_mm)]), folds) for own, folds in known]
        return self._pooled(parts, None, lambda: PixelProbe(seed=self.seed, n_unpenalized=free))

    def permuted(self, order: Ints) -> "Target":
        """Return the target with labels and ratings of other nodules."""
        rating = None if self.rating is None else self.rating[order]
        return replace(self, labels=self.labels[order], rating=rating)

    def _linear(self, n_unpenalized: int = 0) -> Probe[Any]:
        if self.rating is None:
            return LinearProbe(n_unpenalized=n_unpenalized, seed=self.seed)
        return RidgeProbe(n_unpenalized, self.is_signed)

    def _pooled(self, parts: Parts, factory: Factory | None, linear: Factory) -> Floats:
        found = []
        for own, folds in parts:
            inputs = own if factory or self.rating is None else Rated(np.asarray(own), self.rating)
            found.append(
                cross_fit(factory or linear, inputs, self.labels, self.patient_ids, folds, self.prior)
            )
        return pooled(found)


def among_known(parts: Parts, size_mm: Floats) -> Parts:
    """Return parts with the rows alone whose size is known; folds that then test nothing are left out."""
    known = np.isfinite(size_mm)
    if known.all():
        return parts
    kept = []
    for own, folds in parts:
        rows = [(train[known[train]], test[known[test]]) for train, test in as_pairs(folds)]
        kept.append((own, [pair for pair in rows if len(pair[1])]))
    return [part for part in kept if part[1]]


def pooled(scores: Sequence[Floats]) -> Floats:
    """Join the scores of the parts of a row, (N,) each, NaN where a part does not test a nodule.

    Raises:
        ValueError: If two parts test the same nodule.
    """
    joined = np.full(len(scores[0]), np.nan)
    for found in scores:
        is_tested = np.isfinite(found)
        if np.isfinite(joined[is_tested]).any():
            raise ValueError("two parts of a row test the same nodule")
        joined[is_tested] = found[is_tested]
    return joined


@dataclass(frozen=True, slots=True)
class Permuted:
    """A permutation of the labels, (N,), and the out-of-fold scores of features that were fitted to it, (N,)."""

    labels: Ints
    scores: Floats


def score_permuted(
    target: Target, parts: Parts, seed: int, times: int = 20, repeats: int = 1, factory: Factory | None = None
) -> list[Permuted]:
    """Fit features to permuted labels: what a probe finds where there is nothing, with its spread.

    Args:
        target: Whose labels and ratings are permuted together.
        parts: Of the features.
        seed: Of the first permutation; later ones count up.
        times: Number of permutations.
        repeats: Of the folds; each permutation is fitted in the folds of one, which it takes in turn.
        factory: As in `Target.score`.

    Raises:
        TooFewError: As `permutation`.
    """
    found = []
    for number in range(times):
        own = [(inputs, of_repeat(list(folds), number % repeats, repeats)) for inputs, folds in parts]
        folds = [fold for _, part in own for fold in part]
        permuted = target.permuted(permutation(target.labels, target.patient_ids, folds, seed + number))
        found.append(Permuted(permuted.labels, permuted.score(own, factory)))
    return found


def as_pairs(folds: Pairs) -> list[tuple[Ints, Ints]]:
    """Return folds as training and test rows."""
    return [(fold.train, fold.test) if isinstance(fold, Fold) else fold for fold in folds]


def of_repeat(folds: Pairs, repeat: int, repeats: int) -> Pairs:
    """Return the folds of one repeat."""
    own = len(folds) // repeats
    return folds[repeat * own : (repeat + 1) * own]


def permutation(labels: Ints, patient_ids: npt.NDArray[Any], folds: Pairs, seed: int) -> Ints:
    """Return rows in random order, drawn again until a probe can be fitted to every training fold's labels.

    A single permutation of few positives may leave a training fold with one class, where the true labels left two.

    Args:
        labels: 0 or 1, (N,).
        patient_ids: Patient of each nodule, (N,).
        folds: Training and test rows.
        seed: Of the draws.

    Raises:
        TooFewError: If none leaves two patients of each class (or one, as the labels do) in every training fold.
    """
    trained = [train for train, _ in as_pairs(folds)]

    def rarest(permuted: Ints) -> int:
        """Fewest patients that any class has in any training fold."""
        own = [patient_ids[train][permuted[train] == label] for train in trained for label in (0, 1)]
        return min(len(np.unique(patients)) for patients in own)

    needed = max(1, min(2, rarest(labels)))
    generator = np.random.default_rng(seed)
    for _ in range(TRIES):
        order: Ints = generator.permutation(len(labels))
        if rarest(labels[order]) >= needed:
            return order
    raise TooFewError(
        f"no shuffle of {int(labels.sum())} positives among {len(labels)} nodules leaves what a probe needs of"
        " each class in every training fold; give more nodules or other folds"
    )


def checked_diameter(diameter_mm: npt.ArrayLike, n: int) -> Floats | None:
    """Diameters as float64 (N,), NaN where one is not known; None where fewer than half of them are.

    Rows with the diameter are then of the other nodules alone; of less than half they would say little of the rest.

    Raises:
        ValueError: If there are not n of them, or one is not above 0 mm.
    """
    diameter = np.asarray(diameter_mm, dtype=np.float64)
    is_unknown = np.isnan(diameter)
    if diameter.shape != (n,) or not (is_unknown | (diameter > 0)).all():
        raise ValueError(
            f"{n} nodules need {n} diameters above 0 mm, got {int((diameter > 0).sum())} of them"
        )
    return diameter if has_most(diameter) else None


def has_most(diameter_mm: Floats) -> bool:
    """Whether at least half of the diameters are known (not NaN)."""
    return bool(2 * np.isfinite(diameter_mm).sum() >= max(len(diameter_mm), 1))
