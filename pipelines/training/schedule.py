"""Schedules: every number that changes during training, as a pure function of the step (optimizer updates)."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from pipelines.training.config import OptimConfig

_BLOCK = re.compile(r"\bvit\..*?\b(?:blocks|layers?)\.(\d+)\.")
_STEM = re.compile(r"\bvit\.(?!norm|fc_norm|layernorm|head)")


class Moment(NamedTuple):
    """The schedules at one step."""

    lr: float
    weight_decay: float
    ema_momentum: float
    teacher_temp: float


def moment(config: OptimConfig, step: int, steps: int) -> Moment:
    """Return every scheduled number at `step` of a run of `steps`."""
    warmup = min(config.warmup_steps, max(steps // 2, 1)) if config.warmup_steps else 0
    if step < warmup:
        lr = config.lr * (step + 1) / warmup
    else:
        lr = _cosine(config.lr, config.min_lr, (step - warmup) / max(steps - warmup - 1, 1))
    share = step / max(steps - 1, 1)
    temp_share = (
        min(step / config.teacher_temp_warmup_steps, 1.0) if config.teacher_temp_warmup_steps else 1.0
    )
    return Moment(
        lr=lr,
        weight_decay=_cosine(config.weight_decay, config.weight_decay_end, share),
        ema_momentum=_cosine(config.ema_momentum, config.ema_momentum_end, share),
        teacher_temp=config.teacher_temp_start
        + (config.teacher_temp - config.teacher_temp_start) * temp_share,
    )


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * min(share, 1.0)))


def build_optimizer(modules: list[nn.Module], config: OptimConfig) -> torch.optim.AdamW:
    """Build AdamW over trainable parameters: matrices decay; biases, norms, tokens and positions do not."""
    found: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for module in modules:
        named = {name: one for name, one in module.named_parameters() if one.requires_grad}
        for name, scale in lr_scales(list(named), config.layer_decay).items():
            is_token = named[name].ndim < 2 or name.endswith(("_token", "pos_embed", "positions"))
            is_decayed = not is_token or config.decay_everything
            found.setdefault((is_decayed, scale), []).append(named[name])
    groups: list[dict[str, Any]] = [
        {
            "params": found[is_decayed, scale],
            "weight_decay": config.weight_decay if is_decayed else 0.0,
            "is_decayed": is_decayed,
            "lr_scale": scale,
        }
        for is_decayed, scale in sorted(found, reverse=True)
    ]
    fused = groups[0]["params"][0].is_cuda
    return torch.optim.AdamW(groups, lr=config.lr, fused=fused)


def lr_scales(names: Sequence[str], layer_decay: float) -> dict[str, float]:
    """Return the factor on the learning rate of each parameter, by its depth, as BEiT does.

    Args:
        names: Of the parameters of one module, a backbone's as "vit.blocks.0.norm1.weight" or "backbone.vit.[...]".
        layer_decay: Factor of the last block, squared for the one before, and so on down to what comes before the
            blocks (patches, tokens, positions); the last norm, a head and all else have factor 1.
    """
    blocks = {name: _BLOCK.search(name) for name in names}
    depth = 1 + max((int(found[1]) for found in blocks.values() if found), default=-1)
    scales = {}
    for name, found in blocks.items():
        is_stem = _STEM.search(name) is not None
        above = depth - int(found[1]) if found else depth + 1 if is_stem else 0
        scales[name] = layer_decay**above
    return scales


def set_groups(optimizer: torch.optim.Optimizer, now: Moment) -> None:
    """Write the learning rate and weight decay of a step into the optimizer."""
    for group in optimizer.param_groups:
        group["lr"] = now.lr * group["lr_scale"]
        if group["is_decayed"]:
            group["weight_decay"] = now.weight_decay
