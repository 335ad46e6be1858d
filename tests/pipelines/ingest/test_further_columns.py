"""What is kept of a user's table and paths: an allow-list; nothing of a person reaches a file of ours."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient

from pipelines.command.cli import run_entry_point
from pipelines.ingest.annotation_csv import AnnotationTable, AnnotationTableError
from pipelines.ingest.config import PrepareConfig
from pipelines.ingest.preparation import PrepareError, prepare_cohort
from pipelines.prepare import run_prepare

pytestmark = pytest.mark.usefixtures("own_key")
Writer = Callable[..., list[Path]]

PERSONAL = {
    "patient_name": "Quillfeather",
    "Vorname": "Isolde",
    "born": "1947-03-11",
    "dob": "19470311",
    "MRN": "5520417",
    "accession": "7731904",
    "address": "12 Harrowgate Lane",
    "city": "Netherwick",
    "zip": "48149",
    "phone": "555-0142",
    "mobile": "4915112345678",
    "email": "isolde.q@netherwick.example",
    "insurance": "A123456789",
    "referrer": "Thistlewood",
    "radiologist": "Pemberton",
    "hospital": "Barnabas",
    "comment": "widow of Cornelius",
    "report": "sister is nurse Wilhelmina",
    "dicom_path": "/archive/Quillfeather_Isolde/1.dcm",
    "StudyDate": "20010304",
    "study_uid": "1.2.840.777.5520417",
    "flag": "see letter to Thistlewood",
    "nodule_id": "Isolde-1",
    "volume_id": "Quillfeather-1",
}
SECRETS = sorted({*PERSONAL.values(), "Quillfeather", "Isolde", "Thistlewood", "Cornelius", "1.2.840.113619"})
TABLE = "file,patient_id,x_lps_mm,y_lps_mm,z_lps_mm,diameter_mm,label"


def texts(root: Path) -> dict[str, str]:
    """All that a folder's files and their names say; tables unpacked."""
    found = {}
    for path in root.rglob("*"):
        content = path.read_bytes().decode("latin-1") if path.is_file() else ""
        if path.suffix == ".parquet":
            content += pd.read_parquet(path).to_csv()
        found[str(path.relative_to(root))] = content
    return found


