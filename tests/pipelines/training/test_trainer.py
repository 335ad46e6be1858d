"""The loop: resuming equals never stopping, accumulation averages, and the clock is the update."""

import copy
import dataclasses
import itertools
import multiprocessing
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from models.backbone import build_backbone
from models.losses.objective import Batch
from pipelines.cohort.folder import Cohort
from pipelines.cohort.slices import SliceIndex
from pipelines.command.config import load_recipe
from pipelines.training.checkpoint import load_checkpoint, save_checkpoint
from pipelines.training.config import PretrainConfig
from pipelines.training.loader import (
    BatchPlan,
    LoaderError,
    MicroBatches,
    refuse_small_memory,
    stream_batches,
)
from pipelines.training.trainer import NonFiniteLossError, Trainer
from tests.processes import WAIT_S, wait_until
from transforms.views.batch import ViewDraws, draw_views

TINY = {
    "steps": 8,
    "batch_size": 4,
    "backbone": {"arch": "custom", "depth": 1, "embed_dim": 16, "heads": 2, "image_px": 28},
    "head": {"prototypes": 32},
    "views": {"size_px": 28},
    "optim": {"warmup_steps": 2},
    "watch": {"window_samples": 16, "min_steps": 2},
}


def config_of(*overrides: tuple[str, str]) -> PretrainConfig:
    return load_recipe(PretrainConfig, TINY, overrides)


def build(config: PretrainConfig) -> Trainer:
    torch.manual_seed(config.seed)
    return Trainer(config, torch.device("cpu"), build_backbone(config.backbone))


def batches_for(
    config: PretrainConfig, cohort: Cohort, first: int = 0, workers: int = 0, render: bool = True
):
    index = SliceIndex(cohort, cohort.series["patient_id"], views=config.views)
    plan = BatchPlan(len(index), config.batch_size, config.accumulation, config.seed)
    data = MicroBatches(index, plan, config.views, config.seed, render)
    last = config.steps * config.accumulation
    return stream_batches(data, first * config.accumulation, last, workers, pin=False)


def run(config: PretrainConfig, cohort: Cohort, trainer: Trainer, workers: int = 0) -> list[dict[str, float]]:
    batches = batches_for(config, cohort, trainer.step, workers)
    history = []
    while trainer.step < config.steps:
        trainer.update(batches)
        if trainer.step % 3 == 0 or trainer.step == config.steps:
            metrics, _ = trainer.report()
            history.append({name: value for name, value in metrics.items() if not name.startswith("perf/")})
    return history


CUBES = (
    ("backbone.image_px", "16"),
    ("backbone.image_depth_px", "8"),
    ("backbone.patch_px", "4"),
    ("views.size_px", "16"),
    ("views.depth_px", "8"),
    ("views.extent", "mm"),
    ("views.fov_mm", "[80, 120]"),
    ("views.depth_mm", "[10, 15]"),
)
ARMS = {
    "article": (),
    "accumulated with sinkhorn": (("accumulation", "2"), ("objective.center", "sinkhorn")),
    "ibot, local views, frozen gram": (
        ("objective.ibot_weight", "1.0"),
        ("views.n_local", "2"),
        ("views.local_size_px", "14"),
        ("gram_refresh_steps", "3"),
    ),
    "simclr on a whitened stem, pooled in the middle, a neighbor slice as second view": (
        ("objective.kind", "simclr"),
        ("objective.pool", "roi"),
        ("backbone.stem", "whitened"),
        ("views.center", "point"),
        ("views.neighbor_slices", "2"),
    ),
    "frozen start, layer decay, drop path, stopped while frozen": (
        ("optim.frozen_steps", "6"),
        ("optim.layer_decay", "0.5"),
        ("backbone.depth", "2"),
        ("backbone.drop_path", "0.5"),
    ),
    "mae": (("objective.kind", "mae"), ("objective.gram_weight", "0"), ("objective.koleo_weight", "0")),
    "cubes with local ones, ibot in boxes, told the spacing, frozen gram, layer decay": (
        *CUBES,
        ("backbone.spacing", "tokens"),
        ("objective.ibot_weight", "1.0"),
        ("objective.ibot_mask_shape", "blocks"),
        ("views.n_local", "1"),
        ("views.local_size_px", "8"),
        ("views.local_depth_px", "4"),
        ("views.local_fov_mm", "[30, 50]"),
        ("gram_refresh_steps", "3"),
        ("optim.layer_decay", "0.5"),
    ),
    "mae of cubes in HU": (
        *CUBES,
        ("objective.kind", "mae"),
        ("objective.mae_target", "hu"),
        ("views.window.policy", "full"),
        ("objective.gram_weight", "0"),
        ("objective.koleo_weight", "0"),
    ),
}


