"""A 2D network becomes a 3D one: what a volume without change along z gives, and where each slice goes."""

import dataclasses
import json

import pytest
import torch

from models.backbone import Backbone, BackboneError, build_backbone
from models.config import BackboneConfig
from models.inflation import Inflate, depth_shares, inflated_state
from models.loading import load_weights

FLAT = BackboneConfig(arch="custom", depth=2, embed_dim=24, heads=2, patch_px=4, registers=2, image_px=16)


def timms(name: str) -> BackboneConfig:
    """A small network of a timm architecture."""
    arguments = json.dumps({"depth": 2, "embed_dim": 48, "num_heads": 3})
    return BackboneConfig(arch="timm", timm_name=name, timm_args=arguments, image_px=48)


KINDS = {
    "ours": FLAT,
    "positions of class token and registers too": timms("vit_tiny_patch16_224"),
    "rotations": timms("vit_small_patch16_dinov3"),
    "rotations of each block and head": timms("vit_small_patch16_rope_mixed_224"),
    "no bias of patches": timms("vit_base_patch16_clip_224"),
}


def flat_network(config: BackboneConfig) -> Backbone:
    torch.manual_seed(0)
    backbone = build_backbone(config).eval().requires_grad_(False)
    for parameter in backbone.parameters():  # so that no tensor is at its initial zeros or ones
        parameter.add_(0.1 * torch.randn_like(parameter))
    backbone.mean, backbone.std = (0.3, 0.45, 0.6), (0.2, 0.25, 0.3)
    return backbone


def inflated(config: BackboneConfig, flat: Backbone, how: Inflate, depth: int, layers: int = 3) -> Backbone:
    torch.manual_seed(1)
    deep = dataclasses.replace(config, image_depth_px=layers * depth, patch_depth_px=depth, inflated=True)
    backbone = build_backbone(deep).eval().requires_grad_(False)
    backbone.mean, backbone.std = (0.41,), (0.27,)
    state, _ = inflated_state(backbone, flat, how, "a test")
    load_weights(backbone, state, "a test")
    return backbone


def normalized(gray: torch.Tensor, backbone: Backbone) -> torch.Tensor:
    """Of gray values (B, S, S): triplets of three equal slices, or cubes that are constant along z."""
    mean, std = torch.tensor(backbone.mean), torch.tensor(backbone.std)
    if not backbone.image_depth_px:
        return (gray[:, None] - mean[:, None, None]) / std[:, None, None]
    return ((gray - mean) / std)[:, None, None].repeat(1, 1, backbone.image_depth_px, 1, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("how", "depth"), [("centered", 1), ("centered", 4), ("centered", 5), ("averaged", 4)]
)
def test_a_volume_constant_along_z_gives_the_tokens_of_the_2d_network(
    kind: str, how: Inflate, depth: int
) -> None:
    flat = flat_network(KINDS[kind])
    cube, gray = inflated(KINDS[kind], flat, how, depth), torch.rand(2, flat.image_px, flat.image_px)
    wanted, found = flat(normalized(gray, flat)), cube(normalized(gray, cube))
    torch.testing.assert_close(found.class_token, wanted.class_token, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.register_tokens, wanted.register_tokens, atol=1e-5, rtol=0)
    for layer in found.patch_tokens.unflatten(1, (3, -1)).unbind(1):
        torch.testing.assert_close(layer, wanted.patch_tokens, atol=1e-5, rtol=0)


def test_it_does_at_another_size_of_the_cube_too() -> None:
    flat = flat_network(FLAT)
    cube = inflated(FLAT, flat, "centered", 2)
    gray = torch.rand(1, 24, 24)
    volume = normalized(gray, cube)[:, :, :4]
    torch.testing.assert_close(
        cube(volume).class_token, flat(normalized(gray, flat)).class_token, atol=1e-5, rtol=0
    )


def test_without_their_weight_the_other_tokens_would_lose_their_share() -> None:
    flat = flat_network(FLAT)
    cube, gray = inflated(FLAT, flat, "centered", 2), torch.rand(1, 16, 16)
    cube.vit.patch_embed.is_inflated = False
    off = cube(normalized(gray, cube)).class_token - flat(normalized(gray, flat)).class_token
    assert off.abs().max() > 1e-3


def test_centered_lays_the_slices_below_at_and_above_in_the_middle_of_the_depth() -> None:
    assert depth_shares(5, "centered").tolist() == [[0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]]
    assert depth_shares(4, "centered").tolist() == [[0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5]]
    assert depth_shares(2, "centered").tolist() == [[1, 0], [0.5, 0.5], [0, 1]]
    assert depth_shares(1, "centered").tolist() == [[1], [1], [1]]
    assert depth_shares(4, "averaged").tolist() == [[0.25] * 4] * 3


def test_a_three_voxel_patch_reads_the_slices_as_the_channels_did() -> None:
    flat = flat_network(FLAT)
    cube = inflated(FLAT, flat, "centered", 3, layers=1)
    gray = torch.rand(1, 3, 16, 16)  # three different slices
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (flat.mean, flat.std))
    found = cube(((gray - 0.41) / 0.27)[:, None])
    torch.testing.assert_close(found.patch_tokens, flat((gray - mean) / std).patch_tokens, atol=1e-5, rtol=0)


def test_weights_of_another_width_are_refused_in_one_sentence() -> None:
    wide = build_backbone(dataclasses.replace(FLAT, embed_dim=48))
    cube = build_backbone(dataclasses.replace(FLAT, image_depth_px=8))
    with pytest.raises(
        BackboneError, match="a test has tokens of 48 numbers and 2 blocks, this recipe asks for 24 and 2"
    ):
        inflated_state(cube, wide, "centered", "a test")
