"""From a command line to an entry point, and from its end to an exit code and one sentence.

The configuration is read first, before torch, MONAI or MLflow are imported and before there is a run: `--help` and a
mistyped key are answered at once, without a run.

Exit codes: 0 done, 1 a bug (its trace is printed), 2 refused, 3 nothing readable (`prepare`, `embed`),
130 / 143 interrupted and saved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from pipelines.command.config import RecipeError, find_recipe, flatten, load_recipe, nested, read_yaml
from pipelines.command.entry_points import ENTRY_POINTS, next_step
from pipelines.command.help import describe
from pipelines.runtime.interrupts import Interrupted, watch_deadline
from pipelines.runtime.launch import launch
from pipelines.runtime.machine import refusal_of
from pipelines.runtime.paths import work_where_called
from pipelines.runtime.silence import never_silent
from pipelines.tracking.names import Tag
from pipelines.tracking.outbox import StoreAwayError
from pipelines.tracking.parameters import compared
from transforms.refusal import Refusal

if TYPE_CHECKING:
    from pipelines.tracking.run import Run

C = TypeVar("C")
_NOT_STORED = "(not stored)"
_HELP = {"-h", "--help"}


def parse_overrides(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Return the (key, value) pairs of `--key value` and `--key=value`.

    Raises:
        RecipeError: If an argument is not an option, or an option has no value.
    """
    pairs: list[tuple[str, str]] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--") or argument == "--":
            raise RecipeError(f"'{argument}' is not an option; write --key value")
        key, equals, value = argument[2:].partition("=")
        if not equals:
            if not rest:
                raise RecipeError(f"option --{key} has no value; write --{key} VALUE")
            value = rest.pop(0)
        pairs.append((key.replace("-", "_"), value))
    return pairs


def resolve(schema: type[C], arguments: Sequence[str], recipe: str | None = None) -> tuple[C, str]:
    """Return the configuration of a command line and the name of its recipe ("" without one)."""
    pairs = _with_environment(schema, parse_overrides(arguments))
    if recipe is None:
        return load_recipe(schema, {}, pairs), ""
    chosen = next((value for key, value in reversed(pairs) if key == "recipe"), recipe)
    overrides = [(key, value) for key, value in pairs if key != "recipe"]
    path = find_recipe(chosen)
    return load_recipe(schema, read_yaml(path), overrides), path.stem


def _without_help(arguments: Sequence[str]) -> list[str]:
    return [one for one in arguments if one not in _HELP]


