"""Location of the project on this machine, and its git."""

import subprocess
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parents[2]
"""Folder of MLproject: recipes are read from here, runs and the default store are written here."""


def git(*arguments: str) -> str:
    """Return the output of a git command in the project folder."""
    done = subprocess.run(["git", *arguments], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
