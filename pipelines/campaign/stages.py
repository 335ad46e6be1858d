"""The entry points that an arm of a campaign can be made of, and a check of their words before anything runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pipelines.command.cli import resolve, run_entry_point
from pipelines.command.config import RecipeError, flatten
from pipelines.command.entry_points import ENTRY_POINTS, EntryPoint
from pipelines.runtime.paths import PROJECT_ROOT
from transforms.refusal import Refusal

STAGES: dict[str, EntryPoint] = {name: one for name, one in ENTRY_POINTS.items() if one.is_stage}


def run_stage(entry_point: str, words: Sequence[str]) -> int:
    """Run an entry point in this process and return its exit code; 1, a crash, where the store was away."""
    stage = STAGES[entry_point]
    return run_entry_point(
        entry_point, stage.load_schema(), stage.load_body(), stage.recipe, words, away_code=1
    )


def check_words(
    lines: Sequence[tuple[str, str, list[str]]], cohorts: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Resolve the words of many stages as their entry points would, in a process of its own.

    The schemas import torch; the campaign itself must stay small, so that process ends with the check, and by itself
    if the campaign is killed meanwhile.

    Args:
        lines: (arm, entry point, words) of each stage.
        cohorts: Folders to open, and to make where they are among those that a bare command makes.

    Returns:
        Every configuration by its dotted keys, in the order of `lines`, as JSON has it.

    Raises:
        RecipeError: If a word cannot be, or a cohort is missing; the sentence ends with the arm.
    """
    command = [sys.executable, "-m", "pipelines.campaign.stages"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(PROJECT_ROOT), os.environ.get("PYTHONPATH", "")])
    }
    question = json.dumps([list(lines), list(cohorts)])
    done = subprocess.run(command, env=environment, input=question, stdout=subprocess.PIPE, text=True)
    *said, answer = done.stdout.splitlines() or [""]
    print("".join(f"{line}\n" for line in said), end="")
    if done.returncode == 2:
        raise RecipeError(answer)
    if done.returncode:
        raise RuntimeError(f"the check of a campaign's arms ended with {done.returncode}; its trace is above")
    checked: list[dict[str, Any]] = json.loads(answer)
    return checked


def resolve_lines(
    lines: Sequence[tuple[str, str, list[str]]], cohorts: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Do the work of `check_words` in this process; values are as the dataclasses have them."""
    configurations = []
    for arm, entry_point, words in lines:
        stage = STAGES[entry_point]
        try:
            config, recipe = resolve(stage.load_schema(), words, stage.recipe)
        except RecipeError as error:
            raise RecipeError(f"{error} (arm {arm}, {entry_point})") from error
        configurations.append({"recipe": recipe} | flatten(config))
    if cohorts:
        from pipelines.cohort.folder import Cohort
        from pipelines.ingest.default_cohort import ensure_cohort

        for cohort in cohorts:
            ensure_cohort(Path(cohort))
            Cohort.open(Path(cohort))
    return configurations


def words_of(overrides: dict[str, Any]) -> list[str]:
    """Write overrides as `--key value`, so that the strict door reads the same values back."""
    return [word for key, value in overrides.items() for word in (f"--{key}", _text(value))]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | list | tuple | dict) or value is None:
        return json.dumps(value)
    return str(yaml.safe_dump(value)).split("\n")[0]


def answer_check() -> int:
    """Be the process of `check_words`: a question on standard input, the answer as the last line of the output."""
    lines, cohorts = json.loads(sys.stdin.read())
    try:
        checked = resolve_lines([tuple(line) for line in lines], cohorts)
    except (Refusal, RecipeError) as error:
        print(" ".join(str(error).split()))
        return 2
    print(json.dumps(checked, default=str))
    return 0


if __name__ == "__main__":
    sys.exit(answer_check())