def _with_environment(schema: type[Any], pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Options whose values are not stored may come from the environment, since `mlflow run` records its own options."""
    defaults = {field.name: field.default for field in dataclasses.fields(schema)}
    for name in getattr(schema, "NOT_STORED", ()):
        value = os.environ.get(f"DINOX_{name.upper()}")
        if value and all(given in ("", defaults[name]) for key, given in pairs if key == name):
            pairs = [*(pair for pair in pairs if pair[0] != name), (name, value)]
    return pairs


def main(name: str, arguments: Sequence[str] | None = None) -> None:
    """Run an entry point on the arguments of this process, or on some, and leave with its exit code."""
    one, given = ENTRY_POINTS[name], sys.argv[1:] if arguments is None else arguments
    work_where_called()
    sys.exit(run_entry_point(name, one.load_schema(), one.run, one.recipe, given))


def console() -> None:
    """Run `dinox NAME [--KEY VALUE ...]`, the command of an installed copy; without a name it lists all."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ENTRY_POINTS:
        main(name, arguments)
    listed = "\n".join(f"  {one.name:22} {one.meaning}" for one in ENTRY_POINTS.values() if one.is_public)
    if name in _HELP:
        print(f"usage: dinox NAME [--KEY VALUE ...]; `dinox NAME --help` lists its options\n\n{listed}")
        sys.exit(0)
    print(
        f"'{name}' is no command of dinox; there are\n{listed}",
        file=sys.stderr,
    )
    sys.exit(2)


def run_entry_point(
    name: str,
    schema: type[C],
    body: Callable[[C, Run], None],
    recipe: str | None,
    arguments: Sequence[str],
    away_code: int = 2,
) -> int:
    """Read the configuration, run `body` inside an MLflow run and return the exit code.

    A refusal, which the user can correct, ends with one sentence, its exit code, and the run FAILED with that sentence.
    Anything else is a bug: it is raised with its trace, and the run is FAILED with the name of the exception. A store
    that cannot be reached ends with `away_code`: an arm of a campaign is then tried again, unlike after a wrong key.
    """
    run: Run | None = None
    config: Any = None
    try:
        config, recipe_name = resolve(schema, _without_help(arguments), recipe)
        if _HELP & set(arguments):
            print(describe(name, config, recipe_name))
            return 0
        processes = getattr(config, "nproc", 1)
        if processes > 1 and "RANK" not in os.environ:
            return launch(["-m", f"pipelines.{name}", *arguments], processes)
        watch_deadline()
        is_first = os.environ.get("RANK", "0") == "0"
        if is_first:  # Torch, MONAI and MLflow take seconds to load.
            print(f"{' '.join(filter(None, (name, recipe_name)))}: starting", flush=True)
        with never_silent(name) if is_first else contextlib.nullcontext():
            run = _start(name)
            _log_configuration(run, name, config, recipe_name, arguments)
            run.name_it(name, recipe_name, config)
            body(config, run)
            _say_what_came_out(run, name, config)
            if not run.is_wrapped:
                run.finish("FINISHED")
        return 0
    except (Interrupted, KeyboardInterrupt) as ending:
        code = ending.exit_code if isinstance(ending, Interrupted) else 130
        return _end(name, run, "KILLED", code, str(ending) or "interrupted", config)
    except BaseException as error:
        refusal = refusal_of(error)
        if refusal is None:
            # The message may hold a path of a patient's folder; it stays in the trace.
            _close(name, run, "FAILED", type(error).__name__)
            raise
        if os.environ.get("DINOX_TRACEBACK"):
            traceback.print_exc()
        code = away_code if isinstance(refusal, StoreAwayError) else refusal.exit_code
        return _end(name, run, "FAILED", code, " ".join(str(refusal).split()), config)


def _start(name: str) -> Run:
    """Attach to the run that `mlflow run` made, or create one; MLflow is imported here, because it takes seconds."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from pipelines.tracking.run import Run

    return Run.start(name)


def _log_configuration(run: Run, name: str, config: Any, recipe: str, arguments: Sequence[str]) -> None:
    """Log the whole configuration as a file, and as parameters that in which studies differ, or that was given."""
    tree = nested(config) | {key: _NOT_STORED for key in _not_stored(config)}
    given = {key for key, _ in _with_environment(type(config), parse_overrides(_without_help(arguments)))}
    flat = flatten(tree) | ({"recipe": recipe} if recipe else {})
    # `mlflow run` has logged the options of its own command line already, as they were written there.
    logged = run.stored().params if run.is_wrapped else {}
    run.log_params({key: one for key, one in compared(name, flat, given).items() if key not in logged})
    run.log_text(yaml.safe_dump(tree, sort_keys=False), "config.yaml")
    if recipe:
        run.set_tags({Tag.RECIPE: recipe})


def _say_what_came_out(run: Run, name: str, config: Any) -> None:
    """Write the description of a run that is done, and print where it is seen and what usually follows."""
    from pipelines.tracking.reading import how_served

    with contextlib.suppress(StoreAwayError):  # Its figures are logged, or wait to be.
        # Of a training that was continued, the run that holds the backbone.
        run_id = run.stored().tags.get(Tag.RESUMES, run.run_id)
        step = next_step(name, config, run_id)
        if page := run.describe(step).replace(run.run_id, run_id):
            by = f"by `{command}` " if (command := how_served()) else ""
            print(f"{f'next: {step}; ' if step else ''}seen {by}at {page}")


def _not_stored(config: Any) -> dict[str, str]:
    """Values of the options that are shown to the user and never stored, where they are not the default."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    values = {name: str(getattr(config, name)) for name in getattr(config, "NOT_STORED", ())}
    return {name: value for name, value in values.items() if value not in ("", defaults[name])}


def _end(name: str, run: Run | None, status: str, code: int, sentence: str, config: Any) -> int:
    print(sentence, file=sys.stderr)
    values = _not_stored(config).values() if config is not None else ()
    forms = (str, os.path.normpath, os.path.abspath, os.path.realpath)
    # The longest first: what is left of a path whose part was replaced would be stored.
    paths = sorted({form(value) for value in values for form in forms}, key=len, reverse=True)
    if paths:
        sentence = re.sub(rf"(?<![\w.])({'|'.join(map(re.escape, paths))})(?!\w)", _NOT_STORED, sentence)
    _close(name, run, status, sentence)
    return code


def _close(name: str, run: Run | None, status: str, why: str) -> None:
    """Close a run with its reason; if this process has none yet, the run that `mlflow run` made."""
    with contextlib.suppress(Refusal):  # The store itself may be the reason.
        if run is None and "MLFLOW_RUN_ID" in os.environ:
            from pipelines.tracking.run import given_run

            run = _start(name) if given_run(name) else None
        if run is not None:
            run.set_tags({Tag.ERROR: why})
            run.finish(status)
            run.describe()  # The last: it reads the store, which may be away while the rest waits on disk.
