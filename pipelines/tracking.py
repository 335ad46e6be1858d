"""The record of a run: the only file, beside the plugin, that imports MLflow.

A run is written through MLflow's client by its id, so nothing depends on process-wide state, and a run can be
continued by the process that resumes it.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from pipelines.config import PROJECT_ROOT

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

STORE_ENV = "MLFLOW_TRACKING_URI"
_PARAMS_AT_ONCE = 100
_METRICS_AT_ONCE = 1000


def tracking_uri() -> str:
    """Return the store in force: MLFLOW_TRACKING_URI, else sqlite in the project folder."""
    return os.environ.get(STORE_ENV) or f"sqlite:///{PROJECT_ROOT / 'mlflow.db'}"


def client() -> MlflowClient:
    """Open the store in force."""
    return MlflowClient(tracking_uri())


def git_commit() -> str:
    """Return the commit of the project folder, with "-dirty" when files differ from it; "unknown" outside git."""
    try:
        commit = _git("rev-parse", "HEAD")
        return f"{commit}-dirty" if _git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


class Run:
    """One MLflow run that an entry point writes to."""

    def __init__(self, store: MlflowClient, run_id: str) -> None:
        """Attach to an existing run."""
        self.store = store
        self.run_id = run_id

    @classmethod
    def start(cls, entry_point: str) -> Run:
        """Attach to the run that `mlflow run` made for this process, else make one in the chosen experiment."""
        if int(os.environ.get("RANK", "0")) > 0:
            return SilentRun()
        store = client()
        run_id = os.environ.get("MLFLOW_RUN_ID")
        if run_id is None:
            run_id = store.create_run(_experiment_id(store), run_name=entry_point).info.run_id
        run = cls(store, run_id)
        run.set_tags({"dinox.entry_point": entry_point, "dinox.git_commit": git_commit()})
        return run

    @property
    def is_wrapped(self) -> bool:
        """Whether `mlflow run` above this process owns the run and will close it."""
        return os.environ.get("MLFLOW_RUN_ID") == self.run_id

    @property
    def experiment_id(self) -> str:
        """The experiment that this run belongs to."""
        return str(self.store.get_run(self.run_id).info.experiment_id)

    @property
    def artifact_uri(self) -> str:
        """Where the artifacts of this run go."""
        return str(self.store.get_run(self.run_id).info.artifact_uri)

    def other(self, run_id: str) -> Run:
        """Attach to another run of the same store."""
        return Run(self.store, run_id)

    @property
    def recipe(self) -> str:
        """Name of the recipe that the run follows; "" without one."""
        return str(self.store.get_run(self.run_id).data.tags.get("dinox.recipe", ""))

    def history(self, metric: str) -> list[tuple[int, float]]:
        """Return the (step, value) pairs of a metric, one a step, in order."""
        points = self.store.get_metric_history(self.run_id, metric)
        return sorted({point.step: point.value for point in points}.items())

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log named numbers at a step (optimiser updates)."""
        now = int(time.time() * 1000)
        entries = [Metric(name, float(value), now, step) for name, value in metrics.items()]
        for start in range(0, len(entries), _METRICS_AT_ONCE):
            self.store.log_batch(self.run_id, metrics=entries[start : start + _METRICS_AT_ONCE])

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters once; the resolved configuration goes under `cfg.`."""
        entries = [Param(name, str(value)) for name, value in params.items()]
        for start in range(0, len(entries), _PARAMS_AT_ONCE):
            self.store.log_batch(self.run_id, params=entries[start : start + _PARAMS_AT_ONCE])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; a later value replaces an earlier one."""
        self.store.log_batch(self.run_id, tags=[RunTag(name, str(value)) for name, value in tags.items()])

    def log_figure(self, figure: Figure, path: str) -> None:
        """Write a matplotlib figure as an artifact, e.g. "figures/views.png"."""
        self.store.log_figure(self.run_id, figure, path)

    def log_text(self, text: str, path: str) -> None:
        """Write a text artifact."""
        self.store.log_text(self.run_id, text, path)

    def log_table(self, table: pd.DataFrame, path: str) -> None:
        """Write a table as an artifact; the ending of `path` says parquet or csv."""
        name = Path(path)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / name.name
            if name.suffix == ".csv":
                table.to_csv(file, index=False)
            else:
                table.to_parquet(file, index=False)
            self.log_file(file, str(name.parent))

    def log_file(self, file: Path, folder: str = "") -> None:
        """Copy a file, or a folder with all it holds, into the run's artifacts."""
        if file.is_dir():
            self.store.log_artifacts(self.run_id, str(file), folder or None)
        else:
            self.store.log_artifact(self.run_id, str(file), folder if folder not in ("", ".") else None)

    def finish(self, status: str) -> None:
        """Close the run as FINISHED, FAILED or KILLED."""
        self.store.set_terminated(self.run_id, status=status)

    def reopen(self) -> None:
        """Mark a run as running again: one that was planned, or that ended before it was done."""
        self.store.update_run(self.run_id, status="RUNNING")


