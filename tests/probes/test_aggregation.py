import numpy as np
import pytest
import torch

from probes.aggregation import AggregationPart, AggregatorProbe, SliceTokens, compare_aggregators
from probes.heads.fitting import FitSettings
from probes.splits import patient_folds
from probes.statistics.checks import TooFewError

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
QUICK = FitSettings(lr=3e-3, max_epochs=60, patience=12, batch_size=32)


def two_signs_in_order(n=200, n_slices=9, n_features=12, seed=0):
    """Sign A 10 mm above the center and sign B 10 mm below, or the other way round: the class is their order.

    Slices are 2.5 mm apart. A nodule of class 1 is the mirror along z of one of class 0: the same slices in another
    order, with the same slice in the center.
    """
    rng = np.random.default_rng(seed)
    tokens = np.repeat(rng.normal(0, 1.0, (n, 1, n_features)), n_slices, axis=1)
    tokens += rng.normal(0, 0.1, tokens.shape)
    tokens[:, 0, 0] += 3.0
    tokens[:, -1, 1] += 3.0
    labels = np.arange(n) % 2
    tokens[labels == 1] = tokens[labels == 1, ::-1]
    position = np.broadcast_to((np.arange(n_slices) - n_slices // 2) * 2.5, (n, n_slices)).copy()
    mask = np.ones((n, n_slices), dtype=bool)
    slices = SliceTokens(*(torch.from_numpy(part) for part in (tokens.astype(np.float32), position, mask)))
    return slices, labels, np.arange(n) // 2


def extent_along_z(n=200, n_slices=9, seed=0):
    """The class is how many slices carry the sign; the center always does."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    distance = np.abs(np.arange(n_slices) - n_slices // 2)
    carries = distance[None] <= np.where(labels == 1, 3, 1)[:, None]
    tokens = rng.normal(0, 0.5, (n, n_slices, 6)).astype(np.float32)
    tokens[..., 0] += 2 * carries
    position = torch.from_numpy(np.broadcast_to((np.arange(n_slices) - 4) * 2.5, (n, n_slices)).copy())
    mask = torch.ones(n, n_slices, dtype=torch.bool)
    return SliceTokens(torch.from_numpy(tokens), position, mask), labels, np.arange(n) // 2


@pytest.mark.parametrize("device", DEVICES)
def test_only_an_aggregator_that_knows_places_tells_the_order_of_two_signs(device):
    slices, labels, patients = two_signs_in_order()
    folds = patient_folds(patients.astype(str).tolist(), labels, n_folds=3)
    table = compare_aggregators(
        [AggregationPart(slices, folds)], labels, patients, settings=QUICK, device=device
    )
    table = table.set_index("aggregator")
    for blind in ("center", "mean", "max", "center3_mean", "center3_max"):
        assert table.loc[blind, "auroc"] < 0.6
    assert table.loc["attention_z", "auroc"] > 0.85
    assert table.loc["attention_z", "p_holm"] < 0.05
    assert table.loc["attention_z", "minus_center_ci_low"] > 0
    assert np.isnan(table.loc["center", "p"])
    # The same network sees nothing of the order in the center slice: the neighbors carry the answer.
    assert table.loc["attention_center", "auroc"] < 0.6
    assert table.loc["attention_z", "minus_own_center_ci_low"] > 0.2
    assert table.loc["attention_z", "own_center_p"] < 0.05
    assert np.isnan(table.loc["attention_center", ["p", "p_holm"]].astype(float)).all()


def two_features_that_agree(n=240, n_slices=5, seed=0):
    """The class is whether two features of the center slice have one sign; every neighbor is a copy of it."""
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1.0, 1.0], (n, 2))
    tokens = np.repeat((signs + rng.normal(0, 0.3, (n, 2)))[:, None], n_slices, axis=1)
    position = np.broadcast_to((np.arange(n_slices) - n_slices // 2) * 2.5, (n, n_slices)).copy()
    parts = tokens.astype(np.float32), position, np.ones((n, n_slices), dtype=bool)
    labels = (signs[:, 0] == signs[:, 1]).astype(int)
    return SliceTokens(*map(torch.from_numpy, parts)), labels, np.arange(n) // 2


def test_what_another_classifier_gains_is_not_taken_for_what_neighbors_carry():
    slices, labels, patients = two_features_that_agree()
    folds = patient_folds(patients.astype(str).tolist(), labels, n_folds=3)
    table = compare_aggregators(
        [AggregationPart(slices, folds)], labels, patients, names=["attention_z"], settings=QUICK
    )
    table = table.set_index("aggregator")
    assert list(table.index) == ["center", "attention_z", "attention_center"]
    # A linear probe cannot read that two signs agree, a network can: against it, attention seems to gain by slices.
    assert table.loc["attention_z", "minus_center_ci_low"] > 0.15
    assert abs(table.loc["attention_z", "minus_own_center"]) < 0.05


def test_neighbors_of_noise_add_nothing_to_the_center():
    rng = np.random.default_rng(3)
    labels, patients = rng.integers(0, 2, 240), np.arange(240) // 2
    tokens = rng.normal(0, 1.0, (240, 5, 6)).astype(np.float32)
    tokens[:, 2, 0] += 2 * labels
    position = torch.from_numpy(np.broadcast_to((np.arange(5) - 2) * 2.5, (240, 5)).copy())
    slices = SliceTokens(torch.from_numpy(tokens), position, torch.ones(240, 5, dtype=torch.bool))
    folds = patient_folds(patients.astype(str).tolist(), labels, n_folds=3)
    table = compare_aggregators(
        [AggregationPart(slices, folds)], labels, patients, names=["attention_z"], settings=QUICK
    )
    table = table.set_index("aggregator")
    assert table.loc["attention_center", "auroc"] > 0.8
    assert table.loc["attention_z", "minus_own_center"] < 0.02


def test_the_center_alone_is_the_slice_that_the_center_takes():
    slices, _, _ = two_signs_in_order(6, n_slices=4)
    mask = slices.mask.clone()
    mask[0, 2:] = False  # the nearest slice of the first nodule is the second
    center = SliceTokens(slices.tokens, slices.position_mm + 0.2, mask).center()
    assert center.tokens.shape == (6, 1, 12)
    assert center.position_mm[0].item() == pytest.approx(slices.position_mm[0, 1].item() + 0.2)
    assert center.position_mm[1].item() == pytest.approx(0.2)
    assert torch.equal(center.tokens[0, 0], slices.tokens[0, 1])
    assert torch.equal(center.tokens[1, 0], slices.tokens[1, 2])
    assert center.mask.all()


def test_the_extent_along_z_is_seen_by_the_mean_and_not_by_the_center():
    slices, labels, patients = extent_along_z()
    folds = patient_folds(patients.astype(str).tolist(), labels, n_folds=3)
    table = compare_aggregators([AggregationPart(slices, folds)], labels, patients, names=["mean"]).set_index(
        "aggregator"
    )
    assert table.loc["mean", "auroc"] > 0.9
    assert table.loc["center", "auroc"] < 0.62
    assert list(table.index) == ["center", "mean"]


def test_three_planes_join_the_same_table():
    slices, labels, patients = extent_along_z(160)
    rng = np.random.default_rng(1)
    planes = rng.normal(size=(160, 3, 6)).astype(np.float32)
    planes[:, 2, 0] += 3 * labels  # only the sagittal view is informative
    triplets = SliceTokens(
        torch.from_numpy(planes), torch.zeros(160, 3), torch.ones(160, 3, dtype=torch.bool)
    )
    folds = patient_folds(patients.astype(str).tolist(), labels, n_folds=3)
    part = AggregationPart(slices, folds, triplets)
    table = compare_aggregators([part], labels, patients, names=["center"], settings=QUICK)
    assert table.set_index("aggregator").loc["planes", "auroc"] > 0.8


def test_shapes_and_names_that_do_not_fit_are_refused_in_words():
    slices, labels, patients = extent_along_z(40)
    with pytest.raises(ValueError, match="slice tokens must be"):
        SliceTokens(slices.tokens, slices.position_mm[:, :3], slices.mask)
    with pytest.raises(ValueError, match="1 nodules have no real slice"):
        SliceTokens(slices.tokens, slices.position_mm, slices.mask & (torch.arange(40) != 7)[:, None])
    folds = patient_folds(patients.astype(str).tolist(), labels, n_folds=3)
    with pytest.raises(ValueError, match="aggregator 'median' does not exist"):
        compare_aggregators([AggregationPart(slices, folds)], labels, patients, names=["median"])
    with pytest.raises(TooFewError, match="labels are positive"):
        AggregatorProbe("attention_z").fit(slices, np.ones(40), patients)
