"""Writing the record of a run to MLflow.

A run is written through MLflow's client by its id, so nothing depends on process-wide state, and a run can be
continued by the process that resumes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    RunTag,
)
from mlflow.utils.mlflow_tags import MLFLOW_PROJECT_ENTRY_POINT
from PIL import Image

from pipelines.runtime.paths import IS_CHECKOUT, git
from pipelines.runtime.plot_style import PRINT_DPI, STEP_DPI, sign
from pipelines.tracking.description import description, is_made_up, spoken_name
from pipelines.tracking.gallery import PAGE, file_of, gallery
from pipelines.tracking.names import IMAGES, METRICS, TAGS, Tag, refuse_unlisted
from pipelines.tracking.outbox import Kind, Outbox, Record, StoreAwayError
from pipelines.tracking.reading import StoredRun, by_step, read_run, run_page, search_runs
from pipelines.tracking.store import StoreRefusedError, answering, client, quiet_about_secrets

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_PARAMS_AT_ONCE = 100
_METRICS_AT_ONCE = 1000
_CHOOSING = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}


@cache
def git_commit() -> str:
    """Return the commit of the project folder, with "-dirty" when files differ from it; "unknown" outside git.

    Of an installed copy its version: the folder that it is called in may be under another git.
    """
    if not IS_CHECKOUT:
        return f"dinox-ct {version('dinox-ct')}"
    try:
        commit = git("rev-parse", "HEAD")
        return f"{commit}-dirty" if git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


class Run:
    """One MLflow run that an entry point writes to."""

    def __init__(self, store: MlflowClient, run_id: str) -> None:
        """Attach to an existing run."""
        self.store = store
        self.run_id = run_id
        self.outbox: Outbox | None = None
        self.name = self.cohort_name = ""

    @classmethod
    def start(cls, entry_point: str) -> Run:
        """Attach to the run that `mlflow run` made for this process, else create one in the chosen experiment.

        Raises:
            StoreAwayError: If the store does not answer.
            StoreRefusedError: If it cannot be opened, or rejects the run or experiment named in the environment.
        """
        if int(os.environ.get("RANK", "0")) > 0:
            return SilentRun()
        store = client()
        try:
            run = cls(store, given_run(entry_point) or _new_run(store, entry_point))
            run.set_tags({Tag.ENTRY_POINT: entry_point, Tag.GIT_COMMIT: git_commit()})
        except StoreRefusedError as refusal:
            named = " and ".join(f"{name}={os.environ[name]}" for name in _CHOOSING if os.environ.get(name))
            if not named:
                raise
            raise StoreRefusedError(f"{refusal} ({named} was given)") from refusal
        return run

    @property
    def is_wrapped(self) -> bool:
        """Whether a parent `mlflow run` owns the run and will close it."""
        return os.environ.get("MLFLOW_RUN_ID") == self.run_id

    def stored(self) -> StoredRun:
        """Read this run from the store.

        Raises:
            NotInStoreError: If it is not there.
        """
        return read_run(StoredRun, self.run_id)

    def deleted(self) -> set[str]:
        """Return the ids of the runs of this program that were deleted in MLflow's pages."""
        found = search_runs(StoredRun, f"tags.`{Tag.ENTRY_POINT}` != ''", with_deleted=True)
        return {run.run_id for run in found if run.is_deleted}

    def other(self, run_id: str) -> Run:
        """Attach to another run of the same store.

        Raises:
            NotInStoreError: If it is not in the store.
        """
        stored, run = read_run(StoredRun, run_id), Run(self.store, run_id)
        run.name = stored.tags.get(Tag.RUN_NAME, "")
        return run

    @answering()
    def history(self, metric: str) -> list[tuple[int, float]]:
        """Return the (step, value) pairs of a metric, the last one of each step, in order."""
        return by_step(self.store.get_metric_history(self.run_id, metric))

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log named numbers at a step (optimizer updates).

        Raises:
            UnlistedNameError: If a name is not in `pipelines.tracking.names`.
        """
        refuse_unlisted(metrics, METRICS)
        now = int(time.time() * 1000)
        entries = [[name, float(value), now, step] for name, value in metrics.items()]
        for start in range(0, len(entries), _METRICS_AT_ONCE):
            self._post("batch", {"metrics": entries[start : start + _METRICS_AT_ONCE]})

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters, by dotted key of the configuration; a value cannot be changed later."""
        entries = [[key, str(value)] for key, value in params.items()]
        for start in range(0, len(entries), _PARAMS_AT_ONCE):
            self._post("batch", {"params": entries[start : start + _PARAMS_AT_ONCE]})

    def set_tags(self, tags: Mapping[Tag, str]) -> None:
        """Set tags; a later value replaces an earlier one.

        Raises:
            UnlistedNameError: If a tag is not in `pipelines.tracking.names`.
        """
        refuse_unlisted(tags, TAGS)
        self._post("batch", {"tags": [[str(name), str(value)] for name, value in tags.items()]})

    def log_dataset(self, name: str, sha256: str, facts: Mapping[str, Any], context: str) -> None:
        """Log what the run reads, for the column Dataset of MLflow's pages.

        Args:
            name: Of the cohort; no path, which may name a person.
            sha256: Its hash, of which MLflow's digest holds the first 36 digits.
            facts: Its kind and counts.
            context: `training`, `evaluation`, ...
        """
        self.cohort_name = name
        self._post("dataset", {"name": name, "digest": sha256[:36], "facts": dict(facts), "context": context})

    @answering()
    def name_it(self, entry_point: str, recipe: str, config: Any) -> None:
        """Name the run, unless a person has: its name is one of MLflow's own making, or the entry point's."""
        given = self.store.get_run(self.run_id).info.run_name or ""
        self.name = given
        if is_made_up(given) or given == entry_point:
            self.name = spoken_name(entry_point, recipe, config, self.run_id)
            self.set_tags({Tag.RUN_NAME: self.name})

    def describe(self, next_step: str = "") -> str:
        """Write the description that MLflow's pages show of the run, from what the store holds; return its page."""
        stored = self.stored()
        self.set_tags({Tag.DESCRIPTION: description(stored, "" if Tag.RESUMES in stored.tags else next_step)})
        self.log_gallery()
        return run_page(self.run_id, stored.experiment_id) if self.run_id else ""

    def log_figure(self, figure: Figure, path: str, dpi: int = PRINT_DPI) -> None:
        """Write a matplotlib figure, e.g. "figures/views.png", under a line with the names of run and cohort."""
        sign(figure, self.name, f"cohort {self.cohort_name}" if self.cohort_name else "")
        self._log_written(path, partial(figure.savefig, dpi=dpi))

    def log_image(self, figure: Figure, key: str, step: int) -> None:
        """Write a matplotlib figure of a step as an artifact; `log_gallery` shows all steps of a key behind a slider.

        Raises:
            UnlistedNameError: If the key is not in `pipelines.tracking.names`.
        """
        refuse_unlisted([key], IMAGES)
        sign(figure, f"step {step}")
        self.log_figure(figure, file_of(key, step), STEP_DPI)

    def log_gallery(self) -> None:
        """Write all figures that the store holds of this run as one page; while the store is away, nothing."""
        if not self.run_id or (self.outbox is not None and len(self.outbox)):
            return
        with contextlib.suppress(StoreAwayError):
            if page := gallery(self.stored()):
                self.log_text(page, PAGE)

    def log_text(self, text: str, path: str) -> None:
        """Write a text artifact."""
        self._log_written(path, lambda file: file.write_text(text, encoding="utf-8"))

    def log_table(self, table: pd.DataFrame, path: str) -> None:
        """Write a table as an artifact; as CSV or parquet by the ending of `path`."""
        write = table.to_csv if Path(path).suffix == ".csv" else table.to_parquet
        self._log_written(path, lambda file: write(file, index=False))

    def _log_written(self, path: str, write: Callable[[Path], object]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(path).name
            write(file)
            self.log_file(file, str(Path(path).parent))

    def log_file(self, file: Path, folder: str = "") -> None:
        """Copy a file, or a folder with its contents, into the run's artifacts."""
        self._post("file", {"folder": "" if folder == "." else folder}, file)

    def log_model(self, name: str, folder: Path, metrics: Mapping[str, float], register_as: str = "") -> None:
        """Log a folder of weights as a model of MLflow's page Models, with figures of this run.

        Args:
            name: Of the model.
            folder: Safetensors and their description; nothing is pickled.
            metrics: Figures that belong to the model.
            register_as: Name in MLflow's registry that gets it as a new version; "": none.
        """
        content = {"name": name, "metrics": dict(metrics), "register_as": register_as}
        self._post("model", content | {"time": int(time.time() * 1000)}, folder)

    def finish(self, status: str) -> None:
        """Close the run as FINISHED, FAILED or KILLED."""
        self._post("status", {"status": status})

    def reopen(self) -> None:
        """Mark a run as running again: one that was planned, or that ended early."""
        self._post("status", {"status": "RUNNING"})

    def _post(self, kind: Kind, content: dict[str, Any], payload: Path | None = None) -> None:
        record = Record(self.run_id, kind, content, str(payload or ""))
        if self.outbox is None:
            _deliver(self.store, record)
        else:
            self.outbox.post(record)

    def buffer_in(self, folder: Path) -> Outbox:
        """From now on keep records in `folder` while the store cannot be reached, instead of failing.

        A training must not wait minutes for a server, so requests also time out early from now on.
        """
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        self.outbox = Outbox(folder, partial(_deliver, self.store))
        return self.outbox


@answering()
def _deliver(store: MlflowClient, record: Record) -> None:
    content, run_id, payload = record.content, record.run_id, Path(record.payload)
    match record.kind:
        case "batch":
            store.log_batch(
                run_id,
                metrics=[Metric(*entry) for entry in content.get("metrics", ())],
                params=[Param(*entry) for entry in content.get("params", ())],
                tags=[RunTag(*entry) for entry in content.get("tags", ())],
            )
        case "file" if payload.is_dir():
            store.log_artifacts(run_id, str(payload), content["folder"] or None)
        case "file":
            store.log_artifact(run_id, str(payload), content["folder"] or None)
        case "image":  # Of an outbox that an earlier version filled.
            with Image.open(payload) as image:
                key, step, at = content["key"], content["step"], content["time"]
                store.log_image(run_id, image, key=key, step=step, timestamp=at, synchronous=True)
        case "dataset":
            facts = json.dumps(content["facts"])
            dataset = Dataset(content["name"], content["digest"], "cohort", facts, profile=facts)
            context = InputTag("mlflow.data.context", content["context"])
            store.log_inputs(run_id, [DatasetInput(dataset, [context])])
        case "model":
            _deliver_model(store, run_id, content, payload)
        case "status" if content["status"] == "RUNNING":
            store.update_run(run_id, status="RUNNING")
        case "status":
            with quiet_about_secrets():
                store.set_terminated(run_id, status=content["status"])


def _deliver_model(store: MlflowClient, run_id: str, content: dict[str, Any], folder: Path) -> None:
    experiment_id, name = store.get_run(run_id).info.experiment_id, content["name"]
    before = store.search_logged_models([experiment_id], f"source_run_id = '{run_id}' AND name = '{name}'")
    if any(model.status == LoggedModelStatus.READY for model in before):
        return
    model_id = store.create_logged_model(experiment_id, name, run_id, model_type="backbone").model_id
    store.log_model_artifacts(model_id, str(folder))
    store.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    for metric, value in content["metrics"].items():
        # MLflow adds the point to the run's own curve: at step 0 it would replace where the curve begins.
        points = by_step(store.get_metric_history(run_id, metric))
        step = points[-1][0] if points else 0
        store.log_metric(run_id, metric, value, content["time"], step, model_id=model_id)
    if registered := content["register_as"]:
        if not store.search_registered_models(f"name = '{registered}'"):
            store.create_registered_model(registered)
        store.create_model_version(registered, f"models:/{model_id}", run_id)
    store.finalize_logged_model(model_id, LoggedModelStatus.READY)


class SilentRun(Run):
    """The run in processes other than the first: it writes nothing."""

    def __init__(self) -> None:
        """Attach to nothing."""
        self.run_id = self.name = self.cohort_name = ""
        self.outbox = None

    @property
    def is_wrapped(self) -> bool:
        """Whether another process closes the run: always."""
        return True

    def name_it(self, entry_point: str, recipe: str, config: Any) -> None:
        """Name nothing."""

    def deleted(self) -> set[str]:
        """Nothing of other runs is known here."""
        return set()

    def stored(self) -> StoredRun:
        """Nothing of the run is known here."""
        return StoredRun("", "", {}, {}, {})

    def _post(self, kind: Kind, content: dict[str, Any], payload: Path | None = None) -> None:
        pass


def given_run(entry_point: str) -> str:
    """Return the run that `mlflow run` or a campaign made for this process; "" if there is none.

    Every process inherits `MLFLOW_RUN_ID`: a run that is finished or deleted, or that another entry point writes, is
    not this process's, and is left as it is.

    Raises:
        NotInStoreError: If the store does not have it.
    """
    run_id = os.environ.get("MLFLOW_RUN_ID", "")
    if not run_id:
        return ""
    found = read_run(StoredRun, run_id)
    owner = found.entry_point or found.tags.get(MLFLOW_PROJECT_ENTRY_POINT, entry_point)
    if owner == entry_point and found.status != "FINISHED" and not found.is_deleted:
        return run_id
    why = "was deleted" if found.is_deleted else "is finished" if owner == entry_point else f"is of {owner}"
    print(f"MLFLOW_RUN_ID names run {run_id}, which {why}; this {entry_point} is written to a run of its own")
    return ""


@answering()
def _new_run(store: MlflowClient, name: str) -> str:
    experiment_id = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if not experiment_id:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
        found = store.get_experiment_by_name(experiment)
        experiment_id = found.experiment_id if found else store.create_experiment(experiment)
    return str(
        store.create_run(experiment_id, run_name=os.environ.get("MLFLOW_RUN_NAME") or name).info.run_id
    )
