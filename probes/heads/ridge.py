"""Ridge regression of a graded target, such as the readers' mean rating, whose score still ranks two classes."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.special import logit

from probes.heads.linear import mean_and_scale
from probes.heads.logistic import fit_logistic
from probes.partial.cross_fit import PENALTIES
from probes.statistics.checks import Floats, Ints, binary_labels, finite_features


@dataclass(frozen=True, slots=True)
class Rated:
    """Samples that carry the target which a ridge is fitted to; a probe's labels stay the two classes.

    Attributes:
        features: (N, D).
        target: (N,), finite.
    """

    features: npt.NDArray[Any]
    target: Floats

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.features)

    def __getitem__(self, rows: Any) -> "Rated":
        """The samples at these rows."""
        return Rated(self.features[rows], self.target[rows])


@dataclass
class RidgeProbe:
    """Standardized ridge regression, its penalty by generalized cross-validation, as a probe of two classes.

    The predicted target becomes evidence by a logistic regression of the labels on what the ridge predicts for each
    training sample without that sample (in closed form). Where that falls with the label, the features are taken to
    say nothing: their evidence is 0.

    Fitted attributes: `coef_` (D,) and `intercept_` of the target, on standardized features; `penalty_`.

    Attributes:
        n_unpenalized: As in `LinearProbe`.
        is_signed: Let the evidence fall with a target that falls with the label.
    """

    n_unpenalized: int = 0
    is_signed: bool = False

    def fit(self, samples: Rated, labels: npt.ArrayLike, patient_ids: npt.ArrayLike) -> Self:
        """Fit target and calibration.

        Args:
            samples: Features and their target.
            labels: 0 or 1, (N,).
            patient_ids: Not used; penalty and calibration come in closed form.

        Raises:
            UnmeasurableError: If a class is absent or features are not finite.
        """
        truth = binary_labels(labels)
        x, y = finite_features(samples.features, len(truth)), samples.target
        self.mean_, self.scale_ = mean_and_scale(x)
        x = (x - self.mean_) / self.scale_
        free = np.column_stack([np.ones(len(x)), x[:, x.shape[1] - self.n_unpenalized :]])
        span, sizes, _ = np.linalg.svd(free, full_matrices=False)
        span = span[:, sizes > 1e-10 * sizes[0]]  # a size that is the same for all is no direction of its own
        shrunk = x[:, : x.shape[1] - self.n_unpenalized]
        shrunk_left, y_left = (values - span @ (span.T @ values) for values in (shrunk, y))
        left, singular, right = np.linalg.svd(shrunk_left, full_matrices=False)
        kept = singular > 1e-8 * max(float(singular.max(initial=0.0)), 1.0)
        left, singular, right = left[:, kept], singular[kept], right[kept]
        rotated = left.T @ y_left
        shrink = singular**2 / (singular**2 + PENALTIES[:, None])
        left_over = y_left @ y_left - (1 - (1 - shrink) ** 2) @ rotated**2
        freedom = len(x) - span.shape[1] - shrink.sum(1)
        best = int(np.argmin(np.where(freedom > 0, left_over / np.maximum(freedom, 1e-9) ** 2, np.inf)))
        self.penalty_ = float(PENALTIES[best])
        penalized = right.T @ (shrink[best] * rotated / singular)
        rest = np.linalg.lstsq(free, y - shrunk @ penalized, rcond=None)[0]
        self.coef_, self.intercept_ = np.append(penalized, rest[1:]), float(rest[0])
        residual = y - self.predict(samples)
        leverage = (span**2).sum(1) + (left**2 * shrink[best]).sum(1)
        self._calibrate(y - residual / np.maximum(1 - leverage, 1e-6), truth)
        return self

    def predict(self, samples: Rated) -> Floats:
        """Predict the target, (N,)."""
        x = (finite_features(samples.features) - self.mean_) / self.scale_
        return np.asarray(x @ self.coef_ + self.intercept_)

    def decision_function(self, samples: Rated) -> Floats:
        """Evidence for class 1, (N,); rises with the predicted target."""
        return np.asarray(self.slope_ * (self.predict(samples) - self.neutral_))

    def _calibrate(self, without_itself: Floats, truth: Ints) -> None:
        """Find slope and neutral point of the evidence from predictions made without the sample itself."""
        center, spread = float(without_itself.mean()), float(without_itself.std())
        self.slope_, self.neutral_ = 0.0, center
        if spread > 1e-9 * max(abs(center), 1.0):
            column = ((without_itself - center) / spread)[:, None]
            start = np.array([0.0, logit(truth.mean())])
            slope, offset = fit_logistic(column, truth.astype(np.float64), np.array([1e-3]), start)
            if slope > 0 or (self.is_signed and slope < 0):
                self.slope_ = float(slope) / spread
                self.neutral_ = center - float(offset - start[1]) / self.slope_
