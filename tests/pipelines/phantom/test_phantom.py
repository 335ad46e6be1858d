import hashlib
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict

from pipelines.phantom.source import (
    PERSONAL_FOLDER,
    PERSONAL_STRINGS,
    draw_patient,
    public_ids,
    rows_for_series,
    write_phantom,
)
from pipelines.phantom.truth import PhantomError, read_truth, rows_of
from probes.labels import label_nodules
from probes.size_baseline import mean_characteristics
from tests.processes import OpenProcess, wait_until

SMALL = {"n_patients": 3, "size_px": 64, "height_mm": 26.0}


def fingerprint(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def series(small_phantom_source: Path) -> dict[str, list[pydicom.Dataset]]:
    """Slices of each series, in file-name order."""
    found = defaultdict(list)
    for path in sorted(small_phantom_source.rglob("*.dcm")):
        dataset = pydicom.dcmread(path)
        found[dataset.SeriesInstanceUID].append(dataset)
    return dict(found)


def volume_of(slices: list[pydicom.Dataset]) -> np.ndarray:
    """HU by the rescale of PS3.3 C.11.1, ordered by position, padding at -1024."""
    ordered = sorted(slices, key=lambda dataset: float(dataset.ImagePositionPatient[2]))
    stored = np.stack([dataset.pixel_array for dataset in ordered]).astype(int)
    hu = stored * int(ordered[0].RescaleSlope) + int(ordered[0].RescaleIntercept)
    if "PixelPaddingValue" in ordered[0]:
        hu[stored == ordered[0].PixelPaddingValue] = -1024
    return hu


def test_same_seed_gives_the_same_bytes_for_any_number_of_workers(tmp_path: Path) -> None:
    write_phantom(tmp_path / "one", seed=3, workers=1, **SMALL)
    write_phantom(tmp_path / "two", seed=3, workers=2, **SMALL)
    write_phantom(tmp_path / "other", seed=4, workers=1, **SMALL)
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")
    assert fingerprint(tmp_path / "one") != fingerprint(tmp_path / "other")


def test_file_names_do_not_tell_the_order_of_slices(series: dict[str, list[pydicom.Dataset]]) -> None:
    for slices in series.values():
        heights = [float(dataset.ImagePositionPatient[2]) for dataset in slices]
        assert heights != sorted(heights)
        assert heights != sorted(heights, reverse=True)


def test_positions_give_the_stated_spacing_and_uids_are_unique(
    small_phantom_source: Path, series: dict[str, list[pydicom.Dataset]]
) -> None:
    truth = {patient["series_uid"]: patient for patient in read_truth(small_phantom_source)["patients"]}
    assert set(series) == set(truth)
    sop_uids = [dataset.SOPInstanceUID for slices in series.values() for dataset in slices]
    assert len(sop_uids) == len(set(sop_uids))
    for uid, slices in series.items():
        steps = np.diff(sorted(float(dataset.ImagePositionPatient[2]) for dataset in slices))
        np.testing.assert_allclose(steps, truth[uid]["spacing_mm"][0], atol=1e-6)
        assert all(pydicom.uid.UID(dataset.SOPInstanceUID).is_valid for dataset in slices)
        assert uid.startswith("2.25.")
    assert {patient["spacing_mm"][0] for patient in truth.values()} == {2.5, 1.25, 0.7, 2.0, 1.0}


def test_both_makers_are_there_with_their_own_pixels(series: dict[str, list[pydicom.Dataset]]) -> None:
    by_maker = defaultdict(list)
    for slices in series.values():
        by_maker[slices[0].Manufacturer].append(slices)
    assert {maker: len(found) for maker, found in by_maker.items()} == {"GE MEDICAL SYSTEMS": 3, "Philips": 3}
    for slices in by_maker["GE MEDICAL SYSTEMS"]:
        dataset = slices[0]
        assert (dataset.PixelRepresentation, dataset.RescaleIntercept) == (1, -1024)
        assert dataset.pixel_array[0, 0] == dataset.PixelPaddingValue == -2000
        assert dataset.pixel_array[32, 32] != -2000
    for slices in by_maker["Philips"]:
        dataset = slices[0]
        assert (dataset.PixelRepresentation, dataset.RescaleIntercept) == (0, -1000)
        assert "PixelPaddingValue" not in dataset


def test_the_chest_has_lung_soft_tissue_and_bone(series: dict[str, list[pydicom.Dataset]]) -> None:
    for slices in series.values():
        hu = volume_of(slices)
        for low, high, at_least in ((-950, -750, 0.04), (0, 90, 0.04), (250, 700, 0.01)):
            assert np.mean((hu > low) & (hu < high)) > at_least


def test_each_nodule_is_where_the_tables_say_it_is(
    small_phantom_source: Path, series: dict[str, list[pydicom.Dataset]]
) -> None:
    _, nodules = rows_for_series(small_phantom_source)
    truth = {patient["series_uid"]: patient for patient in read_truth(small_phantom_source)["patients"]}
    # At 2.6 mm per pixel the middle of a smaller nodule is half lung.
    large = nodules[nodules["true_diameter_mm"] >= 6]
    assert len(large) >= 3
    for row in large.itertuples():
        patient, hu = truth[row.series_uid], volume_of(series[row.series_uid])
        point = np.array([row.x_lps_mm, row.y_lps_mm, row.z_lps_mm]) - patient["first_voxel_lps_mm"]
        index = point[::-1] / patient["spacing_mm"]
        positions = np.indices(hu.shape) - index.reshape(3, 1, 1, 1)
        distance = np.sqrt(
            sum((axis * step) ** 2 for axis, step in zip(positions, patient["spacing_mm"], strict=True))
        )
        core = hu[distance <= max(row.true_diameter_mm / 4, 1.6, distance.min())].mean()
        low, high = (-70, 100) if row.true_density == "solid" else (-640, -380)
        assert low < core < high, f"{row.nodule_id}: {core} HU"
        assert 0 < index[0] < hu.shape[0] - 1


def test_tables_hold_four_readers_whose_means_are_the_nodule(small_phantom_source: Path) -> None:
    annotations, nodules = rows_for_series(small_phantom_source)
    assert not annotations.empty
    assert annotations["annotation_id"].is_unique
    assert nodules["nodule_id"].is_unique
    assert annotations["malignancy"].between(1, 5).all()
    marks = annotations.groupby(["series_uid", "cluster_id"])
    assert (marks.size() == 4).all()
    for row in nodules.itertuples():
        own = annotations[
            (annotations["series_uid"] == row.series_uid) & (annotations["cluster_id"] == row.cluster_id)
        ]
        assert row.malignancy_ratings == own["malignancy"].tolist()
        assert row.diameter_mm == pytest.approx(own["diameter_mm"].mean())
        assert row.z_min_mm <= row.z_lps_mm + 1.3
        assert row.z_max_mm >= row.z_lps_mm - 1.3
    assert rows_for_series(small_phantom_source.parent) is None


def test_every_rule_that_needs_marks_finds_those_of_the_phantom(small_phantom_source: Path) -> None:
    annotations, nodules = rows_for_series(small_phantom_source)
    labeled = label_nodules("luna_fmcib", annotations, nodules)
    expected = {}
    for row in nodules.itertuples():
        own = annotations[
            (annotations["series_uid"] == row.series_uid) & (annotations["cluster_id"] == row.cluster_id)
        ]
        ratings = own.loc[own["diameter_mm"] >= 3, "malignancy"]
        mean = round(ratings.mean()) if len(ratings) >= 3 else 3
        if mean != 3:
            expected[row.nodule_id] = mean > 3
    assert dict(zip(labeled.nodules["nodule_id"], labeled.nodules["is_malignant"], strict=True)) == expected
    assert len(expected) > 2
    assert mean_characteristics(annotations, nodules).shape == (len(nodules), 8)


def test_one_patient_is_personal_and_the_truth_does_not_tell_who(
    small_phantom_source: Path, series: dict[str, list[pydicom.Dataset]]
) -> None:
    personal = [slices[0] for slices in series.values() if "Quillfeather" in str(slices[0].PatientName)]
    assert len(personal) == 1
    dataset = personal[0]
    text = " ".join([PERSONAL_FOLDER, *(str(element.value) for element in dataset)])
    assert all(string in text for string in PERSONAL_STRINGS)
    public = public_ids(small_phantom_source)
    uids = {
        str(one[0][name].value)
        for one in series.values()
        for name in ("StudyInstanceUID", "SeriesInstanceUID")
    }
    assert public - uids == {f"PHANTOM-{number:04d}" for number in (1, 3, 4, 5, 6)}
    assert dataset.PatientID not in public
    assert "PHANTOM-0002" not in str(dataset)
    truth = (small_phantom_source / "phantom_truth.json").read_text()
    assert not [string for string in PERSONAL_STRINGS if string in truth]
    annotations, nodules = rows_for_series(small_phantom_source)
    for table in (annotations, nodules):
        assert set(table.loc[table["series_uid"] == dataset.SeriesInstanceUID, "patient_id"]) == {""}
        assert set(table["patient_id"]) <= public | {""}


def test_a_folder_that_holds_something_else_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(PhantomError, match="is not empty"):
        write_phantom(tmp_path, workers=1, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_phantom_made_otherwise_is_refused(small_phantom_source: Path) -> None:
    before = fingerprint(small_phantom_source)
    write_phantom(small_phantom_source, n_patients=6, size_px=64, height_mm=30.0, workers=1)
    with pytest.raises(PhantomError, match="made with"):
        write_phantom(small_phantom_source, seed=1, n_patients=6, size_px=64, height_mm=30.0, workers=1)
    assert fingerprint(small_phantom_source) == before


def test_a_killed_writer_leaves_nothing_half_made(tmp_path: Path) -> None:
    root = tmp_path / "source"
    code = (
        "import os, signal, sys; from pathlib import Path; import pipelines.phantom.source as p\n"
        "real = p.write_patient\n"
        "def dying(root, seed, index, **sizes):\n"
        "    if index == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(root, seed, index, **sizes)\n"
        "p.write_patient = dying\n"
        f"p.write_phantom(Path({str(root)!r}), workers=1, **{SMALL!r})\n"
    )
    repository = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": str(repository)}
    killed = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert killed.returncode == -9
    assert not root.exists()
    assert len(list(tmp_path.iterdir())) == 1
    write_phantom(root, workers=1, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    assert sum(name.startswith("PHANTOM-") for name in public_ids(root)) == 2


@pytest.mark.slow
def test_workers_of_a_killed_writer_end_too(tmp_path: Path, open_process: OpenProcess) -> None:
    root = tmp_path / "p"
    code = (
        "from pathlib import Path; from pipelines.phantom.source import write_phantom\n"
        f"write_phantom(Path({str(root)!r}), workers=2)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    writer = open_process([sys.executable, "-c", code], env=environment)
    wait_until(lambda: any(tmp_path.glob(".p.partial-*/PHANTOM-0005")), writer)
    writer.kill()
    writer.wait()
    wait_until(lambda: not is_group_alive(writer.pid))
    assert not root.exists()


def is_group_alive(group_id: int) -> bool:
    try:
        os.killpg(group_id, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("wrong", [{"n_patients": 0}, {"size_px": 8}, {"height_mm": 10.0}])
def test_numbers_that_make_no_chest_are_refused(tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(PhantomError, match="at least 1 patient"):
        write_phantom(tmp_path / "source", **(SMALL | wrong))


@pytest.fixture(scope="module")
def default_nodules() -> pd.DataFrame:
    """The nodule table of the first half of the default cohort's 160 patients, drawn without a pixel."""
    patients = [draw_patient(np.random.default_rng([0, index]), 0, index).truth(index) for index in range(80)]
    return rows_of(patients)[1]


def test_the_default_cohort_is_large_enough_for_intervals(default_nodules: pd.DataFrame) -> None:
    assert len(default_nodules) >= 150
    assert default_nodules["series_uid"].nunique() >= 75
    assert default_nodules["true_diameter_mm"].between(4, 20).all()
    assert 6.5 < default_nodules["true_diameter_mm"].median() < 10


def test_the_label_needs_more_than_diameter(default_nodules: pd.DataFrame) -> None:
    is_malignant = np.array([np.median(ratings) > 3 for ratings in default_nodules["malignancy_ratings"]])
    diameter = np.log(default_nodules["diameter_mm"].to_numpy())
    is_spiculated = default_nodules["true_margin"].eq("spiculated").to_numpy()
    is_ground_glass = default_nodules["true_density"].eq("ground_glass").to_numpy()
    signs = np.column_stack([diameter, is_spiculated, is_ground_glass])
    oracle = cross_val_predict(
        LogisticRegression(),
        signs,
        is_malignant,
        groups=default_nodules["series_uid"],
        cv=GroupKFold(5),
        method="predict_proba",
    )[:, 1]
    assert 0.75 < roc_auc_score(is_malignant, diameter) < 0.85
    assert roc_auc_score(is_malignant, oracle) > 0.93
    assert abs(np.corrcoef(diameter, is_spiculated)[0, 1]) < 0.15
    assert abs(np.corrcoef(diameter, is_ground_glass)[0, 1]) < 0.15


def test_readers_disagree_but_not_at_random(default_nodules: pd.DataFrame) -> None:
    ratings = np.array(default_nodules["malignancy_ratings"].tolist())
    assert ratings.shape[1] == 4
    assert 0.3 < np.mean(ratings.max(1) != ratings.min(1)) < 0.95
    assert np.corrcoef(ratings[:, 0], ratings[:, 1])[0, 1] > 0.7
