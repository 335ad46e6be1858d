"""What a set of features looks like: spread, rank, neighbors, and what else than the label it predicts."""

import numpy as np
import numpy.typing as npt

from probes.heads.linear import mean_and_scale
from probes.statistics.bootstrap import mean_with_interval
from probes.statistics.checks import (
    Floats,
    Ints,
    TooFewError,
    UnmeasurableError,
    binary_labels,
    finite_features,
    patient_index,
)
from probes.statistics.estimate import Estimate
from probes.statistics.metrics import auroc_with_interval
from probes.statistics.rank import effective_rank


def geometry(features: npt.ArrayLike, max_pairs_from: int = 2048, seed: int = 0) -> dict[str, float]:
    """Measure how features (N, D) fill their space.

    Args:
        features: (N, D), N at least 2.
        max_pairs_from: Samples drawn for the uniformity, which needs all pairs.
        seed: Of that draw.

    Returns:
        Numbers that are meaningful only beside those of random weights.

        - `n_features`: D.
        - `active_dims`: Dimensions whose standard deviation exceeds 0.01; random weights usually have all D.
        - `cosine`: Mean cosine over all pairs of different samples; near 1 where features share a large mean.
        - `centered_cosine`: The same after the mean feature is taken away; about 0 for any spread-out set.
        - `effective_rank`: exp of the entropy of the normalized singular values, 1 .. D (RankMe, as published).
        - `centered_effective_rank`: The same after the mean feature, which counts as the largest, is taken away.
        - `uniformity`: log of the mean of exp(-2 squared distance) of unit features; lower is more even, -4 at best.

    Raises:
        UnmeasurableError: If there are fewer than two samples, or features are not finite.

    Source: uniformity: Wang and Isola 2020, arXiv:2005.10242.
    """
    x = finite_features(features)
    if len(x) < 2:
        raise TooFewError(f"the geometry of features needs at least 2 samples, got {len(x)}")
    drawn = np.random.default_rng(seed).permutation(len(x))[:max_pairs_from]
    unit = _unit(x)[drawn]
    squared = np.clip(2 - 2 * unit @ unit.T, 0, 4)
    pairs = squared[~np.eye(len(unit), dtype=bool)]
    return {
        "n_features": float(x.shape[1]),
        "active_dims": float((x.std(axis=0) > 0.01).sum()),
        "cosine": _mean_pair_cosine(_unit(x)),
        "centered_cosine": _mean_pair_cosine(_unit(x - x.mean(axis=0))),
        "effective_rank": effective_rank(x),
        "centered_effective_rank": effective_rank(x - x.mean(axis=0)),
        "uniformity": float(np.log(np.exp(-2 * pairs).mean())),
    }


def spectrum(features: npt.ArrayLike) -> Floats:
    """Share of the variance along each principal direction, descending, (min(N, D),); zeros if nothing varies."""
    x = finite_features(features)
    energy = np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2
    total = energy.sum()
    return np.asarray(energy / total if total > 0 else energy)


