"""CPU, memory and GPU of the machine for MLflow's page System metrics, when MLflow's own switch is on.

MLflow measures them; they are written as all else is, so that a server that is away costs a run nothing.
"""

import contextlib
from collections.abc import Sequence

from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor


def system_monitors() -> list[BaseMetricsMonitor]:
    """Return what measures this machine; nothing unless MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING is true."""
    if not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
        return []
    monitors: list[BaseMetricsMonitor] = [CPUMonitor()]
    with contextlib.suppress(ImportError, RuntimeError):  # Without nvidia-ml-py, or without a GPU.
        monitors.append(GPUMonitor())
    return monitors


def system_metrics(monitors: Sequence[BaseMetricsMonitor]) -> dict[str, float]:
    """Measure now; the load is that since the last call."""
    measured: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        measured |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
        monitor.clear_metrics()
    return measured
