"""Stop requests (signals): finish the step, save, and exit with the signal's code. A deadline sends one too."""

import os
import signal
import threading
import time
from types import FrameType

DEADLINE_ENV = "DINOX_DEADLINE"
"""When an arm of a campaign ends itself, whether or not the campaign still runs: seconds of `time.monotonic`, which
counts from the start of the machine for all of its processes, and which nobody sets."""
GRACE_S = 60.0
"""How long a process that was asked to stop may take to save."""


class Interrupted(Exception):
    """The process was asked to stop and saved its work; neither a refusal nor a bug.

    Attributes:
        exit_code: 128 + signal: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, exit_code: int, sentence: str) -> None:
        """Keep the code beside the sentence."""
        super().__init__(sentence)
        self.exit_code = exit_code


_watches: list[threading.Timer] = []


def watch_deadline() -> None:
    """End this process at the deadline in its environment, if there is one.

    It gets SIGTERM, so that a training saves; `GRACE_S` later the kernel ends it in any case. Only the first call of
    a process starts the watch; it must come from the main thread.
    """
    given = os.environ.get(DEADLINE_ENV)
    if not given or _watches:
        return
    left_s = max(float(given) - time.monotonic(), 0.001)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, left_s + GRACE_S)
    _watches.append(threading.Timer(left_s, os.kill, (os.getpid(), signal.SIGTERM)))
    _watches[0].daemon = True
    _watches[0].start()


def _parent_to_follow() -> int | None:
    """Process id of the parent `mlflow run`, which forwards no signal; None when there is none to follow.

    An arm of a campaign may run longer than the campaign; its deadline ends it.
    """
    return os.getppid() if "MLFLOW_RUN_ID" in os.environ and DEADLINE_ENV not in os.environ else None


def end_with_parent() -> None:
    """Send this process SIGTERM when its parent `mlflow run` has ended."""
    parent = _parent_to_follow()

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    if parent is not None:
        threading.Thread(target=follow, daemon=True).start()


class StopWatch:
    """Notices SIGTERM and SIGINT, and the end of the parent `mlflow run`, which forwards neither."""

    def __init__(self) -> None:
        """Install the handlers; `close` restores the old ones."""
        self._signal: int | None = None
        self._parent = _parent_to_follow()
        self._before = {
            number: signal.signal(number, self._notice) for number in (signal.SIGTERM, signal.SIGINT)
        }

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self._signal = number

    @property
    def exit_code(self) -> int | None:
        """128 + signal when asked to stop, else None."""
        if self._signal is None and self._parent is not None and os.getppid() != self._parent:
            self._signal = signal.SIGTERM
        return None if self._signal is None else 128 + self._signal

    def close(self) -> None:
        """Restore the old handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
