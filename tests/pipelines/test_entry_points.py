"""prepare, pretrain and probe as processes would run them: exit codes, one sentence, nothing personal."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from models.backbone import build_backbone
from models.config import BackboneConfig
from pipelines import prepare
from pipelines.backbones.config import EmbedConfig
from pipelines.backbones.embedding import run_embed
from pipelines.backbones.folder import open_backbone, save_backbone
from pipelines.cohort.folder import Cohort
from pipelines.command.cli import run_entry_point
from pipelines.ingest.config import PrepareConfig
from pipelines.phantom.source import PERSONAL_FOLDER, PERSONAL_STRINGS
from pipelines.probing.config import ProbeConfig
from pipelines.probing.malignancy import run_probe
from pipelines.probing.reading import TWINS
from pipelines.probing.setup import ProbeError, refuse_shared
from pipelines.runtime.paths import PROJECT_ROOT
from pipelines.training.config import PretrainConfig
from pipelines.training.run import train
from transforms import LoadDicomSeries, NoduleCrop, RandWindowHU, SliceTriplet, WindowHU

TINY = [
    "--recipe", "demo", "--steps", "4", "--batch_size", "4", "--log_every", "2", "--eval_slices", "16",
    "--backbone.depth", "1", "--backbone.embed_dim", "16", "--backbone.heads", "2", "--backbone.image_px", "28",
    "--views.size_px", "28", "--head.prototypes", "32", "--device", "cpu",
]  # fmt: skip
TIMM_PATCH_16 = [
    "--backbone.arch", "timm", "--backbone.timm_name", "vit_tiny_patch16_224",
    "--backbone.image_px", "32", "--views.size_px", "32",
]  # fmt: skip


def pretrain(folder: Path, *words: str) -> int:
    runs = ["--runs_dir", str(folder / "runs")]
    return run_entry_point("pretrain", PretrainConfig, train, "demo", [*TINY, *runs, *words])


def probe(folder: Path, *words: str) -> int:
    few = ["--n_bootstrap", "50", "--draws", "99", "--folds", "2", "--repeats", "1"]
    runs = ["--runs_dir", str(folder / "runs"), *few]
    return run_entry_point("probe_malignancy", ProbeConfig, run_probe, None, [*runs, *words])


def newest(folder: Path):
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    return client.search_runs(["0"], order_by=["attributes.start_time DESC"])[0]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the calls of each transform, which still does its work."""
    counted: Counter[str] = Counter()

    def count(kind: type) -> None:
        work = kind.__call__

        def counting(self, *arguments, **named):
            counted[kind.__name__] += 1
            return work(self, *arguments, **named)

        monkeypatch.setattr(kind, "__call__", counting)

    for kind in (LoadDicomSeries, WindowHU, RandWindowHU, SliceTriplet, NoduleCrop):
        count(kind)
    return counted


