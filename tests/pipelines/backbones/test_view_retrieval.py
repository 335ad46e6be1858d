"""View retrieval is one question: a run that trains and the probe of what it made find the same."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from models.backbone import build_backbone
from models.config import BackboneConfig, HeadConfig
from models.student_teacher import Network, ProjectionHead, StudentTeacher
from pipelines.backbones.folder import save_backbone
from pipelines.backbones.view_retrieval import render_rows, retrieval_metrics, retrieve, sample_slices
from pipelines.cohort.folder import Cohort
from pipelines.cohort.slices import SliceIndex
from pipelines.command.config import nested
from pipelines.probing.config import RetrievalConfig
from pipelines.probing.retrieval import run_retrieval
from pipelines.tracking.run import Run
from pipelines.training.config import PretrainConfig
from pipelines.training.evaluation import RetrievalEvaluation
from probes.splits import is_held_out
from tests.recorder import Recorder
from transforms.views.config import ViewConfig

TINY = BackboneConfig(arch="custom", depth=1, embed_dim=24, heads=2, patch_px=7, registers=0, image_px=28)
CPU = torch.device("cpu")


def networks() -> StudentTeacher:
    """A teacher and a student that differ, the student in training."""
    torch.manual_seed(0)
    pair = StudentTeacher(Network(build_backbone(TINY), ProjectionHead(24, HeadConfig(prototypes=16))))
    with torch.no_grad():
        for weight in pair.student.parameters():
            weight += 0.02 * torch.randn_like(weight)
    return pair.train()


def test_the_probe_finds_what_the_run_logged_of_the_same_slices(
    small_cohort: Cohort, own_store: Path
) -> None:
    config = PretrainConfig(
        backbone=TINY,
        views=ViewConfig(size_px=28, fraction=(0.9, 1.0), n_local=2, local_size_px=14),
        eval_slices=50,
    )
    pair = networks()
    patients = [p for p in small_cohort.series["patient_id"].unique() if is_held_out(p, "half_a")]
    evaluation = RetrievalEvaluation(small_cohort, patients, config, CPU)
    logged = evaluation.measure(pair)
    assert pair.student.backbone.training
    assert not pair.teacher.backbone.training

    trained = Run.start("pretrain")
    trained.log_text(yaml.safe_dump(nested(config)), "config.yaml")
    record = {"holdout": "half_a", "leak": "", "run_id": trained.run_id}
    for name, network in (("backbone", pair.teacher), ("backbone_student", pair.student)):
        save_backbone(own_store / name, network.backbone, TINY, record | {"network": name})
        trained.log_file(own_store / name, name)
    probe = Recorder()
    settings = {"backbone": f"runs:/{trained.run_id}/backbone", "slices": 50, "device": "cpu"}
    run_retrieval(RetrievalConfig(cohort=str(small_cohort.root), **settings), probe)
    assert set(logged) == {
        f"retrieval/{name}"
        for name in ("top1", "top1_ci_low", "top1_ci_high", "top5", "ratio", "n", "student_top1")
    }
    assert {name: probe.metrics[name] for name in logged} == logged
    assert 0 < logged["retrieval/top5"] < 1
    assert logged["retrieval/student_top1"] != logged["retrieval/top1"]


def test_the_random_row_of_a_run_has_its_own_names_and_nobody_held_out_has_none(
    small_cohort: Cohort,
) -> None:
    config = PretrainConfig(backbone=TINY, views=ViewConfig(size_px=28), eval_slices=20)
    everyone = small_cohort.series["patient_id"].unique().tolist()
    trained = networks().teacher.backbone
    baseline = RetrievalEvaluation(small_cohort, everyone, config, CPU).random_baseline(trained)
    assert set(baseline) == {f"retrieval/random_top1{end}" for end in ("", "_ci_low", "_ci_high")}
    nobody = RetrievalEvaluation(small_cohort, [], config, CPU)
    assert nobody.random_baseline(trained) == nobody.measure(networks()) == {}
    assert nobody.examples(SliceIndex(small_cohort, everyone))[0].shape == (4, 3, 28, 28)


def test_slices_are_spread_from_the_first_to_the_last(small_cohort: Cohort) -> None:
    index = SliceIndex(small_cohort, set(small_cohort.series["patient_id"]))
    sample = sample_slices(index, ViewConfig(size_px=28, n_local=3, local_size_px=14), 7)
    assert sample.rows[[0, -1]].tolist() == [0, len(index) - 1]
    steps = np.diff(sample.rows)
    assert steps.max() - steps.min() <= 1
    assert len(sample_slices(index, ViewConfig(size_px=28), 10**6).rows) == len(index)
    # Local views are not drawn, and global ones do not depend on them.
    without = sample_slices(index, ViewConfig(size_px=28), 7)
    assert sample.views.n_local == 0
    assert torch.equal(render_rows(sample, sample.rows, CPU), render_rows(without, sample.rows, CPU))


def test_metrics_are_named_by_network_and_token_and_an_interval_of_one_patient_is_not_logged(
    small_cohort: Cohort,
) -> None:
    patient = small_cohort.series["patient_id"].iloc[0]
    sample = sample_slices(SliceIndex(small_cohort, {patient}), ViewConfig(size_px=28), 6)
    one_hot = np.eye(6, dtype=np.float32)
    missed = np.stack([one_hot, one_hot[[1, 0, 3, 2, 5, 4]]])
    metrics = retrieval_metrics(
        {
            ("backbone", "class_token"): retrieve(sample, np.stack([one_hot, one_hot])),
            ("student", "mean_patch"): retrieve(sample, missed),
        }
    )
    assert metrics["retrieval/top1"] == 1.0
    assert metrics["retrieval/ratio"] == metrics["retrieval/n"] == 6.0
    assert metrics["retrieval/chance"] == pytest.approx(1 / 6)
    assert metrics["retrieval/student_mean_patch_top1"] == 0.0
    assert "retrieval/top1_ci_low" not in metrics
    assert not [name for name in metrics if name.startswith("retrieval/student_n")]
