"""Runs written as records give the same page as the store that held them, and nothing of the machine."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest
import yaml

from pipelines.report.records import RecordError, read_records, write_records
from pipelines.report.run import ReportConfig, chosen_runs, page, run_report
from pipelines.runtime.page import markdown
from pipelines.tracking.items import RANKS, items_of
from pipelines.tracking.run import Run

NOW = datetime(2026, 11, 27, tzinfo=UTC)


def logged(folder: Path) -> None:
    """Log a pretraining and its retrieval, whose slices are kept."""
    trained = Run.start("pretrain")
    shas = {"dinox.cohort_sha": "c" * 64, "dinox.cohort_kind": "real CT"}
    trained.set_tags({"dinox.status": "learning"} | shas)
    configuration = {
        "seed": 1,
        "steps": 20,
        "cohort": "/home/somebody/cohorts/lidc",
        "runs_dir": "/scratch/x",
    }
    trained.log_text(yaml.safe_dump(configuration), "config.yaml")
    trained.log_metrics({"retrieval/top1": 0.123456789, "teacher/gain": 1.5}, 20)
    trained.finish("FINISHED")
    probe = Run.start("probe_retrieval")
    probe.set_tags({"dinox.probed_run": trained.run_id} | shas)
    table = {"volume_id": ["v1", "v2"], "slice_index": [3, 4], "patient_id": ["a", "b"]}
    probe.log_table(pd.DataFrame(table | {"rank": [0, 2], "random_rank": [5, 0]}), RANKS)
    probe.finish("FINISHED")


def test_a_page_of_records_equals_that_of_the_store(own_store: Path, tmp_path: Path) -> None:
    logged(tmp_path)
    runs, arms = chosen_runs(ReportConfig())
    write_records(runs, tmp_path / "kept" / "runs.jsonl")
    read = read_records([tmp_path / "kept" / "runs.jsonl"])
    stored = markdown(page(runs, arms, NOW))
    again = markdown(page(read.runs, read.arms, NOW, items=read.items))
    assert sorted(stored.splitlines()) == sorted(again.splitlines())
    probe = next(run for run in runs if run.entry_point == "probe_retrieval")
    expected = items_of(probe)
    assert expected is not None
    pd.testing.assert_frame_equal(read.tables[probe.run_id], expected, check_dtype=False)


def test_a_run_in_two_files_counts_once(own_store: Path, tmp_path: Path) -> None:
    logged(tmp_path)
    probe = next(run for run in chosen_runs(ReportConfig())[0] if run.entry_point == "probe_retrieval")
    write_records(chosen_runs(ReportConfig())[0], tmp_path / "all.jsonl")
    # With the pretraining, whose configuration says which row of the article a probe belongs to.
    write_records(chosen_runs(ReportConfig(runs=probe.run_id))[0], tmp_path / "probe.jsonl")
    one = read_records([tmp_path / "all.jsonl"])
    both = read_records([tmp_path / "all.jsonl", tmp_path / "probe.jsonl"])
    assert len(read_records([tmp_path / "probe.jsonl"]).runs) == 2
    assert [run.run_id for run in both.runs] == [run.run_id for run in one.runs]


def test_records_hold_no_folder_and_no_user(own_store: Path, tmp_path: Path) -> None:
    logged(tmp_path)
    write_records(chosen_runs(ReportConfig())[0], tmp_path / "runs.jsonl")
    text = (tmp_path / "runs.jsonl").read_text(encoding="utf-8")
    for absent in ("somebody", "/scratch", "mlflow.user", "mlflow.source", str(tmp_path)):
        assert absent not in text
    lines = [json.loads(line) for line in text.splitlines()]
    trained, keys, probe = lines
    assert (trained["params"]["cohort"], trained["metrics"]["retrieval/top1"]) == ("lidc", 0.1234568)
    assert probe["items"]["keys"] == keys["keys"]
    assert probe["items"]["columns"] == {"rank": [0, 2], "random_rank": [5, 0]}


def test_report_keeps_runs_and_reads_them_where_the_store_is_empty(own_store: Path, tmp_path: Path) -> None:
    logged(tmp_path)
    kept = tmp_path / "runs.jsonl"
    run_report(ReportConfig(keep=str(kept), article="all"), Run.start("report"))
    written = kept.read_text(encoding="utf-8")
    assert len(written.splitlines()) >= 2
    report = Run.start("report")
    run_report(ReportConfig(records=str(kept), article="all", out=str(tmp_path / "page.md")), report)
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "| real CT | probe_retrieval | 1 |" in text
    assert f"`mlflow run . -e report -P records={kept} -P article=all`" in text


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("not json\n", "line 1 of records"),
        ('{"format": 2}\n', "has format 2; this version reads format 1"),
        ('{"format": 1, "run_id": "x"}\n', "is not a run as report writes it"),
        ("[1]\n", "is not a run as report writes it"),
    ],
)
def test_files_that_are_no_records_are_refused(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "runs.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(RecordError, match=sentence):
        read_records([tmp_path / "runs.jsonl"])
    with pytest.raises(RecordError, match="cannot be read"):
        read_records([tmp_path / "absent.jsonl"])
