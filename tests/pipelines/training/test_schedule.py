"""Schedules are functions of the step; the optimizer decays matrices alone."""

import math

import pytest
import torch

from models.backbone import build_backbone
from models.config import BackboneConfig, HeadConfig
from models.student_teacher import Network, ProjectionHead
from pipelines.command.config import RecipeError, load_recipe
from pipelines.training.config import OptimConfig
from pipelines.training.schedule import build_optimizer, lr_scales, moment, set_groups


def test_the_rate_warms_up_linearly_and_falls_as_a_cosine() -> None:
    config = OptimConfig(lr=1e-3, min_lr=1e-5, warmup_steps=10)
    assert moment(config, 0, 111).lr == pytest.approx(1e-4)
    assert moment(config, 9, 111).lr == pytest.approx(1e-3)
    assert moment(config, 10, 111).lr == pytest.approx(1e-3)
    halfway = moment(config, 60, 111).lr
    assert halfway == pytest.approx((1e-3 + 1e-5) / 2)
    assert moment(config, 110, 111).lr == pytest.approx(1e-5)
    quarter = 1e-5 + (1e-3 - 1e-5) * 0.5 * (1 + math.cos(math.pi / 4))
    assert moment(config, 35, 111).lr == pytest.approx(quarter)


def test_a_warm_up_is_as_long_as_it_says_and_at_most_half_of_the_run() -> None:
    config = OptimConfig(lr=1.0, min_lr=0.0, warmup_steps=2500)
    assert moment(config, 1249, 10_000).lr == pytest.approx(0.5)
    assert moment(config, 2499, 10_000).lr == pytest.approx(1.0)
    assert moment(config, 24, 100).lr == pytest.approx(0.5)
    assert moment(config, 49, 100).lr == pytest.approx(1.0)


def test_the_teacher_temperature_rises_to_its_end_and_stays() -> None:
    config = OptimConfig(teacher_temp=0.07, teacher_temp_start=0.04, teacher_temp_warmup_steps=30)
    assert [moment(config, s, 100).teacher_temp for s in (0, 15, 30, 99)] == pytest.approx(
        [0.04, 0.055, 0.07, 0.07]
    )


def test_momentum_and_decay_move_between_their_ends() -> None:
    config = OptimConfig(ema_momentum=0.99, ema_momentum_end=1.0, weight_decay=0.04, weight_decay_end=0.4)
    first, last = moment(config, 0, 50), moment(config, 49, 50)
    assert (first.ema_momentum, last.ema_momentum) == pytest.approx((0.99, 1.0))
    assert (first.weight_decay, last.weight_decay) == pytest.approx((0.04, 0.4))


@pytest.fixture
def backbone() -> torch.nn.Module:
    return build_backbone(BackboneConfig(arch="custom", depth=1, embed_dim=16, heads=2, image_px=28))


def test_biases_norms_tokens_and_positions_do_not_decay(backbone: torch.nn.Module) -> None:
    optimizer = build_optimizer([backbone], OptimConfig())
    names = {id(p): name for name, p in backbone.named_parameters()}
    decayed = {names[id(p)] for p in optimizer.param_groups[0]["params"]}
    assert decayed == {name for name in names.values() if name.endswith("weight") and "norm" not in name}
    free = {names[id(p)] for p in optimizer.param_groups[1]["params"]}
    assert {"vit.cls_token", "vit.reg_token", "vit.pos_embed", "vit.norm.bias"} <= free
    now = moment(OptimConfig(weight_decay=0.3, weight_decay_end=0.3), 5, 10)
    set_groups(optimizer, now)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert {group["lr"] for group in optimizer.param_groups} == {now.lr}


def test_everything_decays_when_asked(backbone: torch.nn.Module) -> None:
    optimizer = build_optimizer([backbone], OptimConfig(decay_everything=True))
    assert len(optimizer.param_groups) == 1
    assert len(optimizer.param_groups[0]["params"]) == len(list(backbone.parameters()))


def test_with_layer_decay_each_block_learns_faster_than_the_one_before() -> None:
    deep = build_backbone(BackboneConfig(arch="custom", depth=3, embed_dim=16, heads=2, image_px=28))
    network = Network(deep, ProjectionHead(16, HeadConfig(prototypes=4)))
    optimizer = build_optimizer([network], OptimConfig(layer_decay=0.5))
    set_groups(optimizer, moment(OptimConfig(lr=1.0, min_lr=1.0, warmup_steps=0), 0, 10))
    names = {id(p): name for name, p in network.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert set(rates) == set(names.values())
    stem = ("cls_token", "pos_embed", "reg_token", "patch_embed.proj.weight", "patch_embed.proj.bias")
    assert {rates[f"backbone.vit.{name}"] for name in stem} == {0.5**4}
    for block, rate in enumerate((0.125, 0.25, 0.5)):
        own = {value for name, value in rates.items() if f".blocks.{block}." in name}
        assert own == {rate}
    last = {value for name, value in rates.items() if name.startswith(("head.", "backbone.vit.norm."))}
    assert last == {1.0}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"lr": 0.0}, "'lr' was given 0.0: input should be greater than 0"),
        ({"layer_decay": 0.0}, "'layer_decay' was given 0.0: input should be greater than 0"),
        ({"min_lr": -0.1}, "'min_lr' was given -0.1: input should be greater than or equal to 0"),
        ({"min_lr": 0.1}, "min_lr cannot be above lr, got 0.1 and 0.0002"),
        ({"teacher_temp": 0.0}, "'teacher_temp' was given 0.0"),
        ({"teacher_temp_start": -1.0}, "'teacher_temp_start' was given -1.0"),
        ({"ema_momentum": 1.1}, "'ema_momentum' was given 1.1: input should be less than or equal to 1"),
        ({"ema_momentum_end": -0.1}, "'ema_momentum_end' was given -0.1"),
        ({"clip_norm": -1.0}, "'clip_norm' was given -1.0"),
    ],
)
def test_impossible_rates_are_refused(fields: dict[str, float], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe(OptimConfig, fields)


def test_layer_decay_and_weight_decay_know_positions_along_z_and_spacing() -> None:
    backbone = build_backbone(
        BackboneConfig(arch="custom", depth=2, patch_px=4, image_px=12, image_depth_px=8, spacing="tokens")
    )
    names = [f"backbone.{name}" for name, _ in backbone.named_parameters()]
    scales = lr_scales(names, 0.5)
    for name in ("patch_embed.proj.weight", "patch_embed.z_pos_embed", "spacing_embed.out.weight"):
        assert scales[f"backbone.vit.{name}"] == 0.5**3, name
    optimizer = build_optimizer([backbone], OptimConfig(weight_decay=0.1))
    (kept,) = (group["params"] for group in optimizer.param_groups if not group["is_decayed"])
    assert any(one is backbone.vit.patch_embed.z_pos_embed for one in kept)
