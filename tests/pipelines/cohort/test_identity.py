"""Who is one person in two cohorts: shared by any id, apart only where ids tell people apart."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from pydicom.dataset import Dataset

from pipelines.cohort.folder import Cohort
from pipelines.cohort.identity import Ids, compare, ids_of, joined, same_voxels
from pipelines.cohort.png_export import export_png
from pipelines.cohort.pseudonyms import lidc_scans
from pipelines.ingest.config import PrepareConfig
from pipelines.ingest.preparation import prepare_cohort

Writer = Callable[..., list[Path]]
SCANS = {patient: (series, study) for series, (patient, study) in lidc_scans().items()}
ONE, OTHER = "LIDC-IDRI-0001", "LIDC-IDRI-0003"
KEYS = ["0" * 24, "1" * 24]
ANON = ["anon-" + "a" * 24, "anon-" + "b" * 24]


def ids(patient: str = "", study: str = "", series: str = "", voxels: str = "", person: str = "") -> Ids:
    given = {"patient": patient, "study": study, "series": series, "voxels": voxels}
    return {kind: {name} - {""} for kind, name in given.items()} | {"person": {person}}


def of_key(number: int, patient: str) -> Ids:
    return ids(patient, person=f"{KEYS[number]}/{patient}")


@pytest.mark.parametrize(
    ("one", "others", "state"),
    [
        (ids("a"), ids("a"), "shared"),
        (ids("a", series="1.2.3"), ids("b", series="1.2.3"), "shared"),
        (ids("a", study="1.2.3"), ids("b", study="1.2.3"), "shared"),
        (ids("a", voxels="f" * 32), ids("b", voxels="f" * 32), "shared"),
        # One person has several studies and series.
        (ids("a", series="1.2.3"), ids("b", series="1.2.4"), "unknown"),
        (ids("a", study="1.2.3", series="1.2.3.1"), ids("b", study="1.2.4", series="1.2.4.1"), "unknown"),
        (ids("a"), ids("b"), "unknown"),  # two hospitals may call one patient differently
        (ids("1.2.3"), ids("1.2.4"), "unknown"),
        (ids(ONE, person=ONE), ids(OTHER, person=OTHER), "apart"),
        (ids(ONE, person=ONE), ids("LIDC-IDRI-9999"), "unknown"),  # no such patient
        (of_key(0, ANON[0]), of_key(0, ANON[1]), "apart"),
        (of_key(0, ANON[0]), of_key(1, ANON[1]), "unknown"),
        (of_key(0, ANON[0]), ids(ANON[1]), "unknown"),  # of a study, or under a key that nobody noted
        (of_key(0, ANON[0]), ids(ONE, person=ONE), "unknown"),
        (of_key(0, ANON[0]), {**of_key(0, ANON[1]), "person": {f"{KEYS[0]}/{ANON[1]}", ""}}, "unknown"),
        (of_key(0, ANON[0]), ids("a/b", person="a/b"), "unknown"),
        # Records of before hold no persons.
        ({"patient": [ONE], "study": [], "series": []}, ids(OTHER, person=OTHER), "apart"),
        ({"patient": [ANON[0]], "study": [], "series": ["1.2"]}, of_key(0, ANON[1]), "unknown"),
        ({"patient": [f"{KEYS[0]}/x"], "study": [], "series": []}, of_key(0, ANON[1]), "unknown"),
        ({"patient": [], "study": [], "series": ["1.2"]}, ids(ONE, person=ONE), "unknown"),
    ],
)
def test_any_id_is_shared_and_only_ids_of_people_tell_them_apart(one: Ids, others: Ids, state: str) -> None:
    assert compare(one, others) == compare(others, one) == state


class Prepares:
    """Prepares cohorts of one series, under the key of a user."""

    def __init__(self, write: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.write, self.root, self.patch = write, tmp_path, monkeypatch

    def __call__(
        self, name: str, user: str, patient: str, series: str = "1.2.3.4", study: str = ""
    ) -> Cohort:
        def change(dataset: Dataset, index: int) -> None:
            dataset.PatientID = patient
            dataset.SeriesInstanceUID, dataset.StudyInstanceUID = series, study or f"2.{len(name)}"
            dataset.PixelData = dataset.PixelData[:-2] + len(name).to_bytes(2, "little")  # no two are alike

        self.write(self.root / name / "s", change=change)
        return self.of(name, user, self.root / name / "s")

    def of(self, name: str, user: str, source: Path) -> Cohort:
        self.patch.setenv("XDG_CONFIG_HOME", str(self.root / user))
        config = PrepareConfig(source=str(source), cohort=str(self.root / name / "c"), workers=1)
        return prepare_cohort(config).cohort


@pytest.fixture
def prepares(write_ct_series: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepares:
    return Prepares(write_ct_series, tmp_path, monkeypatch)


def everyone(cohort: Cohort) -> Ids:
    return ids_of(cohort, set(cohort.series["patient_id"]))


def test_patients_of_one_key_are_apart_and_of_two_keys_unknown(prepares: Prepares) -> None:
    first = prepares("a", "us", "Quill")
    same, other = prepares("bb", "us", "Quill", "1.2.3.5"), prepares("ccc", "us", "Thistle", "1.2.3.6")
    theirs = prepares("dddd", "them", "Quill", "1.2.3.7")
    assert compare(everyone(first), everyone(same)) == "shared"
    assert compare(everyone(first), everyone(other)) == "apart"
    assert compare(everyone(other), everyone(theirs)) == "unknown"
    key = (prepares.root / "us" / "dinox-ct" / "patient.key").read_text()
    assert key not in json.dumps(everyone(first))
    (fingerprint,) = set(first.series["patient_key"])
    assert fingerprint not in key


def test_who_was_seen_by_an_older_network_and_by_its_successor_is_known_of_both() -> None:
    older = {"patient": ["a"], "study": [], "series": ["1.2.3"]}
    both = joined(of_key(0, ANON[0]), older)
    assert compare(both, ids("b", series="1.2.3")) == compare(both, of_key(0, ANON[0])) == "shared"
    assert compare(both, of_key(0, ANON[1])) == "unknown"  # no one noted who "a" is
    assert compare(joined(of_key(0, ANON[0]), {}), of_key(0, ANON[1])) == "apart"


def test_without_a_patient_id_two_series_of_one_person_are_not_apart(prepares: Prepares) -> None:
    first, later = prepares("a", "us", ""), prepares("bb", "us", "", "1.2.3.5")
    assert first.series["patient_id"][0] != later.series["patient_id"][0]
    assert compare(everyone(first), everyone(later)) == "unknown"
    same_study = prepares("ccc", "us", "", "1.2.3.6", study="2.1")
    assert compare(everyone(first), everyone(same_study)) == "shared"


def test_a_scan_of_lidc_is_its_patients_under_whatever_name(prepares: Prepares) -> None:
    luna = prepares("a", "us", "somebody", SCANS[ONE][0])
    assert compare(everyone(luna), ids(ONE, person=ONE)) == "shared"
    assert compare(everyone(luna), ids(study=SCANS[ONE][1])) == "shared"
    assert compare(everyone(luna), ids(OTHER, person=OTHER)) == "apart"
    other = prepares("bb", "them", "", SCANS[OTHER][0])
    assert compare(everyone(luna), everyone(other)) == "apart"
    renamed = Cohort.open(luna.root)  # as a cohort of before, which kept the name that a table gave
    for table in (renamed.series, renamed.nodules):
        table["patient_id"] = table["patient_id"].replace({ONE: "luna0"})
    assert compare(everyone(renamed), everyone(other)) == "apart"
    assert compare(everyone(renamed), ids("luna0")) == "shared"


def test_an_older_cohort_opens_and_tells_no_key(prepares: Prepares) -> None:
    old, new = prepares("a", "us", "Quill"), prepares("bb", "us", "Thistle", "1.2.3.5")
    table = pd.read_parquet(old.root / "series.parquet").drop(columns=["patient_key", "origin"])
    table.to_parquet(old.root / "series.parquet")
    (path,) = (old.root / "rows").glob("*.json")
    row = json.loads(path.read_text())
    del row["patient_key"], row["origin"]
    path.write_text(json.dumps(row))
    old = Cohort.open(old.root)
    assert compare(everyone(old), everyone(new)) == "unknown"
    assert prepares.of("a", "us", prepares.root / "a" / "s").series["patient_key"].tolist() == [""]


def test_pseudonyms_keep_their_key_through_an_export(prepares: Prepares) -> None:
    first = prepares("a", "us", "Quill")
    export_png(first, prepares.root / "png")
    back = prepares.of("bb", "them", prepares.root / "png")
    assert back.series["patient_key"].tolist() == first.series["patient_key"].tolist() != [""]
    theirs = prepares("ccc", "them", "Thistle", "1.2.3.6")
    assert compare(everyone(back), everyone(theirs)) == "unknown"
    index = pd.read_csv(prepares.root / "png" / "index.csv").drop(columns="patient_key")
    index.to_csv(prepares.root / "png" / "index.csv", index=False)
    assert prepares.of("dddd", "us", prepares.root / "png").series["patient_key"].tolist() == [""]


def test_the_same_voxels_under_two_names_are_one_person(
    prepares: Prepares, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again = prepares("a", "us", "Quill"), prepares("b", "them", "Thistle", "1.2.3.5")
    assert compare(everyone(first), everyone(again)) == "shared"
    assert same_voxels(first) == {}
