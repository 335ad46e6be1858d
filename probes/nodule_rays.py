"""A nodule measured in its image by rays from its center: diameter, mask, ring and the HU inside; no reader's contour.

Along each of 64 rays of a slice, or 512 of a cube, the edge is where HU first fall half-way from the nodule's core to
lung. Rays that run along a vessel or the pleura go too far; the median of all is robust to them, and the mask limits
them.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import map_coordinates
from scipy.spatial import cKDTree

from probes.partial.base import Attenuation
from probes.statistics.checks import Floats

LUNG_HU = -850.0
RING_MM = 4.0
"""Width of the ring around the mask."""
_N_RAYS, _STEP_MM, _CORE_MM = 64, 0.25, 1.5
_N_RAYS_3D, _NEAREST_RAYS = 512, 3
_ANGLES = np.arange(_N_RAYS) * (2 * np.pi / _N_RAYS)
_DARKEST_EDGE_HU, _AIR_HU = -750.0, -1024.0
_LONGEST_RAY = 1.8
"""Times the median ray."""
_DENSE_HU = 150.0


@dataclass(frozen=True, slots=True)
class NoduleRegion:
    """Where nodules lie on their center slices.

    Attributes:
        mask: (N, P, P).
        ring: Pixels up to 4 mm outside the mask, (N, P, P).
        area_mm2: Of the mask, (N,).
        diameter_mm: As `image_diameter_mm`, (N,).
    """

    mask: npt.NDArray[np.bool_]
    ring: npt.NDArray[np.bool_]
    area_mm2: Floats
    diameter_mm: Floats


def image_diameter_mm(slices_hu: npt.NDArray[Any], mm_per_px: float) -> Floats:
    """Twice the median distance from the center to the edge, over rays in all directions.

    Args:
        slices_hu: (N, P, P) HU, each with a nodule in the middle.
        mm_per_px: Pixel size.

    Returns:
        Diameter in mm, (N,); at most the side of the crop less one pixel.
    """
    return np.asarray(2 * np.median(edge_radii_mm(slices_hu, mm_per_px), axis=1))


def edge_radii_mm(slices_hu: npt.NDArray[Any], mm_per_px: float) -> Floats:
    """Distance from the center to the edge along each ray, (N, 64) mm; rays start along the columns, toward x.

    Args:
        slices_hu: (N, P, P) HU, each with a nodule in the middle.
        mm_per_px: Pixel size.
    """
    middle = (slices_hu.shape[-1] - 1) / 2
    rows, columns = _from_center(slices_hu.shape[-1])
    core = np.hypot(rows, columns) * mm_per_px <= max(_CORE_MM, 0.75 * mm_per_px)
    radii_mm = np.arange(0.0, middle * mm_per_px, _STEP_MM)
    along = middle + np.stack([np.sin(_ANGLES), np.cos(_ANGLES)])[:, :, None] * (radii_mm / mm_per_px)
    found = np.empty((len(slices_hu), _N_RAYS))
    for number, slice_hu in enumerate(slices_hu):
        found[number] = _first_below(slice_hu, core, along, radii_mm)
    return found


def _first_below(
    image_hu: npt.NDArray[Any], core: npt.NDArray[np.bool_], along: Floats, radii_mm: Floats
) -> Floats:
    """Where HU along each ray first fall half-way from the core to lung, else the last radius, (rays,)."""
    edge_hu = max((np.percentile(image_hu[core], 90) + LUNG_HU) / 2, _DARKEST_EDGE_HU)
    # Beyond the image is air.
    along_hu = map_coordinates(np.asarray(image_hu, dtype=np.float64), along, order=1, cval=_AIR_HU)
    is_outside = along_hu < edge_hu
    found: Floats = np.where(is_outside.any(axis=1), radii_mm[is_outside.argmax(axis=1)], radii_mm[-1])
    return found


def nodule_region(slices_hu: npt.NDArray[Any], mm_per_px: float) -> NoduleRegion:
    """Draw mask and ring of each nodule from its rays, none longer than 1.8 times their median.

    The pixels nearest to the center always belong to the mask, so that none is empty.

    Args:
        slices_hu: (N, P, P) HU, each with a nodule in the middle.
        mm_per_px: Pixel size.
    """
    radii = edge_radii_mm(slices_hu, mm_per_px)
    diameter = 2 * np.median(radii, axis=1)
    capped = np.minimum(radii, _LONGEST_RAY * diameter[:, None] / 2)
    rows, columns = _from_center(slices_hu.shape[-1])
    distance_mm = np.hypot(rows, columns) * mm_per_px
    place = np.mod(np.arctan2(rows, columns), 2 * np.pi) / (2 * np.pi / _N_RAYS)
    before = np.floor(place).astype(np.int64) % _N_RAYS
    share = place - np.floor(place)
    edge = capped[:, before] * (1 - share) + capped[:, (before + 1) % _N_RAYS] * share
    edge = np.maximum(edge, distance_mm.min())
    mask = distance_mm <= edge
    ring = ~mask & (distance_mm <= edge + RING_MM)
    # A nodule as small as a pixel has an area and a diameter above 0: their logarithms are taken.
    return NoduleRegion(mask, ring, mask.sum((1, 2)) * mm_per_px**2, np.maximum(diameter, mm_per_px))


def disk_region(n: int, n_px: int, mm_per_px: float, diameter_mm: float) -> NoduleRegion:
    """Return the same disk for n places without a nodule, with its ring: masks (n, n_px, n_px)."""
    distance_mm = np.hypot(*_from_center(n_px)) * mm_per_px
    mask = distance_mm <= diameter_mm / 2
    ring = ~mask & (distance_mm <= diameter_mm / 2 + RING_MM)
    area_mm2 = np.full(n, mask.sum() * mm_per_px**2)
    mask, ring = (np.repeat(one[None], n, axis=0) for one in (mask, ring))
    return NoduleRegion(mask, ring, area_mm2, np.full(n, diameter_mm))


@dataclass(frozen=True, slots=True)
class CubeRegion:
    """Where nodules lie in their cubes.

    Attributes:
        mask: (N, D, P, P).
        ring: Voxels up to 4 mm outside the mask, (N, D, P, P).
        diameter_mm: Twice the median ray, (N,).
    """

    mask: npt.NDArray[np.bool_]
    ring: npt.NDArray[np.bool_]
    diameter_mm: Floats


def cube_region(cubes_hu: npt.NDArray[Any], spacing_mm: npt.NDArray[Any]) -> CubeRegion:
    """Draw mask and ring of each nodule as `nodule_region` does, from rays in all directions.

    Args:
        cubes_hu: (N, D, P, P) HU, each with a nodule in the middle.
        spacing_mm: Of the voxels along z, y and x, (N, 3).
    """
    masks, rings = np.empty((2, *cubes_hu.shape), dtype=bool)
    diameter = np.empty(len(cubes_hu))
    for number, (cube_hu, own_mm) in enumerate(zip(cubes_hu, spacing_mm, strict=True)):
        distance_mm, rays, share = _rays_of_voxels(cube_hu.shape, tuple(map(float, own_mm)))
        middle = (np.array(cube_hu.shape) - 1) / 2
        # A ray ends where it leaves the cube, at its corners at the latest.
        radii_mm = np.arange(0.0, float(np.linalg.norm((middle + 1) * own_mm)), _STEP_MM)
        along = middle[:, None, None] + (_directions() / own_mm).T[:, :, None] * radii_mm
        core = distance_mm <= max(_CORE_MM, float(distance_mm.min()) * 1.5)
        radii = _first_below(cube_hu, core, along, radii_mm)
        diameter[number] = 2 * np.median(radii)
        capped = np.minimum(radii, _LONGEST_RAY * diameter[number] / 2)
        edge = np.maximum((capped[rays] * share).sum(-1), distance_mm.min())
        masks[number] = distance_mm <= edge
        rings[number] = ~masks[number] & (distance_mm <= edge + RING_MM)
    return CubeRegion(masks, rings, np.maximum(diameter, spacing_mm.min(1)))


def ball_region(cubes_hu: npt.NDArray[Any], spacing_mm: npt.NDArray[Any], diameter_mm: float) -> CubeRegion:
    """Return the same ball, with its ring, in the middle of cubes (N, D, P, P) that hold no nodule."""
    distance_mm = np.stack(
        [_rays_of_voxels(cubes_hu.shape[1:], tuple(map(float, own_mm)))[0] for own_mm in spacing_mm]
    )
    edge = np.maximum(diameter_mm / 2, distance_mm.min((1, 2, 3), keepdims=True))
    mask = distance_mm <= edge
    return CubeRegion(mask, ~mask & (distance_mm <= edge + RING_MM), np.full(len(mask), diameter_mm))


@lru_cache(maxsize=1)
def _directions() -> Floats:
    """Directions spread evenly over the sphere, a Fibonacci lattice, (rays, 3)."""
    index = np.arange(_N_RAYS_3D) + 0.5
    height, turn = 1 - 2 * index / _N_RAYS_3D, np.pi * (1 + np.sqrt(5)) * index
    width = np.sqrt(1 - height**2)
    return np.stack([height, width * np.cos(turn), width * np.sin(turn)], axis=1)


@lru_cache(maxsize=4)
def _rays_of_voxels(
    shape: tuple[int, ...], spacing_mm: tuple[float, ...]
) -> tuple[Floats, npt.NDArray[np.int64], Floats]:
    """Return the distance of each voxel from the middle, (D, P, P) mm, and its nearest rays with their shares."""
    grids = np.mgrid[tuple(slice(n) for n in shape)]
    place_mm = np.stack([(g - (n - 1) / 2) * s for g, n, s in zip(grids, shape, spacing_mm, strict=True)], -1)
    distance_mm = np.linalg.norm(place_mm, axis=-1)
    toward = place_mm / np.maximum(distance_mm, 1e-9)[..., None]
    away, rays = cKDTree(_directions()).query(toward, k=_NEAREST_RAYS)
    share = 1 / np.maximum(away, 1e-6)
    return distance_mm, rays, share / share.sum(-1, keepdims=True)


def attenuation_inside(slices_hu: npt.NDArray[Any], mask: npt.NDArray[np.bool_]) -> Attenuation:
    """Summarize the HU inside each mask (N, P, P)."""
    lines = []
    for slice_hu, inside in zip(slices_hu, mask, strict=True):
        hu = np.asarray(slice_hu[inside], dtype=np.float64)
        percentiles = np.percentile(hu, (10, 25, 50, 75, 90))
        lines.append([(hu > _DENSE_HU).mean(), hu.mean(), hu.std(), *percentiles])
    return Attenuation(*np.array(lines).T)


def _from_center(n_px: int) -> tuple[Floats, Floats]:
    rows, columns = np.mgrid[:n_px, :n_px] - (n_px - 1) / 2
    return rows, columns
