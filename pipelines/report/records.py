"""Runs as lines of JSON, so that a page of results can be made again without the store that held them.

One line is one run: its tags and parameters that this project names, its last metrics, its whole configuration, and its
table of nodules or slices. Which nodules or slices these are is a line of its own before the first run that has them,
since the arms of a campaign share them. Folders, and what MLflow itself notes, such as the user's name, are left out.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import pandas as pd

from pipelines.command.recorded import whole_configuration
from pipelines.runtime.atomic import make_folder, write_atomically
from pipelines.tracking.arms import ArmRecord
from pipelines.tracking.items import items_of
from pipelines.tracking.names import Tag
from pipelines.tracking.parameters import MACHINE
from pipelines.tracking.reading import StoredRun
from transforms.refusal import Refusal

FORMAT = 1
_DIGITS = 5
_KEYS = ("nodule_id", "volume_id", "slice_index", "patient_id")
_LEFT_OUT = frozenset((Tag.JOB,))


class RecordError(Refusal):
    """A file of records cannot be read."""


@dataclass(frozen=True)
class Records:
    """Runs from a file of records, and their tables by run id."""

    runs: list[StoredRun]
    arms: list[ArmRecord]
    tables: dict[str, pd.DataFrame]

    def items(self, run: StoredRun) -> pd.DataFrame | None:
        """Return the nodules or slices of a run."""
        return self.tables.get(run.run_id)


def write_records(runs: Iterable[StoredRun], path: Path) -> None:
    """Write finished and failed runs as lines of JSON, oldest first."""
    lines: dict[str, None] = {}
    for run in sorted(runs, key=lambda run: run.started):
        lines |= dict.fromkeys(json.dumps(line) for line in _lines(run))
    make_folder(path.parent)
    write_atomically(path, lambda file: file.write("".join(f"{line}\n" for line in lines).encode()))


def read_records(paths: Sequence[Path]) -> Records:
    """Read files of records.

    Raises:
        RecordError: If a file is missing, or holds what `write_records` did not write.
    """
    read = Records([], [], {})
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RecordError(
                f"records '{path}' cannot be read ({type(error).__name__}); name a .jsonl file that report wrote"
            ) from error
        keys: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(lines, 1):
            _add(read, keys, line, f"line {number} of records '{path}'")
    return read


def _lines(run: StoredRun) -> Iterator[dict[str, Any]]:
    """Give the line of a run, and before it that of the nodules or slices in its table."""
    items = items_of(run) if run.status == "FINISHED" else None
    table = None
    if items is not None:
        keys = {name: list(items[name].tolist()) for name in items if name in _KEYS}
        sha256 = hashlib.sha256(json.dumps(keys).encode()).hexdigest()
        yield {"format": FORMAT, "keys": sha256, "columns": keys}
        table = {
            "keys": sha256,
            "columns": {name: _column(items[name]) for name in items if name not in _KEYS},
        }
    yield {
        "format": FORMAT,
        "run_id": run.run_id,
        "status": run.status,
        "started": round(run.started),
        "is_deleted": run.is_deleted,
        "tags": {name: text for name, text in run.tags.items() if name in set(Tag) - _LEFT_OUT},
        "params": {key: _named(value) for key, value in _configuration(run).items()},
        "metrics": {name: _short(value) for name, value in run.metrics.items() if math.isfinite(value)},
        "items": table,
    }


def _configuration(run: StoredRun) -> dict[str, str]:
    whole = whole_configuration(run)
    return {key: value for key, value in whole.items() if key not in MACHINE or key in run.params}


def _named(value: str) -> str:
    """Return a value without the folders of a machine."""
    return PurePath(value).name if value.startswith(("/", "~")) else value


def _short(value: float) -> float:
    return float(f"{value:.7g}")


def _column(column: pd.Series) -> list[Any]:
    if pd.api.types.is_float_dtype(column):
        return [float(f"{value:.{_DIGITS}g}") for value in column]
    return list(column.tolist())


def _add(read: Records, keys: dict[str, dict[str, Any]], line: str, where: str) -> None:
    """Add the run of a line that is not there yet, or what its table and later ones are of."""
    try:
        one = json.loads(line)
        if one["format"] != FORMAT:
            raise RecordError(f"{where} has format {one['format']}; this version reads format {FORMAT}")
        if "run_id" not in one:
            keys[one["keys"]] = dict(one["columns"])
            return
        fields = {key: one[key] for key in ("run_id", "status", "tags", "metrics", "params", "started")}
        table = one["items"] and pd.DataFrame(keys[one["items"]["keys"]] | one["items"]["columns"])
        is_deleted = bool(one["is_deleted"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{where} is not a run as report writes it; write the file again") from error
    run = StoredRun(**fields, is_deleted=is_deleted)
    if any(run.run_id == other.run_id for other in read.runs):
        return  # The pretraining of a probe is kept with each of the two.
    read.runs.append(run)
    if Tag.NUMBER in run.tags and Tag.ARM in run.tags:
        read.arms.append(ArmRecord(**fields, is_deleted=is_deleted))
    if table is not None:
        read.tables[run.run_id] = table
