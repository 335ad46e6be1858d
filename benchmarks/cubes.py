"""Cubes: reading and rendering on one core against MONAI's and torchio's ways, and raw boxes by worker processes."""

import gc
import os
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from importlib.util import find_spec
from statistics import median
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.compose import Compose
from monai.transforms.croppad.dictionary import RandSpatialCropd
from monai.transforms.spatial.dictionary import Resized, Spacingd
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from benchmarks.chest_cohort import SPACING_MM, ChestCohort, chest_cohort
from benchmarks.timing import ROUNDS, Row, median_cpu_seconds, one_thread
from pipelines.cohort.drawn import DrawnBatch, draw_batch
from pipelines.training.loader import BatchPlan, MicroBatches, stream_batches
from transforms.views.config import ViewConfig
from transforms.views.cubes import CubeDraws

CUBES = ViewConfig(size_px=64, depth_px=64, extent="mm", fov_mm=(32.0, 56.0))
"""On the chests of `chest_cohort`: boxes of about 35 x 130 x 130 voxels."""
TINY = ViewConfig(size_px=16, depth_px=16, extent="mm", fov_mm=(16.0, 24.0))
SAMPLES, BATCH, WORKERS = 8, 4, 2
CPU = torch.device("cpu")


def measure(tiny: bool = False) -> Iterator[Row]:
    """Time the cubes of some samples; a cube is one view, read from the memory map and rendered."""
    chests, config, rounds = chest_cohort(tiny), TINY if tiny else CUBES, 1 if tiny else ROUNDS
    rows = np.random.default_rng(0).choice(chests.inner_rows(), 2 if tiny else SAMPLES)
    drawn = draw_batch(chests.index, rows, config, 0, 0)
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: draw_batch(chests.index, rows, config, 0, 0).render(CPU, config),
        "read": lambda: draw_batch(chests.index, rows, config, 0, 0),
        "render": lambda: drawn.render(CPU, config),
        "bare": lambda: [box.copy() for box in boxes_of(chests, rows, drawn)],
        "monai": _monai_chain(chests, rows, drawn, config),
    }
    ways |= _torchio_ways(chests, rows, drawn, config)
    with one_thread():
        seconds = median_cpu_seconds(ways, rounds)
        delivered = _delivered_seconds(chests, config, rounds, 4 if tiny else 60)
    cubes = len(rows) * 2
    ms = {name: f"{one / cubes * 1e3:.2f} ms" for name, one in seconds.items()}
    name = f"cube of {config.size_px} voxels read and rendered, one core"
    yield Row(
        name,
        seconds["monai"] / seconds["ours"],
        ">= 3",
        f"times MONAI's RandSpatialCropd + Spacingd + Resized ({ms['monai']}; ours {ms['ours']})",
    )
    missing = "" if "torchio" in seconds else "torchio"
    for what, ours, theirs, peer in (
        (name, "ours", "torchio", "torchio's UniformSampler + Resize"),
        ("box of it drawn and read, one core", "read", "torchio crop", "torchio's UniformSampler, in memory"),
    ):
        ratio = 0.0 if missing else seconds[theirs] / seconds[ours]
        yield Row(
            what, ratio, ">= 1", f"times {peer} ({ms.get(theirs, 'not installed')}; ours {ms[ours]})", missing
        )
    yield Row("cube rendered from its raw box, one core", seconds["render"] / cubes * 1e3, "", "ms")
    yield Row(
        "box of it drawn and read, one core",
        seconds["read"] / seconds["bare"],
        "",
        f"times bare copies of the same boxes from the memory map ({ms['read']})",
    )
    yield Row(
        f"raw boxes delivered, {WORKERS} workers",
        delivered["bare"] / delivered["raw"],
        ">= 0.8",
        f"times the same boxes copied by as many ({delivered['raw'] * 1e3:.2f} ms of processor a box)",
    )
    yield Row(
        f"rendered cubes delivered, {WORKERS} workers",
        delivered["raw"] / delivered["views"],
        "",
        f"times the rate of raw boxes ({delivered['views'] * 1e3:.2f} ms of processor a cube)",
    )


def boxes_of(chests: ChestCohort, rows: NDArray[np.int64], drawn: DrawnBatch) -> Iterator[NDArray[np.int16]]:
    """The parts of the mapped volumes that drawn cubes read, one by one, uncopied."""
    assert isinstance(drawn.draws, CubeDraws)
    for view in drawn.draws.places.read_zyx.tolist():
        for row, box in zip(rows.tolist(), view, strict=True):
            volume, _ = chests.volume(row)
            yield volume[tuple(slice(*ends) for ends in box)]


