"""Equal backward passes give equal gradients on several threads: nothing is added up in an order left to chance."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from models.aggregators import build_aggregator
from models.backbone import build_backbone
from models.config import BackboneConfig, HeadConfig, ObjectiveConfig
from models.losses.koleo import koleo_loss
from models.losses.objective import Batch, Objective
from models.student_teacher import Network, ProjectionHead, StudentTeacher

OBJECTIVES = {
    "article": ObjectiveConfig(),
    "KoLeo on class tokens": ObjectiveConfig(koleo_on="class_token"),
    "sinkhorn": ObjectiveConfig(center="sinkhorn"),
    "ibot": ObjectiveConfig(ibot_weight=1.0),
    "simclr": ObjectiveConfig(kind="simclr"),
    "mae": ObjectiveConfig(kind="mae", gram_weight=0, koleo_weight=0),
}


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def loss_of(config: ObjectiveConfig) -> Tensor:
    """The loss of one batch, with local views where the objective takes them."""
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig(arch="custom", depth=1, embed_dim=16, heads=2, image_px=28))
    networks = StudentTeacher(Network(backbone, ProjectionHead(16, HeadConfig(prototypes=8))))
    objective = Objective(config, networks.student, 8)
    views = torch.randn(2, 4, 3, 28, 28)
    local = torch.randn(2, 4, 3, 14, 14) if config.kind == "dino" else None
    return objective(networks, Batch(views, local, 0.04, np.random.default_rng(0))).total


def steps_of(result: Tensor) -> set[str]:
    """Names of the steps of the backward pass."""
    found, waiting = set(), [result.grad_fn]
    while waiting:
        step = waiting.pop()
        if step is not None and step not in found:
            found.add(step)
            waiting += [before for before, _ in step.next_functions]
    return {type(step).__name__ for step in found}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_objective_differentiates_an_index_that_may_repeat(name: str) -> None:
    assert "IndexBackward0" in steps_of(torch.ones(3, requires_grad=True)[torch.tensor([0, 0])])
    assert "IndexBackward0" not in steps_of(loss_of(OBJECTIVES[name]))


@pytest.mark.parametrize(
    "name", ["center", "mean", "max", "center3_mean", "center3_max", "attention_z", "planes"]
)
def test_no_aggregator_differentiates_an_index_that_may_repeat(name: str) -> None:
    tokens = torch.randn(5, 3, 8, requires_grad=True)
    mask = torch.ones(5, 3, dtype=torch.bool)
    pooled = build_aggregator(name, 8)(tokens, torch.arange(-5.0, 10).reshape(5, 3), mask)
    assert "IndexBackward0" not in steps_of(pooled)


def test_neighbors_shared_by_many_embeddings_get_equal_gradients_on_two_threads(two_threads: None) -> None:
    torch.manual_seed(0)
    embeddings = (torch.randn(128, 2048) + 5 * torch.randn(1, 2048)).requires_grad_()
    first, *others = (torch.autograd.grad(koleo_loss(embeddings), embeddings)[0] for _ in range(10))
    assert all(torch.equal(first, other) for other in others)
