"""Attention weights of the class token, which the fused kernel does not return."""

from __future__ import annotations

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn

from models.backbone import Backbone


@torch.no_grad()
def class_attention(backbone: Backbone, images: Tensor) -> Tensor | None:
    """Return how much the class token attends to each patch in the last block.

    Args:
        backbone: In evaluation.
        images: (B, 3, S, S), normalized.

    Returns:
        (B, heads, N), softmax weights; the remainder to 1 goes to the class token itself and to the registers.
        None where the last block's attention is of a kind that has no plain queries and keys.
    """
    attention = backbone.vit.blocks[-1].attn
    if type(attention) is not Attention:
        return None
    seen: list[Tensor] = []

    def remember(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen.append(arguments[0])

    hook = attention.register_forward_pre_hook(remember)
    try:
        backbone(images)
    finally:
        hook.remove()
    batch, length, _ = seen[0].shape
    joined = attention.qkv(seen[0]).reshape(batch, length, 3, attention.num_heads, attention.head_dim)
    queries, keys, _ = joined.permute(2, 0, 3, 1, 4)
    query = attention.q_norm(queries[:, :, :1]) * attention.scale
    weights = (query @ attention.k_norm(keys).transpose(-2, -1)).softmax(dim=-1)
    patches: Tensor = weights[:, :, 0, backbone.vit.num_prefix_tokens :]
    return patches
