"""Small labeled volumes whose answer is known before any probe is asked: one sign each, and nothing else.

A probe that finds a sign where there is none leaks; a probe that misses one that is there is blind. Every patient has
two volumes, one of either class, so patient-grouped folds are balanced and twins never face each other across a split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pipelines.phantom.shapes import (
    Array,
    Box,
    Grid,
    capsule_coverage,
    edge_coverage,
    paint_brighter,
    sphere_coverage,
)

LUNG_HU, NODULE_HU, NOISE_HU = -850.0, 40.0, 15.0


def paint(volume_hu: Array, box: Box, coverage: Array, value_hu: float) -> None:
    """Move the voxels of a box toward `value_hu` by their covered fraction, in place."""
    view = volume_hu[box]
    view += coverage * (np.float32(value_hu) - view)


@dataclass(frozen=True, slots=True)
class Question:
    """Labeled volumes around one nodule each."""

    volumes_hu: NDArray[np.int16]
    """(N, Z, Y, X), z toward the head."""
    spacing_mm: tuple[float, float, float]
    is_positive: NDArray[np.bool_]
    """(N,); one of the two volumes of every patient."""
    patient_ids: NDArray[np.str_]
    """(N,)."""
    diameter_mm: NDArray[np.float64]
    """(N,), as a reader would measure it."""
    center_index_zyx: NDArray[np.float64]
    """(N, 3), center of the nodule in voxels."""


def diameter_question(n: int = 200, seed: int = 0) -> Question:
    """Ask for size alone: positive nodules measure 9.5-14 mm, negative ones 5-8.5 mm.

    Each volume is a slab of whole slices, 144 mm wide, that also holds eight round vessels of 5-14 mm in either
    class: only who looks at the nodule itself can answer.
    """
    grid = Grid((9, 96, 96), (2.0, 1.5, 1.5))
    volumes, diameters, centers = [], [], []
    for is_positive, rng in _twins(n, seed):
        volume = _lung(rng, grid)
        diameter = rng.uniform(9.5, 14) if is_positive else rng.uniform(5, 8.5)
        center = np.array([grid.middle_mm[0], *rng.uniform(24, 118, 2)])
        for spot in _spots_apart(rng, center[1:], n_spots=8, apart_mm=24.0):
            radius = rng.uniform(2.5, 7)
            low, high = np.array([-20.0, *spot]), np.array([40.0, *spot])
            paint_brighter(volume, *capsule_coverage(grid, low, high, radius, radius), NODULE_HU)
        paint(volume, *sphere_coverage(grid, center, diameter), NODULE_HU)
        volumes.append(_with_noise(rng, volume))
        diameters.append(diameter)
        centers.append(center / grid.spacing_mm)
    return _question(volumes, grid, np.array(diameters), np.array(centers))


def margin_question(n: int = 200, seed: int = 0, *, is_blurred: bool = False) -> Question:
    """Ask for the margin at one diameter, 8 mm: positive nodules have spicules, negative ones an even halo.

    Spicules and halo have the same mean over every sphere around the center, so neither total brightness nor the
    radial profile differs. With `is_blurred` the spicules are averaged over all directions: both classes are then
    drawn alike, and the answer is gone.
    """
    grid = Grid((17, 32, 32), (1.5, 1.0, 1.0))
    volumes, diameters = [], []
    for is_positive, rng in _twins(n, seed):
        volume = _lung(rng, grid)
        center = grid.middle_mm + rng.uniform(-0.5, 0.5, 3)
        spicules = _spicule_directions(rng)
        share = _spiculated_share(grid, center, spicules if is_positive and not is_blurred else None)
        volume += share * (np.float32(NODULE_HU) - volume)
        volumes.append(_with_noise(rng, volume))
        diameters.append(8.0 * np.exp(rng.normal(0, 0.06)))
    return _question(volumes, grid, np.array(diameters))


def order_question(n: int = 200, seed: int = 0) -> Question:
    """Ask what lies above what: a hollow ball nearer the head than a solid one (positive), or the other way round.

    The two signs are 24 mm apart, each is symmetric in z to the voxel, noise included, and all slices between and
    beside them are one and the same. So the twins of a patient hold the same multiset of triplets (z-1, z, z+1), and
    the same triplet in the middle: only position along z can answer.
    """
    grid = Grid((25, 32, 32), (2.0, 1.0, 1.0))
    block = Grid((5, 32, 32), grid.spacing_mm)
    volumes: list[NDArray[np.int16]] = []
    for pair in range(_n_pairs(n)):
        rng = np.random.default_rng([seed, pair])
        empty = _lung(rng, Grid((1, 32, 32), grid.spacing_mm))
        center = block.middle_mm + np.array([0, *rng.uniform(-2, 2, 2)])
        solid, hollow = np.repeat(empty, 5, axis=0), np.repeat(empty, 5, axis=0)
        paint(solid, *sphere_coverage(block, center, 9), NODULE_HU)
        paint(hollow, *sphere_coverage(block, center, 9), NODULE_HU)
        paint(hollow, *sphere_coverage(block, center, 5), LUNG_HU)
        empty_hu, solid_hu, hollow_hu = (_with_noise(rng, slices) for slices in (empty, solid, hollow))
        solid_hu[3:], hollow_hu[3:] = solid_hu[1::-1], hollow_hu[1::-1]
        beside, between = np.repeat(empty_hu, 4, axis=0), np.repeat(empty_hu, 7, axis=0)
        volumes.append(np.concatenate([beside, solid_hu, between, hollow_hu, beside]))
        volumes.append(np.concatenate([beside, hollow_hu, between, solid_hu, beside]))
    return _question(volumes, grid, np.full(len(volumes), 9.0))


def extent_question(n: int = 200, seed: int = 0) -> Question:
    """Ask how far a nodule reaches along z: 22 mm (positive) or 6 mm, 8 mm wide in both.

    The twins of a patient are equal in the middle three slices: only who looks further can answer.
    """
    grid = Grid((17, 32, 32), (2.0, 1.0, 1.0))
    y, x = grid.axis_mm(1), grid.axis_mm(2)
    volumes = []
    for is_positive, rng in _twins(n, seed, is_shared=True):
        volume = _lung(rng, grid)
        _, center_y, center_x = grid.middle_mm + rng.uniform(-2, 2, 3)
        disc = edge_coverage(np.asarray(4 - np.hypot(y - center_y, x - center_x), dtype=np.float32), 1.0)
        half = 5 if is_positive else 1  # slices on either side of the middle one
        span = (slice(8 - half, 9 + half), slice(None), slice(None))
        paint(volume, span, disc, NODULE_HU)
        volumes.append(_with_noise(rng, volume))
    return _question(volumes, grid, np.full(len(volumes), 8.0))


def constant_question(n: int = 200) -> Question:
    """Ask where there is nothing to see: every voxel of every volume is -850 HU."""
    grid = Grid((9, 32, 32), (2.0, 1.0, 1.0))
    volume = np.full(grid.shape, LUNG_HU, dtype=np.int16)
    return _question([volume] * (2 * _n_pairs(n)), grid, np.full(2 * _n_pairs(n), 8.0))


def _question(
    volumes: list[NDArray[np.int16]],
    grid: Grid,
    diameter_mm: NDArray[np.float64],
    center_index_zyx: NDArray[np.float64] | None = None,
) -> Question:
    """Volumes in pairs, the positive one of a patient first."""
    count = len(volumes)
    middle = np.tile((np.array(grid.shape) - 1) / 2, (count, 1))
    return Question(
        volumes_hu=np.stack(volumes),
        spacing_mm=grid.spacing_mm,
        is_positive=np.arange(count) % 2 == 0,
        patient_ids=np.array([f"question-{index // 2:04d}" for index in range(count)]),
        diameter_mm=diameter_mm,
        center_index_zyx=middle if center_index_zyx is None else center_index_zyx,
    )


def _n_pairs(n: int) -> int:
    if n < 2 or n % 2:
        raise ValueError(
            f"a question needs pairs of volumes, one of either class; got {n}, give an even number >= 2"
        )
    return n // 2


def _twins(n: int, seed: int, *, is_shared: bool = False) -> list[tuple[bool, np.random.Generator]]:
    """The class and the generator of every volume; shared: the twins of a patient draw the same numbers."""
    return [
        (is_positive, np.random.default_rng([seed, pair, 0 if is_shared else int(is_positive)]))
        for pair in range(_n_pairs(n))
        for is_positive in (True, False)
    ]


def _lung(rng: np.random.Generator, grid: Grid) -> Array:
    """Mottled lung without vessels, float32 HU."""
    mottle = gaussian_filter(
        rng.standard_normal(grid.shape, dtype=np.float32), [2 / step for step in grid.spacing_mm]
    )
    return np.asarray(LUNG_HU + 20 * mottle / mottle.std(), dtype=np.float32)


def _with_noise(rng: np.random.Generator, volume: Array) -> NDArray[np.int16]:
    noise = rng.standard_normal(volume.shape, dtype=np.float32)
    return np.rint(volume + np.float32(NOISE_HU) * noise).astype(np.int16)


def _spots_apart(
    rng: np.random.Generator, center_mm: NDArray[np.float64], n_spots: int, apart_mm: float
) -> list[NDArray[np.float64]]:
    """Places (y, x) in the slice, mm, none nearer to the nodule than stated."""
    spots: list[NDArray[np.float64]] = []
    while len(spots) < n_spots:
        spot = rng.uniform(8, 134, 2)
        if np.hypot(*(spot - center_mm)) >= apart_mm:
            spots.append(spot)
    return spots


def _spicule_directions(rng: np.random.Generator, count: int = 14) -> NDArray[np.float64]:
    """Directions spread evenly over the sphere (a Fibonacci lattice), turned at random, (count, 3)."""
    index = np.arange(count) + 0.5
    height, turn = 1 - 2 * index / count, np.pi * (1 + np.sqrt(5)) * index
    ring = np.sqrt(1 - height**2)
    lattice = np.stack([height, ring * np.cos(turn), ring * np.sin(turn)], axis=1)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return np.asarray(lattice @ rotation, dtype=np.float64)


def _spiculated_share(
    grid: Grid, center_mm: NDArray[np.float64], spicules: NDArray[np.float64] | None
) -> Array:
    """Covered fraction: an 8 mm ball in a halo that is even, or gathered into spicules with the same mean."""
    sharpness, halo_share, halo_length_mm, radius_mm = 40.0, 0.16, 5.0, 4.0
    offset = np.stack(np.broadcast_arrays(*(grid.axis_mm(axis) - center_mm[axis] for axis in range(3))))
    distance = np.sqrt((offset**2).sum(axis=0))
    outside = np.clip(distance - radius_mm, 0, None)
    core = np.clip(0.5 + (radius_mm - distance), 0, 1)
    halo = halo_share * np.exp(-((outside / halo_length_mm) ** 2)) * (1 - core)
    if spicules is not None:
        cosine = np.tensordot(spicules, offset / np.maximum(distance, 1e-6), axes=1)
        mean = (
            len(spicules) * (1 - np.exp(-2 * sharpness)) / (2 * sharpness)
        )  # over the sphere, of the sum below
        halo = halo * np.exp(sharpness * (cosine - 1)).sum(axis=0) / mean
    return np.asarray(core + halo, dtype=np.float32)
