"""A baseline without training: small patches of HU, whitened, compared with visual words, pooled inside the nodule.

Words may be cluster centers of patches, patches themselves, or random directions: on LIDC's nodules all three do
equally well, so whitening and dense sampling inside the nodule are what counts. A network has learned something
where it does better than random words.

Source: Coates, Lee and Ng 2011, An analysis of single-layer networks in unsupervised feature learning (whitening,
k-means, triangle activation, dense patches).
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans

from probes.nodule_rays import NoduleRegion
from probes.statistics.checks import Floats

Words = Literal["kmeans", "patches", "random"]
PATCH_PX, PATCH_MM_PER_PX = 6, 0.5
RANGE_HU = (-1000.0, 1000.0)
_PATCHES_PER_CROP = 200
_LEAST_VARIANCE = 0.1
"""Added to the variances of whitening, as a share of their mean: directions of scanner noise are not amplified. The
source adds 0.1 to the variances of patches whose pixels have a variance of 1."""


@dataclass(frozen=True, slots=True)
class Dictionary:
    """Whitening and words, both in the space of patches of 6 x 6 px at 0.5 mm.

    Attributes:
        mean: (36,) of patches in [0, 1].
        whitening: (36, 36).
        words: (W, 36), whitened.
    """

    mean: Floats
    whitening: Floats
    words: Floats

    def activations(self, patches: Floats) -> Floats:
        """Return how much nearer each word is than words are on average (triangle activation).

        Args:
            patches: (M, 36), in [0, 1].

        Returns:
            (M, W), at least 0.
        """
        whitened = (patches - self.mean) @ self.whitening
        squared = (whitened**2).sum(1)[:, None] - 2 * whitened @ self.words.T + (self.words**2).sum(1)
        distance = np.sqrt(np.maximum(squared, 0.0))
        return np.asarray(np.maximum(distance.mean(1, keepdims=True) - distance, 0.0))


def learn_dictionary(
    slices_hu: npt.NDArray[Any], words: Words = "kmeans", n_words: int = 128, seed: int = 0
) -> Dictionary:
    """Learn whitening from unlabeled slices, and choose words in the whitened space.

    Args:
        slices_hu: (N, P, P) HU at 0.5 mm per pixel.
        words: `kmeans` centers, drawn `patches`, or `random`: standard normal, which whitened patches are by variance.
        n_words: How many.
        seed: Of the patches that are drawn, and of the words.
    """
    generator = np.random.default_rng(seed)
    drawn = []
    for slice_hu in slices_hu:
        patches = _patches(slice_hu).reshape(-1, PATCH_PX**2)
        drawn.append(patches[generator.integers(0, len(patches), _PATCHES_PER_CROP)])
    sample = np.concatenate(drawn)
    mean = sample.mean(0)
    variances, axes = np.linalg.eigh(np.cov(sample - mean, rowvar=False))
    scales = 1.0 / np.sqrt(np.maximum(variances, 0) + _LEAST_VARIANCE * variances.mean())
    whitening = (axes * scales) @ axes.T
    whitened = (sample - mean) @ whitening
    distinct = np.unique(whitened.round(6), axis=0)
    if words != "random" and len(distinct) <= n_words:
        chosen = distinct  # images that hardly vary
    elif words == "kmeans":
        chosen = KMeans(n_words, n_init=1, random_state=seed).fit(whitened).cluster_centers_
    elif words == "patches":
        chosen = whitened[generator.choice(len(whitened), n_words, replace=False)]
    else:
        chosen = generator.normal(size=(n_words, PATCH_PX**2))
    return Dictionary(mean, whitening, np.asarray(chosen, dtype=np.float64))


def dictionary_features(
    dictionary: Dictionary, slices_hu: npt.NDArray[Any], region: NoduleRegion
) -> npt.NDArray[np.float32]:
    """Mean and maximum of each word's activation inside the mask, and its mean in the ring.

    Args:
        dictionary: Of other patients.
        slices_hu: (N, P, P) HU at 0.5 mm per pixel, P such that every mask and ring lies inside.
        region: Of these slices.

    Returns:
        (N, 3 * words). A nodule without a ring inside its slice has zeros there.
    """
    # A patch belongs where its middle lies; with an even side that is between pixels, and the lower one counts.
    first = (PATCH_PX - 1) // 2
    inner = slice(first, first + slices_hu.shape[-1] - PATCH_PX + 1)
    lines = []
    for slice_hu, mask, ring in zip(slices_hu, region.mask, region.ring, strict=True):
        patches = _patches(slice_hu)
        inside, around = (
            dictionary.activations(patches[where[inner, inner]].reshape(-1, PATCH_PX**2))
            for where in (mask, ring)
        )
        outer = around.mean(0) if len(around) else np.zeros(len(dictionary.words))
        lines.append(np.concatenate([inside.mean(0), inside.max(0), outer]))
    return np.array(lines, dtype=np.float32)


def _patches(slice_hu: npt.NDArray[Any]) -> Floats:
    """Every patch of a slice in [0, 1] over -1000..1000 HU, (P - 5, P - 5, 6, 6)."""
    low, high = RANGE_HU
    gray = np.clip((np.asarray(slice_hu, dtype=np.float64) - low) / (high - low), 0.0, 1.0)
    return np.lib.stride_tricks.sliding_window_view(gray, (PATCH_PX, PATCH_PX))
