"""Data loading: triplets read from the cohort, and samples delivered by two worker processes."""

from collections.abc import Callable, Iterable
from statistics import median
from time import perf_counter

import numpy as np
from torch.utils.data import DataLoader

from benchmarks.chest_cohort import ChestCohort, chest_cohort
from benchmarks.png_peer import PngTwoViews
from benchmarks.timing import ROUNDS, Row, median_cpu_seconds, one_thread
from pipelines.training.loader import BatchPlan, MicroBatches, stream_batches
from transforms.views.config import ViewConfig

BATCH, WORKERS = 16, 2
READS = 64


def measure(tiny: bool = False) -> list[Row]:
    """Time random reads against a bare copy, and delivery by workers against PNG files."""
    chests, rounds = chest_cohort(tiny), 1 if tiny else ROUNDS
    with one_thread():
        reads = median_cpu_seconds(_read_ways(chests), rounds)
        delivered = _delivered_seconds(chests, rounds, share=0.1 if tiny else 1.0)
    return [
        Row(
            "random triplet read, one core",
            reads["ours"] / reads["bare"],
            "<= 1.5",
            f"times a bare copy from the memory map ({reads['ours'] / READS * 1e3:.2f} ms)",
        ),
        Row(
            f"random triplet read in batches of {BATCH}, one core",
            reads["ours in batches"] / reads["bare in batches"],
            "<= 1.5",
            "times bare copies into the place of each in a batch",
        ),
        Row(
            f"samples delivered with two views, {WORKERS} workers",
            delivered["png"] / delivered["views"],
            ">= 5",
            f"times the rate of 16-bit PNG loading ({1 / delivered['views']:.0f} samples/s)",
        ),
        Row(
            f"samples delivered as raw int16 with two views drawn, {WORKERS} workers",
            delivered["png"] / delivered["raw"],
            ">= 20",
            f"times the rate of 16-bit PNG loading ({1 / delivered['raw']:.0f} samples/s)",
        ),
    ]


def _read_ways(chests: ChestCohort) -> dict[str, Callable[[], None]]:
    rows = np.random.default_rng(0).choice(chests.inner_rows(), READS).tolist()

    def bare() -> None:
        for row_number in rows:
            volume, z = chests.volume(row_number)
            np.array(volume[z - 1 : z + 2])

    def ours() -> None:
        for row_number in rows:
            chests.index.read([row_number])

    def bare_in_batches() -> None:
        for first in range(0, READS, BATCH):
            batch = np.empty((BATCH, 3, *chests.slice_px), dtype=np.int16)
            for i, row_number in enumerate(rows[first : first + BATCH]):
                volume, z = chests.volume(row_number)
                batch[i] = volume[z - 1 : z + 2]

    def ours_in_batches() -> None:
        for first in range(0, READS, BATCH):
            chests.index.read(rows[first : first + BATCH])

    return {
        "bare": bare,
        "ours": ours,
        "bare in batches": bare_in_batches,
        "ours in batches": ours_in_batches,
    }


def _delivered_seconds(chests: ChestCohort, rounds: int, share: float) -> dict[str, float]:
    """Median seconds per sample of each way to deliver, in turn; `share` of the batches of a whole measurement."""
    config = ViewConfig()
    plan = BatchPlan(len(chests.index), BATCH, accumulation=1, seed=0)
    views = MicroBatches(chests.index, plan, config, seed=0, render=True)
    raw = MicroBatches(chests.index, plan, config, seed=0, render=False)
    peer_rows = (
        np.random.default_rng(0).choice(chests.inner_rows(), max(3, round(6 * share)) * BATCH).tolist()
    )
    peer = PngTwoViews(chests.png_paths, peer_rows, config)
    ways: dict[str, Callable[[], Iterable[object]]] = {
        "png": lambda: DataLoader(peer, BATCH, num_workers=WORKERS, prefetch_factor=4),
        "views": lambda: stream_batches(views, 0, round(30 * share), WORKERS, pin=False),
        "raw": lambda: stream_batches(raw, 0, round(80 * share), WORKERS, pin=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, deliver in ways.items():
            seconds[name].append(_seconds_per_sample(deliver()))
    return {name: median(times) for name, times in seconds.items()}


def _seconds_per_sample(batches: Iterable[object]) -> float:
    """Time from when every worker has delivered once, so that starting the workers is not counted."""
    arrivals = []
    for _ in batches:
        arrivals.append(perf_counter())
    return (arrivals[-1] - arrivals[WORKERS - 1]) / ((len(arrivals) - WORKERS) * BATCH)
