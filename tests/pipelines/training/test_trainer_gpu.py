"""The loop on a GPU: it never waits for the device, and continues from a checkpoint of any device."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from models.backbone import build_backbone
from pipelines.cohort.drawn import DrawnBatch
from pipelines.cohort.folder import Cohort
from pipelines.cohort.slices import SliceIndex
from pipelines.command.config import load_recipe
from pipelines.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pipelines.training.config import PretrainConfig
from pipelines.training.loader import BatchPlan, MicroBatches, stream_batches
from pipelines.training.trainer import Trainer
from transforms.views.batch import Views

pytestmark = pytest.mark.gpu

GPU, CPU = torch.device("cuda"), torch.device("cpu")
TINY = {
    "steps": 6,
    "batch_size": 4,
    "backbone": {"arch": "custom", "depth": 2, "embed_dim": 32, "heads": 2, "image_px": 28},
    "head": {"prototypes": 32},
    "views": {"size_px": 28},
    "optim": {"lr": 1e-2, "warmup_steps": 0},
}
ARMS = {
    "article": (),
    "sinkhorn, clipped, jittered": (
        ("objective.center", "sinkhorn"),
        ("optim.clip_norm", "1.0"),
        ("views.color_jitter", "[0.2, 0.2]"),
        ("views.gaussian_blur", "[0.1, 2.0]"),
    ),
    "ibot, local views, frozen gram": (
        ("objective.ibot_weight", "1.0"),
        ("views.n_local", "2"),
        ("views.local_size_px", "14"),
        ("gram_refresh_steps", "3"),
    ),
    "simclr": (("objective.kind", "simclr"), ("accumulation", "2")),
    "mae": (("objective.kind", "mae"), ("objective.gram_weight", "0"), ("objective.koleo_weight", "0")),
}


@pytest.fixture
def exact() -> Iterator[None]:
    """Convolutions in float32 as on a CPU; torch rounds their inputs to TF32 by default."""
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.conv.fp32_precision = before


def config_of(*overrides: tuple[str, str]) -> PretrainConfig:
    return load_recipe(PretrainConfig, TINY, overrides)


def build(config: PretrainConfig, device: torch.device) -> Trainer:
    torch.manual_seed(config.seed)
    return Trainer(config, device, build_backbone(config.backbone))


def batches_for(trainer: Trainer, cohort: Cohort) -> Iterator[DrawnBatch | Views]:
    """Yield what a run on the trainer's device is given, from its step on."""
    config, on_cpu = trainer.config, trainer.device.type == "cpu"
    index = SliceIndex(cohort, cohort.series["patient_id"])
    plan = BatchPlan(len(index), config.batch_size, config.accumulation, config.seed)
    data = MicroBatches(index, plan, config.views, config.seed, render=on_cpu)
    first, last = (step * config.accumulation for step in (trainer.step, config.steps))
    return stream_batches(data, first, last, workers=0, pin=not on_cpu)


def losses(trainer: Trainer, batches: Iterator[DrawnBatch | Views], updates: int) -> list[float]:
    found = []
    for _ in range(updates):
        trainer.update(batches)
        found.append(trainer.report()[0]["loss/total"])
    return found


def written(trainer: Trainer, folder: Path) -> Checkpoint:
    save_checkpoint(folder, trainer.step, *trainer.state())
    checkpoint = load_checkpoint(folder)
    assert checkpoint is not None
    return checkpoint


@contextmanager
def waiting_refused() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature")
@pytest.mark.parametrize("arm", ARMS)
def test_an_update_in_bf16_is_finite_and_waits_for_nothing(arm: str, small_cohort: Cohort) -> None:
    trainer = build(config_of(("precision", "bf16"), *ARMS[arm]), GPU)
    batches = batches_for(trainer, small_cohort)
    assert np.isfinite(losses(trainer, batches, 3)).all()
    with waiting_refused():
        trainer.update(batches)
        with pytest.raises(RuntimeError, match="synchronizing CUDA operation"):
            float(trainer.sums["loss/total"])  # The refusal is awake.
    assert np.isfinite(trainer.report()[0]["loss/total"])


@pytest.mark.parametrize("arm", ["article", "mae"])
def test_a_run_of_a_cpu_goes_on_on_a_gpu(arm: str, small_cohort: Cohort, tmp_path: Path, exact: None) -> None:
    config = config_of(("precision", "fp32"), *ARMS[arm])
    on_cpu = build(config, CPU)
    batches = batches_for(on_cpu, small_cohort)
    for _ in range(3):  # No report: sums of half a window go over too.
        on_cpu.update(batches)
    on_gpu = build(config, GPU)
    on_gpu.restore(written(on_cpu, tmp_path))
    assert {p.device.type for p in on_gpu.networks.parameters()} == {GPU.type}
    expected = losses(on_cpu, batches, 3)
    assert losses(on_gpu, batches_for(on_gpu, small_cohort), 3) == pytest.approx(expected, rel=1e-3)


def test_the_state_of_fused_adamw_survives_a_checkpoint(
    small_cohort: Cohort, tmp_path: Path, exact: None
) -> None:
    config = config_of(("precision", "fp32"))
    whole = build(config, GPU)
    undisturbed = losses(whole, batches_for(whole, small_cohort), 6)

    first = build(config, GPU)
    losses(first, batches_for(first, small_cohort), 3)
    checkpoint = written(first, tmp_path)
    second = build(config, GPU)
    second.restore(checkpoint)
    for group in second.optimizer.param_groups:
        assert group["fused"]
        for parameter in group["params"]:
            state = second.optimizer.state[parameter]
            assert {tensor.device.type for tensor in state.values()} == {GPU.type}
            assert float(state["step"]) == 3
    rest = losses(second, batches_for(second, small_cohort), 3)
    assert rest == pytest.approx(undisturbed[3:], rel=1e-4)

    # The comparison can fail: without that state the run goes elsewhere.
    kept = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith("optimizer/")}
    bare = build(config, GPU)
    bare.restore(checkpoint._replace(tensors=kept))
    assert losses(bare, batches_for(bare, small_cohort), 3) != pytest.approx(undisturbed[3:], rel=1e-2)


@pytest.mark.filterwarnings("default")  # What the compiler warns of is its own; numbers are compared here.
def test_compiled_networks_begin_with_the_loss_of_eager_ones(small_cohort: Cohort) -> None:
    first = {}
    for is_compiled in ("false", "true"):
        trainer = build(config_of(("precision", "bf16"), ("compile", is_compiled)), GPU)
        (first[is_compiled],) = losses(trainer, batches_for(trainer, small_cohort), 1)
    assert first["true"] == pytest.approx(first["false"], rel=0.02)
