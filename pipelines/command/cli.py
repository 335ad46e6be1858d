"""From a command line to an entry point, and from its end to an exit code and one sentence.

Exit codes: 0 done, 2 what was asked cannot be, 3 nothing readable (`prepare`), 130 / 143 interrupted and saved.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TypeVar

import yaml

from pipelines.command.config import RecipeError, find_recipe, flatten, load_recipe, read_yaml, unflatten
from pipelines.command.help import describe
from pipelines.runtime.interrupts import watch_deadline
from pipelines.runtime.paths import PROJECT_ROOT
from pipelines.tracking.names import Tag
from pipelines.tracking.outbox import StoreAwayError
from pipelines.tracking.run import Run
from transforms.refusal import Refusal

C = TypeVar("C")
_HELP = {"-h", "--help"}


class EndWith(Exception):
    """End the entry point with a stated exit code and one sentence."""

    def __init__(self, code: int, sentence: str) -> None:
        """Keep the code beside the sentence."""
        super().__init__(sentence)
        self.code = code


def parse_overrides(words: Sequence[str]) -> list[tuple[str, str]]:
    """Return the (key, value) pairs of `--key value` and `--key=value`.

    Raises:
        RecipeError: If a word is no option or an option has no value.
    """
    pairs: list[tuple[str, str]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            raise RecipeError(f"'{word}' stands where an option is expected; write --key value")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not rest:
                raise RecipeError(f"option --{key} has no value; write --{key} VALUE")
            value = rest.pop(0)
        pairs.append((key.replace("-", "_"), value))
    return pairs


def resolve(schema: type[C], words: Sequence[str], recipe: str | None = None) -> tuple[C, str]:
    """Return the configuration of a command line and the name of its recipe ("" without one)."""
    pairs = parse_overrides(words)
    if recipe is None:
        return load_recipe(schema, {}, pairs), ""
    chosen = next((value for key, value in reversed(pairs) if key == "recipe"), recipe)
    overrides = [(key, value) for key, value in pairs if key != "recipe"]
    path = find_recipe(chosen)
    return load_recipe(schema, read_yaml(path), overrides), path.stem


def main(name: str, schema: type[C], body: Callable[[C, Run], None], recipe: str | None = None) -> None:
    """Run an entry point and leave the process with its exit code."""
    sys.exit(run_entry_point(name, schema, body, recipe, sys.argv[1:]))


def run_entry_point(
    name: str,
    schema: type[C],
    body: Callable[[C, Run], None],
    recipe: str | None,
    words: Sequence[str],
    away_code: int = 2,
) -> int:
    """Run `body` inside an MLflow run and return the exit code.

    A ValueError or a missing file is the user's to mend: one sentence, exit 2, the run FAILED with that sentence.
    Anything else is ours: it is raised with its trace. A store that is away ends with `away_code`: an arm of a campaign
    is worth another attempt then, where a wrong key is not.
    """
    if not (PROJECT_ROOT / "MLproject").is_file():
        print(
            f"{PROJECT_ROOT} holds the code without its recipes, as pip copied it; run it from a checkout, after"
            " `make setup` or `pip install -e .` there",
            file=sys.stderr,
        )
        return 2
    if _HELP & set(words):
        return _show_help(name, schema, recipe, [word for word in words if word not in _HELP])
    watch_deadline()
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        run = Run.start(name)
    except Refusal as error:
        print(error, file=sys.stderr)
        return away_code if isinstance(error, StoreAwayError) else error.exit_code
    try:
        config, recipe_name = resolve(schema, words, recipe)
        flat = flatten(config)
        run.log_params(flat)
        run.log_text(yaml.safe_dump(unflatten(flat), sort_keys=False), "config.yaml")
        if recipe_name:
            run.set_tags({Tag.RECIPE: recipe_name})
        body(config, run)
    except EndWith as ending:
        return _end(run, ending.code, str(ending))
    except StoreAwayError as error:
        return _end(run, away_code, str(error))
    except (Refusal, ValueError, FileNotFoundError) as error:
        if os.environ.get("DINOX_TRACEBACK"):
            traceback.print_exc()
        return _end(run, 2, str(error))
    except BaseException as error:
        run.set_tags({Tag.ERROR: type(error).__name__})
        run.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        if isinstance(error, KeyboardInterrupt):
            return 130
        raise
    if not run.is_wrapped:
        run.finish("FINISHED")
    return 0


def _show_help(name: str, schema: type[C], recipe: str | None, words: Sequence[str]) -> int:
    """Print every option with its value under the rest of the command line; no run is made."""
    try:
        print(describe(name, *resolve(schema, words, recipe)))
    except RecipeError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _end(run: Run, code: int, sentence: str) -> int:
    one_line = " ".join(sentence.split())
    print(one_line, file=sys.stderr)
    with contextlib.suppress(StoreAwayError):  # Why may be that the store is away.
        run.set_tags({Tag.ERROR: one_line})
        run.finish("KILLED" if code in (130, 143) else "FAILED")
    return code
