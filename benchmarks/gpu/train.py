"""Train on what is left of a lease, and keep what comes back small: `python -m benchmarks.gpu --train MINUTES`.

The loop is the trainer's; MLflow and MONAI need not be there. Weights are written in bfloat16, in parts that are small
enough to be carried, with all that `collect` needs to make backbones of them on another machine.
"""

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.gpu.timing import WARM_UP, settle
from models.backbone import build_backbone
from pipelines.cohort.folder import Cohort
from pipelines.cohort.identity import ids_of
from pipelines.cohort.slices import SliceIndex
from pipelines.command.config import find_recipe, load_recipe, nested, read_yaml
from pipelines.training.config import PretrainConfig
from pipelines.training.indexing import indexed
from pipelines.training.loader import BatchPlan, MicroBatches, stream_batches
from pipelines.training.patients import divide_patients
from pipelines.training.trainer import Trainer

PART_BYTES, MOST_FILES, MOST_BYTES = 15_000_000, 8, 60_000_000
_TIMED = 20
_SAFETY = 0.9
"""Of the time, for updates; the rest is for starting, and for machines that slow down."""


class Arm(NamedTuple):
    """A recipe, what differs from it, and its share of the time."""

    name: str
    recipe: str
    overrides: tuple[tuple[str, str], ...]
    share: float


_LARGER = (("backbone.embed_dim", "384"), ("backbone.depth", "12"), ("backbone.heads", "6"))
ARMS = (
    Arm("nodule_mae_hu", "nodule_mae_hu", (("batch_size", "256"),), 0.2),
    Arm("nodule_simclr_hu", "nodule_simclr", (("batch_size", "256"), ("views.window.policy", "full")), 0.2),
    Arm("nodule_mae_hu_vit_small", "nodule_mae_hu", (*_LARGER, ("batch_size", "256")), 0.6),
)
"""Written down before any of them was run on a GPU; probed afterwards on the half that they did not see."""


def train(
    minutes: float, cohort_root: Path, folder: Path, device: torch.device, arms: tuple[Arm, ...] = ARMS
) -> None:
    """Train every arm for its share of the minutes; each is on disk before the next begins.

    Raises:
        CohortError: If `cohort_root` is no cohort, or has no slice to train on.
    """
    cohort = Cohort.open(cohort_root)
    folder.mkdir(parents=True, exist_ok=True)
    for arm in arms:
        seconds = minutes * 60 * arm.share
        train_one(arm, cohort, seconds, folder, device)


def train_one(arm: Arm, cohort: Cohort, seconds: float, folder: Path, device: torch.device) -> None:
    """Time a few updates, plan as many as fit into the seconds, train and write the teacher."""
    start = time.monotonic()
    tree = read_yaml(find_recipe(arm.recipe))
    config = load_recipe(PretrainConfig, tree, arm.overrides)
    patients = divide_patients(cohort, config)
    index = indexed(config, cohort, patients.train, is_training=True)
    first = _trainer(config, device)
    each = _seconds_each(first, index, config)
    left = seconds - (time.monotonic() - start)
    config = replace(config, steps=max(WARM_UP, math.floor(left * _SAFETY / each)))
    trainer = _trainer(config, device)
    with (folder / f"{arm.name}.jsonl").open("w", encoding="utf-8") as log:
        batches = _batches(trainer, index, config)
        while trainer.step < config.steps:
            trainer.update(batches)
            if trainer.step % config.log_every == 0 or trainer.step == config.steps:
                metrics, verdict = trainer.report()
                log.write(json.dumps({"step": trainer.step, "verdict": verdict, **metrics}) + "\n")
                log.flush()
                print(f"{arm.name} {trainer.step} of {config.steps}: {verdict}", flush=True)
    record = {
        "recipe": arm.recipe,
        "cohort_sha": cohort.sha256,
        "holdout": config.holdout,
        "leak": patients.leak,
        "trained_on": ids_of(cohort, patients.train),
        "seed": config.seed,
        "steps": trainer.step,
        "mm_per_pixel": trainer.scale_mm,
        "mm_per_slice": trainer.slice_mm,
        "window_policy": config.views.window.policy,
        "hu_scale": config.views.window.hu_scale,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
    }
    write_parts(arm.name, trainer.networks.teacher.backbone.vit.state_dict(), record, config, folder)


def write_parts(
    name: str, state: dict[str, Tensor], record: dict[str, Any], config: PretrainConfig, folder: Path
) -> None:
    """Write weights as bfloat16 in parts of at most `PART_BYTES`, and last the record that names them."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, tensor in state.items():
        small = tensor.detach().to("cpu", torch.bfloat16 if tensor.is_floating_point() else tensor.dtype)
        bytes_ = small.numel() * small.element_size()
        if size + bytes_ > PART_BYTES and parts[-1]:
            parts.append({})
            size = 0
        parts[-1][key] = small.contiguous()
        size += bytes_
    files = [f"{name}-{number}.safetensors" for number in range(1, len(parts) + 1)]
    for file, part in zip(files, parts, strict=True):
        save_file(part, folder / file)
    tree = {"record": record, "config": nested(config), "parts": files}
    (folder / f"{name}.json").write_text(json.dumps(tree, indent=1, default=str), encoding="utf-8")


def _trainer(config: PretrainConfig, device: torch.device) -> Trainer:
    torch.manual_seed(config.seed)
    return Trainer(config, device, build_backbone(config.backbone))


def _batches(trainer: Trainer, index: SliceIndex, config: PretrainConfig) -> Iterator[Any]:
    on_cpu = trainer.device.type == "cpu"
    plan = BatchPlan(len(index), config.batch_size, config.accumulation, config.seed)
    data = MicroBatches(index, plan, config.views, config.seed, render=on_cpu)
    workers = 0 if on_cpu else max(1, min(12, (os.cpu_count() or 2) - 2))
    last = max(config.steps, WARM_UP + _TIMED)
    return stream_batches(data, 0, last, workers, pin=not on_cpu)


def _seconds_each(trainer: Trainer, index: SliceIndex, config: PretrainConfig) -> float:
    batches = _batches(trainer, index, config)
    for _ in range(WARM_UP):
        trainer.update(batches)
    settle(trainer.device)
    start = time.perf_counter()
    for _ in range(_TIMED):
        trainer.update(batches)
    settle(trainer.device)
    return (time.perf_counter() - start) / _TIMED
