"""A run that keeps what an entry point would log."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from pipelines.tracking.run import SilentRun


class Recorder(SilentRun):
    """Keeps metrics (`name@step` after step 0), tags, tables and paths of figures, which are drawn if `draws`."""

    def __init__(self, draws: bool = True) -> None:
        super().__init__()
        self.run_id, self.store = "a_run", None
        self.draws = draws
        self.metrics: dict[str, float] = {}
        self.tags: dict[str, str] = {}
        self.tables: dict[str, pd.DataFrame] = {}
        self.figures: list[str] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        super().log_metrics(metrics, step)
        self.metrics |= {name if step == 0 else f"{name}@{step}": value for name, value in metrics.items()}

    def set_tags(self, tags: Any) -> None:
        super().set_tags(tags)
        self.tags |= tags

    def log_table(self, table: pd.DataFrame, path: str) -> None:
        self.tables[path] = table

    def log_figure(self, figure: Any, path: str) -> None:
        if self.draws:
            figure.canvas.draw()
        self.figures.append(path)
