"""ViTs whose attention turns with the position (DINOv3, EVA, RoPE-ViT) give timm's tokens, hide patches and train."""

import pytest
import torch

from models.backbone import Backbone, BackboneError, build_backbone, build_timm_architecture, class_attention
from models.config import BackboneConfig

SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3}
ARCHITECTURES = {
    "vit_small_patch16_dinov3": SMALL,
    "vit_small_patch16_dinov3_qkvb": SMALL,
    "vit_huge_plus_patch16_dinov3": SMALL,  # gated MLP
    "eva02_tiny_patch14_224": {**SMALL, "mlp_ratio": 2},  # learned positions beside the rotations
    "vit_small_patch16_rope_mixed_224": SMALL,  # rotations of each block and head
}


@pytest.fixture(params=ARCHITECTURES)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    torch.manual_seed(0)
    patch_px = 14 if "patch14" in request.param else 16
    config = BackboneConfig(arch="timm", timm_name=request.param, image_px=3 * patch_px)
    built = build_timm_architecture(request.param, ARCHITECTURES[request.param], config).eval()
    with torch.no_grad():
        for parameter in built.parameters():  # so that no tensor is at its initial zeros or ones
            parameter.add_(0.1 * torch.randn_like(parameter))
    return built


def images(backbone: Backbone, patches: int = 3) -> torch.Tensor:
    return torch.randn(2, 3, patches * backbone.patch_px, patches * backbone.patch_px)


@torch.no_grad()
@pytest.mark.parametrize("patches", [3, 2])
def test_tokens_are_timms_own_at_any_size(backbone: Backbone, patches: int) -> None:
    shown = images(backbone, patches)
    whole, tokens = backbone.vit.forward_features(shown), backbone(shown)
    prefix = backbone.vit.num_prefix_tokens
    assert tokens.patch_tokens.shape == (2, patches**2, 48)
    assert torch.allclose(tokens.class_token, whole[:, 0], atol=1e-5)
    assert torch.allclose(tokens.register_tokens, whole[:, 1:prefix], atol=1e-5)
    assert torch.allclose(tokens.patch_tokens, whole[:, prefix:], atol=1e-5)


@torch.no_grad()
def test_patches_that_are_shown_keep_their_rotations(backbone: Backbone) -> None:
    keep = torch.stack([torch.randperm(9), torch.arange(9)])
    shown = images(backbone)
    whole, parts = backbone(shown), backbone.encode_visible(shown, keep)
    assert torch.allclose(parts.class_token, whole.class_token, atol=1e-5)
    for image in (0, 1):
        assert torch.allclose(parts.patch_tokens[image], whole.patch_tokens[image][keep[image]], atol=1e-5)


@torch.no_grad()
def test_a_hidden_patch_reaches_no_token(backbone: Backbone) -> None:
    shown, mask, token = images(backbone), torch.zeros(2, 9, dtype=torch.bool), torch.zeros(48)
    mask[:, 0] = True
    other = shown.clone()
    other[..., : backbone.patch_px, : backbone.patch_px] += 5.0
    assert torch.equal(backbone(shown, mask, token).patch_tokens, backbone(other, mask, token).patch_tokens)
    keep = torch.arange(1, 9).repeat(2, 1)
    assert torch.equal(
        backbone.encode_visible(shown, keep).class_token, backbone.encode_visible(other, keep).class_token
    )
    assert not torch.allclose(backbone(shown).class_token, backbone(other).class_token, atol=1e-3)


@torch.no_grad()
def test_the_attention_that_is_shown_moves_the_class_token(backbone: Backbone) -> None:
    """Where all values but one patch's are zero, the class token's output is that patch's weight."""
    shown, prefix = images(backbone), backbone.vit.num_prefix_tokens
    weights, attention = class_attention(backbone, shown), backbone.vit.blocks[-1].attn
    assert weights is not None
    assert weights.shape == (2, 3, 9)
    assert attention.fused_attn, "the fused kernel is used again afterwards"
    block, given, out = backbone.vit.blocks[-1], [], []
    fused = torch.nn.functional.scaled_dot_product_attention
    hook = block.register_forward_pre_hook(lambda *one: given.append(one[1:]), with_kwargs=True)
    backbone(shown)
    hook.remove()

    def only_the_last_patch(query, key, value, **rest):
        value = torch.zeros_like(value)
        value[:, :, prefix + 8] = 1.0
        out.append(fused(query, key, value, **rest))
        return out[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", only_the_last_patch)
        block(*given[0][0], **given[0][1])
    assert torch.allclose(out[0][:, :, 0, 0], weights[..., 8], atol=1e-6)


def test_plain_attention_and_checkpoints_change_no_gradient(backbone: Backbone) -> None:
    backbone.double().train()
    shown, gradients = images(backbone).double(), []
    for change in (lambda: None, backbone.attend_plainly, lambda: backbone.vit.set_grad_checkpointing(True)):
        change()
        backbone.zero_grad()
        backbone(shown).class_token.square().sum().backward()
        gradients.append(backbone.vit.patch_embed.proj.weight.grad.clone())
    assert gradients[0].abs().max() > 0
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)
    assert torch.equal(gradients[1], gradients[2])


def test_a_recipe_changes_arguments_of_timm_and_the_epsilon_of_its_norms() -> None:
    name = "vit_small_patch16_dinov3"
    config = BackboneConfig(arch="timm", timm_name=name, timm_args='{"depth": 2}', norm_eps=1e-3, image_px=32)
    vit = build_backbone(config).vit
    assert len(vit.blocks) == 2
    assert (vit.norm.eps, vit.blocks[1].norm2.eps) == (1e-3, 1e-3)
    for text in ("depth", "[6]", "{"):
        with pytest.raises(ValueError, match="timm_args is a JSON object"):
            BackboneConfig(arch="timm", timm_name=name, timm_args=text)
    leads = '{"pretrained_cfg_overlay": {"file": "/tmp/x"}, "checkpoint_path": "/tmp/x"}'
    with pytest.raises(
        BackboneError, match="hold checkpoint_path, pretrained_cfg_overlay, which describes no arch"
    ):
        build_backbone(BackboneConfig(arch="timm", timm_name=name, timm_args=leads))
