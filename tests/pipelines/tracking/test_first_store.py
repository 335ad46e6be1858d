"""Commands that start at once where there is no store yet: each has to find one that is whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.runtime.paths import PROJECT_ROOT
from tests.processes import OpenProcess

OPENS = "from pipelines.tracking.store import client; print(len(client().search_experiments()))"


@pytest.mark.slow  # MLflow takes seconds to import and to migrate a store
def test_processes_that_start_at_once_make_one_store(tmp_path: Path, open_process: OpenProcess) -> None:
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}"}
    started = [
        open_process(
            [sys.executable, "-c", OPENS],
            cwd=PROJECT_ROOT,
            env=os.environ | store,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in started:
        said, complained = process.communicate(timeout=300)
        assert (process.returncode, said.strip()) == (0, "1"), complained
