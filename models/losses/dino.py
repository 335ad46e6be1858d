"""Self-distillation: the student predicts the teacher's code of another view of the same slice."""

import torch
from torch import Tensor
from torch.nn import functional as F

from models.losses.precision import wide


def teacher_probabilities(logits: Tensor, center: Tensor, teacher_temp: float) -> Tensor:
    """Center and sharpen teacher logits (..., K) into target probabilities, in float32.

    Source: Caron et al. 2021, arXiv:2104.14294, section 3.1.
    """
    return F.softmax((wide(logits) - center) / teacher_temp, dim=-1)


def dino_loss(student_logits: Tensor, teacher_probs: Tensor, student_temp: float) -> Tensor:
    """Cross-entropy between every teacher view and every other view of the student.

    Args:
        student_logits: (Vs, B, K); the first Vt views are the teacher's own, in the same order.
        teacher_probs: (Vt, B, K), rows sum to one, no gradient.
        student_temp: Temperature of the student's softmax.

    Returns:
        Scalar, nats, mean over samples and over the pairs (i, j) with i != j. Uniform outputs of both give ln K.

    Raises:
        ValueError: If no pair of different views exists.

    Source: Caron et al. 2021, arXiv:2104.14294, equation 3.
    """
    n_student, n_teacher = student_logits.shape[0], teacher_probs.shape[0]
    if n_student < 2:
        raise ValueError(f"DINO compares different views of a slice; the student got {n_student} view")
    log_probs = F.log_softmax(wide(student_logits) / student_temp, dim=-1)
    # No matrix product: autocast would round it to half precision, and one running sum over K prototypes and B samples
    # loses digits that sums by pairs keep.
    pairs = [
        (teacher_probs[t] * log_probs[s]).sum(-1).mean()
        for t in range(n_teacher)
        for s in range(n_student)
        if s != t
    ]
    return -torch.stack(pairs).mean()


def sinkhorn_probabilities(logits: Tensor, teacher_temp: float, iterations: int = 3) -> Tensor:
    """Share the prototypes evenly over a batch by Sinkhorn-Knopp instead of a running center.

    Args:
        logits: Teacher logits of one view, (B, K).
        teacher_temp: Temperature before the exponential.
        iterations: Row and column normalizations.

    Returns:
        Probabilities (B, K), rows sum to one.

    Source: Caron et al. 2020 (SwAV), arXiv:2006.09882, as used by DINOv2, arXiv:2304.07193.
    """
    # In logarithms: a row whose logits all lie some 4 below the largest of the batch would be zero at temperature 0.04.
    plan = wide(logits) / teacher_temp
    for _ in range(iterations):
        plan = plan - plan.logsumexp(dim=0, keepdim=True)
        plan = F.log_softmax(plan, dim=1)
    return plan.exp()
