"""The tracking store in use: how it is opened, and how its errors become one sentence."""

import io
import os
import re
import textwrap
from collections.abc import Iterator
from contextlib import chdir, contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow import MlflowClient, get_tracking_uri
from mlflow.exceptions import MlflowException
from requests.exceptions import RequestException
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from pipelines.runtime.atomic import TargetError, exclusively
from pipelines.runtime.paths import PROJECT_ROOT
from pipelines.tracking.outbox import RunDeletedError, StoreAwayError
from transforms.refusal import Refusal

STORE_ENV = "MLFLOW_TRACKING_URI"
_SQLITE = "sqlite:///"
_SECRETS = (
    re.compile(r"(\bhttps?://)[^/\s]*@"),
    # A user and a password with a slash; the host and port of an address whose path holds an @ are no such.
    re.compile(r"(\bhttps?://)(?!localhost[:/]|[^/\s:@]*\.[^/\s:@]*:\d+/)[^/\s:@]*:\S*@"),
    re.compile(r"((?!https?:|sqlite:)\b[\w.+-]+://)\S*@"),  # Of a database, whose password may hold a slash.
    re.compile(r"(?i)(\bodbc_connect=)\S+"),
    re.compile(
        r"(?i)([?&]key=|\b\w*(?:passw|passphrase|pwd|token|secret|credential|signature|api_?key|access_key)\w*=)"
        r"[^&\s;#'\"]+"
    ),
)
_KEYS = re.compile(r"(?i)passw|token|secret|_key$")
_DELETED = re.compile(r"[Rr]un '?(\w+)'? must be in (?:the )?'active' (?:lifecycle_stage|state)")
_REASON_LENGTH = 200
_OWN_PACKAGES = {"transforms", "models", "probes", "pipelines"}
_OBJECT_STORES = {"boto3", "botocore", "s3transfer"}
"""Packages whose errors MLflow passes on where artifacts lie in an object store; they are not installed with this."""


class StoreRefusedError(Refusal):
    """The tracking store rejected a request, or cannot be opened; trying again would not help."""


class NotInStoreError(StoreRefusedError):
    """The tracking store has no such run, or the run no such artifact."""


def tracking_uri() -> str:
    """Return the address of the store in use: MLFLOW_TRACKING_URI, else sqlite in the project folder."""
    return os.environ.get(STORE_ENV) or default_uri()


def default_uri() -> str:
    """Return the address of the store in the project folder, which `make ui` serves."""
    return f"{_SQLITE}{PROJECT_ROOT / 'mlflow.db'}"


def uri_of_mlflow() -> str:
    """Return the address that `mlflow run` takes: MLFLOW_TRACKING_URI, else in the folder where it is called."""
    return str(get_tracking_uri())


def shown_store() -> str:
    """Return the store as it may be printed: without the user and password that a URI can hold."""
    return _without_secrets(tracking_uri())


def _without_secrets(text: str) -> str:
    for secret in _SECRETS:
        text = secret.sub(lambda found: f"{found[1]}***{'@' * found[0].endswith('@')}", text)
    return text


def _without_pieces(text: str) -> str:
    """Hide what a library may quote of a password or key: an address taken apart, a header that cannot be sent."""
    given = tracking_uri()
    user, _, _ = given.partition("://")[2].rpartition("@")
    password = user.partition(":")[2]
    keys = [value.strip() for name, value in os.environ.items() if _KEYS.search(name)]
    parts = {password, unquote(password), *re.split(r"[/@:?#&=%]", password)}
    pieces = {one for one in parts if len(one) >= 4} | {one for one in keys if len(one) >= 8}
    for piece in sorted(pieces, key=len, reverse=True):
        text = text.replace(piece, "***")
    return text


@contextmanager
def quiet_about_secrets() -> Iterator[None]:
    """Print what MLflow prints meanwhile, such as its closing line, without what an address holds of a password."""
    if shown_store() == tracking_uri():
        yield
        return
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            yield
    finally:
        print(_without_secrets(said.getvalue()), end="")


