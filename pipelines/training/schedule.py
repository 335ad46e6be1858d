"""Schedules: every number that changes during training, as a pure function of the step (optimizer updates)."""

import math
from typing import NamedTuple

import torch
from torch import nn

from pipelines.training.config import OptimConfig


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
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            is_token = parameter.ndim < 2 or name.endswith(("_token", "pos_embed", "positions"))
            (free if is_token and not config.decay_everything else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay, "is_decayed": True},
        {"params": free, "weight_decay": 0.0, "is_decayed": False},
    ]
    fused = bool(decayed) and decayed[0].is_cuda
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.lr, fused=fused)


def set_groups(optimizer: torch.optim.Optimizer, now: Moment) -> None:
    """Write the learning rate and weight decay of a step into the optimizer."""
    for group in optimizer.param_groups:
        group["lr"] = now.lr
        if group["is_decayed"]:
            group["weight_decay"] = now.weight_decay
