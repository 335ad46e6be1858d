"""Runs as the MLflow store holds them: one by its id, all that match a query, and their artifacts."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from mlflow.artifacts import download_artifacts
from mlflow.entities import LifecycleStage, ViewType
from mlflow.exceptions import MlflowException

from pipelines.runtime.paths import IS_CHECKOUT
from pipelines.tracking.names import Tag
from pipelines.tracking.old_names import PARAMETER, current_metric, current_params
from pipelines.tracking.store import (
    STORE_ENV,
    NotInStoreError,
    answering,
    client,
    default_uri,
    shown_store,
    status_code,
    tracking_uri,
)

R = TypeVar("R", bound="StoredRun")


@dataclass(frozen=True)
class StoredRun:
    """One run as recorded in the store.

    Attributes:
        status: SCHEDULED, RUNNING, FINISHED, FAILED or KILLED.
        metrics: The last value of each, under its current name.
        params: With current keys and values.
        is_whole: Whether these are its whole configuration, as those of older runs are.
        is_deleted: Whether a person has deleted it in MLflow's pages; it can be restored until `mlflow gc`.
        started: Seconds since the epoch.
        artifact_uri: Where its artifacts go.
    """

    run_id: str
    status: str
    tags: dict[str, str]
    metrics: dict[str, float]
    params: dict[str, str]
    started: float = 0.0
    experiment_id: str = ""
    artifact_uri: str = ""
    is_whole: bool = True
    is_deleted: bool = False

    @property
    def entry_point(self) -> str:
        """The entry point that wrote it; "" for a run of another program."""
        return self.tags.get(Tag.ENTRY_POINT, "")


@answering()
def read_run(kind: type[R], run_id: str) -> R:
    """Read one run.

    Raises:
        NotInStoreError: If it is not in the store.
    """
    try:
        return _of(kind, client().get_run(run_id))
    except MlflowException as error:
        if status_code(error) not in (400, 404):
            raise
        raise NotInStoreError(
            f"run '{run_id}' is not in the store {shown_store()}; `mlflow ui` lists the runs that are, and"
            f" {STORE_ENV} names another store"
        ) from error


@answering()
def search_runs(kind: type[R], query: str, with_deleted: bool = False) -> list[R]:
    """Return all runs that match, in every experiment, newest first; deleted ones only if asked for."""
    store, token = client(), None
    view = ViewType.ALL if with_deleted else ViewType.ACTIVE_ONLY
    ids = [experiment.experiment_id for experiment in store.search_experiments(view)]
    found: list[R] = []
    while True:
        page: Any = store.search_runs(ids, query, view, page_token=token)
        found += [_of(kind, run) for run in page]
        token = page.token
        if not token:
            return found


def _of(kind: type[R], run: Any) -> R:
    info, data = run.info, run.data
    return kind(
        run_id=info.run_id,
        status=info.status,
        tags=dict(data.tags),
        metrics={current_metric(name): value for name, value in data.metrics.items()},
        params=current_params(data.params),
        started=float(info.start_time or 0) / 1000.0,
        experiment_id=info.experiment_id,
        artifact_uri=info.artifact_uri,
        is_deleted=info.lifecycle_stage == LifecycleStage.DELETED,
        is_whole=any(name.startswith(PARAMETER) for name in data.params),
    )


@answering()
def history(run_id: str, metric: str) -> list[tuple[int, float]]:
    """Return the (step, value) pairs of a metric of a run, the last one of each step, in order."""
    return by_step(client().get_metric_history(run_id, metric))


def by_step(points: Iterable[Any]) -> list[tuple[int, float]]:
    """Return (step, value) pairs of MLflow's points of a metric: of several at a step the one logged last."""
    ordered = sorted(points, key=lambda point: point.timestamp)
    return sorted({point.step: point.value for point in ordered}.items())


def newest_backbone_run() -> str | None:
    """Return the id of the newest finished pretrain run that holds a backbone, or None.

    The wrapper run that a resumed training leaves behind holds none and carries `Tag.RESUMES`.
    """
    query = f"tags.`{Tag.ENTRY_POINT}` = 'pretrain' and attributes.status = 'FINISHED'"
    found = search_runs(StoredRun, f"{query} and tags.`{Tag.BACKBONE}` = 'yes'")
    return next((run.run_id for run in found if Tag.RESUMES not in run.tags), None)


def newest_run(entry_point: str, name: str) -> StoredRun:
    """Return the newest run of an entry point with this name, or the one that it resumed.

    Raises:
        NotInStoreError: If there is none.
    """
    query = f"tags.`{Tag.ENTRY_POINT}` = '{entry_point}' and attributes.run_name = '{name}'"
    found = search_runs(StoredRun, query)
    if not found:
        raise NotInStoreError(f"there is no run '{name}' of {entry_point} in {shown_store()}")
    resumed = found[0].tags.get(Tag.RESUMES, "")
    return read_run(StoredRun, resumed) if resumed else found[0]


@answering()
def fetch_artifact(run_id: str, path: str, into: Path) -> Path:
    """Copy an artifact of a run into a folder and return its path there.

    Raises:
        NotInStoreError: If the run does not exist or holds no such artifact.
    """
    read_run(StoredRun, run_id)
    if path not in artifacts(run_id, str(Path(path).parent)):
        raise NotInStoreError(f"run '{run_id}' holds no '{path}'; a finished pretrain run does")
    return Path(client().download_artifacts(run_id, path, str(into)))


@answering()
def fetch_model(name: str, into: Path) -> Path:
    """Copy the files of a logged model into a folder and return it.

    Args:
        name: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or `models:/ID` of a logged model.
        into: The folder.

    Raises:
        StoreRefusedError: If the store has no such model.
    """
    store = tracking_uri()
    return Path(
        download_artifacts(artifact_uri=name, dst_path=str(into), tracking_uri=store, registry_uri=store)
    )


@answering()
def artifacts(run_id: str, folder: str = ".") -> list[str]:
    """Return the paths of the artifacts directly in a folder of a run."""
    return [file.path for file in client().list_artifacts(run_id, None if folder == "." else folder)]


def compare_page(run_ids: list[str], experiment_id: str) -> str:
    """Return the address of MLflow's compare page."""
    runs, experiments = quote(json.dumps(run_ids)), quote(json.dumps([experiment_id]))
    return f"{_server()}/#/compare-runs?runs={runs}&experiments={experiments}"


def run_page(run_id: str, experiment_id: str) -> str:
    """Return the address of a run's page."""
    return f"{_server()}/#/experiments/{experiment_id}/runs/{run_id}"


def runs_page(experiment_id: str) -> str:
    """Return the address of the list of runs: without its last part MLflow opens on an empty list of traces."""
    return f"{_server()}/#/experiments/{experiment_id}?workflowType=machine_learning"


def how_served() -> str:
    """Return the command that serves the pages of the store in use; "" where a server does."""
    if is_served():
        return ""
    if IS_CHECKOUT and tracking_uri() == default_uri():
        return "make ui"
    return f"mlflow ui --backend-store-uri {shown_store()}"


def is_served() -> bool:
    """Whether the store in use is a server."""
    return tracking_uri().startswith(("http://", "https://"))


def _server() -> str:
    """The server of the store in use, without a user and password; of a file, the one that `how_served` starts."""
    if not is_served():
        return "http://127.0.0.1:5000"
    return shown_store().replace("***@", "").partition("?")[0].rstrip("/")
