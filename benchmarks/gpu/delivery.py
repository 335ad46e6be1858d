"""Stage d: the whole loop, with slices read by worker processes and views rendered on the card."""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.gpu.figures import Figure, found
from benchmarks.gpu.stages import Setting
from benchmarks.gpu.timing import WARM_UP, Arm, emptied, settle
from benchmarks.gpu.updates import ARMS, RATE
from pipelines.cohort.folder import Cohort, CohortWriter, write_volume
from pipelines.cohort.slices import SliceIndex
from pipelines.cohort.tables import ANNOTATIONS, LATER, NODULES, REFUSED, SERIES, empty_table
from pipelines.training.config import PretrainConfig
from pipelines.training.loader import BatchPlan, MicroBatches, stream_batches

ARM = ARMS[1]
_VOLUMES, _SHAPE = 6, (96, 512, 512)


def measure(setting: Setting) -> Iterator[Figure]:
    """Deliver without training, then train; the cohort is noise, uncompressed as every cohort is."""
    workers = 2 if setting.is_rehearsal else max(2, (os.cpu_count() or 2) - 4)
    with tempfile.TemporaryDirectory(prefix="dinox-bench-") as folder:
        index = noise_index(Path(folder), setting.is_rehearsal)
        config = ARM.config(setting)
        for count in (2,) if setting.is_rehearsal else (4, 8, workers):
            yield from _loader_alone(config, index, count, setting)
        yield from _training(ARM, index, workers, setting)


def noise_index(folder: Path, is_tiny: bool) -> SliceIndex:
    """Index the slices of a cohort of noise; as patches its volumes need no search for the body."""
    writer = CohortWriter(folder)
    shape = (6, 64, 64) if is_tiny else _SHAPE
    row: dict[str, object] = {name: "" for name in (*SERIES.names, *LATER)}
    row |= {"spacing_mm": [1.25, 0.7, 0.7], "affine_ras": np.diag([0.7, 0.7, 1.25, 1.0]).ravel().tolist()}
    row |= {"gaps": [], "slice_offsets_mm": [], "slice_thickness_mm": 1.25, "kind": "patch"}
    row |= {"is_lossy": False, "n_padding_voxels": 0}
    for number in range(1 if is_tiny else _VOLUMES):
        rng = np.random.default_rng(number)
        volume = rng.integers(-1000, 400, shape, dtype=np.int16)
        names = dict.fromkeys(("volume_id", "patient_id", "study_uid", "series_uid"), f"noise-{number}")
        write_volume(folder, row | names, volume)
    writer.write_tables(empty_table(ANNOTATIONS), empty_table(NODULES), empty_table(REFUSED), "benchmark")
    writer.close()
    cohort = Cohort.open(folder)
    return SliceIndex(cohort, list(cohort.series["patient_id"]))


def _micro_batches(config: PretrainConfig, index: SliceIndex) -> MicroBatches:
    plan = BatchPlan(len(index), config.batch_size, config.accumulation, seed=0)
    return MicroBatches(index, plan, config.views, seed=0, render=False)


def _loader_alone(
    config: PretrainConfig, index: SliceIndex, workers: int, setting: Setting
) -> Iterator[Figure]:
    count = 2 if setting.is_rehearsal else 24
    data = _micro_batches(config, index)
    pin = setting.device.type == "cuda"
    batches = stream_batches(data, 0, WARM_UP + count, workers, pin)
    for number, batch in enumerate(batches):
        if number == WARM_UP:
            settle(setting.device)
            start = time.perf_counter()
        batch.render(setting.device, config.views)  # type: ignore[union-attr]
    settle(setting.device)
    rate = count * config.batch_size / (time.perf_counter() - start)
    yield Figure(f"loader and views alone, {workers} workers", rate, "1/s", f"batch {config.batch_size}")


def _training(arm: Arm, index: SliceIndex, workers: int, setting: Setting) -> Iterator[Figure]:
    emptied(setting.device)
    trainer = arm.trainer(setting)
    count = 2 if setting.is_rehearsal else 40
    data = _micro_batches(trainer.config, index)
    batches = stream_batches(data, 0, WARM_UP + count, workers, pin=setting.device.type == "cuda")
    for _ in range(WARM_UP):
        trainer.update(batches)
    trainer.report()
    settle(setting.device)
    start = time.perf_counter()
    for _ in range(count):
        trainer.update(batches)
    settle(setting.device)
    seconds = time.perf_counter() - start
    metrics, _ = trainer.report()
    rate = count * trainer.config.batch_size / seconds
    name = f"{arm.name}, {workers} workers"
    yield Figure(f"{name}: samples a second", rate, "1/s")
    yield Figure(f"{name}: waiting for data", metrics["perf/data_wait"], "", "share of the time")
    if bare := found(setting.earlier, "c", RATE.format(arm.name)):
        yield Figure(f"{name}: delivered", rate / bare, "", "of the rate on batches already there")