def _monai_chain(
    chests: ChestCohort, rows: NDArray[np.int64], drawn: DrawnBatch, config: ViewConfig
) -> Callable[[], object]:
    """Boxes of the same sizes, brought to the same spacing and shape; volumes are mapped, chains made before."""
    assert isinstance(drawn.draws, CubeDraws)
    places, shape, jobs = drawn.draws.places, config.view_shapes()[0], []
    shapes = np.diff(places.read_zyx, axis=-1)[..., 0]
    for view in range(len(shapes)):
        for b, row in enumerate(rows.tolist()):
            chain = Compose(
                [
                    RandSpatialCropd("image", shapes[view, b].tolist(), random_size=False),
                    Spacingd("image", pixdim=places.spacing_mm[view, b].tolist(), mode="bilinear"),
                    Resized("image", shape, mode="trilinear"),
                ]
            )
            volume: Any = chests.volume(row)[0]
            writable = np.memmap(volume.filename, volume.dtype, "c", volume.offset, volume.shape)
            image = MetaTensor(
                torch.from_numpy(writable)[None], affine=torch.diag(torch.tensor([*SPACING_MM, 1.0]))
            )
            jobs.append((chain, image))
    return lambda: [chain({"image": image}) for chain, image in jobs]


def _torchio_ways(
    chests: ChestCohort, rows: NDArray[np.int64], drawn: DrawnBatch, config: ViewConfig
) -> dict[str, Callable[[], object]]:
    """Patches of the same sizes as the boxes, from volumes in memory: torchio reads no part of a file."""
    if find_spec("torchio") is None:
        return {}
    torchio = import_module("torchio")
    assert isinstance(drawn.draws, CubeDraws)
    shapes = np.diff(drawn.draws.places.read_zyx, axis=-1)[..., 0]
    affine = np.diag([*SPACING_MM, 1.0])
    subjects = {}
    for row in rows.tolist():
        tensor = torch.tensor(np.array(chests.volume(row)[0]))[None]
        subjects[row] = torchio.Subject(image=torchio.ScalarImage(tensor=tensor, affine=affine))
    resize = torchio.Resize(config.view_shapes()[0])
    jobs = [
        (torchio.data.UniformSampler(shapes[view, b].tolist()), subjects[row])
        for view in range(len(shapes))
        for b, row in enumerate(rows.tolist())
    ]

    def patches() -> list[Any]:
        return [next(iter(sampler(subject, 1))) for sampler, subject in jobs]

    return {"torchio": lambda: [resize(patch) for patch in patches()], "torchio crop": patches}


class _BoxCopies(Dataset[torch.Tensor]):
    """The same boxes as those of the raw batches, only copied: where they lie is known before."""

    def __init__(self, chests: ChestCohort, batches: list[tuple[NDArray[np.int64], DrawnBatch]]) -> None:
        self.index = chests.index
        self.places = [(rows, drawn.draws.places.read_zyx) for rows, drawn in batches]  # type: ignore[union-attr]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> torch.Tensor:
        rows, read_zyx = self.places[number]
        voxels = np.empty(int(np.diff(read_zyx, axis=-1)[..., 0].prod(axis=-1).sum()), dtype=np.int16)
        begin = 0
        for view in read_zyx.tolist():
            for row, box in zip(rows.tolist(), view, strict=True):
                volume_hu = self.index.cohort.volume(self.index.volume_ids[self.index.volume[row]])
                part = volume_hu[tuple(slice(*ends) for ends in box)]
                voxels[begin : begin + part.size].reshape(part.shape)[...] = part
                begin += part.size
        return torch.from_numpy(voxels)


def _delivered_seconds(
    chests: ChestCohort, config: ViewConfig, rounds: int, batches: int
) -> dict[str, float]:
    """Median seconds of processor per cube of each way to deliver, in turn: of this process and its workers.

    Not wall time, which on a busy machine is that of the others. What starting workers costs is taken off.
    """
    plan = BatchPlan(len(chests.index), BATCH, accumulation=1, seed=0)
    raw = MicroBatches(chests.index, plan, config, seed=0, render=False)
    views = MicroBatches(chests.index, plan, config, seed=0, render=True)
    drawn: list[Any] = [(plan.rows(micro), raw[micro]) for micro in range(batches)]
    copies = _BoxCopies(chests, drawn)
    del drawn
    ways: dict[str, Callable[[int], Iterable[object]]] = {
        "bare": lambda n: DataLoader(copies, None, sampler=range(n), num_workers=WORKERS, prefetch_factor=4),
        "raw": lambda n: stream_batches(raw, 0, n, WORKERS, pin=False),
        "views": lambda n: stream_batches(views, 0, n, WORKERS, pin=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, deliver in ways.items():
            start, whole = _cpu_seconds(deliver(WORKERS)), _cpu_seconds(deliver(batches))
            seconds[name].append((whole - start) / ((batches - WORKERS) * BATCH * 2))
    return {name: median(times) for name, times in seconds.items()}


def _cpu_seconds(batches: Iterable[object]) -> float:
    """Processor time of this process and of the workers that end with it."""
    before = sum(os.times()[:4])
    for _ in batches:
        pass
    del batches, _
    gc.collect()  # Workers are waited for when their iterator goes.
    return sum(os.times()[:4]) - before