@pytest.mark.parametrize("is_named", [False, True])
def test_personal_columns_paths_and_uids_reach_nothing_that_is_kept(
    is_named: bool, write_ct_series: Writer, own_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = tmp_path_factory.mktemp("Quillfeather_Isolde") / "Thistlewood clinic"
    uid = "1.2.840.113619.2.55.3"
    write_ct_series(source / "Quillfeather^Isolde", series_uid=uid)
    rows = [
        f"Quillfeather^Isolde/0-0.dcm,somebody,{x},-37,-295,5,1," + ",".join(PERSONAL.values())
        for x in (-47, -44)
    ]
    table = source / "Quillfeather.csv"
    table.write_text("\n".join([f"{TABLE},{','.join(PERSONAL)}", *rows]) + "\n")
    words = [
        f"--source={source}",
        f"--cohort={own_store / 'cohort'}",
        f"--annotations={table}",
        "--workers=1",
    ]
    if is_named:
        words.append(f"--keep-columns={','.join(PERSONAL)}")
    assert run_entry_point("prepare", PrepareConfig, run_prepare, None, words) == 0
    assert len(pd.read_parquet(own_store / "cohort" / "nodules.parquet")) == 2
    (run,) = MlflowClient().search_runs(["0"])
    assert run.data.params["source"] == run.data.params["annotations"] == "(not stored)"
    assert run.data.metrics["prepare/columns_left_out"] == 22
    leaks = [
        (name, secret)
        for name, text in texts(own_store).items()
        for secret in SECRETS
        if secret in name + text
    ]
    assert leaks == []


def test_a_refusal_that_names_the_source_is_shown_and_stored_without_it(
    own_store: Path, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = tmp_path_factory.mktemp("Quillfeather") / "Isolde 1947"
    words = [f"--source={source}", f"--cohort={own_store / 'cohort'}"]
    assert run_entry_point("prepare", PrepareConfig, run_prepare, None, words) == 2
    assert f"{source} is not a folder" in capsys.readouterr().err
    (run,) = MlflowClient().search_runs(["0"])
    assert run.data.tags["dinox.error"].startswith("(not stored) is not a folder")
    assert not [name for name, text in texts(own_store).items() if "Quillfeather" in text or "Isolde" in text]


@pytest.mark.parametrize("said", ["{source} holds nothing.", "{whole}/ holds nothing.", "it is in {whole}."])
@pytest.mark.parametrize("source", [".", "s", "../isolde.1947/s"])
def test_a_relative_source_is_stored_neither_whole_nor_in_part(
    source: str, said: str, own_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = own_store / "isolde.1947"
    (folder / "s").mkdir(parents=True)
    monkeypatch.chdir(folder)
    sentence = said.format(source=source, whole=(folder / source).resolve())

    def refuse(config: PrepareConfig, run: object) -> None:
        raise PrepareError(sentence)

    words = [f"--source={source}", f"--cohort={own_store / 'cohort'}"]
    assert run_entry_point("prepare", PrepareConfig, refuse, None, words) == 2
    (run,) = MlflowClient().search_runs(["0"])
    assert run.data.tags["dinox.error"] == said.format(source="(not stored)", whole="(not stored)")


def test_a_column_of_the_name_that_we_write_is_not_kept(write_ct_series: Writer, tmp_path: Path) -> None:
    write_ct_series(tmp_path / "ct")
    rows = [f"0-0.dcm,somebody,{x},-37,-295,5,1,{code},7" for x, code in ((-47, 3), (-44, 4))]
    (tmp_path / "t.csv").write_text("\n".join([f"{TABLE},grade,flag", *rows]) + "\n")
    prepared = prepare_cohort(
        PrepareConfig(
            source=str(tmp_path / "ct"),
            cohort=str(tmp_path / "cohort"),
            annotations=str(tmp_path / "t.csv"),
            keep_columns="grade,flag",
            workers=1,
        )
    )
    assert prepared.columns is not None
    assert prepared.columns.unfit == ("flag",)
    assert list(prepared.cohort.nodules["grade"]) == [3, 4]
    assert list(prepared.cohort.nodules["flag"]) == ["", ""]


def test_the_environment_names_what_mlflow_would_record_of_a_command_line(
    write_ct_series: Writer, own_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ct_series(own_store / "ours")
    monkeypatch.setenv("DINOX_SOURCE", str(own_store / "ours"))
    words = [
        "--source",
        "",
        "--cohort",
        str(own_store / "cohort"),
        "--workers=1",
    ]  # as `mlflow run` passes them
    assert run_entry_point("prepare", PrepareConfig, run_prepare, None, words) == 0
    assert len(pd.read_parquet(own_store / "cohort" / "series.parquet")) == 1
    assert (
        run_entry_point("prepare", PrepareConfig, run_prepare, None, ["--source=elsewhere", *words[2:]]) == 2
    )


def table_of(folder: Path, **columns: list[str]) -> Path:
    """A table of eight patients with further columns, whose values are taken in turn."""
    names = ",".join([TABLE, *columns])
    rows = [
        ",".join([f"{i}.nii,P{i},0,0,0,5,1", *(values[i % len(values)] for values in columns.values())])
        for i in range(8)
    ]
    path = folder / "t.csv"
    path.write_text("\n".join([names, *rows]) + "\n")
    return path


def test_numbers_and_codes_that_are_named_are_kept(tmp_path: Path) -> None:
    path = table_of(tmp_path, lobe=["RUL", "LLL"], volume=["12.5", "", "1e3"], pack_years=["30"], other=["x"])
    further = AnnotationTable.read(path, ["lobe", "volume", "pack_years"]).further
    assert further.kept["lobe"].tolist() == ["RUL", "LLL"] * 4
    assert further.kept["volume"].iloc[[0, 2]].tolist() == [12.5, 1000.0]
    assert further.kept["volume"].isna().tolist() == [False, True, False] * 2 + [False, True]
    assert (further.unnamed, further.unfit) == (("other",), ())
    assert "other" in str(further)


@pytest.mark.parametrize(
    "values",
    [
        [
            "Quill",
            "Brook",
            "Marsh",
            "Heath",
            "Stone",
        ],  # more codes than half of the patients: they tell them apart
        ["upper left"],
        ["2001-03-04"],
        ["20010304", "1"],
        ["P12345"],
        ["x.y@z"],
        ["abcdefghijklm"],
    ],
)
def test_text_dates_and_identifiers_are_not_kept_though_they_are_named(
    values: list[str], tmp_path: Path
) -> None:
    further = AnnotationTable.read(table_of(tmp_path, extra=values), ["extra"]).further
    assert (list(further.kept), further.unfit) == ([], ("extra",))


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AnnotationTableError, match=r"lacks the column\(s\) lobe"):
        AnnotationTable.read(table_of(tmp_path), ["lobe"])
    with pytest.raises(ValueError, match="give it as annotations="):
        PrepareConfig(source="s", cohort="c", keep_columns="lobe")
