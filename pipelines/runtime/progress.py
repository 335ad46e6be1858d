"""Progress of long work: a live bar on a terminal, a line every 8 seconds in a log file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_LINE_S = 8.0


def progress(jobs: Iterable[Any] | None = None, leave: bool = True, **options: Any) -> tqdm[Any]:
    """Wrap jobs, or make a bar that `update` advances.

    Args:
        jobs: What is gone through.
        leave: Whether the bar stays; one that does not is in a log file only if it takes long.
        options: tqdm's own.
    """
    is_live = sys.stderr.isatty()
    delay_s = 0.0 if is_live or leave else _LINE_S / 2
    return tqdm(jobs, mininterval=0.2 if is_live else _LINE_S, delay=delay_s, leave=leave, **options)
