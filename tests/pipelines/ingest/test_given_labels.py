"""A table of nodules that states labels and perhaps no diameter, from CSV and NIfTI or DICOM to the probe's table."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from models.backbone import build_backbone
from models.config import BackboneConfig
from pipelines.backbones.folder import save_backbone
from pipelines.cohort.folder import Cohort
from pipelines.cohort.slices import SliceIndex
from pipelines.cohort.tables import NODULES, write_table as write_parquet
from pipelines.ingest.annotation_csv import AnnotationTableError
from pipelines.ingest.config import PrepareConfig
from pipelines.ingest.preparation import prepare_cohort
from pipelines.nodule.config import NodulesConfig
from pipelines.nodule.overview import run_nodules
from pipelines.prepare import run_prepare
from pipelines.probing.config import ProbeConfig, SupervisedConfig
from pipelines.probing.malignancy import run_probe
from pipelines.probing.supervised import run_supervised
from probes.labels import LabelError
from tests.pipelines.probing.test_probe_malignancy import fewer_repeats
from tests.recorder import Recorder

N_PATIENTS = 24
COLUMNS = ("file", "series_uid", "patient_id", "x_lps_mm", "y_lps_mm", "z_lps_mm", "diameter_mm", "label")


def write_table(path: Path, rows: list[dict[str, object]], columns: tuple[str, ...]) -> str:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, object]]]:
    """NIfTI scans with one nodule each, wide and malignant in every third; the rows of a table that says so."""
    folder = tmp_path_factory.mktemp("scans")
    rows: list[dict[str, object]] = []
    for number in range(N_PATIENTS):
        radius_mm = 8.0 if number % 3 == 0 else 4.0
        z, y, x = np.mgrid[:14, :64, :64]
        away_mm = np.sqrt((2.0 * (z - 7)) ** 2 + (y - 30) ** 2 + (x - 34) ** 2)
        noise = np.random.default_rng(number).normal(0, 20, away_mm.shape)
        voxels = np.where(away_mm < radius_mm, 40, -850) + noise
        affine = np.diag([-1.0, -1.0, 2.0, 1.0])
        nibabel.save(
            nibabel.Nifti1Image(voxels.transpose(2, 1, 0).astype(np.int16), affine),
            folder / f"{number:02d}.nii.gz",
        )
        place = {"x_lps_mm": 34.0, "y_lps_mm": 30.0, "z_lps_mm": 14.0, "diameter_mm": 2 * radius_mm}
        own = {"file": f"{number:02d}.nii.gz", "patient_id": f"p{number:02d}", "label": int(number % 3 == 0)}
        rows.append(place | own)
    return folder, rows


@pytest.fixture(scope="module")
def cohort_of(scans: tuple[Path, list[dict[str, object]]], tmp_path_factory: Any) -> Callable[..., Cohort]:
    """Prepares the scans with a table of some of the columns and rows."""

    def make(columns: tuple[str, ...], rows: list[dict[str, object]] | None = None) -> Cohort:
        folder, every_row = scans
        root = tmp_path_factory.mktemp("labeled")
        table = write_table(root / "t.csv", every_row if rows is None else rows, columns)
        config = PrepareConfig(
            source=str(folder),
            cohort=str(root / "c"),
            from_="nifti",
            annotations=table,
            keep_ids=True,
            workers=1,
        )
        return prepare_cohort(config).cohort

    return make


@pytest.fixture(scope="module")
def unsized(cohort_of: Callable[..., Cohort]) -> Cohort:
    """The cohort of a table without any diameter."""
    return cohort_of(tuple(name for name in COLUMNS if name not in ("diameter_mm", "series_uid")))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights that state that they saw no patient."""
    tiny = BackboneConfig(arch="custom", depth=1, embed_dim=24, heads=2, patch_px=7, registers=0, image_px=28)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("backbone") / "tiny"
    save_backbone(folder, build_backbone(tiny), tiny, {"holdout": 1.0, "leak": "", "steps": 10})
    return str(folder)


def probed(cohort: Cohort, backbone: str, tmp_path: Path, rule: str = "given") -> Recorder:
    run = Recorder()
    config = ProbeConfig(
        cohort=str(cohort.root),
        backbone=backbone,
        rule=rule,  # type: ignore[arg-type]
        size_mm=28.0,
        folds=3,
        repeats=1,
        n_bootstrap=20,
        draws=99,
        device="cpu",
        runs_dir=str(tmp_path / "runs"),
    )
    with fewer_repeats():
        run_probe(config, run)
    return run


