"""Stage g: a checkpoint of a CPU goes on on the card, and back."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import torch

from benchmarks.gpu.figures import Figure
from benchmarks.gpu.stages import Setting
from benchmarks.gpu.timing import Arm, noise
from pipelines.training.checkpoint import load_checkpoint, save_checkpoint
from pipelines.training.trainer import Trainer

_ARM = Arm("tiny", "vit_small", 4, (("precision", "fp32"), ("optim.warmup_steps", "0")))
CPU = torch.device("cpu")
_AGREE = 1e-3


def measure(setting: Setting) -> Iterator[Figure]:
    """Three updates on the CPU, two on the device, one on the CPU, beside six on the CPU."""
    plain = _trainer(CPU, setting)
    alone = [_update(plain) for _ in range(6)]
    at = _trainer(CPU, setting)
    moved = [_update(at) for _ in range(3)]
    with tempfile.TemporaryDirectory(prefix="dinox-bench-") as folder:
        at = _moved(at, _trainer(setting.device, setting), Path(folder))
        moved += [_update(at) for _ in range(2)]
        moved += [_update(_moved(at, _trainer(CPU, setting), Path(folder)))]
    far = max(abs(a - b) / abs(a) for a, b in zip(alone, moved, strict=True))
    note = "largest relative difference of the loss of six updates, float32"
    yield Figure("CPU, card and CPU beside CPU alone", far, "", note)
    if far > _AGREE:
        raise AssertionError(f"a moved run differs by {far:.2g} of its loss, {_AGREE} is rounding")


def _trainer(device: torch.device, setting: Setting) -> Trainer:
    return _ARM.trainer(replace(setting, is_rehearsal=True, device=device))


def _moved(source: Trainer, target: Trainer, folder: Path) -> Trainer:
    tensors, facts = source.state()
    save_checkpoint(folder, source.step, tensors, facts)
    checkpoint = load_checkpoint(folder)
    assert checkpoint is not None
    target.restore(checkpoint)
    return target


def _update(trainer: Trainer) -> float:
    # Noise of one device's generator is not that of another: all take the CPU's.
    views = noise(trainer.config, CPU)
    trainer.sums, trainer.summed = {}, 0
    trainer.update(repeat(views))
    return float(trainer.sums["loss/total"])
