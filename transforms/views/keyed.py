"""Random numbers of a sample, keyed by (seed, step, sample): the same for any number of workers or processes."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from transforms.refusal import TransformError
from transforms.window_policy import UNIFORMS_PER_WINDOW, WindowConfig, windows_from_uniforms

Stream = Literal["crop", "window", "intensity", "neighbor"]
STREAMS: dict[Stream, int] = {"crop": 0, "window": 1, "intensity": 2, "neighbor": 3}


def sample_state(seed: int, step: int, sample_key: int, stream: Stream) -> np.random.RandomState:
    """Make the generator of one sample at one step; the streams of one sample are independent.

    Args:
        seed: Seed of the run.
        step: Optimizer update.
        sample_key: Identifies the sample; not negative.
        stream: What is drawn from it.

    Returns:
        A generator as MONAI's `set_random_state(state=...)` takes it.

    Raises:
        TransformError: If a number is negative.

    Source: Philox, Salmon et al. 2011, doi:10.1145/2063384.2063405.
    """
    if min(seed, step, sample_key) < 0:
        raise TransformError(
            f"seed, step and sample key must not be negative, got {seed}, {step} and {sample_key}"
        )
    # A counter-based generator is defined by its key: nothing is hashed, so samples cannot collide, at little cost.
    place = np.array([0, STREAMS[stream], sample_key, step], dtype=np.uint64)
    return np.random.RandomState(np.random.Philox(counter=place, key=np.array([seed, 0], dtype=np.uint64)))


def keyed_uniforms(
    sample_keys: Sequence[int], seed: int, step: int, stream: Stream, shape: tuple[int, int]
) -> NDArray[np.float64]:
    """Draw uniform numbers for each sample, as many as `shape` (V, n) says: (V, B, n) in [0, 1)."""
    drawn = [sample_state(seed, step, key, stream).random_sample(shape) for key in sample_keys]
    return np.stack(drawn, axis=1)


def keyed_windows(
    config: WindowConfig, sample_keys: Sequence[int], seed: int, step: int, n_views: int
) -> NDArray[np.float64]:
    """Draw the windows of V views: lower and upper edges in true HU, (V, B, 2)."""
    uniforms = keyed_uniforms(sample_keys, seed, step, "window", (n_views, UNIFORMS_PER_WINDOW))
    windows = windows_from_uniforms(config, uniforms)
    return np.repeat(windows[:1], n_views, axis=0) if config.per == "sample" else windows
