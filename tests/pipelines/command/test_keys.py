"""No dead option: every key of every configuration is turned by a recipe, a campaign, a page or a test."""

import re
import typing

from pipelines.command.config import leaves
from pipelines.command.entry_points import ENTRY_POINTS
from pipelines.runtime.paths import PROJECT_ROOT

PLACES = (
    "mlflow_projects/*/*.yaml",
    "README.md",
    "MLproject",
    "docs/**/*.md",
    "tests/**/*.py",
)


def test_every_key_of_every_configuration_is_turned_somewhere() -> None:
    files = [file for place in PLACES for file in PROJECT_ROOT.glob(place)]
    assert len(files) > 100
    turned: set[str] = set()
    for file in files:
        text = file.read_text(encoding="utf-8")
        # As `key=`, `key:` or `"key":`, as `--section.key`, or as an override ("section.key", value).
        turned |= set(re.findall(r"(\w+)[\"']?\s*[=:]", text)) | set(re.findall(r"--(?:\w+\.)*(\w+)", text))
        turned |= set(re.findall(r"\(\"(?:\w+\.)*(\w+)\",", text))
    keys = {
        f"{name}: {key}": key.rpartition(".")[2]
        for name, one in ENTRY_POINTS.items()
        for key in leaves(one.load_schema())
    }
    assert len(keys) > 150
    assert not [key for key, leaf in keys.items() if leaf not in turned]


def test_no_option_has_one_legal_value() -> None:
    for name, one in ENTRY_POINTS.items():
        for key, kind in leaves(one.load_schema()).items():
            if typing.get_origin(kind) is typing.Literal:
                assert len(typing.get_args(kind)) > 1, f"{name}: {key}"
