"""The folder of a training run on this machine: lock, record and checkpoints, and the search for a run to resume."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from pipelines.command.config import flatten, nested
from pipelines.runtime.atomic import write_atomically
from pipelines.runtime.json_files import DamagedFileError, read_json
from pipelines.runtime.paths import PROJECT_ROOT
from pipelines.tracking.changes import Change
from pipelines.tracking.names import Tag
from pipelines.tracking.store import restoring
from pipelines.training.checkpoint import lock_folder
from transforms.refusal import Refusal

if TYPE_CHECKING:
    from pipelines.tracking.run import Run

_RECORD = "run.json"
_FREE = {
    "resume",
    "allow_changes",
    "cohort",  # Its content is compared by hash, not its path.
    "runs_dir",
    "device",
    "workers",
    "nproc",
    "log_every",
    "eval_every",
    "eval_slices",
    "save_every",
    "keep_backbones",
    "register_as",
    "compile",
}
"""Keys that do not change what is learned; a resumed run may change them."""


class ResumeError(Refusal):
    """A run cannot be trained or continued here."""


class RunFolder:
    """`runs/<run id>`, locked by one process at a time."""

    def __init__(self, path: Path, lock: IO[str], is_resumed: bool = False) -> None:
        """Keep the lock of the folder."""
        self.path, self._lock, self.is_resumed = path, lock, is_resumed
        self.checkpoints = path / "checkpoints"

    @property
    def run_id(self) -> str:
        """The MLflow run that the folder belongs to."""
        return self.path.name

    @classmethod
    def create(
        cls, runs_dir: Path, run_id: str, recipe: str, cohort_sha: str, config: Mapping[str, Any]
    ) -> RunFolder:
        """Make the folder of a new run."""
        path = runs_dir / run_id
        lock = lock_folder(path)
        if lock is None:
            raise ResumeError(f"run {run_id} is being trained by another process")
        folder = cls(path, lock)
        folder._write({"recipe": recipe, "cohort_sha": cohort_sha, "config": dict(config), "finished": False})
        return folder

    @classmethod
    def find(
        cls,
        runs_dir: Path,
        resume: str,
        recipe: str,
        cohort_sha: str,
        config: Mapping[str, Any],
        allowed: set[str],
        defaults: Mapping[str, Any],
        deleted: Collection[str] = (),
    ) -> RunFolder | None:
        """Find the run to continue: a run id, or with "auto" the newest free unfinished one of this recipe and cohort.

        With "auto", newer runs of other hyper-parameters, such as arms, and those `deleted` in MLflow are passed over.
        An option that is missing in the record, because it was added to the program later, counts as its default.

        Returns:
            The locked folder; None when "auto" finds nothing to continue.

        Raises:
            ResumeError: If the named run is not here, is finished or locked, or if hyper-parameters differ that
                `allowed` does not name.
        """
        is_auto, named = resume == "auto", runs_dir / resume / _RECORD
        if not is_auto and resume in deleted:
            raise ResumeError(
                f"run '{resume}' was deleted in MLflow; {restoring(resume)}, and without resume a new run begins"
            )
        if not is_auto and not named.is_file():
            raise ResumeError(
                f"there is no run '{resume}' to resume in {runs_dir}; resume=auto takes the newest"
            )
        files = runs_dir.glob(f"*/{_RECORD}") if is_auto else [named]
        refusals: list[str] = []
        for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
            record = _read_if_whole(file) if is_auto else _read(file)
            is_match = (
                not record["finished"] and record["recipe"] == recipe and record["cohort_sha"] == cohort_sha
            )
            if is_match and (run_id := file.parent.name) in deleted:
                print(
                    f"passed over: run {run_id} was deleted in MLflow; {restoring(run_id)}, then resume={run_id}"
                )
                continue
            lock = lock_folder(file.parent) if is_match else None
            if lock is None:
                continue
            refusal = _refusal_of_changes({**_plain(defaults), **record["config"]}, config, allowed)
            if not refusal:
                return cls(file.parent, lock, is_resumed=True)
            lock.close()
            refusals.append(refusal)
        if refusals:
            raise ResumeError(refusals[0])
        if not is_auto:
            raise ResumeError(
                f"run '{resume}' cannot be resumed: it is finished, locked by another process, or of another recipe or"
                " cohort"
            )
        return None

    @staticmethod
    def state(runs_dir: Path, run_id: str) -> Literal["absent", "begun", "finished"]:
        """Return the state of a run on this machine: no folder, a training to continue, or one that is exported."""
        record = runs_dir / run_id / _RECORD
        if not run_id or not record.is_file():
            return "absent"
        return "finished" if _read(record)["finished"] else "begun"

    def mark_finished(self) -> None:
        """Record that the run is finished, so that it is not resumed again."""
        self._write(_read(self.path / _RECORD) | {"finished": True})

    def note_changes(self, step: int, config: Any) -> list[Change]:
        """Keep in the record what this process changes from a step on; return all changes of the run, oldest first.

        What an earlier process changed at this step or later was lost with its updates, and so is no change.
        """
        record = _read(self.path / _RECORD)
        noted = [Change(**one) for one in record.get("changes", ())]
        now = _plain(flatten(nested(config)))
        before = {**_plain(flatten(nested(type(config)()))), **record["config"]}
        for change in reversed(noted):
            if change.step >= step:
                before[change.key] = change.before
        changes = [change for change in noted if change.step < step]
        changes += [
            Change(step, key, before.get(key), now[key])
            for key in now
            if key not in _FREE and before.get(key) != now[key]
        ]
        if changes != noted:
            told = [asdict(change) for change in changes]
            self._write(record | {"config": {**record["config"], **now}, "changes": told})
        return changes

    def release(self) -> None:
        """Release the lock of the folder."""
        self._lock.close()

    def _write(self, record: Mapping[str, Any]) -> None:
        text = json.dumps(record, default=str)
        write_atomically(self.path / _RECORD, lambda file: file.write(text.encode()))


def claim_folder(config: Any, run: Run, recipe: str, cohort_sha: str) -> tuple[RunFolder, Run]:
    """Lock the folder of this run, or that of the run that it continues.

    Args:
        config: With `runs_dir`, `resume` and perhaps `allow_changes`.
        run: Of this process.
        recipe: What the runs that may be continued have in common, beside cohort and options.
        cohort_sha: Hash of the cohort.

    Returns:
        The folder, and the run that is written: this one, or the one that it continues.

    Raises:
        ResumeError: As `RunFolder.find`, or if the folder is locked.
    """
    runs_dir, flat = PROJECT_ROOT / config.runs_dir, flatten(nested(config))
    # A run that is started again, such as an arm of a campaign, continues from its checkpoint.
    is_begun = RunFolder.state(runs_dir, run.run_id) == "begun"
    resume, folder = config.resume or (run.run_id if is_begun else ""), None
    if resume:
        allowed = {key.strip() for key in getattr(config, "allow_changes", "").split(",")}
        defaults = flatten(nested(type(config)()))
        deleted = run.deleted()
        folder = RunFolder.find(runs_dir, resume, recipe, cohort_sha, flat, allowed, defaults, deleted)
    folder = folder or RunFolder.create(runs_dir, run.run_id, recipe, cohort_sha, flat)
    if folder.run_id != run.run_id:
        try:
            run.set_tags({Tag.RESUMES: folder.run_id})
            run = run.other(folder.run_id)
        except BaseException:  # The store may not know it, or not answer.
            folder.release()
            raise
    if folder.is_resumed:
        print(f"continues run {folder.run_id}")
    return folder, run


def _read_if_whole(path: Path) -> dict[str, Any]:
    """Read a record as `_read` does; a damaged one is reported and counts as finished."""
    try:
        return _read(path)
    except DamagedFileError as damage:
        print(f"skipped: {damage}")
        return {"finished": True}


def _read(path: Path) -> dict[str, Any]:
    remedy = "remove that folder if the run is not to be continued"
    return read_json(path, ("recipe", "cohort_sha", "config", "finished"), remedy)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options as they are stored in a record (JSON types)."""
    return dict(json.loads(json.dumps(dict(config), default=str)))


def _refusal_of_changes(before: Mapping[str, Any], now: Mapping[str, Any], allowed: set[str]) -> str:
    plain = _plain(now)
    changed = [key for key in plain if key not in _FREE | allowed and before.get(key) != plain[key]]
    if not changed:
        return ""
    key = changed[0]
    return (
        f"the run to resume had {key}={before.get(key)}, this command has {plain[key]}: give the old value, or"
        f" allow_changes={','.join(changed)} to change it"
    )
