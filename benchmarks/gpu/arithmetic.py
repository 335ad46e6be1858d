"""How many floating point operations a vision transformer needs, counted from its shape.

A product of (m, k) and (k, n) counts 2 m k n; softmax, norms and activations are left out, as is usual for the share of
peak (MFU, Chowdhery et al. 2022, PaLM, appendix B). Recomputation under gradient checkpointing does not count.
"""

from typing import NamedTuple

HOPPER_BF16_FLOPS = 989e12
"""Dense bf16 products of H100 SXM and H200 a second, by NVIDIA's data sheet."""


class Shape(NamedTuple):
    """What decides the operations of one forward pass of one image."""

    width: int
    depth: int
    tokens: int
    patches: int
    patch_inputs: int
    """Values of one patch: channels x height x width."""
    mlp_ratio: float = 4.0


def forward_flops(shape: Shape) -> float:
    """Operations of one forward pass of one image through the backbone."""
    n, d = shape.tokens, shape.width
    projections = 2 * n * d * d * (3 + 1 + 2 * shape.mlp_ratio)
    attention = 2 * (2 * n * n * d)
    embedding = 2 * shape.patches * shape.patch_inputs * d
    return shape.depth * (projections + attention) + embedding


def update_flops(shape: Shape, prototypes: int, views: int = 2) -> float:
    """Operations of one sample in one update of the student-teacher pair.

    The student's backward pass takes twice its forward pass; the teacher has none.
    """
    head = 2 * shape.width * (shape.width + prototypes)
    one = forward_flops(shape) + head
    return views * (3 * one + one)
