"""The MLflow store in force: where it is, how it is opened, and what it means when it does not answer."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from requests.exceptions import RequestException

from pipelines.runtime.paths import PROJECT_ROOT
from pipelines.tracking.outbox import StoreAwayError

STORE_ENV = "MLFLOW_TRACKING_URI"


def tracking_uri() -> str:
    """Return the store in force: MLFLOW_TRACKING_URI, else sqlite in the project folder."""
    return os.environ.get(STORE_ENV) or f"sqlite:///{PROJECT_ROOT / 'mlflow.db'}"


def shown_store() -> str:
    """Return the store as it may be printed: without the user and password that a URI can hold."""
    return re.sub(r"(?<=://)[^/@]*@", "***@", tracking_uri())


def client() -> MlflowClient:
    """Open the store in force; processes that find no sqlite file yet make it one after the other.

    MLflow lets two of them create and migrate the tables at once, and all but one end with a database error.
    """
    uri = tracking_uri()
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or not path.parent.is_dir():
        return MlflowClient(uri)
    with Path(f"{path}.lock").open("a", encoding="utf-8") as handle:
        fcntl.lockf(handle, fcntl.LOCK_EX)
        return MlflowClient(uri)


@contextmanager
def answering() -> Iterator[None]:
    """Turn the ways in which a store can be away into a StoreAwayError; a refusal stays what it is."""
    try:
        yield
    except (MlflowException, RequestException, ConnectionError) as error:
        if _is_refusal(error):
            raise
        raise StoreAwayError(
            f"the tracking store {shown_store()} cannot be reached or does not answer; start it, or set {STORE_ENV}"
        ) from error


def _is_refusal(error: MlflowException | OSError) -> bool:
    """Whether the store answered and said no, so that trying again would not help."""
    if isinstance(error, MlflowException):
        return int(error.get_http_status_code()) < 500  # type: ignore[no-untyped-call]
    response = error.response if isinstance(error, RequestException) else None
    return response is not None and response.status_code < 500
