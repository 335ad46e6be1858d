"""SimCLR: the two views of a slice find each other among all views of the batch."""

import torch
from torch import Tensor
from torch.nn import functional as F

from models.losses.precision import wide


def nt_xent_loss(embeddings: Tensor, temperature: float) -> Tensor:
    """Normalized temperature-scaled cross-entropy over two views.

    Args:
        embeddings: (2, B, D) projections of both views; scaled to unit length here.
        temperature: Of the softmax over the other 2B - 1 embeddings.

    Returns:
        Scalar, nats; ln(2B - 1) for embeddings that are all equal.

    Raises:
        ValueError: If there are not exactly two views or fewer than two slices.

    Source: Chen et al. 2020, arXiv:2002.05709, equation 1.
    """
    views, batch = embeddings.shape[:2]
    if views != 2 or batch < 2:
        raise ValueError(f"NT-Xent pairs two views of 2 or more slices; got {views} views of {batch}")
    with torch.autocast(embeddings.device.type, enabled=False):
        unit = F.normalize(wide(embeddings).flatten(0, 1), dim=-1)
        logits = unit @ unit.T / temperature
        # -inf on the diagonal is exact at every precision, unlike a large negative constant.
        logits = logits.masked_fill(torch.eye(2 * batch, dtype=torch.bool, device=unit.device), -torch.inf)
        partner = torch.arange(2 * batch, device=unit.device).roll(batch)
        return F.cross_entropy(logits, partner)
