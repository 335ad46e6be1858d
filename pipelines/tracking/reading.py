"""Reading one run from MLflow: its tags, metrics and artifacts, and the newest run of a kind."""

from __future__ import annotations

from pathlib import Path

from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException

from pipelines.tracking.names import Tag
from pipelines.tracking.old_names import current_metrics
from pipelines.tracking.store import client, shown_store


def newest_backbone_run(experiment_ids: list[str] | None = None) -> str | None:
    """Return the newest finished pretrain run that holds a backbone, or None.

    The wrapper run that a resumed training leaves behind holds none and carries `Tag.RESUMES`.
    """
    store = client()
    ids = experiment_ids or [e.experiment_id for e in store.search_experiments()]
    query = f"tags.`{Tag.ENTRY_POINT}` = 'pretrain' and attributes.status = 'FINISHED'"
    for run in store.search_runs(ids, query, order_by=["attributes.start_time DESC"], max_results=200):
        if Tag.RESUMES not in run.data.tags and run.data.tags.get(Tag.BACKBONE) == "yes":
            return str(run.info.run_id)
    return None


def fetch_artifact(run_id: str, path: str, into: Path) -> Path:
    """Copy an artifact of a run into a folder and return where it lies.

    Raises:
        ValueError: If the run does not exist or holds no such artifact.
    """
    store = client()
    get_run(run_id)
    if path not in artifacts(run_id, str(Path(path).parent)):
        raise ValueError(f"run '{run_id}' holds no '{path}'; a finished pretrain run does")
    return Path(store.download_artifacts(run_id, path, str(into)))


def artifacts(run_id: str, folder: str = ".") -> list[str]:
    """Return the paths of what a run holds directly in a folder of its artifacts."""
    found = client().list_artifacts(run_id, None if folder == "." else folder)
    return [str(file.path) for file in found]


def get_run(run_id: str) -> MlflowRun:
    """Return what the store has of a run.

    Raises:
        ValueError: If the run does not exist.
    """
    try:
        return client().get_run(run_id)
    except MlflowException as error:
        raise ValueError(
            f"run '{run_id}' is not in the store {shown_store()}; `mlflow ui` lists the runs that are"
        ) from error


def run_tags(run_id: str) -> dict[str, str]:
    """Return the tags of a run."""
    return dict(client().get_run(run_id).data.tags)


def run_metrics(run_id: str) -> dict[str, float]:
    """Return the last value of every metric of a run, under its name of today."""
    return current_metrics(client().get_run(run_id).data.metrics)


def run_status(run_id: str) -> str:
    """Return SCHEDULED, RUNNING, FINISHED, FAILED or KILLED."""
    return str(client().get_run(run_id).info.status)


def experiment_of(run_id: str) -> str:
    """Return the experiment that a run belongs to."""
    return str(client().get_run(run_id).info.experiment_id)


def newest_run(entry_point: str, name: str) -> str:
    """Return the newest run of an entry point that bears a name.

    Raises:
        ValueError: If there is none.
    """
    store = client()
    ids = [experiment.experiment_id for experiment in store.search_experiments()]
    query = f"tags.`{Tag.ENTRY_POINT}` = '{entry_point}' and attributes.run_name = '{name}'"
    found = store.search_runs(ids, query, order_by=["attributes.start_time DESC"], max_results=1)
    if not found:
        raise ValueError(f"there is no run '{name}' of {entry_point} in {shown_store()}")
    return str(found[0].info.run_id)
