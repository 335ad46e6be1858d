"""What a probe of a table of features must say where the answer is known: diameter, label, and nothing."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.cohort.folder import Cohort
from pipelines.cohort.tables import NODULES, write_table
from pipelines.command.config import RecipeError, load_recipe
from pipelines.encoders.table import TableError
from pipelines.ingest.config import PrepareConfig
from pipelines.ingest.preparation import prepare_cohort
from pipelines.nodule.labeled import nodule_set
from pipelines.probing.config import ProbeConfig
from pipelines.probing.target import aim_of
from probes.scoring import Target
from probes.splits import patient_folds
from probes.statistics.metrics import auroc
from tests.conftest import MakeOnce
from tests.pipelines.probing.grain import LABELS, nodule_with_grain
from tests.pipelines.probing.test_probe_malignancy import cohort_of, probed
from tests.recorder import Recorder
from transforms.nodule_crop import CropSpec


@pytest.fixture(scope="module")
def sized_cohort(make_once: MakeOnce) -> Cohort:
    """Sixty patients whose diameters, as a table states them, say something of the label."""

    def make(folder: Path) -> None:
        cohort = cohort_of(folder, nodule_with_grain, LABELS)
        generator = np.random.default_rng(0)
        sizes = 8.0 * np.exp(0.5 * labels_of(cohort) + generator.normal(0, 0.4, len(LABELS)))
        write_table(cohort.root / "nodules.parquet", cohort.nodules.assign(diameter_mm=sizes), NODULES)

    return Cohort.open(make_once("sized", make) / "c")


def labels_of(cohort: Cohort) -> np.ndarray:
    return np.array(LABELS)[cohort.nodules["patient_id"].str.removeprefix("p").astype(int)]


def table_of(nodules: pd.DataFrame, folder: Path, **columns: object) -> str:
    path = folder / "features.csv"
    nodules[["nodule_id"]].assign(**columns).to_csv(path, index=False)
    return f"table:{path}"


def of_table(cohort: Cohort, folder: Path, **columns: object) -> Recorder:
    named = table_of(cohort.nodules, folder, **columns)
    return probed(cohort, "", folder / "runs", features=named, size_mm=28.0)


def test_the_diameter_is_known_as_diameter_and_brings_nothing_beyond_it(
    sized_cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = of_table(sized_cohort, tmp_path, size=sized_cohort.nodules["diameter_mm"])
    # One fold in three is fitted on 40 nodules: slopes differ a little between the folds that are pooled.
    assert run.metrics["probe/auroc"] == pytest.approx(run.metrics["probe/diameter_auroc"], abs=0.02)
    assert (run.metrics["probe/nested_z"], run.metrics["probe/nested_p"]) == (0.0, 1.0)
    assert not [name for name in run.metrics if "random_" in name and "words" not in name]
    assert not [name for name in run.metrics if "over_random" in name]
    out = capsys.readouterr().out
    assert "no random weights" in out
    assert "how much of this was learned cannot be said" in out
    assert run.tags["dinox.probed"].startswith("table:")


def test_the_label_among_the_columns_is_said_by_name(
    sized_cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).normal(size=len(LABELS))
    run = of_table(sized_cohort, tmp_path, noise=noise, secret=labels_of(sized_cohort))
    assert run.metrics["probe/auroc"] == 1.0
    assert run.tags["dinox.leak"] in ("features hold the label", "features hold the rating")
    assert "leak (features hold the label): column 'secret' (AUROC 1.000)" in capsys.readouterr().out


def test_a_table_serves_two_cohorts(sized_cohort: Cohort, tmp_path: Path) -> None:
    other = cohort_of(tmp_path / "second", lambda number: nodule_with_grain(number) + 1, LABELS[:30], "q")
    table = table_of(sized_cohort.nodules, tmp_path, size=1.0)
    with pytest.raises(TableError, match="both cohorts have a nodule"):
        probed(sized_cohort, "", tmp_path / "runs", features=table, test_cohort=str(other.root))
    renamed = other.nodules.assign(nodule_id="q" + other.nodules["nodule_id"])
    write_table(other.root / "nodules.parquet", renamed, NODULES)
    everyone = pd.concat([sized_cohort.nodules, renamed])
    named = table_of(everyone, tmp_path, size=np.random.default_rng(0).normal(size=len(everyone)))
    options = {"features": named, "size_mm": 28.0, "test_cohort": str(other.root)}
    run = probed(sized_cohort, "", tmp_path / "runs", **options)
    assert run.metrics["external/n_nodules"] == 30
    with pytest.raises(TableError, match="60 ids that no nodule of the cohort has"):
        probed(Cohort.open(other.root), "", tmp_path / "runs", **(options | {"test_cohort": ""}))


def test_two_origins_of_features_are_refused() -> None:
    for given in (
        {"backbone": "timm:x", "encoder": "astra"},
        {"encoder": "astra", "features": "table:x.csv"},
    ):
        with pytest.raises(RecipeError, match="name two origins of features; give one"):
            load_recipe(ProbeConfig, given)
    with pytest.raises(RecipeError, match="window=wide is an option of backbones, which encoder=astra"):
        load_recipe(ProbeConfig, {"encoder": "astra", "window": "wide"})


@pytest.mark.slow
@pytest.mark.lidc
def test_diameter_label_and_nothing_on_740_real_nodules(dinox_data: Path, tmp_path: Path) -> None:
    source = dinox_data / "lidc_nodules"
    config = PrepareConfig(
        source=str(source / "volumes"),
        cohort=str(tmp_path / "c"),
        from_="nifti",
        annotations=str(source / "nodules.csv"),
        keep_ids=True,
        workers=1,
    )
    cohort = prepare_cohort(config).cohort
    settings = {"cohort": str(cohort.root), "n_bootstrap": 200, "draws": 999, "runs_dir": str(tmp_path)}
    probe = ProbeConfig(**settings)
    nodules = nodule_set(cohort, probe.rule, CropSpec(size_mm=50.0, out_px=100))
    options = {"rule": "consensus", "size_mm": 50.0, "folds": 5, "n_bootstrap": 200, "draws": 999}

    sizes = table_of(nodules.table, tmp_path, size=nodules.diameter_mm)
    run = probed(cohort, "", tmp_path, features=sizes, **options)
    assert run.metrics["probe/auroc"] == pytest.approx(run.metrics["probe/diameter_auroc"], abs=0.002)
    assert (run.metrics["probe/nested_z"], run.metrics["probe/nested_p"]) == (0.0, 1.0)

    label = table_of(nodules.table, tmp_path, label=nodules.labels)
    run = probed(cohort, "", tmp_path, features=label, **options)
    assert run.metrics["probe/auroc"] == 1.0
    assert "features hold" in run.tags["dinox.leak"]

    folds = patient_folds(nodules.patient_ids.tolist(), nodules.labels, tested=set(nodules.patient_ids))
    target: Target = aim_of(probe, nodules).target(probe, np.arange(len(nodules.labels)))
    generator, once = np.random.default_rng(0), np.ones((1, len(nodules.labels)))
    areas = [
        auroc(
            target.labels, target.score([(generator.permutation(nodules.diameter_mm)[:, None], folds)]), once
        )
        for _ in range(20)
    ]
    print(f"permuted 20 times: {np.mean(areas):.3f} ({np.min(areas):.3f} to {np.max(areas):.3f})")
    assert np.mean(areas) == pytest.approx(0.5, abs=0.02)
