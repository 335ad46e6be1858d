"""What a stage finds, kept on disk line by line, so that a machine that goes away takes nothing with it."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

Value = float | None

LINES, TABLE = "figures.jsonl", "figures.md"


class Figure(NamedTuple):
    """One measured value of a stage."""

    name: str
    value: Value
    """None where it could not be measured; the note says why."""
    unit: str = ""
    note: str = ""


class Line(NamedTuple):
    """A figure with the stage that found it; an empty name marks that the stage has ended."""

    stage: str
    figure: Figure


def append(folder: Path, stage: str, figure: Figure) -> None:
    """Add a figure to the file; it is on disk when this returns."""
    record = {"stage": stage, **figure._asdict()}
    with (folder / LINES).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()


def read(folder: Path) -> list[Line]:
    """Read all figures; a last line that was cut off is left out."""
    path = folder / LINES
    return list(_parsed(path.read_text(encoding="utf-8").splitlines())) if path.exists() else []


def _parsed(lines: Sequence[str]) -> Iterator[Line]:
    for number, text in enumerate(lines):
        try:
            record = json.loads(text)
        except json.JSONDecodeError:
            if number == len(lines) - 1:
                return
            raise
        yield Line(record.pop("stage"), Figure(**record))


def found(lines: Sequence[Line], stage: str, name: str) -> Value:
    """The newest value of a figure, or None."""
    values = [line.figure.value for line in lines if line.stage == stage and line.figure.name == name]
    return values[-1] if values else None


def table(lines: Sequence[Line], titles: dict[str, str], head: str) -> str:
    """All figures as Markdown, below a line that names the machine."""
    rows = [
        f"| {titles.get(stage, stage)} | {one.name} | {_shown(one.value)} | {one.unit} | {one.note} |"
        for stage, one in lines
        if one.name
    ]
    return "\n".join(
        [head, "", "| stage | figure | value | unit | note |", "|---|---|---|---|---|", *rows, ""]
    )


def _shown(value: Value) -> str:
    if value is None:
        return "not measured"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
