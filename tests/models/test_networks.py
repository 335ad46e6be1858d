"""Backbones, head, and the pair."""

import math

import pytest
import timm
import torch

from models.adjustments import set_drop_path
from models.backbone import BackboneError, build_backbone
from models.config import BackboneConfig, HeadConfig
from models.loading import load_weights
from models.student_teacher import Network, ProjectionHead, StudentTeacher, central_mean

TINY = BackboneConfig(arch="custom", depth=2, embed_dim=32, heads=2, patch_px=14, registers=4, image_px=28)


def n_parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("arch", "alone", "with_head", "published"),
    [
        ("vit_small", 21_620_736, 24_922_496, (21.6, 24.9)),
        ("vit_large", 303_181_824, 312_628_224, (303.2, 312.6)),
    ],
)
def test_the_articles_backbones_have_its_parameter_counts(
    arch: str, alone: int, with_head: int, published: tuple[float, float]
) -> None:
    with torch.device("meta"):
        backbone = build_backbone(BackboneConfig(arch=arch))  # type: ignore[arg-type]
        network = Network(backbone, ProjectionHead(backbone.embed_dim, HeadConfig()))
    assert (n_parameters(backbone), n_parameters(network)) == (alone, with_head)
    assert (round(alone / 1e6, 1), round(with_head / 1e6, 1)) == published


def test_tokens_are_timms_own_without_registers() -> None:
    torch.manual_seed(0)
    backbone = build_backbone(TINY).eval()
    images = torch.randn(2, 3, 28, 28)
    whole = backbone.vit.forward_features(images)
    tokens = backbone(images)
    assert tokens.patch_tokens.shape == (2, 4, 32)
    assert torch.allclose(tokens.class_token, whole[:, 0], atol=1e-6)
    assert torch.allclose(tokens.register_tokens, whole[:, 1:5], atol=1e-6)
    assert torch.allclose(tokens.patch_tokens, whole[:, 5:], atol=1e-6)


def test_plain_attention_says_what_the_fused_kernel_says() -> None:
    torch.manual_seed(0)
    fused, plain = build_backbone(TINY).double(), build_backbone(TINY).double()
    plain.load_state_dict(fused.state_dict())
    plain.attend_plainly()
    assert [block.attn.fused_attn for block in plain.vit.blocks] == [False, False]
    images = torch.randn(2, 3, 28, 28, dtype=torch.float64)
    for backbone in (fused, plain):
        backbone(images).class_token.square().mean().backward()
    for one, other in zip(fused.parameters(), plain.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.allclose(one.grad, other.grad, rtol=0, atol=1e-12)


def test_showing_every_patch_is_encoding_the_image() -> None:
    torch.manual_seed(0)
    backbone = build_backbone(TINY).eval()
    images = torch.randn(2, 3, 28, 28)
    keep = torch.tensor([[3, 1, 0, 2], [0, 1, 2, 3]])
    shown = backbone.encode_visible(images, keep)
    whole = backbone(images)
    assert torch.allclose(shown.class_token, whole.class_token, atol=1e-5)
    assert torch.allclose(shown.patch_tokens[0, 1], whole.patch_tokens[0, 1], atol=1e-5)
    assert torch.allclose(shown.patch_tokens[0, 0], whole.patch_tokens[0, 3], atol=1e-5)


def test_a_hidden_patch_does_not_reach_the_tokens() -> None:
    torch.manual_seed(0)
    backbone = build_backbone(TINY).eval()
    images = torch.randn(1, 3, 28, 28)
    other = images.clone()
    other[..., :14, :14] += 5.0
    mask = torch.tensor([[True, False, False, False]])
    token = torch.zeros(32)
    assert torch.equal(backbone(images, mask, token).class_token, backbone(other, mask, token).class_token)
    assert not torch.allclose(backbone(images).class_token, backbone(other).class_token, atol=1e-3)


def test_the_head_gets_the_middle_of_the_image_when_asked() -> None:
    torch.manual_seed(0)
    backbone, head = build_backbone(TINY).eval(), ProjectionHead(32, HeadConfig(prototypes=16))
    views = torch.randn(2, 1, 3, 28, 28)
    output = Network(backbone, head, "roi")(views)
    mean = output.patch_tokens.mean(2)  # of 2 x 2 patches, which lie equally far from the middle
    assert torch.allclose(output.class_token, mean, atol=1e-6)
    assert torch.allclose(output.logits, head(mean), atol=1e-5)
    assert not torch.allclose(output.class_token, Network(backbone, head)(views).class_token, atol=1e-2)

    ones = torch.zeros(1, 64, 64)
    ones[0] = torch.eye(64)
    weights = central_mean(ones, (1, 8, 8))[0].view(8, 8)  # SD: one patch
    assert weights.sum().item() == pytest.approx(1.0, abs=1e-6)
    assert (weights[3, 3] / weights[3, 5]).item() == pytest.approx(math.exp((1.5**2 - 0.5**2) / 2), rel=1e-5)
    assert torch.allclose(weights, weights.flip(0))
    assert torch.allclose(weights, weights.T)


def test_checkpointing_changes_no_gradient() -> None:
    images = torch.randn(2, 3, 28, 28)
    gradients = []
    for is_checkpointed in (False, True):
        torch.manual_seed(0)
        config = BackboneConfig(
            arch="custom", depth=2, embed_dim=32, heads=2, image_px=28, grad_checkpointing=is_checkpointed
        )
        backbone = build_backbone(config).train()
        backbone(images).class_token.square().sum().backward()
        gradients.append(backbone.vit.blocks[0].attn.qkv.weight.grad)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6)