def test_labels_reach_the_probe_beside_the_diameter(
    cohort_of: Callable[..., Cohort], backbone: str, tmp_path: Path, capsys: Any
) -> None:
    run = probed(cohort_of(tuple(name for name in COLUMNS if name != "series_uid")), backbone, tmp_path)
    assert run.metrics["probe/n_positive"] == 8
    assert run.metrics["probe/diameter_auroc"] == 1.0
    assert "features_and_diameter" in set(run.tables["tables/probe.csv"]["row"])
    shown = capsys.readouterr().out
    assert "given: 24 nodules = 8 malignant + 16 benign from 24 patients; ratings are not read" in shown
    assert "LIDC" not in shown
    assert "above -700 HU" not in shown


def test_without_diameters_the_rows_of_diameter_are_left_out_and_that_is_said(
    unsized: Cohort, backbone: str, tmp_path: Path, capsys: Any
) -> None:
    run = probed(unsized, backbone, tmp_path)
    table = run.tables["tables/probe.csv"]
    own = {"features", "pixels", "random_weights", "hu", "dictionary", "random_words", "shuffled_labels"}
    assert set(table["row"]) == own | {"image_diameter", "features_and_image_diameter"}
    assert set(table["stratum"]) >= {"all"}
    assert not [stratum for stratum in table["stratum"] if "mm" in stratum and ":" not in stratum]
    assert (
        run.metrics["probe/pixels_auroc"] > 0.9
    )  # the wide ones are the malignant ones, and pixels see that
    assert not [name for name in run.metrics if "diameter" in name.replace("image_diameter", "")]
    assert run.tables["tables/predictions.parquet"]["diameter_mm"].isna().all()
    assert "no diameter for 24 of 24 nodules: the table has no diameter row" in capsys.readouterr().out
    assert "figures/roc.png" in run.figures


@pytest.mark.slow
def test_supervised_networks_do_without_diameters_too(unsized: Cohort, capsys: Any, tmp_path: Path) -> None:
    run = Recorder()
    config = SupervisedConfig(
        cohort=str(unsized.root),
        rule="given",
        networks="2d",
        folds=2,
        max_epochs=1,
        n_bootstrap=50,
        device="cpu",
        runs_dir=str(tmp_path),
    )
    run_supervised(config, run)
    rows = set(run.tables["tables/supervised.csv"]["row"])
    assert rows == {"pixels", "supervised_2d"}
    assert "no diameter for 24 of 24 nodules" in capsys.readouterr().out


def test_tables_and_figures_of_nodules_need_no_diameter_either(unsized: Cohort, capsys: Any) -> None:
    run = Recorder()
    run_nodules(
        NodulesConfig(cohort=str(unsized.root), rule="given", folds=3, repeats=1, n_bootstrap=50), run
    )
    baselines = run.tables["tables/baselines.csv"].set_index(["baseline", "stratum"])
    assert np.isnan(baselines.loc[("diameter", "all"), "auroc"])
    assert "not finite" in baselines.loc[("diameter", "all"), "note"]
    assert baselines.loc[("image_diameter", "all"), "auroc"] > 0.9
    assert "figures/contact_sheet.png" in run.figures
    assert "consensus: not applied: label rule 'consensus' reads ratings" in capsys.readouterr().out


def test_nodules_without_a_crop_and_centers_without_a_nodule_are_told(
    scans: tuple[Path, list[dict[str, object]]],
    cohort_of: Callable[..., Cohort],
    backbone: str,
    tmp_path: Path,
    capsys: Any,
) -> None:
    columns = tuple(name for name in COLUMNS if name != "series_uid")
    # The middle of a scan is 31.5: its nodule at x 34 would lie at 29 in a mirror; further out it lies in lung.
    cohort = cohort_of(columns, [{**row, "x_lps_mm": 54.0} for row in scans[1]])
    cohort.nodules.loc[0, "x_lps_mm"] = 64.0
    write_parquet(cohort.root / "nodules.parquet", cohort.nodules, NODULES)
    probed(cohort, backbone, tmp_path)
    shown = capsys.readouterr().out
    assert "23 of 23 nodules show nothing above -700 HU within 2 mm of their center" in shown
    assert "24 nodules: 23 tested, 1 left out: 1 no crop (center outside the volume)" in shown
    assert "no crop of 1 labeled nodule; of the first the nodule's center lies at" in shown


def test_a_rule_that_reads_ratings_names_the_one_that_reads_labels(
    unsized: Cohort, backbone: str, tmp_path: Path
) -> None:
    with pytest.raises(LabelError, match="its table has labels, which the rule 'given' reads"):
        probed(unsized, backbone, tmp_path, rule="consensus")