def class_separation(features: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Mean cosine of pairs of one class less mean cosine of pairs across classes.

    Args:
        features: (N, D).
        labels: 0 or 1, (N,), at least two of one of them.

    Raises:
        TooFewError: If a class is absent or no class has a pair.
    """
    truth = binary_labels(labels)
    unit = _unit(finite_features(features, len(truth)))
    sums = [unit[truth == label].sum(axis=0) for label in (0, 1)]
    counts = [int((truth == label).sum()) for label in (0, 1)]
    same_pairs = sum(count * (count - 1) for count in counts)
    if same_pairs == 0:
        raise TooFewError("class separation needs two samples of at least one class")
    # Sums over pairs from sums over samples: |sum|^2 counts each pair twice and each sample with itself once.
    same = sum(float(total @ total) - count for total, count in zip(sums, counts, strict=True)) / same_pairs
    return same - float(sums[0] @ sums[1]) / (counts[0] * counts[1])


def alignment(first: npt.ArrayLike, second: npt.ArrayLike, patient_ids: npt.ArrayLike) -> Estimate:
    """Mean squared distance between unit features of two views of the same samples; 0 is perfect, 2 is unrelated.

    Source: Wang and Isola 2020, arXiv:2005.10242.
    """
    a, b = finite_features(first), finite_features(second)
    _refuse_other_shape(a, b)
    return mean_with_interval(((_unit(a) - _unit(b)) ** 2).sum(axis=1), patient_ids)


def stability(features: npt.ArrayLike, changed: npt.ArrayLike, patient_ids: npt.ArrayLike) -> Estimate:
    """How far a change of the input moves features, in units of how far they lie apart: 0 not at all, 1 as far.

    Args:
        features: Of the input as it is, (N, D).
        changed: Of the same input under another window, or one slice further, (N, D).
        patient_ids: Patient of each sample, (N,).

    Returns:
        Mean squared distance of each sample to its changed self over the mean squared distance of two different
        samples, with interval over patients.

    Raises:
        UnmeasurableError: If there is one sample, or all features are equal: then there is no unit.
        ValueError: If the shapes differ.
    """
    x, moved = finite_features(features), finite_features(changed)
    _refuse_other_shape(x, moved)
    if len(x) < 2:
        raise TooFewError(f"how far features lie apart needs at least 2 samples, got {len(x)}")
    apart = 2 * x.var(axis=0, ddof=1).sum()  # mean squared distance over all pairs of different samples
    if apart <= 1e-12 * (x**2).sum(axis=1).mean():
        raise UnmeasurableError(
            f"all {len(x)} features are equal; there is no distance to measure a change by"
        )
    return mean_with_interval(((moved - x) ** 2).sum(axis=1) / apart, patient_ids)


def patient_distance(features: npt.ArrayLike, patient_ids: npt.ArrayLike) -> float:
    """Mean squared distance between features (N, D) of two different patients, over all such pairs of samples.

    Raises:
        UnmeasurableError: If there is one patient, or all features are equal.
    """
    x = finite_features(features)
    patient, mean = patient_index(patient_ids, len(x)), x.mean(axis=0)
    x = x - mean
    squares, counts = (x**2).sum(axis=1), np.bincount(patient)
    sums = np.zeros((len(counts), x.shape[1]))
    np.add.at(sums, patient, x)
    # Sums over ordered pairs from sums over samples, all pairs less those within a patient.
    total = 2 * (len(x) * squares.sum() - (x.sum(axis=0) ** 2).sum())
    within = 2 * (counts * np.bincount(patient, squares)).sum() - 2 * (sums**2).sum()
    n_pairs = len(x) ** 2 - (counts**2).sum()
    if total - within <= 1e-12 * n_pairs * (squares.mean() + (mean**2).sum()):
        raise UnmeasurableError(
            f"features of {len(counts)} patients are equal; there is no distance between them"
        )
    return float((total - within) / n_pairs)


def knn_malignancy(
    features: npt.ArrayLike, labels: npt.ArrayLike, patient_ids: npt.ArrayLike, k: int = 20, seed: int = 0
) -> Estimate:
    """AUROC of the share of malignant nodules among the k nearest nodules, by cosine, of other patients.

    A malignant nodule leaves fewer malignant ones among the others, so uninformative features score a little below 0.5
    (0.48 for 150 nodules, 0.45 for 80): compare with the value of random weights, not with 0.5.

    Args:
        features: (N, D).
        labels: 0 or 1, (N,).
        patient_ids: Patient of each nodule, (N,): a patient's own nodules are no neighbors.
        k: Neighbors.
        seed: Of the bootstrap.

    Raises:
        TooFewError: If a class is absent, there is only one patient, or a nodule has no more than k of other patients:
            if all of them count, the share depends on their number and not on the features.
    """
    truth = binary_labels(labels)
    unit = _unit(finite_features(features, len(truth)))
    patient = patient_index(patient_ids, len(truth))
    n_others = len(truth) - int(np.bincount(patient).max())
    if n_others <= k:
        raise TooFewError(
            f"the {k} nearest nodules of other patients need more than {k} to choose from, got {n_others}"
        )
    scores = np.empty(len(truth))
    for first in range(0, len(truth), 1024):
        rows = slice(first, first + 1024)
        cosine = unit[rows] @ unit.T
        is_other = patient[rows][:, None] != patient
        cosine[~is_other] = -np.inf
        nearest = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        scores[rows] = truth[nearest].mean(axis=1)
    return auroc_with_interval(truth, scores, patient_ids, seed=seed)


def nearest_of_others(
    features: npt.ArrayLike, patient_ids: npt.ArrayLike, rows: Ints, k: int
) -> tuple[Ints, Floats]:
    """Find the nearest samples of other patients, by cosine, as `knn_malignancy` does.

    Args:
        features: (N, D).
        patient_ids: Patient of each sample, (N,).
        rows: Samples whose neighbors are wanted, (q,).
        k: How many; fewer are found where other patients have fewer.

    Returns:
        Rows of the neighbors, nearest first, and their cosines, (q, k) each.
    """
    unit = _unit(finite_features(features, np.size(patient_ids)))
    patient = patient_index(patient_ids, len(unit))
    k = min(k, len(unit) - int(np.bincount(patient).max()))
    cosine = unit[rows] @ unit.T
    cosine[patient[rows][:, None] == patient] = -np.inf
    nearest = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    return nearest, np.take_along_axis(cosine, nearest, axis=1)


def principal_map(features: npt.ArrayLike) -> Floats:
    """First two principal components of standardized features, (N, 2), to draw; the largest entry is positive."""
    x = finite_features(features)
    mean, scale = mean_and_scale(x)
    left, values, _ = np.linalg.svd((x - mean) / scale, full_matrices=False)
    places = left[:, :2] * values[:2]
    largest = np.take_along_axis(places, np.abs(places).argmax(axis=0)[None], axis=0)
    return np.asarray(places * np.where(largest < 0, -1.0, 1.0))


def _unit(x: Floats) -> Floats:
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(np.divide(x, norm, out=np.zeros_like(x), where=norm > 0))


def _mean_pair_cosine(unit: Floats) -> float:
    total = unit.sum(axis=0)
    return float((total @ total - (unit**2).sum()) / (len(unit) * (len(unit) - 1)))


def _refuse_other_shape(a: Floats, b: Floats) -> None:
    if a.shape != b.shape:
        raise ValueError(f"two views of the same samples must have one shape, got {a.shape} and {b.shape}")
