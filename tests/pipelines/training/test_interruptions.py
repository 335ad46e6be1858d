"""After any interruption a run goes on as if nothing had happened: same weights, same curves, bit for bit."""

import errno
import json
import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from mlflow import MlflowClient
from PIL import Image
from safetensors.torch import load_file

from pipelines.backbones.config import ExportConfig
from pipelines.backbones.exporting import card_facts
from pipelines.backbones.folder import chosen_backbone, open_backbone
from pipelines.backbones.model_card import model_card
from pipelines.cohort.folder import Cohort
from pipelines.command.recorded import whole_configuration
from pipelines.probing.retrieval import kept_backbones
from pipelines.report.run import page
from pipelines.runtime.page import markdown
from pipelines.tracking.changes import Change, changes_of
from pipelines.tracking.reading import StoredRun, artifacts, read_run
from pipelines.training import run as training_run
from pipelines.training.trainer import Trainer
from tests.pipelines.training.compared import STEPS, Outcome, assert_same, outcome, pretrain, stored_runs


@pytest.fixture(scope="module")
def undisturbed(
    small_cohort: Cohort, blank_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Outcome]:
    """A run that nothing happened to, and its folder."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", copied(blank_store, folder))
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        # To draw takes seconds.
        patch.setattr(Figure, "savefig", lambda _, file, dpi: Image.new("L", (1, 1)).save(file))
        assert pretrain(folder, small_cohort) == 0
    return folder, outcome(folder, stored_runs(folder)[0])


def copied(store: Path, folder: Path) -> str:
    (folder / "mlflow.db").write_bytes(store.read_bytes())
    return f"sqlite:///{folder / 'mlflow.db'}"


@pytest.fixture
def folder(own_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store and a folder of runs; figures, which have tests of their own, are left out for speed."""
    monkeypatch.setattr(training_run, "token_figures", lambda *_: iter(()))
    monkeypatch.setattr(training_run, "curves", lambda *_: iter(()))
    monkeypatch.setattr("pipelines.tracking.run.Run.log_image", lambda *_: None)
    monkeypatch.setattr(training_run, "view_sheet", lambda *_: None)
    return own_store


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """Let something happen once, right after an update."""
    waiting: dict[int, Callable[[], object]] = {}
    update = Trainer.update

    def observed(trainer: Trainer, batches: Iterator[object]) -> None:
        update(trainer, batches)
        waiting.pop(trainer.step, lambda: None)()

    monkeypatch.setattr(Trainer, "update", observed)
    return waiting.__setitem__


def test_every_evaluation_leaves_figures_and_a_backbone(undisturbed: tuple[Path, Outcome]) -> None:
    folder, result = undisturbed
    (run,) = stored_runs(folder)
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    images = {Path(file.path).name for file in client.list_artifacts(run.info.run_id, "figures")}
    keys = ("views", "tokens_attention", "tokens_pca", "tokens_gram", "tokens_class_map")
    assert {f"{key}_step{step:06d}.png" for key in keys for step in (0, 3, 6)} <= images
    assert "gallery.html" in {file.path for file in client.list_artifacts(run.info.run_id)}
    assert result.backbones == [0, 3, 6]


