"""The attention that is shown is the attention that is computed."""

import pytest
import torch

from models.backbone import build_backbone, class_attention
from models.config import BackboneConfig


@pytest.mark.parametrize(
    "config",
    [
        BackboneConfig(arch="custom", depth=2, embed_dim=32, heads=2, image_px=42, registers=4),
        BackboneConfig(arch="custom", depth=1, embed_dim=24, heads=3, image_px=28, registers=0),
    ],
)
def test_the_weights_give_the_attended_values(config: BackboneConfig) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(config).eval()
    images = torch.randn(2, 3, config.image_px, config.image_px)
    weights = class_attention(backbone, images)
    assert weights is not None
    assert weights.shape == (2, config.heads, (config.image_px // 14) ** 2)

    # With identical values everywhere but at one patch, the output tells that patch's weight.
    attention = backbone.vit.blocks[-1].attn
    seen = []
    attention.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    backbone(images)
    tokens = seen[0]
    queries, keys, _ = attention.qkv(tokens).chunk(3, dim=-1)
    width = config.embed_dim // config.heads
    for head in range(config.heads):
        part = slice(head * width, (head + 1) * width)
        for patch in (0, weights.shape[-1] - 1):
            values = torch.zeros(2, tokens.shape[1], width)
            values[:, 1 + config.registers + patch] = 1.0
            out = torch.nn.functional.scaled_dot_product_attention(
                queries[..., part], keys[..., part], values
            )
            assert torch.allclose(out[:, 0, 0], weights[:, head, patch], atol=1e-6)
    assert (weights.sum(-1) < 1).all()


def test_an_attention_without_plain_queries_has_no_weights_to_show() -> None:
    backbone = build_backbone(BackboneConfig(arch="custom", depth=1, embed_dim=24, heads=3, image_px=28))
    backbone.vit.blocks[-1].attn = torch.nn.Identity()
    assert class_attention(backbone, torch.zeros(1, 3, 28, 28)) is None
