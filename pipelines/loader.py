"""From a cohort on disk to batches of triplets: which slices make up which step, read straight from the page cache.

The order is a function of (seed, position) alone: it does not depend on the number of workers, of processes, or
of interruptions.
"""

from __future__ import annotations

import signal
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from pipelines.cohort import Cohort
from transforms.geometry import lps_to_index
from transforms.triplet import triplet_indices
from transforms.views import TripletBatch, ViewConfig, ViewDraws, Views, draw_views, render_views

PADDING_HU = -1024
_HELD_BACK = (signal.SIGINT, signal.SIGTERM)


class SliceIndex:
    """Every slice of some patients of a cohort, by number, and how to read the triplet around it.

    Attributes:
        volume: Number of the volume of each slice, (n,) int32.
        z: Its index in that volume, (n,) int32.
        patient_ids: Patient of each volume, (volumes,).
        volume_ids: Id of each volume, (volumes,).
    """

    def __init__(self, cohort: Cohort, patients: Collection[str], inner: bool = False) -> None:
        """Index the volumes of `patients`; pixels are read later.

        With `inner` slices are left out whose neighbour is missing or lies across a gap: no channel is a copy.
        """
        series = cohort.series[cohort.series["patient_id"].isin(list(patients))].sort_values("volume_id")
        self.cohort = cohort
        self.volume_ids = [str(value) for value in series["volume_id"]]
        self.patient_ids = [str(value) for value in series["patient_id"]]
        shapes = np.array([tuple(shape) for shape in series["shape"]], dtype=np.int64).reshape(-1, 3)
        self.size_hw = shapes[:, 1:]
        self.n_slices = shapes[:, 0]
        self.pixel_mm = np.array([tuple(s)[1:] for s in series["spacing_mm"]], dtype=np.float64).reshape(
            -1, 2
        )
        self.gaps = [tuple(int(gap) for gap in gaps) for gaps in series["gaps"]]
        self.volume = np.repeat(np.arange(len(shapes), dtype=np.int32), self.n_slices)
        self.z = np.concatenate(
            [np.arange(n, dtype=np.int32) for n in self.n_slices] or [np.zeros(0, np.int32)]
        )
        if inner:
            is_whole = np.concatenate(
                [_has_both_neighbours(n, gaps) for n, gaps in zip(self.n_slices, self.gaps, strict=True)]
                or [np.zeros(0, bool)]
            )
            self.volume, self.z = self.volume[is_whole], self.z[is_whole]
        self.points = _nodule_points(cohort, self.volume_ids)
        self._first_key = _global_keys(cohort, self.volume_ids)
        self._sizes = [(int(height), int(width)) for height, width in self.size_hw]
        self._depths = [int(depth) for depth in self.n_slices]

    def __len__(self) -> int:
        """Return the number of slices."""
        return len(self.z)

    def read(self, rows: Iterable[int]) -> TripletBatch:
        """Read the triplets around some slices, padded to the largest of them.

        Where a neighbour is missing (volume edge) or lies across a gap, z itself is repeated.
        """
        chosen = np.array(list(rows), dtype=np.int64)
        volumes, slices = self.volume[chosen], self.z[chosen]
        # The loop below is all there is between a copy and a sample: it works on Python's own numbers.
        places = list(zip(volumes.tolist(), slices.tolist(), strict=True))
        sizes = [self._sizes[volume] for volume, _ in places]
        height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
        triplets = np.empty((len(places), 3, height, width), dtype=np.int16)
        if len(set(sizes)) > 1:
            triplets.fill(PADDING_HU)
        body = np.empty((len(places), 32, 32), dtype=np.uint8)
        for i, (volume, z) in enumerate(places):
            (below, _, above), _ = triplet_indices(self._depths[volume], z, None, self.gaps[volume])
            volume_id, (h, w) = self.volume_ids[volume], sizes[i]
            voxels = self.cohort.volume(volume_id)
            if above - below == 2:  # Neighbours lie side by side: one copy.
                triplets[i, :, :h, :w] = voxels[below : above + 1]
            else:
                for channel, index in enumerate((below, z, above)):
                    triplets[i, channel, :h, :w] = voxels[index]
            body[i] = self.cohort.body(volume_id)[z]
        points = [self.points.get(place, (np.nan, np.nan)) for place in places]
        return TripletBatch(
            triplets_hu=torch.from_numpy(triplets),
            size_hw=torch.from_numpy(self.size_hw[volumes]),
            pixel_mm=torch.from_numpy(self.pixel_mm[volumes]),
            body=torch.from_numpy(body),
            sample_keys=torch.from_numpy(self._first_key[volumes] + slices),
            center_yx_px=torch.from_numpy(np.array(points, dtype=np.float64)),
        )


def _has_both_neighbours(n_slices: int, gaps: tuple[int, ...]) -> NDArray[np.bool_]:
    is_whole = np.ones(n_slices, dtype=bool)
    after = np.array([-1, *gaps, n_slices - 1], dtype=np.int64)
    is_whole[after[after >= 0]] = False
    is_whole[after[after + 1 < n_slices] + 1] = False
    return is_whole


