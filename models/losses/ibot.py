"""iBOT: the student predicts the teacher's code of patches that it was not shown."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.losses.precision import wide


def ibot_loss(student_logits: Tensor, teacher_probs: Tensor, mask: Tensor, student_temp: float) -> Tensor:
    """Cross-entropy on hidden patches, each image weighing the same.

    Args:
        student_logits: (..., N, K) of patch tokens, some of whose inputs were hidden.
        teacher_probs: (..., N, K) of the same patches, all shown; no gradient.
        mask: (..., N) bool, true where the student did not see the patch.
        student_temp: Temperature of the student's softmax.

    Returns:
        Scalar, nats; zero when nothing was hidden.

    Source: Zhou et al. 2022, arXiv:2111.07832, equation 2.
    """
    log_probs = F.log_softmax(wide(student_logits) / student_temp, dim=-1)
    per_patch = -(teacher_probs * log_probs).sum(dim=-1) * mask
    hidden = mask.sum(dim=-1)
    per_image = per_patch.sum(dim=-1) / hidden.clamp_min(1)
    return per_image.sum() / (hidden > 0).sum().clamp_min(1)


def draw_mask(shape: tuple[int, int, int], fraction: tuple[float, float], rng: np.random.Generator) -> Tensor:
    """Draw which patches stay hidden: (V, B, N) bool, a uniform share of `fraction` in every other image.

    Source: DINOv2, arXiv:2304.07193: half of the images are masked, by 10% to 50%.
    """
    views, batch, patches = shape
    mask = torch.zeros(views * batch, patches, dtype=torch.bool)
    for image in range(0, views * batch, 2):
        count = max(1, round(float(rng.uniform(*fraction)) * patches))
        mask[image, torch.from_numpy(rng.permutation(patches)[:count].copy())] = True
    return mask.view(views, batch, patches)
