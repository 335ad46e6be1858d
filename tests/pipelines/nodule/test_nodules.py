"""Entry point `nodules`: on the phantom, on patches that would leak, and on LIDC with and without images."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from sklearn.metrics import cohen_kappa_score

from pipelines.cohort.folder import Cohort, CohortWriter, NoNodulesError, write_volume
from pipelines.cohort.tables import ANNOTATIONS, REFUSED, empty_table
from pipelines.command.cli import run_entry_point
from pipelines.ingest.config import PrepareConfig
from pipelines.ingest.preparation import prepare_cohort
from pipelines.nodule.config import NodulesConfig
from pipelines.nodule.figures import agreement, agreement_figure, rating_pairs, weighted_kappa
from pipelines.nodule.labeled import nodule_set
from pipelines.nodule.overview import describe, open_cohort, run_nodules
from pipelines.tracking.run import SilentRun
from probes.labels import LabelError
from probes.nodule_rays import image_diameter_mm
from probes.pixels import pixel_scores
from probes.splits import patient_folds
from probes.statistics.metrics import auroc_with_interval
from transforms.nodule_crop import CropSpec

# MLflow's own tables use a loader strategy that SQLAlchemy 2.1 wants to drop.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader:sqlalchemy.exc.SADeprecationWarning")

FEW = ["--n_bootstrap", "100", "--repeats", "1"]


def run(*words: str) -> int:
    return run_entry_point("nodules", NodulesConfig, run_nodules, None, words)


def newest_run() -> tuple[dict[str, float], set[str], dict[str, str]]:
    """Metrics, artifacts and tags of the run that was just written."""
    store = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    found = store.search_runs(["0"])[0]
    paths = {
        item.path
        for folder in ("tables", "figures")
        for item in store.list_artifacts(found.info.run_id, folder)
    }
    return found.data.metrics, paths, found.data.tags


def test_a_cohort_with_images_gives_tables_figures_and_a_contact_sheet(
    small_cohort: Cohort, own_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--cohort", str(small_cohort.root), "--folds", "2", *FEW) == 0
    printed = capsys.readouterr().out
    metrics, paths, tags = newest_run()
    assert metrics["nodules/nodules"] == len(small_cohort.nodules)
    assert metrics["nodules/annotations"] == len(small_cohort.annotations)
    assert {
        f"figures/{name}.png" for name in ("rules", "malignancy_against_diameter", "reader_agreement")
    } < paths
    assert {"figures/contact_sheet.png", "tables/annotations.parquet", "tables/nodules.parquet"} < paths
    assert tags["dinox.rule"] == "consensus"
    for rule in ("consensus", "article", "consensus_clear", "lora", "any_reader"):
        assert f"\n{rule}: " in printed


def test_the_crops_of_solid_phantom_nodules_show_them_at_their_own_diameter(small_cohort: Cohort) -> None:
    crops = nodule_set(small_cohort, "any_reader", CropSpec(size_mm=50.0, out_px=100))
    solid = (crops.table["true_density"] == "solid").to_numpy() & (crops.table["diameter_mm"] > 5).to_numpy()
    measured = image_diameter_mm(crops.crops_hu[solid, 1], 0.5)
    true = crops.table.loc[solid, "true_diameter_mm"].to_numpy(dtype=float)
    assert len(true) >= 3
    assert np.median(np.abs(measured - true)) < 2.5  # pixels of 2.7 mm


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rule": "tcia_diagnosis"}, "needs TCIA's table of diagnoses"),
        ({"diagnosis": "nodules.csv"}, "nodules.csv has no column diagnosis"),
        ({"diagnosis": "nowhere.csv"}, "no table of diagnoses at nowhere.csv"),
        ({"diagnosis": "empty.csv"}, "empty.csv cannot be read as CSV"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(
    changes: dict[str, str],
    sentence: str,
    small_cohort: Cohort,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nodules.csv").write_text("patient_id,verdict\na,1\n")
    Path("empty.csv").touch()
    with pytest.raises(LabelError, match=sentence):
        run_nodules(NodulesConfig(**{"cohort": str(small_cohort.root)} | changes), SilentRun())


def patch_cohort(root: Path, voxels: Callable[[np.random.Generator, int, bool], np.ndarray]) -> Cohort:
    """Sixty patches of 60 patients that are as long as their nodule: the number of slices reveals the label."""
    rng = np.random.default_rng(0)
    writer = CohortWriter(root)
    rows = []
    affine = np.array([[0, 0, -0.7, 0], [0, -0.7, 0, 0], [2.0, 0, 0, 0], [0, 0, 0, 1.0]])
    for number in range(60):
        is_malignant = number % 3 == 0
        n_slices = int(rng.integers(10, 20) if is_malignant else rng.integers(2, 8))
        name = f"patch-{number}"
        volume = voxels(rng, n_slices, is_malignant)
        write_volume(
            writer.root,
            {
                **{key: name for key in ("volume_id", "patient_id", "study_uid", "series_uid")},
                **{"spacing_mm": [2.0, 0.7, 0.7], "affine_ras": affine.ravel().tolist(), "gaps": []},
                **{"slice_offsets_mm": [], "manufacturer": "", "kernel": "", "slice_thickness_mm": 2.0},
                **{
                    "transfer_syntax": "",
                    "is_lossy": False,
                    "n_padding_voxels": 0,
                    "kind": "patch",
                    "notes": "",
                },
            },
            volume,
        )
        x, y, z = 0.7 * 40, 0.7 * 40, 2.0 * (n_slices // 2)
        rows.append(
            {
                **{key: name for key in ("nodule_id", "volume_id", "series_uid", "patient_id")},
                **{"x_lps_mm": x, "y_lps_mm": y, "z_lps_mm": z, "diameter_mm": 8.0, "volume_mm3": 250.0},
                **{"malignancy_ratings": [5, 5, 4] if is_malignant else [1, 2, 3], "n_readers": 3},
                **{"z_min_mm": 0.0, "z_max_mm": 2.0 * n_slices, "source": "csv", "flag": ""},
            }
        )
    writer.write_tables(empty_table(ANNOTATIONS), pd.DataFrame(rows), empty_table(REFUSED), "csv")
    writer.close()
    return Cohort.open(root)


def probe_pixels(cohort: Cohort) -> float:
    nodules = nodule_set(cohort, "consensus", CropSpec(size_mm=24.0, out_px=16))
    assert len(nodules.table) == 60
    patients = nodules.patient_ids.tolist()
    splits = patient_folds(patients, nodules.labels, n_repeats=2)
    scores = pixel_scores(nodules.crops_hu, nodules.labels, splits)
    return auroc_with_interval(nodules.labels, scores, splits.patient_ids, 50).value


@pytest.fixture(scope="module")
def constant_patches(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    root = tmp_path_factory.mktemp("patches") / "c"
    return patch_cohort(root, lambda rng, n, is_malignant: np.full((n, 80, 80), -700, dtype=np.int16))


def test_constant_patches_score_one_half_though_their_length_tells_the_label(
    constant_patches: Cohort,
) -> None:
    lengths = [shape[0] for shape in constant_patches.series["shape"]]
    assert max(lengths) > 9 > min(lengths)
    assert probe_pixels(constant_patches) == 0.5


def test_two_slices_that_repeat_an_edge_tell_nothing_in_noise(tmp_path: Path) -> None:
    def noise(rng: np.random.Generator, n: int, is_malignant: bool) -> np.ndarray:
        return rng.normal(-700, 50, (n, 80, 80)).astype(np.int16)

    assert probe_pixels(patch_cohort(tmp_path / "c", noise)) == pytest.approx(0.5, abs=0.2)


@pytest.mark.parametrize("form", ["cube", "planes"])
def test_forms_that_reach_outside_a_patch_leave_no_nodule(form: str, constant_patches: Cohort) -> None:
    with pytest.raises(NoNodulesError, match=f"the form {form} reaches outside a patch in z"):
        nodule_set(constant_patches, "consensus", CropSpec(form=form, size_mm=24.0, out_px=16))


def test_a_cohort_without_nodules_is_refused(small_cohort: Cohort, tmp_path: Path) -> None:
    root = tmp_path / "c"
    root.mkdir()
    for name in ("cohort.json", "series.parquet"):
        (root / name).write_bytes((small_cohort.root / name).read_bytes())
    with pytest.raises(NoNodulesError, match="has no nodules; prepare it from series of LIDC-IDRI"):
        open_cohort(root)


def test_kappa_is_one_for_agreement_nought_for_chance_and_known_in_between() -> None:
    assert weighted_kappa(np.diag([3.0, 4, 5, 6, 7])) == 1.0
    assert weighted_kappa(np.outer([1.0, 2, 3, 4, 5], [1.0, 2, 3, 4, 5])) == pytest.approx(0.0)
    pairs = rating_pairs(pd.DataFrame({"malignancy_ratings": [[1, 2], [5], [4, 4, 5]]}))
    total = pairs.sum(axis=0)
    assert (total[0, 1], total[1, 0], total[3, 3], total[3, 4], total.sum()) == (1, 1, 2, 2, 8)
    assert pairs.sum(axis=(1, 2)).tolist() == [2, 0, 6]
    assert np.isnan(weighted_kappa(np.zeros((5, 5))))
    random = np.random.default_rng(0).integers(1, 9, size=(4, 5, 5)).astype(float)
    one, other = np.indices((5, 5)).reshape(2, -1)
    witness = [
        cohen_kappa_score(one, other, weights="quadratic", sample_weight=own.ravel()) for own in random
    ]
    np.testing.assert_allclose(weighted_kappa(random), witness)


def test_agreement_has_intervals_over_patients() -> None:
    """Patients that all agree leave no doubt; one that does not gives an interval, and its repeats do not shrink it."""
    ratings = [[1, 1], [5, 5], [3, 3], [2, 4]] * 5
    table = pd.DataFrame({"malignancy_ratings": ratings, "patient_id": list("abcd") * 5})
    whole = table[table["patient_id"] != "d"]
    alike = agreement(rating_pairs(whole), whole["patient_id"].to_numpy(str))
    assert (alike["equal ratings"].value, alike["equal ratings"].ci_low) == (1, 1)
    clustered = agreement(rating_pairs(table), table["patient_id"].to_numpy(str))["equal ratings"]
    single = agreement(rating_pairs(table), np.arange(20).astype(str))["equal ratings"]
    assert clustered.value == single.value == 0.75
    assert clustered.ci_high - clustered.ci_low > 1.5 * (single.ci_high - single.ci_low)
    title = agreement_figure(table).get_suptitle()
    assert "20 nodules" in title
    assert f"equal ratings {clustered}" in title


@pytest.mark.slow
def test_lidc_without_any_image_prints_its_exact_numbers(
    own_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):  # the second run finds the tables that the first has made
        assert run(*FEW) == 0
        printed = capsys.readouterr().out
        assert (
            "1018 scans, 1010 patients, 6859 annotations, 2651 nodules of 1/2/3/4 readers: 771/488/481/897, of more: 14"
            in printed
        )
        assert "article: 2174 nodules = 455 malignant + 1719 benign from 875 patients" in printed
    metrics, paths, _ = newest_run()
    assert metrics["nodules/diameter_auroc"] == pytest.approx(0.922, abs=0.005)
    assert metrics["nodules/diameter_auroc_6_15mm"] == pytest.approx(0.861, abs=0.005)
    assert metrics["nodules/characteristics_auroc"] == pytest.approx(0.915, abs=0.01)
    assert "figures/contact_sheet.png" not in paths
    assert len(Cohort(Path("cohorts/lidc")).annotations) == 6859


@pytest.fixture(scope="module")
def patches(dinox_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    source = dinox_data / "lidc_nodules"
    root = tmp_path_factory.mktemp("patches") / "c"
    config = PrepareConfig(
        source=str(source),
        cohort=str(root),
        from_="nifti",
        annotations=str(source / "nodules.csv"),
        workers=2,
    )
    return prepare_cohort(config).cohort


@pytest.mark.slow
@pytest.mark.lidc
def test_740_real_nodules_give_the_known_baselines(
    patches: Cohort, dinox_data: Path, own_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    diagnosis = dinox_data / "lidc_nodules" / "tcia_diagnosis.csv"
    assert run("--cohort", str(patches.root), "--diagnosis", str(diagnosis), "--n_bootstrap", "200") == 0
    printed = capsys.readouterr().out
    assert "consensus: 740 nodules = 239 malignant + 501 benign from 414 patients" in printed
    assert "tcia_diagnosis: 63 nodules = 49 malignant + 14 benign" in printed
    metrics, paths, _ = newest_run()
    assert metrics["nodules/diameter_auroc"] == pytest.approx(0.913, abs=0.015)
    assert metrics["nodules/diameter_auroc_6_15mm"] == pytest.approx(0.827, abs=0.015)
    assert metrics["nodules/pixels_auroc"] == pytest.approx(0.861, abs=0.015)
    assert metrics["nodules/pixels_without_repeats_auroc"] == pytest.approx(0.861, abs=0.015)
    assert metrics["nodules/image_diameter_auroc"] == pytest.approx(0.891, abs=0.01)
    assert {"figures/contact_sheet.png", "tables/splits.parquet"} < paths


@pytest.mark.slow
@pytest.mark.lidc
def test_real_patches_emptied_of_their_image_score_one_half(
    patches: Cohort, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nodules = nodule_set(patches, "consensus", CropSpec(size_mm=24.0, out_px=32))
    shapes = {row.volume_id: tuple(row.shape) for row in patches.series.itertuples()}
    largest = max(int(np.prod(shape)) for shape in shapes.values())
    np.full(largest, -700, dtype=np.int16).tofile(tmp_path / "empty")
    empty = Cohort.open(patches.root)

    def no_image(volume_id: str) -> np.memmap:
        return np.memmap(tmp_path / "empty", np.int16, "r", shape=shapes[volume_id])

    monkeypatch.setattr(empty, "volume", no_image)
    emptied = nodule_set(empty, "consensus", CropSpec(size_mm=24.0, out_px=32))
    assert len(emptied.table) == len(nodules.table) == 740
    patients = emptied.patient_ids.tolist()
    splits = patient_folds(patients, emptied.labels)
    scores = pixel_scores(emptied.crops_hu, emptied.labels, splits)
    assert auroc_with_interval(emptied.labels, scores, splits.patient_ids, 50).value == pytest.approx(
        0.5, abs=0.01
    )
    counts, _ = describe(patches)
    assert (counts["nodules"], counts["patients"]) == (740, 414)


@pytest.mark.parametrize("option", ["--folds=1", "--repeats=0", "--n_bootstrap=0", "--seed=-1"])
def test_numbers_that_give_no_folds_are_refused_before_anything_is_read(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_entry_point("nodules", NodulesConfig, run_nodules, None, [option]) == 2
    assert "must be" in (said := capsys.readouterr().err) or "should be" in said
