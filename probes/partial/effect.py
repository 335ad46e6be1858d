"""How much features add to the base: partial correlation and R2 with intervals over patients."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from probes.partial.nested import NestedResult
from probes.statistics.bootstrap import patient_weights
from probes.statistics.checks import Floats, patient_index
from probes.statistics.estimate import Estimate


class PartialEffect(NamedTuple):
    """Of predicted and observed residuals of the rating."""

    spearman: Estimate
    r2: Estimate


def partial_effect(
    result: NestedResult, patient_ids: npt.ArrayLike, n_bootstrap: int = 2000, seed: int = 0
) -> PartialEffect:
    """Return the partial Spearman correlation and the partial R2, each with its 95% interval over patients."""
    predicted, observed, patient = _tested(result, patient_ids)
    spearman, r2 = [], []
    for weights in (np.ones((1, len(patient))), *patient_weights(patient, n_bootstrap, seed)):
        r2.append(weighted_r2(predicted, observed, weights))
        spearman.append(_spearman(predicted, observed, weights))
    return PartialEffect(*(_estimate(float(one[0][0]), np.concatenate(one[1:])) for one in (spearman, r2)))


def r2_over_twins(
    result: NestedResult,
    twins: Sequence[NestedResult],
    patient_ids: npt.ArrayLike,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Return the partial R2 less the mean partial R2 of random-weight twins, paired over patients.

    All results are of the same nodules and folds.
    """
    predicted, observed, patient = _tested(result, patient_ids)
    others = [_tested(twin, patient_ids)[0] for twin in twins]
    differences = [
        weighted_r2(predicted, observed, weights)
        - np.mean([weighted_r2(one, observed, weights) for one in others], axis=0)
        for weights in (np.ones((1, len(patient))), *patient_weights(patient, n_bootstrap, seed))
    ]
    return _estimate(float(differences[0][0]), np.concatenate(differences[1:]))


def _tested(result: NestedResult, patient_ids: npt.ArrayLike) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    tested = np.isfinite(result.observed)
    everyone = np.asarray(patient_ids)[tested]
    return result.predicted[tested], result.observed[tested], patient_index(everyone, int(tested.sum()))


def weighted_r2(predicted: Floats, observed: Floats, weights: Floats) -> Floats:
    """Return the R2 of predicted residuals, (N,), under the weights of each draw, (B, N); NaN where none varies."""
    total = weights @ observed**2
    missed = weights @ (observed - predicted) ** 2
    return np.asarray(1.0 - np.divide(missed, total, out=np.full_like(total, np.nan), where=total > 0))


def _spearman(predicted: Floats, observed: Floats, weights: Floats) -> Floats:
    pairs = zip(_ranks(predicted, weights), _ranks(observed, weights), strict=True)
    found = []
    for times, ranks in zip(weights.astype(np.int64), pairs, strict=True):
        a, b = (np.repeat(one, times) for one in ranks)
        found.append(0.0 if a.std() == 0 or b.std() == 0 else float(np.corrcoef(a, b)[0, 1]))
    return np.array(found)


def _ranks(values: Floats, weights: Floats) -> Floats:
    """Rank of each value, (N,), among the drawn ones of each draw, (B, N); equal values share the mean of theirs."""
    _, place = np.unique(values, return_inverse=True)
    order = np.argsort(place, kind="stable")
    firsts = np.flatnonzero(np.diff(place[order], prepend=-1))
    equal = np.add.reduceat(weights[:, order], firsts, axis=1)
    return np.asarray((equal.cumsum(axis=1) - equal / 2 + 0.5)[:, place])


def _estimate(value: float, draws: Floats) -> Estimate:
    low, high = np.quantile(draws, (0.025, 0.975))
    return Estimate(value, float(low), float(high))
