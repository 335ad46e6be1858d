"""Location of the project on this machine."""

from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parents[2]
"""Folder of MLproject: recipes are read from here, runs and the default store are written here."""
