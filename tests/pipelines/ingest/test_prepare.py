"""A folder of CT becomes a cohort: complete, resumable, without a word about a person."""

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydicom.dataset import Dataset

from pipelines.cohort.folder import Cohort
from pipelines.cohort.pseudonyms import PatientKeyError, Pseudonyms, user_key
from pipelines.cohort.tables import CohortError
from pipelines.ingest.config import PrepareConfig
from pipelines.ingest.preparation import NothingReadError, prepare_cohort
from pipelines.phantom.source import PERSONAL_STRINGS
from transforms.geometry import lps_to_index
from transforms.refusal import TransformError

Writer = Callable[..., list[Path]]


pytestmark = pytest.mark.usefixtures("own_key")


def config(source: Path, cohort: Path, **changes: object) -> PrepareConfig:
    return PrepareConfig(**{"source": str(source), "cohort": str(cohort), "workers": 1} | changes)  # type: ignore[arg-type]


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
    }


def test_the_phantom_is_prepared_whole_with_its_nodules_where_they_are(
    small_phantom_source: Path, tmp_path: Path
) -> None:
    prepared = prepare_cohort(config(small_phantom_source, tmp_path / "c", verify=True))
    cohort = prepared.cohort
    assert (prepared.n_new, prepared.n_present, prepared.files.left_out.total()) == (6, 0, 0)
    truth = json.loads((small_phantom_source / "phantom_truth.json").read_text())
    assert len(cohort.nodules) == sum(len(patient["nodules"]) for patient in truth["patients"])
    assert set(cohort.nodules["volume_id"]) <= set(cohort.series["volume_id"])
    assert set(cohort.annotations["patient_id"]) <= set(cohort.series["patient_id"])
    series = cohort.series.set_index("volume_id")
    solid = cohort.nodules[(cohort.nodules["true_density"] == "solid") & (cohort.nodules["diameter_mm"] > 6)]
    for nodule in solid.itertuples():
        center = (nodule.x_lps_mm, nodule.y_lps_mm, nodule.z_lps_mm)
        z, y, x = np.rint(lps_to_index(list(series.loc[nodule.volume_id, "affine_ras"]), center)).astype(int)
        assert cohort.volume(nodule.volume_id)[z, y, x] > -300


