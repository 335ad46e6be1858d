"""An encoder of HU cubes, and what it makes of those of a cohort."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.nodule.cubes import Cubes
from transforms.nodule_cube import CubeSpec
from transforms.refusal import Refusal

BATCH = 8

Floats = NDArray[np.float32]
Network = Callable[[Floats, NDArray[np.float64]], NDArray[Any]]
"""HU of cubes (B, Z, Y, X) and their affines (B, 4, 4), from (z, y, x, 1) to RAS mm, to vectors (B, D)."""

_SPL = ("S", "P", "L")
_OPPOSITE = {"S": "I", "P": "A", "L": "R"}


class EncoderError(Refusal):
    """An encoder does not exist, cannot be opened, or does not keep to what an encoder gives."""


@dataclass(frozen=True, eq=False)
class CubeEncoder:
    """A frozen encoder of HU cubes around nodules.

    Attributes:
        source: The name that it was opened by.
        spec: The cubes that it takes.
        network: The encoder.
        sha256: Of its weights; "" where nothing identifies them, so that no feature is kept on disk.
        architecture: Its name, which with a seed identifies random weights.
        random: Makes the same architecture with random weights from a seed; None where that cannot be done.
        twins: Most random twins; fewer than those of a backbone where one takes many minutes.
        record: What is known of its training, as in a backbone's record; {} where nothing is.
    """

    source: str
    spec: CubeSpec
    network: Network
    sha256: str
    architecture: str = ""
    random: Callable[[int], Network] | None = None
    twins: int = 5
    record: dict[str, Any] = field(default_factory=dict)
    run_id: str = ""


@dataclass(frozen=True, slots=True)
class TorchCubes:
    """A network of torch behind `Network`: window, orientation, forward pass, mean over positions.

    Attributes:
        module: In evaluation mode.
        vector: Of the module and its input (B, 1, ...): vectors (B, D), or maps (B, D, ...) that are averaged.
        window_hu: Lowest and highest HU, which become 0 and 1; beyond them HU are clipped.
        axcodes: Where the axes of the input run to, as MONAI's `Orientation` names them, such as RAS.
    """

    module: torch.nn.Module
    vector: Callable[[Any, torch.Tensor], torch.Tensor]
    window_hu: tuple[float, float]
    axcodes: str

    @torch.no_grad()
    def __call__(self, cubes_hu: Floats, affine_ras: NDArray[np.float64]) -> Floats:
        """Encode cubes."""
        low, high = self.window_hu
        gray = ((torch.from_numpy(cubes_hu) - low) / (high - low)).clamp(0, 1)
        found = self.vector(self.module, turned(gray, self.axcodes)[:, None])
        return found.reshape(*found.shape[:2], -1).mean(-1).numpy()


def turned(cubes: torch.Tensor, axcodes: str) -> torch.Tensor:
    """Turn cubes (B, S, P, L) to other axes, such as RAS, in which the last three axes run to right, front and head."""
    axis = {code: number for number, code in enumerate(_SPL, start=1)}
    axis |= {other: axis[code] for code, other in _OPPOSITE.items()}
    order = [axis[code] for code in axcodes]
    flipped = [number for number, code in enumerate(axcodes, start=1) if code not in _SPL]
    return cubes.permute(0, *order).flip(flipped) if flipped else cubes.permute(0, *order)


def encode_cubes(encoder: CubeEncoder, cubes: Cubes) -> Floats:
    """Encode cubes, each of which can be cut.

    Returns:
        (n, D).

    Raises:
        EncoderError: If the encoder gives no finite vectors, or vectors of two lengths.
    """
    rows: list[Floats] = []
    for batch in cubes.batches(BATCH):
        found = encoder.network(batch.hu, batch.affines_ras)
        rows.append(checked(found, len(batch.hu), rows[0].shape[1] if rows else None, encoder))
    return np.concatenate(rows)


def checked(found: NDArray[Any], n: int, length: int | None, encoder: CubeEncoder) -> Floats:
    """Return what an encoder gave for n cubes, or refuse it.

    Raises:
        EncoderError: If it gave no n vectors, of the length of those before, or a number that is not finite.
    """
    if found.ndim != 2 or len(found) != n or (length is not None and found.shape[1] != length):
        before = "" if length is None else f", and gave vectors of {length} before"
        raise EncoderError(
            f"encoder={encoder.source} gave an array of shape {found.shape} for {n} cubes{before};"
            " an encoder gives one vector a cube, always of one length"
        )
    if not np.isfinite(found).all():
        raise EncoderError(
            f"encoder={encoder.source} gave numbers that are not finite (NaN or infinite); look at what it does"
            f" with HU of {encoder.spec.shape} voxels, air outside the scan included"
        )
    return found.astype(np.float32)
