"""Location of the project on this machine, and its git; what lies inside a folder."""

import os
import subprocess
import sys
from pathlib import Path

from transforms.refusal import Refusal

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


class OutsideError(Refusal):
    """A file that should lie in a folder leads out of it, by its name or as a link."""


def inside(folder: Path, path: Path) -> Path:
    """Return the path of a file that lies in a folder, links followed; in Hugging Face's cache, where they point.

    Raises:
        OutsideError: If it leads out of the folder: a folder of others could make any file of this machine its own.
    """
    root = folder.parents[1] if folder.parent.name == "snapshots" else folder
    if not path.resolve().is_relative_to(root.resolve()):
        raise OutsideError(f"{path} leads out of {folder}, which is not followed; put the file itself there")
    return path


def git(*arguments: str) -> str:
    """Return the output of a git command in the project folder."""
    done = subprocess.run(["git", *arguments], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
