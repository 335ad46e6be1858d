"""Location of the project on this machine, and its git."""

import os
import subprocess
import sys
from pathlib import Path

RESOURCES = Path(__file__).resolve().parents[2]
"""Folder of the packages: recipes, campaigns and shipped weights are read from here."""
_CALLED_IN = os.environ.get(
    "DINOX_CALLED_IN", ""
)  # Of a copy that `mlflow run` fetched; see `mlflow_plugin`.
IS_CHECKOUT = (RESOURCES / "MLproject").is_file() and not _CALLED_IN
"""Whether `mlflow run .` works here; an installed copy has the command `dinox` alone."""
PROJECT_ROOT = RESOURCES if IS_CHECKOUT else Path(_CALLED_IN or Path.cwd())
"""Folder that runs and the default store are written to: that of MLproject, or where another copy is called."""


def work_where_called() -> None:
    """Change from the folder of a copy that `mlflow run` fetched, which is lost, to the one where it was called."""
    if _CALLED_IN and Path.cwd() != PROJECT_ROOT:
        os.chdir(PROJECT_ROOT)
        # Further processes import this copy too.
        os.environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(RESOURCES), os.environ.get("PYTHONPATH")])
        )
        sys.path.insert(0, str(RESOURCES))


def git(*arguments: str) -> str:
    """Return the output of a git command in the project folder."""
    done = subprocess.run(["git", *arguments], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
