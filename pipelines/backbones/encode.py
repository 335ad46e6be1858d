"""Python API: encode CT volumes into tokens with their positions in millimeters.

from pipelines.backbones.encode import encode

for volume in encode("scans/patient_7", "runs:/<id>/backbone"):
    volume.class_token        # (Z, D), one per slice
    volume.patch_tokens       # (Z, N, D)
    volume.patch_lps_mm       # (Z, N, 3), position of each patch in the patient

A 3D backbone gets cubes that slide over the volume and overlap: then Z is their number.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from numpy.typing import NDArray

from models.backbone import Backbone, BackboneError, Tokens
from pipelines.backbones.config import EncodeSettings
from pipelines.backbones.cube_tokens import cube_spec
from pipelines.backbones.features import network_input
from pipelines.backbones.folder import LoadedBackbone, chosen_backbone, open_backbone
from pipelines.ingest.config import FolderFormat
from pipelines.ingest.ct_volumes import CtFolder, CtVolume
from pipelines.runtime.distributed import choose_device
from transforms.dicom.series import CtSeries
from transforms.geometry import VolumeGeometry
from transforms.nodule_cube import CubeSpec
from transforms.nodule_sampling import Placement, place, sample_box, sample_windows
from transforms.triplet import SliceTriplet


@dataclass(frozen=True)
class EncodedSlices:
    """Tokens of consecutive slices, or cubes, of one volume, with their positions.

    Attributes:
        z: Index of each slice, or of the slice nearest to the middle of each cube, (B,).
        tokens: On the CPU, float32: class token (B, D), patch tokens (B, N, D), layers, then rows of patches first.
        center_lps_mm: Center of each field of view, LPS mm, (B, 3).
        patch_lps_mm: Center of each patch, LPS mm, (B, N, 3).
        mm_per_px: Pixel size of the network's input, in the plane.
        is_replicated: A neighbor that does not exist was replaced by the slice itself, or a cube reaches beyond the
            volume or into a gap, where it gets air, (B,).
    """

    z: NDArray[np.int64]
    tokens: Tokens
    center_lps_mm: NDArray[np.float64]
    patch_lps_mm: NDArray[np.float64]
    mm_per_px: float
    is_replicated: NDArray[np.bool_]


@dataclass(frozen=True)
class EncodedVolume:
    """Tokens of every slice, or cube, of a volume, with their positions; attributes as in `EncodedSlices`."""

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
        parts = list(encode_parts(volume, loaded, settings or EncodeSettings(), choose_device(device)))
        yield EncodedVolume(
            volume.volume_id,
            np.concatenate([part.tokens.class_token.numpy() for part in parts]),
            np.concatenate([part.tokens.patch_tokens.numpy() for part in parts]),
            np.concatenate([part.center_lps_mm for part in parts]),
            np.concatenate([part.patch_lps_mm for part in parts]),
            parts[0].mm_per_px,
            np.concatenate([part.is_replicated for part in parts]),
        )


def encode_parts(
    volume: CtVolume, loaded: LoadedBackbone, settings: EncodeSettings, device: torch.device
) -> Iterator[EncodedSlices]:
    """Encode every slice of a volume, or with a 3D backbone cubes that cover it, in batches."""
    parts = encode_cubes if loaded.backbone.image_depth_px else encode_slices
    return parts(volume, loaded, settings, device)


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
    slice_mm, spacing_y_mm, spacing_x_mm = geometry.spacing_mm
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
        told = _told(backbone, np.tile((slice_mm, mm_per_px, mm_per_px), (len(z), 1)), device)
        tokens = backbone(network_input(images, backbone, settings.window, loaded.hu_scale), **told)
        yield EncodedSlices(
            z,
            Tokens(*(token.float().cpu() for token in tokens)),
            _places(geometry, middle[None], z)[:, 0],
            _places(geometry, patches_zyx, z),
            mm_per_px,
            np.array([is_replicated for _, is_replicated in triplets]),
        )


@torch.no_grad()
def encode_cubes(
    volume: CtVolume, loaded: LoadedBackbone, settings: EncodeSettings, device: torch.device
) -> Iterator[EncodedSlices]:
    """Encode cubes that slide over a volume, in batches; axes run to the head, the back and the patient's left.

    They lie evenly and end where the volume ends, neighbors sharing at least `overlap` of their side; along z none
    reaches across a gap. Where the volume is smaller than a cube, the rest is air.

    Raises:
        BackboneError: If no size is given, and none is known of the pretraining.
    """
    backbone, geometry = loaded.backbone.to(device).eval(), volume.geometry
    spec = cube_spec(loaded, settings.size_mm or _trained_mm(loaded))
    patch = np.array((backbone.patch_depth_px, backbone.patch_px, backbone.patch_px))
    grid = np.meshgrid(
        *((np.arange(n // own) + 0.5) * own - n / 2 for n, own in zip(spec.shape, patch, strict=True)),
        indexing="ij",
    )
    to_index = np.array(geometry.steps_zyx) / geometry.spacing_mm
    patches = np.stack([axis.ravel() for axis in grid], axis=1) * spec.spacing_mm * to_index
    cubes = list(_sliding(geometry, spec, settings.overlap))
    for start in range(0, len(cubes), settings.batch_size):
        own = cubes[start : start + settings.batch_size]
        hu = np.stack([_cube_of(volume, spec, *place) for place in own])
        spacing_mm = np.tile(spec.spacing_mm, (len(own), 1))
        images = network_input(torch.from_numpy(hu).to(device), backbone, settings.window, loaded.hu_scale)
        tokens = backbone(images, **_told(backbone, spacing_mm, device))
        centers = np.stack([center for center, _ in own])
        sides = np.array(spec.shape) * spec.spacing_mm / geometry.spacing_mm
        yield EncodedSlices(
            np.clip(np.floor(centers[:, 0] + 0.5), 0, geometry.shape[0] - 1).astype(np.int64),
            Tokens(*(token.float().cpu() for token in tokens)),
            geometry.to_lps(centers),
            geometry.to_lps(centers[:, None] + patches),
            spec.spacing_mm[1],
            np.array([bool((sides > [run[1] - run[0] + 1, *geometry.shape[1:]]).any()) for _, run in own]),
        )


def _trained_mm(loaded: LoadedBackbone) -> float:
    seen = loaded.record.get("mm_per_pixel")
    if not seen:
        raise BackboneError(
            f"{loaded.source} has no record of the mm per pixel of its pretraining; give size_mm, the side of a cube"
        )
    return float(np.sqrt(np.prod(seen))) * loaded.backbone.image_px


def _sliding(
    geometry: VolumeGeometry, spec: CubeSpec, overlap: float
) -> Iterator[tuple[NDArray[np.float64], tuple[int, int]]]:
    """Yield the middle of each cube as voxel indices (z, y, x), and the first and last slice of its unbroken run."""
    sides = np.array(spec.shape) * spec.spacing_mm / geometry.spacing_mm
    first = 0
    while first < geometry.shape[0]:
        run = geometry.unbroken_run(first)
        lengths = (run[1] - run[0] + 1, *geometry.shape[1:])
        along = [_middles(n, side, overlap) for n, side in zip(lengths, sides, strict=True)]
        for z, y, x in product(*along):
            yield np.array([run[0] + z, y, x]), run
        first = run[1] + 1


def _middles(length: int, side: float, overlap: float) -> NDArray[np.float64]:
    """Return the middles of sides that cover an axis of so many voxels, evenly, as voxel indices."""
    if side >= length:
        return np.array([(length - 1) / 2])
    n = int(np.ceil((length - side) / (side * (1 - overlap)) - 1e-9)) + 1
    middles: NDArray[np.float64] = np.linspace(side / 2, length - side / 2, n) - 0.5
    return middles


def _cube_of(
    volume: CtVolume, spec: CubeSpec, center: NDArray[np.float64], run: tuple[int, int]
) -> NDArray[np.float32]:
    low, high = run
    at = Placement(center - [low, 0, 0], volume.geometry.spacing_mm, volume.geometry.steps_zyx)
    return sample_box(volume.volume_hu[low : high + 1], at, spec.spacing_mm, spec.shape)


def _told(
    backbone: Backbone, spacing_mm: NDArray[np.float64], device: torch.device
) -> dict[str, torch.Tensor]:
    """Return the spacing (B, 3) for networks that take it; {} for others."""
    return {"spacing_mm": torch.from_numpy(spacing_mm).float().to(device)} if backbone.takes_spacing else {}


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
