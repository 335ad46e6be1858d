"""Do bfloat16 and compilation preserve the gradient? Cosine with float32, tensor by tensor.

At the entropy wall every gradient is mostly rounding, so a network that has left it is measured: the small one of
recipe `wall`, on views that share so much that it learns within a few hundred updates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from benchmarks.timing import Row, one_thread
from models.backbone import build_backbone
from pipelines.command.config import find_recipe, load_recipe, read_yaml
from pipelines.phantom.wall_cohort import chest_slices
from pipelines.training.config import PretrainConfig
from pipelines.training.schedule import moment
from pipelines.training.trainer import Trainer
from transforms.views.batch import TripletBatch, Views, draw_views, render_views

UPDATES, SLICES, BATCHES = 300, 512, 3
EASY = (
    ("objective.center_momentum", "0.9"),
    ("objective.koleo_on", "class_token"),
    ("views.fraction", "[0.9, 1.0]"),
    ("views.shared_scale", "true"),
    ("optim.lr", "1e-3"),
    ("optim.warmup_steps", "20"),
    ("optim.ema_momentum", "0.99"),
    ("optim.ema_momentum_end", "0.99"),
)


def measure(tiny: bool = False) -> Iterator[Row]:
    """Train, then compare gradients on batches that were not trained on."""
    with one_thread():
        trainer, gain = learned(2 if tiny else UPDATES)
        unseen = [views for _, views in zip(range(BATCHES), views_of(trainer.config, seed=1), strict=False)]
        exact = [gradients(trainer, views) for views in unseen]
        ways: dict[str, dict[str, Any]] = {"bf16": {"precision": "bf16"}, "compiled fp32": {"compile": True}}
        if tiny:
            del ways["compiled fp32"]  # Compiling takes most of a minute.
        for name, changes in ways.items():
            worst = min(
                lowest_cosine(reference, gradients(trainer, views, **changes))
                for reference, views in zip(exact, unseen, strict=True)
            )
            yield Row(
                f"gradient in {name}, a network off the wall (G {gain:.2f} nats)",
                worst,
                ">= 0.99",
                f"cosine with fp32, lowest of all tensors in {BATCHES} batches",
            )


def learned(updates: int = UPDATES) -> tuple[Trainer, float]:
    """Train the small network off the wall; return its trainer and its gain G in nats."""
    config = load_recipe(PretrainConfig, read_yaml(find_recipe("wall")) | {"steps": updates}, EASY)
    torch.manual_seed(0)
    trainer = Trainer(config, torch.device("cpu"), build_backbone(config.backbone))
    trainer.watcher.config = replace(config.watch, window_samples=1024)
    batches = views_of(config, seed=0)
    for _ in range(updates):
        trainer.update(batches)
    metrics, _ = trainer.report()
    return trainer, metrics["teacher/gain"]


def views_of(config: PretrainConfig, seed: int) -> Iterator[Views]:
    """Yield batches of views of random synthetic slices without end."""
    slices = torch.from_numpy(chest_slices(SLICES))
    rng, size = np.random.default_rng(seed), config.batch_size
    for step in range(2**31):
        rows = torch.from_numpy(rng.choice(SLICES, size, replace=False))
        batch = TripletBatch(
            triplets_hu=slices[rows],
            size_hw=torch.tensor([slices.shape[2:]] * size),
            pixel_mm=torch.ones(size, 2),
            slice_mm=torch.ones(size),
            body=torch.ones(size, 32, 32, dtype=torch.uint8),
            sample_keys=rows,
            center_yx_px=torch.full((size, 2), float("nan")),
        )
        yield render_views(batch, draw_views(batch, config.views, seed, step), config.views)


def gradients(trainer: Trainer, views: Views, **changes: Any) -> dict[str, Tensor]:
    """Return the student's gradients on one batch, in a copy of the trainer whose configuration has `changes`."""
    config = replace(trainer.config, **changes)
    copy = Trainer(config, trainer.device, build_backbone(config.backbone))
    copy.networks.load_state_dict(trainer.networks.state_dict())
    copy.objective.load_state_dict(trainer.objective.state_dict())
    copy.networks.train()
    copy._forward(views, moment(config.optim, config.steps // 2, config.steps), part=0).total.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in copy.networks.student.named_parameters() if p.grad is not None}


def lowest_cosine(reference: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the cosine of the tensor that agrees least."""
    if reference.keys() != other.keys():
        raise ValueError("the two gradients are of different tensors")
    return min(float(cosine_similarity(g.flatten(), other[n].flatten(), dim=0)) for n, g in reference.items())
