"""Objectives on cubes: those of triplets where a cube is one layer of three slices, and what several layers add."""

import dataclasses

import numpy as np
import pytest
import torch

from models.backbone import build_backbone
from models.config import BackboneConfig, HeadConfig, ObjectiveConfig
from models.inflation import inflated_state
from models.loading import load_weights
from models.losses.ibot import draw_mask
from models.losses.mae import mae_target, patchify
from models.losses.objective import Batch, Objective, Terms
from models.student_teacher import Network, ProjectionHead, StudentTeacher, central_mean

FLAT = BackboneConfig(arch="custom", depth=2, embed_dim=32, heads=2, patch_px=7, image_px=28)
DEEP = dataclasses.replace(FLAT, image_depth_px=12, patch_depth_px=3)
CASES = {
    "article": ObjectiveConfig(),
    "blocks, Sinkhorn": ObjectiveConfig(ibot_weight=1.0, ibot_mask_shape="blocks", center="sinkhorn"),
    "simclr in the middle": ObjectiveConfig(kind="simclr", pool="roi"),
    "mae in HU": ObjectiveConfig(kind="mae", mae_target="hu", gram_weight=0, koleo_weight=0),
    "mae": ObjectiveConfig(kind="mae", gram_weight=0, koleo_weight=0),
}


