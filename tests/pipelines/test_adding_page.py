"""docs/adding.md: in a copy of the project its blocks are followed one after another, and give what they say."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient

from pipelines.cohort.folder import Cohort
from pipelines.cohort.tables import NODULES, write_table

ROOT = Path(__file__).parents[2]
PARTS = ("transforms", "models", "probes", "pipelines", "mlflow_projects", "tests", "docs")
PAGE = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r'^```(\w+)(?: title="(.+?)")?\n(.*?)^```$', PAGE, re.DOTALL | re.MULTILINE)


def test_every_block_is_a_file_a_change_or_a_command() -> None:
    assert {(kind, bool(title)) for kind, title, _ in BLOCKS} == {
        ("yaml", True),
        ("python", True),
        ("diff", False),
        ("sh", False),
    }
    assert len(BLOCKS) == PAGE.count("\n```") // 2
    for heading in ("recipe", "loss", "n encoder", "probe", "source", "label rule"):
        assert re.search(rf"^## An? ?{heading}", PAGE.replace("## An e", "## A n e"), re.MULTILINE)


@pytest.mark.slow
def test_the_page_is_followed_word_for_word(
    small_cohort: Cohort, own_store: Path, own_key: None, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    for part in PARTS:
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "MLproject"):
        shutil.copy(ROOT / file, copy / file)
    # The six patients stand in for the phantom that a command without `cohort` makes.
    shutil.copytree(small_cohort.root, copy / "cohorts" / "phantom")
    turns = [[5, 5, 4] if number % 2 else [1, 2, 1] for number in range(len(small_cohort.nodules))]
    rated = small_cohort.nodules.assign(malignancy_ratings=turns)
    write_table(copy / "cohorts" / "phantom" / "nodules.parquet", rated, NODULES)

    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    for kind, title, block in BLOCKS:
        if title:
            (copy / title).write_text(block, encoding="utf-8")
            continue
        command = ["git", "apply", "-"] if kind == "diff" else ["sh", "-e"]
        done = subprocess.run(
            command, input=block, cwd=copy, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{block}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"

    store = MlflowClient()
    runs = {run.data.tags["dinox.entry_point"]: run for run in reversed(store.search_runs(["0"]))}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert 0 < runs["pretrain"].data.metrics["loss/variance"] < 1
    assert "probe/auroc" in runs["probe_malignancy"].data.metrics
    assert 0 < runs["probe_brightness"].data.metrics["brightness/auroc"] < 1
    assert "loss/variance" in (copy / "docs" / "names.md").read_text(encoding="utf-8")
    rules = pd.read_csv(store.download_artifacts(runs["nodules"].info.run_id, "tables/rules.csv"))
    by_rule = rules.set_index("rule")["malignant"]
    assert by_rule["most_suspicious"] == by_rule["any_reader"] == sum(turn[0] == 5 for turn in turns)
    assert runs["nodules"].data.tags["dinox.rule"] == "most_suspicious"
    made = Cohort.open(copy / "cohorts" / "npz")
    assert made.series["shape"].map(list).tolist() == [[20, 64, 64]]
    assert made.series["spacing_mm"].map(list).tolist() == [[2.0, 1.0, 1.0]]
    assert len(made.refused) == 1
    assert "not a NumPy archive" in pd.DataFrame(made.refused)["reason"].iloc[0]
