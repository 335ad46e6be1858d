"""Two equal runs, and a run that was interrupted, end with the same bits on the threads that a user's machine has."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from models.backbone import build_backbone
from pipelines.command.config import load_recipe
from pipelines.training.checkpoint import load_checkpoint, save_checkpoint
from pipelines.training.config import PretrainConfig
from pipelines.training.trainer import Trainer
from transforms.views.batch import Views

UPDATES = 3
# Large enough that torch shares the work of every loss among threads: below 32768 numbers one does it.
SMALL = {
    "steps": UPDATES,
    "batch_size": 80,
    "backbone": {"arch": "custom", "depth": 1, "embed_dim": 64, "heads": 2, "registers": 0, "image_px": 28},
    "head": {"prototypes": 4096},
    "views": {"size_px": 28},
    "optim": {"warmup_steps": 0, "lr": 1e-3},
    "watch": {"window_samples": 256, "min_steps": 2},
}
OBJECTIVES = {
    "article": {},
    "KoLeo on class tokens, sinkhorn": {"koleo_on": "class_token", "center": "sinkhorn"},
    "ibot": {"ibot_weight": 1.0},
    "simclr": {"kind": "simclr"},
    "mae": {"kind": "mae", "gram_weight": 0.0, "koleo_weight": 0.0},
    "cubes, ibot in blocks": {"ibot_weight": 1.0, "ibot_mask_shape": "blocks"},
}
CUBES = {
    "backbone.image_depth_px": "14",
    "views.depth_px": "14",
    "views.extent": "mm",
    "backbone.spacing": "tokens",
}
CHANGES = {
    "cubes, ibot in blocks": [*CUBES.items(), ("backbone.patch_px", "7")],
    "article": [("views.n_local", "1"), ("views.local_size_px", "14")],
    "KoLeo on class tokens, sinkhorn": [("batch_size", "640"), ("backbone.patch_px", "28")],
}


@pytest.fixture(autouse=True)
def several_threads() -> Iterator[None]:
    """As many threads as torch would take by itself, two at least, whatever the suite was started with."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(2, min(torch.multiprocessing.cpu_count(), 8)))
    yield
    torch.set_num_threads(before)


def build(config: PretrainConfig) -> Trainer:
    torch.manual_seed(config.seed)
    return Trainer(config, torch.device("cpu"), build_backbone(config.backbone))


def views_from(config: PretrainConfig, step: int) -> Iterator[Views]:
    """Views of noise that depend on the step alone."""
    local_px = config.views.local_size_px
    batch = config.batch_size
    for number in range(step, config.steps):
        draw = torch.Generator().manual_seed(number)
        local = torch.randn(1, batch, 3, local_px, local_px, generator=draw) if config.views.n_local else None
        channels = (1, config.views.depth_px) if config.views.is_3d else (3,)
        yield Views(
            global_views=torch.randn(2, batch, *channels, 28, 28, generator=draw),
            local_views=local,
            spacing_mm=torch.ones(2, batch, 3),
            mm_per_pixel=torch.ones(2, batch),
            outside_body=torch.zeros(2, batch, dtype=torch.bool),
            window_hu=torch.zeros(2, batch, 2),
        )


def train(trainer: Trainer, until: int = UPDATES) -> Trainer:
    views = views_from(trainer.config, trainer.step)
    while trainer.step < until:
        trainer.update(views)
    return trainer


def differences(one: Trainer, other: Trainer) -> list[str]:
    """Names of the tensors of two runs that are not the same: networks, centers, optimizer, sums, watcher."""
    (left, _), (right, _) = one.state(), other.state()
    assert left.keys() == right.keys()
    return [name for name in left if not torch.equal(left[name], right[name])]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_equal_and_interrupted_runs_end_with_the_same_bits(name: str, tmp_path: Path) -> None:
    config = load_recipe(PretrainConfig, SMALL | {"objective": OBJECTIVES[name]}, CHANGES.get(name, ()))
    undisturbed = train(build(config))
    equal = train(build(config), until=1)
    save_checkpoint(tmp_path, equal.step, *equal.state())
    assert differences(undisturbed, train(equal)) == []

    resumed = build(config)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint is not None
    resumed.restore(checkpoint)
    assert differences(undisturbed, train(resumed)) == []
