"""The table of a campaign: one line per arm, in the terminal while it runs and as an artifact."""

import sys
import time
from collections.abc import Mapping, Sequence

from pipelines.tracking.arms import ArmRecord
from pipelines.tracking.names import Tag

COLUMNS = ("arm", "status", "verdict", "step", "loss", "G", "top-1", "hours", "cost", "tries", "saved h")
_QUIET_S = 30.0


def line(record: ArmRecord, step: int | None, now: float) -> tuple[str, ...]:
    """Return the row of an arm; `step` is its last one, where there is one."""
    metrics, saved = record.metrics, saved_hours(record, step, now)
    return (
        record.name,
        record.tags.get(Tag.ARM_STATUS) or record.status.lower(),
        record.tags.get(Tag.STATUS, ""),
        "" if step is None else str(step),
        _number(metrics, "loss/total"),
        _number(metrics, "teacher/gain"),
        _number(metrics, "retrieval/top1"),
        f"{record.hours(now):.3f}",
        f"{record.cost(now):.4f}",
        str(record.attempt),
        f"{saved:.3f}" if saved else "",
    )


def saved_hours(record: ArmRecord, step: int | None, now: float) -> float:
    """Return the hours that an arm saved by stopping early, at its own speed."""
    planned = int(record.params.get("steps", "0"))
    if record.status != "FINISHED" or not step or step >= planned:
        return 0.0
    return record.hours(now) * (planned - step) / step


def _number(metrics: Mapping[str, float], name: str) -> str:
    return f"{metrics[name]:.3f}" if name in metrics else ""


def render(rows: Sequence[tuple[str, ...]], total: str) -> str:
    """Return the table in aligned Markdown, the same for terminal and artifact."""
    cells = [COLUMNS, *rows]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    written = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    written.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(written) + f"\n\n{total}\n"


class LiveTable:
    """Redraws the table in place on a terminal; elsewhere prints it when more than a number has changed."""

    def __init__(self) -> None:
        """Start with an empty screen."""
        self._height = 0
        self._last = ""
        self._kept_at = 0.0

    def show(self, text: str, signature: str, is_end: bool) -> bool:
        """Draw the table, or print it if `signature` has changed; return whether it should be stored now."""
        quiet_s = time.monotonic() - self._kept_at
        is_due = quiet_s > (_QUIET_S if signature != self._last else 10 * _QUIET_S)
        is_kept = is_end or is_due or not self._last
        if is_kept:
            self._last, self._kept_at = signature, time.monotonic()
        if sys.stdout.isatty():
            if self._height:
                print(f"\x1b[{self._height}A\x1b[J", end="")
            print(text, end="", flush=True)
            self._height = text.count("\n")
        elif is_kept:
            print(text, flush=True)
        return is_kept
