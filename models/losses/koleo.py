"""KoLeo: an entropy estimate that pushes embeddings apart from their nearest neighbors."""

import torch
from torch import Tensor
from torch.nn import functional as F

from models.losses.precision import wide


def koleo_loss(embeddings: Tensor, eps: float = 1e-8) -> Tensor:
    """Penalize embeddings that sit close to their nearest neighbor in the batch.

    Runs in float32 under autocast too: the log of a small distance needs it.

    Args:
        embeddings: (B, D), B >= 2; scaled to unit length here. Two views of one slice are neighbors by design:
            pass one view at a time unless that is what is wanted.
        eps: Added to each distance, so that duplicates give a finite loss.

    Returns:
        Scalar, mean of -log(distance to nearest neighbor); lower is more spread.

    Raises:
        ValueError: If B < 2, where no neighbor exists.

    Source: Sablayrolles et al. 2019, arXiv:1806.03198.
    """
    if embeddings.shape[0] < 2:
        raise ValueError(
            f"KoLeo needs a neighbor: the batch holds {embeddings.shape[0]} embedding, give 2 or more"
        )
    with torch.autocast(embeddings.device.type, enabled=False):
        unit = F.normalize(wide(embeddings), dim=-1)
        with torch.no_grad():
            similarity = unit @ unit.T
            similarity.fill_diagonal_(-2.0)
            nearest = similarity.argmax(dim=1)
        # Not `unit[nearest]`: on several threads its backward pass adds the gradients of a shared neighbor in an order
        # that differs from run to run.
        distance = torch.linalg.vector_norm(unit - unit.index_select(0, nearest) + eps, dim=-1)
        return -torch.log(distance + eps).mean()
