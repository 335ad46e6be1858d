"""What MLflow's page System metrics gets."""

import psutil
import pytest

from pipelines.tracking.names import METRICS
from pipelines.tracking.system_metrics import system_metrics, system_monitors


def test_processors_and_memory_are_measured_when_mlflows_switch_is_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    measured = system_metrics(system_monitors())
    assert set(measured) <= set(METRICS)
    assert 0 <= measured["system/cpu_utilization_percentage"] <= 100
    total_mb = psutil.virtual_memory().total / 1e6
    share = measured["system/system_memory_usage_megabytes"] / total_mb * 100
    assert measured["system/system_memory_usage_percentage"] == pytest.approx(share, abs=1)
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    assert system_metrics(system_monitors()) == {}
