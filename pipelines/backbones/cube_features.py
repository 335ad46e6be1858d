"""Frozen features of cubes around nodules, by a 3D backbone."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from models.backbone import Backbone, Tokens
from pipelines.backbones.config import FeatureName, WindowName
from pipelines.backbones.features import (
    NEIGHBORHOOD_MM,
    STACKED,
    image_features,
    inside_and_around,
    network_input,
    weighted_mean,
)
from pipelines.nodule.cubes import CubeBatch
from probes.nodule_rays import CubeRegion, cube_region


@torch.no_grad()
def encode_nodule_cubes(
    backbone: Backbone,
    batches: Iterable[CubeBatch],
    window: WindowName,
    features: FeatureName,
    device: torch.device,
    hu_scale: float = 1.0,
    find: Callable[[NDArray[np.float32], NDArray[np.float64]], CubeRegion] = cube_region,
) -> NDArray[np.float32]:
    """Encode cubes with a frozen 3D backbone.

    Args:
        backbone: In evaluation mode.
        batches: Cubes, each with a nodule in its middle; `told_mm` is what a network that takes the spacing is told.
        window: CT window; `stacked` joins the features of all three.
        features: Tokens to use; `roi` finds each nodule by rays from the middle of its cube.
        device: Where to compute.
        hu_scale: Factor by which the backbone's pretraining multiplied HU.
        find: Where `roi` reads cubes (B, D, P, P) of a spacing (B, 3).

    Returns:
        (n, D), or (n, N, D) for `patches`, patches in the order z, y, x; D adds up over windows and kinds of token.

    Raises:
        BackboneError: As `network_input`.
    """
    backbone = backbone.to(device)
    names = list(STACKED) if window == "stacked" else [window]
    rows = []
    for batch in batches:
        hu = torch.from_numpy(batch.hu).to(device)
        told = torch.from_numpy(batch.told_mm).float().to(device) if backbone.takes_spacing else None
        region = find(batch.hu, batch.spacing_mm) if features == "roi" else None
        parts = []
        for name in names:
            tokens = backbone(network_input(hu, backbone, name, hu_scale), spacing_mm=told)
            parts.append(cube_vectors(tokens, features, backbone, batch, region))
        rows.append(torch.cat(parts, dim=-1).float().cpu())
    return torch.cat(rows).numpy()


def cube_vectors(
    tokens: Tokens, features: FeatureName, backbone: Backbone, batch: CubeBatch, region: CubeRegion | None
) -> torch.Tensor:
    """Return one vector per cube (B, D), or all patches (B, N, D); `region` is read for `roi`."""
    patch_px = (backbone.patch_depth_px, backbone.patch_px, backbone.patch_px)
    device = tokens.patch_tokens.device
    match features:
        case "roi":
            if region is None:
                raise ValueError("features=roi needs the region of each nodule")
            shares = (cube_patch_shares(where, patch_px).to(device) for where in (region.mask, region.ring))
            return inside_and_around(tokens.patch_tokens, *shares)
        case "neighborhood":
            near = _near_center(backbone.grid_of(batch.hu.shape), batch.spacing_mm * patch_px)
            return weighted_mean(tokens.patch_tokens, near.to(device))
        case "patches":
            return tokens.patch_tokens
        case _:
            return image_features(tokens, features)


def cube_patch_shares(where: NDArray[np.bool_], patch_px: tuple[int, int, int]) -> torch.Tensor:
    """Return the share of each patch, (B, N), that lies in a mask (B, D, P, P); patches of (z, y, x) voxels."""
    return torch.nn.functional.avg_pool3d(torch.from_numpy(where).float()[:, None], patch_px).flatten(1)


def _near_center(grid: tuple[int, int, int], patch_mm: NDArray[np.float64]) -> torch.Tensor:
    """Return 1 for each patch of a cube within 10 mm of its middle, or nearest to it, else 0, (B, N)."""
    steps = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in grid), indexing="ij")
    from_middle = np.stack([step.ravel() for step in steps], axis=1)
    distance = np.linalg.norm(from_middle * patch_mm[:, None], axis=-1)
    reach = np.maximum(NEIGHBORHOOD_MM, distance.min(1, keepdims=True) + 1e-6)
    return torch.from_numpy((distance <= reach).astype(np.float32))