class SilentRun(Run):
    """Stands in for the run in processes other than the first: it writes nothing."""

    def __init__(self) -> None:
        """Attach to nothing."""
        self.run_id = ""

    @property
    def is_wrapped(self) -> bool:
        """Whether another process closes the run: always."""
        return True

    @property
    def recipe(self) -> str:
        """No recipe is known here."""
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Write nothing."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Write nothing."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Write nothing."""

    def log_figure(self, figure: Figure, path: str) -> None:
        """Write nothing."""

    def log_text(self, text: str, path: str) -> None:
        """Write nothing."""

    def log_file(self, file: Path, folder: str = "") -> None:
        """Write nothing."""

    def finish(self, status: str) -> None:
        """Write nothing."""


def _experiment_id(store: MlflowClient) -> str:
    given = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if given:
        return given
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
    found = store.get_experiment_by_name(name)
    return str(found.experiment_id if found else store.create_experiment(name))


def newest_backbone_run(experiment_ids: list[str] | None = None) -> str | None:
    """Return the newest finished pretrain run that holds a backbone, or None.

    The wrapper run that a resumed training leaves behind holds none and carries `dinox.resumes`.
    """
    store = client()
    ids = experiment_ids or [e.experiment_id for e in store.search_experiments()]
    query = "tags.`dinox.entry_point` = 'pretrain' and attributes.status = 'FINISHED'"
    for run in store.search_runs(ids, query, order_by=["attributes.start_time DESC"], max_results=200):
        if "dinox.resumes" not in run.data.tags and run.data.tags.get("dinox.backbone") == "yes":
            return str(run.info.run_id)
    return None


def fetch_artifact(run_id: str, path: str, into: Path) -> Path:
    """Copy an artifact of a run into a folder and return where it lies.

    Raises:
        ValueError: If the run does not exist or holds no such artifact.
    """
    store = client()
    try:
        store.get_run(run_id)
    except MlflowException as error:
        raise ValueError(
            f"run '{run_id}' is not in the store {tracking_uri()}; `mlflow ui` lists the runs that are"
        ) from error
    if not store.list_artifacts(run_id, path):
        raise ValueError(f"run '{run_id}' holds no '{path}'; a finished pretrain run does")
    return Path(store.download_artifacts(run_id, path, str(into)))


def run_tags(run_id: str) -> dict[str, str]:
    """Return the tags of a run."""
    return dict(client().get_run(run_id).data.tags)


def run_metrics(run_id: str) -> dict[str, float]:
    """Return the last value of every metric of a run."""
    return dict(client().get_run(run_id).data.metrics)


def run_status(run_id: str) -> str:
    """Return SCHEDULED, RUNNING, FINISHED, FAILED or KILLED."""
    return str(client().get_run(run_id).info.status)


def experiment_of(run_id: str) -> str:
    """Return the experiment that a run belongs to."""
    return str(client().get_run(run_id).info.experiment_id)


def newest_run(entry_point: str) -> str:
    """Return the newest run of an entry point.

    Raises:
        ValueError: If there is none.
    """
    store = client()
    ids = [experiment.experiment_id for experiment in store.search_experiments()]
    query = f"tags.`dinox.entry_point` = '{entry_point}'"
    found = store.search_runs(ids, query, order_by=["attributes.start_time DESC"], max_results=1)
    if not found:
        raise ValueError(f"there is no run of {entry_point} in {tracking_uri()}")
    return str(found[0].info.run_id)
