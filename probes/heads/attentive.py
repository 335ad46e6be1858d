"""One learned query with attention over all patch tokens, in place of the class token or the mean of patches."""

from typing import Self

import numpy.typing as npt
import torch
from torch import Tensor, nn

from probes.heads.fitting import FitSettings, Standardize, as_tensor, fit_network, predict
from probes.statistics.checks import Floats


class AttentiveProbe:
    """Standardized patch tokens, averaged with the attention of one learned query, then a linear classifier.

    The query starts at zero, so training starts from the plain mean of the patches. Fitted attribute: `network_`.

    Args:
        dropout: Dropout rate of pooled features in training.
        settings: Of the training; None: the defaults of `FitSettings`.
        seed: Of initialization, batches, dropout and the patients set aside.
        device: Where to train.

    Source: attentive probing, Bardes et al. 2024, arXiv:2404.08471, with one query and no value projection.
    """

    def __init__(
        self,
        dropout: float = 0.2,
        settings: FitSettings | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        """Store the settings; `fit` learns."""
        self.dropout = dropout
        self.settings = settings or FitSettings()
        self.seed = seed
        self.device = torch.device(device)

    def fit(
        self, features: npt.ArrayLike | Tensor, labels: npt.ArrayLike, patient_ids: npt.ArrayLike
    ) -> Self:
        """Train on patch tokens (B, N, D) of B nodules with labels 0 or 1, (B,).

        Raises:
            UnmeasurableError: If tokens are not finite, or a class is absent or has one patient.
            ValueError: If tokens are not (B, N, D).
        """
        tokens = _tokens(features)
        self.network_ = fit_network(
            lambda: AttentivePool(tokens, self.dropout),
            (tokens,),
            labels,
            patient_ids,
            self.settings,
            self.seed,
            self.device,
        )
        return self

    def decision_function(self, features: npt.ArrayLike | Tensor) -> Floats:
        """Evidence for class 1, (B,)."""
        return predict(self.network_, (_tokens(features),), self.device)

    def attention(self, features: npt.ArrayLike | Tensor) -> Tensor:
        """Attention weights over the patches, (B, N), each row sums to 1."""
        network = self.network_
        assert isinstance(network, AttentivePool)
        with torch.no_grad():
            batches = torch.split(_tokens(features), 256)
            return torch.cat([network.attention(batch.to(self.device).float()).cpu() for batch in batches])


class AttentivePool(nn.Module):
    """Patch tokens (B, N, D) to logits (B,) by one learned query."""

    def __init__(self, tokens: Tensor, dropout: float) -> None:
        """Standardize by the training tokens (B, N, D)."""
        super().__init__()
        n_features = tokens.shape[-1]
        self.standardize = Standardize(tokens)
        self.query = nn.Parameter(torch.zeros(n_features))
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(n_features, 1)

    def attention(self, tokens: Tensor) -> Tensor:
        """Softmax of query . token / sqrt(D), (B, N)."""
        return torch.softmax(self.standardize(tokens) @ self.query / tokens.shape[-1] ** 0.5, dim=1)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) in, logits (B,) out."""
        pooled = torch.einsum("bn,bnd->bd", self.attention(tokens), self.standardize(tokens))
        logits: Tensor = self.classify(self.dropout(pooled))
        return logits.squeeze(-1)


def _tokens(features: npt.ArrayLike | Tensor) -> Tensor:
    tokens = as_tensor(features)
    if tokens.ndim != 3:
        raise ValueError(f"patch tokens must be (nodules, patches, D), got shape {tuple(tokens.shape)}")
    return tokens
