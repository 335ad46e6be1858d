"""CPU, memory and GPU of the machine for MLflow's page System metrics, when MLflow's own switch is on.

MLflow measures them; they are written as all else is, so that a server that is away costs a run nothing.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.system_metrics.metrics import cpu_monitor, gpu_monitor

# MLflow has no types for these.
_IS_ON: Any = MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
_CPUMonitor: Any = cpu_monitor.CPUMonitor
_GPUMonitor: Any = gpu_monitor.GPUMonitor


def system_monitors() -> list[Any]:
    """Return what measures this machine; nothing unless MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING is true."""
    if not _IS_ON.get():
        return []
    monitors: list[Any] = [_CPUMonitor()]
    with contextlib.suppress(ImportError, RuntimeError):  # Without nvidia-ml-py, or without a GPU.
        monitors.append(_GPUMonitor())
    return monitors


def system_metrics(monitors: Sequence[Any]) -> dict[str, float]:
    """Measure now; the load is that since the last call."""
    measured: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        measured |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
        monitor.clear_metrics()
    return measured
