"""Every setting of objective and optimizer changes what a run learns: none is read and then ignored."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import torch

from models.backbone import build_backbone
from models.config import ObjectiveConfig
from pipelines.command.config import load_recipe
from pipelines.training.config import OptimConfig, PretrainConfig
from pipelines.training.trainer import Trainer
from transforms.views.batch import Views

UPDATES = 3
SMALL = {
    "steps": UPDATES,
    "batch_size": 4,
    "backbone": {"arch": "custom", "depth": 1, "embed_dim": 16, "heads": 2, "image_px": 28},
    "head": {"prototypes": 32},
    "views": {"size_px": 28},
    "optim": {"warmup_steps": 0, "lr": 1e-2},
}
WITHOUT_VIEWS = {"objective.kind": "mae", "objective.gram_weight": "0", "objective.koleo_weight": "0"}
# Each setting with another value, and what else must be set for it to count.
SETTINGS: dict[str, tuple[str, dict[str, str]]] = {
    "objective.kind": ("simclr", {}),
    "objective.pool": ("roi", {"views.center": "point"}),
    "objective.gram_weight": ("0.5", {}),
    "objective.gram_registers": ("true", {}),
    "objective.koleo_weight": ("0.2", {}),
    "objective.koleo_on": ("class_token", {}),
    "objective.student_temp": ("0.2", {}),
    "objective.center": ("sinkhorn", {}),
    "objective.center_momentum": ("0.5", {}),
    "objective.simclr_temp": ("0.2", {"objective.kind": "simclr"}),
    "objective.ibot_weight": ("1.0", {}),
    "objective.ibot_mask": ("[0.7, 0.8]", {"objective.ibot_weight": "1.0"}),
    "objective.ibot_mask_shape": (
        "blocks",
        {"objective.ibot_weight": "1.0", "objective.ibot_mask": "[0.8, 0.9]"},
    ),
    "objective.mae_mask": ("0.4", WITHOUT_VIEWS),
    "objective.mae_target": ("hu", WITHOUT_VIEWS | {"views.window.policy": "full"}),
    "optim.lr": ("1e-3", {}),
    "optim.min_lr": ("1e-3", {}),
    "optim.warmup_steps": ("1", {}),
    "optim.weight_decay": ("0.5", {}),
    "optim.weight_decay_end": ("0.5", {}),
    "optim.decay_everything": ("true", {}),
    "optim.ema_momentum": ("0.5", {}),
    "optim.ema_momentum_end": ("0.5", {}),
    "optim.teacher_temp": ("0.1", {"optim.teacher_temp_warmup_steps": "2"}),
    "optim.teacher_temp_start": ("0.1", {"optim.teacher_temp_warmup_steps": "2"}),
    "optim.teacher_temp_warmup_steps": ("2", {"optim.teacher_temp_start": "0.1"}),
    "optim.frozen_steps": ("2", {}),
    "optim.layer_decay": ("0.5", {}),
    "optim.clip_norm": ("0.01", {}),
}


def learned(settings: dict[str, str]) -> torch.Tensor:
    """All weights of student and teacher after three updates on views of noise, in one row."""
    config = load_recipe(PretrainConfig, SMALL, list(settings.items()))
    torch.manual_seed(0)
    trainer = Trainer(config, torch.device("cpu"), build_backbone(config.backbone))
    views = noise()
    for _ in range(UPDATES):
        trainer.update(views)
    return torch.cat([tensor.flatten() for tensor in trainer.networks.state_dict().values()])


def noise() -> Iterator[Views]:
    draw = torch.Generator().manual_seed(0)
    while True:
        views = torch.randn(2, 4, 3, 28, 28, generator=draw)
        outside = torch.zeros(2, 4, dtype=torch.bool)
        yield Views(views, None, torch.ones(2, 4, 3), torch.ones(2, 4), outside, torch.zeros(2, 4, 2))


def test_no_setting_is_left_out_here() -> None:
    named = {f"objective.{field.name}" for field in fields(ObjectiveConfig)}
    named |= {f"optim.{field.name}" for field in fields(OptimConfig)}
    assert set(SETTINGS) == named


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_changes_what_is_learned(name: str) -> None:
    value, needed = SETTINGS[name]
    plain = learned(needed)
    assert torch.equal(plain, learned(needed))
    assert not torch.equal(plain, learned(needed | {name: value}))


def test_views_of_a_timm_network_are_made_smaller_to_a_multiple_of_its_patch() -> None:
    timm = {"arch": "timm", "timm_name": "vit_small_patch16_dinov3", "image_px": 70}
    config = load_recipe(PretrainConfig, {"backbone": timm, "views": {"size_px": 70}})
    assert (config.views.size_px, config.backbone.image_px) == (64, 64)
    custom = load_recipe(
        PretrainConfig, {"backbone": {"arch": "custom", "image_px": 70}, "views": {"size_px": 70}}
    )
    assert (custom.views.size_px, custom.backbone.image_px) == (70, 70)


@pytest.mark.parametrize("objective", [{"ibot_weight": 1.0}, {"kind": "simclr"}, {"kind": "mae"}])
def test_a_vit_with_rotary_positions_learns_by_every_objective(objective: dict[str, Any]) -> None:
    small = {
        "timm_name": "vit_small_patch16_dinov3",
        "timm_args": '{"depth": 2, "embed_dim": 24, "num_heads": 2}',
    }
    plain = {"gram_weight": 0.0, "koleo_weight": 0.0}
    tree = SMALL | {"backbone": {"arch": "timm", "image_px": 32} | small, "objective": plain | objective}
    config = load_recipe(PretrainConfig, tree | {"views": {"size_px": 32}})
    torch.manual_seed(0)
    trainer = Trainer(config, torch.device("cpu"), build_backbone(config.backbone))
    before = {name: one.clone() for name, one in trainer.networks.state_dict().items()}
    views = torch.randn(2, 4, 3, 32, 32)
    outside = torch.zeros(2, 4, dtype=torch.bool)
    for _ in range(2):
        trainer.update(
            iter([Views(views, None, torch.ones(2, 4, 3), torch.ones(2, 4), outside, torch.zeros(2, 4, 2))])
        )
    for name in ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "reg_token", "blocks.1.gamma_2"):
        after = trainer.networks.state_dict()[f"student.backbone.vit.{name}"]
        assert after.isfinite().all()
        assert not torch.equal(after, before[f"student.backbone.vit.{name}"]), name
