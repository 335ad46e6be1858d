"""One training update of ViT-S on the CPU: bfloat16 against float32, and what the loop costs beside the arithmetic.

Updates of triplets are those of recipe `vit_small` with small batches read from a cohort, so everything that does not
shrink with the batch (the moving average, logging) weighs more here than in a real run. Cubes are of noise: what
reading them costs is measured in `cubes`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import repeat
from statistics import median
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.chest_cohort import chest_cohort
from benchmarks.timing import ROUNDS, Row, one_thread
from models.backbone import build_backbone
from pipelines.command.config import find_recipe, load_recipe, read_yaml
from pipelines.tracking.names import Tag
from pipelines.tracking.run import Run
from pipelines.tracking.store import STORE_ENV
from pipelines.training.config import PretrainConfig
from pipelines.training.loader import BatchPlan, MicroBatches, stream_batches
from pipelines.training.trainer import Trainer
from transforms.views.batch import Views

BATCH = 4
Seconds = dict[str, float]


def measure(tiny: bool = False) -> Iterator[Row]:
    """Make updates of both precisions in turn, each with a clock on its parts."""
    with one_thread():
        trainings = {name: Training(name, tiny) for name in ("fp32", "bf16")}
        updates: dict[str, list[Seconds]] = {name: [] for name in trainings}
        for training in trainings.values():
            training.update()
        for _ in range(1 if tiny else ROUNDS):
            for name, training in trainings.items():
                updates[name].append(training.update())
        logging_s = trainings["bf16"].logging_seconds()
    whole = {name: median(parts["update"] for parts in rounds) for name, rounds in updates.items()}
    has_units = torch.cpu._is_amx_tile_supported()
    yield Row(
        f"update of ViT-S/14 in bf16, {BATCH} x 2 views of 224 px, one core",
        whole["fp32"] / whole["bf16"],
        ">= 2.2",
        f"times the rate in fp32 ({whole['fp32']:.2f} : {whole['bf16']:.2f} s)",
        "" if has_units else "AMX",
    )
    for name, rounds in updates.items():
        log_every = trainings[name].config.log_every
        watching = [(p["watch"] + logging_s / log_every) / p["update"] for p in rounds]
        rest = [1 - (p["forward"] + p["backward"] + p["optimizer"]) / p["update"] for p in rounds]
        yield Row(
            f"loop beside the arithmetic, {name}", median(rest), "<= 0.05", "of an update, data included"
        )
        yield Row(
            f"watching and logging, {name}",
            median(watching),
            "<= 0.03",
            f"of an update; one log in {log_every} updates takes {logging_s * 1e3:.0f} ms",
        )

    yield from _cubes(tiny)


def _cubes(tiny: bool) -> Iterator[Row]:
    """Make updates of a 3D network in both precisions in turn."""
    px = 16 if tiny else 64
    tree = read_yaml(find_recipe("vit_small_3d")) | {"batch_size": BATCH}
    tree["backbone"] |= {"image_px": px, "image_depth_px": px}
    tree["views"] |= {"size_px": px, "depth_px": px, "n_local": 0, "local_depth_px": 0}
    if tiny:
        tree["backbone"] |= {"arch": "custom", "depth": 1}
    noise = torch.randn(2, BATCH, 1, px, px, px, generator=torch.Generator().manual_seed(0))
    views = Views(
        global_views=noise,
        local_views=None,
        spacing_mm=torch.ones(2, BATCH, 3),
        mm_per_pixel=torch.ones(2, BATCH),
        outside_body=torch.zeros(2, BATCH, dtype=torch.bool),
        window_hu=torch.zeros(2, BATCH, 2),
    )
    seconds: dict[str, list[float]] = {"fp32": [], "bf16": []}
    with one_thread():
        trainers = {}
        for precision in seconds:
            config = load_recipe(PretrainConfig, tree | {"precision": precision})
            torch.manual_seed(0)
            trainers[precision] = Trainer(config, torch.device("cpu"), build_backbone(config.backbone))
            trainers[precision].update(repeat(views))
        for _ in range(1 if tiny else ROUNDS):
            for precision, trainer in trainers.items():
                start = process_time()
                trainer.update(repeat(views))
                seconds[precision].append(process_time() - start)
    fp32, bf16 = (median(seconds[precision]) for precision in ("fp32", "bf16"))
    yield Row(
        f"update of a 3D ViT-S/8 in bf16, {BATCH} x 2 cubes of {px} voxels, one core",
        fp32 / bf16,
        ">= 2",
        f"times the rate in fp32 ({fp32:.2f} : {bf16:.2f} s)",
        "" if torch.cpu._is_amx_tile_supported() else "AMX",
    )


class Training:
    """A run of `vit_small` in one precision, fed from the cohort of synthetic chests."""

    def __init__(self, precision: str, tiny: bool = False) -> None:
        """Build networks and the stream of batches."""
        tree = read_yaml(find_recipe("vit_small")) | {"batch_size": BATCH, "precision": precision}
        if tiny:
            tree |= {"backbone": {"arch": "custom", "depth": 1, "image_px": 28}, "views": {"size_px": 28}}
        self.config = load_recipe(PretrainConfig, tree)
        torch.manual_seed(0)
        self.trainer = Trainer(self.config, torch.device("cpu"), build_backbone(self.config.backbone))
        index = chest_cohort(tiny).index
        plan = BatchPlan(len(index), BATCH, self.config.accumulation, seed=0)
        data = MicroBatches(index, plan, self.config.views, seed=0, render=True)
        self.batches = stream_batches(data, 0, self.config.steps, workers=0, pin=False)

    def update(self) -> Seconds:
        """Make one update; return its processor seconds and those of its parts."""
        seconds: Seconds = {}
        with (
            clocked(self.trainer, "_forward", "forward", seconds),
            clocked(torch.Tensor, "backward", "backward", seconds),
            clocked(self.trainer.optimizer, "step", "optimizer", seconds),
            clocked(self.trainer, "_note", "watch", seconds),
        ):
            start = process_time()
            self.trainer.update(self.batches)
            seconds["update"] = process_time() - start
        return seconds

    def logging_seconds(self) -> float:
        """Median processor seconds of one report written to an MLflow store in sqlite, as the loop does it."""
        seconds = []
        with TemporaryDirectory(prefix="dinox-bench-") as folder:
            with patch.dict(os.environ, {STORE_ENV: f"sqlite:///{folder}/mlflow.db"}):
                run = Run.start("pretrain")
                for _ in range(3):
                    self.update()
                    start = process_time()
                    metrics, verdict = self.trainer.report()
                    run.log_metrics(metrics, self.trainer.step)
                    run.set_tags({Tag.STATUS: verdict})
                    seconds.append(process_time() - start)
        return median(seconds)


@contextmanager
def clocked(owner: Any, name: str, label: str, seconds: Seconds) -> Iterator[None]:
    """Add the processor time of a method to `seconds[label]`."""
    method: Callable[..., Any] = getattr(owner, name)

    def timed(*arguments: Any, **named: Any) -> Any:
        start = process_time()
        try:
            return method(*arguments, **named)
        finally:
            seconds[label] = seconds.get(label, 0.0) + process_time() - start

    with patch.object(owner, name, timed):
        yield
