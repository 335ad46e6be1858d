"""One small prepared cohort, and a store of its own for every test that writes runs."""

import contextlib
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.cohort.folder import Cohort
from pipelines.ingest.config import PrepareConfig
from pipelines.ingest.preparation import prepare_cohort


@pytest.fixture(scope="session")
def small_cohort(small_phantom_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Six phantom patients, prepared; read only."""
    root = tmp_path_factory.mktemp("cohorts") / "small"
    return prepare_cohort(PrepareConfig(source=str(small_phantom_source), cohort=str(root), workers=1)).cohort


@pytest.fixture(scope="session")
def blank_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs: making its tables takes seconds, copying it none."""
    folder = tmp_path_factory.mktemp("blank")
    with contextlib.chdir(folder):  # A store puts its artifacts below the folder in which it is made.
        MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()
    return folder / "mlflow.db"


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
