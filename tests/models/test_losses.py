"""Each loss against a naive loop written from its formula."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from models.config import MaskShape
from models.losses.dino import dino_loss, sinkhorn_probabilities, teacher_probabilities
from models.losses.gram import gram_loss
from models.losses.ibot import draw_mask, hidden_patches, ibot_loss
from models.losses.koleo import koleo_loss
from models.losses.mae import mae_gain, mae_loss, mae_target, patchify
from models.losses.simclr import nt_xent_loss


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize(
    ("n_student", "teacher_temp", "student_temp"),
    [(2, 0.04, 0.1), (3, 0.04, 0.1), (6, 0.04, 0.1), (2, 0.07, 0.1), (2, 0.04, 0.3)],
)
def test_dino_equals_a_loop_over_pairs_of_views(
    rng: torch.Generator, n_student: int, teacher_temp: float, student_temp: float
) -> None:
    student = torch.randn(n_student, 5, 7, generator=rng, dtype=torch.float64)
    logits = torch.randn(2, 5, 7, generator=rng, dtype=torch.float64)
    center = torch.randn(7, generator=rng, dtype=torch.float64)
    terms = []
    for t in range(2):
        for s in range(n_student):
            if s == t:
                continue
            for b in range(5):
                p = torch.softmax((logits[t, b] - center) / teacher_temp, dim=0)
                q = torch.softmax(student[s, b] / student_temp, dim=0)
                terms.append(-(p * q.log()).sum())
    found = dino_loss(student, teacher_probabilities(logits, center, teacher_temp), student_temp)
    assert found.item() == pytest.approx(torch.stack(terms).mean().item(), abs=1e-12)


@pytest.mark.parametrize("batch", [4, 64])
def test_dino_of_a_silent_pair_is_the_entropy_wall(batch: int) -> None:
    silent = torch.zeros(2, batch, 8192)
    loss = dino_loss(silent, teacher_probabilities(silent, torch.zeros(8192), 0.04), 0.1)
    assert loss.item() == pytest.approx(math.log(8192), abs=1e-5)


def test_dino_is_no_coarser_under_autocast(rng: torch.Generator) -> None:
    student = torch.randn(4, 16, 512, generator=rng)
    targets = teacher_probabilities(torch.randn(2, 16, 512, generator=rng), torch.zeros(512), 0.04)
    plain = dino_loss(student, targets, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert dino_loss(student, targets, 0.1).item() == plain.item()
    wide = dino_loss(student.double(), targets.double(), 0.1)
    assert plain.item() == pytest.approx(wide.item(), rel=1e-6)


def test_dino_refuses_a_single_view() -> None:
    one = torch.zeros(1, 4, 8)
    with pytest.raises(ValueError, match="different views"):
        dino_loss(one, teacher_probabilities(one, torch.zeros(8), 0.04), 0.1)


def test_sinkhorn_shares_prototypes_evenly(rng: torch.Generator) -> None:
    probs = sinkhorn_probabilities(torch.randn(64, 16, generator=rng), 0.5, iterations=50)
    assert torch.allclose(probs.sum(1), torch.ones(64), atol=1e-5)
    assert torch.allclose(probs.sum(0), torch.full((16,), 4.0), atol=1e-2)


def test_sinkhorn_equals_the_plain_normalizations_and_loses_no_row(rng: torch.Generator) -> None:
    logits = torch.randn(8, 16, generator=rng)
    logits[3] -= 20  # exp(-20 / 0.04) is no float32
    plan = torch.exp(logits.double() / 0.04)
    for _ in range(3):
        plan = plan / plan.sum(dim=0, keepdim=True)
        plan = plan / plan.sum(dim=1, keepdim=True)
    assert torch.allclose(sinkhorn_probabilities(logits, 0.04).double(), plan, atol=1e-4)


def test_gram_equals_a_loop_over_pairs_of_patches(rng: torch.Generator) -> None:
    student = torch.randn(2, 3, 4, 6, generator=rng, dtype=torch.float64)
    teacher = torch.randn(2, 3, 4, 6, generator=rng, dtype=torch.float64)
    total, count = 0.0, 0
    for v in range(2):
        for b in range(3):
            for i in range(4):
                for j in range(4):
                    s = F.cosine_similarity(student[v, b, i], student[v, b, j], dim=0)
                    t = F.cosine_similarity(teacher[v, b, i], teacher[v, b, j], dim=0)
                    total, count = total + (s - t).item() ** 2, count + 1
    assert gram_loss(student, teacher).item() == pytest.approx(total / count, abs=1e-12)


def test_gram_sends_no_gradient_to_the_teacher(rng: torch.Generator) -> None:
    student = torch.randn(2, 4, 6, generator=rng, requires_grad=True)
    teacher = torch.randn(2, 4, 6, generator=rng, requires_grad=True)
    gram_loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_koleo_of_opposite_points_is_minus_log_two() -> None:
    assert koleo_loss(torch.tensor([[3.0, 0.0], [-5.0, 0.0]])).item() == pytest.approx(-math.log(2), abs=1e-6)


def test_koleo_equals_a_loop_over_neighbors(rng: torch.Generator) -> None:
    points = torch.randn(9, 5, generator=rng, dtype=torch.float64)
    unit = [p / p.norm() for p in points]
    nearest = [min((a - b).norm().item() for j, b in enumerate(unit) if j != i) for i, a in enumerate(unit)]
    assert koleo_loss(points).item() == pytest.approx(-np.log(nearest).mean(), abs=1e-6)


def test_duplicates_stay_finite() -> None:
    same = torch.ones(4, 3, requires_grad=True)
    loss = koleo_loss(same)
    loss.backward()
    assert torch.isfinite(loss)
    assert same.grad is not None
    assert torch.isfinite(same.grad).all()


def test_koleo_refuses_a_lonely_embedding() -> None:
    with pytest.raises(ValueError, match="2 or more"):
        koleo_loss(torch.zeros(1, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_simclr_equals_a_loop_at_every_precision(rng: torch.Generator, dtype: torch.dtype) -> None:
    embeddings = torch.randn(2, 4, 6, generator=rng).to(dtype)
    unit = F.normalize(embeddings.double().flatten(0, 1), dim=-1)
    terms = []
    for i in range(8):
        logits = torch.stack([unit[i] @ unit[j] / 0.1 for j in range(8) if j != i])
        partner = unit[i] @ unit[(i + 4) % 8] / 0.1
        terms.append(-(partner - torch.logsumexp(logits, 0)))
    found = nt_xent_loss(embeddings, 0.1)
    assert found.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)


def test_simclr_of_equal_embeddings_is_log_of_the_others() -> None:
    assert nt_xent_loss(torch.ones(2, 5, 3), 0.1).item() == pytest.approx(math.log(9), abs=1e-5)


def test_ibot_equals_a_loop_over_hidden_patches(rng: torch.Generator) -> None:
    student = torch.randn(3, 6, 5, generator=rng, dtype=torch.float64)
    probs = torch.softmax(torch.randn(3, 6, 5, generator=rng, dtype=torch.float64), -1)
    mask = torch.zeros(3, 6, dtype=torch.bool)
    mask[0, :2] = True
    mask[2, 4] = True
    images = []
    for i in (0, 2):
        patches = [
            -(probs[i, n] * torch.log_softmax(student[i, n] / 0.1, 0)).sum() for n in range(6) if mask[i, n]
        ]
        images.append(torch.stack(patches).mean())
    hidden = hidden_patches(mask.numpy()[None], student.device)
    found = ibot_loss(hidden.choose(student[None]), hidden.choose(probs[None]), hidden.divisor, 0.1)
    assert found.item() == pytest.approx(torch.stack(images).mean().item(), abs=1e-12)


def test_ibot_of_nothing_hidden_is_zero_and_has_a_gradient() -> None:
    tokens = torch.randn(1, 2, 6, 5, requires_grad=True)
    hidden = hidden_patches(np.zeros((1, 2, 6), dtype=bool), tokens.device)
    loss = ibot_loss(hidden.choose(tokens), hidden.choose(tokens.detach()), hidden.divisor, 0.1)
    loss.backward()
    assert loss.item() == 0
    assert not tokens.grad.any()


def test_masks_hide_their_share_of_every_other_image() -> None:
    mask = draw_mask((2, 8, 100), (0.1, 0.5), np.random.default_rng(0))
    hidden = mask.reshape(16, 100).sum(1)
    assert ((hidden[::2] >= 10) & (hidden[::2] <= 50)).all()
    assert (hidden[1::2] == 0).all()


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_blocks_hide_the_same_number_of_patches_with_far_fewer_edges(share: float) -> None:
    def edges_of(kind: MaskShape) -> tuple[np.ndarray, float]:
        mask = draw_mask((2, 32, 144), (share, share), np.random.default_rng(0), kind)
        grid = mask.reshape(-1, 12, 12)[::2].astype(int)
        return mask.reshape(64, 144).sum(1), float(
            sum(np.abs(np.diff(grid, axis=axis)).sum() for axis in (1, 2))
        )

    counts, edges = edges_of("blocks")
    expected, at_random = edges_of("random")
    np.testing.assert_array_equal(counts, expected)
    assert edges < 0.6 * at_random


def test_a_block_reaches_every_place_of_the_grid() -> None:
    mask = draw_mask((2, 400, 36), (0.3, 0.3), np.random.default_rng(1), "blocks")
    often = mask.reshape(-1, 36)[::2].mean(0)
    assert often.min() > 0.1
    assert (
        often.max() < 0.5
    )  # BEiT's blocks lie inside the grid, so its middle is hidden more often than its edge.


def test_mae_of_the_truth_is_zero_and_gain_counts_from_the_mean_of_each_patch(rng: torch.Generator) -> None:
    images = torch.rand(2, 3, 8, 8, generator=rng)
    images[0, :, :4, :4] = 0.0  # Clipped by a window: a constant patch, whose mean is the truth.
    mask = torch.ones(2, 4, dtype=torch.bool)
    for kind in ("patch", "hu"):
        target = mae_target(images, 4, kind)
        truth, mean = mae_loss(target, target, mask), mae_loss(target.mean(-1, keepdim=True), target, mask)
        assert truth.item() == 0.0
        assert mae_gain(truth, target, mask).item() == 1.0
        assert mae_gain(mean, target, mask).item() == pytest.approx(0.0, abs=1e-6)
        assert mae_gain(mean / 2, target, mask).item() == pytest.approx(0.5, abs=1e-6)
    flat = torch.zeros(1, 4, 48)
    assert mae_gain(mae_loss(flat, flat, mask[:1]), flat, mask[:1]).item() == 0.0


def test_a_normalized_patch_has_lost_its_hu_and_the_other_target_keeps_them(rng: torch.Generator) -> None:
    images = torch.rand(2, 3, 8, 8, generator=rng)
    for kind, shift in (("patch", 0.0), ("hu", 0.25)):
        moved = mae_target(images + 0.25, 4, kind) - mae_target(images, 4, kind)
        torch.testing.assert_close(moved, torch.full_like(moved, shift), atol=1e-4, rtol=0)
    patch = mae_target(images, 4, "patch")
    torch.testing.assert_close(patch.var(-1), torch.ones(2, 4), atol=1e-3, rtol=0)


def test_patches_are_cut_rows_first() -> None:
    images = torch.arange(16.0).view(1, 1, 4, 4).expand(1, 3, 4, 4)
    assert patchify(images, 2)[0, 1, :4].tolist() == [2.0, 3.0, 6.0, 7.0]
