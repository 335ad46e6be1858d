"""Nodules of one size and one distribution of HU, whose label shows in their grain alone."""

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter

N = 60
LABELS = (np.arange(N) % 2).tolist()
QUESTION = {"size_mm": 28.0, "n_bootstrap": 50, "draws": 199, "features": "roi", "window": "full"}


def nodule_with_grain(number: int) -> np.ndarray:
    """A ball of one size and one distribution of HU, (x, y, z): coarse grain where the label is 1, else fine grain."""
    generator = np.random.default_rng(number)
    z, y, x = np.mgrid[:5, :40, :40]
    inside = (2 * (z - 2)) ** 2 + (y - 20) ** 2 + (x - 20) ** 2 <= 8**2
    grain = gaussian_filter(generator.normal(size=inside.shape), (0, *(1.5 if LABELS[number] else 0.5,) * 2))
    ranks = grain[inside].argsort().argsort() / inside.sum()
    volume = np.full(inside.shape, -850.0) + generator.normal(0, 10, inside.shape)
    volume[inside] = -100 + 300 * ranks
    return volume.T


def marks_of_grain(_: object, nodules: pd.DataFrame) -> pd.DataFrame:
    """Four readers a nodule, who see the grain as spiculation and malignancy, and nothing else."""
    generator = np.random.default_rng(0)
    rows = np.repeat(np.arange(len(nodules)), 4)
    label = np.repeat(nodules["is_malignant"].to_numpy(dtype=int), 4)
    names = ("subtlety", "texture", "lobulation", "margin", "sphericity")
    marks = {name: generator.integers(1, 6, len(rows)) for name in names}
    marks |= {"spiculation": 1 + 3 * label + generator.integers(0, 2, len(rows)), "internalStructure": 1}
    marks |= {"calcification": np.where(label == 1, 3, 6), "malignancy": 2 + 2 * label}
    return pd.DataFrame(marks | {"row": rows})
