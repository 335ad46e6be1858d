"""The linear probe, and the cross-fitting that every probe of nodules goes through."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from probes.heads.logistic import fit_logistic, log_loss, row_space
from probes.splits import Fold, Splits, patient_folds
from probes.statistics.checks import Floats, Ints, TooFewError, binary_labels, finite_features
from transforms.refusal import number_of

C_GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 1e-1, 1.0)
_UNPENALIZED = 1e-3  # a negligible ridge keeps coefficients finite where a column separates the classes


class Samples(Protocol):
    """What a probe is fitted on: anything with a length whose rows are taken by an index array (array, tensor)."""

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, index: Any, /) -> Any:
        """The samples at these rows."""


S_contra = TypeVar("S_contra", contravariant=True)


class Probe(Protocol[S_contra]):
    """A classifier whose `decision_function` is evidence: log odds as if both classes were equally common."""

    def fit(self, features: S_contra, labels: npt.ArrayLike, patient_ids: npt.ArrayLike) -> Self:
        """Learn from labeled samples; patients group the inner folds."""

    def decision_function(self, features: S_contra) -> Floats:
        """Evidence for class 1, (N,)."""


@dataclass
class LinearProbe:
    """Standardized logistic regression with an L2 penalty.

    Fitted attributes: `coef_` (D,) and `intercept_` on standardized features, `mean_` and `scale_` (D,), `c_` (the C in
    use), `inner_log_loss_` (one mean per C of the grid), `prior_` (share of positives in the training data).

    Attributes:
        c: Inverse penalty of scikit-learn's scale (C on the summed loss). Several: the one with the lowest log loss in
            inner patient-grouped folds is used.
        inner_folds: Folds of that choice; as many as the rarer class has patients, if that is fewer.
        n_unpenalized: The last columns of the features that carry no penalty, such as the log diameter beside the
            features of a backbone: a strong penalty then leaves diameter alone, untouched.
        seed: Of the inner folds.
    """

    c: float | Sequence[float] = C_GRID
    inner_folds: int = 5
    n_unpenalized: int = 0
    seed: int = 0

    def fit(self, features: npt.ArrayLike, labels: npt.ArrayLike, patient_ids: npt.ArrayLike) -> Self:
        """Choose C by inner folds, then fit on everything.

        Args:
            features: (N, D), finite.
            labels: 0 or 1, (N,).
            patient_ids: Patient of each sample, (N,).

        Raises:
            UnmeasurableError: If a class is absent, features are not finite, or C is to be chosen with one patient of a
                class.
        """
        truth = binary_labels(labels)
        x = finite_features(features, len(truth))
        grid = [float(self.c)] if isinstance(self.c, (int, float)) else sorted(self.c)
        if not grid or grid[0] <= 0:
            raise ValueError(f"C must be above 0, got {grid}")
        if not 0 <= self.n_unpenalized <= x.shape[1]:
            raise ValueError(
                f"{self.n_unpenalized} unpenalized columns were asked for, but there are {x.shape[1]} features"
            )
        best = 0
        if len(grid) > 1:
            self.inner_log_loss_ = self._inner_log_loss(x, truth, np.asarray(patient_ids), grid)
            best = int(np.argmin(self.inner_log_loss_))
        self.c_ = grid[best]
        self.prior_ = float(truth.mean())
        self.mean_, self.scale_ = mean_and_scale(x)
        path = self._path((x - self.mean_) / self.scale_, truth, [self.c_])
        self.coef_, self.intercept_ = path[0, :-1], float(path[0, -1])
        return self

    def decision_function(self, features: npt.ArrayLike) -> Floats:
        """Log odds of class 1 less the log odds of class 1 in the training data: evidence, (N,)."""
        x = finite_features(features)
        margin = (x - self.mean_) / self.scale_ @ self.coef_ + self.intercept_
        return np.asarray(margin - logit(self.prior_))

    def _inner_log_loss(
        self, x: Floats, truth: Ints, patients: npt.NDArray[Any], grid: list[float]
    ) -> Floats:
        rarer = min(np.unique(patients[truth == label]).size for label in (0, 1))
        if rarer < 2:
            raise TooFewError(
                f"choosing C needs two patients of each class to train on, got {rarer} of the rarer"
            )
        n_folds = min(self.inner_folds, rarer)
        folds = _inner_folds(tuple(patients.astype(str).tolist()), tuple(truth.tolist()), n_folds, self.seed)
        total, n_tested = np.zeros(len(grid)), 0
        for fold in folds:
            if np.unique(truth[fold.train]).size < 2:
                continue  # all patients of a rare class can fall into one fold
            mean, scale = mean_and_scale(x[fold.train])
            path = self._path((x[fold.train] - mean) / scale, truth[fold.train], grid, tolerance=1e-5)
            margins = (x[fold.test] - mean) / scale @ path[:, :-1].T + path[:, -1]
            total += [log_loss(truth[fold.test].astype(np.float64), margin) for margin in margins.T]
            n_tested += len(fold.test)
        if n_tested == 0:
            raise TooFewError(
                f"the rarer class ({number_of(rarer, 'patient')}) falls into one inner fold; give c as one number"
            )
        return total / n_tested

    def _path(self, x: Floats, truth: Ints, grid: list[float], tolerance: float = 1e-8) -> Floats:
        """Coefficients and intercept for each C, ascending, each fit started from the last: (len(grid), D + 1)."""
        penalized = x.shape[1] - self.n_unpenalized
        basis = row_space(x[:, :penalized]) if penalized > len(x) else None
        used = x if basis is None else np.hstack([x[:, :penalized] @ basis, x[:, penalized:]])
        # From the prior, uninformative features are already at the minimum: their evidence is exactly 0, and rounding
        # cannot rank one fold above another.
        weights, path = np.append(np.zeros(used.shape[1]), logit(truth.mean())), []
        for c in grid:
            penalty = np.full(used.shape[1], 1 / c)
            penalty[used.shape[1] - self.n_unpenalized :] = _UNPENALIZED
            weights = fit_logistic(used, truth.astype(np.float64), penalty, weights, tolerance)
            rotated = 0 if basis is None else basis.shape[1]
            path.append(weights if basis is None else np.append(basis @ weights[:rotated], weights[rotated:]))
        return np.stack(path)


@lru_cache(maxsize=256)
def _inner_folds(patients: tuple[str, ...], truth: tuple[int, ...], n_folds: int, seed: int) -> Splits:
    """All rows of a probe's table are fitted in the same outer folds; splitting those took longer than the fits."""
    return patient_folds(patients, truth, n_folds=n_folds, seed=seed)


