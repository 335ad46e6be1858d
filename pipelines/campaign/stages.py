"""The entry points that can be stages of an arm, and a check of their arguments before anything runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pipelines.cohort.folder import Cohort
from pipelines.command.cli import resolve, run_entry_point
from pipelines.command.config import RecipeError, flatten, nested
from pipelines.command.entry_points import ENTRY_POINTS, EntryPoint
from pipelines.ingest.default_cohort import ensure_cohort

STAGES: dict[str, EntryPoint] = {name: one for name, one in ENTRY_POINTS.items() if one.is_stage}


def run_stage(entry_point: str, arguments: Sequence[str]) -> int:
    """Run an entry point in this process and return its exit code; 1, a crash, if the store could not be reached."""
    stage = STAGES[entry_point]
    return run_entry_point(entry_point, stage.load_schema(), stage.run, stage.recipe, arguments, away_code=1)


def check_arguments(
    lines: Sequence[tuple[str, str, list[str]]], cohorts: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Resolve the arguments of many stages as their entry points would.

    Args:
        lines: (arm, entry point, arguments) of each stage.
        cohorts: Folders to open; default cohorts are made if they are missing.

    Returns:
        Every configuration by its dotted keys, in the order of `lines`, with JSON types.

    Raises:
        RecipeError: If an argument is not valid; the message ends with the arm.
        Refusal: If a cohort is missing.
    """
    configurations = []
    for arm, entry_point, arguments in lines:
        stage = STAGES[entry_point]
        try:
            config, recipe = resolve(stage.load_schema(), arguments, stage.recipe)
        except RecipeError as error:
            raise RecipeError(f"{error} (arm {arm}, {entry_point})") from error
        configurations.append({"recipe": recipe} | flatten(nested(config)))
    for cohort in cohorts:
        ensure_cohort(Path(cohort))
        Cohort.open(Path(cohort))
    plain: list[dict[str, Any]] = json.loads(json.dumps(configurations, default=str))
    return plain


def arguments_of(overrides: dict[str, Any]) -> list[str]:
    """Write overrides as `--key value`, so that the same values are read back."""
    return [text for key, value in overrides.items() for text in (f"--{key}", _text(value))]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | list | tuple | dict) or value is None:
        return json.dumps(value)
    return str(yaml.safe_dump(value)).split("\n")[0]
