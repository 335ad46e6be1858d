"""What is said of the tracking store."""

import pytest

from pipelines.tracking.store import shown_store


@pytest.mark.parametrize(
    ("store", "shown"),
    [
        ("postgresql://anna:secret@db.example/mlflow", "postgresql://***@db.example/mlflow"),
        ("https://anna:secret@mlflow.example", "https://***@mlflow.example"),
        ("postgresql://anna:se/c@ret@db.example/mlflow", "postgresql://***@db.example/mlflow"),
        ("mysql://db.example/mlflow?password=secret&x=1", "mysql://db.example/mlflow?password=***&x=1"),
        ("http://127.0.0.1:5000/a@b", "http://127.0.0.1:5000/a@b"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
    ],
)
def test_a_store_is_shown_without_its_password(
    store: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert shown_store() == shown