def _global_keys(cohort: Cohort, volume_ids: list[str]) -> NDArray[np.int64]:
    # Keys count slices of the whole cohort, so a slice keeps its key whichever patients are chosen.
    everyone = cohort.series.sort_values("volume_id")
    depth = np.array([int(shape[0]) for shape in everyone["shape"]], dtype=np.int64)
    first = dict(zip(everyone["volume_id"], np.concatenate([[0], depth.cumsum()[:-1]]), strict=True))
    return np.array([first[volume_id] for volume_id in volume_ids], dtype=np.int64)


def _nodule_points(cohort: Cohort, volume_ids: list[str]) -> dict[tuple[int, int], tuple[float, float]]:
    """Return the in-plane centre of a nodule for every slice that it touches: {(volume, z): (y, x)}, in pixels.

    Of two nodules on one slice the larger is named. One of unknown diameter touches the slice of its centre.
    """
    points: dict[tuple[int, int], tuple[float, float]] = {}
    if cohort.nodules.empty:
        return points
    number = {volume_id: i for i, volume_id in enumerate(volume_ids)}
    rows = {str(row["volume_id"]): row for row in cohort.series.to_dict("records")}
    nodules = cohort.nodules[cohort.nodules["volume_id"].isin(volume_ids)]
    nodules = nodules.assign(diameter_mm=nodules["diameter_mm"].fillna(0.0))
    for nodule in nodules.sort_values("diameter_mm").to_dict("records"):
        volume_id = str(nodule["volume_id"])
        row = rows[volume_id]
        center = [float(nodule[f"{axis}_lps_mm"]) for axis in "xyz"]
        z, y, x = lps_to_index(list(row["affine_ras"]), center, list(row["slice_offsets_mm"])).tolist()
        reach = max(float(nodule["diameter_mm"]) / 2 / float(row["spacing_mm"][0]), 0.5)
        for touched in range(
            max(0, int(np.ceil(z - reach))), min(int(row["shape"][0]) - 1, int(z + reach)) + 1
        ):
            points[number[volume_id], touched] = (y, x)
    return points


@dataclass(frozen=True)
class BatchPlan:
    """Which slices make up which micro-batch.

    Attributes:
        n_slices: Length of the index.
        batch_size: Slices of one forward pass over all processes.
        accumulation: Forward passes of one update.
        seed: Of the order.
        rank: This process.
        processes: How many share each batch.
    """

    n_slices: int
    batch_size: int
    accumulation: int
    seed: int
    rank: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        """Refuse batches that cannot be filled or shared."""
        if self.batch_size > self.n_slices:
            raise ValueError(
                f"a batch of {self.batch_size} slices cannot be drawn from {self.n_slices} training slices;"
                " lower batch_size or prepare more series"
            )
        if self.batch_size % self.processes:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be shared evenly by {self.processes} processes"
            )

    def rows(self, micro: int) -> NDArray[np.int64]:
        """Return this process's rows of micro-batch `micro`; each epoch deals all slices once."""
        share = self.batch_size // self.processes
        first = micro * self.batch_size + self.rank * share
        positions = np.arange(first, first + share)
        epochs, offsets = np.divmod(positions, self.n_slices)
        return np.array(
            [_order(self.seed, int(e), self.n_slices)[o] for e, o in zip(epochs, offsets, strict=True)],
            dtype=np.int64,
        )


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64))).permutation(n)


class DrawnBatch(NamedTuple):
    """Triplets and the views that were drawn of them, for the device that trains to render."""

    triplets: TripletBatch
    draws: ViewDraws


class MicroBatches(Dataset[DrawnBatch | Views]):
    """One item is one whole micro-batch, so that any worker can make any of them alike."""

    def __init__(
        self, index: SliceIndex, plan: BatchPlan, views: ViewConfig, seed: int, render: bool
    ) -> None:
        """With `render` an item is views (CPU training), else raw int16 triplets with what is to be shown of them."""
        self.index, self.plan, self.views, self.seed, self.render = index, plan, views, seed, render

    def __getitem__(self, micro: int) -> DrawnBatch | Views:
        """Make micro-batch number `micro` of the run."""
        triplets = self.index.read(self.plan.rows(micro))
        draws = draw_views(triplets, self.views, self.seed, step=micro // self.plan.accumulation)
        return render_views(triplets, draws, self.views) if self.render else DrawnBatch(triplets, draws)


def stream_batches(
    dataset: MicroBatches, first: int, last: int, workers: int, pin: bool
) -> Iterator[DrawnBatch | Views]:
    """Yield micro-batches `first` to `last - 1` in order, `workers` processes ahead."""
    loader: DataLoader[DrawnBatch | Views] = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(first, last),
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_begin_worker if workers else None,
        # A loader draws a seed that nothing here uses; it must not move the training's own generator.
        generator=torch.Generator(),
    )
    # A loader process that is only starting would go at a signal: it comes to life with them held back.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    try:
        batches = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    yield from batches


def _begin_worker(_: int) -> None:
    """Take one core, and leave it to the training to answer a signal that torchrun, Slurm or Ctrl-C send to all.

    A loader process that went at once would take the training with it before it has saved. The second SIGTERM, by
    which a dying parent ends what it left, counts.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_BACK)