def test_no_word_about_a_person_reaches_the_cohort_or_the_terminal(
    small_phantom_source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    shutil.copytree(small_phantom_source, source)
    for odd in source.glob("*/*/*/1-001.dcm"):
        odd.write_bytes(odd.read_bytes()[:-100])  # a refusal for every patient, with folder names
        break
    (source / f"{PERSONAL_STRINGS[0]}.txt").write_text("no image")
    prepared = prepare_cohort(config(source, tmp_path / "c"))
    said = capfd.readouterr()
    written = contents(tmp_path / "c") | {"names": "\n".join(contents(tmp_path / "c")).encode()}
    written["said"] = (said.out + said.err).encode()
    for name, content in written.items():
        for personal in PERSONAL_STRINGS:
            assert personal.encode() not in content, f"{personal} in {name}"
    ids = set(prepared.cohort.series["patient_id"])
    assert sum(name.startswith("PHANTOM-") for name in ids) == len(ids) - 1
    assert sum(name.startswith("anon-") for name in ids) == 1


def test_a_second_call_reads_nothing_and_changes_no_byte(small_phantom_source: Path, tmp_path: Path) -> None:
    prepare_cohort(config(small_phantom_source, tmp_path / "c"))
    before = contents(tmp_path / "c")
    again = prepare_cohort(config(small_phantom_source, tmp_path / "c", workers=2))
    assert (again.n_new, again.n_present) == (0, 6)
    assert contents(tmp_path / "c") == before


def test_processes_give_the_same_bytes_as_one(small_phantom_source: Path, tmp_path: Path) -> None:
    prepare_cohort(config(small_phantom_source, tmp_path / "one"))
    prepare_cohort(config(small_phantom_source, tmp_path / "two", workers=2))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_only_what_is_missing_or_has_grown_is_read(write_ct_series: Writer, tmp_path: Path) -> None:
    files = write_ct_series(tmp_path / "s" / "a", n_slices=6, series_uid="1.2.3.4")
    write_ct_series(tmp_path / "s" / "b", n_slices=3, series_uid="1.2.3.5")
    late = files[5].rename(tmp_path / "late.dcm")  # a download that is not finished
    prepare_cohort(config(tmp_path / "s", tmp_path / "c", keep_ids=True))
    late.rename(files[5])
    (tmp_path / "c" / "volumes" / "1.2.3.5.npy").unlink()
    again = prepare_cohort(config(tmp_path / "s", tmp_path / "c", keep_ids=True))
    assert (again.n_new, again.n_present) == (2, 0)
    assert again.cohort.volume("1.2.3.4").shape == (6, 12, 16)


def test_a_witness_is_heard_on_volumes_that_are_there_without_one(
    write_ct_series: Writer, tmp_path: Path
) -> None:
    def invert_for_display(dataset: Dataset, index: int) -> None:
        dataset.PhotometricInterpretation = "MONOCHROME1"  # ITK turns the values round, we do not

    write_ct_series(tmp_path / "s" / "a")
    write_ct_series(tmp_path / "s" / "b", series_uid="1.2.3.5", change=invert_for_display)
    assert prepare_cohort(config(tmp_path / "s", tmp_path / "c", keep_ids=True)).n_new == 2
    heard = prepare_cohort(config(tmp_path / "s", tmp_path / "c", witness="simpleitk", keep_ids=True))
    assert (heard.n_new, heard.n_present) == (1, 0)
    assert heard.cohort.series["volume_id"].tolist() == ["1.2.3.4"]
    assert "the witness SimpleITK differs" in heard.cohort.refused["reason"].iloc[0]
    again = prepare_cohort(config(tmp_path / "s" / "a", tmp_path / "c", witness="simpleitk", keep_ids=True))
    assert (again.n_new, again.n_present) == (0, 1)


def test_a_series_that_is_refused_now_is_no_longer_there_as_it_was_read_before(
    write_ct_series: Writer, tmp_path: Path
) -> None:
    def two_move_sideways(dataset: Dataset, index: int) -> None:
        if index > 5:
            dataset.ImagePositionPatient = [-49, -40, -300 + 2.5 * index]

    files = write_ct_series(tmp_path / "s" / "a", n_slices=8, change=two_move_sideways)
    write_ct_series(tmp_path / "s" / "b", series_uid="1.2.3.5")
    late = [file.rename(tmp_path / file.name) for file in files[6:]]  # a download that is not finished
    assert prepare_cohort(config(tmp_path / "s", tmp_path / "c", keep_ids=True)).n_new == 2
    for file, home in zip(late, files[6:], strict=True):
        file.rename(home)
    again = prepare_cohort(config(tmp_path / "s", tmp_path / "c", keep_ids=True))
    assert (again.n_new, again.n_present, again.files.left_out.total()) == (0, 1, 8)
    assert again.cohort.refused["series_uid"].tolist() == ["1.2.3.4"]
    assert again.cohort.series["volume_id"].tolist() == ["1.2.3.5"]


def test_refused_files_are_counted_by_series_folder_and_reason(
    write_ct_series: Writer, tmp_path: Path
) -> None:
    def no_slope(dataset: Dataset, index: int) -> None:
        del dataset.RescaleSlope

    def one_position(dataset: Dataset, index: int) -> None:
        dataset.ImagePositionPatient = [-50, -40, -300]

    source = tmp_path / "s"
    write_ct_series(source / "good", series_uid="1.2.3.4")
    write_ct_series(source / "slope", series_uid="1.2.3.5", change=no_slope)
    write_ct_series(source / "position", series_uid="1.2.3.6", change=one_position)
    (source / "scan.nii.gz").write_bytes(b"\x1f\x8b" + b"0" * 200)
    (source / "links").mkdir()
    (source / "links" / "itself").symlink_to("itself")
    prepared = prepare_cohort(config(source, tmp_path / "c", keep_ids=True))
    table = prepared.cohort.refused.set_index("folder")
    assert list(table.index) == [".", "links", "slope", "position"]
    assert list(table["n_files"]) == [1, 1, 5, 5]
    assert table.loc[".", "reason"] == "a file of another format beside DICOM series; read it with from=nifti"
    assert "RescaleSlope" in table.loc["slope", "reason"]
    assert "two slices with different pixels" in table.loc["position", "reason"]
    hashed = prepare_cohort(config(source, tmp_path / "d")).cohort.refused
    assert hashed["folder"].str.fullmatch(r"\.|name-[0-9a-f]{16}").all()


def test_a_folder_whose_name_no_table_can_hold_is_hashed_though_ids_are_kept(
    write_ct_series: Writer, tmp_path: Path
) -> None:
    write_ct_series(tmp_path / "s" / "good")
    odd = tmp_path / "s" / os.fsdecode(b"J\xfcrgen")  # Latin-1, from an old disk: not UTF-8
    odd.mkdir()
    (odd / "letter.txt").write_text("no CT")
    refused = prepare_cohort(config(tmp_path / "s", tmp_path / "c", keep_ids=True)).cohort.refused
    assert refused["folder"].str.fullmatch(r"name-[0-9a-f]{16}").all()


def test_nothing_readable_is_said_in_one_sentence(write_ct_series: Writer, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NothingReadError, match="holds no files"):
        prepare_cohort(config(tmp_path / "empty", tmp_path / "c"))
    assert not (tmp_path / "c").exists()
    write_ct_series(tmp_path / "s", n_slices=1)
    with pytest.raises(
        NothingReadError, match=r"1 file\(s\) refused, most often because: the series is one slice"
    ):
        prepare_cohort(config(tmp_path / "s", tmp_path / "c"))
    with pytest.raises(CohortError, match="holds no volume: all that was prepared was refused"):
        Cohort.open(tmp_path / "c")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": -1}, "workers must be 0"),
        ({"from_": "nifti", "witness": "simpleitk"}, "not available with from=nifti"),
        ({"from_": "png", "source": ""}, "needs a source"),
        ({"cohort": "cohorts/phantom"}, "is the phantom's cohort"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrepareConfig(**{"source": "s", "cohort": "c"} | changes)  # type: ignore[arg-type]


def test_a_source_that_is_no_folder_makes_no_cohort(tmp_path: Path) -> None:
    with pytest.raises(TransformError, match="is not a folder"):
        prepare_cohort(config(tmp_path / "missing", tmp_path / "c"))
    assert not (tmp_path / "c").exists()


def test_a_patient_keeps_one_id_in_all_cohorts_of_a_user_and_none_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [Pseudonyms.of_user().patient("MRN-1", "1.2") for _ in range(2)]
    assert ids[0] == ids[1] != Pseudonyms.of_user().patient("MRN-2", "1.2")
    assert stat.S_IMODE(os.stat(tmp_path / "config" / "dinox-ct" / "patient.key").st_mode) == 0o600
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "other"))
    assert Pseudonyms.of_user().patient("MRN-1", "1.2") != ids[0]


