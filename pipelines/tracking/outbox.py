"""What the tracking store cannot take now waits on disk, in order, and is delivered when it can be reached again.

Every record is a file that is whole or absent, so a killed run loses none; delivering one twice changes nothing.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipelines.runtime.atomic import write_atomically, writing
from transforms.refusal import Refusal

Kind = Literal["batch", "file", "image", "status"]

RETRY_S = 30.0
"""Between two attempts to reach a store that was away; records of that time go straight to disk."""


class StoreAwayError(Refusal):
    """The tracking store cannot be reached, or cannot answer."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One record on its way to the store.

    Attributes:
        run_id: The run that it belongs to.
        kind: `batch` (metrics, params, tags), `file` (a file or folder as artifact), `image` (a PNG of a step),
            or `status` (how the run stands).
        content: Plain values, as the kind needs them.
        payload: The file or folder that goes along; "" without one.
    """

    run_id: str
    kind: Kind
    content: dict[str, Any] = field(default_factory=dict)
    payload: str = ""


class Outbox:
    """A folder of letters that wait; it is made when the first one has to."""

    def __init__(self, folder: Path, deliver: Callable[[Letter], None], retry_s: float = RETRY_S) -> None:
        """Use `folder`; letters that an earlier process left there are delivered first.

        Args:
            folder: Where letters wait.
            deliver: Hands one letter to the store; raises StoreAwayError when that is away.
            retry_s: Seconds between two attempts.
        """
        self.folder, self._deliver, self._retry_s = folder, deliver, retry_s
        self._next_attempt = 0.0

    def __len__(self) -> int:
        """Return how many letters wait."""
        return len(self._waiting())

    def post(self, letter: Letter) -> None:
        """Deliver a letter after all that wait, or keep it."""
        if self.flush():
            try:
                self._deliver(letter)
                return
            except StoreAwayError:
                self._note_absence()
                print("the tracking store is away: records wait in the run's folder and training goes on")
        self._keep(letter)

    def flush(self, is_last: bool = False) -> bool:
        """Deliver what waits, oldest first; at most once every `retry_s`, unless it is the last attempt.

        Returns:
            Whether nothing waits any more.
        """
        if time.monotonic() < self._next_attempt and not is_last:
            return False
        waiting = self._waiting()
        for path in waiting:
            try:
                self._deliver(Letter(**json.loads(path.read_text(encoding="utf-8"))))
            except StoreAwayError:
                self._note_absence()
                return False
            path.unlink()
            _remove(path.with_suffix(".payload"))
        if waiting:
            print(f"the tracking store is back: {len(waiting)} records delivered")
        self._next_attempt = 0.0
        return True

    def _waiting(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.json"))

    def _note_absence(self) -> None:
        self._next_attempt = time.monotonic() + self._retry_s

    def _keep(self, letter: Letter) -> None:
        with writing(self.folder):
            self._write(letter)

    def _write(self, letter: Letter) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        waiting = self._waiting()
        path = self.folder / f"{int(waiting[-1].stem) + 1 if waiting else 0:08d}.json"
        fields = asdict(letter)
        if letter.payload:
            copy = path.with_suffix(".payload")
            _remove(copy)  # what a process killed while copying left behind
            copy.mkdir()
            source, target = Path(letter.payload), copy / Path(letter.payload).name
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                shutil.copyfile(source, target)
            fields["payload"] = str(target)
        write_atomically(path, lambda file: file.write(json.dumps(fields).encode()))


def _remove(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)
