"""What is said of the tracking store."""

import os
import subprocess
import sys

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from pipelines.runtime.paths import PROJECT_ROOT
from pipelines.tracking.store import StoreRefusedError, answering, quiet_about_secrets, shown_store


@pytest.mark.parametrize(
    ("store", "shown"),
    [
        ("postgresql://anna:secret@db.example/mlflow", "postgresql://***@db.example/mlflow"),
        ("https://anna:secret@mlflow.example", "https://***@mlflow.example"),
        ("postgresql://anna:se/c@ret@db.example/mlflow", "postgresql://***@db.example/mlflow"),
        ("mysql://db.example/mlflow?password=secret&x=1", "mysql://db.example/mlflow?password=***&x=1"),
        ("https://anna:se/c@ret@mlflow.example/x", "https://***@mlflow.example/x"),
        ("https://anna:12/34@mlflow.example", "https://***@mlflow.example"),
        ("https://mlflow.example?token=secret#x", "https://mlflow.example?token=***#x"),
        ("https://mlflow.example/?a=1&api_key=secret", "https://mlflow.example/?a=1&api_key=***"),
        (
            "postgresql+psycopg2://anna:se%2Fcret@/mlflow?host=/tmp",
            "postgresql+psycopg2://***@/mlflow?host=/tmp",
        ),
        ("mssql+pyodbc:///?odbc_connect=UID%3Danna%3BPWD%3Dsecret", "mssql+pyodbc:///?odbc_connect=***"),
        ("sqlite+pysqlcipher://:secret@/a.db", "sqlite+pysqlcipher://***@/a.db"),
        (
            "mysql://db.example/mlflow?user=anna&passwd=secret",
            "mysql://db.example/mlflow?user=anna&passwd=***",
        ),
        ("http://localhost:5000/a@b", "http://localhost:5000/a@b"),
        ("sqlite:////data/a@b.db", "sqlite:////data/a@b.db"),
        ("http://127.0.0.1:5000/a@b", "http://127.0.0.1:5000/a@b"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
    ],
)
def test_a_store_is_shown_without_its_password(
    store: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert shown_store() == shown


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"MLFLOW_TRACKING_URI": "https://anna:sec/ret9@h.example"},
            "Port could not be cast to integer value as 'ret9'",
        ),
        ({"MLFLOW_TRACKING_TOKEN": "t0ps3cret\n"}, "Invalid header value: 'Bearer t0ps3cret\\n'"),
        ({"HF_TOKEN": "hf_t0ps3cret"}, "401 for hf_t0ps3cret"),
        ({"DINOX_LLM_KEY": "sk-t0ps3cret"}, "no sk-t0ps3cret"),
        ({}, "could not connect to postgresql://anna:t0p/s3cret@h/db?password=t0ps3cret"),
    ],
)
def test_what_a_library_quotes_of_a_secret_is_hidden(
    variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreRefusedError) as refusal, answering():
        raise MlflowException(said, error_code=INVALID_PARAMETER_VALUE)
    assert "***" in str(refusal.value)
    assert not any(part in str(refusal.value) for part in ("t0p", "s3cret", "ret9"))


def test_a_message_about_parameters_stays_whole() -> None:
    with (
        pytest.raises(StoreRefusedError, match=r"Param with key='cfg\.seed' was already logged"),
        answering(),
    ):
        raise MlflowException(
            "Param with key='cfg.seed' was already logged", error_code=INVALID_PARAMETER_VALUE
        )


def test_the_closing_line_of_mlflow_holds_no_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://anna:secret@mlflow.example")
    with quiet_about_secrets():
        print("View run a at: https://anna:secret@mlflow.example/#/experiments/0")
    assert capsys.readouterr().out == "View run a at: https://***@mlflow.example/#/experiments/0\n"


ASKS = """
import pipelines.tracking.store
from mlflow.telemetry import get_telemetry_client
print(get_telemetry_client())
"""


@pytest.mark.slow
def test_mlflow_reports_its_use_to_nobody() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CI", "PYTEST"))}
    environment.pop("MLFLOW_DISABLE_TELEMETRY", None)
    command = [sys.executable, "-c", ASKS]
    ended = subprocess.run(
        command, cwd=PROJECT_ROOT, env=environment, check=True, capture_output=True, text=True
    )
    assert ended.stdout.strip() == "None"
