"""A test cohort: who is left out, that nothing is fitted on it, and that what is known elsewhere is found there."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.cohort.identity import compare, ids_of
from pipelines.cohort.pseudonyms import lidc_scans
from pipelines.cohort.tables import CohortError
from pipelines.nodule.labeled import nodule_set
from pipelines.probing.config import ProbeConfig
from pipelines.probing.external import open_test_cohort, trained_on
from pipelines.probing.setup import ProbeError
from probes.evaluation import matched_by_size
from tests.pipelines.probing.grain import LABELS, nodule_with_grain
from tests.pipelines.probing.test_probe_malignancy import backbone, cohort_of
from tests.recorder import Recorder
from transforms.nodule_crop import CropSpec

SERIES, (PATIENT, STUDY) = next(iter(lidc_scans().items()))


def test_a_public_scan_is_known_by_its_series_alone(tmp_path: Path) -> None:
    cohort = cohort_of(tmp_path, nodule_with_grain, LABELS[:2], "luna")
    cohort.nodules["series_uid"] = [SERIES, "1.2.3"]
    found = ids_of(cohort, ["luna0"])
    assert PATIENT in found["patient"]
    assert STUDY in found["study"]
    assert compare(found, {"patient": [PATIENT]}) == "shared"
    assert PATIENT not in ids_of(cohort, ["luna1"])["patient"]


def test_patients_of_the_first_cohort_are_left_out_and_the_others_are_unknown(
    grained: Recorder,
) -> None:
    assert grained.metrics["external/n_nodules"] == 30
    assert grained.metrics["external/n_unknown_patients"] == 30  # names of a table, and no UIDs
    assert grained.tags["dinox.leak"] == "unknown"
    assert len(grained.tags["dinox.test_cohort_sha"]) == 64


def test_grain_is_known_to_the_dictionary_in_the_other_cohort(grained: Recorder) -> None:
    assert grained.metrics["external/dictionary_nested_z"] > 2
    assert grained.metrics["external/dictionary_auroc"] > 0.9
    assert set(grained.tables["tables/external_question.csv"]["row"]) == {
        "features",
        "random",
        "dictionary",
        "random_words",
    }
    assert {"external/over_random_r2_ci_low", "external/image_diameter_auroc"} <= set(grained.metrics)


def test_few_shots_are_drawn_twenty_times_a_point(grained: Recorder) -> None:
    shots = grained.tables["tables/few_shots.csv"]
    counts = shots.groupby(["row", "n_nodules"]).size()
    assert counts.to_dict() == {
        (row, number): 20 for row in ("features", "random_weights", "dictionary") for number in (16, 40)
    }
    means = shots.groupby(["row", "n_nodules"])["auroc"].mean()
    assert means["dictionary", 40] > 0.8
    assert grained.metrics["external/dictionary_few_shot_auroc@40"] == means["dictionary", 40]


def test_a_test_cohort_that_is_not_there_and_too_many_shots_are_refused_first(tmp_path: Path) -> None:
    nodules = nodule_set(
        cohort_of(tmp_path, nodule_with_grain, LABELS[:6]), "given", CropSpec(size_mm=28.0, out_px=14)
    )
    with pytest.raises(CohortError, match="no cohort in nowhere"):
        open_test_cohort(ProbeConfig(test_cohort="nowhere"), nodules)
    with pytest.raises(ProbeError, match="shots=4,8 asks for more nodules than the 6 to fit on"):
        open_test_cohort(ProbeConfig(test_cohort="nowhere", shots="4,8"), nodules)
    assert open_test_cohort(ProbeConfig(), nodules) is None


def test_what_a_backbone_was_trained_on_is_read_from_its_record_or_from_its_cohort(tmp_path: Path) -> None:
    from pipelines.backbones.folder import open_backbone

    cohort = cohort_of(tmp_path, nodule_with_grain, LABELS[:6])
    stated = {"patient": ["x"], "study": [], "series": []}
    assert trained_on(open_backbone(backbone(tmp_path / "s", trained_on=stated)), cohort) == stated
    assert trained_on(open_backbone(backbone(tmp_path / "n", holdout=0.5)), cohort) is None
    halves = [
        trained_on(open_backbone(backbone(tmp_path / half, holdout=half, cohort_sha=cohort.sha256)), cohort)
        for half in ("half_a", "half_b")
    ]
    both = [set(half["patient"]) for half in halves if half is not None]
    assert both[0] | both[1] == set(cohort.series["patient_id"])
    assert not both[0] & both[1]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"shots": "16"}, "shots draw a curve on a test cohort"),
        ({"shots": "16,x", "test_cohort": "b"}, "shots are whole numbers"),
        ({"test_cohort": "b", "backbone": "one,two"}, "test_cohort takes one backbone"),
    ],
)
def test_options_of_a_test_cohort_that_do_not_fit_are_refused(options: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ProbeConfig(**options)  # type: ignore[arg-type]


def test_matched_nodules_are_two_benign_ones_a_malignant_one_of_like_diameter() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(300) < 0.3).astype(int)
    diameter = np.exp(rng.normal(2.2, 0.3, 300) + 0.4 * labels)
    is_matched = matched_by_size(labels, diameter)
    malignant, benign = (diameter[is_matched & (labels == label)] for label in (1, 0))
    assert len(benign) == 2 * len(malignant) > 40
    assert abs(np.log(malignant).mean() - np.log(benign).mean()) < 0.07
    assert np.log(diameter[labels == 1]).mean() - np.log(diameter[labels == 0]).mean() > 0.3
