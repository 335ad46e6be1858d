"""Two random views of one sample on one core: from the cohort, against a loader of PNG files."""

from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import interpolate

from benchmarks.chest_cohort import chest_cohort
from benchmarks.png_peer import PngTwoViews
from benchmarks.timing import ROUNDS, Row, median_cpu_seconds, one_thread
from pipelines.training.loader import BatchPlan, MicroBatches
from transforms.views.config import ViewConfig
from transforms.views.resample import resize_crop

BATCH = 16


def measure(tiny: bool = False) -> list[Row]:
    """Time reading, drawing and rendering a batch, per sample, against the PNG peer; and the resize alone."""
    chests, config, rounds = chest_cohort(tiny), ViewConfig(), 1 if tiny else ROUNDS
    peer = PngTwoViews(chests.png_paths, chests.inner_rows().tolist(), config)
    plan = BatchPlan(len(chests.index), BATCH, accumulation=1, seed=0)
    ours = MicroBatches(chests.index, plan, config, seed=0, render=True)
    micro = iter(range(1_000_000))
    with one_thread():
        seconds = median_cpu_seconds(
            {
                "png": lambda: [peer[i] for i in np.random.default_rng(0).integers(len(peer), size=4)],
                "ours": lambda: ours[next(micro)],
            },
            rounds,
        )
        resize = median_cpu_seconds(_resize_ways(), rounds)
    return [
        Row(
            "two views of 224 px from int16 slices, one core",
            (seconds["png"] / 4) / (seconds["ours"] / BATCH),
            ">= 7",
            f"times the rate of 16-bit PNG loading ({seconds['ours'] / BATCH * 1e3:.2f} ms a sample)",
        ),
        Row(
            "bicubic antialiased crop of 443 px to 224 px, one core",
            resize["torch"] / resize["ours"],
            ">= 1",
            "times the rate of torch interpolate(antialias=True)",
        ),
    ]


def _resize_ways() -> dict[str, Callable[[], None]]:
    slices = np.random.default_rng(0).integers(-1000, 1000, (3, 512, 512)).astype(np.int16)
    box, out = np.array([20.0, 30.0, 443.0, 443.0]), np.empty((3, 224, 224), np.float32)

    def with_torch() -> None:
        for _ in range(10):
            crop = torch.from_numpy(slices)[None, :, 20:463, 30:473].float()
            interpolate(crop, (224, 224), mode="bicubic", antialias=True, align_corners=False)

    def ours() -> None:
        for _ in range(10):
            resize_crop(slices, box, 224, False, out)

    return {"torch": with_torch, "ours": ours}
