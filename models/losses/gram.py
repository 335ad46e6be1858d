"""Gram alignment: patches of the student relate to one another as they do in the teacher."""

import torch
from torch import Tensor
from torch.nn import functional as F

from models.losses.precision import wide


def gram_matrix(patch_tokens: Tensor) -> Tensor:
    """Return the cosine similarities (..., N, N) of patch tokens (..., N, D), in float32."""
    unit = F.normalize(wide(patch_tokens), dim=-1)
    return unit @ unit.transpose(-1, -2)


def gram_loss(student_patches: Tensor, teacher_patches: Tensor) -> Tensor:
    """Mean squared difference of the cosine Gram matrices of two sets of patch tokens.

    Args:
        student_patches: (..., N, D) patch tokens of the student, without class token and registers.
        teacher_patches: (..., N, D') of the teacher on the same views; no gradient reaches it.

    Returns:
        Scalar in [0, 4].

    Source: Simeoni et al. 2025 (DINOv3), arXiv:2508.10104, section 4.2; "online" here means against the current
    EMA teacher instead of an earlier, frozen one.
    """
    with torch.autocast(student_patches.device.type, enabled=False):
        return F.mse_loss(gram_matrix(student_patches), gram_matrix(teacher_patches.detach()))
