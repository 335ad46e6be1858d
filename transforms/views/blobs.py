"""Blobs in lung: round dense places of the size of nodules, found without a label; nodules are among them.

Vessels are found as well, where they branch or run along z: this list places views and is no detection of nodules.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from transforms.body_grid import GRID, LUNG

DIAMETERS_MM = (4.0, 6.0, 9.0, 13.0, 20.0)
MOST = 64
"""Blobs of one volume, the strongest first."""
_WORK_MM = 1.25
_CLIP_HU = (-1000.0, 100.0)
"""Above, bone would answer more than a nodule does."""
_WEAKEST_HU = 10.0
_CLOSE = np.ones((3, 3), dtype=bool)


def find_blobs(
    volume_hu: NDArray[np.int16], spacing_mm: tuple[float, float, float], body: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """Find dense blobs in lung at five scales, on a grid of 1.25 mm.

    Args:
        volume_hu: (Z, Y, X) HU.
        spacing_mm: Of z, y, x.
        body: Where lung is, (Z, 32, 32), see `body_grid`.

    Returns:
        Index (z, y, x) of each center and diameter in mm, (n, 4) with n at most 64, the strongest first. Blobs overlap
        in no case: of two whose centers are closer than the larger radius the stronger is kept.
    """
    spacing = np.array(spacing_mm)
    # No axis is made finer: slices 2.5 mm apart stay what they are.
    zoom = np.minimum(spacing / _WORK_MM, 1.0)
    work_mm = spacing / zoom
    clipped = np.clip(volume_hu, *_CLIP_HU).astype(np.float32)
    smoothed = ndimage.gaussian_filter(clipped, 0.5 * (1 / zoom - 1)) if (zoom < 1).any() else clipped
    coarse = ndimage.zoom(smoothed, zoom, order=1, mode="nearest", grid_mode=True)
    is_lung = _in_lung(body, coarse.shape)
    rows: list[NDArray[np.float64]] = []
    for diameter_mm in DIAMETERS_MM:
        # A ball answers most to the Laplacian of a Gaussian of radius / sqrt(3).
        sigma_mm = diameter_mm / 2 / np.sqrt(3)
        smooth = ndimage.gaussian_filter(coarse, sigma_mm / work_mm, truncate=3.0)
        is_peak = (smooth == ndimage.maximum_filter(smooth, size=3)) & is_lung
        peaks = np.argwhere(is_peak)
        # Along a vessel nothing falls off; a ball falls off in every direction.
        weakest = _weakest_fall(smooth, peaks, work_mm) * sigma_mm**2
        rows.append(np.column_stack([weakest, peaks, np.full(len(peaks), diameter_mm)]))
    found = np.concatenate(rows)
    found = found[found[:, 0] >= _WEAKEST_HU]
    kept: list[NDArray[np.float64]] = []
    for row in found[np.argsort(-found[:, 0], kind="stable")]:
        place = row[1:4] * work_mm
        if all(np.linalg.norm(place - one[:3]) > max(row[4], one[3]) / 2 for one in kept):
            kept.append(np.array([*place, row[4]]))
        if len(kept) == MOST:
            break
    blobs = np.array(kept).reshape(-1, 4)
    blobs[:, :3] = (blobs[:, :3] / work_mm + 0.5) / zoom - 0.5
    return blobs


def _weakest_fall(
    smooth: NDArray[np.float32], places: NDArray[np.int64], work_mm: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return how fast a volume falls off around places (n, 3) where it falls off least, (n,) HU per mm^2.

    That is the negative of the largest eigenvalue of the Hessian (Li et al. 2003, doi:10.1118/1.1581411).
    """
    edge = np.pad(smooth, 1, mode="edge")

    def at(*shift: int) -> NDArray[np.float64]:
        z, y, x = (places + 1 + np.array(shift)).T
        return np.asarray(edge[z, y, x], dtype=np.float64)

    hessian = np.empty((len(places), 3, 3))
    steps = np.eye(3, dtype=int)
    for i in range(3):
        hessian[:, i, i] = (at(*steps[i]) - 2 * at(0, 0, 0) + at(*-steps[i])) / work_mm[i] ** 2
        for j in range(i):
            both, apart = steps[i] + steps[j], steps[i] - steps[j]
            mixed = at(*both) + at(*-both) - at(*apart) - at(*-apart)
            hessian[:, i, j] = hessian[:, j, i] = mixed / (4 * work_mm[i] * work_mm[j])
    return np.asarray(-np.linalg.eigvalsh(hessian)[:, -1])


def _in_lung(body: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Spread the cells of lung over the voxels of a volume of this shape.

    A nodule can fill a cell, which then counts as body: gaps of two cells between cells of lung are closed.
    """
    cells = ndimage.binary_closing(np.pad(body == LUNG, ((0, 0), (2, 2), (2, 2))), _CLOSE[None])
    places = ((np.arange(n) + 0.5) * m // n for n, m in zip(shape, (len(body), GRID, GRID), strict=True))
    spread: NDArray[np.bool_] = cells[:, 2:-2, 2:-2][np.ix_(*(place.astype(int) for place in places))]
    return spread
