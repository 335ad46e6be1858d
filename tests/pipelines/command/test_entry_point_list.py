"""One list of entry points: what is started, declared, documented and used in campaigns is what it says."""

import dataclasses
import re
import subprocess
import sys
from pkgutil import resolve_name

import pytest
import yaml

from pipelines.campaign.arms import STAGES
from pipelines.command.config import flatten, nested
from pipelines.command.entry_points import ENTRY_POINTS
from pipelines.command.help import describe
from pipelines.runtime.paths import PROJECT_ROOT

PUBLIC = [name for name, one in ENTRY_POINTS.items() if one.is_public]
MLPROJECT = PROJECT_ROOT / "MLproject"


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_each_module_starts_the_entry_point_of_its_name(name: str) -> None:
    place = PROJECT_ROOT / "pipelines" / name
    file = place / "__main__.py" if place.is_dir() else place.with_suffix(".py")
    assert file.read_text(encoding="utf-8").endswith(f'\nif __name__ == "__main__":\n    main("{name}")\n')


def test_no_module_starts_what_is_not_in_the_list() -> None:
    pipelines = PROJECT_ROOT / "pipelines"
    files = [*pipelines.glob("*.py"), *pipelines.glob("*/__main__.py")]
    starting = [file for file in files if "command.cli import main" in file.read_text(encoding="utf-8")]
    assert len(starting) == len(ENTRY_POINTS)


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_an_entry_point_has_a_configuration_with_defaults_a_function_and_help(name: str) -> None:
    one = ENTRY_POINTS[name]
    schema = one.load_schema()
    assert dataclasses.is_dataclass(schema)
    assert getattr(resolve_name(f"pipelines.{name}"), schema.__name__) is schema
    assert callable(resolve_name(one.body))
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
        keys = flatten(nested(one.load_schema()())) | ({"recipe": one.recipe} if one.recipe else {})
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
        "finetune",
        *(name for name in ENTRY_POINTS if name.startswith("probe_")),
    }
    for name, stage in STAGES.items():
        keys = flatten(nested(stage.load_schema()()))
        assert "seed" in keys, name
        assert ("backbone" in keys) == (name != "pretrain"), name


def test_the_list_is_light_and_its_lines_are_short() -> None:
    code = "import sys, pipelines.command.entry_points; print(sorted({'torch', 'mlflow', 'numpy'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT_ROOT
    )
    assert done.stdout == "[]\n"
    assert all(len(one.meaning) <= 110 and "\n" not in one.meaning for one in ENTRY_POINTS.values())
