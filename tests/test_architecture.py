"""docs/architecture.md is correct about files, names and folders."""

import ast
import re
from pathlib import Path

import pytest

from tests.test_house import LAST, MAY_IMPORT, ORDER

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PLACES = re.findall(
    r"^\| (?P<what>[^|`][^|]*) \| `(?P<file>[^`|]+)` \| (?:`(?P<name>[^`|]+)`)? ?\|$", PAGE, re.M
)


def defined_names(file: Path) -> set[str]:
    """Names that a module defines: functions, classes, constants, and methods as Class.method."""
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{one.name}" for one in node.body if isinstance(one, ast.FunctionDef)}
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize(("what", "file", "name"), PLACES)
def test_a_place_to_look_is_where_the_page_says(what: str, file: str, name: str) -> None:
    assert (ROOT / file).is_file()
    assert not name or name in defined_names(ROOT / file)


def test_the_page_answers_what_strangers_ask() -> None:
    assert len(PLACES) >= 15


def test_every_path_on_the_page_exists() -> None:
    paths = set(
        re.findall(r"\b(?:transforms|models|probes|pipelines|tests|docs|benchmarks)/[\w/]+\.(?:py|md)", PAGE)
    )
    assert len(paths) > 20
    assert not {path for path in paths if not (ROOT / path).is_file()}


def test_the_tree_shows_the_folders_as_they_are_and_in_their_order() -> None:
    tree = PAGE.split("```")[1]
    shown: dict[str, list[str]] = {}
    for line in tree.splitlines():
        if match := re.match(r"( *)(\w+)/ ", line):
            if match[1]:
                shown[list(shown)[-1]].append(match[2])
            else:
                shown[match[2]] = []
    for package in MAY_IMPORT:
        folders = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
        assert set(shown[package]) == folders
    assert tuple(shown["pipelines"]) == (*ORDER, *LAST)
