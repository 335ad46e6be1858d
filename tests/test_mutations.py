"""The script that changes inputs at random: it finds what is planted, and a case follows from its number."""

import json
import random
from pathlib import Path

import pytest

from tests.mutations.__main__ import run
from tests.mutations.change import change_bytes, change_json, places


def test_a_case_follows_from_its_seed_alone(tmp_path: Path) -> None:
    tree = {"a": [1, {"b": 2}], "c": "x"}
    texts = set()
    for number in (1, 1, 2, 3):
        (tmp_path / "t.json").write_text(json.dumps(tree))
        change_json(random.Random(f"0/backbone/{number}"), tmp_path / "t.json")
        texts.add((tmp_path / "t.json").read_bytes())
    assert len(texts) == 3
    assert len(places(tree)) == 5
    content = bytes(range(200))
    assert sum(change_bytes(random.Random(seed), content) != content for seed in range(20)) > 10


@pytest.mark.slow
def test_inputs_changed_at_random_are_read_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_NUM_THREADS", "ARROW_NUM_THREADS", "XDG_CONFIG_HOME", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "1")  # Set by the script, and put back after the test.
    kinds = ["dicom", "recipe", "campaign", "cohort", "checkpoint", "backbone", "table"]
    for name, ended in run(tmp_path, kinds, 40, 1).items():
        assert ended["read"] + ended["refused"] == 40, (name, ended)