@pytest.mark.parametrize("arm", ARMS)
def test_resuming_equals_never_stopping_bit_for_bit(arm: str, small_cohort: Cohort, tmp_path: Path) -> None:
    config = config_of(*ARMS[arm])
    whole = build(config)
    undisturbed = run(config, small_cohort, whole)

    first = build(config)
    stream = batches_for(config, small_cohort)
    for _ in range(5):
        first.update(stream)
        if first.step == 3:
            first.report()
    save_checkpoint(tmp_path, first.step, *first.state())
    torch.manual_seed(99)
    second = build(config)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint is not None
    second.restore(checkpoint)
    rest = run(config, small_cohort, second, workers=2 if arm == "article" else 0)

    assert rest == undisturbed[1:]
    for name, tensor in whole.networks.state_dict().items():
        assert torch.equal(tensor, second.networks.state_dict()[name]), name


def test_a_frozen_start_leaves_the_backbone_as_it_was_to_the_last_bit_and_then_trains_it(
    small_cohort: Cohort,
) -> None:
    config = config_of(("optim.frozen_steps", "3"), ("objective.kind", "simclr"), ("backbone.registers", "0"))
    trainer = build(config)
    before = {name: tensor.clone() for name, tensor in trainer.networks.state_dict().items()}
    batches = batches_for(config, small_cohort)

    def moved() -> set[str]:
        return {
            name for name, one in trainer.networks.state_dict().items() if not torch.equal(one, before[name])
        }

    for _ in range(3):
        trainer.update(batches)
    assert moved() == {name for name in before if ".head." in name}
    trainer.update(batches)
    assert moved() == set(before)


def test_dropped_paths_are_the_students_alone_and_follow_the_seed(small_cohort: Cohort) -> None:
    plain = run(config_of(("backbone.depth", "2")), small_cohort, build(config_of(("backbone.depth", "2"))))
    config = config_of(("backbone.depth", "2"), ("backbone.drop_path", "0.5"))
    trainer = build(config)
    images = torch.randn(16, 3, 28, 28)
    teacher, student = (one.backbone for one in (trainer.networks.teacher, trainer.networks.student.train()))
    assert not torch.equal(student(images).class_token, student(images).class_token)
    assert torch.equal(teacher(images).class_token, student.eval()(images).class_token)
    dropped = run(config, small_cohort, trainer)
    torch.manual_seed(5)
    again = build(config)
    torch.manual_seed(6)
    assert run(config, small_cohort, again) == dropped != plain


