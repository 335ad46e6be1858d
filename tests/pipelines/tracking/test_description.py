"""Names and descriptions of runs, in a store as MLflow's pages read it."""

from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from mlflow.utils.name_utils import _generate_random_name

from models.backbone import build_backbone
from models.config import BackboneConfig
from pipelines.backbones.folder import open_backbone, save_backbone
from pipelines.command.cli import run_entry_point
from pipelines.probing.config import ProbeConfig
from pipelines.rehearsal import RehearsalConfig
from pipelines.tracking.description import HEADLINE, description, is_made_up, spoken_name
from pipelines.tracking.names import METRICS
from pipelines.tracking.reading import StoredRun, compare_page, run_page, runs_page
from pipelines.tracking.run import Run
from pipelines.tracking.store import StoreRefusedError
from pipelines.training.config import PretrainConfig

RUN_ID = "3f1a" + 28 * "0"


def test_a_name_of_mlflows_making_is_told_from_a_persons() -> None:
    assert all(is_made_up(_generate_random_name()) for _ in range(300))
    for name in ("baseline", "my-run-12", "pretrain demo lidc 3f1a", "upset-moth-", "upset-moth-51a", ""):
        assert not is_made_up(name), name


@pytest.mark.parametrize(
    ("config", "recipe", "name"),
    [
        (PretrainConfig(cohort="/data/anna/cohorts/lidc"), "vit_small", "pretrain vit_small lidc 3f1a"),
        (PretrainConfig(cohort="a/lidc,b/nlst"), "", "pretrain lidc nlst 3f1a"),
        (ProbeConfig(cohort="c", backbone="runs:/beef00/backbone"), "", "pretrain beef c 3f1a"),
        (ProbeConfig(cohort="c", backbone="shipped:whitened_words"), "", "pretrain whitened_words c 3f1a"),
        (RehearsalConfig(), "", "pretrain 3f1a"),
    ],
)
def test_a_name_holds_recipe_backbone_and_cohort_without_their_paths(
    config: object, recipe: str, name: str
) -> None:
    assert spoken_name("pretrain", recipe, config, RUN_ID) == name


def test_a_description_says_verdict_figures_cohort_warnings_and_the_next_command() -> None:
    tags = {"dinox.entry_point": "pretrain", "dinox.status": "learning", "dinox.leak": "no_holdout"}
    tags |= {"dinox.cohort_sha": "ab" * 32, "dinox.cohort_kind": "phantom"}
    metrics = {"retrieval/top1": 0.5, "retrieval/top1_ci_low": 0.4, "retrieval/top1_ci_high": 0.6}
    metrics |= {"teacher/gain": 1.25, "perf/slices_per_s": 9.0}
    run = StoredRun(RUN_ID, "RUNNING", tags, metrics, {"cohort": "cohorts/phantom"})
    assert description(run, "mlflow run . -e report").splitlines() == [
        "**pretrain: learning**",
        "",
        "|  |  | 95% interval |",
        "| --- | --- | --- |",
        "| information gain G, nats (`teacher/gain`) | 1.25 |  |",
        "| retrieval top-1 (`retrieval/top1`) | 0.5 | 0.400 to 0.600 |",
        "",
        "Cohort phantom: phantom, SHA-256 `abababababab`.",
        "",
        "**Warning** (no_holdout): figures may be too good, some patients or labels were seen before.",
        "",
        "Next: `mlflow run . -e report`",
    ]
    failed = StoredRun(
        RUN_ID, "FAILED", {"dinox.entry_point": "embed", "dinox.error": "no such cohort"}, {}, {}
    )
    assert description(failed) == "**embed: no such cohort**"


def test_every_headline_is_a_metric() -> None:
    assert set(HEADLINE) <= set(METRICS)


@pytest.mark.parametrize(
    ("given", "named"),
    [("upset-moth-519", "rehearsal {}"), ("my arm", "my arm"), ("rehearsal", "rehearsal {}")],
)
def test_a_run_has_a_name_a_description_and_its_data(
    given: str,
    named: str,
    own_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = MlflowClient(f"sqlite:///{own_store / 'mlflow.db'}")
    run_id = store.create_run("0", run_name=given).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)

    def body(config: RehearsalConfig, run: Run) -> None:
        run.log_metrics({"teacher/gain": 0.5})
        run.log_dataset("lidc", "0123456789abcdef" * 4, {"kind": "real CT", "volumes": 3}, "training")

    assert run_entry_point("rehearsal", RehearsalConfig, body, None, []) == 0
    stored = store.get_run(run_id)
    assert stored.info.run_name == named.format(run_id[:4])
    assert stored.data.tags["mlflow.note.content"].startswith("**rehearsal: done**")
    assert "(`teacher/gain`) | 0.5 |" in stored.data.tags["mlflow.note.content"]
    (data,) = stored.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("lidc", "0123456789abcdef0123456789abcdef0123")
    assert [(tag.key, tag.value) for tag in data.tags] == [("mlflow.data.context", "training")]
    assert f"http://127.0.0.1:5000/#/experiments/0/runs/{run_id}" in capsys.readouterr().out


def test_pages_are_those_of_the_store_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://anna:secret@mlflow.example/")
    assert run_page("r", "7") == "https://mlflow.example/#/experiments/7/runs/r"
    assert runs_page("7") == "https://mlflow.example/#/experiments/7?workflowType=machine_learning"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////tmp/mlflow.db")
    assert compare_page(["r"], "7").startswith("http://127.0.0.1:5000/#/compare-runs?runs=%5B%22r%22%5D")


def test_a_model_is_logged_once_with_its_figures_and_opens_by_its_alias(
    own_store: Path, tmp_path: Path
) -> None:
    store = MlflowClient(f"sqlite:///{own_store / 'mlflow.db'}")
    run = Run(store, store.create_run("0").info.run_id)
    config = BackboneConfig(arch="custom", depth=1, embed_dim=16, heads=2, image_px=28)
    network = build_backbone(config)
    save_backbone(tmp_path / "backbone", network, config, {"run_id": run.run_id, "holdout": 0.5})
    for step, value in ((0, -0.9), (700, 0.5)):
        run.log_metrics({"teacher/gain": value}, step)
    for _ in range(2):  # as after a store that went away before it answered
        run.log_model("backbone", tmp_path / "backbone", {"teacher/gain": 0.5}, register_as="lung")
    (model,) = store.search_logged_models(["0"])
    assert [(metric.key, metric.value) for metric in model.metrics] == [("teacher/gain", 0.5)]
    assert run.history("teacher/gain") == [(0, -0.9), (700, 0.5)], "a model's figure is no point at step 0"
    assert [output.model_id for output in store.get_run(run.run_id).outputs.model_outputs] == [model.model_id]
    store.set_registered_model_alias("lung", "best", "1")
    for name in ("models:/lung@best", "models:/lung/1", f"models:/{model.model_id}"):
        loaded = open_backbone(name)
        assert loaded.named_run == run.run_id
        for key, tensor in network.vit.state_dict().items():
            assert torch.equal(loaded.backbone.vit.state_dict()[key], tensor)
    with pytest.raises(StoreRefusedError, match="refuses"):
        open_backbone("models:/lung@worst")
    assert len(store.search_model_versions("name = 'lung'")) == 1
