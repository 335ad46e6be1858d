"""Location of the project on this machine, and its git."""

import subprocess
from pathlib import Path

RESOURCES = Path(__file__).resolve().parents[2]
"""Folder of the packages: recipes, campaigns and shipped weights are read from here."""
IS_CHECKOUT = (RESOURCES / "MLproject").is_file()
"""Whether `mlflow run .` works here; an installed copy has the command `dinox` alone."""
PROJECT_ROOT = RESOURCES if IS_CHECKOUT else Path.cwd()
"""Folder that runs and the default store are written to: that of MLproject, or where an installed copy is called."""


def git(*arguments: str) -> str:
    """Return the output of a git command in the project folder."""
    done = subprocess.run(["git", *arguments], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
