from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.phantom_questions import (
    Question,
    constant_question,
    diameter_question,
    extent_question,
    margin_question,
    order_question,
)


def auroc(question: Question, features: np.ndarray) -> float:
    """Out-of-fold AUROC of a logistic regression, twins in one fold."""
    scores = cross_val_predict(
        make_pipeline(StandardScaler(), LogisticRegression(C=0.03, max_iter=2000)),
        features,
        question.is_positive,
        groups=question.patient_ids,
        cv=GroupKFold(5),
        method="decision_function",
    )
    return float(roc_auc_score(question.is_positive, scores))


def random_features(triplets: np.ndarray) -> np.ndarray:
    """A fixed random convolution, rectified and averaged: what an untrained network sees. (N, 3, Y, X) -> (N, 96)."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 3, 5, 5, generator=generator)
    images = torch.from_numpy((triplets.astype(np.float32) + 600) / 400)
    return torch.relu(torch.conv2d(images, weight / 8)).mean((2, 3)).numpy()


def triplets_of(volume: np.ndarray) -> list[bytes]:
    """The triplets of a volume as bytes, edges replicated."""
    last = len(volume) - 1
    return [
        np.stack([volume[max(z - 1, 0)], volume[z], volume[min(z + 1, last)]]).tobytes()
        for z in range(len(volume))
    ]


def middle_triplet(question: Question) -> np.ndarray:
    middle = question.volumes_hu.shape[1] // 2
    return question.volumes_hu[:, middle - 1 : middle + 2]


QUESTIONS = [diameter_question, margin_question, order_question, extent_question]


@pytest.mark.parametrize("ask", QUESTIONS)
def test_questions_are_seeded_and_every_patient_has_both_classes(ask) -> None:
    question, again, other = ask(6, seed=1), ask(6, seed=1), ask(6, seed=2)
    assert question.volumes_hu.dtype == np.int16
    np.testing.assert_array_equal(question.volumes_hu, again.volumes_hu)
    assert not np.array_equal(question.volumes_hu, other.volumes_hu)
    for patient in set(question.patient_ids):
        assert sorted(question.is_positive[question.patient_ids == patient]) == [False, True]


def test_diameter_is_the_whole_answer_and_vessels_do_not_tell_it() -> None:
    question = diameter_question(80)
    assert roc_auc_score(question.is_positive, question.diameter_mm) == 1.0
    nodule, rest = [], []
    for volume, (_, y, x) in zip(
        question.volumes_hu, question.center_index_zyx.round().astype(int), strict=True
    ):
        middle = volume[4] > -400
        own = middle[y - 6 : y + 7, x - 6 : x + 7].sum()
        nodule.append(own)
        rest.append(middle.sum() - own)
    assert roc_auc_score(question.is_positive, nodule) > 0.97
    assert 0.35 < roc_auc_score(question.is_positive, rest) < 0.65
    assert np.mean(rest) > 4 * np.mean(nodule)


def shell_means(question: Question, volume: np.ndarray) -> np.ndarray:
    """Mean HU over shells of 1 mm around the middle."""
    offsets = [
        (axis - (size - 1) / 2) * step
        for axis, size, step in zip(np.indices(volume.shape), volume.shape, question.spacing_mm, strict=True)
    ]
    shell = np.sqrt(sum(offset**2 for offset in offsets)).astype(int)
    return np.array([volume[shell == radius].mean() for radius in range(12)])


def test_margins_differ_in_shape_and_not_in_brightness() -> None:
    question = margin_question(60)
    profiles = np.array([shell_means(question, volume) for volume in question.volumes_hu.astype(float)])
    difference = profiles[question.is_positive].mean(0) - profiles[~question.is_positive].mean(0)
    assert np.abs(difference).max() < 15, difference  # of 890 HU between nodule and lung
    assert abs(difference[5:10].mean()) < 5


def test_blurring_the_margin_takes_the_answer_away() -> None:
    sharp, blurred = margin_question(120), margin_question(120, is_blurred=True)
    negative = ~sharp.is_positive
    np.testing.assert_array_equal(sharp.volumes_hu[negative], blurred.volumes_hu[negative])
    np.testing.assert_array_equal(sharp.diameter_mm, blurred.diameter_mm)
    assert 0.35 < roc_auc_score(sharp.is_positive, sharp.diameter_mm) < 0.65
    assert auroc(sharp, random_features(middle_triplet(sharp))) > 0.8
    assert 0.35 < auroc(blurred, random_features(middle_triplet(blurred))) < 0.65


def test_order_leaves_the_multiset_of_triplets_and_the_middle_one_alone() -> None:
    question = order_question(20)
    for first in range(0, 20, 2):
        positive, negative = question.volumes_hu[first], question.volumes_hu[first + 1]
        assert not np.array_equal(positive, negative)
        assert Counter(triplets_of(positive)) == Counter(triplets_of(negative))
        assert triplets_of(positive)[12] == triplets_of(negative)[12]
        assert len(set(triplets_of(positive))) > 8


def test_the_two_signs_are_apart_and_each_is_symmetric_in_z() -> None:
    question = order_question(4)
    for volume in question.volumes_hu:
        background = volume[12]
        differs = np.flatnonzero((volume != background).any(axis=(1, 2)))
        np.testing.assert_array_equal(differs, [4, 5, 6, 7, 8, 16, 17, 18, 19, 20])
        assert (16 - 8) * question.spacing_mm[0] >= 10
        for sign in (volume[4:9], volume[16:21]):
            np.testing.assert_array_equal(sign, sign[::-1])
    solid, hollow = question.volumes_hu[0][6], question.volumes_hu[0][18]
    assert (solid > -200).sum() > 1.3 * (hollow > -200).sum()


def test_order_is_answered_by_who_knows_position() -> None:
    question = order_question(80)
    lower, upper = (random_features(question.volumes_hu[:, z - 1 : z + 2]) for z in (6, 18))
    assert auroc(question, lower - upper) > 0.95
    slices = np.stack([random_features(question.volumes_hu[:, z - 1 : z + 2]) for z in range(1, 24)])
    assert auroc(question, slices.mean(0)) < 0.6
    assert auroc(question, slices.max(0)) < 0.6


def test_extent_is_answered_by_the_mean_over_z_and_not_by_the_middle() -> None:
    question = extent_question(80)
    np.testing.assert_array_equal(
        middle_triplet(question)[question.is_positive], middle_triplet(question)[~question.is_positive]
    )
    slices = np.stack([random_features(question.volumes_hu[:, z - 1 : z + 2]) for z in range(1, 16)])
    assert auroc(question, slices.mean(0)) > 0.95
    assert auroc(question, slices[7]) == 0.5


def test_constant_volumes_say_nothing() -> None:
    question = constant_question(20)
    assert np.unique(question.volumes_hu).tolist() == [-850]
    assert question.is_positive.sum() == 10


@pytest.mark.parametrize("n", [0, 3])
def test_a_question_without_pairs_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match="even number"):
        margin_question(n)