def terms_of(config: BackboneConfig, objective: ObjectiveConfig, depth: int, local: bool = True) -> Terms:
    """Of the same weights and views, as triplets or as cubes (depth > 0) whose first layer holds them."""
    torch.manual_seed(0)
    flat = build_backbone(FLAT)
    flat.mean, flat.std = (0.4,) * 3, (0.2,) * 3
    torch.manual_seed(1)
    backbone = flat
    if depth:
        backbone = build_backbone(config)
        backbone.mean, backbone.std = (0.4,), (0.2,)
        load_weights(backbone, inflated_state(backbone, flat, "centered", "a test")[0], "a test")
    torch.manual_seed(2)
    head = ProjectionHead(32, HeadConfig(prototypes=16))
    networks = StudentTeacher(Network(backbone, head, objective.pool))
    whole = Objective(objective, networks.student, 16)
    torch.manual_seed(3)
    views, near = torch.randn(2, 4, 3, 28, 28), torch.randn(2, 4, 3, 14, 14)
    if depth:
        views = views[:, :, None].repeat(1, 1, 1, depth // 3, 1, 1)
        near = near[:, :, None].repeat(1, 1, 1, depth // 3, 1, 1)
    given = Batch(views, near if local else None, 0.04, np.random.default_rng(0))
    terms: Terms = whole(networks, given)
    terms.total.backward()
    return terms


@pytest.mark.parametrize("case", CASES)
def test_a_cube_of_one_layer_of_three_slices_has_the_losses_of_the_triplet(case: str) -> None:
    objective = CASES[case]
    one_layer = dataclasses.replace(FLAT, image_depth_px=3, patch_depth_px=3)
    local = objective.kind == "dino"
    flat, cube = (terms_of(one_layer, objective, depth, local) for depth in (0, 3))
    assert flat.named.keys() == cube.named.keys()
    for name, term in flat.named.items():
        torch.testing.assert_close(cube.named[name], term, atol=1e-5, rtol=1e-5, msg=f"{case}: {name}")


@pytest.mark.parametrize("case", ["article", "simclr in the middle"])
def test_inflated_weights_have_the_losses_of_the_triplets_on_cubes_that_repeat_them(case: str) -> None:
    inflated = dataclasses.replace(DEEP, inflated=True)
    flat, deep = (terms_of(inflated, CASES[case], depth, case == "article") for depth in (0, 12))
    for name, term in flat.named.items():
        torch.testing.assert_close(deep.named[name], term, atol=1e-5, rtol=1e-5, msg=f"{case}: {name}")


@pytest.mark.parametrize("case", CASES)
def test_every_objective_trains_the_positions_along_z(case: str) -> None:
    torch.manual_seed(0)
    networks = StudentTeacher(
        Network(build_backbone(DEEP), ProjectionHead(32, HeadConfig(prototypes=16)), CASES[case].pool)
    )
    objective = Objective(CASES[case], networks.student, 16)
    views = torch.randn(2, 4, 1, 12, 28, 28)
    terms: Terms = objective(networks, Batch(views, None, 0.04, np.random.default_rng(0)))
    terms.total.backward()
    gradient = networks.student.backbone.vit.patch_embed.z_pos_embed.grad
    assert torch.isfinite(terms.total)
    assert (gradient.abs().amax(-1) > 0).all()


def test_the_spacing_of_views_reaches_student_teacher_and_local_views() -> None:
    torch.manual_seed(0)
    backbone = build_backbone(dataclasses.replace(DEEP, spacing="tokens"))
    networks = StudentTeacher(Network(backbone, ProjectionHead(32, HeadConfig(prototypes=16))))
    objective = Objective(ObjectiveConfig(), networks.student, 16)
    views, local = torch.randn(2, 4, 1, 12, 28, 28), torch.randn(2, 4, 1, 6, 14, 14)

    def total(spacing_mm: torch.Tensor, local_mm: torch.Tensor) -> float:
        given = Batch(views, local, 0.04, np.random.default_rng(0), spacing_mm, local_mm)
        return objective(networks, given).total.item()

    ones = torch.ones(2, 4, 3)
    base = total(ones, ones)
    assert total(2 * ones, ones) != base
    assert total(ones, 2 * ones) != base
    assert total(ones, ones) == base


def test_patches_of_a_cube_are_cut_layers_first_and_their_own_mean_is_removed() -> None:
    cube = torch.arange(4 * 4 * 4.0).view(1, 1, 4, 4, 4)
    patches = patchify(cube, 2, 2)
    assert patches.shape == (1, 8, 8)
    assert patches[0, 1].tolist() == [2.0, 3.0, 6.0, 7.0, 18.0, 19.0, 22.0, 23.0]
    assert patches[0, 4, 0].item() == 32.0
    assert mae_target(cube, 2, "hu", 2).equal(patches)
    torch.testing.assert_close(mae_target(cube, 2, "patch", 2).mean(-1), torch.zeros(1, 8), atol=1e-6, rtol=0)


def test_boxes_hide_their_share_with_few_edges_along_every_axis_and_reach_every_place() -> None:
    def masks(kind: str) -> np.ndarray:
        rng = np.random.default_rng(0)
        mask = draw_mask((2, 200, 6 * 8 * 8), (0.3, 0.3), rng, kind, (6, 8, 8))  # type: ignore[arg-type]
        assert (mask.reshape(400, -1)[::2].sum(1) == round(0.3 * 384)).all()
        return mask.reshape(400, 6, 8, 8)[::2].astype(int)

    boxes, scattered = masks("blocks"), masks("random")
    for axis in (1, 2, 3):
        edges = [np.abs(np.diff(one, axis=axis)).sum() for one in (boxes, scattered)]
        assert edges[0] < 0.6 * edges[1]
    often = boxes.mean(0)
    assert often.min() > 0.02  # Boxes lie inside the grid, so its corners are hidden least.
    assert often.max() < 0.7


def test_the_middle_of_a_cube_is_a_gaussian_along_every_axis() -> None:
    tokens = torch.eye(4 * 8 * 8)[None]
    weights = central_mean(tokens, (4, 8, 8))[0].view(4, 8, 8)
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    # One SD is half a layer of four along z and one of eight patches in the plane.
    for at, far, near in (((3, 4, 4), 3.0, 1.0), ((2, 5, 4), 1.5, 0.5)):
        assert (weights[at] / weights[2, 4, 4]).item() == pytest.approx(np.exp((near**2 - far**2) / 2))
