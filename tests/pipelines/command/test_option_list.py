"""`--help`: every option with its kind, the value in force and its meaning, and nothing is run for it."""

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from pipelines.command.cli import resolve, run_entry_point
from pipelines.command.config import flatten, nested
from pipelines.command.help import describe
from pipelines.ingest.config import PrepareConfig
from pipelines.runtime.paths import PROJECT_ROOT
from pipelines.training.config import PretrainConfig


def never(config: Any, run: Any) -> None:
    raise AssertionError("help was asked for, and the entry point ran")


def test_help_lists_every_option_of_a_recipe_with_its_value() -> None:
    text = describe("pretrain", *resolve(PretrainConfig, ["--steps", "7"], "vit_small"))
    lines = text.splitlines()
    for key in flatten(nested(PretrainConfig())):
        assert sum(line.startswith(f"  --{key} ") for line in lines) == 1, key
    assert "  --recipe STR = vit_small" in lines
    assert "  --steps INT = 7" in lines
    assert "  --optim.lr FLOAT = 0.0002" in lines
    assert "  --holdout half_a|half_b|FLOAT = 0.2" in lines
    assert "  --views.fraction [FLOAT, FLOAT] = [0.5, 1.0]" in lines
    assert '  --backbone.weights STR = ""' in lines
    at = lines.index("  --accumulation INT = 1")
    assert lines[at + 1] == "      Forward passes per update; gradients and centers are averaged over them."
    assert max(map(len, lines)) <= 110


def test_a_trailing_underscore_is_not_shown() -> None:
    lines = describe("prepare", PrepareConfig()).splitlines()
    assert "  --from auto|dicom|nifti|metaimage|nrrd|npy|png|hub = auto" in lines


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_runs_nothing_and_leaves_no_run(
    own_store: Path, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    assert run_entry_point("prepare", PrepareConfig, never, None, [word]) == 0
    assert capsys.readouterr().out.startswith("usage: python -m pipelines.prepare")
    assert not MlflowClient(f"sqlite:///{own_store / 'mlflow.db'}").search_runs(["0"])


def test_help_of_what_cannot_be_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_entry_point("pretrain", PretrainConfig, never, "demo", ["--recipe", "dmeo", "--help"]) == 2
    assert "did you mean 'demo'?" in capsys.readouterr().err


def test_every_entry_point_answers_help_before_anything_heavy_is_imported() -> None:
    entries = yaml.safe_load((PROJECT_ROOT / "MLproject").read_text())["entry_points"]
    code = (
        "import runpy, sys\n"
        "HEAVY = {'torch', 'monai', 'timm', 'sklearn', 'scipy', 'matplotlib', 'mlflow', 'pydicom'}\n"
        "for name in sys.argv.pop(1).split(','):\n"
        "    sys.argv[1:] = ['--help']\n"
        "    try:\n"
        "        runpy.run_module(f'pipelines.{name}', run_name='__main__', alter_sys=True)\n"
        "    except SystemExit as ending:\n"
        "        assert ending.code == 0, (name, ending.code)\n"
        "    assert not HEAVY & set(sys.modules), (name, HEAVY & set(sys.modules))\n"
    )
    words = [sys.executable, "-W", "ignore", "-c", code, ",".join(entries)]
    done = subprocess.run(words, cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in entries:
        assert f"usage: python -m pipelines.{name} " in done.stdout


def test_the_demo_does_not_begin_when_asked_what_it_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pipelines/demo.py", "--help"])
    with pytest.raises(SystemExit) as ending:
        runpy.run_path(str(PROJECT_ROOT / "pipelines/demo.py"), run_name="__main__")
    said = capsys.readouterr()
    assert (ending.value.code, said.err) == (0, "")
    assert "takes no options" in said.out