def test_a_nodule_of_unknown_size_marks_the_slice_of_its_center_for_the_loader(unsized: Cohort) -> None:
    index = SliceIndex(unsized, list(unsized.series["patient_id"]))
    assert sorted(index.points) == [(number, 7) for number in range(N_PATIENTS)]
    assert index.points[3, 7] == pytest.approx((30.0, 34.0, 0.0))


def test_some_rows_may_lack_a_label_or_a_diameter_and_none_vanishes(
    scans: tuple[Path, list[dict[str, object]]], cohort_of: Callable[..., Cohort]
) -> None:
    rows = [dict(row) for row in scans[1][:6]]
    rows[1]["label"], rows[2]["diameter_mm"], rows[3]["diameter_mm"] = "", "", "0"
    cohort = cohort_of(tuple(name for name in COLUMNS if name != "series_uid"), rows)
    assert len(cohort.nodules) + int(cohort.refused["n_rows"].sum()) == 6
    reasons = cohort.refused.loc[cohort.refused["n_rows"] > 0, "reason"].tolist()
    assert [reason.partition(": ")[2] for reason in reasons] == [
        "diameter_mm is not above zero",
        "it has neither malignancy_ratings nor label",
    ]
    assert cohort.nodules["diameter_mm"].isna().sum() == 1


def test_a_row_counts_once_and_an_id_names_one_nodule(
    scans: tuple[Path, list[dict[str, object]]], cohort_of: Callable[..., Cohort]
) -> None:
    own_ids = [{**row, "nodule_id": f"n{number}"} for number, row in enumerate(scans[1][:4])]
    columns = ("nodule_id", *(name for name in COLUMNS if name != "series_uid"))
    cohort = cohort_of(columns, [*own_ids, own_ids[1], {**own_ids[2], "label": 1}])
    assert cohort.nodules["nodule_id"].tolist() == ["n0", "n1", "n3"]
    refused = cohort.refused[cohort.refused["n_rows"] > 0].set_index("reason")["n_rows"]
    assert {reason.partition(": ")[2][:24]: n for reason, n in refused.items()} == {
        "it repeats another row": 1,
        "another row contradicts ": 2,
    }
    numbered = [{**row, "nodule_id": "1"} for row in scans[1][:4]]  # a number within each scan
    assert cohort_of(columns, numbered).nodules["nodule_id"].nunique() == 4


def test_labels_that_a_table_of_floats_states_are_taken(
    scans: tuple[Path, list[dict[str, object]]], cohort_of: Callable[..., Cohort]
) -> None:
    rows = [{**row, "label": f"{row['label']}.0"} for row in scans[1][:4]]
    nodules = cohort_of(tuple(name for name in COLUMNS if name != "series_uid"), rows).nodules
    assert nodules["label"].tolist() == [1, 0, 0, 1]


def test_nodules_that_two_sources_state_are_told(
    small_cohort: Cohort, small_phantom_source: Path, tmp_path: Path, capsys: Any
) -> None:
    known = small_cohort.nodules.iloc[0]
    rows = [{name: known[name] for name in COLUMNS if name in known} | {"label": 1}]
    table = write_table(tmp_path / "t.csv", rows, tuple(rows[0]))
    config = PrepareConfig(
        source=str(small_phantom_source), cohort=str(tmp_path / "c"), annotations=table, workers=1
    )
    run_prepare(config, Recorder())
    assert (
        "1 volumes have nodules of the annotation table in addition to nodules of the source"
        in capsys.readouterr().out
    )


def test_series_uids_meet_dicom_but_no_nifti(
    scans: tuple[Path, list[dict[str, object]]],
    cohort_of: Callable[..., Cohort],
    write_ct_series: Callable[..., list[Path]],
    tmp_path: Path,
) -> None:
    columns = tuple(name for name in COLUMNS if name not in ("file", "diameter_mm"))
    with pytest.raises(
        AnnotationTableError, match="has no column file, and no name of a file here is a series UID"
    ):
        cohort_of(columns)
    write_ct_series(tmp_path / "s")
    place = {"x_lps_mm": "-47", "y_lps_mm": "-36", "z_lps_mm": "-295", "patient_id": "somebody", "label": "1"}
    table = write_table(tmp_path / "t.csv", [place | {"series_uid": "1.2.3.4"}], columns)
    config = PrepareConfig(
        source=str(tmp_path / "s"), cohort=str(tmp_path / "c"), annotations=table, keep_ids=True, workers=1
    )
    nodules = prepare_cohort(config).cohort.nodules
    assert nodules["label"].tolist() == [1]
    assert nodules["diameter_mm"].isna().tolist() == [True]
