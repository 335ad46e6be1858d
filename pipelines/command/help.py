"""What `--help` prints: every option of an entry point with its kind, its value in force and what it means."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from importlib import import_module
from itertools import chain, pairwise
from typing import Any, Literal

_WIDTH = 100


def describe(name: str, config: Any, recipe: str = "") -> str:
    """Return the help text of an entry point.

    Args:
        name: Of the entry point.
        config: Its configuration in force: defaults, with a recipe and the rest of the command line over them.
        recipe: Name of that recipe; "" where the entry point takes none.
    """
    about = inspect.getdoc(import_module(f"pipelines.{name}")) or ""
    lines = [
        f"usage: python -m pipelines.{name} [--KEY VALUE ...]",
        f"       mlflow run . -e {name} [-P KEY=VALUE ...]",
        "",
        *textwrap.wrap(about.split("\n\n")[0], _WIDTH),
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


def _options(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    """Yield (dotted key, type, value, meaning) of every leaf of a configuration."""
    hints, meanings = typing.get_type_hints(type(config)), _field_docstrings(type(config))
    for field in dataclasses.fields(config):
        key, value = f"{prefix}{field.name.rstrip('_')}", getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _options(value, f"{key}.")
        else:
            yield key, hints[field.name], value, meanings.get(field.name, "")


def _field_docstrings(schema: type[Any]) -> dict[str, str]:
    """Read the string literals that stand below the fields of a dataclass: Python itself does not keep them.

    A field that a subclass states again without one keeps the meaning that its base gave it.
    """
    meanings: dict[str, str] = {}
    for base in filter(dataclasses.is_dataclass, reversed(schema.__mro__)):
        meanings |= _own_docstrings(base)
    return meanings


def _own_docstrings(schema: type[Any]) -> dict[str, str]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(schema))).body
    body = definition.body if isinstance(definition, ast.ClassDef) else []
    return {
        field.target.id: " ".join(str(text.value.value).split())
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


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
