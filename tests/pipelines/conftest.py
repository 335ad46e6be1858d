"""One small prepared cohort, and a store of its own for every test that writes runs."""

import contextlib
import functools
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.store.db import utils as db_utils

from pipelines.cohort.folder import Cohort
from pipelines.ingest.config import PrepareConfig
from pipelines.ingest.preparation import prepare_cohort
from tests.conftest import MakeOnce


@pytest.fixture(scope="session")
def small_cohort(small_phantom_source: Path, make_once: MakeOnce) -> Cohort:
    """Six phantom patients, prepared; read only."""

    def prepare(root: Path) -> None:
        prepare_cohort(PrepareConfig(source=str(small_phantom_source), cohort=str(root), workers=1))

    return Cohort.open(make_once("small_cohort", prepare))


@pytest.fixture(scope="session")
def blank_store(make_once: MakeOnce) -> Path:
    """An MLflow database without runs: making its tables takes seconds, copying it none."""

    def open_store(folder: Path) -> None:
        folder.mkdir()
        with contextlib.chdir(folder):  # A store puts its artifacts below the folder in which it is made.
            MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()

    # At each store that MLflow opens it reads its 80 migrations anew, to learn the name of the last one.
    db_utils._get_latest_schema_revision = functools.cache(db_utils._get_latest_schema_revision)
    return make_once("blank_store", open_store) / "mlflow.db"


@pytest.fixture
def own_store(tmp_path: Path, blank_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An MLflow store in the test's folder; returns that folder."""
    shutil.copy(blank_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def own_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key for pseudonyms that is this test's own, not the user's."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
