"""A user's own runs: only what differs is shown, with headline figures, curves, and no table of an article."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.report.facts import gather
from pipelines.report.run import SUSPICION, ReportConfig, run_report
from pipelines.report.study import curves, differing, study
from pipelines.runtime.page import Picture, Table
from pipelines.tracking.names import Tag
from pipelines.tracking.reading import StoredRun, search_runs
from pipelines.tracking.run import Run

KEYS = {"seed": "0", "steps": "100", "cohort": "/data/somebody/cohorts/ours", "views.center": "body"}


@pytest.fixture
def two(own_store: Path) -> list[StoredRun]:
    """Two pretrainings that differ in one key, and in the number of loader processes."""
    store = MlflowClient(f"sqlite:///{own_store / 'mlflow.db'}")
    for name, own, gain in (
        ("cold", {"optim.teacher_temp": "0.02", "workers": "2"}, 1.2),
        ("warm", {"optim.teacher_temp": "0.1", "workers": "0"}, 0.0),
    ):
        run = Run(store, str(store.create_run("0", run_name=name).info.run_id))
        run.set_tags(
            {
                Tag.ENTRY_POINT: "pretrain",
                Tag.COHORT_SHA: "5" * 64,
                Tag.COHORT_KIND: "phantom",
                Tag.STATUS: "learning" if gain else "wall",
            }
        )
        run.log_params(KEYS | own)
        run.log_metrics({"retrieval/random_top1": 0.1})
        for step in (0, 50, 100):
            run.log_metrics(
                {
                    "teacher/gain": gain * step / 100,
                    "retrieval/top1": 0.1,
                    "retrieval/top1_ci_low": 0.0,
                    "retrieval/top1_ci_high": 0.2,
                },
                step,
            )
        run.finish("FINISHED")
    return search_runs(StoredRun, "")


def test_two_runs_are_told_apart_by_name_and_by_what_differs(two: list[StoredRun]) -> None:
    evidence = sorted(gather(two), key=lambda one: one.facts["pretrain.optim.teacher_temp"])
    assert differing(evidence) == ["pretrain.optim.teacher_temp"]
    blocks = study(evidence)
    (table,) = (block for block in blocks if isinstance(block, Table))
    assert table.head == (
        "run",
        "optim.teacher_temp",
        "information gain G, nats",
        "retrieval top-1",
        "retrieval top-1, random weights",
    )
    assert [row[:3] for row in table.rows] == [("cold", "0.02", "1.2"), ("warm", "0.1", "0")]
    assert table.rows[0][3] == "0.1 [0.000 to 0.200]"
    assert [block.title for block in blocks if isinstance(block, Picture)] == ["Curves of the pretrainings"]
    figure = curves(evidence)
    assert figure is not None
    lines = figure.axes[1].get_lines()
    assert [line.get_label() for line in lines] == ["cold", "warm"]
    assert lines[0].get_linestyle() != lines[1].get_linestyle()
    assert list(lines[0].get_ydata()) == [0.0, 0.6, 1.2]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"cold", "warm", "random weights"}


def test_runs_of_one_configuration_are_said_to_be_so(two: list[StoredRun]) -> None:
    evidence = gather(two)[:1] * 2
    assert differing(evidence) == []
    assert "2 runs of one configuration." in str(study(evidence)[1])


def test_a_report_of_a_study_holds_no_article_and_opens_offline(
    two: list[StoredRun], own_store: Path
) -> None:
    run = Run.start("report")
    run_report(ReportConfig(runs=",".join(one.run_id for one in two), out=str(own_store / "mine.md")), run)
    text = (own_store / "mine.md").read_text(encoding="utf-8")
    for absent in ("ViT-L", "article", "not measured", "not testable", "somebody"):
        assert absent not in text
    assert SUSPICION not in text  # it is about AUROC, and these runs have none
    page = Path(run.store.download_artifacts(run.run_id, "report.html", str(own_store))).read_text(
        encoding="utf-8"
    )
    assert 'src="data:image/png' in page
    assert "http" not in page.replace("http-equiv", "")
