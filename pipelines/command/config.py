"""One strict door from a YAML recipe and dotted overrides to frozen dataclasses.

Each part of the system declares its own small dataclass beside the code that reads it; this file alone knows how
text becomes one. Unknown keys are refused with the nearest right one, and types are checked by pydantic.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from pipelines.runtime.paths import PROJECT_ROOT
from pipelines.tracking.old_names import current_keys

RECIPES = PROJECT_ROOT / "mlflow_projects" / "recipes"

C = TypeVar("C")


class RecipeError(ValueError):
    """A recipe or an override that cannot be: one sentence says what and what would be right."""


class _KeyTwiceError(yaml.YAMLError):
    """A mapping that names a key twice: YAML would take the last one without a word."""


class _OnceEach(yaml.SafeLoader):
    """Safe YAML in which no mapping may name a key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping, after looking for a key that is there twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                line = key.start_mark.line + 1
                raise _KeyTwiceError(f"names the key '{key.value}' twice, again in line {line}; keep one")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def find_recipe(name_or_path: str, folder: Path = RECIPES) -> Path:
    """Return the file of a recipe given by its name in `folder` or by a path.

    Raises:
        RecipeError: If there is no such file; the known names are listed.
    """
    named = folder / f"{name_or_path}.yaml"
    if named.is_file():
        return named
    path = Path(name_or_path)
    if path.is_file():
        return path
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    raise RecipeError(
        f"recipe '{name_or_path}' is neither a file nor a name in {folder.name}{_near(name_or_path, known)};"
        f" known names: {', '.join(known)}"
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping.

    Raises:
        RecipeError: If the file is not YAML or not a mapping.
    """
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _OnceEach) or {}
    except _KeyTwiceError as error:
        raise RecipeError(f"recipe {path.name} {error}") from error
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = f" near line {line + 1}" if line is not None else ""
        raise RecipeError(f"recipe {path.name} is not valid YAML{where}") from error
    if not isinstance(tree, dict):
        raise RecipeError(f"recipe {path.name} holds a {type(tree).__name__}; it must be a mapping of keys")
    return tree


def load_recipe(schema: type[C], tree: Mapping[str, Any], overrides: Sequence[tuple[str, str]] = ()) -> C:
    """Build `schema` from a recipe's tree with dotted overrides laid over it.

    Args:
        schema: A dataclass whose fields all have defaults; nested dataclasses are sections.
        tree: The recipe, keys as in the YAML file.
        overrides: Pairs such as ("optim.lr", "3e-4"), values as text from the command line.

    Raises:
        RecipeError: For an unknown key, a value of the wrong type, or a combination that a section refuses.
    """
    kinds = dict(_leaves(schema))
    merged = _checked(schema, current_keys(tree), kinds, prefix="")
    for given, value in overrides:
        ((key, text),) = current_keys({given: value}).items()
        if key not in kinds:
            raise RecipeError(f"unknown recipe key '{key}'{_near(key, list(kinds))}")
        _put(merged, key, text if _is_text(kinds[key]) else _from_text(key, text))
    try:
        return TypeAdapter(schema).validate_python(merged)
    except ValidationError as error:
        raise RecipeError(_sentence(error)) from error


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return every leaf of a configuration by its dotted key."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        key, value = f"{prefix}{field.name.rstrip('_')}", getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{key}.")
        else:
            flat[key] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested tree of dotted keys, as a recipe file writes it."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, leaf = key.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[leaf] = list(value) if isinstance(value, tuple) else value
    return tree


def _leaves(schema: type[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        # A trailing underscore keeps a Python keyword (`from_`) writable; users type it without.
        key, kind = f"{prefix}{field.name.rstrip('_')}", hints[field.name]
        if dataclasses.is_dataclass(kind):
            yield from _leaves(typing.cast("type[Any]", kind), f"{key}.")
        else:
            yield key, kind


def _checked(schema: type[Any], tree: dict[str, Any], known: dict[str, Any], prefix: str) -> dict[str, Any]:
    hints = typing.get_type_hints(schema)
    fields = {field.name.rstrip("_"): field.name for field in dataclasses.fields(schema)}
    checked: dict[str, Any] = {}
    for key, value in tree.items():
        if key not in fields:
            raise RecipeError(f"unknown recipe key '{prefix}{key}'{_near(f'{prefix}{key}', list(known))}")
        kind = hints[fields[key]]
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, dict):
                raise RecipeError(f"recipe key '{prefix}{key}' is a section; it was given {value!r}")
            value = _checked(typing.cast("type[Any]", kind), value, known, f"{prefix}{key}.")
        checked[fields[key]] = value
    return checked


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[f"{leaf}_" if leaf == "from" else leaf] = value


def _is_text(kind: Any) -> bool:
    if kind is str:
        return True
    return typing.get_origin(kind) is typing.Literal and all(
        isinstance(v, str) for v in typing.get_args(kind)
    )


def _from_text(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe key '{key}' was given {text!r}, which is not a YAML value") from error


def _near(key: str, known: list[str]) -> str:
    match = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not match:  # A right leaf in the wrong section is the next most common slip.
        match = [k for k in known if k.split(".")[-1] == key.split(".")[-1]][:1]
    return f"; did you mean '{match[0]}'?" if match else ""


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part).rstrip("_") for part in first["loc"])
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{key + ': ' if key else ''}{reason}"
    return f"recipe key '{key}' was given {first['input']!r}: {reason[0].lower()}{reason[1:]}"
