"""Stage c: whole updates of the article's two networks on batches that are already on the card."""

import time
from collections.abc import Iterator

import torch

from benchmarks.gpu.arithmetic import HOPPER_BF16_FLOPS, update_flops
from benchmarks.gpu.ceilings import PRODUCT
from benchmarks.gpu.figures import Figure, found
from benchmarks.gpu.stages import Setting
from benchmarks.gpu.timing import Arm, emptied, peak_gb, seconds_each, shape_of, updates_of
from pipelines.training.trainer import Trainer

_KEEPS = (("backbone.grad_checkpointing", "false"),)
_COMPILED = (("compile", "true"),)
ARMS = (
    Arm("ViT-S/14, batch 64", "vit_small", 64),
    Arm("ViT-S/14, batch 256", "vit_small", 256),
    Arm("ViT-L/14, batch 16", "vit_large", 16),
    Arm("ViT-L/14, batch 64", "vit_large", 64, _KEEPS),
    Arm("ViT-L/14, batch 64, gradient checkpointing", "vit_large", 64),
)
COMPILED = (
    Arm("ViT-S/14, batch 256, compiled", "vit_small", 256, _COMPILED),
    Arm("ViT-L/14, batch 64, compiled", "vit_large", 64, (*_KEEPS, *_COMPILED)),
)
RATE = "{}: samples a second"
_COMPILING_S = 45
"""Allowed for compiling; an arm is left out when the budget has less."""


def measure(setting: Setting) -> Iterator[Figure]:
    """Samples a second, share of peak and memory of each arm; one that does not fit does not stop the rest."""
    for arm in ARMS:
        yield from measured(arm, setting)
    for arm in COMPILED:
        if setting.has_left(_COMPILING_S):
            yield from measured(arm, setting)
        else:
            yield Figure(RATE.format(arm.name), None, "1/s", "no time left in this stage's budget")


def measured(arm: Arm, setting: Setting) -> Iterator[Figure]:
    """Figures of one arm; a sample is one slice with its views."""
    emptied(setting.device)
    try:
        start = time.perf_counter()
        trainer = arm.trainer(setting)
        update = updates_of(trainer)
        update()
        first_s = time.perf_counter() - start
        seconds = seconds_each(update, setting)
        trainer.report()  # Raises if a loss was not finite: such a figure would be of no training.
    except torch.cuda.OutOfMemoryError:
        yield Figure(RATE.format(arm.name), None, "1/s", "out of memory")
        return
    yield from _figures(arm, trainer, seconds, setting)
    if trainer.config.compile:
        yield Figure(f"{arm.name}: first update", first_s, "s", "compiling included")
    if (gb := peak_gb(setting.device)) is not None:
        yield Figure(f"{arm.name}: memory", gb, "GB", "largest that tensors took")


def _figures(arm: Arm, trainer: Trainer, seconds: float, setting: Setting) -> Iterator[Figure]:
    rate = trainer.config.batch_size / seconds
    yield Figure(RATE.format(arm.name), rate, "1/s", f"{seconds * 1e3:.1f} ms an update")
    if trainer.config.views.n_local or not hasattr(trainer.networks.student.backbone.vit, "blocks"):
        return
    shape = shape_of(trainer.networks.student.backbone)
    flops = update_flops(shape, trainer.config.head.prototypes) * rate
    yield Figure(f"{arm.name}: MFU", flops / HOPPER_BF16_FLOPS, "", f"{flops / 1e12:.0f} of 989 TFLOP/s")
    if product := found(setting.earlier, "b", PRODUCT):
        yield Figure(f"{arm.name}: share of the measured product", flops / 1e12 / product)
