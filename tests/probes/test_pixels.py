"""What pixels know, and that constant pixels know nothing."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from probes.nodule_rays import image_diameter_mm
from probes.pixels import PixelProbe, pixel_features, pixel_scores
from probes.splits import Splits, patient_folds
from probes.statistics.metrics import auroc_with_interval


def nodules(n: int = 240, seed: int = 0) -> tuple[np.ndarray, np.ndarray, Splits]:
    """Noisy crops with a disc in the middle, larger where malignant; patients of uneven size."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.35).astype(int)
    radius_px = rng.normal(3 + 2 * labels, 1.0).clip(1, 7)
    y, x = np.mgrid[:16, :16] - 7.5
    discs = np.hypot(y, x) <= radius_px[:, None, None]
    crops = np.where(discs, 0, -850)[:, None] + rng.normal(0, 60, (n, 3, 16, 16))
    patients = [f"p{min(i, rng.integers(n)) // 2}" for i in range(n)]
    return (
        crops.astype(np.float32),
        labels,
        patient_folds(patients, labels, n_repeats=2),
    )


def auroc_of(scores: np.ndarray, labels: np.ndarray, splits: Splits) -> float:
    return auroc_with_interval(labels, scores, splits.patient_ids, 50).value


def test_pixels_find_what_is_planted_and_nothing_in_shuffled_labels() -> None:
    crops, labels, splits = nodules()
    assert auroc_of(pixel_scores(crops, labels, splits), labels, splits) > 0.85
    shuffled = np.random.default_rng(1).permutation(labels)
    assert auroc_of(pixel_scores(crops, shuffled, splits), shuffled, splits) == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("value_hu", [-850.0, 0.0, -1024.0])
def test_constant_images_score_exactly_one_half(value_hu: float) -> None:
    crops, labels, splits = nodules()
    scores = pixel_scores(np.full_like(crops, value_hu), labels, splits)
    assert auroc_of(scores, labels, splits) == 0.5


def test_features_are_gray_values_of_the_lung_window() -> None:
    crops = np.array([-1350.0, -600.0, 150.0, 3000.0], dtype=np.float32).reshape(1, 1, 2, 2)
    assert pixel_features(crops).tolist() == [[0.0, 0.5, 1.0, 1.0]]


def test_components_are_those_of_scikit_learn() -> None:
    crops, labels, splits = nodules(n=90)
    features = pixel_features(crops).astype(np.float64)
    probe = PixelProbe(n_components=12).fit(features, labels, splits.patient_ids)
    expected = PCA(12, svd_solver="full").fit(features)
    np.testing.assert_allclose(np.abs(probe.components_ @ expected.components_.T), np.eye(12), atol=1e-6)
    np.testing.assert_allclose(probe.mean_, expected.mean_, atol=1e-12)


def test_no_more_components_are_kept_than_the_pixels_have() -> None:
    rng = np.random.default_rng(0)
    features = np.outer(rng.normal(size=40), rng.random(9)) + np.outer(rng.normal(size=40), rng.random(9))
    labels = np.arange(40) % 2
    probe = PixelProbe(60).fit(features, labels, np.arange(40))
    assert probe.components_.shape == (2, 9)


def disc(diameter_mm: float, mm_per_px: float = 0.5, n_px: int = 100, tissue_hu: float = 0.0) -> np.ndarray:
    y, x = (np.mgrid[:n_px, :n_px] - (n_px - 1) / 2) * mm_per_px
    inside = np.clip(0.5 + (diameter_mm / 2 - np.hypot(y, x)) / mm_per_px, 0, 1)
    return -850 + (tissue_hu + 850) * inside


@pytest.mark.parametrize("diameter_mm", [4.0, 7.0, 10.0, 25.0])
@pytest.mark.parametrize("tissue_hu", [40.0, -350.0])
def test_the_diameter_of_a_disc_is_measured_within_a_pixel(diameter_mm: float, tissue_hu: float) -> None:
    found = image_diameter_mm(disc(diameter_mm, tissue_hu=tissue_hu)[None], 0.5)
    assert found == pytest.approx([diameter_mm], abs=0.5)


def test_a_vessel_or_the_pleura_beside_a_nodule_hardly_changes_its_diameter() -> None:
    crop = disc(10.0)
    crop[:, 58:] = 40.0  # pleura, touching
    crop[48:52, :50] = 40.0  # a vessel that enters from the other side
    assert image_diameter_mm(crop[None], 0.5) == pytest.approx([10.0], abs=1.0)


def test_where_no_edge_is_the_diameter_ends_at_the_crop() -> None:
    assert image_diameter_mm(np.zeros((1, 40, 40)), 0.5)[0] == pytest.approx(19.5, abs=0.6)
