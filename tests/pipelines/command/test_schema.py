"""The JSON schemas beside recipes and campaigns: current, and known to every file."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.command.config import leaves
from pipelines.command.schema import SCHEMAS, schema_text
from pipelines.runtime.paths import PROJECT_ROOT
from pipelines.training.config import PretrainConfig

PROJECTS = PROJECT_ROOT / "mlflow_projects"


def stored(kind: str) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((PROJECTS / f"{kind}.schema.json").read_text())
    return tree


def fields(schema: dict[str, Any]) -> dict[tuple[str, str], list[Any]]:
    """What an editor shows of each key; how pydantic writes types varies with its version."""
    sections = schema["$defs"] | {"": schema}
    shown = ("default", "description", "enum")
    return {
        (section, key): [field.get(name) for name in shown]
        for section, tree in sections.items()
        for key, field in tree["properties"].items()
    }


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_schema_is_current(kind: str) -> None:
    rewrite = "run `python -m pipelines.command.schema`"
    assert fields(stored(kind)) == fields(json.loads(schema_text(kind))), rewrite


def test_a_schema_knows_keys_choices_defaults_and_meanings() -> None:
    schema = stored("recipe")
    of = schema["$defs"]
    assert of["OptimConfig"]["properties"]["lr"] == {"default": 2e-4, "exclusiveMinimum": 0, "type": "number"}
    assert of["ObjectiveConfig"]["properties"]["kind"]["enum"] == ["dino", "simclr", "mae"]
    assert schema["properties"]["slices"]["description"].startswith("`inner` leaves out slices")
    assert all(tree["additionalProperties"] is False for tree in (schema, *of.values()))
    known = sum(len(tree["properties"]) for tree in (schema, *of.values())) - len(of)
    assert known == len(leaves(PretrainConfig))


@pytest.mark.parametrize("kind", SCHEMAS)
def test_every_file_names_its_schema_and_holds_its_keys_alone(kind: str) -> None:
    files = sorted((PROJECTS / f"{kind}s").glob("*.yaml"))
    assert files
    for file in files:
        line = f"# yaml-language-server: $schema=../{kind}.schema.json"
        assert line in file.read_text(encoding="utf-8").splitlines(), file.name
        assert set(yaml.safe_load(file.read_text(encoding="utf-8"))) <= set(stored(kind)["properties"])
        assert (file.parent / Path(f"../{kind}.schema.json")).is_file()
