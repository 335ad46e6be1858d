"""What earlier versions logged and took under other names is still read: runs, recipes, command lines."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.backbones.config import ExportConfig
from pipelines.command.cli import resolve
from pipelines.command.config import load_recipe
from pipelines.probing.config import AggregationConfig, ProbeConfig, RepresentationConfig
from pipelines.report.facts import gather, matches
from pipelines.report.tables import article_table, load_article
from pipelines.tracking.names import METRICS
from pipelines.tracking.old_names import current_metric, current_params
from pipelines.tracking.reading import StoredRun, read_run

OLD = {
    "aggregation/centre_auroc": "aggregation/center_auroc",
    "aggregation/centre_auroc_ci_low": "aggregation/center_auroc_ci_low",
    "aggregation/centre3_mean_auroc": "aggregation/center3_mean_auroc",
    "aggregation/centre3_max_gain_p_holm": "aggregation/center3_max_gain_p_holm",
    "representation/centred_cosine": "representation/centered_cosine",
    "representation/centred_effective_rank": "representation/centered_effective_rank",
    "representation/random_centred_cosine": "representation/random_centered_cosine",
    "representation/random_centred_effective_rank": "representation/random_centered_effective_rank",
}


@pytest.fixture
def old_run(own_store: Path) -> str:
    """The record of a probe as it was written before names were spelled as today."""
    store = MlflowClient(f"sqlite:///{own_store / 'mlflow.db'}")
    run_id = str(store.create_run("0", tags={"dinox.entry_point": "probe_aggregation"}).info.run_id)
    for number, name in enumerate([*OLD, "aggregation/mean_auroc"]):
        store.log_metric(run_id, name, 0.5 + number / 100)
    store.log_param(run_id, "cfg.features", "neighbourhood")
    store.log_param(run_id, "cfg.window", "lung")
    store.set_terminated(run_id)
    return run_id


def test_metrics_of_an_older_run_bear_the_names_of_today(old_run: str) -> None:
    expected = {
        name: 0.5 + number / 100 for number, name in enumerate([*OLD.values(), "aggregation/mean_auroc"])
    }
    assert read_run(StoredRun, old_run).metrics == pytest.approx(expected)
    assert set(expected) <= set(METRICS)


def test_a_report_shows_an_older_run_as_it_shows_a_new_one(old_run: str) -> None:
    evidence = gather([read_run(StoredRun, old_run)])
    assert matches(evidence[0].facts, {"probe.features": "neighborhood", "probe.window": "lung"})
    table = next(table for table in load_article().tables if table.id == "slices")
    (line,) = article_table(table, evidence).rows
    assert [float(cell) for cell in line[3:6]] == [0.5, 0.58, 0.52]


def test_no_name_of_today_is_taken_for_an_older_one() -> None:
    assert {name: current_metric(name) for name in METRICS} == {name: name for name in METRICS}
    assert current_params({"cfg.features": "both", "licence": "x"}) == {
        "features": "both",
        "licence": "x",
    }
    assert current_params({"cfg.licence": "mit"}) == {"license": "mit"}


@pytest.mark.parametrize("schema", [ProbeConfig, AggregationConfig, RepresentationConfig])
def test_older_values_are_read_from_recipes_and_command_lines(schema: type) -> None:
    wanted = schema(features="neighborhood")
    assert load_recipe(schema, {"features": "neighbourhood"}) == wanted
    assert resolve(schema, ["--features", "neighbourhood"])[0] == wanted
    assert resolve(schema, ["--features=neighborhood"])[0] == wanted


def test_an_older_option_is_read_from_recipes_and_command_lines() -> None:
    wanted = ExportConfig(license="mit")
    assert load_recipe(ExportConfig, {"licence": "mit"}) == wanted
    assert resolve(ExportConfig, ["--licence", "mit"])[0] == wanted
