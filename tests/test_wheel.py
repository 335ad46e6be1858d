"""The wheel, installed alone in a folder of its own and called from an empty one: recipes and weights are inside."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pipelines.command.entry_points import as_installed

ROOT = Path(__file__).resolve().parents[1]


def test_the_command_that_follows_is_written_for_an_installed_copy() -> None:
    step = "mlflow run . -e probe_malignancy -P backbone=runs:/1/backbone -P cohort=cohorts/a"
    assert as_installed(step) == "dinox probe_malignancy --backbone runs:/1/backbone --cohort cohorts/a"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel; the dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    # Not in the checkout, where a build leaves a folder behind that the next one takes files from.
    kept = shutil.ignore_patterns(
        ".*", "runs", "mlruns", "cohorts", "build", "tests", "*.egg-info", "mlflow.db*"
    )
    shutil.copytree(ROOT, folder / "source", ignore=kept)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(folder),
        str(folder / "source"),
    ]
    subprocess.run(build, check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.mark.slow
def test_an_installed_copy_pretrains_probes_and_embeds_from_an_empty_folder(
    installed: Path, tmp_path: Path
) -> None:
    assert not (installed / "MLproject").exists()
    environment = {"PATH": os.defpath, "HOME": str(tmp_path), "PYTHONPATH": str(installed)}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONSAFEPATH": "1"}
    code = "from pipelines.command.cli import console; console()"

    def dinox(*words: str, ends: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == ends, done.stderr
        return done.stdout + done.stderr

    assert "  probe_malignancy" in dinox()
    assert "is no command of dinox; there are" in dinox("pretrian", ends=2)
    words = ("--recipe", "demo", "--steps", "20", "--eval_slices", "16", "--device", "cpu")
    said = dinox("pretrain", *words)
    assert "next: dinox probe_malignancy --backbone runs:/" in said
    assert f"mlflow ui --backend-store-uri sqlite:///{tmp_path / 'mlflow.db'}" in said
    assert {"mlflow.db", "runs", "cohorts"} <= {path.name for path in tmp_path.iterdir()}
    assert "AUROC" in dinox("probe_malignancy", "--repeats", "1", "--draws", "19", "--n_bootstrap", "50")
    dinox(
        "embed",
        "--source",
        "cohorts/phantom",
        "--out",
        "table.parquet",
        "--backbone",
        "shipped:whitened_words",
    )
    assert (tmp_path / "table.parquet").is_file()
