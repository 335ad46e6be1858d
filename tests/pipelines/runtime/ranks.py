"""What each of several processes does that share a batch; `test_distributed` forks them from one that imported this.

Imported where nothing else runs: no test's threads or open databases are copied.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from models.backbone import build_backbone
from models.losses.gather import world
from pipelines.cohort.drawn import DrawnBatch
from pipelines.cohort.folder import Cohort
from pipelines.cohort.slices import SliceIndex
from pipelines.command.config import load_recipe
from pipelines.runtime.distributed import done_by_rank_zero, from_rank_zero, process_group, rank
from pipelines.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from pipelines.training.config import PretrainConfig
from pipelines.training.loader import BatchPlan, MicroBatches, stream_batches
from pipelines.training.trainer import Trainer

CPU = torch.device("cpu")
STEPS = 10


def as_rank(
    number: int, processes: int, port: int, said: Path, task: Callable[..., None], *words: object
) -> None:
    """Do a task as torchrun would start it; what the process says of its end is written to a file."""
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), sys.stderr.fileno())
    torch.set_num_threads(1)
    with process_group(CPU):
        task(*words)


def config_of(kind: str, koleo_on: str) -> PretrainConfig:
    is_mae, is_sinkhorn, is_3d = kind == "mae", kind == "sinkhorn", kind == "cubes"
    objective = {
        "kind": "dino" if is_sinkhorn or is_3d else kind,
        "center": "sinkhorn" if is_sinkhorn else "ema",
        "koleo_on": koleo_on,
        "koleo_weight": 0 if is_mae else 0.1,
        "gram_weight": 0 if is_mae else 1,
    }
    backbone = {"arch": "custom", "depth": 1, "embed_dim": 16, "heads": 2, "image_px": 28}
    views = {"size_px": 28}
    if is_3d:
        backbone |= {"patch_px": 4, "image_px": 16, "image_depth_px": 8, "spacing": "tokens"}
        views = {"size_px": 16, "depth_px": 8, "extent": "mm", "fov_mm": [80, 120], "depth_mm": [10, 15]}
        views |= {"n_local": 1, "local_size_px": 8, "local_depth_px": 4, "local_fov_mm": [30, 50]}
    recipe = {
        "steps": STEPS, "batch_size": 8, "optim": {"warmup_steps": 2}, "objective": objective,
        "backbone": backbone, "head": {"prototypes": 32}, "views": views,
    }  # fmt: skip
    return load_recipe(PretrainConfig, recipe)


def build(config: PretrainConfig) -> Trainer:
    torch.manual_seed(0)
    trainer = Trainer(config, CPU, build_backbone(config.backbone))
    trainer.networks.double()
    trainer.objective.double()
    return trainer


def batches_from(first: int, config: PretrainConfig, root: Path) -> Iterator[DrawnBatch]:
    cohort = Cohort.open(root)
    index = SliceIndex(cohort, cohort.series["patient_id"], views=config.views)
    data = MicroBatches(index, BatchPlan(len(index), 8, 1, 0, *world()), config.views, 0, True)
    return stream_batches(data, first, STEPS, 0, False)


def train(root: Path, out: Path, kind: str, koleo_on: str) -> None:
    """Train to the end; the first process writes every tensor."""
    config = config_of(kind, koleo_on)
    trainer, batches = build(config), batches_from(0, config, root)
    while trainer.step < STEPS:
        trainer.update(batches)
    metrics, _ = trainer.report()
    if rank() == 0:
        state = dict(trainer.networks.state_dict()) | dict(trainer.objective.state_dict())
        state |= {"gain": torch.tensor(metrics["teacher/gain"], dtype=torch.float64)}
        state |= {"scale_mm": torch.tensor(trainer.scale_mm, dtype=torch.float64)}
        save_file(state, out)


def resume(root: Path, out: Path, kind: str) -> None:
    """Train with and without an interruption after the sixth update; the first report after it is the same."""
    config = config_of(kind, "class_token")
    whole, batches = build(config), batches_from(0, config, root)
    for _ in range(6):
        whole.update(batches)
    tensors, facts = whole.state()
    if rank() == 0:
        save_checkpoint(out, 6, tensors, facts)
    from_rank_zero(None)  # It is written.
    resumed, rest = build(config), batches_from(6, config, root)
    checkpoint = load_checkpoint(out)
    assert checkpoint is not None
    resumed.restore(checkpoint)
    for _ in range(4):
        whole.update(batches)
        resumed.update(rest)
    expected, found = whole.report()[0], resumed.report()[0]
    assert resumed.scale_mm == whole.scale_mm == from_rank_zero(whole.scale_mm)
    assert resumed.slice_mm == whole.slice_mm == from_rank_zero(whole.slice_mm)
    if rank() == 0:  # It alone logs: the class tokens that it kept are its own.
        wrong = {
            name: (value, found[name])
            for name, value in expected.items()
            if not name.startswith("perf/") and abs(found[name] - value) > 1e-6
        }
        assert not wrong, wrong


def refuse() -> None:
    """End, in every process, with what the first of them refuses."""

    def full() -> None:
        raise CheckpointError("no space left")

    assert done_by_rank_zero(lambda: 7 + rank()) == 7
    try:
        done_by_rank_zero(full)
    except CheckpointError as error:
        sys.exit(f"rank {rank()}: {error}")