def cross_fit(
    probe_factory: Callable[[], Probe[Any]],
    features: Samples,
    labels: npt.ArrayLike,
    patient_ids: npt.ArrayLike,
    folds: Iterable[Fold | tuple[Ints, Ints]],
    prior: float | None = None,
) -> Floats:
    """Probability of class 1 for every sample, from probes that never saw its patient.

    Each fold's evidence is turned into a probability with one share of positives for all folds, that of the tested
    samples. With each training set's own share, a fold rich in positives would be scored low by a training set poor
    in them, and uninformative features would fall below 0.5 (Parker et al. 2007, BMC Bioinformatics 8:326).

    Args:
        probe_factory: Makes a fresh probe for each fold.
        features: What the probe is fitted on, N samples.
        labels: 0 or 1, (N,).
        patient_ids: Patient of each sample, (N,).
        folds: Training and test rows, from `probes.splits` or as pairs of index arrays; any number of repeats.
        prior: The one share of positives; None: that of the tested samples. Calls whose scores are ranked together need
            the same one; otherwise a call rich in positives would score high for that alone.

    Returns:
        Mean over the repeats, (N,); NaN for a sample that no fold tests.

    Raises:
        UnmeasurableError: If a fold trains or tests on one class only, or a probe cannot be fitted to it.
        ValueError: If a fold tests a patient that it trains on, or if nothing is tested.
    """
    truth = binary_labels(labels)
    patients = np.asarray(patient_ids)
    if not len(features) == len(patients) == len(truth):
        raise ValueError(
            f"{len(truth)} labels, {len(features)} samples and {len(patients)} patients do not match"
        )
    pairs = [(fold.train, fold.test) if isinstance(fold, Fold) else fold for fold in folds]
    tested = np.unique(np.concatenate([test for _, test in pairs])) if pairs else np.empty(0, dtype=np.int64)
    if tested.size == 0:
        raise ValueError("the folds test no sample at all")
    common_prior = float(binary_labels(truth[tested]).mean()) if prior is None else prior
    evidence = []
    for train, test in pairs:
        shared = np.intersect1d(patients[train], patients[test])
        if shared.size:
            raise ValueError(
                f"a fold tests {shared.size} patients that it also trains on, such as {shared[0]}"
            )
        probe = probe_factory().fit(features[train], truth[train], patients[train])
        evidence.append(probe.decision_function(features[test]))
    return mean_probability(evidence, pairs, len(truth), common_prior)


def mean_probability(
    evidence: Iterable[Floats], folds: Iterable[tuple[Ints, Ints]], n: int, prior: float
) -> Floats:
    """Turn the evidence of each fold's test rows into probabilities, (n,): means over repeats, NaN where untested."""
    total, times = np.zeros(n), np.zeros(n)
    for own, (_, test) in zip(evidence, folds, strict=True):
        total[test] += expit(own + logit(prior))
        times[test] += 1
    return np.asarray(np.divide(total, times, out=np.full(n, np.nan), where=times > 0))


def mean_and_scale(x: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each column, (D,) each; infinite for a column that is constant in float32."""
    scale = x.std(axis=0)
    return x.mean(axis=0), np.where(scale > 1e-6 * np.abs(x).max(axis=0), scale, np.inf)
