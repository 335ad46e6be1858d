"""Asked to stop: finish the step, save, and say with which signal."""

from __future__ import annotations

import os
import signal
from types import FrameType


class StopWatch:
    """Hears SIGTERM and SIGINT, and the end of the `mlflow run` above, which forwards neither."""

    def __init__(self) -> None:
        """Listen from now on; `close` gives the old handlers back."""
        self._signal: int | None = None
        self._parent = os.getppid() if "MLFLOW_RUN_ID" in os.environ else None
        self._before = {
            number: signal.signal(number, self._hear) for number in (signal.SIGTERM, signal.SIGINT)
        }

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._signal = number

    @property
    def exit_code(self) -> int | None:
        """128 + signal when asked to stop, else None."""
        if self._signal is None and self._parent is not None and os.getppid() != self._parent:
            self._signal = signal.SIGTERM
        return None if self._signal is None else 128 + self._signal

    def close(self) -> None:
        """Give the old handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
