"""The two volumetric questions are honest: classes differ in the sign alone, and nothing else tells them apart."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipelines.cohort.folder import Cohort
from pipelines.phantom.volumetric import LARGE_MM, make_volume_cohort, pair_of
from probes.labels import label_nodules
from probes.statistics.metrics import auroc
from transforms.geometry import VolumeGeometry


def triplets_of(volume_hu: np.ndarray) -> Counter[bytes]:
    n = len(volume_hu)
    return Counter(volume_hu[np.clip([k - 1, k, k + 1], 0, n - 1)].tobytes() for k in range(n))


@pytest.mark.parametrize("patient", [0, 1, 17])
def test_only_z_the_classes_hold_the_same_multiset_of_triplets(patient: int) -> None:
    positive, negative = pair_of("only_z", patient)
    assert triplets_of(positive.volume_hu) == triplets_of(negative.volume_hu)
    assert (positive.volume_hu != negative.volume_hu).any()


@pytest.mark.parametrize("patient", range(12))
def test_only_z_identical_slices_lie_between_two_marks_of_one_slice_and_at_the_middle(patient: int) -> None:
    positive, negative = pair_of("only_z", patient)
    middle = len(positive.volume_hu) // 2
    background = positive.volume_hu[middle]
    low, high = marked_slices(positive.volume_hu)
    assert high - low - 1 >= 5
    # The middle three triplets show no mark, and 12 mm hold every triplet that shows one.
    assert middle - 5 <= low <= middle - 3
    assert middle + 3 <= high <= middle + 5
    np.testing.assert_array_equal(negative.volume_hu[high], positive.volume_hu[low])
    np.testing.assert_array_equal(negative.volume_hu[low], positive.volume_hu[high])
    np.testing.assert_array_equal(negative.volume_hu[middle], background)
    # A disc is brighter than a ring of its diameter, against what is the same in all other slices.
    assert brightness(positive.volume_hu, high) > 1.15 * brightness(positive.volume_hu, low) > 0


def marked_slices(volume_hu: np.ndarray) -> list[int]:
    background = volume_hu[len(volume_hu) // 2]
    return [int(k) for k in np.flatnonzero((volume_hu != background).any((1, 2)))]


def brightness(volume_hu: np.ndarray, k: int) -> float:
    return float((volume_hu[k].astype(float) - volume_hu[len(volume_hu) // 2]).sum())


@pytest.mark.parametrize("patient", [0, 1, 17])
def test_only_mm_voxels_are_equal_and_spacings_differ(patient: int) -> None:
    positive, negative = pair_of("only_mm", patient)
    np.testing.assert_array_equal(positive.volume_hu, negative.volume_hu)
    assert positive.spacing_mm / negative.spacing_mm == pytest.approx(1.4)
    assert positive.diameter_mm > LARGE_MM > negative.diameter_mm
    # The ball is as large as stated: the covered shares of its voxels add up to its volume in voxels.
    share = (positive.volume_hu + 850.0) / 890
    found = share[positive.volume_hu > -700].sum()
    assert found == pytest.approx(np.pi / 6 * (positive.diameter_mm / positive.spacing_mm) ** 3, rel=0.06)


def test_only_mm_spacing_alone_does_not_tell() -> None:
    drawn = [one for patient in range(200) for one in pair_of("only_mm", patient)]
    labels = np.array([one.is_positive for one in drawn], dtype=np.int64)
    spacing = np.array([one.spacing_mm for one in drawn])
    area = float(auroc(labels, spacing, np.ones((1, len(labels))))[0])
    assert 0.7 < area < 0.8


@pytest.mark.parametrize("question", ["only_z", "only_mm"])
def test_the_cohort_holds_whole_series_with_their_nodules_in_place(question: str, tmp_path: Path) -> None:
    make_volume_cohort(tmp_path / "c", question, patients=6)  # type: ignore[arg-type]
    cohort = Cohort.open(tmp_path / "c")
    assert cohort.kind == "phantom"
    assert set(cohort.series["kind"]) == {"series"}
    labeled = label_nodules("consensus", cohort.annotations, cohort.nodules).nodules
    assert labeled.groupby("patient_id")["is_malignant"].apply(sorted).tolist() == [[False, True]] * 6
    # Series a and b say nothing of the class.
    assert 0 < labeled["is_malignant"][labeled["volume_id"].str.endswith("a")].sum() < 6
    rows = {str(row["volume_id"]): row for row in cohort.series.to_dict("records")}
    for nodule in labeled.to_dict("records"):
        geometry = VolumeGeometry.from_row(rows[nodule["volume_id"]])
        np.testing.assert_allclose(geometry.to_index([0.0, 0.0, 0.0]), (np.array(geometry.shape) - 1) / 2)
        assert geometry.steps_zyx == (1, 1, 1)
        hu = cohort.volume(nodule["volume_id"])
        if question == "only_z":
            feet, head = (brightness(hu, k) for k in marked_slices(hu))
            assert (head > feet) == nodule["is_malignant"]
        else:
            assert (nodule["diameter_mm"] > LARGE_MM) == nodule["is_malignant"]