def test_a_backbone_is_trained_and_probed_through_the_transforms_and_nothing_personal_is_left_behind(
    own_store: Path, small_phantom_source: Path, calls: Counter[str], capfd: pytest.CaptureFixture[str]
) -> None:
    source, cohort = str(small_phantom_source), str(own_store / "cohort")
    words = ["--source", source, "--cohort", cohort, "--workers", "1"]
    assert run_entry_point("prepare", PrepareConfig, prepare.run_prepare, None, words) == 0
    assert not calls  # Often many new processes: they call `read_series`, equal by `test_monai_on_the_path`.

    assert pretrain(own_store, "--cohort", cohort, "--views.mean", "[0.4, 0.4, 0.4]") == 0
    trained = newest(own_store)
    assert open_backbone(f"runs:/{trained.info.run_id}/backbone").backbone.mean == (0.4, 0.4, 0.4)
    assert min(calls["SliceTriplet"], calls["RandWindowHU"], calls["WindowHU"]) > 0
    calls.clear()

    words = ["--source", source, "--out", str(own_store / "tokens.parquet"), "--device", "cpu"]
    assert run_entry_point("embed", EmbedConfig, run_embed, None, words) == 0
    opened = Cohort.open(Path(cohort))
    assert calls["LoadDicomSeries"] == len(opened.series)
    assert calls["SliceTriplet"] == sum(shape[0] for shape in opened.series["shape"])
    assert calls["WindowHU"] > 0
    calls.clear()

    assert probe(own_store, "--cohort", cohort, "--leak", "allow") == 0
    probed = newest(own_store)
    assert probed.data.tags["dinox.probed"] == f"runs:/{trained.info.run_id}/backbone"
    assert probed.data.tags["dinox.leak"] == "allowed"
    for name in ("probe/auroc", "probe/diameter_auroc", "probe/random_auroc", "probe/pixels_auroc"):
        assert 0 <= probed.data.metrics[name] <= 1
    assert calls["NoduleCrop"] >= 2  # one for the backbone and one for the pixels of every nodule
    assert calls["WindowHU"] > 0

    printed = "".join(capfd.readouterr())
    found = [printed.encode(), *(p.read_bytes() for p in own_store.rglob("*") if p.is_file())]
    names = " ".join(str(p.relative_to(own_store)) for p in own_store.rglob("*"))
    for personal in (*PERSONAL_STRINGS, PERSONAL_FOLDER):
        assert personal not in names
        assert not any(personal.encode() in content for content in found), personal


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--cohort", "nowhere"], r"no cohort in nowhere; make it with `mlflow run \. -e prepare"),
        (["--batch_size", "5000", "--cohort", "SMALL"], "batch_size=5000 cannot be drawn from"),
        (["--resume", "abc", "--cohort", "SMALL"], "there is no run 'abc' to resume"),
        (["--device", "abacus", "--cohort", "SMALL"], "device 'abacus' is unknown"),
        (
            ["--views.n_local", "2", "--views.local_size_px", "20", "--cohort", "SMALL"],
            "views.local_size_px 20 is not a multiple of the patch of 14 px",
        ),
        (
            [*TIMM_PATCH_16, "--views.n_local", "2", "--views.local_size_px", "28", "--cohort", "SMALL"],
            "views.local_size_px 28 is not a multiple of the patch of 16 px",
        ),
        (["--backbone.weights", "gone", "--cohort", "SMALL"], "backbone 'gone' is no folder"),
    ],
)
def test_pretrain_answers_what_cannot_be_with_one_sentence_and_exit_2(
    own_store: Path, small_cohort: Cohort, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    words = [str(small_cohort.root) if word == "SMALL" else word for word in words]
    assert pretrain(own_store, *words) == 2
    printed = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(sentence, printed)
    run = newest(own_store)
    assert (run.info.status, run.data.tags["dinox.error"]) == ("FAILED", printed)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--backbone", ""], "there is no finished pretrain run in .* first run `mlflow run . -e pretrain`"),
        (["--backbone", "runs:/0123456789abcdef/backbone"], "run '0123456789abcdef' is not in the store"),
        (["--backbone", "timm:vit_nonsense"], "vit_nonsense"),
        (
            ["--backbone", "timm:resnet18"],
            "timm model 'resnet18' is no vision transformer with a class token",
        ),
    ],
)
def test_probe_answers_what_cannot_be_with_one_sentence_and_exit_2(
    own_store: Path, small_cohort: Cohort, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert probe(own_store, "--cohort", str(small_cohort.root), *words) == 2
    printed = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(sentence, printed)
    assert newest(own_store).info.status == "FAILED"


def test_an_empty_folder_ends_prepare_with_3(own_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = own_store / "empty"
    empty.mkdir()
    words = ["--source", str(empty), "--cohort", str(own_store / "cohort")]
    assert run_entry_point("prepare", PrepareConfig, prepare.run_prepare, None, words) == 3
    assert "empty" in capsys.readouterr().err
    assert newest(own_store).info.status == "FAILED"


def test_random_weights_are_shown_what_the_backbone_beside_them_is_shown(
    own_store: Path, small_cohort: Cohort
) -> None:
    """Two backbones of one shape have the same random twin, but not the same features where HU are scaled for one."""
    config = BackboneConfig(arch="custom", depth=1, embed_dim=16, heads=2, image_px=28)
    for hu_scale in (1.0, 0.1):
        folder = own_store / f"trained_{hu_scale}"
        save_backbone(folder, build_backbone(config), config, {"hu_scale": hu_scale})
        assert probe(own_store, "--cohort", str(small_cohort.root), "--backbone", str(folder)) == 0
    assert len(list((own_store / "runs" / "features").glob("*.npy"))) == 2 * (1 + TWINS)


def test_cross_fitted_backbones_may_not_test_the_same_nodules() -> None:
    first, second = ([(np.array([8, 9]), np.array(test))] for test in ([0, 2], [1]))
    refuse_shared([first, second])
    with pytest.raises(ProbeError, match="several backbones test the same 2 nodules"):
        refuse_shared([first, first])


def test_an_installed_copy_writes_where_it_is_called_and_nothing_beside_its_packages(tmp_path: Path) -> None:
    rooms = {"transforms", "models", "probes", "pipelines", "mlflow_projects"}
    for room in rooms:
        shutil.copytree(
            PROJECT_ROOT / room, tmp_path / "site" / room, ignore=shutil.ignore_patterns("__pycache__")
        )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    (tmp_path / "here").mkdir()
    words = [sys.executable, "-W", "ignore", "-m", "pipelines.report"]
    done = subprocess.run(words, cwd=tmp_path / "here", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "here" / "mlflow.db").is_file()
    assert {path.name for path in (tmp_path / "site").iterdir()} == rooms


def test_a_tracking_store_is_honored(own_store: Path) -> None:
    assert os.environ["MLFLOW_TRACKING_URI"].endswith(f"{own_store}/mlflow.db")
    assert pretrain(own_store, "--stpes", "1") == 2
    assert (own_store / "mlflow.db").is_file()
