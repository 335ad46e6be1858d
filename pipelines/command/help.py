"""The text of `--help`: every option of an entry point with its type, current value and meaning."""

import dataclasses
import textwrap
import types
import typing
from collections.abc import Iterator
from itertools import chain
from typing import Any, Literal

from pipelines.command.config import adapter, flatten, leaves, nested
from pipelines.command.entry_points import ENTRY_POINTS

_WIDTH = 100


def describe(name: str, config: Any, recipe: str = "") -> str:
    """Return the help text of an entry point.

    Args:
        name: Name of the entry point.
        config: Its current configuration: defaults, replaced by the recipe, then by the command line.
        recipe: Name of that recipe; "" if the entry point takes none.
    """
    lines = [
        f"usage: python -m pipelines.{name} [--KEY VALUE ...]",
        f"       mlflow run . -e {name} [-P KEY=VALUE ...]",
        "",
        *textwrap.wrap(ENTRY_POINTS[name].meaning, _WIDTH),
        "",
        "options, with the values in force:",
    ]
    options = _options(config)
    if recipe:
        options = chain([("recipe", str, recipe, "A name in mlflow_projects/recipes, or a path.")], options)
    for key, kind, value, meaning in options:
        lines.append(f"  --{key} {_shown_kind(kind)} = {_shown_value(value)}")
        lines += textwrap.wrap(meaning, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _options(config: Any) -> Iterator[tuple[str, Any, Any, str]]:
    """Yield (dotted key, type, value, meaning) of every leaf of a configuration."""
    values = flatten(nested(config))
    meanings: dict[str, str] = {}
    for base in reversed(type(config).__mro__):  # A redefined field keeps the docstring of its base class.
        if dataclasses.is_dataclass(base):
            schema = adapter(base).json_schema()
            meanings |= _meanings(schema, schema.get("$defs", {}))
    for key, kind in leaves(type(config)).items():
        yield key, kind, values[key], meanings.get(key, "")


def _meanings(section: dict[str, Any], sections: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the docstring of each field, by dotted key, from a JSON schema."""
    found: dict[str, str] = {}
    for key, field in section["properties"].items():
        if "$ref" in field:
            found |= _meanings(sections[field["$ref"].rpartition("/")[2]], sections, f"{prefix}{key}.")
        elif "description" in field:
            found[f"{prefix}{key}"] = field["description"]
    return found


def _shown_kind(kind: Any) -> str:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "|".join(str(part) for part in parts)
    if origin in (typing.Union, types.UnionType):
        return "|".join(_shown_kind(part) for part in parts)
    if origin is tuple:
        return f"[{', '.join(_shown_kind(part) for part in parts if part is not Ellipsis)}]"
    return "true|false" if kind is bool else str(getattr(kind, "__name__", kind)).upper()


def _shown_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else f"{value}" or '""'
