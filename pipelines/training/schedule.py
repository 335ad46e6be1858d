"""Every number that changes with time, as a pure function of the step (optimizer updates)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """AdamW and its schedules; steps are optimizer updates."""

    lr: float = 2e-4
    min_lr: float = 1e-6
    warmup_steps: int = 2500
    """Linear warm-up, then cosine to `min_lr` at the last step; at most half of the run."""
    weight_decay: float = 0.04
    weight_decay_end: float = 0.04
    decay_everything: bool = False
    """Decay biases, norms, tokens and positions too, as plain AdamW over all parameters does."""
    ema_momentum: float = 0.996
    ema_momentum_end: float = 0.996
    teacher_temp: float = 0.04
    teacher_temp_start: float = 0.04
    teacher_temp_warmup_steps: int = 0
    clip_norm: float = 0.0
    """Largest gradient norm; 0 leaves gradients as they are."""

    def __post_init__(self) -> None:
        """Refuse rates and momenta that cannot be."""
        if not self.lr > 0 or not 0 <= self.min_lr <= self.lr:
            raise ValueError(
                f"lr must be above 0 and min_lr between 0 and lr, got {self.lr} and {self.min_lr}"
            )
        if min(self.teacher_temp, self.teacher_temp_start) <= 0:
            raise ValueError("teacher temperatures must be above 0")
        if not (0 <= self.ema_momentum <= 1 and 0 <= self.ema_momentum_end <= 1):
            raise ValueError(
                f"ema_momentum must lie in [0, 1], got {self.ema_momentum} .. {self.ema_momentum_end}"
            )
        if min(self.warmup_steps, self.teacher_temp_warmup_steps, self.clip_norm) < 0:
            raise ValueError("warm-up steps and clip_norm cannot be negative; 0 leaves them out")


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
