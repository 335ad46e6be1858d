"""Networks of cubes: patches and positions in 3D, and the spacing told to a network."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from models.backbone import BackboneError, build_backbone, class_attention
from models.config import BackboneConfig

CUBES = BackboneConfig(
    arch="custom",
    depth=2,
    embed_dim=24,
    heads=2,
    patch_px=4,
    registers=2,
    image_px=12,
    image_depth_px=8,
    patch_depth_px=2,
)


def test_patch_tokens_of_a_cube_come_layer_by_layer_then_row_by_row() -> None:
    backbone = build_backbone(dataclasses.replace(CUBES, depth=1)).eval()
    backbone.vit.blocks = torch.nn.Sequential()  # the tokens before any attention
    backbone.vit.pos_embed.data.zero_()
    backbone.vit.patch_embed.z_pos_embed.data.zero_()
    assert backbone.grid_of((1, 1, 8, 12, 12)) == (4, 3, 3)
    cube = torch.zeros(1, 1, 8, 12, 12)
    cube[0, 0, 6, 5, 9] = 1.0  # in layer 3, row 1, column 2
    bare, marked = (backbone(one).patch_tokens for one in (torch.zeros_like(cube), cube))
    changed = (bare != marked).any(-1)[0].nonzero().flatten()
    assert changed.tolist() == [3 * 9 + 1 * 3 + 2]


def test_a_patch_is_the_same_wherever_it_lies_but_for_its_position() -> None:
    backbone = build_backbone(CUBES).eval()
    patch = torch.randn(1, 1, 2, 4, 4)
    embedded = backbone.vit.patch_embed(patch.repeat(1, 1, 4, 3, 3))
    own = backbone.vit.patch_embed.proj
    by_hand = (own.weight.flatten(1) * patch.flatten()).sum(1) + own.bias
    torch.testing.assert_close(embedded, by_hand.expand(1, 4, 3, 3, -1))


@pytest.mark.parametrize("size", [(4, 8, 8), (16, 24, 24)])
def test_any_grid_is_encoded_with_positions_between_those_of_its_own(size: tuple[int, int, int]) -> None:
    backbone = build_backbone(CUBES).eval()
    tokens = backbone(torch.randn(2, 1, *size))
    layers, rows, columns = backbone.grid_of((1, *size))
    assert tokens.patch_tokens.shape == (2, layers * rows * columns, 24)
    table = backbone.vit.patch_embed.z_pos_embed
    wanted = F.interpolate(table.mT, size=layers, mode="linear").mT[0, :, None]
    torch.testing.assert_close(backbone.vit.patch_embed.z_positions(layers), wanted)


def test_visible_patches_alone_are_encoded_as_among_all_when_all_are_kept() -> None:
    backbone = build_backbone(CUBES).eval()
    cubes, order = torch.randn(2, 1, 8, 12, 12), torch.stack([torch.randperm(36) for _ in range(2)])
    shown, whole = backbone.encode_visible(cubes, order), backbone(cubes)
    index = order[..., None].expand(-1, -1, 24)
    torch.testing.assert_close(shown.patch_tokens, whole.patch_tokens.gather(1, index), atol=1e-5, rtol=0)
    torch.testing.assert_close(shown.class_token, whole.class_token, atol=1e-5, rtol=0)


def test_a_hidden_patch_is_replaced_by_the_mask_token_at_its_place() -> None:
    backbone = build_backbone(CUBES).eval()
    cubes, token, mask = torch.randn(1, 1, 8, 12, 12), torch.randn(24), torch.zeros(1, 36, dtype=torch.bool)
    mask[0, 14] = True  # layer 1, row 1, column 2
    others = cubes.clone()
    others[0, 0, 2:4, 4:8, 8:12] = 7.0
    hidden = [backbone(one, mask, token).patch_tokens for one in (cubes, others)]
    torch.testing.assert_close(hidden[0], hidden[1])
    assert not torch.allclose(backbone(cubes).patch_tokens, hidden[0])


def test_the_spacing_reaches_every_token_and_each_axis_counts() -> None:
    backbone = build_backbone(dataclasses.replace(CUBES, spacing="tokens")).eval()
    cubes = torch.randn(1, 1, 8, 12, 12)
    base = backbone(cubes, spacing_mm=torch.tensor([[1.0, 0.7, 0.7]]))
    for other in ([2.0, 0.7, 0.7], [1.0, 0.8, 0.7], [1.0, 0.7, 0.8]):
        told = backbone(cubes, spacing_mm=torch.tensor([other]))
        assert ((told.patch_tokens - base.patch_tokens).abs().amax(-1) > 1e-4).all()
        assert (told.class_token - base.class_token).abs().max() > 1e-4
    with pytest.raises(ValueError, match="takes the spacing"):
        backbone(cubes)


def test_a_network_of_triplets_takes_the_spacing_too() -> None:
    flat = dataclasses.replace(CUBES, image_depth_px=0, patch_depth_px=0, spacing="tokens")
    backbone = build_backbone(flat).eval()
    images = torch.randn(1, 3, 12, 12)
    near, far = (backbone(images, spacing_mm=torch.tensor([[z, 0.7, 0.7]])).class_token for z in (1.0, 5.0))
    assert (near - far).abs().max() > 1e-3


def test_attention_of_the_class_token_covers_all_patches_of_a_cube() -> None:
    backbone = build_backbone(CUBES).eval()
    attention = class_attention(backbone, torch.randn(2, 1, 8, 12, 12))
    assert attention is not None
    assert attention.shape == (2, 2, 36)
    assert (attention.sum(-1) < 1).all()


def test_in_an_inflated_network_the_other_tokens_weigh_as_many_times_as_there_are_layers() -> None:
    backbone = build_backbone(dataclasses.replace(CUBES, inflated=True)).eval()
    backbone.vit.blocks[-1].attn.qkv.weight.data.zero_()  # all logits equal but for the bias
    attention = class_attention(backbone, torch.randn(1, 1, 8, 12, 12))
    assert attention is not None
    torch.testing.assert_close(attention, torch.full((1, 2, 36), 1 / (36 + 3 * 4)))
    bias = backbone.vit.patch_embed.attention_bias(4, 3, 36)
    assert bias.flatten().tolist()[:4] == pytest.approx([math.log(4)] * 3 + [0.0])


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for kept in (False, True):
        torch.manual_seed(0)
        config = dataclasses.replace(CUBES, grad_checkpointing=kept, inflated=True, spacing="tokens")
        backbone = build_backbone(config).train()
        cubes = torch.randn(2, 1, 8, 12, 12)
        backbone(cubes, spacing_mm=torch.ones(2, 3)).class_token.square().sum().backward()
        gradients.append({name: one.grad for name, one in backbone.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_depth_px": 7}, "image_depth_px 7 is not a multiple of the patch of 2 voxels along z"),
        ({"image_depth_px": 0}, "patch_depth_px is of cubes"),
        ({"stem": "whitened"}, "reads the center slice of triplets"),
        ({"weights": "timm"}, "weights 'timm:NAME'"),
    ],
)
def test_cubes_that_cannot_be_are_refused_in_one_sentence(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(CUBES, **change)  # type: ignore[arg-type]


def test_a_network_of_timm_reads_cubes_only_in_whole_patches() -> None:
    config = BackboneConfig(
        arch="timm", timm_name="vit_tiny_patch16_224", image_px=32, image_depth_px=24, patch_depth_px=0
    )
    with pytest.raises(BackboneError, match="24 voxels along z are no multiple of the patch of 16"):
        build_backbone(config)


@pytest.mark.parametrize("is_plain", [False, True])
def test_in_bfloat16_the_tokens_stay_near_those_of_float32(is_plain: bool) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(dataclasses.replace(CUBES, inflated=True, spacing="tokens")).eval()
    cubes, spacing_mm = torch.randn(2, 1, 8, 12, 12), torch.tensor([[1.0, 0.7, 0.7], [2.5, 0.5, 0.5]])
    wanted = backbone(cubes, spacing_mm=spacing_mm)
    if is_plain:
        backbone.attend_plainly()
        torch.testing.assert_close(backbone(cubes, spacing_mm=spacing_mm).class_token, wanted.class_token)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = backbone(cubes, spacing_mm=spacing_mm)
    assert (rough.patch_tokens - wanted.patch_tokens).abs().max() < 0.1
    assert not torch.equal(rough.patch_tokens, wanted.patch_tokens)


def test_drop_path_skips_blocks_of_cubes_in_training_alone() -> None:
    torch.manual_seed(0)
    backbone = build_backbone(dataclasses.replace(CUBES, drop_path=0.9))
    cubes = torch.randn(8, 1, 8, 12, 12)
    assert not torch.equal(backbone.train()(cubes).class_token, backbone(cubes).class_token)
    assert torch.equal(backbone.eval()(cubes).class_token, backbone(cubes).class_token)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # What the compiler warns of is its own; numbers are compared here.
def test_compiled_networks_of_global_and_local_cubes_are_the_eager_ones() -> None:
    backbone = build_backbone(dataclasses.replace(CUBES, inflated=True, spacing="tokens"))
    compiled = torch.compile(backbone, backend="aot_eager", fullgraph=True, dynamic=False)
    for shape in ((8, 12, 12), (4, 8, 8)):
        cubes, gradients = torch.randn(2, 1, *shape), []
        for network in (backbone, compiled):
            backbone.zero_grad()
            network(cubes, spacing_mm=torch.ones(2, 3)).class_token.square().sum().backward()
            gradients.append([one.grad.clone() for one in backbone.parameters() if one.grad is not None])
        for own, other in zip(*gradients, strict=True):
            torch.testing.assert_close(own, other)
