"""The dictionary against its formula, and what it can and cannot distinguish."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from probes.dictionary import PATCH_PX, Dictionary, Words, dictionary_features, learn_dictionary
from probes.nodule_rays import NoduleRegion, nodule_region
from probes.statistics.metrics import auroc

rng = np.random.default_rng(0)


def textured(n: int, coarse: bool, seed: int) -> np.ndarray:
    """Discs of 12 mm of one mean and spread of HU, with fine or coarse grain."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:60, :60] - 29.5
    inside = np.hypot(rows, columns) <= 12
    slices = np.full((n, 60, 60), -850.0)
    for one in slices:
        grain = gaussian_filter(generator.normal(size=(60, 60)), 2.0 if coarse else 0.5)
        one[inside] = 20.0 + 60.0 * ((grain - grain[inside].mean()) / grain[inside].std())[inside]
    return slices + generator.normal(0, 5, slices.shape)


def region_of(mask: np.ndarray, ring: np.ndarray) -> NoduleRegion:
    ones = np.ones(len(mask))
    return NoduleRegion(mask, ring, ones, ones)


def test_activations_equal_the_formula_patch_by_patch() -> None:
    dictionary = Dictionary(rng.random(36), rng.normal(size=(36, 36)), rng.normal(size=(5, 36)))
    patches = rng.random((7, 36))
    found = dictionary.activations(patches)
    for patch, row in zip(patches, found, strict=True):
        distances = [
            np.linalg.norm((patch - dictionary.mean) @ dictionary.whitening - word)
            for word in dictionary.words
        ]
        np.testing.assert_allclose(row, np.maximum(np.mean(distances) - distances, 0), atol=1e-9)


def test_features_are_pooled_over_patches_whose_middle_lies_in_mask_and_ring() -> None:
    slice_hu = rng.normal(0, 300, (20, 20))
    dictionary = learn_dictionary(slice_hu[None], "patches", 8)
    mask, ring = np.zeros((1, 20, 20), bool), np.zeros((1, 20, 20), bool)
    mask[0, 9:12, 8:10], ring[0, 5, 5] = True, True
    gray = np.clip((slice_hu + 1000) / 2000, 0, 1)

    def at(row: int, column: int) -> np.ndarray:
        patch = gray[row - 2 : row + 4, column - 2 : column + 4]
        return dictionary.activations(patch.reshape(1, -1))[0]

    inside = np.array([at(row, column) for row in (9, 10, 11) for column in (8, 9)])
    expected = np.concatenate([inside.mean(0), inside.max(0), at(5, 5)])
    found = dictionary_features(dictionary, slice_hu[None], region_of(mask, ring))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_whitened_patches_have_no_correlation_and_one_spread() -> None:
    slices = textured(20, True, 0)
    dictionary = learn_dictionary(slices, "random", 4)
    gray = np.clip((slices + 1000) / 2000, 0, 1)
    patches = np.lib.stride_tricks.sliding_window_view(gray, (PATCH_PX, PATCH_PX), (1, 2)).reshape(-1, 36)
    before, after = (
        np.linalg.eigvalsh(np.cov(rows, rowvar=False))[-12:]
        for rows in (patches, (patches - dictionary.mean) @ dictionary.whitening)
    )
    assert before[-1] > 50 * before[0]  # of the twelve largest directions
    assert after[-1] < 3 * after[0]


@pytest.mark.parametrize("words", ["kmeans", "patches", "random"])
def test_texture_of_one_mean_and_spread_is_told_apart_inside_the_nodule(words: Words) -> None:
    slices = np.concatenate([textured(15, True, 1), textured(15, False, 2)])
    labels = np.repeat([0, 1], 15)
    dictionary = learn_dictionary(slices, words, 32)
    features = dictionary_features(dictionary, slices, nodule_region(slices, 0.5))
    assert features.shape == (30, 3 * 32)
    once = np.ones((1, 30))
    areas = [float(auroc(labels, column.astype(float), once)[0]) for column in features.T]
    assert max(max(area, 1 - area) for area in areas) > 0.95


def test_the_same_seed_gives_the_same_dictionary() -> None:
    slices = textured(5, False, 3)
    first, again = (learn_dictionary(slices, "kmeans", 8, seed=4) for _ in range(2))
    np.testing.assert_array_equal(first.words, again.words)
    assert not np.array_equal(first.words, learn_dictionary(slices, "kmeans", 8, seed=5).words)
