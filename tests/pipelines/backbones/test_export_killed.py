"""An export that is killed in the midst of its files leaves what was there, and the same command goes on."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines.backbones import folder as backbone_folder
from pipelines.command.cli import run_entry_point
from pipelines.command.entry_points import ENTRY_POINTS
from tests.pipelines.probing.test_probe_malignancy import backbone


def exported(source: str, out: Path) -> int:
    one = ENTRY_POINTS["export"]
    words = ["--backbone", source, "--out", str(out), "--onnx", "no"]
    return run_entry_point(one.name, one.load_schema(), one.run, one.recipe, words)


def killed_after_the_weights(source: str, out: Path) -> int:
    pid = os.fork()
    if not pid:
        try:
            dies = SimpleNamespace(loads=json.loads, load=json.load, dumps=lambda *_, **__: os._exit(9))
            backbone_folder.json = dies
            exported(source, out)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("is_there", [False, True])
def test_a_killed_export_locks_no_folder_and_changes_none(own_store: Path, is_there: bool) -> None:
    old, new = (backbone(own_store / name, seed) for seed, name in enumerate(("old", "new")))
    out = own_store / "out"
    if is_there:
        assert exported(old, out) == 0
    before = {path.name: path.read_bytes() for path in out.glob("*")}
    assert killed_after_the_weights(new, out) == 9
    assert {path.name: path.read_bytes() for path in out.glob("*")} == before
    assert exported(new, out) == 0
    assert (out / "model.safetensors").read_bytes() == Path(new, "model.safetensors").read_bytes()
