"""What the checks install is known to work: a release is named for everything that this project asks for."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def names(requirements: list[str]) -> set[str]:
    """Names of packages as pip compares them."""
    found = (re.match(r"[\w.-]+", line) for line in requirements if not line.startswith("#"))
    return {re.sub(r"[-_.]+", "-", name[0]).lower() for name in found if name}


def test_every_package_that_is_installed_for_the_tests_has_a_release_that_is_known_to_work() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked_for = names(project["dependencies"] + project["optional-dependencies"]["dev"])
    assert asked_for - names((ROOT / "constraints.txt").read_text().splitlines()) == set()
