"""Trainers on batches that are already there, and how many samples a second they take."""

import math
import time
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any, NamedTuple

import torch

from benchmarks.gpu.arithmetic import Shape
from benchmarks.gpu.stages import Setting
from models.backbone import Backbone, build_backbone
from pipelines.command.config import find_recipe, load_recipe, read_yaml
from pipelines.training.config import PretrainConfig
from pipelines.training.trainer import Trainer
from transforms.views.batch import Views

WARM_UP = 3
_TINY = {"arch": "custom", "depth": 1, "embed_dim": 32, "heads": 2, "registers": 4}


class Arm(NamedTuple):
    """One recipe with the settings that differ."""

    name: str
    recipe: str
    batch: int
    overrides: tuple[tuple[str, str], ...] = ()

    def config(self, setting: Setting) -> PretrainConfig:
        """The configuration to measure; a rehearsal keeps its kind and makes it tiny."""
        tree = read_yaml(find_recipe(self.recipe))
        overrides = [*self.overrides, ("batch_size", str(self.batch))]
        overrides += [("backbone.weights", "")] if tree["backbone"].get("weights") else []
        overrides += _tiny(tree) if setting.is_rehearsal else []
        return load_recipe(PretrainConfig, tree, overrides)

    def trainer(self, setting: Setting) -> Trainer:
        """Student, teacher and optimizer on the device, from seed 0."""
        config = self.config(setting)
        torch.manual_seed(0)
        with setting.device:  # Drawing the weights of a ViT-L on a CPU takes seconds.
            backbone = build_backbone(config.backbone)
        return Trainer(config, setting.device, backbone)


def _tiny(tree: dict[str, Any]) -> list[tuple[str, str]]:
    """What a rehearsal changes: a network and views of the same kind, as small as they can be."""
    is_3d = bool(tree["views"].get("depth_px"))
    values: dict[str, object] = {f"backbone.{name}": value for name, value in _TINY.items()}
    values |= {"batch_size": 4, "head.prototypes": 64, "backbone.patch_px": 8 if is_3d else 14}
    sides = ["backbone.image_px", "views.size_px"]
    sides += ["backbone.image_depth_px", "views.depth_px"] if is_3d else []
    values |= dict.fromkeys(sides, 16 if is_3d else 28)
    if tree["views"].get("n_local"):
        local = ["views.local_size_px", *(["views.local_depth_px"] if is_3d else [])]
        values |= dict.fromkeys(local, 8 if is_3d else 14)
    return [(name, str(value)) for name, value in values.items()]


def noise(config: PretrainConfig, device: torch.device) -> Views:
    """Views of noise on the device: the arithmetic does not depend on what they show."""
    views, batch = config.views, config.batch_size
    generator = torch.Generator(device).manual_seed(0)

    def drawn(count: int, side: int, depth: int) -> torch.Tensor:
        shape = (1, depth, side, side) if views.is_3d else (3, side, side)
        return torch.randn(count, batch, *shape, generator=generator, device=device)

    local = drawn(views.n_local, views.local_size_px, views.local_depth_px) if views.n_local else None
    total = 2 + views.n_local
    return Views(
        global_views=drawn(2, views.size_px, views.depth_px),
        local_views=local,
        spacing_mm=torch.ones(total, batch, 3),
        mm_per_pixel=torch.ones(total, batch),
        outside_body=torch.zeros(total, batch, dtype=torch.bool),
        window_hu=torch.zeros(total, batch, 2),
    )


def shape_of(backbone: Backbone) -> Shape:
    """The shape that the operations are counted from."""
    grid = backbone.grid_of((backbone.image_depth_px, backbone.image_px, backbone.image_px))
    patches = math.prod(grid)
    inputs = (backbone.patch_depth_px or len(backbone.mean)) * backbone.patch_px**2
    blocks = getattr(backbone.vit, "blocks", ())
    return Shape(
        backbone.embed_dim, len(blocks), patches + int(backbone.vit.num_prefix_tokens), patches, inputs
    )


def settle(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_each(task: Callable[[], object], setting: Setting) -> float:
    """Median seconds of one call over three rounds; the device is waited for at the end of a round alone."""
    for _ in range(WARM_UP):
        task()
    settle(setting.device)
    start = time.perf_counter()
    task()
    settle(setting.device)
    calls = max(1, math.ceil(setting.seconds / 3 / max(time.perf_counter() - start, 1e-6)))
    rounds = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(calls):
            task()
        settle(setting.device)
        rounds.append((time.perf_counter() - start) / calls)
    return sorted(rounds)[1]


def updates_of(trainer: Trainer) -> Callable[[], None]:
    """One update on the same batch of noise each time."""
    batches: Iterator[Views] = repeat(noise(trainer.config, trainer.device))
    return lambda: trainer.update(batches)


def peak_gb(device: torch.device) -> float | None:
    """Largest memory that tensors took since the last call, in GB; None on a CPU."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device) / 1e9
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def emptied(device: torch.device) -> None:
    """Give memory back between networks."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