def client(uri: str = "") -> MlflowClient:
    """Open a store, by default the one in use; processes that find no sqlite file yet create it one after the other.

    Without the lock, processes that create the tables at the same time end with a database error, all but one. The
    artifacts of a new file lie beside it, in `mlruns`: MLflow would put them where it is called, be it a checkout that
    cannot be written.

    Raises:
        StoreAwayError: If a database server cannot be reached.
        StoreRefusedError: If the store cannot be opened: an unknown kind, a missing driver, a damaged file.
    """
    uri = uri or tracking_uri()
    path = Path(uri.removeprefix(_SQLITE))
    if not uri.startswith(_SQLITE) or not path.parent.is_dir():
        return _opened(uri)
    if path.is_dir():  # MLflow would try for two minutes.
        raise StoreRefusedError(
            f"the tracking store {shown_store()} is a folder; set {STORE_ENV} to a file below it"
        )
    is_new = path.is_absolute() and not path.exists()
    try:
        with exclusively(Path(f"{path}.lock")), chdir(path.parent) if is_new else nullcontext():
            return _opened(uri)
    except TargetError as error:
        raise StoreRefusedError(
            f"{error}: the tracking store lies there; {STORE_ENV}={_SQLITE}FILE names another"
        ) from error


def _opened(uri: str) -> MlflowClient:
    try:
        urlsplit(uri)  # MLflow would do so at the first request.
        return MlflowClient(uri)
    except (MlflowException, SQLAlchemyError, ImportError, OSError, ValueError) as error:
        if isinstance(error, OperationalError) and not uri.startswith("sqlite"):
            raise StoreAwayError(_away()) from error
        reason = _reason(error)
        if isinstance(error, ModuleNotFoundError):
            reason = f"Python has no module '{error.name}', its driver; install that"
        raise StoreRefusedError(
            f"the tracking store {shown_store()} cannot be opened: {reason}; or set {STORE_ENV} to a server's"
            f" address or to {_SQLITE}FILE"
        ) from error


@contextmanager
def answering() -> Iterator[None]:
    """Turn errors of MLflow, of the network and of an object store into one sentence.

    Raises:
        StoreAwayError: If the store cannot be reached or has a temporary error, or the object store of its artifacts
            fails: without credentials, without an answer, or without the bucket.
        RunDeletedError: If the run was deleted in MLflow's pages.
        StoreRefusedError: If it rejects the request, or a package that it needs is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in _OWN_PACKAGES:
            raise  # Not a package to install: our bug.
        raise StoreRefusedError(
            f"the tracking store {shown_store()} needs a module '{error.name}' for its artifacts; install that"
        ) from error
    except (MlflowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise  # The file to send does not exist: our bug.
        if found := _DELETED.search(str(error)):
            raise RunDeletedError(f"run {found[1]} was deleted in MLflow; {restoring(found[1])}") from error
        code = status_code(error)
        if "disk is full" in str(error):
            raise StoreAwayError(
                f"the disk of the tracking store {shown_store()} is full; free space there"
            ) from error
        if code >= 500:
            raise StoreAwayError(_away()) from error
        hint = ""
        if code in (401, 403):
            hint = "; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        raise StoreRefusedError(
            f"the tracking store {shown_store()} refuses: {_reason(error)}{hint}"
        ) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _OBJECT_STORES:
            raise
        raise StoreAwayError(
            f"the object store that holds the artifacts of {shown_store()} fails: {_reason(error)}; mend its"
            " address, credentials or bucket"
        ) from error


def restoring(run_id: str) -> str:
    """Return how a deleted run is brought back."""
    return f"`MLFLOW_TRACKING_URI={shown_store()} mlflow runs restore --run-id {run_id}` brings it back"


def status_code(error: MlflowException | OSError) -> int:
    """Return the HTTP status of an error of the store, or the nearest one: 503 when it does not answer."""
    if isinstance(error, MlflowException):
        return int(error.get_http_status_code())  # type: ignore[no-untyped-call]
    if isinstance(error, RequestException):
        return 503 if error.response is None else error.response.status_code
    return 503 if isinstance(error, ConnectionError | TimeoutError) else 400


def _away() -> str:
    return f"the tracking store {shown_store()} cannot be reached or does not answer; start it, or set {STORE_ENV}"


def _reason(error: Exception) -> str:
    """Return the message of an error, shortened, without a server's page and without secrets of a URI."""
    text = _without_pieces(str(error).split("[SQL")[0].split(" Response body")[0])
    text = _without_secrets(text)
    return textwrap.shorten(text, _REASON_LENGTH, placeholder=" ...").rstrip(".")
