"""How much features add to the base: partial correlation and R2 with intervals over patients."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

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
    for weights in patient_weights(patient, n_bootstrap, seed):
        r2.append(_r2(predicted, observed, weights))
        spearman += [_spearman(predicted, observed, row) for row in weights]
    once = np.ones((1, len(patient)))
    return PartialEffect(
        _estimate(_spearman(predicted, observed, once[0]), np.array(spearman)),
        _estimate(float(_r2(predicted, observed, once)[0]), np.concatenate(r2)),
    )


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
        _r2(predicted, observed, weights) - np.mean([_r2(one, observed, weights) for one in others], axis=0)
        for weights in (np.ones((1, len(patient))), *patient_weights(patient, n_bootstrap, seed))
    ]
    return _estimate(float(differences[0][0]), np.concatenate(differences[1:]))


def _tested(result: NestedResult, patient_ids: npt.ArrayLike) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    tested = np.isfinite(result.observed)
    everyone = np.asarray(patient_ids)[tested]
    return result.predicted[tested], result.observed[tested], patient_index(everyone, int(tested.sum()))


def _r2(predicted: Floats, observed: Floats, weights: Floats) -> Floats:
    return np.asarray(1.0 - (weights @ (observed - predicted) ** 2) / (weights @ observed**2))


def _spearman(predicted: Floats, observed: Floats, weights: Floats) -> float:
    rows = np.repeat(np.arange(len(weights)), weights.astype(np.int64))
    a, b = rankdata(predicted[rows]), rankdata(observed[rows])
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _estimate(value: float, draws: Floats) -> Estimate:
    low, high = np.quantile(draws, (0.025, 0.975))
    return Estimate(value, float(low), float(high))
