"""A line where nothing else is said for a while, so that who waits, at a terminal or a log file, sees work go on."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from types import FrameType
from typing import Any

_SILENT_S = 9.0
_OURS = ("transforms", "models", "probes", "pipelines")


class _Heard:
    """A stream of text that notes when it was written to, and hands on every line at once, to a pipe too."""

    def __init__(self, stream: Any, said: list[float]) -> None:
        self._stream, self._said = stream, said

    def write(self, text: str) -> int:
        self._said[0] = monotonic()
        written: int = self._stream.write(text)
        if "\n" in text:
            self._stream.flush()
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def never_silent(name: str, silent_s: float = _SILENT_S) -> Iterator[None]:
    """Print "NAME: at work for N s" and where, whenever neither stdout nor stderr had anything for `silent_s`.

    Args:
        name: Of the command.
        silent_s: Longest silence, apart from a moment in which a library holds Python up.
    """
    out, err, said = sys.stdout, sys.stderr, [monotonic()]
    done, worker, began = threading.Event(), threading.get_ident(), said[0]

    def speak() -> None:
        while not done.wait(min(silent_s / 4, 1.0)):
            now = monotonic()
            if now - said[0] >= silent_s:
                print(f"{name}: at work for {now - began:.0f} s{_where(worker)}")

    speaker = threading.Thread(target=speak, daemon=True)
    sys.stdout, sys.stderr = _Heard(out, said), _Heard(err, said)
    speaker.start()
    try:
        yield
    finally:
        done.set()
        speaker.join()
        sys.stdout, sys.stderr = out, err


def _where(thread: int) -> str:
    """Return the module of ours in which a thread is, or that it loads libraries."""
    frame: FrameType | None = sys._current_frames().get(thread)
    found = ""
    while frame is not None:
        if frame.f_code.co_name == "_find_and_load":
            return " (loading libraries)"
        module = str(frame.f_globals.get("__name__", ""))
        if not found and module.partition(".")[0] in _OURS:
            found = f" ({module})"
        frame = frame.f_back
    return found
