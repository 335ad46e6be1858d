"""Patient-clustered bootstrap: patients are drawn, with all that belongs to them."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from probes.statistics.checks import Floats, Ints, TooFewError, binary_labels, finite_scores, patient_index
from probes.statistics.estimate import Difference, Estimate

Metric = Callable[[Ints, Floats, Floats], Floats]
"""(labels (N,), scores (N,), weights (B, N)) -> values (B,); NaN where a draw holds too little to compute it."""


class TooFewDrawsError(TooFewError):
    """The metric is undefined in over a tenth of the bootstrap draws, so that it has no interval."""


_CELLS_PER_CHUNK = 1_000_000  # 8 MB of weights at a time, whatever N and n_bootstrap are


def patient_weights(patient: Ints, n_bootstrap: int, seed: int) -> Iterator[Floats]:
    """Draw patients with replacement, as weights: how often each sample's patient was drawn.

    Args:
        patient: Index of each sample's patient, 0 .. P-1, (N,).
        n_bootstrap: Number of draws.
        seed: Of the draws; the same seed gives the same draws to every metric, which pairs them.

    Yields:
        Weights (b, N), in chunks that add up to n_bootstrap rows.
    """
    rng = np.random.default_rng(seed)
    n_patients = int(patient.max()) + 1
    even = np.full(n_patients, 1.0 / n_patients)
    rows = max(1, _CELLS_PER_CHUNK // len(patient))
    for first in range(0, n_bootstrap, rows):
        draws = rng.multinomial(n_patients, even, size=min(rows, n_bootstrap - first))
        yield draws.astype(np.float64)[:, patient]


def with_interval(
    metric: Metric,
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    patient_ids: npt.ArrayLike,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> Estimate:
    """A metric with its 95% percentile interval over patients.

    The interval is conditional on the fitted scores: it covers the choice of the evaluated patients, not the choice of
    the training set.

    Args:
        metric: One of `probes.statistics.metrics` or `probes.statistics.calibration`.
        labels: 0 or 1, (N,).
        scores: One score per sample, (N,); of several seeds, (S, N): the metric is then their mean.
        patient_ids: Patient of each sample, (N,).
        n_bootstrap: Number of draws.
        seed: Of the draws.

    Raises:
        UnmeasurableError: If the metric is undefined for these labels, scores or patients.
        TooFewDrawsError: If over a tenth of the draws hold one class only.
    """
    truth = binary_labels(labels)
    own = _mean_of(metric, truth, scores)
    patient = patient_index(patient_ids, len(truth))
    value = own(np.ones((1, len(truth))))[0]
    draws = [own(weights) for weights in patient_weights(patient, n_bootstrap, seed)]
    low, high = _percentiles(np.concatenate(draws))
    return Estimate(float(value), low, high)


def paired_difference(
    metric: Metric,
    labels: npt.ArrayLike,
    scores_a: npt.ArrayLike,
    scores_b: npt.ArrayLike,
    patient_ids: npt.ArrayLike,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> Difference:
    """Difference of a metric between two scores of the same samples, on the same draws of patients.

    The two-sided p is twice the smaller share of draws on either side of zero, with one draw added to it, so
    that p agrees with the interval and is never 0.

    Args:
        metric: One of `probes.statistics.metrics` or `probes.statistics.calibration`.
        labels: 0 or 1, (N,).
        scores_a: First score, (N,), or (S, N) as in `with_interval`.
        scores_b: Second score, likewise.
        patient_ids: Patient of each sample, (N,).
        n_bootstrap: Number of draws.
        seed: Of the draws.

    Raises:
        UnmeasurableError: As `with_interval`.
    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapters 13 and 15.
    """
    truth = binary_labels(labels)
    own_a, own_b = (_mean_of(metric, truth, scores) for scores in (scores_a, scores_b))
    patient = patient_index(patient_ids, len(truth))
    once = np.ones((1, len(truth)))
    value = float(own_a(once)[0] - own_b(once)[0])
    draws = [own_a(weights) - own_b(weights) for weights in patient_weights(patient, n_bootstrap, seed)]
    return _difference(value, np.concatenate(draws))


def _mean_of(metric: Metric, truth: Ints, scores: npt.ArrayLike) -> Callable[[Floats], Floats]:
    """Return the metric as a function of weights, averaged over seeds if there are scores of several."""
    array = np.asarray(scores, dtype=np.float64)
    seeds = [finite_scores(one, len(truth)) for one in (array if array.ndim == 2 else array[None])]
    return lambda weights: np.asarray(np.mean([metric(truth, one, weights) for one in seeds], axis=0))


def mean_with_interval(
    values: npt.ArrayLike, patient_ids: npt.ArrayLike, n_bootstrap: int = 2000, seed: int = 0
) -> Estimate:
    """Mean of one number per sample (a hit, a Dice, a cosine) with its 95% percentile interval over patients.

    Args:
        values: (N,), finite.
        patient_ids: Patient of each sample, (N,).
        n_bootstrap: Number of draws.
        seed: Of the draws.

    Raises:
        UnmeasurableError: If a value is not finite or all samples come from one patient.
    """
    value, draws = _mean_draws(values, patient_ids, n_bootstrap, seed)
    low, high = _percentiles(draws)
    return Estimate(value, low, high)


def mean_difference(
    values_a: npt.ArrayLike,
    values_b: npt.ArrayLike,
    patient_ids: npt.ArrayLike,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> Difference:
    """Mean of a - b over samples with interval and two-sided p, by the bootstrap of `paired_difference`.

    Raises:
        UnmeasurableError: As `mean_with_interval`.
    """
    gap = np.asarray(values_a, dtype=np.float64) - np.asarray(values_b, dtype=np.float64)
    value, draws = _mean_draws(gap, patient_ids, n_bootstrap, seed)
    return _difference(value, draws)


def _mean_draws(
    values: npt.ArrayLike, patient_ids: npt.ArrayLike, n_bootstrap: int, seed: int
) -> tuple[float, Floats]:
    numbers = finite_scores(values, np.size(values))
    patient = patient_index(patient_ids, len(numbers))
    # A patient's sum and count are all that a draw of whole patients needs.
    total, count = np.bincount(patient, numbers), np.bincount(patient).astype(np.float64)
    chunks = patient_weights(np.arange(len(total)), n_bootstrap, seed)
    draws = np.concatenate([(weights @ total) / (weights @ count) for weights in chunks])
    return float(numbers.mean()), draws


def _difference(value: float, draws: Floats) -> Difference:
    low, high = _percentiles(draws)
    usable = draws[np.isfinite(draws)]
    tail = min(np.count_nonzero(usable <= 0), np.count_nonzero(usable >= 0))
    return Difference(value, low, high, min(1.0, 2.0 * (tail + 1) / (usable.size + 1)))


def _percentiles(draws: Floats) -> tuple[float, float]:
    usable = draws[np.isfinite(draws)]
    if usable.size < 0.9 * draws.size:
        raise TooFewDrawsError(
            f"only {usable.size} of {draws.size} bootstrap draws hold enough of both classes; "
            "an interval needs more patients of the rarer class"
        )
    low, high = np.quantile(usable, (0.025, 0.975))
    return float(low), float(high)
