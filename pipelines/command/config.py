"""One strict reader from a YAML recipe and dotted overrides to frozen dataclasses.

Each part of the system declares its own small dataclass beside the code that uses it; only this module turns text into
one. pydantic refuses unknown keys and wrong types; this module adds an error message with the correct form.
"""

import copy
import dataclasses
import difflib
import os.path
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from pipelines.runtime.paths import RESOURCES
from pipelines.tracking.old_names import current_keys
from transforms.refusal import Refusal

RECIPES = RESOURCES / "mlflow_projects" / "recipes"
_MOST_SHOWN = 120
_UNKNOWN = ("unexpected_keyword_argument", "invalid_key")
# A trailing underscore keeps a Python keyword (`from_`) writable; users type it without.
_STRICT = ConfigDict(
    extra="forbid", use_attribute_docstrings=True, alias_generator=lambda name: name.rstrip("_")
)

C = TypeVar("C")
Seed = Annotated[int, Field(ge=0, le=2**32 - 1001)]
"""Of random numbers: numpy takes 32 bits, and repeats, permutations and random twins count up from it."""


class RecipeError(Refusal):
    """A recipe or an override is not valid; one sentence gives the reason and the correct form.

    What a sentence quotes of a file may be of any length: words of more than 400 letters are cut.
    """

    def __init__(self, text: str) -> None:
        """Say `text`."""
        super().__init__(re.sub(r"(\S{120})\S{280,}", r"\1...", text))


class _NotReadError(yaml.YAMLError):
    """YAML that would mean something else than it seems: a key that is named twice, or an alias."""


