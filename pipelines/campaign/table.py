"""The table of a campaign: one line per arm, in the terminal while it runs and as an artifact."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.tracking.arms import ArmRecord
from pipelines.tracking.names import Tag

COLUMNS = ("arm", "status", "verdict", "step", "loss", "G", "top-1", "hours", "cost", "tries", "saved h")
_QUIET_S = 30.0


@dataclass(frozen=True)
class Line:
    """One row of the table."""

    cells: tuple[str, ...]


def lines(records: Sequence[ArmRecord], steps: Mapping[str, int], now: float) -> list[Line]:
    """Return a row for every arm; `steps` holds the last step by run id, where there is one."""
    return [_line(record, steps.get(record.run_id), now) for record in records]


def _line(record: ArmRecord, step: int | None, now: float) -> Line:
    metrics, hours = record.metrics, record.hours(now)
    saved = saved_hours(record, step, now)
    return Line(
        (
            record.name,
            record.tags.get(Tag.ARM_STATUS) or record.status.lower(),
            record.tags.get(Tag.STATUS, ""),
            "" if step is None else str(step),
            _number(metrics, "loss/total"),
            _number(metrics, "teacher/gain"),
            _number(metrics, "retrieval/top1"),
            f"{hours:.3f}",
            f"{record.cost(now):.4f}",
            str(record.attempt),
            f"{saved:.3f}" if saved else "",
        )
    )


def saved_hours(record: ArmRecord, step: int | None, now: float) -> float:
    """Return the hours that an arm saved by stopping early, at its own speed."""
    planned = int(record.params.get("cfg.steps", "0"))
    is_over = record.status == "FINISHED"
    if not is_over or not step or step >= planned:
        return 0.0
    return record.hours(now) * (planned - step) / step


def _number(metrics: Mapping[str, float], name: str) -> str:
    return f"{metrics[name]:.3f}" if name in metrics else ""


def render(rows: Sequence[Line], total: str) -> str:
    """Return the table in aligned Markdown, the same for terminal and artifact."""
    cells = [COLUMNS, *(row.cells for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    written = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in cells
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
