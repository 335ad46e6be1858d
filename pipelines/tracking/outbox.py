"""Records wait on disk, in order, while the tracking store cannot be reached, and are delivered when it can again.

Every record is written atomically, so a killed run loses none; delivering one twice changes nothing.
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pipelines.runtime.atomic import make_folder, write_atomically, writing
from pipelines.runtime.json_files import read_json
from pipelines.runtime.paths import inside
from transforms.refusal import Refusal, number_of

Kind = Literal["batch", "file", "image", "dataset", "model", "status"]

RETRY_S = 30.0
"""Seconds between two attempts to reach the store; records in between go straight to disk."""


class StoreAwayError(Refusal):
    """The tracking store cannot be reached or does not answer; trying again later may help."""


class RunDeletedError(Refusal):
    """A person has deleted the run in MLflow's pages; it can be restored."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record on its way to the store.

    Attributes:
        run_id: MLflow run that it belongs to.
        kind: `batch` (metrics, params, tags), `file` (a file or folder as artifact), `image` (a PNG of a step),
            `dataset` (what the run reads), `model` (a folder of weights), or `status` (of the run).
        content: Plain values, as the kind needs them.
        payload: The file or folder to send; "" without one.
    """

    run_id: str
    kind: Kind
    content: dict[str, Any] = field(default_factory=dict)
    payload: str = ""


class Outbox:
    """A folder of waiting records; it is made for the first one."""

    def __init__(self, folder: Path, deliver: Callable[[Record], None]) -> None:
        """Use `folder`; records of an earlier process in it are delivered first.

        Args:
            folder: Where records wait.
            deliver: Sends one record to the store; raises StoreAwayError if the store cannot be reached,
                RunDeletedError if the run was deleted.
        """
        self.folder, self._deliver, self.retry_s = folder, deliver, RETRY_S
        self._next_attempt = 0.0
        self.reason = ""
        """Why records wait, and how to have them delivered."""

    def __len__(self) -> int:
        """Return the number of waiting records."""
        return len(self._waiting())

    def post(self, record: Record) -> None:
        """Deliver a record after all waiting ones, or keep it on disk."""
        if self.flush():
            try:
                self._deliver(record)
                return
            except (StoreAwayError, RunDeletedError) as error:
                self._wait(error)
                what = (
                    self.reason
                    if isinstance(error, RunDeletedError)
                    else "the tracking store cannot be reached"
                )
                print(f"{what}: records wait in the run's folder and training goes on")
        self._keep(record)

    def flush(self, is_last: bool = False) -> bool:
        """Deliver waiting records, oldest first; at most once every `retry_s`, unless it is the last attempt.

        Returns:
            Whether none is left.
        """
        if time.monotonic() < self._next_attempt and not is_last:
            return False
        waiting = self._waiting()
        for path in waiting:
            stored = read_json(path, ("run_id", "kind"), "remove it: what it holds is lost")
            if payload := stored.get("payload"):
                inside(self.folder, Path(payload))  # Else a folder of others could name any file to be sent.
            try:
                self._deliver(Record(**stored))
            except (StoreAwayError, RunDeletedError) as error:
                self._wait(error)
                return False
            path.unlink()
            shutil.rmtree(path.with_suffix(".payload"), ignore_errors=True)
        if waiting:
            print(f"the tracking store answers again: {number_of(len(waiting), 'record')} delivered")
        self._next_attempt = 0.0
        return True

    def _wait(self, error: StoreAwayError | RunDeletedError) -> None:
        self._next_attempt, self.reason = time.monotonic() + self.retry_s, str(error)

    def _waiting(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.json"))

    def _keep(self, record: Record) -> None:
        make_folder(self.folder)
        waiting = self._waiting()
        path = self.folder / f"{int(waiting[-1].stem) + 1 if waiting else 0:08d}.json"
        with writing(self.folder):
            if record.payload:
                copy, source = path.with_suffix(".payload"), Path(record.payload)
                shutil.rmtree(copy, ignore_errors=True)  # What a process killed while copying left behind.
                copy.mkdir()
                if source.is_dir():
                    shutil.copytree(source, copy / source.name)
                else:
                    shutil.copyfile(source, copy / source.name)
                record = replace(record, payload=str(copy / source.name))
        write_atomically(path, lambda file: file.write(json.dumps(asdict(record)).encode()))
