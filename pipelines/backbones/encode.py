"""Python API: encode CT volumes into tokens with their positions in millimeters.

from pipelines.backbones.encode import encode

for volume in encode("scans/patient_7", "runs:/<id>/backbone"):
    volume.class_token        # (Z, D), one per slice
    volume.patch_tokens       # (Z, N, D)
    volume.patch_lps_mm       # (Z, N, 3), position of each patch in the patient
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from numpy.typing import NDArray

from models.backbone import Tokens
from pipelines.backbones.config import EncodeSettings
from pipelines.backbones.features import network_input
from pipelines.backbones.folder import LoadedBackbone, chosen_backbone, open_backbone
from pipelines.ingest.config import FolderFormat
from pipelines.ingest.ct_volumes import CtFolder, CtVolume
from pipelines.runtime.distributed import choose_device
from transforms.dicom.series import CtSeries
from transforms.geometry import VolumeGeometry
from transforms.nodule_sampling import place, sample_windows
from transforms.triplet import SliceTriplet


@dataclass(frozen=True)
class EncodedSlices:
    """Tokens of consecutive slices of one volume, with their positions.

    Attributes:
        z: Index of each slice, (B,).
        tokens: On the CPU, float32: class token (B, D), patch tokens (B, N, D), rows of patches first.
        center_lps_mm: Center of each field of view, LPS mm, (B, 3).
        patch_lps_mm: Center of each patch, LPS mm, (B, N, 3).
        mm_per_px: Pixel size of the network's input.
        is_replicated: A neighbor that does not exist was replaced by the slice itself, (B,).
    """

    z: NDArray[np.int64]
    tokens: Tokens
    center_lps_mm: NDArray[np.float64]
    patch_lps_mm: NDArray[np.float64]
    mm_per_px: float
    is_replicated: NDArray[np.bool_]


@dataclass(frozen=True)
class EncodedVolume:
    """Tokens of every slice of a volume, with their positions; attributes as in `EncodedSlices`."""

    volume_id: str
    class_token: NDArray[np.float32]
    patch_tokens: NDArray[np.float32]
    center_lps_mm: NDArray[np.float64]
    patch_lps_mm: NDArray[np.float64]
    mm_per_px: float
    is_replicated: NDArray[np.bool_]


def encode(
    source: str | Path | MetaTensor | CtSeries | CtVolume,
    backbone: str | LoadedBackbone = "",
    settings: EncodeSettings | None = None,
    *,
    folder_format: FolderFormat = "auto",
    device: str = "auto",
) -> Iterator[EncodedVolume]:
    """Encode a folder of CT, a cohort, or one volume.

    Args:
        source: A folder with any number of series, a file of one volume, a cohort folder, or a volume in memory.
        backbone: Opened, or its name, as `open_backbone` takes it; "" takes that of the newest finished pretrain run.
        settings: Field of view and window.
        folder_format: How a folder is read.
        device: Where to compute.

    Yields:
        One volume after another; memory holds one at a time. Files that cannot be read correctly are left out: iterate
        over `pipelines.ingest.ct_volumes.CtFolder` and call `encode` on each volume to see which, and why.

    Raises:
        Refusal: If the source or the backbone does not exist.
    """
    loaded = backbone if isinstance(backbone, LoadedBackbone) else open_backbone(chosen_backbone(backbone))
    volumes: Iterable[CtVolume]
    if isinstance(source, str | Path):
        volumes = CtFolder(Path(source), folder_format)
    else:
        volumes = [source if isinstance(source, CtVolume) else CtVolume.from_memory(source)]
    for volume in volumes:
        parts = list(encode_slices(volume, loaded, settings or EncodeSettings(), choose_device(device)))
        yield EncodedVolume(
            volume.volume_id,
            np.concatenate([part.tokens.class_token.numpy() for part in parts]),
            np.concatenate([part.tokens.patch_tokens.numpy() for part in parts]),
            np.concatenate([part.center_lps_mm for part in parts]),
            np.concatenate([part.patch_lps_mm for part in parts]),
            parts[0].mm_per_px,
            np.concatenate([part.is_replicated for part in parts]),
        )


@torch.no_grad()
def encode_slices(
    volume: CtVolume, loaded: LoadedBackbone, settings: EncodeSettings, device: torch.device
) -> Iterator[EncodedSlices]:
    """Encode every slice of a volume with its two neighbors, in batches.

    Rows of the image run to the patient's back and columns to the left, for any orientation of the array; outside the
    slice is air.

    Raises:
        ValueError: If the volume's axes are not (z toward the head, y, x).
    """
    backbone = loaded.backbone.to(device).eval()
    geometry = volume.geometry
    n_slices, height, width = geometry.shape
    _, spacing_y_mm, spacing_x_mm = geometry.spacing_mm
    size_mm = settings.size_mm or max(height * spacing_y_mm, width * spacing_x_mm)
    size_px, mm_per_px = backbone.image_px, size_mm / backbone.image_px
    middle = np.array([0.0, (height - 1) / 2, (width - 1) / 2])
    at = place(geometry, geometry.to_lps(middle))
    steps = np.array(at.steps_zyx[1:]) * mm_per_px / np.array([spacing_y_mm, spacing_x_mm])
    patches_zyx = middle + _patch_grid(size_px, backbone.patch_px, steps)
    cut = SliceTriplet()
    for start in range(0, n_slices, settings.batch_size):
        z = np.arange(start, min(start + settings.batch_size, n_slices))
        # Each slice is resampled once, with one more at either end; then the triplets are cut.
        first, last = max(start - 1, 0), min(start + len(z), n_slices - 1)
        slices_hu = sample_windows(volume.volume_hu, at, range(first, last + 1), size_mm, size_px)
        gaps = [gap - first for gap in geometry.gaps]
        triplets = [(cut(slices_hu, int(k) - first, gaps=gaps), cut.is_replicated) for k in z]
        images = torch.from_numpy(np.stack([triplet for triplet, _ in triplets])).to(device)
        tokens = backbone(network_input(images, backbone, settings.window, loaded.hu_scale))
        yield EncodedSlices(
            z,
            Tokens(*(token.float().cpu() for token in tokens)),
            _places(geometry, middle[None], z)[:, 0],
            _places(geometry, patches_zyx, z),
            mm_per_px,
            np.array([is_replicated for _, is_replicated in triplets]),
        )


def _patch_grid(size_px: int, patch_px: int, steps_yx: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the voxel index of each patch center relative to the image center, (N, 3), z 0, rows first."""
    from_middle = (np.arange(size_px // patch_px) + 0.5) * patch_px - size_px / 2
    y, x = np.meshgrid(from_middle * steps_yx[0], from_middle * steps_yx[1], indexing="ij")
    return np.stack([np.zeros(y.size), y.ravel(), x.ravel()], axis=1)


def _places(
    geometry: VolumeGeometry, index_zyx: NDArray[np.float64], z: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the positions in LPS mm of points (N, 3) in each of the slices `z`, (B, N, 3)."""
    points = np.repeat(index_zyx[None], len(z), axis=0)
    points[..., 0] = z[:, None]
    return geometry.to_lps(points)
