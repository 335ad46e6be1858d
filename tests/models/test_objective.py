"""The weighted sum: which terms are there, what they weigh, and what moves."""

import math

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from models.backbone import build_backbone
from models.config import BackboneConfig, HeadConfig, MaeTarget, ObjectiveConfig
from models.losses.dino import sinkhorn_probabilities
from models.losses.gram import gram_loss
from models.losses.ibot import draw_mask
from models.losses.koleo import koleo_loss
from models.losses.objective import Batch, Objective
from models.student_teacher import Network, ProjectionHead, StudentTeacher


def build(config: ObjectiveConfig) -> tuple[StudentTeacher, Objective]:
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig(arch="custom", depth=2, embed_dim=32, heads=2, image_px=28))
    networks = StudentTeacher(Network(backbone, ProjectionHead(32, HeadConfig(prototypes=16))))
    with torch.no_grad():  # A teacher that lags behind, as in training.
        for parameter in networks.teacher.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return networks, Objective(config, networks.student, 16)


def batch(n_local: int = 0) -> Batch:
    torch.manual_seed(1)
    local = torch.randn(n_local, 4, 3, 14, 14) if n_local else None
    return Batch(torch.randn(2, 4, 3, 28, 28), local, 0.04, np.random.default_rng(0))


CASES = {
    "article": (ObjectiveConfig(), {"dino", "gram", "koleo"}),
    "per view": (ObjectiveConfig(koleo_on="class_token"), {"dino", "gram", "koleo"}),
    "sinkhorn": (ObjectiveConfig(center="sinkhorn", gram_weight=0), {"dino", "koleo"}),
    "ibot": (ObjectiveConfig(ibot_weight=1.0, koleo_weight=0), {"dino", "gram", "ibot"}),
    "simclr": (ObjectiveConfig(kind="simclr"), {"simclr", "gram", "koleo"}),
    "mae": (ObjectiveConfig(kind="mae", gram_weight=0, koleo_weight=0), {"mae"}),
    "weighed": (
        ObjectiveConfig(gram_weight=0.3, koleo_weight=0.7, ibot_weight=0.2),
        {"dino", "gram", "koleo", "ibot"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_total_is_the_weighted_sum_of_the_named_terms(case: str) -> None:
    config, names = CASES[case]
    networks, objective = build(config)
    terms = objective(networks, batch())
    assert set(terms.named) == names
    weights = {"gram": config.gram_weight, "koleo": config.koleo_weight, "ibot": config.ibot_weight}
    expected = sum(weights.get(name, 1.0) * term.item() for name, term in terms.named.items())
    assert terms.total.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_gradients_reach_the_student_and_never_the_teacher(case: str) -> None:
    networks, objective = build(CASES[case][0])
    objective(networks, batch()).total.backward()
    assert networks.student.backbone.vit.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in networks.teacher.parameters())


def watched_rows(networks: StudentTeacher) -> dict[str, int]:
    """Count the tokens that the last layer of each head is given from now on."""
    rows = {"student": 0, "teacher": 0}

    def count(name: str):
        def hook(_, inputs: tuple[torch.Tensor]) -> None:
            rows[name] += inputs[0].shape[:-1].numel()

        return hook

    for name in rows:
        getattr(networks, name).head.last.register_forward_pre_hook(count(name))
    return rows


def test_ibot_equals_the_formula_over_all_patches_but_codes_the_hidden_ones_alone() -> None:
    networks, objective = build(ObjectiveConfig(ibot_weight=1.0, gram_weight=0, koleo_weight=0))
    networks.double()
    objective.double()
    objective.patch_center.normal_()
    objective.mask_token.data.normal_()
    inputs = batch()._replace(global_views=batch().global_views.double(), rng=np.random.default_rng(5))
    mask = torch.as_tensor(draw_mask((2, 4, 4), objective.config.ibot_mask, np.random.default_rng(5)))
    count = mask.sum(-1)
    assert (count == 0).sum() == 4
    assert len(count[count > 0].unique()) > 1

    student = networks.student(inputs.global_views, mask, objective.mask_token)
    logits = networks.teacher.head(networks.teacher(inputs.global_views).patch_tokens)
    codes = ((logits - objective.patch_center) / 0.04).softmax(-1)
    guesses = (networks.student.head(student.patch_tokens) / 0.1).log_softmax(-1)
    per_image = -((codes * guesses).sum(-1) * mask).sum(-1)[count > 0] / count[count > 0]
    expected = per_image.mean()
    learned = [*networks.student.parameters(), objective.mask_token]
    gradients = torch.autograd.grad(expected, learned, allow_unused=True)

    rows = watched_rows(networks)
    terms = objective(networks, inputs)
    assert terms.named["ibot"].item() == pytest.approx(expected.item(), abs=1e-12)
    found = torch.autograd.grad(terms.named["ibot"], learned, allow_unused=True)
    for ours, dense in zip(found, gradients, strict=True):
        assert (ours is None and dense is None) or torch.allclose(ours, dense, rtol=0, atol=1e-12)
    assert torch.allclose(terms.center_means["patch_center"], logits.mean((0, 1, 2)), rtol=0, atol=1e-12)
    hidden, class_tokens = int(count.sum()), 8
    assert rows == {"student": hidden + class_tokens, "teacher": hidden + class_tokens + 1}


@pytest.mark.parametrize(("case", "copies"), [("ibot", 3), ("mae", 1)])
def test_masks_reach_a_gpu_without_a_wait(case: str, copies: int, host_copies) -> None:
    networks, objective = build(CASES[case][0])
    with FakeTensorMode(
        allow_non_fake_inputs=True
    ):  # Shapes and devices, no GPU; asking for a number would raise.
        networks.to("cuda")
        objective.to("cuda")
        inputs = batch()._replace(global_views=torch.empty(2, 4, 3, 28, 28, device="cuda"))
        with host_copies:
            loss = objective(networks, inputs).total
    assert loss.device.type == "cuda"
    assert len(host_copies.pinned) == copies
    assert host_copies.is_waited_for == [False] * copies


def test_local_views_join_the_student_alone() -> None:
    networks, objective = build(ObjectiveConfig(gram_weight=0, koleo_weight=0))
    alone, more = objective(networks, batch()), objective(networks, batch(n_local=3))
    assert more.seen.student_logits.shape[0] == 5
    assert more.seen.teacher_probs.shape[0] == 2
    assert more.named["dino"].item() != pytest.approx(alone.named["dino"].item(), abs=1e-4)


def test_koleo_sees_the_tensor_that_the_recipe_names() -> None:
    for choice in ("head_logits", "class_token"):
        networks, objective = build(ObjectiveConfig(koleo_on=choice))
        inputs = batch()
        student = networks.student(inputs.global_views)
        if choice == "head_logits":
            expected = koleo_loss(student.logits.flatten(0, 1))
        else:
            expected = (koleo_loss(student.class_token[0]) + koleo_loss(student.class_token[1])) / 2
        assert objective(networks, inputs).named["koleo"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_center_follows_the_mean_logits_and_forward_leaves_it_alone() -> None:
    networks, objective = build(ObjectiveConfig(center_momentum=0.9))
    terms = objective(networks, batch())
    assert objective.center.abs().sum() == 0
    objective.update_centers(terms.center_means)
    teacher = networks.teacher(batch().global_views).logits
    assert torch.allclose(objective.center, 0.1 * teacher.flatten(0, 1).mean(0), atol=1e-6)


def test_a_frozen_gram_teacher_replaces_the_current_one() -> None:
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig(arch="custom", depth=2, embed_dim=32, heads=2, image_px=28))
    student = Network(backbone, ProjectionHead(32, HeadConfig(prototypes=16)))
    networks = StudentTeacher(student, frozen_gram_teacher=True)
    objective = Objective(ObjectiveConfig(), networks.student, 16)
    assert objective(networks, batch()).named["gram"].item() == pytest.approx(0.0, abs=1e-10)
    with torch.no_grad():
        for parameter in networks.teacher.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert objective(networks, batch()).named["gram"].item() == pytest.approx(0.0, abs=1e-10)
    networks.refresh_gram_teacher()
    assert objective(networks, batch()).named["gram"].item() > 1e-4


@pytest.mark.parametrize("with_registers", [False, True])
def test_gram_aligns_patches_and_no_class_token(with_registers: bool) -> None:
    networks, objective = build(ObjectiveConfig(gram_registers=with_registers))
    inputs = batch()
    student, teacher = networks.student(inputs.global_views), networks.teacher(inputs.global_views)
    aligned = [output.patch_tokens for output in (student, teacher)]
    if with_registers:
        aligned = [torch.cat([o.register_tokens, o.patch_tokens], dim=2) for o in (student, teacher)]
    expected = gram_loss(*aligned).item()
    assert objective(networks, inputs).named["gram"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("teacher_temp", "student_temp"), [(0.04, 0.1), (0.09, 0.1), (0.04, 0.3)])
@pytest.mark.parametrize("center", ["ema", "sinkhorn"])
def test_codes_are_sharpened_by_the_temperatures_that_are_given(
    center: str, teacher_temp: float, student_temp: float
) -> None:
    networks, objective = build(ObjectiveConfig(student_temp=student_temp, center=center))
    inputs = batch()._replace(teacher_temp=teacher_temp)
    logits = networks.teacher(inputs.global_views).logits
    if center == "ema":
        targets = (logits / teacher_temp).softmax(-1)
    else:
        targets = torch.stack([sinkhorn_probabilities(view, teacher_temp) for view in logits])
    guesses = (networks.student(inputs.global_views).logits / student_temp).log_softmax(-1)
    expected = -((targets[0] * guesses[1]).sum(-1).mean() + (targets[1] * guesses[0]).sum(-1).mean()) / 2
    assert objective(networks, inputs).named["dino"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_gain_of_simclr_is_the_infonce_bound() -> None:
    networks, objective = build(ObjectiveConfig(kind="simclr", gram_weight=0, koleo_weight=0))
    terms = objective(networks, batch())
    assert terms.seen.gain.item() == pytest.approx(math.log(7) - terms.named["simclr"].item(), abs=1e-6)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"gram_weight": -1}, "cannot be negative"),
        ({"center_momentum": 1.0}, r"must lie in \[0, 1\)"),
        ({"kind": "mae"}, "set gram_weight and koleo_weight to 0"),
        ({"kind": "simclr", "ibot_weight": 1.0}, "goes with kind 'dino'"),
        ({"student_temp": 0.0}, "above 0"),
        ({"ibot_mask": (0.5, 0.1)}, "lowest and the highest hidden share of patches, got 0.5 and 0.1"),
    ],
)
def test_impossible_objectives_are_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ObjectiveConfig(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(("mae_mask", "shown"), [(0.25, 3), (0.5, 2), (0.75, 1), (0.99, 1)])
def test_a_masked_autoencoder_is_shown_the_stated_share_of_patches(
    mae_mask: float, shown: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks, objective = build(ObjectiveConfig(kind="mae", gram_weight=0, koleo_weight=0, mae_mask=mae_mask))
    backbone, seen = networks.student.backbone, []
    encode = backbone.encode_visible
    monkeypatch.setattr(
        backbone,
        "encode_visible",
        lambda images, keep, *told: seen.append(keep.shape) or encode(images, keep),
    )
    objective(networks, batch())
    assert seen == [(8, shown)]  # of the 2 x 2 patches of 8 images


@pytest.mark.parametrize(("target", "is_trained"), [("patch", False), ("hu", True)])
def test_only_in_hu_does_the_class_token_learn_through_the_decoder(
    target: MaeTarget, is_trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ObjectiveConfig(kind="mae", gram_weight=0, koleo_weight=0, mae_target=target)
    networks, objective = build(config)
    backbone, seen = networks.student.backbone, []
    encode = backbone.encode_visible
    monkeypatch.setattr(backbone, "encode_visible", lambda *given: seen.append(encode(*given)) or seen[0])
    loss = objective(networks, batch()).total
    (gradient,) = torch.autograd.grad(loss, [seen[0].class_token], allow_unused=True)
    assert (gradient is not None and bool(gradient.abs().sum() > 0)) is is_trained
