"""Directions that views of one nodule share are found, those that turn or change from slice to slice are not."""

import numpy as np
import pytest

from probes.invariance import DIRECTIONS, invariant_directions, invariant_features

N, V, D = 200, 6, 12


@pytest.fixture(name="views")
def _views() -> np.ndarray:
    """Features: the third and the eighth belong to the nodule, the others are twice as loud and only the view's."""
    rng = np.random.default_rng(0)
    views = 2.0 * rng.normal(size=(N, V, D))
    views[:, :, [2, 7]] = rng.normal(size=(N, 1, 2)) + 0.1 * rng.normal(size=(N, V, 2))
    return views


def test_what_views_share_is_found_though_it_varies_least(views: np.ndarray) -> None:
    directions = invariant_directions(views, 2)
    weight = (directions**2).sum(axis=1)
    assert set(np.argsort(weight)[-2:]) == {2, 7}
    assert weight[[2, 7]].sum() > 50 * np.delete(weight, [2, 7]).sum()
    largest = np.linalg.svd(np.cov(views.reshape(-1, D), rowvar=False))[0][:, 0]
    assert largest[2] ** 2 + largest[7] ** 2 < 0.1  # principal components find the loud ones


def test_directions_do_not_depend_on_the_basis(views: np.ndarray) -> None:
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(D, D)))[0]
    plain = views @ invariant_directions(views, 2)
    turned = views @ turn @ invariant_directions(views @ turn, 2)
    np.testing.assert_allclose(np.abs(turned), np.abs(plain), atol=1e-9)


def test_directions_are_the_eigenvectors_that_numpy_finds(views: np.ndarray) -> None:
    middle = views.mean(1)
    within = sum(np.outer(row, row) for row in (views - middle[:, None]).reshape(-1, D)) / (N * V)
    within = within + 0.1 * np.trace(within) / D * np.eye(D)
    values, vectors = np.linalg.eig(np.linalg.inv(within) @ np.cov(middle.T))
    best = vectors[:, np.argmax(values)]
    found = invariant_directions(views, 1)[:, 0]
    assert abs(best @ found) / np.linalg.norm(found) == pytest.approx(1.0, abs=1e-9)


def test_a_quantity_that_turns_is_left_out_and_one_that_stays_is_kept() -> None:
    rng = np.random.default_rng(2)
    triplets = np.repeat(rng.normal(size=(120, 1, 8, 8)), 3, axis=1) + 0.05 * rng.normal(size=(120, 3, 8, 8))
    level, slope = rng.normal(size=120), 3.0 * rng.normal(size=120)
    triplets += level[:, None, None, None] + slope[:, None, None, None] * np.linspace(-1, 1, 8)

    def features_of(slices: np.ndarray) -> np.ndarray:
        mean = slices.mean((1, 2))
        tilt = (slices * np.linspace(-1, 1, 8)).mean((1, 2))
        return np.tile(np.column_stack([mean, tilt]), 3)

    found = invariant_features(features_of, triplets, np.arange(120) < 60)
    assert found.shape == (120, 6)
    assert found.dtype == np.float32
    for first in (0, 2, 4):  # of each third the best direction
        best = found[60:, first]
        assert abs(np.corrcoef(best, level[60:])[0, 1]) > 0.9
        assert abs(np.corrcoef(best, slope[60:])[0, 1]) < 0.3


def test_features_that_never_vary_stay_finite() -> None:
    constant = np.zeros((20, 3, 8, 8))
    found = invariant_features(lambda slices: np.ones((len(slices), 3 * 40)), constant, np.arange(20) < 10)
    assert found.shape == (20, 3 * DIRECTIONS)
    assert np.isfinite(found).all()
