"""Progress of long work: a live bar on a terminal, a line every 15 seconds in a log file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(jobs: Iterable[Any] | None = None, **options: Any) -> tqdm[Any]:
    """Wrap jobs, or make a bar that `update` advances; options are tqdm's own."""
    return tqdm(jobs, mininterval=0.2 if sys.stderr.isatty() else 15.0, **options)
