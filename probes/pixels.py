"""The pixel baseline, without any network: principal components of the crop and a linear probe on them."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from probes.heads.linear import LinearProbe, Probe, cross_fit
from probes.heads.ridge import Rated, RidgeProbe
from probes.splits import Splits
from probes.statistics.checks import Floats, Ints, finite_features
from transforms.hounsfield import WindowHU
from transforms.window_policy import CLINICAL_LUNG_HU

PIXEL_SIZE_MM, PIXEL_OUT_PX = 24.0, 32
"""Crop of the pixel baseline: wider crops dilute the nodule (0.840 at 48 mm against 0.861)."""


def pixel_features(crops_hu: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Gray values of crops under the lung window, one row per crop.

    Args:
        crops_hu: (N, C, P, P) HU.

    Returns:
        (N, C * P * P) in [0, 1].
    """
    return np.asarray(WindowHU(*CLINICAL_LUNG_HU)(crops_hu).reshape(len(crops_hu), -1), dtype=np.float32)


@dataclass
class PixelProbe:
    """Principal components of the training pixels, then a linear probe on them.

    Fitted attributes: `mean_` (D,), `components_` (K, D) with unit rows, `probe_`.

    Attributes:
        n_components: Components kept, at most; those without variance are never kept.
        seed: Of the inner folds that choose the penalty.
        n_unpenalized: The last columns, such as the log diameter, that are no pixels and carry no penalty.
    """

    n_components: int = 60
    seed: int = 0
    n_unpenalized: int = 0

    def fit(self, features: npt.ArrayLike | Rated, labels: npt.ArrayLike, patient_ids: npt.ArrayLike) -> Self:
        """Learn components and regression from the same patients.

        Args:
            features: (N, D), finite; `Rated` for a ridge of a graded target.
            labels: 0 or 1, (N,).
            patient_ids: Patient of each sample, (N,).
        """
        x = finite_features(features.features if isinstance(features, Rated) else features)
        self.n_pixels_ = x.shape[1] - self.n_unpenalized
        x = x[:, : self.n_pixels_]
        self.mean_ = x.mean(axis=0)
        centered = x - self.mean_
        # N samples span at most N directions: the (N, N) products give them all, however many pixels there are.
        values, vectors = np.linalg.eigh(centered @ centered.T)
        order = np.argsort(values)[::-1][: self.n_components]
        order = order[values[order] > 1e-9 * max(1.0, values.max())]
        self.components_ = (centered.T @ (vectors[:, order] / np.sqrt(values[order]))).T
        self.probe_: Probe[Any] = LinearProbe(seed=self.seed, n_unpenalized=self.n_unpenalized)
        if isinstance(features, Rated):
            self.probe_ = RidgeProbe(self.n_unpenalized)
        self.probe_.fit(self._project(features), labels, patient_ids)
        return self

    def decision_function(self, features: npt.ArrayLike | Rated) -> Floats:
        """Evidence for class 1, (N,); 0 where the training pixels did not vary."""
        return self.probe_.decision_function(self._project(features))

    def _project(self, features: npt.ArrayLike | Rated) -> Any:
        if isinstance(features, Rated):
            return Rated(self._project(features.features), features.target)
        x = finite_features(features)
        pixels, beside = x[:, : self.n_pixels_], x[:, self.n_pixels_ :]
        projected = (pixels - self.mean_) @ self.components_.T
        return np.column_stack([projected if len(self.components_) else np.zeros(len(x)), beside])


def pixel_scores(crops_hu: npt.NDArray[np.float32], labels: Ints, splits: Splits) -> Floats:
    """Cross-fitted probability of malignancy from the pixels of triplet crops (N, 3, P, P), (N,)."""
    return cross_fit(PixelProbe, pixel_features(crops_hu), labels, splits.patient_ids, splits)
