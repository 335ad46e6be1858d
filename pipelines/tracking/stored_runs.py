"""Runs as the MLflow store holds them, read in bulk for campaigns and reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from pipelines.tracking.names import Tag
from pipelines.tracking.old_names import current_metrics, current_params
from pipelines.tracking.reading import get_run
from pipelines.tracking.store import answering, client

_PAGE = 1000

R = TypeVar("R", bound="StoredRun")


@dataclass(frozen=True)
class StoredRun:
    """One run as recorded in the store.

    Attributes:
        status: SCHEDULED, RUNNING, FINISHED, FAILED or KILLED.
        metrics: The last value of each, under its current name.
        params: With current keys and values.
        started: Seconds since the epoch.
    """

    run_id: str
    status: str
    tags: dict[str, str]
    metrics: dict[str, float]
    params: dict[str, str]
    started: float = 0.0

    @property
    def entry_point(self) -> str:
        """The entry point that wrote it; "" for a run of another program."""
        return self.tags.get(Tag.ENTRY_POINT, "")


def read_run(kind: type[R], run_id: str) -> R:
    """Read one run.

    Raises:
        NotInStoreError: If it is not in the store.
    """
    return _of(kind, get_run(run_id))


@answering()
def search_runs(kind: type[R], experiment_ids: list[str] | None, query: str) -> list[R]:
    """Return all runs that match, newest first; in every experiment when none is named."""
    store = client()
    ids = experiment_ids or [experiment.experiment_id for experiment in store.search_experiments()]
    found: list[R] = []
    token: str | None = None
    while True:
        page: Any = store.search_runs(ids, query, max_results=_PAGE, page_token=token)
        found += [_of(kind, run) for run in page]
        token = page.token
        if not token:
            return found


def _of(kind: type[R], run: Any) -> R:
    info, data = run.info, run.data
    started = float(info.start_time or 0) / 1000.0
    metrics, params = current_metrics(data.metrics), current_params(data.params)
    return kind(info.run_id, info.status, dict(data.tags), metrics, params, started)
