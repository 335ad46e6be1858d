"""The projection head: from a class token to logits over prototypes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.config import HeadConfig
from models.losses.precision import wide


class ProjectionHead(nn.Module):
    """Linear(D, D), GELU, Linear(D, K), with biases: the article's head.

    The last layer runs in float32 under autocast too, because a softmax at temperature 0.04 turns the rounding of
    half precision into other targets.
    """

    def __init__(self, embed_dim: int, config: HeadConfig) -> None:
        """Build the two layers."""
        super().__init__()
        self.hidden = nn.Linear(embed_dim, embed_dim)
        self.act = nn.GELU()
        self.last = nn.Linear(embed_dim, config.prototypes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (..., D) to float32 logits (..., K)."""
        return self.project(self.embed(tokens))

    def embed(self, tokens: Tensor) -> Tensor:
        """Map tokens (..., D) to the input of the last layer, (..., D)."""
        embedded: Tensor = self.act(self.hidden(tokens))
        return embedded

    def project(self, embedded: Tensor) -> Tensor:
        """Map (..., D) from `embed` to float32 logits (..., K); the layer is linear, so means stay means."""
        with torch.autocast(embedded.device.type, enabled=False):
            logits: Tensor = self.last(wide(embedded))
        return logits
