"""One list of entry points: what is started, declared, documented and used in campaigns is what it says."""

import ast
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines.campaign.stages import STAGES
from pipelines.command.config import flatten
from pipelines.command.entry_points import ENTRY_POINTS
from pipelines.command.help import describe
from pipelines.runtime.paths import PROJECT_ROOT

PUBLIC = [name for name, one in ENTRY_POINTS.items() if one.is_public]
MLPROJECT = PROJECT_ROOT / "MLproject"


def started_by(file: Path) -> list[tuple[str, str, str, str | None]]:
    """(name, schema, body, recipe) of each call of `main` in a file."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "main"
            and node.args
        ):
            name, schema, body = (ast.unparse(one) for one in node.args)
            recipe = next((ast.literal_eval(k.value) for k in node.keywords if k.arg == "recipe"), None)
            found.append((ast.literal_eval(name), schema, body, recipe))
    return found


def test_what_each_module_starts_is_what_the_list_says() -> None:
    pipelines = PROJECT_ROOT / "pipelines"
    files = [*pipelines.glob("*.py"), *pipelines.glob("*/__main__.py")]
    started = {file: started_by(file) for file in files}
    assert sorted(one for of_file in started.values() for one in of_file) == sorted(
        (one.name, one.schema, one.body, one.recipe) for one in ENTRY_POINTS.values()
    )
    for file, of_file in started.items():
        place = file.parent.name if file.name == "__main__.py" else file.stem
        assert [one[0] for one in of_file] in ([], [place])


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_an_entry_point_has_a_configuration_with_defaults_a_body_and_help(name: str) -> None:
    one = ENTRY_POINTS[name]
    schema = one.load_schema()
    assert dataclasses.is_dataclass(schema)
    assert callable(one.load_body())
    text = " ".join(describe(name, schema()).split())
    assert text.startswith(f"usage: python -m pipelines.{name} ")
    assert one.meaning in text


def test_mlproject_declares_the_public_entry_points_with_their_own_keys_and_defaults() -> None:
    text = MLPROJECT.read_text(encoding="utf-8")
    declared = yaml.safe_load(text)["entry_points"]
    assert set(declared) == set(PUBLIC)
    comments = dict(re.findall(r"^  (\w+):  # (.*)$", text, flags=re.MULTILINE))
    assert comments == {name: ENTRY_POINTS[name].meaning for name in PUBLIC}
    for name, point in declared.items():
        one = ENTRY_POINTS[name]
        keys = flatten(one.load_schema()()) | ({"recipe": one.recipe} if one.recipe else {})
        given = {key: yaml.safe_load(of["default"]) or "" for key, of in point["parameters"].items()}
        assert given == {key: keys[key] or "" for key in given}, name
        words = " ".join(f"--{key} {{{key}}}" for key in given)
        assert point["command"] == f"python -m pipelines.{name} {words}"


def test_readme_s_table_is_that_of_the_list() -> None:
    text = (PROJECT_ROOT / "README.md").read_text(encoding="utf-8")
    rows = text.split("| entry point | what it does |\n| --- | --- |\n")[1].split("\n\n")[0].splitlines()
    assert rows == [f"| `{name}` | {ENTRY_POINTS[name].meaning} |" for name in PUBLIC]


def test_arms_are_made_of_the_stages_of_the_list_and_probes_take_a_backbone() -> None:
    assert set(STAGES) == {
        "pretrain",
        "rehearsal",
        *(name for name in ENTRY_POINTS if name.startswith("probe_")),
    }
    for name, stage in STAGES.items():
        keys = flatten(stage.load_schema()())
        assert "seed" in keys, name
        assert stage.takes_backbone == ("backbone" in keys), name


def test_the_list_is_light_and_its_lines_are_short() -> None:
    code = "import sys, pipelines.command.entry_points; print(sorted({'torch', 'mlflow', 'numpy'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT_ROOT
    )
    assert done.stdout == "[]\n"
    assert all(len(one.meaning) <= 110 and "\n" not in one.meaning for one in ENTRY_POINTS.values())
