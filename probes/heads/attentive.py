"""One learned query with attention over all patch tokens, in place of the class token or the mean of patches."""

from dataclasses import dataclass

import numpy.typing as npt
import torch
from torch import Tensor, nn

from probes.heads.fitting import NetworkProbe, Standardize, as_tensor


@dataclass(kw_only=True)
class AttentiveProbe(NetworkProbe[npt.ArrayLike | Tensor]):
    """Standardized patch tokens, averaged with the attention of one learned query, then a linear classifier.

    The query starts at zero, so training starts from the plain mean of the patches.

    Attributes:
        dropout: Dropout rate of pooled features in training.

    Source: attentive probing, Bardes et al. 2024, arXiv:2404.08471, with one query and no value projection.
    """

    dropout: float = 0.2

    def inputs(self, features: npt.ArrayLike | Tensor) -> tuple[Tensor, ...]:
        """Patch tokens (B, N, D) of B nodules."""
        tokens = as_tensor(features)
        if tokens.ndim != 3:
            raise ValueError(f"patch tokens must be (nodules, patches, D), got shape {tuple(tokens.shape)}")
        return (tokens,)

    def build(self, inputs: tuple[Tensor, ...]) -> nn.Module:
        """The query and the classifier."""
        return AttentivePool(inputs[0], self.dropout)


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
