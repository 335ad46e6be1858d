"""The pixel baseline, without any network: principal components of the crop and logistic regression."""

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from probes.heads.linear import LinearProbe, cross_fit
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


class PixelProbe:
    """Principal components of the training pixels, then logistic regression on them.

    Fitted attributes: `mean_` (D,), `components_` (K, D) with unit rows, `probe_`.

    Args:
        n_components: Components kept, at most; those without variance are never kept.
        seed: Of the inner folds that choose the penalty.
    """

    def __init__(self, n_components: int = 60, seed: int = 0) -> None:
        """Store the settings; `fit` learns."""
        self.n_components = n_components
        self.seed = seed

    def fit(self, features: npt.ArrayLike, labels: npt.ArrayLike, patient_ids: npt.ArrayLike) -> Self:
        """Learn components and classifier from the same patients.

        Args:
            features: (N, D), finite.
            labels: 0 or 1, (N,).
            patient_ids: Patient of each sample, (N,).
        """
        x = finite_features(features)
        self.mean_ = x.mean(axis=0)
        centered = x - self.mean_
        # N samples span at most N directions: the (N, N) products give them all, however many pixels there are.
        values, vectors = np.linalg.eigh(centered @ centered.T)
        order = np.argsort(values)[::-1][: self.n_components]
        order = order[values[order] > 1e-9 * max(1.0, values.max())]
        self.components_ = (centered.T @ (vectors[:, order] / np.sqrt(values[order]))).T
        self.probe_ = LinearProbe(seed=self.seed).fit(self._project(x), labels, patient_ids)
        return self

    def decision_function(self, features: npt.ArrayLike) -> Floats:
        """Evidence for class 1, (N,); 0 where the training pixels did not vary."""
        return self.probe_.decision_function(self._project(finite_features(features)))

    def _project(self, x: Floats) -> Floats:
        if len(self.components_) == 0:
            return np.zeros((len(x), 1))
        return np.asarray((x - self.mean_) @ self.components_.T)


def pixel_scores(crops_hu: npt.NDArray[np.float32], labels: Ints, splits: Splits) -> Floats:
    """Cross-fitted probability of malignancy from the pixels of triplet crops (N, 3, P, P), (N,)."""
    return cross_fit(PixelProbe, pixel_features(crops_hu), labels, splits.patient_ids, splits)
