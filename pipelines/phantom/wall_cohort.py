"""The synthetic chest slices on which the entropy wall is studied, small, many, and each one different; their cohort.

Two textured lungs at about -850 HU with vessels, a heart and a spine in a body, 15 HU of noise. The three channels are
neighboring slices: vessels wander, body and organs grow or shrink at rates of their own, noise is new. Lengths are
fractions of half the image. How much they grow decides what a teacher finds in both views of a slice, and can be set
(docs/decisions/0003-what-the-wall-study-shows.md).

As a cohort, `pretrain` and campaigns run on them as on any other. One volume is a stack of unrelated slices with their
neighbors, three by three, and a gap after each three. With `slices=inner` a training sees exactly the middle slices,
each with its own neighbors.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom

from pipelines.cohort.folder import SYNTHETIC, CohortWriter, write_volume
from pipelines.cohort.tables import ANNOTATIONS, NODULES, REFUSED, empty_table

LUNG_HU, NOISE_HU, N_VESSELS = -850.0, 15.0, 12
_VOLUMES, _SLICES_EACH, _SIZE_PX = 20, 128, 40
_SPACING_MM = (1.0, 9.0, 9.0)
Ellipse = tuple[float, float, float, float]
"""Center y, center x, half height, half width."""


class Growth(NamedTuple):
    """Largest change of size from one slice to the next, up or down."""

    lungs: float = 0.1
    heart: float = 0.18
    spine: float = 0.12
    body: float = 0.03


def chest_slices(
    n: int = 2048, size_px: int = 40, seed: int = 0, growth: Growth | None = None
) -> NDArray[np.int16]:
    """Draw `n` chest slices with their neighbors, int16 HU, (n, 3, size_px, size_px).

    Slice i depends on i and the arguments alone, so that a longer study begins with the shorter one.

    Args:
        n: How many slices.
        size_px: Side of a slice.
        seed: Of everything random.
        growth: How much everything may grow (default `Growth()`).

    Raises:
        ValueError: If there is no slice to draw, fewer than 16 pixels, or a growth out of range.
    """
    if n < 1 or size_px < 16:
        raise ValueError(f"a study needs at least 1 slice of at least 16 pixels, got {n} of {size_px}")
    growth = growth or Growth()
    if not all(0 <= limit <= 0.5 for limit in growth):
        raise ValueError(f"a slice grows by 0 to 0.5 of its size to the next, got {growth}")
    return np.stack(
        [_chest_slice(np.random.default_rng([seed, index]), size_px, growth) for index in range(n)]
    )


def _chest_slice(rng: np.random.Generator, size_px: int, growth: Growth) -> NDArray[np.int16]:
    """One slice and its two neighbors, (3, size_px, size_px)."""

    def draw(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    line = (np.arange(size_px) + 0.5) / size_px * 2 - 1
    y, x = line[:, None] - draw(-0.1, 0.1), line - draw(-0.1, 0.1)
    z = np.array([-1.0, 0.0, 1.0])[:, None, None]
    width = draw(0.7, 0.82)
    depth = width * draw(0.7, 0.85)
    fat = draw(0.04, 0.16)
    # Size in the three slices, relative to the middle one.
    grown_lung, grown_heart, grown_spine, grown_body = (1 + z * draw(-limit, limit) for limit in growth)

    image = np.full((3, size_px, size_px), -1000.0)

    def fill(ellipse: Ellipse, grown: NDArray[np.float64], value: float | NDArray[np.float64]) -> None:
        """Draw an ellipse whose edge falls over about one pixel."""
        center_y, center_x, half_y, half_x = ellipse
        radius = np.hypot((y - center_y) / half_y, (x - center_x) / half_x) / grown
        share = np.clip(0.5 + (1 - radius) * min(half_y, half_x) * size_px / 2, 0, 1)
        image[...] += share * (value - image)

    fill((0, 0, depth, width), grown_body, -100)
    fill((0, 0, depth - fat, width - fat), grown_body, 50)
    lung_hu = LUNG_HU + rng.normal(0, 30) + _texture_hu(rng, size_px)
    lungs = [
        (
            draw(-0.15, 0.15) * depth,
            side * (width - fat) * draw(0.46, 0.54),
            (depth - fat) * draw(0.45, 0.9),
            (width - fat) * draw(0.28, 0.46),
        )
        for side in (-1, 1)
    ]
    for lung in lungs:
        fill(lung, grown_lung, lung_hu)
    for lung in lungs:
        np.maximum(image, _vessels_hu(rng, y, x, z, lung), out=image)
    heart = width * draw(0.12, 0.4), width * draw(0.12, 0.4)
    fill((draw(-0.25, 0.05), draw(0.0, 0.25), *heart), grown_heart, 45)
    spine = width * draw(0.12, 0.2)
    fill((depth - fat - spine, 0, spine, spine), grown_spine, draw(200, 700))
    image += rng.normal(0, NOISE_HU, image.shape)
    rounded: NDArray[np.int16] = np.rint(np.clip(image, -1024, 3071)).astype(np.int16)
    return rounded


def _texture_hu(rng: np.random.Generator, size_px: int) -> NDArray[np.float64]:
    """Mottling at two scales, the same in all three channels."""
    texture = np.zeros((size_px, size_px))
    for cells, strength_hu in ((5, 35.0), (14, 25.0)):
        coarse = rng.normal(0, strength_hu, (cells, cells))
        texture += zoom(coarse, size_px / cells, order=1)[:size_px, :size_px]
    return texture


def _vessels_hu(
    rng: np.random.Generator,
    y: NDArray[np.float64],
    x: NDArray[np.float64],
    z: NDArray[np.float64],
    lung: Ellipse,
) -> NDArray[np.float64]:
    """Vessels of one lung, round or elongated, -1000 HU between them."""
    center_y, center_x, half_y, half_x = lung
    angle, reach = rng.uniform(0, 2 * np.pi, N_VESSELS), np.sqrt(rng.uniform(0, 0.75, N_VESSELS))
    drift = rng.normal(0, 0.03, (2, N_VESSELS))
    small = half_x / 0.36
    long, thin = small * rng.uniform(0.03, 0.12, N_VESSELS), small * rng.uniform(0.02, 0.04, N_VESSELS)
    tilt = rng.uniform(0, np.pi, N_VESSELS)
    inside = np.hypot((y - center_y) / half_y, (x - center_x) / half_x) < 0.95
    hu = np.full((3, y.shape[0], x.shape[0]), -1000.0)
    for k in range(N_VESSELS):
        dy = y - center_y - half_y * reach[k] * np.sin(angle[k]) - z * drift[0, k]
        dx = x - center_x - half_x * reach[k] * np.cos(angle[k]) - z * drift[1, k]
        along, across = (
            dx * np.cos(tilt[k]) + dy * np.sin(tilt[k]),
            dy * np.cos(tilt[k]) - dx * np.sin(tilt[k]),
        )
        share = np.exp(-0.5 * ((along / long[k]) ** 2 + (across / thin[k]) ** 2))
        np.maximum(hu, LUNG_HU + share * (40 - LUNG_HU), out=hu, where=inside & (share > 0.05))
    return hu


def make_wall_cohort(
    root: Path, volumes: int = _VOLUMES, slices_each: int = _SLICES_EACH, growth: Growth | None = None
) -> None:
    """Write the cohort; by default a hold-out of 0.2 leaves 16 volumes with 2048 slices to train on.

    Args:
        root: Folder of the cohort.
        volumes: How many.
        slices_each: Unrelated slices in each, every one with its two neighbors.
        growth: As in `chest_slices`.

    Raises:
        ValueError: If the folder holds something else.
    """
    writer = CohortWriter(root)
    slices = chest_slices(volumes * slices_each, _SIZE_PX, growth=growth)
    for number in range(volumes):
        own = slices[number * slices_each : (number + 1) * slices_each]
        write_volume(root, _row(f"wall-{number:03d}", slices_each), own.reshape(-1, _SIZE_PX, _SIZE_PX))
    writer.write_tables(empty_table(ANNOTATIONS), empty_table(NODULES), empty_table(REFUSED), SYNTHETIC)
    writer.close()


def _row(name: str, slices: int) -> dict[str, object]:
    affine = np.diag([*_SPACING_MM, 1.0])[[2, 1, 0, 3]]
    return {
        "volume_id": name,
        "patient_id": name,
        "study_uid": name,
        "series_uid": name,
        "spacing_mm": list(_SPACING_MM),
        "affine_ras": affine.ravel().tolist(),
        "gaps": [3 * i + 2 for i in range(slices - 1)],
        "slice_offsets_mm": [],
        "manufacturer": SYNTHETIC,
        "kernel": "",
        "slice_thickness_mm": _SPACING_MM[0],
        "transfer_syntax": "",
        "is_lossy": False,
        "n_padding_voxels": 0,
        "kind": "series",
        "notes": "unrelated synthetic slices, three by three",
    }