def test_only_known_ids_are_public_and_lidc_series_have_their_published_patient() -> None:
    pseudonyms = Pseudonyms.of_user(["PHANTOM-0001"])
    lidc_0001 = "1.3.6.1.4.1.14519.5.2.1.6279.6001.179049373636438705059720603192"
    assert pseudonyms.patient("changed by somebody", "1.2", lidc_0001) == "LIDC-IDRI-0001"
    assert pseudonyms.patient("PHANTOM-0001", "1.2") == "PHANTOM-0001"
    assert pseudonyms.patient("PHANTOM-0002", "1.2").startswith("anon-")
    assert pseudonyms.patient("", "1.2") != pseudonyms.patient("", "1.3")
    assert pseudonyms.folder(Path("LIDC-IDRI-0001/Isolde")).startswith("LIDC-IDRI-0001/name-")
    assert Pseudonyms.of_user(keep_ids=True).patient("MRN-1", "1.2") == "MRN-1"


def test_a_broken_key_is_not_replaced_in_silence(tmp_path: Path) -> None:
    user_key()
    (tmp_path / "config" / "dinox-ct" / "patient.key").write_text("")
    with pytest.raises(PatientKeyError, match="holds no key"):
        user_key()


@pytest.mark.lidc
def test_lidc_0001_has_its_one_nodule(dinox_data: Path, tmp_path: Path) -> None:
    cohort = prepare_cohort(config(dinox_data / "lidc", tmp_path / "c", witness="simpleitk")).cohort
    (series,) = cohort.series.to_dict("records")
    assert (series["patient_id"], list(series["shape"])) == ("LIDC-IDRI-0001", [133, 512, 512])
    assert list(series["spacing_mm"]) == [2.5, 0.703125, 0.703125]
    (nodule,) = cohort.nodules.to_dict("records")
    assert sorted(nodule["malignancy_ratings"]) == [4, 5, 5, 5]
    center = (nodule["x_lps_mm"], nodule["y_lps_mm"], nodule["z_lps_mm"])
    z, y, x = np.rint(lps_to_index(series["affine_ras"], center)).astype(int)
    around = cohort.volume(series["volume_id"])[z - 1 : z + 2, y - 4 : y + 5, x - 4 : x + 5]
    assert around.mean() > -100
    assert isinstance(cohort.annotations, pd.DataFrame)
    assert len(cohort.annotations) == 4
