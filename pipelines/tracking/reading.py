"""Reading one run from MLflow: its tags, metrics and artifacts, and the newest run of a kind."""

from __future__ import annotations

from pathlib import Path

from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException

from pipelines.tracking.names import Tag
from pipelines.tracking.old_names import current_metrics
from pipelines.tracking.store import STORE_ENV, NotInStoreError, answering, client, shown_store, status_code


@answering()
def newest_backbone_run(experiment_ids: list[str] | None = None) -> str | None:
    """Return the id of the newest finished pretrain run that holds a backbone, or None.

    The wrapper run that a resumed training leaves behind holds none and carries `Tag.RESUMES`.
    """
    store = client()
    ids = experiment_ids or [e.experiment_id for e in store.search_experiments()]
    query = f"tags.`{Tag.ENTRY_POINT}` = 'pretrain' and attributes.status = 'FINISHED'"
    for run in store.search_runs(ids, query, order_by=["attributes.start_time DESC"], max_results=200):
        if Tag.RESUMES not in run.data.tags and run.data.tags.get(Tag.BACKBONE) == "yes":
            return str(run.info.run_id)
    return None


@answering()
def fetch_artifact(run_id: str, path: str, into: Path) -> Path:
    """Copy an artifact of a run into a folder and return its path there.

    Raises:
        NotInStoreError: If the run does not exist or holds no such artifact.
    """
    store = client()
    get_run(run_id)
    if path not in artifacts(run_id, str(Path(path).parent)):
        raise NotInStoreError(f"run '{run_id}' holds no '{path}'; a finished pretrain run does")
    return Path(store.download_artifacts(run_id, path, str(into)))


@answering()
def artifacts(run_id: str, folder: str = ".") -> list[str]:
    """Return the paths of the artifacts directly in a folder of a run."""
    found = client().list_artifacts(run_id, None if folder == "." else folder)
    return [str(file.path) for file in found]


@answering()
def get_run(run_id: str) -> MlflowRun:
    """Return a run of the store.

    Raises:
        NotInStoreError: If the run does not exist.
    """
    try:
        return client().get_run(run_id)
    except MlflowException as error:
        if status_code(error) not in (400, 404):
            raise
        raise NotInStoreError(
            f"run '{run_id}' is not in the store {shown_store()}; `mlflow ui` lists the runs that are, and"
            f" {STORE_ENV} names another store"
        ) from error


def run_tags(run_id: str) -> dict[str, str]:
    """Return the tags of a run."""
    return dict(get_run(run_id).data.tags)


def run_metrics(run_id: str) -> dict[str, float]:
    """Return the last value of every metric of a run, under its current name."""
    return current_metrics(get_run(run_id).data.metrics)


def run_status(run_id: str) -> str:
    """Return SCHEDULED, RUNNING, FINISHED, FAILED or KILLED."""
    return str(get_run(run_id).info.status)


def experiment_of(run_id: str) -> str:
    """Return the experiment that a run belongs to."""
    return str(get_run(run_id).info.experiment_id)


@answering()
def newest_run(entry_point: str, name: str) -> str:
    """Return the id of the newest run of an entry point with this name.

    Raises:
        NotInStoreError: If there is none.
    """
    store = client()
    ids = [experiment.experiment_id for experiment in store.search_experiments()]
    query = f"tags.`{Tag.ENTRY_POINT}` = '{entry_point}' and attributes.run_name = '{name}'"
    found = store.search_runs(ids, query, order_by=["attributes.start_time DESC"], max_results=1)
    if not found:
        raise NotInStoreError(f"there is no run '{name}' of {entry_point} in {shown_store()}")
    return str(found[0].info.run_id)
