"""A warm start begins where its source is: the retrieval of step 0 is the source's own."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from models.config import HeadConfig
from models.student_teacher import Network, ProjectionHead, StudentTeacher
from pipelines.backbones.folder import open_backbone, save_backbone
from pipelines.backbones.view_retrieval import encode_views, retrieval_metrics, retrieve
from pipelines.backbones.warm_start import resolved
from pipelines.cohort.folder import Cohort
from pipelines.cohort.slices import SliceIndex
from pipelines.command.config import load_recipe
from pipelines.training.config import PretrainConfig
from pipelines.training.evaluation import RetrievalEvaluation
from pipelines.training.first_backbone import first_backbone

transformers = pytest.importorskip("transformers")
CPU = torch.device("cpu")


def test_retrieval_at_step_0_is_that_of_the_source(tmp_path: Path, small_cohort: Cohort) -> None:
    torch.manual_seed(0)
    made = transformers.DINOv3ViTModel(
        transformers.DINOv3ViTConfig(
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=96,
            num_register_tokens=4,
        )
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    made.save_pretrained(tmp_path / "hf")
    torch.save({"teacher": {f"backbone.{k}": t for k, t in made.state_dict().items()}}, tmp_path / "w.pth")
    opened = open_backbone(f"hf:{tmp_path / 'hf'}", 64)
    save_backbone(tmp_path / "ours", opened.backbone, opened.config, {})
    patients = sorted(small_cohort.series["patient_id"].unique())
    found = []
    for weights in (f"hf:{tmp_path / 'hf'}", f"{tmp_path}/w.pth:heads=3", str(tmp_path / "ours")):
        tree = {"backbone": {"arch": "weights", "weights": weights, "image_px": 64}, "views": {"size_px": 64}}
        config = load_recipe(PretrainConfig, tree | {"eval_slices": 64})
        config = dataclasses.replace(config, backbone=resolved(config.backbone))
        backbone, seen = first_backbone(config, small_cohort, SliceIndex(small_cohort, patients), [])
        assert seen == {}
        head = ProjectionHead(backbone.embed_dim, HeadConfig(prototypes=16))
        evaluation = RetrievalEvaluation(small_cohort, patients, config, CPU)
        step_0 = evaluation.measure(StudentTeacher(Network(backbone, head)))
        tokens = encode_views(evaluation.sample, {"backbone": opened.backbone}, CPU)["backbone"][
            "class_token"
        ]
        source = retrieval_metrics({("backbone", "class_token"): retrieve(evaluation.sample, tokens)})
        assert np.array_equal(evaluation.teacher_tokens, tokens), weights
        for name in ("retrieval/top1", "retrieval/top5", "retrieval/ratio"):
            assert step_0[name] == source[name], weights
        assert step_0["retrieval/student_top1"] == source["retrieval/top1"]
        assert evaluation.random_baseline(backbone)["retrieval/random_top1"] >= 0
        found.append(step_0["retrieval/top1"])
    assert found[0] == found[1] == found[2] > 0
