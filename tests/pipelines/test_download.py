import sys
from pathlib import Path

import pandas as pd
import pytest

from pipelines import download
from pipelines.download import (
    DownloadConfig,
    DownloadError,
    describe,
    fetch_from_idc,
    fetch_series,
    missing_series,
    read_index,
    run_download,
    select_ct_series,
    series_folder,
)
from pipelines.runtime.extras import MissingPackageError
from tests.recorder import Recorder


def row(
    patient: int, series: str, modality: str = "CT", collection: str = "lidc_idri", files: int = 3
) -> dict:
    return {
        "collection_id": collection,
        "PatientID": f"LIDC-IDRI-{patient:04d}",
        "StudyInstanceUID": f"1.2.{patient}",
        "SeriesInstanceUID": series,
        "Modality": modality,
        "instanceCount": files,
        "series_size_MB": 1500.0,
        "license_short_name": "CC BY 3.0",
        "source_DOI": "10.7937/k9/tcia.2015.lo9ql9sx",
    }


INDEX = pd.DataFrame(
    [
        row(7, "1.2.7.1"),
        row(1, "1.2.1.2"),
        row(1, "1.2.1.1"),
        row(1, "1.2.1.9", modality="SEG"),
        row(3, "1.2.3.1"),
        row(12, "1.2.12.1"),
        row(99, "1.2.99.1", collection="nlst"),
        row(98, "1.2.98.1", modality="MR", collection="upenn_gbm"),
    ]
)


class Server:
    """Stands for the network: writes the files of a series, and may fail after some."""

    def __init__(self, stops_after: int | None = None) -> None:
        self.asked: list[str] = []
        self.written = 0
        self.stops_after = stops_after

    def __call__(self, series_uid: str, folder: Path) -> None:
        self.asked.append(series_uid)
        for number in range(3):
            if self.stops_after is not None and self.written == self.stops_after:
                return
            file = folder / f"{number}.dcm"
            if not file.exists():
                file.write_text(series_uid)
                self.written += 1


@pytest.fixture(autouse=True)
def disk_with_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests select is gigabytes by its index: the disk of the machine that tests is not asked."""
    usage = download.shutil.disk_usage("/")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=100_000_000_000))


def test_only_the_ct_series_of_the_collection_are_selected_in_order() -> None:
    chosen = select_ct_series(INDEX, "lidc_idri")["SeriesInstanceUID"].tolist()
    assert chosen == ["1.2.1.1", "1.2.1.2", "1.2.3.1", "1.2.7.1", "1.2.12.1"]


@pytest.mark.parametrize(
    ("patients", "expected"),
    [
        ("1", {"LIDC-IDRI-0001"}),
        ("2-3", {"LIDC-IDRI-0003", "LIDC-IDRI-0007"}),
        ("1, LIDC-IDRI-0012", {"LIDC-IDRI-0001", "LIDC-IDRI-0012"}),
    ],
)
def test_patients_are_places_in_the_sorted_list_or_ids(patients: str, expected: set[str]) -> None:
    assert set(select_ct_series(INDEX, "lidc_idri", patients)["PatientID"]) == expected


@pytest.mark.parametrize(
    ("collection", "patients", "sentence"),
    [
        ("lidc-idri", "", "did you mean 'lidc_idri'"),
        ("upenn_gbm", "", "holds no CT series"),
        ("lidc_idri", "0-2", "within 1-4"),
        ("lidc_idri", "3-9", "within 1-4"),
        ("lidc_idri", "3-2", "within 1-4"),
        ("lidc_idri", "LIDC-IDRI-0002", "neither a patient of this collection"),
        ("lidc_idri", "1,,2", "neither a patient of this collection"),
    ],
)
def test_what_cannot_be_selected_is_refused(collection: str, patients: str, sentence: str) -> None:
    with pytest.raises(DownloadError, match=sentence):
        select_ct_series(INDEX, collection, patients)


def test_size_license_and_what_is_left_are_said(tmp_path: Path) -> None:
    selection = select_ct_series(INDEX, "lidc_idri")
    series_folder(tmp_path, selection.iloc[0]).mkdir(parents=True)
    text = describe(selection, missing_series(selection, tmp_path))
    assert "5 CT series of 4 patients, 7.5 GB" in text
    assert "CC BY 3.0" in text
    assert "10.7937/k9/tcia.2015.lo9ql9sx" in text
    assert "to fetch: 4 series, 6.0 GB; already here: 1" in text


def test_an_interrupted_download_goes_on_where_it_stopped(tmp_path: Path) -> None:
    target = tmp_path / "lidc"
    selection = select_ct_series(INDEX, "lidc_idri", "1-2")
    broken = Server(stops_after=4)
    with pytest.raises(DownloadError, match=r"1\.2\.1\.2: 1 of 3 files arrived"):
        fetch_series(selection, target, broken)
    assert len(list(target.rglob("*.dcm"))) == 3  # nothing half-fetched lies where `prepare` looks
    missing = missing_series(selection, target)
    assert missing["SeriesInstanceUID"].tolist() == ["1.2.1.2", "1.2.3.1"]

    server = Server()
    fetch_series(missing, target, server)
    assert server.asked == ["1.2.1.2", "1.2.3.1"]
    assert server.written == 5  # the file that had arrived was not fetched again
    assert missing_series(selection, target).empty
    assert [path.name for path in tmp_path.iterdir()] == ["lidc"]
    assert len(list((target / "LIDC-IDRI-0001" / "1.2.1").rglob("*.dcm"))) == 6


def test_a_disk_without_room_is_refused_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = download.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=2_000_000_000))
    server = Server()
    with pytest.raises(DownloadError, match=r"2\.0 GB free and 7\.5 GB are needed"):
        fetch_series(select_ct_series(INDEX, "lidc_idri"), tmp_path, server)
    assert not server.asked


def test_a_dry_run_fetches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(download, "read_index", lambda: INDEX)
    run = Recorder()
    run_download(DownloadConfig(target=str(tmp_path / "lidc"), patients="1-2", dry_run=True), run)
    assert "3 CT series of 2 patients, 4.5 GB" in capsys.readouterr().out
    assert run.metrics["download/n_missing"] == 3
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", [read_index, fetch_from_idc])
def test_without_the_optional_package_the_sentence_says_what_to_install(
    call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "idc_index", None)
    monkeypatch.setitem(sys.modules, "idc_index_data", None)
    with pytest.raises(MissingPackageError, match=r"pip install -e '\.\[download\]'"):
        call()


@pytest.mark.slow
def test_the_packaged_index_holds_the_1018_ct_series_of_lidc() -> None:
    pytest.importorskip("idc_index_data", reason="the optional package idc-index is not installed")
    selection = select_ct_series(read_index(), "lidc_idri")
    assert len(selection) == selection["SeriesInstanceUID"].nunique() == 1018
    assert selection["PatientID"].nunique() == 1010
    assert selection["series_size_MB"].sum() / 1000 == pytest.approx(128.4, abs=0.05)
    assert selection["instanceCount"].sum() == pytest.approx(243_945, abs=1000)
    assert set(selection["license_short_name"]) == {"CC BY 3.0"}
    first = select_ct_series(read_index(), "lidc_idri", "1-20")
    assert sorted(first["PatientID"].unique()) == [f"LIDC-IDRI-{number:04d}" for number in range(1, 21)]
