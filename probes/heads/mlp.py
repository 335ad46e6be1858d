"""A small network on frozen features: what they hold beyond a weighted sum."""

from typing import Self

import numpy.typing as npt
import torch
from torch import Tensor, nn

from probes.heads.fitting import FitSettings, Standardize, as_tensor, fit_network, predict
from probes.statistics.checks import Floats, finite_features


class MlpProbe:
    """Standardized features, one hidden layer with GELU and dropout, balanced classes, early stopping.

    Fitted attribute: `network_`.

    Args:
        n_hidden: Width of the hidden layer.
        dropout: Dropout rate of hidden units in training.
        settings: Of the training; None: the defaults of `FitSettings`.
        seed: Of initialization, batches, dropout and the patients set aside.
        device: Where to train.
    """

    def __init__(
        self,
        n_hidden: int = 64,
        dropout: float = 0.3,
        settings: FitSettings | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        """Store the settings; `fit` learns."""
        self.n_hidden = n_hidden
        self.dropout = dropout
        self.settings = settings or FitSettings()
        self.seed = seed
        self.device = torch.device(device)

    def fit(self, features: npt.ArrayLike, labels: npt.ArrayLike, patient_ids: npt.ArrayLike) -> Self:
        """Train on features (N, D) with labels 0 or 1, (N,).

        Raises:
            UnmeasurableError: If a class is absent or has one patient, or features are not finite.
            ValueError: If features are not (N, D).
        """
        x = as_tensor(finite_features(features)).float()
        self.network_ = fit_network(
            lambda: _Mlp(x, self.n_hidden, self.dropout),
            (x,),
            labels,
            patient_ids,
            self.settings,
            self.seed,
            self.device,
        )
        return self

    def decision_function(self, features: npt.ArrayLike) -> Floats:
        """Evidence for class 1, (N,)."""
        return predict(self.network_, (as_tensor(finite_features(features)).float(),), self.device)


class _Mlp(nn.Module):
    def __init__(self, features: Tensor, n_hidden: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Standardize(features),
            nn.Linear(features.shape[1], n_hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(n_hidden, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.layers(features)
        return logits.squeeze(-1)
