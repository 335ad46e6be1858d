import numpy as np
import pytest
import torch

from probes.dense import DenseProbe, cross_fit_dice, dense_table, dice, inter_reader_dice
from probes.splits import patient_folds
from probes.statistics.checks import TooFewError, UnmeasurableError


def discs(n=60, grid=8, patch_px=4, seed=0):
    """Discs anywhere in the field; tokens carry the share of their patch that the disc covers, mixed and noisy."""
    rng = np.random.default_rng(seed)
    size = grid * patch_px
    y, x = np.mgrid[:size, :size]
    center, radius = rng.uniform(0.3, 0.7, (n, 2)) * size, rng.uniform(4, 8, n)
    masks = np.stack([np.hypot(y - cy, x - cx) < r for (cy, cx), r in zip(center, radius, strict=True)])
    share = masks.reshape(n, grid, patch_px, grid, patch_px).mean(axis=(2, 4)).reshape(n, -1, 1)
    tokens = np.concatenate([share, np.zeros((n, grid * grid, 5))], axis=2) + 0.05 * rng.normal(
        size=(n, grid * grid, 6)
    )
    return (tokens @ rng.normal(size=(6, 6))).astype(np.float32), masks, np.arange(n) // 2


def sample_folds(patients, n_folds=3):
    fold = patients % n_folds
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(n_folds)]


def test_dice_is_known_for_known_overlaps():
    a = np.zeros((4, 2, 3), dtype=bool)
    b = a.copy()
    a[0, 0], b[0, 0] = True, True  # equal
    a[1, 0], b[1, 1] = True, True  # apart
    a[2, 0], b[2, 0, :2] = True, True  # 3 against 2 of them: 4 / 5
    assert dice(a, b).tolist() == [1.0, 0.0, 0.8, 1.0]  # two empty masks agree
    with pytest.raises(ValueError, match="one shape"):
        dice(a, b[:2])


def test_readers_are_compared_in_all_pairs():
    one, two, three = np.zeros((3, 1, 4), dtype=bool)
    one[:, :2], two[:, :2], three[:, 1:3] = True, True, True
    found = inter_reader_dice([np.stack([one, two, three]), one[None]])
    assert found[0] == pytest.approx((1.0 + 0.5 + 0.5) / 3)
    assert np.isnan(found[1])


def test_planted_discs_are_found_to_within_a_patch_and_noise_is_not():
    tokens, masks, patients = discs()
    rng = np.random.default_rng(1)
    noise, folds = rng.normal(size=tokens.shape).astype(np.float32), sample_folds(patients)
    rows = {"features": [(tokens, folds)], "pixels": [(noise, folds)]}
    readers = [np.stack([mask, np.roll(mask, 2, axis=1)]) for mask in masks]
    table = dense_table(rows, masks, patients, reader_masks=readers).set_index("row")
    assert table.loc["features", "dice"] > 0.85
    assert table.loc["pixels", "dice"] < 0.5
    assert table.loc["features", "minus_pixels_ci_low"] > 0.3
    assert table.loc["features", "p"] < 0.01
    assert table.loc["inter_reader", "dice"] == pytest.approx(inter_reader_dice(readers).mean())
    assert table.loc["features", "n_nodules"] == 60


def test_the_probe_sees_patches_in_their_order():
    tokens, masks, _ = discs()
    probe = DenseProbe().fit(tokens, masks)
    upright = dice(probe.predict(tokens, masks.shape[1:]), masks).mean()
    transposed = tokens.reshape(60, 8, 8, 6).transpose(0, 2, 1, 3).reshape(60, 64, 6)
    swapped = probe.predict(transposed, masks.shape[1:])
    assert dice(swapped, masks.transpose(0, 2, 1)).mean() == pytest.approx(upright)
    assert dice(swapped, masks).mean() < upright - 0.05


def test_evidence_equals_logistic_regression_on_patches_of_known_share():
    """With all patches in use, the coefficients solve the penalized problem: its gradient is zero."""
    tokens, masks, _ = discs(20)
    probe = DenseProbe(c=0.01).fit(tokens, masks)
    standard = (tokens.reshape(-1, 6).astype(float) - probe.mean_) / probe.scale_
    share = masks.reshape(20, 8, 4, 8, 4).mean(axis=(2, 4)).ravel()
    predicted = 1 / (1 + np.exp(-(standard @ probe.coef_ + probe.intercept_)))
    assert np.abs(standard.T @ (predicted - share) + probe.coef_ / 0.01).max() < 0.01
    assert abs((predicted - share).sum()) < 0.01


def test_tested_nodules_are_out_of_fold_and_others_are_nan():
    tokens, masks, patients = discs(40)
    found = cross_fit_dice(tokens, masks, patients, [(np.arange(20), np.arange(20, 30))], DenseProbe())
    by_hand = DenseProbe().fit(tokens[:20], masks[:20]).predict(tokens[20:30], masks.shape[1:])
    assert found[20:30] == pytest.approx(dice(by_hand, masks[20:30]))
    assert np.isnan(found[:20]).all()
    with pytest.raises(ValueError, match="also trains on"):
        cross_fit_dice(tokens, masks, patients, [(np.arange(21), np.arange(21, 40))], DenseProbe())


@pytest.mark.parametrize(
    ("spoil", "words", "kind"),
    [
        (lambda t, m: (t[:, :63], m), "63 patches do not form a square", ValueError),
        (lambda t, m: (t, m & False), "none of the 60 masks", TooFewError),
        (lambda t, m: (t * np.nan, m), "NaN or infinity", UnmeasurableError),
        (lambda t, m: (t[:5], m), "are needed", ValueError),
    ],
)
def test_what_cannot_be_learned_from_is_refused_in_words(spoil, words, kind):
    tokens, masks, _ = discs()
    with pytest.raises(kind, match=words):
        DenseProbe().fit(*spoil(tokens, masks))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_tensors_serve_as_well_as_arrays(device):
    tokens, masks, patients = discs(30)
    folds = patient_folds(patients.astype(str).tolist(), np.arange(30) // 2 % 2, n_folds=3)
    from_arrays = cross_fit_dice(tokens, masks, patients, folds, DenseProbe())
    on_device = (torch.from_numpy(each).to(device) for each in (tokens, masks))
    from_tensors = cross_fit_dice(*on_device, patients, folds, DenseProbe())
    assert (from_arrays == from_tensors).all()