class _Plain(yaml.SafeLoader):
    """Safe YAML in which no mapping names a key twice, and no alias repeats a part: a few lines could mean millions."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose a node that is no alias."""
        if self.check_event(yaml.AliasEvent):
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            raise _NotReadError(
                f"uses the alias '*{event.anchor}', which is not read; write out what it repeats"
            )
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping, after checking that no key appears twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                line = key.start_mark.line + 1
                raise _NotReadError(f"names the key '{key.value}' twice, again in line {line}; keep one")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def find_recipe(name_or_path: str, folder: Path = RECIPES) -> Path:
    """Return the file of a recipe given by its name in `folder` or by a path.

    Raises:
        RecipeError: If there is no such file; the known names are listed.
    """
    for path in (folder / f"{name_or_path}.yaml", Path(name_or_path)):
        if os.path.isfile(path):  # Path.is_file raises for a name that is too long.
            return path
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    raise RecipeError(
        f"recipe '{name_or_path}' is neither a file nor one of the names in {folder.name}"
        f" ({', '.join(known)}){_near(name_or_path, known)}"
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping.

    Raises:
        RecipeError: If the file cannot be read, is not text, not YAML, nested too deep or not a mapping.
    """
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Plain)
    except OSError as error:
        raise RecipeError(f"recipe {path.name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe {path.name} is not text in UTF-8") from error
    except _NotReadError as error:
        raise RecipeError(f"recipe {path.name} {error}") from error
    except RecursionError as error:
        raise RecipeError(f"recipe {path.name} is nested too deep") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: such as a date without its month.
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = f" near line {line + 1}" if line is not None else ""
        raise RecipeError(f"recipe {path.name} is not valid YAML{where}") from error
    if not isinstance(tree, dict | None):
        raise RecipeError(f"recipe {path.name} holds a {type(tree).__name__}; it must be a mapping of keys")
    return tree or {}


def load_recipe(schema: type[C], tree: Mapping[str, Any], overrides: Sequence[tuple[str, str]] = ()) -> C:
    """Build `schema` from a recipe's tree with dotted overrides laid over it.

    Args:
        schema: A dataclass whose fields all have defaults; nested dataclasses are sections.
        tree: The recipe, keys as in the YAML file.
        overrides: Pairs such as ("optim.lr", "3e-4"), values as text from the command line.

    Raises:
        RecipeError: For an unknown key, a value of the wrong type, or a combination that a section refuses.
    """
    kinds, merged = leaves(schema), copy.deepcopy(current_keys(tree))
    for given, value in overrides:
        ((key, text),) = current_keys({given: value}).items()
        if key not in kinds:
            raise RecipeError(f"unknown key '{key}'{_near(key, list(kinds))}")
        _put(merged, key, text if _is_text(kinds[key]) else _from_text(key, text))
    reader: TypeAdapter[C] = adapter(typing.cast(Any, schema))
    try:
        return reader.validate_python(merged)
    except ValidationError as error:
        raise RecipeError(_sentence(error, list(kinds))) from error


@cache
def adapter(schema: type[Any]) -> TypeAdapter[Any]:
    """Return pydantic's reader of a dataclass, made once; it refuses unknown keys, and docstrings describe fields."""
    for section in _dataclasses(schema):
        section.__pydantic_config__ = _STRICT
    return TypeAdapter(schema)


def leaves(schema: Any, prefix: str = "") -> dict[str, Any]:
    """Return the type of every leaf of a configuration by its dotted key."""
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        key, kind = f"{prefix}{field.name.rstrip('_')}", hints[field.name]
        found |= leaves(kind, f"{key}.") if dataclasses.is_dataclass(kind) else {key: kind}
    return found


def nested(config: Any) -> dict[str, Any]:
    """Return a configuration as a tree, as a recipe file writes it."""
    return dataclasses.asdict(config, dict_factory=lambda items: {key.rstrip("_"): of for key, of in items})


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return every leaf of a tree by its dotted key."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _dataclasses(kind: Any) -> Iterator[Any]:
    """Yield the dataclasses that a type holds, itself first."""
    if dataclasses.is_dataclass(kind):
        yield kind
    inner = typing.get_type_hints(kind).values() if dataclasses.is_dataclass(kind) else typing.get_args(kind)
    for one in inner:
        yield from _dataclasses(one)


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Write a leaf; a section that is no mapping stays, to be refused as such."""
    section, _, below = key.partition(".")
    if not below:
        tree[section] = value
    elif isinstance(tree.setdefault(section, {}), dict):
        _put(tree[section], below, value)


def _is_text(kind: Any) -> bool:
    is_choice = typing.get_origin(kind) is typing.Literal
    return kind is str or (is_choice and all(isinstance(v, str) for v in typing.get_args(kind)))


def _from_text(key: str, text: str) -> Any:
    try:
        return yaml.load(text, _Plain)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"key '{key}' was given {shown(text)}, which is not a YAML value") from error


def shown(value: Any) -> str:
    """Return a value as a sentence quotes it: its beginning."""
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _near(key: str, known: list[str]) -> str:
    match = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not match:  # The next most common mistake is a correct key in the wrong section.
        match = [k for k in known if k.split(".")[-1] == key.split(".")[-1]][:1]
    return f"; did you mean '{match[0]}'?" if match else ""


def _sentence(error: ValidationError, known: list[str]) -> str:
    """Return a sentence about the first error, a misspelled key before a wrong value."""
    errors = sorted(error.errors(), key=lambda one: one["type"] not in _UNKNOWN)
    first, key = errors[0], _key_of(errors[0]["loc"], known)
    if first["type"] in _UNKNOWN:
        return f"unknown key '{key}'{_near(key, known)}"
    if first["type"] == "dataclass_type":
        return f"key '{key}' is a section; it was given {shown(first['input'])}"
    if first["type"] == "value_error":
        return f"{key + ': ' if key else ''}{first['msg'].removeprefix('Value error, ')}"
    # For a union type, such as a name or a number, pydantic reports one error for each part.
    reasons = [one["msg"] for one in errors if _key_of(one["loc"], known) == key]
    reason = " or ".join(f"{text[0].lower()}{text[1:]}" for text in dict.fromkeys(reasons))
    return f"key '{key}' was given {shown(first['input'])}: {reason}"


def _key_of(place: tuple[int | str, ...], known: list[str]) -> str:
    """Return the dotted key of a place in a tree; parts of a type that pydantic adds below a leaf are left out."""
    parts = [str(part) for part in place]
    ends = [end for end in range(len(parts)) if ".".join(parts[:end]) in known]
    if ends and all(isinstance(part, str) for part in place[ends[0] :]):
        parts = parts[: ends[0]]
    return ".".join(parts)
