"""iBOT: the student predicts the teacher's code of patches that it was not shown."""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from models.config import MaskShape
from models.losses.precision import wide

_BLOCK_PATCHES = 4
_BLOCK_TRIES = 10


class HiddenPatches(NamedTuple):
    """Which patches of V views of B images the student does not see, M in all."""

    mask: Tensor  # (V, B, N) bool, true where hidden
    places: Tensor  # (M,) int64: where they are, counted through V, B and N
    divisor: Tensor  # (M,) int64: hidden patches of the same image, times images that have any

    def choose(self, patches: Tensor) -> Tensor:
        """Return (M, D) of patches (V, B, N, D)."""
        return patches.flatten(0, 2).index_select(0, self.places)


def ibot_loss(student_logits: Tensor, teacher_probs: Tensor, divisor: Tensor, student_temp: float) -> Tensor:
    """Cross-entropy on hidden patches, each image that has any weighing the same.

    Args:
        student_logits: (M, K) of the patches that were hidden.
        teacher_probs: (M, K) of the same patches, shown; no gradient.
        divisor: (M,) of `HiddenPatches`.
        student_temp: Temperature of the student's softmax.

    Returns:
        Scalar, nats; zero when nothing was hidden.

    Source: Zhou et al. 2022, arXiv:2111.07832, equation 2.
    """
    log_probs = F.log_softmax(wide(student_logits) / student_temp, dim=-1)
    per_patch = -(teacher_probs * log_probs).sum(dim=-1)
    return (per_patch / divisor).sum()


def draw_mask(
    shape: tuple[int, int, int],
    fraction: tuple[float, float],
    rng: np.random.Generator,
    kind: MaskShape = "random",
    grid: tuple[int, int, int] | None = None,
) -> NDArray[np.bool_]:
    """Draw which patches stay hidden: (V, B, N), a uniform share of `fraction` in every other image.

    Blocks lie in a grid of layers, rows and columns; a square one if none is given.

    Source: DINOv2, arXiv:2304.07193: half of the images are masked, by 10% to 50%.
    """
    views, batch, patches = shape
    mask = np.zeros((views * batch, patches), dtype=np.bool_)
    for image in range(0, views * batch, 2):
        count = max(1, round(float(rng.uniform(*fraction)) * patches))
        if kind == "blocks":
            side = math.isqrt(patches)
            _hide_blocks(mask[image].reshape(grid or (1, side, side)), count, rng)
        left = count - int(mask[image].sum())
        shown = (
            rng.permutation(patches) if kind == "random" else rng.permutation(np.flatnonzero(~mask[image]))
        )
        mask[image, shown[:left]] = True
    return mask.reshape(shape)


def upload(values: NDArray[np.generic], device: torch.device) -> Tensor:
    """Copy an array to a device; from memory that is not pinned a copy waits for all that is queued on a GPU."""
    host = torch.from_numpy(values)
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)


def _hide_blocks(mask: NDArray[np.bool_], count: int, rng: np.random.Generator) -> None:
    """Hide up to `count` patches of a grid (layers, rows, columns) in boxes; single patches complete the number.

    Source: blockwise masking, BEiT, arXiv:2106.08254, algorithm 1, which iBOT takes over: at least 4 patches (here also
    at most what is left), aspect ratios log-uniform between 0.3 and 1 / 0.3; in 3D that of the depth too.
    """
    layers, rows, columns = mask.shape
    for _ in range(_BLOCK_TRIES):
        left = count - int(mask.sum())
        if left < _BLOCK_PATCHES:
            break
        size, ratio, depth = rng.uniform(_BLOCK_PATCHES, left), _ratio(rng), 1
        if layers > 1:
            of_depth = _ratio(rng)
            depth = max(round((size * of_depth**2) ** (1 / 3)), 1)
        height, width = round(math.sqrt(size / depth * ratio)), round(math.sqrt(size / depth / ratio))
        if depth <= layers and 0 < height <= rows and 0 < width <= columns:
            lowest = rng.integers(layers - depth + 1) if layers > 1 else 0
            top, column = rng.integers(rows - height + 1), rng.integers(columns - width + 1)
            block = mask[lowest : lowest + depth, top : top + height, column : column + width]
            if (~block).sum() <= left:
                block[:] = True


def _ratio(rng: np.random.Generator) -> float:
    return math.exp(rng.uniform(-1, 1) * math.log(1 / 0.3))


def hidden_patches(mask: NDArray[np.bool_], device: torch.device) -> HiddenPatches:
    """Find the hidden patches on the CPU, where their number is known without synchronizing with the device."""
    of_image = mask.sum(axis=-1, keepdims=True)
    divisor = np.broadcast_to(of_image * (of_image > 0).sum(), mask.shape)[mask]
    places = np.flatnonzero(mask)
    return HiddenPatches(upload(mask, device), upload(places, device), upload(divisor, device))