def test_weights_of_another_image_size_are_interpolated() -> None:
    small = build_backbone(TINY)
    large = build_backbone(BackboneConfig(arch="custom", depth=2, embed_dim=32, heads=2, image_px=56))
    load_weights(large, dict(small.vit.state_dict()), "a test")
    assert large.vit.pos_embed.shape == (1, 16, 32)
    assert torch.equal(large.vit.blocks[1].mlp.fc1.weight, small.vit.blocks[1].mlp.fc1.weight)
    mean = small.vit.pos_embed.mean(1)
    assert torch.allclose(large.vit.pos_embed.mean(1), mean, atol=0.02)


def test_weights_of_another_architecture_are_refused() -> None:
    other = build_backbone(BackboneConfig(arch="custom", depth=3, embed_dim=32, heads=2, image_px=28))
    with pytest.raises(BackboneError, match=r"another architecture: .* first 'blocks.2"):
        load_weights(build_backbone(TINY), dict(other.vit.state_dict()), "a test")


def test_any_plain_timm_vit_is_taken_by_name() -> None:
    backbone = build_backbone(BackboneConfig(arch="timm", timm_name="vit_tiny_patch16_224", image_px=64))
    assert backbone(torch.zeros(1, 3, 64, 64)).patch_tokens.shape == (1, 16, 192)
    assert n_parameters(backbone) == n_parameters(
        timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64)
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"arch": "vit_small", "image_px": 225}, "multiple of the patch of 14 px"),
        ({"arch": "custom", "embed_dim": 97, "image_px": 28}, "97 cannot be shared by 4 heads"),
        ({"arch": "timm"}, "timm_name goes with"),
    ],
)
def test_impossible_shapes_are_refused_in_a_sentence(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BackboneConfig(**fields)  # type: ignore[arg-type]


def test_paths_are_dropped_more_often_towards_the_last_block_and_only_where_there_are_some() -> None:
    three = BackboneConfig(arch="custom", depth=3, embed_dim=32, heads=2, image_px=28, drop_path=0.2)
    blocks = build_backbone(three).vit.blocks
    assert [block.drop_path2.drop_prob for block in blocks] == pytest.approx([0.0, 0.1, 0.2])
    with pytest.raises(BackboneError, match=r"drop_path needs blocks"):
        set_drop_path(torch.nn.Identity(), 0.2)


def test_an_unknown_timm_name_is_refused() -> None:
    with pytest.raises(BackboneError, match="timm has no model 'vit_nonsense'"):
        build_backbone(BackboneConfig(arch="timm", timm_name="vit_nonsense"))


@pytest.fixture
def pair() -> StudentTeacher:
    torch.manual_seed(0)
    backbone = build_backbone(TINY)
    return StudentTeacher(Network(backbone, ProjectionHead(32, HeadConfig(prototypes=16))))


def test_one_ema_step_is_the_formula(pair: StudentTeacher) -> None:
    with torch.no_grad():
        for parameter in pair.student.parameters():
            parameter.add_(1.0)
    before = [p.clone() for p in pair.teacher.parameters()]
    pair.update_teacher(0.9)
    for old, student, new in zip(before, pair.student.parameters(), pair.teacher.parameters(), strict=True):
        assert torch.allclose(new, 0.9 * old + 0.1 * student, atol=1e-6)


def test_the_teacher_gets_no_gradient_and_stays_in_evaluation(pair: StudentTeacher) -> None:
    pair.train()
    assert pair.student.training
    assert not pair.teacher.training
    assert not any(p.requires_grad for p in pair.teacher.parameters())


def test_the_head_stays_in_float32_under_autocast(pair: StudentTeacher) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = pair.student(torch.randn(2, 3, 3, 28, 28))
    assert output.logits.dtype == torch.float32
    assert output.logits.shape == (2, 3, 16)
