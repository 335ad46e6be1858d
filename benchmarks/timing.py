"""Times of several ways to do one thing, taken in turn, so that a busy machine slows all of them alike."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from time import process_time
from typing import NamedTuple

import torch

ROUNDS = 7


class Row(NamedTuple):
    """One line of the table: `target` is like ">= 7" or "<= 1.5", or empty where there is no target."""

    name: str
    ratio: float
    target: str
    unit: str
    missing: str = ""
    """What this processor lacks and the target needs; then it is not judged."""


def median_cpu_seconds(ways: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Run every way once to warm up, then `rounds` times in turn; return the median of each.

    Seconds are processor time of this process, which other programs on the machine disturb less than wall time. Time
    spent in child processes does not count.
    """
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = process_time()
            way()
            seconds[name].append(process_time() - start)
    return {name: median(times) for name, times in seconds.items()}


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
