"""What views of one nodule share and nodules do not: directions of features, learned without labels in closed form.

Neighbor slices, mirror images and quarter turns of a nodule show the same nodule. The directions in which features
differ most between nodules, compared with how they differ between such views of one, are the closed form of what
contrastive learning does to a linear layer; directions that turn with the image or change from slice to slice are left
out.

Source: Rao 1948, The utilization of multiple measurements in problems of biological classification (directions by the
ratio of scatter between and within groups; here a group is a nodule, not a class).
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg

from probes.statistics.checks import Floats

DIRECTIONS = 32
"""Of each third of the features: mean and maximum inside the nodule, mean around it."""
_SHRINKAGE = 0.1
"""Share of the mean variance within nodules that is added to each direction's: few views show it too small."""


def invariant_directions(views: Floats, n: int) -> Floats:
    """Find the directions with the largest scatter between nodules over that within them.

    Args:
        views: Features of V views of N nodules, (N, V, D).
        n: Number of directions, at most D.

    Returns:
        (D, n), the best first; over `views` each has the same shrunken variance within nodules.
    """
    middle = views.mean(axis=1)
    within = (views - middle[:, None]).reshape(-1, views.shape[-1])
    scatter = within.T @ within / len(within)
    scatter += _SHRINKAGE * max(float(np.trace(scatter)), 1e-12) / len(scatter) * np.eye(len(scatter))
    size = len(scatter)
    between = np.cov(middle, rowvar=False).reshape(size, size)
    _, directions = scipy.linalg.eigh(between, scatter, subset_by_index=[size - n, size - 1])
    return np.asarray(directions[:, ::-1])


def invariant_features(
    features_of: Callable[[npt.NDArray[Any]], npt.NDArray[Any]],
    triplets_hu: npt.NDArray[Any],
    learned: npt.NDArray[np.bool_],
) -> npt.NDArray[np.float32]:
    """Features of center slices in the directions that views of the nodules in `learned` share.

    Args:
        features_of: From slices (M, P, P) HU to features (M, 3 D): three thirds, each with directions of its own.
        triplets_hu: Center slice of each nodule between its neighbors, (N, 3, P, P) HU.
        learned: Nodules from whose views the directions are learned, (N,).

    Returns:
        (N, 3 * min(32, D)).
    """
    features = np.asarray(features_of(triplets_hu[:, 1]), dtype=np.float64)
    views = np.stack([features_of(view) for view in _views(triplets_hu[learned])], axis=1).astype(np.float64)
    middle, scale = features[learned].mean(0), features[learned].std(0) + 1e-6
    features, views = (features - middle) / scale, (views - middle) / scale
    third = features.shape[1] // 3
    kept = []
    for first in range(0, 3 * third, third):
        own = slice(first, first + third)
        kept.append(features[:, own] @ invariant_directions(views[:, :, own], min(DIRECTIONS, third)))
    return np.concatenate(kept, axis=1).astype(np.float32)


def _views(triplets_hu: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """The eight mirror images and quarter turns of the center slice; each neighbor as it is and turned once."""
    below, center, above = (triplets_hu[:, channel] for channel in range(3))
    for turns in range(4):
        turned = np.rot90(center, turns, (1, 2))
        yield turned
        yield turned[:, :, ::-1]
    for neighbor in (below, above):
        yield neighbor
        yield np.rot90(neighbor, 1, (1, 2))
