"""One page of several encoders: what it shows, that it opens offline, and what it does not tell of people."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.audit import AuditConfig
from pipelines.audit.measures import probe_config, short
from pipelines.audit.run import run_audit
from pipelines.cohort.folder import Cohort
from pipelines.command.config import RecipeError, load_recipe
from pipelines.encoders.cube_encoder import EncoderError
from pipelines.probing.readers import ProbeError
from tests.conftest import MakeOnce
from tests.pipelines.probing.grain import LABELS, nodule_with_grain
from tests.pipelines.probing.test_probe_malignancy import backbone, cohort_of, fewer_repeats
from tests.recorder import Recorder

FUNCTION = """
import numpy as np
def edges(hu, affine, center):
    return [np.abs(np.diff(hu[7:9, 10:20, 10:20], axis=2)).mean(), hu[8].mean()]
edges.shape = (17, 30, 30)
"""


class Pages(Recorder):
    """Keeps texts too."""

    def __init__(self) -> None:
        super().__init__(draws=True)
        self.texts: dict[str, str] = {}

    def log_text(self, text: str, path: str) -> None:
        self.texts[path] = text


def settings(cohort: Cohort, folder: Path, encoders: list[str], **changes: object) -> AuditConfig:
    return AuditConfig(
        encoders=",".join(encoders),
        cohort=str(cohort.root),
        rule="given",
        size_mm=28.0,
        folds=3,
        repeats=1,
        n_bootstrap=50,
        draws=99,
        shots="8,16,64",
        device="cpu",
        out=str(folder / "out"),
        runs_dir=str(folder / "runs"),
        **changes,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def grained_cohort(make_once: MakeOnce) -> Cohort:
    return Cohort.open(
        make_once("grained", lambda folder: cohort_of(folder, nodule_with_grain, LABELS)) / "c"
    )


@pytest.fixture(scope="module")
def audited(grained_cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pages, Path]:
    """An audit of a tiny backbone, a function, and a table that repeats the label with noise, and itself again."""
    folder = tmp_path_factory.mktemp("audited")
    (folder / "edge_function.py").write_text(FUNCTION)
    label = np.array(LABELS)[grained_cohort.nodules["patient_id"].str.removeprefix("p").astype(int)]
    noisy = label + np.random.default_rng(0).normal(0, 1.0, len(label))
    for name in ("one", "other"):
        table = grained_cohort.nodules[["nodule_id"]].assign(noisy=noisy)
        table.to_csv(folder / f"{name}.csv", index=False)
    own = backbone(folder / "own", holdout=1.0)
    encoders = [
        f"{own}+features=roi+window=full",
        "python:edge_function:edges",
        f"table:{folder / 'one.csv'}",
        f"table:{folder / 'other.csv'}",
    ]
    run = Pages()
    with pytest.MonkeyPatch.context() as patch, fewer_repeats():
        patch.syspath_prepend(str(folder))
        patch.setattr("pipelines.audit.measures.FEW_SHOT_DRAWS", 3)
        run_audit(settings(grained_cohort, folder, encoders), run)
    return run, folder


def test_the_page_opens_offline_and_its_pictures_are_part_of_it(audited: tuple[Pages, Path]) -> None:
    run, folder = audited
    html = (folder / "out" / "audit.html").read_text()
    assert html == run.texts["audit.html"]
    assert not re.findall(r"(?:src|href)=[\"'](?!data:image/png;base64,)|https?://|@import|url\(", html)
    assert html.count("data:image/png;base64,") == 2
    assert (folder / "out" / "audit.md").read_text() == run.texts["audit.md"]


def test_no_patient_nodule_or_folder_is_named(audited: tuple[Pages, Path], grained_cohort: Cohort) -> None:
    run, folder = audited
    for text in run.texts.values():
        words = set(re.findall(r"[\w.\-]+", re.sub(r"base64,[^\"]+", "", text)))
        assert not words & set(grained_cohort.nodules["patient_id"])
        assert not words & set(grained_cohort.nodules["nodule_id"])
        assert str(folder) not in text
    assert "| C | table:one.csv |" in run.texts["audit.md"]


def test_every_encoder_stands_beside_every_baseline(audited: tuple[Pages, Path]) -> None:
    text = audited[0].texts["audit.md"]
    for row in ("features", "random weights", "pixels", "HU statistics", "dictionary of patches", "diameter"):
        assert re.search(rf"^\| {row}.*\| 0\.\d|^\| {row}.*\| 1\.000", text, re.M), row
    assert "no random twin: not known" in text
    assert "size-matched" in text
    assert "tested on different nodules" not in text


def test_that_encoders_were_tested_on_different_nodules_is_said(
    grained_cohort: Cohort, tmp_path: Path
) -> None:
    own = backbone(tmp_path / "half", holdout="half_a")
    table = grained_cohort.nodules[["nodule_id"]].assign(size=np.arange(60.0) % 7)
    table.to_csv(tmp_path / "t.csv", index=False)
    encoders = [f"{own}+features=roi+window=full", f"table:{tmp_path / 't.csv'}"]
    run = Pages()
    with fewer_repeats():
        run_audit(replace(settings(grained_cohort, tmp_path, encoders), shots=""), run)
    counts = re.findall(r"\(A on (\d+), B on 60\)", run.texts["audit.md"])
    assert len(counts) == 1
    assert 10 < int(counts[0]) < 50
    pairs = run.tables["tables/pairs.csv"]
    assert pairs[pairs["second"] == "B"]["n_nodules"].tolist() == [int(counts[0])]


def test_differences_are_paired_and_what_is_equal_does_not_differ(audited: tuple[Pages, Path]) -> None:
    pairs = audited[0].tables["tables/pairs.csv"]
    same = pairs[(pairs["first"] == "C") & (pairs["second"] == "D")].iloc[0]
    assert (same["difference"], same["difference_ci_low"], same["p_holm"]) == (0.0, 0.0, 1.0)
    better = pairs[(pairs["first"] == "B") & (pairs["second"] == "C")].iloc[0]
    assert better["difference"] > 0.1
    assert better["difference_ci_low"] > 0
    assert (pairs["p_holm"] >= pairs["p"]).all()
    assert set(pairs["second"]) >= {
        "B",
        "C",
        "D",
        "pixels",
        "dictionary",
        "random_words",
        "random_weights",
        "hu",
        "diameter",
    }


def test_what_the_cohort_does_not_record_is_said(audited: tuple[Pages, Path]) -> None:
    text = audited[0].texts["audit.md"]
    assert "| A | manufacturer | not measured: the cohort does not record it |" in text
    assert "| A | not testable: no tested patient has one acquisition with two kernels |" in text


def test_few_shots_leave_the_patients_of_the_fit_out_and_grow(audited: tuple[Pages, Path]) -> None:
    run, _ = audited
    metrics = {name: value for name, value in run.metrics.items() if name.startswith("audit/auroc")}
    assert {"audit/auroc", "audit/auroc@1", "audit/auroc@2", "audit/auroc@3"} <= set(metrics)
    lines = re.findall(r"^\| B \| (\d+) \| (0\.\d+|1\.000) \|", run.texts["audit.md"], re.M)
    assert [number for number, _ in lines] == ["8", "16"]  # of 64 too few are left to test on
    assert float(lines[-1][1]) > 0.7
    assert run.tags["dinox.leak"].count("unknown") == 3


def test_names_are_read_as_the_probe_reads_them() -> None:
    config = AuditConfig(size_mm=40.0)
    assert probe_config(config, "astra").encoder == "astra"
    assert probe_config(config, "table:t.csv").features == "table:t.csv"
    own = probe_config(config, "timm:vit+window=full+size_mm=24")
    assert (own.backbone, own.window, own.size_mm) == ("timm:vit", "full", 24.0)
    assert probe_config(config, "timm:vit").size_mm == 40.0
    with pytest.raises(RecipeError, match="unknown key 'windw'"):
        probe_config(config, "timm:vit+windw=full")
    with pytest.raises(RecipeError, match="window=full is an option of backbones"):
        probe_config(config, "astra+window=full")
    assert short("shipped:whitened_words/half_a") == "shipped:whitened_words/half_a"


def test_one_that_cannot_be_opened_stops_the_audit_before_anything_is_computed(
    grained_cohort: Cohort, tmp_path: Path
) -> None:
    with pytest.raises(EncoderError, match="one of the layouts"):
        run_audit(settings(grained_cohort, tmp_path, ["table:x.csv", "monai:none:f"][::-1]), Pages())
    with pytest.raises(ProbeError, match="twice"):
        run_audit(settings(grained_cohort, tmp_path, ["astra", "astra"]), Pages())
    assert not (tmp_path / "out").exists()


def test_what_gives_no_page_is_refused() -> None:
    for given, sentence in (
        ({"features": "patches"}, "gives no vector"),
        ({"shots": "few"}, "whole numbers of 4 or more"),
        ({"folds": 1}, "folds must be 2 or more"),
    ):
        with pytest.raises(RecipeError, match=sentence):
            load_recipe(AuditConfig, given)
    assert isinstance(load_recipe(AuditConfig, {"diagnosis": ""}), AuditConfig)