def test_the_probe_reads_the_backbones_that_were_kept(
    undisturbed: tuple[Path, Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, result = undisturbed
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    loaded = open_backbone(chosen_backbone(""))
    trajectory = kept_backbones(loaded)
    assert [step for step, _ in trajectory] == [0, 3, 6]
    last = trajectory[-1][1].vit.state_dict()
    for name, tensor in loaded.backbone.vit.state_dict().items():
        assert torch.equal(tensor, last[name])
        assert torch.equal(tensor, result.weights[f"networks/teacher.backbone.vit.{name}"])
    assert not torch.equal(trajectory[0][1].vit.pos_embed, trajectory[1][1].vit.pos_embed)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_ends_with_its_code_and_the_run_goes_on(
    folder: Path, small_cohort: Cohort, undisturbed, at_step, number: int, code: int, capsys
) -> None:
    at_step(3, lambda: os.kill(os.getpid(), number))
    assert pretrain(folder, small_cohort) == code
    assert "interrupted at step 3 and saved; -P resume=auto continues" in capsys.readouterr().err
    (first,) = stored_runs(folder)
    assert first.info.status == "KILLED"

    assert pretrain(folder, small_cohort, resume="auto") == 0
    first, wrapper = stored_runs(folder)
    assert_same(outcome(folder, first), undisturbed[1])
    assert first.data.tags["dinox.error"] == ""
    assert wrapper.data.tags["dinox.resumes"] == first.info.run_id
    assert "dinox.backbone" not in wrapper.data.tags
    assert chosen_backbone("") == f"runs:/{first.info.run_id}/backbone"
    assert signal.getsignal(number) is not None


def test_a_store_that_was_away_in_between_misses_nothing(
    folder: Path, small_cohort: Cohort, undisturbed, at_step, capsys
) -> None:
    away = pytest.MonkeyPatch()
    at_step(2, lambda: cut_off(away))
    at_step(5, away.undo)
    assert pretrain(folder, small_cohort) == 0
    (run,) = stored_runs(folder)
    assert_same(outcome(folder, run), undisturbed[1])
    said = capsys.readouterr().out
    assert "the tracking store cannot be reached" in said
    assert "the tracking store answers again" in said


def test_a_store_that_stays_away_gets_everything_from_the_run_that_resumes(
    folder: Path, small_cohort: Cohort, undisturbed, at_step, capsys
) -> None:
    away = pytest.MonkeyPatch()
    at_step(4, lambda: cut_off(away))
    assert pretrain(folder, small_cohort) == 2
    said = capsys.readouterr().err
    assert f"all {STEPS} updates are done and saved, but the tracking store sqlite" in said
    assert re.search(
        r"cannot be reached .*; \d+ records wait in .*, and -P resume=\w+ then delivers them", said
    )
    away.undo()
    assert pretrain(folder, small_cohort, resume="auto") == 0
    assert_same(outcome(folder, stored_runs(folder)[0]), undisturbed[1])


def cut_off(away: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("nobody listens")

    for name in ("log_batch", "log_inputs", "log_artifact", "log_artifacts", "set_terminated", "update_run"):
        away.setattr(MlflowClient, name, refuse)


def test_a_full_disk_costs_the_updates_since_the_last_checkpoint_alone(
    folder: Path, small_cohort: Cohort, undisturbed, at_step, capsys
) -> None:
    full = pytest.MonkeyPatch()

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    at_step(4, lambda: full.setattr("pipelines.training.checkpoint.save_file", refuse))
    assert pretrain(folder, small_cohort) == 2
    assert "the checkpoint of step 4 could not be written" in capsys.readouterr().err
    full.undo()
    assert pretrain(folder, small_cohort, resume="auto") == 0
    assert_same(outcome(folder, stored_runs(folder)[0]), undisturbed[1])


def test_a_tampered_checkpoint_is_refused_and_the_one_before_it_serves(
    folder: Path, small_cohort: Cohort, undisturbed, at_step, capsys
) -> None:
    at_step(5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert pretrain(folder, small_cohort) == 143
    (newest,) = folder.glob("runs/*/checkpoints/step_00000005.safetensors")
    whole = newest.read_bytes()
    newest.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert pretrain(folder, small_cohort, resume="auto") == 2
    assert "delete step_00000005.json to continue from the one before it" in capsys.readouterr().err
    newest.with_suffix(".json").unlink()
    assert pretrain(folder, small_cohort, resume="auto") == 0
    assert_same(outcome(folder, stored_runs(folder)[0]), undisturbed[1])


def test_changed_settings_are_refused_on_resume(folder: Path, small_cohort: Cohort, at_step, capsys) -> None:
    at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert pretrain(folder, small_cohort) == 143
    assert pretrain(folder, small_cohort, resume="auto", **{"optim.lr": 0.01}) == 2
    assert "allow_changes=optim.lr" in capsys.readouterr().err
    changed = {"backbone.depth": 2, "allow_changes": "backbone.depth"}
    assert pretrain(folder, small_cohort, resume="auto", **changed) == 2
    assert "of another architecture" in capsys.readouterr().err
    killed, *refused = stored_runs(folder)
    assert killed.info.status == "KILLED"
    assert [run.info.status for run in refused] == ["FAILED", "FAILED"]


def test_what_a_resumed_run_changed_is_in_its_record_report_and_card(
    folder: Path, small_cohort: Cohort, at_step, capsys
) -> None:
    at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert pretrain(folder, small_cohort) == 143
    changed = {"optim.lr": 0.01, "resume": "auto"}
    assert pretrain(folder, small_cohort, allow_changes="optim.lr", **changed) == 0
    said = "optim.lr from 0.001 to 0.01 at step 3"
    out = capsys.readouterr().out
    assert f"changed on resume: {said}" in out
    run = read_run(StoredRun, stored_runs(folder)[0].info.run_id)
    assert f"backbone=runs:/{run.run_id}/backbone" in out.splitlines()[-1]
    assert out.splitlines()[-1].endswith(f"/runs/{run.run_id}")
    assert changes_of(run.tags) == [Change(3, "optim.lr", 0.001, 0.01)]
    assert {"config.yaml", "config_from_step_00000003.yaml"} <= set(artifacts(run.run_id))
    assert said in run.tags["mlflow.note.content"]
    record = json.loads((folder / "runs" / run.run_id / "run.json").read_text())
    assert record["config"]["optim.lr"] == 0.01
    # It answers neither a question about the one value nor about the other.
    assert whole_configuration(run)["optim.lr"] == "0.001; 0.01 from step 3"
    assert said in markdown(page([run], [], datetime.now(UTC)))
    loaded = open_backbone(f"runs:/{run.run_id}/backbone")
    assert said in model_card([loaded], card_facts([loaded], ExportConfig()), has_onnx=False)


@pytest.mark.parametrize(
    ("spoilt_after", "way_on"),
    [
        (1, "; no checkpoint was saved before it, so start anew"),
        (5, "with the new value goes on from the checkpoint of step 4"),
    ],
)
def test_a_loss_that_is_not_finite_promises_a_checkpoint_only_where_one_is(
    folder: Path,
    small_cohort: Cohort,
    monkeypatch: pytest.MonkeyPatch,
    capsys,
    spoilt_after: int,
    way_on: str,
) -> None:
    update = Trainer.update

    def spoiling(trainer: Trainer, batches: Iterator[object]) -> None:
        update(trainer, batches)
        if trainer.step == spoilt_after:
            trainer.networks.student.head.last.weight.data.fill_(float("nan"))

    monkeypatch.setattr(Trainer, "update", spoiling)
    assert pretrain(folder, small_cohort, save_every=4) == 2
    said = capsys.readouterr().err
    assert f"not finite by step {spoilt_after + 1}; lower optim.lr or set optim.clip_norm; " in said
    assert said.strip().endswith(way_on)
    (run,) = stored_runs(folder)
    assert (f"-P resume={run.info.run_id} -P allow_changes=" in said) == (spoilt_after > 4)


def test_a_run_that_died_after_its_last_update_is_exported_by_the_next(
    folder: Path, small_cohort: Cohort, undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(training_run.TrainingRun, "_export", run_out_of_memory)
        with pytest.raises(MemoryError):
            pretrain(folder, small_cohort, keep_backbones="false")
    assert pretrain(folder, small_cohort, resume="auto", keep_backbones="false") == 0
    first, _ = stored_runs(folder)
    assert first.data.tags["dinox.status"] == "too early"
    for name, tensor in load_file(next(folder.glob("runs/*/checkpoints/step_00000006.safetensors"))).items():
        assert torch.equal(tensor, undisturbed[1].weights[name]), name


def run_out_of_memory(*_: object) -> None:
    raise MemoryError


def test_a_run_that_was_deleted_in_mlflow_blocks_nothing_and_can_be_brought_back(
    folder: Path, small_cohort: Cohort, undisturbed, at_step, capsys
) -> None:
    at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert pretrain(folder, small_cohort) == 143
    (deleted,) = (run.info.run_id for run in stored_runs(folder))
    store = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    store.delete_run(deleted)
    capsys.readouterr()
    assert pretrain(folder, small_cohort, resume=deleted) == 2
    assert f"run '{deleted}' was deleted in MLflow; `MLFLOW_TRACKING_URI=sqlite" in capsys.readouterr().err
    assert pretrain(folder, small_cohort, resume="auto") == 0
    said = capsys.readouterr().out
    assert f"passed over: run {deleted} was deleted" in said
    assert f"mlflow runs restore --run-id {deleted}" in said
    assert_same(outcome(folder, stored_runs(folder)[-1]), undisturbed[1])
    store.restore_run(deleted)
    assert pretrain(folder, small_cohort, resume=deleted) == 0
    assert_same(outcome(folder, store.get_run(deleted)), undisturbed[1])


def test_a_run_that_is_deleted_while_it_trains_loses_nothing(
    folder: Path, small_cohort: Cohort, undisturbed, at_step, capsys
) -> None:
    store = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    at_step(4, lambda: [store.delete_run(run.info.run_id) for run in stored_runs(folder)])
    assert pretrain(folder, small_cohort) == 2
    (run_id,) = (path.name for path in (folder / "runs").iterdir())
    said = capsys.readouterr()
    assert f"run {run_id} was deleted in MLflow" in said.out
    assert f"all {STEPS} updates are done and saved, but run {run_id} was deleted in MLflow; `" in said.err
    assert f"-P resume={run_id} then delivers them" in said.err
    store.restore_run(run_id)
    assert pretrain(folder, small_cohort, resume=run_id) == 0
    assert_same(outcome(folder, store.get_run(run_id)), undisturbed[1])


def test_a_loader_process_that_dies_ends_the_run_saved(
    folder: Path, small_cohort: Cohort, undisturbed, at_step, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(multiprocessing.active_children())

    def kill_loader() -> None:
        for child in set(multiprocessing.active_children()) - before:
            child.kill()
            child.join()

    # What the process had made before is used up first; one batch ahead is soon.
    monkeypatch.setattr("pipelines.training.loader._PREFETCH", 1)
    at_step(1, kill_loader)
    assert pretrain(folder, small_cohort, workers=1, save_every=5) == 2
    said = " ".join(capsys.readouterr().err.split())
    (run,) = (path.name for path in (folder / "runs").iterdir())
    assert "a loader process was killed, or gave no batch for 600 s" in said
    assert re.search(rf"-P resume={run} goes on from the checkpoint of step [1-4]$", said)
    assert pretrain(folder, small_cohort, resume=run) == 0
    assert_same(outcome(folder, stored_runs(folder)[0]), undisturbed[1])


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total"),
            "2.00 GiB);",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "/people/Doe/x"),
            "the disk is full (No space left",
        ),
    ],
)
def test_what_the_machine_lacks_is_a_sentence_that_says_what_to_do(
    folder: Path, small_cohort: Cohort, at_step, capsys, error: BaseException, sentence: str
) -> None:
    def fail() -> None:
        raise error

    at_step(2, fail)
    assert pretrain(folder, small_cohort) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert sentence in said
    assert "Doe" not in said
    (run,) = stored_runs(folder)
    assert (run.info.status, run.data.tags["dinox.error"]) == ("FAILED", said)


def test_a_store_that_does_not_know_the_run_is_named(
    folder: Path, small_cohort: Cohort, at_step, blank_store: Path, capsys
) -> None:
    at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert pretrain(folder, small_cohort) == 143
    copied(blank_store, folder)
    assert pretrain(folder, small_cohort, resume="auto") == 2
    assert "is not in the store sqlite:" in capsys.readouterr().err