def test_views_are_drawn_where_slices_are_read_and_a_device_renders_the_same(small_cohort: Cohort) -> None:
    config = config_of(("accumulation", "2"), ("steps", "3"))
    raw = list(batches_for(config, small_cohort, workers=2, render=False))
    assert len(raw) == 6
    for micro, (triplets, draws) in enumerate(raw):
        expected = draw_views(triplets, config.views, config.seed, step=micro // 2)
        for name in ViewDraws.__slots__:
            assert np.array_equal(getattr(draws, name), getattr(expected, name)), name

    on_device, by_loader = build(config), build(config)
    batches, views = iter(raw), batches_for(config, small_cohort)
    for _ in range(config.steps):
        on_device.update(batches)
        by_loader.update(views)
    assert on_device.sums == by_loader.sums
    assert on_device.scale_mm == by_loader.scale_mm


def test_a_batch_keeps_its_draws_when_its_pixels_are_pinned(small_cohort: Cohort, host_copies) -> None:
    batch = next(batches_for(config_of(), small_cohort, render=False))
    pinned = pin_memory(batch)
    assert host_copies.pinned == [batch.voxels.triplets_hu.shape]
    assert torch.equal(pinned.voxels.triplets_hu, batch.voxels.triplets_hu)
    assert pinned.draws is batch.draws


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_leaves_the_loader_to_the_training(
    small_cohort: Cohort, number: int
) -> None:
    stream = batches_for(config_of(("steps", "100")), small_cohort, workers=2)
    next(stream)
    loaders = multiprocessing.active_children()
    assert len(loaders) == 2
    for loader in loaders:
        os.kill(loader.pid, number)
    assert sum(1 for _ in stream) == 99
    wait_until(lambda: not any(loader.is_alive() for loader in loaders))


def test_training_moves_the_student_and_spreads_no_nan(small_cohort: Cohort) -> None:
    config = config_of()
    trainer = build(config)
    before = {name: p.clone() for name, p in trainer.networks.student.named_parameters()}
    history = run(config, small_cohort, trainer)
    moved = [n for n, p in trainer.networks.student.named_parameters() if not torch.equal(p, before[n])]
    assert "backbone.vit.blocks.0.attn.qkv.weight" in moved
    assert "head.last.weight" in moved
    assert {"loss/dino", "loss/gram", "loss/koleo", "loss/total", "optim/grad_norm", "teacher/gain"} <= set(
        history[0]
    )
    assert history[-1]["loss/dino"] > 0


def test_the_teacher_follows_the_student_of_this_update(small_cohort: Cohort) -> None:
    config = config_of(("optim.ema_momentum", "0.0"), ("optim.ema_momentum_end", "0.0"))
    trainer = build(config)
    before = {name: p.clone() for name, p in trainer.networks.student.named_parameters()}
    trainer.update(batches_for(config, small_cohort))
    student, teacher = (
        dict(n.named_parameters()) for n in (trainer.networks.student, trainer.networks.teacher)
    )
    assert any(not torch.equal(student[name], before[name]) for name in before)
    assert all(torch.equal(student[name], teacher[name]) for name in before)


def test_the_frozen_gram_teacher_is_an_earlier_teacher_until_its_step_comes(small_cohort: Cohort) -> None:
    config = config_of(("gram_refresh_steps", "3"), ("optim.ema_momentum", "0.5"), ("optim.lr", "1e-2"))
    trainer = build(config)
    stream = batches_for(config, small_cohort)
    teachers, frozen = [], []
    for _ in range(7):
        teachers.append(trainer.networks.teacher.head.last.weight.clone())
        trainer.update(stream)
        assert trainer.networks.gram_teacher is not None
        frozen.append(trainer.networks.gram_teacher.head.last.weight.clone())
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(teachers))
    for update, weight in enumerate(frozen):
        assert torch.equal(weight, teachers[update // 3 * 3]), update


def test_masks_differ_between_updates_micro_batches_and_processes_and_are_drawn_again_alike(
    small_cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(("accumulation", "2"), ("steps", "2"), ("objective.ibot_weight", "1.0"))

    def drawn(rank: int) -> list[tuple[int, ...]]:
        monkeypatch.setattr("pipelines.training.trainer.world", lambda: (rank, 1))
        trainer, masks = build(config), []

        def note(_: object, inputs: tuple[object, Batch]) -> None:
            masks.append(tuple(copy.deepcopy(inputs[1].rng).permutation(50).tolist()))

        trainer.objective.register_forward_pre_hook(note)
        stream = batches_for(config, small_cohort)
        for _ in range(config.steps):
            trainer.update(stream)
        return masks

    first, second = drawn(0), drawn(1)
    assert len(first) == len(second) == 4
    assert len({*first, *second}) == 8
    assert drawn(1) == second


def test_accumulation_averages_gradients_and_centers(small_cohort: Cohort) -> None:
    plain = ("objective.koleo_weight", "0"), ("objective.gram_weight", "0"), ("steps", "1")
    large, parts = config_of(*plain, ("batch_size", "8")), config_of(*plain, ("accumulation", "2"))
    one, two = build(large), build(parts)
    one.update(batches_for(large, small_cohort))
    two.update(batches_for(parts, small_cohort))
    assert torch.allclose(one.objective.get_buffer("center"), two.objective.get_buffer("center"), atol=1e-7)
    for a, b in zip(one.networks.student.parameters(), two.networks.student.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-6)


def test_less_shared_memory_than_the_batches_ahead_is_refused_before_the_first(
    small_cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of()
    views = next(batches_for(config, small_cohort))
    parts = [getattr(views, field.name) for field in dataclasses.fields(views)]
    each = sum(one.nbytes for one in parts if isinstance(one, torch.Tensor))
    room = os.statvfs("/")

    def with_room(free: int) -> None:
        small = SimpleNamespace(f_bavail=free, f_frsize=1)
        monkeypatch.setattr(os, "statvfs", lambda path: small if path == "/dev/shm" else room)

    with_room(3 * 4 * each)
    refuse_small_memory(views, workers=3)
    with_room(3 * 4 * each - 1)
    with pytest.raises(LoaderError, match=r"3 loader processes need .* --shm-size=1g, or give workers=2$"):
        next(batches_for(config, small_cohort, workers=3))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(LoaderError, match=r"or give workers=1$"):
        refuse_small_memory(views, workers=2)


def test_a_loader_that_is_stuck_is_not_waited_for_without_end(
    small_cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.training.loader.SILENT_S", 0.5)
    monkeypatch.setattr(MicroBatches, "__getitem__", stuck_in_a_worker)
    with pytest.raises(LoaderError, match="gave no batch"):
        next(batches_for(config_of(), small_cohort, workers=1))


def stuck_in_a_worker(dataset: MicroBatches, micro: int) -> None:
    if multiprocessing.parent_process() is not None:
        time.sleep(WAIT_S)


def test_a_loss_that_is_no_number_stops_before_it_is_saved(small_cohort: Cohort) -> None:
    config = config_of()
    trainer = build(config)
    stream = batches_for(config, small_cohort)
    trainer.update(stream)
    with torch.no_grad():
        trainer.networks.student.head.last.bias[0] = float("nan")
    trainer.update(stream)
    with pytest.raises(NonFiniteLossError, match=r"loss/dino.* was not finite by step 2"):
        trainer.state()
    with pytest.raises(NonFiniteLossError, match=r"optim\.clip_norm"):
        trainer.report()


def test_clipping_bounds_the_gradient(small_cohort: Cohort) -> None:
    config = config_of(("optim.clip_norm", "0.01"), ("steps", "1"))
    trainer = build(config)
    trainer.update(batches_for(config, small_cohort))
    gradients = [p.grad for p in trainer.networks.student.parameters() if p.grad is not None]
    assert float(torch.nn.utils.get_total_norm(gradients)) == pytest.approx(0.01, rel=1e-3)


def test_the_scale_that_the_run_saw_is_known(small_cohort: Cohort) -> None:
    config = config_of(("views.extent", "mm"), ("views.fov_mm", "[56, 84]"))
    trainer = build(config)
    run(config, small_cohort, trainer)
    low, high = trainer.scale_mm
    assert 1.9 < low < high < 3.1
    assert trainer.slice_mm == pytest.approx(
        [min(small_cohort.series["spacing_mm"].str[0]), max(small_cohort.series["spacing_mm"].str[0])]
    )


def test_the_scale_of_cubes_along_z_is_that_of_their_voxels(small_cohort: Cohort) -> None:
    config = config_of(*CUBES)
    trainer = build(config)
    run(config, small_cohort, trainer)
    low, high = trainer.slice_mm
    assert 10 / 8 <= low < high <= 15 / 8
