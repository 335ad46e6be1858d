"""The stages of a measurement, in their order, each with its budget: what cannot be repeated comes first."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.gpu.figures import Figure, Line


@dataclass(frozen=True)
class Setting:
    """Where and how large to measure.

    Attributes:
        device: A GPU, or the CPU of a rehearsal.
        is_rehearsal: Tiny networks, one short round: it shows that every line runs, and measures nothing.
        deadline: Value of `time.monotonic()` at which the stage's budget is spent.
        earlier: Figures of the stages before.
        folder: Where a stage may write.
    """

    device: torch.device
    is_rehearsal: bool
    deadline: float
    folder: Path
    earlier: list[Line] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """How long each figure is timed."""
        return 0.05 if self.is_rehearsal else 3.0

    def has_left(self, seconds: float) -> bool:
        """Whether that much of the stage's budget is left; a rehearsal always has."""
        return self.is_rehearsal or time.monotonic() + seconds < self.deadline


@dataclass(frozen=True)
class Stage:
    """One stage: the module of this folder whose function `measure(setting)` yields its figures."""

    title: str
    module: str
    budget_s: int

    def measure(self) -> Callable[[Setting], Iterator[Figure]]:
        """Import the module; only this stage needs what it imports."""
        function: Callable[[Setting], Iterator[Figure]] = import_module(
            f"benchmarks.gpu.{self.module}"
        ).measure
        return function


STAGES = {
    "b": Stage("ceilings", "ceilings", 20),
    "c": Stage("update on batches already there", "updates", 130),
    "d": Stage("with the loader", "delivery", 60),
    "e": Stage("beside peers", "peers", 70),
    "g": Stage("checkpoint from CPU to GPU and back", "resume", 20),
    "a": Stage("tests marked gpu", "suite", 90),
    "f": Stage("3D, multi-crop and iBOT", "networks", 50),
    "h": Stage("where the time of an update goes", "profile", 30),
}
FAKE = Stage("forward passes on a fake GPU", "fake", 60)
"""The last stage of a rehearsal, and no part of a measurement."""
ALL = STAGES | {"x": FAKE}
"""By their letters in `docs/gpu.md`; the budgets sum to less than eight minutes."""
