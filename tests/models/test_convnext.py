"""A ConvNeXt is read by probes: feature map as patch tokens, pooled as class token; training refuses it."""

import pytest
import timm
import torch

from models.backbone import BackboneError, build_backbone, build_timm_architecture, class_attention
from models.config import BackboneConfig

NAME = "convnext_atto"


@torch.no_grad()
def test_its_tokens_are_the_normalized_places_of_its_last_map_and_their_mean() -> None:
    torch.manual_seed(0)
    backbone = build_timm_architecture(
        NAME, {}, BackboneConfig(arch="timm", timm_name=NAME, image_px=96)
    ).eval()
    images = torch.randn(2, 3, 96, 96)
    tokens = backbone(images)
    places = backbone.vit.forward_features(images)
    assert places.shape == (2, backbone.embed_dim, 3, 3)
    assert torch.allclose(tokens.class_token, backbone.vit(images), atol=1e-6)
    norm = backbone.vit.head.norm
    one = torch.nn.functional.layer_norm(
        places[1, :, 2, 0], norm.weight.shape, norm.weight, norm.bias, norm.eps
    )
    assert torch.allclose(tokens.patch_tokens[1, 6], one, atol=1e-5)
    assert tokens.register_tokens.shape == (2, 0, backbone.embed_dim)
    assert class_attention(backbone, images) is None


def test_training_refuses_it_and_probes_do_not() -> None:
    config = BackboneConfig(arch="timm", timm_name=NAME, image_px=64)
    with pytest.raises(BackboneError, match="is a ConvNeXt, which probes read"):
        build_backbone(config)
    torch.manual_seed(0)
    ours = build_backbone(config, for_training=False)
    torch.manual_seed(0)
    theirs = timm.create_model(NAME, num_classes=0)
    assert torch.equal(ours.vit.stem[0].weight, theirs.stem[0].weight)


@pytest.mark.parametrize(("name", "image_px", "right"), [(NAME, 70, 64), ("vit_tiny_patch16_224", 70, 64)])
def test_images_that_are_no_multiple_of_the_patch_are_refused(name: str, image_px: int, right: int) -> None:
    config = BackboneConfig(arch="timm", timm_name=name, image_px=image_px)
    with pytest.raises(BackboneError, match=f"70 px are no multiple of the patch of .* to {right}"):
        build_backbone(config, for_training=False)


def test_another_network_of_timm_is_refused() -> None:
    with pytest.raises(
        BackboneError, match="'resnet18' is no vision transformer with a class token, nor a ConvNeXt"
    ):
        build_backbone(BackboneConfig(arch="timm", timm_name="resnet18"))
