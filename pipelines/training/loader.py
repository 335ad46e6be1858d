"""From a cohort on disk to batches of triplets or cubes: which slices belong to which step, read from the page cache.

The order is a function of (seed, position) alone: it does not depend on the number of workers, processes or
interruptions.
"""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipelines.cohort.drawn import DrawnBatch, draw_batch
from pipelines.cohort.slices import SliceIndex
from pipelines.training.mixture import Mixture
from transforms.refusal import Refusal, number_of
from transforms.views.batch import Views
from transforms.views.config import ViewConfig

STRATUM_BATCHES = 16
_HELD_BACK = (signal.SIGINT, signal.SIGTERM)
_PREFETCH = 4
"""Batches that each loader process makes ahead."""
SILENT_S = 600.0
"""After so long without a batch, the loader processes are taken for stuck."""
_SHARED = "/dev/shm"


class LoaderError(Refusal):
    """The loader processes cannot hand over their batches, or one of them has died or is stuck."""


class BatchError(Refusal):
    """There are too few training slices for a batch, or it cannot be divided among the processes."""


@dataclass(frozen=True)
class BatchPlan:
    """Which slices belong to which micro-batch.

    Attributes:
        n_slices: Length of the index.
        batch_size: Slices of one forward pass over all processes.
        accumulation: Forward passes per update.
        seed: Seed of the order.
        rank: Rank of this process.
        processes: Number of processes that share each batch.
        mixture: Shares of several cohorts; None takes every slice once in each epoch.
        diameter_mm: Of what each slice shows, (n_slices,), NaN where nothing: a batch holds slices of like diameter.
    """

    n_slices: int
    batch_size: int
    accumulation: int
    seed: int
    rank: int = 0
    processes: int = 1
    mixture: Mixture | None = None
    diameter_mm: NDArray[np.float64] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Refuse batches that cannot be filled or divided."""
        if self.batch_size > self.n_slices:
            raise BatchError(
                f"batch_size={self.batch_size} cannot be drawn from {number_of(self.n_slices, 'training slice')};"
                " lower batch_size or prepare more series"
            )
        if self.batch_size % self.processes:
            raise BatchError(
                f"batch_size {self.batch_size} cannot be shared evenly by {self.processes} processes"
            )
        if self.diameter_mm is not None and not np.isfinite(self.diameter_mm).any():
            raise BatchError("batches=diameter needs nodules, and no training slice shows one")

    def rows(self, micro: int) -> NDArray[np.int64]:
        """Return this process's rows of micro-batch `micro`; each epoch takes every slice once, in a new order.

        With a mixture that holds for each cohort by itself.
        """
        share = self.batch_size // self.processes
        first = micro * self.batch_size + self.rank * share
        positions = np.arange(first, first + share)
        if self.mixture is not None:
            return np.array([self.mixture.row(int(p), self.seed) for p in positions], dtype=np.int64)
        if self.diameter_mm is not None:
            # What fills no batch of its own is left out of the epoch, so that batches and strata begin together.
            epoch, first = divmod(first, self.n_slices // self.batch_size * self.batch_size)
            return _matched_order(self, epoch)[first : first + share]
        epochs, offsets = np.divmod(positions, self.n_slices)
        return np.array(
            [_order(self.seed, int(e), self.n_slices)[o] for e, o in zip(epochs, offsets, strict=True)],
            dtype=np.int64,
        )


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64))).permutation(n)


@lru_cache(maxsize=2)
def _matched_order(plan: BatchPlan, epoch: int) -> NDArray[np.int64]:
    """Sort 16 batches at a time by diameter and shuffle them; which slices these are is drawn anew in each epoch."""
    assert plan.diameter_mm is not None
    order, batch = _order(plan.seed, epoch, plan.n_slices), plan.batch_size
    generator = np.random.Generator(np.random.Philox(key=np.array([plan.seed, epoch], np.uint64), counter=1))
    whole = plan.n_slices // batch * batch
    parts = []
    for start in range(0, whole, STRATUM_BATCHES * batch):
        part = order[start : min(start + STRATUM_BATCHES * batch, whole)]
        part = part[np.argsort(plan.diameter_mm[part], kind="stable")]
        parts.append(generator.permutation(part.reshape(-1, batch)).ravel())
    return np.concatenate(parts)


class MicroBatches(Dataset[DrawnBatch | Views]):
    """One item is one whole micro-batch, so that it does not depend on the worker that makes it."""

    def __init__(
        self, index: SliceIndex, plan: BatchPlan, views: ViewConfig, seed: int, render: bool
    ) -> None:
        """With `render` an item is views (CPU training), else raw int16 voxels with the view parameters."""
        self.index, self.plan, self.views, self.seed, self.render = index, plan, views, seed, render

    def __getitem__(self, micro: int) -> DrawnBatch | Views:
        """Make micro-batch number `micro` of the run."""
        step = micro // self.plan.accumulation
        drawn = draw_batch(self.index, self.plan.rows(micro), self.views, self.seed, step)
        return drawn.render(torch.device("cpu"), self.views) if self.render else drawn


def stream_batches(
    dataset: MicroBatches, first: int, last: int, workers: int, pin: bool
) -> Iterator[DrawnBatch | Views]:
    """Yield micro-batches `first` to `last - 1` in order, `workers` processes ahead.

    Raises:
        LoaderError: If shared memory is too small for that, or a loader process has died or is stuck.
    """
    if workers and first < last:
        refuse_small_memory(dataset[first], workers)
    loader: DataLoader[DrawnBatch | Views] = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(first, last),
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=_PREFETCH if workers else None,
        timeout=SILENT_S if workers else 0,
        worker_init_fn=_begin_worker if workers else None,
        # A loader draws a seed that is not used here; it must not advance the training's own generator.
        generator=torch.Generator(),
    )
    # A signal would end a loader process that is still starting, so signals are blocked until it is ready.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    at_child = signal.getsignal(signal.SIGCHLD)
    try:
        batches = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # torch would raise in the midst of an update; without it a dead process is noticed where a batch is awaited.
        signal.signal(signal.SIGCHLD, at_child)
    try:
        yield from batches
    except RuntimeError as error:
        if not str(error).startswith(("DataLoader worker (pid", "DataLoader timed out")):
            raise  # Of a worker's own code: a bug.
        raise LoaderError(
            f"a loader process was killed, or gave no batch for {SILENT_S:.0f} s: memory may be too small, or the disk"
            " of the cohort away; fewer workers need less"
        ) from error


def refuse_small_memory(batch: DrawnBatch | Views, workers: int) -> None:
    """Refuse more loader processes than shared memory can hold batches for: they would die, or wait for ever.

    Raises:
        LoaderError: With the number of workers that fit.
    """
    try:
        room = os.statvfs(_SHARED)
    except OSError:  # Not Linux.
        return
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    free, each = room.f_bavail * room.f_frsize, _PREFETCH * here * _tensor_bytes(batch)
    if workers * each > free:
        raise LoaderError(
            f"{workers} loader processes need {workers * each / 1e6:.0f} MB of shared memory ({_SHARED}) for"
            f" {_PREFETCH} batches each, and {free / 1e6:.0f} MB are free; start the container with"
            f" --shm-size={max(2 * workers * each // 10**9, 1)}g, or give workers={free // each}"
        )


def _tensor_bytes(one: object) -> int:
    if isinstance(one, Tensor):
        return one.nbytes
    if is_dataclass(one):
        return sum(_tensor_bytes(getattr(one, field.name)) for field in fields(one))
    return sum(map(_tensor_bytes, one)) if isinstance(one, tuple | list) else 0


def _begin_worker(_: int) -> None:
    """Use one core, and ignore the first stop signal, which torchrun, Slurm and Ctrl-C send to all processes.

    A loader process that ended at once would crash the training before it has saved. The second SIGTERM, which an
    ending parent sends to its children, ends the loader.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_BACK)
