"""A small network on frozen features: what they hold beyond a weighted sum."""

from dataclasses import dataclass

import numpy.typing as npt
from torch import Tensor, nn

from probes.heads.fitting import NetworkProbe, Standardize, as_tensor
from probes.statistics.checks import finite_features


@dataclass(kw_only=True)
class MlpProbe(NetworkProbe[npt.ArrayLike]):
    """Standardized features (N, D), one hidden layer with GELU and dropout, balanced classes, early stopping.

    Attributes:
        n_hidden: Width of the hidden layer.
        dropout: Dropout rate of hidden units in training.
    """

    n_hidden: int = 64
    dropout: float = 0.3

    def inputs(self, features: npt.ArrayLike) -> tuple[Tensor, ...]:
        """Features (N, D), refused if they are not finite."""
        return (as_tensor(finite_features(features)).float(),)

    def build(self, inputs: tuple[Tensor, ...]) -> nn.Module:
        """The hidden layer and the classifier."""
        return nn.Sequential(
            Standardize(inputs[0]),
            nn.Linear(inputs[0].shape[1], self.n_hidden),
            nn.GELU(),
            nn.Dropout(self.dropout),
            nn.Linear(self.n_hidden, 1),
            nn.Flatten(0),
        )
